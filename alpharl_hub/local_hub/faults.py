"""Faults that a test asks for, as real servers and networks make them."""

import gzip
from dataclasses import dataclass, replace
from threading import Lock
from typing import Literal

from alpharl_hub.local_hub.messages import (
    CONTROL_PREFIX,
    FileSpan,
    Header,
    Origin,
    Request,
    Response,
)

Kind = Literal[
    "status",
    "slow",
    "drop",
    "reset",
    "cut",
    "stall",
    "ignore_range",
    "wrong_range",
    "gzip",
    "flip",
]
BEFORE_THE_WORK: tuple[Kind, ...] = ("status", "slow", "drop")
ON_BODIES: tuple[Kind, ...] = ("cut", "stall", "gzip", "flip")
ON_RANGES: tuple[Kind, ...] = ("ignore_range", "wrong_range")


@dataclass(frozen=True)
class Fault:
    """One fault for the next `times` requests whose path contains `match`.

    status        answers `status` with `headers` and `text` instead of doing the work
    slow          waits `seconds` before the work
    drop          closes the connection in good order instead of doing the work
    reset         does the work, then resets the connection after `after_bytes` of the body;
                  with 0 not even the status line is sent
    cut           closes the connection in good order after `after_bytes` of the body
    stall         waits `seconds` after `after_bytes` of the body, then goes on
    ignore_range  answers 200 with the whole file
    wrong_range   answers 206 with, and says so, the range one byte further on
    gzip          sends the body with Content-Encoding: gzip
    flip          turns over the lowest bit of the byte at `after_bytes` of the body

    `method` and `origin` narrow the match; `skip` lets that many matching requests pass first.
    """

    match: str
    kind: Kind
    times: int = 1
    status: int = 503
    headers: tuple[Header, ...] = ()
    text: str = "injected fault"
    after_bytes: int = 0
    seconds: float = 0.0
    method: str | None = None
    origin: Origin | None = None
    skip: int = 0

    def meets(self, request: Request) -> bool:
        """Say whether a request is one of those meant."""
        return (
            self.match in request.path
            and not request.path.startswith(CONTROL_PREFIX)
            and self.method in (None, request.method)
            and self.origin in (None, request.origin)
        )

    def can_change(self, request: Request, response: Response) -> bool:
        """Say whether the fault makes a difference to this answer."""
        if self.kind in ON_BODIES:
            return not request.is_head and response.num_body_bytes > self.after_bytes
        if self.kind in ON_RANGES:
            return response.status == 206
        return True


class FaultBook:
    """The faults still to come."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._faults: list[Fault] = []

    def add(self, fault: Fault) -> None:
        """Put a fault at the end of the list."""
        with self._lock:
            self._faults.append(fault)

    def pending(self) -> tuple[Fault, ...]:
        """Return the faults that have not happened as often as asked."""
        with self._lock:
            return tuple(self._faults)

    def clear(self) -> None:
        """Drop all faults."""
        with self._lock:
            self._faults.clear()

    def take(self, request: Request, response: Response | None = None) -> Fault | None:
        """Use up the first fault for a request; without a response, one before the work."""
        with self._lock:
            for i, fault in enumerate(self._faults):
                if (fault.kind in BEFORE_THE_WORK) != (response is None):
                    continue
                if not fault.meets(request):
                    continue
                if response is not None and not fault.can_change(request, response):
                    continue
                if fault.skip:
                    self._faults[i] = replace(fault, skip=fault.skip - 1)
                    continue
                self._faults[i] = replace(fault, times=fault.times - 1)
                if fault.times == 1:
                    del self._faults[i]
                return fault
        return None


def change_answer(response: Response, fault: Fault) -> Response:
    """Return the answer as the fault makes it."""
    if fault.kind == "gzip":
        packed = replace(response, body=gzip.compress(_content(response)))
        return packed.with_headers(("Content-Encoding", "gzip"))
    if fault.kind == "flip":
        content = bytearray(_content(response))
        content[fault.after_bytes] ^= 1
        return replace(response, body=bytes(content))
    if fault.kind in ON_RANGES and isinstance(response.body, FileSpan):
        span = response.body
        others = tuple(item for item in response.headers if item[0] != "Content-Range")
        if fault.kind == "ignore_range":
            whole = replace(span, start=0, stop=span.size_bytes)
            return replace(response, status=200, headers=others, body=whole)
        shift = 1 if span.stop < span.size_bytes else -1
        moved = replace(span, start=max(0, span.start + shift), stop=span.stop + shift)
        content_range = f"bytes {moved.start}-{moved.stop - 1}/{span.size_bytes}"
        shifted = replace(response, headers=others, body=moved)
        return shifted.with_headers(("Content-Range", content_range))
    return response


def _content(response: Response) -> bytes:
    if isinstance(response.body, bytes):
        return response.body
    with response.body.path.open("rb") as file:
        file.seek(response.body.start)
        return file.read(response.num_body_bytes)
