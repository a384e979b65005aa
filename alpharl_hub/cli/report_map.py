"""Pictures that fit into a cell: the rank-1 share of every layer, and a number over the steps.

The digits alone say everything. Colour lies behind them, with black on it, so that nothing depends
on whether the terminal itself is dark or light; orange and blue differ for every eye.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.cells import cell_len
from rich.text import Text

from alpharl_hub.cli.report_rows import NO_LAYER, PARTLY, YES, Placed, known, median_of

_BACKGROUNDS = (208, 208, 214, 215, 223, 195, 195, 153, 153, 117)
"""For each tenth of the share one of the 256 colours, from orange (little) to blue (all)."""

_LEVELS, _ASCII_LEVELS = "▁▂▃▄▅▆▇█", ".:-=+*#@"


def tenth_style(tenth: int) -> str:
    """Return the style of a share: black on the colour of its tenth."""
    return f"color(16) on color({_BACKGROUNDS[tenth]})"


def verdict_style(value: float) -> str:
    """Return the style of an answer that follows from a number between 0 and 1."""
    return tenth_style(9 if value >= YES else 4 if value >= PARTLY else 0)


def map_line(columns: Mapping[str, Sequence[Placed]], group: str, stride: int) -> Text:
    """Draw a group: a digit for every column of layers, `stride` cells apart."""
    line = Text()
    for label, column in columns.items():
        cell = [one for one in column if one.group == group]
        share = median_of(one.share for one in cell)
        tenth = None if share is None else max(min(int(share * 10), 9), 0)
        digit = "." if not cell else "-" if tenth is None else str(tenth)
        gap = " " * (stride - 1) if label != list(columns)[-1] else ""
        line.append(digit + gap, None if tenth is None else tenth_style(tenth))
    return line


def map_ruler(columns: Mapping[str, Sequence[Placed]], stride: int) -> str:
    """Write the first layer of a column above it, of as many columns as there is room for."""
    heads = ["-" if label == NO_LAYER else label.split("-")[0] for label in columns]
    widest = max(map(len, heads))
    every = next(
        n for n in (1, 2, 5, *range(10, 9999, 10)) if n * stride > widest or n == 1 == widest
    )
    line = ""
    for number, head in enumerate(heads):
        start = number * stride
        is_last = number == len(heads) - 1
        if (number % every == 0 or (is_last and head == "-")) and start >= len(line):
            line = line.ljust(start) + head
    return line


def map_legend() -> Text:
    """Show what the digits and signs of the map mean."""
    legend = Text("By layer: ")
    for tenth in range(10):
        legend.append(str(tenth), tenth_style(tenth))
    return legend.append(" tenths of the share, - no update, . no matrix")


def sparkline(values: Sequence[float | None], max_cells: int, encoding: str) -> str:
    """Draw numbers as bars from 0 to the largest of them; "?" where one is unknown.

    More numbers than cells are thinned out; the first and the last stay.
    """
    if len(values) > max_cells:
        last, cells = len(values) - 1, max_cells - 1
        values = [values[round(cell * last / cells)] for cell in range(max_cells)]
    levels = _LEVELS if _can_show(_LEVELS, encoding) else _ASCII_LEVELS
    present = list(map(known, values))
    largest = max((value for value in present if value is not None), default=0.0)
    line = ""
    for value in present:
        part = value / largest if value is not None and largest > 0 else 0.0
        level = max(min(int(part * len(levels)), len(levels) - 1), 0)
        line += "?" if value is None else levels[level]
    return line


def _can_show(letters: str, encoding: str) -> bool:
    try:
        letters.encode(encoding)
    except (UnicodeEncodeError, LookupError):
        return False
    return True


def shorten(text: str, max_cells: int) -> str:
    """Keep the end of a long name: there it differs from the others."""
    if cell_len(text) <= max_cells:
        return text
    while cell_len(text) > max_cells - 2:
        text = text[1:]
    return f"..{text}"
