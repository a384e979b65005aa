"""What is done with one window: deltas to the method, predictions to the shards.

Letters: W_0 base, W_t the checkpoint at step s_t, D_t = W_t - W_0.

Numerical convention: both sides are widened to fp32 before they are subtracted (bf16 minus bf16
would be rounded to bf16); the prediction is fp32 and rounded once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from alpharl_hub.errors import FitError
from alpharl_hub.executors.local import WindowReads
from alpharl_hub.methods import Method, Predictor, TensorFit
from alpharl_hub.methods.correction import Rounding, add_roundings, cast, combine, round_to
from alpharl_hub.numerics.direction import DirectionSums, direction_sums
from alpharl_hub.numerics.factors import MatrixQuality
from alpharl_hub.output.shards import ShardWriter
from alpharl_hub.tensor_bytes import TORCH_DTYPES, memory_of
from alpharl_hub.trajectory import Trajectory
from alpharl_hub.windows.plan import BASE, COPIED, FROM_BASE, LINEAR, ROUNDED_ELEMENTS, Part

_CHUNK_ELEMENTS = 1 << 17
"""Fits into the cache of one core: subtracting in chunks is five times faster than whole."""


@dataclass(frozen=True)
class PartResult:
    """What became of one part of a tensor; kept in the journal."""

    name: str
    action: str
    quality: MatrixQuality | None
    rounding: Rounding | None
    direction: DirectionSums | None


def subtract(out: Tensor, stored: Tensor, base: Tensor) -> Tensor:
    """Write stored - base into `out` (fp32, same number of entries), both widened first."""
    out_P, stored_P, base_P = out.view(-1), stored.reshape(-1), base.reshape(-1)
    step = _CHUNK_ELEMENTS if out.device.type == "cpu" else max(1, out_P.numel())
    for start in range(0, out_P.numel(), step):
        chunk = out_P[start : start + step]
        chunk.copy_(stored_P[start : start + step])
        chunk.sub_(base_P[start : start + step].to(torch.float32))
    return out


def require_finite(values: Tensor, sides: Mapping[str, Tensor], part: Part) -> None:
    """Refuse NaN and infinities in what was read.

    Args:
        values: a delta of the part, or its stored tensor.
        sides: the stored tensors that it came from, by the label of their checkpoint.
        part: says how the tensor is called, and where in it the part lies.

    Raises:
        FitError: names checkpoint, tensor and index.
    """
    # The sum is finite if every entry is, but for overflow; only then is a second look needed.
    if torch.isfinite(values.sum(dtype=torch.float32)) or bool(torch.isfinite(values).all()):
        return
    for label, stored in sides.items():
        bad = torch.nonzero(~torch.isfinite(stored.reshape(-1)))
        if len(bad):
            index = part.index_of(int(bad[0]))
            raise FitError(
                f"{label}: {part.name} holds NaN or Inf at index {index}; mend it, or leave that "
                "checkpoint out with --steps"
            )
    raise FitError(
        f"{next(iter(sides))}: the update of {part.name} is too large for fp32; is the base right?"
    )


@dataclass(frozen=True)
class Recipe:
    """How predictions are made, the same for every window.

    `others` predicts what is out of the method's scope with --others linear; `ready` gives the
    predictor of a matrix whose factors were extracted before. `target` and `last` are responses;
    `middle` is the position where the direction is probed.
    """

    method: Method
    others: Method | None
    ready: Callable[[str, torch.device], Predictor] | None
    target: float
    others_target: float
    last: float
    anchor: str
    damping: float
    middle: int
    last_position: int


class _PartState:
    """One part while its checkpoints stream by."""

    def __init__(self, part: Part, recipe: Recipe, labels: Sequence[str]) -> None:
        self.part = part
        self.recipe = recipe
        self.labels = labels
        self.stored: dict[int, Tensor] = {}
        self.fit: TensorFit | None = None
        self.observed: frozenset[int] = frozenset()
        method = recipe.others if part.action == LINEAR else recipe.method
        is_ready = recipe.ready is not None and part.action != LINEAR
        if part.action not in (COPIED, FROM_BASE) and not is_ready:
            assert method is not None
            self.fit = method.fit(part.name, part.shape)
            self.observed = frozenset(method.observed)

    def see(self, position: int, tensor: Tensor, scratch: Tensor) -> None:
        """Take in one checkpoint's tensor."""
        if position in self._kept():
            self.stored[position] = tensor
        if self.fit is not None and position in self.observed:
            delta = scratch[: self.part.num_elements].view(self.part.shape)
            base = self.stored[BASE]
            subtract(delta, tensor, base)
            sides = {self.labels[position]: tensor, self.labels[BASE]: base}
            require_finite(delta, sides, self.part)
            self.fit.observe(delta)

    def _kept(self) -> frozenset[int]:
        kept = {BASE, self.recipe.last_position}
        return frozenset(kept | {self.recipe.middle} if self.part.probe else kept)

    def direction(self) -> DirectionSums | None:
        """Read the direction of the update, where it is asked for."""
        if not self.part.probe:
            return None
        base, middle, last = (
            self.stored[p] for p in (BASE, self.recipe.middle, self.recipe.last_position)
        )
        return direction_sums(base, middle, last)

    def predict(self, dtype: torch.dtype) -> tuple[Tensor, Rounding | None, MatrixQuality | None]:
        """Return the tensor to be written, and what was lost in rounding it."""
        if self.part.action in (COPIED, FROM_BASE):
            position = BASE if self.part.action == FROM_BASE else self.recipe.last_position
            return self._copy(position, dtype), None, None
        predictor = self._predictor()
        is_other = self.part.action == LINEAR
        target = self.recipe.others_target if is_other else self.recipe.target
        delta_hat = predictor.predict_delta(target)
        at_last = None
        if self.recipe.anchor == "last" and not is_other:
            at_last = predictor.predict_delta(self.recipe.last)
        rounded, rounding = self._add_up(delta_hat, at_last, dtype)
        return rounded, rounding, predictor.quality()

    def _add_up(
        self, delta_hat: Tensor, at_last: Tensor | None, dtype: torch.dtype
    ) -> tuple[Tensor, Rounding | None]:
        """Add the update to its anchor and round, a chunk at a time: fp32 copies stay small."""
        base_P = self.stored[BASE].reshape(-1)
        last_P = self.stored[self.recipe.last_position].reshape(-1)
        delta_P = delta_hat.reshape(-1)
        at_last_P = None if at_last is None else at_last.reshape(-1)
        rounded_P = torch.empty(delta_P.shape, dtype=dtype, device=delta_P.device)
        roundings = []
        for start in range(0, delta_P.numel(), ROUNDED_ELEMENTS):
            run = slice(start, start + ROUNDED_ELEMENTS)
            base = base_P[run].to(torch.float32)
            last = last_P[run].to(torch.float32)
            offset = None if at_last_P is None else at_last_P[run]
            weights = combine(base, last, delta_P[run], offset, self.recipe.damping)
            rounded_P[run], rounding = round_to(weights, dtype, base, self.part.name)
            roundings.append(rounding)
        return rounded_P, add_roundings(roundings)

    def _predictor(self) -> Predictor:
        if self.fit is not None:
            return self.fit
        assert self.recipe.ready is not None
        return self.recipe.ready(self.part.name, self.stored[BASE].device)

    def _copy(self, position: int, dtype: torch.dtype) -> Tensor:
        stored = self.stored[position]
        if not stored.is_floating_point():
            return stored
        require_finite(stored, {self.labels[position]: stored}, self.part)
        return stored if stored.dtype == dtype else cast(stored, dtype, self.part.name)


class WindowPredictor:
    """Predicts the tensors of windows and writes them; one object serves all workers."""

    def __init__(self, trajectory: Trajectory, recipe: Recipe, writer: ShardWriter) -> None:
        self._labels = [c.checkpoint.label for c in (*trajectory.history, trajectory.base)]
        self._recipe = recipe
        self._writer = writer

    def __call__(self, reads: WindowReads, device: str) -> tuple[PartResult, ...]:
        """Do one window on one device; its bytes are on the disk when this returns."""
        states = [_PartState(part, self._recipe, self._labels) for part in reads.window.parts]
        largest = max(part.num_elements for part in reads.window.parts)
        scratch = torch.empty(largest, dtype=torch.float32, device=device)
        for position, stored in reads.readings:
            for place, tensor in stored.items():
                states[place].see(position, tensor, scratch)
        del scratch, stored
        results = []
        while states:
            results.append(self._finish(states.pop(0)))
        filename = reads.window.output_filename
        assert filename is not None
        self._writer.sync(filename)
        return tuple(results)

    def _finish(self, state: _PartState) -> PartResult:
        part = state.part
        assert part.output is not None
        dtype = TORCH_DTYPES.get(part.output.dtype, torch.uint8)
        tensor, rounding, quality = state.predict(dtype)
        host = tensor.to("cpu").contiguous()
        self._writer.write(part.output.filename, part.output.start, memory_of(host))
        return PartResult(part.name, part.action, quality, rounding, state.direction())
