"""The score of every checkpoint, from the files that people and trainers write.

Text in, numbers out: whoever calls reads the file. What comes in was written by strangers, so its
size is capped, values must be numbers, and whatever is left open (which column, which of two scores
of one step) is an error that lists the choices, never a guess. The reward of training is taken only
when it is asked for by name.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from statistics import fmean

from alpharl_hub.errors import ScoreError
from alpharl_hub.scores.rows import (
    DEFAULT_KEY,
    LOG_SUFFIX,
    Row,
    check_size,
    first_names,
    first_of,
    parse_json,
    read_row,
    read_rows,
    read_step,
)
from alpharl_hub.strict_json import shown

MAX_SCORE = 1e100
"""Larger numbers are no scores, and their squares would overflow in a fit."""

_STATE_FILE = "trainer_state.json"
_MAX_STEPS_SHOWN = 5
_MAX_KEYS_COMPARED = 1000

# What transformers' Trainer and TRL's trainers log in an evaluation beside the scores: speed,
# spreads, and the state of the policy. Read in trl/trainer/grpo_trainer.py and
# transformers/trainer_utils.py (speed_metrics).
_NO_SCORE_ENDINGS = ("loss", "_std", "/std", "time", "_per_second", "clip_ratio", "num_tokens")
_NO_SCORE_FOLDERS = ("completions/", "clip_ratio/", "sampling/", "tools/", "vespo/")
_NO_SCORE_NAMES = frozenset({"epoch", "kl", "entropy", "entropy_coef"})


@dataclass(frozen=True)
class ScoreTable:
    """One score per step; `name` is its key and `where` the file that it comes from.

    `averaged_steps` are the checkpoints without a score of their own, whose value is the mean of
    what was logged since the checkpoint before.
    """

    name: str
    by_step: Mapping[int, float]
    where: str
    lower_is_better: bool = False
    averaged_steps: tuple[int, ...] = ()

    def at(self, step: int) -> float | None:
        """Give the score of the checkpoint at `step`, None where there is none."""
        return self.by_step.get(step)


def parse_scores(
    text: str, filename: str, key: str | None, lower_is_better: bool = False
) -> ScoreTable:
    """Read a score per step from the text of a CSV, JSON or JSON lines file.

    CSV: a header with a `step` column. JSON: `{"10": 0.5}`, `{"10": {"score": 0.5}}` or a list of
    rows `{"step": 10, "score": 0.5}`. JSON lines: such rows, flat (prime-rl's metrics.jsonl) or
    with the numbers below `data` (verl's file logger). Without `key`, the only column with numbers
    beside the step, or `score`, is taken. Empty, null, NaN and infinite values count as not there.
    When a step has several values of the key, the last line of a JSON lines log wins, because a
    restarted run appends what is newer; in CSV and JSON they must be equal.

    Raises:
        ScoreError: no such file format, not of these shapes, a key that is missing or that must
            be chosen, a value that is no number, or no score at all.
    """
    rows = read_rows(text, filename)
    key = _choose_key(rows, key, filename)
    is_log = PurePath(filename).suffix.lower() == LOG_SUFFIX
    by_step = _scores_by_step(rows, key, newest_wins=is_log)
    if not by_step:
        raise ScoreError(f"{filename}: {shown(key)} has no number in any row; choose another key")
    return ScoreTable(key, by_step, filename, lower_is_better)


def evaluation_keys(states: Mapping[int, str]) -> tuple[str, ...]:
    """List the keys of an evaluation's scores in trainer_state.json texts, by step.

    These are the `eval_` keys without losses, timings, spreads and the state of the policy, and
    without the `eval_rewards/...` of single functions where `eval_reward` holds their sum.

    Raises:
        ScoreError: a text is not a trainer_state.json.
    """
    return _evaluation_keys(_read_log(text, step) for step, text in sorted(states.items()))


def scores_from_trainer_state(
    states: Mapping[int, str], key: str | None, lower_is_better: bool = False
) -> ScoreTable | None:
    """Read the scores from the text of every checkpoint's trainer_state.json, given by its step.

    A checkpoint's score is what was logged at its own step (by the counter of its own file, which
    can differ from the number in the checkpoint's name), else the mean of what was logged since the
    checkpoint before. Without `key` the answer is None unless `evaluation_keys` are exactly one;
    with it, any logged key is taken, rewards of training included.

    Raises:
        ScoreError: a text is not a trainer_state.json, or `key` is never logged with a number.
    """
    logs = {step: _read_log(text, step) for step, text in sorted(states.items())}
    if key is None:
        candidates = _evaluation_keys(logs.values())
        if len(candidates) != 1:
            return None
        chosen = candidates[0]
    else:
        chosen = _choose_key([row for log in logs.values() for row in log.rows], key, _STATE_FILE)
    by_step, averaged_steps = _scores_of_checkpoints(logs, chosen)
    if by_step:
        return ScoreTable(chosen, by_step, _STATE_FILE, lower_is_better, averaged_steps)
    if key is None:
        return None
    raise ScoreError(f"{_STATE_FILE}: {shown(key)} has no number in any row; choose another key")


def require_scores(table: ScoreTable, steps_T: Sequence[int]) -> tuple[float, ...]:
    """Give the score of every checkpoint, in the order of `steps_T`.

    Raises:
        ScoreError: a checkpoint has none.
    """
    scores = [table.at(step) for step in steps_T]
    missing = [step for step, score in zip(steps_T, scores, strict=True) if score is None]
    if missing:
        named = first_of([str(step) for step in missing], _MAX_STEPS_SHOWN)
        has = f"{min(table.by_step)} to {max(table.by_step)}" if table.by_step else "none"
        raise ScoreError(
            f"{table.where}: no {shown(table.name)} for step {named} (steps with a score: {has});"
            " add what is missing or leave these checkpoints out with --steps"
        )
    return tuple(score for score in scores if score is not None)


@dataclass(frozen=True)
class _TrainerLog:
    global_step: int
    rows: tuple[Row, ...]


def _read_log(text: str, step: int) -> _TrainerLog:
    where = f"{_STATE_FILE} of step {step}"
    check_size(text, where)
    document = parse_json(text, where)
    history = document.get("log_history") if isinstance(document, dict) else None
    if not isinstance(document, dict) or not isinstance(history, list):
        raise ScoreError(f"{where}: it has no log_history; give the scores with --scores")
    rows = tuple(read_row(entry, f"{where}, log_history[{i}]") for i, entry in enumerate(history))
    return _TrainerLog(read_step(document.get("global_step", step), where), rows)


def _scores_of_checkpoints(
    logs: Mapping[int, _TrainerLog], key: str
) -> tuple[dict[int, float], tuple[int, ...]]:
    """Give the score by step of the checkpoints that have one, and which of them are means."""
    by_step: dict[int, float] = {}
    averaged_steps = []
    previous = -1
    for step, log in logs.items():
        logged = _scores_by_step(log.rows, key, newest_wins=True)
        since = [score for at, score in logged.items() if previous < at <= log.global_step]
        if log.global_step in logged:
            by_step[step] = logged[log.global_step]
        elif since:
            by_step[step] = fmean(since)
            averaged_steps.append(step)
        previous = log.global_step
    return by_step, tuple(averaged_steps)


def _evaluation_keys(logs: Iterable[_TrainerLog]) -> tuple[str, ...]:
    names = [
        key.removeprefix("eval_")
        for key in _columns(row for log in logs for row in log.rows)
        if key.startswith("eval_")
    ]
    scores = [
        name
        for name in names
        if name not in _NO_SCORE_NAMES
        and not name.endswith(_NO_SCORE_ENDINGS)
        and not name.startswith(_NO_SCORE_FOLDERS)
        and not (name.startswith("rewards/") and "reward" in names)
    ]
    return tuple(f"eval_{name}" for name in scores)


def _columns(rows: Iterable[Row]) -> list[str]:
    """List the keys that hold a number in at least one row, in the order of the file."""
    columns: dict[str, None] = {}
    for row in rows:
        columns.update((key, None) for key, value in row.values.items() if _is_number(value))
    return list(columns)


def _choose_key(rows: Sequence[Row], key: str | None, where: str) -> str:
    columns = _columns(rows)
    if key is not None:
        if any(key in row.values for row in rows):
            return key
        near = difflib.get_close_matches(key, columns[:_MAX_KEYS_COMPARED], cutoff=0.5) or columns
        raise ScoreError(
            f"{where}: no key {shown(key)}; it has {first_names(near) or 'no numbers at all'}"
        )
    if DEFAULT_KEY in columns:
        return DEFAULT_KEY
    if len(columns) == 1:
        return columns[0]
    if not columns:
        raise ScoreError(f"{where}: no number beside a step in it; write one score per step")
    raise ScoreError(
        f"{where}: {len(columns)} columns have numbers; name one with --score-key:"
        f" {first_names(columns)}"
    )


def _scores_by_step(rows: Iterable[Row], key: str, *, newest_wins: bool) -> dict[int, float]:
    by_step: dict[int, float] = {}
    for row in rows:
        score = _score(row.values.get(key), key, row.where)
        if score is None:
            continue
        if not newest_wins and by_step.get(row.step, score) != score:
            raise ScoreError(
                f"{row.where}: a second score of step {row.step}, {score:g} after"
                f" {by_step[row.step]:g}; keep one of them"
            )
        by_step[row.step] = score
    return by_step


def _is_number(value: object) -> bool:
    if isinstance(value, float):
        return math.isfinite(value)
    return isinstance(value, int) and not isinstance(value, bool)


def _score(value: object, key: str, where: str) -> float | None:
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        found = shown(value) if isinstance(value, str) else type(value).__name__
        raise ScoreError(f"{where}: {shown(key)} is {found}, not a number; mend it or leave it out")
    if abs(value) > MAX_SCORE:
        raise ScoreError(f"{where}: {shown(key)} is beyond {MAX_SCORE:g}; that is no score")
    return float(value)
