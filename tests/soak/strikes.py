"""Commands struck by signals at random, until enough have met one at work; then compared."""

from __future__ import annotations

import random
import shutil
import signal
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from alpharl_hub.local_hub import Fault, LocalHub
from tests.bench.models import TINY, write_run
from tests.killing import Tally, Victims, digests, disturbed, moved_bytes, uploads, victims_for

TOKEN = "hf_alice"
STEPS = (10, 20, 30, 40, 50, 60)
COMMANDS = ("predict", "extract", "backtest", "sweep", "push")
IN_A_ROW = 3
_RUN = ("alice/run", "--base", "alice/base", "--devices", "cpu,cpu")
_METHOD = ("--method", "alpharl")
_SCORER = """
import pathlib, sys, time
time.sleep(0.2)
print(f"score={sum(pathlib.Path(sys.argv[1], 'model.safetensors').read_bytes()[-9000::4]) / 1e6}")
"""


@dataclass
class Struck:
    """What became of one command under signals."""

    command: str
    tally: Tally = field(default_factory=Tally)
    num_ends: int = 0
    different: list[str] = field(default_factory=list)
    sent_twice: int = 0

    def text(self) -> str:
        """Say it in a line."""
        tally = self.tally
        return (
            f"{self.command}: {tally.met} of {tally.sent} signals met it at work, the slowest end "
            f"took {tally.slowest_s:.1f} s; {self.num_ends} runs ended, {len(self.different)} "
            f"differ, {self.sent_twice} shards sent twice"
        )

    def problems(self) -> list[str]:
        """Say what is not as it should be."""
        found = [f"{self.command}: {what}" for what in self.different]
        return found + ([f"{self.command}: shards were sent twice"] if self.sent_twice else [])


def strike_all(
    folder: Path, num_kills: int, seed: int, commands: Sequence[str] = COMMANDS
) -> Iterator[Struck]:
    """Strike every command until its share of the signals has met it at work."""
    run = write_run(folder / "run", TINY, STEPS, seed)
    source = random.Random(seed)
    with LocalHub(folder / "hub", {TOKEN: "alice"}) as hub:
        hub.add_commit("alice/base", files=_files_of(run.base))
        hub.add_commit("alice/run", files={"notes.txt": b"see the branches\n"})
        for step in STEPS:
            hub.add_commit("alice/run", files=_files_of(run.folder(step)), revision=f"step_{step}")
        with victims_for(folder / "victims", hub, TOKEN) as victims:
            (victims.folder / "score.py").write_text(_SCORER)
            for command in commands:
                yield _strike(hub, victims, command, -(-num_kills // len(commands)), source)


def _files_of(folder: Path) -> dict[str, bytes | Path | None]:
    return {path.name: path for path in sorted(folder.iterdir())}


def _strike(
    hub: LocalHub, victims: Victims, command: str, num_kills: int, source: random.Random
) -> Struck:
    struck = Struck(command)
    hub.clear_faults()
    arguments = _arguments(command, victims, target=100, name="whole")
    hub.clear_log()
    whole = victims.run(arguments)
    assert whole.code == 0, whole.stderr
    most_bytes = moved_bytes(hub)
    # Of a push all that has to do with its repo, whose name is in every address, comes late.
    match, seconds = ("/struck-", 0.2) if command == "push" else ("", 0.02)
    slow = Fault(match, "slow", times=1_000_000, seconds=seconds)
    hub.add_fault(slow if command == "push" else replace(slow, origin="storage"))
    while struck.tally.met < num_kills:
        # Another target every time, or the Hub would have what is pushed; the same one otherwise.
        target = 101 + struck.num_ends if command == "push" else 100
        arguments = _arguments(command, victims, target, "struck")
        hub.clear_log()
        numbers = [source.choice(_SIGNALS) for _ in range(IN_A_ROW)]
        ended = disturbed(
            victims, hub, arguments, most_bytes, numbers, source, struck.tally, _PAUSE_S[command]
        )
        struck.num_ends += 1
        struck.sent_twice += sum(count - 1 for count in Counter(uploads(hub)).values())
        found, wanted = ended.stdout, whole.stdout
        if command == "push":
            path = victims.folder / "models" / str(target) / "model.safetensors"
            found = str(hub.read_file(f"alice/struck-{target}", path.name))
            wanted = str(path.read_bytes())
        elif command != "backtest":
            found, wanted = (str(digests(victims.folder / n)) for n in ("struck/it", "whole/it"))
            shutil.rmtree(victims.folder / "struck")
        if found != wanted:
            struck.different.append(f"run {struck.num_ends} gave another answer")
    shutil.rmtree(victims.folder / "whole", ignore_errors=True)
    return struck


_SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGINT, signal.SIGTERM)
_PAUSE_S = {"predict": 0.1, "extract": 0.1, "backtest": 0.1, "sweep": 3.0, "push": 2.0}
"""A sweep moves no bytes while it evaluates, which takes most of its time."""


def _arguments(command: str, victims: Victims, target: int, name: str) -> list[str]:
    step, place = ("--target-step", str(target)), ("-o", f"{name}/it")
    if command == "push":
        model = f"models/{target}"
        if not (victims.folder / model).exists():
            made = victims.run(["predict", *_RUN, *_METHOD, *step, "-o", model])
            assert made.code == 0, made.stderr
        return ["push", model, f"alice/{name}-{target}"]
    evaluate = ("--evaluate", f"{sys.executable} score.py {{model}}", "--budget", "4")
    more = {
        "predict": (*place, *_METHOD, *step, "--others", "linear"),
        "extract": place,
        "backtest": ("--json",),
        "sweep": (*place, *_METHOD, *step, *evaluate, "--scales", "0.5,1,2"),
    }
    return [command, *_RUN, *more[command]]
