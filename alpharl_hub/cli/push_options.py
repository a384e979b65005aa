"""The options of everything that pushes."""

from __future__ import annotations

import click

from alpharl_hub.cli.help import HUB, Command
from alpharl_hub.cli.options import add_options


def push_options(command: Command) -> Command:
    """Add how a repo is made and written to."""
    return add_options(
        (
            click.option("--private", is_flag=True, help="Make the repo private."),
            click.option(
                "--public", is_flag=True, help="Make it public though an input was private."
            ),
            click.option("--branch", metavar="NAME", help="Push to this branch.  [main]"),
            click.option(
                "--create-pr", is_flag=True, help="Open a pull request; the repo may be anybody's."
            ),
            click.option("--commit-message", metavar="TEXT", help="Title of the commit."),
        ),
        command,
        HUB,
    )
