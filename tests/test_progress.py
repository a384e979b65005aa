"""Progress that tells the truth: how far a run is, and how long the rest takes."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from hub_fixtures import add_base, add_branches
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from trajectories import write_run

import alpharl_hub
from alpharl_hub.cli.progress import Pace
from alpharl_hub.cli.running import Progress
from alpharl_hub.cli.terminal import human_bytes
from alpharl_hub.local_hub import LocalHub, child_environment
from alpharl_hub.windows.streaming import WorkCounter

STEPS = (10, 20, 30)
NUM_MATRICES, WIDTH = 24, 256
RATE_BYTES_PER_S = 2e6
"""12.6 MB are read, in six seconds."""


def blocks(step: int) -> dict[str, Tensor]:
    """Square matrices that move along a line, 131 kB each in bf16."""
    source = torch.Generator().manual_seed(1)
    tensors = {}
    for i in range(NUM_MATRICES):
        base = 0.05 * torch.randn(WIDTH, WIDTH, generator=source)
        u_M, v_N = torch.randn(2, WIDTH, generator=source)
        name = f"model.layers.{i}.self_attn.q_proj.weight"
        tensors[name] = base + 2e-5 * step * torch.outer(u_M, v_N)
    return tensors


@contextmanager
def slow_hub(folder: Path) -> Iterator[Mapping[str, str]]:
    """Serve the run at 2 MB/s; gives the environment of a client."""
    run = write_run(folder / "files", STEPS, blocks, dtype=torch.bfloat16)
    with LocalHub(folder / "hub", bytes_per_s=RATE_BYTES_PER_S) as hub:
        add_base(hub, "lab/base", run)
        add_branches(hub, "lab/run", run)
        root = str(Path(alpharl_hub.__file__).parents[1])
        ours = {"PYTHONPATH": root, "OMP_NUM_THREADS": "1", "TMPDIR": str(folder)}
        yield {**child_environment(hub.endpoint, folder / "home"), **ours}


_CLIENT = """
import json, sys, time
from pathlib import Path
import torch
from alpharl_hub.pipeline import extract_run
from alpharl_hub.preparation import ScopeOptions
from alpharl_hub.reporting.extraction import FactorOutput
from alpharl_hub.sources.opening import RunRequest
from alpharl_hub.windows import plan, reader
from alpharl_hub.windows.streaming import Compute, Hooks

torch.set_num_threads(1)
# Windows and requests as small, beside the run, as those of large models are.
plan.WINDOW_BYTES, plan.MAX_RANGE_BYTES, reader.MAX_RANGE_BYTES = 300_000, 1 << 16, 1 << 16
told = []
hooks = Hooks(lambda done, total: told.append((time.monotonic(), done, total)))
output = FactorOutput(Path(sys.argv[1]), False, None)
request = RunRequest("lab/run", base="lab/base")
extract_run(request, ScopeOptions(), 1, output, Compute(("cpu",)), hooks)
print(json.dumps({"told": told, "end_s": time.monotonic()}))
"""


def test_estimate_on_a_slow_link(tmp_path: Path) -> None:
    """At 20, 50 and 80 % of a run the estimate is within 20 % of the time it then took.

    What is compared is the run's own clock, to the moment when the output was there; a fifth of a
    second is allowed for a machine that is busy.
    """
    with slow_hub(tmp_path) as environment:
        done = subprocess.run(
            [sys.executable, "-c", _CLIENT, str(tmp_path / "out")],
            env=dict(environment),
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    pace, shares = Pace(), [0.2, 0.5, 0.8]
    for now_s, done_bytes, total_bytes in answer["told"]:
        pace.tell(done_bytes, total_bytes, now_s)
        if shares and done_bytes >= shares[0] * total_bytes:
            share, left_s, truth_s = shares.pop(0), pace.left_s(now_s), answer["end_s"] - now_s
            assert left_s is not None
            assert abs(left_s - truth_s) <= 0.2 * truth_s + 0.2, (share, left_s, truth_s)
    assert shares == []


WINDOW_BYTES = 4_000_000
LINES = {
    "link": (10.0, 1.0, 0.1),
    "arithmetic": (1.0, 10.0, 0.1),
    "disk": (1.0, 2.0, 10.0),
    "upload": (0.5, 0.1, 30.0),
}
"""Which part of the work is the slow one: seconds for reading, computing, finishing a window."""


@pytest.mark.parametrize("slow", LINES)
def test_estimate_whatever_is_slow(slow: str) -> None:
    """Sixty windows go through three stations in line; two may wait before each but the last.

    Whichever is the slow one, at 20, 50 and 80 % the estimate is within 20 % of the truth: what was
    read and waits for a slow end counts little. The times are those of the planted line.
    """
    read_s, compute_s, finish_s = LINES[slow]
    num_windows, pieces = 60, 8
    events: list[tuple[float, str]] = []
    read_end, computed, finished = [0.0], [0.0], [0.0]
    for i in range(num_windows):
        # What is computed waits without end for the upload, but not for the disk.
        waits_for = finished if slow == "disk" else computed
        begin_s = max(read_end[-1], waits_for[max(0, i - 2)])
        events += [(begin_s + read_s * (p + 1) / pieces, "read") for p in range(pieces)]
        read_end.append(begin_s + read_s)
        computed.append(max(read_end[-1], computed[-1]) + compute_s)
        finished.append(max(computed[-1], finished[-1]) + finish_s)
        events.append((finished[-1], "finished"))
    pace, now, shares = Pace(), [0.0], [0.2, 0.5, 0.8]

    def tell(done_bytes: int, total_bytes: int) -> None:
        pace.tell(done_bytes, total_bytes, now[0])
        if shares and done_bytes >= shares[0] * total_bytes:
            left_s = pace.left_s(now[0])
            assert left_s == pytest.approx(finished[-1] - now[0], rel=0.2), shares
            shares.pop(0)

    counter = WorkCounter(num_windows * WINDOW_BYTES, WINDOW_BYTES, tell)
    counter.start()
    for now_s, kind in sorted(events):
        now[0] = now_s
        if kind == "read":
            counter.add_read(WINDOW_BYTES // pieces)
        else:
            counter.add_finished(WINDOW_BYTES)
    assert shares == []
    assert pace.done_bytes == pace.total_bytes


@given(st.lists(st.integers(1, 50), min_size=1, max_size=8), st.integers(0, 60), st.data())
def test_progress_never_falls_and_is_whole_only_at_the_end(
    windows: list[int], ahead_bytes: int, data: st.DataObject
) -> None:
    """Reading in any pieces, some of it twice, and finishing: it rises to the total at the end."""
    told: list[tuple[int, int]] = []
    counter = WorkCounter(sum(windows), ahead_bytes, lambda *both: told.append(both))
    counter.start()
    for num_bytes in windows:
        for _ in range(data.draw(st.integers(0, 2))):
            part = data.draw(st.integers(0, num_bytes))
            counter.add_read(part)
            counter.add_repeat(part)
        counter.add_read(num_bytes)
        assert told[-1][0] < sum(windows)
        counter.add_finished(num_bytes)
    done = [done for done, _ in told]
    assert done == sorted(done)
    assert done[0] == 0
    assert done[-1] == sum(windows)
    assert {total for _, total in told} == {sum(windows)}


def test_pace_of_what_goes_on_from_before() -> None:
    """Bytes that an earlier start had read say nothing about the pace; it begins anew."""
    pace = Pace()
    pace.tell(0, 100, 5.0)
    assert pace.left_s(5.0) is None
    pace.tell(400, 1000, 6.0)
    assert pace.left_s(6.0) is None
    pace.tell(500, 1000, 16.0)
    assert pace.left_s(16.0) == 50.0
    assert pace.left_s(26.0) == 100.0


def test_log_lines(capsys: pytest.CaptureFixture[str]) -> None:
    """Off a terminal there is a line every half minute, with what is left; none with --quiet."""
    now = [100.0]
    progress, silent = Progress(False, lambda: now[0]), Progress(True, lambda: now[0])
    for second in range(0, 100, 10):
        now[0] = 100.0 + second
        for one in (progress, silent):
            one(second * 10**7, 2 * 10**9)
    for second in (100, 131):
        now[0] = 100.0 + second
        progress(2 * 10**9, 2 * 10**9)
    now[0] += 10
    progress(0, 10**9)
    now[0] += 30
    progress(5 * 10**8, 10**9)
    assert capsys.readouterr().err.splitlines() == [
        "read 300 MB of 2.00 GB (15 %), 10.0 MB/s, about 2 min 50 s left",
        "read 600 MB of 2.00 GB (30 %), 10.0 MB/s, about 2 min 20 s left",
        "read 900 MB of 2.00 GB (45 %), 10.0 MB/s, about 1 min 50 s left",
        "all 2.00 GB read (99 %), the rest is under way",
        "next reading: read 500 MB of 1.00 GB (50 %), 16.7 MB/s, about 30 s left",
    ]


def on_a_terminal(size: tuple[int, int], *arguments: str | Path) -> str:
    """Run a command with a terminal (rows, columns) as stderr, and return what came there."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", *size, 0, 0))
    process = subprocess.Popen(
        [sys.executable, "-m", "alpharl_hub", *map(str, arguments)],
        cwd=Path(alpharl_hub.__file__).parents[1],
        stdout=subprocess.DEVNULL,
        stderr=theirs,
    )
    os.close(theirs)
    shown = b""
    while True:
        try:
            shown += os.read(ours, 1 << 16)
        except OSError:  # what Linux says when the other side is closed
            break
    os.close(ours)
    assert process.wait() == 0, shown.decode()
    return shown.decode("ascii")


@pytest.mark.parametrize("size", [(24, 100), (0, 0)])
def test_bar_on_a_terminal(tmp_path: Path, size: tuple[int, int]) -> None:
    """The bar is plain ASCII, never falls, never says 100 %, and is gone at the end.

    Also where the terminal does not tell its size.
    """
    run = write_run(tmp_path, STEPS, blocks, dtype=torch.bfloat16)
    more = ("--method", "alpharl", "--target-step", "60", "-o", str(tmp_path / "out"))
    shown = on_a_terminal(size, "predict", *run.arguments(*more))
    assert (tmp_path / "out" / "model.safetensors").exists()
    percents = [int(found) for found in re.findall(r"\((\d+) %\)", shown)]
    assert percents == sorted(percents)
    assert (percents[0], percents[-1]) == (0, 99)
    bar, _, after = shown.rpartition("the rest is under way")
    assert "|####################| all 12.6 MB read (99 %), " in bar
    assert "|" not in after
    assert re.search(r"read 12\.6 MB in \d+ s; (\d+) MB of memory at most", after)


def test_a_summary_says_what_was_read_in_all(capsys: pytest.CaptureFixture[str]) -> None:
    """Two readings of 2 and 1 GB, of the second of which a fifth was done before, in 50 s."""
    now = [100.0]
    progress = Progress(False, lambda: now[0])
    for second, done, total in ((0, 0, 20), (30, 20, 20), (30, 2, 10), (50, 10, 10)):
        now[0] = 100.0 + second
        progress(done * 10**8, total * 10**8)
    capsys.readouterr()
    progress.summarise()
    found = capsys.readouterr().err
    assert found.startswith("read 2.80 GB in 50 s (56.0 MB/s); ")
    peak = int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1])  # type: ignore[index]
    assert human_bytes(1024 * peak) in found


def test_nothing_is_summed_up_where_nothing_was_read(capsys: pytest.CaptureFixture[str]) -> None:
    """Nor with --quiet."""
    Progress(False).summarise()
    silent = Progress(True)
    silent(10, 10)
    silent.summarise()
    assert capsys.readouterr().err == ""
