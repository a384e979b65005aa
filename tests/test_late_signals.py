"""Signals after a command has done all of it, while Python takes its modules down."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LATE = """
import os, sys
from alpharl_hub import __main__

class Late:
    # Called when the interpreter ends, after everything that atexit knows.
    def __del__(self, kill=os.kill, pid=os.getpid(), write=os.write, number=int(sys.argv.pop())):
        write(2, b"late\\n")
        kill(pid, number)
        write(2, b"survived\\n")

late = Late()
__main__.main()
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(("arguments", "status"), [(["--version"], 0), (["nonsense"], 2)])
def test_a_signal_at_the_very_end_changes_nothing(
    arguments: list[str], status: int, number: int
) -> None:
    """The status stays that of the command, where Python itself would let the system end it."""
    done = subprocess.run(
        [sys.executable, "-c", LATE, *arguments, str(int(number))],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        timeout=60,
    )
    assert done.stderr.endswith("late\nsurvived\n")
    assert done.returncode == status
