"""`compare`: distances of models against float64 numpy, and what cannot be compared."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hub_fixtures import ALICE, Commands, files_of
from manifest_maker import checkpoint, manifest, run
from trajectories import (
    NORM,
    Q_PROJ,
    UP_PROJ,
    as_float64,
    command,
    curved_run,
    fail,
    load_model,
    model_config,
    model_tensors,
    succeed,
    write_checkpoint,
)

from alpharl_hub import strict_json
from alpharl_hub.local_hub import LocalHub
from alpharl_hub.module_names import layer_and_group
from alpharl_hub.numerics.difference import add_differences, are_finite, difference_sums
from alpharl_hub.reporting import comparison

STEPS = (40, 60)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Models of one run in several dtypes and shardings, and their base."""
    at = curved_run(STEPS, size=1e-3)
    where = tmp_path_factory.mktemp("models")
    models: dict[str, tuple[int, dict[str, Any]]] = {
        "base": (0, {}),
        "first": (40, {}),
        "second": (60, {}),
        "first_bf16": (40, {"dtype": torch.bfloat16}),
        "second_bf16": (60, {"dtype": torch.bfloat16, "num_shards": 3}),
        "second_sharded": (60, {"num_shards": 4, "header_spaces": 3}),
        "base_bf16": (0, {"dtype": torch.bfloat16}),
        "first_f16": (40, {"dtype": torch.float16}),
        "first_f64": (40, {"dtype": torch.float64}),
    }
    return {
        name: write_checkpoint(where / name, at(step), config=model_config(), **options)
        for name, (step, options) in models.items()
    }


def answer(*arguments: str | Path) -> dict[str, Any]:
    """What `compare --json` says."""
    found: dict[str, Any] = json.loads(succeed("compare", *arguments, "--json").stdout)
    return found


def truth(first: Path, second: Path, base: Path | None, names: list[str]) -> dict[str, float]:
    """The distances over some tensors in float64, all their entries in one row."""

    def row(folder: Path) -> Any:
        tensors = load_model(folder)
        return np.concatenate([as_float64(tensors[name]).ravel() for name in names])

    a, b = row(first), row(second)
    found = {
        "num_entries": len(a),
        "equal_share": float(np.mean(a == b)),
        "error_of_weights": float(np.linalg.norm(a - b) / np.linalg.norm(b)),
    }
    if base is not None:
        c = row(base)
        first_norm, second_norm = np.linalg.norm(a - c), np.linalg.norm(b - c)
        found["error_of_update"] = float(np.linalg.norm(a - b) / second_norm)
        found["cosine_of_updates"] = float((a - c) @ (b - c) / first_norm / second_norm)
        found["length_of_update"] = float(first_norm / second_norm)
    return found


def assert_is_truth(found: dict[str, Any], first: Path, second: Path, base: Path | None) -> None:
    """Compare every group, and all together, with numpy."""
    names = list(load_model(second))
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(layer_and_group(name)[1], []).append(name)
    assert {row["group"] for row in found["groups"]} == set(groups)
    for row in (*found["groups"], found["pooled"]):
        members = groups.get(row["group"], names)
        assert row["num_tensors"] == len(members)
        expected = truth(first, second, base, members)
        assert {key: row[key] for key in expected} == pytest.approx(expected, rel=2e-6)
        if base is None:
            assert row["error_of_update"] is row["cosine_of_updates"] is None


@pytest.mark.parametrize(
    ("first", "second", "base"),
    [
        ("first", "second", "base"),
        ("first", "second", None),
        ("first_bf16", "second_bf16", "base_bf16"),
        ("first_bf16", "second_sharded", "base"),
        ("first_f16", "second", "base_bf16"),
        ("first_f64", "second", "base"),
    ],
)
def test_distances_are_those_of_numpy(
    folders: dict[str, Path], first: str, second: str, base: str | None
) -> None:
    """Errors, cosine, length and equal share by group and pooled, whatever dtypes meet."""
    models = folders[first], folders[second]
    options: list[str | Path] = [] if base is None else ["--base", folders[base]]
    found = answer(*models, *options)
    assert_is_truth(found, *models, None if base is None else folders[base])
    assert found["base_chosen_by"] == (None if base is None else "option")


def test_shards_make_no_difference(folders: dict[str, Path]) -> None:
    """Four shards with odd headers give, to the bit, the numbers of a single file."""
    base = "--base", folders["base"]
    one = answer(folders["first"], folders["second"], *base)
    four = answer(folders["first"], folders["second_sharded"], *base)
    assert one["pooled"] == four["pooled"]
    assert {row["group"]: row for row in one["groups"]} == {r["group"]: r for r in four["groups"]}


def test_tensors_cut_into_runs_add_up(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With windows of 100 bytes every matrix is cut, and the sums are the same."""
    models = folders["first_bf16"], folders["second"], "--base", folders["base"]
    whole = answer(*models)
    monkeypatch.setattr(comparison, "WINDOW_BYTES", 100)
    cut = answer(*models)
    for key in ("num_entries", "equal_share", "error_of_update", "cosine_of_updates"):
        assert cut["pooled"][key] == pytest.approx(whole["pooled"][key], rel=1e-12)
    assert cut["pooled"]["num_tensors"] == whole["pooled"]["num_tensors"]


def test_chunks_of_a_large_tensor_add_up() -> None:
    """A tensor of many chunks has the sums of numpy in float64; pooling adds updates that exist."""
    rng = np.random.default_rng(0)
    c = rng.normal(size=(700, 500)).astype(np.float32)
    a = c + 1e-3 * rng.normal(size=c.shape).astype(np.float32)
    b = np.where(rng.random(c.shape) < 0.25, a, c + np.float32(2e-3))
    sums = difference_sums(*(torch.from_numpy(x) for x in (a, b, c)))
    a64, b64, c64 = (x.astype(np.float64).ravel() for x in (a, b, c))
    assert sums.updates is not None
    assert sums.num_equal == np.sum(a == b)
    assert sums.difference == pytest.approx(np.sum((a64 - b64) ** 2), rel=1e-6)
    assert sums.updates.product == pytest.approx((a64 - c64) @ (b64 - c64), rel=1e-6)
    plain = difference_sums(torch.from_numpy(a), torch.from_numpy(b), None)
    both = add_differences([sums, plain])
    assert both.updates == sums.updates
    assert both.num_entries == 2 * c.size
    assert both.error == pytest.approx(sums.error, rel=1e-12)


def test_differences_that_only_float64_holds_are_seen() -> None:
    """Models stored in float64 are subtracted in float64, beside a base in fp32 too."""
    base = torch.ones(1000)
    second = base.double() + 2e-12
    sums = difference_sums(second - 1e-12, second, base)
    assert sums.updates is not None
    assert sums.num_equal == 0
    assert sums.updates.error == pytest.approx(0.5, rel=1e-3)


def test_infinities_are_found_wherever_they_lie_and_large_sums_are_none() -> None:
    """One NaN or infinity in the last chunk counts; numbers whose sum overflows fp32 do not."""
    values = torch.full((300, 1000), 3e38)
    assert are_finite(values)
    for bad in (float("nan"), float("inf"), -float("inf")):
        broken = values.clone()
        broken[-1, -1] = bad
        assert not are_finite(broken)
        assert not are_finite(broken.bfloat16())


def test_a_model_is_equal_to_itself(folders: dict[str, Path]) -> None:
    """Distance 0, cosine 1, all entries equal."""
    pooled = answer(folders["first"], folders["first"], "--base", folders["base"])["pooled"]
    assert pooled["error_of_update"] == pooled["error_of_weights"] == 0
    assert pooled["equal_share"] == pooled["length_of_update"] == 1
    assert pooled["cosine_of_updates"] == pytest.approx(1, abs=1e-12)


def test_the_base_itself_has_error_one(folders: dict[str, Path]) -> None:
    """The base as A is one update away and has no direction; as B nothing can be said."""
    base = folders["base"]
    pooled = answer(base, folders["second"], "--base", base)["pooled"]
    assert pooled["error_of_update"] == pytest.approx(1, rel=1e-12)
    assert (pooled["cosine_of_updates"], pooled["length_of_update"]) == (None, 0)
    pooled = answer(folders["second"], base, "--base", base)["pooled"]
    assert pooled["error_of_update"] is pooled["cosine_of_updates"] is None
    assert pooled["error_of_weights"] > 0


def test_tensors_that_meet_nobody_are_listed(folders: dict[str, Path], tmp_path: Path) -> None:
    """Tensors in one model only are named, those not in the base are compared without it."""
    tensors = load_model(folders["second"])
    less = {n: t for n, t in tensors.items() if n != UP_PROJ}
    more = {**tensors, "extra.weight": torch.ones(3, 3), "model.ids": torch.arange(4)}
    narrow = {**load_model(folders["base"]), NORM: torch.ones(4)}
    del narrow[Q_PROJ]
    second = write_checkpoint(tmp_path / "less", less | {"model.ids": torch.arange(4)})
    first = write_checkpoint(tmp_path / "more", more)
    base = write_checkpoint(tmp_path / "narrow", narrow)
    found = answer(first, second, "--base", base)
    assert found["only_in_first"] == ["extra.weight", UP_PROJ]
    assert found["only_in_second"] == []
    assert set(found["not_in_base"]) == {Q_PROJ, NORM}
    assert found["not_floating"] == ["model.ids"]
    (norm,) = (row for row in found["groups"] if row["group"] == "model.norm")
    assert norm["error_of_update"] is None
    assert norm["error_of_weights"] == 0
    assert answer(second, first)["only_in_second"] == ["extra.weight", UP_PROJ]
    shown = succeed("compare", first, second, "--base", base).stdout
    assert "2 only in A: extra.weight" in shown
    assert "1 not floating point" in shown


def test_other_shapes_stop_with_a_line(folders: dict[str, Path], tmp_path: Path) -> None:
    """Models of two architectures are not compared; the tensor and both shapes are named."""
    tensors = {**load_model(folders["second"]), NORM: torch.ones(4)}
    other = write_checkpoint(tmp_path / "other", tensors)
    line = fail("compare", folders["first"], other)
    assert f"{NORM}: shape [16] in" in line
    assert "but [4] in" in line
    strange = write_checkpoint(tmp_path / "strange", {"x": torch.ones(2)})
    assert "no floating tensor in common" in fail("compare", folders["first"], strange)
    line = fail("compare", folders["first"], folders["second"], "--base", strange)
    assert "has none of their tensors" in line


def test_nan_is_named(folders: dict[str, Path], tmp_path: Path) -> None:
    """A model with a NaN has no distance; the model and the tensor are named."""
    tensors = load_model(folders["second"])
    tensors[Q_PROJ][0, 0] = float("nan")
    broken = write_checkpoint(tmp_path / "broken", tensors)
    for models in ((broken, folders["first"]), (folders["first"], broken)):
        line = fail("compare", *models)
        assert f"{broken}: {Q_PROJ} holds NaN or Inf" in line


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("./nowhere", "no such folder"),
        ("org/run-{step}", "one model is compared with one"),
        ("", "an empty text"),
    ],
)
def test_what_is_no_model_stops_with_a_line(
    folders: dict[str, Path], text: str, complaint: str
) -> None:
    """A missing folder, a pattern of steps and an empty text are refused for A and B alike."""
    assert complaint in fail("compare", text, folders["first"])
    assert complaint in fail("compare", folders["first"], text)


def test_memory_that_does_not_suffice_is_told(folders: dict[str, Path]) -> None:
    """A budget below the process itself stops before anything is read."""
    line = fail("compare", folders["first"], folders["second"], "--memory", "10MB")
    assert "--memory" in line


def test_the_screen_gives_the_answer_first(folders: dict[str, Path]) -> None:
    """With a base: error, cosine, length, then groups; without: what a base would add."""
    arguments = folders["first"], folders["second"]
    result = command("compare", *arguments, "--base", folders["base"])
    pooled = answer(*arguments, "--base", folders["base"])["pooled"]
    lines = result.stdout.splitlines()
    assert all(len(line) <= 80 and line.isascii() for line in lines)
    words = " ".join(result.stdout.split())
    assert f"|A - B| is {pooled['error_of_update']:.3g}" in words
    assert f"cosine of the updates {pooled['cosine_of_updates']:.3f}" in words
    assert "named by --base" in words
    assert [line.split()[0] for line in lines if line.startswith(("self_attn.q_proj", "all "))]
    plain = succeed("compare", *arguments).stdout
    assert "with --base the distance" in " ".join(plain.split())
    assert "cosine" not in plain


def test_models_on_a_hub_are_those_of_folders(
    folders: dict[str, Path], hub: LocalHub, commands: Commands
) -> None:
    """Repos at revisions and in folders give the numbers of the same files on disk."""
    hub.add_commit("lab/base", files=files_of(folders["base"]))
    hub.add_commit("lab/models", files={"notes.txt": b"see the branches\n"})
    hub.add_commit("lab/models", files=files_of(folders["first"]), revision="step_40")
    hub.add_commit("lab/models", files=files_of(folders["second"], "x/step_60/"), revision="v2")
    place = "lab/models@step_40", "lab/models@v2/x/step_60"
    found = commands.run("compare", *place, "--base", "lab/base", "--json").answer
    local = answer(folders["first"], folders["second"], "--base", folders["base"])
    assert found["pooled"] == local["pooled"]
    assert found["groups"] == local["groups"]
    assert found["second"]["folder"] == "x/step_60"
    assert len(found["first"]["commit"]) == 40


def test_the_base_of_a_prediction_is_known(
    folders: dict[str, Path], hub: LocalHub, commands: Commands, tmp_path: Path
) -> None:
    """An alpharl.json in A or B names a base on the Hub, which is read; --base goes before it."""
    commit = hub.add_commit("lab/origin", files=files_of(folders["base"]))
    record = strict_json.to_plain(checkpoint(None, "lab/origin", "main"))
    document = strict_json.to_plain(manifest(run=run()))
    document["run"]["base"] = {**record, "commit": commit}
    tensors = load_model(folders["second"])
    predicted = write_checkpoint(tmp_path / "predicted", tensors, config=model_config())
    (predicted / "alpharl.json").write_text(json.dumps(document))
    wanted = answer(predicted, folders["first"], "--base", folders["base"])["pooled"]
    for models in ((predicted, folders["first"]), (folders["first"], predicted)):
        found = commands.run("compare", *models, "--json").answer
        assert found["base_chosen_by"] == "manifest"
        assert found["base"]["source"] == "lab/origin"
    assert commands.run("compare", predicted, folders["first"], "--json").answer["pooled"] == wanted
    found = commands.run(
        "compare", predicted, folders["first"], "--base", folders["base"], "--json"
    ).answer
    assert found["base_chosen_by"] == "option"


@pytest.mark.parametrize("kind", ["gone", "local", "broken"])
def test_a_recorded_base_that_cannot_be_read_is_done_without(
    folders: dict[str, Path], commands: Commands, tmp_path: Path, kind: str
) -> None:
    """A base that is gone, local or in a broken file costs its numbers and nothing else."""
    document = strict_json.to_plain(manifest(run=run()))
    if kind == "local":
        document["run"]["base"] |= {"commit": None, "revision": None, "fingerprint": "ab" * 32}
    text = "{" if kind == "broken" else json.dumps(document)
    model = write_checkpoint(tmp_path / "model", model_tensors(), config=model_config())
    (model / "alpharl.json").write_text(text)
    found = commands.run("compare", folders["first"], model, "--json", token=ALICE).answer
    assert found["base"] is None
    assert found["pooled"]["error_of_weights"] > 0
    codes = [warning["code"] for warning in found["warnings"]]
    assert codes == ([] if kind == "local" else ["recorded_base"])
