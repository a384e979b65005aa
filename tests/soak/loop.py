"""All commands over and over in one process, which watches its own memory, files and threads.

A process of its own: the Hub's client reads HF_ENDPOINT when it is imported.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import hashlib
import json
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from alpharl_hub import strict_json
from alpharl_hub.backtesting.backtest import BacktestOptions
from alpharl_hub.backtesting.from_run import backtest_run
from alpharl_hub.pipeline import extract_run, inspect_run, predict_run, report_run
from alpharl_hub.prediction.destination import Destination, PushRequest
from alpharl_hub.prediction.setting import PredictOptions
from alpharl_hub.prediction.targets import TargetOptions
from alpharl_hub.preparation import ScopeOptions
from alpharl_hub.push.model_upload import HubAccess, PushHooks, PushOptions, push_folder
from alpharl_hub.reporting.extraction import FactorOutput
from alpharl_hub.reporting.report import ReportRequest
from alpharl_hub.sources.opening import RunRequest
from alpharl_hub.windows.streaming import Compute, Hooks

RUN, BASE = "alice/run", "alice/base"
SCOPE = ScopeOptions()
COMPUTE = Compute(("cpu", "cpu"))
TARGET_STEP = 1500.0
PUSHED = {"model": "alice/model", "last": "alice/new"}
"""Folders and the repos that hold the same model in the end."""


@dataclass(frozen=True)
class Sample:
    """What the process held after one command; `free_bytes` malloc keeps though nobody uses them.

    glibc has a heap for each of up to eight threads per core, and new threads take any of them: it
    takes many rounds until each heap is as large as the largest need. That is no leak, and ends.
    """

    seconds: float
    command: str
    rss_bytes: int
    free_bytes: int
    descriptors: int
    threads: int


class Loop:
    """The commands in a folder; answers are told apart by their digests."""

    def __init__(self, folder: Path, steps: str) -> None:
        self._folder = folder
        self._request = RunRequest(RUN, BASE, steps=steps)
        self.digests: dict[str, set[str]] = {}
        self.round = 0

    def commands(self) -> dict[str, Callable[[], str | None]]:
        """Return the commands by name; each gives a digest of its answer, if that must stay."""
        return {
            "inspect": self._inspect,
            "report": self._report,
            "extract": self._extract,
            "predict": self._predict,
            "backtest": self._backtest,
            "push": self._push,
            "predict and push": self._predict_and_push,
        }

    def _inspect(self) -> str:
        return _digest_of(inspect_run(self._request, SCOPE, _options(TARGET_STEP), COMPUTE))

    def _report(self) -> str:
        return _digest_of(report_run(self._request, SCOPE, ReportRequest(), COMPUTE, Hooks()))

    def _extract(self) -> str:
        output = FactorOutput(self._folder / "factors", True, None)
        extract_run(self._request, SCOPE, 1, output, COMPUTE, Hooks())
        return folder_digest(output.folder)

    def _predict(self) -> str:
        self._predict_at(TARGET_STEP, Destination(self._folder / "model", overwrite=True))
        return folder_digest(self._folder / "model")

    def _backtest(self) -> str:
        options = BacktestOptions(methods=("alpharl", "linear"))
        return _digest_of(backtest_run(self._request, SCOPE, options, COMPUTE, Hooks()))

    def _push(self) -> None:
        push_folder(self._folder / "model", PUSHED["model"], PushOptions())

    def _predict_and_push(self) -> None:
        # Another model every time: the Hub has what it has seen, and would not be sent it again.
        push = PushRequest(PUSHED["last"], PushOptions(), HubAccess(), PushHooks())
        self._predict_at(TARGET_STEP + self.round, Destination(None, push=push))

    def _predict_at(self, step: float, place: Destination) -> None:
        predict_run(self._request, SCOPE, _options(step), place, COMPUTE, Hooks())

    def write_last_pushed(self) -> None:
        """Write here what was last pushed without being written here."""
        self._predict_at(TARGET_STEP + self.round - 1, Destination(self._folder / "last"))

    def run(self, seconds: float, min_rounds: int) -> list[Sample]:
        """Go round until the time is over, and so often at least."""
        samples: list[Sample] = []
        started_s = time.monotonic()
        while self.round < min_rounds or time.monotonic() - started_s < seconds:
            for name, command in self.commands().items():
                digest = command()
                if digest is not None:
                    self.digests.setdefault(name, set()).add(digest)
                samples.append(sample(name, time.monotonic() - started_s))
            self.round += 1
            print(_round_text(self.round, samples[-1]), flush=True)
        return samples


def _round_text(number: int, last: Sample) -> str:
    return (
        f"round {number} ended after {last.seconds:.0f} s: {last.rss_bytes / 1e6:.1f} MB, "
        f"{last.descriptors} descriptors, {last.threads} threads"
    )


def _options(step: float) -> PredictOptions:
    return PredictOptions(method="alpharl", target=TargetOptions((step,)))


def _digest_of(answer: object) -> str:
    return hashlib.sha256(strict_json.dump(answer).encode()).hexdigest()


def folder_digest(folder: Path) -> str:
    """One sha256 over the names and bytes of all files of a folder."""
    found = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        found.update(path.name.encode() + path.read_bytes())
    return found.hexdigest()


def sample(name: str, seconds: float) -> Sample:
    """Look at this process."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return Sample(
        seconds=seconds,
        command=name,
        rss_bytes=pages * os.sysconf("SC_PAGE_SIZE"),
        free_bytes=_free_bytes(),
        descriptors=len(os.listdir("/proc/self/fd")),
        threads=len(os.listdir("/proc/self/task")),
    )


class _MallInfo(ctypes.Structure):
    """glibc's struct mallinfo2, https://man7.org/linux/man-pages/man3/mallinfo.3.html."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in (
            *("arena", "ordblks", "smblks", "hblks", "hblkhd"),
            *("usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"),
        )
    ]


def _free_bytes() -> int:
    ask = ctypes.CDLL(None).mallinfo2
    ask.restype = _MallInfo
    return int(ask().fordblks)


def main() -> None:
    """Loop, and write what was seen as JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--rounds", type=int, required=True, help="at least")
    parser.add_argument("--steps", required=True)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--answer", type=Path, required=True)
    options = parser.parse_args()
    torch.set_num_threads(1)
    work = options.folder / "loop"
    work.mkdir(parents=True)
    os.chdir(work)
    loop = Loop(work, options.steps)
    samples = loop.run(options.seconds, options.rounds)
    document = {
        "rounds": loop.round,
        "samples": [asdict(one) for one in samples],
        "digests": {name: sorted(found) for name, found in loop.digests.items()},
        "left": sorted(path.name for path in work.iterdir()),
    }
    loop.write_last_pushed()
    options.answer.write_text(json.dumps(document))


if __name__ == "__main__":
    main()
