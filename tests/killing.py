"""Commands in processes that are stopped and killed from outside, when a Hub has served so much.

Importing takes longer than a command, so one process imports everything once and forks for each.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import alpharl_hub
from alpharl_hub.local_hub import LocalHub, child_environment

WINDOW_BYTES = 40_000
MAX_STOPPING_S = 5.0
EXITS = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGKILL: -9}

_SERVER = f"""
import json, os, runpy, signal, sys, traceback
import alpharl_hub.backtesting.backtest as backtest
import alpharl_hub.cli, alpharl_hub.pipeline
from alpharl_hub.push import model_upload
from alpharl_hub.sweeping import from_run
from alpharl_hub.windows import plan

plan.WINDOW_BYTES = backtest.WINDOW_BYTES = backtest.MIN_WINDOW_BYTES = {WINDOW_BYTES}
print("ready", flush=True)
for line in sys.stdin:
    wanted = json.loads(line)
    child = os.fork()
    if child == 0:
        break
    print(child, flush=True)
    _, status = os.waitpid(child, 0)
    print(os.waitstatus_to_exitcode(status), flush=True)
else:
    sys.exit()

for number, name in enumerate((os.devnull, wanted["stdout"], wanted["stderr"])):
    flags = os.O_RDONLY if number == 0 else os.O_WRONLY | os.O_CREAT | os.O_TRUNC
    os.dup2(os.open(name, flags), number)
os.chdir(wanted["cwd"])
os.environ.update(wanted["env"])
signal.alarm(120)
sys.argv = ["alpharl-hub", *wanted["args"]]
code = 0
try:
    runpy.run_module("alpharl_hub", run_name="__main__", alter_sys=True)
except SystemExit as end:
    code = end.code or 0
except BaseException:
    traceback.print_exc()
    code = 1
sys.stdout.flush()
sys.stderr.flush()
os._exit(code)
"""


@dataclass(frozen=True)
class Ended:
    """What a command left: its exit status (negative: the signal), stdout and stderr."""

    code: int
    stdout: str
    stderr: str


class Victims:
    """Starts commands one after another, each to be waited for or killed."""

    def __init__(self, folder: Path, endpoint: str, token: str) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        home = folder / "home"
        home.mkdir(exist_ok=True)
        ours = {"HOME": str(home), "TMPDIR": str(home), "OMP_NUM_THREADS": "1"}
        ours["PYTHONPATH"] = str(Path(alpharl_hub.__file__).parents[1])
        self._server = subprocess.Popen(
            [sys.executable, "-c", _SERVER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**child_environment(endpoint, home, token), **ours},
        )
        self._running = 0
        assert self._read() == "ready"

    def _read(self) -> str:
        assert self._server.stdout is not None
        return self._server.stdout.readline().rstrip("\n")

    def start(self, arguments: Sequence[str], stderr: Path | None = None, **env: str) -> Victim:
        """Start one command; `stderr` is where that goes, a file of ours unless given."""
        out, err = self.folder / "stdout", stderr or self.folder / "stderr"
        wanted = {"args": list(arguments), "env": env, "cwd": str(self.folder)}
        wanted |= {"stdout": str(out), "stderr": str(err)}
        assert self._server.stdin is not None
        self._server.stdin.write(json.dumps(wanted) + "\n")
        self._server.stdin.flush()
        self._running = int(self._read())
        return Victim(self._running, out, err, self._status)

    def _status(self) -> str:
        self._running = 0
        return self._read()

    def clear(self) -> None:
        """End a command that a test has left."""
        if self._running:
            with suppress(ProcessLookupError):  # ended, and nobody asked
                os.kill(self._running, signal.SIGKILL)
            self._status()

    def run(self, arguments: Sequence[str]) -> Ended:
        """Run one command to its end."""
        return self.start(arguments).wait()

    def close(self) -> None:
        """End the process that forks."""
        self.clear()
        self._server.communicate(timeout=60)


@dataclass(frozen=True)
class Victim:
    """A command that is running."""

    pid: int
    stdout: Path
    stderr: Path
    read_status: Callable[[], str]

    def is_alive(self) -> bool:
        """Whether it still runs; one that has ended and was not waited for does not."""
        try:
            return Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
        except (FileNotFoundError, ProcessLookupError):
            return False

    def wait_until(self, is_time: Callable[[], bool]) -> bool:
        """Wait for a condition; False when the command ended before."""
        while self.is_alive():
            if is_time():
                return True
            time.sleep(0.001)
        return False

    def wait(self) -> Ended:
        """Wait for its end."""
        code = int(self.read_status())
        err = self.stderr.read_text() if self.stderr.is_file() else ""
        return Ended(code, self.stdout.read_text(), err)

    def stop(self, *numbers: int) -> tuple[Ended, float]:
        """Send signals, half a second apart; gives what it left, and seconds from the last one."""
        for place, number in enumerate(numbers):
            time.sleep(0.5 if place else 0.0)
            started_s = time.monotonic()
            with suppress(ProcessLookupError):  # ended a moment before
                os.kill(self.pid, number)
        return self.wait(), time.monotonic() - started_s


@contextmanager
def victims_for(folder: Path, hub: LocalHub, token: str) -> Iterator[Victims]:
    """Run commands against a Hub, with their relative paths in `folder`."""
    victims = Victims(folder, hub.endpoint, token)
    try:
        yield victims
    finally:
        victims.close()


def moved_bytes(hub: LocalHub) -> int:
    """Bytes of bodies that a Hub has sent and received since its log was cleared."""
    return sum(record.bytes_sent + record.bytes_received for record in hub.log)


def uploads(hub: LocalHub) -> list[str]:
    """The addresses of contents that arrived, a name for each time."""
    return [
        record.path.partition("?")[0]
        for record in hub.log
        if record.method == "PUT" and record.origin == "storage" and record.status == 200
    ]


@dataclass
class Tally:
    """What kills did: how many were sent, how many met a running command, the slowest stop."""

    sent: int = 0
    met: int = 0
    slowest_s: float = 0.0


def disturbed(
    victims: Victims,
    hub: LocalHub,
    arguments: Sequence[str],
    most_bytes: int,
    kills: Sequence[int],
    source: random.Random,
    tally: Tally,
    most_pause_s: float = 0.02,
) -> Ended:
    """Give a command again and again, struck by one signal each, and at last undisturbed.

    Each strikes when the Hub has moved a number of bytes since that start, drawn up to
    `most_bytes`, and up to `most_pause_s` later. A command that ends before that is done.
    """
    for number in kills:
        before, wait_bytes = moved_bytes(hub), source.randrange(most_bytes)
        pause_s = source.random() * most_pause_s
        victim = victims.start(arguments)
        tally.sent += 1
        if not victim.wait_until(lambda: moved_bytes(hub) - before >= wait_bytes):  # noqa: B023
            ended = victim.wait()
            assert ended.code == 0, ended.stderr
            return ended
        time.sleep(pause_s)
        ended, seconds = victim.stop(number)
        if ended.code == 0:
            return ended
        # Before a command listens to SIGTERM itself the system ends it, with the same status.
        assert ended.code in (EXITS[signal.Signals(number)], -number), (ended.code, ended.stderr)
        assert seconds < MAX_STOPPING_S
        assert "Traceback" not in ended.stderr
        tally.met += 1
        tally.slowest_s = max(tally.slowest_s, seconds)
    ended = victims.run(arguments)
    assert ended.code == 0, ended.stderr
    return ended


def digests(folder: Path) -> Mapping[str, str]:
    """sha256 of every file of a folder."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
