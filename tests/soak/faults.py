"""A share of all answers spoilt, drawn from a seed."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from alpharl_hub.local_hub import Fault, LocalHub

_EVERY_S = 0.02
_NO_WAIT = (("Retry-After", "0"),)
_PLACES = ("/api/models", "/resolve/", "/upload/")
# Left out is what is no passing trouble: flipped bits, which only a checksum of the whole file
# tells, and a server that knows no ranges, which is refused.
KINDS = (
    *(Fault(p, "status", status=status) for p in _PLACES for status in (500, 502, 503, 504)),
    *(Fault(p, "status", status=429, headers=_NO_WAIT) for p in _PLACES),
    Fault("", "reset", origin="storage"),
    Fault("", "reset", origin="storage", after_bytes=5000),
    Fault("", "cut", origin="storage", after_bytes=3000),
    Fault("", "slow", seconds=0.2),
    Fault("", "stall", seconds=0.3, origin="storage", after_bytes=1000),
)


class Spoiler:
    """Counts answers and keeps the number of faults at its share of them."""

    def __init__(self, hub: LocalHub, share: float, seed: int) -> None:
        self._hub = hub
        self._share = share
        self._source = random.Random(seed)
        self._stop = threading.Event()
        self.num_requests = 0
        self.num_faults = 0

    def run(self) -> None:
        """Ask for faults until stopped."""
        while not self._stop.wait(_EVERY_S):
            self.num_requests += len(self._hub.log)
            self._hub.clear_log()
            while self.num_faults < self._share * self.num_requests:
                self._hub.add_fault(self._source.choice(KINDS))
                self.num_faults += 1

    def stop(self) -> None:
        """Have it end."""
        self._stop.set()


@contextmanager
def spoilt(hub: LocalHub, share: float, seed: int) -> Iterator[Spoiler]:
    """Spoil answers until the end of the block."""
    spoiler = Spoiler(hub, share, seed)
    thread = threading.Thread(target=spoiler.run)
    thread.start()
    try:
        yield spoiler
    finally:
        spoiler.stop()
        thread.join()
        hub.clear_faults()
