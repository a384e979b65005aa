"""A thread for what follows a shard's last window, which must not hold up the windows after it."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable


class Finisher:
    """Makes calls one after another in a thread of its own.

    What goes wrong there is raised by the next `add` or `wait`, and no further call is made.
    """

    def __init__(self) -> None:
        self._todo: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._failure: BaseException | None = None
        self._is_closed = False
        self._thread = threading.Thread(target=self._call_all, name="finisher")

    def add(self, call: Callable[[], None]) -> None:
        """Have a call made after those before it."""
        self._raise_failure()
        if not self._thread.is_alive():
            self._thread.start()
        self._todo.put(call)

    def wait(self) -> None:
        """Return when all calls are made; none may be added any more."""
        self._end()
        self._raise_failure()

    def close(self) -> None:
        """Wait for the call that is being made; those after it are not."""
        self._is_closed = True
        self._end()

    def _end(self) -> None:
        if self._thread.is_alive():
            self._todo.put(None)
            self._thread.join()

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure

    def _call_all(self) -> None:
        while (call := self._todo.get()) is not None:
            if self._failure is not None or self._is_closed:
                continue
            try:
                call()
            except BaseException as error:
                # Not swallowed: handed to the thread that adds and waits, which raises it.
                self._failure = error
