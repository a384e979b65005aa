"""The loop in a process of its own against a Hub that fails, and what is read from its samples."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from alpharl_hub.local_hub import LocalHub, child_environment
from tests.bench.models import TINY, write_run
from tests.soak.faults import spoilt
from tests.soak.loop import BASE, PUSHED, RUN, Sample

ROOT = Path(__file__).parents[2]
TOKEN = "hf_alice"
SHAPES = replace(TINY, layers=1)
"""So small that a quarter of an hour has more than MIN_ROUNDS rounds on a machine that is free."""
SLOPE_S = 600.0
MIN_SLOPE_MINUTES = 5.0
"""Shorter loops say nothing of a slope: pools fill and allocators settle."""
MIN_ROUNDS = 10
"""So many must a slope rest on, however long they take: memory goes up and down within each."""


@dataclass(frozen=True)
class Looped:
    """What a loop did; `first` and `last` are what it held after each command of these rounds."""

    minutes: float
    rounds: int
    num_commands: int
    num_requests: int
    num_faults: int
    first: list[Sample]
    last: list[Sample]
    slope_mb_per_minute: float
    used_slope_mb_per_minute: float
    digests: dict[str, list[str]]
    left: list[str]
    lost: list[str]

    def problems(self, max_slope: float) -> list[str]:
        """Say what is not as it should be."""
        found = [
            f"{name} gave {len(digests)} different answers"
            for name, digests in self.digests.items()
            if len(digests) != 1
        ]
        for what in ("descriptors", "threads"):
            before = max(getattr(sample, what) for sample in self.first)
            after = min(getattr(sample, what) for sample in self.last)
            if after > before:  # a connection more or less is kept open for what comes next
                found.append(f"{after} {what} or more at the end, at most {before} at first")
        if self.left != ["factors", "model"]:
            found.append(f"left behind: {', '.join(self.left)}")
        found += [f"not on the Hub as it should be: {name}" for name in self.lost]
        if self.is_judged and self.slope_mb_per_minute > max_slope:
            found.append(
                f"memory grows by {self.slope_mb_per_minute:.2f} MB a minute, what is in use "
                f"by {self.used_slope_mb_per_minute:.2f}"
            )
        return found

    @property
    def is_judged(self) -> bool:
        """Whether the loop was long enough for its slope to say something."""
        return self.minutes >= MIN_SLOPE_MINUTES and self.rounds >= MIN_ROUNDS


def loop_under_faults(
    folder: Path, minutes: float, num_checkpoints: int, share: float, seed: int
) -> Looped:
    """Fill a Hub, and let all commands go round against it; `share` of its answers are spoilt."""
    steps = tuple(10 * (number + 1) for number in range(num_checkpoints))
    run = write_run(folder / "run", SHAPES, steps, seed)
    with LocalHub(folder / "hub", {TOKEN: "alice"}) as hub:
        hub.add_commit(BASE, files=_files_of(run.base))
        hub.add_commit(RUN, files={"notes.txt": b"see the branches\n"})
        for step in steps:
            hub.add_commit(RUN, files=_files_of(run.folder(step)), revision=f"step_{step}")
        with spoilt(hub, share, seed) as spoiler:
            document = _loop(hub, folder, 60 * minutes, f"{steps[0]}-{steps[-1]}")
        lost = _lost_models(hub, folder / "loop")
    samples = [Sample(**one) for one in document["samples"]]
    num_commands = len(samples) // document["rounds"]
    return Looped(
        minutes=samples[-1].seconds / 60,
        rounds=document["rounds"],
        num_commands=num_commands,
        num_requests=spoiler.num_requests,
        num_faults=spoiler.num_faults,
        first=samples[:num_commands],
        last=samples[-num_commands:],
        slope_mb_per_minute=slope_of(samples, lambda one: one.rss_bytes),
        used_slope_mb_per_minute=slope_of(samples, lambda one: one.rss_bytes - one.free_bytes),
        digests=document["digests"],
        left=document["left"],
        lost=lost,
    )


def _files_of(folder: Path) -> dict[str, bytes | Path | None]:
    return {path.name: path for path in sorted(folder.iterdir())}


def _loop(hub: LocalHub, folder: Path, seconds: float, steps: str) -> Any:
    home, answer = folder / "home", folder / "answer.json"
    home.mkdir()
    environment = {
        **child_environment(hub.endpoint, home, TOKEN),
        "OMP_NUM_THREADS": "1",
        # By itself glibc lets threads that come and go spread over eight arenas a core, which fill
        # up for half an hour (0.04 to 1.2 MB a minute while what is in use stays the same):
        # https://sourceware.org/glibc/manual/latest/html_node/Memory-Allocation-Tunables.html
        "MALLOC_ARENA_MAX": "2",
    }
    subprocess.run(
        [
            *(sys.executable, "-m", "tests.soak.loop", "--seconds", str(seconds)),
            *("--rounds", str(2 if seconds < 60 * MIN_SLOPE_MINUTES else MIN_ROUNDS)),
            *("--steps", steps, "--folder", str(folder), "--answer", str(answer)),
        ],
        cwd=ROOT,
        env=environment,
        check=True,
    )
    return json.loads(answer.read_text())


def _lost_models(hub: LocalHub, work: Path) -> list[str]:
    """The weights that the Hub has not, or with other bytes than the same model's here."""
    found = []
    for name, repo in PUSHED.items():
        for path in sorted((work / name).glob("*.safetensors")):
            if hub.read_file(repo, path.name) != path.read_bytes():
                found.append(f"{repo}/{path.name}")
    return found


def slope_of(samples: list[Sample], num_bytes: Callable[[Sample], int]) -> float:
    """MB a minute by least squares over the last ten minutes, two thirds of the time at most."""
    ended_s = samples[-1].seconds
    late = [one for one in samples if one.seconds >= max(ended_s - SLOPE_S, ended_s / 3)]
    minutes = [one.seconds / 60 for one in late]
    return float(np.polyfit(minutes, [num_bytes(one) / 1e6 for one in late], 1)[0])
