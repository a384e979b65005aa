"""The report as one HTML page that needs nothing else: no request leaves it, no name acts in it."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Iterator, Sequence

from alpharl_hub.drawing.charts import heat_map, legend, sparkline
from alpharl_hub.drawing.courses import (
    Group,
    all_groups,
    drawn_groups,
    last_share,
    layer_map,
    median_of,
    step_quality,
)
from alpharl_hub.drawing.markup import element, text
from alpharl_hub.drawing.page_charts import (
    group_charts,
    path_chart,
    score_chart,
    sigma_charts,
    spectrum_chart,
)
from alpharl_hub.drawing.page_style import SCRIPT, style_sheet
from alpharl_hub.drawing.palette import NUM_SHADES
from alpharl_hub.drawing.words import ABSENT, answers, fraction, headline, magnitude
from alpharl_hub.results import ModuleSpectrum, SpectralReport
from alpharl_hub.version import __version__

GENERATOR = "alpharl-hub"
MAX_MODULE_ROWS = 500
"""A page of a mixture of experts with all of its matrices would be too large for a phone."""

_NUMBER_HEADS = ("σ₁", "‖Δ‖", "rank-1 share", "drift °", "Q² step", "Q² score", "stable rank")


def page_bytes(report: SpectralReport, run: str = "") -> bytes:
    """Return the page as UTF-8; the same report gives the same bytes.

    Args:
        report: with or without matrices, path and scores; what is not there is left out.
        run: what the user called the run; left out when empty.
    """
    title = "Spectral report" + (f": {run}" if run else "")
    sheet = style_sheet()
    # Only this style sheet and this script are obeyed, and nothing is fetched, whatever stands in
    # the page: https://www.w3.org/TR/CSP3/#grammardef-hash-source
    policy = (
        f"default-src 'none'; style-src '{_digest(sheet)}'; script-src '{_digest(SCRIPT)}'; "
        "base-uri 'none'; form-action 'none'"
    )
    head = (
        '<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta name="generator" content="{GENERATOR} {__version__}">\n'
        f"<title>{text(title)}</title>\n<style>{sheet}</style>\n"
    )
    body = "\n".join(_parts(report, title))
    page = (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n{head}</head>\n<body>\n{body}\n'
        f"<script>{SCRIPT}</script>\n</body>\n</html>\n"
    )
    return page.encode("utf-8")


def _digest(content: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(content.encode("utf-8")).digest()).decode()


def _parts(report: SpectralReport, title: str) -> Iterator[str]:
    yield f"<header><h1>{text(title)}</h1>\n<p>{text(headline(report))}</p></header>\n<main>"
    if not report.modules:
        yield "<p>There is nothing to show: no matrix is in scope.</p>"
    yield _answers(report)
    yield _warnings(report)
    if report.modules:
        yield from _drawings(report)
        yield from _tables(report)
    yield (
        f"</main>\n<footer><p>Made by {GENERATOR} {__version__}. Medians are over matrices. The "
        "rank-1 share is σ₁² / ‖Δ‖² of the update Δ since the base; drift is the angle between a "
        "checkpoint's first direction and the last one's; Q² is leave-one-out, 1 is a straight "
        "line.</p></footer>"
    )


def _answers(report: SpectralReport) -> str:
    found = [
        element(
            "div",
            f"<dt>{text(one.question)}</dt>"
            f"<dd><strong>{text(one.verdict)}</strong>{text(one.text)}</dd>",
        )
        for one in answers(report)
    ]
    return element("dl", "\n".join(found), class_="answers") if found else ""


def _warnings(report: SpectralReport) -> str:
    if not report.warnings:
        return ""
    items = "".join(f"<li>{text(notice.message)}</li>" for notice in report.warnings)
    return f'<section aria-label="Warnings"><ul class="warnings">{items}</ul></section>'


def _drawings(report: SpectralReport) -> Iterator[str]:
    groups = drawn_groups(report)
    yield _section(
        "Growth: σ₁ of the update over the steps", _charts(sigma_charts(report), "small")
    )
    charts = [*group_charts(report), *spectrum_chart(report)]
    yield _section("Shape and direction", legend([g.label for g in groups]) + _charts(charts))
    yield _section("Where it holds: groups and layers", _scale() + _charts(_maps(report)))
    charts = [*path_chart(report), *score_chart(report)]
    if charts:
        yield _section("The run as a whole", _charts(charts))


def _section(title: str, content: str) -> str:
    return f"<section><h2>{text(title)}</h2>\n{content}</section>"


def _charts(charts: Sequence[tuple[str, str]], css: str = "") -> str:
    figures = [
        f"<figure><figcaption>{text(title)}</figcaption>{drawing}</figure>"
        for title, drawing in charts
    ]
    return element("div", "\n".join(figures), class_=f"charts {css}".rstrip())


def _maps(report: SpectralReport) -> list[tuple[str, str]]:
    kinds: list[tuple[str, str, Callable[[ModuleSpectrum], float | None]]] = [
        ("map-share", f"Rank-1 share at step {report.steps[-1]}", last_share)
    ]
    if report.summary.q2_step is not None:
        kinds.append(("map-q2", "Leave-one-out Q² on the step", step_quality))
    description = "A row for each module group, a column for each layer; the tables hold numbers."
    return [
        (title, heat_map(name, title, description, layer_map(report, value)))
        for name, title, value in kinds
    ]


def _scale() -> str:
    cells = [
        element("rect", class_=f"q{i}", x=14 * i, y=0, width=13, height=12)
        for i in range(NUM_SHADES)
    ]
    bar = element("svg", "".join(cells), viewBox="0 0 154 12", aria_hidden="true")
    return element("p", f"0 or less {bar} 1; dashed: no number", class_="scale note")


def _tables(report: SpectralReport) -> Iterator[str]:
    step = report.steps[-1]
    heads = ["module group", "count", *_NUMBER_HEADS, "σ₁ over steps"]
    rows = [
        [_name(group.label), _number(len(group.matrices), str), *_numbers(group), _spark(group)]
        for group in all_groups(report)
    ]
    caption = f"Medians over the matrices of a group, at step {step}"
    yield _section("Module groups", _table(caption, heads, rows))
    ranked = sorted(report.modules, key=_fit)
    shown = [Group(matrix.name, (matrix,)) for matrix in ranked[:MAX_MODULE_ROWS]]
    rows = [[_name(one.label), *_numbers(one), _spark(one)] for one in shown]
    caption = f"Matrices at step {step}, worst first by Q² on the step, then rank-1 share"
    if len(ranked) > len(shown):
        caption += f"; the first {len(shown)} of {len(ranked):,}, of which --csv writes all"
    yield _section("Matrices", _table(caption, ["matrix", *_NUMBER_HEADS, "σ₁ over steps"], rows))
    yield _section("Checkpoints", _checkpoints(report))


def _fit(matrix: ModuleSpectrum) -> tuple[float, float]:
    low = float("-inf")
    share = last_share(matrix)
    return (
        low if matrix.q2_step is None else matrix.q2_step,
        low if share is None else share,
    )


def _checkpoints(report: SpectralReport) -> str:
    heads, columns = ["step"], [[_number(step, str) for step in report.steps]]
    if report.score_line is not None:
        heads.append(report.score_line.name)
        columns.append([_number(score, magnitude) for score in report.score_line.scores])
    if report.path is not None:
        for k, name in enumerate(("first direction", "second direction")):
            heads.append(name)
            columns.append([_number(point[k], magnitude) for point in report.path.points])
    for name, values in (
        ("median σ₁", [m.sigma for m in report.modules]),
        ("median rank-1 share", [m.rank1_share for m in report.modules]),
        ("median drift °", [m.drift for m in report.modules]),
    ):
        heads.append(name)
        columns.append(
            [_number(median_of(column), magnitude) for column in zip(*values, strict=True)]
        )
    return _table("What was read at each step", heads, list(zip(*columns, strict=True)))


def _numbers(group: Group) -> list[str]:
    matrices = group.matrices
    return [
        _number(median_of(m.sigma[-1] for m in matrices), magnitude),
        _number(median_of(m.frobenius[-1] for m in matrices), magnitude),
        _number(median_of(last_share(m) for m in matrices), fraction),
        _number(median_of(m.drift[0] for m in matrices), lambda value: f"{value:.0f}"),
        _number(median_of(m.q2_step for m in matrices), fraction),
        _number(median_of(m.q2_score for m in matrices), fraction),
        _number(median_of(m.stable_rank for m in matrices), magnitude),
    ]


def _spark(group: Group) -> str:
    columns = zip(*(matrix.sigma for matrix in group.matrices), strict=True)
    return f"<td>{sparkline([median_of(column) for column in columns])}</td>"


def _name(name: str) -> str:
    return f'<th scope="row">{text(name)}</th>'


def _number(value: float | None, write: Callable[[float], str]) -> str:
    """Return a cell; what it is sorted by has all digits."""
    if value is None:
        return f'<td data-v="">{ABSENT}</td>'
    return f'<td data-v="{value!r}">{text(write(value))}</td>'


def _table(caption: str, heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table that scrolls inside of its frame; the cells are markup."""
    head = "".join(f'<th scope="col">{text(name)}</th>' for name in heads)
    body = "\n".join("<tr>" + "".join(row) + "</tr>" for row in rows)
    table = (
        f'<table class="sortable"><caption>{text(caption)}</caption>'
        f"<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody></table>"
    )
    # Whoever has no mouse scrolls it with the keys, for which it must take the focus.
    return element("div", table, class_="wide", tabindex=0, role="region", aria_label=caption)
