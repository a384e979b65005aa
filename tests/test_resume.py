"""Interruptions from outside: killed, stopped and crowded processes, and what is left behind."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor
from trajectories import (
    EMBEDDING,
    Run,
    digest,
    fail,
    generator,
    load_model,
    model_config,
    predict,
    succeed,
    with_method,
    write_run,
)

from alpharl_hub.windows import plan

STEPS = (5, 20, 30, 50)
TARGET = ("--target-step", "110", "--others", "linear")
WINDOW_BYTES = 40_000
NUM_MATRICES = 60

CHILD = f"""
from alpharl_hub.windows import plan
plan.WINDOW_BYTES = {WINDOW_BYTES}
from alpharl_hub.cli import main
main()
"""


def tensors_at(step: int) -> dict[str, Tensor]:
    """Matrices on a noisy course and an embedding of many windows, 2 MB in all."""
    tensors = {}
    for i in range(NUM_MATRICES):
        source = generator(i)
        base = torch.randn(96, 64, generator=source)
        line = torch.outer(torch.randn(96, generator=source), torch.randn(64, generator=source))
        noise = torch.randn(96, 64, generator=generator(1000 * step + i))
        tensors[f"model.layers.{i}.mlp.up_proj.weight"] = base + 3e-4 * step * (line + 0.3 * noise)
    tensors[EMBEDDING] = torch.randn(3000, 64, generator=generator(999)) + 1e-3 * step
    return tensors


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run whose output has three shards and about eighty tiny windows."""
    return write_run(tmp_path_factory.mktemp("resume"), STEPS, tensors_at, num_shards=3)


@pytest.fixture(scope="module")
def whole(run: Run, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The digest of a prediction that nothing disturbed, in windows of the common size."""
    folder = tmp_path_factory.mktemp("whole") / "out"
    predict(run, folder, *TARGET)
    return digest(folder)


class Child:
    """The command line in a process of its own, with tiny windows."""

    def __init__(self, work: Path, *arguments: str) -> None:
        self.journal = work / "journal.jsonl"
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        self.process = subprocess.Popen(
            [sys.executable, "-c", CHILD, *with_method(arguments)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def journal_bytes(self) -> int:
        """The length of the journal by now."""
        try:
            return self.journal.stat().st_size
        except FileNotFoundError:
            return 0

    def wait_for_journal(self, num_bytes: int) -> bool:
        """Wait until the journal has so many bytes; False when the process ended before."""
        while self.process.poll() is None:
            if self.journal_bytes() >= num_bytes:
                return True
            time.sleep(0.0005)
        return False

    def signal(self, number: int) -> tuple[int, float, str]:
        """Send a signal; gives the exit status, the seconds that it took, and stderr."""
        start = time.monotonic()
        self.process.send_signal(number)
        _, stderr = self.process.communicate(timeout=60)
        return self.process.returncode, time.monotonic() - start, stderr

    def finish(self) -> tuple[int, str, str]:
        """Wait for the end; gives the exit status, stdout and stderr."""
        stdout, stderr = self.process.communicate(timeout=120)
        return self.process.returncode, stdout, stderr


Start = Callable[..., Child]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start children that work beside tmp_path/out, and leave none behind."""
    children: list[Child] = []

    def begin(*arguments: str) -> Child:
        children.append(Child(tmp_path / ".out.alpharl-hub", *arguments))
        return children[-1]

    yield begin
    for child in children:
        if child.process.poll() is None:
            child.process.kill()
            child.process.communicate()


def test_killed_at_random_it_goes_on_to_the_same_bytes(
    run: Run, whole: str, tmp_path: Path, start: Start
) -> None:
    """SIGINT, SIGTERM and SIGKILL at random sizes of the journal, each start with other workers."""
    seed = random.randrange(1 << 30)
    source = random.Random(seed)
    output = tmp_path / "out"
    arguments = ["predict", *run.arguments("-o", str(output), *TARGET), "--devices"]
    # The whole journal has 190 kB, so that each is struck well before the end.
    for number, status, most_bytes, devices in (
        (signal.SIGINT, 130, 35_000, "cpu,cpu"),
        (signal.SIGTERM, 143, 70_000, "cpu"),
        (signal.SIGKILL, -9, 105_000, "cpu,cpu,cpu"),
        (signal.SIGKILL, -9, 140_000, "cpu"),
    ):
        child = start(*arguments, devices)
        before = child.journal_bytes()
        assert child.wait_for_journal(source.randrange(before + 1, most_bytes)), seed
        code, seconds, stderr = child.signal(number)
        assert code == status, (seed, stderr)
        assert seconds < 5
        assert not output.exists(), seed
        assert ("goes on from here" in stderr) == (number != signal.SIGKILL)
    assert start(*arguments, "cpu,cpu").finish()[:2] == (0, f"{output}\n"), seed
    assert digest(output) == whole, seed
    assert os.listdir(tmp_path) == ["out"]


def test_extraction_goes_on_to_the_same_bytes(run: Run, tmp_path: Path, start: Start) -> None:
    """The same for extract, and for the manifest that it writes in the end."""
    succeed("extract", *run.arguments("-o", str(tmp_path / "whole")))
    output = tmp_path / "out"
    for _ in range(2):
        child = start("extract", *run.arguments("-o", str(output)))
        assert child.wait_for_journal(child.journal_bytes() + 60_000)
        assert child.signal(signal.SIGKILL)[0] == -signal.SIGKILL
        assert not output.exists()
    status, stdout, _ = start("extract", *run.arguments("-o", str(output))).finish()
    assert (status, stdout) == (0, f"{output}\n")
    for name in ("factors.safetensors", "alpharl.json"):
        assert (output / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def interrupted(run: Run, start: Start, output: Path) -> Child:
    """Kill a prediction after some windows."""
    child = start("predict", *run.arguments("-o", str(output), *TARGET))
    assert child.wait_for_journal(50_000)
    child.signal(signal.SIGKILL)
    return child


def test_other_arguments_and_damage_after_a_kill(
    run: Run, whole: str, tmp_path: Path, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other arguments are refused by name; a damaged last line costs one window, no more."""
    output = tmp_path / "out"
    child = interrupted(run, start, output)
    monkeypatch.setattr(plan, "WINDOW_BYTES", WINDOW_BYTES)
    before = child.journal.read_bytes()
    for more, word in (
        (("--damping", "0.5"), "method.damping was 1.0, is 0.5"),
        (("--target-step", "111"), "target_steps was [110.0], is [111.0]"),
        (("--method", "linear"), 'method.name was "alpharl", is "linear"'),
        (("--steps", "5,30,50"), "run.checkpoints was"),
        (("--include", "layers"), 'run.include was null, is "layers"'),
    ):
        line = fail("predict", *run.arguments("-o", str(output), *TARGET, *more))
        assert "other arguments" in line
        assert word in line
    assert child.journal.read_bytes() == before
    lines = before.splitlines(keepends=True)
    for damaged in (lines[-1][:-20], lines[-1][:-1], lines[-1].replace(b"1", b"2"), b"\0" * 100):
        child.journal.write_bytes(b"".join(lines[:-1]) + damaged)
    sizes = [path.stat().st_size for path in (tmp_path / ".out.alpharl-hub/result").iterdir()]
    assert len(sizes) == 3
    predict(run, output, *TARGET)
    assert digest(output) == whole


def test_bytes_that_changed_are_noticed_and_done_again(
    run: Run, whole: str, tmp_path: Path, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What an earlier start wrote is read back before it is published: one byte that is not as it
    was written ends the run, which names file and tensor; the next start does only that again.
    """
    output = tmp_path / "out"
    child = interrupted(run, start, output)
    first = json.loads(child.journal.read_text().splitlines()[1].partition(" ")[2])
    name = first["result"][0]["name"]
    shard = next((tmp_path / ".out.alpharl-hub/result").glob("model-00001-*"))
    (length,) = torch.frombuffer(bytearray(shard.read_bytes()[:8]), dtype=torch.int64).tolist()
    header = json.loads(shard.read_bytes()[8 : 8 + length])
    with shard.open("r+b") as file:
        file.seek(8 + length + header[name]["data_offsets"][0] + 77)
        (byte,) = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 4]))
    monkeypatch.setattr(plan, "WINDOW_BYTES", WINDOW_BYTES)
    line = fail("predict", *run.arguments("-o", str(output), *TARGET, "-q"))
    assert "model-00001-of-00003.safetensors" in line
    assert f"{name} reads back other than it was written" in line
    assert "start again with the same arguments" in line
    assert not output.exists()
    again = start("predict", *run.arguments("-o", str(output), *TARGET))
    status, _, stderr = again.finish()
    assert status == 0
    assert "Goes on: " in stderr
    assert digest(output) == whole
    assert os.listdir(tmp_path) == ["out"]


def test_shard_that_is_gone_is_no_shard_of_zeros(
    run: Run, tmp_path: Path, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the journal calls done is not made up: the run is refused, and says what to delete."""
    output = tmp_path / "out"
    interrupted(run, start, output)
    monkeypatch.setattr(plan, "WINDOW_BYTES", WINDOW_BYTES)
    work = tmp_path / ".out.alpharl-hub"
    next((work / "result").glob("model-00001-*")).unlink()
    line = fail("predict", *run.arguments("-o", str(output), *TARGET))
    assert "model-00001" in line
    assert f"delete {work}" in line
    assert not output.exists()


@pytest.mark.parametrize("name", ["lock", "journal.jsonl", "result"])
def test_planted_links_in_a_shared_folder_are_refused(run: Run, tmp_path: Path, name: str) -> None:
    """Who may write beside the output must not be able to have our bytes put elsewhere."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "file").write_text("kept\n")
    work = tmp_path / ".out.alpharl-hub"
    work.mkdir()
    (work / name).symlink_to(elsewhere if name == "result" else elsewhere / "file")
    line = fail("predict", *run.arguments("-o", str(tmp_path / "out"), *TARGET))
    assert "link" in line
    assert [path.name for path in elsewhere.iterdir()] == ["file"]
    assert (elsewhere / "file").read_text() == "kept\n"
    assert not (tmp_path / "out").exists()


def test_two_processes_on_one_output(run: Run, whole: str, tmp_path: Path, start: Start) -> None:
    """While one works a second is refused and disturbs nothing, with --overwrite too."""
    output = tmp_path / "out"
    arguments = ("predict", *run.arguments("-o", str(output), *TARGET))
    first = start(*arguments)
    assert first.wait_for_journal(20_000)
    first.process.send_signal(signal.SIGSTOP)
    for more in ((), ("--overwrite",), ("--damping", "0.5")):
        assert "another process works there" in fail(*arguments, *more)
    first.process.send_signal(signal.SIGCONT)
    status, stdout, _ = first.finish()
    assert (status, stdout) == (0, f"{output}\n")
    assert digest(output) == whole


INTERRUPTED_IMPORT = """
import os, signal, sys
class Finder:
    def find_spec(self, name, path, target=None):
        if name == "torch":
            os.kill(os.getpid(), signal.SIGINT)
from alpharl_hub.__main__ import main
sys.meta_path.insert(0, Finder())
main()
"""


def test_interrupted_while_torch_is_imported(run: Run, tmp_path: Path) -> None:
    """SIGINT in the first seconds ends with 130 too, and without a traceback."""
    arguments = ["predict", *run.arguments("-o", str(tmp_path / "out"), *TARGET)]
    ended = subprocess.run(
        [sys.executable, "-c", INTERRUPTED_IMPORT, *arguments],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (ended.returncode, ended.stdout) == (130, "")
    assert "Traceback" not in ended.stderr
    assert os.listdir(tmp_path) == []


def open_fifo(path: Path) -> int:
    """Open a pipe for writing as soon as somebody reads from it; gives up after a minute."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError):  # ENXIO while nobody reads
            return os.open(path, os.O_WRONLY | os.O_NONBLOCK)
        time.sleep(0.02)
    raise AssertionError("the child never opened it")


def test_stalled_reading_does_not_hold_it(run: Run, tmp_path: Path, start: Start) -> None:
    """A signal ends the process within five seconds, even while a read never returns."""
    children = {}
    for number in (signal.SIGINT, signal.SIGTERM):
        stalled = tmp_path / f"scores-{number}.csv"
        os.mkfifo(stalled)
        more = ("--scores", str(stalled), "-o", str(tmp_path / "out"))
        children[number] = start("predict", *run.arguments(*TARGET, *more))
    writers = [open_fifo(tmp_path / f"scores-{number}.csv") for number in children]
    begin = time.monotonic()
    for number, child in children.items():
        child.process.send_signal(number)
    for number, child in children.items():
        status, _, stderr = child.finish()
        assert status == 128 + number
        assert "Traceback" not in stderr
    assert time.monotonic() - begin < 6
    for writer in writers:
        os.close(writer)
    assert not (tmp_path / "out").exists()


def test_finished_output_is_replaced_only_when_told(run: Run, tmp_path: Path) -> None:
    """Without --overwrite a folder with anything in it stays; with it, it is swapped whole."""
    output = tmp_path / "out"
    predict(run, output, *TARGET)
    (output / "notes.txt").write_text("mine")
    before = digest(output)
    arguments = run.arguments("-o", str(output), "--target-step", "77")
    assert "--overwrite" in fail("predict", *arguments)
    assert "--overwrite" in fail("extract", *run.arguments("-o", str(output)))
    assert digest(output) == before
    assert (output / "notes.txt").exists()
    succeed("predict", *arguments, "--overwrite")
    assert digest(output) != before
    assert not (output / "notes.txt").exists()
    assert os.listdir(tmp_path) == ["out"]


def test_work_dir_in_the_output_is_refused(run: Run, tmp_path: Path) -> None:
    """What is swapped as a whole cannot hold the work: refused, and the old output stays."""
    output = tmp_path / "out"
    predict(run, output, *TARGET)
    for work in (output, output / "work"):
        options = ("-o", str(output), "--overwrite", "--work-dir", str(work))
        for name, more in (("predict", TARGET), ("extract", ())):
            assert "lies in the output" in fail(name, *run.arguments(*options, *more))
    assert (output / "alpharl.json").exists()


def test_failed_overwrite_keeps_the_old_output(run: Run, tmp_path: Path) -> None:
    """--overwrite deletes nothing before the new output is whole."""
    output = tmp_path / "out"
    predict(run, output, *TARGET)
    before = digest(output)
    broken = {0: load_model(run.base), **{s: load_model(run.folder(s)) for s in STEPS}}
    broken[30]["model.layers.59.mlp.up_proj.weight"][3, 3] = torch.nan
    other = write_run(tmp_path / "broken", STEPS, lambda s: broken[s], config=model_config())
    fail("predict", *other.arguments("-o", str(output), *TARGET, "--overwrite"))
    assert digest(output) == before
    assert sorted(os.listdir(tmp_path)) == ["broken", "out"]


LIMITED = (
    """
import resource, sys
limit = int(sys.argv.pop(1))
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
"""
    + CHILD
)


def test_disk_that_refuses_is_one_line(run: Run, whole: str, tmp_path: Path) -> None:
    """When the system refuses to write, one line says where; without its limit it ends well."""
    output = tmp_path / "out"
    arguments = ["predict", *run.arguments("-o", str(output), *TARGET)]
    ended = subprocess.run(
        [sys.executable, "-c", LIMITED, "300000", *with_method(arguments)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (ended.returncode, ended.stdout) == (1, "")
    (line,) = ended.stderr.splitlines()
    assert "cannot be written (File too large)" in line
    assert str(tmp_path) in line
    assert not output.exists()
    predict(run, output, *TARGET)
    assert digest(output) == whole
    assert os.listdir(tmp_path) == ["out"]


def test_work_dir_elsewhere(run: Run, whole: str, tmp_path: Path, start: Start) -> None:
    """--work-dir holds what is unfinished; what else lies there stays."""
    work, output = tmp_path / "work", tmp_path / "out"
    work.mkdir()
    (work / "mine.txt").touch()
    arguments = ("predict", *run.arguments("-o", str(output), *TARGET, "--work-dir", str(work)))
    child = start(*arguments)
    child.journal = work / "journal.jsonl"
    assert child.wait_for_journal(30_000)
    child.signal(signal.SIGKILL)
    # Beside the output lies the lock that keeps others from it, which is the dead process's.
    assert sorted(os.listdir(tmp_path)) == [".out.alpharl-hub", "work"]
    assert os.listdir(tmp_path / ".out.alpharl-hub") == ["lock"]
    assert start(*arguments).finish()[0] == 0
    assert sorted(os.listdir(tmp_path)) == ["out", "work"]
    assert digest(output) == whole
    assert os.listdir(work) == ["mine.txt"]
