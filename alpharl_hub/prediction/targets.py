"""From what the user asks for (a step, a score, a scale) to the clock that a method runs on."""

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
class TargetOptions:
    """What is asked for; exactly one of the three, checked by `resolve_target`."""

    target_step: float | None = None
    target_score: float | None = None
    scale: float | None = None


@dataclass(frozen=True)
class ResolvedTarget:
    """The clock, the step that is aimed at where it is known, and what to tell the user."""

    clock: Clock
    step: float | None
    notices: tuple[Notice, ...]

    @property
    def ratio(self) -> float | None:
        """The target as a multiple of the last step."""
        return None if self.step is None else self.step / self.clock.steps_T[-1]


def resolve_target(
    method: str,
    steps_T: Sequence[int],
    scores_T: tuple[float, ...] | None,
    options: TargetOptions,
    lower_is_better: bool,
) -> ResolvedTarget:
    """Turn the user's target into a clock.

    `alpharl` takes a score as the paper does, as the response of its fit; for every other method
    the score is turned into a step first, by the line of score on step.

    Raises:
        FitError: nothing, or more than one thing, was asked for; a target out of reach.
        ScoreError: scores are missing, or do not rise.
    """
    given = [v for v in (options.target_step, options.target_score, options.scale) if v is not None]
    if len(given) != 1:
        raise FitError("give one of --target-step, --target-score and --scale")
    steps = tuple(steps_T)
    if options.target_score is not None:
        return _by_score(method, steps, scores_T, options.target_score, lower_is_better)
    step = options.target_step
    if step is None:
        assert options.scale is not None
        step = options.scale * steps[-1]
    return ResolvedTarget(Clock(steps, step, scores_T), step, _step_notices(step, steps))


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
    if method == "alpharl":
        return ResolvedTarget(Clock(steps_T, target, scores_T, by_score=True), step, notices)
    return ResolvedTarget(Clock(steps_T, step, scores_T), step, notices)


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
