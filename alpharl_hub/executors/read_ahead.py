"""Reads windows ahead of whoever computes them, and can be told to let go of what it has.

Two readings are on their way at most: the next one is begun before the last bytes of the one before
are there, so that no connection waits for the slowest.
"""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence

from alpharl_hub.executors.in_hand import InHand
from alpharl_hub.windows.plan import Window, read_once
from alpharl_hub.windows.reader import Arrived, BegunReading, StoredTensors

_MAX_AHEAD = 2


class ReadAhead:
    """Walks windows in a thread of its own.

    Args:
        begin: begins to read a window from the checkpoint at one position.
        windows: those to begin with.
        todo: where to take further ones from.
        in_hand: says when a window may be read to its end.
    """

    def __init__(
        self,
        begin: Callable[[Window, int], BegunReading],
        windows: Sequence[Window],
        todo: queue.SimpleQueue[Window],
        in_hand: InHand,
    ) -> None:
        self._begin = begin
        self._in_hand = in_hand
        self._first = deque(windows)
        self._todo = todo
        self._begun: deque[tuple[Window, list[int]]] = deque()
        """Windows that are being read or computed, and the positions that were read of each."""
        self._current: tuple[Window, Arrived | BaseException] | None = None
        """The window whose turn it is, and its first reading."""
        self._ready: queue.SimpleQueue[tuple[Window, Arrived | BaseException] | None]
        self._ready = queue.SimpleQueue()
        self._room = threading.Semaphore(_MAX_AHEAD)
        self._is_cancelled = threading.Event()
        self._thread = threading.Thread(target=self._read_all)
        self._thread.start()

    def next_window(self) -> Window | None:
        """Return the window whose readings come next, None after the last; the one before is done.

        All readings of that must have been taken.
        """
        self._current = self._take()
        if self._current is None:
            self._begun.clear()
            return None
        window = self._current[0]
        while self._begun[0][0] is not window:
            self._begun.popleft()
        return window

    def readings(self) -> Iterator[tuple[int, StoredTensors]]:
        """Give the readings of the window that `next_window` has returned."""
        item, self._current = self._current, None
        assert item is not None, "the readings of a window are given once"
        for position in item[0].positions:
            if item is None:
                item = self._take()
                assert item is not None, "the reading thread hands over every position"
            found, item = item[1], None
            if isinstance(found, BaseException):
                raise found
            tensors = found.take()
            del found
            yield position, tensors
            del tensors

    def _take(self) -> tuple[Window, Arrived | BaseException] | None:
        item = self._ready.get()
        self._room.release()
        return item

    def cancel(self) -> tuple[list[Window], int]:
        """Stop, and let go of all that was read and not taken.

        Returns the windows that are not done, and the bytes that were read of them.
        """
        self._is_cancelled.set()
        self._room.release()
        self._thread.join()
        # What was handed over would keep its place on the device.
        self._current, self._ready = None, queue.SimpleQueue()
        num_bytes = sum(_num_bytes(w, position) for w, read in self._begun for position in read)
        return [*(window for window, _ in self._begun), *self._first], num_bytes

    def _read_all(self) -> None:
        begun: deque[tuple[Window, BegunReading]] = deque()
        while (window := self._next()) is not None:
            read: list[int] = []
            self._begun.append((window, read))
            self._in_hand.begin(window)
            for position in window.positions:
                if position == window.positions[-1]:
                    self._in_hand.wait_to_end(window, self._is_cancelled.is_set)
                self._room.acquire()
                if self._is_cancelled.is_set():
                    return
                # What a device had no room for was read all the same.
                read.append(position)
                try:
                    begun.append((window, self._begin(window, position)))
                except BaseException as error:
                    # Not swallowed: raised again by the computing thread.
                    if all(self._hand_over(*item) for item in begun):
                        self._ready.put((window, error))
                    return
                if len(begun) == _MAX_AHEAD and not self._hand_over(*begun.popleft()):
                    return
        if all(self._hand_over(*item) for item in begun):
            self._ready.put(None)

    def _hand_over(self, window: Window, begun: BegunReading) -> bool:
        """Wait for a reading and hand it on; whether it arrived."""
        try:
            self._ready.put((window, begun.finish()))
        except BaseException as error:
            # Not swallowed: raised again by the computing thread.
            self._ready.put((window, error))
            return False
        return True

    def _next(self) -> Window | None:
        if self._first:
            return self._first.popleft()
        try:
            return self._todo.get_nowait()
        except queue.Empty:
            return None


def _num_bytes(window: Window, position: int) -> int:
    return sum(ref.num_bytes for ref in read_once([ref for _, ref in window.reads_at(position)]))
