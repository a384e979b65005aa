"""What follows every method: anchor, damping, and one rounding.

Letters: W_0 base, W_T last checkpoint, W_hat prediction, D_hat = W_hat - W_0; P entries.

Convention: fp32 until the one rounding to the output's dtype; sums of squares are fp64.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from alpharl_hub.errors import FitError
from alpharl_hub.numerics.norms import frobenius_squared


@dataclass(frozen=True)
class Rounding:
    """Sums over one tensor: |round(W_hat) - W_hat|^2, |W_hat - W_0|^2, and entries."""

    lost_squared: float
    update_squared: float
    num_unchanged: int
    num_entries: int

    @property
    def loss(self) -> float | None:
        """Norm lost in rounding over the norm of the update; None without an update."""
        if self.update_squared == 0:
            return None
        return math.sqrt(self.lost_squared / self.update_squared)

    @property
    def unchanged(self) -> float | None:
        """Share of entries whose stored value is the base's."""
        return self.num_unchanged / self.num_entries if self.num_entries else None


def add_roundings(parts: Sequence[Rounding]) -> Rounding | None:
    """Pool by sums of squares; None of nothing."""
    if not parts:
        return None
    return Rounding(
        lost_squared=math.fsum(p.lost_squared for p in parts),
        update_squared=math.fsum(p.update_squared for p in parts),
        num_unchanged=sum(p.num_unchanged for p in parts),
        num_entries=sum(p.num_entries for p in parts),
    )


def combine(
    base: Tensor, last: Tensor, delta_hat: Tensor, delta_hat_at_last: Tensor | None, damping: float
) -> Tensor:
    """Return W_hat (fp32).

    With `delta_hat_at_last` the prediction is anchored at the last checkpoint: only the increment
    D_hat(s*) - D_hat(s_T) is added to it. Then W_T + damping (W_hat - W_T).
    """
    if delta_hat_at_last is None:
        weights = base + delta_hat
    else:
        weights = last + (delta_hat - delta_hat_at_last)
    return weights if damping == 1 else last + damping * (weights - last)


def cast(weights: Tensor, dtype: torch.dtype, name: str) -> Tensor:
    """Return the weights in another dtype.

    Raises:
        FitError: NaN or infinity there.
    """
    rounded = weights.to(dtype)
    if not bool(torch.isfinite(rounded).all()):
        raise FitError(
            f"{name}: not finite in {str(dtype).removeprefix('torch.')}; take --dtype float32 or a "
            "nearer target"
        )
    return rounded


def round_to(
    weights: Tensor, dtype: torch.dtype, base: Tensor, name: str
) -> tuple[Tensor, Rounding]:
    """Round once and measure what that lost; `weights` and `base` are fp32.

    `base` decides "unchanged" after being rounded to the same dtype.

    Raises:
        FitError: NaN or infinity after rounding.
    """
    rounded = weights.to(dtype)
    # Widened again: comparing bf16 takes ten times as long. Not in place, fp32 is `weights` itself.
    stored = rounded.to(torch.float32)
    lost_squared = frobenius_squared((stored - weights).contiguous())
    if not math.isfinite(lost_squared):
        # Of finite values all is finite; only of others is a second look needed.
        cast(weights, dtype, name)
    return rounded, Rounding(
        lost_squared=lost_squared,
        update_squared=frobenius_squared((weights - base).contiguous()),
        num_unchanged=int(torch.count_nonzero(stored == base.to(dtype).to(torch.float32))),
        num_entries=weights.numel(),
    )
