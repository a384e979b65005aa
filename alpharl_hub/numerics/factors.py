"""The leading singular triplets of one matrix's deltas over all checkpoints, aligned in time.

Letters: T checkpoints, R triplets, M rows, N columns; D_t the delta (fp32) at checkpoint t.

Convention: factors are fp32 on the CPU, in the order of steps, exactly as `extract` stores them, so
that what is computed from them does not depend on whether they were on disk in between. Angles and
likenesses are computed in fp64.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from alpharl_hub.errors import FitError
from alpharl_hub.numerics.low_rank import LowRank
from alpharl_hub.numerics.pls import in_sample_r2, leave_one_out_q2
from alpharl_hub.numerics.spectral import Triplets, leading_triplets


@dataclass(frozen=True)
class Factors:
    """D_t ~ sum over r of sigma_tr u_tr v_tr^T; `frobenius_T` are the norms of whole deltas.

    Triplet r is the same direction at every checkpoint, as far as it can be followed: at the last
    one r counts falling sigma, before that it need not. A zero delta has sigma 0 and zero vectors.
    """

    u_TRM: Tensor
    sigma_TR: Tensor
    v_TRN: Tensor
    frobenius_T: Tensor

    def truncate(self, rank: int) -> Factors:
        """Keep the `rank` largest triplets of every checkpoint, aligned anew.

        To the bit what a builder of that rank finds in the same deltas.
        """
        # The kernel's sigma fall strictly down to the first zero, so sorting finds its order again.
        order_TR = torch.sort(self.sigma_TR, dim=1, descending=True, stable=True).indices[:, :rank]
        steps_T1 = torch.arange(len(order_TR))[:, None]
        u_TRM, v_TRN = self.u_TRM[steps_T1, order_TR], self.v_TRN[steps_T1, order_TR]
        sigma_TR = self.sigma_TR[steps_T1, order_TR]
        align(u_TRM, sigma_TR, v_TRN)
        return Factors(u_TRM, sigma_TR, v_TRN, self.frobenius_T)

    @property
    def rank1_share_T(self) -> tuple[float | None, ...]:
        """sigma_1^2 / |D|_F^2 of every delta; None for a zero delta."""
        shares: list[float | None] = []
        largest_T = self.sigma_TR.max(dim=1).values
        for sigma, norm in zip(largest_T.tolist(), self.frobenius_T.tolist(), strict=True):
            # fp32 norms may differ in the last bit, and a share above 1 has no meaning.
            shares.append(min(1.0, (sigma / norm) ** 2) if norm > 0 else None)
        return tuple(shares)

    @property
    def drift_T(self) -> tuple[float | None, ...]:
        """Angle in degrees, 0 to 90, between v_t and v_T; None where a delta is zero."""
        v_TN = self.truncate(1).v_TRN[:, 0].double()
        return tuple(_angle(v_N, v_TN[-1]) for v_N in v_TN)

    def since(self, first: int) -> Factors:
        """Leave out the checkpoints before position `first`."""
        parts = (self.u_TRM, self.sigma_TR, self.v_TRN, self.frobenius_T)
        return Factors(*(part[first:] for part in parts))

    def scaled_rows(self, rescale: bool, triplet: int = 0) -> Tensor:
        """Return x_t = alpha_t sigma_tr u_tr (T x M, fp32) of one triplet r.

        alpha_t = |D_t|_F / |(sigma_t1, ..., sigma_tR)| gives the kept part the norm of the whole
        delta; 1 without `rescale`. A zero delta gives a zero row.
        """
        length_T = self.sigma_TR[:, triplet]
        if rescale and self.sigma_TR.shape[1] == 1:
            length_T = self.frobenius_T
        elif rescale:
            kept_T = torch.linalg.vector_norm(self.sigma_TR, dim=1)
            alpha_T = torch.where(kept_T > 0, self.frobenius_T / kept_T, torch.zeros_like(kept_T))
            length_T = alpha_T * length_T
        return length_T[:, None] * self.u_TRM[:, triplet]


@dataclass(frozen=True)
class MatrixQuality:
    """One matrix at the last step, and how well its rows predict step and score."""

    sigma: float
    frobenius: float
    rank1_share: float | None
    q2_step: float | None
    q2_score: float | None
    r2_step_in_sample: float | None
    certified: bool | None


class FactorBuilder:
    """Collects the triplets of one matrix, delta by delta, in the order of steps."""

    def __init__(self, name: str, rank: int) -> None:
        self._name = name
        self._rank = rank
        self._found: list[Triplets] = []
        self._before: Triplets | None = None

    def observe(self, delta_MN: Tensor | LowRank) -> None:
        """Factorise the next delta (fp32, contiguous), starting from the last non-zero one.

        Raises FitError, naming the matrix, when the delta holds NaN or Inf.
        """
        try:
            found = self._factorise(delta_MN)
        except FitError as error:
            raise FitError(f"{self._name}: {error}") from error
        if float(found.sigma_R[0]) > 0:
            self._before = found
        self._found.append(found)

    def _factorise(self, delta_MN: Tensor | LowRank) -> Triplets:
        # There are no more than this, and what is no triplet costs time in all that follows.
        num_triplets = max(1, min(self._rank, *delta_MN.shape))
        if isinstance(delta_MN, LowRank):
            return delta_MN.triplets(num_triplets)
        before = self._before
        return leading_triplets(
            delta_MN,
            num_triplets,
            seed=self._name,
            start_N=None if before is None else before.v_RN[0],
            second_N=before.second_N if before is not None and before.certified_R[0] else None,
        )

    def finish(self) -> Factors:
        """Return the factors, their signs and order aligned; zero triplets fill up the rank."""
        u_TRM = torch.stack([found.u_RM.cpu() for found in self._found])
        sigma_TR = torch.stack([found.sigma_R for found in self._found])
        v_TRN = torch.stack([found.v_RN.cpu() for found in self._found])
        norms = [found.frobenius for found in self._found]
        align(u_TRM, sigma_TR, v_TRN)
        if (missing := self._rank - sigma_TR.shape[1]) > 0:
            u_TRM, v_TRN = (pad(values, (0, 0, 0, missing)) for values in (u_TRM, v_TRN))
            sigma_TR = pad(sigma_TR, (0, missing))
        return Factors(u_TRM, sigma_TR, v_TRN, torch.tensor(norms, dtype=torch.float32))

    @property
    def certified(self) -> bool:
        """Whether the first triplet of the last delta is certified."""
        return self._found[-1].certified_R[0]


def align(u_TRM: Tensor, sigma_TR: Tensor, v_TRN: Tensor) -> None:
    """Order and sign the triplets alike at all checkpoints, in place.

    Backwards from the last non-zero delta: triplets are matched greedily by |u.u'| + |v.v'| to
    those of the next later non-zero one. A triplet's sign follows the next later one that is not
    zero; the last of all has its largest entry of u positive.
    """
    later_RM, later_RN = torch.zeros_like(u_TRM[-1]), torch.zeros_like(v_TRN[-1])
    for t in range(len(u_TRM) - 1, -1, -1):
        if not bool(sigma_TR[t].any()):
            continue
        if bool(later_RM.any()):
            order = _match(u_TRM[t], v_TRN[t], later_RM, later_RN)
            for values in (u_TRM, sigma_TR, v_TRN):
                values[t] = values[t][order]
        for r, sigma in enumerate(sigma_TR[t].tolist()):
            if sigma == 0:
                continue
            if _points_away(u_TRM[t, r], later_RM[r]):
                u_TRM[t, r].neg_()
                v_TRN[t, r].neg_()
            later_RM[r], later_RN[r] = u_TRM[t, r], v_TRN[t, r]


def _points_away(u_M: Tensor, later_M: Tensor) -> bool:
    """Whether u is to be flipped; `later_M` is zero where nothing later is known."""
    if not bool(later_M.any()):
        return float(u_M[u_M.abs().argmax()]) < 0
    return float(torch.dot(u_M.double(), later_M.double())) < 0


def _match(u_RM: Tensor, v_RN: Tensor, later_RM: Tensor, later_RN: Tensor) -> list[int]:
    """For every later triplet, the one of this checkpoint that is most like it; each used once."""
    rank = len(u_RM)
    likeness_RR = (later_RM.double() @ u_RM.double().T).abs()
    likeness_RR += (later_RN.double() @ v_RN.double().T).abs()
    order, free = [-1] * rank, set(range(rank))
    # Of pairs that are as much alike, the first ones come first.
    for place in torch.sort(likeness_RR.flatten(), descending=True, stable=True).indices.tolist():
        i, j = divmod(place, rank)
        if order[i] < 0 and j in free:
            order[i] = j
            free.remove(j)
            if not free:
                break
    return order


def _angle(a_N: Tensor, b_N: Tensor) -> float | None:
    """Angle between two lines in degrees; None where one is a point."""
    if not (bool(a_N.any()) and bool(b_N.any())):
        return None
    # Both vectors rounded to fp32 are no longer of length 1: acos of their product loses angles
    # below a hundredth of a degree.
    a_N, b_N = a_N / a_N.norm(), b_N / b_N.norm()
    near, far = sorted([float((a_N - b_N).norm()), float((a_N + b_N).norm())])
    return math.degrees(2 * math.atan2(near, far))


def quality_of(
    factors: Factors,
    steps_T: Sequence[int],
    scores_T: Sequence[float] | None,
    certified: bool | None = None,
    rescale: bool = True,
) -> MatrixQuality:
    """Describe one matrix: its spectrum at the last step, and the fits on step and score.

    The fits are those of the rows x_t that `rescale` gives; None where there is nothing to fit: too
    few checkpoints, or a flat response.
    """
    leading = factors.truncate(1)
    x_TM = leading.scaled_rows(rescale)
    steps = [float(step) for step in steps_T]
    return MatrixQuality(
        sigma=float(leading.sigma_TR[-1, 0]),
        frobenius=float(leading.frobenius_T[-1]),
        rank1_share=leading.rank1_share_T[-1],
        q2_step=leave_one_out_q2(x_TM, steps),
        q2_score=None if scores_T is None else leave_one_out_q2(x_TM, scores_T),
        r2_step_in_sample=in_sample_r2(x_TM, steps),
        certified=certified,
    )
