"""The answers of a report: is this run rank-1, is it linear, and where is it not."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.text import Text

from alpharl_hub.cli.inspect_screen import print_notices
from alpharl_hub.cli.report_map import verdict_style
from alpharl_hub.cli.report_rows import (
    NO_LAYER,
    PARTLY,
    YES,
    Placed,
    Row,
    fraction,
    known,
    make_row,
    split_by_group,
    split_by_layer,
)
from alpharl_hub.cli.terminal import LABEL_WIDTH, escape_text, human_count, print_labelled
from alpharl_hub.results import SpectralReport

_SAID_BY_THE_ANSWER = "low_rank1_share"


def print_answers(
    report: SpectralReport, placed: Sequence[Placed], quick: bool, console: Console
) -> None:
    """Print what the run is, then the warnings."""
    console.print(Text(_headline(report), style="bold"))
    if quick and not report.sampled:
        print_labelled(console, "Read", "all: a run as small as this one needs no --quick")
    if not placed:
        console.print(Text("There is nothing to show: no matrix is in scope"))
        print_notices(report.warnings, console)
        return
    _print_verdict(console, "Rank-1?", report.summary.rank1_share, _rank1(report, placed))
    _print_verdict(console, "Linear?", report.summary.q2_step, _linear(report))
    weakest = _weakest(placed)
    if weakest:
        print_labelled(console, "Weakest", weakest)
    drift = known(report.summary.drift_first_to_last)
    if drift is not None and len(report.steps) > 1:
        words = f"{drift:.0f} degrees from the first checkpoint's direction to the last one's"
        print_labelled(console, "Drift", words)
    if report.summary.trust is not None:
        print_labelled(console, "Trust", report.summary.trust.verdict)
    others = [one for one in report.warnings if one.code != _SAID_BY_THE_ANSWER]
    print_notices(others, console)


def _headline(report: SpectralReport) -> str:
    summary, steps = report.summary, report.steps
    what = "Spectral report"
    num_matrices = summary.num_matrices
    matrices = f"{human_count(num_matrices)} {'matrix' if num_matrices == 1 else 'matrices'}"
    if report.sampled:
        part = num_matrices / summary.num_matrices_in_run
        what = "Report of a SAMPLE"
        matrices = (
            f"{human_count(num_matrices)} of {human_count(summary.num_matrices_in_run)} "
            f"matrices ({part:.0%})"
        )
    if len(steps) == 1:
        return f"{what}: {matrices}, 1 checkpoint, step {steps[0]}"
    return f"{what}: {matrices}, {len(steps)} checkpoints, steps {steps[0]} to {steps[-1]}"


def _print_verdict(console: Console, label: str, value: float | None, text: str) -> None:
    """Print an answer as `print_labelled` does, its first word in the colour of what it says."""
    body = Text(escape_text(text))
    value = known(value)
    if value is not None:
        body.stylize(verdict_style(value), 0, text.index(":"))
    lines = body.wrap(console, max(console.width - LABEL_WIDTH, 20))
    for number, line in enumerate(lines):
        line.rstrip()
        head = Text((label if number == 0 else "").ljust(LABEL_WIDTH), style="bold")
        console.print(Text.assemble(head, line))


def _rank1(report: SpectralReport, placed: Sequence[Placed]) -> str:
    share = known(report.summary.rank1_share)
    if share is None:
        return "unknown: no matrix differs from the base"
    num_above = sum(one.share is not None and one.share >= PARTLY for one in placed)
    verdict = "yes" if share >= YES else "mostly" if share >= PARTLY else "NO"
    text = (
        f"{verdict}: median share {share:.2f} at step {report.steps[-1]}; "
        f"{PARTLY:.2f} or more in {num_above} of {len(placed)} matrices"
    )
    lost = f"{text}. Rank-1 methods lose the rest of the update, linear ones do not"
    return text if share >= PARTLY else lost


def _linear(report: SpectralReport) -> str:
    summary = report.summary
    q2_step = known(summary.q2_step)
    if q2_step is None:
        return f"unknown: Q^2 takes 4 checkpoints that differ; this report has {len(report.steps)}"
    verdict = "yes" if q2_step >= YES else "partly" if q2_step >= PARTLY else "NO"
    name = "" if report.score_name in (None, "score") else f" ({report.score_name})"
    q2_score = known(summary.q2_score)
    score = "" if q2_score is None else f", {fraction(q2_score)} on score{name}"
    return (
        f"{verdict}: leave-one-out Q^2 {fraction(q2_step)} on step{score}; "
        "in-sample R^2 decides nothing"
    )


def _weakest(placed: Sequence[Placed]) -> str:
    """Name the group and the layer with the lowest numbers, where there are others.

    What did not move, or has no Q^2 beside others that have one, is unknown rather than weak.
    """
    found: list[str] = []
    words: list[str] = []
    for kind, parts in (("", split_by_group(placed)), ("layer ", split_by_layer(placed))):
        rows = [make_row(label, part) for label, part in parts.items()]
        moved = [row for row in rows if row.share is not None]
        fitted = [row for row in moved if row.q2_step is not None] or moved
        low = min(fitted, key=_shown_fit, default=None)
        numbers = {} if low is None else _what_differs(low, fitted)
        if low is None or not numbers:
            continue
        name = "outside the layers" if low.label == NO_LAYER and kind else f"{kind}{low.label}"
        # The same two numbers of a second name need no words any more.
        with_words = [f"{word} {number}" for word, number in numbers.items()]
        shown = numbers.values() if [*numbers] == words else with_words
        words = [*numbers]
        found.append(f"{name} ({', '.join(shown)})")
    return " and ".join(found)


def _shown_fit(row: Row) -> tuple[float, float]:
    """Rank a row as `Row.fit` does, by what is to be seen of it: Q^2 of 0.996 and 1 are equal."""
    q2_step, share = row.fit
    return round(q2_step, 2), share


def _what_differs(row: Row, rows: Sequence[Row]) -> dict[str, str]:
    """Return those numbers of a row that are not, as they are shown, the same in all rows."""
    columns = {
        "Q^2": [row.q2_step, *(one.q2_step for one in rows)],
        "share": [row.share, *(one.share for one in rows)],
    }
    shown = {word: [fraction(value) for value in values] for word, values in columns.items()}
    return {word: texts[0] for word, texts in shown.items() if len(set(texts)) > 1}
