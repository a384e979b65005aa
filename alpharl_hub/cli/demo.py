"""`alpharl-hub demo`."""

from __future__ import annotations

import signal
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.console import Console

from alpharl_hub.cli.help import OUTPUT, GroupedCommand, in_group
from alpharl_hub.cli.terminal import (
    add_number_column,
    add_row,
    add_text_column,
    data_console,
    escape_text,
    new_table,
    print_heading,
)

if TYPE_CHECKING:
    from alpharl_hub.demo import DemoScores

_CAVEAT = (
    "One tiny model and one run: this shows how the tool works, not which method suits your run."
)


@click.command(cls=GroupedCommand)
@in_group(
    OUTPUT,
    click.option(
        "--keep",
        type=click.Path(file_okay=False, path_type=Path),
        help="Leave the Hub's contents and the predicted models in this folder.",
    ),
)
def demo(keep: Path | None) -> None:
    """Show everything offline: a small real run, a Hub of its own.

    Three models are predicted from the first 40 % of the run, pushed, loaded again and scored.
    Takes about a minute; your token, cache and proxy play no part.

    \b
    alpharl-hub demo
    alpharl-hub demo --keep ./demo
    """
    from alpharl_hub.demo import run_demo

    console = data_console()
    with _ended_by_signals():
        scores = run_demo(keep, lambda line: click.echo(escape_text(line)))
    _print_scores(scores, console)
    if keep is not None:
        console.print()
        click.echo(f"Kept in {escape_text(str(keep))}: the Hub's contents and the predicted models")


@contextmanager
def _ended_by_signals() -> Iterator[None]:
    """Let SIGINT and SIGTERM unwind the demo, so that its programs and folders go with it."""

    def leave(number: int, _frame: object) -> None:
        click.echo("stopped", err=True)
        raise SystemExit(128 + number)

    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, leave) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


def _print_scores(scores: DemoScores, console: Console) -> None:
    from alpharl_hub.demo import difference_in_errors, in_words

    last = scores.last_observed.score
    print_heading(console, "Share of sums answered exactly right", "greedy answers, measured now")
    table = new_table()
    for head in ("model", "loaded from"):
        add_text_column(table, head)
    for head in ("step", "score", "std error", "vs last"):
        add_number_column(table, head)
    for model in scores.models:
        errors = difference_in_errors(model.score, last)
        cells = [
            model.name,
            model.place,
            str(model.step),
            f"{model.score.score:.4f}",
            f"{model.score.standard_error:.4f}",
            "-" if model is scores.last_observed else f"{errors:+.1f}",
        ]
        add_row(table, cells)
    console.print(table)
    console.print("vs last: distance to the last observed checkpoint in standard errors")
    console.print()
    for sentence in (*in_words(scores), _CAVEAT):
        click.echo("\n".join(textwrap.wrap(sentence, console.width)))
