"""What `report` shows: is this run rank-1, is it linear, where is it not; and then what was asked.

The first screen is the same whatever is asked for, so that nobody has to read a run twice.
"""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console

from alpharl_hub.cli.report_answers import print_answers
from alpharl_hub.cli.report_curves import print_path, print_score_line
from alpharl_hub.cli.report_details import Details, print_details
from alpharl_hub.cli.report_rows import place
from alpharl_hub.cli.report_tables import print_groups
from alpharl_hub.cli.terminal import print_labelled
from alpharl_hub.results import SpectralReport


def print_report(
    report: SpectralReport,
    console: Console,
    details: Details = Details(),  # noqa: B008  (frozen)
    *,
    quick: bool = False,
    more: Sequence[str] = (),
) -> None:
    """Print a report; `more` names further options that were not used."""
    placed = place(report)
    print_answers(report, placed, quick, console)
    if not placed:
        return
    step = report.steps[-1]
    print_groups(placed, step, console, details.sort, details.top)
    print_details(placed, details, step, console)
    if details.path:
        print_path(report, console)
    if details.score_line:
        print_score_line(report, console)
    unused = [*_unused(report, details), *more]
    if unused:
        if details != Details(top=details.top, sort=details.sort):
            console.print()
        print_labelled(console, "More", ", ".join(unused))


def _unused(report: SpectralReport, details: Details) -> list[str]:
    """Name the details that are there to see and were not asked for."""
    offers = (
        ("--layers", details.layers is None),
        ("--modules", details.modules is None),
        ("--spectrum 8", details.num_singular_values is None),
        ("--path", report.path is not None and not details.path),
        ("--score-line", report.score_line is not None and not details.score_line),
    )
    return [flag for flag, is_offered in offers if is_offered]
