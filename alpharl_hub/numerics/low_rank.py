"""Updates that are known as a product of two thin matrices, as a LoRA adapter holds them.

Letters: M rows, N columns, R columns of `left` and rows of `right`, T updates; D = left @ right.

Convention: factors are fp32, the scale of the adapter folded into `left`. A dense D is one fp32
product. Everything else (norms, inner products, singular values, recompression) is computed in fp64
from the factors, never from a dense D: the squared norm of D is the sum of (left^T left) o
(right right^T), and its singular values are those of the R x R core between thin QR factors (Golub
and Van Loan, Matrix Computations, chapter 5).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

import torch
from torch import Tensor

from alpharl_hub.errors import FitError
from alpharl_hub.numerics.spectral import ANGLE_CERTIFIED, ROUNDING, TIED_GAP, Triplets

# fp32 factors say nothing about singular values below their own rounding, 2^-24 = 6e-8 of the
# largest: what is kept below this cut would be noise, and what is cut is below one rounding of D.
RANK_CUT = 1e-7
# What fp64 leaves of summands that cancel, relative to their norms.
CANCELLED = 1e-14
# Rows that are widened to fp64 at a time where only R x R numbers come out.
_ROW_BLOCK = 16384


@dataclass(frozen=True)
class LowRank:
    """The M x N matrix `left_MR @ right_RN`; fp32, on one device; R may be 0."""

    left_MR: Tensor
    right_RN: Tensor

    @property
    def shape(self) -> tuple[int, int]:
        """M and N."""
        return self.left_MR.shape[0], self.right_RN.shape[1]

    @property
    def rank(self) -> int:
        """R, which bounds the rank of the matrix."""
        return self.left_MR.shape[1]

    def dense(self) -> Tensor:
        """Return the matrix itself (M, N), fp32."""
        return self.left_MR @ self.right_RN

    def write_entries(self, out_P: Tensor, first: int) -> None:
        """Write its entries from the `first` on, row by row; whole rows only."""
        columns = self.right_RN.shape[1]
        top, height = first // columns, out_P.numel() // columns
        rows_MR = self.left_MR[top : top + height]
        torch.mm(rows_MR, self.right_RN, out=out_P.view(height, columns))

    def triplets(self, rank: int) -> Triplets:
        """Return what `spectral.leading_triplets` finds in the dense matrix.

        Triplets beyond the matrix's numerical rank are zero and certified. Raises ValueError for a
        rank below 1, FitError when a factor holds NaN or Inf.
        """
        if rank < 1:
            raise ValueError(f"rank {rank} is below 1")
        return _triplets(self, rank)

    def frobenius(self) -> float:
        """Return the Frobenius norm."""
        return math.sqrt(max(inner(self, self), 0.0))


def from_stored(left: Tensor, right: Tensor, scale: float, transposed: bool) -> LowRank:
    """Take the factors as an adapter's file holds them (see `trajectory.LowRankRef`).

    left: M x R, or R x M with `transposed`; right: R x N, or N x R. Any floating dtype; the scale
    is multiplied in fp32.
    """
    if transposed:
        left, right = left.T, right.T
    return LowRank((left.float() * scale).contiguous(), right.float().contiguous())


def inner(a: LowRank, b: LowRank) -> float:
    """Return the inner product of two matrices, the sum of the products of their entries."""
    left_RR = _products(a.left_MR, b.left_MR)
    right_RR = _products(a.right_RN.T, b.right_RN.T)
    return float((left_RR * right_RR).sum())


def gram(updates: Sequence[LowRank]) -> Tensor:
    """Return the inner products of all pairs: (T, T), fp64, symmetric, on the CPU."""
    left_SS = _products(*[torch.cat([u.left_MR for u in updates], dim=1)] * 2)
    right_SS = _products(*[torch.cat([u.right_RN for u in updates]).T] * 2)
    products_SS = left_SS * right_SS
    stops = list(accumulate(u.rank for u in updates))
    places = [slice(start, stop) for start, stop in pairwise([0, *stops])]
    gram_TT = torch.zeros(len(updates), len(updates), dtype=torch.float64)
    for i, rows in enumerate(places):
        for j, columns in enumerate(places):
            gram_TT[i, j] = products_SS[rows, columns].sum()
    return (gram_TT + gram_TT.T) / 2


def combine(updates: Sequence[LowRank], coefficients: Sequence[float]) -> LowRank:
    """Return sum over t of coefficient_t D_t, with no more columns than its numerical rank.

    Singular values below RANK_CUT of the largest are dropped, and what is left of summands that
    cancel; the rest is shared out evenly between both factors. Raises FitError when a factor or a
    coefficient is NaN or Inf.
    """
    parts = list(zip(updates, coefficients, strict=True))
    left_MS = torch.cat([u.left_MR.double() * c for u, c in parts], dim=1)
    right_SN = torch.cat([u.right_RN.double() for u, _ in parts])
    floor = CANCELLED * sum(abs(c) * u.frobenius() for u, c in parts)
    u_MK, sigma_K, v_KN = _thin_svd(left_MS, right_SN, floor)
    root_K = sigma_K.sqrt()
    return LowRank((u_MK * root_K).float().contiguous(), (root_K[:, None] * v_KN).float())


def dora_weights(
    base_MN: Tensor, update: LowRank, magnitude: Tensor, *, per_column: bool = False
) -> Tensor:
    """Return m * (W_0 + D) / |W_0 + D| of DoRA (arXiv 2402.09353), (M, N), fp32.

    The norm is that of each output unit: a row (`magnitude` has M entries), or with `per_column` a
    column (N entries), which is what weights stored as (in, out) and embeddings have. An output
    unit of zeros stays zero.
    """
    weights_MN = base_MN.float() + update.dense()
    dim = 0 if per_column else 1
    norm = torch.linalg.vector_norm(weights_MN, dim=dim, dtype=torch.float64)
    factor = torch.where(norm > 0, magnitude.reshape(-1).double() / norm, 0.0).float()
    weights_MN *= factor.unsqueeze(dim)
    return weights_MN


def _products(a_PR: Tensor, b_PS: Tensor) -> Tensor:
    """a^T b in fp64 (R x S, on the CPU), a block of rows at a time and in their order."""
    total_RS = torch.zeros(a_PR.shape[1], b_PS.shape[1], dtype=torch.float64, device=a_PR.device)
    for top in range(0, len(a_PR), _ROW_BLOCK):
        rows = slice(top, top + _ROW_BLOCK)
        total_RS += a_PR[rows].T.double() @ b_PS[rows].double()
    return total_RS.cpu()


def _thin_svd(
    left_MS: Tensor, right_SN: Tensor, floor: float = 0.0
) -> tuple[Tensor, Tensor, Tensor]:
    """U (M x K), sigma (K, falling) and V^T (K x N) of a product, K its numerical rank; fp64.

    Singular values up to `floor` count as zero.
    """
    if not bool(left_MS.isfinite().all() and right_SN.isfinite().all()):
        raise FitError("the update holds NaN or Inf; leave this checkpoint out")
    q_MK, r_KS = torch.linalg.qr(left_MS)
    q_NK, r_transposed_KS = torch.linalg.qr(right_SN.T)
    u_KK, sigma_K, v_KK = torch.linalg.svd(r_KS @ r_transposed_KS.T, full_matrices=False)
    largest = float(sigma_K[0]) if len(sigma_K) else 0.0
    kept = int((sigma_K > max(RANK_CUT * largest, floor)).sum())
    return q_MK @ u_KK[:, :kept], sigma_K[:kept], v_KK[:kept] @ q_NK.T


def _triplets(update: LowRank, rank: int) -> Triplets:
    left_MR, right_RN = update.left_MR.double(), update.right_RN.double()
    u_MK, sigma_K, v_KN = _thin_svd(left_MR, right_RN)
    rows, columns = update.shape
    u_RM, v_RN = update.left_MR.new_zeros(rank, rows), update.left_MR.new_zeros(rank, columns)
    sigma_R = torch.zeros(rank)
    # A value that fp32 cannot hold is zero, and so are its vectors.
    found = int((sigma_K[:rank].float() > 0).sum())
    u_RM[:found], v_RN[:found] = u_MK[:, :found].T.float(), v_KN[:found].float()
    residual_R, angle_R, certified_R = [0.0] * rank, [0.0] * rank, [True] * rank
    values = [*sigma_K.tolist(), 0.0]
    for index in range(found):
        # Tied values are told apart by the last bit, so that their order stays readable.
        below = torch.nextafter(sigma_R[index - 1], torch.tensor(0.0)) if index else torch.inf
        sigma_R[index] = min(values[index], float(below))
        image_N = (u_RM[index].double() @ left_MR) @ right_RN
        residual_N = image_N - v_RN[index].double() * values[index]
        residual_R[index] = float(torch.linalg.vector_norm(residual_N))
        angle_R[index], certified_R[index] = _judge(values, index)
    return Triplets(
        u_RM=u_RM,
        sigma_R=sigma_R,
        v_RN=v_RN,
        frobenius=math.hypot(*values),
        residual_R=tuple(residual_R),
        angle_R=tuple(angle_R),
        certified_R=tuple(certified_R),
        sweeps=0,
    )


def _judge(values: Sequence[float], index: int) -> tuple[float, bool]:
    """Estimated error of a vector in radians, and whether it stands apart, as `spectral` judges."""
    largest, sigma = values[0], values[index]
    gap = sigma**2 - values[index + 1] ** 2
    if index:
        gap = min(gap, values[index - 1] ** 2 - sigma**2)
    tied = gap < TIED_GAP * sigma**2
    angle = min(ROUNDING * largest * sigma / gap, math.pi / 2) if gap > 0 else math.pi / 2
    return angle, not tied and angle <= ANGLE_CERTIFIED
