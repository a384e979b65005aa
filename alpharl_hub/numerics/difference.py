"""How close two models are, entry by entry, in units of the update of the second.

Letters: A and B the two models, C their base; P entries.

Convention: both sides are widened to fp32 (fp64 where one of them is stored so) before they are
subtracted, squares and products are summed in fp64, chunks and tensors by exact summation.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

_CHUNK_ELEMENTS = 1 << 17
"""What is computed of one chunk stays in the cache of one core."""


@dataclass(frozen=True)
class UpdateSums:
    """Sums over the entries that the base has too.

    |A - B|^2, |A - C|^2, |B - C|^2 and (A - C).(B - C), in this order.
    """

    difference: float
    first: float
    second: float
    product: float

    @property
    def error(self) -> float | None:
        """|A - B| / |B - C|; None where B is its base."""
        return math.sqrt(self.difference / self.second) if self.second > 0 else None

    @property
    def cosine(self) -> float | None:
        """The cosine of A - C and B - C; None where one of them is zero."""
        if self.first <= 0 or self.second <= 0:
            return None
        cosine = self.product / math.sqrt(self.first) / math.sqrt(self.second)
        return min(1.0, max(-1.0, cosine))

    @property
    def length(self) -> float | None:
        """|A - C| / |B - C|; None where B is its base."""
        return math.sqrt(self.first / self.second) if self.second > 0 else None


@dataclass(frozen=True)
class DifferenceSums:
    """Sums over entries: their number, how many are equal, |A - B|^2, |B|^2.

    `updates` is None where there is no base.
    """

    num_entries: int
    num_equal: int
    difference: float
    second: float
    updates: UpdateSums | None

    @property
    def equal_share(self) -> float | None:
        """The share of entries that are equal; None of no entries."""
        return self.num_equal / self.num_entries if self.num_entries else None

    @property
    def error(self) -> float | None:
        """|A - B| / |B|; None where B is zero."""
        return math.sqrt(self.difference / self.second) if self.second > 0 else None


def difference_sums(first: Tensor, second: Tensor, base: Tensor | None) -> DifferenceSums:
    """Add up one tensor; all have one shape and any floating dtypes."""
    sides = [t.reshape(-1) for t in (first, second, base) if t is not None]
    wide = torch.float64 if any(t.dtype == torch.float64 for t in sides) else torch.float32
    return add_differences(
        _chunk_sums(*(side[i : i + _CHUNK_ELEMENTS].to(wide) for side in sides))
        for i in range(0, first.numel(), _CHUNK_ELEMENTS)
    )


def are_finite(values: Tensor) -> bool:
    """Whether a tensor of any floating dtype holds neither NaN nor infinities."""
    values_P = values.reshape(-1)
    for start in range(0, values_P.numel(), _CHUNK_ELEMENTS):
        # In chunks: a sum in fp32 makes a copy in fp32 of what it adds up (torch 2.13, CPU).
        chunk_P = values_P[start : start + _CHUNK_ELEMENTS]
        # It is finite if every entry is, but for overflow; only then is a second look needed.
        if not torch.isfinite(chunk_P.sum(dtype=torch.float32)) and not chunk_P.isfinite().all():
            return False
    return True


def add_differences(parts: Iterable[DifferenceSums]) -> DifferenceSums:
    """Pool parts; updates over those that have a base."""
    found = list(parts)
    updates = [part.updates for part in found if part.updates is not None]
    return DifferenceSums(
        num_entries=sum(part.num_entries for part in found),
        num_equal=sum(part.num_equal for part in found),
        difference=math.fsum(part.difference for part in found),
        second=math.fsum(part.second for part in found),
        updates=UpdateSums(
            difference=math.fsum(u.difference for u in updates),
            first=math.fsum(u.first for u in updates),
            second=math.fsum(u.second for u in updates),
            product=math.fsum(u.product for u in updates),
        )
        if updates
        else None,
    )


def _chunk_sums(first_P: Tensor, second_P: Tensor, base_P: Tensor | None = None) -> DifferenceSums:
    apart_P = (first_P - second_P).double()
    difference = float(apart_P @ apart_P)
    second_64 = second_P.double()
    updates = None
    if base_P is not None:
        a_P, b_P = (first_P - base_P).double(), (second_P - base_P).double()
        updates = UpdateSums(difference, float(a_P @ a_P), float(b_P @ b_P), float(a_P @ b_P))
    return DifferenceSums(
        num_entries=first_P.numel(),
        # Not by a difference of zero: in fp32 the smallest differences could be lost.
        num_equal=int((first_P == second_P).sum()),
        difference=difference,
        second=float(second_64 @ second_64),
        updates=updates,
    )
