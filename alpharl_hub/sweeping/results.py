"""What a sweep answers: every candidate with its score, and which one is best."""

from __future__ import annotations

from dataclasses import dataclass

from alpharl_hub.manifest import Notice
from alpharl_hub.results import PredictedOutput

SCALE = "scale"
STEP = "step"


@dataclass(frozen=True)
class SweepRow:
    """One evaluated candidate; `log` is relative to the folder of the evaluations."""

    value: float
    score: float
    seconds: float
    log: str


@dataclass(frozen=True)
class SweepOutcome:
    """The candidates in the order of their evaluation, and the best of them.

    `axis` says what the values are: "scale" (0 is the last checkpoint, 1 the prediction) or "step".
    `last_value` is the value at which a candidate is the last checkpoint itself, None where there
    is none; `last_score` is its score.
    """

    axis: str
    rows: tuple[SweepRow, ...]
    best_value: float
    best_score: float
    last_value: float | None
    last_score: float | None
    lower_is_better: bool
    notices: tuple[Notice, ...]


@dataclass(frozen=True)
class SweepAnswer:
    """The answer of `sweep`; `logs` is the folder that holds the log of every evaluation."""

    schema: int
    sweep: SweepOutcome
    output: PredictedOutput
    logs: str
    warnings: tuple[Notice, ...]
