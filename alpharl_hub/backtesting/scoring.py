"""Scores of one test: every method's prediction is written, scored by the user, and deleted.

What the weights say of a backtest is a distance; only a score says what it is worth. One test is
scored, the one that lies nearest twice the fitted steps.
"""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from alpharl_hub import strict_json
from alpharl_hub.backtesting.candidates import LAST, LINEAR_RECENT, RECENT_HALF
from alpharl_hub.backtesting.results import Backtest, ScoredModel, ScoredTest
from alpharl_hub.errors import FitError
from alpharl_hub.methods import AUTO, METHODS
from alpharl_hub.prediction.automatic import learning_rates, planned_for
from alpharl_hub.prediction.destination import Destination
from alpharl_hub.prediction.predict import predict
from alpharl_hub.prediction.setting import (
    PredictOptions,
    Setting,
    Subject,
    plan_subject,
    plan_target,
    resolved,
)
from alpharl_hub.prediction.subjects import trajectory_subject
from alpharl_hub.prediction.targets import Goal, ResolvedTarget, TargetOptions, Times
from alpharl_hub.preparation import Prepared, ScopeOptions, prepare
from alpharl_hub.sweeping.evaluation import LOG_NAME, Evaluation, evaluate
from alpharl_hub.trajectory import Trajectory
from alpharl_hub.windows.streaming import Compute, Hooks, Results

WANTED_RATIO = 2.0
_MODELS = "models"


def _tell_nobody(_news: object) -> None:
    """Nobody watches."""


@dataclass(frozen=True)
class ScoringRequest:
    """How models are scored.

    In `folder` lies the model in hand, and the log of every evaluation stays there. `on_tested` is
    told of the backtest itself before anything is scored, `on_scored` of every score.
    """

    evaluation: Evaluation
    folder: Path
    lower_is_better: bool = False
    on_tested: Callable[[Backtest], None] = _tell_nobody
    on_scored: Callable[[ScoredModel], None] = _tell_nobody
    stop: threading.Event = field(default_factory=threading.Event)


@dataclass(frozen=True)
class _Test:
    """The test that is scored: what is fitted, and the step that is predicted."""

    fitted_steps: tuple[int, ...]
    truth_step: int

    @property
    def ratio(self) -> float:
        return self.truth_step / self.fitted_steps[-1]


def score_one_test(
    prepared: Prepared,
    scope: ScopeOptions,
    backtest: Backtest,
    request: ScoringRequest,
    compute: Compute,
    hooks: Hooks,
    journal: Results,
) -> ScoredTest:
    """Score the last fitted checkpoint, the truth, and every method's prediction of it.

    What the journal holds of this evaluation is not scored again.

    Raises:
        EvaluationError: an evaluation without a usable score. Cancelled: `request.stop` was set.
        ResourceError, WriteError, SourceError: as of a prediction.
    """
    test = _choose(backtest)
    maker = _Maker(request, compute, hooks, journal)
    fitted = trajectory_subject(_cut(prepared, scope, test.fitted_steps), scope)
    truth = trajectory_subject(_cut(prepared, scope, (test.truth_step,)), scope)
    models = [
        maker.score(f"step {subject.steps_T[-1]}", _last_setting(subject, compute))
        for subject in (fitted, truth)
    ]
    for method in (m.method for m in backtest.windows[0].truths[0].methods):
        setting = _setting(method, fitted, test.truth_step, compute)
        if setting is not None:
            models.append(maker.score(method, setting))
    return ScoredTest(
        last_step=test.fitted_steps[-1],
        truth_step=test.truth_step,
        ratio=test.ratio,
        lower_is_better=request.lower_is_better,
        models=tuple(models),
    )


def _choose(backtest: Backtest) -> _Test:
    """Take the test nearest WANTED_RATIO; of equally near ones that of the latest window."""
    tests = [
        _Test(
            tuple(
                step
                for step in backtest.steps
                if step <= window.direction.last_step and step not in backtest.truth_steps
            ),
            truth.step,
        )
        for window in backtest.windows
        for truth in window.truths
    ]
    return min(tests, key=lambda test: (abs(test.ratio - WANTED_RATIO), -test.fitted_steps[-1]))


def _cut(prepared: Prepared, scope: ScopeOptions, steps: Sequence[int]) -> Prepared:
    """Return the run as if there were these checkpoints only."""
    trajectory: Trajectory = prepared.trajectory
    history = tuple(
        contents
        for contents, step in zip(trajectory.history, trajectory.steps_T, strict=True)
        if step in steps
    )
    cut = replace(trajectory, history=history, selected_steps=tuple(steps))
    return prepare(cut, scope, stop_on_wrong_base=False)


def _setting(method: str, subject: Subject, step: int, compute: Compute) -> Setting | None:
    """Plan one method's prediction; None where it has too few checkpoints."""
    if method == LAST:
        return None
    options = PredictOptions(method=method, target=TargetOptions((float(step),)))
    if method == LINEAR_RECENT:
        options = replace(options, method="linear", fit_last=RECENT_HALF)
    elif method == AUTO:
        options = _on_clock(planned_for(subject, options), subject, step)
    elif not METHODS[method].looks_ahead:
        options = replace(options, target=TargetOptions())
    try:
        return plan_subject(subject, options, memory_bytes=compute.memory_bytes)
    except FitError:
        return None


def _on_clock(options: PredictOptions, subject: Subject, step: int) -> PredictOptions:
    """Have auto's method run on the clock that it was tested on."""
    clock = learning_rates(subject.last, subject.steps_T[-1]).uneven_clock
    if clock is None:
        return options
    times = Times(tuple(clock.time(s) for s in subject.steps_T), clock.time(step))
    return replace(options, target=TargetOptions((float(step),), times=times))


def _last_setting(subject: Subject, compute: Compute) -> Setting:
    """Plan to write the last checkpoint as it is (a LoRA adapter merged)."""
    options = PredictOptions(method="average", fit_last=1)
    clock = resolved(subject, options).clock
    goals = (Goal(None, float(subject.steps_T[-1])),)
    target = ResolvedTarget(clock, goals, ())
    return plan_target(subject, options, target, memory_bytes=compute.memory_bytes)


class _Maker:
    """Writes, scores and deletes models."""

    def __init__(
        self, request: ScoringRequest, compute: Compute, hooks: Hooks, journal: Results
    ) -> None:
        self._journal = journal
        self._request = request
        self._compute = compute
        self._hooks = hooks

    def score(self, name: str, setting: Setting) -> ScoredModel:
        """Score one model."""
        request = self._request
        key = f"evaluation {request.evaluation.digest} {name}"
        if key not in self._journal.results:
            self._journal.record(key, strict_json.to_plain(self._measure(name, setting)))
        scored = strict_json.from_plain(ScoredModel, self._journal.results[key], key)
        request.on_scored(scored)
        return scored

    def _measure(self, name: str, setting: Setting) -> ScoredModel:
        request = self._request
        label = name.replace(" ", "_")
        # Every model has a folder of its own name: evaluations keep answers by the path.
        model, kept = request.folder / _MODELS / label, request.folder / label
        try:
            predict(setting, Destination(model, overwrite=True), self._compute, self._hooks)
            measured = evaluate(request.evaluation, model, kept, request.stop)
        finally:
            shutil.rmtree(model, ignore_errors=True)
        return ScoredModel(name, measured.score, measured.seconds, str(kept / LOG_NAME))
