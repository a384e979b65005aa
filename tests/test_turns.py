"""In which turn windows are worked on."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from trajectories import write_run

from alpharl_hub.executors.local import WindowReads
from alpharl_hub.preparation import ScopeOptions, prepare
from alpharl_hub.sources.opening import RunRequest, open_trajectory
from alpharl_hub.windows import plan
from alpharl_hub.windows.streaming import Hooks, Reading, stream

SIDES = {"a": 8, "b": 40, "c": 16, "d": 32}


@dataclass(frozen=True)
class Sides:
    """The rows of a window's matrices."""

    rows: tuple[int, ...]


def weights_at(step: int) -> dict[str, torch.Tensor]:
    """Matrices of several sizes, which all move."""
    return {
        f"model.layers.{i}.mlp.{name}_proj.weight": torch.full((rows, 8), 1.0 + step)
        for i, (name, rows) in enumerate(SIDES.items())
    }


@pytest.mark.parametrize(
    ("devices", "expected"), [(("cpu",), [8, 40, 16, 32]), (("cpu", "cpu"), [40, 32, 16, 8])]
)
def test_several_workers_begin_with_the_largest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, devices: tuple[str, ...], expected: list[int]
) -> None:
    """Alone in the file's order; with others the largest first, and every result at its index."""
    monkeypatch.setattr(plan, "WINDOW_BYTES", 1)
    run = write_run(tmp_path, (10, 20), weights_at)
    trajectory = open_trajectory(RunRequest(str(run.folder(10).parent), base=str(run.base)))
    prepared = prepare(trajectory, ScopeOptions(), stop_on_wrong_base=False)
    windows = plan.plan_analysis(prepared.scope.matrices)
    begun: list[int] = []
    lock = threading.Lock()

    def work(reads: WindowReads, device: str) -> tuple[Sides, ...]:
        (rows,) = (part.shape[0] for part in reads.window.parts)
        with lock:
            begun.append(rows)
        for _ in reads.readings:
            pass
        return (Sides((rows,)),)

    found = stream(trajectory, windows, work, Reading(devices, Hooks()), Sides)
    assert [found[i][0].rows[0] for i in range(4)] == list(SIDES.values())
    if len(devices) == 1:
        assert begun == expected
    else:
        assert set(begun[:2]) == set(expected[:2])
