"""Leading singular triplets of one matrix, by a Krylov method that reads the matrix a few times.

Letters: M rows, N columns, R triplets wanted, K vectors of the search space so far. A sweep is one
reading of the matrix D.

Convention: D and the search vectors are fp32 (see `krylov`), the small eigenproblem (K x K) is
solved in fp64.

Method: Rayleigh-Ritz on a growing space of D^T D with full reorthogonalisation (Golub and Van Loan,
Matrix Computations, chapter 10). The next search vector is the residual of the first triplet that
is not yet good enough, which without a second sequence is Lanczos' own next vector. One Krylov
sequence is blind to multiplicity and to what its start vector lacks, so a second one, the probe,
grows beside it from an independent random vector. It takes part in every second sweep only, and is
cheap there, for the row block lies in cache already: it adds a tenth to a fifth of the time at
sigma_2/sigma_1 = 0.9 and nothing at 0.99. With it, 140 of 144 planted exact ties above a spectrum
that starts at 0.5 to 0.95 were seen; with a probe of three sweeps, none of those at 0.9. Where a
similar matrix was factorised before and its first triplet stood apart, the probe is that matrix's
second vector, in the first sweep only. It then shows a second value that has come to tie (from 0.9
in 127 of 128 cases, from 0.7 in 8 to 16 of 16 by how far it stood from the third), and all that has
overtaken the first by a fifth, wherever it came from; ties with what lay deep in the spectrum
before are not seen, and of what passed by 1 or 5 % from there 8 and 20 of 24.

A large part of a spectrum is not for Krylov spaces: each further triplet takes a look at a larger
space (64 triplets of a 64 x 128 matrix: 68 ms, now 23). What lies beyond the first
`searched_triplets` of a shape is read off a dense decomposition in fp64 of what those leave of the
matrix. Which triplets these are does not depend on how many are asked for.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from alpharl_hub.errors import FitError
from alpharl_hub.numerics.krylov import PROBE_SWEEPS, Subspace, seeded

# Stopping rule. The angle is an estimate from Ritz values, so it stops at half of the 1e-4 asked.
ANGLE_STOP = 5e-5
ANGLE_CERTIFIED = 1e-4
SIGMA_STOP = 5e-6
# Above sigma_2/sigma_1 = 0.995 the vector is not pursued: only sigma, and no certificate.
TIED_GAP = 1 - 0.995**2
# The residual that fp32 products leave, which further sweeps do not lower: relative to sigma_1, and
# for late triplets, whose images are divided by their sigma, relative to sigma_1^2/sigma.
FLOOR_FIRST = 5e-7
FLOOR_LATE = 1e-8
# What fp32 adds to the error of a vector beyond its residual, relative to sigma_1: without it the
# estimate fell below the true angle in 8 % of 400 planted matrices, all of them below 3e-6.
ROUNDING = 2e-7
# Later triplets this far below the first are noise of the products: zero, and not certified.
ZERO_SHARE = 1e-6

# How many triplets are searched for before the rest is decomposed whole.
MIN_SEARCHED, SEARCHED_SHARE = 8, 1 / 16

# Squares of entries stay clear of fp32's ends while |D|_F^2 lies within these.
SAFE_SQUARES = (1e-20, 1e20)


@dataclass(frozen=True)
class Triplets:
    """R leading singular triplets of an M x N matrix; D v = sigma u holds by construction.

    `u_RM`, `v_RN`: fp32 on the matrix's device, unit rows (zero rows where sigma is 0), signs as
    they came. `sigma_R`: fp32 on the CPU, strictly falling down to the first zero. `frobenius`:
    norm of the whole matrix. `residual_R`: |D^T u - sigma v|. `angle_R`: estimated error of u and v
    in radians. `certified_R`: the triplet stands apart from its neighbours, as far as a second
    start could tell, and the estimate is below 1e-4; False for tied values, where sigma is right
    and v is one of many. `sweeps`: how often the matrix was read. `second_N`: where the second
    right vector was seen when the first was found, as a guess for a similar matrix.
    """

    u_RM: Tensor
    sigma_R: Tensor
    v_RN: Tensor
    frobenius: float
    residual_R: tuple[float, ...]
    angle_R: tuple[float, ...]
    certified_R: tuple[bool, ...]
    sweeps: int
    second_N: Tensor | None = None

    @property
    def certified(self) -> bool:
        """Whether every triplet is certified."""
        return all(self.certified_R)


@dataclass(frozen=True)
class _Pair:
    """One Ritz approximation of a triplet, in the units of the scaled matrix."""

    u_M: Tensor
    sigma: float
    v_N: Tensor
    residual_N: Tensor
    residual: float
    angle: float
    tied: bool
    converged: bool

    @property
    def certified(self) -> bool:
        return self.converged and not self.tied and self.angle <= ANGLE_CERTIFIED


def leading_triplets(
    delta_MN: Tensor,
    rank: int,
    *,
    seed: str,
    start_N: Tensor | None = None,
    second_N: Tensor | None = None,
) -> Triplets:
    """Find the `rank` leading singular triplets of one matrix.

    delta_MN: fp32, contiguous, any device. seed: any text; equal texts give equal bits. start_N: a
    guess of the first right vector (any scale and device; a zero vector counts as none); second_N:
    of the second one, from a similar matrix whose first triplet was certified.
    sigma is right to 1e-5 and a vector to 1e-4 radians wherever sigma_2/sigma_1 <= 0.99. Triplet i
    is the same to the bit for every rank above i. Raises ValueError for another dtype, layout or
    rank, FitError when the matrix holds NaN or Inf.
    """
    if delta_MN.dim() != 2 or delta_MN.dtype != torch.float32 or not delta_MN.is_contiguous():
        raise ValueError(f"a contiguous fp32 matrix is needed: {delta_MN.dtype} {delta_MN.shape}")
    if rank < 1:
        raise ValueError(f"rank {rank} is below 1")
    if delta_MN.device.type == "cpu" and delta_MN.data_ptr() % 64:
        delta_MN = delta_MN.clone()  # the last bits of D v depend on the alignment of D
    space, exponent = _begin(delta_MN, seed, start_N, second_N)
    wanted = min(rank, *delta_MN.shape) if space.frobenius > 0 else 0
    num_searched = min(wanted, searched_triplets(*delta_MN.shape))
    pairs = _search(space, num_searched) if wanted else []
    if wanted > num_searched:
        pairs += _decompose_rest(space, pairs, wanted)
    return _assemble(pairs, rank, delta_MN, exponent, space)


def searched_triplets(rows: int, columns: int) -> int:
    """How many triplets of such a matrix come from the search space; the others are dense."""
    return max(MIN_SEARCHED, int(SEARCHED_SHARE * min(rows, columns)))


def _begin(
    delta_MN: Tensor, seed: str, start_N: Tensor | None, second_N: Tensor | None
) -> tuple[Subspace, int]:
    """Do the first sweep, brought into the safe range: (space, e), with delta = matrix * 2^e.

    The sweep reads the norm on its way; only then it is known whether it must be done again.
    """
    space = Subspace(delta_MN, seeded(seed))
    space.begin(start_N, second_N)
    if SAFE_SQUARES[0] < space.frobenius**2 < SAFE_SQUARES[1]:
        return space, 0
    largest = float(delta_MN.abs().max()) if delta_MN.numel() else 0.0
    if not math.isfinite(largest):
        raise FitError("the update holds NaN or Inf; leave this checkpoint out")
    exponent = math.frexp(largest)[1]
    # In two halves, for 2^-e itself may lie outside fp32.
    half = -exponent // 2
    space = Subspace(delta_MN * 2.0**half * 2.0 ** (-exponent - half), seeded(seed))
    space.begin(start_N, second_N)
    return space, exponent


def _search(space: Subspace, wanted: int) -> list[_Pair]:
    """Grow the space until `wanted` pairs are good, freezing each when it and those before are.

    Nothing here depends on how many are wanted, except when it stops: that keeps the bits of the
    first pairs.
    """
    pairs: list[_Pair] = []
    due = PROBE_SWEEPS
    while True:
        if space.sweeps >= due or space.is_full:
            due = space.sweeps + space.check_every
            theta_K, ritz_KK = space.ritz()
            while len(pairs) < wanted:
                pair = _ritz_pair(space, theta_K, ritz_KK, len(pairs))
                if pair is None or not (pair.converged or space.is_exhausted(len(pairs))):
                    space.main_N = space.random() if pair is None else pair.residual_N
                    break
                if not pairs and space.size > 1:
                    space.second_N = space.combine(ritz_KK[:, 1])[2]
                pairs.append(pair)
                if pair.tied and len(pairs) < wanted and not space.is_full:
                    # Each sequence sees one vector of a tied group: a third needs a third start.
                    space.main_N, space.probe_N = pair.residual_N, space.random()
                    due = space.sweeps + 2 * PROBE_SWEEPS
                    break
            if len(pairs) == wanted:
                return pairs
        space.grow()


def _ritz_pair(space: Subspace, theta_K: Tensor, ritz_KK: Tensor, index: int) -> _Pair | None:
    """Judge pair `index`; None while the space is too small to know its lower neighbour."""
    if space.size < index + 2 and not space.is_full:
        return None
    theta = [max(float(value), 0.0) for value in theta_K[: index + 2]] + [0.0]
    u_M, sigma, v_N, image_N = space.combine(ritz_KK[:, index])
    sigma_1 = math.sqrt(theta[0])
    if sigma <= ZERO_SHARE * sigma_1:
        zero_M, zero_N = torch.zeros_like(u_M), torch.zeros_like(v_N)
        return _Pair(zero_M, 0.0, zero_N, zero_N, 0.0, math.pi / 2, tied=False, converged=True)
    residual_N = image_N / sigma - v_N * sigma
    residual = float(torch.linalg.vector_norm(residual_N))
    gap = theta[index] - theta[index + 1]
    if index:
        gap = min(gap, theta[index - 1] - theta[index])
    gap = max(gap, 1e-12 * theta[0])
    tied = gap < TIED_GAP * theta[index]
    # Some singular value lies within the residual; Kato-Temple squares that where there is a gap.
    sigma_error = min(residual / sigma, residual**2 / gap)
    good = sigma_error <= SIGMA_STOP and (tied or sigma * residual / gap <= ANGLE_STOP)
    floor = max(FLOOR_FIRST * sigma_1, FLOOR_LATE * theta[0] / sigma)
    angle = min(sigma * (residual + ROUNDING * sigma_1) / gap, math.pi / 2)
    converged = good or residual <= floor
    if converged and tied and not space.is_full:
        # The value below may be on its way up: then that is the pair to pursue.
        rising_N = _rising(space, ritz_KK[:, index + 1], sigma)
        converged, residual_N = rising_N is None, residual_N if rising_N is None else rising_N
    return _Pair(u_M, sigma, v_N, residual_N, residual, angle, tied, converged)


def _rising(space: Subspace, ritz_K: Tensor, above: float) -> Tensor | None:
    """The residual of the next pair if its value may still come to lie above `above`."""
    _, sigma, v_N, image_N = space.combine(ritz_K)
    if sigma == 0:
        return None
    residual_N = image_N / sigma - v_N * sigma
    highest = sigma + float(torch.linalg.vector_norm(residual_N))
    return residual_N if highest > above * (1 + SIGMA_STOP) else None


def _decompose_rest(space: Subspace, pairs: list[_Pair], wanted: int) -> list[_Pair]:
    """Find the pairs after the searched ones, up to `wanted`, all at once in fp64."""
    matrix_MN = space.matrix_MN.double()
    found_NR = torch.stack([pair.v_N for pair in pairs], dim=1).double()
    # One power step: what the search left of the small directions in the large ones, up to 5e-5,
    # would otherwise be as large as the smallest values.
    found_NR = torch.linalg.qr(matrix_MN.T @ (matrix_MN @ found_NR)).Q
    rest_MN = matrix_MN - (matrix_MN @ found_NR) @ found_NR.T
    u_MK, sigma_K, v_KN = torch.linalg.svd(rest_MN, full_matrices=False)
    floor = ZERO_SHARE * pairs[0].sigma
    # Behind a value of zero there is nothing but rounding, whatever it looks like.
    is_used_up = pairs[-1].sigma == 0
    sigmas = [0.0 if is_used_up or value <= floor else value for value in sigma_K.tolist()]
    values = [pairs[-1].sigma, *sigmas, 0.0]
    return [
        _dense_pair(matrix_MN, u_MK[:, place], v_KN[place], values[place : place + 3], floor)
        for place in range(wanted - len(pairs))
    ]


def _dense_pair(
    matrix_MN: Tensor, u_M: Tensor, v_N: Tensor, values: list[float], floor: float
) -> _Pair:
    """Judge a decomposed pair by its value, the second of `values`, and by its neighbours'."""
    above, sigma, below = values
    single_u_M, single_v_N = u_M.float(), v_N.float()
    if sigma == 0:
        zero_M, zero_N = torch.zeros_like(single_u_M), torch.zeros_like(single_v_N)
        return _Pair(zero_M, 0.0, zero_N, zero_N, 0.0, math.pi / 2, tied=False, converged=True)
    residual_N = (single_u_M.double() @ matrix_MN - single_v_N.double() * sigma).float()
    residual = float(torch.linalg.vector_norm(residual_N))
    gap = max(min(above**2 - sigma**2, sigma**2 - below**2), floor**2)
    angle = min(sigma * (residual + ROUNDING * floor / ZERO_SHARE) / gap, math.pi / 2)
    tied = gap < TIED_GAP * sigma**2
    return _Pair(single_u_M, sigma, single_v_N, residual_N, residual, angle, tied, converged=True)


def _assemble(
    pairs: list[_Pair], rank: int, delta_MN: Tensor, exponent: int, space: Subspace
) -> Triplets:
    """Stack the pairs, fill up with zero triplets and undo the scaling."""
    rows, columns = delta_MN.shape
    missing = rank - len(pairs)
    u_RM, v_RN = delta_MN.new_zeros(rank, rows), delta_MN.new_zeros(rank, columns)
    for index, pair in enumerate(pairs):
        u_RM[index], v_RN[index] = pair.u_M, pair.v_N
    sigma_R = torch.zeros(rank, dtype=torch.float32)
    for index, pair in enumerate(pairs):
        # A tied value may come out above the one before by its error: keep the order readable.
        below = torch.nextafter(sigma_R[index - 1], torch.tensor(0.0)) if index else torch.inf
        sigma_R[index] = min(math.ldexp(pair.sigma, exponent), float(below))
    return Triplets(
        u_RM=u_RM,
        sigma_R=sigma_R,
        v_RN=v_RN,
        frobenius=math.ldexp(space.frobenius, exponent),
        residual_R=tuple([math.ldexp(pair.residual, exponent) for pair in pairs] + [0.0] * missing),
        angle_R=tuple([pair.angle for pair in pairs] + [0.0] * missing),
        certified_R=tuple([pair.certified for pair in pairs] + [True] * missing),
        sweeps=space.sweeps,
        second_N=space.second_N,
    )
