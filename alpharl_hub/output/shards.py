"""The weight files of the output: laid out before any weight is read, written in place.

A shard keeps the name, the tensors and their order of the last checkpoint's shard. It is written
under a temporary name and gets its own when every byte is on the disk, and was read back from it.
"""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from alpharl_hub import safetensors_header, strict_json
from alpharl_hub.errors import WriteError
from alpharl_hub.output.read_back import Run, changed_runs, crc_of, gaps
from alpharl_hub.trajectory import TensorRef

PARTIAL_SUFFIX = ".partial"


class DamagedError(WriteError):
    """A file reads back other than it was written; `starts` are where the runs begin that do."""

    starts: frozenset[int] = frozenset()


@dataclass(frozen=True)
class OutputTensor:
    """One tensor to be written; `dtype` is the safetensors code it will have."""

    name: str
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class OutputFile:
    """One shard: its header, and where each tensor's bytes go."""

    filename: str
    header: bytes
    tensors: tuple[TensorRef, ...]
    num_bytes: int


def lay_out(
    filename: str, tensors: Sequence[OutputTensor], metadata: Mapping[str, str]
) -> OutputFile:
    """Lay tensors out in the given order behind the header that describes them."""
    header = safetensors_header.encode_header(
        [(t.name, t.dtype, t.shape) for t in tensors], metadata
    )
    refs: list[TensorRef] = []
    position = len(header)
    for tensor in tensors:
        ref = _ref(tensor, filename, position)
        refs.append(ref)
        position = ref.stop
    return OutputFile(filename, header, tuple(refs), position)


def _ref(tensor: OutputTensor, filename: str, start: int) -> TensorRef:
    num_elements = 1
    for side in tensor.shape:
        num_elements *= side
    num_bytes = num_elements * safetensors_header.DTYPE_BITS[tensor.dtype] // 8
    return TensorRef(tensor.name, tensor.dtype, tensor.shape, filename, start, start + num_bytes)


def make_index(files: Sequence[OutputFile]) -> bytes:
    """Write the index of a sharded model in the form that transformers writes."""
    weight_map = {ref.name: file.filename for file in files for ref in file.tensors}
    total_size = sum(ref.num_bytes for file in files for ref in file.tensors)
    total_parameters = sum(ref.num_elements for file in files for ref in file.tensors)
    index = {
        "metadata": {"total_parameters": total_parameters, "total_size": total_size},
        "weight_map": dict(sorted(weight_map.items())),
    }
    return (strict_json.dump(index, indent=2) + "\n").encode()


class ShardWriter:
    """Writes bytes of shards at their offsets; safe to share between threads.

    Args:
        folder: an existing folder of ours.
        files: the layout.
    """

    def __init__(self, folder: Path, files: Sequence[OutputFile]) -> None:
        self.folder = folder
        self.files = {file.filename: file for file in files}
        self._descriptors: dict[str, int] = {}
        self._written: dict[str, dict[int, Run]] = {name: {} for name in self.files}
        # A shard is completed while another process is given the descriptors of all.
        self._lock = threading.Lock()

    def open(self) -> None:
        """Create the shards that do not exist yet and write their headers.

        A shard that has its final name gives it back: only the caller knows whether it is whole.

        Raises:
            WriteError: the folder cannot be written.
        """
        for file in self.files.values():
            path = self.folder / (file.filename + PARTIAL_SUFFIX)
            try:
                if (self.folder / file.filename).exists():
                    os.rename(self.folder / file.filename, path)
                descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
                self._descriptors[file.filename] = descriptor
                os.ftruncate(descriptor, file.num_bytes)
                write_at(descriptor, 0, file.header, path)
            except OSError as error:
                raise write_error(path, error) from error
        for folder in (self.folder, self.folder.parent):
            sync_folder(folder)

    def missing(self) -> list[str]:
        """Return the shards that are not there, finished or not."""
        names = ((name, name + PARTIAL_SUFFIX) for name in self.files)
        return [name for name, partial in names if not self._has(name) and not self._has(partial)]

    def _has(self, name: str) -> bool:
        return (self.folder / name).is_file()

    def write(self, filename: str, start: int, data: memoryview, crc32: int | None = None) -> None:
        """Write `data`, whose CRC-32 may be known, at byte `start` of a shard."""
        path = self.folder / (filename + PARTIAL_SUFFIX)
        write_at(self._descriptor(filename), start, data, path)
        if len(data):
            checksum = crc_of([data]) if crc32 is None else crc32
            self._written[filename][start] = Run(start, start + len(data), checksum)

    def sync(self, filename: str) -> None:
        """Return when what was written to a shard survives a power cut."""
        try:
            os.fsync(self._descriptor(filename))
        except OSError as error:
            raise write_error(self.folder / filename, error) from error

    def _descriptor(self, filename: str) -> int:
        return self._descriptors[filename]

    def __reduce__(self) -> tuple[object, ...]:
        """Give another process a writer of the same files.

        They are on the disk first: a machine that shares it may else write its copy of a block
        back over what another has put there.
        """
        with self._lock:
            for filename in self._descriptors:
                self.sync(filename)
            inodes = {name: os.fstat(fd).st_ino for name, fd in self._descriptors.items()}
        return SharedShardWriter, (self.folder.absolute(), tuple(self.files.values()), inodes)

    def complete(self, filename: str, runs: Sequence[Run] | None = None) -> Path:
        """Read a shard back, and give it its final name; every byte of it must have been written.

        runs: what was written behind the header, where another process or an earlier start has
        written some of it; without them, what this writer has written.

        Raises:
            DamagedError: it is not what was written. WriteError: the disk refuses.
        """
        self.sync(filename)
        path = self.folder / filename
        partial = path.with_name(filename + PARTIAL_SUFFIX)
        written = self._written[filename].values() if runs is None else runs
        check_written(partial, self.files[filename], written)
        with self._lock:
            os.close(self._descriptors.pop(filename))
        try:
            os.rename(partial, path)
        except OSError as error:
            raise write_error(path, error) from error
        sync_folder(self.folder)
        return path

    def close(self) -> None:
        """Close what is open and leave the files as they are, for a later start."""
        while self._descriptors:
            os.close(self._descriptors.popitem()[1])


class SharedShardWriter(ShardWriter):
    """Writes into shards that another process has opened, maybe on another machine.

    A shard is open from the first `write` to `sync`, so that its disk space is given back when it
    is deleted. `inodes` tell the files from others that have the same path on this machine.
    """

    def __init__(
        self, folder: Path, files: Sequence[OutputFile], inodes: Mapping[str, int]
    ) -> None:
        super().__init__(folder, files)
        self._inodes = inodes

    def _descriptor(self, filename: str) -> int:
        if filename not in self._descriptors:
            self._descriptors[filename] = self._open_shared(filename)
        return self._descriptors[filename]

    def _open_shared(self, filename: str) -> int:
        path = self.folder / (filename + PARTIAL_SUFFIX)
        try:
            descriptor = os.open(path, os.O_RDWR)
        except FileNotFoundError as error:
            raise _not_shared(path) from error
        except OSError as error:
            raise write_error(path, error) from error
        if os.fstat(descriptor).st_ino != self._inodes.get(filename):
            os.close(descriptor)
            raise _not_shared(path)
        return descriptor

    def sync(self, filename: str) -> None:
        """Return when what was written survives a power cut; the shard is closed."""
        super().sync(filename)
        os.close(self._descriptors.pop(filename))


def _not_shared(path: Path) -> WriteError:
    return WriteError(
        f"{path}: not the same file on {socket.gethostname()}; choose an output folder (or "
        "--work-dir) that all machines of the cluster share"
    )


def check_written(path: Path, file: OutputFile, runs: Iterable[Run]) -> None:
    """Read a file back that is on the disk, and compare its header and all runs behind that.

    Raises:
        DamagedError: it is not what was written. WriteError: it cannot be read.
    """
    known = [Run(0, len(file.header), crc_of([file.header])), *runs]
    try:
        wrong = {run.start for run in changed_runs(path, known)}
    except OSError as error:
        raise WriteError(
            f"{path}: cannot be read back ({error.strerror or error}); see to the disk, then start "
            "again with the same arguments"
        ) from error
    wrong |= {start for start, _ in gaps(known, file.num_bytes)}
    if not wrong:
        return
    names = [ref.name for ref in file.tensors if any(ref.start <= s < ref.stop for s in wrong)]
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    damaged = DamagedError(
        f"{path}: {names[0] if names else 'the header'}{more} reads back other than it was "
        "written; see to the disk (or who else writes there), then start again with the same "
        "arguments: only this is done again"
    )
    damaged.starts = frozenset(wrong)
    raise damaged


def write_at(descriptor: int, start: int, data: bytes | memoryview, path: Path) -> None:
    """Write all of `data` at byte `start`.

    Raises:
        WriteError: the disk is full or refuses.
    """
    view = memoryview(data).cast("B")
    done = 0
    while done < len(view):
        try:
            done += os.pwrite(descriptor, view[done:], start + done)
        except OSError as error:
            raise write_error(path, error) from error


def sync_folder(folder: Path) -> None:
    """Return when the names in a folder survive a power cut, as its files do after their own fsync.

    Raises:
        WriteError: the folder cannot be read, or the disk refuses.
    """
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise write_error(folder, error) from error


def write_error(path: Path, error: OSError) -> WriteError:
    """Put an operating system's refusal to write into one line."""
    return WriteError(
        f"{path}: cannot be written ({error.strerror or error}); make room or mend it, then start "
        "again with the same arguments to go on"
    )
