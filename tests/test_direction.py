"""The direction of a run, read on the entries that the stored dtype resolves."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from alpharl_hub.numerics.direction import (
    MIN_ENTRIES,
    SHARES,
    Trust,
    direction_sums,
    pool,
    safe_ratio,
    sample_entries,
    sampled_direction,
    smallest_entries,
    spacing,
    verdict,
)

STEPS = (10, 25, 60, 100)
MIDDLE = 2


def stored(values, dtype):
    return torch.from_numpy(np.asarray(values, dtype=np.float64)).to(dtype)


def as64(tensor):
    return tensor.double().numpy().ravel()


def bf16_spacing(values):
    """Distance of bf16 numbers to their upper neighbours, by counting bits up by one."""
    bits = torch.from_numpy(np.abs(values)).to(torch.bfloat16).view(torch.int16)
    upper, lower = (bits + 1).view(torch.bfloat16), bits.view(torch.bfloat16)
    return (upper.double() - lower.double()).numpy()


def run_of_matrices(dtype, turn, noise, shapes=((300, 400), (200, 500)), seed=0, step=2e-5):
    """Base, middle and last of some matrices; the second half turns by `turn` radians."""
    rng = np.random.default_rng(seed)
    triples = []
    for shape in shapes:
        base = stored(0.02 * rng.normal(size=shape), dtype)
        a, b = rng.normal(size=(2, *shape))
        first = step * (a + noise * rng.normal(size=shape))
        second = step * (math.cos(turn) * a + math.sin(turn) * b + noise * rng.normal(size=shape))
        middle = stored(base.double().numpy() + first, dtype)
        last = stored(base.double().numpy() + first + second, dtype)
        triples.append((base, middle, last))
    return triples


def expected_reading(triples, steps, middle, share):
    """The formulas of the rule in float64, for bf16; (cosine, speed, floor, entries)."""
    aa = bb = ab = squares = 0.0
    entries = 0
    for base, mid, last in triples:
        w0, wm, wt = as64(base), as64(mid), as64(last)
        count = round(share * w0.size)
        chosen = np.argsort(np.abs(w0), kind="stable")[:count]
        a, b = (wm - w0)[chosen], (wt - wm)[chosen]
        if not b.any():
            continue
        aa, bb, ab = aa + a @ a, bb + b @ b, ab + a @ b
        squares += np.sum(bf16_spacing(wm[chosen]) ** 2)
        entries += count
    speed = ab / aa * steps[middle] / (steps[-1] - steps[middle])
    return ab / math.sqrt(aa * bb), speed, math.sqrt(squares / 12 / aa), entries


@pytest.mark.parametrize("turn", [0.1, 0.5, 1.2])
def test_the_reading_is_that_of_the_formulas_in_float64(turn):
    """Cosine, speed, floor and share on the smallest 2 % of bf16 matrices, pooled by sums."""
    triples = run_of_matrices(torch.bfloat16, turn, noise=0.1)
    trust = pool([direction_sums(*triple) for triple in triples], STEPS, MIDDLE)
    cosine, speed, floor, entries = expected_reading(triples, STEPS, MIDDLE, 0.02)
    assert floor < 0.1
    assert trust.cosine == pytest.approx(cosine, abs=1e-6)
    assert trust.speed == pytest.approx(speed, rel=1e-6)
    assert trust.floor == pytest.approx(floor, rel=1e-6)
    assert trust.share_of_entries == pytest.approx(entries / 220_000)
    assert trust.cap == pytest.approx(1 + 1.5 * min(1, max(0, (cosine - 0.85) / 0.1)), abs=1e-5)
    cosine_all, _, _, _ = expected_reading(triples, STEPS, MIDDLE, 1.0)
    assert trust.cosine_all_entries == pytest.approx(cosine_all, abs=1e-6)


def test_small_weights_show_what_rounding_hides_elsewhere():
    """bf16 hides a steady run over all entries; its smallest entries agree with fp32."""
    shapes = ((600, 500),)
    triples = run_of_matrices(torch.bfloat16, 0.3, 0.0, shapes, step=4e-5)
    exact = run_of_matrices(torch.float64, 0.3, 0.0, shapes, step=4e-5)
    truth, _, _, _ = expected_reading(exact, STEPS, MIDDLE, 1.0)
    trust = pool([direction_sums(*triple) for triple in triples], STEPS, MIDDLE)
    assert trust.cosine_all_entries < 0.6
    assert trust.cosine == pytest.approx(truth, abs=0.03)


def test_the_share_is_halved_until_rounding_is_a_tenth_of_the_update():
    """A smaller update is read on fewer, smaller weights, and the same pooled rule decides."""
    triples = run_of_matrices(torch.bfloat16, 0.2, 0.0, ((1000, 1200),) * 2, step=3e-6)
    readings = [expected_reading(triples, STEPS, MIDDLE, 0.02 / 2**level) for level in range(6)]
    chosen = next(level for level, reading in enumerate(readings) if reading[2] <= 0.1)
    assert chosen > 0, "the case is meant to need halving"
    trust = pool([direction_sums(*triple) for triple in triples], STEPS, MIDDLE)
    cosine, speed, floor, entries = readings[chosen]
    assert entries >= MIN_ENTRIES
    assert trust.cosine == pytest.approx(cosine, abs=1e-6)
    assert trust.speed == pytest.approx(speed, rel=1e-6)
    assert trust.floor == pytest.approx(floor, rel=1e-6)
    assert trust.share_of_entries == pytest.approx(0.02 / 2**chosen, rel=0.01)


def test_a_direction_that_rounding_hides_everywhere_is_unknown():
    """Fewer than 4000 entries with fine enough spacing: no cosine, and the last checkpoint."""
    triples = run_of_matrices(torch.bfloat16, 0.2, 0.0, step=2e-7)
    trust = pool([direction_sums(*triple) for triple in triples], STEPS, MIDDLE)
    assert trust.cosine is None
    assert trust.floor is None
    assert trust.cap == 1
    assert verdict(trust, 2.0).startswith("unknown")


def test_a_small_model_is_read_on_a_larger_share():
    """Where 2 % are too few entries the share is doubled, as far as rounding allows."""
    triples = run_of_matrices(torch.float32, 0.3, 0.0, ((100, 150),))
    trust = pool([direction_sums(*triple) for triple in triples], STEPS, MIDDLE)
    assert trust.share_of_entries == pytest.approx(0.32)
    chosen = np.argsort(np.abs(as64(triples[0][0])), kind="stable")[:4800]
    w0, wm, wt = (as64(tensor)[chosen] for tensor in triples[0])
    a, b = wm - w0, wt - wm
    assert trust.cosine == pytest.approx(a @ b / math.sqrt((a @ a) * (b @ b)), abs=1e-6)
    assert trust.floor < 1e-2


def test_matrices_that_stopped_moving_are_left_out():
    """Untrained rows and frozen matrices say nothing about the direction of the rest."""
    triples = run_of_matrices(torch.bfloat16, 0.4, 0.1)
    base, middle, _ = run_of_matrices(torch.bfloat16, 0.4, 0.1, ((400, 400),), seed=9)[0]
    sums = [direction_sums(*triple) for triple in triples]
    expected = pool(sums, STEPS, MIDDLE)
    assert pool([*sums, direction_sums(base, middle, middle)], STEPS, MIDDLE) == expected
    assert pool([direction_sums(base, base, base)], STEPS, MIDDLE).cosine is None


@pytest.mark.parametrize(("steps", "middle"), [((100,), 0), ((10, 100), 1)])
def test_a_history_without_two_halves_is_unknown(steps, middle):
    """One checkpoint, or none before the last, has no first half."""
    triples = run_of_matrices(torch.bfloat16, 0.1, 0.0)
    trust = pool([direction_sums(*triple) for triple in triples], steps, middle)
    assert trust.cosine is None
    assert trust.cap == 1


@settings(max_examples=60, deadline=None)
@given(
    size=st.integers(1, 4000),
    share=st.floats(0.001, 1.0),
    levels=st.sampled_from([1, 3, 50, 10**6]),
    dtype=st.sampled_from([torch.bfloat16, torch.float16, torch.float32]),
    seed=st.integers(0, 10**6),
)
def test_selection_is_a_stable_sort_by_magnitude(size, share, levels, dtype, seed):
    """Ties, zeros and signs included: the same entries in the same order as a stable sort."""
    rng = np.random.default_rng(seed)
    values = stored(rng.integers(-levels, levels + 1, size=size) / levels, dtype)
    count = max(1, round(share * size))
    expected = np.argsort(np.abs(as64(values)), kind="stable")[:count]
    assert smallest_entries(values, count).tolist() == expected.tolist()


def test_selection_is_exact_across_chunks_and_however_the_weights_are_laid_out():
    """Sorted, reversed and mostly zero weights mislead the sample that sets the first limit."""
    rng = np.random.default_rng(1)
    normal = rng.normal(size=700_000)
    sparse = np.where(np.arange(700_000) % 11 == 0, 0.0, normal)
    for values in (np.sort(np.abs(normal)), -np.sort(-np.abs(normal)), sparse):
        for dtype in (torch.bfloat16, torch.float32):
            tensor = stored(values, dtype)
            expected = np.argsort(np.abs(as64(tensor)), kind="stable")[:14_000]
            assert np.array_equal(smallest_entries(tensor, 14_000).numpy(), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_spacing_is_the_distance_to_the_next_stored_number(dtype):
    """Checked by counting bits up by one; zero is as fine as the smallest subnormal numbers."""
    integer = torch.int32 if dtype == torch.float32 else torch.int16
    values = stored([0.0, 1e-7, 6e-5, 0.02, 0.9999, 1.0, 1.5, 3.0, 200.0], dtype)
    upper = (values.view(integer) + 1).view(dtype)
    expected = upper.double() - values.double()
    assert torch.equal(spacing(values.float(), dtype), expected)
    assert torch.equal(spacing(-values.float(), dtype), expected)


def test_the_cap_is_the_published_ramp():
    """1 up to a cosine of 0.85, 1.75 at 0.90, 2.5 from 0.95 on, 1 where unknown."""
    assert [safe_ratio(c) for c in (None, -1.0, 0.5, 0.85, 1.0)] == [1, 1, 1, 1, 2.5]
    assert safe_ratio(0.90) == pytest.approx(1.75)
    assert safe_ratio(0.95) == pytest.approx(2.5)
    assert SHARES[SHARES.index(0.02) + 1] == 0.01


@pytest.mark.parametrize(
    ("cosine", "requested", "words"),
    [
        (0.97, 2.0, "steady (cosine 0.97): safe to about 2.5 x the last step"),
        (0.90, 3.3, "safe to about 1.8 x the last step, and 3.3 x was asked for"),
        (0.83, 2.0, "turning (cosine 0.83): the last checkpoint is the better guess"),
        (0.852, 2.0, "turning"),
    ],
)
def test_the_verdict_is_one_line_for_people(cosine, requested, words):
    """It says how far is safe, and whether more was asked for; below 1.05 x that is not at all."""
    line = verdict(Trust(cosine, 0.3, 0.02, 0.03, 1.0, safe_ratio(cosine)), requested)
    assert words in line
    assert "\n" not in line


@pytest.mark.parametrize("shape", [(700, 1500), (3, 600, 700), (1, 262144 + 256)])
def test_large_matrices_are_sampled_in_runs_from_everywhere(shape):
    """256 runs of 1,024 entries, evenly spread over each matrix, as numpy's indexing has them."""
    values = torch.arange(math.prod(shape), dtype=torch.int32).view(shape)
    found = sample_entries(values)
    matrices = values.numpy().reshape(shape[0] if len(shape) == 3 else 1, -1)
    stride = matrices.shape[1] // 256
    places = (np.arange(256)[:, None] * stride + np.arange(1024)).ravel()
    assert np.array_equal(found.numpy(), matrices[:, places])


@pytest.mark.parametrize("shape", [(512, 512), (4, 300, 300), (1000,)])
def test_what_is_not_large_is_read_whole(shape):
    """Up to 262,144 entries of each matrix nothing is left out."""
    values = torch.randn(shape)
    rows = shape[0] if len(shape) == 3 else 1
    assert torch.equal(sample_entries(values), values.reshape(rows, -1))


def test_a_sample_reads_the_direction_of_the_whole():
    """Of a large bf16 matrix the cosine is that of its fp32 originals, in float64, to 0.03."""
    rng = np.random.default_rng(11)
    base = (0.02 * rng.normal(size=(2, 1200, 1500))).astype(np.float32)
    base = torch.from_numpy(base).bfloat16().float().numpy()
    first, other = 1e-4 * rng.normal(size=(2, *base.shape))
    second = 0.9 * first + np.sqrt(1 - 0.9**2) * other
    middle, last = base + first, base + first + second
    sides = [torch.from_numpy(side.astype(np.float32)).bfloat16() for side in (base, middle, last)]
    sums = sampled_direction(*(sample_entries(side) for side in sides))
    trust = pool([sums], STEPS, MIDDLE)
    exact = (first * second).sum() / np.sqrt((first**2).sum() * (second**2).sum())
    assert trust.cosine == pytest.approx(exact, abs=0.03)
    assert sums.everything.num_entries == 2 * 262144
