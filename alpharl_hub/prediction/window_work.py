"""What is done with one window: deltas to the method, predictions to the shards.

Letters: W_0 base, W_t the checkpoint at step s_t, D_t = W_t - W_0.

Numerical convention: deltas and predictions are fp32 (see `deltas`); a prediction is rounded once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TypeAlias

import torch
from torch import Tensor

from alpharl_hub.executors.local import WindowReads
from alpharl_hub.methods import Method, Predictor, TensorFit
from alpharl_hub.methods.alpharl import AlphaRLFit, AlphaRLPredictor
from alpharl_hub.methods.combination import Mixture
from alpharl_hub.methods.correction import Rounder, Rounding, cast, combine
from alpharl_hub.numerics.direction import DirectionSums, sample_entries, sampled_direction
from alpharl_hub.numerics.factors import MatrixQuality
from alpharl_hub.numerics.low_rank import LowRank
from alpharl_hub.output.read_back import crc_of
from alpharl_hub.output.shards import ShardWriter
from alpharl_hub.prediction.deltas import Origin, delta_of, dense_weights, require_finite
from alpharl_hub.tensor_bytes import TORCH_DTYPES, memory_of
from alpharl_hub.trajectory import LowRankRef, TensorRef, Trajectory
from alpharl_hub.windows.buffers import Room, take_delta
from alpharl_hub.windows.plan import (
    BASE,
    COPIED,
    FROM_BASE,
    LINEAR,
    ROUNDED_ELEMENTS,
    ROUNDED_ON_DEVICE,
    START,
    Part,
    Window,
)
from alpharl_hub.windows.reader import StoredTensors, labels_by_position

RESIDUAL = "residual"
"""An anchor: the last checkpoint, of which only the part that the method models is replaced."""


@dataclass(frozen=True)
class PartResult:
    """What became of one part of a tensor; kept in the journal. One rounding for each goal.

    `ranks`: of an update that is written as factors, its rank for each goal.
    `crcs`: the CRC-32 of the bytes that are written for each goal.
    """

    name: str
    tensor: str
    shape: tuple[int, ...]
    action: str
    quality: MatrixQuality | None
    roundings: tuple[Rounding | None, ...]
    direction: DirectionSums | None
    ranks: tuple[int, ...] = ()
    crcs: tuple[int, ...] = ()


@dataclass(frozen=True)
class Aim:
    """One model to be made: at which response, and at which step what is out of scope.

    `response` None asks for the last checkpoint itself.
    """

    response: float | None
    others_step: float


@dataclass(frozen=True)
class Recipe:
    """How predictions are made, the same for every window.

    `others` predicts what is out of the method's scope with --others linear; `ready` gives the
    predictor of a matrix whose factors were extracted before; `surveyed` that of a tensor that an
    earlier reading has looked at, by the tensor's name. `anchor` is base, last or RESIDUAL; `last`
    is the last checkpoint's response; `middle` the position where the direction is probed.
    """

    method: Method
    others: Method | None
    ready: Callable[[str, torch.device], Predictor] | None
    aims: tuple[Aim, ...]
    last: float
    anchor: str
    damping: float
    middle: int
    last_position: int
    surveyed: Mapping[str, Callable[[], TensorFit]] = field(default_factory=dict)


class PartState:
    """One part while its checkpoints stream by."""

    def __init__(self, part: Part, recipe: Recipe, labels: Sequence[str]) -> None:
        self.part = part
        self.recipe = recipe
        self.labels = labels
        self.stored: dict[int, tuple[Tensor, ...]] = {}
        self.fit: TensorFit | None = None
        self._middle_ES: Tensor | None = None
        self._ready: Predictor | None = None
        self.observed: frozenset[int] = frozenset()
        method = recipe.others if part.action == LINEAR else recipe.method
        is_ready = recipe.ready is not None and part.action != LINEAR
        if part.action not in (COPIED, FROM_BASE) and not is_ready:
            assert method is not None
            known = None if part.action == LINEAR else recipe.surveyed.get(part.tensor)
            self.fit = known() if known is not None else method.fit(part.name, part.shape)
            self.observed = frozenset(method.observed)

    def see(self, position: int, stored: tuple[Tensor, ...], scratch: Tensor) -> None:
        """Take in one checkpoint's tensor."""
        if position in (BASE, START, self.recipe.last_position):
            self.stored[position] = stored
        if self.part.probe and position == self.recipe.middle:
            weights = self._weights(position, stored)
            self._middle_ES = sample_entries(weights).clone()
        if self.fit is not None and position in self.observed:
            self.fit.observe(self._delta(position, stored, scratch))

    def _weights(self, position: int, stored: tuple[Tensor, ...] | None = None) -> Tensor:
        """Return one checkpoint's tensor, from what is given or was kept of it."""
        tensors = self.stored[position] if stored is None else stored
        if not isinstance(self.part.reads[position], LowRankRef):
            return tensors[0]
        origin = Origin(self.stored[BASE][0], self.stored.get(START))
        return dense_weights(self.part, position, tensors, origin)

    def direction(self) -> DirectionSums | None:
        """Read the direction of the update, where it is asked for; of a stack, of all of it."""
        if not self.part.probe:
            return None
        assert self._middle_ES is not None, "the middle checkpoint was read"
        last_ES = sample_entries(self._weights(self.recipe.last_position))
        return sampled_direction(sample_entries(self.stored[BASE][0]), self._middle_ES, last_ES)

    def predict(self, dtype: torch.dtype, room: Room) -> Iterator[tuple[Tensor, Rounding | None]]:
        """Give for each aim the tensor to be written, and what was lost in rounding it."""
        if self.part.action in (COPIED, FROM_BASE):
            position = BASE if self.part.action == FROM_BASE else self.recipe.last_position
            copied = self._copy(position, dtype)
            yield from ((copied, None) for _ in self.recipe.aims)
            return
        last = self._weights(self.recipe.last_position)
        for aim in self.recipe.aims:
            yield self._predict_one(aim, last, dtype, room)

    def _predict_one(
        self, aim: Aim, last: Tensor, dtype: torch.dtype, room: Room
    ) -> tuple[Tensor, Rounding | None]:
        if aim.response is None:
            return last.to(dtype).reshape(-1), None
        delta_hat, at_last = self.deltas_at(aim)
        rounded_P = room.take(last.numel(), dtype)
        return rounded_P, self._add_up(delta_hat, at_last, last, rounded_P)

    def deltas_at(self, aim: Aim) -> tuple[Mixture | LowRank, Mixture | LowRank | None]:
        """Return the update at an aim, and what of the last update it replaces (None: all)."""
        assert aim.response is not None, "the last checkpoint itself is not predicted"
        predictor, recipe = self.predictor(), self.recipe
        if self.part.action == LINEAR:
            return predictor.predict_delta(aim.others_step), None
        delta_hat = predictor.predict_delta(aim.response)
        if recipe.anchor == RESIDUAL:
            assert isinstance(predictor, AlphaRLFit | AlphaRLPredictor)
            return delta_hat, predictor.kept_part()
        return delta_hat, predictor.predict_delta(recipe.last) if recipe.anchor == "last" else None

    def last_delta(self) -> Tensor | LowRank:
        """Return the update of the last checkpoint."""
        position = self.recipe.last_position
        scratch = torch.empty(self.part.num_elements, device=self.stored[BASE][0].device)
        return self._delta(position, self.stored[position], scratch)

    def _delta(
        self, position: int, stored: tuple[Tensor, ...], scratch: Tensor
    ) -> Tensor | LowRank:
        origin = Origin(self.stored[BASE][0], self.stored.get(START))
        return delta_of(self.part, position, stored, origin, scratch, self.labels)

    def _add_up(
        self,
        delta_hat: Mixture | LowRank,
        at_last: Mixture | LowRank | None,
        last: Tensor,
        rounded_P: Tensor,
    ) -> Rounding | None:
        """Add the update to its anchor and round, a run of rows at a time: fp32 stays small."""
        damping, base, dtype = self.recipe.damping, self.stored[BASE][0], rounded_P.dtype
        rounder = Rounder(dtype, self.part.name, is_base_rounded=base.dtype == dtype)
        step = self._run_elements(base.device)
        buffer_4S = torch.empty(4, step, dtype=torch.float32, device=base.device)
        sides = (torch.split(side.reshape(-1), step) for side in (base, last, rounded_P))
        for number, (base_P, last_P, out_P) in enumerate(zip(*sides, strict=True)):
            wide_P, delta_P, other_P, anchor_P = buffer_4S[:, : len(out_P)]
            wide_P.copy_(base_P)
            delta_hat.write_entries(delta_P, number * step)
            if at_last is not None:
                at_last.write_entries(other_P, number * step)
            if at_last is not None or damping != 1:
                anchor_P.copy_(last_P)
            offset_P = None if at_last is None else other_P
            weights_P = combine(wide_P, anchor_P, delta_P, offset_P, damping)
            rounder.round(weights_P, wide_P, out_P, other_P)
        return rounder.finish()

    def _run_elements(self, device: torch.device) -> int:
        """Return how many entries are rounded at a time: whole rows, on a CPU within its cache."""
        most = ROUNDED_ELEMENTS if device.type == "cpu" else ROUNDED_ON_DEVICE
        columns = max(1, self.part.shape[-1]) if len(self.part.shape) > 1 else 1
        return columns * max(1, min(most, self.part.num_elements) // columns)

    def predictor(self) -> Predictor:
        """Return what answers for this part."""
        if self.fit is not None:
            return self.fit
        if self._ready is None:
            assert self.recipe.ready is not None
            self._ready = self.recipe.ready(self.part.name, self.stored[BASE][0].device)
        return self._ready

    def quality(self) -> MatrixQuality | None:
        """Describe what was predicted."""
        if self.part.action in (COPIED, FROM_BASE):
            return None
        return self.predictor().quality()

    def _copy(self, position: int, dtype: torch.dtype) -> Tensor:
        stored = self._weights(position)
        if not stored.is_floating_point():
            return stored
        require_finite(stored, {self.labels[position]: stored}, self.part)
        return stored if stored.dtype == dtype else cast(stored, dtype, self.part.name)

    def result(self, roundings: Sequence[Rounding | None]) -> PartResult:
        """Say what became of this part."""
        part = self.part
        return PartResult(
            name=part.name,
            tensor=part.tensor,
            shape=part.shape,
            action=part.action,
            quality=self.quality(),
            roundings=tuple(roundings),
            direction=self.direction(),
        )


def observe_window(
    reads: WindowReads, recipe: Recipe, labels: Sequence[str], device: str
) -> list[PartState]:
    """Let the checkpoints of a window stream by; returns its parts, ready to predict."""
    states = [PartState(part, recipe, labels) for part in reads.window.parts]
    largest = max(part.num_elements for part in reads.window.parts)
    scratch = take_delta(largest, device)
    for position, stored in reads.readings:
        _show(states, position, stored, scratch)
        del stored  # its memory is the next reading's
    return states


def _show(
    states: Sequence[PartState], position: int, stored: StoredTensors, scratch: Tensor
) -> None:
    for place, tensors in stored.items():
        states[place].see(position, tensors, scratch)


_Output: TypeAlias = tuple[TensorRef, Sequence[Tensor], tuple[int, ...]]
"""Where a part is written, what is written for each aim, and its CRC-32."""


class WindowPredictor:
    """Predicts the tensors of windows and writes them; one object serves all workers.

    `writers` has one for each aim of the recipe.
    """

    def __init__(
        self, trajectory: Trajectory, recipe: Recipe, writers: Sequence[ShardWriter]
    ) -> None:
        self._labels = labels_by_position(trajectory)
        self._recipe = recipe
        self._writers = writers

    def __call__(self, reads: WindowReads, device: str) -> tuple[PartResult, ...]:
        """Do one window on one device; its bytes are on the disk when this returns."""
        results, write = self.compute(reads, device)
        write()
        return results

    def compute(
        self, reads: WindowReads, device: str
    ) -> tuple[tuple[PartResult, ...], Callable[[], None]]:
        """Do one window on one device; its bytes are on the disk when what is returned was called.

        Disks are slower than the rest here: 0.3 GB/s into the page cache were measured.
        """
        states = observe_window(reads, self._recipe, self._labels, device)
        results: list[PartResult] = []
        outputs: list[_Output] = []
        room = Room(self._output_bytes(reads.window), device)
        while states:
            results.append(_finish(states.pop(0), room, outputs))
        return tuple(results), partial(self._write, outputs)

    def _output_bytes(self, window: Window) -> int:
        sizes = [part.output.num_bytes for part in window.parts if part.output is not None]
        # 64 more for each: where one begins is rounded up.
        return len(self._writers) * sum(size + 64 for size in sizes)

    def _write(self, outputs: Sequence[_Output]) -> None:
        for place, tensors, crcs in outputs:
            for writer, tensor, crc32 in zip(self._writers, tensors, crcs, strict=True):
                writer.write(place.filename, place.start, memory_of(tensor), crc32)
        for filename in {place.filename for place, _, _ in outputs}:
            for writer in self._writers:
                writer.sync(filename)


def _finish(state: PartState, room: Room, outputs: list[_Output]) -> PartResult:
    """Predict one part for every aim; what is to be written is added to `outputs`."""
    part = state.part
    assert part.output is not None
    dtype = TORCH_DTYPES.get(part.output.dtype, torch.uint8)
    tensors, roundings = [], []
    for tensor, rounding in state.predict(dtype, room):
        host = tensor.to("cpu").contiguous()
        if part.action in (COPIED, FROM_BASE) and tensor.device.type == "cpu":
            # A copy is a view of all that was read with it, which must not wait for the disk.
            host = room.take(host.numel(), host.dtype).copy_(host.view(-1))
        tensors.append(host)
        roundings.append(rounding)
    crcs = tuple(crc_of([memory_of(tensor)]) for tensor in tensors)
    outputs.append((part.output, tensors, crcs))
    return replace(state.result(roundings), crcs=crcs)
