"""The soak in small: it runs, nothing is lost or differs, and its measures mean what they say."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from pathlib import Path

import pytest
import urllib3

from alpharl_hub.local_hub import LocalHub
from tests.soak.faults import spoilt
from tests.soak.loop import Sample, sample
from tests.soak.stress import slope_of
from tests.soak.strikes import strike_all

ROOT = Path(__file__).parents[1]
_FILE = "alice/run/resolve/main/notes.txt"


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


def test_faults_are_spread_over_what_is_asked(tmp_path: Path) -> None:
    """About the share asked for is spoilt, and nothing waits for another address in a row."""
    with LocalHub(tmp_path / "hub") as hub, urllib3.PoolManager() as pool:
        hub.add_commit("alice/run", files={"notes.txt": b"few words"})
        addresses = [f"{hub.endpoint}/{path}" for path in ("api/models/alice/run/refs", _FILE)]
        with spoilt(hub, 0.1, seed=0) as spoiler:
            statuses = [
                [pool.request("GET", address, retries=False).status for _ in range(300)]
                for address in addresses
            ]
    bad = [sum(status >= 400 for status in found) for found in statuses]
    assert all(10 <= count <= 60 for count in bad)
    assert spoiler.num_requests == 600
    assert sum(bad) <= spoiler.num_faults <= 60 + 40
    assert all(sum(status >= 400 for status in found[:20]) < 5 for found in statuses)


def test_slope_is_that_of_the_last_two_thirds() -> None:
    """What is taken once at the start is no leak; what grows with time is."""
    times_s = [6.0 * n for n in range(1, 101)]
    rising = [Sample(t, "", int(1e8 + 5e6 * t / 60), 0, 5, 2) for t in times_s]
    stepping = [Sample(t, "", int(1e8 if t < 150 else 3e8), 0, 5, 2) for t in times_s]
    assert slope_of(rising, _rss) == pytest.approx(5, rel=1e-3)
    assert slope_of(stepping, _rss) == pytest.approx(0, abs=1e-6)


def test_slope_is_of_ten_minutes_at_most() -> None:
    """What a loop of an hour took in its first fifty minutes is no slope either."""
    times_s = [6.0 * n for n in range(1, 601)]
    stepping = [Sample(t, "", int(1e8 if t < 2900 else 3e8), 0, 5, 2) for t in times_s]
    assert slope_of(stepping, _rss) == pytest.approx(0, abs=1e-6)


def _rss(one: Sample) -> int:
    return one.rss_bytes


def test_what_malloc_keeps_free_is_told_from_what_is_used() -> None:
    """Many small blocks are in use until they are given back; a block that stays pins the rest."""
    before = sample("", 0.0)
    blocks = [ctypes.create_string_buffer(60_000) for _ in range(500)]
    held = sample("", 0.0)
    pins = blocks[::100]
    blocks.clear()
    after = sample("", 0.0)
    assert held.free_bytes - before.free_bytes < 10e6
    assert after.free_bytes - held.free_bytes > 20e6
    assert len(pins) == 5
