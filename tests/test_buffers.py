"""Memory that is used again as soon as nobody looks into it."""

from __future__ import annotations

import gc
import threading

import torch

from alpharl_hub.windows.buffers import BufferPool, Room

SIZE = 6 << 20


def test_memory_comes_back_when_its_last_view_goes() -> None:
    """A slice of a view keeps the block; afterwards the same addresses are handed out again."""
    pool = BufferPool()
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
    """Nothing is kept that cannot be used; memory is page-aligned and of the size asked."""
    pool = BufferPool()
    small = pool.take(SIZE)
    del small
    gc.collect()
    large = pool.take(4 * SIZE)
    assert (large.numel(), large.data_ptr() % 4096) == (4 * SIZE, 0)
    assert not pool._free


def test_the_outputs_of_a_window_share_one_block() -> None:
    """Aligned and apart from each other; what was not planned for is memory of its own."""
    room = Room(2 * SIZE, "cpu")
    first, second = room.take(SIZE // 2 - 3, torch.bfloat16), room.take(SIZE // 8, torch.float32)
    assert (first.numel(), second.numel()) == (SIZE // 2 - 3, SIZE // 8)
    assert second.data_ptr() - first.data_ptr() == -(-first.nbytes // 64) * 64
    third = room.take(SIZE, torch.uint8)
    for number, tensor in enumerate((first, second, third)):
        tensor.fill_(number)
    assert [float(t.float().mean()) for t in (first, second, third)] == [0, 1, 2]
    assert not 0 < third.data_ptr() - first.data_ptr() < 2 * SIZE


def test_two_never_share_memory() -> None:
    """Many threads take, fill and check at once."""
    pool, wrong = BufferPool(), []

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
    pool = BufferPool()
    large = pool.take(8 * SIZE)
    address = large.data_ptr()
    del large
    gc.collect()
    small = pool.take(SIZE)
    assert (small.numel(), small.data_ptr()) == (SIZE, address)
