"""The benchmark runs, and what it prints and writes is complete; times are not judged."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from tests.bench.figures import Figure, at_least, at_most
from tests.bench.kernel import planted
from tests.bench.measuring import Cost, run_child, run_raw
from tests.bench.models import TINY, write_run
from tests.bench.rivals import angle, truth
from tests.bench.stream import Link, Read, Round, figures_of
from tests.bench.workspace import Workspace, extract_arguments

ROOT = Path(__file__).parents[1]
CELLS = {"name", "value", "unit", "target", "spread", "no_verdict", "verdict"}


def test_smallest_parts_give_complete_tables_and_json(tmp_path: Path) -> None:
    """`--parts small,peers --quick --json` prints both tables and writes every cell of them."""
    found = tmp_path / "found.json"
    ended = subprocess.run(
        [
            *(sys.executable, "-m", "tests.bench", "--quick", "--parts", "small,peers"),
            *("--json", str(found), "--folder", str(tmp_path)),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    document = json.loads(found.read_text())
    assert document["quick"] is True
    assert {"CPU", "cores", "load", "torch", "Python"} <= set(document["machine"])
    assert list(document["parts"]) == ["small", "peers"]
    for part in document["parts"].values():
        assert part["notes"]
        assert part["seconds"] >= 0
        assert all(set(figure) == CELLS for figure in part["figures"])
    (figure,) = document["parts"]["small"]["figures"]
    assert figure["value"] > 0
    assert "small: a tiny run" in ended.stdout
    assert "predict" in ended.stdout
    assert max(len(line) for line in ended.stdout.splitlines()[1:]) <= 100
    assert [path.name for path in tmp_path.iterdir()] == ["found.json"]


def test_synthetic_runs_are_models_with_planted_updates(tmp_path: Path) -> None:
    """All tensors are there in bf16, equal seeds give equal bytes, and updates have a direction."""
    run = write_run(tmp_path / "one", TINY, (100, 200))
    again = write_run(tmp_path / "two", TINY, (100, 200))
    last = run.folder(200) / "model.safetensors"
    assert last.read_bytes() == (again.folder(200) / "model.safetensors").read_bytes()
    name = "model.layers.1.mlp.up_proj.weight"
    with safe_open(run.base / "model.safetensors", "pt") as base, safe_open(last, "pt") as later:
        assert sorted(base.keys()) == sorted(TINY.tensors())
        shapes = {key: tuple(base.get_tensor(key).shape) for key in base.keys()}  # noqa: SIM118
        assert shapes == TINY.tensors()
        assert base.get_tensor(name).dtype == torch.bfloat16
        delta_MN = later.get_tensor(name).double() - base.get_tensor(name).double()
    num_bytes = sum(2 * math.prod(shape) for shape in shapes.values())
    assert TINY.matrix_bytes + TINY.other_bytes == num_bytes
    sigma = torch.linalg.svdvals(delta_MN)
    assert 0.05 < float(sigma[0] ** 2 / delta_MN.square().sum()) < 0.5


@pytest.mark.parametrize("tls", [False, True])
def test_requests_are_counted_and_ranges_read_again(tmp_path: Path, tls: bool) -> None:
    """What extract asked for is known by range, and the raw reader reads just those bytes."""
    workspace = Workspace(tmp_path, quick=True)
    run = workspace.run(TINY, 2)
    with workspace.serving(run, tls=tls) as server:
        assert server.storage_endpoint.startswith("https:" if tls else "http:")
        arguments = extract_arguments(workspace.fresh("factors"))
        cost = run_child("cli", server.environment(), arguments=arguments)
        asked = server.asked()
        server.clear_log()
        run_raw(server, asked.ranges, num_threads=3)
        again = server.asked()
    assert cost.peak_bytes > 100e6
    assert (workspace.folder / "factors" / "alpharl.json").is_file()
    read = sum(r.stop - r.start for r in asked.ranges)
    assert read >= 3 * run.shapes.matrix_bytes
    assert asked.sent_bytes >= read
    assert 0 < asked.num_resolved_files <= asked.num_resolves
    assert asked.num_api_calls > 0
    assert sorted(again.ranges, key=repr) == sorted(asked.ranges, key=repr)


def test_truth_is_the_leading_triplet() -> None:
    """The fp64 iteration that errors are taken from agrees with LAPACK's decomposition."""
    delta_MN = planted(96, 160, 0.9, seed=3)
    u_MK, sigma_K, vt_KN = torch.linalg.svd(delta_MN.double(), full_matrices=False)
    assert 0.85 < float(sigma_K[1] / sigma_K[0]) < 0.95
    u_M, v_N = truth(delta_MN, steps=60)
    assert angle(u_M, u_MK[:, 0]) < 1e-9
    assert angle(-v_N, vt_KN[0]) < 1e-9
    eighth = angle(torch.tensor([1.0, 0.0]), torch.tensor([1.0, 1.0]).double())
    assert math.isclose(eighth, math.pi / 4)


def costs(*walls_s: float) -> list[Round]:
    """Rounds from the seconds of raw, extract, raw, predict, and a closing raw."""
    *inner, closing = walls_s
    made = [Cost(wall, wall / 2, 1000, 0) for wall in inner]
    groups = [made[i : i + 4] for i in range(0, len(made), 4)]
    found = [Round((a, c), b, d) for a, b, c, d in groups]
    end = Cost(closing, closing / 2, 1000, 0)
    return [*found, Round((end, end), found[-1].extract, found[-1].predict)]


def test_ratios_are_taken_from_the_raw_readings_beside() -> None:
    """Each speed is set against the mean of the two raw ones around it, as worked out by hand."""
    link = Link("any", None, at_least(0.45))
    rounds = costs(1.0, 2.0, 1.0, 4.0, 1.0, 2.0, 1.25, 2.5, 1.25)
    by_name = {f.name: f for f in figures_of(link, Read(10**9, 10**9, 10**9), rounds)}
    # Extract: 0.5 / 1 and 0.5 / 0.9; predict: 0.25 / 1 and 0.4 / 0.8.
    assert math.isclose(by_name["any: extract / raw"].value, (0.5 + 0.5 / 0.9) / 2)
    assert math.isclose(by_name["any: predict / raw"].value, (0.25 + 0.5) / 2)
    assert math.isclose(by_name["any: predict / extract"].value, (0.5 + 0.8) / 2)
    assert by_name["any: extract / raw"].verdict == "meets"
    assert math.isclose(by_name["any: extract CPU"].value, 1.0)


def test_no_verdict_when_raw_reading_varies() -> None:
    """Raw speeds that differ by more than 1.5x leave the table without a verdict."""
    rounds = costs(1.0, 2.0, 1.6, 4.0, 1.0)
    link = Link("any", None, at_least(0.45))
    figures = figures_of(link, Read(10**9, 10**9, 10**9), rounds)
    judged = [figure for figure in figures if figure.target is not None]
    assert judged
    assert {figure.verdict for figure in judged} == {"none: raw x1.6"}


def test_verdicts_say_by_how_much_a_target_is_missed() -> None:
    """At least and at most, met and missed."""
    assert Figure("a", 0.95, "x", at_least(0.9)).verdict == "meets"
    assert Figure("a", 0.72, "x", at_least(0.9)).verdict == "misses by 20 %"
    assert Figure("a", 1.2, "s", at_most(1.2)).verdict == "meets"
    assert Figure("a", 1.8, "s", at_most(1.2)).verdict == "misses by 50 %"
    assert Figure("a", 5.0, "B", at_most(0)).verdict == "misses by 500 %"
    assert Figure("a", 1.0, "s").verdict == ""
