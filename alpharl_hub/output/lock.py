"""One process at a time: a lock in a folder of ours, which the system takes from who dies."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from alpharl_hub.errors import WriteError
from alpharl_hub.output.shards import sync_folder, write_error

LOCK_NAME = "lock"


class HeldError(WriteError):
    """Another process holds the folder."""


def take_lock(folder: Path) -> int:
    """Hold a folder, made when missing; returns the descriptor that lets it go when closed.

    Raises:
        HeldError: another process holds it. WriteError: the disk refuses.
    """
    try:
        _make_folder(folder)
        lock = os.open(folder / LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
    except OSError as error:
        raise write_error(folder, error) from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(lock)
        raise HeldError(
            f"{folder}: another process works there; wait for it, or choose another output"
        ) from error
    if os.fstat(lock).st_nlink == 0:
        os.close(lock)
        raise HeldError(f"{folder}: another process has just finished there; look again")
    return lock


@contextmanager
def hold_beside(beside: Path, work: Path) -> Iterator[None]:
    """Hold the folder beside an output too, where the work is done elsewhere.

    So two runs with one output and two work folders do not both go on to its end. What an
    unfinished run without a work folder of its own has left there stays.

    Raises:
        HeldError: another process holds it. WriteError: the disk refuses.
    """
    if os.path.realpath(work) == os.path.realpath(beside):
        yield
        return
    lock = take_lock(beside)
    try:
        yield
    finally:
        if os.listdir(beside) == [LOCK_NAME]:
            (beside / LOCK_NAME).unlink()
            with suppress(OSError):  # somebody has put something there since
                beside.rmdir()
        os.close(lock)


def _make_folder(folder: Path) -> None:
    """Make a folder though others, who share its parent, may be deleting that when it is empty."""
    if folder.is_dir():
        return
    for _ in range(3):
        with suppress(FileNotFoundError):
            folder.mkdir(parents=True, exist_ok=True)
            break
    else:
        folder.mkdir(parents=True, exist_ok=True)
    sync_folder(folder.parent)
