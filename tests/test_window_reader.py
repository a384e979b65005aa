"""One reading: which bytes are asked for, and that nothing about the reading changes the result."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from trajectories import (
    EMBEDDING,
    HEAD,
    Run,
    command,
    curved_run,
    digest,
    fail,
    generator,
    load_model,
    predict,
    write_checkpoint,
    write_run,
)

from alpharl_hub.errors import SourceError
from alpharl_hub.prediction.delivery import Destination
from alpharl_hub.prediction.predict import predict as predict_setting
from alpharl_hub.prediction.setting import PredictOptions, plan_subject
from alpharl_hub.prediction.subjects import trajectory_subject
from alpharl_hub.prediction.targets import TargetOptions
from alpharl_hub.preparation import ScopeOptions, prepare
from alpharl_hub.sources.contents import open_contents
from alpharl_hub.sources.local_run import pin_folder
from alpharl_hub.sources.opening import RunRequest, open_trajectory
from alpharl_hub.trajectory import CheckpointContents, CheckpointStore, StoredFile, Trajectory
from alpharl_hub.windows import plan
from alpharl_hub.windows import reader as window_reader
from alpharl_hub.windows.plan import BASE, Part, Window
from alpharl_hub.windows.reader import CopyStream, WindowReader
from alpharl_hub.windows.streaming import Compute, Hooks

STEPS = (5, 20, 30, 50)
TARGET = ("--target-step", "110")
ODD_SHAPES = ((131, 67), (67, 131), (257, 129), (33, 300), (64, 64), (5, 1000))


def odd_tensors(step: int) -> dict[str, Tensor]:
    """Matrices and other tensors of odd sizes on a noisy course, 0.5 MB in bf16."""
    tensors = {}
    for i, shape in enumerate(ODD_SHAPES * 2):
        source = generator(i)
        base = torch.randn(shape, generator=source)
        line = torch.outer(
            torch.randn(shape[0], generator=source), torch.randn(shape[1], generator=source)
        )
        noise = torch.randn(shape, generator=generator(1000 * step + i))
        tensors[f"model.layers.{i}.mlp.up_proj.weight"] = base + 3e-4 * step * (line + 0.3 * noise)
        tensors[f"model.layers.{i}.norm.weight"] = torch.ones(shape[0] + 1) + 1e-3 * step
    tensors[EMBEDDING] = torch.randn(77, 41, generator=generator(99)) + 1e-3 * step
    tensors["model.ids"] = torch.arange(13)
    return tensors


def odd_run(where: Path, **options: object) -> Run:
    """A run of such checkpoints in bf16, in two shards."""
    options = {"dtype": torch.bfloat16, "num_shards": 2, **options}
    return write_run(where, STEPS, odd_tensors, **options)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The run as it is usually stored."""
    return odd_run(tmp_path_factory.mktemp("odd"))


METHODS = {
    "alpharl": ("--others", "linear"),
    "linear": ("--method", "linear", "--fit-last", "3"),
    "relex": ("--method", "relex", "--rank", "2"),
    "ols": ("--method", "ols", "--anchor", "last"),
}


@pytest.fixture(scope="module")
def digests(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, str]:
    """What each method gives with one worker and whole windows."""
    found = {}
    for name, options in METHODS.items():
        folder = tmp_path_factory.mktemp("digest") / name
        predict(run, folder, *TARGET, *options, "--devices", "cpu")
        found[name] = digest(folder)
    return found


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("spaces", [1, 3, 6])
def test_offsets_do_not_matter(
    digests: Mapping[str, str], tmp_path: Path, method: str, spaces: int
) -> None:
    """Headers of odd lengths, another one in base and last, shift all data: same bytes."""
    shifted = odd_run(
        tmp_path,
        header_spaces=spaces,
        base_options={"header_spaces": spaces + 2, "num_shards": 3},
    )
    predict(shifted, tmp_path / "out", *TARGET, *METHODS[method])
    assert digest(tmp_path / "out") == digests[method]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("window_bytes", [1000, 40_000])
@pytest.mark.parametrize("devices", ["cpu", "cpu,cpu", "cpu,cpu,cpu"])
def test_windows_and_workers_do_not_matter(
    run: Run,
    digests: Mapping[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    method: str,
    window_bytes: int,
    devices: str,
) -> None:
    """Tiny windows, tiny requests, and one to three workers: same bytes."""
    monkeypatch.setattr(plan, "WINDOW_BYTES", window_bytes)
    monkeypatch.setattr(plan, "MAX_RANGE_BYTES", 777)
    monkeypatch.setattr(window_reader, "MAX_RANGE_BYTES", 777)
    predict(run, tmp_path / "out", *TARGET, *METHODS[method], "--devices", devices)
    assert digest(tmp_path / "out") == digests[method]


def test_memory_does_not_matter(
    run: Run, digests: Mapping[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The smallest memory that is accepted and a large one: same bytes; less is refused."""
    monkeypatch.setattr(plan, "WINDOW_BYTES", 40_000)
    options = (*TARGET, *METHODS["alpharl"], "--devices", "cpu,cpu,cpu")
    line = fail("predict", *run.arguments("-o", str(tmp_path / "x"), *options, "--memory", "1MB"))
    minimum = line.rpartition("--memory ")[2].split()[0]
    assert not (tmp_path / "x").exists()
    for memory in (minimum, "64GB"):
        predict(run, tmp_path / memory, *options, "--memory", memory)
        assert digest(tmp_path / memory) == digests["alpharl"]
    less = f"{int(minimum.removesuffix('MB')) - 1}MB"
    fail("predict", *run.arguments("-o", str(tmp_path / "x"), *options, "--memory", less))


def test_number_of_threads_does_not_matter(
    run: Run, digests: Mapping[str, str], tmp_path: Path
) -> None:
    """A caller of the library whose torch uses more threads gets the same bytes."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        trajectory = open_trajectory(RunRequest(str(run.root), base=str(run.base)))
        predict_library(trajectory, tmp_path / "out", "linear")
    finally:
        torch.set_num_threads(before)
    assert digest(tmp_path / "out") == digests["alpharl"]


class CountingStore:
    """Passes every reading on and writes down which bytes it asked for."""

    def __init__(self, store: CheckpointStore, fail_after: int | None = None) -> None:
        self.store = store
        self.asked: dict[str, list[tuple[int, int]]] = {}
        self.lock = threading.Lock()
        self.left = fail_after

    def files(self) -> Mapping[str, StoredFile]:
        """The files of the real store."""
        return self.store.files()

    def is_private(self) -> bool:
        """As the real store."""
        return self.store.is_private()

    def read_into(self, filename: str, start: int, buffer: memoryview) -> None:
        """Read, and count; after `fail_after` readings of weights refuse."""
        with self.lock:
            if self.left is not None and filename.endswith(".safetensors"):
                self.left -= 1
                if self.left < 0:
                    raise SourceError("the disk went away; put it back")
            self.asked.setdefault(filename, []).append((start, start + len(buffer)))
        self.store.read_into(filename, start, buffer)

    def weights(self) -> dict[str, list[tuple[int, int]]]:
        """What was asked for of weight files."""
        return {n: ranges for n, ranges in self.asked.items() if n.endswith(".safetensors")}


def counted(trajectory: Trajectory) -> tuple[Trajectory, list[CountingStore]]:
    """Put counting stores under an opened trajectory, the base's first."""
    stores = [CountingStore(c.store) for c in (trajectory.base, *trajectory.history)]
    opened = [trajectory.base, *trajectory.history]
    base, *history = (
        replace(contents, store=store) for contents, store in zip(opened, stores, strict=True)
    )
    return replace(trajectory, base=base, history=tuple(history)), stores


def predict_library(
    trajectory: Trajectory,
    folder: Path,
    others: str = "last",
    method: str = "alpharl",
    on_progress: Callable[[int, int], None] | None = None,
) -> int:
    """Predict without the command line; gives the plan's bytes."""
    scope = ScopeOptions()
    subject = trajectory_subject(prepare(trajectory, scope, stop_on_wrong_base=True), scope)
    options = PredictOptions(method, TargetOptions((110,)), others=others)
    setting = plan_subject(subject, options)
    hooks = Hooks(on_progress) if on_progress else Hooks()
    predict_setting(setting, Destination(folder), Compute(("cpu", "cpu")), hooks)
    return setting.plan.read_bytes


@pytest.mark.parametrize("method", ["alpharl", "linear"])
@pytest.mark.parametrize("others", ["last", "base", "linear"])
def test_every_byte_is_asked_for_once_and_as_planned(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, others: str
) -> None:
    """No byte of a weight file is read twice, all of them are in the plan, progress counts them."""
    monkeypatch.setattr(plan, "WINDOW_BYTES", 40_000)
    trajectory, stores = counted(open_trajectory(RunRequest(str(run.root), base=str(run.base))))
    told: list[tuple[int, int]] = []
    planned = predict_library(
        trajectory, tmp_path / "out", others, method, lambda done, total: told.append((done, total))
    )
    total = 0
    for store in stores:
        for ranges in store.weights().values():
            ranges.sort()
            for (_, stop), (start, _) in pairwise(ranges):
                assert start >= stop
            total += sum(stop - start for start, stop in ranges)
    assert told[-1][0] == told[-1][1] <= planned
    assert [done for done, _ in told] == sorted(done for done, _ in told)
    assert total == pytest.approx(planned, rel=0.01)


def test_last_checkpoint_is_read_whole(run: Run, tmp_path: Path) -> None:
    """Of the last checkpoint every tensor's bytes are read; of the others what the method needs."""
    trajectory, stores = counted(open_trajectory(RunRequest(str(run.root), base=str(run.base))))
    predict_library(trajectory, tmp_path / "out")
    sums = [
        sum(stop - start for ranges in store.weights().values() for start, stop in ranges)
        for store in stores
    ]
    tensors = load_model(run.folder(50))
    matrices = sum(2 * t.numel() for n, t in tensors.items() if "proj" in n)
    everything = sum(t.numel() * t.element_size() for t in tensors.values())
    assert sums == [matrices, matrices, matrices, matrices, everything]


@pytest.mark.parametrize("allowed", [0, 1, 7])
def test_failing_reader_stops_everything(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, allowed: int
) -> None:
    """An error in one reading thread ends all workers, comes out as it is, and can be gone on from.

    The output folder appears only with the second, undisturbed start.
    """
    monkeypatch.setattr(plan, "WINDOW_BYTES", 40_000)
    opened = open_trajectory(RunRequest(str(run.root), base=str(run.base)))
    store = CountingStore(opened.history[1].store, fail_after=allowed)
    history = list(opened.history)
    history[1] = replace(history[1], store=store)
    before = threading.active_count()
    with pytest.raises(SourceError, match="the disk went away"):
        predict_library(replace(opened, history=tuple(history)), tmp_path / "out")
    assert threading.active_count() == before
    assert not (tmp_path / "out").exists()
    predict_library(opened, tmp_path / "out")
    predict(run, tmp_path / "again", *TARGET)
    assert digest(tmp_path / "out") == digest(tmp_path / "again")


def test_truncated_file_is_one_line(tmp_path: Path) -> None:
    """A weight file that ends early is refused from its header, before anything is computed."""
    cut = odd_run(tmp_path)
    path = cut.folder(30) / "model-00002-of-00002.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    line = fail("predict", *cut.arguments("-o", str(tmp_path / "out"), *TARGET))
    assert str(cut.folder(30)) in line
    assert "model-00002-of-00002.safetensors" in line


def window_of(contents: CheckpointContents, names: list[str]) -> Window:
    """A window that reads some tensors of one checkpoint, as base and as step."""
    parts = []
    for name in names:
        ref = contents.tensors[name]
        parts.append(
            Part(name, name, ref.shape, "copied", False, {BASE: ref, 0: ref}, ref, ref.shape)
        )
    return Window(0, tuple(parts))


def trajectory_of(contents: CheckpointContents) -> Trajectory:
    """A run of one checkpoint that is its own base."""
    return Trajectory(
        *("local", "", contents, "option", (), (), (contents,), None, False, None, ())
    )


@pytest.mark.parametrize("spaces", [0, 1, 5])
@pytest.mark.parametrize("range_bytes", [3, 1000, 1 << 20])
def test_reader_gives_what_safetensors_gives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spaces: int, range_bytes: int
) -> None:
    """Every tensor comes as safetensors reads it, integers as bytes, in ranges of any length."""
    monkeypatch.setattr(window_reader, "MAX_RANGE_BYTES", range_bytes)
    tensors = {
        "a": torch.randn(3, 5),
        "b": torch.randn(7).bfloat16(),
        "c": torch.arange(5, dtype=torch.int16),
        "d": torch.randn(2, 2, 2, dtype=torch.float64),
        "e": torch.tensor(1.5, dtype=torch.float16),
        "f": torch.zeros(0, 3),
    }
    folder = write_checkpoint(tmp_path, {**tensors, "skipped": torch.ones(100)}, num_shards=2)
    for path in folder.glob("*.safetensors"):
        write_again(path, spaces)
    contents = open_contents(*pin_folder(str(folder)))
    counts: list[int] = []
    reader = WindowReader(trajectory_of(contents), counts.append)
    window = window_of(contents, list(tensors))
    with ThreadPoolExecutor(2) as pool:
        for position in (BASE, 0):
            found = reader.begin(window, position, CopyStream("cpu"), pool).finish().take()
            for place, (name, wanted) in enumerate(tensors.items()):
                (raw,) = found[place]
                got = raw if name != "c" else raw.view(torch.int16)
                assert got.dtype == wanted.dtype, name
                assert torch.equal(got, wanted), name
    assert sum(counts) == 2 * sum(t.numel() * t.element_size() for t in tensors.values())
    assert max(counts) <= range_bytes


def write_again(path: Path, spaces: int) -> None:
    """Shift the data of a weight file by blanks in its header."""
    from trajectories import write_weights

    write_weights(path, load_file(path), spaces)


def test_tied_head_is_read_once(tmp_path: Path) -> None:
    """A head that is its embedding in the base costs no second reading of those bytes."""
    at = curved_run(STEPS)
    untied = write_run(tmp_path / "untied", STEPS, at)
    base = {n: t for n, t in at(0).items() if n != HEAD}
    config = {"tie_word_embeddings": True}
    write_checkpoint(tmp_path / "tied", base, config=config)
    mixed = Run(untied.root, tmp_path / "tied", STEPS)
    opened = open_trajectory(RunRequest(str(mixed.root), base=str(mixed.base)))
    trajectory, stores = counted(opened)
    predict_library(trajectory, tmp_path / "out", "linear")
    embedding = opened.base.tensors[EMBEDDING]
    ranges = stores[0].weights()["model.safetensors"]
    covering = [r for r in ranges if r[0] < embedding.stop and r[1] > embedding.start]
    assert sum(min(b, embedding.stop) - max(a, embedding.start) for a, b in covering) == (
        embedding.num_bytes
    )


def test_devices_that_are_not_there_are_refused(run: Run, tmp_path: Path) -> None:
    """A device that this machine lacks, or that is none, is one line."""
    for device in ("cuda:99", "mps", "abacus"):
        options = ("-o", str(tmp_path / "out"), *TARGET, "--devices", device)
        assert f"--devices {device}" in fail("predict", *run.arguments(*options))
    assert command("predict", str(run.root), *TARGET).exit_code == 2
