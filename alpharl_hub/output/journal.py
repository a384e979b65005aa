"""The folder a run works in, and the journal that lets it go on after any interruption.

The journal is a file of JSON lines. The first says what run this is; every other one holds the
result of one window, written only after the window's bytes are on the disk. Each line begins with a
checksum of itself and of all lines before it, so that a line counts only where it was written: from
the first one that is damaged, doubled, out of place or of another run, nothing is believed. One
process at a time holds the folder.
"""

from __future__ import annotations

import json
import os
import shutil
import stat
import threading
import zlib
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from itertools import count
from pathlib import Path

from alpharl_hub.errors import FitError, WriteError
from alpharl_hub.output.folder import work_folder_beside
from alpharl_hub.output.lock import LOCK_NAME, HeldError, hold_beside, take_lock
from alpharl_hub.output.shards import sync_folder, write_error

JOURNAL_NAME = "journal.jsonl"
DEFAULT_PARENT = ".alpharl-hub"
"""Where runs without an output folder work, each in a folder of its own."""

RESULT_FOLDER = "result"
"""Where inside the work folder the output is put together."""


_FORMS = ({"key", "result"}, {"forget"})
"""The names in a line behind the first: what was done, and what of that is to be done again."""


class Journal:
    """Results of finished windows by their index, on disk; safe to share between threads.

    Args:
        folder: the work folder; created when missing.
        identity: what makes this run this run; a journal of another run is refused.

    Raises:
        WriteError: another process holds the folder, another run left it, or the disk refuses.
    """

    def __init__(self, folder: Path, identity: Mapping[str, object]) -> None:
        self.folder = folder
        self._path = folder / JOURNAL_NAME
        self._result = folder / RESULT_FOLDER
        _require_own(folder)
        is_strange = self._result.exists() and not (folder / LOCK_NAME).exists()
        if is_strange:
            raise WriteError(f"{self._result}: not made by this tool; choose another --work-dir")
        self._lock = take_lock(folder)
        self._writing = threading.Lock()
        self._checksum = 0
        try:
            self.results = self._read(identity)
            self._result.mkdir(exist_ok=True)
            flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW
            self._descriptor = os.open(self._path, flags, 0o644)
            sync_folder(folder)
        except OSError as error:
            os.close(self._lock)
            raise write_error(self._path, error) from error
        except WriteError:
            os.close(self._lock)
            raise
        if os.fstat(self._descriptor).st_size == 0:
            self._append({"identity": identity})

    def _read(self, identity: Mapping[str, object]) -> dict[str, object]:
        """Read what an earlier start left, cutting off a line that it could not finish."""
        records: list[dict[str, object]] = []
        good_bytes = checksum = 0
        # Windows are done only as long as their bytes are there, and the other way round.
        if self._path.exists() and self._result.exists():
            records, good_bytes, checksum = _whole_records(self._path.read_bytes())
        is_new = len(records) < 2  # nothing but the identity
        if not is_new:
            _require_same(self.folder, records[0]["identity"], json.loads(_line(identity)))
        if self._path.exists():
            os.truncate(self._path, 0 if is_new else good_bytes)
        if is_new:
            shutil.rmtree(self._result, ignore_errors=True)
            return {}
        self._checksum = checksum
        found: dict[str, object] = {}
        for record in records[1:]:
            if "forget" in record:
                found.pop(str(record["forget"]), None)
            else:
                found[str(record["key"])] = record["result"]
        return found

    def record(self, key: str, result: object) -> None:
        """Keep one result; returns when it survives a power cut.

        Raises:
            WriteError: the disk refuses.
        """
        with self._writing:
            self._append({"key": key, "result": result})
            self.results[key] = result

    def forget(self, key: str) -> None:
        """Have one thing done again by the next start; returns when that survives a power cut.

        Raises:
            WriteError: the disk refuses.
        """
        with self._writing:
            self._append({"forget": key})
            del self.results[key]

    def _append(self, record: Mapping[str, object]) -> None:
        line = _line(record).encode()
        self._checksum = zlib.crc32(line, self._checksum)
        left = memoryview(b"%08x %s\n" % (self._checksum, line))
        try:
            while left:
                left = left[os.write(self._descriptor, left) :]
            os.fsync(self._descriptor)
        except OSError as error:
            raise write_error(self._path, error) from error

    def close(self) -> None:
        """Let go of the folder; what is in it stays for a later start."""
        os.close(self._descriptor)
        os.close(self._lock)

    def discard(self) -> None:
        """Delete what is ours in the folder, then let go: it is delivered, or of no use.

        A --work-dir may hold other things, which stay.
        """
        self._path.unlink(missing_ok=True)
        shutil.rmtree(self._result, ignore_errors=True)
        (self.folder / LOCK_NAME).unlink(missing_ok=True)
        with suppress(OSError):
            self.folder.rmdir()
            if self.folder.parent.name == DEFAULT_PARENT:
                self.folder.parent.rmdir()
        self.close()


@contextmanager
def open_journal(
    folder: Path, identity: Mapping[str, object], output: Path | None = None
) -> Iterator[Journal]:
    """Hold a work folder, new or as an earlier start left it, and the output that it is for.

    It is deleted in the end, and after an error that the same start would only meet again; after
    any other it stays, unless nothing was done yet.
    """
    with ExitStack() as stack:
        if output is not None:
            stack.enter_context(hold_beside(work_folder_beside(output), folder))
        yield from _open_journal(folder, identity)


def _open_journal(folder: Path, identity: Mapping[str, object]) -> Iterator[Journal]:
    journal = Journal(folder, identity)
    is_useful = False
    try:
        yield journal
    except FitError:
        raise
    except BaseException:
        is_useful = bool(journal.results)
        raise
    finally:
        if is_useful:
            journal.close()
        else:
            journal.discard()


@contextmanager
def open_free_journal(folder: Path, identity: Mapping[str, object]) -> Iterator[Journal]:
    """Hold a work folder, or one of that name with a number where others hold it.

    For commands without an output, which may be run side by side.
    """
    with ExitStack() as stack:
        for number in count(1):
            place = folder if number == 1 else folder.with_name(f"{folder.name}-{number}")
            with suppress(HeldError):
                journal = stack.enter_context(open_journal(place, identity))
                break
        yield journal


def _require_own(folder: Path) -> None:
    """Refuse what somebody else has put where our work will lie, in a folder that is shared.

    Raises:
        WriteError: a lock, a journal or a result is a link, or another user's.
    """
    for name in (LOCK_NAME, JOURNAL_NAME, RESULT_FOLDER):
        place = folder / name
        try:
            found = place.lstat()
        except OSError:
            continue
        if stat.S_ISLNK(found.st_mode) or found.st_uid != os.geteuid():
            raise WriteError(f"{place}: a link or another user's; choose another --work-dir")


def _line(record: Mapping[str, object]) -> str:
    return json.dumps(record, sort_keys=True)


def _whole_records(data: bytes) -> tuple[list[dict[str, object]], int, int]:
    """Return the leading records that are as they were written, their bytes and their checksum."""
    records: list[dict[str, object]] = []
    good_bytes = checksum = 0
    for raw in data.splitlines(keepends=True):
        found, _, line = raw.partition(b" ")
        following = zlib.crc32(line[:-1], checksum)
        if not raw.endswith(b"\n") or found != b"%08x" % following:
            break
        record = _parse(line)
        if record is None or set(record) not in (_FORMS if records else [{"identity"}]):
            break
        records.append(record)
        good_bytes, checksum = good_bytes + len(raw), following
    return records, good_bytes, checksum


def _parse(line: bytes) -> dict[str, object] | None:
    """Return the object that a line holds, if it does."""
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _require_same(folder: Path, found: object, wanted: object) -> None:
    if found == wanted:
        return
    shown = "; ".join(_differences(found, wanted, "")[:3])
    raise WriteError(
        f"{folder}: holds an unfinished run with other arguments ({shown}); start with those to go "
        "on, or delete the folder to begin anew"
    )


def _differences(old: object, new: object, where: str) -> list[str]:
    """Say what differs, by the innermost names that do."""
    if isinstance(old, dict) and isinstance(new, dict):
        return [
            line
            for key in sorted({*old, *new})
            for line in _differences(old.get(key), new.get(key), f"{where}.{key}" if where else key)
        ]
    return [] if old == new else [f"{where} was {_short(old)}, is {_short(new)}"]


def _short(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."
