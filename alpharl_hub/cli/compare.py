"""`alpharl-hub compare A B`."""

from __future__ import annotations

from typing import Any

import click

from alpharl_hub.cli.compare_screen import print_comparison
from alpharl_hub.cli.help import RUN, GroupedCommand, in_group, offer_folders
from alpharl_hub.cli.options import (
    allow_host_option,
    compute_options,
    output_options,
    token_option,
)
from alpharl_hub.cli.requests import compute_request, tell_ambiguous
from alpharl_hub.cli.running import print_json, running, tell_wait
from alpharl_hub.cli.terminal import data_console


@click.command(cls=GroupedCommand)
@click.argument("first", metavar="A", shell_complete=offer_folders)
@click.argument("second", metavar="B", shell_complete=offer_folders)
@in_group(
    RUN,
    click.option(
        "--base",
        metavar="REPO|FOLDER",
        shell_complete=offer_folders,
        help="The model that B was trained from.",
    ),
)
@token_option
@allow_host_option
@compute_options
@output_options
def compare(first: str, second: str, as_json: bool, **options: Any) -> None:
    """Show how close model A is to model B, in units of B's update.

    A and B are repos, ORG/NAME[@REVISION][/FOLDER], or folders. With a base C the error is
    |A - B| / |B - C|: 0 is B itself, and 1 is no closer than the base.

    \b
    alpharl-hub compare ./olmo-2000 allenai/Olmo-3-7B-RL-Zero-Math \\
      --base allenai/Olmo-3-1025-7B
    alpharl-hub compare ./grpo-500 ./runs/grpo/checkpoint-500 --base ./base
    """
    from alpharl_hub.pipeline import compare_models
    from alpharl_hub.reporting.comparison import CompareRequest

    if not options["quiet"]:
        for text, what in ((first, "A"), (second, "B"), (options["base"] or "", "--base")):
            tell_ambiguous(text, what)
    with running(options, keeps_work=False) as session:
        request = CompareRequest(
            first=first,
            second=second,
            base=options["base"],
            token=(options["token"] or "").strip() or None,
            allowed_hosts=frozenset(options["allow_host"]),
            on_wait=tell_wait(options["verbose"]),
            stop=session.stop,
        )
        answer = compare_models(request, compute_request(options), session.hooks())
    if as_json:
        print_json(answer)
    else:
        print_comparison(answer, data_console())
