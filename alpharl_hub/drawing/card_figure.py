"""The picture of a card's evidence, from the manifest alone: the same numbers give the same bytes.

It lies in a repo beside the weights and is loaded with every look at the card: under 100 KB.
"""

from __future__ import annotations

import importlib.util
import io
import logging
from collections.abc import Mapping, Sequence
from statistics import median
from typing import TYPE_CHECKING

from alpharl_hub.drawing.canvas import (
    CREATOR,
    colour_map,
    line_look,
    manner,
    new_figure,
    whole_steps,
)
from alpharl_hub.drawing.palette import FULL_WIDTH_IN, LIGHT, STYLES
from alpharl_hub.drawing.words import shorten, spell_out
from alpharl_hub.manifest import Manifest
from alpharl_hub.module_names import layer_and_group

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_ROW_IN = 0.2
_MARGIN_IN = 0.7
_PANEL_IN = 2.0
_DOTS_PER_INCH = 110
_MAX_ROWS = 20
_MAX_NAME_CHARS = 30

SHARES, FIT, SCORES = "shares", "fit", "scores"


def draw_evidence(manifest: Manifest) -> bytes | None:
    """Return a PNG: shares by module and layer, Q² by module, scores.

    None where there is nothing to draw, or no matplotlib that works: a model is not to be lost for
    a picture.
    """
    panels = panels_of(manifest)
    if not panels or importlib.util.find_spec("matplotlib") is None:
        return None
    # It says in its log that it looks for fonts, or cannot write down which it found.
    logger = logging.getLogger("matplotlib")
    level_before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with manner():
            return _png(_figure(manifest, panels))
    except (ImportError, OSError):
        return None
    finally:
        logger.setLevel(level_before)


def _png(figure: Figure) -> bytes:
    stream = io.BytesIO()
    # For a screen: in the density of a paper's figures it would be several times as large.
    figure.savefig(stream, format="png", dpi=_DOTS_PER_INCH, metadata={"Software": CREATOR})
    return stream.getvalue()


def panels_of(manifest: Manifest) -> tuple[str, ...]:
    """Name the panels that there is something for."""
    found = []
    if _by_module(manifest, "rank1_share"):
        found.append(SHARES)
    if _by_module(manifest, "q2_step"):
        found.append(FIT)
    if manifest.sweep is not None or len(_scored_steps(manifest)) > 1:
        found.append(SCORES)
    return tuple(found)


def _figure(manifest: Manifest, panels: Sequence[str]) -> Figure:
    below = [panel for panel in panels if panel != SHARES]
    rows_in = _ROW_IN * len(_by_module(manifest, "rank1_share"))
    heights_in = [_MARGIN_IN + rows_in] if SHARES in panels else []
    heights_in += [max(_PANEL_IN, _MARGIN_IN + rows_in)] if below else []
    figure = new_figure(FULL_WIDTH_IN, sum(heights_in))
    grid = figure.add_gridspec(len(heights_in), max(1, len(below)), height_ratios=heights_in)
    if SHARES in panels:
        _draw_shares(figure, figure.add_subplot(grid[0, :]), manifest)
    for column, panel in enumerate(below):
        draw = _draw_fit if panel == FIT else _draw_scores
        draw(figure.add_subplot(grid[-1, column]), manifest)
    return figure


def _draw_shares(figure: Figure, axes: Axes, manifest: Manifest) -> None:
    by_module = _by_module(manifest, "rank1_share")
    num_layers = 1 + max(layer for row in by_module.values() for layer in row)
    nan = float("nan")
    grid = [[row.get(layer, nan) for layer in range(num_layers)] for row in by_module.values()]
    axes.grid(False)
    image = axes.imshow(
        grid, cmap=colour_map(), vmin=0, vmax=1, aspect="auto", interpolation="nearest"
    )
    groups = {layer_and_group(t.name)[1] for t in manifest.tensors if t.rank1_share is not None}
    shown = "" if len(groups) <= _MAX_ROWS else f" ({_MAX_ROWS} of {len(groups)} modules)"
    axes.set_title(f"Rank-1 share of every matrix's update{shown}")
    axes.set_xlabel("layer")
    whole_steps(axes)
    _name_rows(axes, list(by_module))
    figure.colorbar(image, ax=axes, fraction=0.03, pad=0.01)


def _draw_fit(axes: Axes, manifest: Manifest) -> None:
    by_module = _by_module(manifest, "q2_step")
    for row, values in enumerate(by_module.values()):
        # Q² has no lower end: what predicts nothing is drawn at 0.
        shown = [min(1.0, max(0.0, value)) for value in values.values()]
        axes.plot(shown, [row] * len(shown), "|", color=STYLES[0].light, markersize=7)
        axes.plot([median(shown)], [row], "D", color=STYLES[1].light, markersize=4)
    axes.set_title("Q² of left-out checkpoints (diamond: median)")
    axes.set_xlim(-0.03, 1.03)
    axes.set_ylim(len(by_module) - 0.5, -0.5)
    axes.grid(False, axis="y")
    _name_rows(axes, list(by_module))


def _draw_scores(axes: Axes, manifest: Manifest) -> None:
    sweep, method = manifest.sweep, manifest.method
    this: float | None
    if sweep is not None:
        points = dict(sorted(zip(sweep.values, sweep.scores, strict=True)))
        of, along, this = "candidates", sweep.axis, sweep.best_value
    else:
        points = dict(_scored_steps(manifest))
        of, along, this = "checkpoints", "step", None if method is None else method.target_step
        axes.set_ylabel(_plain(manifest.run.score_name or "score"))
    look = {**line_look(0, len(points)), "markevery": 1}
    axes.plot(list(points), list(points.values()), **look)
    if this is not None:
        axes.axvline(this, color=LIGHT.ink, linestyle="--", linewidth=0.9)
    axes.set_title(f"Score of the {of}" + ("" if this is None else " (dashed: this model)"))
    axes.set_xlabel(_plain(along))


def _name_rows(axes: Axes, names: Sequence[str]) -> None:
    axes.set_yticks(range(len(names)), [_plain(name) for name in names])
    axes.tick_params(axis="y", length=0)


def _by_module(manifest: Manifest, field: str) -> Mapping[str, Mapping[int, float]]:
    """Return a figure of every matrix, by module and layer; what has no layer counts as layer 0."""
    found: dict[str, dict[int, float]] = {}
    for tensor in manifest.tensors:
        value = getattr(tensor, field)
        layer, group = layer_and_group(tensor.name)
        if value is not None and (group in found or len(found) < _MAX_ROWS):
            found.setdefault(group, {}).setdefault(min(layer or 0, 999), value)
    return found


def _scored_steps(manifest: Manifest) -> Mapping[float, float]:
    return {
        record.step: record.score
        for record in manifest.run.checkpoints
        if record.step is not None and record.score is not None
    }


def _plain(text: str) -> str:
    return shorten(spell_out(text), _MAX_NAME_CHARS)
