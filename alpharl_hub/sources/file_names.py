"""Names of files that strangers chose: which can be written in a folder, on every system.

What is read may be called anything. What is written keeps the name it had, so it must neither leave
its folder nor mean another file on the machine where the output ends up.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from pathlib import Path

_NOT_IN_NAMES = frozenset('/\\:*?"<>|')
# https://learn.microsoft.com/en-us/windows/win32/fileio/naming-a-file
_RESERVED = frozenset(
    {"con", "prn", "aux", "nul", "conin$", "conout$"}
    | {f"{device}{number}" for device in ("com", "lpt") for number in "0123456789¹²³"}
)
_MAX_NAME_BYTES = 200
"""File systems take 255; a suffix such as .partial must still fit."""


def is_portable(name: str) -> bool:
    """Whether a text can name a visible file of one folder, on every system.

    Not so: paths, hidden files, what looks like an option, control and bidirectional characters,
    half characters, Windows' reserved characters and devices, dots and blanks at the end, and more
    bytes than fit.
    """
    return (
        name.isprintable()
        and name[:1] not in ("", ".", "-", " ")
        and name[-1] not in ". "
        and _NOT_IN_NAMES.isdisjoint(name)
        and name.split(".")[0].rstrip().casefold() not in _RESERVED
        and len(name.encode("utf-8")) <= _MAX_NAME_BYTES
    )


def folded(name: str) -> str:
    """Return what two names share that are one on file systems which ignore case (macOS)."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def find_collision(names: Iterable[str]) -> tuple[str, str] | None:
    """Return two names that are one file where case does not count, or None."""
    seen: dict[str, str] = {}
    for name in names:
        other = seen.setdefault(folded(name), name)
        if other != name:
            return other, name
    return None


def leads_out(folder: Path, filename: str) -> bool:
    """Whether a file of `folder` is a link to a place outside of it.

    Links from a snapshot to the blobs of the same repo, as the cache of the Hub's client has them
    (REPO/snapshots/COMMIT/NAME to REPO/blobs/DIGEST), stay within.
    """
    real_folder = folder.resolve()
    target = (folder / filename).resolve()
    if target.is_relative_to(real_folder):
        return False
    parts = real_folder.parts
    if "snapshots" not in parts:
        return True
    last = len(parts) - 1 - parts[::-1].index("snapshots")
    return target.parent != Path(*parts[:last]) / "blobs"
