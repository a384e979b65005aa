"""What was asked and what was served, for tests that count requests and bytes."""

from dataclasses import dataclass, replace
from itertools import count
from threading import Lock

from alpharl_hub.local_hub.messages import Origin


@dataclass(frozen=True)
class RequestRecord:
    """One answered request.

    `range` is the span [start, stop) of the file that the answer held, None for anything but a
    file. `bytes_sent` and `bytes_received` count bodies only. `revision` is as the address names
    it: a commit on the storage origin. `status` is 0 where no answer was given.
    """

    method: str
    origin: Origin
    path: str
    repo: str | None
    file_path: str | None
    revision: str | None
    range: tuple[int, int] | None
    bytes_sent: int
    bytes_received: int
    status: int
    had_authorization: bool


class RequestLog:
    """Records in order of their answers.

    A record is here before the last byte of its answer is sent, so a client that has the whole
    answer finds it; an answer that broke off is corrected afterwards.
    """

    def __init__(self) -> None:
        self._lock = Lock()
        self._serial = count()
        self._records: dict[int, RequestRecord] = {}

    def add(self, record: RequestRecord) -> int:
        """Keep a record and return the number to correct it by."""
        with self._lock:
            number = next(self._serial)
            self._records[number] = record
        return number

    def correct(self, number: int, bytes_sent: int) -> None:
        """Set what was really sent of an answer."""
        with self._lock:
            if number in self._records:
                self._records[number] = replace(self._records[number], bytes_sent=bytes_sent)

    def records(self) -> tuple[RequestRecord, ...]:
        """Return everything since the last `clear`."""
        with self._lock:
            return tuple(self._records.values())

    def clear(self) -> None:
        """Forget everything."""
        with self._lock:
            self._records.clear()
