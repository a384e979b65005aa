"""Every method through the command line, against float64 numpy from the stored weights."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from trajectories import (
    Run,
    as_float64,
    curved_run,
    digest,
    fail,
    generator,
    load_model,
    predict,
    relative_error,
    succeed,
    with_method,
    write_run,
)

from alpharl_hub.methods import relex
from alpharl_hub.prediction import planning, setting

STEPS = (5, 10, 24, 31, 40, 52, 70)
TARGET = 150.0
TOLERANCE = 1e-4


def bent(step: int) -> dict[str, Tensor]:
    """The curved run, the matrices of its first step not moved at all."""
    tensors = curved_run(STEPS)(step)
    base = curved_run(STEPS)(0)
    return {n: base[n] if step == STEPS[0] and w.dim() == 2 else w for n, w in tensors.items()}


@pytest.fixture(scope="module", params=["fp32", "bf16", "fp32 over bf16"])
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Uneven steps and zero deltas, in every combination of dtypes."""
    half = {"dtype": torch.bfloat16}
    return write_run(
        tmp_path_factory.mktemp("bent"),
        STEPS,
        bent,
        base_options=half if "bf16" in request.param else None,
        dtype=torch.bfloat16 if request.param == "bf16" else None,
    )


class Truth:
    """One tensor of a run in float64."""

    def __init__(self, run: Run, name: str) -> None:
        self.base = as_float64(load_model(run.base)[name])
        weights = [as_float64(load_model(run.folder(step))[name]) for step in run.steps]
        self.deltas = np.array([w - self.base for w in weights])

    def ols(self, first: int = 0) -> np.ndarray:
        """A line through every entry."""
        rows = self.deltas[first:].reshape(len(STEPS) - first, -1)
        line = np.polyfit(STEPS[first:], rows, 1)
        return np.polyval(line, TARGET).reshape(self.base.shape)

    def relex(self, rank: int, first: int = 0) -> np.ndarray:
        """Lines through the coefficients of the leading right singular vectors."""
        rows = self.deltas[first:].reshape(len(STEPS) - first, -1)
        v = np.linalg.svd(rows, full_matrices=False)[2][:rank]
        hat = sum(np.polyval(np.polyfit(STEPS[first:], rows @ d, 1), TARGET) * d for d in v)
        return np.asarray(hat).reshape(self.base.shape)

    def linear(self, first: int | None = None) -> np.ndarray:
        """The line through base and last, or through two checkpoints."""
        if first is None:
            return self.deltas[-1] * TARGET / STEPS[-1]
        slope = (self.deltas[-1] - self.deltas[first]) / (STEPS[-1] - STEPS[first])
        return self.deltas[-1] + (TARGET - STEPS[-1]) * slope


CASES = {
    "ols": ((), lambda t: t.ols()),
    "ols of a window": (("--fit-last", "4"), lambda t: t.ols(3)),
    "relex": ((), lambda t: t.relex(1)),
    "relex of rank 3": (("--rank", "3"), lambda t: t.relex(3)),
    "relex of a window": (("--fit-last", "50%"), lambda t: t.relex(1, 4)),
    "linear": ((), lambda t: t.linear()),
    "linear of a window": (("--fit-last", "50%"), lambda t: t.linear(4)),
    "average": ((), lambda t: t.deltas[4:].mean(axis=0)),
    "average of three": (("--fit-last", "3"), lambda t: t.deltas[4:].mean(axis=0)),
}


@pytest.mark.parametrize("case", CASES)
def test_methods_match_float64(run: Run, tmp_path: Path, case: str) -> None:
    """Every predicted tensor, 1-D ones too, to 1e-4 of its update."""
    options, truth = CASES[case]
    method = case.split()[0]
    target = () if method == "average" else ("--target-step", f"{TARGET:g}")
    words = (*target, "--method", method, "--dtype", "float32", *options)
    found = predict(run, tmp_path / "out", *words)
    manifest = json.loads((tmp_path / "out" / "alpharl.json").read_text())
    predicted = [t["name"] for t in manifest["tensors"] if t["action"] == "predicted"]
    floating = [n for n, w in found.items() if w.is_floating_point()]
    left_out = [n for n in floating if "norm" in n] if method == "linear" else []
    assert sorted(predicted) == sorted(set(floating) - set(left_out))
    for name in predicted:
        expected = Truth(run, name)
        wanted = expected.base + truth(expected)
        # What fp32 cannot store of the result is no error of the method.
        rounding = 2**-24 * np.linalg.norm(wanted) / np.linalg.norm(wanted - expected.base)
        assert relative_error(found[name], wanted, expected.base) < TOLERANCE + rounding, name


def test_anchor_and_damping_follow_every_method(run: Run, tmp_path: Path) -> None:
    """W_T + d (W_T + D_hat(s*) - D_hat(s_T) - W_T) of the least-squares line."""
    words = ("--method", "ols", "--anchor", "last", "--damping", "0.5", "--dtype", "float32")
    found = predict(run, tmp_path / "out", "--target-step", f"{TARGET:g}", *words)
    for name, tensor in found.items():
        if tensor.is_floating_point():
            truth = Truth(run, name)
            slope = np.polyfit(STEPS, truth.deltas.reshape(len(STEPS), -1), 1)[0]
            slope = slope.reshape(truth.base.shape)
            wanted = truth.base + truth.deltas[-1] + 0.5 * (TARGET - STEPS[-1]) * slope
            assert relative_error(tensor, wanted, truth.base) < TOLERANCE, name


def test_kept_residual_leaves_the_rest_of_the_last_update(tmp_path: Path) -> None:
    """On an exact rank-1 line s* = s_T gives W_T, and beyond it the line goes on."""
    source = generator(5)
    base = curved_run(STEPS)(0)
    lines = {
        name: (torch.randn(w.shape[0], generator=source), torch.randn(w.shape[1], generator=source))
        for name, w in base.items()
        if "proj" in name
    }

    def at(step: int) -> dict[str, Tensor]:
        moved = {n: base[n] + 1e-5 * step * torch.outer(u, v) for n, (u, v) in lines.items()}
        return {**base, **moved}

    run = write_run(tmp_path, STEPS, at)
    for target in (STEPS[-1], 140):
        words = ("--target-step", str(target), "--keep-residual")
        found = predict(run, tmp_path / f"out{target}", *words)
        for name in lines:
            torch.testing.assert_close(found[name], at(target)[name], rtol=0, atol=1e-6)
    assert command_code("--keep-residual", "--rescale") == 2


def command_code(*words: str) -> int:
    """The exit status of a predict with these options."""
    from click.testing import CliRunner

    from alpharl_hub.cli import main

    arguments = with_method(["predict", "run", "-o", "out", "--target-step", "9", *words])
    return CliRunner().invoke(main, arguments).exit_code


@pytest.mark.parametrize("rank", ["1", "2"])
def test_a_tensor_too_large_for_memory_is_read_twice_to_the_same_bytes(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rank: str
) -> None:
    """relex sees large tensors in runs of entries first; nothing of the result changes."""
    words = ("--method", "relex", "--rank", rank, "--target-step", "150")
    monkeypatch.setattr(relex, "RUN_ELEMENTS", 96)
    monkeypatch.setattr(planning, "RUN_ELEMENTS", 96)
    predict(run, tmp_path / "once", *words)
    plan = json.loads(succeed("inspect", *run.arguments("--json", *words)).stdout)["plan"]
    monkeypatch.setattr(setting, "MAX_HELD_BYTES", 5_000)
    predict(run, tmp_path / "twice", *words)
    assert digest(tmp_path / "once") == digest(tmp_path / "twice")
    twice = json.loads(succeed("inspect", *run.arguments("--json", *words)).stdout)["plan"]
    assert (plan["readings"], twice["readings"]) == (1, 2)
    assert twice["read_bytes"] > 1.5 * plan["read_bytes"]


def test_several_targets_are_those_of_single_runs(run: Run, tmp_path: Path) -> None:
    """One reading, a folder for each step, the bytes of each as if it had been asked for alone."""
    for method in ("ols", "alpharl", "relex"):
        words = ("--method", method, "--others", "linear")
        output = tmp_path / method
        arguments = run.arguments("-o", str(output), "--target-step", "70,100,150", *words)
        answer = json.loads(succeed("predict", *arguments, "--json").stdout)
        assert [o["path"] for o in answer["outputs"]] == [
            str(output / f"step_{step}") for step in (70, 100, 150)
        ]
        for step in ("70", "150"):
            alone = tmp_path / f"{method}-{step}"
            predict(run, alone, "--target-step", step, *words)
            assert digest(output / f"step_{step}") == digest(alone)
            there = json.loads((output / f"step_{step}" / "alpharl.json").read_text())
            here = json.loads((alone / "alpharl.json").read_text())
            assert there["method"] == here["method"]
            assert there["rounding"] == here["rounding"]


def test_manifest_of_one_of_several_targets_repeats_it(run: Run, tmp_path: Path) -> None:
    """--from makes that model alone, to the byte."""
    predict_all = run.arguments(
        *("-o", str(tmp_path / "all"), "--target-step", "90,150", "--method", "relex")
    )
    succeed("predict", *predict_all)
    manifest = tmp_path / "all" / "step_90" / "alpharl.json"
    succeed("predict", *run.arguments("--from", str(manifest), "-o", str(tmp_path / "again")))
    assert digest(tmp_path / "again") == digest(tmp_path / "all" / "step_90")


def test_a_folder_that_is_taken_stops_several_targets_before_anything_is_read(
    run: Run, tmp_path: Path
) -> None:
    """Each of the folders is looked at first; the others are not made."""
    taken = tmp_path / "out" / "step_150"
    taken.mkdir(parents=True)
    (taken / "mine.txt").write_text("mine")
    words = ("-o", str(tmp_path / "out"), "--target-step", "90,150", "--method", "ols")
    assert "step_150: not empty" in fail("predict", *run.arguments(*words))
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["step_150"]
