"""Updates known by two thin factors, against numpy's float64 computations on the dense matrix."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from alpharl_hub.errors import FitError
from alpharl_hub.numerics.low_rank import (
    LowRank,
    combine,
    dora_weights,
    from_stored,
    gram,
    inner,
)
from alpharl_hub.numerics.spectral import leading_triplets


def random_update(seed: int, rows: int = 60, columns: int = 40, rank: int = 4) -> LowRank:
    """Factors of an update with entries around 1e-3."""
    source = torch.Generator().manual_seed(seed)
    left_MR = 1e-2 * torch.randn(rows, rank, generator=source)
    right_RN = 1e-1 * torch.randn(rank, columns, generator=source)
    return LowRank(left_MR, right_RN)


def dense64(update: LowRank) -> np.ndarray:
    """The matrix in float64."""
    found: np.ndarray = update.left_MR.double().numpy() @ update.right_RN.double().numpy()
    return found


def angle(found: Tensor, expected: np.ndarray) -> float:
    """Angle between two lines in radians."""
    a = found.double().numpy()
    a, b = a / np.linalg.norm(a), expected / np.linalg.norm(expected)
    near, far = sorted([np.linalg.norm(a - b), np.linalg.norm(a + b)])
    return float(2 * np.arctan2(near, far))


def test_stored_factors_become_the_update_of_the_base() -> None:
    """scale * B A for a Linear layer, scale * (B A)^T for one that is stored as (in, out)."""
    rng = np.random.default_rng(0)
    factor_a, factor_b = rng.normal(size=(3, 7)), rng.normal(size=(5, 3))
    stored_a, stored_b = (torch.from_numpy(f).bfloat16() for f in (factor_a, factor_b))
    exact = 0.5 * stored_b.double().numpy() @ stored_a.double().numpy()
    straight = from_stored(stored_b, stored_a, 0.5, transposed=False)
    turned = from_stored(stored_a, stored_b, 0.5, transposed=True)
    assert (straight.shape, turned.shape) == ((5, 7), (7, 5))
    np.testing.assert_allclose(straight.dense(), exact, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(turned.dense(), exact.T, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("rows", "columns", "rank"), [(60, 40, 4), (5, 90, 8), (90, 5, 8)])
def test_triplets_are_those_of_the_dense_matrix(rows: int, columns: int, rank: int) -> None:
    """Singular values, vectors and norm agree with numpy's; so does what `spectral` finds."""
    update = random_update(1, rows, columns, rank)
    u, s, vt = np.linalg.svd(dense64(update), full_matrices=False)
    wanted = min(rows, columns, rank)
    found = update.triplets(wanted)
    np.testing.assert_allclose(found.sigma_R, s[:wanted], rtol=1e-6)
    for index in range(wanted):
        assert angle(found.u_RM[index], u[:, index]) < 1e-5
        assert angle(found.v_RN[index], vt[index]) < 1e-5
    assert found.frobenius == pytest.approx(np.linalg.norm(s), rel=1e-10)
    assert update.frobenius() == pytest.approx(np.linalg.norm(s), rel=1e-6)
    assert found.certified
    dense = leading_triplets(update.dense(), wanted, seed="x")
    torch.testing.assert_close(found.sigma_R, dense.sigma_R, rtol=1e-5, atol=0)
    assert [len(t) for t in (found.residual_R, found.angle_R, found.certified_R)] == [wanted] * 3
    assert max(found.residual_R) < 1e-5 * s[0]


def test_the_matrix_times_v_is_sigma_u() -> None:
    """Signs of u and v belong together."""
    update = random_update(2)
    found = update.triplets(3)
    for u_M, sigma, v_N in zip(found.u_RM, found.sigma_R, found.v_RN, strict=True):
        image = dense64(update) @ v_N.double().numpy()
        np.testing.assert_allclose(image, float(sigma) * u_M.double().numpy(), atol=1e-8)


def test_triplets_beyond_the_rank_are_zero() -> None:
    """A rank-2 matrix written with 5 columns has two triplets; the others are zero, not noise."""
    two = random_update(3, rank=2)
    mixing_25 = torch.randn(2, 5, generator=torch.Generator().manual_seed(4))
    five = LowRank(two.left_MR @ mixing_25, torch.linalg.pinv(mixing_25) @ two.right_RN)
    found = five.triplets(6)
    assert bool((found.sigma_R[:2] > 0).all())
    assert found.sigma_R[2:].tolist() == [0.0] * 4
    assert not bool(found.u_RM[2:].any())
    assert not bool(found.v_RN[2:].any())
    np.testing.assert_allclose(
        found.sigma_R[:2], np.linalg.svd(dense64(two))[1][:2], rtol=1e-5, atol=0
    )


@pytest.mark.parametrize("rank", [0, 3])
def test_a_zero_product_has_no_direction(rank: int) -> None:
    """B is zero before the first step: sigma 0 and zero vectors, nowhere NaN."""
    update = LowRank(torch.zeros(6, rank), torch.randn(rank, 4))
    found = update.triplets(2)
    for values in (found.sigma_R, found.u_RM, found.v_RN):
        assert not bool(values.any())
        assert bool(values.isfinite().all())
    assert found.frobenius == 0.0
    assert update.frobenius() == 0.0
    assert update.dense().shape == (6, 4)
    assert not bool(combine([update, update], [1.0, 2.0]).dense().any())


def test_tied_values_are_right_and_not_certified() -> None:
    """Of two equal singular values the vectors are any pair: sigma is right, nothing certified."""
    rng = np.random.default_rng(5)
    u = np.linalg.qr(rng.normal(size=(30, 2)))[0]
    v = np.linalg.qr(rng.normal(size=(20, 2)))[0]
    update = LowRank(torch.from_numpy(u).float(), torch.from_numpy(v.T.copy()).float())
    found = update.triplets(2)
    np.testing.assert_allclose(found.sigma_R, [1.0, 1.0], rtol=1e-6)
    assert found.sigma_R[0] > found.sigma_R[1]
    assert found.certified_R == (False, False)


def test_tiny_and_huge_factors_keep_their_singular_values() -> None:
    """Entries near 1e-30 and 1e15 do not under- or overflow on the way."""
    for size in (1e-30, 1e15):
        plain = random_update(6)
        update = LowRank(plain.left_MR * size, plain.right_RN)
        expected = np.linalg.svd(dense64(update))[1][0]
        assert float(update.triplets(1).sigma_R[0]) == pytest.approx(expected, rel=1e-6)


def test_inner_products_are_those_of_the_dense_matrices() -> None:
    """The Gram matrix of updates of different ranks, cancellation included, is exact to 1e-10."""
    updates = [random_update(seed, rank=rank) for seed, rank in ((7, 2), (8, 5), (9, 3))]
    minus = LowRank(torch.cat([updates[0].left_MR, -updates[1].left_MR], 1),
                    torch.cat([updates[0].right_RN, updates[1].right_RN]))  # fmt: skip
    updates += [minus, LowRank(torch.zeros(60, 0), torch.zeros(0, 40))]
    flat = np.stack([dense64(u).ravel() for u in updates])
    exact = flat @ flat.T
    found = gram(updates)
    assert found.dtype == torch.float64
    np.testing.assert_allclose(found, exact, atol=1e-10 * exact.max())
    assert torch.equal(found, found.T)
    assert inner(updates[0], updates[1]) == pytest.approx(exact[0, 1], rel=1e-9)


def test_many_rows_are_summed_without_loss() -> None:
    """An embedding's 40 000 rows take several blocks."""
    update = random_update(10, rows=40_000, columns=6, rank=2)
    assert update.frobenius() == pytest.approx(float(np.linalg.norm(dense64(update))), rel=1e-9)


def test_a_combination_is_recompressed_to_its_rank() -> None:
    """Sums of updates keep all of their matrix and no more columns than its numerical rank."""
    updates = [random_update(seed) for seed in (11, 12, 13)]
    weights = [0.5, -2.0, 3.0]
    exact = sum(w * dense64(u) for w, u in zip(weights, updates, strict=True))
    found = combine(updates, weights)
    assert found.rank == 12
    np.testing.assert_allclose(found.dense(), exact, atol=1e-6 * np.abs(exact).max())
    same = combine([updates[0]] * 3, [1.0, 1.0, 1.0])
    assert same.rank == 4
    np.testing.assert_allclose(same.dense(), 3 * dense64(updates[0]), rtol=1e-4, atol=1e-8)
    assert combine(updates[:2], [1.0, 0.0]).rank == 4
    assert combine([updates[0]] * 2, [1.0, -1.0]).rank == 0


def test_nan_is_named_and_stops() -> None:
    """A factor with NaN has no triplets."""
    broken = random_update(14)
    broken.left_MR[3, 1] = torch.nan
    with pytest.raises(FitError, match="NaN or Inf"):
        broken.triplets(1)
    with pytest.raises(FitError, match="NaN or Inf"):
        combine([broken], [1.0])
    with pytest.raises(ValueError, match="below 1"):
        random_update(14).triplets(0)


@pytest.mark.parametrize("per_column", [False, True])
def test_dora_gives_every_output_unit_its_magnitude(per_column: bool) -> None:
    """Rows (or columns) of W_0 + D get the length that the magnitudes say; zero ones stay zero."""
    update = random_update(15)
    rng = np.random.default_rng(16)
    base = rng.normal(size=(60, 40)).astype(np.float32)
    unit = np.s_[:, 3] if per_column else np.s_[3]
    base[unit] = -update.dense().numpy()[unit]
    axis = 0 if per_column else 1
    magnitude = rng.uniform(1, 2, size=base.shape[1 - axis]).astype(np.float32)
    summed = base.astype(np.float64) + update.dense().double().numpy()
    norms = np.linalg.norm(summed, axis=axis)
    norms[norms == 0] = np.inf
    exact = summed * np.expand_dims(magnitude / norms, axis)
    found = dora_weights(
        torch.from_numpy(base), update, torch.from_numpy(magnitude), per_column=per_column
    )
    np.testing.assert_allclose(found, exact, rtol=1e-5, atol=1e-6)
    assert not found.numpy()[unit].any()
