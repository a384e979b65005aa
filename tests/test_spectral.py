"""Leading singular triplets against numpy's float64 SVD, on spectra planted to be awkward."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from alpharl_hub.errors import FitError
from alpharl_hub.numerics.norms import sum_of_squares
from alpharl_hub.numerics.spectral import leading_triplets

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


def planted(rows, columns, spectrum, seed=0):
    """A float64 matrix with the given singular values and random singular vectors."""
    rng = np.random.default_rng(seed)
    u = np.linalg.qr(rng.normal(size=(rows, len(spectrum))))[0]
    v = np.linalg.qr(rng.normal(size=(columns, len(spectrum))))[0]
    return (u * np.asarray(spectrum)) @ v.T


def as_fp32(matrix):
    return torch.from_numpy(np.ascontiguousarray(matrix, dtype=np.float32))


def svd64(delta):
    return np.linalg.svd(delta.double().numpy(), full_matrices=False)


def angle(found, expected):
    """Angle between two lines in radians, in float64."""
    a = found.cpu().double().numpy()
    a, b = a / np.linalg.norm(a), expected / np.linalg.norm(expected)
    near, far = sorted([np.linalg.norm(a - b), np.linalg.norm(a + b)])
    return 2 * np.arctan2(near, far)


def tail(first, ratio, length=100):
    return [first * ratio**i for i in range(length)]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("shape", [(200, 320), (320, 200), (160, 160)])
@pytest.mark.parametrize("gap", [0.3, 0.7, 0.9, 0.97, 0.99])
def test_leading_triplet_is_right_to_1e5_in_sigma_and_1e4_in_angle(device, shape, gap):
    """Cold and warm starts both reach the promised accuracy, and say so."""
    delta = as_fp32(1e-3 * planted(*shape, [1.0, *tail(gap, 0.97)]))
    u, s, vt = svd64(delta)
    rng = np.random.default_rng(1)
    guess = torch.from_numpy(vt[0] + 0.3 * rng.normal(size=shape[1]) / shape[1] ** 0.5)
    for start in (None, guess):
        found = leading_triplets(delta.to(device), 1, seed="x", start_N=start)
        assert abs(float(found.sigma_R[0]) / s[0] - 1) < 1e-5
        assert angle(found.v_RN[0], vt[0]) < 1e-4
        assert angle(found.u_RM[0], u[:, 0]) < 1e-4
        assert found.certified
        assert found.angle_R[0] <= 1e-4
        left = delta.double() @ found.v_RN[0].cpu().double()
        right = float(found.sigma_R[0]) * found.u_RM[0].cpu().double()
        assert float((left - right).norm()) < 1e-6 * s[0]


def test_estimated_angle_bounds_the_true_one():
    """In at least 95 of 100 matrices the estimate is not below the true error; never far below."""
    ratios = []
    for seed in range(100):
        rng = np.random.default_rng(seed)
        gap, ratio = rng.choice([0.1, 0.5, 0.9, 0.98]), rng.choice([0.5, 0.9, 0.99])
        rows, columns = rng.integers(40, 160, size=2)
        length = min(rows, columns) - 1
        delta = as_fp32(planted(rows, columns, [1.0, *tail(gap, ratio, length)], seed))
        u, _, vt = svd64(delta)
        found = leading_triplets(delta, 1, seed=str(seed))
        true = max(angle(found.v_RN[0], vt[0]), angle(found.u_RM[0], u[:, 0]))
        ratios.append(true / found.angle_R[0])
    assert sum(ratio <= 1 for ratio in ratios) >= 95
    assert max(ratios) < 5


@settings(max_examples=150, deadline=None)
@given(
    rows=st.integers(1, 9),
    columns=st.integers(1, 9),
    power=st.integers(-110, 110),
    seed=st.integers(0, 10**6),
    density=st.sampled_from([0.2, 0.6, 1.0]),
    rank=st.integers(1, 4),
)
def test_small_matrices_of_any_scale_have_the_singular_values_of_numpy(
    rows, columns, power, seed, density, rank
):
    """Sigma and norm are right from 2^-110 to 2^110, with zeros among the entries; nothing is NaN.

    Where two values are tied the order of vectors is open, but |D v| = sigma still holds.
    """
    rng = np.random.default_rng(seed)
    matrix = rng.normal(size=(rows, columns)) * (rng.random((rows, columns)) < density)
    delta = as_fp32(np.ldexp(matrix, power))
    _, s, _ = svd64(delta)
    s = np.concatenate([s, np.zeros(rank)])[:rank]
    found = leading_triplets(delta, rank, seed=str(seed))
    assert np.all(np.isfinite(found.u_RM.numpy()))
    assert np.all(np.isfinite(found.v_RN.numpy()))
    np.testing.assert_allclose(found.sigma_R.double().numpy(), s, rtol=1e-5, atol=2e-6 * s[0])
    np.testing.assert_allclose(
        found.frobenius, np.linalg.norm(delta.double().numpy()), rtol=1e-6, atol=0
    )
    stretched = np.linalg.norm(delta.double().numpy() @ found.v_RN.double().numpy().T, axis=0)
    np.testing.assert_allclose(stretched, found.sigma_R.double().numpy(), atol=2e-6 * s[0])


@pytest.mark.parametrize("entry", [1e-40, 1e-30, 1e-22, 1e-20, 1e18, 1e30])
def test_entries_at_the_ends_of_fp32_are_scaled_first(entry):
    """Squares of these entries leave fp32; sigma and vectors do not suffer."""
    delta = as_fp32(entry * planted(30, 40, [1.0, *tail(0.5, 0.9, 20)]))
    u, s, vt = svd64(delta)
    found = leading_triplets(delta, 1, seed="x")
    # Below 1e-38 fp32 itself has few digits left: sigma is rounded when it is stored.
    assert abs(float(found.sigma_R[0]) / s[0] - 1) < (1e-4 if entry < 1e-38 else 1e-5)
    assert angle(found.v_RN[0], vt[0]) < 1e-4
    assert angle(found.u_RM[0], u[:, 0]) < 1e-4


def test_a_zero_matrix_has_zero_factors_and_is_certified():
    """Zero updates happen (bf16 hides small ones): sigma 0, zero vectors, no NaN."""
    found = leading_triplets(torch.zeros(5, 7), 2, seed="x", start_N=torch.ones(7))
    assert found.certified
    assert found.frobenius == 0
    assert not found.sigma_R.any()
    assert not found.u_RM.any()
    assert not found.v_RN.any()
    assert found.u_RM.shape == (2, 5)
    assert found.v_RN.shape == (2, 7)


@pytest.mark.parametrize("shape", [(1, 50), (50, 1), (60, 40)])
def test_an_exact_rank_1_matrix_is_found_at_once(shape):
    """Three sweeps and a certificate; what is left is zero, and below rounding not certified."""
    rng = np.random.default_rng(2)
    delta = as_fp32(np.outer(rng.normal(size=shape[0]), rng.normal(size=shape[1])))
    _, s, vt = svd64(delta)
    found = leading_triplets(delta, 1, seed="x")
    assert found.sweeps <= 3
    assert found.certified
    assert abs(float(found.sigma_R[0]) / s[0] - 1) < 1e-6
    assert angle(found.v_RN[0], vt[0]) < 1e-6
    more = leading_triplets(delta, 3, seed="x")
    assert not more.sigma_R[1:].any()
    assert not more.u_RM[1:].any()


def test_a_single_entry_is_its_own_singular_value():
    """One changed weight in a matrix of zeros."""
    delta = torch.zeros(40, 50)
    delta[3, 7] = -2.0
    found = leading_triplets(delta, 1, seed="x")
    assert found.certified
    assert float(found.sigma_R[0]) == pytest.approx(2.0, rel=1e-6)
    assert abs(float(found.v_RN[0, 7])) == pytest.approx(1.0, abs=1e-6)
    assert abs(float(found.u_RM[0, 3])) == pytest.approx(1.0, abs=1e-6)


def two_equal_entries():
    matrix = np.zeros((40, 50))
    matrix[1, 2], matrix[5, 9] = 1.0, -1.0
    return matrix


@pytest.mark.parametrize(
    "matrix",
    [
        two_equal_entries(),
        np.eye(30),
        np.linalg.qr(np.random.default_rng(0).normal(size=(80, 80)))[0],
        planted(120, 90, [1.0, 1.0, *tail(0.5, 0.9, 60)]),
        planted(120, 90, [1.0, 1.0, *tail(0.9, 0.97, 60)]),
        planted(120, 90, [1.0, 1.0, 1.0, *tail(0.7, 0.9, 60)]),
        planted(300, 200, [1.0, 1.0, 1.0, 0.5, 0.4]),
    ],
    ids=["two entries", "identity", "orthogonal", "apart", "close", "triple", "triple of five"],
)
def test_tied_values_give_a_right_sigma_without_a_certificate(matrix):
    """Any vector of the tied space will do: |D v| = sigma, and nobody is told that v is unique."""
    delta = as_fp32(matrix)
    _, s, _ = svd64(delta)
    found = leading_triplets(delta, 3, seed="x")
    np.testing.assert_allclose(found.sigma_R.numpy(), s[:3], rtol=1e-5, atol=1e-6)
    assert not found.certified_R[0]
    rising = [b >= a for a, b in zip(found.sigma_R, found.sigma_R[1:], strict=False) if a > 0]
    assert not any(rising), "sorting by sigma must give this order again"
    stretched = (delta.double() @ found.v_RN.double().T).norm(dim=0)
    np.testing.assert_allclose(stretched, found.sigma_R.double(), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("gap", [0.9, 0.98, 0.99])
def test_a_start_at_the_second_vector_still_finds_the_first(gap):
    """A warm start from a direction that was overtaken does not hide the new first one."""
    for seed in range(5):
        matrix = planted(300, 200, [1.0, gap, *tail(0.98 * gap, 0.98, 100)], seed)
        delta = as_fp32(matrix)
        _, s, vt = svd64(delta)
        found = leading_triplets(delta, 1, seed=str(seed), start_N=torch.from_numpy(vt[1]))
        assert abs(float(found.sigma_R[0]) / s[0] - 1) < 1e-5
        assert angle(found.v_RN[0], vt[0]) < 1e-4


def between_checkpoints(before, after, seed):
    """What is found of a matrix after a similar one: the same vectors with other values."""
    rng = np.random.default_rng(seed)
    u = np.linalg.qr(rng.normal(size=(300, len(before))))[0]
    v = np.linalg.qr(rng.normal(size=(220, len(before))))[0]
    first, delta = as_fp32((u * before) @ v.T), as_fp32((u * after) @ v.T)
    old = leading_triplets(first, 1, seed=str(seed))
    assert old.certified
    guesses = {"start_N": old.v_RN[0], "second_N": old.second_N}
    return delta, leading_triplets(delta, 1, seed=str(seed), **guesses)


@pytest.mark.parametrize("risen", [0.8, 1.2, 2.0])
@pytest.mark.parametrize("place", [1, 2, 20, 80])
def test_what_overtakes_between_two_checkpoints_is_found(place, risen):
    """The guesses of one checkpoint do not hide a direction that came up since, from anywhere."""
    before = np.array([1, 0.7, *tail(0.6, 0.95, 80)])
    after = before.copy()
    after[place] = risen
    for seed in range(8):
        delta, found = between_checkpoints(before, after, seed)
        _, s, vt = svd64(delta)
        assert abs(float(found.sigma_R[0]) / s[0] - 1) < 1e-5
        assert angle(found.v_RN[0], vt[0]) < 1e-4
        assert found.certified


@pytest.mark.parametrize("second", [0.7, 0.8, 0.9])
def test_a_second_value_that_has_caught_up_is_no_longer_certified(second):
    """Of 16 ties that arose between two checkpoints at least 14 are seen; sigma is right in all."""
    before = np.array([1, second, *tail(0.8 * second, 0.96, 80)])
    after = before.copy()
    after[1] = 1
    found = [between_checkpoints(before, after, seed)[1] for seed in range(16)]
    assert sum(not triplets.certified for triplets in found) >= 14
    for triplets in found:
        assert float(triplets.sigma_R[0]) == pytest.approx(1, rel=1e-5)


def test_eight_triplets_of_a_falling_spectrum_match_numpy():
    """Later triplets keep sigma to 1e-5 and the angle to 1e-4 where their neighbours are apart."""
    delta = as_fp32(planted(200, 150, tail(1.0, 0.7, 60), seed=4))
    u, s, vt = svd64(delta)
    found = leading_triplets(delta, 8, seed="x")
    np.testing.assert_allclose(found.sigma_R.numpy(), s[:8], rtol=1e-5)
    for r in range(8):
        assert angle(found.v_RN[r], vt[r]) < 1e-4
        assert angle(found.u_RM[r], u[:, r]) < 1e-4
    assert found.certified


@pytest.mark.parametrize(
    "spectrum", [tail(1.0, 0.8, 40), [1.0, 1.0, 0.5], tail(1.0, 0.2, 12), [1.0]]
)
@pytest.mark.parametrize("warm", [False, True])
def test_a_triplet_has_the_same_bits_whatever_the_rank(spectrum, warm):
    """Factors of rank 8 contain those of rank 1 to the bit, so both predict the same bytes."""
    delta = as_fp32(planted(60, 70, spectrum, seed=5))
    start = torch.ones(70) if warm else None
    widest = leading_triplets(delta, 8, seed="layer.0", start_N=start)
    for rank in range(1, 8):
        found = leading_triplets(delta, rank, seed="layer.0", start_N=start)
        assert torch.equal(found.u_RM, widest.u_RM[:rank])
        assert torch.equal(found.sigma_R, widest.sigma_R[:rank])
        assert torch.equal(found.v_RN, widest.v_RN[:rank])
        assert found.angle_R == widest.angle_R[:rank]
        assert found.certified_R == widest.certified_R[:rank]


def test_the_seed_and_not_the_global_state_decides_the_bits():
    """Equal seeds give equal bits, others the same answer; torch's own state is not touched."""
    delta = as_fp32(planted(90, 80, [1.0, *tail(0.9, 0.95, 50)], seed=6))
    torch.manual_seed(1)
    first = leading_triplets(delta, 1, seed="a")
    state = torch.get_rng_state()
    torch.manual_seed(2)
    again = leading_triplets(delta, 1, seed="a")
    other = leading_triplets(delta, 1, seed="b")
    assert torch.equal(first.v_RN, again.v_RN)
    assert not torch.equal(first.v_RN, other.v_RN)
    assert angle(other.v_RN[0], first.v_RN[0].double().numpy()) < 1e-4
    torch.manual_seed(1)
    assert torch.equal(torch.get_rng_state(), state)


def test_memory_alignment_and_matmul_switches_do_not_change_the_bits():
    """A view at an odd address and a process set to fast matrix products give the same factors."""
    delta = as_fp32(planted(90, 83, [1.0, *tail(0.9, 0.95, 50)], seed=7))
    expected = leading_triplets(delta, 1, seed="a")
    memory = torch.empty(delta.numel() + 1)
    shifted = memory[1:].view(90, 83).copy_(delta)
    assert torch.equal(leading_triplets(shifted, 1, seed="a").v_RN, expected.v_RN)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        assert torch.equal(leading_triplets(delta, 1, seed="a").v_RN, expected.v_RN)
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize("size", [1, 32767, 32768, 2_000_001])
def test_the_norm_is_right_to_1e6_with_a_large_mean(size):
    """Rounding of a sum in fp32 grows with its length; the chunks keep it small."""
    rng = np.random.default_rng(8)
    values = rng.uniform(3e-3, 4e-3, size=size).astype(np.float32)
    expected = float(np.sum(values.astype(np.float64) ** 2))
    assert float(sum_of_squares(torch.from_numpy(values))) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_nan_and_infinity_are_refused(bad):
    """They would otherwise come out as quiet nonsense."""
    delta = torch.ones(4, 5)
    delta[2, 3] = bad
    with pytest.raises(FitError, match="NaN or Inf"):
        leading_triplets(delta, 1, seed="x")


@pytest.mark.parametrize(
    ("delta", "rank"),
    [
        (torch.ones(3, 3, dtype=torch.float64), 1),
        (torch.ones(9), 1),
        (torch.ones(3, 4).T, 1),
        (torch.ones(3, 3), 0),
    ],
    ids=["float64", "vector", "not contiguous", "rank 0"],
)
def test_wrong_arguments_are_a_value_error(delta, rank):
    """The kernel never converts or copies behind the caller's back."""
    with pytest.raises(ValueError, match=r"fp32|rank"):
        leading_triplets(delta, rank, seed="x")


@pytest.mark.parametrize("shape", [(24, 60), (60, 24), (40, 40)])
def test_a_whole_spectrum_is_that_of_numpy(shape: tuple[int, int]) -> None:
    """Searched or not: sigma, their vectors and their order; and no rank changes the bits."""
    delta_MN = torch.randn(shape, generator=torch.Generator().manual_seed(3))
    every = leading_triplets(delta_MN, min(shape) + 2, seed="whole")
    sigma_K = np.linalg.svd(delta_MN.double().numpy(), compute_uv=False)
    assert every.sigma_R.numpy()[: min(shape)] == pytest.approx(sigma_K, rel=1e-5)
    assert not bool(every.sigma_R[min(shape) :].any())
    rebuilt_MN = (every.u_RM.T * every.sigma_R) @ every.v_RN
    np.testing.assert_allclose(rebuilt_MN.numpy(), delta_MN.numpy(), atol=1e-3)
    for rank in (5, 12, 20):
        some = leading_triplets(delta_MN, rank, seed="whole")
        for name in ("u_RM", "sigma_R", "v_RN"):
            assert torch.equal(getattr(some, name), getattr(every, name)[:rank])
