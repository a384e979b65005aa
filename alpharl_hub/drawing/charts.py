"""Charts as inline SVG, for a page that loads nothing: lines with bands, maps, sparklines.

Colours are classes of the page's style sheet, so that they follow its light and dark dress.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from alpharl_hub.drawing.axes import Frame, Span, ticks
from alpharl_hub.drawing.courses import LayerMap
from alpharl_hub.drawing.markup import element, short, text
from alpharl_hub.drawing.palette import STYLES, shade_class
from alpharl_hub.drawing.words import fraction, magnitude, shorten, spell_out

Points = Sequence[tuple[float, float | None]]

WIDTH = 360
_LEFT, _RIGHT, _TOP, _BOTTOM = 50, 12, 8, 36
_MARKER = 3.0
_MAX_MAP_LABEL_CHARS = 20
_MAP_LEFT, _MAP_ROW, _MAP_BOTTOM = 132, 18, 34
_SPARK_WIDTH, _SPARK_HEIGHT = 84, 20


@dataclass(frozen=True)
class Curve:
    """One line of a chart, in a style of the palette; `band` holds (x, low, high).

    A number that is None breaks the line. Without `is_line` only markers are drawn, without
    `is_marked` only the line.
    """

    label: str
    style: int
    points: Points
    band: Sequence[tuple[float, float, float]] = ()
    is_line: bool = True
    is_marked: bool = True


@dataclass(frozen=True)
class Chart:
    """What a chart shows; `description` says it to those who do not see it."""

    name: str
    title: str
    description: str
    curves: Sequence[Curve]
    x_label: str
    x_span: Span
    y_span: Span
    width: int = WIDTH
    height: int = 210
    whole_x: bool = True
    y_label: str = ""


def line_chart(chart: Chart) -> str:
    """Return a chart as an SVG element; its name is used for ids, once on a page."""
    frame = chart_frame(chart)
    parts = [_axes(chart, frame), *(_curve(curve, frame) for curve in chart.curves)]
    size = (chart.width, chart.height)
    return _drawing(chart.name, chart.title, chart.description, size, "".join(parts))


def chart_frame(chart: Chart) -> Frame:
    """Return the part of a chart inside of its axes."""
    width, height = chart.width - _LEFT - _RIGHT, chart.height - _TOP - _BOTTOM
    return Frame(_LEFT, _TOP, width, height, chart.x_span, chart.y_span)


def heat_map(name: str, title: str, description: str, found: LayerMap) -> str:
    """Return numbers from 0 to 1 by group and layer as an SVG element; each cell tells its own."""
    num_layers = len(found.layers)
    cell = (WIDTH - _MAP_LEFT - _RIGHT) / num_layers
    bottom = len(found.groups) * _MAP_ROW
    parts = []
    for row, (group, values) in enumerate(zip(found.groups, found.cells, strict=True)):
        label = text(shorten(spell_out(group), _MAX_MAP_LABEL_CHARS))
        parts.append(_label(label, _MAP_LEFT - 6, row * _MAP_ROW + 13, "end"))
        for column, value in enumerate(values):
            layer = found.layers[column]
            place = "outside the layers" if layer is None else f"layer {layer}"
            told = element("title", text(f"{group}, {place}: {fraction(value)}"))
            parts.append(
                element(
                    "rect",
                    told,
                    class_="q-" if value is None else f"q{shade_class(value)}",
                    x=_MAP_LEFT + column * cell,
                    y=row * _MAP_ROW,
                    width=cell - min(1, cell / 5),
                    height=_MAP_ROW - 1,
                )
            )
    for column in _map_ticks(num_layers):
        layer = found.layers[column]
        words = "none" if layer is None else str(layer)
        parts.append(_label(words, _MAP_LEFT + (column + 0.5) * cell, bottom + 13))
    parts.append(_label("layer", (_MAP_LEFT + WIDTH - _RIGHT) / 2, bottom + 29))
    size = (WIDTH, bottom + _MAP_BOTTOM)
    return _drawing(name, title, description, size, "".join(parts))


def sparkline(values: Sequence[float | None]) -> str:
    """Return the course of a number, from zero, as a small SVG element; its ends are told."""
    known = [value for value in values if value is not None]
    highest = max((abs(value) for value in known), default=0.0) or 1.0
    lowest = min((*known, 0.0))
    frame = Frame(
        2, 2, _SPARK_WIDTH - 4, _SPARK_HEIGHT - 4, (0, max(len(values) - 1, 1)), (lowest, highest)
    )
    points = list(enumerate(values))
    ends = f"from {magnitude(known[0])} to {magnitude(known[-1])}" if known else "unknown"
    content = element("path", class_="line s0", d=_path(points, frame))
    if known and values[-1] is not None:
        content += element("path", class_="mark s0", d=_marker("dot", frame, *points[-1]))
    return element(
        "svg",
        content,
        class_="spark",
        role="img",
        aria_label=ends,
        viewBox=f"0 0 {_SPARK_WIDTH} {_SPARK_HEIGHT}",
        width=_SPARK_WIDTH,
        height=_SPARK_HEIGHT,
    )


def legend(labels: Sequence[str]) -> str:
    """Return a list of which style is which; the styles are counted from the first."""
    items = []
    for number, label in enumerate(labels):
        frame = Frame(0, 0, 34, 12, (0, 2), (0, 2))
        curve = Curve(label, number, ((0, 1), (1, 1), (2, 1)))
        marked = element("path", class_=f"line s{number}", d=_path(curve.points, frame))
        marked += element("path", class_=_mark_class(number), d=_markers(curve.style, frame, 1))
        swatch = element(
            "svg", marked, class_="swatch", aria_hidden="true", viewBox="0 0 34 12", width=34
        )
        items.append(element("li", swatch + text(label)))
    return element("ul", "".join(items), class_="legend")


def _drawing(name: str, title: str, description: str, size: tuple[int, int], content: str) -> str:
    told = element("title", text(title), id=f"{name}-title")
    told += element("desc", text(description), id=f"{name}-desc")
    return element(
        "svg",
        told + content,
        class_="chart",
        role="img",
        aria_labelledby=f"{name}-title",
        aria_describedby=f"{name}-desc",
        viewBox=f"0 0 {size[0]} {size[1]}",
    )


def _axes(chart: Chart, frame: Frame) -> str:
    right, bottom = frame.left + frame.width, frame.top + frame.height
    parts = []
    for value in ticks(chart.y_span, 6):
        y = frame.y(value)
        parts.append(element("path", class_="grid", d=f"M{short(frame.left)} {short(y)}H{right}"))
        parts.append(_label(magnitude(value), frame.left - 6, y + 4, "end", "tick-y"))
    for value in ticks(chart.x_span, 5, whole=chart.whole_x):
        x = frame.x(value)
        parts.append(element("path", class_="grid", d=f"M{short(x)} {short(frame.top)}V{bottom}"))
        words = f"{value:.0f}" if chart.whole_x else magnitude(value)
        parts.append(_label(words, x, bottom + 15, css="tick-x"))
    rim = f"M{short(frame.left)} {short(frame.top)}V{bottom}H{right}"
    parts.append(element("path", class_="rim", d=rim))
    parts.append(_label(text(chart.x_label), frame.left + frame.width / 2, bottom + 31))
    if chart.y_label:
        parts.append(_label(text(chart.y_label), frame.left + 6, frame.top + 10, "start"))
    return "".join(parts)


def _curve(curve: Curve, frame: Frame) -> str:
    parts = []
    if curve.band:
        above = [(x, high) for x, _, high in curve.band]
        below = [(x, low) for x, low, _ in reversed(curve.band)]
        outline = _path([*above, *below], frame) + "Z"
        parts.append(element("path", class_=f"band s{curve.style}", d=outline))
    if curve.is_line:
        line = _path(curve.points, frame)
        parts.append(element("path", class_=f"line s{curve.style}", d=line))
    if curve.is_marked:
        name = STYLES[curve.style].marker
        marks = "".join(_marker(name, frame, x, y) for x, y in curve.points if y is not None)
        parts.append(element("path", class_=_mark_class(curve.style), d=marks))
    return element("g", "".join(parts))


def _path(points: Points, frame: Frame) -> str:
    """Return the commands of a line through points; a point without a number breaks it."""
    commands, pen = [], "M"
    for x, y in points:
        if y is None:
            pen = "M"
            continue
        commands.append(f"{pen}{short(frame.x(x))} {short(frame.y(y))}")
        pen = "L"
    return "".join(commands)


def _mark_class(style: int) -> str:
    return f"mark s{style}" + (" hollow" if STYLES[style].marker == "ring" else "")


def _markers(style: int, frame: Frame, x: float) -> str:
    return _marker(STYLES[style].marker, frame, x, 1)


def _marker(name: str, frame: Frame, x: float, y: float | None) -> str:
    """Return the commands of one marker; all begin at its middle, left or top."""
    if y is None:
        return ""
    a, b, r = frame.x(x), frame.y(y), _MARKER
    s, w = short, short(2 * r)
    if name in ("circle", "ring", "dot"):
        r = r / 2 if name == "dot" else r
        w = short(2 * r)
        return f"M{s(a - r)} {s(b)}a{s(r)} {s(r)} 0 1 0 {w} 0a{s(r)} {s(r)} 0 1 0 -{w} 0Z"
    if name == "square":
        return f"M{s(a - r)} {s(b - r)}h{w}v{w}h-{w}Z"
    if name == "triangle":
        return f"M{s(a)} {s(b - r)}l{s(r)} {w}h-{w}Z"
    if name == "diamond":
        return f"M{s(a)} {s(b - r)}l{s(r)} {s(r)}l-{s(r)} {s(r)}l-{s(r)} -{s(r)}Z"
    if name == "plus":
        return f"M{s(a)} {s(b - r)}v{w}M{s(a - r)} {s(b)}h{w}"
    return f"M{s(a - r)} {s(b - r)}l{w} {w}m0 -{w}l-{w} {w}"


def _label(content: str, x: float, y: float, anchor: str = "middle", css: str = "") -> str:
    names = {"class_": css} if css else {}
    return element("text", content, x=float(x), y=float(y), text_anchor=anchor, **names)


def _map_ticks(num_layers: int) -> range:
    """Return columns that are far enough from each other to be labelled."""
    return range(0, num_layers, -(-num_layers // 8))
