"""What the demo's scores say, in sentences that follow from the numbers alone.

A difference is counted in standard errors of the difference of two shares, taken as independent.
All models get the same problems, which makes the true error of a difference smaller: what is called
clear here is clear, and some of what is called too little to tell might be told apart.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from alpharl_hub.demo_task import TaskScore

CLEAR_FROM_ERRORS = 2.0
"""Below two standard errors chance alone makes such a difference once in twenty times or more."""


@dataclass(frozen=True)
class ModelScore:
    """A measured model: what it is (`name`, and `step` unless it is the base) and where it lies."""

    name: str
    step: int | None
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
    against_last = tuple(
        f"{model.name}: {_compared(model.score, last.score)} the last observed checkpoint."
        for model in scores.predictions
    )
    # The first of equals is taken: a prediction has to beat what was there already.
    best = max((last, *scores.predictions), key=lambda model: model.score.score)
    share = scores.share.replace("%", " %")
    return (
        *against_last,
        f"Highest score that the first {share} of the steps gave: {best.name} "
        f"({best.score.score:.4f}), {_compared(best.score, scores.final.score)} the "
        f"{scores.final.name} checkpoint.",
    )


def _compared(score: TaskScore, reference: TaskScore) -> str:
    """Say how a score stands to another, up to the word that names the other."""
    difference = score.score - reference.score
    errors = abs(difference_in_errors(score, reference))
    if difference == 0:
        return "exactly the score of"
    side = "above" if difference > 0 else "below"
    size = f"{abs(difference):.4f} ({errors:.1f} standard errors)"
    if errors < CLEAR_FROM_ERRORS:
        return f"{size}, too little to tell, {side}"
    return f"{size} {side}"
