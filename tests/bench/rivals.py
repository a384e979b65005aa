"""torch.linalg.svd and torch.svd_lowrank, as alternatives to the kernel.

Letters: M rows, N columns of the matrix D; R = 1 triplet; Q width of the random sketch.
Convention: fp32 throughout, as the kernel gets D; the truth that errors are taken from is fp64.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from alpharl_hub.numerics.norms import sum_of_squares
from alpharl_hub.numerics.spectral import Triplets

SKETCHES = tuple((q, niter) for q in (8, 12, 16, 24, 32) for niter in (2, 4, 6, 8, 12))
"""(q, niter) of svd_lowrank that are tried."""

_Q_TRUTH = 16


def lowrank_triplets(q: int, niter: int) -> Callable[..., Triplets]:
    """Return a stand-in for `leading_triplets` that takes one triplet from svd_lowrank."""

    def triplets(delta_MN: Tensor, rank: int, **guesses: object) -> Triplets:
        assert rank == 1, "as many as the benchmark asks for"
        u_M, sigma, v_N = lowrank(delta_MN, q, niter)
        norm = math.sqrt(sum_of_squares(delta_MN))
        sigma_R = torch.tensor([sigma])
        return Triplets(u_M[None], sigma_R, v_N[None], norm, (0.0,), (0.0,), (False,), 2 * niter)

    return triplets


def lowrank(delta_MN: Tensor, q: int, niter: int) -> tuple[Tensor, float, Tensor]:
    """Return (u, sigma, v) by svd_lowrank."""
    u_MQ, sigma_Q, v_NQ = torch.svd_lowrank(delta_MN, q=min(q, *delta_MN.shape), niter=niter)
    return u_MQ[:, 0].contiguous(), float(sigma_Q[0]), v_NQ[:, 0].contiguous()


def truth(delta_MN: Tensor, steps: int = 25) -> tuple[Tensor, Tensor]:
    """Return the leading (u, v) in fp64 by orthogonal iteration with 16 vectors.

    Its error falls by (sigma_17/sigma_1)^2 a step: for planted directions that fall by 3 % each
    from 0.9 on, below 1e-12 after 25.
    """
    wide_MN = delta_MN.double()
    source = torch.Generator().manual_seed(1)
    start_NQ = torch.randn(wide_MN.shape[1], _Q_TRUTH, generator=source, dtype=torch.float64)
    basis_NQ = torch.linalg.qr(start_NQ).Q
    for _ in range(steps):
        basis_NQ = torch.linalg.qr(wide_MN.T @ (wide_MN @ basis_NQ)).Q
    image_MQ = wide_MN @ basis_NQ
    u_MQ, _, vt_QQ = torch.linalg.svd(image_MQ, full_matrices=False)
    return u_MQ[:, 0], basis_NQ @ vt_QQ[0]


def angle(found: Tensor, true: Tensor) -> float:
    """Return the angle between two lines, in radians."""
    one = found.double() / torch.linalg.vector_norm(found.double())
    other = true / torch.linalg.vector_norm(true)
    apart = [float(torch.linalg.vector_norm(one - sign * other)) for sign in (1, -1)]
    return 2 * math.asin(min(1.0, min(apart) / 2))


@dataclass(frozen=True)
class SketchTrial:
    """One run of svd_lowrank: its parameters, time, and error against fp64."""

    q: int
    niter: int
    seconds: float
    angle: float


def try_sketches(delta_MN: Tensor, true: tuple[Tensor, Tensor]) -> tuple[SketchTrial, ...]:
    """Run svd_lowrank with every pair of `SKETCHES`."""
    found = []
    for q, niter in SKETCHES:
        torch.manual_seed(0)
        started_s = time.perf_counter()
        u_M, _, v_N = lowrank(delta_MN, q, niter)
        seconds = time.perf_counter() - started_s
        error = worst_angle(u_M, v_N, true)
        found.append(SketchTrial(q, niter, seconds, error))
    return tuple(found)


def cheapest(trials: Sequence[SketchTrial], limit: float) -> tuple[int, int] | None:
    """Return the (q, niter) that was fastest of those whose angle is within the limit."""
    good = [trial for trial in trials if trial.angle <= limit]
    if not good:
        return None
    best = min(good, key=lambda trial: trial.seconds)
    return best.q, best.niter


def worst_angle(u_M: Tensor, v_N: Tensor, true: tuple[Tensor, Tensor]) -> float:
    """Return the larger error of the two vectors, in radians."""
    return max(angle(u_M, true[0]), angle(v_N, true[1]))
