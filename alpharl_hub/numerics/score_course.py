"""What the scores of a run say about the way ahead.

Letters: s_t, y_t step and score of checkpoint t = 0 .. T - 1 (y_0 of the base where it is known),
m the checkpoint nearest half of the last step, n the number of problems behind a score,
z = logit(y), x = s / s_T with s_T the last step. A ratio is a multiple of the last step.

Convention: float64 throughout; regressions are ordinary least squares, of values less the first
one, so that scores which never move give exact zeros.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from alpharl_hub.scores.table import ScoreTable

AIM = 0.99
ASSUMED_PROBLEMS = 1000

ROUNDING = 1e-9
"""Trends below this share of the scores' spread are rounding of float64 sums."""


@dataclass(frozen=True)
class ScoreEvidence:
    """The score of every checkpoint, in the order of steps.

    `base` is the base's score and `num_problems` how many problems each score is a mean over; None
    where unknown. ASSUMED_PROBLEMS stands in for an unknown number.
    """

    scores_T: tuple[float, ...]
    base: float | None = None
    num_problems: int | None = None
    lower_is_better: bool = False


def score_evidence(table: ScoreTable | None, steps_T: Sequence[int]) -> ScoreEvidence | None:
    """Take the scores of these checkpoints, where every one of them has one."""
    found = [] if table is None else [table.at(step) for step in steps_T]
    scores = tuple(score for score in found if score is not None)
    if table is None or len(scores) < len(steps_T):
        return None
    return ScoreEvidence(scores, base=table.at(0), lower_is_better=table.lower_is_better)


@dataclass(frozen=True)
class ScoreCourse:
    """Scores turned so that more is better; `values_T` are logits where all scores are shares."""

    scores_T: tuple[float, ...]
    values_T: tuple[float, ...]
    base_value: float | None
    is_share: bool
    num_problems: int

    @property
    def noise(self) -> float | None:
        """Two standard errors of the last score; None for a score that is no share."""
        if not self.is_share:
            return None
        last = _clip(self.scores_T[-1], self.num_problems)
        return 2 * math.sqrt(last * (1 - last) / self.num_problems)

    def line(self, steps_T: Sequence[float], middle: int) -> float | None:
        """Return the ratio at which the steeper of two logit lines reaches AIM, at least 1.

        One line goes from the base to the last checkpoint, the other fits the recent half. 1 where
        neither rises or AIM is reached already; None without logits.
        """
        if not self.is_share:
            return None
        last, value = steps_T[-1], self.values_T[-1]
        slope = _slope(steps_T[middle:], self.values_T[middle:])
        values = list(self.values_T)
        if self.base_value is not None:
            slope = max(slope, (value - self.base_value) / last)
            values.append(self.base_value)
        ahead = _logit(AIM) - value
        is_flat = slope * last <= ROUNDING * (max(values) - min(values))
        return 1.0 if ahead <= 0 or is_flat else 1 + ahead / (slope * last)

    def vertex(self, steps_T: Sequence[float]) -> float | None:
        """Return the ratio at which the parabola through base and checkpoints peaks, at least 1.

        None where it does not bend downwards. With p = x - mean and q = p^2 - shift p - mean of
        p^2, which are orthogonal, each coefficient is found by itself.
        """
        x_P, y_P = [step / steps_T[-1] for step in steps_T], list(self.values_T)
        if self.base_value is not None:
            x_P, y_P = [0.0, *x_P], [self.base_value, *y_P]
        y_P = [y - y_P[0] for y in y_P]
        mean = math.fsum(x_P) / len(x_P)
        p_P = [x - mean for x in x_P]
        squares = math.fsum(p * p for p in p_P)
        shift = math.fsum(p**3 for p in p_P) / squares
        q_P = [p * p - shift * p - squares / len(x_P) for p in p_P]
        slope = math.fsum(p * y for p, y in zip(p_P, y_P, strict=True)) / squares
        bend = math.fsum(q * y for q, y in zip(q_P, y_P, strict=True))
        bend /= math.fsum(q * q for q in q_P)
        if bend >= -ROUNDING * (max(y_P) - min(y_P)):
            return None
        return max(1.0, mean + (shift - slope / bend) / 2)

    def best_observed(self) -> int | None:
        """Return the best checkpoint if it beats the last by more than noise, the latest of equals.

        None where the noise is unknown.
        """
        if self.noise is None:
            return None
        best = max(range(len(self.scores_T)), key=lambda t: (self.scores_T[t], t))
        return best if self.scores_T[best] - self.scores_T[-1] > self.noise else None

    def rises(self, steps_T: Sequence[float], middle: int) -> bool:
        """Whether the recent half gets better by more than noise."""
        recent_T, scores_T = steps_T[middle:], self.scores_T[middle:]
        gain = _slope(recent_T, scores_T) * (recent_T[-1] - recent_T[0])
        least = ROUNDING * (max(scores_T) - min(scores_T)) if self.noise is None else self.noise
        return gain > least


def score_course(scores: ScoreEvidence) -> ScoreCourse:
    """Turn scores so that more is better: shares of problems into logits, others by their sign."""
    known = [*scores.scores_T, *(() if scores.base is None else (scores.base,))]
    is_share = all(0 <= score <= 1 for score in known)
    num_problems = scores.num_problems or ASSUMED_PROBLEMS

    def turn(score: float) -> float:
        if not scores.lower_is_better:
            return score
        return 1 - score if is_share else -score

    def value(score: float) -> float:
        return _logit(_clip(turn(score), num_problems)) if is_share else turn(score)

    return ScoreCourse(
        scores_T=tuple(turn(score) for score in scores.scores_T),
        values_T=tuple(value(score) for score in scores.scores_T),
        base_value=None if scores.base is None else value(scores.base),
        is_share=is_share,
        num_problems=num_problems,
    )


def _clip(share: float, num_problems: int) -> float:
    """Keep a share half a problem away from none and all."""
    edge = 0.5 / num_problems
    return min(1 - edge, max(edge, share))


def _logit(share: float) -> float:
    return math.log(share) - math.log1p(-share)


def _slope(x_T: Sequence[float], y_T: Sequence[float]) -> float:
    """The least-squares slope; 0 for a single point."""
    mean = math.fsum(x_T) / len(x_T)
    squares = math.fsum((x - mean) ** 2 for x in x_T)
    products = math.fsum((x - mean) * (y - y_T[0]) for x, y in zip(x_T, y_T, strict=True))
    return products / squares if squares else 0.0
