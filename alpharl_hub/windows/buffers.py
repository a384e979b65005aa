"""Large memory that is used again: a first touch costs more than a copy.

A page that the kernel hands out for the first time costs 2.5 us for 4 KB where this was measured,
0.6 s for a GB read. Blocks come back by themselves when the last tensor that looks into them goes.
"""

from __future__ import annotations

import ctypes
import math
import mmap
import threading
import weakref

import torch
from torch import Tensor

_ROUNDING_BYTES = 2 << 20
_MIN_POOLED_BYTES = 4 << 20
"""Smaller memory is the allocator's own business."""


class BufferPool:
    """Hands out memory (page-aligned, with what stood there before); safe between threads.

    Args:
        max_ratio: a block may be so many times larger than what is asked for.
    """

    def __init__(self, max_ratio: float) -> None:
        self._max_ratio = max_ratio
        self._free: list[mmap.mmap] = []
        self._lock = threading.Lock()

    def take(self, num_bytes: int) -> Tensor:
        """Return `num_bytes` of CPU memory as uint8."""
        if num_bytes < _MIN_POOLED_BYTES:
            return torch.empty(num_bytes, dtype=torch.uint8)
        block = self._fitting(num_bytes)
        if block is None:
            block = _map(-(-num_bytes // _ROUNDING_BYTES) * _ROUNDING_BYTES)
        # The tensor's storage holds the array, and only the array the block.
        array = (ctypes.c_uint8 * len(block)).from_buffer(block)
        weakref.finalize(array, self._give_back, block).atexit = False
        return torch.frombuffer(array, dtype=torch.uint8, count=num_bytes)

    def _fitting(self, num_bytes: int) -> mmap.mmap | None:
        """Return the smallest free block that is neither too small nor far too large.

        Without one the smaller ones go: what is held is not more than what was in use at once.
        """
        most = self._max_ratio * max(num_bytes, _ROUNDING_BYTES)
        with self._lock:
            fitting = [b for b in self._free if num_bytes <= len(b) <= most]
            if not fitting:
                self._free = [b for b in self._free if len(b) >= num_bytes]
                return None
            best = min(fitting, key=len)
            self._free.remove(best)
            return best

    def _give_back(self, block: mmap.mmap) -> None:
        with self._lock:
            self._free.append(block)


def _map(num_bytes: int) -> mmap.mmap:
    """Map new memory, private where there is a choice: a first touch of shared memory costs more.

    Huge pages are not asked for: where memory is in pieces the kernel spent twice as long on making
    room for them as the small pages took.
    """
    if not hasattr(mmap, "MAP_PRIVATE"):
        return mmap.mmap(-1, num_bytes)
    return mmap.mmap(-1, num_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)


READINGS = BufferPool(math.inf)
"""One for the process: what one window has read is room for the next, be it smaller or not."""

_WORK = BufferPool(1.5)
"""Deltas and outputs: of many sizes, so that a large block must not go to a small tensor."""


def take(num_elements: int, dtype: torch.dtype, device: str | torch.device) -> Tensor:
    """Return memory for so many entries, with whatever stood there; pooled on the CPU."""
    if torch.device(device).type != "cpu":
        return torch.empty(num_elements, dtype=dtype, device=device)
    return _WORK.take(num_elements * dtype.itemsize).view(dtype)
