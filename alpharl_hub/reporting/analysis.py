"""Factors of every matrix and step: what report shows and extract keeps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from alpharl_hub.executors.local import WindowReads
from alpharl_hub.numerics.direction import DirectionSums, direction_sums
from alpharl_hub.numerics.factors import FactorBuilder, Factors, MatrixQuality, quality_of
from alpharl_hub.prediction.window_work import require_finite, subtract
from alpharl_hub.trajectory import Trajectory
from alpharl_hub.windows.plan import BASE

OnFactors = Callable[[str, Factors], None]


@dataclass(frozen=True)
class MatrixResult:
    """What is kept of one matrix in the journal."""

    name: str
    quality: MatrixQuality
    direction: DirectionSums


class WindowAnalyser:
    """Factorises the matrices of windows; one object serves all workers.

    Args:
        trajectory: the steps, and names of what is read for errors.
        scores_T: the score of every checkpoint, or None.
        rank: how many triplets of each delta.
        middle: position of the checkpoint nearest half of the last step.
        on_factors: told each matrix's factors, in the worker's thread.
    """

    def __init__(
        self,
        trajectory: Trajectory,
        scores_T: tuple[float, ...] | None,
        rank: int,
        middle: int,
        on_factors: OnFactors,
    ) -> None:
        self._labels = [c.checkpoint.label for c in (*trajectory.history, trajectory.base)]
        self._last = len(trajectory.history) - 1
        self._steps_T = trajectory.steps_T
        self._scores_T = scores_T
        self._rank = rank
        self._middle = middle
        self._on_factors = on_factors

    def __call__(self, reads: WindowReads, device: str) -> tuple[MatrixResult, ...]:
        """Do one window on one device."""
        parts = reads.window.parts
        builders = [FactorBuilder(part.name, self._rank) for part in parts]
        kept: dict[int, list[torch.Tensor]] = {}
        largest = max(part.num_elements for part in parts)
        scratch = torch.empty(largest, dtype=torch.float32, device=device)
        for position, stored in reads.readings:
            tensors = [stored[place] for place in range(len(parts))]
            if position in (BASE, self._middle, self._last):
                kept[position] = tensors
            if position == BASE:
                continue
            for part, builder, tensor, base in zip(
                parts, builders, tensors, kept[BASE], strict=True
            ):
                delta_MN = scratch[: part.num_elements].view(part.shape)
                subtract(delta_MN, tensor, base)
                sides = {self._labels[position]: tensor, self._labels[BASE]: base}
                require_finite(delta_MN, sides, part)
                builder.observe(delta_MN)
        return self._finish([part.name for part in parts], builders, kept)

    def _finish(
        self,
        names: Sequence[str],
        builders: Sequence[FactorBuilder],
        kept: dict[int, list[torch.Tensor]],
    ) -> tuple[MatrixResult, ...]:
        results = []
        for i, (name, builder) in enumerate(zip(names, builders, strict=True)):
            factors = builder.finish()
            self._on_factors(name, factors)
            sums = direction_sums(kept[BASE][i], kept[self._middle][i], kept[self._last][i])
            quality = quality_of(factors, self._steps_T, self._scores_T, builder.certified)
            results.append(MatrixResult(name, quality, sums))
        return tuple(results)
