"""Two plots of characters: the run's path in its first two directions, and its score by step."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from rich.console import Console
from rich.text import Text

from alpharl_hub.cli.report_rows import fraction, known
from alpharl_hub.cli.terminal import print_heading, significant
from alpharl_hub.results import RunPath, ScoreLine, SpectralReport

_MAX_WIDTH, _HEIGHT = 100, 14
_TICK_CELLS = 9
_POINT, _BASE, _LINE = "o", "B", "."


@dataclass(frozen=True)
class Span:
    """What an axis covers; a single value gets room on both sides."""

    low: float
    high: float

    def cell(self, value: float, num_cells: int) -> int:
        """Return the cell that a value lies in."""
        if self.high <= self.low:
            return num_cells // 2
        return round((value - self.low) / (self.high - self.low) * (num_cells - 1))


@dataclass
class Canvas:
    """A grid of characters with an axis at the left and one below."""

    width: int
    x: Span
    y: Span
    x_ends: tuple[str, str]
    cells: list[list[str]] = field(init=False)

    def __post_init__(self) -> None:
        self.cells = [[" "] * self.width for _ in range(_HEIGHT)]

    def put(self, x: float, y: float, letter: str) -> None:
        """Draw one character at a point."""
        row, column = self._place(x, y)
        self.cells[row][column] = letter

    def label(self, x: float, y: float, text: str) -> None:
        """Write beside a point, to the right or else the left, where there is room for it."""
        row, column = self._place(x, y)
        for start in (column + 2, column - 1 - len(text)):
            stop = start + len(text)
            around = self.cells[row][max(start - 1, 0) : stop + 1]
            if start >= 0 and stop <= self.width and set(around) <= {" "}:
                self.cells[row][start:stop] = text
                return

    def _place(self, x: float, y: float) -> tuple[int, int]:
        return _HEIGHT - 1 - self.y.cell(y, _HEIGHT), self.x.cell(x, self.width)

    def lines(self) -> Iterable[str]:
        """Return the drawing with the ends of both axes written beside it."""
        for number, row in enumerate(self.cells):
            tick = ""
            if number == 0 or (number == _HEIGHT - 1 and self.y.low < self.y.high):
                tick = significant(self.y.high if number == 0 else self.y.low, 3)
            yield f"{tick:>{_TICK_CELLS}} |{''.join(row)}".rstrip()
        yield " " * (_TICK_CELLS + 1) + "+" + "-" * self.width
        first, last = self.x_ends
        ends = first if first == last else first + last.rjust(self.width - len(first))
        yield " " * (_TICK_CELLS + 2) + ends


def print_path(report: SpectralReport, console: Console) -> None:
    """Draw where the run went, with the base and the steps."""
    print_heading(console, "Path", "all updates cut to rank 1, in their first two directions")
    path = report.path
    if path is None or not _all_known(itertools.chain(*path.points)):
        console.print(Text("There is none: the run did not move"))
        return
    canvas = _path_canvas(path, report.steps, _plot_width(console))
    _print_lines(canvas, console)
    sizes = canvas.x.high - canvas.x.low, canvas.y.high - canvas.y.low
    across, up = path.shares
    words = f"B base, o checkpoints. Across lies {across:.0%} of the squared length, up {up:.0%}"
    if sizes[0] > 0 and sizes[1] > 0:
        words += f"; the frame is {significant(sizes[0] / sizes[1], 2)} times as wide as high"
    _print_note(words, console)


def print_score_line(report: SpectralReport, console: Console) -> None:
    """Draw the scores by step, with the line that fits them best."""
    line = report.score_line
    print_heading(console, "Score by step", line.name if line else "")
    if line is None or not _all_known(line.scores):
        console.print(Text("There are no scores of all checkpoints; --scores FILE gives them"))
        return
    _print_lines(_score_canvas(line, report.steps, _plot_width(console)), console)
    if line.slope is None:
        console.print(Text("o scores; one step makes no line"))
        return
    r2 = (
        "" if known(line.r2_in_sample) is None else f", in-sample R^2 {fraction(line.r2_in_sample)}"
    )
    words = f"{significant(line.slope, 3)} per step (.){r2}"
    decides = " That R^2 decides nothing: any steady rise has a high one." if r2 else ""
    _print_note(f"o scores; least-squares line {words}.{decides}", console)


def _path_canvas(path: RunPath, steps: Sequence[int], width: int) -> Canvas:
    across = [0.0, *(point[0] for point in path.points)]
    up = [0.0, *(point[1] for point in path.points)]
    x = Span(min(across), max(across))
    ends = significant(x.low, 3), significant(x.high, 3)
    canvas = Canvas(width, x, Span(min(up), max(up)), ends)
    for point in path.points:
        canvas.put(*point, _POINT)
    canvas.put(0.0, 0.0, _BASE)
    # The ends first: where there is room for few of them, they matter most.
    for place in dict.fromkeys((len(steps) - 1, 0, len(steps) // 2, *range(len(steps)))):
        point = path.points[place]
        canvas.label(*point, str(steps[place]))
    return canvas


def _score_canvas(line: ScoreLine, steps: Sequence[int], width: int) -> Canvas:
    ends = (steps[0], steps[-1])
    fitted = []
    if line.slope is not None and line.intercept is not None:
        fitted = [line.intercept + line.slope * step for step in ends]
    heights = (*line.scores, *fitted)
    y = Span(min(heights), max(heights))
    canvas = Canvas(width, Span(*map(float, ends)), y, (str(ends[0]), str(ends[1])))
    if fitted:
        for column in range(width):
            part = column / (width - 1)
            x = ends[0] + part * (ends[1] - ends[0])
            canvas.put(x, fitted[0] + part * (fitted[1] - fitted[0]), _LINE)
    for step, score in zip(steps, line.scores, strict=True):
        canvas.put(step, score, _POINT)
    return canvas


def _plot_width(console: Console) -> int:
    return max(min(console.width, _MAX_WIDTH) - _TICK_CELLS - 3, 20)


def _print_lines(canvas: Canvas, console: Console) -> None:
    for text in canvas.lines():
        console.print(Text(text))


def _print_note(words: str, console: Console) -> None:
    for line in Text(words).wrap(console, console.width):
        line.rstrip()
        console.print(line)


def _all_known(values: Iterable[float]) -> bool:
    return all(known(value) is not None for value in values)
