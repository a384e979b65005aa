"""The sweep from top to bottom: two endpoints in one reading, the search between and beyond, the
best model with its card.

Candidates are W_T + a (W_hat - W_T), or predictions at several steps of a method that is linear in
the step; either way all of them lie on the line through two models in fp32.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path

from alpharl_hub import strict_json
from alpharl_hub.card.make import card_files
from alpharl_hub.errors import FitError
from alpharl_hub.manifest import MANIFEST_NAME, Manifest, SweepRecord, read_manifest
from alpharl_hub.methods import AUTO
from alpharl_hub.output.folder import check_disk, publish, work_folder_beside, write_file
from alpharl_hub.output.journal import DEFAULT_PARENT, RESULT_FOLDER, Journal, open_journal
from alpharl_hub.prediction.automatic import planned_for
from alpharl_hub.prediction.destination import Destination, work_folder
from alpharl_hub.prediction.predict import card_facts, predict
from alpharl_hub.prediction.setting import (
    PredictOptions,
    Setting,
    Subject,
    method_record,
    plan_target,
    resolved,
)
from alpharl_hub.prediction.targets import Goal, ResolvedTarget, TargetOptions
from alpharl_hub.push.model_upload import PushResult, push_folder
from alpharl_hub.results import SCHEMA, PredictedOutput
from alpharl_hub.sweeping.results import SCALE, STEP, SweepAnswer, SweepOutcome
from alpharl_hub.sweeping.sweep import (
    Endpoints,
    SweepFolders,
    SweepHooks,
    SweepOptions,
    disk_need,
    run_sweep,
)
from alpharl_hub.version import __version__
from alpharl_hub.windows.streaming import Compute, Hooks

DEFAULT_RATIO = 2.0
"""Without a target, scale 1 is the prediction at twice the last step."""

_ENDPOINTS = "endpoints"
_BEST = "best"
_BEGUN = "begun"


@dataclass(frozen=True)
class SweepRequest:
    """What a sweep is: how candidates are scored and searched, and where their logs are kept.

    `hooks.on_disk` is told what disk all of it takes before anything is read.
    """

    options: SweepOptions
    logs: Path
    hooks: SweepHooks = field(default_factory=SweepHooks)


def sweep(
    subject: Subject,
    options: PredictOptions,
    request: SweepRequest,
    destination: Destination,
    compute: Compute,
    hooks: Hooks,
) -> SweepAnswer:
    """Find the best size and deliver that model.

    Raises:
        FitError: the method has no answer. ScoreError: an evaluation gave no score.
        ResourceError, WriteError, PushError: the disk or the Hub refuses.
    """
    request = _with_last(subject, options, request)
    final = _setting(subject, options, request, compute)
    endpoints_setting = _setting(subject, replace(options, dtype="float32"), request, compute)
    need = disk_need(final.plan.files)
    request.hooks.on_disk(need.total_bytes)
    known_by = _identity(final)
    work = work_folder(destination, _default_work(known_by))
    if not (work / RESULT_FOLDER).exists():
        check_disk(work, need.total_bytes)
    _check_push(subject, destination)
    with open_journal(work, known_by, destination.folder) as journal:
        _begin(work, journal)
        endpoints = _endpoints(endpoints_setting, final, work, compute, hooks)
        small = {file.name: file.read() for file in final.plan.copied}
        folders = SweepFolders(work, request.logs, work / RESULT_FOLDER / _BEST)
        quiet = replace(request.hooks, on_disk=lambda _: None)
        swept = run_sweep(endpoints, small, request.options, folders, journal, quiet)
        manifest = _manifest(final, endpoints, swept.outcome)
        pushed = _deliver(folders.result, manifest, final, destination)
        shutil.rmtree(work / _ENDPOINTS)
    folder = destination.folder
    output = PredictedOutput(
        target_step=manifest.method.target_step if manifest.method else None,
        target_score=None,
        path=str(folder) if folder is not None else None,
        url=pushed.url if pushed is not None else None,
        commit=pushed.commit if pushed is not None else None,
        manifest=str(folder / MANIFEST_NAME) if folder is not None else MANIFEST_NAME,
    )
    return SweepAnswer(SCHEMA, swept.outcome, output, str(request.logs), manifest.warnings)


def _with_last(subject: Subject, options: PredictOptions, request: SweepRequest) -> SweepRequest:
    """Have the last checkpoint scored too, where a prediction of its step is the same."""
    search = request.options.search
    is_anchored = options.method == AUTO or options.anchor == "last"
    last = float(subject.steps_T[-1])
    if search.axis != STEP or not is_anchored or search.values is None or last in search.values:
        return request
    wanted = replace(search, values=(last, *search.values))
    return replace(request, options=replace(request.options, search=wanted))


def _setting(
    subject: Subject, options: PredictOptions, request: SweepRequest, compute: Compute
) -> Setting:
    """Plan the two endpoints of the axis."""
    search = request.options.search
    last = float(subject.steps_T[-1])
    if search.axis == STEP:
        steps = sorted(set(search.grid()))
        ends = (steps[0], steps[-1] if len(steps) > 1 else steps[0] + last)
        asked = replace(options, target=TargetOptions(ends))
    elif not options.target.is_given:
        asked = replace(options, target=TargetOptions((DEFAULT_RATIO * last,)))
    else:
        asked = options
    if search.axis == SCALE:
        asked = planned_for(subject, asked)
        target = resolved(subject, asked)
        if len(target.goals) > 1:
            raise FitError("a sweep of scales needs one target; --target-steps sweeps over steps")
        goals = (Goal(None, last), *target.goals)
    else:
        # A method on another clock is not linear in the step.
        asked = planned_for(subject, replace(asked, target=TargetOptions(ends[-1:])))
        asked = replace(asked, target=TargetOptions(ends))
        target = resolved(subject, asked)
        goals = target.goals
    target = ResolvedTarget(target.clock, goals, target.notices)
    return plan_target(subject, asked, target, memory_bytes=compute.memory_bytes)


def _identity(setting: Setting) -> Mapping[str, object]:
    """Say what candidates are made of; which of them are tried, and how, may change."""
    return {
        "versions": {"tool": __version__, "torch": version("torch")},
        "sweep of": strict_json.to_plain(setting.subject.run),
        "method": strict_json.to_plain(method_record(setting, None)),
        "steps": [goal.step for goal in setting.target.goals],
    }


def _default_work(known_by: Mapping[str, object]) -> Path:
    digest = hashlib.sha256(strict_json.dump(known_by).encode()).hexdigest()
    return Path(DEFAULT_PARENT) / digest[:16]


def _check_push(subject: Subject, destination: Destination) -> None:
    """Find out what could stop the push at the end, and change nothing yet."""
    push = destination.push
    if push is not None:
        dry = replace(push, options=replace(push.options, dry_run=True))
        dry.begin(subject.run.private)


def _begin(work: Path, journal: Journal) -> None:
    """Have the journal say whose endpoints lie there; those that it does not know of go."""
    if _BEGUN in journal.results:
        return
    for folder in (work / _ENDPOINTS, work_folder_beside(work / _ENDPOINTS)):
        shutil.rmtree(folder, ignore_errors=True)
    journal.record(_BEGUN, True)


def _endpoints(
    setting: Setting, final: Setting, work: Path, compute: Compute, hooks: Hooks
) -> Endpoints:
    """Write both endpoints in one reading, unless an earlier start has done so."""
    place = Destination(work / _ENDPOINTS, overwrite=True)
    steps = [goal.step for goal in setting.target.goals]
    folders = [lane.destination.folder for lane in place.lanes(steps)]
    low, high = (folder for folder in folders if folder is not None)
    if not all((folder / MANIFEST_NAME).is_file() for folder in (low, high)):
        predict(setting, place, compute, hooks)
    if setting.target.goals[0].response is None:
        return Endpoints(low, high, 0.0, 1.0, final.plan.files, last_value=0.0)
    low_step, high_step = (step if step is not None else 0.0 for step in steps)
    at_last = float(setting.subject.steps_T[-1])
    is_anchored = setting.options.anchor == "last"
    return Endpoints(
        low, high, low_step, high_step, final.plan.files, at_last if is_anchored else None
    )


def _manifest(final: Setting, endpoints: Endpoints, outcome: SweepOutcome) -> Manifest:
    """Write down the best model: the endpoint's record, with the size that was chosen."""
    path = endpoints.high / MANIFEST_NAME
    found = read_manifest(strict_json.read_file(path), str(path))
    assert found.method is not None, "the endpoint is a predicted model"
    dtype = final.options.dtype
    method = replace(found.method, dtype=dtype)
    if outcome.axis == SCALE:
        method = replace(method, damping=outcome.best_value * found.method.damping)
    else:
        method = replace(method, target_step=outcome.best_value)
    dtypes = {ref.name: ref.dtype for file in final.plan.files for ref in file.tensors}
    tensors = tuple(
        replace(t, dtype=dtypes.get(t.name, t.dtype), rounding_loss=None, unchanged=None)
        for t in found.tensors
    )
    return replace(
        found,
        method=method,
        tensors=tensors,
        # Of the endpoint in fp32, not of this model.
        rounding=None,
        warnings=(*found.warnings, *outcome.notices),
        sweep=SweepRecord(
            axis=outcome.axis,
            values=tuple(row.value for row in outcome.rows),
            scores=tuple(row.score for row in outcome.rows),
            best_value=outcome.best_value,
            last_value=outcome.last_value,
            last_score=outcome.last_score,
            lower_is_better=outcome.lower_is_better,
        ),
    )


def _deliver(
    result: Path, manifest: Manifest, final: Setting, destination: Destination
) -> PushResult | None:
    """Add manifest and card to the best model, push it, and move it to its name."""
    # The endpoint's card stood for a folder of no name.
    told = replace(manifest, card=None)
    for name, data in card_files(told, card_facts(final, destination)).items():
        write_file(result / name, data)
    pushed, push = None, destination.push
    if push is not None:
        pushed = push_folder(result, push.repo, push.options, access=push.access, hooks=push.hooks)
    if destination.folder is not None:
        publish(result, destination.folder, destination.overwrite)
    return pushed
