"""From what is stored to deltas: D_t = W_t - W_0 of one part, dense or in factors.

Letters: W_0 base, W_t the checkpoint at step s_t, D_t = W_t - W_0, P entries.

Numerical convention: both sides are widened to fp32 before they are subtracted (bf16 minus bf16
would be rounded to bf16). A LoRA update is what it says, times its scale, in fp32.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from alpharl_hub.errors import FitError
from alpharl_hub.numerics.low_rank import LowRank, dora_weights, from_stored
from alpharl_hub.trajectory import LowRankRef
from alpharl_hub.windows.plan import BASE, Part

_CHUNK_ELEMENTS = 1 << 17
"""Fits into the cache of one core: subtracting in chunks is five times faster than whole."""


def delta_of(
    part: Part,
    position: int,
    stored: Sequence[Tensor],
    base: Tensor,
    scratch: Tensor,
    labels: Sequence[str],
) -> Tensor | LowRank:
    """Return the delta of one part at one checkpoint, in `scratch` (fp32) unless in factors.

    `labels` name the checkpoints by position, for errors.

    Raises:
        FitError: NaN or infinity in what was read.
    """
    ref = part.reads[position]
    delta_P = scratch[: part.num_elements].view(part.shape)
    sides = {labels[position]: stored[0], labels[BASE]: base}
    if isinstance(ref, LowRankRef):
        update = low_rank_of(ref, stored)
        for factor in stored:
            require_finite(factor, {labels[position]: factor}, part)
        if ref.magnitude is None:
            return update
        weights = dora_weights(base, update, stored[2], per_column=ref.transposed)
        torch.sub(weights, base, out=delta_P)
    else:
        subtract(delta_P, stored[0], base)
    require_finite(delta_P, sides, part)
    return delta_P


def low_rank_of(ref: LowRankRef, stored: Sequence[Tensor]) -> LowRank:
    """Return the update that a LoRA adapter holds, scaled, in the base's orientation."""
    return from_stored(stored[0], stored[1], ref.scale, ref.transposed)


def dense_weights(part: Part, position: int, stored: Sequence[Tensor], base: Tensor) -> Tensor:
    """Return W_t: as it is stored, or fp32 where it is the base with an update."""
    ref = part.reads[position]
    if not isinstance(ref, LowRankRef):
        return stored[0]
    update = low_rank_of(ref, stored)
    if ref.magnitude is not None:
        return dora_weights(base, update, stored[2], per_column=ref.transposed)
    return update.dense().add_(base)


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
