"""A search space of vectors, its images under one matrix, and the sweeps that make it grow.

Letters: M rows, N columns, K vectors of the search space so far, B vectors that one sweep
multiplies. A sweep is one reading of the matrix D: y = D q and z = D^T y.

Convention: D, the search vectors and their images are fp32; products with D accumulate in fp32
within a row block and across blocks in block order; the images D q are kept in fp64, and so is
their Gram matrix (K x K). Only `torch.mv` and `addmv` touch D: matrix-vector products, which never
run in TF32 or bf16 whatever the global switches say.
"""

from __future__ import annotations

import hashlib
import math

import torch
from torch import Tensor

from alpharl_hub.numerics.norms import sum_of_squares

# A row block is read two to four times in a row. Measured for 4096 x 4096 and 896 x 4864 fp32 on a
# CPU with 0.5 MB of second-level cache: 4 MB is best, 2 and 8 MB cost 5 to 8 % more, 0.5 MB 50 %.
BLOCK_BYTES = 4 << 20

# Sweeps in which the probe always takes part; nothing is judged before they are over.
PROBE_SWEEPS = 3
CUDA_CHECK_EVERY = 4
WARM_NOISE = 0.02


def seeded(seed: str) -> torch.Generator:
    """A CPU generator whose state depends on the text alone."""
    number = int.from_bytes(hashlib.sha256(seed.encode()).digest()[:8], "big") >> 1
    return torch.Generator().manual_seed(number)


class Subspace:
    """An orthonormal basis, its images under D and D^T D, and the Gram matrix of the former.

    `main_N` and `probe_N` are the directions in which it grows next; `frobenius` is |D|_F, known
    after the first sweep; `second_N` is kept for whoever assembles the result.
    """

    def __init__(self, delta_MN: Tensor, generator: torch.Generator) -> None:
        rows, columns = delta_MN.shape
        self._delta_MN = delta_MN
        self._generator = generator
        self._on_cpu = delta_MN.device.type == "cpu"
        self._block_rows = max(1, BLOCK_BYTES // (4 * max(1, columns))) if self._on_cpu else rows
        self._basis_KN = delta_MN.new_empty(16, columns)
        self._image_KN = delta_MN.new_empty(16, columns)
        self._left_KM = delta_MN.new_empty(16, rows, dtype=torch.float64)
        self._gram_KK = delta_MN.new_zeros(16, 16, dtype=torch.float64)
        self.size = 0
        self.sweeps = 0
        self.frobenius = 0.0
        self.main_N: Tensor
        self.probe_N: Tensor | None = None
        self.second_N: Tensor | None = None
        self._spare_N: Tensor | None = None

    def begin(self, start_N: Tensor | None, second_N: Tensor | None) -> None:
        """Choose where to start, and do the first sweep; an empty matrix needs none."""
        if self._delta_MN.numel() == 0:
            return
        directions = [self._near(start_N), self._near(second_N)]
        squares: list[Tensor] = []
        images = self._extend(directions, squares)
        self.frobenius = math.sqrt(float(torch.stack(squares).sum()))
        self.main_N = images[0]
        # A guess of the second vector need not grow: it is there already.
        if second_N is None or not bool(second_N.any()):
            self.probe_N = images[1] if len(images) > 1 else None

    def grow(self) -> None:
        """Do one more sweep."""
        is_probing = self.sweeps < PROBE_SWEEPS or self.sweeps % 2 == 0
        if self.probe_N is None or not is_probing:
            self.main_N = self._extend([self.main_N])[0]
            return
        images = self._extend([self.main_N, self.probe_N])
        self.main_N = images[0]
        self.probe_N = images[1] if len(images) > 1 else self.probe_N

    @property
    def matrix_MN(self) -> Tensor:
        """The matrix that is swept."""
        return self._delta_MN

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

    def _near(self, guess_N: Tensor | None) -> Tensor:
        """A random vector, or the guess with a little of it."""
        noise_N = self.random()
        length = 0.0 if guess_N is None else float(torch.linalg.vector_norm(guess_N))
        if guess_N is None or length == 0:
            return noise_N
        noise_N *= WARM_NOISE / torch.linalg.vector_norm(noise_N)
        return guess_N.to(noise_N) / length + noise_N

    def _extend(
        self, directions: list[Tensor], squares: list[Tensor] | None = None
    ) -> list[Tensor]:
        """Add the directions to the basis in one sweep; gives their images D^T D q.

        Sums of squares of D's blocks are added to `squares` where it is given.
        """
        first = self.size
        for direction_N in directions[: self._delta_MN.shape[1] - first]:
            self._reserve()
            self._basis_KN[self.size] = self._orthonormal(direction_N)
            self.size += 1
        added = slice(first, self.size)
        left_BM = self._sweep(self._basis_KN[added], self._image_KN[added], squares)
        self._left_KM[added] = left_BM
        products_KB = self._left_KM[: self.size] @ self._left_KM[added].T
        self._gram_KK[: self.size, added] = products_KB
        self._gram_KK[added, :first] = products_KB[:first].T
        self.sweeps += 1
        return [self._image_KN[row] for row in range(first, self.size)]

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
        before = torch.linalg.vector_norm(direction_N)
        vector_N = self._without_basis(direction_N)
        after = torch.linalg.vector_norm(vector_N)
        if not self._on_cpu:
            # Chosen without looking at the numbers, which would wait for the device.
            vector_N = torch.where(after > 1e-6 * before, vector_N, self._spare())
            vector_N = self._without_basis(vector_N / torch.linalg.vector_norm(vector_N))
        elif not float(after) > 1e-6 * float(before):
            vector_N = self._without_basis(self.random())
            after = torch.linalg.vector_norm(vector_N)
        vector_N = self._without_basis(vector_N / after if self._on_cpu else vector_N)
        unit_N: Tensor = vector_N / torch.linalg.vector_norm(vector_N)
        return unit_N

    def _spare(self) -> Tensor:
        """A vector in place of one that is used up: sent to the device once, then turned round."""
        if self._spare_N is None:
            self._spare_N = self.random()
        return self._spare_N.roll(self.size)

    def _without_basis(self, vector_N: Tensor) -> Tensor:
        basis_KN = self._basis_KN[: self.size]
        return torch.addmv(vector_N, basis_KN.T, torch.mv(basis_KN, vector_N), alpha=-1)

    def _sweep(self, basis_BN: Tensor, image_BN: Tensor, squares: list[Tensor] | None) -> Tensor:
        """Write D^T D q for each row q and give D q, reading the matrix once."""
        left_BM = basis_BN.new_empty(len(basis_BN), len(self._delta_MN))
        image_BN.zero_()
        pairs = list(zip(basis_BN, image_BN, left_BM, strict=True))
        for top in range(0, len(self._delta_MN), self._block_rows):
            block_MN = self._delta_MN[top : top + self._block_rows]
            transposed_NM = block_MN.T
            for basis_N, image_N, left_M in pairs:
                part_M = left_M[top : top + self._block_rows]
                torch.mv(block_MN, basis_N, out=part_M)
                image_N.addmv_(transposed_NM, part_M)
            if squares is not None:
                # While the block lies in cache; reading it again for the norm cost a sixth more.
                squares.append(sum_of_squares(block_MN))
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
