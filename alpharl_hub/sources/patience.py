"""How long a busy or unreachable server is waited for, who is told, and how a wait is ended."""

from __future__ import annotations

import threading
from collections.abc import Callable

from alpharl_hub.errors import SourceError

MAX_WAIT_S = 600.0
"""The longest that a server may ask for before it is called unavailable."""

MAX_FAILURES = 5
"""After so many in a row nothing is expected of another attempt."""

_MAX_BACKOFF_S = 8.0


class Cancelled(BaseException):
    """The stop event was set; no Exception, so that nothing above takes it for a failure."""


class Patience:
    """Waits between attempts; one for the whole program, shared between threads.

    `on_wait(seconds, reason)` is told of every wait before it begins, from whichever thread waits.
    When `stop` is set a wait ends at once with Cancelled. `sleep` replaces waiting for `stop`, for
    a caller with its own clock.
    """

    def __init__(
        self,
        *,
        on_wait: Callable[[float, str], None] | None = None,
        stop: threading.Event | None = None,
        sleep: Callable[[float], object] | None = None,
    ) -> None:
        self._on_wait = on_wait
        self._stop = stop or threading.Event()
        self._sleep = sleep or self._stop.wait

    def raise_if_stopped(self) -> None:
        """Raise Cancelled once the stop event is set."""
        if self._stop.is_set():
            raise Cancelled

    def pause(
        self,
        what: str,
        reason: str,
        asked_wait_s: float,
        num_failures: int,
        cause: Exception | None = None,
    ) -> None:
        """Wait after the `num_failures`-th failure in a row, at least as long as the server asks.

        `cause` is what failed, for those who want to know more than the reason.

        Raises:
            SourceError: it failed too often, or the server asks for too long a wait.
            Cancelled: the stop event was set.
        """
        self.check_wait(what, reason, asked_wait_s)
        if num_failures >= MAX_FAILURES:
            raise SourceError(
                f"{what}: {reason}, {num_failures} times in a row; "
                "check the connection or try again later"
            ) from cause
        wait_s = max(asked_wait_s, min(2.0 ** (num_failures - 1), _MAX_BACKOFF_S))
        self.tell(wait_s, f"{what}: {reason}")
        self._sleep(wait_s)
        self.raise_if_stopped()

    def tell(self, wait_s: float, reason: str) -> None:
        """Tell of a wait that is about to be made, here or by somebody else."""
        if self._on_wait is not None:
            self._on_wait(wait_s, reason)

    def check_wait(self, what: str, reason: str, asked_wait_s: float) -> None:
        """Raise SourceError when a server asks for a longer wait than is made here."""
        if asked_wait_s > MAX_WAIT_S:
            raise SourceError(
                f"{what}: {reason} and asks to wait {asked_wait_s:.0f} s, more "
                f"than the {MAX_WAIT_S:.0f} s that are waited here; try again later"
            )
