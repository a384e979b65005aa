"""From a score to the step at which a run reaches it.

T checkpoints, s_t the step and y_t the score of checkpoint t. Scores enter as float64 and all is
computed in float64; a regression is ordinary least squares of the score on the step, inverted.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import linear_regression

from alpharl_hub.errors import ScoreError
from alpharl_hub.scores.table import MAX_SCORE

_ROUNDING = 1e-9
"""A line that rises by less than this share of the scores' spread is flat: float64 sums alone give
scores without a trend, such as 0.1, 0.2, 0.1, a rise of up to 1e-16 of it."""


@dataclass(frozen=True)
class StepBracket:
    """Two estimates of the step at which the score reaches a target.

    `step_line` is by a line of the score on the step, `step_logit` by a line of the score's logit,
    None where a score or the target is not strictly between 0 and 1.
    """

    step_line: float
    step_logit: float | None

    @property
    def chosen(self) -> float:
        """The step to extrapolate to: that of the line."""
        return self.step_line


def check_rising(
    steps_T: Sequence[int], scores_T: Sequence[float], lower_is_better: bool = False
) -> None:
    """Refuse scores that do not get better with the step: nothing can be extrapolated along them.

    Raises:
        ScoreError: fewer than two steps, scores that are all equal, or a least-squares line that is
            flat or goes the wrong way.
    """
    _fit_rising(steps_T, scores_T, lower_is_better, "score")


def score_to_step(
    steps_T: Sequence[int],
    scores_T: Sequence[float],
    target: float,
    lower_is_better: bool = False,
) -> StepBracket:
    """Find the step at which the score reaches `target`; the answer may lie before the history.

    Raises:
        ScoreError: the scores do not get better with the step, or the target is out of reach.
    """
    intercept, slope = _fit_rising(steps_T, scores_T, lower_is_better, "score")
    step_line = _invert(intercept, slope, target, target)
    if not all(0 < score < 1 for score in (*scores_T, target)):
        return StepBracket(step_line, None)
    logits_T = [_logit(score) for score in scores_T]
    intercept, slope = _fit_rising(steps_T, logits_T, lower_is_better, "logit of the score")
    return StepBracket(step_line, _invert(intercept, slope, _logit(target), target))


def _fit_rising(
    steps_T: Sequence[int], values_T: Sequence[float], lower_is_better: bool, what: str
) -> tuple[float, float]:
    """Give intercept and slope of the line through the values, if it gets better with the step."""
    if len(steps_T) != len(values_T):
        raise ValueError(f"{len(values_T)} scores for {len(steps_T)} steps")
    if len(set(steps_T)) < 2:
        raise ScoreError("scores at two or more steps are needed; add some, or give --target-step")
    first, last = min(steps_T), max(steps_T)
    where = f"scores of steps {first} to {last}"
    if not all(abs(value) <= MAX_SCORE for value in values_T):
        raise ScoreError(f"{where}: one is not a finite number below {MAX_SCORE:g}; mend it")
    spread = max(values_T) - min(values_T)
    if spread == 0:
        raise ScoreError(
            f"{where}: the {what} is {values_T[0]:.6g} everywhere, so no step follows from a score;"
            " give --target-step instead"
        )
    slope, intercept = linear_regression([float(step) for step in steps_T], values_T)
    gain = (-slope if lower_is_better else slope) * (last - first)
    if gain <= _ROUNDING * spread:
        course = "fall" if lower_is_better else "rise"
        hint = "" if lower_is_better else " (or --lower-is-better, where a lower score is better)"
        raise ScoreError(
            f"{where}: the {what} does not {course} with the step ({slope:+.3g} per step), so no"
            f" better one can be reached; give --target-step instead{hint}"
        )
    return intercept, slope


def _invert(intercept: float, slope: float, value: float, target: float) -> float:
    step = (value - intercept) / slope
    if not math.isfinite(step):
        raise ScoreError(f"target score {target:g}: no step reaches it; give another target")
    return step


def _logit(score: float) -> float:
    return math.log(score) - math.log1p(-score)
