"""Reads the parts of a window from one checkpoint into memory, and views them as tensors.

Numerical convention: nothing is computed here; tensors have the stored dtype.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass

import torch
from torch import Tensor

from alpharl_hub.byte_ranges import PlannedRange, dest_starts, plan_ranges
from alpharl_hub.tensor_bytes import TORCH_DTYPES, memory_of
from alpharl_hub.trajectory import CheckpointContents, TensorRef, Trajectory
from alpharl_hub.windows.buffers import READINGS
from alpharl_hub.windows.plan import MAX_RANGE_BYTES, Window, read_once

StoredTensors = Mapping[int, tuple[Tensor, ...]]
"""Tensors on the worker's device by the part's place in its window; not floating: as bytes.

A tensor that is stored in factors has several, in the order of its ref's `parts`; others have one.
"""


class CopyStream:
    """Brings readings to one device: on a GPU beside what it computes, by a stream of its own."""

    def __init__(self, device: str) -> None:
        self.device = torch.device(device)
        self.needs_pinned = self.device.type == "cuda"
        self._stream: torch.cuda.Stream | None = None
        if self.needs_pinned:
            self._stream = torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]

    def send(self, host: Tensor) -> tuple[Tensor, torch.cuda.Event | None]:
        """Begin to copy; what comes back holds the bytes once its event has happened."""
        if self._stream is None:
            return host.to(self.device), None
        with torch.cuda.stream(self._stream):
            on_device = host.to(self.device, non_blocking=True)
            return on_device, self._stream.record_event()


@dataclass(frozen=True)
class Arrived:
    """A reading on its device, or on its way there."""

    tensors: StoredTensors
    memory: Tensor
    event: torch.cuda.Event | None

    def take(self) -> StoredTensors:
        """Return the tensors, for the stream that computes in this thread."""
        if self.event is not None:
            stream = torch.cuda.current_stream(self.memory.device)
            stream.wait_event(self.event)
            # Allocated for another stream: not to be used again before this one is done with it.
            self.memory.record_stream(stream)
        return self.tensors


@dataclass(frozen=True)
class BegunReading:
    """A reading whose ranges are on their way into `host`."""

    futures: Sequence[Future[None]]
    reads: Sequence[tuple[int, TensorRef]]
    starts: Mapping[TensorRef, int]
    host: Tensor
    copies: CopyStream

    def finish(self) -> Arrived:
        """Wait for the bytes, and send them to the device."""
        wait(self.futures)
        for future in self.futures:
            future.result()
        memory, event = self.copies.send(self.host)
        return Arrived(_views(self.reads, self.starts, memory), memory, event)


class WindowReader:
    """Reads from the base and the history of one trajectory.

    Args:
        trajectory: its base is read at position BASE, its history at 0 to T - 1, and its start,
            where it has one, at START.
        on_bytes: told the number of bytes after each piece that was read; called from any thread.
    """

    def __init__(
        self,
        trajectory: Trajectory,
        on_bytes: Callable[[int], None],
    ) -> None:
        self._contents = contents_by_position(trajectory)
        self._on_bytes = on_bytes

    def begin(
        self, window: Window, position: int, copies: CopyStream, pool: ThreadPoolExecutor
    ) -> BegunReading:
        """Begin to read what a window needs of one checkpoint, its pieces side by side."""
        contents = self._contents[position]
        reads = window.reads_at(position)
        refs = read_once([ref for _, ref in reads])
        num_bytes = sum(r.num_bytes for r in refs)
        if copies.needs_pinned:
            host = torch.empty(num_bytes, dtype=torch.uint8, pin_memory=True)
        else:
            host = READINGS.take(num_bytes)

        def read_piece(piece: PlannedRange) -> None:
            path = contents.path_of(piece.source.filename)
            # `host` lives until its last piece is there, also where nobody waits for it any more.
            target = memory_of(host)[piece.dest_start : piece.dest_stop]
            contents.store.read_into(path, piece.source.start, target)
            self._on_bytes(piece.source.num_bytes)

        futures = [pool.submit(read_piece, piece) for piece in plan_ranges(refs, MAX_RANGE_BYTES)]
        return BegunReading(futures, reads, dest_starts(refs), host, copies)


def contents_by_position(trajectory: Trajectory) -> tuple[CheckpointContents, ...]:
    """Return the checkpoints such that BASE, START and the history's positions index them."""
    start = trajectory.base if trajectory.start is None else trajectory.start
    return (*trajectory.history, start, trajectory.base)


def labels_by_position(trajectory: Trajectory) -> tuple[str, ...]:
    """Return how errors name the checkpoints, by position."""
    return tuple(contents.checkpoint.label for contents in contents_by_position(trajectory))


def _views(
    reads: Sequence[tuple[int, TensorRef]], starts: Mapping[TensorRef, int], memory: Tensor
) -> StoredTensors:
    """Cut a reading into tensors."""
    found: dict[int, tuple[Tensor, ...]] = {}
    for place, ref in reads:
        start = starts[ref]
        raw = memory[start : start + ref.num_bytes]
        dtype = TORCH_DTYPES.get(ref.dtype)
        if dtype is not None:
            # A header of odd length shifts what follows it; a view needs its dtype's alignment.
            if raw.storage_offset() % dtype.itemsize:
                raw = raw.clone()
            raw = raw.view(dtype).view(ref.shape)
        found[place] = (*found.get(place, ()), raw)
    return found
