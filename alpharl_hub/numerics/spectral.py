"""Leading singular triplets of one matrix, by a Krylov method that reads the matrix a few times.

Letters: M rows, N columns, R triplets wanted, K vectors of the search space so far, B vectors that
one sweep multiplies. A sweep is one reading of the matrix D: y = D q and z = D^T y.

Convention: D, the search vectors and their images are fp32; products with D accumulate in fp32
within a row block and across blocks in block order; the images D q are kept in fp64, and so is the
small eigenproblem (K x K). Only `torch.mv` and `addmv` touch D: matrix-vector products, which never
run in TF32 or bf16 whatever the global switches say.

Method: Rayleigh-Ritz on a growing space of D^T D with full reorthogonalisation (Golub and Van Loan,
Matrix Computations, chapter 10). The next search vector is the residual of the first triplet that
is not yet good enough, which without a second sequence is Lanczos' own next vector. One Krylov
sequence is blind to multiplicity and to what its start vector lacks, so a second one, the probe,
grows beside it from an independent random vector. It takes part in every second sweep only, and is
cheap there, for the row block lies in cache already: it adds a tenth to a fifth of the time at
sigma_2/sigma_1 = 0.9 and nothing at 0.99. With it, 140 of 144 planted exact ties above a spectrum
that starts at 0.5 to 0.95 were seen; with a probe of three sweeps, none of those at 0.9.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from alpharl_hub.errors import FitError

# A row block is read two to four times in a row. Measured for 4096 x 4096 and 896 x 4864 fp32 on a
# CPU with 0.5 MB of second-level cache: 4 MB is best, 2 and 8 MB cost 5 to 8 % more, 0.5 MB 50 %.
BLOCK_BYTES = 4 << 20
# Within one such chunk a sum of squares is accumulated in fp32 (1e-7 relative), across in fp64.
NORM_CHUNK = 32768

# Sweeps in which the probe always takes part; nothing is judged before they are over.
PROBE_SWEEPS = 3
CUDA_CHECK_EVERY = 4
WARM_NOISE = 0.02

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

# Squares of entries stay clear of fp32's ends while |D|_F^2 lies within these.
SAFE_SQUARES = (1e-20, 1e20)


@dataclass(frozen=True)
class Triplets:
    """R leading singular triplets of an M x N matrix; D v = sigma u holds by construction.

    `u_RM`, `v_RN`: fp32 on the matrix's device, unit rows (zero rows where sigma is 0), signs as
    they came. `sigma_R`: fp32 on the CPU, strictly falling down to the first zero. `frobenius`:
    norm of the whole matrix. `residual_R`: |D^T u - sigma v|. `angle_R`: estimated error of u and v
    in radians. `certified_R`: the triplet stands apart from its neighbours, as far as a second
    random start could tell, and the estimate is below 1e-4; False for tied values, where sigma is
    right and v is one of many. `sweeps`: how often the matrix was read.
    """

    u_RM: Tensor
    sigma_R: Tensor
    v_RN: Tensor
    frobenius: float
    residual_R: tuple[float, ...]
    angle_R: tuple[float, ...]
    certified_R: tuple[bool, ...]
    sweeps: int

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
    delta_MN: Tensor, rank: int, *, seed: str, start_N: Tensor | None = None
) -> Triplets:
    """Find the `rank` leading singular triplets of one matrix.

    delta_MN: fp32, contiguous, any device. seed: any text; equal texts give equal bits. start_N: a
    guess of the first right vector (any scale and device; a zero vector counts as none).
    sigma is right to 1e-5 and a vector to 1e-4 radians wherever sigma_2/sigma_1 <= 0.99. Triplet i
    is the same to the bit for every rank above i. Raises ValueError for another dtype, layout or
    rank, FitError when the matrix holds NaN or Inf.
    """
    if delta_MN.dim() != 2 or delta_MN.dtype != torch.float32 or not delta_MN.is_contiguous():
        raise ValueError(f"a contiguous fp32 matrix is needed: {delta_MN.dtype} {delta_MN.shape}")
    if rank < 1:
        raise ValueError(f"rank {rank} is below 1")
    scaled_MN, exponent, frobenius = _scaled(delta_MN)
    pairs: list[_Pair] = []
    sweeps = 0
    if frobenius > 0:
        space = _Subspace(scaled_MN, _generator(seed))
        pairs = _search(space, min(rank, *delta_MN.shape), start_N)
        sweeps = space.sweeps
    return _assemble(pairs, rank, delta_MN, exponent, frobenius, sweeps)


def frobenius_squared(values: Tensor) -> float:
    """Sum the squares of an fp32 tensor, any shape (contiguous): fp32 in chunks, fp64 across."""
    flat_P = values.view(-1)
    whole = flat_P.numel() // NORM_CHUNK * NORM_CHUNK
    # vector_norm reads without a copy of the squares; its root costs one rounding per chunk.
    norm_C = torch.linalg.vector_norm(flat_P[:whole].view(-1, NORM_CHUNK), dim=1)
    total = norm_C.double().square().sum()
    total += torch.linalg.vector_norm(flat_P[whole:]).double().square()
    return float(total)


def _generator(seed: str) -> torch.Generator:
    """A CPU generator whose state depends on the text alone."""
    number = int.from_bytes(hashlib.sha256(seed.encode()).digest()[:8], "big") >> 1
    return torch.Generator().manual_seed(number)


def _scaled(delta_MN: Tensor) -> tuple[Tensor, int, float]:
    """Bring a matrix into the safe range: (matrix, e, norm), with delta = matrix * 2^e."""
    if delta_MN.device.type == "cpu" and delta_MN.data_ptr() % 64:
        delta_MN = delta_MN.clone()  # the last bits of D v depend on the alignment of D
    squares = frobenius_squared(delta_MN) if delta_MN.numel() else 0.0
    if SAFE_SQUARES[0] < squares < SAFE_SQUARES[1]:
        return delta_MN, 0, math.sqrt(squares)
    largest = float(delta_MN.abs().max()) if delta_MN.numel() else 0.0
    if not math.isfinite(largest):
        raise FitError("the update holds NaN or Inf; leave this checkpoint out")
    exponent = math.frexp(largest)[1]
    # In two halves, for 2^-e itself may lie outside fp32.
    half = -exponent // 2
    scaled_MN = delta_MN * 2.0**half * 2.0 ** (-exponent - half)
    return scaled_MN, exponent, math.sqrt(frobenius_squared(scaled_MN))


def _search(space: _Subspace, wanted: int, start_N: Tensor | None) -> list[_Pair]:
    """Grow the space until `wanted` pairs are good, freezing each when it and those before are.

    Nothing here depends on how many are wanted, except when it stops: that keeps the bits of the
    first pairs.
    """
    main, probe = space.start(start_N), space.random()
    pairs: list[_Pair] = []
    due = PROBE_SWEEPS
    while True:
        probing = space.sweeps < PROBE_SWEEPS or space.sweeps % 2 == 0
        images = space.extend([main, probe] if probing else [main])
        main = images[0]
        probe = images[1] if len(images) > 1 else probe
        if space.sweeps < due and not space.is_full:
            continue
        due = space.sweeps + space.check_every
        theta_K, ritz_KK = space.ritz()
        while len(pairs) < wanted:
            pair = _ritz_pair(space, theta_K, ritz_KK, len(pairs))
            if pair is None or not (pair.converged or space.is_exhausted(len(pairs))):
                main = space.random() if pair is None else pair.residual_N
                break
            pairs.append(pair)
            if pair.tied and len(pairs) < wanted and not space.is_full:
                # Each sequence sees one vector of a tied group: a third needs a third start.
                main, probe = pair.residual_N, space.random()
                due = space.sweeps + 2 * PROBE_SWEEPS
                break
        if len(pairs) == wanted:
            return pairs


def _ritz_pair(space: _Subspace, theta_K: Tensor, ritz_KK: Tensor, index: int) -> _Pair | None:
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


def _rising(space: _Subspace, ritz_K: Tensor, above: float) -> Tensor | None:
    """The residual of the next pair if its value may still come to lie above `above`."""
    _, sigma, v_N, image_N = space.combine(ritz_K)
    if sigma == 0:
        return None
    residual_N = image_N / sigma - v_N * sigma
    highest = sigma + float(torch.linalg.vector_norm(residual_N))
    return residual_N if highest > above * (1 + SIGMA_STOP) else None


class _Subspace:
    """An orthonormal basis, its images under D and D^T D, and the Gram matrix of the former."""

    def __init__(self, delta_MN: Tensor, generator: torch.Generator) -> None:
        rows, columns = delta_MN.shape
        self._delta_MN = delta_MN
        self._generator = generator
        self._on_cpu = delta_MN.device.type == "cpu"
        self._block_rows = max(1, BLOCK_BYTES // (4 * columns)) if self._on_cpu else rows
        self._basis_KN = delta_MN.new_empty(16, columns)
        self._image_KN = delta_MN.new_empty(16, columns)
        self._left_KM = delta_MN.new_empty(16, rows, dtype=torch.float64)
        self._gram_KK = delta_MN.new_zeros(16, 16, dtype=torch.float64)
        self.size = 0
        self.sweeps = 0

    @property
    def is_full(self) -> bool:
        """Whether the basis spans all of R^N, so that Rayleigh-Ritz is exact."""
        return self.size == self._delta_MN.shape[1]

    @property
    def check_every(self) -> int:
        """Sweeps from one look at the Ritz pairs to the next; on a GPU a look waits for it."""
        return 1 if self._on_cpu else CUDA_CHECK_EVERY

    def is_exhausted(self, index: int) -> bool:
        """Whether pair `index` must be taken as it is."""
        # A flat spectrum of 16 k columns needs about 60 sweeps for sigma; twice that is a safe end.
        return self.is_full or self.sweeps >= 128 + 64 * index

    def random(self) -> Tensor:
        """The next vector of the seeded sequence."""
        columns = self._delta_MN.shape[1]
        draw_N = torch.randn(columns, generator=self._generator, dtype=torch.float32)
        return draw_N.to(self._delta_MN.device)

    def start(self, guess_N: Tensor | None) -> Tensor:
        """A random vector, or the guess with a little of it."""
        noise_N = self.random()
        length = 0.0 if guess_N is None else float(torch.linalg.vector_norm(guess_N))
        if guess_N is None or length == 0:
            return noise_N
        noise_N *= WARM_NOISE / torch.linalg.vector_norm(noise_N)
        return guess_N.to(noise_N) / length + noise_N

    def extend(self, directions: list[Tensor]) -> list[Tensor]:
        """Add the directions to the basis in one sweep; gives their images D^T D q."""
        first = self.size
        for direction_N in directions[: self._delta_MN.shape[1] - first]:
            self._reserve()
            self._basis_KN[self.size] = self._orthonormal(direction_N)
            self.size += 1
        added = slice(first, self.size)
        left_BM = self._sweep(self._basis_KN[added], self._image_KN[added])
        self._left_KM[added] = left_BM
        for row in range(first, self.size):
            products = torch.mv(self._left_KM[: row + 1], self._left_KM[row])
            self._gram_KK[row, : row + 1] = products
            self._gram_KK[: row + 1, row] = products
        self.sweeps += 1
        return list(self._image_KN[added])

    def ritz(self) -> tuple[Tensor, Tensor]:
        """Ritz values (squares of sigma, falling) and coefficients (columns), fp64 on the CPU."""
        gram_KK = self._gram_KK[: self.size, : self.size].cpu()
        theta_K, ritz_KK = torch.linalg.eigh(gram_KK)
        return theta_K.flip(0), ritz_KK.flip(1)

    def combine(self, coefficient_K: Tensor) -> tuple[Tensor, float, Tensor, Tensor]:
        """(u, sigma, v, D^T D v) of one combination of the basis; sigma is |D v|."""
        coefficient_K = coefficient_K.to(self._left_KM.device)
        single_K = coefficient_K.float()
        left_M = torch.mv(self._left_KM[: self.size].T, coefficient_K)
        v_N = torch.mv(self._basis_KN[: self.size].T, single_K)
        image_N = torch.mv(self._image_KN[: self.size].T, single_K)
        sigma = float(torch.linalg.vector_norm(left_M))
        u_M = (left_M / sigma if sigma > 0 else left_M).float()
        return u_M, sigma, v_N, image_N

    def _orthonormal(self, direction_N: Tensor) -> Tensor:
        """Orthogonalise twice; a direction already in the space is replaced by a random one."""
        basis_KN = self._basis_KN[: self.size]
        before = torch.linalg.vector_norm(direction_N)
        vector_N = direction_N - torch.mv(basis_KN.T, torch.mv(basis_KN, direction_N))
        after = torch.linalg.vector_norm(vector_N)
        # Chosen without looking at the numbers, which on a GPU would wait for the device.
        vector_N = torch.where(after > 1e-6 * before, vector_N, self.random())
        vector_N = vector_N / torch.linalg.vector_norm(vector_N)
        for _ in range(2):
            vector_N = vector_N - torch.mv(basis_KN.T, torch.mv(basis_KN, vector_N))
        unit_N: Tensor = vector_N / torch.linalg.vector_norm(vector_N)
        return unit_N

    def _sweep(self, basis_BN: Tensor, image_BN: Tensor) -> Tensor:
        """Write D^T D q for each row q and give D q, reading the matrix once."""
        left_BM = basis_BN.new_empty(len(basis_BN), len(self._delta_MN))
        image_BN.zero_()
        for top in range(0, len(self._delta_MN), self._block_rows):
            block_MN = self._delta_MN[top : top + self._block_rows]
            for basis_N, image_N, left_M in zip(basis_BN, image_BN, left_BM, strict=True):
                part_M = left_M[top : top + self._block_rows]
                torch.mv(block_MN, basis_N, out=part_M)
                image_N.addmv_(block_MN.T, part_M)
        return left_BM

    def _reserve(self) -> None:
        """Double the storage when it is full."""
        held = len(self._basis_KN)
        if self.size < held:
            return
        self._basis_KN = torch.cat([self._basis_KN, torch.empty_like(self._basis_KN)])
        self._image_KN = torch.cat([self._image_KN, torch.empty_like(self._image_KN)])
        self._left_KM = torch.cat([self._left_KM, torch.empty_like(self._left_KM)])
        self._gram_KK = torch.nn.functional.pad(self._gram_KK, (0, held, 0, held))


def _assemble(
    pairs: list[_Pair], rank: int, delta_MN: Tensor, exponent: int, frobenius: float, sweeps: int
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
        frobenius=math.ldexp(frobenius, exponent),
        residual_R=tuple([math.ldexp(pair.residual, exponent) for pair in pairs] + [0.0] * missing),
        angle_R=tuple([pair.angle for pair in pairs] + [0.0] * missing),
        certified_R=tuple([pair.certified for pair in pairs] + [True] * missing),
        sweeps=sweeps,
    )
