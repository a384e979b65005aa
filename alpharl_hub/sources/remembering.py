"""A store that keeps what was sampled, so that no byte of a weight file is asked for twice."""

from __future__ import annotations

from collections.abc import Mapping

from alpharl_hub.trajectory import CheckpointStore, StoredFile


class RememberingStore:
    """Wraps a store; segments read with `sample` are answered from memory afterwards."""

    def __init__(self, store: CheckpointStore) -> None:
        self._store = store
        self._segments: dict[str, list[tuple[int, bytes]]] = {}

    def files(self) -> Mapping[str, StoredFile]:
        """List the files of the wrapped store."""
        return self._store.files()

    def is_private(self) -> bool:
        """Whether the wrapped store is private."""
        return self._store.is_private()

    @property
    def num_bytes_kept(self) -> int:
        """Bytes that are held in memory."""
        return sum(len(data) for found in self._segments.values() for _, data in found)

    def sample(self, filename: str, start: int, stop: int) -> bytes:
        """Read a few bytes and keep them; segments must not overlap."""
        buffer = bytearray(stop - start)
        self._store.read_into(filename, start, memoryview(buffer))
        self._segments.setdefault(filename, []).append((start, bytes(buffer)))
        return bytes(buffer)

    def read_into(self, filename: str, start: int, buffer: memoryview) -> None:
        """Fill `buffer`, asking the wrapped store only for what is not known."""
        stop = start + len(buffer)
        position = start
        for first, data in sorted(self._segments.get(filename, ())):
            begin, end = max(position, first), min(stop, first + len(data))
            if begin >= end:
                continue
            if begin > position:
                self._store.read_into(filename, position, buffer[position - start : begin - start])
            buffer[begin - start : end - start] = data[begin - first : end - first]
            position = end
        if position < stop:
            self._store.read_into(filename, position, buffer[position - start :])
