"""Inner products of a matrix's increments and predictions, over its smallest entries and all.

Letters: M x N the matrix, T checkpoints, R rows (increments, then predictions of rank one, see
`candidates`), L levels of nested shares of the entries with the smallest |W_0| (`direction.SHARES`)
and, as the last one, all entries.

Every error and cosine of a backtest is a quadratic form in these R x R inner products, so that one
pass over a matrix serves all methods, windows and truths.

Convention: values are widened to fp32 and neighbours subtracted there, which is exact for half
precision but for entries that grew or shrank a thousandfold; products and sums are fp64, a block of
rows at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from alpharl_hub.numerics.direction import (
    FIRST_LEVEL,
    MIN_ENTRIES,
    SHARES,
    smallest_entries,
    spacing,
)
from alpharl_hub.numerics.low_rank import LowRank

NUM_LEVELS = len(SHARES) + 1
ALL_ENTRIES = NUM_LEVELS - 1

_BLOCK_ELEMENTS = 1 << 15
"""Entries of a block; a dozen rows of them in fp64 still fit into a cache."""


class Values(Protocol):
    """An M x N matrix that need not exist as a whole."""

    def block(self, rows: slice) -> Tensor:
        """Return some of its rows (flat, fp32)."""
        ...

    def pick(self, row_K: Tensor, column_K: Tensor) -> Tensor:
        """Return single entries (K, fp32)."""
        ...


@dataclass(frozen=True)
class Dense:
    """A matrix in memory, of any floating dtype."""

    values_MN: Tensor

    def block(self, rows: slice) -> Tensor:
        """Return some of its rows (flat, fp32)."""
        return self.values_MN[rows].to(torch.float32).reshape(-1)

    def pick(self, row_K: Tensor, column_K: Tensor) -> Tensor:
        """Return single entries (K, fp32)."""
        return self.values_MN[row_K, column_K].to(torch.float32)


@dataclass(frozen=True)
class Product:
    """A matrix known in factors."""

    factors: LowRank

    def block(self, rows: slice) -> Tensor:
        """Return some of its rows (flat, fp32)."""
        return (self.factors.left_MR[rows] @ self.factors.right_RN).reshape(-1)

    def pick(self, row_K: Tensor, column_K: Tensor) -> Tensor:
        """Return single entries (K, fp32)."""
        return (self.factors.left_MR[row_K] * self.factors.right_RN.T[column_K]).sum(1)


@dataclass(frozen=True)
class Course:
    """One matrix over the whole run.

    `values_T` are the weights at every checkpoint, or with `are_deltas` what was added to the base
    (LoRA). `predictions` are those of rank one; None where there is none, which counts as zero.
    """

    base_MN: Tensor
    values_T: Sequence[Values]
    are_deltas: bool
    predictions: Sequence[Values | None]

    @property
    def num_rows(self) -> int:
        """R."""
        return len(self.values_T) + len(self.predictions)

    def fill(self, out_RC: Tensor, take: Callable[[Values], Tensor]) -> None:
        """Write the rows of some entries: increments, then predictions."""
        before = None if self.are_deltas else take(Dense(self.base_MN))
        for t, values in enumerate(self.values_T):
            now = take(values)
            if before is None:
                out_RC[t].copy_(now)
            else:
                torch.sub(now, before, out=out_RC[t])
            before = now
        for place, prediction in enumerate(self.predictions, start=len(self.values_T)):
            if prediction is None:
                out_RC[place].zero_()
            else:
                out_RC[place].copy_(take(prediction))


@dataclass(frozen=True)
class Products:
    """Sums over one matrix (float64, CPU): inner products, squared spacings, numbers of entries.

    `spacing_LT` is the sum of the squared distances of stored weights to their neighbours in the
    stored dtype; 0 over all entries, where nobody asks.
    """

    gram_LRR: Tensor
    spacing_LT: Tensor
    num_entries_L: Tensor


def products_of(course: Course) -> Products:
    """Add up one matrix; beside it this takes a few MB, and 64 bytes a chosen entry."""
    num_rows, num_columns = course.base_MN.shape
    num_entries = num_rows * num_columns
    counts_L = [*_counts(num_entries), num_entries]
    gram_LRR = torch.zeros(NUM_LEVELS, course.num_rows, course.num_rows, dtype=torch.float64)
    spacing_LT = torch.zeros(NUM_LEVELS, len(course.values_T), dtype=torch.float64)
    _add_smallest(course, counts_L, gram_LRR, spacing_LT)
    rows_at_once = max(1, _BLOCK_ELEMENTS // num_columns)
    total_RR = torch.zeros_like(gram_LRR[0], device=course.base_MN.device)
    for top in range(0, num_rows, rows_at_once):
        rows = slice(top, min(top + rows_at_once, num_rows))
        size = (rows.stop - rows.start) * num_columns
        total_RR += _gram(course, size, partial(_block, rows=rows))
    gram_LRR[ALL_ENTRIES] = total_RR.cpu()
    return Products(gram_LRR, spacing_LT, torch.tensor(counts_L, dtype=torch.float64))


def _counts(num_entries: int) -> list[int]:
    """Entries at each level; the largest shares only serve matrices that are too small alone."""
    widest = FIRST_LEVEL if SHARES[FIRST_LEVEL] * num_entries >= MIN_ENTRIES else 0
    return [
        round(share * num_entries) if level >= widest else 0 for level, share in enumerate(SHARES)
    ]


def _add_smallest(
    course: Course, counts_L: Sequence[int], gram_LRR: Tensor, spacing_LT: Tensor
) -> None:
    """Fill in all levels but the last: each is the one inside of it and a ring around that."""
    flat_P = course.base_MN.reshape(-1)
    index_K = smallest_entries(flat_P, max(1, *counts_L[:ALL_ENTRIES]))
    num_columns = course.base_MN.shape[1]
    inner = 0
    total_RR = torch.zeros_like(gram_LRR[0], device=flat_P.device)
    total_T = torch.zeros_like(spacing_LT[0], device=flat_P.device)
    for level in range(ALL_ENTRIES - 1, -1, -1):
        for start in range(inner, counts_L[level], _BLOCK_ELEMENTS):
            chosen_K = index_K[start : min(start + _BLOCK_ELEMENTS, counts_L[level])]
            row_K, column_K = chosen_K // num_columns, chosen_K % num_columns
            total_RR += _gram(
                course,
                len(chosen_K),
                partial(_pick, row_K=row_K, column_K=column_K),
            )
            total_T += _squared_spacings(course, row_K, column_K)
        if counts_L[level]:
            gram_LRR[level], spacing_LT[level] = total_RR.cpu(), total_T.cpu()
            inner = counts_L[level]


def _gram(course: Course, num_entries: int, take: Callable[[Values], Tensor]) -> Tensor:
    rows_RC = torch.empty(
        course.num_rows, num_entries, dtype=torch.float32, device=course.base_MN.device
    )
    course.fill(rows_RC, take)
    wide_RC = rows_RC.double()
    return wide_RC @ wide_RC.T


def _block(values: Values, rows: slice) -> Tensor:
    return values.block(rows)


def _pick(values: Values, row_K: Tensor, column_K: Tensor) -> Tensor:
    return values.pick(row_K, column_K)


def _squared_spacings(course: Course, row_K: Tensor, column_K: Tensor) -> Tensor:
    """Sum over some entries, at every checkpoint; merged LoRA weights are fp32."""
    base_K = course.base_MN[row_K, column_K].to(torch.float32)
    found = []
    for values in course.values_T:
        picked_K, dtype = values.pick(row_K, column_K), torch.float32
        if course.are_deltas:
            picked_K = base_K + picked_K
        elif isinstance(values, Dense):
            dtype = values.values_MN.dtype
        found.append(spacing(picked_K, dtype).square().sum())
    return torch.stack(found)
