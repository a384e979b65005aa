"""Reads the parts of a window from one checkpoint into memory, and views them as tensors.

Numerical convention: nothing is computed here; tensors have the stored dtype.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait

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

    def read(
        self, window: Window, position: int, device: str, pool: ThreadPoolExecutor
    ) -> StoredTensors:
        """Read what a window needs of one checkpoint, its pieces side by side."""
        contents = self._contents[position]
        reads = window.reads_at(position)
        refs = read_once([ref for _, ref in reads])
        num_bytes = sum(r.num_bytes for r in refs)
        if torch.device(device).type == "cuda":
            host = torch.empty(num_bytes, dtype=torch.uint8, pin_memory=True)
        else:
            host = READINGS.take(num_bytes)
        buffer = memory_of(host)
        pieces = plan_ranges(refs, MAX_RANGE_BYTES)

        def read_piece(piece: PlannedRange) -> None:
            path = contents.path_of(piece.source.filename)
            target = buffer[piece.dest_start : piece.dest_stop]
            contents.store.read_into(path, piece.source.start, target)
            self._on_bytes(piece.source.num_bytes)

        futures = [pool.submit(read_piece, piece) for piece in pieces]
        wait(futures)
        for future in futures:
            future.result()
        return _views(reads, dest_starts(refs), host, device)


def contents_by_position(trajectory: Trajectory) -> tuple[CheckpointContents, ...]:
    """Return the checkpoints such that BASE, START and the history's positions index them."""
    start = trajectory.base if trajectory.start is None else trajectory.start
    return (*trajectory.history, start, trajectory.base)


def labels_by_position(trajectory: Trajectory) -> tuple[str, ...]:
    """Return how errors name the checkpoints, by position."""
    return tuple(contents.checkpoint.label for contents in contents_by_position(trajectory))


def _views(
    reads: Sequence[tuple[int, TensorRef]],
    starts: Mapping[TensorRef, int],
    host: Tensor,
    device: str,
) -> StoredTensors:
    """Cut the buffer into tensors; on a GPU after one copy of the whole."""
    on_device = host.to(device, non_blocking=True)
    found: dict[int, tuple[Tensor, ...]] = {}
    for place, ref in reads:
        start = starts[ref]
        raw = on_device[start : start + ref.num_bytes]
        dtype = TORCH_DTYPES.get(ref.dtype)
        if dtype is not None:
            # A header of odd length shifts what follows it; a view needs its dtype's alignment.
            if raw.storage_offset() % dtype.itemsize:
                raw = raw.clone()
            raw = raw.view(dtype).view(ref.shape)
        found[place] = (*found.get(place, ()), raw)
    return found
