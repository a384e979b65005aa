"""From what the user asks for (steps, a score, a scale) to the clock that a method runs on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from alpharl_hub.errors import FitError, ScoreError
from alpharl_hub.manifest import Notice
from alpharl_hub.methods import METHODS, Clock
from alpharl_hub.scores.to_step import check_rising, score_to_step

FAR_RATIO = 3.0
"""Beyond three times the last step every method lost ground on some measured run."""


@dataclass(frozen=True)
class Times:
    """Another clock than the steps: what it reads at every checkpoint, and at the target step."""

    times_T: tuple[float, ...]
    target: float


@dataclass(frozen=True)
class TargetOptions:
    """What is asked for: steps (one model each), a score or a scale, checked by `resolve_target`.

    Of `average`, which looks nowhere ahead, nothing is asked. `times` go with one target step.
    """

    target_steps: tuple[float, ...] = ()
    target_score: float | None = None
    scale: float | None = None
    times: Times | None = None

    @property
    def is_given(self) -> bool:
        """Whether anything is asked for."""
        return bool(self.target_steps) or (self.target_score, self.scale) != (None, None)


@dataclass(frozen=True)
class Goal:
    """One model to be predicted: at which response (a step, a time or a score), and what that is.

    `response` None stands for the last checkpoint itself. `step` is where the goal lies in steps.
    """

    response: float | None
    step: float | None


@dataclass(frozen=True)
class ResolvedTarget:
    """The clock, the goals, and what to tell the user."""

    clock: Clock
    goals: tuple[Goal, ...]
    notices: tuple[Notice, ...]

    def ratio(self, goal: Goal) -> float | None:
        """A goal as a multiple of the last step."""
        return None if goal.step is None else goal.step / self.clock.steps_T[-1]


def resolve_target(
    method: str,
    steps_T: Sequence[int],
    scores_T: tuple[float, ...] | None,
    options: TargetOptions,
    lower_is_better: bool,
) -> ResolvedTarget:
    """Turn what the user asks for into goals on a clock.

    `alpharl` takes a score as the paper does, as the response of its fit; for every other method
    the score is turned into a step first, by the line of score on step.

    Raises:
        FitError: nothing, or more than one thing, was asked for; a target out of reach.
        ScoreError: scores are missing, or do not rise.
    """
    steps = tuple(steps_T)
    asked = [options.target_steps or None, options.target_score, options.scale]
    num_asked = sum(value is not None for value in asked)
    if not METHODS[method].looks_ahead:
        if num_asked:
            raise FitError(f"--method {method} looks nowhere ahead; leave the target out")
        here = float(steps[-1])
        return ResolvedTarget(Clock(steps, scores_T), (Goal(here, here),), ())
    if num_asked != 1:
        raise FitError("no target, or several: give one of --target-step, --target-score, --scale")
    if options.target_score is not None:
        return _by_score(method, steps, scores_T, options.target_score, lower_is_better)
    targets = options.target_steps
    if options.scale is not None:
        targets = (options.scale * steps[-1],)
    elif len(set(targets)) < len(targets):
        raise FitError("--target-step: the same step twice; give each once")
    elif min(targets) < steps[0]:
        raise FitError(
            f"step {min(targets):g} lies before the history, which begins at {steps[0]}; ask for a "
            "later one"
        )
    notices = [notice for target in targets for notice in _step_notices(target, steps)]
    times = options.times
    if times is not None:
        clock = Clock(steps, scores_T, times_T=times.times_T)
        return ResolvedTarget(clock, (Goal(times.target, targets[0]),), tuple(notices))
    goals = tuple(Goal(target, target) for target in targets)
    return ResolvedTarget(Clock(steps, scores_T), goals, tuple(notices))


def _by_score(
    method: str,
    steps_T: tuple[int, ...],
    scores_T: tuple[float, ...] | None,
    target: float,
    lower_is_better: bool,
) -> ResolvedTarget:
    if scores_T is None:
        raise ScoreError(
            "--target-score needs the score of every checkpoint; give them with --scores FILE, or "
            "name a logged one with --score-key"
        )
    check_rising(steps_T, scores_T, lower_is_better=lower_is_better)
    bracket = score_to_step(steps_T, scores_T, target, lower_is_better=lower_is_better)
    step = bracket.chosen
    words = f"a score of {target:g} lies at step {bracket.step_line:.0f} by a line"
    if bracket.step_logit is not None:
        words += f", at step {bracket.step_logit:.0f} by a line of its logit"
    notices = (Notice("score_bracket", words), *_step_notices(step, steps_T))
    is_ahead = target < scores_T[-1] if lower_is_better else target > scores_T[-1]
    if is_ahead and step <= steps_T[-1]:
        message = (
            f"the scores level off: the last one is {scores_T[-1]:g} and the line has {target:g} "
            "before it; --target-step aims ahead"
        )
        notices = (notices[0], Notice("scores_level_off", message))
    if step < steps_T[0]:
        raise FitError(
            f"{words}, before the first checkpoint of the history ({steps_T[0]}); ask for a better "
            "score"
        )
    by_score = method == "alpharl"
    clock = Clock(steps_T, scores_T, by_score)
    return ResolvedTarget(clock, (Goal(target if by_score else step, step),), notices)


def _step_notices(step: float, steps_T: tuple[int, ...]) -> tuple[Notice, ...]:
    if step <= steps_T[-1]:
        message = (
            f"step {step:g} lies within the history (up to {steps_T[-1]}): an interpolation; "
            "--until predicts it from earlier steps alone"
        )
        return (Notice("interpolation", message),)
    if step > FAR_RATIO * steps_T[-1]:
        message = f"step {step:g} is {step / steps_T[-1]:.1f} x the last checkpoint: very far ahead"
        return (Notice("far", message),)
    return ()


def paper_of(method: str) -> tuple[str, str]:
    """Return (paper, url) of a method."""
    return METHODS[method].paper, METHODS[method].url
