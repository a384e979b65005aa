"""A backtest from what the user names: open the run with its truths, test it, score one test.

What is done lies in a journal, so that an interrupted backtest goes on.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

import torch

from alpharl_hub import strict_json
from alpharl_hub.backtesting.backtest import BacktestOptions, backtest
from alpharl_hub.backtesting.results import Backtest
from alpharl_hub.backtesting.scoring import ScoringRequest, score_one_test
from alpharl_hub.errors import TrajectoryError
from alpharl_hub.output.journal import DEFAULT_PARENT, Journal, open_free_journal, open_journal
from alpharl_hub.prediction.factor_places import find_factors
from alpharl_hub.preparation import Prepared, ScopeOptions, prepare, run_record
from alpharl_hub.sources.opening import Opener, RunRequest, open_trajectory
from alpharl_hub.version import __version__
from alpharl_hub.windows.devices import choose_devices, compute_name
from alpharl_hub.windows.plan import WINDOW_BYTES
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
    opener = Opener(request)
    if find_factors(request, opener) is not None:
        raise TrajectoryError(
            f"{request.run}: factors hold no later weights to compare with; name the run"
        )
    trajectory = open_trajectory(with_truths(request, options), opener)
    prepared = prepare(trajectory, scope, stop_on_wrong_base=True)
    known_by = _identity(prepared, scope, options, compute)
    with _journal(known_by, scoring) as journal:
        answer = backtest(prepared, options, compute, hooks, journal)
        if scoring is None:
            return answer
        scoring.on_tested(answer)
        scored = score_one_test(prepared, scope, answer, scoring, compute, hooks, journal)
        return replace(answer, scored=scored)


def _journal(
    known_by: Mapping[str, object], scoring: ScoringRequest | None
) -> AbstractContextManager[Journal]:
    """Open the journal: where models are scored, else in a folder named by what is tested."""
    if scoring is not None:
        return open_journal(scoring.folder, known_by)
    digest = hashlib.sha256(strict_json.dump(known_by).encode()).hexdigest()
    return open_free_journal(Path(DEFAULT_PARENT) / digest[:16], known_by)


def _identity(
    prepared: Prepared, scope: ScopeOptions, options: BacktestOptions, compute: Compute
) -> Mapping[str, object]:
    """Say what sums depend on; how models are scored may change from start to start."""
    here = compute_name(choose_devices(compute.devices)) if compute.cluster is None else "ray"
    return {
        "backtest of": strict_json.to_plain(run_record(prepared, scope)),
        "options": strict_json.to_plain(options),
        "versions": {"tool": __version__, "torch": torch.__version__, "compute": here},
        "window_bytes": WINDOW_BYTES,
    }


def with_truths(request: RunRequest, options: BacktestOptions) -> RunRequest:
    """Have the truths opened with the run, as checkpoints of it."""
    steps = request.steps
    if steps is not None:
        steps = ",".join([steps, *(str(step) for _, step in options.truths)])
    return replace(request, at=(*request.at, *options.truths), steps=steps)
