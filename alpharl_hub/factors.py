"""The leading singular triplets of one matrix's deltas over all checkpoints, aligned in time.

Letters: T checkpoints, R triplets, M rows, N columns; D_t the delta (fp32) at checkpoint t.

Convention: factors are fp32 on the CPU, in the order of steps, exactly as `extract` stores them, so
that what is computed from them does not depend on whether they were on disk in between.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from alpharl_hub.pls import in_sample_r2, leave_one_out_q2
from alpharl_hub.spectral import Triplets, leading_triplets


@dataclass(frozen=True)
class Factors:
    """D_t ~ sum over r of sigma_tr u_tr v_tr^T; `frobenius_T` are the norms of whole deltas."""

    u_TRM: Tensor
    sigma_TR: Tensor
    v_TRN: Tensor
    frobenius_T: Tensor

    @property
    def rank1_share_T(self) -> tuple[float | None, ...]:
        """sigma_1^2 / |D|_F^2 of every delta; None for a zero delta."""
        shares: list[float | None] = []
        for sigma, norm in zip(
            self.sigma_TR[:, 0].tolist(), self.frobenius_T.tolist(), strict=True
        ):
            # fp32 norms may differ in the last bit, and a share above 1 has no meaning.
            shares.append(min(1.0, (sigma / norm) ** 2) if norm > 0 else None)
        return tuple(shares)

    @property
    def drift_T(self) -> tuple[float | None, ...]:
        """Angle in degrees, 0 to 90, between v_t and v_T; None where a delta is zero."""
        return tuple(_angle(v_N, self.v_TRN[-1, 0]) for v_N in self.v_TRN[:, 0])

    def scaled_rows(self, rescale: bool) -> Tensor:
        """Return x_t = alpha_t sigma_t u_t (T x M, fp32); alpha_t = |D_t|_F / sigma_t or 1."""
        length_T = self.frobenius_T if rescale else self.sigma_TR[:, 0]
        return length_T[:, None] * self.u_TRM[:, 0]


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
        self._start_N: Tensor | None = None

    def observe(self, delta_MN: Tensor) -> None:
        """Factorise the next delta (fp32, contiguous), starting from the one before."""
        found = leading_triplets(delta_MN, self._rank, seed=self._name, start_N=self._start_N)
        if float(found.sigma_R[0]) > 0:
            self._start_N = found.v_RN[0]
        self._found.append(found)

    def finish(self) -> Factors:
        """Return the factors, their signs and order aligned."""
        u_TRM = torch.stack([found.u_RM.cpu() for found in self._found])
        sigma_TR = torch.stack([found.sigma_R.cpu() for found in self._found])
        v_TRN = torch.stack([found.v_RN.cpu() for found in self._found])
        norms = [found.frobenius for found in self._found]
        align(u_TRM, sigma_TR, v_TRN)
        return Factors(u_TRM, sigma_TR, v_TRN, torch.tensor(norms, dtype=torch.float32))

    @property
    def certified(self) -> bool:
        """Whether the first triplet of the last delta is certified."""
        return self._found[-1].certified_R[0]


def align(u_TRM: Tensor, sigma_TR: Tensor, v_TRN: Tensor) -> None:
    """Order and sign triplets alike at all checkpoints, in place.

    At the last one the largest entry of every u is positive. Then backwards: triplets are matched
    greedily by |u.u'| + |v.v'| to those of the next later non-zero delta, and flip together when
    their u points the other way.
    """
    last = len(u_TRM) - 1
    while last >= 0 and not bool(sigma_TR[last].any()):
        last -= 1
    if last < 0:
        return
    for r in range(u_TRM.shape[1]):
        if float(u_TRM[last, r, u_TRM[last, r].abs().argmax()]) < 0:
            u_TRM[last, r].neg_()
            v_TRN[last, r].neg_()
    later = last
    for t in range(last - 1, -1, -1):
        if not bool(sigma_TR[t].any()):
            continue
        order = _match(u_TRM[t], v_TRN[t], u_TRM[later], v_TRN[later])
        for values in (u_TRM, sigma_TR, v_TRN):
            values[t] = values[t][order].clone()
        flips = (u_TRM[t] * u_TRM[later]).sum(1) < 0
        u_TRM[t][flips] *= -1
        v_TRN[t][flips] *= -1
        later = t


def _match(u_RM: Tensor, v_RN: Tensor, later_RM: Tensor, later_RN: Tensor) -> list[int]:
    """For every later triplet, the one of this checkpoint that is most like it; each used once."""
    likeness_RR = (later_RM @ u_RM.T).abs() + (later_RN @ v_RN.T).abs()
    order = [-1] * len(likeness_RR)
    free = set(range(len(likeness_RR)))
    pairs = [(-float(likeness_RR[i, j]), i, j) for i in free for j in free]
    for _, i, j in sorted(pairs):
        if order[i] < 0 and j in free:
            order[i] = j
            free.remove(j)
    return order


def _angle(a_N: Tensor, b_N: Tensor) -> float | None:
    a_N, b_N = a_N.double(), b_N.double()
    if not (bool(a_N.any()) and bool(b_N.any())):
        return None
    cosine = float(a_N @ b_N)
    # The sine comes from the part of a that is across b: acos loses small angles to rounding.
    sine = float((a_N - cosine * b_N).norm())
    return math.degrees(math.atan2(sine, abs(cosine)))


def quality_of(
    factors: Factors,
    steps_T: Sequence[int],
    scores_T: Sequence[float] | None,
    certified: bool | None = None,
) -> MatrixQuality:
    """Describe one matrix: its spectrum at the last step, and the fits on step and score."""
    x_TM = factors.scaled_rows(rescale=True)
    steps = [float(step) for step in steps_T]
    has_scores = scores_T is not None and len(set(scores_T)) > 1
    return MatrixQuality(
        sigma=float(factors.sigma_TR[-1, 0]),
        frobenius=float(factors.frobenius_T[-1]),
        rank1_share=factors.rank1_share_T[-1],
        q2_step=leave_one_out_q2(x_TM, steps),
        q2_score=leave_one_out_q2(x_TM, scores_T) if has_scores and scores_T else None,
        r2_step_in_sample=in_sample_r2(x_TM, steps),
        certified=certified,
    )
