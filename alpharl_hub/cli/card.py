"""`alpharl-hub card DIR`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.console import Console
from rich.markdown import Markdown
from rich.text import Text

from alpharl_hub.cli.help import EVALUATION, OUTPUT, GroupedCommand, in_group
from alpharl_hub.cli.terminal import data_console, escape_text

_PICTURE = re.compile(r"^!\[(.*)\]\(([^()]*)\)$", re.MULTILINE)

if TYPE_CHECKING:
    from alpharl_hub.card.rebuild import RebuiltCard
    from alpharl_hub.card.template import CardTemplate

card_template_option = in_group(
    OUTPUT,
    click.option(
        "--card-template",
        type=click.Path(exists=True, dir_okay=False, path_type=Path),
        metavar="FILE",
        help="Make the card from this Jinja template of yours.",
    ),
)
"""What every command takes that writes a card."""


def read_card_template(path: Path | None) -> CardTemplate | None:
    """Read the template of --card-template, before anything else is done.

    Raises:
        CardError: it cannot be used.
    """
    from alpharl_hub.card.template import read_template

    return None if path is None else read_template(path)


@click.command(cls=GroupedCommand)
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@in_group(
    EVALUATION,
    click.option(
        "--score",
        "scores",
        multiple=True,
        metavar="NAME=VALUE",
        help="A score you measured: DATASET[#TASK][:METRIC]=VALUE. Without VALUE it goes.",
    ),
    click.option(
        "--backtest",
        "backtest_file",
        type=click.Path(exists=True, dir_okay=False, path_type=Path),
        metavar="FILE",
        help="What `backtest RUN --json` answered of its run.",
    ),
)
@card_template_option
@in_group(
    OUTPUT,
    click.option("--write", is_flag=True, help="Write it; otherwise it is only shown."),
    click.option("--overwrite", is_flag=True, help="Replace a card that was edited by hand."),
)
def card(
    folder: Path,
    scores: tuple[str, ...],
    backtest_file: Path | None,
    card_template: Path | None,
    write: bool,
    overwrite: bool,
) -> None:
    """Show a folder's model card, or rebuild it with your scores.

    Scores and a backtest are kept in alpharl.json. With ORG/DATASET#TASK, as the data set's
    leaderboard calls it, a score goes into .eval_results for the Hub too. `push` sends all of it.

    \b
    alpharl-hub card ./olmo-2000
    alpharl-hub card ./olmo-2000 --score gsm8k=0.81 \\
      --score cais/hle#hle:accuracy=0.04 --write
    """
    from alpharl_hub.backtesting.for_card import read_backtest
    from alpharl_hub.card.rebuild import rebuild_card
    from alpharl_hub.card.scores import parse_score

    if overwrite and not write:
        raise click.UsageError("--overwrite has no meaning without --write")
    template = read_card_template(card_template)
    entries = [parse_score(text) for text in scores]
    tested = None if backtest_file is None else read_backtest(backtest_file)
    rebuilt = rebuild_card(folder, entries, template, tested)
    if write:
        names = rebuilt.write(overwrite)
        told = f"wrote {', '.join(names)}" if names else "nothing to write: all is as it was"
        click.echo(escape_text(told), err=True)
        click.echo(rebuilt.folder / "README.md")
    else:
        show_card(rebuilt.text)
        if rebuilt.in_the_way is not None:
            click.echo(f"README.md there was {rebuilt.in_the_way}", err=True)
        click.echo("not written: add --write", err=True)
    _tell_of_leaderboards(rebuilt)


def show_card(text: str) -> None:
    """Show a card: rendered on a terminal, as it is in a pipe."""
    console = data_console()
    if console.is_terminal:
        print_card(console, text)
    else:
        click.echo(text, nl=False)


def print_card(console: Console, text: str) -> None:
    """Render a card: its metadata as they are, then the page."""
    shown = "\n".join(escape_text(line) for line in text.splitlines())
    _, metadata, page = shown.split("---\n", 2)
    console.print(Text(metadata.rstrip(), style="dim"))
    console.print()
    console.print(Markdown(_PICTURE.sub(r"(Picture \2: \1)", page)))


def _tell_of_leaderboards(rebuilt: RebuiltCard) -> None:
    """Say what a score lacks for the Hub's leaderboards, where its name looks meant for them."""
    for score in rebuilt.manifest.scores:
        if "/" in score.dataset and score.task is None:
            click.echo(
                escape_text(
                    f"{score.dataset}: for the Hub's leaderboard name its task too: "
                    f"--score {score.dataset}#TASK=VALUE"
                ),
                err=True,
            )
