"""`alpharl-hub report RUN`."""

from __future__ import annotations

from typing import Any

import click

from alpharl_hub.cli.help import HOW, GroupedCommand, in_group
from alpharl_hub.cli.options import compute_options, output_options, run_argument, run_options
from alpharl_hub.cli.report_files import report_file_options, write_report_files
from alpharl_hub.cli.report_options import detail_options, details_of
from alpharl_hub.cli.report_screen import print_report
from alpharl_hub.cli.requests import compute_request, run_request, scope_options
from alpharl_hub.cli.running import print_json, running
from alpharl_hub.cli.terminal import data_console, escape_text

_FILES = ("--plot", "--html", "--csv")


@click.command(cls=GroupedCommand)
@run_argument(required=False, metavar="RUN")
@run_options
@in_group(
    HOW,
    click.option(
        "--quick", is_flag=True, help="Read a fiftieth: some matrices of a kind, 5 steps."
    ),
    click.option("--force", is_flag=True, help="Go on though the base looks wrong."),
)
@detail_options
@report_file_options
@compute_options
@output_options
def report(run: str | None, quick: bool, as_json: bool, **options: Any) -> None:
    """Show how rank-1 and how linear RUN is: a spectral report.

    RUN may be what `extract` wrote, a folder or hf://ORG/NAME-factors; then only that is read, and
    the details below cost nothing. Write RUN before --layers and --modules, whose values may be
    left out.

    \b
    alpharl-hub report allenai/Olmo-3-7B-RL-Zero-Math --quick
    alpharl-hub report ./factors
    alpharl-hub report ./factors --layers 0,4-7 --modules q_proj --sort drift
    """
    from alpharl_hub.pipeline import report_run
    from alpharl_hub.reporting.report import ReportRequest

    details = details_of(run, {**options, "as_json": as_json})
    with running(options, keeps_work=False) as session:
        answer = report_run(
            run_request(str(run), options, session),
            scope_options(options),
            ReportRequest(quick, details.num_singular_values or 1, details.check),
            compute_request(options),
            session.hooks(),
        )
    # First the files: what follows may end with the pipe that reads it.
    written = write_report_files(answer, options, str(run))
    if as_json:
        print_json(answer)
    else:
        more = [f"{flag} FILE" for flag in _FILES if not options[f"{flag.lstrip('-')}_file"]]
        print_report(answer, data_console(), details, quick=quick, more=more)
    if not options["quiet"]:
        for path in written:
            click.echo(escape_text(f"wrote {path}"), err=True)
