"""The soak in small: it runs, nothing is lost or differs, and its measures mean what they say."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.soak.loop import Sample
from tests.soak.stress import slope_of
from tests.soak.strikes import strike_all

ROOT = Path(__file__).parents[1]


def test_smallest_loop_finds_nothing(tmp_path: Path) -> None:
    """Two rounds of all commands on a bad line: answers agree, and nothing is left open."""
    size = ("--minutes", "0.01", "--kills", "0", "--checkpoints", "6", "--faults", "0.01")
    ended = subprocess.run(
        [sys.executable, "-m", "tests.soak", *size, "--folder", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "2 rounds of 7 commands" in ended.stdout
    assert list(tmp_path.iterdir()) == []


def test_strikes_go_on_until_enough_have_met(tmp_path: Path) -> None:
    """A push is struck while it sends; what the Hub has in the end is the folder, sent once."""
    (struck,) = strike_all(tmp_path, 1, seed=0, commands=("push",))
    assert struck.tally.met >= 1
    assert struck.problems() == []


def test_slope_is_that_of_the_last_two_thirds() -> None:
    """What is taken once at the start is no leak; what grows with time is."""
    times_s = [6.0 * n for n in range(1, 101)]
    rising = [Sample(t, "", int(1e8 + 5e6 * t / 60), 5, 2) for t in times_s]
    stepping = [Sample(t, "", int(1e8 if t < 150 else 3e8), 5, 2) for t in times_s]
    assert slope_of(rising) == pytest.approx(5, rel=1e-3)
    assert slope_of(stepping) == pytest.approx(0, abs=1e-6)
