"""The folder a run works in, and the journal that lets it go on after any interruption.

The journal is a file of JSON lines. The first says what run this is; every other one holds the
result of one window, written only after the window's bytes are on the disk. A line that was cut by
a crash is dropped. One process at a time holds the folder.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from alpharl_hub.errors import FitError, WriteError
from alpharl_hub.output.shards import write_error

JOURNAL_NAME = "journal.jsonl"
LOCK_NAME = "lock"
DEFAULT_PARENT = ".alpharl-hub"
"""Where runs without an output folder work, each in a folder of its own."""

RESULT_FOLDER = "result"
"""Where inside the work folder the output is put together."""


class Journal:
    """Results of finished windows by their index, on disk.

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
        is_strange = self._result.exists() and not (folder / LOCK_NAME).exists()
        if is_strange:
            raise WriteError(f"{self._result}: not made by this tool; choose another --work-dir")
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(folder / LOCK_NAME, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise write_error(folder, error) from error
        self._take_lock()
        try:
            self.results = self._read(identity)
            self._result.mkdir(exist_ok=True)
            self._file = open(self._path, "ab")  # noqa: SIM115 - closed by close()
        except OSError as error:
            raise write_error(self._path, error) from error
        except WriteError:
            os.close(self._lock)
            raise
        if self._file.tell() == 0:
            self._append({"identity": identity})

    def _take_lock(self) -> None:
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(self._lock)
            raise WriteError(
                f"{self.folder}: another process works there; wait for it, or choose another output"
            ) from error
        if os.fstat(self._lock).st_nlink == 0:
            os.close(self._lock)
            raise WriteError(f"{self.folder}: another process has just finished there; look again")

    def _read(self, identity: Mapping[str, object]) -> dict[str, object]:
        """Read what an earlier start left, cutting off a line that it could not finish."""
        records: list[dict[str, object]] = []
        good_bytes = 0
        # Windows are done only as long as their bytes are there, and the other way round.
        if self._path.exists() and self._result.exists():
            records, good_bytes = _whole_records(self._path.read_bytes())
        is_new = len(records) < 2  # nothing but the identity
        if self._path.exists():
            os.truncate(self._path, 0 if is_new else good_bytes)
        if is_new:
            shutil.rmtree(self._result, ignore_errors=True)
            return {}
        _require_same(self.folder, records[0].get("identity"), json.loads(_line(identity)))
        return {str(record["key"]): record["result"] for record in records[1:]}

    def record(self, key: str, result: object) -> None:
        """Keep one result; returns when it survives a power cut.

        Raises:
            WriteError: the disk refuses.
        """
        self._append({"key": key, "result": result})
        self.results[key] = result

    def _append(self, record: Mapping[str, object]) -> None:
        line = _line(record)
        try:
            self._file.write(f"{zlib.crc32(line.encode()):08x} {line}\n".encode())
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise write_error(self._path, error) from error

    def close(self) -> None:
        """Let go of the folder; what is in it stays for a later start."""
        self._file.close()
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
def open_journal(folder: Path, identity: Mapping[str, object]) -> Iterator[Journal]:
    """Hold a work folder, new or as an earlier start left it.

    It is deleted in the end, and after an error that the same start would only meet again; after
    any other it stays, unless nothing was done yet.
    """
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


def _line(record: Mapping[str, object]) -> str:
    return json.dumps(record, sort_keys=True)


def _whole_records(data: bytes) -> tuple[list[dict[str, object]], int]:
    """Return the leading records whose checksum holds, and how many bytes they fill."""
    records: list[dict[str, object]] = []
    good_bytes = 0
    for raw in data.splitlines(keepends=True):
        checksum, _, line = raw.partition(b" ")
        if not raw.endswith(b"\n") or checksum != f"{zlib.crc32(line[:-1]):08x}".encode():
            break
        records.append(json.loads(line))
        good_bytes += len(raw)
    return records, good_bytes


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
