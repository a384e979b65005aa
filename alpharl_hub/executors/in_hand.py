"""The windows that one worker has in hand: what a kill would cost."""

from __future__ import annotations

import threading
from collections.abc import Callable

from alpharl_hub.windows.plan import Window

_POLL_S = 0.1


class InHand:
    """Windows that are begun and whose results are not kept for good yet, in their order.

    A window is read to its end only when the one before it is kept, so that a kill costs a worker
    one window that was finished at the most. What comes before its last checkpoint is read
    meanwhile; so nothing waits, unless writing takes as long as reading. A window that is read from
    one checkpoint only, a copy, would be held up: of these two may wait.
    Where nothing is kept for good (`is_kept`) nothing waits.
    """

    def __init__(self, stop: threading.Event, is_kept: bool) -> None:
        self._stop = stop
        self._is_kept = is_kept
        self._begun: list[int] = []
        self._condition = threading.Condition()

    def begin(self, window: Window) -> None:
        """Note a window that is being read; one that is begun again keeps its place."""
        with self._condition:
            if window.index not in self._begun:
                self._begun.append(window.index)

    def kept(self, window: Window) -> None:
        """Note that a window is kept."""
        with self._condition:
            self._begun.remove(window.index)
            self._condition.notify_all()

    def wait_to_end(self, window: Window, is_cancelled: Callable[[], bool]) -> None:
        """Wait until a window may be read to its end, or all is to end."""
        num_before = 1 if len(window.positions) == 1 else 0
        with self._condition:
            while self._is_kept and self._begun.index(window.index) > num_before:
                if self._stop.is_set() or is_cancelled():
                    return
                self._condition.wait(_POLL_S)
