"""How far may a run be extrapolated, and whether at all: the rule behind `--method auto`.

Letters: s_t the step of checkpoint t = 0 .. T - 1, s_T the last step, m the checkpoint nearest half
of it. A ratio is a multiple of the last step. Convention: float64 throughout.

The numbers were chosen on nineteen real small runs (GRPO, LoRA, supervised; 0.8 M parameters):
inside these horizons no prediction lost more than 0.2 points against the last checkpoint, and 82 %
(weights only) and 86 % (with scores) of the possible gain was reached.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise

from alpharl_hub.numerics.direction import STEADY_COSINE, Trust
from alpharl_hub.numerics.score_course import (
    AIM,
    ASSUMED_PROBLEMS,
    ScoreCourse,
    ScoreEvidence,
    score_course,
)

MIN_CHECKPOINTS = 4
MIN_RATIO = 1.05
"""A smaller step ahead is lost in the noise of any score."""

SCORED_CAP = 1.25
"""Scores that rise vouch for this much where the direction alone does not."""
TURNING_COSINE = 0.60
"""Below it runs diffused (0.36 to 0.53); the turning ones had more."""

ASKED = "asked"
DIRECTION = "direction"
DIRECTION_UNKNOWN = "direction_unknown"
SCORED_DIRECTION = "scored_direction"
SCORE_LINE = "score_line"
SCORE_PARABOLA = "score_parabola"
FEW_CHECKPOINTS = "few_checkpoints"


@dataclass(frozen=True)
class Evidence:
    """What is known of a run: the direction, the steps, the position of the middle one.

    `asked` is the target step; None asks for as far as is safe.
    """

    trust: Trust
    steps_T: tuple[float, ...]
    middle: int
    scores: ScoreEvidence | None = None
    asked: float | None = None


@dataclass(frozen=True)
class Decision:
    """How far to go; a `ratio` of 1 means: the last checkpoint is the best guess.

    `bound` names what set the ratio; `line` and `vertex` are the ratios at which the logit line
    reaches AIM and the parabola peaks, None where there is none. `best_observed` is the position
    of an earlier checkpoint that beats the last beyond noise, `offer_average` whether the mean of
    the recent half is worth a try. `sentences` are for people.
    """

    ratio: float
    step: float
    bound: str
    line: float | None
    vertex: float | None
    num_problems: int | None
    best_observed: int | None
    offer_average: bool
    sentences: tuple[str, ...]

    @property
    def goes_on(self) -> bool:
        """Whether to extrapolate at all."""
        return self.ratio > 1


def decide(evidence: Evidence) -> Decision:
    """Apply the rule.

    Raises:
        ValueError: steps do not rise, or scores and middle do not belong to them.
    """
    _check(evidence)
    course = None if evidence.scores is None else score_course(evidence.scores)
    line = vertex = None
    if course is not None and len(evidence.steps_T) >= MIN_CHECKPOINTS:
        line = course.line(evidence.steps_T, evidence.middle)
        vertex = course.vertex(evidence.steps_T)
    ratio, bound = _bound(evidence, course, line, vertex)
    if ratio < MIN_RATIO:
        ratio = 1.0
    last = evidence.steps_T[-1]
    step = ratio * last
    if bound == ASKED and ratio > 1 and evidence.asked is not None:
        # The product could differ from what was asked for in the last digit.
        step = float(evidence.asked)
    decision = Decision(
        ratio=ratio,
        step=step,
        bound=bound,
        line=line,
        vertex=vertex,
        num_problems=course.num_problems if course is not None and course.is_share else None,
        best_observed=None if course is None or ratio > 1 else course.best_observed(),
        offer_average=course is not None and ratio == 1 and _is_diffusing(evidence, course),
        sentences=(),
    )
    return replace(decision, sentences=tuple(_sentences(decision, evidence)))


def _check(evidence: Evidence) -> None:
    steps_T = evidence.steps_T
    rises = all(a < b for a, b in pairwise(steps_T))
    if not steps_T or steps_T[0] < 0 or steps_T[-1] <= 0 or not rises:
        raise ValueError(f"steps must be positive and rise: {steps_T}")
    if not 0 <= evidence.middle < len(steps_T):
        raise ValueError(f"middle {evidence.middle} is none of {len(steps_T)} positions")
    if evidence.scores is not None and len(evidence.scores.scores_T) != len(steps_T):
        raise ValueError(f"{len(evidence.scores.scores_T)} scores for {len(steps_T)} steps")
    if evidence.scores is not None and (evidence.scores.num_problems or 1) < 1:
        raise ValueError(f"{evidence.scores.num_problems} problems")


def _bound(
    evidence: Evidence, course: ScoreCourse | None, line: float | None, vertex: float | None
) -> tuple[float, str]:
    """The smallest of all limits and what it is; of equal ones the first."""
    trust = evidence.trust
    if len(evidence.steps_T) < MIN_CHECKPOINTS:
        return 1.0, FEW_CHECKPOINTS
    if trust.cosine is None:
        return 1.0, DIRECTION_UNKNOWN
    limits: list[tuple[float, str]] = []
    if evidence.asked is not None:
        limits.append((evidence.asked / evidence.steps_T[-1], ASKED))
    scored = course is not None and course.is_share
    if scored and trust.cosine < TURNING_COSINE:
        limits.append((1.0, DIRECTION))
    elif scored and trust.cap < SCORED_CAP:
        limits.append((SCORED_CAP, SCORED_DIRECTION))
    else:
        limits.append((trust.cap, DIRECTION))
    if line is not None:
        limits.append((line, SCORE_LINE))
    if vertex is not None:
        limits.append((vertex, SCORE_PARABOLA))
    ratio, bound = min(limits, key=lambda limit: limit[0])
    return max(1.0, ratio), bound


def _is_diffusing(evidence: Evidence, course: ScoreCourse) -> bool:
    """Whether the run wanders without getting better; averaging a rising run throws it back."""
    cosine = evidence.trust.cosine
    if cosine is None or cosine >= TURNING_COSINE or len(evidence.steps_T) < MIN_CHECKPOINTS:
        return False
    return not course.rises(evidence.steps_T, evidence.middle)


_LIMITS = {
    DIRECTION: "the direction of the update carries",
    SCORED_DIRECTION: "a direction that turns while scores rise is trusted",
    SCORE_LINE: "the line of the scores has not reached its ceiling",
    SCORE_PARABOLA: "the parabola of the scores rises",
}


def _sentences(decision: Decision, evidence: Evidence) -> Iterator[str]:
    """Say what was seen, what follows from it, and what the user can do."""
    yield from _direction_words(evidence.trust)
    if evidence.scores is not None and len(evidence.steps_T) >= MIN_CHECKPOINTS:
        yield _score_words(decision, evidence, evidence.scores)
    yield (
        _going_words(decision, evidence) if decision.goes_on else _staying_words(decision, evidence)
    )
    if decision.best_observed is not None and evidence.scores is not None:
        yield (
            f"step {_number(evidence.steps_T[decision.best_observed])} scored "
            f"{evidence.scores.scores_T[decision.best_observed]:.3f}, better than the last one by "
            "more than two standard errors: take that checkpoint"
        )
    if decision.offer_average:
        yield (
            "the weights wander and the scores do not rise: --method average, the mean of the "
            "recent checkpoints, may beat each of them"
        )


def _direction_words(trust: Trust) -> Iterator[str]:
    if trust.cosine is None:
        yield "direction: unknown, too little of the update stands out from rounding"
        return
    turn = "turning" if trust.cosine >= TURNING_COSINE else "wandering"
    if trust.cap >= MIN_RATIO:
        turn = "steady" if trust.cosine >= STEADY_COSINE else "fairly steady"
    where = ""
    if trust.share_of_entries is not None and trust.floor is not None:
        where = (
            f", on the {100 * trust.share_of_entries:.2g} % smallest weights "
            f"(rounding: {trust.floor:.2f} of the update)"
        )
    yield f"direction: cosine {trust.cosine:.2f} of the update's two halves{where}: {turn}"
    everywhere = trust.cosine_all_entries
    if everywhere is not None and everywhere < trust.cosine - 0.1:
        yield f"over all weights it reads {everywhere:.2f}, which is mostly rounding: not used"


def _score_words(decision: Decision, evidence: Evidence, scores: ScoreEvidence) -> str:
    last = evidence.steps_T[-1]
    text = f"score {scores.scores_T[-1]:.3f} at step {_number(last)}"
    if decision.num_problems is None:
        text += " (not a share of 0 to 1: only its parabola counts)"
    elif scores.num_problems is None:
        text += f" (a mean over {ASSUMED_PROBLEMS} problems is assumed)"
    found = []
    if decision.line is not None and decision.line > 1:
        aim = 1 - AIM if scores.lower_is_better else AIM
        found.append(f"its line reaches {aim:.2g} at step {_number(decision.line * last)}")
    elif decision.line is not None:
        found.append("its line reaches no better score ahead")
    if decision.vertex is not None:
        where = f"at step {_number(decision.vertex * last)}" if decision.vertex > 1 else "by now"
        found.append(f"its parabola peaks {where}")
    return f"{text}: {', '.join(found) or 'its parabola has no peak'}"


def _going_words(decision: Decision, evidence: Evidence) -> str:
    last = evidence.steps_T[-1]
    here = f"step {math.floor(decision.step + 1e-9)} ({decision.ratio:.3g} x the last checkpoint)"
    if decision.bound == ASKED:
        return f"{here} is predicted as asked: what was seen carries so far"
    limit = f"{here} is predicted: so far {_LIMITS[decision.bound]}"
    if evidence.asked is None:
        return limit
    asked = f"step {_number(evidence.asked)} is {evidence.asked / last:.2g} x the last checkpoint"
    return f"{asked}; {limit}. --force goes on to {_number(evidence.asked)}"


def _staying_words(decision: Decision, evidence: Evidence) -> str:
    last = evidence.steps_T[-1]
    stay = "the last checkpoint is the best guess"
    if decision.bound == FEW_CHECKPOINTS:
        return (
            f"{len(evidence.steps_T)} checkpoints are too few to judge by, {MIN_CHECKPOINTS} are "
            f"needed: {stay}. Add some with --steps; --force extrapolates"
        )
    if decision.bound == ASKED:
        return (
            f"step {_number(evidence.asked or 0)} is not {MIN_RATIO:g} x the last checkpoint "
            f"(step {_number(last)}): {stay}. Aim farther; --force predicts it"
        )
    if decision.bound == SCORE_LINE:
        return f"the scores leave nothing to gain ahead: {stay}. --force extrapolates"
    if decision.bound == SCORE_PARABOLA:
        return f"the scores have peaked: {stay}. --force extrapolates"
    cosine = evidence.trust.cosine
    if evidence.scores is None and cosine is not None and cosine >= TURNING_COSINE:
        return (
            f"weights cannot tell a plateau, noise and drift apart: {stay}. Scores could "
            "(--scores); --force extrapolates"
        )
    return f"no horizon is safe with such a direction: {stay}. --force extrapolates"


def _number(step: float) -> str:
    """A step for people: whole from 100 on."""
    return f"{step:.0f}" if step >= 100 else f"{step:.3g}"
