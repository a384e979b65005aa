"""Memory that is used again as soon as nobody looks into it."""

from __future__ import annotations

import gc
import math
import threading

import torch

from alpharl_hub.windows.buffers import BufferPool

SIZE = 6 << 20


def test_memory_comes_back_when_its_last_view_goes() -> None:
    """A slice of a view keeps the block; afterwards the same addresses are handed out again."""
    pool = BufferPool(2)
    first = pool.take(SIZE)
    address = first.data_ptr()
    view = first[100:200].view(torch.int32)
    del first
    gc.collect()
    assert pool.take(SIZE).data_ptr() != address
    view.fill_(7)
    del view
    gc.collect()
    assert address in {tensor.data_ptr() for tensor in (pool.take(SIZE), pool.take(SIZE))}


def test_blocks_that_are_too_small_are_let_go() -> None:
    """A far too large one waits for its like; memory is page-aligned and of the size asked."""
    pool = BufferPool(2)
    small = pool.take(SIZE)
    del small
    gc.collect()
    large = pool.take(4 * SIZE)
    address = large.data_ptr()
    assert (large.numel(), address % 4096) == (4 * SIZE, 0)
    assert not pool._free
    del large
    gc.collect()
    again = pool.take(SIZE)
    assert again.numel() == SIZE
    assert pool.take(4 * SIZE).data_ptr() == address


def test_two_never_share_memory() -> None:
    """Many threads take, fill and check at once."""
    pool, wrong = BufferPool(2), []

    def work(number: int) -> None:
        for round_ in range(30):
            mine = pool.take(SIZE + number)
            mine.fill_(number * 10 + round_ % 10)
            if not bool((mine == number * 10 + round_ % 10).all()):
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_a_pool_of_readings_hands_a_large_block_to_a_small_reading() -> None:
    """What is in flight is bounded by its number, so nothing is let go and mapped again."""
    pool = BufferPool(math.inf)
    large = pool.take(8 * SIZE)
    address = large.data_ptr()
    del large
    gc.collect()
    small = pool.take(SIZE)
    assert (small.numel(), small.data_ptr()) == (SIZE, address)
