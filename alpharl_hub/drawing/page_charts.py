"""Which charts a page of a report has; each comes with its title."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from alpharl_hub.drawing.axes import equal_spans, padded, span_of
from alpharl_hub.drawing.charts import Chart, Curve, chart_frame, line_chart
from alpharl_hub.drawing.courses import (
    Course,
    Values,
    course,
    drawn_groups,
    relative_spectrum,
)
from alpharl_hub.drawing.words import fraction, magnitude
from alpharl_hub.results import ModuleSpectrum, SpectralReport

_SMALL_WIDTH = 270

TitledDrawing = tuple[str, str]


def sigma_charts(report: SpectralReport) -> list[TitledDrawing]:
    """Return a chart of sigma_1 over the steps for each group, all on one scale."""
    courses = [(g.label, course(g, lambda m: m.sigma)) for g in drawn_groups(report)]
    highest = max((high for _, one in courses for high in one.high if high is not None), default=0)
    found = []
    for number, (label, one) in enumerate(courses):
        ends = f"{magnitude(one.median[0])} to {magnitude(one.median[-1])}"
        chart = Chart(
            name=f"sigma-{number}",
            title=f"σ₁ over the steps, {label}",
            description=f"The median over the matrices goes from {ends}; the band is their range.",
            curves=[Curve(label, number, _points(report, one.median), _band(report, one))],
            x_label="step",
            x_span=padded(span_of(report.steps)),
            y_span=(0, 1.05 * highest or 1),
            width=_SMALL_WIDTH,
            height=150,
        )
        found.append((label, line_chart(chart)))
    return found


def group_charts(report: SpectralReport) -> list[TitledDrawing]:
    """Return the rank-1 share and the drift over the steps, with a line for each group."""
    shares = _medians(report, lambda m: m.rank1_share)
    angles = _medians(report, lambda m: m.drift)
    highest = max((y for curve in angles for _, y in curve.points if y is not None), default=0)
    x_span = padded(span_of(report.steps))
    charts = [
        Chart(
            name="share",
            title="Rank-1 share of the update over the steps",
            description="One line for each module group, from 0 to 1; medians over matrices.",
            curves=shares,
            x_label="step",
            x_span=x_span,
            y_span=(0, 1.03),
        ),
        Chart(
            name="drift",
            title="Angle to the last direction, degrees",
            description="One line for each module group; 0 where a checkpoint points as the last.",
            curves=angles,
            x_label="step",
            x_span=x_span,
            y_span=(0, 1.05 * highest or 1),
        ),
    ]
    return [(chart.title, line_chart(chart)) for chart in charts]


def spectrum_chart(report: SpectralReport) -> list[TitledDrawing]:
    """Return the singular values of the last update, where more than one is known."""
    spectra = [(g.label, relative_spectrum(g)) for g in drawn_groups(report)]
    longest = max((len(values) for _, values in spectra), default=0)
    if longest < 2:
        return []
    chart = Chart(
        name="spectrum",
        title=f"Singular values at step {report.steps[-1]}, relative to the first",
        description="One line for each module group, falling from 1; medians over matrices.",
        curves=[
            Curve(label, number, [(k + 1, value) for k, value in enumerate(values)])
            for number, (label, values) in enumerate(spectra)
        ],
        x_label="k",
        x_span=padded((1, longest)),
        y_span=(0, 1.03),
    )
    return [(chart.title, line_chart(chart))]


def path_chart(report: SpectralReport) -> list[TitledDrawing]:
    """Return the way from the base in its first two directions, with one scale for both."""
    if report.path is None:
        return []
    first, second = report.path.shares
    points = [(0.0, 0.0), *report.path.points]
    chart = Chart(
        name="path",
        title="Path of the run from the base, at (0, 0)",
        description=f"A point for each checkpoint, in the plane that holds {first + second:.1%} of "
        "their summed squared lengths. A straight run is a straight line to the right.",
        curves=[Curve("path", 0, points)],
        x_label=f"first direction ({first:.1%})",
        y_label=f"second direction ({second:.1%})",
        x_span=padded(span_of([x for x, _ in points])),
        y_span=padded(span_of([y for _, y in points])),
        whole_x=False,
    )
    frame = chart_frame(chart)
    x_span, y_span = equal_spans(chart.x_span, chart.y_span, frame.width, frame.height)
    return [(chart.title, line_chart(replace(chart, x_span=x_span, y_span=y_span)))]


def score_chart(report: SpectralReport) -> list[TitledDrawing]:
    """Return the scores over the steps and their line."""
    line = report.score_line
    if line is None:
        return []
    steps = report.steps
    curves = [Curve("scores", 0, list(zip(steps, line.scores, strict=True)), is_line=False)]
    heights: list[float] = []
    words = "No line can be drawn through them."
    if line.slope is not None and line.intercept is not None:
        ends = (steps[0], steps[-1])
        heights = [line.intercept + line.slope * step for step in ends]
        fitted = list(zip(ends, heights, strict=True))
        curves.append(Curve("line", 1, fitted, is_marked=False))
        words = (
            f"Their least-squares line rises by {magnitude(line.slope)} a step; R² in sample "
            f"{fraction(line.r2_in_sample)}."
        )
    chart = Chart(
        name="score",
        title=f"{line.name} over the steps",
        description=f"{len(steps)} scores from {magnitude(line.scores[0])} to "
        f"{magnitude(line.scores[-1])}. {words}",
        curves=curves,
        x_label="step",
        x_span=padded(span_of(steps)),
        y_span=padded(span_of([*line.scores, *heights])),
    )
    return [(f"{chart.title}: {words}", line_chart(chart))]


def _medians(report: SpectralReport, values: Callable[[ModuleSpectrum], Values]) -> list[Curve]:
    return [
        Curve(group.label, number, _points(report, course(group, values).median))
        for number, group in enumerate(drawn_groups(report))
    ]


def _points(report: SpectralReport, values: Values) -> list[tuple[float, float | None]]:
    return list(zip(report.steps, values, strict=True))


def _band(report: SpectralReport, one: Course) -> Sequence[tuple[float, float, float]]:
    return [
        (step, low, high)
        for step, low, high in zip(report.steps, one.low, one.high, strict=True)
        if low is not None and high is not None
    ]
