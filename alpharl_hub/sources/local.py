"""Checkpoints in folders on this machine."""

from __future__ import annotations

import os
import stat
import threading
from collections.abc import Callable, Mapping
from pathlib import Path

from alpharl_hub.errors import SourceError
from alpharl_hub.trajectory import StoredFile

# A checkpoint's own files lie at most here: global_step_N/actor/huggingface/model.safetensors.
_MAX_DEPTH = 3


class LocalFolder:
    """Reads one folder; files are opened once and read by position, so threads may share it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptors: dict[str, int] = {}
        self._lock = threading.Lock()

    def files(self) -> Mapping[str, StoredFile]:
        """List the files of the folder, down to where trainers put weights."""
        found: dict[str, StoredFile] = {}
        try:
            self._list(self.path, "", found)
        except OSError as error:
            raise SourceError(f"{self.path}: cannot be listed ({error.strerror})") from error
        return dict(sorted(found.items()))

    def _list(self, folder: Path, prefix: str, found: dict[str, StoredFile]) -> None:
        for entry in os.scandir(folder):
            name = prefix + entry.name
            if not _is_unicode(entry.name):
                continue  # nothing that we look for is called so, and no answer could name it
            if _leads_to(entry, stat.S_ISREG):
                found[name] = StoredFile(name, entry.stat().st_size, None)
            elif _leads_to(entry, stat.S_ISDIR) and name.count("/") + 1 < _MAX_DEPTH:
                self._list(folder / entry.name, name + "/", found)

    def read_into(self, filename: str, start: int, buffer: memoryview) -> None:
        """Fill `buffer` from byte `start` of the file on."""
        _fill(self._open(filename), start, buffer, self.path / filename)

    def is_private(self) -> bool:
        """Files on disk need no permission that a Hub would know of."""
        return False

    def _open(self, filename: str) -> int:
        with self._lock:
            if filename not in self._descriptors:
                try:
                    self._descriptors[filename] = os.open(self.path / filename, os.O_RDONLY)
                except OSError as error:
                    raise SourceError(
                        f"{self.path / filename}: cannot be opened ({error.strerror})"
                    ) from error
            return self._descriptors[filename]

    def __reduce__(self) -> tuple[object, ...]:
        """Give another process the folder, wherever it works; it opens files itself."""
        return LocalFolder, (self.path.absolute(),)

    def __del__(self) -> None:
        for descriptor in self._descriptors.values():
            os.close(descriptor)


def _is_unicode(name: str) -> bool:
    """Whether a name on the disk is text: Linux takes any bytes, Python shows them as halves."""
    return not any("\ud800" <= char <= "\udfff" for char in name)


def _leads_to(entry: os.DirEntry[str], kind: Callable[[int], bool]) -> bool:
    """Whether an entry is of a kind; a link that leads nowhere or in a circle is of none."""
    try:
        return kind(entry.stat().st_mode)
    except OSError:
        return False


def read_file_into(path: str, start: int, buffer: memoryview) -> None:
    """Fill `buffer` from byte `start` of a file that lies here (the local cache of a Hub)."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError as error:
        raise SourceError(f"{path}: cannot be opened ({error.strerror})") from error
    try:
        _fill(descriptor, start, buffer, Path(path))
    finally:
        os.close(descriptor)


def _fill(descriptor: int, start: int, buffer: memoryview, path: Path) -> None:
    done = 0
    while done < len(buffer):
        try:
            count = os.preadv(descriptor, [buffer[done:]], start + done)
        except OSError as error:
            raise SourceError(f"{path}: cannot be read ({error.strerror})") from error
        if count == 0:
            raise SourceError(
                f"{path}: ends at byte {start + done}, {len(buffer) - done} too early; "
                "copy it again"
            )
        done += count


def list_step_folders(root: Path) -> tuple[str, ...]:
    """Name the folders right below `root`, without what trainers leave unfinished.

    NeMo-RL writes tmp_step_N until a checkpoint is whole and old_step_N while it swaps.
    """
    try:
        names = [entry.name for entry in os.scandir(root) if _leads_to(entry, stat.S_ISDIR)]
    except OSError as error:
        raise SourceError(f"{root}: cannot be listed ({error.strerror})") from error
    return tuple(
        sorted(n for n in names if _is_unicode(n) and not n.startswith(("tmp_", "old_", ".")))
    )
