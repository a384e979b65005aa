"""How far a reading is and how long the rest takes, in words."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from alpharl_hub.cli.terminal import human_bytes, human_duration


@dataclass
class Pace:
    """The mean pace of one reading, from its first byte on.

    Windows finish in bursts, and the pace of the last burst says little about the hours to come.
    Where the total changes (an earlier start had done a part) the pace is measured from there on.
    """

    done_bytes: int = 0
    total_bytes: int = 0
    _first_bytes: int = 0
    _started_s: float = 0.0
    _before_bytes: int = 0
    _began_s: float | None = None

    def tell(self, done_bytes: int, total_bytes: int, now_s: float) -> bool:
        """Take in how far it is at a time; True where this is the beginning of another reading."""
        is_new = done_bytes < self.done_bytes
        if self._began_s is None:
            self._began_s = now_s
        if is_new or total_bytes != self.total_bytes:
            self._before_bytes += self.done_bytes - self._first_bytes
            self._first_bytes, self._started_s = done_bytes, now_s
        self.done_bytes, self.total_bytes = done_bytes, total_bytes
        return is_new

    def left_s(self, now_s: float) -> float | None:
        """Estimate how long the rest takes; None before there is anything to go by."""
        gained_bytes = self.done_bytes - self._first_bytes
        if gained_bytes <= 0:
            return None
        elapsed_s = now_s - self._started_s
        return elapsed_s * (self.total_bytes - self.done_bytes) / gained_bytes

    def words(self, now_s: float) -> str:
        """Say it; never 100 %, for what follows the reading is not done yet."""
        if self.done_bytes >= self.total_bytes:
            return f"all {human_bytes(self.total_bytes)} read (99 %), the rest is under way"
        percent = min(99, 100 * self.done_bytes // self.total_bytes)
        share = f"{human_bytes(self.done_bytes)} of {human_bytes(self.total_bytes)} ({percent} %)"
        left_s = self.left_s(now_s)
        if left_s is None:
            return f"read {share}"
        gained_bytes = self.done_bytes - self._first_bytes
        rate = _rate(gained_bytes, now_s - self._started_s)
        return f"read {share}, {rate}, about {human_duration(left_s)} left"

    def summary(self, now_s: float) -> str | None:
        """Say what all readings together came to; None where nothing was read."""
        num_bytes = self._before_bytes + self.done_bytes - self._first_bytes
        if self._began_s is None or num_bytes <= 0:
            return None
        elapsed_s = now_s - self._began_s
        words = f"read {human_bytes(num_bytes)} in {human_duration(elapsed_s)}"
        # Of what takes seconds a rate says more about the start than about the line.
        return f"{words} ({_rate(num_bytes, elapsed_s)})" if elapsed_s >= 10 else words


def _rate(num_bytes: int, elapsed_s: float) -> str:
    return f"{human_bytes(round(num_bytes / max(elapsed_s, 1e-3)))}/s"


def peak_memory_bytes() -> int | None:
    """Return the most memory that this process ever had; None where the system does not tell.

    On Linux not getrusage: it begins with the size of whatever process started this one, and a
    notebook or a test run may be large.
    """
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii")
    except OSError:
        return _peak_by_rusage()
    found = re.search(r"^VmHWM:\s+(\d+) kB$", status, re.MULTILINE)
    return 1024 * int(found[1]) if found else None


def _peak_by_rusage() -> int | None:
    """Ask as macOS allows, which counts in bytes."""
    try:
        import resource
    except ImportError:  # Windows has none
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
