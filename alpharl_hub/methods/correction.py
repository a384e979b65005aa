"""What follows every method: anchor, damping, and one rounding.

Letters: W_0 base, W_T last checkpoint, W_hat prediction, D_hat = W_hat - W_0; P entries.

Convention: fp32 until the one rounding to the output's dtype; sums of squares are fp32 within a run
of entries and fp64 across.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from alpharl_hub.errors import FitError


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
    """Return W_hat (fp32), written over `delta_hat`.

    With `delta_hat_at_last` the prediction is anchored at the last checkpoint: only the increment
    D_hat(s*) - D_hat(s_T) is added to it. Then W_T + damping (W_hat - W_T).
    """
    if delta_hat_at_last is None:
        weights = delta_hat.add_(base)
    else:
        weights = delta_hat.sub_(delta_hat_at_last).add_(last)
    return weights if damping == 1 else weights.sub_(last).mul_(damping).add_(last)


def cast(weights: Tensor, dtype: torch.dtype, name: str) -> Tensor:
    """Return the weights in another dtype.

    Raises:
        FitError: NaN or infinity there.
    """
    rounded = weights.to(dtype)
    if not bool(torch.isfinite(rounded).all()):
        raise FitError(_not_finite(name, dtype))
    return rounded


class Rounder:
    """Rounds one tensor once, a run of entries at a time, and measures what that lost.

    Runs of up to 2^24 entries. Nothing waits for a GPU before `finish`. With `is_base_rounded` the
    base is known to be stored in the output's dtype.
    """

    def __init__(self, dtype: torch.dtype, name: str, is_base_rounded: bool = False) -> None:
        self._dtype = dtype
        self._name = name
        self._is_base_rounded = is_base_rounded
        self._sums: list[Tensor] = []
        self._num_entries = 0

    def round(self, weights_P: Tensor, base_P: Tensor, rounded_P: Tensor, other_P: Tensor) -> None:
        """Write the next run to `rounded_P`; the base is rounded too to decide "unchanged".

        weights_P, base_P: fp32; so is other_P, which is written over.
        """
        rounded_P.copy_(weights_P)
        # Widened again: comparing bf16 takes ten times as long.
        other_P.copy_(rounded_P).sub_(weights_P)
        lost = torch.dot(other_P, other_P)
        torch.sub(weights_P, base_P, out=other_P)
        update = torch.dot(other_P, other_P)
        # In place the answer is fp32 too, 0 or 1: three times as fast as to bool and counting.
        stored_base_P = base_P if self._is_base_rounded else base_P.to(self._dtype).float()
        unchanged = other_P.copy_(rounded_P).eq_(stored_base_P).sum()
        self._sums.append(torch.stack([lost, update, unchanged]))
        self._num_entries += weights_P.numel()

    def finish(self) -> Rounding | None:
        """Return the sums over all runs; None without any.

        Raises:
            FitError: NaN or infinity after rounding.
        """
        if not self._sums:
            return None
        lost, update, unchanged = torch.stack(self._sums).double().sum(dim=0).tolist()
        if not math.isfinite(lost):
            raise FitError(_not_finite(self._name, self._dtype))
        return Rounding(lost, update, round(unchanged), self._num_entries)


def _not_finite(name: str, dtype: torch.dtype) -> str:
    return (
        f"{name}: not finite in {str(dtype).removeprefix('torch.')}; take --dtype float32 or a "
        "nearer target"
    )
