"""`alpharl-hub push DIR ORG/NAME`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from alpharl_hub.cli import push_options as shared
from alpharl_hub.cli.help import HUB, GroupedCommand, in_group
from alpharl_hub.cli.options import allow_host_option, output_options, token_option
from alpharl_hub.cli.requests import (
    check_visibility_options,
    hub_access,
    push_hooks,
    push_options,
)
from alpharl_hub.cli.running import print_json, running
from alpharl_hub.cli.terminal import escape_text


@click.command(cls=GroupedCommand)
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("repo")
@shared.push_options
@in_group(
    HUB,
    click.option("--overwrite", is_flag=True, help="Replace a model that is not ours."),
    click.option("--dry-run", is_flag=True, help="Check everything and change nothing."),
)
@token_option
@allow_host_option
@output_options
def push(folder: Path, repo: str, as_json: bool, **options: Any) -> None:
    """Push a finished folder to the Hub, in one commit.

    \b
    alpharl-hub push ./olmo-2000 me/olmo-3-7b-step-2000
    alpharl-hub push ./olmo-2000 me/olmo-3-7b-step-2000 --private --dry-run
    alpharl-hub push ./olmo-2000 org/olmo-3-7b --create-pr
    """
    from alpharl_hub.push.model_upload import push_folder

    check_visibility_options(options)
    with running(options) as session:
        answer = push_folder(
            folder,
            repo,
            push_options(options),
            access=hub_access(options),
            hooks=push_hooks(options, session.stop),
        )
    if as_json:
        print_json(answer)
        return
    if options["dry_run"]:
        added, deleted = (escape_text(", ".join(names)) for names in (answer.added, answer.deleted))
        click.echo(f"would add {added}", err=True)
        click.echo(f"would delete {deleted or 'nothing'}", err=True)
    click.echo(answer.url)
