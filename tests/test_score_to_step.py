"""From a target score to a step: two regressions, and what they refuse."""

import math
import subprocess
import sys
from fractions import Fraction

import numpy as np
import pytest

from alpharl_hub.errors import ScoreError
from alpharl_hub.scores.to_step import StepBracket, check_rising, score_to_step

STEPS = (8, 16, 40, 88)
SCORES = (0.31, 0.38, 0.52, 0.83)


def test_step_of_a_target_score_is_by_numpy_least_squares() -> None:
    """Line and logit line are those of numpy.polyfit, inverted; the line is what is chosen."""
    bracket = score_to_step(STEPS, SCORES, 0.9)
    slope, intercept = np.polyfit(STEPS, SCORES, 1)
    assert bracket.step_line == pytest.approx((0.9 - intercept) / slope, rel=1e-12)
    scores_T = np.array(SCORES)
    slope, intercept = np.polyfit(STEPS, np.log(scores_T / (1 - scores_T)), 1)
    assert bracket.step_logit == pytest.approx((np.log(0.9 / 0.1) - intercept) / slope, rel=1e-12)
    assert bracket.chosen == bracket.step_line


def test_planted_curves_are_inverted_exactly() -> None:
    """A straight line is inverted by the line, a logistic curve by the logit line."""
    line = score_to_step((3, 10, 50), (0.13, 0.2, 0.6), 0.85)
    assert line.step_line == pytest.approx(75, rel=1e-12)
    logistic = tuple(1 / (1 + math.exp(-(step - 60) / 20)) for step in STEPS)
    curve = score_to_step(STEPS, logistic, 1 / (1 + math.exp(-3)))
    assert curve.step_logit == pytest.approx(120, rel=1e-12)


def test_error_rates_give_the_steps_of_accuracies() -> None:
    """With lower_is_better an error rate is the mirror of an accuracy, logit included."""
    errors = tuple(1 - score for score in SCORES)
    mirrored = score_to_step(STEPS, errors, 0.1, lower_is_better=True)
    straight = score_to_step(STEPS, SCORES, 0.9)
    assert mirrored.step_line == pytest.approx(straight.step_line, rel=1e-12)
    assert mirrored.step_logit == pytest.approx(straight.step_logit, rel=1e-12)
    with pytest.raises(ScoreError, match="lower-is-better"):
        score_to_step(STEPS, errors, 0.1)


@pytest.mark.parametrize(("scores", "target"), [(SCORES, 1.0), ((0.0, 0.2, 0.3, 0.4), 0.5)])
def test_no_logit_at_the_ends_of_the_scale(scores: tuple[float, ...], target: float) -> None:
    """Where a score or the target is not strictly inside (0, 1), only the line answers."""
    slope, intercept = np.polyfit(STEPS, scores, 1)
    bracket = score_to_step(STEPS, scores, target)
    assert bracket == StepBracket(pytest.approx((target - intercept) / slope, rel=1e-12), None)


@pytest.mark.parametrize(
    ("scores", "lower", "complaint"),
    [
        ((0.1, 0.1, 0.1, 0.1), False, "0.1 everywhere"),
        ((0.1, 0.1, 0.1, 0.1), True, "0.1 everywhere"),
        ((0.8, 0.5, 0.4, 0.3), False, "does not rise .*; give --target-step instead .or --lower"),
        ((0.3, 0.4, 0.5, 0.8), True, "does not fall .*; give --target-step instead$"),
        ((0.3, 0.4, 0.5, math.nan), False, "finite"),
        ((0.3, 0.4, 0.5, 1e300), False, "finite"),
    ],
)
def test_scores_that_do_not_get_better_are_refused(
    scores: tuple[float, ...], lower: bool, complaint: str
) -> None:
    """Flat, worsening and non-finite scores end in a line that names the steps."""
    with pytest.raises(ScoreError, match=f"scores of steps 8 to 88: .*{complaint}"):
        check_rising(STEPS, scores, lower)
    with pytest.raises(ScoreError, match=complaint):
        score_to_step(STEPS, scores, 0.9, lower)


@pytest.mark.parametrize(
    ("steps", "scores"),
    [
        ((21, 29, 33, 39), (0.3, 0.7, 0.2, 0.4)),
        ((16, 51, 56), (0.3, 0.6, 0.1)),
        ((6, 10, 20), (0.1, 0.5, 0.2)),
    ],
)
def test_rise_that_is_only_rounding_is_flat(
    steps: tuple[int, ...], scores: tuple[float, ...]
) -> None:
    """Scores whose exact slope is 0 are refused, although float64 sums leave one of about 1e-18."""
    exact = [Fraction(str(score)) for score in scores]
    assert sum((s * len(steps) - sum(steps)) * y for s, y in zip(steps, exact, strict=True)) == 0
    with pytest.raises(ScoreError, match="does not rise"):
        check_rising(steps, scores)


def test_one_step_and_unreachable_targets_are_refused() -> None:
    """One checkpoint makes no line, and no step reaches a score that is not a number."""
    with pytest.raises(ScoreError, match="two or more steps"):
        check_rising((10,), (0.5,))
    with pytest.raises(ScoreError, match="no step reaches it"):
        score_to_step(STEPS, SCORES, math.inf)
    with pytest.raises(ValueError, match="3 scores for 4 steps"):
        check_rising(STEPS, (0.1, 0.2, 0.3))


def test_reading_scores_does_not_import_torch() -> None:
    """The command line reads scores before it needs anything heavy."""
    code = "import sys, alpharl_hub.scores.to_step; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
