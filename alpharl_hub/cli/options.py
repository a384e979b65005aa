"""Options that several commands share, and the types that they parse into."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import click

from alpharl_hub.cli.help import (
    COMPUTE,
    HUB,
    MESSAGES,
    OUTPUT,
    RUN,
    Command,
    Decorator,
    in_group,
    offer_folders,
)

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "KI": 1 << 10, "MI": 1 << 20, "GI": 1 << 30}


class NumBytes(click.ParamType):  # type: ignore[type-arg]  # generic only in newer versions of click
    """A size such as 2GB, 512MiB or 1.5G."""

    name = "size"

    def convert(
        self, value: Any, param: click.Parameter | None, context: click.Context | None
    ) -> int:
        """Parse into bytes."""
        if isinstance(value, int):
            return value
        match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMG]I?)?B?\s*", str(value), re.IGNORECASE)
        if not match:
            self.fail(f"{value!r} is no size; write for example 2GB or 512MiB", param, context)
        return int(float(match[1]) * _UNITS[(match[2] or "").upper()])

    @staticmethod
    def text(num_bytes: int) -> str:
        """Write a size as it is typed, in the largest unit that divides it."""
        units = ((unit.replace("I", "i"), size) for unit, size in _UNITS.items())
        by_size = sorted(units, key=lambda unit: -unit[1])
        unit, size = next((u, size) for u, size in by_size if num_bytes % size == 0)
        return f"{num_bytes // size}{unit}B" if unit else str(num_bytes)


class StepAt(click.ParamType):  # type: ignore[type-arg]
    """REVISION=STEP of --at."""

    name = "revision=step"

    def convert(
        self, value: Any, param: click.Parameter | None, context: click.Context | None
    ) -> tuple[str, int]:
        """Parse into (revision, step)."""
        if isinstance(value, tuple):
            return value
        name, equals, step = str(value).rpartition("=")
        if not (name and equals and step.isdecimal()):
            self.fail(f"{value!r}: write REVISION=STEP, such as main=2000", param, context)
        return name, int(step)


class HostName(click.ParamType):  # type: ignore[type-arg]
    """HOST of --allow-host: a name or a number, as a URL holds it but without port and path."""

    name = "host"

    def convert(
        self, value: Any, param: click.Parameter | None, context: click.Context | None
    ) -> str:
        """Return it in lower case, without the brackets of IPv6 and the dot of the root."""
        text = str(value).strip()
        try:
            return str(ipaddress.ip_address(text.strip("[]")))
        except ValueError:
            pass
        if re.fullmatch(r"[\w-]+(\.[\w-]+)*\.?", text):
            return text.rstrip(".").lower()
        try:
            host = urlsplit(text if "://" in text else f"//{text}").hostname or ""
        except ValueError:
            host = ""
        meant = host if re.fullmatch(r"[\w.:-]+", host) else "HOST, once for each"
        self.fail(f"{value!r} is no name of a host; write --allow-host {meant}", param, context)


base_option = click.option(
    "--base",
    metavar="REPO|FOLDER",
    shell_complete=offer_folders,
    help="The model the run started from.",
)

allow_host_option = in_group(
    HUB,
    click.option(
        "--allow-host",
        type=HostName(),
        multiple=True,
        metavar="HOST",
        help="Follow the Hub to this host in a private network.",
    ),
)

token_option = in_group(
    HUB,
    click.option("--token", help="Hub token; HF_TOKEN is safer: other users see command lines."),
)

license_option = in_group(
    OUTPUT,
    click.option("--license", "license_id", metavar="ID", help="License that the card states."),
)


def add_options(
    options: tuple[Decorator[Command], ...], command: Command, title: str | None = None
) -> Command:
    """Apply click options so that --help lists them in this order, beneath a title."""
    if title is not None:
        return in_group(title, *options)(command)
    for option in reversed(options):
        command = option(command)
    return command


def run_argument(**settings: Any) -> Callable[[Command], Command]:
    """Return the argument RUN; the settings are those of click."""
    return click.argument("run", shell_complete=offer_folders, **settings)


def run_options(command: Command) -> Command:
    """Add what says which run, which of its checkpoints, and which base."""
    command = token_option(allow_host_option(command))
    return add_options(
        (
            base_option,
            click.option(
                "--steps", metavar="LIST", help="Use these: 10,20,40-100:20,200-.  [a dozen]"
            ),
            click.option(
                "--until", metavar="STEP|SHARE", help="Use steps up to this one, or 40%.  [all]"
            ),
            click.option(
                "--at", type=StepAt(), multiple=True, help="Take a revision as a step: main=2000."
            ),
            click.option(
                "--scores",
                type=click.Path(exists=True, dir_okay=False, path_type=Path),
                help="A score per step: CSV, JSON or JSON lines.",
            ),
            click.option("--score-key", metavar="KEY", help="Which score of the file or log."),
            click.option("--lower-is-better", is_flag=True, help="Small scores are good ones."),
            click.option("--keep-repeats", is_flag=True, help="Keep repeated checkpoints."),
            click.option("--include", metavar="REGEX", help="Only matrices with such names."),
            click.option("--exclude", metavar="REGEX", help="No matrices with such names."),
            click.option("--verify", is_flag=True, help="Read all files first, check SHA-256."),
        ),
        command,
        RUN,
    )


def compute_options(command: Command) -> Command:
    """Add what says where the work is done and with how much memory."""
    return add_options(
        (
            click.option("--devices", metavar="LIST", help="cuda:0,cuda:1 or cpu.  [all GPUs]"),
            click.option("--memory", type=NumBytes(), help="Use no more than this, such as 2GB."),
        ),
        command,
        COMPUTE,
    )


def executor_options(command: Command) -> Command:
    """Add what says on how many machines the work is done."""
    return add_options(
        (
            click.option(
                "--executor",
                type=click.Choice(["local", "ray"]),
                default="local",
                show_default=True,
                help="Work on this machine, or on a Ray cluster.",
            ),
            click.option(
                "--address",
                metavar="HOST:PORT",
                help="The Ray cluster.  [this machine's, or a new]",
            ),
        ),
        command,
        COMPUTE,
    )


def work_options(command: Command) -> Command:
    """Add what says where unfinished work lies and whether an output may be replaced."""
    return add_options(
        (
            click.option(
                "--work-dir",
                type=click.Path(file_okay=False, path_type=Path),
                help="Where unfinished work and its journal lie.  [beside the output]",
            ),
            click.option("--overwrite", is_flag=True, help="Replace a finished output."),
        ),
        command,
        OUTPUT,
    )


def output_options(command: Command) -> Command:
    """Add --json, -q and -v."""
    return add_options(
        (
            click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout."),
            click.option("-q", "--quiet", is_flag=True, help="No progress, notes or warnings."),
            click.option("-v", "--verbose", is_flag=True, help="Say more, retries included."),
        ),
        command,
        MESSAGES,
    )


def split_list(text: str | None) -> tuple[str, ...]:
    """Split a comma-separated option."""
    return tuple(part.strip() for part in text.split(",") if part.strip()) if text else ()
