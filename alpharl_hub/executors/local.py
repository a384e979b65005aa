"""Runs windows on this machine: for every device a thread that reads ahead, one that computes, and
one that writes.

The reading thread walks the windows, one checkpoint after another, and hands over what it read
through a short queue; the computing thread takes it from there, and hands what is to be written to
the third. What is in flight is therefore bounded by the queues, whatever the number of checkpoints.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar, runtime_checkable

from alpharl_hub.windows.plan import Window
from alpharl_hub.windows.reader import StoredTensors, WindowReader

Result = TypeVar("Result")

READ_THREADS = 8
"""Requests in flight; four to sixteen made no difference beyond noise on a fast link."""

_READ_AHEAD = 1


@dataclass(frozen=True)
class WindowReads:
    """The readings of one window, in the order of its positions, as they arrive."""

    window: Window
    readings: Iterator[tuple[int, StoredTensors]]


WindowWork = Callable[[WindowReads, str], Result]
"""What is done with one window on one device; it is all done when this returns."""

Write = Callable[[], None]


@runtime_checkable
class StagedWork(Protocol):
    """Work that can leave its writing for later, while the next window is computed."""

    def compute(self, reads: WindowReads, device: str) -> tuple[Any, Write]:
        """Do one window, and return its result and how to write what comes of it."""
        ...


def _nothing_to_write() -> None:
    """Everything is done."""


class Stopped(BaseException):
    """Another worker failed or the user stopped the run; no error of its own."""


class LocalExecutor(Generic[Result]):
    """Spreads windows over devices.

    Args:
        reader: reads the parts of a window from one checkpoint.
        work: what is done with a window; called in the worker's thread with the device's name.
        devices: torch device names; one worker each, the same name may stand twice.
        stop: set from outside (a signal) to end soon; set here when a worker fails.
    """

    def __init__(
        self,
        reader: WindowReader,
        work: WindowWork[Result],
        devices: Sequence[str],
        stop: threading.Event,
    ) -> None:
        self._reader = reader
        self._work = work
        self._devices = devices
        self._stop = stop

    def run(self, windows: Sequence[Window]) -> Iterator[tuple[Window, Result]]:
        """Yield every window with its result, in the order in which they get done."""
        todo: queue.SimpleQueue[Window] = queue.SimpleQueue()
        for window in windows:
            todo.put(window)
        done: queue.SimpleQueue[tuple[Window, Result] | BaseException | None] = queue.SimpleQueue()
        with ThreadPoolExecutor(READ_THREADS, thread_name_prefix="range") as pool:
            threads = [
                threading.Thread(target=self._serve, args=(device, todo, done, pool))
                for device in self._devices
            ]
            for thread in threads:
                thread.start()
            try:
                yield from self._collect(done, len(threads))
            except BaseException:
                # Whatever ends the collecting early must also end waits for a busy server.
                self._stop.set()
                raise
            finally:
                for thread in threads:
                    thread.join()

    def _collect(
        self, done: queue.SimpleQueue[tuple[Window, Result] | BaseException | None], running: int
    ) -> Iterator[tuple[Window, Result]]:
        failure: BaseException | None = None
        while running:
            item = done.get()
            if item is None:
                running -= 1
            elif isinstance(item, BaseException):
                failure = failure if failure and not isinstance(failure, Stopped) else item
            elif failure is None:
                yield item
        if failure is not None:
            raise failure

    def _serve(
        self,
        device: str,
        todo: queue.SimpleQueue[Window],
        done: queue.SimpleQueue[tuple[Window, Result] | BaseException | None],
        pool: ThreadPoolExecutor,
    ) -> None:
        ready: queue.Queue[tuple[Window, StoredTensors | BaseException] | None]
        ready = queue.Queue(maxsize=_READ_AHEAD)
        reading = threading.Thread(target=self._read_all, args=(device, todo, ready, pool))
        reading.start()
        computed: queue.Queue[tuple[Window, Result, Write] | None]
        computed = queue.Queue()
        # One window is being written at the most while the next is computed.
        free = threading.Semaphore()
        writing = threading.Thread(target=self._write_all, args=(computed, done, free))
        writing.start()
        try:
            while (first := ready.get()) is not None:
                window = first[0]
                reads = WindowReads(window, self._readings(window, first[1], ready))
                result, write = self._compute(reads, device)
                free.acquire()
                computed.put((window, result, write))
                del write
        except BaseException as error:
            # Not swallowed: handed to the thread that collects, which raises it.
            self._stop.set()
            done.put(error)
        finally:
            _drain(ready, reading)
            computed.put(None)
            writing.join()
            done.put(None)

    def _compute(self, reads: WindowReads, device: str) -> tuple[Result, Write]:
        if isinstance(self._work, StagedWork):
            return self._work.compute(reads, device)
        return self._work(reads, device), _nothing_to_write

    def _write_all(
        self,
        computed: queue.Queue[tuple[Window, Result, Write] | None],
        done: queue.SimpleQueue[tuple[Window, Result] | BaseException | None],
        free: threading.Semaphore,
    ) -> None:
        """Write window after window; after a failure the rest is only taken, so nobody waits."""
        has_failed = False
        while (item := computed.get()) is not None:
            window, result, write = item
            try:
                if not has_failed:
                    write()
                    done.put((window, result))
            except BaseException as error:
                # Not swallowed: handed to the thread that collects, which raises it.
                has_failed = True
                self._stop.set()
                done.put(error)
            del item, write
            free.release()

    def _readings(
        self,
        window: Window,
        first: StoredTensors | BaseException,
        ready: queue.Queue[tuple[Window, StoredTensors | BaseException] | None],
    ) -> Iterator[tuple[int, StoredTensors]]:
        found: StoredTensors | BaseException | None = first
        for position in window.positions:
            if found is None:
                item = ready.get()
                assert item is not None, "the reading thread hands over every position"
                found = item[1]
            if isinstance(found, BaseException):
                raise found
            yield position, found
            found = None

    def _read_all(
        self,
        device: str,
        todo: queue.SimpleQueue[Window],
        ready: queue.Queue[tuple[Window, StoredTensors | BaseException] | None],
        pool: ThreadPoolExecutor,
    ) -> None:
        while True:
            try:
                window = todo.get_nowait()
            except queue.Empty:
                break
            for position in window.positions:
                try:
                    if self._stop.is_set():
                        raise Stopped
                    ready.put((window, self._reader.read(window, position, device, pool)))
                except BaseException as error:
                    # Not swallowed: raised again by the computing thread.
                    ready.put((window, error))
                    ready.put(None)
                    return
        ready.put(None)


def _drain(ready: queue.Queue[Any], reading: threading.Thread) -> None:
    """Let the reading thread finish by taking what it still hands over."""
    while reading.is_alive():
        try:
            ready.get(timeout=0.05)
        except queue.Empty:
            continue
    reading.join()
