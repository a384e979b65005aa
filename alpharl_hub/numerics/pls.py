"""Partial least squares with one component: a response predicted from long rows, and inverted.

Letters: T rows (checkpoints), M columns (entries of a vector), n = T - 1. x_TM rows, y_T responses.

Convention: everything is float64. Columns and response are standardised with ddof = 1; a column of
zero spread keeps scale 1. That is scikit-learn's `PLSRegression(n_components=1)` to rounding, of
one refit as of all refits that leave one row out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from alpharl_hub.errors import FitError

# With three rows a refit without one of them is a line through two points, and says nothing.
MIN_ROWS_FOR_Q2 = 4
# Through two points there is always a line.
MIN_ROWS_FOR_R2 = 3
# Below this share of a column's squares its variance without one row is all cancellation.
_DOUBTFUL_SHARE = 1e-9


@dataclass(frozen=True)
class OneComponentPLS:
    """A fitted regression: score t = standardised x . `weight_M`, response linear in t.

    `loading_M` leads from a score back to a row; `slope` is the response's in t, standardised, and
    0 where the rows do not move with the response.
    """

    mean_M: Tensor
    scale_M: Tensor
    weight_M: Tensor
    loading_M: Tensor
    slope: float
    response_mean: float
    response_scale: float

    def predict(self, x_TM: Tensor) -> Tensor:
        """Predict the responses (T, float64) of rows."""
        score_T = ((x_TM.double() - self.mean_M) / self.scale_M) @ self.weight_M
        return self.response_mean + self.response_scale * self.slope * score_T

    def invert(self, response: float) -> Tensor:
        """Give the row (M, float64) on the component whose predicted response is `response`.

        Rows that do not move with the response stay at their mean.
        """
        if self.slope == 0:
            return self.mean_M
        score = (response - self.response_mean) / self.response_scale / self.slope
        return self.mean_M + self.scale_M * (score * self.loading_M)


def fit_pls(x_TM: Tensor, response_T: Sequence[float]) -> OneComponentPLS:
    """Fit rows to responses.

    Raises:
        FitError: fewer than two rows, or the responses are all equal.
    """
    x_TM = x_TM.double()
    y_T = torch.tensor(response_T, dtype=torch.float64, device=x_TM.device)
    if len(set(response_T)) < 2:
        raise FitError(
            f"the response of all {len(response_T)} checkpoints is {response_T[0]:g}: nothing to "
            "fit; select others with --steps"
        )
    y_mean, y_scale = float(y_T.mean()), float(y_T.std())
    mean_M, spread_M = x_TM.mean(0), x_TM.std(0)
    scale_M = torch.where(spread_M == 0, 1.0, spread_M)
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
    """Give 1 - PRESS / TSS, every row predicted by a fit without it.

    None for T < 4, and where rows or responses are all equal.
    """
    if len(response_T) < MIN_ROWS_FOR_Q2 or not _can_fit(x_TM, response_T):
        return None
    y_T = torch.tensor(response_T, dtype=torch.float64, device=x_TM.device)
    press = (y_T - leave_one_out_predictions(x_TM, response_T)).square().sum()
    return float(1 - press / (y_T - y_T.mean()).square().sum())


def in_sample_r2(x_TM: Tensor, response_T: Sequence[float]) -> float | None:
    """Give the share of the responses' variance that the fit itself explains.

    It decides nothing: with many more columns than rows noise alone reaches 0.8 to 0.98. None for
    T < 3, and where rows or responses are all equal.
    """
    if len(response_T) < MIN_ROWS_FOR_R2 or not _can_fit(x_TM, response_T):
        return None
    y_T = torch.tensor(response_T, dtype=torch.float64, device=x_TM.device)
    left = (y_T - fit_pls(x_TM, response_T).predict(x_TM)).square().sum()
    return float(1 - left / (y_T - y_T.mean()).square().sum())


def leave_one_out_predictions(x_TM: Tensor, response_T: Sequence[float]) -> Tensor:
    """Predict every response (T, float64) from its row by the fit of all other rows.

    All refits at once, as two products of T x T with T x M: the weight of column j without row f is
    covariance over spread, both of which follow from sums over all rows.
    """
    x_TM = x_TM.double()
    num_rows, others = len(response_T), len(response_T) - 1
    x_TM = x_TM - x_TM.mean(0)
    y_T = torch.tensor(response_T, dtype=torch.float64, device=x_TM.device)
    mean_F = (y_T.sum() - y_T) / others
    y_FT = (y_T - mean_F[:, None]).fill_diagonal_(0.0)
    squares_M = x_TM.square().sum(0)
    variance_FM = (squares_M - x_TM.square() * (1 + 1 / others)) / (others - 1)
    doubtful_FM = variance_FM * (others - 1) <= _DOUBTFUL_SHARE * squares_M
    # Without row f the mean of the centred rows is -x_f / n; it drops out of the covariance.
    z_FM = torch.where(doubtful_FM, 0.0, (y_FT @ x_TM) / (others - 1) / variance_FM)
    product_FT = z_FM @ x_TM.T
    score_FT = product_FT + product_FT.diagonal()[:, None] / others
    own_F = score_FT.diagonal().clone()
    score_FT.fill_diagonal_(0.0)
    norm_F = score_FT.square().sum(1)
    slope_F = torch.where(norm_F > 0, (score_FT * y_FT).sum(1) / norm_F, 0.0)
    predicted_F = mean_F + slope_F * own_F
    for f in torch.nonzero((doubtful_FM & (squares_M > 0)).any(1)).view(-1).tolist():
        kept = [t for t in range(num_rows) if t != f]
        predicted_F[f] = _refit_prediction(x_TM[kept], [response_T[t] for t in kept], x_TM[f])
    return predicted_F


def _can_fit(x_TM: Tensor, response_T: Sequence[float]) -> bool:
    return len(set(response_T)) > 1 and not bool(x_TM.eq(x_TM[0]).all())


def _refit_prediction(x_TM: Tensor, response_T: Sequence[float], row_M: Tensor) -> float:
    """Predict one response the plain way; flat responses predict themselves."""
    if len(set(response_T)) == 1:
        return response_T[0]
    return float(fit_pls(x_TM, response_T).predict(row_M))
