"""Predict models, top to bottom: plan, stream, write, publish."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

import torch

from alpharl_hub import strict_json
from alpharl_hub.card.make import CardFacts, card_files
from alpharl_hub.manifest import KIND_MODEL, MANIFEST_NAME, SCHEMA, Manifest, Notice, VersionsRecord
from alpharl_hub.numerics.direction import Trust
from alpharl_hub.output.journal import DEFAULT_PARENT
from alpharl_hub.prediction.adapter_delivery import AdapterDelivery, open_adapter_delivery
from alpharl_hub.prediction.delivery import Delivery, open_delivery
from alpharl_hub.prediction.destination import Destination, Lane, work_folder
from alpharl_hub.prediction.records import (
    ask_of,
    beyond_notice,
    pool_rounding,
    pool_trust,
    rounding_notice,
    share_notice,
    summarise_actions,
    tensor_records,
    trust_record,
)
from alpharl_hub.prediction.setting import Setting, method_record
from alpharl_hub.prediction.survey import survey
from alpharl_hub.prediction.window_work import PartResult
from alpharl_hub.push.model_upload import DEFAULT_BRANCH
from alpharl_hub.results import PredictedOutput, Prediction
from alpharl_hub.sources.contents import card_text
from alpharl_hub.version import __version__
from alpharl_hub.windows.streaming import Compute, Hooks, Reading, find_crew, stream


def predict(
    setting: Setting, destination: Destination, compute: Compute, hooks: Hooks
) -> Prediction:
    """Make all predictions of a setting: read once, write in place, publish at the end.

    Raises:
        ResourceError: memory or disk do not suffice; told before anything is read.
        WriteError, PushError: the output cannot be written or pushed.
    """
    plan = setting.plan
    windows, num_goals = (*plan.survey, *plan.windows), len(setting.target.goals)
    crew = find_crew(windows, compute, plan.num_deltas_held, num_goals)
    versions = VersionsRecord(__version__, torch.__version__, crew.name)
    known_by = {**identity(setting, versions), "uploaded_to": destination.uploaded_to}
    work = work_folder(destination, default_work_folder(known_by))
    lanes = destination.lanes([goal.step for goal in setting.target.goals])
    outputs = []
    with _open(setting, lanes, known_by, work) as delivery:
        reading = crew.reading(hooks)
        results = _stream(setting, delivery, reading)
        moved = reading.moved.notices
        manifests = [make_manifest(setting, versions, results, i, moved) for i in range(len(lanes))]
        for number, (lane, manifest) in enumerate(zip(lanes, manifests, strict=True)):
            small = small_files(setting, manifest, lane.destination)
            outputs.append(_finish(setting, delivery, number, lane, small))
    warnings = tuple(dict.fromkeys(w for manifest in manifests for w in manifest.warnings))
    return Prediction(
        schema=SCHEMA,
        outputs=tuple(outputs),
        actions=summarise_actions(manifests[-1].tensors),
        trust=manifests[-1].trust,
        warnings=warnings,
        auto=setting.auto,
    )


def _open(
    setting: Setting, lanes: Sequence[Lane], known_by: Mapping[str, object], work: Path
) -> AbstractContextManager[Delivery | AdapterDelivery]:
    subject, plan = setting.subject, setting.plan
    private = subject.run.private
    if setting.options.as_adapter:
        return open_adapter_delivery(lanes, private, plan, subject.trajectory, known_by, work)
    return open_delivery(lanes, private, plan, known_by, work)


def _finish(
    setting: Setting,
    delivery: Delivery | AdapterDelivery,
    number: int,
    lane: Lane,
    small: Mapping[str, bytes],
) -> PredictedOutput:
    pushed = delivery.finish(number, small)
    folder = lane.destination.folder
    return PredictedOutput(
        target_step=setting.target.goals[number].step,
        target_score=setting.options.target.target_score,
        path=str(folder) if folder is not None else None,
        url=pushed.url if pushed is not None else None,
        commit=pushed.commit if pushed is not None else None,
        manifest=str(folder / MANIFEST_NAME) if folder is not None else MANIFEST_NAME,
    )


def small_files(
    setting: Setting, manifest: Manifest, destination: Destination
) -> Mapping[str, bytes]:
    """Return what lies beside the weights: copied files, the manifest, the card."""
    files = {file.name: file.read() for file in setting.plan.copied}
    return {**files, **card_files(manifest, card_facts(setting, destination))}


def _stream(
    setting: Setting, delivery: Delivery | AdapterDelivery, reading: Reading
) -> list[PartResult]:
    trajectory, plan = setting.subject.trajectory, setting.plan
    recipe, main_reading = setting.recipe, reading
    if plan.survey:
        surveyed, main_reading = survey(setting, reading, delivery.journal)
        recipe = replace(recipe, surveyed=surveyed)
    by_window = stream(
        trajectory,
        plan.windows,
        delivery.worker(trajectory, recipe),
        main_reading,
        PartResult,
        delivery.journal,
        delivery.window_done,
    )
    return [result for index in sorted(by_window) for result in by_window[index]]


def identity(setting: Setting, versions: VersionsRecord) -> Mapping[str, object]:
    """Say what makes this run this run, for its journal: nothing that may change on a resume."""
    return {
        "versions": strict_json.to_plain(versions),
        "run": strict_json.to_plain(setting.subject.run),
        "method": strict_json.to_plain(method_record(setting, None)),
        "target_steps": [goal.step for goal in setting.target.goals],
        "windows": hashlib.sha256(repr(setting.plan.windows).encode()).hexdigest(),
    }


def make_manifest(
    setting: Setting,
    versions: VersionsRecord,
    results: Sequence[PartResult],
    number: int,
    notices: Sequence[Notice],
) -> Manifest:
    """Write down what was done for one goal, from the results of all windows in their order.

    `notices` are those of the reading.
    """
    subject, goal = setting.subject, setting.target.goals[number]
    trust, ratio = subject.trust, setting.target.ratio(goal)
    if subject.middle is not None:
        sums = [result.direction for result in results if result.direction is not None]
        pooled: Trust = pool_trust(sums, subject.steps_T, subject.middle)
        trust = trust_record(pooled, subject.steps_T[subject.middle], ratio)
    elif trust is not None:
        trust = ask_of(trust, ratio)
    tensors = tensor_records(results, setting.plan.files, number)
    rounding = pool_rounding(results, number)
    options = setting.options
    is_rank_1 = options.method == "alpharl" and options.rank == 1 and not options.keep_residual
    shares = share_notice([record.rank1_share for record in tensors]) if is_rank_1 else ()
    return Manifest(
        schema=SCHEMA,
        kind=KIND_MODEL,
        versions=versions,
        run=subject.run,
        method=method_record(setting, goal),
        rank=_rank(setting, results, number),
        trust=trust,
        rounding=rounding,
        tensors=tensors,
        copied_files=tuple(file.name for file in setting.plan.copied),
        warnings=(
            *setting.notices,
            *beyond_notice(trust),
            *shares,
            *rounding_notice(rounding),
            *notices,
        ),
        auto=setting.auto,
        backtest=subject.backtest,
    )


def _rank(setting: Setting, results: Sequence[PartResult], number: int) -> int | None:
    """Return the largest rank of an adapter's updates; of a model, the rank of its method."""
    if setting.options.as_adapter:
        return max((result.ranks[number] for result in results if result.ranks), default=0)
    return method_record(setting, None).rank


def default_work_folder(plan_identity: Mapping[str, object]) -> Path:
    """Return where a run works that has no output folder: named by what it is."""
    digest = hashlib.sha256(strict_json.dump(plan_identity).encode()).hexdigest()
    return Path(DEFAULT_PARENT) / digest[:16]


def card_facts(setting: Setting, destination: Destination) -> CardFacts:
    """Gather what the card needs and the manifest does not hold."""
    subject = setting.subject
    folder, push = destination.folder, destination.push
    name = folder.resolve().name if folder is not None else "model"
    return CardFacts(
        model_name=push.repo if push else name,
        license_override=destination.license_id,
        run_card=subject.trajectory.card or card_text(subject.last),
        base_card=card_text(subject.trajectory.base),
        branch=push.options.branch if push else DEFAULT_BRANCH,
        files_from_base=any(f.source is subject.trajectory.base for f in setting.plan.copied),
        template=destination.card_template,
    )
