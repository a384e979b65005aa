"""What is done with one window of an adapter: deltas to the method, predicted updates as factors.

Letters: W_0 base, W_T last checkpoint, D_T = W_T - W_0, D_hat the method's update at the target,
M rows, N columns, R rank.

Numerical convention: sums of factors as in `low_rank.combine`; the factors are rounded once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from alpharl_hub.executors.local import WindowReads
from alpharl_hub.methods.combination import Mixture
from alpharl_hub.methods.correction import Rounding, cast
from alpharl_hub.numerics.low_rank import LowRank, combine
from alpharl_hub.output.adapter_files import write_factors
from alpharl_hub.prediction.window_work import Aim, PartResult, PartState, Recipe, observe_window
from alpharl_hub.tensor_bytes import TORCH_DTYPES
from alpharl_hub.trajectory import Trajectory
from alpharl_hub.windows.plan import COPIED
from alpharl_hub.windows.reader import labels_by_position


class WindowFactors:
    """Predicts updates and writes their factors, a file for each window and aim.

    `folders` has one for each aim of the recipe; one object serves all workers.
    """

    def __init__(self, trajectory: Trajectory, recipe: Recipe, folders: Sequence[Path]) -> None:
        self._labels = labels_by_position(trajectory)
        self._recipe = recipe
        # Absolute: another process, to which this may be sent, works elsewhere.
        self._folders = [folder.absolute() for folder in folders]

    def __call__(self, reads: WindowReads, device: str) -> tuple[PartResult, ...]:
        """Do one window on one device; its bytes are on the disk when this returns."""
        states = observe_window(reads, self._recipe, self._labels, device)
        found: list[dict[str, LowRank]] = [{} for _ in self._folders]
        results = []
        while states:
            state = states.pop(0)
            predicted = _predict(state)
            for updates, (update, _) in zip(found, predicted, strict=True):
                updates[state.part.name] = update
            result = state.result([rounding for _, rounding in predicted])
            ranks = tuple(update.rank for update, _ in predicted)
            results.append(replace(result, ranks=ranks))
        crcs = [
            write_factors(folder, reads.window.index, updates)
            for folder, updates in zip(self._folders, found, strict=True)
        ]
        return tuple(replace(r, crcs=tuple(of_aim[r.name] for of_aim in crcs)) for r in results)


def _predict(state: PartState) -> list[tuple[LowRank, Rounding]]:
    """Give for each aim the update that is written, and what was lost in rounding it."""
    part = state.part
    assert part.output is not None, "what is predicted goes somewhere"
    dtype = TORCH_DTYPES[part.output.dtype]
    return [_round(_update(state, aim), dtype, part.name) for aim in state.recipe.aims]


def _update(state: PartState, aim: Aim) -> LowRank:
    """W_hat - W_0 with anchor and damping, as `correction.combine` has it for whole weights."""
    damping = state.recipe.damping
    if state.part.action == COPIED or aim.response is None:
        return combine((_low_rank(state.last_delta()),), (1.0,))
    delta_hat, at_last = state.deltas_at(aim)
    terms = [(_low_rank(delta_hat), damping)]
    if at_last is not None:
        terms += [(_low_rank(at_last), -damping), (_low_rank(state.last_delta()), 1.0)]
    elif damping != 1:
        terms.append((_low_rank(state.last_delta()), 1 - damping))
    updates, coefficients = zip(*terms, strict=True)
    return combine(updates, coefficients)


def _low_rank(delta: Tensor | Mixture | LowRank) -> LowRank:
    assert isinstance(delta, LowRank), "what has full rank was refused before"
    return delta


def _round(update: LowRank, dtype: torch.dtype, name: str) -> tuple[LowRank, Rounding]:
    """Round the factors, and measure what the update loses by it; "unchanged" has no meaning.

    An update of rank 0 gets one column of zeros, for peft knows no rank 0.
    """
    if update.rank == 0:
        rows, columns = update.shape
        left_MR, right_RN = update.left_MR, update.right_RN
        update = LowRank(left_MR.new_zeros(rows, 1), right_RN.new_zeros(1, columns))
    rounded = LowRank(cast(update.left_MR, dtype, name), cast(update.right_RN, dtype, name))
    lost = _difference(LowRank(rounded.left_MR.float(), rounded.right_RN.float()), update)
    return rounded, Rounding(lost.frobenius() ** 2, update.frobenius() ** 2, 0, 0)


def _difference(a: LowRank, b: LowRank) -> LowRank:
    """a - b as (a_left - b_left) a_right + b_left (a_right - b_right): small factors stay exact."""
    left_MS = torch.cat([a.left_MR - b.left_MR, b.left_MR], dim=1)
    return LowRank(left_MS, torch.cat([a.right_RN, a.right_RN - b.right_RN]))
