"""`alpharl-hub predict RUN --target-step N`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from alpharl_hub.cli.card import card_template_option, read_card_template
from alpharl_hub.cli.help import HUB, OUTPUT, RUN, GroupedCommand, in_group
from alpharl_hub.cli.options import (
    compute_options,
    executor_options,
    license_option,
    output_options,
    run_argument,
    run_options,
    work_options,
)
from alpharl_hub.cli.predict_options import (
    REPEATED_OPTIONS,
    as_adapter_option,
    predict_options,
    refuse_given,
)
from alpharl_hub.cli.push_options import push_options
from alpharl_hub.cli.requests import (
    check_predict_arguments,
    compute_request,
    destination,
    prediction_options,
    run_request,
    scope_options,
)
from alpharl_hub.cli.running import (
    print_json,
    running,
    show_actions,
    show_auto,
    show_notices,
    show_trust,
)


@click.command(cls=GroupedCommand)
@run_argument(required=False)
@in_group(
    OUTPUT,
    click.option(
        "-o",
        "--output",
        type=click.Path(file_okay=False, path_type=Path),
        help="The folder to write the model to.",
    ),
)
@in_group(HUB, click.option("--push-to", metavar="ORG/NAME", help="Push the model to this repo."))
@in_group(
    RUN,
    click.option(
        "--from",
        "manifest",
        type=click.Path(exists=True, dir_okay=False, path_type=Path),
        help="Repeat the run of an alpharl.json (local runs: name RUN and --base too).",
    ),
)
@license_option
@card_template_option
@as_adapter_option
@predict_options
@run_options
@push_options
@compute_options
@executor_options
@work_options
@output_options
def predict(
    run: str | None,
    output: Path | None,
    push_to: str | None,
    manifest: Path | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Predict the model that RUN would reach later; write or push it.

    RUN may be what `extract` wrote: a folder, or hf://ORG/NAME-factors. The words on trust say how
    far the run's direction carries; they are a reading of the weights, not an evaluation.

    \b
    alpharl-hub predict allenai/Olmo-3-7B-RL-Zero-Math --until 800 \\
      --target-step 2000 -o olmo-2000
    alpharl-hub predict ./runs/grpo --base ./base --until 200 --push-to me/grpo
    """
    from alpharl_hub.pipeline import predict_run, repeat_run

    check_predict_arguments(run, manifest, output, push_to, options)
    if manifest is not None:
        refuse_given(REPEATED_OPTIONS, "--from repeats a run as it was")
    template = read_card_template(options["card_template"])
    with running(options) as session:
        request = run_request(run or "", options, session)
        where = destination(output, push_to, options, session.stop, template)
        compute, hooks = compute_request(options), session.hooks()
        if manifest is not None:
            answer = repeat_run(manifest, request, where, compute, hooks)
        else:
            wanted = prediction_options(options)
            answer = predict_run(request, scope_options(options), wanted, where, compute, hooks)
    show_auto(answer.auto, options["quiet"])
    show_actions(answer.actions, options["quiet"])
    show_trust(answer.trust, options["quiet"])
    show_notices(answer.warnings, options["quiet"])
    if as_json:
        print_json(answer)
        return
    for found in answer.outputs:
        for place in (found.path, found.url):
            if place is not None:
                click.echo(place)
