"""The earlier reading of tensors that a method must see whole and memory cannot hold whole.

Letters: T checkpoints, D_t delta at step s_t.

RELEX needs the inner products of all deltas of a tensor before it can add them up. A tensor whose
T deltas do not fit is read in runs of entries, of which only the T x T products are kept; the main
reading then adds up. To the bit what one reading gives.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial

import torch

from alpharl_hub.executors.local import WindowReads
from alpharl_hub.methods import TensorFit
from alpharl_hub.methods.relex import Relex, gram_of_run
from alpharl_hub.output.journal import Journal
from alpharl_hub.prediction.deltas import Origin, delta_of
from alpharl_hub.prediction.setting import Setting
from alpharl_hub.trajectory import Trajectory
from alpharl_hub.windows.plan import BASE, read_cost
from alpharl_hub.windows.reader import labels_by_position
from alpharl_hub.windows.streaming import Reading, stream


@dataclass(frozen=True)
class RunOfEntries:
    """The T x T inner products of one run of entries of a tensor."""

    tensor: str
    gram: tuple[tuple[float, ...], ...]


class WindowSurveyor:
    """Multiplies the deltas of runs of entries; one object serves all workers."""

    def __init__(self, trajectory: Trajectory) -> None:
        self._labels = labels_by_position(trajectory)

    def __call__(self, reads: WindowReads, device: str) -> tuple[RunOfEntries, ...]:
        """Do one window on one device."""
        parts = reads.window.parts
        deltas: list[list[torch.Tensor]] = [[] for _ in parts]
        origins: dict[int, Origin] = {}
        for position, stored in reads.readings:
            for place, tensors in stored.items():
                if position == BASE:
                    origins[place] = Origin(tensors[0])
                    continue
                out = torch.empty(parts[place].shape, dtype=torch.float32, device=device)
                delta = delta_of(
                    parts[place], position, tensors, origins[place], out.view(-1), self._labels
                )
                assert isinstance(delta, torch.Tensor), "what is in factors is never surveyed"
                deltas[place].append(delta)
        return tuple(
            RunOfEntries(part.tensor, tuple(map(tuple, gram_of_run(deltas_T).tolist())))
            for part, deltas_T in zip(parts, deltas, strict=True)
        )


def survey(
    setting: Setting, reading: Reading, journal: Journal
) -> tuple[Mapping[str, Callable[[], TensorFit]], Reading]:
    """Read what must be read twice for the first time.

    Returns for each such tensor how its fit begins, and how the main reading goes on.
    """
    method, plan = setting.recipe.method, setting.plan
    assert isinstance(method, Relex)
    survey_bytes, main_bytes = read_cost(plan.survey)[0], read_cost(plan.windows)[0]
    tell = reading.hooks.on_progress
    first = replace(reading.hooks, on_progress=lambda done, total: tell(done, total + main_bytes))
    second = replace(
        reading.hooks,
        on_progress=lambda done, total: tell(survey_bytes + done, survey_bytes + total),
    )
    found = stream(
        setting.subject.trajectory,
        plan.survey,
        WindowSurveyor(setting.subject.trajectory),
        replace(reading, hooks=first),
        RunOfEntries,
        journal,
        key="survey",
    )
    grams: dict[str, torch.Tensor] = {}
    for run in (run for index in sorted(found) for run in found[index]):
        gram_TT = torch.tensor(run.gram, dtype=torch.float64)
        grams[run.tensor] = grams[run.tensor] + gram_TT if run.tensor in grams else gram_TT
    fits = {tensor: partial(method.known_fit, gram_TT) for tensor, gram_TT in grams.items()}
    return fits, replace(reading, hooks=second)
