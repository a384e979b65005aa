"""The options that say what `report` shows, and the types that they parse into."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import click

from alpharl_hub.cli.help import SHOWN, Command
from alpharl_hub.cli.options import add_options
from alpharl_hub.cli.report_details import MAX_MODULES, Details, LayerRanges
from alpharl_hub.cli.report_rows import SORT_NAMES
from alpharl_hub.cli.requests import flag_of, is_given

_ALL = ""
"""What --layers and --modules hold when no value is behind them."""

_DETAILS = ("layers", "modules", "top", "sort", "path", "score_line")


class LayerList(click.ParamType):  # type: ignore[type-arg]  # generic only in newer versions of click
    """Layers such as 0,4-7."""

    name = "list"

    def convert(
        self, value: Any, param: click.Parameter | None, context: click.Context | None
    ) -> LayerRanges:
        """Parse into ranges."""
        if isinstance(value, LayerRanges):
            return value
        ranges = []
        for part in str(value).split(",") if value else ():
            match = re.fullmatch(r"\s*(\d{1,9})\s*(?:-\s*(\d{1,9})\s*)?", part, re.ASCII)
            if not match:
                self.fail(f"{value!r}: write layers as 0,4-7, and RUN before them", param, context)
            ranges.append((int(match[1]), int(match[2] or match[1])))
        return LayerRanges(tuple(ranges))


class Pattern(click.ParamType):  # type: ignore[type-arg]
    """A regular expression."""

    name = "pattern"

    def convert(
        self, value: Any, param: click.Parameter | None, context: click.Context | None
    ) -> str:
        """Check that it is one."""
        try:
            re.compile(value)
        except re.error as error:
            self.fail(f"{value!r} is no regular expression: {error}", param, context)
        return str(value)


class SortKey(click.ParamType):  # type: ignore[type-arg]
    """One of SORT_NAMES, "-" before it to turn it round."""

    name = "key"

    def convert(
        self, value: Any, param: click.Parameter | None, context: click.Context | None
    ) -> str:
        """Check that it is known."""
        key = str(value).lower()
        if key.removeprefix("-") not in SORT_NAMES:
            self.fail(f"{value!r}: choose from {', '.join(SORT_NAMES)}", param, context)
        return key


def detail_options(command: Command) -> Command:
    """Add what says which details are shown, and of which matrices."""
    return add_options(
        (
            click.option(
                "--layers",
                type=LayerList(),
                is_flag=False,
                flag_value=_ALL,
                metavar="[LIST]",
                help="A table by layer; of a LIST such as 0,4-7 only these, here and in all below.",
            ),
            click.option(
                "--modules",
                type=Pattern(),
                is_flag=False,
                flag_value=_ALL,
                metavar="[PATTERN]",
                help="A table of single matrices; with PATTERN (a regex) only of these names.",
            ),
            click.option(
                "--spectrum",
                type=click.IntRange(min=1),
                metavar="K",
                help="The K largest singular values and their shares, by module, layer or group.",
            ),
            click.option("--path", is_flag=True, help="Plot the run in its first two directions."),
            click.option("--score-line", is_flag=True, help="Plot the score by step, and its fit."),
            click.option(
                "--top",
                type=click.IntRange(min=1),
                metavar="N",
                help=f"So many rows in the tables asked for. [{MAX_MODULES} modules]",
            ),
            click.option(
                "--sort",
                type=SortKey(),
                metavar="KEY",
                help=f"{', '.join(SORT_NAMES)}; low shares and Q^2 first, else high; -KEY turns.",
            ),
        ),
        command,
        SHOWN,
    )


def details_of(run: str | None, options: Mapping[str, Any]) -> Details:
    """Build what is shown.

    Raises:
        click.UsageError: there is no RUN, or a detail is asked for in JSON.
    """
    if run is None:
        taken = next((name for name in ("modules", "layers") if options[name]), None)
        words = f"; {flag_of(taken)} took it for its value: write RUN first" if taken else ""
        raise click.UsageError(f"Missing argument 'RUN'{words}")
    if options["as_json"]:
        useless = [name for name in _DETAILS if is_given(name)]
        if useless:
            named = flag_of(useless[0])
            raise click.UsageError(f"{named} has no meaning with --json, which holds everything")
    return Details(
        layers=options["layers"],
        modules=options["modules"],
        top=options["top"],
        sort=options["sort"],
        num_singular_values=options["spectrum"],
        path=options["path"],
        score_line=options["score_line"],
    )
