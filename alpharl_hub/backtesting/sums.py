"""From the inner products of one matrix to sums that can be pooled over matrices, and read.

Letters: L levels of entries (`rows`), W windows, C cases (a window and one of its truths), K
methods. W_F is the last checkpoint of a window, W a truth, W_hat a prediction of it.

Convention: float64 on the CPU, added in file order.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from alpharl_hub.backtesting.candidates import Design
from alpharl_hub.backtesting.cases import FitWindow
from alpharl_hub.backtesting.results import Closeness
from alpharl_hub.backtesting.rows import ALL_ENTRIES, Products
from alpharl_hub.errors import WriteError
from alpharl_hub.numerics.direction import (
    FIRST_LEVEL,
    MAX_FLOOR,
    MIN_ENTRIES,
    DirectionSums,
    LevelSums,
)
from alpharl_hub.tensor_bytes import memory_of

_CANCELLED = 1e-12
"""A squared difference below this share of its summands is what rounding leaves of zero."""


@dataclass(frozen=True)
class Sums:
    """Sums over matrices.

    Of each window the two halves a and b of its update (`half_*`, L x W); of each case |W - W_F|^2,
    the squared spacings of W and W_F and the number of entries (L x C); of each method beside it
    |W_hat - W|^2, |W_hat - W_F|^2 and (W_hat - W_F).(W - W_F) (L x C x K). Spacings and numbers
    leave matrices out whose entries did not move.
    """

    half_aa: Tensor
    half_bb: Tensor
    half_ab: Tensor
    half_spacing: Tensor
    half_count: Tensor
    truth_squared: Tensor
    truth_spacing: Tensor
    truth_count: Tensor
    error_squared: Tensor
    move_squared: Tensor
    move_product: Tensor


@dataclass(frozen=True)
class PackedSums:
    """Sums for a journal: shapes and, in hexadecimal, bytes of their float64, field by field."""

    shapes: tuple[tuple[int, ...], ...]
    values: tuple[str, ...]

    @classmethod
    def pack(cls, sums: Sums) -> PackedSums:
        """Write down to the bit, NaN included."""
        tensors = [getattr(sums, field.name).double().contiguous() for field in fields(Sums)]
        return cls(
            tuple(tuple(tensor.shape) for tensor in tensors),
            tuple(memory_of(tensor).hex() for tensor in tensors),
        )

    def unpack(self) -> Sums:
        """Read again.

        Raises:
            WriteError: this is no record of sums.
        """
        try:
            tensors = [
                torch.frombuffer(bytearray.fromhex(values), dtype=torch.float64).view(shape)
                for shape, values in zip(self.shapes, self.values, strict=True)
            ]
            return Sums(*tensors)
        except (RuntimeError, TypeError, ValueError) as error:
            raise WriteError("the journal holds no sums; delete the work folder") from error


def add_sums(parts: Sequence[Sums]) -> Sums:
    """Pool."""
    names = [field.name for field in fields(Sums)]
    return Sums(**{n: torch.stack([getattr(p, n) for p in parts]).sum(0) for n in names})


def sums_of(
    products: Products, design: Design, windows: Sequence[FitWindow], middles: Sequence[int]
) -> Sums:
    """Read one matrix.

    Args:
        products: its inner products.
        design: the predictions.
        windows: those whose direction is wanted; `middles` are the positions of their middle
            checkpoints.
    """
    num_increments = products.spacing_LT.shape[1]
    gram_LRR = products.gram_LRR
    first_WR, second_WR = (
        torch.zeros(len(windows), gram_LRR.shape[1], dtype=torch.float64) for _ in range(2)
    )
    for number, (window, middle) in enumerate(zip(windows, middles, strict=True)):
        first_WR[number, : middle + 1] = 1.0
        second_WR[number, middle + 1 : window.last + 1] = 1.0
    moved_LW = _squares(gram_LRR, second_WR)
    is_seen_LW = moved_LW > 0
    truth_CR = design.truths_CR
    move_CKR = design.moves_CKR(gram_LRR[ALL_ENTRIES, :num_increments, :num_increments])
    truth_LC = _squares(gram_LRR, truth_CR)
    is_seen_LC = (truth_LC > 0).double()
    last_C = [design.windows[case.window].last for case in design.cases]
    truths_C = [case.truth for case in design.cases]
    spacing_LC = products.spacing_LT[:, truths_C] + products.spacing_LT[:, last_C]
    count_L1 = products.num_entries_L[:, None]
    return Sums(
        half_aa=_squares(gram_LRR, first_WR) * is_seen_LW,
        half_bb=moved_LW,
        half_ab=torch.einsum("wr,lrs,ws->lw", first_WR, gram_LRR, second_WR) * is_seen_LW,
        half_spacing=products.spacing_LT[:, list(middles)] * is_seen_LW,
        half_count=count_L1 * is_seen_LW,
        truth_squared=truth_LC,
        truth_spacing=spacing_LC * is_seen_LC,
        truth_count=count_L1 * is_seen_LC,
        error_squared=_squares(gram_LRR, move_CKR - truth_CR[:, None]),
        move_squared=_squares(gram_LRR, move_CKR),
        move_product=torch.einsum("ckr,lrs,cs->lck", move_CKR, gram_LRR, truth_CR),
    )


def _squares(gram_LRR: Tensor, sums_XR: Tensor) -> Tensor:
    """|sum_r x_r V_r|^2 for every level and every set of coefficients (..., R)."""
    squared = torch.einsum("...r,lrs,...s->l...", sums_XR, gram_LRR, sums_XR)
    length_LR = gram_LRR.diagonal(dim1=1, dim2=2).sqrt()
    summands = torch.einsum("...r,lr->l...", sums_XR.abs(), length_LR).square()
    # NaN stays NaN: comparisons with it are false.
    return torch.where(squared < _CANCELLED * summands, 0.0, squared)


def direction_of(sums: Sums, window: int) -> DirectionSums:
    """Return what the direction of one window is read from."""
    columns = (sums.half_aa, sums.half_bb, sums.half_ab, sums.half_spacing, sums.half_count)
    rows = zip(*(column[:, window].tolist() for column in columns), strict=True)
    levels = [LevelSums(aa, bb, ab, space, int(count)) for aa, bb, ab, space, count in rows]
    return DirectionSums(tuple(levels[:ALL_ENTRIES]), levels[ALL_ENTRIES])


def resolved_level(sums: Sums, case: int) -> int | None:
    """Choose the entries that a case is read on; None where rounding hides it on all of them.

    As `direction.pool` does for the direction: from 2 % of the entries on (doubled for small
    models) halved while rounding could make up more than MAX_FLOOR, here of W - W_F.
    """
    counts_L = sums.truth_count[:, case].tolist()
    first = FIRST_LEVEL
    while first > 0 and counts_L[first] < MIN_ENTRIES:
        first -= 1
    for level in range(first, ALL_ENTRIES):
        floor = floor_of(sums, case, level)
        if counts_L[level] < MIN_ENTRIES or floor is None:
            return None
        if floor <= MAX_FLOOR:
            return level
    return None


def floor_of(sums: Sums, case: int, level: int) -> float | None:
    """Return how much of |W - W_F| the rounding of both could make up; None if it is zero."""
    squared = float(sums.truth_squared[level, case])
    # An error spread evenly over a spacing has a variance of a twelfth of its square.
    return math.sqrt(float(sums.truth_spacing[level, case]) / 12 / squared) if squared > 0 else None


def closeness(sums: Sums, level: int | None, case: int, method: int) -> Closeness:
    """Read one prediction on the entries of a level."""
    if level is None:
        return Closeness(None, None)
    truth = float(sums.truth_squared[level, case])
    place = (level, case, method)
    error, move = float(sums.error_squared[place]), float(sums.move_squared[place])
    if not truth > 0 or math.isnan(error):
        return Closeness(None, None)
    cosine = float(sums.move_product[place]) / math.sqrt(truth * move) if move > 0 else None
    return Closeness(math.sqrt(error / truth), cosine)
