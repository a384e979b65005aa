"""`alpharl-hub extract RUN -o DIR`, or --push-to ORG/NAME-factors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from alpharl_hub.cli.help import HOW, HUB, OUTPUT, GroupedCommand, in_group
from alpharl_hub.cli.options import (
    compute_options,
    executor_options,
    output_options,
    run_argument,
    run_options,
    work_options,
)
from alpharl_hub.cli.push_options import push_options
from alpharl_hub.cli.requests import (
    check_destination,
    compute_request,
    push_request,
    run_request,
    scope_options,
)
from alpharl_hub.cli.running import print_json, running, show_notices


@click.command(cls=GroupedCommand)
@run_argument()
@in_group(
    OUTPUT,
    click.option(
        "-o",
        "--output",
        type=click.Path(file_okay=False, path_type=Path),
        help="The folder to write.",
    ),
)
@in_group(
    HUB,
    click.option("--push-to", metavar="ORG/NAME-factors", help="Push the factors to this repo."),
)
@in_group(
    HOW,
    click.option("--rank", type=click.IntRange(min=1), default=1, help="Triplets per update."),
)
@run_options
@push_options
@in_group(HOW, click.option("--force", is_flag=True, help="Go on though the base looks wrong."))
@compute_options
@executor_options
@work_options
@output_options
def extract(
    run: str,
    output: Path | None,
    push_to: str | None,
    rank: int,
    as_json: bool,
    **options: Any,
) -> None:
    """Keep the rank-1 factors of every matrix and step of RUN.

    `report` and `predict --method alpharl` then take DIR, or hf://ORG/NAME-factors on any machine,
    as RUN.

    \b
    alpharl-hub extract allenai/Olmo-3-7B-RL-Zero-Math -o factors
    alpharl-hub extract ./runs/grpo --base ./base --rank 4 -o factors
    alpharl-hub extract ./runs/grpo --base ./base --push-to me/grpo-factors
    """
    from alpharl_hub.pipeline import extract_run
    from alpharl_hub.reporting.extraction import FactorOutput

    check_destination(output, push_to, options)
    with running(options) as session:
        answer = extract_run(
            run_request(run, options, session),
            scope_options(options),
            rank,
            FactorOutput(
                output,
                options["overwrite"],
                options["work_dir"],
                push_request(push_to, options, session.stop),
            ),
            compute_request(options),
            session.hooks(),
        )
    show_notices(answer.warnings, options["quiet"])
    if as_json:
        print_json(answer)
        return
    for place in (answer.path, answer.url):
        if place is not None:
            click.echo(place)
