"""The way that a run's updates went, drawn in the plane of its first two directions.

Letters: T checkpoints; s_t, u_t, v_t the first singular triplet of the delta at checkpoint t.

Convention: factors come as fp32 on the CPU; inner products and the eigenvectors are fp64. The
origin is the base, so nothing is centred: the first direction is where the run went on the whole,
the second where it bent to.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from alpharl_hub.numerics.factors import Factors


@dataclass(frozen=True)
class PlanePath:
    """The deltas in their first two principal directions, and what those hold of all.

    `points_T2` has a point per checkpoint, in the unit of the weights; the base is (0, 0). `shares`
    are parts of the summed squared lengths, from 0 to 1.
    """

    points_T2: tuple[tuple[float, float], ...]
    shares: tuple[float, float]


def rank1_products(factors: Factors) -> Tensor:
    """Return <s_t u_t v_t^T, s_r u_r v_r^T> for all pairs of checkpoints (T x T, fp64).

    The sum over matrices is that of the model's deltas, each cut to rank 1.
    """
    first = factors.truncate(1)
    u_TM, v_TN = first.u_TRM[:, 0].double(), first.v_TRN[:, 0].double()
    sigma_T = first.sigma_TR[:, 0].double()
    return (sigma_T[:, None] * sigma_T) * (u_TM @ u_TM.T) * (v_TN @ v_TN.T)


def plane_path(products_TT: Tensor) -> PlanePath | None:
    """Find the plane that holds most of the path with these inner products (T x T, fp64).

    None for a run that never moved. Along the first axis the last checkpoint is at the right, along
    the second the farthest one is above.
    """
    total = float(products_TT.trace())
    if total <= 0:
        return None
    values_T, vectors_TT = torch.linalg.eigh(products_TT)
    points, shares = [], []
    for k in (1, 2):
        has_one = k <= len(values_T) and float(values_T[-k]) > 0
        length = float(values_T[-k]) ** 0.5 if has_one else 0.0
        axis_T = vectors_TT[:, -min(k, len(values_T))] * length
        turning = axis_T[-1] if k == 1 else axis_T[axis_T.abs().argmax()]
        points.append((-axis_T if float(turning) < 0 else axis_T).tolist())
        shares.append(length**2 / total)
    return PlanePath(tuple(zip(*points, strict=True)), (shares[0], shares[1]))
