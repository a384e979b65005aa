"""Scores that somebody measured of the predicted model and entered for its card.

A score is written DATASET[#TASK][:METRIC]=VALUE, such as gsm8k=0.81, gsm8k:exact_match=0.81 or
Idavidrein/gpqa#gpqa_diamond:accuracy=0.41. Nothing after the sign takes that score out again.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from alpharl_hub.card.markdown import code, number, table
from alpharl_hub.errors import CardError
from alpharl_hub.manifest import ScoreRecord

PLAIN_METRIC = "score"
"""The metric of a score that was entered without one; none is guessed."""

_NAME = r"[A-Za-z0-9][A-Za-z0-9_.-]{0,95}"
_SCORE = re.compile(
    rf"(?P<dataset>{_NAME}(?:/{_NAME})?)(?:\#(?P<task>[A-Za-z0-9_.+-]{{1,96}}))?"
    r"(?::(?P<metric>[A-Za-z0-9_.+@-]{1,96}))?",
    re.ASCII,
)
_MAX_IN_HEADLINE = 3


@dataclass(frozen=True)
class ScoreEntry:
    """What was typed; `value` is None where a score is to go."""

    dataset: str
    task: str | None
    metric: str | None
    value: float | None


def parse_score(text: str) -> ScoreEntry:
    """Read one score as it was typed.

    Raises:
        CardError: it is none.
    """
    name, equals, value = text.rpartition("=")
    match = _SCORE.fullmatch(name.strip())
    if not equals or match is None:
        raise CardError(
            f"--score {text!r}: write DATASET=VALUE, DATASET:METRIC=VALUE or "
            "ORG/DATASET#TASK:METRIC=VALUE, such as gsm8k:exact_match=0.81"
        )
    if not value.strip():
        return ScoreEntry(match["dataset"], match["task"], match["metric"], None)
    try:
        measured = float(value)
    except ValueError:
        measured = math.nan
    if not math.isfinite(measured):
        raise CardError(f"--score {text!r}: {value!r} is no finite number; write one such as 0.81")
    return ScoreEntry(match["dataset"], match["task"], match["metric"], measured)


def enter(
    scores: tuple[ScoreRecord, ...], entries: Sequence[ScoreEntry]
) -> tuple[ScoreRecord, ...]:
    """Return the scores with what was typed: added, in the place of one of that name, or removed.

    Raises:
        CardError: one is to go that is not there.
    """
    by_key = {(score.dataset, score.task, score.metric): score for score in scores}
    for entry in entries:
        key = (entry.dataset, entry.task, entry.metric)
        if entry.value is not None:
            by_key[key] = ScoreRecord(*key, entry.value)
        elif by_key.pop(key, None) is None:
            known = ", ".join(map(score_name, scores)) or "none"
            raise CardError(f"--score {entry.dataset}=: no such score to take out; known: {known}")
    return tuple(by_key.values())


def score_name(score: ScoreRecord) -> str:
    """Write the name of a score as it is typed."""
    task = "" if score.task is None else f"#{score.task}"
    return f"{score.dataset}{task}" + ("" if score.metric is None else f":{score.metric}")


def well_formed(scores: tuple[ScoreRecord, ...]) -> tuple[ScoreRecord, ...]:
    """Return the scores whose names could have been typed, for the metadata."""
    return tuple(
        score
        for score in scores
        if _SCORE.fullmatch(score_name(score)) and math.isfinite(score.value)
    )


def on_leaderboards(scores: tuple[ScoreRecord, ...]) -> tuple[ScoreRecord, ...]:
    """Return those that name a task of a data set on the Hub, as its leaderboards want them."""
    return tuple(s for s in well_formed(scores) if s.task is not None and "/" in s.dataset)


def measured_words(scores: tuple[ScoreRecord, ...]) -> str:
    """Name the first scores with their values, for one line."""
    words = [f"{code(score_name(s))} {number(s.value, 'g')}" for s in scores[:_MAX_IN_HEADLINE]]
    left = len(scores) - len(words)
    return ", ".join(words) + (f" and {left} more" if left > 0 else "")


def score_section(scores: tuple[ScoreRecord, ...]) -> str:
    """Return the section of measured scores, nothing without any."""
    if not scores:
        return ""
    rows = [
        [
            code(s.dataset if s.task is None else f"{s.dataset}#{s.task}"),
            code(s.metric or PLAIN_METRIC),
            number(s.value, "g"),
        ]
        for s in scores
    ]
    return (
        "## Scores\n\nMeasured of these very weights by whoever made this model, and entered by "
        "hand; the tool has not checked them.\n\n" + table(["data set", "metric", "score"], rows)
    )
