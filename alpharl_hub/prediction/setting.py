"""What is settled before anything is read: the subject, the options, the goals and the plan."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import torch

from alpharl_hub.errors import FitError
from alpharl_hub.manifest import (
    AutoRecord,
    BacktestRecord,
    MethodRecord,
    Notice,
    RunRecord,
    TrustRecord,
)
from alpharl_hub.methods import AUTO, METHODS, Clock, Method, MethodOptions, Predictor, make_method
from alpharl_hub.methods.alpharl import AlphaRL
from alpharl_hub.output.factor_files import FactorFolder
from alpharl_hub.output.model_files import described_by, dtype_notice
from alpharl_hub.prediction.adapter_planning import AdapterWish, plan_adapter, require_low_rank
from alpharl_hub.prediction.planning import (
    DTYPES,
    MAX_HELD_BYTES,
    Decider,
    PredictionPlan,
    layout_of,
    plan_prediction,
)
from alpharl_hub.prediction.targets import (
    Goal,
    ResolvedTarget,
    TargetOptions,
    paper_of,
    resolve_target,
)
from alpharl_hub.prediction.window_work import RESIDUAL, Aim, Recipe
from alpharl_hub.scope import Scope
from alpharl_hub.scores.table import require_scores
from alpharl_hub.trajectory import CheckpointContents, Trajectory


@dataclass(frozen=True)
class PredictOptions:
    """How to predict; the fields are the options of the command line.

    `method` is one of METHODS or AUTO. `anchor` is base or last; `others` last, base or linear, or
    None for what `as_adapter` allows: base for runs of whole models, else last. `as_adapter` writes
    the update as a LoRA adapter.
    `dtype` float32, float16, bfloat16 or None (as the last checkpoint has it). `force` goes on
    where AUTO would keep the last checkpoint.
    """

    method: str = AUTO
    target: TargetOptions = field(default_factory=TargetOptions)
    rescale: bool = True
    rank: int = 1
    keep_residual: bool = False
    fit_last: int | float | None = None
    anchor: str = "base"
    damping: float = 1.0
    others: str | None = "last"
    dtype: str | None = None
    force: bool = False
    as_adapter: bool = False


@dataclass(frozen=True)
class Subject:
    """What a prediction is made of: a trajectory read now, or factors that were extracted before.

    With factors, `trajectory.history` is the last checkpoint alone, while `steps_T` and `scores_T`
    are those of the whole history; `trust` is then what was read during extraction. `backtest` is
    what the manifest that all this was read from has of the run.
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
    backtest: BacktestRecord | None = None

    @property
    def last(self) -> CheckpointContents:
        """The last checkpoint."""
        return self.trajectory.history[-1]

    @property
    def lower_is_better(self) -> bool:
        """Whether small scores are good ones."""
        scores = self.trajectory.scores
        return scores is not None and scores.lower_is_better


@dataclass(frozen=True)
class Setting:
    """One or more predictions that are about to be made in one reading; `auto` says who chose."""

    subject: Subject
    options: PredictOptions
    target: ResolvedTarget
    recipe: Recipe
    plan: PredictionPlan
    notices: tuple[Notice, ...]
    auto: AutoRecord | None = None


def plan_subject(
    subject: Subject,
    options: PredictOptions,
    *,
    memory_bytes: int | None = None,
    auto: AutoRecord | None = None,
) -> Setting:
    """Settle method, goals and plan, without reading any weight.

    `memory_bytes` bounds what may be held of one tensor.

    Raises:
        FitError: the method has no answer for this target. ScoreError: no usable scores.
    """
    target = resolved(subject, options)
    return plan_target(subject, options, target, memory_bytes=memory_bytes, auto=auto)


def resolved(subject: Subject, options: PredictOptions) -> ResolvedTarget:
    """Turn the target into goals, scores looked up where they are needed."""
    scores = subject.trajectory.scores
    if scores is not None and options.target.target_score is not None:
        require_scores(scores, subject.steps_T)
    return resolve_target(
        options.method, subject.steps_T, subject.scores_T, options.target, subject.lower_is_better
    )


def plan_target(
    subject: Subject,
    options: PredictOptions,
    target: ResolvedTarget,
    *,
    memory_bytes: int | None = None,
    auto: AutoRecord | None = None,
) -> Setting:
    """Plan what makes these goals.

    Raises:
        FitError: the method has no answer.
    """
    options = replace(options, others=settled_others(subject, options))
    if options.as_adapter:
        check_adapter(subject, options)
    method = make_method(options.method, target.clock, method_options(options))
    others = _others_method(subject, options)
    last_position = len(subject.trajectory.history) - 1
    decider = Decider(
        method=method,
        others=others,
        others_option=settled_others(subject, options),
        last_position=last_position,
        middle=subject.middle,
        factorised=frozenset(subject.factors.names()) if subject.factors else None,
        max_held_bytes=MAX_HELD_BYTES if memory_bytes is None else memory_bytes // 4,
    )
    dtype = DTYPES[options.dtype] if options.dtype else None
    trajectory = subject.trajectory
    if options.as_adapter:
        plan = plan_adapter(subject.scope, trajectory, decider, options.rank, dtype)
    else:
        plan = plan_prediction(subject.scope, trajectory.base, trajectory.history, decider, dtype)
    layout = layout_of(trajectory.base, subject.last)
    notices = (
        *subject.notices,
        *target.notices,
        *_adapter_notice(subject, options),
        *(
            ()
            if dtype or options.as_adapter
            else dtype_notice(described_by(layout, trajectory.base), layout.dtype)
        ),
    )
    recipe = Recipe(
        method=method,
        others=others,
        ready=_ready(subject, method),
        aims=tuple(Aim(goal.response, goal.step or 0.0) for goal in target.goals),
        last=target.clock.last,
        anchor=_anchor(options),
        damping=options.damping,
        middle=subject.middle if subject.middle is not None else last_position,
        last_position=last_position,
    )
    return Setting(subject, options, target, recipe, plan, notices, auto)


def _adapter_notice(subject: Subject, options: PredictOptions) -> tuple[Notice, ...]:
    """Say what an adapter of a run of whole models leaves behind."""
    if not options.as_adapter or subject.last.adapter is not None:
        return ()
    message = (
        "as an adapter the prediction leaves embeddings, norms and all else out of scope at the "
        "base's values (--others base); a whole model takes them from the last checkpoint"
    )
    return (Notice("adapter_others", message),)


def settled_others(subject: Subject, options: PredictOptions) -> str:
    """Return where tensors out of scope come from, where that was left open."""
    if options.others is not None:
        return options.others
    return "base" if options.as_adapter and subject.last.adapter is None else "last"


def check_adapter(subject: Subject, options: PredictOptions) -> None:
    """Refuse to write as an adapter what has full rank.

    Raises:
        FitError: names the rank that would be needed.
    """
    wish = AdapterWish(
        method=options.method,
        keep_residual=options.keep_residual,
        anchor=options.anchor,
        damping=options.damping,
        others=settled_others(subject, options),
    )
    require_low_rank(subject.scope, subject.last.adapter is not None, wish)


def method_options(options: PredictOptions) -> MethodOptions:
    """Return what concerns the method."""
    return MethodOptions(
        rescale=options.rescale,
        rank=options.rank,
        keep_residual=options.keep_residual,
        scale=options.target.scale,
        fit_last=options.fit_last,
    )


def _anchor(options: PredictOptions) -> str:
    # Anchored at the last checkpoint, the rest of its update is kept anyway.
    keeps = options.keep_residual and options.anchor == "base"
    return RESIDUAL if keeps else options.anchor


def _others_method(subject: Subject, options: PredictOptions) -> Method | None:
    if options.others != "linear":
        return None
    # Of the checkpoints that are read, which with factors is the last one alone.
    return make_method("linear", Clock(subject.trajectory.steps_T), MethodOptions())


def _ready(subject: Subject, method: Method) -> Callable[[str, torch.device], Predictor] | None:
    factors = subject.factors
    if factors is None:
        return None
    if not isinstance(method, AlphaRL):
        raise FitError(
            "a folder of factors holds rank-1 parts: add --method alpharl, or name the run"
        )
    certified = subject.certified

    def predictor(name: str, device: torch.device) -> Predictor:
        return method.from_factors(factors.read(name), device, certified.get(name, False))

    return predictor


def method_record(setting: Setting, goal: Goal | None) -> MethodRecord:
    """Write down the method with all that was set; without a goal, what all of them share."""
    options, clock = setting.options, setting.target.clock
    paper, url = paper_of(options.method)
    known = METHODS[options.method].options
    return MethodRecord(
        name=options.method,
        paper=paper,
        url=url,
        response="score" if clock.by_score else "step",
        target_step=None if goal is None else goal.step,
        target_score=options.target.target_score,
        rescale=options.rescale and not options.keep_residual if "rescale" in known else None,
        scale=options.target.scale,
        fit_last=None if options.fit_last is None else repr(options.fit_last),
        anchor=options.anchor,
        damping=options.damping,
        others=settled_others(setting.subject, options),
        dtype=options.dtype,
        rank=options.rank if "rank" in known else None,
        keep_residual=options.keep_residual if "keep_residual" in known else None,
        times=clock.times_T,
        target_time=None if goal is None or clock.times_T is None else goal.response,
        as_adapter=options.as_adapter or None,
    )
