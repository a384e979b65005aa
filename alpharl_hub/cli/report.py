"""`alpharl-hub report RUN`."""

from __future__ import annotations

from typing import Any

import click

from alpharl_hub.cli.options import compute_options, output_options, run_options
from alpharl_hub.cli.report_screen import print_report
from alpharl_hub.cli.requests import compute_request, run_request, scope_options
from alpharl_hub.cli.running import print_json, running
from alpharl_hub.cli.terminal import data_console


@click.command()
@click.argument("run")
@run_options
@click.option("--quick", is_flag=True, help="Read a fiftieth: some matrices of each kind, 5 steps.")
@click.option("--force", is_flag=True, help="Go on though the base looks wrong.")
@compute_options
@output_options
def report(run: str, quick: bool, as_json: bool, **options: Any) -> None:
    """Show how rank-1 and how linear RUN is: a spectral report.

    RUN may be a folder that `extract` wrote; then only that is read.

    \b
    alpharl-hub report allenai/Olmo-3-7B-RL-Zero-Math --quick
    alpharl-hub report ./factors
    """
    from alpharl_hub.pipeline import report_run
    from alpharl_hub.reporting.report import ReportRequest

    with running(options) as session:
        answer = report_run(
            run_request(run, options, session),
            scope_options(options),
            ReportRequest(quick),
            compute_request(options),
            session.hooks(),
        )
    if as_json:
        print_json(answer)
    else:
        print_report(answer, data_console())
