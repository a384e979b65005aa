"""Runs windows on this machine: for every device a thread that reads ahead, one that computes, and
one that writes.

The reading thread walks the windows, one checkpoint after another, and hands over what it read
through a short queue; the computing thread takes it from there, and hands what is to be written to
the third. What is in flight is therefore bounded by the queues, whatever the number of checkpoints.

Where the memory of a device runs out, everything that its worker holds there is let go and the
window is begun again; from then on what is read ahead waits in the machine's memory. A window that
fails once more is done on the CPU.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeAlias, TypeVar, runtime_checkable

from alpharl_hub.errors import ResourceError
from alpharl_hub.executors.in_hand import InHand
from alpharl_hub.executors.read_ahead import ReadAhead
from alpharl_hub.windows.devices import (
    CPU,
    OutOfDeviceMemory,
    is_out_of_memory,
    release_memory,
)
from alpharl_hub.windows.plan import Window
from alpharl_hub.windows.reader import BegunReading, CopyStream, StoredTensors, WindowReader

Result = TypeVar("Result")

READ_THREADS = 8
"""Requests in flight; four to sixteen made no difference beyond noise on a fast link."""


@dataclass(frozen=True)
class WindowReads:
    """The readings of one window, in the order of its positions, as they arrive.

    A window that did not fit on its device comes again, from its first reading.
    """

    window: Window
    readings: Iterator[tuple[int, StoredTensors]]


WindowWork = Callable[[WindowReads, str], Result]
"""What is done with one window on one device; it is all done when this returns."""

Write = Callable[[], None]

_Done: TypeAlias = "queue.SimpleQueue[tuple[Window, Result, InHand] | BaseException | None]"
"""Windows with their results and whose they are, what went wrong, a None for each worker that ends.
"""


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


def _ignore_repeat(num_bytes: int) -> None:
    """Nobody counts."""


def _ignore_move(window: Window) -> None:
    """Nobody asks where."""


@dataclass(frozen=True)
class Events:
    """What is told, from the workers' threads, when the memory of a device does not suffice.

    `on_repeat(num_bytes)`: so much of what was read will be read once more. `on_move(window)`: it
    was done on the CPU; told before its result is yielded.
    """

    on_repeat: Callable[[int], None] = _ignore_repeat
    on_move: Callable[[Window], None] = _ignore_move


class LocalExecutor(Generic[Result]):
    """Spreads windows over devices.

    Args:
        reader: reads the parts of a window from one checkpoint.
        work: what is done with a window; called in the worker's thread with the device's name, and
            called again for the same window after a torch.OutOfMemoryError.
        devices: torch device names; one worker each, the same name may stand twice.
        stop: set from outside (a signal) to end soon; set here when a worker fails.
        events: who is told of windows that did not fit on their device.
        is_kept: whoever takes a result keeps it for good before the next one is taken. Then a
            worker never has two finished windows that are not kept.
    """

    def __init__(
        self,
        reader: WindowReader,
        work: WindowWork[Result],
        devices: Sequence[str],
        stop: threading.Event,
        events: Events | None = None,
        is_kept: bool = False,
    ) -> None:
        self.reader = reader
        self.work = work
        self.stop = stop
        self.events = events or Events()
        self.is_kept = is_kept
        self._devices = devices

    def run(self, windows: Sequence[Window]) -> Iterator[tuple[Window, Result]]:
        """Yield every window with its result, in the order in which they get done.

        Raises:
            ResourceError: the memory of this machine does not suffice. What readings and work
                raise comes out as it is.
        """
        todo: queue.SimpleQueue[Window] = queue.SimpleQueue()
        for window in windows:
            todo.put(window)
        done: _Done[Result] = queue.SimpleQueue()
        with ThreadPoolExecutor(READ_THREADS, thread_name_prefix="range") as pool:
            workers = [_Worker(self, device, todo, done, pool) for device in self._devices]
            threads = [threading.Thread(target=worker.run) for worker in workers]
            for thread in threads:
                thread.start()
            try:
                yield from self._collect(done, len(threads))
            except BaseException:
                # Whatever ends the collecting early must also end waits for a busy server.
                self.stop.set()
                raise
            finally:
                for thread in threads:
                    thread.join()

    def _collect(self, done: _Done[Result], running: int) -> Iterator[tuple[Window, Result]]:
        failure: BaseException | None = None
        while running:
            item = done.get()
            if item is None:
                running -= 1
            elif isinstance(item, BaseException):
                failure = failure if failure and not isinstance(failure, Stopped) else item
            elif failure is None:
                window, result, in_hand = item
                yield window, result
                in_hand.kept(window)
        if failure is not None:
            raise failure


class _Worker(Generic[Result]):
    """The three threads of one device; `run` is the one that computes."""

    def __init__(
        self,
        executor: LocalExecutor[Result],
        device: str,
        todo: queue.SimpleQueue[Window],
        done: _Done[Result],
        pool: ThreadPoolExecutor,
    ) -> None:
        self._executor = executor
        self._device = device
        self._todo = todo
        self._done = done
        self._pool = pool
        self._arrive_on = device
        """Where readings wait until their turn: the CPU once the device had too little memory."""
        self._ahead: ReadAhead
        self._in_hand = InHand(executor.stop, executor.is_kept)
        # One window is being written at the most while the next is computed.
        self._is_free = threading.Semaphore()
        self._computed: queue.Queue[tuple[Window, Result, Write] | None] = queue.Queue()

    def run(self) -> None:
        """Do windows until there are no more."""
        writing = threading.Thread(target=self._write_all)
        writing.start()
        self._ahead = self._read_ahead(())
        try:
            while (window := self._ahead.next_window()) is not None:
                result, write = self._do(window)
                self._is_free.acquire()
                self._computed.put((window, result, write))
                del write
        except BaseException as error:
            # Not swallowed: handed to the thread that collects, which raises it.
            self._executor.stop.set()
            self._done.put(error)
        finally:
            self._ahead.cancel()
            self._computed.put(None)
            writing.join()
            self._done.put(None)

    def _do(self, window: Window) -> tuple[Result, Write]:
        """Do a window on the device, there with less in flight, or on the CPU."""
        has_read_ahead_there = self._arrive_on == self._device
        found = self._attempt(window, self._device)
        if found is None and has_read_ahead_there:
            self._begin_again()
            found = self._attempt(window, self._device)
        if found is None:
            self._begin_again()
            found = self._attempt(window, CPU)
            self._executor.events.on_move(window)
        assert found is not None, "the CPU's memory has another error"
        return found

    def _attempt(self, window: Window, device: str) -> tuple[Result, Write] | None:
        """Do a window on a device; None where the memory of that does not suffice."""
        try:
            return self._compute(window, device)
        except OutOfDeviceMemory:
            if device == CPU:
                raise
        except (RuntimeError, OSError) as error:
            if not is_out_of_memory(error):
                raise
            raise ResourceError(
                f"{window.parts[0].name}: this machine has too little memory free for it and what "
                "is read with it; give --memory, fewer --devices, or end other programs"
            ) from error
        return None

    def _compute(self, window: Window, device: str) -> tuple[Result, Write]:
        readings = self._ahead.readings()
        if device not in (CPU, self._arrive_on):
            readings = _moved_to(device, readings)
        reads, work = WindowReads(window, readings), self._executor.work
        if isinstance(work, StagedWork):
            return work.compute(reads, device)
        return work(reads, device), _nothing_to_write

    def _begin_again(self) -> None:
        """Let go of what this worker holds on its device, and go back to the window's start.

        Called when the error is no longer handled: it holds the frames that were at work.
        """
        windows, num_bytes = self._ahead.cancel()
        with self._is_free:
            pass  # what is still to be written of the window before
        release_memory(self._device)
        self._executor.events.on_repeat(num_bytes)
        self._arrive_on = CPU
        self._ahead = self._read_ahead(windows)
        self._ahead.next_window()

    def _read_ahead(self, windows: Sequence[Window]) -> ReadAhead:
        executor, pool, copies = self._executor, self._pool, CopyStream(self._arrive_on)

        def begin(window: Window, position: int) -> BegunReading:
            if executor.stop.is_set():
                raise Stopped
            return executor.reader.begin(window, position, copies, pool)

        return ReadAhead(begin, windows, self._todo, self._in_hand)

    def _write_all(self) -> None:
        """Write window after window; after a failure the rest is only taken, so nobody waits."""
        has_failed = False
        while (item := self._computed.get()) is not None:
            window, result, write = item
            try:
                if not has_failed:
                    write()
                    self._done.put((window, result, self._in_hand))
            except BaseException as error:
                # Not swallowed: handed to the thread that collects, which raises it.
                has_failed = True
                self._executor.stop.set()
                self._done.put(error)
            del item, write
            self._is_free.release()


def _moved_to(
    device: str, readings: Iterator[tuple[int, StoredTensors]]
) -> Iterator[tuple[int, StoredTensors]]:
    """Bring each reading to the device only when it is asked for."""
    for position, stored in readings:
        yield position, {place: tuple(t.to(device) for t in ts) for place, ts in stored.items()}
