"""Large memory that is used again: a first touch costs more than a copy.

A page that the kernel hands out for the first time costs 2.5 us for 4 KB where this was measured,
0.6 s for a GB read. Blocks come back by themselves when the last tensor that looks into them goes.
"""

from __future__ import annotations

import ctypes
import mmap
import threading
import weakref

import torch
from torch import Tensor

_ROUNDING_BYTES = 2 << 20
_MIN_POOLED_BYTES = 4 << 20
"""Smaller memory is the allocator's own business."""

_ALIGNMENT = 64


class BufferPool:
    """Hands out memory (page-aligned, with what stood there before); safe between threads.

    A block may be larger than what is asked for: of each pool as many are in use at once whatever
    their sizes, so that nothing has to be given back when a small one follows a large one.
    """

    def __init__(self) -> None:
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
        """Return the smallest free block that is large enough; without one all are let go."""
        with self._lock:
            fitting = [b for b in self._free if num_bytes <= len(b)]
            if not fitting:
                self._free.clear()
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


READINGS, _DELTAS, _OUTPUTS = BufferPool(), BufferPool(), BufferPool()
"""One of each for the process: what one window has read is room for the next."""


def take_delta(num_elements: int, device: str | torch.device) -> Tensor:
    """Return memory for fp32 entries, with whatever stood there; pooled on the CPU."""
    if torch.device(device).type != "cpu":
        return torch.empty(num_elements, dtype=torch.float32, device=device)
    return _DELTAS.take(4 * num_elements).view(torch.float32)


class Room:
    """Memory for the outputs of one window, which all go at once; one pooled block on the CPU.

    Args:
        num_bytes: of all outputs together; what goes beyond it is memory of its own.
    """

    def __init__(self, num_bytes: int, device: str | torch.device) -> None:
        self._device = torch.device(device)
        self._left = torch.empty(0, dtype=torch.uint8)
        if self._device.type == "cpu":
            self._left = _OUTPUTS.take(num_bytes)

    def take(self, num_elements: int, dtype: torch.dtype) -> Tensor:
        """Return memory for so many entries, with whatever stood there."""
        num_bytes = num_elements * dtype.itemsize
        if num_bytes > len(self._left):
            return torch.empty(num_elements, dtype=dtype, device=self._device)
        found = self._left[:num_bytes].view(dtype)
        self._left = self._left[-(-num_bytes // _ALIGNMENT) * _ALIGNMENT :]
        return found
