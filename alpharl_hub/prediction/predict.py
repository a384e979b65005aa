"""Predict a model, top to bottom: open, prepare, plan, stream, write, publish."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from alpharl_hub import strict_json
from alpharl_hub.card.make import CardFacts, make_card
from alpharl_hub.errors import FitError
from alpharl_hub.manifest import (
    KIND_MODEL,
    MANIFEST_NAME,
    SCHEMA,
    Manifest,
    MethodRecord,
    Notice,
    RunRecord,
    TrustRecord,
    VersionsRecord,
)
from alpharl_hub.methods import Clock, Method, MethodOptions, Predictor, make_method
from alpharl_hub.methods.alpharl import AlphaRL
from alpharl_hub.numerics.direction import Trust
from alpharl_hub.output.factor_files import FactorFolder
from alpharl_hub.output.journal import DEFAULT_PARENT
from alpharl_hub.output.model_files import described_by, dtype_notice
from alpharl_hub.prediction.delivery import Delivery, Destination, open_delivery, work_folder
from alpharl_hub.prediction.planning import DTYPES, Decider, PredictionPlan, plan_prediction
from alpharl_hub.prediction.records import (
    ask_of,
    beyond_notice,
    pool_rounding,
    pool_trust,
    rounding_notice,
    share_notice,
    tensor_records,
    trust_record,
)
from alpharl_hub.prediction.targets import ResolvedTarget, TargetOptions, paper_of, resolve_target
from alpharl_hub.prediction.window_work import PartResult, Recipe, WindowPredictor
from alpharl_hub.push.model_upload import DEFAULT_BRANCH
from alpharl_hub.results import PredictedOutput, Prediction
from alpharl_hub.scope import Scope
from alpharl_hub.scores.table import require_scores
from alpharl_hub.sources.contents import card_text
from alpharl_hub.trajectory import CheckpointContents, Trajectory
from alpharl_hub.version import __version__
from alpharl_hub.windows.devices import Workers, choose_devices, compute_name, fit_workers
from alpharl_hub.windows.streaming import Compute, Hooks, Reading, stream


@dataclass(frozen=True)
class PredictOptions:
    """How to predict; the fields are the options of the command line.

    `others` is last, base or linear; `dtype` float32, float16, bfloat16 or None (as the last
    checkpoint has it).
    """

    method: str = "alpharl"
    target: TargetOptions = field(default_factory=TargetOptions)
    rescale: bool = True
    fit_last: int | float | None = None
    anchor: str = "base"
    damping: float = 1.0
    others: str = "last"
    dtype: str | None = None


@dataclass(frozen=True)
class Subject:
    """What a prediction is made of: a trajectory read now, or factors that were extracted before.

    With factors, `trajectory.history` is the last checkpoint alone, while `steps_T` and `scores_T`
    are those of the whole history; `trust` is then what was read during extraction.
    """

    trajectory: Trajectory
    scope: Scope
    run: RunRecord
    steps_T: tuple[int, ...]
    scores_T: tuple[float, ...] | None
    middle: int | None
    factors: FactorFolder | None
    certified: Mapping[str, bool]
    trust: TrustRecord | None
    notices: tuple[Notice, ...]

    @property
    def last(self) -> CheckpointContents:
        """The last checkpoint."""
        return self.trajectory.history[-1]


@dataclass(frozen=True)
class Setting:
    """A prediction that is about to be made."""

    subject: Subject
    options: PredictOptions
    target: ResolvedTarget
    recipe: Recipe
    plan: PredictionPlan
    notices: tuple[Notice, ...]


def plan_subject(subject: Subject, options: PredictOptions) -> Setting:
    """Settle method, target and plan, without reading any weight.

    Raises:
        FitError: the method has no answer for this target. ScoreError: no usable scores.
    """
    scores = subject.trajectory.scores
    if scores is not None and options.target.target_score is not None:
        require_scores(scores, subject.steps_T)
    lower = scores.lower_is_better if scores is not None else False
    target = resolve_target(
        options.method, subject.steps_T, subject.scores_T, options.target, lower
    )
    method_options = MethodOptions(options.rescale, options.target.scale, options.fit_last)
    method = make_method(options.method, target.clock, method_options)
    others = _others_method(subject, options, target)
    last_position = len(subject.trajectory.history) - 1
    decider = Decider(
        method=method,
        others=others,
        others_option=options.others,
        last_position=last_position,
        middle=subject.middle,
        factorised=frozenset(subject.factors.names()) if subject.factors else None,
    )
    dtype = DTYPES[options.dtype] if options.dtype else None
    trajectory = subject.trajectory
    plan = plan_prediction(subject.scope, trajectory.base, trajectory.history, decider, dtype)
    recipe = _recipe(subject, options, target, method, others, last_position)
    stored = subject.last.dtype
    notices = (
        *subject.notices,
        *target.notices,
        *(() if dtype else dtype_notice(described_by(subject.last, trajectory.base), stored)),
    )
    return Setting(subject, options, target, recipe, plan, notices)


def _others_method(
    subject: Subject, options: PredictOptions, target: ResolvedTarget
) -> Method | None:
    if options.others != "linear":
        return None
    assert target.step is not None, "every target has a step"
    # Of the checkpoints that are read, which with factors is the last one alone.
    return make_method("linear", Clock(subject.trajectory.steps_T, target.step), MethodOptions())


def _recipe(
    subject: Subject,
    options: PredictOptions,
    target: ResolvedTarget,
    method: Method,
    others: Method | None,
    last_position: int,
) -> Recipe:
    return Recipe(
        method=method,
        others=others,
        ready=_ready(subject, method),
        target=target.clock.target,
        others_target=target.step if target.step is not None else 0.0,
        last=target.clock.last,
        anchor=options.anchor,
        damping=options.damping,
        middle=subject.middle if subject.middle is not None else last_position,
        last_position=last_position,
    )


def _ready(subject: Subject, method: Method) -> Callable[[str, torch.device], Predictor] | None:
    factors = subject.factors
    if factors is None:
        return None
    if not isinstance(method, AlphaRL):
        raise FitError("a folder of factors holds rank-1 parts: --method alpharl, or name the run")
    certified = subject.certified

    def predictor(name: str, device: torch.device) -> Predictor:
        return method.from_factors(factors.read(name), device, certified.get(name, False))

    return predictor


def predict(
    setting: Setting, destination: Destination, compute: Compute, hooks: Hooks
) -> Prediction:
    """Make one prediction: read once, write in place, publish at the end.

    Raises:
        ResourceError: memory or disk do not suffice; told before anything is read.
        WriteError, PushError: the output cannot be written or pushed.
    """
    plan = setting.plan
    workers = fit_workers(
        plan.windows,
        choose_devices(compute.devices),
        plan.num_deltas_held,
        0,
        compute.memory_bytes,
    )
    versions = VersionsRecord(__version__, torch.__version__, compute_name(workers.devices))
    known_by = identity(setting, versions)
    work = work_folder(destination, default_work_folder(known_by))
    private = setting.subject.run.private
    with open_delivery(destination, private, plan, known_by, work) as delivery:
        results = _stream(setting, delivery, workers, hooks)
        manifest = make_manifest(setting, versions, results)
        pushed = delivery.finish(small_files(setting, manifest, destination))
    folder = destination.folder
    output = PredictedOutput(
        target_step=setting.target.step,
        target_score=setting.options.target.target_score,
        path=str(folder) if folder is not None else None,
        url=pushed.url if pushed is not None else None,
        commit=pushed.commit if pushed is not None else None,
        manifest=str(folder / MANIFEST_NAME) if folder is not None else MANIFEST_NAME,
    )
    return Prediction(SCHEMA, (output,), manifest.trust, manifest.warnings)


def small_files(
    setting: Setting, manifest: Manifest, destination: Destination
) -> Mapping[str, bytes]:
    """Return what lies beside the weights: copied files, the manifest, the card."""
    files = {file.name: file.read() for file in setting.plan.copied}
    files[MANIFEST_NAME] = manifest.to_json().encode()
    files["README.md"] = make_card(manifest, card_facts(setting, destination)).encode()
    return files


def _stream(
    setting: Setting, delivery: Delivery, workers: Workers, hooks: Hooks
) -> list[PartResult]:
    work = WindowPredictor(setting.subject.trajectory, setting.recipe, delivery.writer)
    by_window = stream(
        setting.subject.trajectory,
        setting.plan.windows,
        work,
        Reading(workers.devices, hooks),
        PartResult,
        delivery.journal,
        delivery.window_done,
    )
    return [result for index in sorted(by_window) for result in by_window[index]]


def method_record(setting: Setting) -> MethodRecord:
    """Write down the method with all that was set."""
    options, clock = setting.options, setting.target.clock
    paper, url = paper_of(options.method)
    return MethodRecord(
        name=options.method,
        paper=paper,
        url=url,
        response="score" if clock.by_score else "step",
        target_step=setting.target.step,
        target_score=options.target.target_score,
        rescale=options.rescale if options.method == "alpharl" else None,
        scale=options.target.scale,
        fit_last=None if options.fit_last is None else repr(options.fit_last),
        anchor=options.anchor,
        damping=options.damping,
        others=options.others,
        dtype=options.dtype,
    )


def identity(setting: Setting, versions: VersionsRecord) -> Mapping[str, object]:
    """Say what makes this run this run, for its journal: nothing that may change on a resume."""
    return {
        "versions": strict_json.to_plain(versions),
        "run": strict_json.to_plain(setting.subject.run),
        "method": strict_json.to_plain(method_record(setting)),
        "windows": hashlib.sha256(repr(setting.plan.windows).encode()).hexdigest(),
    }


def make_manifest(
    setting: Setting, versions: VersionsRecord, results: Sequence[PartResult]
) -> Manifest:
    """Write down what was done, from the results of all windows in their order."""
    subject = setting.subject
    trust = subject.trust
    if subject.middle is not None:
        sums = [result.direction for result in results if result.direction is not None]
        pooled: Trust = pool_trust(sums, subject.steps_T, subject.middle)
        trust = trust_record(pooled, subject.steps_T[subject.middle], setting.target.ratio)
    elif trust is not None:
        trust = ask_of(trust, setting.target.ratio)
    tensors = tensor_records(results, setting.plan.files)
    rounding = pool_rounding(results)
    shares = share_notice([record.rank1_share for record in tensors])
    return Manifest(
        schema=SCHEMA,
        kind=KIND_MODEL,
        versions=versions,
        run=subject.run,
        method=method_record(setting),
        rank=1 if setting.options.method == "alpharl" else None,
        trust=trust,
        rounding=rounding,
        tensors=tensors,
        copied_files=tuple(file.name for file in setting.plan.copied),
        warnings=(
            *setting.notices,
            *beyond_notice(trust),
            *shares,
            *rounding_notice(rounding),
        ),
    )


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
    )
