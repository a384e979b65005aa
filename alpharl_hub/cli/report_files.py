"""The files that `report` writes beside what it shows: a figure, a page, a table.

What can be refused is refused while the options are parsed, before anything of a run is read.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from alpharl_hub.cli.help import OUTPUT, Command
from alpharl_hub.cli.options import add_options
from alpharl_hub.drawing.canvas import CREATOR, FORMATS, require_matplotlib
from alpharl_hub.errors import WriteError
from alpharl_hub.report_records import COLUMNS
from alpharl_hub.results import SpectralReport

_LOOKED_AT_BYTES = 1 << 16


@dataclass(frozen=True)
class ReportFile(click.ParamType):  # type: ignore[type-arg]  # generic only in newer versions of click
    """A file to be written, with one of these suffixes, in a folder that is there."""

    suffixes: tuple[str, ...]
    is_drawn: bool = False
    name = "file"

    def convert(
        self, value: Any, param: click.Parameter | None, context: click.Context | None
    ) -> Path:
        """Check a path.

        Raises:
            click.BadParameter: it has another suffix.
            AlphaRLError: what draws it is missing.
            WriteError: it cannot be written, or is somebody else's.
        """
        path = Path(value)
        if path.suffix.lower() not in self.suffixes:
            listed = ", ".join(self.suffixes)
            self.fail(f"{str(value)!r}: write a name that ends in one of {listed}", param, context)
        if self.is_drawn:
            require_matplotlib()
        _check_place(path)
        return path


def report_file_options(command: Command) -> Command:
    """Add --plot, --html and --csv."""
    return add_options(
        (
            click.option(
                "--plot",
                "plot_file",
                type=ReportFile(tuple(f".{name}" for name in FORMATS), is_drawn=True),
                metavar="FILE.png|svg|pdf",
                help="Draw it for a paper; needs alpharl-hub[plot].",
            ),
            click.option(
                "--html",
                "html_file",
                type=ReportFile((".html", ".htm")),
                metavar="FILE",
                help="Write it as one page that needs nothing else.",
            ),
            click.option(
                "--csv",
                "csv_file",
                type=ReportFile((".csv",)),
                metavar="FILE",
                help="Write a row for each matrix and step.",
            ),
        ),
        command,
        OUTPUT,
    )


def write_report_files(
    report: SpectralReport, options: Mapping[str, Any], run: str = ""
) -> list[Path]:
    """Write the files that were asked for, each whole or not at all, and return where they are.

    Args:
        report: what is in them.
        options: those of `report_file_options`; others are not looked at.
        run: what the user called the run, for the page's title.

    Raises:
        WriteError: a disk refuses, or a name was taken by somebody else meanwhile.
    """
    from alpharl_hub.drawing.figures import report_figure
    from alpharl_hub.drawing.page import page_bytes
    from alpharl_hub.drawing.table import table_bytes

    written = []
    if path := options["csv_file"]:
        written.append(_write_whole(path, table_bytes(report)))
    if path := options["html_file"]:
        written.append(_write_whole(path, page_bytes(report, run)))
    if path := options["plot_file"]:
        file_format = path.suffix.lower().removeprefix(".")
        written.append(_write_whole(path, report_figure(report, file_format)))
    return written


def _check_place(path: Path) -> None:
    """Make sure that a file can be written, by making one beside it, and replaces only our own.

    Raises:
        WriteError: it cannot, or would replace something else.
    """
    folder = path.parent
    if not folder.is_dir():
        raise WriteError(f"{path}: there is no folder {folder}; make it, or choose another")
    if path.exists() and not _is_ours(path):
        raise WriteError(f"{path}: exists and this tool did not make it; choose another name")
    partial = _beside(path)
    try:
        os.close(_open_new(partial))
        partial.unlink()
    except OSError as error:
        raise _refused(path, error) from error


def _write_whole(path: Path, data: bytes) -> Path:
    """Write beside a name and move there: nobody ever sees half of it."""
    _check_place(path)
    # A link stays one: what it leads to is replaced.
    path = Path(os.path.realpath(path))
    partial = _beside(path)
    try:
        with open(_open_new(partial), "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError as error:
        with suppress(OSError):
            partial.unlink()
        raise _refused(path, error) from error
    return path


def _beside(path: Path) -> Path:
    real = Path(os.path.realpath(path))
    return real.with_name(f".{real.name[:200]}.{os.getpid()}.partial")


def _open_new(path: Path) -> int:
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o666)


def _is_ours(path: Path) -> bool:
    """Whether this tool made a file: a table by its head, others by the name that they carry."""
    if not path.is_file():
        return False
    try:
        with path.open("rb") as file:
            start = file.read(_LOOKED_AT_BYTES)
            # A PDF says at its end who made it.
            file.seek(max(0, path.stat().st_size - _LOOKED_AT_BYTES))
            end = file.read()
    except OSError as error:
        raise _refused(path, error) from error
    if path.suffix.lower() == ".csv":
        return not start or start.startswith(",".join(COLUMNS).encode())
    return not start or CREATOR.encode() in start + end


def _refused(path: Path, error: OSError) -> WriteError:
    reason = error.strerror or str(error)
    return WriteError(f"{path}: cannot be written ({reason}); mend it, or choose another place")
