"""Signals and kills from outside against a Hub over HTTP: nothing is lost, and all ends alike."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from hub_fixtures import ALICE, add_base, add_branches, served_hub
from killing import (
    EXITS,
    MAX_STOPPING_S,
    Tally,
    Victim,
    Victims,
    digests,
    disturbed,
    moved_bytes,
    uploads,
    victims_for,
)
from torch import Tensor
from trajectories import EMBEDDING, generator, write_run

from alpharl_hub.local_hub import Fault, LocalHub

Part = tuple[str, tuple[int, int]]
STEPS = (5, 10, 20, 30, 40, 50)
RUN = ("alice/run", "--base", "alice/base")
METHOD = ("--method", "alpharl", "--target-step", "110")
WORKERS = 2
DEVICES = ("--devices", ",".join(["cpu"] * WORKERS))
SCORER = """
import pathlib, sys, time
(path,) = pathlib.Path(sys.argv[1]).glob("*-00001-of-*")
time.sleep(0.1)
print(f"score={sum(path.read_bytes()[-2000::4]) / 1e5}")
"""


def tensors_at(step: int) -> dict[str, Tensor]:
    """Matrices on a noisy course and an embedding of several windows, 0.7 MB in all."""
    tensors = {}
    for i in range(12):
        source = generator(i)
        base = torch.randn(96, 64, generator=source)
        line = torch.outer(torch.randn(96, generator=source), torch.randn(64, generator=source))
        noise = torch.randn(96, 64, generator=generator(1000 * step + i))
        tensors[f"model.layers.{i}.mlp.up_proj.weight"] = base + 3e-4 * step * (line + 0.3 * noise)
    tensors[EMBEDDING] = torch.randn(1500, 64, generator=generator(999)) + 1e-3 * step
    return tensors


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalHub]:
    """A Hub with a run of small checkpoints in three shards."""
    folder = tmp_path_factory.mktemp("kills")
    run = write_run(folder / "run", STEPS, tensors_at, num_shards=3)
    with served_hub(folder / "hub") as found:
        add_base(found, "alice/base", run)
        add_branches(found, "alice/run", run)
        yield found


@pytest.fixture(scope="module")
def victims(hub: LocalHub, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Victims]:
    """Commands of alice's."""
    folder = tmp_path_factory.mktemp("victims")
    (folder / "score.py").write_text(SCORER)
    with victims_for(folder, hub, ALICE) as found:
        yield found


@pytest.fixture(autouse=True)
def quiet_hub(hub: LocalHub, victims: Victims) -> None:
    """Begin with an empty log, without faults, and with nothing running."""
    victims.clear()
    hub.clear_log()
    hub.clear_faults()


def arguments_of(command: str, name: str) -> list[str]:
    """A command that writes its answer to a folder, or (backtest) prints it."""
    evaluate = f"{sys.executable} score.py {{model}}"
    more = {
        "predict": ("-o", name, *METHOD, "--others", "linear", *DEVICES),
        "extract": ("-o", name, *DEVICES),
        "backtest": ("--json", *DEVICES),
        "sweep": ("-o", name, *METHOD, "--evaluate", evaluate, "--scales", "1,2", "--budget", "3"),
    }
    return [command, *RUN, *more[command]]


def slow_down(hub: LocalHub, seconds: float = 0.02) -> None:
    """Have every file's content come late, so that a command takes long enough to be struck."""
    hub.add_fault(Fault("", "slow", times=100_000, seconds=seconds, origin="storage"))


@pytest.mark.parametrize("command", ["predict", "extract", "backtest", "sweep"])
def test_struck_at_random_it_ends_alike(hub: LocalHub, victims: Victims, command: str) -> None:
    """A SIGKILL and a gentle signal, when some bytes were served; then the same answer and no
    window done twice but those in hand.
    """
    assert victims.run(["inspect", *RUN]).code == 0
    # Headers, and of the last checkpoint what the base is compared with.
    looked_at = {(step, part) for step in STEPS for part in parts_read(hub, step)}
    hub.clear_log()
    whole = victims.run(arguments_of(command, f"whole/{command}"))
    assert whole.code == 0, whole.stderr
    most_bytes = int(0.8 * moved_bytes(hub))
    hub.clear_log()
    slow_down(hub)
    seed = random.randrange(1 << 30)
    kills = (signal.SIGKILL, signal.SIGTERM if command == "extract" else signal.SIGINT)
    tally = Tally()
    name = f"struck/{command}"
    arguments = arguments_of(command, name)
    ended = disturbed(victims, hub, arguments, most_bytes, kills, random.Random(seed), tally)
    if command == "backtest":
        assert json.loads(ended.stdout) == json.loads(whole.stdout), seed
    else:
        found = victims.folder / name
        assert digests(found) == digests(victims.folder / f"whole/{command}"), seed
    left = [*victims.folder.glob(".*"), *victims.folder.glob("struck/.*")]
    assert left == [], seed
    # A worker has one window that was read to its end, and the beginning of the next.
    assert repeated_windows(hub, 10, looked_at) <= 2 * WORKERS * tally.met, seed
    assert repeated_windows(hub, STEPS[-1], looked_at) <= WORKERS * tally.met, seed


def parts_read(hub: LocalHub, step: int) -> Counter[Part]:
    """How often each part of a checkpoint was read since the log was cleared."""
    commit = hub.refs("alice/run")[f"refs/heads/step_{step}"]
    return Counter(
        (record.file_path, record.range)
        for record in hub.log
        if record.origin == "storage" and record.revision == commit and record.range
    )


def repeated_windows(hub: LocalHub, step: int, looked_at: set[tuple[int, Part]]) -> int:
    """How often a window of a checkpoint was read again; of what every start looks at none."""
    parts = parts_read(hub, step).items()
    return sum(count - 1 for part, count in parts if (step, part) not in looked_at)


@pytest.mark.parametrize("command", ["push", "predict"])
def test_no_shard_is_uploaded_twice(hub: LocalHub, victims: Victims, command: str) -> None:
    """A push of a folder and a prediction that is pushed as it grows, killed between shards."""
    repo = f"alice/pushed-by-{command}"
    # The Hub keeps equal contents once for all repos: each push needs its own.
    model = predicted(victims, step={"push": 120, "predict": 130}[command])
    arguments = ["push", f"model/{model.name}", repo]
    if command == "predict":
        arguments = [*model_arguments(step=130), "--push-to", repo]
    hub.clear_log()
    hub.add_fault(Fault("/upload/", "slow", times=100, seconds=0.2, method="PUT"))
    for wanted in (1, 2):
        victim = victims.start(arguments)
        assert victim.wait_until(lambda: len(uploads(hub)) >= wanted)  # noqa: B023
        assert victim.stop(signal.SIGKILL)[0].code == -signal.SIGKILL
    assert not is_model(hub, repo)
    ended = victims.run(arguments)
    assert ended.code == 0, ended.stderr
    assert sorted(Counter(uploads(hub)).values()) == [1, 1, 1]
    assert is_model(hub, repo)
    for path in model.glob("*.safetensors"):
        assert hub.read_file(repo, path.name) == path.read_bytes()


def model_arguments(step: int) -> list[str]:
    """A prediction without the place that it goes to."""
    return ["predict", *RUN, "--method", "alpharl", "--target-step", str(step), *DEVICES]


def predicted(victims: Victims, step: int) -> Path:
    """A finished model."""
    done = victims.run([*model_arguments(step), "-o", f"model/{step}"])
    assert done.code == 0, done.stderr
    return victims.folder / "model" / str(step)


def is_model(hub: LocalHub, repo: str) -> bool:
    """Whether a model has appeared in a repo."""
    try:
        return hub.read_file(repo, "config.json") != b""
    except KeyError:
        return False


def held_up(hub: LocalHub, victims: Victims, command: str) -> Victim:
    """Start a command and wait until the Hub keeps it waiting."""
    hub.clear_log()
    if command == "push":
        hub.add_fault(Fault("/upload/", "slow", times=100, seconds=30, method="PUT"))
        victim = victims.start(["push", "model/140", "alice/held"])
        assert victim.wait_until(lambda: any("lfs/objects/batch" in r.path for r in hub.log))
        return victim
    hub.add_fault(Fault("", "stall", times=100, seconds=30, after_bytes=100, origin="storage"))
    victim = victims.start(arguments_of(command, f"held/{command}"))
    assert victim.wait_until(lambda: any("/resolve/" in r.path for r in hub.log))
    return victim


@pytest.mark.parametrize("command", ["predict", "push"])
def test_a_stalled_server_does_not_hold_it(hub: LocalHub, victims: Victims, command: str) -> None:
    """One signal ends it within five seconds with words on how to go on; two end it at once."""
    if command == "push":
        predicted(victims, step=140)
    victim = held_up(hub, victims, command)
    threading.Event().wait(0.3)
    ended, seconds = victim.stop(signal.SIGTERM)
    assert (ended.code, ended.stdout) == (143, "")
    assert seconds < MAX_STOPPING_S
    assert "goes on from here" in ended.stderr
    hub.clear_faults()
    victim = held_up(hub, victims, command)
    threading.Event().wait(0.3)
    ended, seconds = victim.stop(signal.SIGINT, signal.SIGINT)
    assert (ended.code, ended.stdout) == (130, "")
    assert seconds < 1


def test_a_lost_terminal_does_not_hold_it(hub: LocalHub, victims: Victims) -> None:
    """Ctrl-C in `... 2>&1 | tee log` ends tee too: with nobody to tell, it ends all the same."""
    pipe = victims.folder / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    hub.add_fault(Fault("", "stall", times=100, seconds=30, after_bytes=100, origin="storage"))
    victim = victims.start(arguments_of("predict", "lost"), stderr=pipe)
    assert victim.wait_until(lambda: any("/resolve/" in record.path for record in hub.log))
    os.close(reader)
    ended, seconds = victim.stop(signal.SIGINT)
    assert ended.code == 130
    assert seconds < MAX_STOPPING_S


def test_a_sweep_that_is_stopped_takes_its_evaluation_along(
    hub: LocalHub, victims: Victims
) -> None:
    """An evaluation that ignores SIGTERM is killed; nothing of it lives on after five seconds."""
    script = "trap '' TERM; echo $$ > evaluation.pid; while :; do sleep 0.1; done"
    (victims.folder / "stubborn.sh").write_text(script)
    evaluation = victims.folder / "evaluation.pid"
    for number in (signal.SIGINT, signal.SIGKILL):
        evaluation.unlink(missing_ok=True)
        sweep = ["sweep", *RUN, "-o", "stubborn", *METHOD]
        victim = victims.start([*sweep, "--evaluate", "sh stubborn.sh {model}"])
        assert victim.wait_until(lambda: evaluation.exists() and evaluation.read_text() != "")
        pid = int(evaluation.read_text())
        ended, seconds = victim.stop(number)
        assert ended.code == EXITS[number]
        assert seconds < MAX_STOPPING_S
        gone = Victim(pid, evaluation, evaluation, str)
        assert not gone.wait_until(stopwatch(MAX_STOPPING_S))


def test_a_sweep_killed_at_its_first_score_is_not_gone_on_with_by_another(
    hub: LocalHub, victims: Victims
) -> None:
    """Its endpoints are those of its own method and dtype: another is refused, by what differs."""
    (victims.folder / "slow.sh").write_text("touch evaluating; sleep 60")
    sweep = ["sweep", *RUN, "-o", "other", "--target-step", "110"]
    evaluate = ["--evaluate", "sh slow.sh {model}"]
    victim = victims.start([*sweep, *evaluate, "--method", "alpharl"])
    assert victim.wait_until((victims.folder / "evaluating").exists)
    victim.stop(signal.SIGKILL)
    for more, words in (
        (["--method", "linear"], 'method.name was "alpharl", is "linear"'),
        (["--method", "alpharl", "--dtype", "float16"], 'method.dtype was null, is "float16"'),
    ):
        ended = victims.run([*sweep, "--evaluate", "true {model}", *more])
        assert (ended.code, ended.stdout) == (1, "")
        assert words in ended.stderr
        assert "start with those to go on, or delete the folder" in ended.stderr


def test_one_digest_however_it_is_worked_out(hub: LocalHub, victims: Victims) -> None:
    """One worker, three, and (predict) repeated from the manifest: equal in every byte."""
    for command in ("predict", "extract"):
        wanted = None
        for devices in ("cpu", "cpu,cpu,cpu"):
            words = [*arguments_of(command, f"{devices}/{command}"), "--devices", devices]
            assert victims.run(words).code == 0
            found = digests(victims.folder / devices / command)
            wanted = wanted or found
            assert found == wanted
    manifest = str(victims.folder / "cpu" / "predict" / "alpharl.json")
    assert victims.run(["predict", "--from", manifest, "-o", "again/predict"]).code == 0
    assert digests(victims.folder / "again" / "predict") == digests(
        victims.folder / "cpu" / "predict"
    )


def stopwatch(seconds: float) -> Callable[[], bool]:
    """A question that is answered with yes after some time."""
    over = threading.Event()
    timer = threading.Timer(seconds, over.set)
    timer.daemon = True
    timer.start()
    return over.is_set


CRASHES = """
import fcntl, json, os, shutil, signal, sys
from pathlib import Path
from alpharl_hub.output.folder import check_output, publish, write_file
from alpharl_hub.output.journal import RESULT_FOLDER, open_journal
from alpharl_hub.output.read_back import Run, crc_of
from alpharl_hub.output.shards import OutputTensor, ShardWriter, lay_out

EVENTS = {"open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate", "fcntl.flock"}
DATA = [bytes([number]) * 40 for number in range(3)]
FILE = lay_out("w.safetensors", [OutputTensor(f"t{i}", "U8", (40,)) for i in range(3)], {})

def story(top):
    work, out = top / ".out", top / "out"
    check_output(out, overwrite=True)
    with open_journal(work, {"run": 1}) as journal:
        writer = ShardWriter(work / RESULT_FOLDER, [FILE])
        writer.open()
        for number, (ref, data) in enumerate(zip(FILE.tensors, DATA)):
            if f"window {number}" not in journal.results:
                writer.write(FILE.filename, ref.start, memoryview(data))
                writer.sync(FILE.filename)
                journal.record(f"window {number}", number)
        runs = [Run(r.start, r.stop, crc_of([d])) for r, d in zip(FILE.tensors, DATA)]
        writer.complete(FILE.filename, runs)
        writer.close()
        write_file(work / RESULT_FOLDER / "alpharl.json", b"new")
        publish(work / RESULT_FOLDER, out, overwrite=True)

def strike(top, number):
    left = [number]
    def hook(event, arguments):
        if event in EVENTS and str(top) in str(arguments):
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
    sys.addaudithook(hook)
    story(top)

def whole(out):
    if not out.exists():
        return "none"
    if not (out / "alpharl.json").exists():
        return "torn"
    manifest = (out / "alpharl.json").read_bytes()
    if manifest == b"old":
        return "old" if (out / "old").exists() else "torn"
    data = (out / FILE.filename).read_bytes()
    return "new" if data == FILE.header + b"".join(DATA) else "torn"

answers = []
for number in range(1, 1000):
    top = Path(sys.argv[1]) / str(number)
    (top / "out").mkdir(parents=True)
    (top / "out" / "alpharl.json").write_bytes(b"old")
    (top / "out" / "old").touch()
    child = os.fork()
    if child == 0:
        strike(top, number)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    between = whole(top / "out")
    kept = whole(top / ".out.replaced") if (top / ".out.replaced").exists() else "none"
    story(top)
    answers.append([between, kept, whole(top / "out"), sorted(os.listdir(top))])
    if status == 0:
        break
print(json.dumps(answers))
"""


def test_killed_at_every_step_of_writing_and_publishing(tmp_path: Path) -> None:
    """Before each call that opens, renames or deletes: the old model is there or the new one is,
    whole, and the next start leaves the new one and nothing else.
    """
    done = subprocess.run(
        [sys.executable, "-c", CRASHES, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    answers = json.loads(done.stdout)
    assert len(answers) > 20
    seen = set()
    for between, kept, after, names in answers:
        assert between in ("old", "new") or (between, kept) == ("none", "old")
        assert (after, names) == ("new", ["out"])
        seen.add(between)
    assert seen == {"old", "new", "none"}
