"""`alpharl-hub demo`."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.option(
    "--keep",
    type=click.Path(file_okay=False, path_type=Path),
    help="Keep what was made in this folder.",
)
def demo(keep: Path | None) -> None:
    """Show everything offline, on a real small RL run against a Hub on this machine.

    \b
    alpharl-hub demo
    alpharl-hub demo --keep ./demo
    """
