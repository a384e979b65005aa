"""What the demo's scores say, in sentences that follow from the numbers alone.

A difference is counted in standard errors of the difference of two shares, taken as independent.
All models get the same problems, which makes the true error of a difference smaller: what is called
clear here is clear, and some of what is called too little to tell might be told apart.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from alpharl_hub.demo.task import TaskScore

CLEAR_FROM_ERRORS = 2.0
"""Below two standard errors chance alone makes such a difference once in twenty times or more."""


@dataclass(frozen=True)
class ModelScore:
    """A measured model: what it is, the step it stands for (the base: 0), and where it lies."""

    name: str
    step: int
    place: str
    score: TaskScore


@dataclass(frozen=True)
class DemoScores:
    """All measured models; `share` is how much of the run the predictions were made from."""

    base: ModelScore
    last_observed: ModelScore
    predictions: tuple[ModelScore, ...]
    final: ModelScore
    share: str

    @property
    def models(self) -> tuple[ModelScore, ...]:
        """Every model, in the order in which they are shown."""
        return (self.base, self.last_observed, *self.predictions, self.final)


def difference_in_errors(score: TaskScore, reference: TaskScore) -> float:
    """Return how many standard errors `score` lies above `reference`."""
    difference = score.score - reference.score
    error = math.hypot(score.standard_error, reference.standard_error)
    if error == 0:  # both are all right or all wrong
        return math.copysign(math.inf, difference) if difference else 0.0
    return difference / error


def in_words(scores: DemoScores) -> tuple[str, ...]:
    """Compare every prediction with the last observed checkpoint, and the best with the final."""
    last = scores.last_observed
    against_last = tuple(f"{model.name}: {_compared(model, last)}." for model in scores.predictions)
    # The first of equals is taken: a prediction has to beat what was there already.
    best = max((last, *scores.predictions), key=lambda model: model.score.score)
    return (
        *against_last,
        f"Highest score from {scores.share} of the steps: {best.name}, {best.score.score:.4f}; "
        f"{_compared(best, scores.final)}.",
    )


def _compared(model: ModelScore, reference: ModelScore) -> str:
    """Say how far the score of one model lies from that of another."""
    other = f"the {reference.name} checkpoint"
    difference = model.score.score - reference.score.score
    if difference == 0:
        return f"the same score as {other}"
    errors = abs(difference_in_errors(model.score, reference.score))
    side = "above" if difference > 0 else "below"
    doubt = ": too little to tell" if errors < CLEAR_FROM_ERRORS else ""
    return f"{abs(difference):.4f} {side} {other} ({errors:.1f} standard errors{doubt})"
