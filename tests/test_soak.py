"""The soak in small: it runs, nothing is lost or differs, and its measures mean what they say."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.soak.loop import Sample
from tests.soak.stress import slope_of

ROOT = Path(__file__).parents[1]


def test_smallest_soak_finds_nothing(tmp_path: Path) -> None:
    """Every command struck once, then two rounds on a bad line; all answers agree."""
    size = ("--minutes", "0.01", "--kills", "1", "--checkpoints", "4", "--faults", "0.01")
    ended = subprocess.run(
        [sys.executable, "-m", "tests.soak", *size, "--folder", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    for command in ("predict", "extract", "backtest", "sweep", "push"):
        assert f"{command}: " in ended.stdout
    assert "2 rounds of 7 commands" in ended.stdout
    assert list(tmp_path.iterdir()) == []


def test_slope_is_that_of_the_last_two_thirds() -> None:
    """What is taken once at the start is no leak; what grows with time is."""
    times_s = [6.0 * n for n in range(1, 101)]
    rising = [Sample(t, "", int(1e8 + 5e6 * t / 60), 5, 2) for t in times_s]
    stepping = [Sample(t, "", int(1e8 if t < 150 else 3e8), 5, 2) for t in times_s]
    assert slope_of(rising) == pytest.approx(5, rel=1e-3)
    assert slope_of(stepping) == pytest.approx(0, abs=1e-6)
