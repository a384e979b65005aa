"""One reading of a trajectory: windows through workers, results into a journal, progress told."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib.util import find_spec
from typing import Any, Protocol, TypeVar

from alpharl_hub import strict_json
from alpharl_hub.errors import ResourceError, WriteError
from alpharl_hub.executors.local import Events, LocalExecutor, WindowReads
from alpharl_hub.manifest import Notice
from alpharl_hub.trajectory import Trajectory
from alpharl_hub.windows.devices import Workers, choose_devices, compute_name, fit_workers
from alpharl_hub.windows.plan import Window, read_cost
from alpharl_hub.windows.reader import WindowReader

Result = TypeVar("Result")


def _no_progress(done_bytes: int, total_bytes: int) -> None:
    """Nobody watches."""


def _ignore_resume(num_done: int, num_windows: int) -> None:
    """Nobody asks."""


@dataclass(frozen=True)
class Hooks:
    """What the library tells while it works, and how it is stopped.

    `on_progress(done_bytes, total_bytes)` is called from any thread, in order: when a reading
    begins, with what an earlier start has done of it, and with all when its last window is
    computed, written, kept and handed on (a shard that is complete is uploaded by then).
    `done_bytes` never falls within a reading; a command that has to look first, such as the
    automatic choice of a method, has two readings. `on_resume(num_done, num_windows)` is called
    before that where an earlier start has done some of a reading's windows, or all.
    `stop` is set to end soon, with everything kept that was finished.
    """

    on_progress: Callable[[int, int], None] = _no_progress
    stop: threading.Event = field(default_factory=threading.Event)
    on_resume: Callable[[int, int], None] = _ignore_resume


@dataclass(frozen=True)
class Cluster:
    """A Ray cluster: its address (None: the one of this machine, else a new one of one machine)."""

    address: str | None = None
    verbose: bool = False


@dataclass(frozen=True)
class Compute:
    """Where the work is done (all GPUs or the CPU when empty), and with how much memory at most.

    With a cluster it is done there, and the memory is that of each of its workers.
    """

    devices: tuple[str, ...] = ()
    memory_bytes: int | None = None
    cluster: Cluster | None = None


class Results(Protocol):
    """Where finished windows are kept: the journal."""

    results: dict[str, object]

    def record(self, key: str, result: object) -> None:
        """Keep one result for good."""
        ...


_READ_SHARE, _READ_SHARE_WRITING = 0.95, 0.85
"""How much of a window counts when its bytes are read, and where it is written; the rest of it when
it is finished. At 60 MB/s, four checkpoints and two cores a window took 0.05 and 0.25 of the time
of its reading after its last byte."""


class WorkCounter:
    """Adds up what is read and what is finished of one reading, and tells how far it is.

    Of what was read and is not finished at most `ahead_bytes` count: where finishing is the slow
    part (an upload), its pace is the one that matters. `read_share` of these bytes count.
    `known_bytes` of the total were finished by an earlier start.
    """

    def __init__(
        self,
        total_bytes: int,
        ahead_bytes: int,
        tell: Callable[[int, int], None],
        read_share: float = _READ_SHARE,
        known_bytes: int = 0,
    ) -> None:
        self._total_bytes = total_bytes
        self._ahead_bytes = ahead_bytes
        self._read_share = read_share
        self._tell = tell
        self._read_bytes = self._finished_bytes = self._done_bytes = known_bytes
        self._repeated_bytes = 0
        self._lock = threading.Lock()

    def start(self) -> None:
        """Tell what is done before anything is read."""
        self._tell(self._done_bytes, self._total_bytes)

    def add_read(self, num_bytes: int) -> None:
        """Count bytes that were read."""
        with self._lock:
            self._read_bytes += num_bytes
            self._tell_all()

    def add_repeat(self, num_bytes: int) -> None:
        """Leave out so many of the bytes to come: they were read before."""
        with self._lock:
            self._repeated_bytes += num_bytes

    def add_finished(self, num_bytes: int) -> None:
        """Count the bytes of a window of which nothing is left to do."""
        with self._lock:
            self._finished_bytes += num_bytes
            self._tell_all()

    def _tell_all(self) -> None:
        ahead = self._read_bytes - self._repeated_bytes - self._finished_bytes
        counted = int(self._read_share * max(0, min(ahead, self._ahead_bytes)))
        # What is read once more was counted, and stays so.
        self._done_bytes = max(self._done_bytes, self._finished_bytes + counted)
        self._tell(self._done_bytes, self._total_bytes)


class MovedWindows:
    """Windows of a run for which a device had too little memory, so that the CPU did them."""

    def __init__(self) -> None:
        self._tensors: set[str] = set()

    def add(self, window: Window) -> None:
        """Note a window."""
        self._tensors.update(part.tensor for part in window.parts)

    @property
    def notices(self) -> tuple[Notice, ...]:
        """What the user should know: one notice, or none."""
        if not self._tensors:
            return ()
        first, count = min(self._tensors), len(self._tensors)
        others = f" and {count - 1} other tensors" if count > 1 else ""
        return (
            Notice(
                "device_memory",
                f"the device had too little memory for {first}{others}; computed on the CPU "
                "instead, within the same tolerance",
            ),
        )


@dataclass(frozen=True)
class Reading:
    """How one reading is done: the workers' devices, who is told, and the cluster, if it is one's.

    Each worker of a cluster has the one device that stands in `devices`, and `memory_bytes`.
    `moved` takes in what is done on the CPU instead; two readings of one run may share it.
    """

    devices: Sequence[str]
    hooks: Hooks
    cluster: Cluster | None = None
    memory_bytes: int = 0
    moved: MovedWindows = field(default_factory=MovedWindows)


@dataclass(frozen=True)
class Crew:
    """Who does the work of one reading; `name` says on what results are reproducible."""

    workers: Workers
    name: str
    cluster: Cluster | None

    def reading(self, hooks: Hooks) -> Reading:
        """Return how these workers read."""
        workers = self.workers
        return Reading(workers.devices, hooks, self.cluster, workers.peak_memory_bytes)


def find_crew(
    windows: Sequence[Window], compute: Compute, num_deltas_held: int = 0, num_outputs: int = 0
) -> Crew:
    """Return workers for these windows, on this machine or a cluster; numbers as in the plan.

    Raises:
        ResourceError: memory, a device or the cluster is missing.
    """
    held = (num_deltas_held, num_outputs, compute.memory_bytes)
    if compute.cluster is None:
        workers = fit_workers(windows, choose_devices(compute.devices), *held)
        return Crew(workers, compute_name(workers.devices), None)
    if find_spec("ray") is None:
        raise ResourceError(
            "--executor ray: Ray is not installed here; pip install 'alpharl-hub[ray]'"
        )
    from alpharl_hub.executors.ray import check_nodes, connect

    device = connect(compute.cluster.address, compute.cluster.verbose, compute.devices)
    workers = fit_workers(windows, (device,), *held)
    name = check_nodes(device, workers.peak_memory_bytes)
    return Crew(workers, name, compute.cluster)


def stream(
    trajectory: Trajectory,
    windows: Sequence[Window],
    work: Callable[[WindowReads, str], tuple[Result, ...]],
    reading: Reading,
    result_type: type[Result],
    journal: Results | None = None,
    on_window: Callable[[Window, Callable[[], None]], None] | None = None,
    key: str = "window",
) -> dict[int, tuple[Result, ...]]:
    """Read all windows once and return each one's results by its index.

    With a journal, windows that it holds are not read again, and every new result is kept there
    before `on_window(window, finished)` is told, which has `finished()` called, from any thread,
    when nothing of the window is left to do. `key` tells several readings of one journal apart.
    What a device had too little memory for is done on the CPU, and noted in `reading.moved`.
    """
    found = _known(journal, result_type, key)
    todo = _in_turn([w for w in windows if w.index not in found], reading)
    _remember_moves(windows, found, reading.moved, journal, key)
    if found:
        reading.hooks.on_resume(len(found), len(windows))
    counter = _counter(windows, todo, reading)
    moved: set[int] = set()
    events = Events(counter.add_repeat, lambda window: moved.add(window.index))
    is_kept, on_bytes = journal is not None, counter.add_read
    for window, results in _run(trajectory, todo, work, reading, on_bytes, events, is_kept):
        if window.index in moved:
            reading.moved.add(window)
            if journal is not None:
                journal.record(_move_key(window, key), True)
        if journal is not None:
            journal.record(f"{key} {window.index}", strict_json.to_plain(results))
        found[window.index] = results
        finished = partial(counter.add_finished, read_cost((window,))[0])
        if on_window is None:
            finished()
        else:
            on_window(window, finished)
    return found


def _in_turn(windows: Sequence[Window], reading: Reading) -> list[Window]:
    """Put the largest windows of each shard first where there are several workers.

    So they end together, and shards are still complete one after the other.
    """
    if reading.cluster is None and len(reading.devices) < 2:
        return list(windows)
    shards = list(dict.fromkeys(window.output_filename for window in windows))
    costs = {window.index: read_cost((window,))[0] for window in windows}
    return sorted(windows, key=lambda w: (shards.index(w.output_filename), -costs[w.index]))


def _counter(windows: Sequence[Window], todo: Sequence[Window], reading: Reading) -> WorkCounter:
    costs = [read_cost((window,))[0] for window in todo]
    # Each worker is in the middle of one window; what else was read waits for something slower.
    ahead_bytes = sum(sorted(costs)[-len(reading.devices) :])
    is_written = any(window.output_filename is not None for window in todo)
    read_share = _READ_SHARE_WRITING if is_written else _READ_SHARE
    total_bytes, tell = sum(read_cost((w,))[0] for w in windows), reading.hooks.on_progress
    known_bytes = total_bytes - sum(costs)
    counter = WorkCounter(total_bytes, ahead_bytes, tell, read_share, known_bytes)
    if todo:
        counter.start()
    return counter


def _move_key(window: Window, key: str) -> str:
    return f"moved {key} {window.index}"


def _remember_moves(
    windows: Sequence[Window],
    found: Mapping[int, object],
    moved: MovedWindows,
    journal: Results | None,
    key: str,
) -> None:
    """Note what an earlier start has done on the CPU."""
    for window in windows:
        is_known = journal is not None and _move_key(window, key) in journal.results
        if is_known and window.index in found:
            moved.add(window)


def _run(
    trajectory: Trajectory,
    windows: Sequence[Window],
    work: Callable[[WindowReads, str], tuple[Result, ...]],
    reading: Reading,
    on_bytes: Callable[[int], None],
    events: Events,
    is_kept: bool,
) -> Iterator[tuple[Window, tuple[Result, ...]]]:
    stop = reading.hooks.stop
    if reading.cluster is None:
        reader = WindowReader(trajectory, on_bytes)
        return LocalExecutor(reader, work, reading.devices, stop, events, is_kept).run(windows)
    from alpharl_hub.executors.ray import RayExecutor

    need = (reading.devices[0], reading.memory_bytes)
    return RayExecutor(trajectory, work, *need, stop, on_bytes, events).run(windows)


def _known(
    journal: Results | None, result_type: type[Result], wanted: str
) -> dict[int, tuple[Result, ...]]:
    found: dict[int, tuple[Result, ...]] = {}
    for key, result in (journal.results if journal else {}).items():
        kind, _, index = key.partition(" ")
        if kind == wanted:
            found[int(index)] = load_results(result_type, result, key)
    return found


def load_results(result_type: type[Result], value: Any, where: str) -> tuple[Result, ...]:
    """Turn what the journal holds of a window into its results again."""
    if not isinstance(value, list):
        raise WriteError(f"the journal's {where} is no list; delete the work folder")
    return tuple(strict_json.from_plain(result_type, item, where) for item in value)
