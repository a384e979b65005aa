"""Predictions are rounded a run of entries at a time: where the runs end is no matter."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from trajectories import Run, as_float64, curved_run, digest, load_model, predict, write_run

from alpharl_hub.methods.correction import Rounder
from alpharl_hub.prediction import window_work
from alpharl_hub.windows import plan

STEPS = (10, 20, 30, 40)
METHODS = ("alpharl", "linear", "ols", "relex")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """bf16 checkpoints over an fp32 base that bf16 cannot store."""
    at = curved_run(STEPS)
    return write_run(
        tmp_path_factory.mktemp("run"),
        STEPS,
        lambda step: {
            name: t.float() * 1.001 if step == 0 and t.is_floating_point() else t
            for name, t in at(step).items()
        },
        base_options={"dtype": torch.float32},
        dtype=torch.bfloat16,
    )


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("anchor", ["base", "last"])
def test_short_runs_of_entries_give_the_same_bytes(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, anchor: str
) -> None:
    """With runs of one row each, and damping, nothing changes but the order of the sums."""
    more = ("--damping", "0.75", "--anchor", anchor, "--force")
    words = ("--method", method, "--target-step", "70", *more)
    predict(run, tmp_path / "whole", *words)
    monkeypatch.setattr(window_work, "ROUNDED_ELEMENTS", 1)
    predict(run, tmp_path / "rows", *words)
    assert digest(tmp_path / "rows") == digest(tmp_path / "whole")


@pytest.mark.parametrize("method", ["linear", "ols", "relex", "average"])
def test_cut_matrices_give_the_same_bytes_in_short_runs(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    """A part of a matrix is a run of entries of any length: it too is rounded a little at a time.

    What is computed at once is then as small as it was planned, and the names are the matrices'.
    """
    target = () if method == "average" else ("--target-step", "70")
    words = ("--method", method, *target, "--force")
    predict(run, tmp_path / "whole", *words)
    lengths: list[int] = []

    class Watched(Rounder):
        def round(
            self, weights_P: Tensor, base_P: Tensor, rounded_P: Tensor, other_P: Tensor
        ) -> None:
            lengths.append(rounded_P.numel())
            super().round(weights_P, base_P, rounded_P, other_P)

    columns = max(t.shape[-1] for t in load_model(run.base).values() if t.dim() > 1)
    monkeypatch.setattr(window_work, "Rounder", Watched)
    monkeypatch.setattr(window_work, "ROUNDED_ELEMENTS", columns)
    monkeypatch.setattr(plan, "WINDOW_BYTES", 16 * columns)
    predict(run, tmp_path / "cut", *words)
    assert digest(tmp_path / "cut") == digest(tmp_path / "whole")
    assert 0 < max(lengths) <= columns
    names = [
        [record["name"] for record in json.loads((folder / "alpharl.json").read_text())["tensors"]]
        for folder in (tmp_path / "whole", tmp_path / "cut")
    ]
    assert names[0] == names[1]


def test_unchanged_entries_are_counted_as_stored(run: Run, tmp_path: Path) -> None:
    """An entry is unchanged where the output has what the base is in the output's dtype."""
    found = predict(run, tmp_path / "out", "--method", "linear", "--target-step", "70", "--force")
    base = load_model(run.base)
    records = json.loads((tmp_path / "out" / "alpharl.json").read_text())["tensors"]
    compared = [r for r in records if r["unchanged"] is not None]
    assert len(compared) > 3
    for record in compared:
        stored = as_float64(base[record["name"]].bfloat16())
        share = np.mean(as_float64(found[record["name"]]) == stored)
        assert record["unchanged"] == pytest.approx(share, abs=1e-9)
