"""Read every weight file once, whole, and compare it with the digest that its Hub tells.

Ranges are checked for place and length as they come, but only a whole file has a digest. Nothing on
the way from a Hub's disk would notice a changed bit: not the store, not a mirror, not a cache.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass

from alpharl_hub.sources.hub_digests import require_same
from alpharl_hub.sources.patience import Cancelled
from alpharl_hub.trajectory import CheckpointContents, StoredFile

_NUM_THREADS = 4


@dataclass(frozen=True)
class Verification:
    """What was compared; `unknown` names files without a digest, such as those of a folder here."""

    num_files: int
    num_bytes: int
    unknown: tuple[str, ...]


def _ignore_progress(done_bytes: int, total_bytes: int) -> None:
    """Nobody wants to know."""


def verify_weights(
    checkpoints: Sequence[CheckpointContents],
    *,
    on_progress: Callable[[int, int], None] = _ignore_progress,
    stop: threading.Event | None = None,
    piece_bytes: int = 16 << 20,
) -> Verification:
    """Read the weight files of checkpoints and compare their SHA-256.

    `on_progress(done_bytes, total_bytes)` is called from several threads, one at a time. Of each of
    four files `piece_bytes` are held at a time.

    Raises:
        RangeReadError: a file is not what the Hub has a digest of; it is named with its step.
        SourceError: a file cannot be read. Cancelled: `stop` was set.
    """
    files = [(contents, stored) for contents in checkpoints for stored in contents.weight_files]
    known = [(contents, stored) for contents, stored in files if stored.sha256 is not None]
    total_bytes = sum(stored.num_bytes for _, stored in known)
    reading = _Reading(total_bytes, piece_bytes, on_progress, stop or threading.Event())
    with ThreadPoolExecutor(_NUM_THREADS) as pool:
        jobs = [pool.submit(reading.verify, contents, stored) for contents, stored in known]
        try:
            for job in as_completed(jobs):
                job.result()
        finally:
            reading.give_up.set()
    unknown = tuple(_name(contents, stored) for contents, stored in files if stored.sha256 is None)
    return Verification(len(known), reading.total_bytes, unknown)


class _Reading:
    def __init__(
        self,
        total_bytes: int,
        piece_bytes: int,
        on_progress: Callable[[int, int], None],
        stop: threading.Event,
    ) -> None:
        self.total_bytes = total_bytes
        self.give_up = threading.Event()
        self._piece_bytes = piece_bytes
        self._on_progress = on_progress
        self._stop = stop
        self._done_bytes = 0
        self._lock = threading.Lock()

    def verify(self, contents: CheckpointContents, stored: StoredFile) -> None:
        """Read one file from its first byte to its last."""
        path, digest = contents.path_of(stored.filename), hashlib.sha256()
        buffer = memoryview(bytearray(min(self._piece_bytes, stored.num_bytes)))
        for start in range(0, stored.num_bytes, self._piece_bytes):
            if self._stop.is_set() or self.give_up.is_set():
                raise Cancelled
            piece = buffer[: stored.num_bytes - start]
            contents.store.read_into(path, start, piece)
            digest.update(piece)
            with self._lock:
                self._done_bytes += len(piece)
                self._on_progress(self._done_bytes, self.total_bytes)
        assert stored.sha256 is not None, "files without a digest are left out"
        require_same(digest.hexdigest(), stored.sha256, _name(contents, stored))


def _name(contents: CheckpointContents, stored: StoredFile) -> str:
    checkpoint = contents.checkpoint
    step = "base" if checkpoint.step is None else f"step {checkpoint.step}"
    return f"{checkpoint.label} ({step}): {stored.filename}"
