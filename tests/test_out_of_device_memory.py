"""A device whose memory does not suffice: the window again with less in flight, then on the CPU.

"cpu:0" names another device than "cpu" for the executor, and one that computes the same.
"""

from __future__ import annotations

import json
import queue
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from trajectories import Run, curved_run, digest, load_model, predict, succeed, write_run

from alpharl_hub.errors import ResourceError, SourceError
from alpharl_hub.executors.in_hand import InHand
from alpharl_hub.executors.local import Events, LocalExecutor, WindowReads
from alpharl_hub.executors.read_ahead import ReadAhead
from alpharl_hub.numerics.factors import Factors
from alpharl_hub.output.journal import open_journal
from alpharl_hub.output.shards import ShardWriter
from alpharl_hub.prediction import delivery
from alpharl_hub.prediction.setting import PredictOptions, plan_subject
from alpharl_hub.prediction.subjects import trajectory_subject
from alpharl_hub.prediction.targets import TargetOptions
from alpharl_hub.prediction.window_work import PartResult, WindowPredictor
from alpharl_hub.preparation import Prepared, ScopeOptions, prepare
from alpharl_hub.reporting import extraction
from alpharl_hub.reporting.analysis import MatrixResult, WindowAnalyser
from alpharl_hub.sources.opening import RunRequest, open_trajectory
from alpharl_hub.trajectory import Trajectory
from alpharl_hub.windows import plan, streaming
from alpharl_hub.windows.buffers import READINGS
from alpharl_hub.windows.plan import BASE, Window, plan_analysis, read_cost
from alpharl_hub.windows.reader import BegunReading, CopyStream, WindowReader
from alpharl_hub.windows.streaming import Hooks, Reading, stream

GPU = "cpu:0"
STEPS = (5, 20, 30, 50)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Four checkpoints of a tiny model in bf16."""
    folder = tmp_path_factory.mktemp("run")
    return write_run(folder, STEPS, curved_run(STEPS), dtype=torch.bfloat16)


@pytest.fixture
def prepared(run: Run, monkeypatch: pytest.MonkeyPatch) -> Prepared:
    """The run opened, to be cut into windows of a matrix or two."""
    monkeypatch.setattr(plan, "WINDOW_BYTES", 1000)
    trajectory = open_trajectory(RunRequest(str(run.root), base=str(run.base)))
    return prepare(trajectory, ScopeOptions(), stop_on_wrong_base=True)


Sums = tuple[tuple[str, int, float], ...]


def true_sums(run: Run, window: Window) -> Sums:
    """The sums of a window's tensors in every checkpoint, as safetensors and numpy have them."""
    found = []
    for position in window.positions:
        folder = run.base if position == BASE else run.folder(STEPS[position])
        with safe_open(folder / "model.safetensors", "pt") as file:
            for part in window.parts:
                values = file.get_tensor(part.tensor).double().numpy()
                found.append((part.tensor, position, float(np.sum(values))))
    return tuple(found)


class Held:
    """Something that takes memory, and is gone when nothing refers to it."""


class SumWork:
    """Adds up every tensor; runs out of memory as often as `failures` says, by window.

    `fail_at` is the number of readings that it takes before.
    """

    def __init__(self, failures: Sequence[int], fail_at: int = 2) -> None:
        self.left = dict(enumerate(failures))
        self.fail_at = fail_at
        self.tried: list[tuple[int, str]] = []
        self.arrived_on: list[tuple[int, str]] = []
        self.held: list[weakref.ref[Held]] = []
        self.still_held = 0

    def __call__(self, reads: WindowReads, device: str) -> Sums:
        """Do a window, or run out of memory with something in hand."""
        self.still_held += sum(held() is not None for held in self.held)
        index = reads.window.index
        self.tried.append((index, device))
        held = Held()
        cycle: list[object] = [held]
        cycle.append(cycle)
        if self.left[index]:
            self.held.append(weakref.ref(held))
        found = []
        for number, (position, stored) in enumerate(reads.readings):
            self.run_out(index, number)
            for place, (tensor,) in stored.items():
                self.arrived_on.append((index, str(tensor.device)))
                name = reads.window.parts[place].tensor
                total = 0.0 if tensor.is_meta else float(tensor.double().sum())
                found.append((name, position, total))
        self.run_out(index, len(reads.window.positions))
        return tuple(found)

    def run_out(self, index: int, number: int) -> None:
        """Fail, when it is time to."""
        if self.left[index] and number == self.fail_at:
            self.left[index] -= 1
            raise torch.OutOfMemoryError("planted")


class StagedSumWork(SumWork):
    """The same, with something to be written afterwards."""

    written: int = 0

    def compute(self, reads: WindowReads, device: str) -> tuple[Sums, Callable[[], None]]:
        """Do a window and leave its writing for later."""

        def write() -> None:
            self.written += 1

        return self(reads, device), write


class Execution:
    """An executor over windows, and all that it told."""

    def __init__(
        self, trajectory: Trajectory, work: SumWork, devices: Sequence[str] = (GPU,)
    ) -> None:
        self.read_bytes, self.repeated_bytes = 0, 0
        self.moved: list[int] = []
        self._lock = threading.Lock()
        self.reader = RecordingReader(trajectory, self._add)
        events = Events(self._repeat, lambda window: self.moved.append(window.index))
        stop = threading.Event()
        self.executor = LocalExecutor(self.reader, work, devices, stop, events)

    def _add(self, num_bytes: int) -> None:
        with self._lock:
            self.read_bytes += num_bytes

    def _repeat(self, num_bytes: int) -> None:
        with self._lock:
            self.repeated_bytes += num_bytes


class RecordingReader(WindowReader):
    """Notes what it reads onto which device; one device may have no room for some windows."""

    full: tuple[str, Sequence[int]] = ("", ())

    def __init__(self, trajectory: Trajectory, on_bytes: Callable[[int], None]) -> None:
        super().__init__(trajectory, on_bytes)
        self.devices: list[tuple[int, str]] = []

    def begin(
        self, window: Window, position: int, copies: CopyStream, pool: ThreadPoolExecutor
    ) -> BegunReading:
        """Begin to read, and then run out of memory where there is no room."""
        device = str(copies.device)
        self.devices.append((window.index, device))
        found = super().begin(window, position, copies, pool)
        if self.full[0] == device and window.index in self.full[1]:
            raise torch.OutOfMemoryError("planted")
        return found


def check_sums(run: Run, found: Sequence[tuple[Window, Sums]]) -> None:
    """Every tensor's sum is that of the file, in the order of readings."""
    for window, sums in found:
        truth = true_sums(run, window)
        assert [s[:2] for s in sums] == [s[:2] for s in truth]
        assert [s[2] for s in sums] == pytest.approx([s[2] for s in truth])


@pytest.mark.parametrize("make", [SumWork, StagedSumWork])
@pytest.mark.parametrize("fail_at", [0, 2, len(STEPS) + 1])
def test_window_is_done_again_and_then_on_the_cpu(
    run: Run, prepared: Prepared, make: type[SumWork], fail_at: int
) -> None:
    """The first failure: again on the device, with less in flight. From then on: on the CPU.

    Wherever it failed the results are right, every window comes once, and other windows are still
    done on the device; what a failed attempt held is gone before the next one, and is read again.
    """
    windows = plan_analysis(prepared.scope.matrices)[:6]
    work = make([0, 1, 0, 1, 1, 0], fail_at)
    execution = Execution(prepared.trajectory, work)
    found = list(execution.executor.run(windows))
    assert [window.index for window, _ in found] == [0, 1, 2, 3, 4, 5]
    check_sums(run, found)
    again = [(1, GPU), (3, "cpu"), (4, "cpu")]
    assert work.tried == sorted([(index, GPU) for index in range(6)] + again, key=lambda x: x[0])
    assert execution.moved == [3, 4]
    assert (len(work.held), work.still_held) == (3, 0)
    assert execution.read_bytes - execution.repeated_bytes == read_cost(windows)[0]
    assert execution.repeated_bytes >= sum(
        sum(r.num_bytes for _, r in windows[i].reads_at(p))
        for i in (1, 3, 4)
        for p in windows[i].positions[:fail_at]
    )
    if isinstance(work, StagedSumWork):
        assert work.written == len(windows)


def test_window_that_fails_twice_at_once(run: Run, prepared: Prepared) -> None:
    """The first window of all fails, and again with less in flight: it is done on the CPU."""
    windows = plan_analysis(prepared.scope.matrices)[:3]
    work = SumWork([2, 0, 0])
    execution = Execution(prepared.trajectory, work)
    check_sums(run, list(execution.executor.run(windows)))
    assert work.tried == [(0, GPU), (0, GPU), (0, "cpu"), (1, GPU), (2, GPU)]
    assert execution.moved == [0]


def test_windows_that_were_begun_come_after_all(run: Run, prepared: Prepared) -> None:
    """The next window is being read when one fails late, and not yet when that fails again early.

    No window is lost, and none comes twice.
    """
    windows = plan_analysis(prepared.scope.matrices)[:4]

    class LateThenEarly(SumWork):
        def run_out(self, index: int, number: int) -> None:
            if self.left[index] and number == self.fail_at > 0:
                while (1, GPU) not in execution.reader.devices:
                    time.sleep(0.01)
            try:
                super().run_out(index, number)
            except torch.OutOfMemoryError:
                self.fail_at = 0
                raise

    execution = Execution(prepared.trajectory, LateThenEarly([2, 0, 0, 0], len(STEPS) + 1))
    found = list(execution.executor.run(windows))
    assert [window.index for window, _ in found] == [0, 1, 2, 3]
    check_sums(run, found)


def test_nothing_waits_on_the_device_after_a_failure(prepared: Prepared) -> None:
    """After the first failure everything is read into the machine's memory, and moved one by one.

    The device is torch's "meta", so that what the work gets shows where it was brought.
    """
    windows = plan_analysis(prepared.scope.matrices)[:4]
    work = SumWork([0, 2, 0, 0])
    execution = Execution(prepared.trajectory, work, ("meta",))
    assert len(list(execution.executor.run(windows))) == 4
    devices = execution.reader.devices
    first = devices.index((1, "cpu"))
    assert {device for _, device in devices[:first]} == {"meta"}
    assert {device for _, device in devices[first:]} == {"cpu"}
    assert {index for index, device in work.arrived_on if device == "cpu"} == {1}
    assert {index for index, device in work.arrived_on if device == "meta"} == {0, 1, 2, 3}


def test_what_was_read_ahead_is_let_go(prepared: Prepared) -> None:
    """A window is given up before its first reading is taken: nothing that was read stays.

    All windows that were begun are to be done again, and so are their bytes.
    """
    windows = plan_analysis(prepared.scope.matrices)[:3]
    todo: queue.SimpleQueue[Window] = queue.SimpleQueue()
    for window in windows:
        todo.put(window)
    given: list[weakref.ref[torch.Tensor]] = []

    def begin(window: Window, position: int) -> BegunReading:
        tensor = torch.zeros(3)
        given.append(weakref.ref(tensor))
        return BegunReading((), (), {}, tensor, CopyStream("cpu"))

    ahead = ReadAhead(begin, (), todo, InHand(threading.Event(), is_kept=False))
    assert ahead.next_window() is windows[0]
    while len(given) < 3:
        time.sleep(0.01)
    again, num_bytes = ahead.cancel()
    assert [held() for held in given] == [None] * len(given)
    assert tuple(again) == windows[: len(again)]
    read_whole = read_cost(windows)[0]
    assert 0 < num_bytes <= read_whole
    assert todo.qsize() == len(windows) - len(again)


@pytest.mark.parametrize("full", [[0], [1], [3], [0, 1, 2, 3]])
def test_reading_that_does_not_fit(run: Run, prepared: Prepared, full: Sequence[int]) -> None:
    """A device that has no room for what is read ahead: the window comes by the machine's memory.

    That is enough where the device has room for one reading at a time.
    """
    windows = plan_analysis(prepared.scope.matrices)[:4]
    work = SumWork([0, 0, 0, 0])
    execution = Execution(prepared.trajectory, work)
    execution.reader.full = (GPU, full)
    check_sums(run, list(execution.executor.run(windows)))
    assert execution.moved == []
    assert work.tried.count((full[0], GPU)) == 2
    assert len(work.tried) == 5
    assert execution.read_bytes - execution.repeated_bytes == read_cost(windows)[0]


def test_write_before_is_over_when_a_window_begins_again(prepared: Prepared) -> None:
    """What is still to be written of the window before may hold memory: it is waited for."""
    windows = plan_analysis(prepared.scope.matrices)[:2]
    has_failed, begins_again = threading.Event(), threading.Event()
    order: list[str] = []

    class Slow(SumWork):
        def run_out(self, index: int, number: int) -> None:
            try:
                super().run_out(index, number)
            except torch.OutOfMemoryError:
                has_failed.set()
                raise

        def compute(self, reads: WindowReads, device: str) -> tuple[Sums, Callable[[], None]]:
            if has_failed.is_set():
                begins_again.set()
            order.append(f"try {reads.window.index}")
            found = self(reads, device)

            def write() -> None:
                if reads.window.index == 0:
                    assert has_failed.wait(10)
                    begins_again.wait(1)  # in vain, unless it begins too early
                order.append(f"written {reads.window.index}")

            return found, write

    execution = Execution(prepared.trajectory, Slow([0, 1]))
    assert len(list(execution.executor.run(windows))) == 2
    assert order == ["try 0", "try 1", "written 0", "try 1", "written 1"]


@pytest.mark.parametrize("seed", range(5))
def test_several_workers_fail_at_random(run: Run, prepared: Prepared, seed: int) -> None:
    """Three workers whose windows fail here and there: all results right, no thread left."""
    source = np.random.default_rng(seed)
    windows = plan_analysis(prepared.scope.matrices)
    failures = source.choice([0, 0, 0, 1], len(windows)).tolist()
    work = SumWork(failures, int(source.integers(0, 6)))
    execution = Execution(prepared.trajectory, work, (GPU, GPU, "cpu:1"))
    execution.reader.full = (GPU, source.choice(len(windows), 3).tolist())
    before = threading.active_count()
    found = list(execution.executor.run(windows))
    assert sorted(window.index for window, _ in found) == list(range(len(windows)))
    check_sums(run, found)
    assert threading.active_count() == before
    assert execution.read_bytes - execution.repeated_bytes == read_cost(windows)[0]
    tried_on_cpu = {index for index, device in work.tried if device == "cpu"}
    assert set(execution.moved) == tried_on_cpu


def test_other_errors_are_not_tried_again(prepared: Prepared) -> None:
    """A failure of another kind, and one on the CPU itself, come out as they are at once."""
    windows = plan_analysis(prepared.scope.matrices)[:2]

    class Broken(SumWork):
        def run_out(self, index: int, number: int) -> None:
            raise RuntimeError("broken")

    work = Broken([0, 0])
    with pytest.raises(RuntimeError, match=r"^broken$"):
        list(Execution(prepared.trajectory, work).executor.run(windows))
    assert work.tried == [(0, GPU)]
    work = SumWork([1, 0])
    with pytest.raises(torch.OutOfMemoryError, match="planted"):
        list(Execution(prepared.trajectory, work, ("cpu",)).executor.run(windows))
    assert work.tried == [(0, "cpu")]


def test_source_that_is_lost_meanwhile(run: Run, prepared: Prepared) -> None:
    """Where the second reading of a window fails, its error comes out, and no thread is left."""
    windows = plan_analysis(prepared.scope.matrices)[:3]

    class Lost(RecordingReader):
        def begin(
            self, window: Window, position: int, copies: CopyStream, pool: ThreadPoolExecutor
        ) -> BegunReading:
            if str(copies.device) == "cpu":
                raise SourceError("the link is down")
            return super().begin(window, position, copies, pool)

    before = threading.active_count()
    execution = Execution(prepared.trajectory, SumWork([0, 1, 0]))
    execution.executor.reader = Lost(prepared.trajectory, print)
    execution.executor.reader.full = ("", ())
    with pytest.raises(SourceError, match="the link is down"):
        list(execution.executor.run(windows))
    assert threading.active_count() == before


@pytest.mark.parametrize(
    "take",
    [lambda size: torch.empty(size, dtype=torch.uint8), READINGS.take],
    ids=["torch", "pool"],
)
def test_memory_of_the_machine_is_one_line(prepared: Prepared, take: Callable[[int], None]) -> None:
    """What torch and the kernel really say when the machine's memory does not suffice: our error.

    It names the tensor and what to do, and the window is not tried a second time.
    """
    windows = plan_analysis(prepared.scope.matrices)[:1]

    class Greedy(SumWork):
        def run_out(self, index: int, number: int) -> None:
            take(1 << 60)

    work = Greedy([0])
    with pytest.raises(ResourceError, match="--memory") as caught:
        list(Execution(prepared.trajectory, work).executor.run(windows))
    assert windows[0].parts[0].name in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
    assert work.tried == [(0, GPU)]


class Tight(WindowAnalyser):
    """Factorises windows, on a device that has room for none of some windows."""

    too_large: Sequence[int] = ()

    def compute(
        self, reads: WindowReads, device: str
    ) -> tuple[tuple[MatrixResult, ...], Callable[[], None]]:
        """Do a window, or run out of memory when all of it is read."""
        found = super().compute(reads, device)
        if device != "cpu" and reads.window.index in self.too_large:
            raise torch.OutOfMemoryError("planted")
        return found


def analyse(
    prepared: Prepared, too_large: Sequence[int], journal: Path | None = None
) -> tuple[object, dict[str, Factors], Reading, list[tuple[int, int]]]:
    """Read all factors; gives results, factors, the reading and what was told of its progress."""
    windows = plan_analysis(prepared.scope.matrices)
    found: dict[str, Factors] = {}
    work = Tight(prepared.trajectory, None, 1, 1, found.update)
    work.too_large = too_large
    told: list[tuple[int, int]] = []
    reading = Reading((GPU,), Hooks(lambda done, total: told.append((done, total))))
    arguments = (prepared.trajectory, windows, work, reading, MatrixResult)
    if journal is None:
        return stream(*arguments), found, reading, told
    with open_journal(journal, {"run": 1}) as opened:
        (journal / "result").mkdir(exist_ok=True)
        results = stream(*arguments, opened)
        del results
        raise KeyboardInterrupt


def test_factors_are_the_same_to_the_bit(prepared: Prepared) -> None:
    """With three windows too large for the device: the factors of a device with enough room.

    One notice names a tensor of them and counts the others; without any there is no notice. The
    progress never falls and ends at its total, though bytes were read twice.
    """
    results, factors, reading, _ = analyse(prepared, ())
    assert reading.moved.notices == ()
    again, same, tight, told = analyse(prepared, (1, 2, 5))
    assert again == results
    assert same.keys() == factors.keys()
    for name, wanted in factors.items():
        for field in ("u_TRM", "sigma_TR", "v_TRN", "frobenius_T"):
            assert torch.equal(getattr(same[name], field), getattr(wanted, field))
    windows = plan_analysis(prepared.scope.matrices)
    names = [part.tensor for i in (1, 2, 5) for part in windows[i].parts]
    (notice,) = tight.moved.notices
    assert notice.code == "device_memory"
    assert min(names) in notice.message
    assert f"{len(names) - 1} other tensors" in notice.message
    total = read_cost(windows)[0]
    assert {of for _, of in told} == {total}
    done = [done for done, _ in told]
    assert done == sorted(done)
    assert (done[0], done[-1]) == (0, total)


def test_note_survives_an_interruption(prepared: Prepared, tmp_path: Path) -> None:
    """A run that goes on from its journal still says what an earlier start did on the CPU."""
    with pytest.raises(KeyboardInterrupt):
        analyse(prepared, (1,), tmp_path / "work")
    windows = plan_analysis(prepared.scope.matrices)
    reading = Reading((GPU,), Hooks())
    work = Tight(prepared.trajectory, None, 1, 1, lambda _: None)
    work.too_large = range(len(windows))
    with open_journal(tmp_path / "work", {"run": 1}) as opened:
        found = stream(prepared.trajectory, windows, work, reading, MatrixResult, opened)
    assert len(found) == len(windows)
    (notice,) = reading.moved.notices
    assert min(part.tensor for part in windows[1].parts) in notice.message


class TightPredictor(WindowPredictor):
    """Predicts windows, on a device that has room for none of every third window."""

    def compute(
        self, reads: WindowReads, device: str
    ) -> tuple[tuple[PartResult, ...], Callable[[], None]]:
        """Do a window, or run out of memory when all of it is read."""
        found = super().compute(reads, device)
        if device != "cpu" and reads.window.index % 3 == 1:
            raise torch.OutOfMemoryError("planted")
        return found


def test_prediction_is_the_same_to_the_bit(run: Run, prepared: Prepared, tmp_path: Path) -> None:
    """A whole model predicted with every third window on the CPU: the bytes of an undisturbed run.

    Shards are complete, so that safetensors reads them.
    """
    predict(run, tmp_path / "wanted", "--target-step", "110", "--devices", "cpu")
    subject = trajectory_subject(prepared, ScopeOptions())
    setting = plan_subject(subject, PredictOptions("alpharl", TargetOptions((110,))))
    folder = tmp_path / "found"
    folder.mkdir()
    writer = ShardWriter(folder, setting.plan.files)
    writer.open()
    work = TightPredictor(subject.trajectory, setting.recipe, [writer])
    reading = Reading((GPU, GPU), Hooks())
    stream(subject.trajectory, setting.plan.windows, work, reading, PartResult)
    for file in setting.plan.files:
        writer.complete(file.filename)
    assert digest(folder) == digest(tmp_path / "wanted")
    assert load_model(folder).keys() == load_model(run.folder(50)).keys()
    assert len(reading.moved.notices) == 1


def test_manifest_says_what_the_cpu_did(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Manifest and stderr of `predict` and `extract` name what did not fit; the bytes stay."""
    monkeypatch.setattr(plan, "WINDOW_BYTES", 1000)
    predict(run, tmp_path / "wanted", "--target-step", "110")
    monkeypatch.setattr(streaming, "choose_devices", lambda requested: (GPU,))
    monkeypatch.setattr(delivery, "WindowPredictor", TightPredictor)
    result = succeed(
        "predict", *run.arguments("-o", str(tmp_path / "found"), "--target-step", "110")
    )
    assert digest(tmp_path / "found") == digest(tmp_path / "wanted")
    assert "the device had too little memory for lm_head.weight and" in " ".join(
        result.stderr.split()
    )
    monkeypatch.setattr(Tight, "too_large", [0, 3])
    monkeypatch.setattr(extraction, "WindowAnalyser", Tight)
    succeed("extract", *run.arguments("-o", str(tmp_path / "factors")))
    for folder in ("found", "factors"):
        manifest = json.loads((tmp_path / folder / "alpharl.json").read_text())
        (notice,) = (w for w in manifest["warnings"] if w["code"] == "device_memory")
        assert "computed on the CPU" in notice["message"]
