"""The loop in a process of its own against a Hub that fails, and what is read from its samples."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from alpharl_hub.local_hub import LocalHub, child_environment
from tests.bench.models import TINY, write_run
from tests.soak.faults import spoilt
from tests.soak.loop import BASE, RUN, Sample

ROOT = Path(__file__).parents[2]
TOKEN = "hf_alice"
MIN_SLOPE_MINUTES = 5.0
"""Shorter loops say nothing of a slope: pools fill and allocators settle."""


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
    digests: dict[str, list[str]]
    left: list[str]

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
        if self.minutes >= MIN_SLOPE_MINUTES and self.slope_mb_per_minute > max_slope:
            found.append(f"memory grows by {self.slope_mb_per_minute:.2f} MB a minute")
        return found


def loop_under_faults(
    folder: Path, minutes: float, num_checkpoints: int, share: float, seed: int
) -> Looped:
    """Fill a Hub, and let all commands go round against it; `share` of its answers are spoilt."""
    steps = tuple(10 * (number + 1) for number in range(num_checkpoints))
    run = write_run(folder / "run", TINY, steps, seed)
    with LocalHub(folder / "hub", {TOKEN: "alice"}) as hub:
        hub.add_commit(BASE, files=_files_of(run.base))
        hub.add_commit(RUN, files={"notes.txt": b"see the branches\n"})
        for step in steps:
            hub.add_commit(RUN, files=_files_of(run.folder(step)), revision=f"step_{step}")
        with spoilt(hub, share, seed) as spoiler:
            document = _loop(hub, folder, 60 * minutes, f"{steps[0]}-{steps[-1]}")
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
        slope_mb_per_minute=slope_of(samples),
        digests=document["digests"],
        left=document["left"],
    )


def _files_of(folder: Path) -> dict[str, bytes | Path | None]:
    return {path.name: path for path in sorted(folder.iterdir())}


def _loop(hub: LocalHub, folder: Path, seconds: float, steps: str) -> Any:
    home, answer = folder / "home", folder / "answer.json"
    home.mkdir()
    environment = {**child_environment(hub.endpoint, home, TOKEN), "OMP_NUM_THREADS": "1"}
    subprocess.run(
        [
            *(sys.executable, "-m", "tests.soak.loop", "--seconds", str(seconds)),
            *("--steps", steps, "--folder", str(folder), "--answer", str(answer)),
        ],
        cwd=ROOT,
        env=environment,
        check=True,
    )
    return json.loads(answer.read_text())


def slope_of(samples: list[Sample]) -> float:
    """MB a minute by least squares over the last two thirds of the time."""
    late = [one for one in samples if one.seconds >= samples[-1].seconds / 3]
    minutes = [one.seconds / 60 for one in late]
    return float(np.polyfit(minutes, [one.rss_bytes / 1e6 for one in late], 1)[0])
