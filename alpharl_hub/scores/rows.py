"""Rows of step and values from the text of CSV, JSON and JSON lines files.

What comes in was written by strangers: its size is capped, an object may not hold a key twice, and
what is shown of it in a message is short and quoted. `scores.table` makes scores of the rows.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath

from alpharl_hub.errors import ScoreError
from alpharl_hub.strict_json import read_int, require_unicode, shown, why_not_json

MAX_TEXT_CHARS = 64 << 20
"""A log of 10,000 steps with a hundred numbers each (50 characters with its key) stays below."""

MAX_STEP = 10**15
"""Steps are also used as float64, which holds every integer up to 2^53, about 9e15."""

DEFAULT_KEY = "score"
"""What a number is called that stands beside a step without a name of its own."""

LOG_SUFFIX = ".jsonl"
"""JSON lines are logs: they grow at the end, so that the last line is the newest."""

_MAX_NAMES_SHOWN = 10
_BLANK_CELLS = frozenset({"", "nan", "null", "none", "na", "n/a"})


@dataclass(frozen=True)
class Row:
    """What a file says of one step; `where` names the place for messages."""

    step: int
    values: Mapping[str, object]
    where: str


def read_rows(text: str, filename: str) -> list[Row]:
    """Read the rows of a file in the order of the file; the end of its name says the format.

    Raises:
        ScoreError: another format, too large, not valid, or a row without a step.
    """
    check_size(text, filename)
    text = text.removeprefix("\ufeff")  # Excel writes it in front of its CSV files
    suffix = PurePath(filename).suffix.lower()
    if suffix == ".csv":
        return list(_csv_rows(text, filename))
    if suffix == ".json":
        return list(_json_rows(parse_json(text, filename), filename))
    if suffix == LOG_SUFFIX:
        return list(_json_lines_rows(text, filename))
    raise ScoreError(f"{filename}: scores are read from .csv, .json or .jsonl; rename the file")


def _csv_rows(text: str, where: str) -> Iterator[Row]:
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        header = [name.strip() for name in next(reader, [])]
        repeated = [name for name, count in Counter(header).items() if name and count > 1]
        if repeated:
            raise ScoreError(f"{where}: two columns are called {shown(repeated[0])}; rename one")
        positions = [i for i, name in enumerate(header) if name.lower() == "step"]
        if len(positions) != 1:
            raise ScoreError(
                f"{where}: one column 'step' is needed, the first line has"
                f" {first_names(header) or 'nothing'}; separate columns by commas"
            )
        for cells in reader:
            at = f"{where}, line {reader.line_num}"
            if not cells:
                continue
            if len(cells) != len(header):
                raise ScoreError(
                    f"{at}: {len(cells)} cells below {len(header)} columns; mend that line"
                )
            row = dict(zip(header, cells, strict=True))
            step = read_step(row.pop(header[positions[0]]), at)
            yield Row(step, {name: _cell(cell) for name, cell in row.items() if name}, at)
    except csv.Error as error:
        raise ScoreError(
            f"{where}, line {reader.line_num}: not valid CSV ({error}); mend that line"
        ) from error


def _cell(cell: str) -> float | str | None:
    text = cell.strip()
    if text.lower() in _BLANK_CELLS:
        return None
    if "_" in text:  # float() takes 1_000, which no program writes
        return text
    try:
        return float(text)
    except ValueError:
        return text


def _json_rows(document: object, where: str) -> Iterator[Row]:
    if isinstance(document, list):
        for i, entry in enumerate(document):
            yield read_row(entry, f"{where}, row {i + 1}")
    elif isinstance(document, dict) and "log_history" in document:
        raise ScoreError(
            f"{where}: a trainer_state.json is read where the checkpoints are; leave it out of"
            " --scores and name its key with --score-key"
        )
    elif isinstance(document, dict):
        for name, entry in document.items():
            at = f"{where}, {shown(name)}"
            values = entry if isinstance(entry, dict) else {DEFAULT_KEY: entry}
            yield Row(read_step(name, at), values, at)
    else:
        raise ScoreError(
            f'{where}: an object {{"10": 0.5}} or a list [{{"step": 10, "score": 0.5}}] was'
            f" expected, found {type(document).__name__}; write it that way"
        )


def _json_lines_rows(text: str, where: str) -> Iterator[Row]:
    # Not str.splitlines: it also splits at separators that may stand inside a JSON string.
    for number, line in enumerate(io.StringIO(text), start=1):
        if line.strip():
            at = f"{where}, line {number}"
            yield read_row(parse_json(line, at), at)


def read_row(entry: object, where: str) -> Row:
    """Take a JSON object with a `step`, and its values also from below `data`.

    Raises:
        ScoreError: no object, or without a step.
    """
    if not isinstance(entry, dict) or "step" not in entry:
        raise ScoreError(f"{where}: an object with a 'step' was expected; add it or drop the row")
    nested = entry.get("data")
    values = {**nested, **entry} if isinstance(nested, dict) else dict(entry)
    return Row(read_step(values.pop("step"), where), values, where)


def read_step(value: object, where: str) -> int:
    """Take a step from a number, or from text as CSV cells and JSON keys have it.

    Raises:
        ScoreError: not a whole number from 0 to `MAX_STEP`.
    """
    if isinstance(value, str):  # pandas writes integers beside a gap as 10.0
        matched = re.fullmatch(r"([0-9]{1,16})(?:\.0*)?", value.strip())
        value = int(matched[1]) if matched else value
    if (
        isinstance(value, bool)
        or not isinstance(value, int | float)
        or not 0 <= value <= MAX_STEP
        or value != int(value)
    ):
        raise ScoreError(f"{where}: the step must be a whole number from 0 to 1e15; mend it")
    return int(value)


def _unique_keys(pairs: Sequence[tuple[str, object]]) -> dict[str, object]:
    document = dict(pairs)
    if len(document) != len(pairs):
        ((twice, _),) = Counter(name for name, _ in pairs).most_common(1)
        raise ValueError(f"{shown(twice)} stands twice in one object")
    return document


def parse_json(text: str, where: str) -> object:
    """Parse one JSON document; NaN is accepted because transformers and verl write it.

    Raises:
        ScoreError: not JSON, nested too deep, or a key twice in one object.
    """
    try:
        document: object = json.loads(text, object_pairs_hook=_unique_keys, parse_int=read_int)
        require_unicode(document)
    except (ValueError, RecursionError) as error:
        raise ScoreError(f"{where}: not valid JSON ({why_not_json(error)}); mend it") from error
    return document


def check_size(text: str, where: str) -> None:
    """Raise ScoreError for a text that is too long to be parsed."""
    if len(text) > MAX_TEXT_CHARS:
        raise ScoreError(
            f"{where}: more than {MAX_TEXT_CHARS} characters; write a file of step and score only"
        )


def first_names(names: Sequence[str]) -> str:
    """List the first ten names, quoted, and how many there are beyond."""
    return first_of([shown(name) for name in names], _MAX_NAMES_SHOWN)


def first_of(items: Sequence[str], count: int) -> str:
    """List the first `count` items, and how many there are beyond."""
    more = f" and {len(items) - count} more" if len(items) > count else ""
    return ", ".join(items[:count]) + more
