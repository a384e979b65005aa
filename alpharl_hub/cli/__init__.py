"""The command line: every command parses, calls one function of the library, and prints."""

from __future__ import annotations

import os
from typing import Any

import click

from alpharl_hub.cli.backtest import backtest
from alpharl_hub.cli.card import card
from alpharl_hub.cli.causes import causes_of
from alpharl_hub.cli.compare import compare
from alpharl_hub.cli.demo import demo
from alpharl_hub.cli.extract import extract
from alpharl_hub.cli.help import is_verbose
from alpharl_hub.cli.inspect import inspect
from alpharl_hub.cli.predict import predict
from alpharl_hub.cli.push import push
from alpharl_hub.cli.report import report
from alpharl_hub.cli.sweep import sweep
from alpharl_hub.cli.terminal import escape_text
from alpharl_hub.errors import AlphaRLError
from alpharl_hub.version import __version__

DEBUG_VARIABLE = "ALPHARL_DEBUG"
_MAX_LINE_CHARS = 2000


class AlphaRLGroup(click.Group):
    """Shows an error of ours as one line, for users and for tests on the same path."""

    def invoke(self, context: click.Context) -> Any:
        """Run the command that was asked for."""
        try:
            return super().invoke(context)
        except AlphaRLError as error:
            if os.environ.get(DEBUG_VARIABLE):
                raise
            lines = [str(error), *(causes_of(error) if is_verbose(context) else ())]
            raise click.ClickException("\n  ".join(map(_one_line, lines))) from error


def _one_line(text: str) -> str:
    """Return what went wrong, safe to print; names that others chose may be long."""
    line = escape_text(" ".join(text.split()))
    return line if len(line) <= _MAX_LINE_CHARS else f"{line[:_MAX_LINE_CHARS]} ..."


_EPILOG = """\b
An error is one line; -v shows its cause, ALPHARL_DEBUG=1 the traceback. For
completion put one of these into .bashrc, .zshrc or config.fish:
  eval "$(_ALPHARL_HUB_COMPLETE=bash_source alpharl-hub)"
  eval "$(_ALPHARL_HUB_COMPLETE=zsh_source alpharl-hub)"
  _ALPHARL_HUB_COMPLETE=fish_source alpharl-hub | source
"""


@click.group(
    cls=AlphaRLGroup,
    epilog=_EPILOG,
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.version_option(__version__, prog_name="alpharl-hub")
def main() -> None:
    """Predict a later RL fine-tuned model from early checkpoints.

    Checkpoints are streamed from the Hugging Face Hub (or read from folders) tensor by tensor;
    RUN is ORG/NAME[@REVISION][/FOLDER] or a path, with {step} where the number stands if the names
    do not say so by themselves.
    """


for command in (inspect, report, backtest, extract, predict, sweep, compare, card, push, demo):
    main.add_command(command)
