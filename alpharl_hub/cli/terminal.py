"""Consoles, and text that is safe to show on them.

Only ASCII is drawn (but for the bars of report, where the encoding has them), so that every font
can show it, and nothing is said by colour alone. Console markup is off: a tensor called "[bold]" is
printed as it is called.
"""

from __future__ import annotations

import io
import logging
import os
import sys
import warnings
from itertools import pairwise
from typing import Any, TextIO

from rich.box import Box
from rich.console import Console
from rich.table import Table
from rich.text import Text

PIPE_WIDTH = 80
"""Columns where there is no terminal to ask and COLUMNS, which shells keep to themselves unless it
is exported, does not say otherwise."""

GAP = 2
LABEL_WIDTH = 10
_DURATIONS_S = (("d", 86_400), ("h", 3600), ("min", 60), ("s", 1))
_HEAD_RULE = Box("    \n    \n -- \n    \n    \n    \n    \n    \n", ascii=True)


def data_console() -> Console:
    """Return a console on stdout."""
    return _console(sys.stdout)


def notes_console() -> Console:
    """Return a console on stderr."""
    return _console(sys.stderr)


def _console(stream: TextIO) -> Console:
    if isinstance(stream, io.TextIOWrapper):
        # A branch may be called anything; a latin-1 pipe must not end the command.
        stream.reconfigure(errors="backslashreplace")
    is_terminal = stream.isatty()
    # rich takes NO_COLOR as "no colour, but bold"; without a colour system it sends no escapes.
    is_plain = not is_terminal or bool(os.environ.get("NO_COLOR"))
    return Console(
        file=stream,
        width=None if is_terminal else _pipe_width(),
        color_system=None if is_plain else "auto",
        force_terminal=is_terminal,
        force_jupyter=False,
        markup=False,
        emoji=False,
        highlight=False,
    )


def _pipe_width() -> int:
    columns = os.environ.get("COLUMNS", "")
    return int(columns) if columns.isdecimal() and int(columns) else PIPE_WIDTH


def escape_text(text: str) -> str:
    """Return a stranger's text with everything unprintable written out, such as \\x1b and \\u202e.

    Control characters could move the cursor or recolour the screen, and bidirectional marks could
    show another name than the one that is there. The answer is always one line.
    """
    if text.isprintable():
        return text
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode("ascii")
        for letter in text
    )


def escape_words_of_libraries() -> None:
    """Have what libraries log and warn of spelt out too: some of it are a server's own words.

    The Hub's client shows an X-HF-Warning as it came:
    https://github.com/huggingface/huggingface_hub/blob/v1.0.0/src/huggingface_hub/utils/_http.py
    """
    make_record = logging.getLogRecordFactory()
    format_warning = warnings.formatwarning

    def escaped_record(*args: Any, **kwargs: Any) -> logging.LogRecord:
        record = make_record(*args, **kwargs)
        record.msg, record.args = _escape_lines(record.getMessage()), None
        return record

    def escaped_warning(*args: Any, **kwargs: Any) -> str:
        return _escape_lines(format_warning(*args, **kwargs))

    logging.setLogRecordFactory(escaped_record)
    warnings.formatwarning = escaped_warning


def _escape_lines(text: str) -> str:
    return "\n".join(escape_text(line) for line in text.split("\n"))


def human_bytes(num_bytes: int) -> str:
    """Return a size in decimal units with three digits: 999 B, 3.14 GB, 31.4 GB."""
    if abs(num_bytes) < 1000:
        return f"{num_bytes} B"
    value = float(num_bytes)
    for unit in ("kB", "MB", "GB", "TB"):
        value /= 1000
        if abs(value) < 999.5:
            return f"{_three_digits(value)} {unit}"
    return f"{value / 1000:,.2f} PB"


def human_count(count: int) -> str:
    """Return a count: exact below a million, then 1.23 million and 7.62 billion."""
    if abs(count) < 1_000_000:
        return f"{count:,}"
    if abs(count) < 999_500_000:
        return f"{_three_digits(count / 1e6)} million"
    return f"{count / 1e9:,.2f} billion"


def human_duration(seconds: float) -> str:
    """Return a duration in its two largest units: 42 s, 6 min 12 s, 1 h 44 min, 3 d 2 h."""
    whole = max(round(seconds), 1)
    for (large, large_s), (small, small_s) in pairwise(_DURATIONS_S):
        if whole >= large_s:
            return f"{whole // large_s} {large} {whole % large_s // small_s} {small}"
    return f"{whole} s"


def significant(value: float, num_digits: int) -> str:
    """Return a number with so many digits, zeros at the end too, or short with an exponent."""
    if value == 0:
        return "0"
    if not 1e-3 <= abs(value) < 10**num_digits - 0.5:
        return f"{value:.1e}"
    return f"{value:#.{num_digits}g}".rstrip(".")


def _three_digits(value: float) -> str:
    """Return a number below 1000 with three digits."""
    for num_decimals in (2, 1):
        text = f"{value:.{num_decimals}f}"
        if len(text.lstrip("-")) <= 4:
            return text
    return f"{value:.0f}"


def print_labelled(console: Console, label: str, text: str) -> None:
    """Print a short label and a paragraph beside it, wrapped under itself."""
    lines = Text(escape_text(text)).wrap(console, max(console.width - LABEL_WIDTH, 20))
    for number, line in enumerate(lines):
        line.rstrip()
        head = Text((label if number == 0 else "").ljust(LABEL_WIDTH), style="bold")
        # Not head + line: the sum would have the head's style.
        console.print(Text.assemble(head, line))


def print_heading(console: Console, title: str, note: str = "") -> None:
    """Print the heading of a table, after an empty line."""
    console.print()
    console.print(
        Text(escape_text(title), style="bold") + Text(f" ({escape_text(note)})" if note else "")
    )


def new_table(gap: int = GAP) -> Table:
    """Return an empty table with a rule below its head; add the text columns first."""
    return Table(
        box=_HEAD_RULE,
        show_edge=False,
        pad_edge=False,
        padding=(0, gap - 1, 0, 0),
        header_style="bold",
    )


def add_text_column(table: Table, head: str) -> None:
    """Add a column of names, folded where they are too long."""
    table.add_column(Text(head), overflow="fold")


def add_number_column(table: Table, head: str) -> None:
    """Add a column of numbers, never cut."""
    table.add_column(Text(head), justify="right", no_wrap=True)


def add_row(table: Table, cells: list[str]) -> None:
    """Add a row; the cells may be anybody's words."""
    table.add_row(*(Text(escape_text(cell)) for cell in cells))
