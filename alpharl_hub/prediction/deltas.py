"""From what is stored to deltas: D_t = W_t - W_0 of one part, dense or in factors.

Letters: W_0 base, W_t the checkpoint at step s_t, D_t = W_t - W_0, P entries.

Numerical convention: both sides are widened to fp32 before they are subtracted (bf16 minus bf16
would be rounded to bf16). A LoRA update is what it says, times its scale, in fp32.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from alpharl_hub.errors import FitError
from alpharl_hub.numerics.low_rank import LowRank, combine, dora_weights, from_stored
from alpharl_hub.trajectory import LowRankRef
from alpharl_hub.windows.plan import BASE, START, Part

_CHUNK_ELEMENTS = 1 << 18
"""Stays in the cache between two looks: subtracting in chunks is five times faster than whole."""


@dataclass(frozen=True)
class Origin:
    """Where the deltas of a part start: W_0 as stored, and of a LoRA run that began with another
    product than zero the factors of that product.
    """

    base: Tensor
    start: tuple[Tensor, ...] | None = None


def origin_of(kept: Mapping[int, Mapping[int, tuple[Tensor, ...]]], place: int) -> Origin:
    """Return the origin of the part at one place of a window, from what was read of it."""
    return Origin(kept[BASE][place][0], kept.get(START, {}).get(place))


def delta_of(
    part: Part,
    position: int,
    stored: Sequence[Tensor],
    origin: Origin,
    scratch: Tensor,
    labels: Sequence[str],
) -> Tensor | LowRank:
    """Return the delta of one part at one checkpoint, in `scratch` (fp32) unless in factors.

    `labels` name the checkpoints by position, for errors.

    Raises:
        FitError: NaN or infinity in what was read.
    """
    ref, base = part.reads[position], origin.base
    update = None
    if isinstance(ref, LowRankRef):
        for factor in stored:
            require_finite(factor, {labels[position]: factor}, part)
        update = _update(part, ref, stored, origin)
        if ref.magnitude is None:
            return update
    delta = scratch[: part.num_elements].view(part.shape)
    weights = stored[0]
    if isinstance(ref, LowRankRef) and update is not None:
        weights = _magnified(ref, update, stored, base)
    total = subtract(delta, weights, base)
    _require_finite(total, delta, {labels[position]: stored[0], labels[BASE]: base}, part)
    return delta


def _update(part: Part, ref: LowRankRef, stored: Sequence[Tensor], origin: Origin) -> LowRank:
    """Return what an adapter adds to W_0, less what it added at the start."""
    update = from_stored(stored[0], stored[1], ref.scale, ref.transposed)
    if origin.start is None:
        return update
    first = part.reads[START]
    assert isinstance(first, LowRankRef), "a run is of one kind"
    before = from_stored(origin.start[0], origin.start[1], first.scale, first.transposed)
    return combine((update, before), (1.0, -1.0))


def _magnified(ref: LowRankRef, update: LowRank, stored: Sequence[Tensor], base: Tensor) -> Tensor:
    return dora_weights(base, update, stored[2], per_column=ref.transposed)


def dense_weights(part: Part, position: int, stored: Sequence[Tensor], origin: Origin) -> Tensor:
    """Return W_t: as it is stored, or fp32 where it is the base with an update."""
    ref = part.reads[position]
    if not isinstance(ref, LowRankRef):
        return stored[0]
    update = _update(part, ref, stored, origin)
    if ref.magnitude is not None:
        return _magnified(ref, update, stored, origin.base)
    return update.dense().add_(origin.base)


def subtract(out: Tensor, stored: Tensor, base: Tensor) -> Tensor:
    """Write stored - base into `out` (fp32, same number of entries), both widened first.

    Returns the sum of what was written: finite if every entry is, but for overflow.
    """
    step = _CHUNK_ELEMENTS if out.device.type == "cpu" else max(1, out.numel())
    sides = (torch.split(side.reshape(-1), step) for side in (out, stored, base))
    sums = []
    for out_C, stored_C, base_C in zip(*sides, strict=True):
        out_C.copy_(stored_C)
        out_C.sub_(base_C)  # widened before it is subtracted
        sums.append(out_C.sum())
    return torch.stack(sums).sum()


def require_finite(values: Tensor, sides: Mapping[str, Tensor], part: Part) -> None:
    """Refuse NaN and infinities in what was read.

    Args:
        values: a delta of the part, or its stored tensor.
        sides: the stored tensors that it came from, by the label of their checkpoint.
        part: says how the tensor is called, and where in it the part lies.

    Raises:
        FitError: names checkpoint, tensor and index.
    """
    _require_finite(values.sum(dtype=torch.float32), values, sides, part)


def _require_finite(total: Tensor, values: Tensor, sides: Mapping[str, Tensor], part: Part) -> None:
    if torch.isfinite(total) or bool(torch.isfinite(values).all()):
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
