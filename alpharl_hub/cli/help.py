"""--help: options beneath titles, and folders offered where a shell completes a RUN."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click
from click.shell_completion import CompletionItem

Command = TypeVar("Command", bound=Callable[..., Any])
Decorator = Callable[[Command], Command]

RUN = "Which run"
HOW = "How far and how"
EVALUATION = "Evaluation"
SHOWN = "What is shown"
OUTPUT = "Output"
HUB = "Hub"
COMPUTE = "Compute"
MESSAGES = "Messages"

_UNTITLED = "Options"
_ORDER = (_UNTITLED, RUN, HOW, EVALUATION, SHOWN, OUTPUT, HUB, COMPUTE, MESSAGES)
_TITLE_ATTRIBUTE = "help_title"
_VERBOSE = "alpharl_hub.verbose"
_MAX_NAMES_WIDTH = 30
"""Columns for the names of options; longer ones have a line of their own."""


def in_group(title: str, *options: Decorator[Command]) -> Decorator[Command]:
    """Return options, in this order, that stand beneath `title` in --help."""

    def add(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
            # click keeps them here until the command is made of the function:
            # https://github.com/pallets/click/blob/8.2.0/src/click/decorators.py
            (*_, added) = command.__click_params__  # type: ignore[attr-defined]
            setattr(added, _TITLE_ATTRIBUTE, title)
        return command

    return add


def title_of(param: click.Parameter) -> str:
    """Return the title that an option stands beneath."""
    if "--help" in param.opts:
        return MESSAGES
    return str(getattr(param, _TITLE_ATTRIBUTE, _UNTITLED))


class GroupedCommand(click.Command):
    """A command whose --help has its options beneath titles, with what holds without them."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        ours = {"show_default": True, **settings.pop("context_settings", {})}
        settings["context_settings"] = ours
        super().__init__(*args, **settings)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; what shows its errors learns from the context whether to say more."""
        ctx.meta[_VERBOSE] = bool(ctx.params.get("verbose"))
        return super().invoke(ctx)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write one block for each title that has options."""
        blocks: dict[str, list[tuple[str, str]]] = {title: [] for title in _ORDER}
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx)
            if record is not None and isinstance(param, click.Option):
                blocks[title_of(param)].append(record)
        lengths = [len(names) for rows in blocks.values() for names, _ in rows]
        width = min(max(lengths), _MAX_NAMES_WIDTH)
        for title, rows in blocks.items():
            if rows:
                with formatter.section(title):
                    # Padded alike, so that the texts of all blocks lie below each other.
                    padded = [(names.ljust(width), text) for names, text in rows]
                    formatter.write_dl(padded, col_max=_MAX_NAMES_WIDTH)


def is_verbose(context: click.Context) -> bool:
    """Whether the command that was run in this context, or below it, was asked to say more."""
    return bool(context.meta.get(_VERBOSE))


def offer_folders(
    _context: click.Context, _param: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Let the shell complete the name of a folder; nobody can list the repos of a Hub."""
    return [CompletionItem(incomplete, type="dir")]
