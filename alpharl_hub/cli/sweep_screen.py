"""What `sweep` shows: every candidate with its score, the best one, and a plot of both."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from alpharl_hub.cli.inspect_screen import print_notices
from alpharl_hub.cli.terminal import (
    add_number_column,
    add_row,
    add_text_column,
    escape_text,
    human_duration,
    new_table,
    print_heading,
    significant,
)
from alpharl_hub.sweeping.evaluation import EvaluationError
from alpharl_hub.sweeping.results import SCALE, SweepOutcome, SweepRow

PLOT_WIDTH = 80
PLOT_HEIGHT = 12
_SCORE_DIGITS = 4


def print_sweep(outcome: SweepOutcome, console: Console, best_step: float | None = None) -> None:
    """Print a sweep's outcome: the answer, the notices, the table, the plot.

    `best_step` is the step that the best size stands for, where it stands for one.
    """
    console.print(Text(_headline(outcome, best_step), style="bold"))
    print_notices(outcome.notices, console)
    print_heading(console, "Candidates", _direction(outcome))
    console.print(_table(outcome))
    _print_plot(outcome, console)
    console.print()
    console.print(
        Text("The best score was chosen among these: report the model on other problems.")
    )


def print_failure(error: EvaluationError, console: Console) -> None:
    """Print the last lines of an evaluation that left no score."""
    for line in error.last_lines:
        console.print(Text(f"  {escape_text(line)}"))


def _headline(outcome: SweepOutcome, best_step: float | None) -> str:
    step = f" (step {best_step:.6g})" if outcome.axis == SCALE and best_step is not None else ""
    best = (
        f"Best {_axis(outcome)} {_value(outcome.best_value)}{step}: "
        f"score {_score(outcome.best_score)}"
    )
    if outcome.last_score is None:
        return best
    if outcome.best_value == outcome.last_value:
        return f"{best}, the last checkpoint"
    return f"{best}, the last checkpoint {_score(outcome.last_score)}"


def _axis(outcome: SweepOutcome) -> str:
    """Name what was varied as the command's options and its documents do."""
    return "size" if outcome.axis == SCALE else outcome.axis


def _direction(outcome: SweepOutcome) -> str:
    return "lower scores are better" if outcome.lower_is_better else "higher scores are better"


def _table(outcome: SweepOutcome) -> Table:
    table = new_table()
    add_number_column(table, _axis(outcome))
    add_number_column(table, "score")
    add_number_column(table, "time")
    add_text_column(table, "")
    for row in _by_value(outcome):
        cells = [_value(row.value), _score(row.score), human_duration(row.seconds)]
        add_row(table, [*cells, ", ".join(_remarks(row, outcome))])
    return table


def _remarks(row: SweepRow, outcome: SweepOutcome) -> list[str]:
    remarks = ["best"] if row.value == outcome.best_value else []
    return [*remarks, "last checkpoint"] if row.value == outcome.last_value else remarks


def _by_value(outcome: SweepOutcome) -> list[SweepRow]:
    return sorted(outcome.rows, key=lambda row: row.value)


def _value(value: float) -> str:
    return f"{value:.10g}"


def _score(score: float) -> str:
    return significant(score, _SCORE_DIGITS)


def _print_plot(outcome: SweepOutcome, console: Console) -> None:
    """Print score against value, the latter on the axis that was searched, a logarithm."""
    rows = _by_value(outcome)
    low, high = min(row.score for row in rows), max(row.score for row in rows)
    if low == high:
        return
    margin = max(len(_score(low)), len(_score(high)))
    columns = _columns([row.value for row in rows], min(PLOT_WIDTH, console.width) - margin - 3)
    lines = [[" "] * (max(columns) + 1) for _ in range(PLOT_HEIGHT)]
    # The best point comes last: where two share a place, it is the one to be seen.
    for row, column in sorted(
        zip(rows, columns, strict=True), key=lambda pair: pair[0].value == outcome.best_value
    ):
        height = round((row.score - low) / (high - low) * (PLOT_HEIGHT - 1))
        lines[PLOT_HEIGHT - 1 - height][column] = _mark(row, outcome)
    marks = "# best, o last checkpoint, * others; logarithmic axis"
    print_heading(console, f"Score by {_axis(outcome)}", marks)
    labels = {0: _score(high), PLOT_HEIGHT - 1: _score(low)}
    for number, line in enumerate(lines):
        label = labels.get(number, "").rjust(margin)
        console.print(Text(f"{label} | {''.join(line)}".rstrip()))
    console.print(Text(f"{'':{margin}} +{'-' * (max(columns) + 2)}"))
    console.print(Text(f"{'':{margin}}   {_axis_labels(rows, columns)}".rstrip()))


def _mark(row: SweepRow, outcome: SweepOutcome) -> str:
    if row.value == outcome.best_value:
        return "#"
    return "o" if row.value == outcome.last_value else "*"


def _columns(values: Sequence[float], width: int) -> list[int]:
    """Place rising values on a logarithmic axis, which reaches zero where they do."""
    unit = min((value for value in values if value > 0), default=1.0)
    logs = [math.log1p(v / unit) if values[0] == 0 else math.log(v) for v in values]
    span = logs[-1] - logs[0] or 1.0
    # The label of the last value is written to the right of its place's start.
    room = max(width - len(_value(values[-1])), 1)
    return [round((log - logs[0]) / span * room) for log in logs]


def _axis_labels(rows: Sequence[SweepRow], columns: Sequence[int]) -> str:
    """Write as many values below their columns as there is room for, the last one always."""
    line = ""
    labels = [(column, _value(row.value)) for row, column in zip(rows, columns, strict=True)]
    last_column, last_label = labels.pop()
    for column, label in labels:
        if column >= len(line) + bool(line) and column + len(label) < last_column:
            line = line.ljust(column) + label
    return line.ljust(last_column) + last_label
