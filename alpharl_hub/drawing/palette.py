"""Colours, dashes and markers that all drawings share, and the sizes of a printed page.

No two lines differ by colour alone: each style has a dash and a marker of its own, so that a copy
in grey and a reader who sees colours differently lose nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

FULL_WIDTH_IN = 7.0
"""Across both columns of a paper, in inches."""

FONT_PT = 7.5
"""Axis titles; nothing in a figure is smaller than `SMALL_FONT_PT`."""

SMALL_FONT_PT = 6.5


@dataclass(frozen=True)
class Style:
    """How one line is drawn.

    `light` and `dark` are its colours on a page of that kind, each with a contrast of 3 or more to
    it. `dash` holds lengths on and off in line widths, none for a whole line. `marker` is a name of
    `MARKERS`.
    """

    light: str
    dark: str
    dash: tuple[float, ...]
    marker: str


MARKERS = ("circle", "square", "triangle", "diamond", "plus", "cross", "ring", "dot")

STYLES = (
    Style("#2c42de", "#6c9dff", (), "circle"),
    Style("#e67304", "#e96428", (5, 1.5), "square"),
    Style("#12613d", "#4bf9aa", (1.2, 1.2), "triangle"),
    Style("#a21c8a", "#ffa0e1", (5, 1.5, 1.2, 1.5), "diamond"),
    Style("#7e4d05", "#edda4c", (3, 1), "plus"),
    Style("#222222", "#ffffff", (7, 2), "cross"),
    Style("#3a8dee", "#5a4ae8", (2, 1, 2, 3), "ring"),
    Style("#858585", "#8c8c8c", (1, 2.5), "dot"),
)
"""The last one is grey: it is for what is left over when there are more lines than styles."""


@dataclass(frozen=True)
class Theme:
    """The colours of a page; `paper` is behind everything, `ink` is text, `grid` thin lines."""

    paper: str
    ink: str
    faint_ink: str
    grid: str


LIGHT = Theme(paper="#ffffff", ink="#1a1a1a", faint_ink="#595959", grid="#d9d9d9")
DARK = Theme(paper="#14171c", ink="#e8e8e8", faint_ink="#a8adb5", grid="#3a404a")

# Cividis, of which every reader sees the same order, and a copy in grey too: lightness only rises.
# https://doi.org/10.1371/journal.pone.0199239
SHADES = ("#00224e", "#35456c", "#666970", "#948e77", "#c8b866", "#fee838")
"""From 0 to 1 in equal steps."""

MISSING_SHADE = {LIGHT: "#ececec", DARK: "#2a2f37"}
"""Of a cell without a number; it is hatched or marked too."""

NUM_SHADES = 11
"""As many classes of colour as a page's map has: 0.0, 0.1, ... 1.0."""


def shade(fraction: float) -> str:
    """Return the colour of a number from 0 to 1; what lies outside has the colour of its end."""
    place = min(max(fraction, 0.0), 1.0) * (len(SHADES) - 1)
    i = min(int(place), len(SHADES) - 2)
    low, high = _channels(SHADES[i]), _channels(SHADES[i + 1])
    mixed = (round(a + (b - a) * (place - i)) for a, b in zip(low, high, strict=True))
    return "#" + "".join(f"{channel:02x}" for channel in mixed)


def shade_class(fraction: float) -> int:
    """Return the class of a number from 0 to 1: the tenth that is nearest."""
    return round(min(max(fraction, 0.0), 1.0) * (NUM_SHADES - 1))


def _channels(colour: str) -> tuple[int, int, int]:
    return int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16)
