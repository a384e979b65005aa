"""`--method auto`: look at the direction of the run first, then choose how far to go and with what.

The method is least squares over the recent half of the steps, anchored at the last checkpoint: of
the linear methods, which lie close together inside a safe horizon, the one that gains most from
rounded checkpoints. How far is decided by `numerics.horizon`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from alpharl_hub.errors import FitError
from alpharl_hub.executors.local import WindowReads
from alpharl_hub.manifest import AutoRecord, Notice
from alpharl_hub.methods import AUTO
from alpharl_hub.numerics.direction import DirectionSums, Trust, sample_entries, sampled_direction
from alpharl_hub.numerics.horizon import MIN_RATIO, Decision, Evidence, decide
from alpharl_hub.numerics.score_course import score_evidence
from alpharl_hub.prediction.deltas import dense_weights, origin_of
from alpharl_hub.prediction.records import pool_trust
from alpharl_hub.prediction.setting import PredictOptions, Subject, resolved
from alpharl_hub.prediction.targets import TargetOptions, Times
from alpharl_hub.preparation import nearest_middle
from alpharl_hub.scope import ScopedTensor
from alpharl_hub.scores.learning_rates import (
    LearningRateClock,
    ScheduleReading,
    read_schedule,
)
from alpharl_hub.sources.contents import trainer_state_text
from alpharl_hub.trajectory import CheckpointContents, nearest_steps
from alpharl_hub.windows.plan import Window, group_by_bytes, plan_analysis, read_cost
from alpharl_hub.windows.streaming import Compute, Hooks, find_crew, stream

METHOD = "ols"

_MAX_PROBED = 32
"""Of so many matrices, spread over the layers, the cosine is within 0.02 of that of all."""

_MAX_STATE_BYTES = 4 << 20


@dataclass(frozen=True)
class _Probed:
    direction: DirectionSums


class _WindowProber:
    """Reads the direction of matrices; one object serves all workers."""

    def __init__(self, middle: int, last: int) -> None:
        self._middle = middle
        self._last = last

    def __call__(self, reads: WindowReads, device: str) -> tuple[_Probed, ...]:
        """Do one window on one device."""
        found = dict(reads.readings)
        probed = []
        for place, part in enumerate(reads.window.parts):
            origin = origin_of(found, place)
            middle_ES, last_ES = (
                sample_entries(dense_weights(part, position, found[position][place], origin))
                for position in (self._middle, self._last)
            )
            sums = sampled_direction(sample_entries(origin.base), middle_ES, last_ES)
            probed.append(_Probed(sums))
        return tuple(probed)


@dataclass(frozen=True)
class Choice:
    """What was chosen, why, and what to tell the user."""

    options: PredictOptions
    record: AutoRecord
    notices: tuple[Notice, ...]


def choose(subject: Subject, options: PredictOptions, compute: Compute, hooks: Hooks) -> Choice:
    """Choose method, window and horizon; reads three checkpoints of up to 32 matrices.

    Raises:
        FitError: the last checkpoint is the best guess, and `options.force` is not set.
    """
    if subject.factors is not None:
        raise FitError(
            "a folder of factors holds rank-1 parts, too little for --method auto to choose by; "
            "add --method alpharl and a --target-step, or name the run"
        )
    asked = _asked(subject, options)
    if asked is not None and not options.force:
        _refuse_the_past(asked, subject.steps_T)
    middle = nearest_middle(subject.steps_T)
    trust = read_direction(subject, middle, compute, hooks)
    rates = learning_rates(subject.last, subject.steps_T[-1])
    decision = _before_the_end(
        decide(
            Evidence(
                trust=trust,
                steps_T=tuple(float(step) for step in subject.steps_T),
                middle=middle,
                scores=score_evidence(subject.trajectory.scores, subject.steps_T),
                asked=asked,
            )
        ),
        rates.clock,
        subject.steps_T[-1],
    )
    if options.force:
        step, clock = _forced(decision, asked), None
    elif decision.goes_on:
        # Steps are whole numbers, unless others were asked for, and none goes beyond the limit.
        whole = float(math.floor(decision.step + 1e-9))
        step = decision.step if decision.step == asked else whole
        clock = rates.uneven_clock
    else:
        raise FitError(_refusal(decision, asked))
    clock_words = name_clock(clock, rates)
    middle_step = subject.steps_T[middle]
    record = _record(decision, trust, middle_step, asked, clock_words, options.force)
    chosen = _chosen(subject, options, step, clock)
    return Choice(chosen, record, _notices(decision, asked, step, rates))


def _refuse_the_past(asked: float, steps_T: Sequence[int]) -> None:
    """Refuse a step that the run has been at, before anything is read.

    Raises:
        FitError: says where the run ends, and which checkpoints there are instead.
    """
    last = steps_T[-1]
    if asked > last:
        return
    if asked == last:
        seen = f"step {asked:g} is the last checkpoint itself: aim beyond it"
    else:
        near = int(asked) if asked in steps_T else nearest_steps(int(asked), steps_T)
        seen = (
            f"step {asked:g} lies before the last checkpoint ({last}): aim beyond it, or take the "
            f"run's own of step {near}"
        )
    raise FitError(f"auto writes nothing: {seen}; --force predicts it")


def _before_the_end(
    decision: Decision, clock: LearningRateClock | None, last_step: int
) -> Decision:
    """Go no farther than the schedule of the learning rate: beyond it no weight moves."""
    if clock is None or clock.max_steps is None or decision.step <= clock.max_steps:
        return decision
    end = float(clock.max_steps)
    ratio = end / last_step if clock.time(end) >= MIN_RATIO * clock.time(last_step) else 1.0
    words = f"the learning rate ends at step {clock.max_steps}, and with it the run"
    if ratio == 1:
        words += ": the last checkpoint is the best guess. --force extrapolates"
    bound = "learning_rate"
    # The last word on how far is this one.
    sentences = (*decision.sentences[:-1], words)
    return replace(decision, ratio=ratio, step=ratio * last_step, bound=bound, sentences=sentences)


def _refusal(decision: Decision, asked: float | None) -> str:
    """Say why nothing is written: what was seen first, what can be done last."""
    words = "; ".join(decision.sentences)
    if asked is None:
        words = words.replace("--force extrapolates", "--force with a --target-step extrapolates")
    return f"auto writes nothing: {words}"


def _notices(
    decision: Decision, asked: float | None, step: float, rates: ScheduleReading
) -> tuple[Notice, ...]:
    notices = []
    if asked is not None and step < asked:
        message = f"step {asked:g} was asked for and step {step:g} is predicted; --force goes on"
        notices.append(Notice("auto_stops_short", message))
    if rates.has_changed:
        message = f"{rates.reason}: the run may go on otherwise than it went; see backtest"
        notices.append(Notice("learning_rate_changed", message))
    return tuple(notices)


def name_clock(clock: LearningRateClock | None, rates: ScheduleReading) -> str:
    """Say what is extrapolated against, and why."""
    if clock is None:
        return f"steps ({rates.reason})"
    return f"cumulative learning rate ({clock.words})"


def planned_for(subject: Subject, options: PredictOptions) -> PredictOptions:
    """Return what AUTO would make of the options as far as costs depend on it; nothing is read."""
    if options.method != AUTO:
        return options
    asked = _asked(subject, options)
    return _chosen(subject, options, asked or float(subject.steps_T[-1]), None)


def probe_cost(subject: Subject, options: PredictOptions) -> tuple[int, int]:
    """Return (bytes, requests) of what choosing reads before the prediction does; 0 without AUTO.

    The log of the trainer, a file of some kB, is not counted.
    """
    middle, last = nearest_middle(subject.steps_T), len(subject.steps_T) - 1
    if options.method != AUTO or middle == last:
        return 0, 0
    return read_cost(_probe_windows(subject.scope.matrices, (middle, last)))


def _asked(subject: Subject, options: PredictOptions) -> float | None:
    """Return the step that is asked for, a score turned into one; None for as far as is safe."""
    target = options.target
    if len(target.target_steps) > 1:
        raise FitError("--method auto chooses one step; give one, or name a --method")
    if not target.is_given:
        return None
    goals = resolved(subject, replace(options, method=METHOD)).goals
    return goals[0].step


def _chosen(
    subject: Subject, options: PredictOptions, step: float, clock: LearningRateClock | None
) -> PredictOptions:
    window = max(2, len(subject.steps_T) - nearest_middle(subject.steps_T))
    times = None
    if clock is not None:
        times = Times(tuple(clock.time(s) for s in subject.steps_T), clock.time(step))
    return replace(
        options,
        method=METHOD,
        target=TargetOptions((step,), times=times),
        fit_last=min(window, len(subject.steps_T)),
        anchor="last",
        others="last",
    )


def _forced(decision: Decision, asked: float | None) -> float:
    if asked is not None:
        return asked
    if decision.goes_on:
        return decision.step
    raise FitError("--force without a target: say how far with --target-step N")


def read_direction(subject: Subject, middle: int, compute: Compute, hooks: Hooks) -> Trust:
    """Read how steady the direction of the run is, on up to 32 matrices.

    Raises:
        SourceError: something cannot be read. ResourceError: the memory does not suffice.
    """
    last = len(subject.steps_T) - 1
    if middle == last:
        return pool_trust((), subject.steps_T, middle)
    windows = _probe_windows(subject.scope.matrices, (middle, last))
    crew = find_crew(windows, compute)
    found = stream(
        subject.trajectory,
        windows,
        _WindowProber(middle, last),
        crew.reading(hooks),
        _Probed,
    )
    sums = [probed.direction for index in sorted(found) for probed in found[index]]
    return pool_trust(sums, subject.steps_T, middle)


def _probe_windows(
    matrices: Sequence[ScopedTensor], positions: Sequence[int]
) -> tuple[Window, ...]:
    parts = [part for window in plan_analysis(matrices, positions) for part in window.parts]
    count = min(_MAX_PROBED, len(parts))
    chosen = [parts[i * len(parts) // count] for i in range(count)]
    return tuple(Window(i, group) for i, group in enumerate(group_by_bytes(chosen)))


def learning_rates(last: CheckpointContents, step: int) -> ScheduleReading:
    """Read how the learning rate went, from the log of the last checkpoint."""
    text = trainer_state_text(last, _MAX_STATE_BYTES)
    if text is None:
        return ScheduleReading(None, "no trainer_state.json says how the learning rate went")
    return read_schedule(text, step)


def _record(
    decision: Decision,
    trust: Trust,
    middle_step: int,
    asked: float | None,
    clock: str,
    forced: bool,
) -> AutoRecord:
    return AutoRecord(
        asked_step=asked,
        ratio=decision.ratio,
        bound_by=decision.bound,
        cosine=trust.cosine,
        cosine_all_entries=trust.cosine_all_entries,
        share_of_entries=trust.share_of_entries,
        floor=trust.floor,
        speed=trust.speed,
        middle_step=middle_step,
        line=decision.line,
        vertex=decision.vertex,
        num_problems=decision.num_problems,
        clock=clock,
        forced=forced,
        words=decision.sentences,
    )
