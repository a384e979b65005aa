"""A backtest from what the user names: open the run with its truths, test it, score one test."""

from __future__ import annotations

from dataclasses import replace

from alpharl_hub.backtesting.backtest import BacktestOptions, backtest
from alpharl_hub.backtesting.results import Backtest
from alpharl_hub.backtesting.scoring import ScoringRequest, score_one_test
from alpharl_hub.errors import TrajectoryError
from alpharl_hub.prediction.subjects import is_factor_folder
from alpharl_hub.preparation import ScopeOptions, prepare
from alpharl_hub.sources.opening import RunRequest, open_trajectory
from alpharl_hub.windows.streaming import Compute, Hooks


def backtest_run(
    request: RunRequest,
    scope: ScopeOptions,
    options: BacktestOptions,
    compute: Compute,
    hooks: Hooks,
    scoring: ScoringRequest | None = None,
) -> Backtest:
    """Test on a run how well its later checkpoints could have been predicted.

    Raises:
        SourceError, HeaderError, TrajectoryError, ScoreError, FitError, ResourceError, WriteError.
    """
    if is_factor_folder(request.run):
        raise TrajectoryError(
            f"{request.run}: a folder of factors holds no later weights to compare with; name the "
            "run"
        )
    trajectory = open_trajectory(with_truths(request, options))
    prepared = prepare(trajectory, scope, stop_on_wrong_base=True)
    answer = backtest(prepared, options, compute, hooks)
    if scoring is None:
        return answer
    scoring.on_tested(answer)
    scored = score_one_test(prepared, scope, answer, scoring, compute, hooks)
    return replace(answer, scored=scored)


def with_truths(request: RunRequest, options: BacktestOptions) -> RunRequest:
    """Have the truths opened with the run, as checkpoints of it."""
    steps = request.steps
    if steps is not None:
        steps = ",".join([steps, *(str(step) for _, step in options.truths)])
    return replace(request, at=(*request.at, *options.truths), steps=steps)
