"""`alpharl-hub inspect RUN`."""

from __future__ import annotations

from typing import Any

import click

from alpharl_hub.cli.help import GroupedCommand
from alpharl_hub.cli.inspect_screen import print_inspection
from alpharl_hub.cli.options import compute_options, output_options, run_argument, run_options
from alpharl_hub.cli.predict_options import as_adapter_option, predict_options
from alpharl_hub.cli.requests import (
    compute_request,
    next_command,
    prediction_options,
    run_request,
    scope_options,
)
from alpharl_hub.cli.running import print_json, running
from alpharl_hub.cli.terminal import data_console


@click.command(cls=GroupedCommand)
@run_argument()
@run_options
@as_adapter_option
@predict_options
@compute_options
@output_options
def inspect(run: str, as_json: bool, **options: Any) -> None:
    """Show what RUN holds and what predicting from it would cost.

    Reads listings, headers and a small sample: under 1 MB for each checkpoint.

    \b
    alpharl-hub inspect allenai/Olmo-3-7B-RL-Zero-Math
    alpharl-hub inspect ./runs/grpo --base ./base --steps 10-100
    """
    from alpharl_hub.pipeline import inspect_run

    with running(options, keeps_work=False) as session:
        inspection = inspect_run(
            run_request(run, options, session),
            scope_options(options),
            prediction_options(options),
            compute_request(options),
        )
    if as_json:
        print_json(inspection)
    else:
        print_inspection(inspection, data_console(), next_command(run, inspection, options))
