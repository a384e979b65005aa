"""Factors of every matrix and step: what report shows and extract keeps."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from torch import Tensor

from alpharl_hub.executors.local import WindowReads
from alpharl_hub.numerics.direction import DirectionSums, sample_entries, sampled_direction
from alpharl_hub.numerics.factors import FactorBuilder, Factors, MatrixQuality, quality_of
from alpharl_hub.output.factor_files import factors_crc
from alpharl_hub.prediction.deltas import delta_of, dense_weights, origin_of
from alpharl_hub.trajectory import Trajectory
from alpharl_hub.windows.buffers import take_delta
from alpharl_hub.windows.plan import BASE, START, Part
from alpharl_hub.windows.reader import StoredTensors, labels_by_position

OnFactors = Callable[[Mapping[str, Factors]], None]


@dataclass(frozen=True)
class MatrixResult:
    """What is kept of one matrix in the journal; `crc32` is that of its factors as bytes."""

    name: str
    shape: tuple[int, ...]
    quality: MatrixQuality
    direction: DirectionSums
    crc32: int


class WindowAnalyser:
    """Factorises the matrices of windows; one object serves all workers.

    Args:
        trajectory: the steps, and names of what is read for errors.
        scores_T: the score of every checkpoint, or None.
        rank: how many triplets of each delta.
        middle: position of the checkpoint nearest half of the last step.
        on_factors: told each window's factors by the matrices' names, in a worker's thread.
    """

    def __init__(
        self,
        trajectory: Trajectory,
        scores_T: tuple[float, ...] | None,
        rank: int,
        middle: int,
        on_factors: OnFactors,
    ) -> None:
        self._labels = labels_by_position(trajectory)
        self._last = len(trajectory.history) - 1
        self._steps_T = trajectory.steps_T
        self._scores_T = scores_T
        self._rank = rank
        self._middle = middle
        self._on_factors = on_factors

    def __call__(self, reads: WindowReads, device: str) -> tuple[MatrixResult, ...]:
        """Do one window on one device; its factors were handed on when this returns."""
        results, hand_on = self.compute(reads, device)
        hand_on()
        return results

    def compute(
        self, reads: WindowReads, device: str
    ) -> tuple[tuple[MatrixResult, ...], Callable[[], None]]:
        """Do one window on one device; calling what is returned hands on its factors."""
        parts = reads.window.parts
        builders = [FactorBuilder(part.name, self._rank) for part in parts]
        kept: dict[int, StoredTensors] = {}
        samples: dict[tuple[int, int], Tensor] = {}
        largest = max(part.num_elements for part in parts)
        scratch = take_delta(largest, device)
        for position, stored in reads.readings:
            if position in (START, BASE):
                kept[position] = dict(stored)
                continue
            for place in stored:
                part, origin = parts[place], origin_of(kept, place)
                delta = delta_of(part, position, stored[place], origin, scratch, self._labels)
                builders[place].observe(delta)
                if position in (self._middle, self._last):
                    weights = dense_weights(part, position, stored[place], origin)
                    samples[position, place] = sample_entries(weights).clone()
                    del weights
            del stored  # its memory is the next reading's
        return self._finish(parts, builders, kept, samples)

    def _finish(
        self,
        parts: Sequence[Part],
        builders: Sequence[FactorBuilder],
        kept: Mapping[int, StoredTensors],
        samples: Mapping[tuple[int, int], Tensor],
    ) -> tuple[tuple[MatrixResult, ...], Callable[[], None]]:
        results, found = [], {}
        for place, (part, builder) in enumerate(zip(parts, builders, strict=True)):
            factors = builder.finish()
            found[part.name] = factors
            base_ES = sample_entries(origin_of(kept, place).base)
            sums = sampled_direction(
                base_ES, samples[self._middle, place], samples[self._last, place]
            )
            quality = quality_of(factors, self._steps_T, self._scores_T, builder.certified)
            results.append(MatrixResult(part.name, part.shape, quality, sums, factors_crc(factors)))
        return tuple(results), partial(self._on_factors, found)
