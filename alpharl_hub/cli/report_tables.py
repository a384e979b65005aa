"""The tables of a report: the groups with their map on the first screen, layers and modules."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from alpharl_hub.cli.report_map import map_legend, map_line, map_ruler, shorten, sparkline
from alpharl_hub.cli.report_rows import (
    Placed,
    Row,
    fraction,
    magnitude,
    make_row,
    sort_rows,
    split_by_group,
    split_by_layer,
)
from alpharl_hub.cli.terminal import (
    GAP,
    add_number_column,
    add_text_column,
    escape_text,
    new_table,
    print_heading,
)

WIDE = 120
"""From so many columns on every number is shown."""

MAX_GROUPS = 30
_MAX_LABEL_CELLS = 30
_SPARK_CELLS, _WIDE_SPARK_CELLS = 8, 20
_SPARK_HEADS, _MAP_HEAD = ("sigma_1", "0 to max"), "share by layer"


@dataclass(frozen=True)
class Column:
    """A column of numbers: its head in two lines, and what it shows of a row."""

    head: str
    cell: Callable[[Row], str]


_COUNT = Column("\ncount", lambda row: str(row.count))
_SIGMA = Column("\nsigma_1", lambda row: magnitude(row.sigma))
_NORM = Column("\n|D|_F", lambda row: magnitude(row.frobenius))
_SHARE = Column("rank-1\nshare", lambda row: fraction(row.share))
_STABLE = Column("stable\nrank", lambda row: magnitude(row.stable_rank))
_DRIFT = Column("drift\ndeg", lambda row: "-" if row.drift is None else f"{row.drift:.0f}")
_Q2 = Column("Q^2\nstep", lambda row: fraction(row.q2_step))
_Q2_SCORE = Column("Q^2\nscore", lambda row: fraction(row.q2_score))
_R2 = Column("R^2 in\nsample", lambda row: fraction(row.r2_in_sample))


def print_groups(
    placed: Sequence[Placed], step: int, console: Console, sort: str | None, top: int | None
) -> None:
    """Print a row for every module group: its numbers, sigma_1 over the steps, and its layers."""
    groups = split_by_group(placed)
    rows = [make_row(label, part) for label, part in groups.items()]
    rows = rows if sort is None else sort_rows(rows, sort)
    # A few rows are asked of the tables below, not of the answer to the first question.
    shown = rows[: max(top or 0, MAX_GROUPS)]
    is_wide = console.width >= WIDE
    columns = [_SHARE, _DRIFT, _Q2]
    if is_wide:
        columns = _all_columns(rows, with_count=True)
    max_sparks = min(_WIDE_SPARK_CELLS if is_wide else _SPARK_CELLS, len(rows[0].sigma_T))
    num_sparks = max(max_sparks, len(_SPARK_HEADS[1]))
    used = sum(_width(column, shown) + GAP for column in columns) + num_sparks + 2 * GAP
    heads = ("medians at", f"step {step}")
    free = console.width - used
    labels = _labels([row.label for row in shown], max(min(free // 2, free - len(_MAP_HEAD)), 8))
    room = free - max(map(cell_len, [*labels, *heads]))
    by_layer = split_by_layer(placed, max(room - 1, 1))
    stride = 2 if 2 * len(by_layer) - 1 <= room else 1

    table = new_table()
    add_text_column(table, "\n".join(heads))
    for column in columns:
        add_number_column(table, column.head)
    for head in ("\n".join(_SPARK_HEADS), f"{_MAP_HEAD}\n{map_ruler(by_layer, stride)}"):
        table.add_column(Text(head), no_wrap=True)
    for label, row in zip(labels, shown, strict=True):
        sparks = sparkline(row.sigma_T, max_sparks, console.encoding)
        cells = [Text(label), *(Text(column.cell(row)) for column in columns)]
        table.add_row(*cells, Text(sparks), map_line(by_layer, row.label, stride))
    console.print()
    console.print(table)
    console.print(map_legend())
    if any("-" in label for label in by_layer):
        console.print(Text("A column of the map is the median of the layers up to the next one's."))
    print_cut(len(rows) - len(shown), console)


def print_rows(title: str, note: str, head: str, rows: Sequence[Row], console: Console) -> None:
    """Print a row of numbers for every layer or every module."""
    print_heading(console, title, note)
    is_wide = console.width >= WIDE
    with_count = any(row.count > 1 for row in rows)
    columns = _all_columns(rows, with_count)
    if not is_wide:
        columns = [one for one in columns if one not in (_NORM, _STABLE, _R2)]
    max_sparks = min(_WIDE_SPARK_CELLS if is_wide else _SPARK_CELLS, len(rows[0].sigma_T))
    labels = [escape_text(row.label) for row in rows]
    used = sum(_width(one, rows) + GAP for one in columns) + max(max_sparks, len(_SPARK_HEADS[1]))
    table = new_table(GAP if used + max(map(cell_len, labels)) + GAP <= console.width else 1)
    add_text_column(table, f"\n{head}")
    for column in columns:
        add_number_column(table, column.head)
    table.add_column(Text("\n".join(_SPARK_HEADS)), no_wrap=True)
    for label, row in zip(labels, rows, strict=True):
        cells = [Text(label), *(Text(column.cell(row)) for column in columns)]
        table.add_row(*cells, Text(sparkline(row.sigma_T, max_sparks, console.encoding)))
    console.print(table)


def print_cut(num_hidden: int, console: Console) -> None:
    """Say how many rows were not shown, if any."""
    if num_hidden > 0:
        console.print(Text(f"and {num_hidden} more: --top N shows more, --json all of them"))


def _all_columns(rows: Sequence[Row], with_count: bool) -> list[Column]:
    """Take all columns that say something about any row."""
    columns = [_COUNT] if with_count else []
    columns += [_SIGMA, _NORM, _SHARE, _STABLE, _DRIFT, _Q2]
    columns += [_Q2_SCORE] if any(row.q2_score is not None for row in rows) else []
    return [*columns, _R2]


def _width(column: Column, rows: Sequence[Row]) -> int:
    return max(map(len, [*column.head.split("\n"), *(column.cell(row) for row in rows)]))


def _labels(labels: Sequence[str], max_cells: int) -> list[str]:
    return [shorten(escape_text(label), min(max_cells, _MAX_LABEL_CELLS)) for label in labels]
