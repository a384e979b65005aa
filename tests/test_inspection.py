"""What inspect says, against the files; and what a plan promises, against the running process."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from trajectories import (
    EMBEDDING,
    HEAD,
    NORM,
    Run,
    curved_run,
    generator,
    load_model,
    matrix_names,
    succeed,
    with_method,
    write_run,
)

from tests.bench.models import SEVEN_B_PAIR, sparse_run

PICTURE = "alpharl-evidence.png"
STEPS = (4, 10, 24, 31, 40)
TARGET = ("--target-step", "80")


def inspect(run: Run, *options: str) -> dict[str, Any]:
    """The JSON of inspect."""
    return json.loads(succeed("inspect", *run.arguments("--json", *options)).stdout)


def stored_bytes(folder: Path, names: Sequence[str] | None = None) -> int:
    """Bytes of some tensors (all by default) of a model folder, as safetensors reads them."""
    tensors = load_model(folder)
    chosen = tensors if names is None else names
    return sum(tensors[name].numel() * tensors[name].element_size() for name in chosen)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Sharded bf16 checkpoints over an fp32 base in one file."""
    return write_run(
        tmp_path_factory.mktemp("inspected"),
        STEPS,
        curved_run(STEPS),
        dtype=torch.bfloat16,
        num_shards=2,
        base_options={"dtype": torch.float32, "num_shards": 0},
    )


def test_run_is_described_as_it_lies_there(run: Run, tmp_path: Path) -> None:
    """Layout, base, checkpoints, scope and scores are those of the files; unread ones are null."""
    scores = tmp_path / "scores.json"
    scores.write_text(json.dumps({str(s): s / 100 for s in STEPS}))
    found = inspect(run, "--steps", "4,24-40", "--scores", str(scores))
    assert found["schema"] == 1
    assert (found["layout"], found["pattern"]) == ("local", "step_{step}")
    assert found["base"] == {
        "source": str(run.base),
        "revision": None,
        "commit": None,
        "chosen_by": "option",
    }
    assert [c["step"] for c in found["checkpoints"]] == list(STEPS)
    for checkpoint in found["checkpoints"]:
        folder = run.folder(checkpoint["step"])
        selected = checkpoint["step"] != 10
        wanted = {
            "step": checkpoint["step"],
            "source": str(folder),
            "revision": None,
            "commit": None,
            "folder": "",
            "selected": selected,
            "score": checkpoint["step"] / 100 if selected else None,
            "dtype": "BF16" if selected else None,
            "num_tensors": len(load_model(folder)) if selected else None,
            "num_bytes": stored_bytes(folder) if selected else None,
            "num_files": 2 if selected else None,
        }
        assert checkpoint == wanted
    groups = {group["group"]: group["num_matrices"] for group in found["scope"]}
    assert groups == dict.fromkeys(
        [f"self_attn.{x}_proj" for x in "qkvo"] + [f"mlp.{x}_proj" for x in ("gate", "up", "down")],
        2,
    )
    assert {e["name"] for e in found["excluded"]} == {EMBEDDING, HEAD}


OPTIONS: dict[str, tuple[str, ...]] = {
    "alpharl": (),
    "linear": ("--method", "linear"),
    "window": ("--method", "linear", "--fit-last", "3"),
    "base": ("--others", "base"),
    "line": ("--others", "linear"),
    "dtype": ("--dtype", "float32"),
    "fewer": ("--steps", "4,40", "--exclude", "mlp"),
}


def planned_bytes(run: Run, options: tuple[str, ...]) -> int:
    """What has to be read, by the rules, from the files: every byte that matters once."""
    names = list(load_model(run.base))
    matrices = matrix_names(load_model(run.base))
    others = [name for name in names if name not in matrices]
    moving = [name for name in others if "norm" not in name]
    steps: tuple[int, ...] = STEPS
    if "--exclude" in options:
        matrices = [name for name in matrices if "mlp" not in name]
        others = [name for name in names if name not in matrices]
        steps = (4, 40)
    last = run.folder(40)
    if "--method" in options:
        # Step 24 is the middle, where the direction is read, and the first of the last three.
        total = sum(stored_bytes(run.folder(s), matrices) for s in (24, 40))
        total += stored_bytes(run.base, [*matrices, *moving]) + stored_bytes(last, others)
        if "--fit-last" in options:
            total += stored_bytes(run.folder(24), moving)
        # The first checkpoint only helps to check the base: eight matrices, here whole.
        return total + stored_bytes(run.folder(4), matrices[:8])
    total = sum(stored_bytes(run.folder(s), matrices) for s in steps)
    total += stored_bytes(run.base, matrices)
    if "base" in options:
        return total + stored_bytes(run.base, others)
    if "linear" in options:
        total += stored_bytes(run.base, moving)
    return total + stored_bytes(last, others)


@pytest.mark.parametrize("name", OPTIONS)
def test_plan_counts_the_bytes_of_the_files(run: Run, tmp_path: Path, name: str) -> None:
    """read_bytes and output_bytes follow from what is stored, to 1 %."""
    options = OPTIONS[name]
    plan = inspect(run, *TARGET, *options)["plan"]
    assert plan["readings"] == 1
    assert plan["read_bytes"] == pytest.approx(planned_bytes(run, options), rel=0.01)
    output = tmp_path / "out"
    succeed("predict", *run.arguments("-o", str(output), *TARGET, *options))
    written = sum(
        path.stat().st_size
        for path in output.iterdir()
        if path.name not in ("README.md", "alpharl.json", "model.safetensors.index.json", PICTURE)
    )
    assert plan["output_bytes"] == pytest.approx(written, rel=0.01)


def test_inspection_needs_no_target(run: Run) -> None:
    """Without a target the same plan is shown: what a prediction costs does not depend on it."""
    assert inspect(run)["plan"] == inspect(run, *TARGET)["plan"]


def test_the_look_that_auto_takes_is_counted(run: Run) -> None:
    """Before it predicts auto reads base, middle and last checkpoint of the matrices."""
    named = inspect(run, *TARGET, "--method", "ols", "--fit-last", "3", "--anchor", "last")["plan"]
    plan = inspect(run, *TARGET, "--method", "auto")["plan"]
    matrices = matrix_names(load_model(run.base))
    folders = (run.base, run.folder(24), run.folder(40))
    looked_at = sum(stored_bytes(folder, matrices) for folder in folders)
    assert plan["read_bytes"] == named["read_bytes"] + looked_at
    assert plan["requests"] > named["requests"]
    assert plan["output_bytes"] == named["output_bytes"]


MANY_STEPS = tuple(range(10, 160, 10))


@pytest.mark.parametrize("method", ["alpharl", "relex", "ols"])
def test_costs_of_other_counts_are_those_of_plans_with_so_many(tmp_path: Path, method: str) -> None:
    """What six, twelve or all of fifteen checkpoints cost is what their own plans say, to 2 %."""
    run = write_run(tmp_path, MANY_STEPS, curved_run(MANY_STEPS))
    asked = ("--target-step", "300", "--method", method)
    told = inspect(run, *asked)["plan"]["other_counts"]
    assert [one["num_checkpoints"] for one in told] == [6, 15]
    for one in told:
        steps = ",".join(map(str, MANY_STEPS[: one["num_checkpoints"]]))
        plan = inspect(run, *asked, "--steps", steps)["plan"]
        assert one["read_bytes"] == pytest.approx(plan["read_bytes"], rel=0.02)


def test_where_the_count_costs_nothing_none_is_told(tmp_path: Path) -> None:
    """A line through base and last checkpoint reads no others, however many there are."""
    run = write_run(tmp_path, MANY_STEPS, curved_run(MANY_STEPS))
    assert inspect(run, *TARGET, "--method", "linear")["plan"]["other_counts"] == []


def test_the_rate_is_measured_where_much_is_to_be_read(tmp_path: Path) -> None:
    """Of a run of 2 GB nine megabytes are timed; of a small one none."""
    folders = sparse_run(tmp_path, SEVEN_B_PAIR, (10, 20, 30))
    run = Run(folders.run, folders.base, (10, 20, 30))
    options = ("--force", "--keep-repeats")
    num_read = bytes_read_by("inspect", *run.arguments("--json", *options))
    found = inspect(run, *options)
    assert found["plan"]["read_bytes"] > 1e9
    assert found["rate"]["num_bytes"] == 8_000_000
    assert found["rate"]["bytes_per_s"] > 1e6
    assert 9e6 < num_read < 9e6 + 4e6


def test_memory_limit_takes_fewer_workers(run: Run) -> None:
    """A limit between one worker's need and three's gives a plan that keeps to it."""
    one = inspect(run, "--devices", "cpu")["plan"]["peak_memory_bytes"]
    assert inspect(run, "--memory", "100GB", "--devices", "cpu")["plan"]["peak_memory_bytes"] == one
    limited = inspect(run, "--devices", "cpu,cpu,cpu", "--memory", str(one))
    assert limited["plan"]["peak_memory_bytes"] == one


def test_problems_are_told(tmp_path: Path) -> None:
    """Repeats, gaps and a wrong base are warnings of inspect, not errors."""
    at = curved_run(STEPS)
    name = matrix_names(at(0))[0]

    def repeated(step: int) -> dict[str, Tensor]:
        tensors = dict(at(24 if step == 31 else step))
        if step == 10:
            del tensors[name]
        return tensors if step else dict(curved_run(STEPS, seed=7)(0))

    run = write_run(tmp_path, STEPS, repeated)
    told = {w["code"]: w["message"] for w in inspect(run)["warnings"]}
    assert "31" in told["repeats"]
    assert name in told["gap"]
    assert "does not look like the base" in told["wrong_base"]


LARGE_STEPS = (10, 20, 40)


def large_tensors(step: int) -> dict[str, Tensor]:
    """A model of 100 MB in bf16: matrices on a rank-1 line, an embedding, norms."""
    source = generator(0)
    tensors = {EMBEDDING: torch.randn(8000, 1024, generator=source)}
    for layer in range(10):
        for module, rows in (("self_attn.q_proj", 1024), ("mlp.up_proj", 2816)):
            weights = torch.randn(rows, 1024, generator=source)
            left = torch.randn(rows, 1, generator=source)
            right = torch.randn(1, 1024, generator=source)
            weights.addmm_(left, right, alpha=3e-4 * step)
            tensors[f"model.layers.{layer}.{module}.weight"] = weights
    tensors[NORM] = torch.ones(1024)
    return tensors


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Four checkpoints of 100 MB."""
    where = tmp_path_factory.mktemp("large")
    return write_run(where, LARGE_STEPS, large_tensors, dtype=torch.bfloat16)


def bytes_read_by(*arguments: str) -> int:
    """Bytes that this process asked the system for while a command ran, as Linux counts them."""

    def rchar() -> int:
        text = Path("/proc/self/io").read_text()
        return int(re.search(r"rchar: (\d+)", text)[1])  # type: ignore[index]

    before = rchar()
    succeed(*arguments)
    return rchar() - before


def test_inspect_reads_less_than_a_megabyte_per_checkpoint(large: Run) -> None:
    """Headers, a few blocks and rows: under 1 MB for each of the four folders."""
    inspect(large)
    assert bytes_read_by("inspect", *large.arguments("--json")) < 4_000_000


def test_predict_reads_what_was_planned(run: Run, large: Run, tmp_path: Path) -> None:
    """The system's own count is the plan's and the output, which is read back once, to 2 %.

    The font of the card's picture, 6 MB, is counted too.
    """
    # What draws the card's picture is loaded once for all.
    succeed("predict", *run.arguments("-o", str(tmp_path / "before"), *TARGET))
    plan = inspect(large, *TARGET)["plan"]
    found = bytes_read_by("predict", *large.arguments("-o", str(tmp_path / "out"), *TARGET))
    assert found == pytest.approx(plan["read_bytes"] + plan["output_bytes"], rel=0.02)
    assert plan["read_bytes"] > 3.5 * 80e6


CHILD = """
import re, sys
from pathlib import Path
from alpharl_hub.cli import main
main(sys.argv[2:], standalone_mode=False)
peak = re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]
Path(sys.argv[1]).write_text(str(int(peak) * 1024))
"""


def peak_of(note: Path, *arguments: str) -> int:
    """The largest resident size of a process of its own that runs a command.

    Not ru_maxrss: for a child it starts with the size of the process that forked it.
    """
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run(
        [sys.executable, "-c", CHILD, str(note), *with_method(arguments)],
        env=environment,
        check=True,
    )
    return int(note.read_text())


@pytest.mark.parametrize(
    "options",
    [
        (),
        ("--anchor", "last", "--others", "linear"),
        ("--devices", "cpu,cpu"),
        ("--method", "relex", "--devices", "cpu"),
    ],
    ids=["plain", "anchor and line", "two workers", "relex"],
)
def test_memory_stays_below_the_plan_and_not_far(
    large: Run, tmp_path: Path, options: tuple[str, ...]
) -> None:
    """The plan's peak memory bounds the process from above, by at most half of what it takes."""
    planned = inspect(large, *TARGET, *options)["plan"]["peak_memory_bytes"]
    arguments = large.arguments("-o", str(tmp_path / "out"), *TARGET, *options)
    measured = peak_of(tmp_path / "peak", "predict", *arguments)
    assert measured <= planned <= 1.5 * measured
