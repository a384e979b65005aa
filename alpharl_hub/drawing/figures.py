"""The report as one figure for a paper: small multiples across both of its columns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from alpharl_hub.drawing.canvas import (
    colour_map,
    figure_bytes,
    line_look,
    manner,
    new_figure,
    short_numbers,
    whole_steps,
)
from alpharl_hub.drawing.courses import (
    Course,
    Group,
    Values,
    course,
    drawn_groups,
    last_share,
    layer_map,
    relative_spectrum,
    step_quality,
)
from alpharl_hub.drawing.palette import FONT_PT, FULL_WIDTH_IN, LIGHT, MISSING_SHADE, SMALL_FONT_PT
from alpharl_hub.drawing.words import fraction, shorten, spell_out
from alpharl_hub.results import ModuleSpectrum, RunPath, ScoreLine, SpectralReport

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

_NUM_COLUMNS = 4
_NUM_PANEL_COLUMNS = 3
_ROW_HEIGHT_IN = 1.15
_PANEL_HEIGHT_IN = 1.75
_MAX_LABEL_CHARS = 24
_MAX_MAP_ROWS = 16

Panel = Callable[["Axes"], None]


def report_figure(report: SpectralReport, file_format: str) -> bytes:
    """Draw a report; the same report gives the same bytes.

    Args:
        report: with or without matrices, path and scores; what is not there is left out.
        file_format: png (300 dots per inch), svg or pdf (letters and lines as shapes).
    """
    with manner():
        return figure_bytes(_draw(report), file_format)


def _draw(report: SpectralReport) -> Figure:
    groups = drawn_groups(report)
    if not groups:
        figure = new_figure(FULL_WIDTH_IN, _ROW_HEIGHT_IN)
        figure.text(0.5, 0.5, "no matrix is in scope", ha="center", va="center")
        return figure
    panels = _panels(report, groups)
    num_rows = -(-len(groups) // _NUM_COLUMNS)
    num_panel_rows = -(-len(panels) // _NUM_PANEL_COLUMNS)
    heights = [num_rows * _ROW_HEIGHT_IN + 0.3, num_panel_rows * _PANEL_HEIGHT_IN]
    figure = new_figure(FULL_WIDTH_IN, sum(heights))
    above, below = figure.subfigures(2, 1, squeeze=False, height_ratios=heights)[:, 0]
    _draw_sigmas(above, report, groups, num_rows)
    # Each row has its own columns: the names beside the map make no other row narrower.
    rows = below.subfigures(num_panel_rows, 1, squeeze=False)[:, 0]
    places = [axes for row in rows for axes in row.subplots(1, _NUM_PANEL_COLUMNS)]
    for axes in places[len(panels) :]:
        axes.set_axis_off()
    for panel, axes in zip(panels, places, strict=False):
        panel(axes)
    return figure


def _panels(report: SpectralReport, groups: Sequence[Group]) -> list[Panel]:
    """Return what can be drawn of a report, in reading order."""
    steps = report.steps
    panels: list[Panel] = [
        lambda axes: _draw_shares(axes, steps, groups),
        lambda axes: _draw_drift(axes, steps, groups),
        lambda axes: _draw_map(axes, report),
    ]
    if any(len(matrix.singular_values) > 1 for matrix in report.modules):
        panels.append(lambda axes: _draw_spectrum(axes, groups))
    if (path := report.path) is not None:
        panels.append(lambda axes: _draw_path(axes, path, steps))
    if (line := report.score_line) is not None:
        panels.append(lambda axes: _draw_scores(axes, line, steps))
    return panels


def _draw_sigmas(
    part: SubFigure, report: SpectralReport, groups: Sequence[Group], num_rows: int
) -> None:
    """Draw sigma_1 of each group over the steps, all on one scale."""
    part.supylabel("σ₁ of the update", fontsize=FONT_PT)
    grid = part.subplots(num_rows, _NUM_COLUMNS, squeeze=False, sharex=True, sharey=True)
    for number, (group, axes) in enumerate(zip(groups, grid.flat, strict=False)):
        _draw_course(axes, number, report.steps, course(group, lambda m: m.sigma))
        axes.set_title(_label(group))
        whole_steps(axes)
        # Nothing stands below: this panel shows the ticks for its column.
        if number + _NUM_COLUMNS >= len(groups):
            axes.set_xlabel("step")
            axes.tick_params(labelbottom=True)
    highest = max(max(matrix.sigma) for group in groups for matrix in group.matrices)
    grid.flat[0].set_ylim(0, 1.08 * highest or 1)
    short_numbers(grid.flat[0].yaxis)
    _explain(part, list(grid.flat[len(groups) :]), groups, len(report.steps))


def _draw_course(axes: Axes, number: int, steps: Sequence[int], values: Course) -> None:
    look = line_look(number, len(steps))
    axes.fill_between(
        steps,
        [_or_nan(v) for v in values.low],
        [_or_nan(v) for v in values.high],
        color=look["color"],
        alpha=0.2,
        linewidth=0,
    )
    lines = axes.plot(steps, [_or_nan(v) for v in values.median], **look)
    lines[0].set_gid(f"sigma-{number}")


def _explain(
    part: SubFigure, free_places: Sequence[Axes], groups: Sequence[Group], num_steps: int
) -> None:
    """Say which line is which: behind the last panel, or below them all where no place is free."""
    from matplotlib.lines import Line2D

    for axes in free_places:
        axes.set_axis_off()
    handles = [
        Line2D([], [], label=_label(group), **(line_look(number, num_steps) | {"markevery": 1}))
        for number, group in enumerate(groups)
    ]
    if not free_places:
        part.legend(handles=handles, loc="outside lower center", ncols=_NUM_COLUMNS)
        return
    legend = free_places[0].legend(
        handles=handles,
        loc="upper left",
        bbox_to_anchor=(0, 1.05),
        borderpad=0,
        borderaxespad=0,
        labelspacing=0.25,
        title="median (range shaded)",
        title_fontsize=SMALL_FONT_PT,
        alignment="left",
    )
    legend.set_in_layout(False)


def _draw_medians(
    axes: Axes,
    name: str,
    steps: Sequence[int],
    groups: Sequence[Group],
    values: Callable[[ModuleSpectrum], Values],
) -> None:
    for number, group in enumerate(groups):
        medians = course(group, values).median
        lines = axes.plot(steps, [_or_nan(v) for v in medians], **line_look(number, len(steps)))
        lines[0].set_gid(f"{name}-{number}")
    axes.set_xlabel("step")
    whole_steps(axes)


def _draw_shares(axes: Axes, steps: Sequence[int], groups: Sequence[Group]) -> None:
    _draw_medians(axes, "share", steps, groups, lambda m: m.rank1_share)
    axes.set_title("Rank-1 share of the update")
    axes.set_ylim(0, 1.03)


def _draw_drift(axes: Axes, steps: Sequence[int], groups: Sequence[Group]) -> None:
    _draw_medians(axes, "drift", steps, groups, lambda m: m.drift)
    axes.set_title("Angle to the last direction (degrees)")
    axes.set_ylim(bottom=0)


def _draw_map(axes: Axes, report: SpectralReport) -> None:
    """Draw Q^2 by layer and group, or the rank-1 share where there are too few steps for Q^2."""
    has_quality = report.summary.q2_step is not None
    found = layer_map(report, step_quality if has_quality else last_share)
    rows = [[_or_nan(cell) for cell in row] for row in found.cells[:_MAX_MAP_ROWS]]
    axes.set_facecolor(MISSING_SHADE[LIGHT])
    axes.patch.set_hatch("////")
    axes.patch.set_edgecolor(LIGHT.grid)
    image = axes.imshow(
        rows, cmap=colour_map(), vmin=0, vmax=1, aspect="auto", interpolation="nearest"
    )
    axes.grid(False)
    axes.set_title("Q² on the step" if has_quality else "Rank-1 share, last step")
    axes.set_xlabel("layer")
    whole_steps(axes)
    axes.xaxis.set_major_formatter(lambda x, _: _layer_label(found.layers, x))
    axes.set_yticks(
        range(len(rows)), [shorten(spell_out(g), 20) for g in found.groups[: len(rows)]]
    )
    bar = axes.figure.colorbar(image, ax=axes, fraction=0.05, pad=0.02, ticks=[0, 0.5, 1])
    bar.outline.set_linewidth(0.4)


def _layer_label(layers: Sequence[int | None], place: float) -> str:
    if place != int(place) or not 0 <= place < len(layers):
        return ""
    layer = layers[int(place)]
    return "none" if layer is None else str(layer)


def _draw_spectrum(axes: Axes, groups: Sequence[Group]) -> None:
    for number, group in enumerate(groups):
        values = relative_spectrum(group)
        places = range(1, len(values) + 1)
        lines = axes.plot(places, values, **line_look(number, len(values)))
        lines[0].set_gid(f"spectrum-{number}")
    axes.set_title("Singular values, σₖ / σ₁")
    axes.set_xlabel("k")
    axes.set_ylim(0, 1.03)
    whole_steps(axes)


def _draw_path(axes: Axes, path: RunPath, steps: Sequence[int]) -> None:
    """Draw the way from the base, with one scale for both directions."""
    x_T, y_T = zip((0.0, 0.0), *path.points, strict=True)
    look = line_look(0, len(steps)) | {"markevery": 1}
    axes.plot(x_T, y_T, **look)[0].set_gid("path")
    axes.set_aspect("equal", adjustable="datalim")
    axes.set_title("Path of the run")
    short_numbers(axes.xaxis, axes.yaxis)
    axes.set_xlabel(f"first direction ({path.shares[0]:.1%})")
    axes.set_ylabel(f"second ({path.shares[1]:.1%})")
    _name_point(axes, "base", (0.0, 0.0), is_above=y_T[1] < 0, side="left")
    is_above = y_T[-1] > y_T[-2]
    _name_point(axes, f"step {steps[-1]}", (x_T[-1], y_T[-1]), is_above=is_above, side="right")


def _name_point(
    axes: Axes, text: str, point: tuple[float, float], *, is_above: bool, side: str
) -> None:
    """Write beside an end of the path, on the side that it does not come from."""
    axes.annotate(
        text,
        point,
        xytext=(0, 5 if is_above else -5),
        textcoords="offset points",
        ha=side,
        va="bottom" if is_above else "top",
        fontsize=SMALL_FONT_PT,
    )


def _draw_scores(axes: Axes, line: ScoreLine, steps: Sequence[int]) -> None:
    look = line_look(0, len(steps)) | {"linestyle": "none", "markevery": 1}
    axes.plot(steps, line.scores, **look)[0].set_gid("scores")
    if line.slope is not None and line.intercept is not None:
        ends = (steps[0], steps[-1])
        heights = [line.intercept + line.slope * step for step in ends]
        look = line_look(1, 2) | {"marker": ""}
        axes.plot(ends, heights, **look)[0].set_gid("score-line")
    r2 = "" if line.r2_in_sample is None else f" (line: R² {fraction(line.r2_in_sample)})"
    axes.set_title(shorten(spell_out(line.name), _MAX_LABEL_CHARS) + r2)
    axes.set_xlabel("step")
    whole_steps(axes)


def _label(group: Group) -> str:
    return shorten(spell_out(group.label), _MAX_LABEL_CHARS)


def _or_nan(value: float | None) -> float:
    return float("nan") if value is None else value
