"""A share of all answers spoilt, drawn from a seed."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import urllib3

from alpharl_hub.local_hub import Fault, LocalHub, RequestRecord

_EVERY_S = 0.02
_NO_WAIT = (("Retry-After", "0"),)
_PLACES = ("/api/models", "/api/validate-yaml", "/resolve/", "/upload/")
# Left out are flipped bits, which only a checksum of the whole file tells.
KINDS = (
    *(Fault(p, "status", status=status) for p in _PLACES for status in (500, 502, 503, 504)),
    *(Fault(p, "status", status=429, headers=_NO_WAIT) for p in _PLACES),
    Fault("", "reset", origin="storage"),
    Fault("", "reset", origin="storage", after_bytes=5000),
    Fault("", "cut", origin="storage", after_bytes=3000),
    Fault("", "ignore_range", origin="storage"),
    Fault("", "wrong_range", origin="storage"),
    Fault("", "gzip", origin="storage"),
    Fault("", "slow", seconds=0.2),
    Fault("", "stall", seconds=0.3, origin="storage", after_bytes=1000),
)


class Spoiler:
    """Draws a share of the answers given, and asks for a fault in one of the next like each.

    Like it: faults drawn regardless of what is asked just then would wait for their address, and
    strike the next command that asks it so often in a row that it must give up. When it has ended,
    `num_requests` and `num_faults` say how many answers there were and how many were spoilt.
    """

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
            self._look()
        self._look()
        self.num_faults -= self._num_to_come()

    def _look(self) -> None:
        records = self._hub.log[self.num_requests :]
        self.num_requests += len(records)
        for record in records:
            if self._source.random() < self._share:
                self._spoil_one_like(record)

    def _spoil_one_like(self, record: RequestRecord) -> None:
        fault = self._source.choice([kind for kind in KINDS if _can_spoil(kind, record)])
        self._hub.add_fault(replace(fault, skip=self._source.randrange(round(1 / self._share))))
        self.num_faults += 1

    def _num_to_come(self) -> int:
        return len(urllib3.request("GET", f"{self._hub.endpoint}/local-hub/faults").json())

    def stop(self) -> None:
        """Have it end."""
        self._stop.set()


def _can_spoil(fault: Fault, record: RequestRecord) -> bool:
    is_there = fault.match in record.path and fault.origin in (None, record.origin)
    return is_there and fault.after_bytes <= record.bytes_sent


@contextmanager
def spoilt(hub: LocalHub, share: float, seed: int) -> Iterator[Spoiler]:
    """Spoil answers until the end of the block, with a Hub whose log nobody clears meanwhile."""
    spoiler = Spoiler(hub, share, seed)
    thread = threading.Thread(target=spoiler.run)
    thread.start()
    try:
        yield spoiler
    finally:
        spoiler.stop()
        thread.join()
        hub.clear_faults()
