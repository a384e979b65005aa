"""`alpharl-hub sweep RUN --evaluate CMD`."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from alpharl_hub.cli.card import card_template_option, read_card_template
from alpharl_hub.cli.help import EVALUATION, HUB, OUTPUT, GroupedCommand, in_group
from alpharl_hub.cli.options import (
    compute_options,
    license_option,
    output_options,
    run_argument,
    run_options,
    work_options,
)
from alpharl_hub.cli.predict_options import NumberList, predict_options
from alpharl_hub.cli.push_options import push_options
from alpharl_hub.cli.requests import (
    check_method_options,
    check_visibility_options,
    compute_request,
    destination,
    prediction_options,
    run_request,
    scope_options,
)
from alpharl_hub.cli.running import print_json, running, show_notices
from alpharl_hub.cli.terminal import (
    data_console,
    escape_text,
    human_bytes,
    human_duration,
    notes_console,
)

if TYPE_CHECKING:
    from alpharl_hub.sweeping.from_run import SweepRequest
    from alpharl_hub.sweeping.results import SweepRow


@click.command(cls=GroupedCommand)
@run_argument()
@in_group(
    EVALUATION,
    click.option(
        "--evaluate", "evaluation", metavar="CMD", required=True, help="Scores the folder {model}."
    ),
    click.option("--score-json", metavar="FILE:KEY.PATH", help="The score is here, below {out}."),
    click.option(
        "--scales",
        type=NumberList("size"),
        help="Try these sizes first.  [0.5,1,1.5,2,3,5,8]",
    ),
    click.option(
        "--target-steps", type=NumberList("step"), help="Try these steps instead of sizes."
    ),
    click.option("--budget", type=click.IntRange(min=2), default=12, help="Evaluations at most."),
)
@in_group(
    OUTPUT,
    click.option(
        "-o",
        "--output",
        type=click.Path(file_okay=False, path_type=Path),
        help="The folder to write the best model to.",
    ),
)
@in_group(HUB, click.option("--push-to", metavar="ORG/NAME", help="Push the best model here."))
@license_option
@card_template_option
@predict_options
@run_options
@push_options
@compute_options
@work_options
@output_options
def sweep(
    run: str, output: Path | None, push_to: str | None, as_json: bool, **options: Any
) -> None:
    """Choose the update's size by your own scores; write the best.

    CMD is run for every candidate: {model} becomes its folder, {out} a folder for results. It
    prints a line score=0.75, or writes a JSON file that --score-json names. Size 0 is the last
    checkpoint and 1 the prediction (of twice the last step without a target). Choose on one set of
    problems and report on another. The logs are kept in OUTPUT.sweep.

    \b
    alpharl-hub sweep ./runs/grpo --base ./base -o best \\
      --evaluate 'python score.py {model}'
    alpharl-hub sweep me/run --base me/base --until 40% -o best \\
      --evaluate './eval.sh {model} {out}' --score-json 'r.json:acc'
    """
    from alpharl_hub.cli.sweep_screen import print_failure, print_sweep
    from alpharl_hub.pipeline import sweep_run
    from alpharl_hub.sweeping.evaluation import EvaluationError

    _check(output, push_to, options)
    template = read_card_template(options["card_template"])
    with running(options) as session:
        request = run_request(run, options, session)
        where = destination(output, push_to, options, session.stop, template)
        logs = Path(
            f"{output}.sweep" if output is not None else f"{str(push_to).split('/')[-1]}.sweep"
        )
        wanted = _request(options, logs, session.stop)
        compute, hooks = compute_request(options), session.hooks()
        how = prediction_options(options)
        try:
            answer = sweep_run(request, scope_options(options), how, wanted, where, compute, hooks)
        except EvaluationError as error:
            print_failure(error, notes_console())
            raise
    told = set(answer.sweep.notices)
    show_notices([n for n in answer.warnings if n not in told], options["quiet"])
    if as_json:
        print_json(answer)
        return
    print_sweep(answer.sweep, data_console(), answer.output.target_step)
    for place in (answer.output.path, answer.output.url):
        if place is not None:
            click.echo(place)


def _check(output: Path | None, push_to: str | None, options: dict[str, Any]) -> None:
    if output is None and push_to is None:
        raise click.UsageError("say where to: -o DIR, --push-to ORG/NAME, or both")
    if options["scales"] and options["target_steps"]:
        raise click.UsageError("--scales and --target-steps exclude each other; give one")
    if options["target_steps"] and options["target_step"]:
        raise click.UsageError("--target-steps and --target-step exclude each other; give one")
    check_visibility_options(options)
    check_method_options(options)


def _request(options: dict[str, Any], logs: Path, stop: threading.Event) -> SweepRequest:
    from alpharl_hub.errors import ScoreError
    from alpharl_hub.sweeping.evaluation import make_evaluation
    from alpharl_hub.sweeping.from_run import SweepRequest
    from alpharl_hub.sweeping.results import SCALE, STEP
    from alpharl_hub.sweeping.search import SearchOptions
    from alpharl_hub.sweeping.sweep import SweepOptions

    search = SearchOptions(
        axis=STEP if options["target_steps"] else SCALE,
        values=options["target_steps"] or options["scales"],
        budget=options["budget"],
        lower_is_better=options["lower_is_better"],
    )
    try:
        evaluation = make_evaluation(options["evaluation"], options["score_json"])
        search.grid()
    except ScoreError as error:
        raise click.UsageError(str(error)) from error
    return SweepRequest(SweepOptions(evaluation, search), logs, _hooks(options, stop))


def _hooks(options: dict[str, Any], stop: threading.Event) -> Any:
    from alpharl_hub.sweeping.sweep import SweepHooks

    if options["quiet"]:
        return SweepHooks(stop=stop)

    def tell(text: str) -> None:
        click.echo(escape_text(text), err=True)

    def tell_row(row: SweepRow, is_known: bool) -> None:
        known = "known from before" if is_known else human_duration(row.seconds)
        tell(f"{row.value:g}: score {row.score:.4g} ({known})")

    return SweepHooks(
        on_disk=lambda num_bytes: tell(
            f"{human_bytes(num_bytes)} of disk are needed while it runs: the last checkpoint and "
            "the prediction in fp32, and the model that is tried"
        ),
        on_candidate=lambda number, budget, value, log: tell(
            f"evaluation {number} of at most {budget}: {value:g} (log: {log})"
        ),
        on_row=tell_row,
        stop=stop,
    )
