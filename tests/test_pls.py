"""One-component PLS against scikit-learn's PLSRegression, and its refits without each row."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.cross_decomposition import PLSRegression

from alpharl_hub.errors import FitError
from alpharl_hub.numerics.pls import (
    fit_pls,
    in_sample_r2,
    leave_one_out_predictions,
    leave_one_out_q2,
)


def rows_on_a_line(num_rows, width, noise, seed):
    """Rows that follow an uneven response, in fp32, with a zero and a constant column."""
    rng = np.random.default_rng(seed)
    response = np.cumsum(rng.uniform(1, 9, num_rows))
    x = np.outer(response, rng.normal(size=width)) / 10 + noise * rng.normal(size=(num_rows, width))
    x = x.astype(np.float32)
    x[:, 0] = 0
    x[:, 1] = 0.3
    return x, response


def sklearn_left_out(x, response):
    predictions = []
    for t in range(len(response)):
        kept = np.arange(len(response)) != t
        model = PLSRegression(n_components=1).fit(x[kept].astype(np.float64), response[kept])
        predictions.append(np.ravel(model.predict(x[t : t + 1].astype(np.float64)))[0])
    return np.array(predictions)


@settings(max_examples=60, deadline=None)
@given(
    num_rows=st.integers(4, 14),
    width=st.integers(3, 60),
    noise=st.sampled_from([0.01, 0.3, 3.0]),
    scale=st.sampled_from([1e-6, 1.0, 1e3]),
    seed=st.integers(0, 10**6),
)
def test_fit_prediction_and_inverse_are_those_of_scikit_learn(num_rows, width, noise, scale, seed):
    """The same numbers to rounding, at any size of the rows."""
    x, response = rows_on_a_line(num_rows, width, noise, seed)
    x = (x * scale).astype(np.float32)
    model = PLSRegression(n_components=1).fit(x.astype(np.float64), response)
    fit = fit_pls(torch.from_numpy(x), response.tolist())
    expected = np.ravel(model.predict(x.astype(np.float64)))
    np.testing.assert_allclose(fit.predict(torch.from_numpy(x)).numpy(), expected, rtol=1e-9)
    target = 1.7 * response[-1]
    standard = (target - response.mean()) / response.std(ddof=1)
    score = standard / model.y_loadings_[0, 0]
    expected = model.inverse_transform(np.array([[score]]))[0]
    np.testing.assert_allclose(
        fit.invert(target).numpy(), expected, rtol=1e-9, atol=1e-9 * np.abs(expected).max()
    )
    expected = model.score(x.astype(np.float64), response)
    assert in_sample_r2(torch.from_numpy(x), response.tolist()) == pytest.approx(expected, abs=1e-9)


@settings(max_examples=40, deadline=None)
@given(
    num_rows=st.integers(4, 12),
    width=st.integers(3, 40),
    noise=st.sampled_from([0.01, 0.3, 3.0]),
    seed=st.integers(0, 10**6),
)
def test_left_out_predictions_are_those_of_refits_by_scikit_learn(num_rows, width, noise, seed):
    """All refits at once give what one refit per row gives."""
    x, response = rows_on_a_line(num_rows, width, noise, seed)
    expected = sklearn_left_out(x, response)
    found = leave_one_out_predictions(torch.from_numpy(x), response.tolist()).numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-8)
    press, total = np.sum((response - expected) ** 2), np.sum((response - response.mean()) ** 2)
    q2 = leave_one_out_q2(torch.from_numpy(x), response.tolist())
    assert q2 == pytest.approx(1 - press / total, rel=1e-7, abs=1e-7)


@pytest.mark.parametrize("outlier", [0.7, 12.3, 1e3])
def test_a_column_that_only_one_row_moves_is_refitted_plainly(outlier):
    """Without that row the column is constant, and sums over all rows would leave only rounding."""
    for seed in range(12):
        rng = np.random.default_rng(seed)
        x = rng.normal(size=(6, 9)).astype(np.float32)
        x[:, 2] = rng.normal()
        x[2, 2] *= outlier
        response = np.cumsum(rng.uniform(1, 9, 6))
        expected = sklearn_left_out(x, response)
        found = leave_one_out_predictions(torch.from_numpy(x), response.tolist()).numpy()
        np.testing.assert_allclose(found, expected, rtol=1e-9)


def test_a_matrix_that_moved_in_one_checkpoint_only_predicts_the_mean_there():
    """Nothing is left to fit without that row: the mean of the others is the answer."""
    x = torch.zeros(5, 6)
    x[2] = torch.arange(6.0)
    responses = [1.0, 2.0, 3.0, 4.0, 6.0]
    assert float(leave_one_out_predictions(x, responses)[2]) == pytest.approx(13 / 4)


def test_noise_is_told_from_a_line_by_q2_and_not_by_r2():
    """With many more columns than rows noise fits in sample; left out, it predicts nothing."""
    rng = np.random.default_rng(4)
    steps = [8.0, 16.0, 40.0, 48.0, 80.0, 96.0, 104.0, 120.0]
    for _ in range(5):
        noise = torch.from_numpy(rng.normal(size=(8, 3000)).astype(np.float32))
        r2, q2 = in_sample_r2(noise, steps), leave_one_out_q2(noise, steps)
        assert r2 is not None
        assert q2 is not None
        assert r2 > 0.8
        assert q2 < 0.2
        line = np.outer(steps, rng.normal(size=3000))
        noisy = line + 0.3 * np.abs(line).mean() * rng.normal(size=line.shape)
        q2 = leave_one_out_q2(torch.from_numpy(noisy.astype(np.float32)), steps)
        assert q2 is not None
        assert q2 > 0.95


def test_where_there_is_nothing_to_fit_there_is_no_quality():
    """Q^2 needs four rows, R^2 three; responses or rows that never change have none of either."""
    x = torch.randn(4, 9, generator=torch.Generator().manual_seed(0))
    assert leave_one_out_q2(x[:3], [1.0, 2.0, 3.0]) is None
    assert leave_one_out_q2(x, [2.0] * 4) is None
    assert in_sample_r2(x[:2], [1.0, 2.0]) is None
    assert in_sample_r2(x, [2.0] * 4) is None
    assert leave_one_out_q2(x[[0, 0, 0, 0]], [1.0, 2.0, 3.0, 4.0]) is None
    assert in_sample_r2(x[[0, 0, 0, 0]], [1.0, 2.0, 3.0, 4.0]) is None


def test_a_response_that_is_flat_without_one_row_predicts_itself():
    """Scores may be equal but for one checkpoint: the refit without it can only repeat them."""
    x = torch.randn(5, 7, generator=torch.Generator().manual_seed(0))
    for rows in (x, torch.where(torch.arange(5)[:, None] == 4, x, 1.0)):
        found = leave_one_out_predictions(rows, [0.5, 0.5, 0.5, 0.5, 0.9])
        assert float(found[4]) == pytest.approx(0.5)


@pytest.mark.parametrize("responses", [[0.4, 0.4, 0.4], [0.4]])
def test_a_flat_response_cannot_be_fitted(responses):
    """The error names the value."""
    with pytest.raises(FitError, match=r"0\.4"):
        fit_pls(torch.ones(len(responses), 2), responses)


def test_rows_that_never_move_stay_at_their_mean():
    """A matrix that was not trained after the first checkpoint keeps its update at any target."""
    x = torch.tensor([[1.0, -2.0, 0.0]] * 4)
    fit = fit_pls(x, [1.0, 2.0, 3.0, 5.0])
    assert torch.equal(fit.invert(50.0), x[0].double())
