"""`alpharl-hub extract RUN -o DIR`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from alpharl_hub.cli.options import (
    compute_options,
    executor_options,
    output_options,
    run_options,
    work_options,
)
from alpharl_hub.cli.requests import compute_request, run_request, scope_options
from alpharl_hub.cli.running import print_json, running, show_notices


@click.command()
@click.argument("run")
@click.option(
    "-o",
    "--output",
    required=True,
    type=click.Path(file_okay=False, path_type=Path),
    help="The folder to write.",
)
@click.option(
    "--rank", type=click.IntRange(min=1), default=1, show_default=True, help="Triplets per update."
)
@run_options
@click.option("--force", is_flag=True, help="Go on though the base looks wrong.")
@compute_options
@executor_options
@work_options
@output_options
def extract(run: str, output: Path, rank: int, as_json: bool, **options: Any) -> None:
    """Keep the rank-1 factors of every matrix and step of RUN: a run in little space.

    `report DIR` and `predict DIR` then work from them.

    \b
    alpharl-hub extract allenai/Olmo-3-7B-RL-Zero-Math -o factors
    alpharl-hub extract ./runs/grpo --base ./base --rank 4 -o factors
    """
    from alpharl_hub.output.folder import FolderRequest
    from alpharl_hub.pipeline import extract_run

    with running(options) as session:
        answer = extract_run(
            run_request(run, options, session),
            scope_options(options),
            rank,
            FolderRequest(output, options["overwrite"], options["work_dir"]),
            compute_request(options),
            session.hooks(),
        )
    show_notices(answer.warnings, options["quiet"])
    if as_json:
        print_json(answer)
    else:
        click.echo(answer.path)
