"""The stories that the tool tells, each from top to bottom: open, prepare, plan, stream, write."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from alpharl_hub.errors import TrajectoryError
from alpharl_hub.methods import AUTO
from alpharl_hub.prediction.automatic import choose, planned_for, probe_cost
from alpharl_hub.prediction.destination import Destination
from alpharl_hub.prediction.factor_places import find_factors
from alpharl_hub.prediction.predict import predict
from alpharl_hub.prediction.setting import (
    PredictOptions,
    Setting,
    Subject,
    check_adapter,
    plan_subject,
)
from alpharl_hub.prediction.subjects import (
    factor_subject,
    recorded_subject,
    trajectory_subject,
)
from alpharl_hub.prediction.targets import TargetOptions
from alpharl_hub.preparation import Prepared, ScopeOptions, prepare, run_record
from alpharl_hub.reporting.comparison import CompareRequest, compare, open_models
from alpharl_hub.reporting.extraction import FactorOutput, extract
from alpharl_hub.reporting.inspection import cost_of_counts, make_inspection
from alpharl_hub.reporting.report import ReportRequest, report, report_factors
from alpharl_hub.results import Comparison, Extraction, Inspection, Prediction, SpectralReport
from alpharl_hub.sources.opening import Opener, RunRequest, open_trajectory
from alpharl_hub.sweeping.from_run import SweepRequest, sweep
from alpharl_hub.sweeping.results import SweepAnswer
from alpharl_hub.windows.devices import choose_devices, fit_workers
from alpharl_hub.windows.streaming import Compute, Hooks

_INSPECTED_RATIO = 2.0
"""What inspect plans for without a target; costs do not depend on it."""


def inspect_run(
    request: RunRequest, scope: ScopeOptions, options: PredictOptions, compute: Compute
) -> Inspection:
    """Look at a run: listings, headers and a small sample are read, nothing else.

    Raises:
        SourceError, HeaderError, TrajectoryError, ScoreError, FitError, ResourceError.
    """
    opener = Opener(request)
    if find_factors(request, opener) is not None:
        raise TrajectoryError(f"{request.run}: factors, not a run; report and predict read them")
    prepared = prepare(open_trajectory(request, opener), scope, stop_on_wrong_base=False)
    if not options.target.is_given and options.method != "average":
        last = prepared.trajectory.steps_T[-1]
        options = replace(options, target=TargetOptions((_INSPECTED_RATIO * last,)))

    def plan_with(some: Prepared) -> Setting:
        subject = trajectory_subject(some, scope)
        settled = planned_for(subject, options)
        setting = plan_subject(subject, settled, memory_bytes=compute.memory_bytes)
        num_bytes, num_requests = probe_cost(subject, options)
        plan = replace(
            setting.plan,
            read_bytes=setting.plan.read_bytes + num_bytes,
            requests=setting.plan.requests + num_requests,
        )
        return replace(setting, plan=plan)

    setting = plan_with(prepared)
    plan = setting.plan
    workers = fit_workers(
        (*plan.survey, *plan.windows),
        choose_devices(compute.devices),
        plan.num_deltas_held,
        len(setting.target.goals),
        compute.memory_bytes,
    )
    other_counts = cost_of_counts(prepared, plan, lambda some: plan_with(some).plan)
    return make_inspection(prepared, plan, workers, other_counts)


def report_run(
    request: RunRequest,
    scope: ScopeOptions,
    report_request: ReportRequest,
    compute: Compute,
    hooks: Hooks,
) -> SpectralReport:
    """Describe the spectrum of a run, or of extracted factors, in a folder or on a Hub.

    Raises:
        SourceError, HeaderError, TrajectoryError, FitError, ManifestError, ResourceError.
    """
    opener = Opener(request)
    place = find_factors(request, opener)
    if place is not None:
        return report_factors(place, report_request)
    prepared = prepare(open_trajectory(request, opener), scope, stop_on_wrong_base=True)
    return report(prepared, report_request, compute, hooks)


def extract_run(
    request: RunRequest,
    scope: ScopeOptions,
    rank: int,
    output: FactorOutput,
    compute: Compute,
    hooks: Hooks,
) -> Extraction:
    """Write the factors of a run, push them, or both.

    Raises:
        SourceError, HeaderError, TrajectoryError, FitError, ResourceError, WriteError, PushError.
    """
    output.check()
    prepared = prepare(open_trajectory(request), scope, stop_on_wrong_base=True)
    return extract_prepared(prepared, scope, rank, output, compute, hooks)


def extract_prepared(
    prepared: Prepared,
    scope: ScopeOptions,
    rank: int,
    output: FactorOutput,
    compute: Compute,
    hooks: Hooks,
) -> Extraction:
    """Write the factors of a run that was opened before.

    Raises:
        SourceError, FitError, ResourceError, WriteError, PushError.
    """
    output.check()
    return extract(prepared, run_record(prepared, scope), rank, output, compute, hooks)


def predict_run(
    request: RunRequest,
    scope: ScopeOptions,
    options: PredictOptions,
    destination: Destination,
    compute: Compute,
    hooks: Hooks,
) -> Prediction:
    """Predict a model from a run, or from extracted factors, in a folder or on a Hub.

    Raises:
        SourceError, HeaderError, TrajectoryError, ScoreError, FitError, ManifestError,
        ResourceError, WriteError, PushError.
    """
    destination.check(options.target.target_steps)
    opener = Opener(request)
    place = find_factors(request, opener)
    if place is not None:
        subject = factor_subject(place, request, opener)
        destination.refuse_inputs(subject.trajectory)
        return predict(settle(subject, options, compute, hooks), destination, compute, hooks)
    prepared = prepare(open_trajectory(request, opener), scope, stop_on_wrong_base=True)
    return predict_prepared(prepared, scope, options, destination, compute, hooks)


def predict_prepared(
    prepared: Prepared,
    scope: ScopeOptions,
    options: PredictOptions,
    destination: Destination,
    compute: Compute,
    hooks: Hooks,
) -> Prediction:
    """Predict a model from a run that was opened before.

    Raises:
        As `predict_run`.
    """
    destination.check(options.target.target_steps)
    subject = trajectory_subject(prepared, scope)
    destination.refuse_inputs(subject.trajectory)
    return predict(settle(subject, options, compute, hooks), destination, compute, hooks)


def settle(
    subject: Subject,
    options: PredictOptions,
    compute: Compute,
    hooks: Hooks,
) -> Setting:
    """Plan what is asked for, after a look at the weights where the method is to be chosen.

    Raises:
        FitError: there is no answer, or (unless forced) none better than the last checkpoint.
    """
    record = None
    if options.as_adapter:
        check_adapter(subject, planned_for(subject, options))
    if options.method == AUTO:
        choice = choose(subject, options, compute, hooks)
        options, record = choice.options, choice.record
        subject = replace(subject, notices=(*subject.notices, *choice.notices))
    return plan_subject(subject, options, memory_bytes=compute.memory_bytes, auto=record)


def sweep_run(
    request: RunRequest,
    scope: ScopeOptions,
    options: PredictOptions,
    sweep_request: SweepRequest,
    destination: Destination,
    compute: Compute,
    hooks: Hooks,
) -> SweepAnswer:
    """Choose the size of a prediction by the user's own evaluation, and deliver the best.

    Raises:
        As `predict_run`.
    """
    destination.check(())
    prepared = prepare(open_trajectory(request), scope, stop_on_wrong_base=True)
    subject = trajectory_subject(prepared, scope)
    destination.refuse_inputs(subject.trajectory)
    return sweep(subject, options, sweep_request, destination, compute, hooks)


def compare_models(request: CompareRequest, compute: Compute, hooks: Hooks) -> Comparison:
    """Say how close two models are, in units of the update of the second.

    Raises:
        SourceError, HeaderError, TrajectoryError, FitError, ResourceError.
    """
    return compare(open_models(request), compute, hooks)


def repeat_run(
    manifest: Path, request: RunRequest, destination: Destination, compute: Compute, hooks: Hooks
) -> Prediction:
    """Repeat the prediction that a manifest records, from the same commits.

    `request.run` and `request.base` say where the checkpoints of a local run lie; for a run on a
    Hub only its token is used.

    Raises:
        As `predict_run`.
    """
    destination.check(())
    subject, options = recorded_subject(manifest, request)
    setting = plan_subject(subject, options, memory_bytes=compute.memory_bytes)
    return predict(setting, destination, compute, hooks)
