"""Partial least squares with one component: a response predicted from long rows, and inverted.

Letters: T rows (checkpoints), M columns (entries of a vector). x_TM rows, y_T responses.

Convention: everything is float64. Columns and response are standardised with ddof = 1; a column of
zero spread keeps scale 1. That is scikit-learn's `PLSRegression(n_components=1)` to rounding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from alpharl_hub.errors import FitError

MIN_ROWS_FOR_Q2 = 4
"""With three rows a refit without one of them is a line through two points, and says nothing."""


@dataclass(frozen=True)
class OneComponentPLS:
    """A fitted regression: score t = standardised x . `weight_M`, response linear in t.

    `loading_M` leads from a score back to a row; `slope` is the response's in t, standardised.
    """

    mean_M: Tensor
    scale_M: Tensor
    weight_M: Tensor
    loading_M: Tensor
    slope: float
    response_mean: float
    response_scale: float

    def predict(self, x_M: Tensor) -> float:
        """Predict the response of one row."""
        score = float((x_M.double() - self.mean_M).div(self.scale_M) @ self.weight_M)
        return self.response_mean + self.response_scale * self.slope * score

    def invert(self, response: float) -> Tensor:
        """Return the row (M, float64) whose score predicts `response`.

        Raises:
            FitError: the response does not depend on the rows.
        """
        if self.slope == 0:
            raise FitError("the rows do not move with the response, so it cannot be inverted")
        score = (response - self.response_mean) / self.response_scale / self.slope
        return self.mean_M + self.scale_M * (score * self.loading_M)


def fit_pls(x_TM: Tensor, response_T: Sequence[float]) -> OneComponentPLS:
    """Fit rows to responses.

    Raises:
        FitError: the responses are all equal.
    """
    x_TM = x_TM.double()
    y_T = torch.tensor(response_T, dtype=torch.float64, device=x_TM.device)
    y_mean, y_scale = float(y_T.mean()), float(y_T.std())
    if not y_scale > 0:
        raise FitError(f"the response is {response_T[0]:g} at every checkpoint; nothing to fit")
    mean_M, spread_M = x_TM.mean(0), x_TM.std(0)
    scale_M = torch.where(spread_M == 0, torch.ones_like(spread_M), spread_M)
    z_TM = (x_TM - mean_M) / scale_M
    y_T = (y_T - y_mean) / y_scale
    weight_M = z_TM.T @ y_T
    norm = float(weight_M.norm())
    if norm == 0:
        zero_M = torch.zeros_like(mean_M)
        return OneComponentPLS(mean_M, scale_M, zero_M, zero_M, 0.0, y_mean, y_scale)
    weight_M = weight_M / norm
    score_T = z_TM @ weight_M
    squares = float(score_T @ score_T)
    loading_M = z_TM.T @ score_T / squares
    slope = float(y_T @ score_T) / squares
    return OneComponentPLS(mean_M, scale_M, weight_M, loading_M, slope, y_mean, y_scale)


def leave_one_out_q2(x_TM: Tensor, response_T: Sequence[float]) -> float | None:
    """Return 1 - PRESS / TSS, every row predicted by a fit without it; None for T < 4.

    None too when the responses are flat, as they are or without one of them.
    """
    num_rows = len(response_T)
    if num_rows < MIN_ROWS_FOR_Q2:
        return None
    mean = sum(response_T) / num_rows
    total = sum((y - mean) ** 2 for y in response_T)
    press = 0.0
    for left_out in range(num_rows):
        kept = [t for t in range(num_rows) if t != left_out]
        responses = [response_T[t] for t in kept]
        if len(set(responses)) == 1:
            return None
        fit = fit_pls(x_TM[kept], responses)
        press += (response_T[left_out] - fit.predict(x_TM[left_out])) ** 2
    return 1 - press / total


def in_sample_r2(x_TM: Tensor, response_T: Sequence[float]) -> float | None:
    """Return the share of the responses' variance that the fit itself explains.

    It decides nothing: with many more columns than rows noise alone reaches 0.8 to 0.98. None when
    the responses are flat.
    """
    if len(response_T) < 2 or len(set(response_T)) == 1:
        return None
    fit = fit_pls(x_TM, response_T)
    mean = sum(response_T) / len(response_T)
    total = sum((y - mean) ** 2 for y in response_T)
    left = sum((y - fit.predict(x_M)) ** 2 for y, x_M in zip(response_T, x_TM, strict=True))
    return 1 - left / total
