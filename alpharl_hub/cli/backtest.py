"""`alpharl-hub backtest RUN`."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from alpharl_hub.cli.help import EVALUATION, HOW, OUTPUT, GroupedCommand, in_group
from alpharl_hub.cli.options import (
    StepAt,
    compute_options,
    executor_options,
    output_options,
    run_argument,
    run_options,
    split_list,
)
from alpharl_hub.cli.requests import compute_request, run_request, scope_options
from alpharl_hub.cli.running import print_json, running
from alpharl_hub.cli.terminal import data_console, escape_text, human_duration, notes_console

if TYPE_CHECKING:
    from alpharl_hub.backtesting.backtest import BacktestOptions
    from alpharl_hub.backtesting.results import Backtest, ScoredModel
    from alpharl_hub.backtesting.scoring import ScoringRequest


@click.command(cls=GroupedCommand)
@run_argument()
@in_group(
    HOW,
    click.option(
        "--fit-until",
        metavar="STEP|SHARE",
        multiple=True,
        help="Fit the steps up to this one, or 40%; repeatable.  [30%, 40%, 50%, 70%]",
    ),
    click.option("--methods", metavar="LIST", help="Test these: alpharl,relex,linear.  [all]"),
    click.option(
        "--truth",
        "truths",
        type=StepAt(),
        multiple=True,
        help="Predict this revision, and never fit it: main=2000.",
    ),
)
@run_options
@in_group(
    HOW,
    click.option("--quick", is_flag=True, help="Read a sample of layers."),
    click.option("--force", is_flag=True, help="Go on though the base looks wrong."),
)
@in_group(
    EVALUATION,
    click.option("--evaluate", "evaluation", metavar="CMD", help="Scores {model}: score one test."),
    click.option("--score-json", metavar="FILE:KEY.PATH", help="The score is here, below {out}."),
)
@in_group(
    OUTPUT,
    click.option(
        "--work-dir",
        type=click.Path(file_okay=False, path_type=Path),
        help="Where --evaluate has models, logs and its journal.  [backtest.work; without "
        "--evaluate the journal lies in .alpharl-hub]",
    ),
)
@compute_options
@executor_options
@output_options
def backtest(run: str, as_json: bool, verbose: bool, **options: Any) -> None:
    """Does RUN extrapolate? Fit early checkpoints, predict later ones.

    An error of 1 is no better than keeping the last checkpoint that was fitted, 0 is exact. With
    --evaluate the prediction nearest twice the fitted steps is written by every method, one at a
    time, and scored by CMD beside the real checkpoints: {model} becomes its folder.

    \b
    alpharl-hub backtest allenai/Olmo-3-7B-RL-Zero-Math --quick
    alpharl-hub backtest ./runs/grpo --base ./base --fit-until 40%
    """
    from alpharl_hub.backtesting.from_run import backtest_run
    from alpharl_hub.cli.backtest_screen import print_backtest, print_scored
    from alpharl_hub.cli.sweep_screen import print_failure
    from alpharl_hub.sweeping.evaluation import EvaluationError

    if options["score_json"] and not options["evaluation"]:
        raise click.UsageError("--score-json goes with --evaluate; give both")

    def show(tested: Backtest) -> None:
        if not as_json:
            print_backtest(tested, verbose, data_console())

    asked = {**options, "verbose": verbose}
    with running(options) as session:
        scoring = _scoring(options, show, session.stop)
        try:
            answer = backtest_run(
                run_request(run, asked, session),
                scope_options(options),
                _backtest_options(options),
                compute_request(asked),
                session.hooks(),
                scoring,
            )
        except EvaluationError as error:
            print_failure(error, notes_console())
            raise
    if as_json:
        print_json(answer)
    elif answer.scored is None:
        show(answer)
    else:
        print_scored(answer.scored, data_console())


def _backtest_options(options: dict[str, Any]) -> BacktestOptions:
    from alpharl_hub.backtesting.backtest import BacktestOptions

    return BacktestOptions(
        fit_until=tuple(options["fit_until"]),
        methods=split_list(options["methods"]),
        truths=tuple(options["truths"]),
        quick=options["quick"],
    )


def _scoring(
    options: dict[str, Any], show: Callable[[Backtest], None], stop: threading.Event
) -> ScoringRequest | None:
    """Build how predictions are scored.

    Raises:
        click.UsageError: a command without {model}, or a score that is nowhere.
    """
    from alpharl_hub.backtesting.scoring import ScoringRequest
    from alpharl_hub.errors import ScoreError
    from alpharl_hub.sweeping.evaluation import make_evaluation

    if not options["evaluation"]:
        return None
    try:
        evaluation = make_evaluation(options["evaluation"], options["score_json"])
    except ScoreError as error:
        raise click.UsageError(str(error)) from error

    def tell(model: ScoredModel) -> None:
        if not options["quiet"]:
            words = f"{model.model}: score {model.score:.4g} ({human_duration(model.seconds)})"
            click.echo(escape_text(words), err=True)

    folder = options["work_dir"] or Path("backtest.work")
    return ScoringRequest(evaluation, folder, options["lower_is_better"], show, tell, stop)
