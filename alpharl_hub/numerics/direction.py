"""Is the run still going the same way? Read on the entries that the stored dtype resolves.

Letters: W_0 base, W_m the checkpoint nearest half of the last step, W_T the last one; a = W_m - W_0
and b = W_T - W_m, the two halves of the update; E matrices (of a stack), S sampled entries of each.

Over all entries of bf16 checkpoints the cosine of a and b mostly measures rounding, because the
spacing of bf16 is proportional to the weight. The entries with the smallest |W_0| have the finest
spacing: there the cosine agrees with that of fp32 checkpoints.

Of a large matrix 262,144 entries are looked at, in runs spread evenly over it: 2 % of those are
enough for one matrix alone, and what waits for the last checkpoint is small.

Convention: differences in fp32 after widening both sides, sums in fp64, pooled over matrices in
file order.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

# Shares of a matrix's entries, smallest |W_0| first: 64 %, 32 %, ... down to one in a million. They
# are nested, so one reading serves them all.
SHARES = tuple(0.64 / 2**level for level in range(20))
# Where to begin. Larger shares are for models so small that 2 % of them are too few entries.
FIRST_LEVEL = SHARES.index(0.02)

MAX_FLOOR = 0.1
MIN_ENTRIES = 4000
_LARGE_MATRIX = MIN_ENTRIES / 0.02
FULL_TURN_COSINE, STEADY_COSINE, MAX_CAP = 0.85, 0.95, 2.5

# Runs of so many entries are read at full speed, and 256 of them cross every part of a matrix.
_SAMPLED_RUNS, _RUN_ENTRIES = 256, 1024

# Differences, squares and products of one chunk stay in the cache.
_CHUNK_ELEMENTS = 1 << 17
# A dot product in fp32 is right to 1e-6 over so many.
_DOT_ELEMENTS = 1 << 15
_DEVICE_DOT_ELEMENTS = 1 << 22

_MANTISSA_BITS = {torch.bfloat16: 7, torch.float16: 10, torch.float32: 23, torch.float64: 52}
_MIN_EXPONENT = {
    torch.bfloat16: -126,
    torch.float16: -14,
    torch.float32: -126,
    torch.float64: -1022,
}


@dataclass(frozen=True)
class LevelSums:
    """Sums over the entries of one level: a.a, b.b, a.b, the squared spacing, and their number."""

    aa: float
    bb: float
    ab: float
    spacing_squared: float
    num_entries: int


@dataclass(frozen=True)
class DirectionSums:
    """What one matrix adds: `levels` by falling share of its smallest entries, and all entries."""

    levels: tuple[LevelSums, ...]
    everything: LevelSums


@dataclass(frozen=True)
class Trust:
    """The reading of a whole run; cosines None where there is too little to read.

    `floor` is the share of the update that rounding could make up, `speed` that of the second half
    along the first in units of the first, `cap` the largest multiple of the last step that is safe.
    """

    cosine: float | None
    cosine_all_entries: float | None
    share_of_entries: float | None
    floor: float | None
    speed: float | None
    cap: float


def sample_entries(values: Tensor) -> Tensor:
    """Take the entries (E x S) that the direction is read on, the same places in every checkpoint.

    Of a stack (3-D) those of each of its E matrices, else E is 1. A view where all are taken.
    """
    values_EP = values.reshape(len(values) if values.dim() == 3 else 1, -1)
    stride = values_EP.shape[1] // _SAMPLED_RUNS
    if stride <= _RUN_ENTRIES:
        return values_EP
    runs_ERP = values_EP[:, : _SAMPLED_RUNS * stride].view(len(values_EP), _SAMPLED_RUNS, stride)
    return runs_ERP[:, :, :_RUN_ENTRIES].reshape(len(values_EP), -1)


def sampled_direction(base_ES: Tensor, middle_ES: Tensor, last_ES: Tensor) -> DirectionSums:
    """Add up what was sampled of a matrix or a stack, in the stored dtypes."""
    sums = [direction_sums(*sides) for sides in zip(base_ES, middle_ES, last_ES, strict=True)]
    return DirectionSums(
        levels=tuple(_add(level) for level in zip(*(s.levels for s in sums), strict=True)),
        everything=_add([s.everything for s in sums]),
    )


def direction_sums(base: Tensor, middle: Tensor, last: Tensor) -> DirectionSums:
    """Add up all entries of one matrix; the three have one shape and their stored dtypes.

    Beside them it needs at most 64 bytes for each of the chosen entries.
    """
    base_P, middle_P, last_P = base.reshape(-1), middle.reshape(-1), last.reshape(-1)
    # One matrix of this size alone has enough entries at 2 %.
    widest = FIRST_LEVEL if base_P.numel() >= _LARGE_MATRIX else 0
    index_K = smallest_entries(base_P, max(1, round(SHARES[widest] * base_P.numel())))
    first_K, second_K = _halves(base_P[index_K], middle_P[index_K], last_P[index_K])
    spacing_K = spacing(middle_P[index_K].to(torch.float32), middle.dtype)
    levels = []
    for level, share in enumerate(SHARES):
        count = round(share * base_P.numel()) if level >= widest else 0
        levels.append(_sums(first_K[:count], second_K[:count], spacing_K[:count]))
    return DirectionSums(tuple(levels), _sums_of_all(base_P, middle_P, last_P))


def _sums_of_all(base_P: Tensor, middle_P: Tensor, last_P: Tensor) -> LevelSums:
    """Sums over all entries: products in fp32 within a chunk, fp64 across, one look at the device.

    They are shown and decide nothing; in fp64 throughout they took longer than all the rest.
    """
    totals_3 = torch.zeros(3, dtype=torch.float64, device=base_P.device)
    step = _DOT_ELEMENTS if base_P.device.type == "cpu" else _DEVICE_DOT_ELEMENTS
    for start in range(0, base_P.numel(), step):
        run = slice(start, start + step)
        first_C, second_C = _halves(base_P[run], middle_P[run], last_P[run])
        pairs = ((first_C, first_C), (second_C, second_C), (first_C, second_C))
        totals_3 += torch.stack([torch.dot(a, b) for a, b in pairs]).double()
    aa, bb, ab = totals_3.tolist()
    if bb == 0:
        return LevelSums(0.0, 0.0, 0.0, 0.0, 0)
    return LevelSums(aa, bb, ab, 0.0, base_P.numel())


def smallest_entries(values_P: Tensor, count: int) -> Tensor:
    """Give the indices (int64) of the `count` entries of smallest magnitude, smallest first.

    Of equal magnitudes the lower index comes first. The values are finite and of any float dtype.
    """
    found = _below(values_P, count, _guess(values_P, count))
    if len(found[0]) < count:
        found = _below(values_P, count, torch.iinfo(torch.int32).max)
    magnitude_C, index_C = found
    kept = _first_smallest(magnitude_C, count)
    order_K = torch.sort(magnitude_C[kept], stable=True).indices
    return index_C[kept[order_K]]


def _magnitude_bits(values_P: Tensor) -> Tensor:
    """Give the bits of |value| in fp32 as int32: in the same order, and sorted six times faster."""
    return values_P.to(torch.float32).abs().view(torch.int32)


def _guess(values_P: Tensor, count: int) -> int:
    """A limit that about twice `count` entries lie below, from a sample of 64 k."""
    sample_S = _magnitude_bits(values_P[:: max(1, values_P.numel() >> 16)])
    place = 1 + min(len(sample_S) - 1, 2 * count * len(sample_S) // values_P.numel())
    return int(torch.kthvalue(sample_S, place).values)


def _below(values_P: Tensor, count: int, limit: int) -> tuple[Tensor, Tensor]:
    """Magnitudes (bits) below a limit and their indices, rising; it falls as more are found."""
    magnitudes, indices, num_held = [], [], 0
    for start in range(0, values_P.numel(), _CHUNK_ELEMENTS):
        chunk_P = _magnitude_bits(values_P[start : start + _CHUNK_ELEMENTS])
        found = torch.nonzero(chunk_P < limit).view(-1)
        magnitudes.append(chunk_P[found])
        indices.append(found + start)
        num_held += len(found)
        if num_held >= 4 * count:
            magnitude_C, index_C = torch.cat(magnitudes), torch.cat(indices)
            kept = _first_smallest(magnitude_C, count)
            magnitudes, indices, num_held = [magnitude_C[kept]], [index_C[kept]], count
            # A later entry that equals the limit comes after `count` others not larger than it.
            limit = int(magnitudes[0].max())
    return torch.cat(magnitudes), torch.cat(indices)


def _first_smallest(magnitude_C: Tensor, count: int) -> Tensor:
    """Positions, rising, of the `count` smallest; of equal ones the first."""
    limit = torch.kthvalue(magnitude_C, count).values
    below = torch.nonzero(magnitude_C < limit).view(-1)
    equal = torch.nonzero(magnitude_C == limit).view(-1)[: count - len(below)]
    return torch.cat([below, equal]).sort().values


def _halves(base_K: Tensor, middle_K: Tensor, last_K: Tensor) -> tuple[Tensor, Tensor]:
    """The two halves of the update, fp32."""
    middle_K = middle_K.to(torch.float32)
    return middle_K - base_K.to(torch.float32), last_K.to(torch.float32) - middle_K


def _sums(first_K: Tensor, second_K: Tensor, spacing_K: Tensor) -> LevelSums:
    first_K, second_K = first_K.double(), second_K.double()
    bb = float(second_K @ second_K)
    # A matrix whose chosen entries never moved again (untrained rows) says nothing and is left out.
    if bb == 0:
        return LevelSums(0.0, 0.0, 0.0, 0.0, 0)
    return LevelSums(
        aa=float(first_K @ first_K),
        bb=bb,
        ab=float(first_K @ second_K),
        spacing_squared=float(spacing_K @ spacing_K),
        num_entries=first_K.numel(),
    )


def spacing(values_K: Tensor, dtype: torch.dtype) -> Tensor:
    """Give the distance (float64) from each value (fp32) to the next one that `dtype` can store."""
    exponent_K = torch.frexp(values_K).exponent.double() - 1
    # Zero and the subnormal numbers lie as densely as the smallest normal ones.
    exponent_K[values_K == 0] = -math.inf
    exponent_K = exponent_K.clamp_(min=_MIN_EXPONENT[dtype])
    return torch.exp2(exponent_K - _MANTISSA_BITS[dtype])


def pool(sums: Sequence[DirectionSums], steps_T: Sequence[int], middle: int) -> Trust:
    """Read the pooled sums of all matrices.

    The share of entries is halved from 2 % on while rounding could make up more than MAX_FLOOR of
    the update. With fewer than MIN_ENTRIES left (after doubling it for small models), or fewer than
    two checkpoints, the direction is unknown.
    """
    everything = _add([s.everything for s in sums])
    cosine_all = _cosine(everything)
    unknown = Trust(None, cosine_all, None, None, None, 1.0)
    if len(steps_T) < 2 or middle == len(steps_T) - 1:
        return unknown
    pooled_L = [_add([s.levels[level] for s in sums]) for level in range(len(SHARES))]
    first = FIRST_LEVEL
    while first > 0 and pooled_L[first].num_entries < MIN_ENTRIES:
        first -= 1
    for pooled in pooled_L[first:]:
        if pooled.num_entries < MIN_ENTRIES or pooled.aa == 0:
            break
        floor = math.sqrt(pooled.spacing_squared / 12 / pooled.aa)
        if floor <= MAX_FLOOR:
            cosine = _cosine(pooled)
            ahead = steps_T[middle] / (steps_T[-1] - steps_T[middle])
            share = pooled.num_entries / everything.num_entries
            speed = pooled.ab / pooled.aa * ahead
            return Trust(cosine, cosine_all, share, floor, speed, safe_ratio(cosine))
    return unknown


def _add(parts: Sequence[LevelSums]) -> LevelSums:
    return LevelSums(
        aa=math.fsum(p.aa for p in parts),
        bb=math.fsum(p.bb for p in parts),
        ab=math.fsum(p.ab for p in parts),
        spacing_squared=math.fsum(p.spacing_squared for p in parts),
        num_entries=sum(p.num_entries for p in parts),
    )


def _cosine(sums: LevelSums) -> float | None:
    return sums.ab / math.sqrt(sums.aa * sums.bb) if sums.aa > 0 and sums.bb > 0 else None


def safe_ratio(cosine: float | None) -> float:
    """Return how far, as a multiple of the last step, a run with this cosine may be extrapolated.

    A ramp from 1 at 0.85 to 2.5 at 0.95, chosen on sixteen real small runs with one left out at a
    time: no held-out window lost more than one point.
    """
    if cosine is None:
        return 1.0
    ramp = (cosine - FULL_TURN_COSINE) / (STEADY_COSINE - FULL_TURN_COSINE)
    return 1.0 + (MAX_CAP - 1.0) * min(1.0, max(0.0, ramp))


def verdict(trust: Trust, requested: float | None) -> str:
    """Say it in one line for people."""
    if trust.cosine is None:
        return (
            "unknown: too little of the update can be read to tell its direction; "
            "the last checkpoint is the safe guess"
        )
    if trust.cap < 1.05:
        return (
            f"turning (cosine {trust.cosine:.2f}): the last checkpoint is the better guess; "
            "scores would tell more"
        )
    words = "steady" if trust.cosine >= STEADY_COSINE else "fairly steady"
    line = f"{words} (cosine {trust.cosine:.2f}): safe to about {trust.cap:.2g} x the last step"
    if requested is not None and requested > trust.cap + 1e-9:
        line += f", and {requested:.2g} x was asked for"
    return line
