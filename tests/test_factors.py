"""Factors of one matrix over checkpoints: signs, order, drift, shares, quality of fit."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from alpharl_hub.errors import FitError
from alpharl_hub.numerics.factors import FactorBuilder, Factors, align, quality_of


def build(deltas, rank=1):
    builder = FactorBuilder("layers.0.mlp.up_proj.weight", rank)
    for delta in deltas:
        builder.observe(torch.from_numpy(np.ascontiguousarray(delta, dtype=np.float32)))
    return builder.finish()


def rotating_deltas(seed=0, num_steps=5, rows=30, columns=20):
    """Growing deltas whose direction turns slowly, with noise."""
    rng = np.random.default_rng(seed)
    a, b = np.linalg.qr(rng.normal(size=(columns, 2)))[0].T
    u = rng.normal(size=rows)
    deltas = []
    for t in range(1, num_steps + 1):
        v = math.cos(0.1 * t) * a + math.sin(0.1 * t) * b
        deltas.append(t * np.outer(u, v) + 0.05 * t * rng.normal(size=(rows, columns)))
    return deltas


def test_signs_follow_the_last_checkpoint():
    """The largest entry of u_T is positive; every u has a positive product with the next one's."""
    deltas = rotating_deltas()
    factors = build(deltas)
    u_TM, v_TN = factors.u_TRM[:, 0].double(), factors.v_TRN[:, 0].double()
    assert float(u_TM[-1][u_TM[-1].abs().argmax()]) > 0
    assert all(float(u_TM[t] @ u_TM[t + 1]) > 0 for t in range(4))
    for t, delta in enumerate(deltas):
        u, s, vt = np.linalg.svd(delta)
        rank1 = s[0] * np.outer(u[:, 0], vt[0])
        found = float(factors.sigma_TR[t, 0]) * torch.outer(u_TM[t], v_TN[t]).numpy()
        np.testing.assert_allclose(found, rank1, atol=1e-4 * s[0])


def test_signs_follow_the_next_checkpoint_and_not_the_last():
    """A vector that turns by 50 degrees a step ends beyond 90; every neighbour keeps its sign."""
    angles = [math.radians(50 * t) for t in range(5)]
    u_TM = [np.array([math.cos(a), math.sin(a)]) for a in angles]
    found = build([np.outer(u, [1.0, 2.0, 0.0]) for u in u_TM]).u_TRM[:, 0].double()
    sign = float(torch.sign(found[-1] @ torch.from_numpy(u_TM[-1])))
    np.testing.assert_allclose(found.numpy(), sign * np.array(u_TM), atol=1e-5)


def test_a_zero_delta_is_skipped_when_signs_are_followed():
    """The sign comes from the next later non-zero delta; a zero last one decides nothing."""
    deltas = rotating_deltas()
    with_gaps = [deltas[0], 0 * deltas[0], deltas[1], deltas[2], 0 * deltas[0]]
    factors, plain = build(with_gaps), build(deltas[:3])
    for place, expected in ((0, 0), (2, 1), (3, 2)):
        np.testing.assert_allclose(
            factors.u_TRM[place].numpy(), plain.u_TRM[expected].numpy(), atol=1e-4
        )
    assert factors.sigma_TR[[1, 4]].eq(0).all()
    assert factors.u_TRM[[1, 4]].eq(0).all()
    assert factors.rank1_share_T[1] is None
    assert factors.drift_T == (None,) * 5


def test_crossing_triplets_are_followed_by_likeness_and_not_by_size():
    """Two directions that change places in size keep their own row of factors."""
    rng = np.random.default_rng(1)
    u = np.linalg.qr(rng.normal(size=(30, 2)))[0]
    v = np.linalg.qr(rng.normal(size=(20, 2)))[0]
    sizes = [(5.0, 1.0), (4.0, 3.0), (3.0, 5.0), (2.0, 8.0)]
    deltas = [a * np.outer(u[:, 0], v[:, 0]) + b * np.outer(u[:, 1], v[:, 1]) for a, b in sizes]
    factors = build(deltas, rank=2)
    np.testing.assert_allclose(factors.sigma_TR[:, 0], [b for _, b in sizes], rtol=1e-5)
    np.testing.assert_allclose(factors.sigma_TR[:, 1], [a for a, _ in sizes], rtol=1e-5)
    for r, column in ((0, 1), (1, 0)):
        products = factors.u_TRM[:, r].double() @ torch.from_numpy(u[:, column])
        np.testing.assert_allclose(products.abs(), 1, atol=1e-6)
        assert len(set(products.sign().tolist())) == 1
    assert factors.rank1_share_T[0] == pytest.approx(25 / 26, rel=1e-5)


def test_alignment_undoes_any_flips_and_order():
    """Vectors that were flipped and shuffled come back to one sign and one order."""
    rng = np.random.default_rng(2)
    u_TRM = torch.from_numpy(rng.normal(size=(4, 3, 12)))
    u_TRM[:] = u_TRM[-1] + 0.1 * u_TRM
    v_TRN = torch.from_numpy(rng.normal(size=(4, 3, 9)))
    v_TRN[:] = v_TRN[-1] + 0.1 * v_TRN
    sigma_TR = torch.tensor([[1.0, 2.0, 3.0]] * 4)
    u, sigma, v = u_TRM.clone(), sigma_TR.clone(), v_TRN.clone()
    for t in range(4):
        order = torch.from_numpy(rng.permutation(3)) if t < 3 else torch.arange(3)
        signs = torch.from_numpy(rng.choice([-1.0, 1.0], size=(3, 1)))
        u[t], v[t], sigma[t] = (signs * u[t])[order], (signs * v[t])[order], sigma[t][order]
    align(u, sigma, v)
    flips = torch.sign(torch.gather(u[-1], 1, u[-1].abs().argmax(1, keepdim=True)))
    assert flips.eq(1).all()
    relative = torch.sign((u * u_TRM).sum(2))
    assert relative.eq(relative[-1]).all()
    assert torch.equal(u, relative[:, :, None] * u_TRM)
    assert torch.equal(v, relative[:, :, None] * v_TRN)
    assert torch.equal(sigma, sigma_TR)


@pytest.mark.parametrize("rank", [2, 4])
def test_truncated_factors_have_the_bits_of_a_smaller_rank(rank):
    """A folder of rank R predicts the bytes of a direct prediction, which uses rank 1."""
    rng = np.random.default_rng(3)
    u, v = rng.normal(size=(2, 40)), rng.normal(size=(2, 30))
    deltas = [
        (6 - t) * np.outer(u[0], v[0])
        + 2 * t * np.outer(u[1], v[1])
        + 0.3 * rng.normal(size=(40, 30))
        for t in range(6)
    ]
    deltas[2] = 0 * deltas[2]
    found, expected = build(deltas, rank).truncate(1), build(deltas, 1)
    assert torch.equal(found.u_TRM, expected.u_TRM)
    assert torch.equal(found.sigma_TR, expected.sigma_TR)
    assert torch.equal(found.v_TRN, expected.v_TRN)
    assert torch.equal(found.frobenius_T, expected.frobenius_T)


def test_drift_is_the_angle_to_the_last_right_vector():
    """Planted angles come back in degrees, small ones too; a line has no direction beyond 90."""
    degrees = [120.0, 45.0, 1e-3, 0.0]
    v_TN = torch.tensor([[math.cos(math.radians(d)), math.sin(math.radians(d))] for d in degrees])
    ones = torch.ones(4, 1)
    factors = Factors(torch.ones(4, 1, 1), ones, v_TN[:, None].float(), ones[:, 0])
    for found, expected in zip(factors.drift_T, [60.0, 45.0, 1e-3, 0.0], strict=True):
        assert found == pytest.approx(expected, abs=1e-5)


def test_quality_tells_a_line_from_noise():
    """A planted straight run has Q^2 near 1 on step, independent deltas below 0.2."""
    rng = np.random.default_rng(4)
    steps, scores = [5, 10, 30, 35, 60, 80, 85], [0.1, 0.2, 0.3, 0.5, 0.4, 0.7, 0.8]
    direction = np.outer(rng.normal(size=60), rng.normal(size=50))
    line = [step * (direction + 0.1 * rng.normal(size=(60, 50))) for step in steps]
    noise = [rng.normal(size=(60, 50)) for _ in steps]
    straight = quality_of(build(line), steps, scores)
    random = quality_of(build(noise), steps, None)
    assert straight.q2_step is not None
    assert straight.q2_step > 0.99
    assert straight.q2_score is not None
    assert 0.5 < straight.q2_score < straight.q2_step
    assert random.q2_step is not None
    assert random.q2_step < 0.2
    assert random.q2_score is None
    s = np.linalg.svd(line[-1].astype(np.float32).astype(np.float64), compute_uv=False)
    assert straight.sigma == pytest.approx(s[0], rel=1e-5)
    assert straight.frobenius == pytest.approx(np.sqrt(np.sum(s**2)), rel=1e-6)
    assert straight.rank1_share == pytest.approx(s[0] ** 2 / np.sum(s**2), rel=1e-5)


def test_a_matrix_that_never_moved_has_no_share_and_no_nan():
    """Frozen matrices are reported with zeros and nulls."""
    quality = quality_of(build([np.zeros((4, 3))] * 5), [1, 2, 3, 4, 5], None)
    assert quality.sigma == 0
    assert quality.frobenius == 0
    assert quality.rank1_share is None
    assert quality.q2_step is None
    assert quality.r2_step_in_sample is None


def test_nan_names_the_matrix():
    """The kernel knows no names; the builder adds its own."""
    with pytest.raises(FitError, match=r"layers\.0\.mlp\.up_proj\.weight.*NaN"):
        build([np.full((3, 3), np.nan)])
