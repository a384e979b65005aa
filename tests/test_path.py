"""The path of a run in its first two directions, held against numpy in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from alpharl_hub.numerics.factors import FactorBuilder
from alpharl_hub.numerics.path import plane_path, rank1_products

M, N, T = 12, 9, 6


def deltas_of(seed: int) -> list[np.ndarray]:
    """Deltas of growing size with a strong first direction that turns."""
    rng = np.random.default_rng(seed)
    u, v, bend = rng.normal(size=M), rng.normal(size=N), rng.normal(size=M)
    return [
        np.outer(t * u + 0.1 * t**2 * bend, v) + 0.05 * rng.normal(size=(M, N))
        for t in range(1, T + 1)
    ]


def products_of(deltas: list[np.ndarray]) -> torch.Tensor:
    """The tested inner products of one matrix's deltas."""
    builder = FactorBuilder("w", 2)
    for delta in deltas:
        builder.observe(torch.from_numpy(delta).float().contiguous())
    return rank1_products(builder.finish())


def rank1_rows(deltas: list[np.ndarray]) -> np.ndarray:
    """Each delta cut to rank 1 by numpy, as a row."""
    rows = []
    for delta in deltas:
        u, s, vt = np.linalg.svd(delta)
        rows.append((s[0] * np.outer(u[:, 0], vt[0])).ravel())
    return np.array(rows)


def test_products_are_those_of_the_rank_1_parts() -> None:
    """Inner products of two matrices' rank-1 parts add up to those of the rows side by side."""
    first, second = deltas_of(1), deltas_of(2)
    rows = np.hstack([rank1_rows(first), rank1_rows(second)])
    found = products_of(first) + products_of(second)
    np.testing.assert_allclose(found.numpy(), rows @ rows.T, rtol=1e-4)


def test_the_plane_is_that_of_an_uncentred_svd() -> None:
    """Points and shares are those of numpy's SVD of the rows, with the last one at the right."""
    rows = rank1_rows(deltas_of(3))
    path = plane_path(torch.from_numpy(rows @ rows.T))
    assert path is not None
    u, s, _ = np.linalg.svd(rows, full_matrices=False)
    points = u[:, :2] * s[:2]
    points *= np.sign([points[-1, 0], points[np.abs(points[:, 1]).argmax(), 1]])
    np.testing.assert_allclose(path.points_T2, points, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(path.shares, (s**2 / (s**2).sum())[:2], rtol=1e-6)
    assert path.points_T2[-1][0] > 0


@pytest.mark.parametrize("num_steps", [1, 2, 3])
def test_a_straight_path_has_nothing_across(num_steps: int) -> None:
    """Deltas along one direction lie on the first axis, at their lengths."""
    lengths = np.arange(1.0, num_steps + 1)
    path = plane_path(torch.from_numpy(np.outer(lengths, lengths)))
    assert path is not None
    np.testing.assert_allclose([x for x, _ in path.points_T2], lengths, rtol=1e-9)
    np.testing.assert_allclose([y for _, y in path.points_T2], 0, atol=1e-6)
    assert path.shares[0] == pytest.approx(1)


def test_a_run_that_never_moved_has_no_path() -> None:
    """Zero deltas have no direction."""
    assert plane_path(torch.zeros(4, 4, dtype=torch.float64)) is None
