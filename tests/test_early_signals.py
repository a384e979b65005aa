"""Signals while nothing but imports is going on: one line, the right status, and no traceback."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from trajectories import rank_one_line, write_run

ROOT = Path(__file__).parents[1]
LONGEST_S = 2.0
"""Imports take about that long, and the command goes on for a while after them."""
NUM_STRIKES = 6


def listens(pid: int) -> bool:
    """Whether a process has a handler of its own for SIGTERM, as the system sees it."""
    status = Path(f"/proc/{pid}/status").read_text()
    (caught,) = (line.split()[1] for line in status.splitlines() if line.startswith("SigCgt:"))
    return bool(int(caught, 16) >> (signal.SIGTERM - 1) & 1)


def struck(arguments: list[str], number: int, delay_s: float) -> tuple[int, str]:
    """Run the command line, signal it so long after it listens; its status and stderr."""
    child = subprocess.Popen(
        [sys.executable, "-m", "alpharl_hub", *arguments],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    deadline_s = time.monotonic() + 60
    while not listens(child.pid):
        assert time.monotonic() < deadline_s
        time.sleep(0.001)
    time.sleep(delay_s)
    child.send_signal(number)
    _, stderr = child.communicate(timeout=60)
    return child.returncode, stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_in_the_first_seconds_ends_it_in_one_line(tmp_path: Path, number: int) -> None:
    """At drawn times from the first moment on: 130 or 143 and "stopped", or done as if unasked."""
    run = write_run(tmp_path, (10, 20, 30), rank_one_line())
    seed = random.randrange(1 << 30)
    source = random.Random(seed)
    delays_s = [0.0, *(source.uniform(0, LONGEST_S) for _ in range(NUM_STRIKES - 1))]
    for place, delay_s in enumerate(delays_s):
        words = ["--target-step", "60", "--method", "alpharl", "-o", str(tmp_path / str(place))]
        status, stderr = struck(["predict", *run.arguments(*words)], number, delay_s)
        assert "Traceback" not in stderr, (seed, stderr)
        if status == 0:
            assert (tmp_path / str(place) / "alpharl.json").is_file(), seed
            continue
        assert status == 128 + number, (seed, delay_s, stderr)
        assert stderr.splitlines()[-1].startswith("stopped"), (seed, stderr)
        if place == 0:
            assert stderr == "stopped\n"


SIGNALLED = """
import os, signal, sys
from alpharl_hub import __main__

class Finder:
    @staticmethod
    def find_spec(name, *_):
        os.kill(os.getpid(), signal.SIGTERM)

sys.meta_path.insert(0, Finder)
__main__.main()
"""


@pytest.mark.parametrize(
    "script",
    [
        '"$PYTHON" -c "$CODE" 2>&-; echo $? > status',
        '{ sleep 0.2; "$PYTHON" -c "$CODE"; echo $? > status; } 2>&1 | true',
    ],
    ids=["closed", "pipe"],
)
def test_nobody_who_listens_keeps_it_from_ending(tmp_path: Path, script: str) -> None:
    """With stderr closed, or a pipe that nobody reads, the status is the same."""
    ours = {"PYTHON": sys.executable, "CODE": SIGNALLED, "PYTHONPATH": str(ROOT)}
    subprocess.run(
        ["/bin/sh", "-c", script],
        env={**os.environ, **ours},
        cwd=tmp_path,
        check=False,
        timeout=60,
    )
    assert (tmp_path / "status").read_text() == "143\n"
