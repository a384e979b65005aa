"""One reading of a trajectory: windows through workers, results into a journal, progress told."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any, Protocol, TypeVar

from alpharl_hub import strict_json
from alpharl_hub.errors import ResourceError, WriteError
from alpharl_hub.executors.local import LocalExecutor, WindowReads
from alpharl_hub.trajectory import Trajectory
from alpharl_hub.windows.devices import Workers, choose_devices, compute_name, fit_workers
from alpharl_hub.windows.plan import Window, read_cost
from alpharl_hub.windows.reader import WindowReader

Result = TypeVar("Result")


def _no_progress(done_bytes: int, total_bytes: int) -> None:
    """Nobody watches."""


@dataclass(frozen=True)
class Hooks:
    """What the library tells while it works, and how it is stopped.

    `on_progress(done_bytes, total_bytes)` is called from any thread, in order; `stop` is set to end
    soon, with everything kept that was finished.
    """

    on_progress: Callable[[int, int], None] = _no_progress
    stop: threading.Event = field(default_factory=threading.Event)


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


class ByteCounter:
    """Adds up bytes from many threads and tells the sum."""

    def __init__(self, total_bytes: int, tell: Callable[[int, int], None]) -> None:
        self._total_bytes = total_bytes
        self._done_bytes = 0
        self._tell = tell
        self._lock = threading.Lock()

    def add(self, num_bytes: int) -> None:
        """Count bytes that were read."""
        with self._lock:
            self._done_bytes += num_bytes
            self._tell(self._done_bytes, self._total_bytes)


@dataclass(frozen=True)
class Reading:
    """How one reading is done: the workers' devices, who is told, and the cluster, if it is one's.

    Each worker of a cluster has the one device that stands in `devices`, and `memory_bytes`.
    """

    devices: Sequence[str]
    hooks: Hooks
    cluster: Cluster | None = None
    memory_bytes: int = 0


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
    on_window: Callable[[Window], None] | None = None,
    key: str = "window",
) -> dict[int, tuple[Result, ...]]:
    """Read all windows once and return each one's results by its index.

    With a journal, windows that it holds are not read again, and every new result is kept there
    before `on_window` is told. `key` tells several readings of one journal apart.
    """
    found = _known(journal, result_type, key)
    todo = [window for window in windows if window.index not in found]
    counter = ByteCounter(read_cost(todo)[0], reading.hooks.on_progress)
    for window, results in _run(trajectory, todo, work, reading, counter.add):
        if journal is not None:
            journal.record(f"{key} {window.index}", strict_json.to_plain(results))
        found[window.index] = results
        if on_window is not None:
            on_window(window)
    return found


def _run(
    trajectory: Trajectory,
    windows: Sequence[Window],
    work: Callable[[WindowReads, str], tuple[Result, ...]],
    reading: Reading,
    on_bytes: Callable[[int], None],
) -> Iterator[tuple[Window, tuple[Result, ...]]]:
    stop = reading.hooks.stop
    if reading.cluster is None:
        reader = WindowReader(trajectory, on_bytes)
        return LocalExecutor(reader, work, reading.devices, stop).run(windows)
    from alpharl_hub.executors.ray import RayExecutor

    need = (reading.devices[0], reading.memory_bytes)
    return RayExecutor(trajectory, work, *need, stop, on_bytes).run(windows)


def _known(
    journal: Results | None, result_type: type[Result], wanted: str
) -> dict[int, tuple[Result, ...]]:
    found: dict[int, tuple[Result, ...]] = {}
    for key, result in (journal.results if journal else {}).items():
        kind, _, index = key.partition(" ")
        if kind == wanted:
            found[int(index)] = _load(result_type, result, key)
    return found


def _load(result_type: type[Result], value: Any, where: str) -> tuple[Result, ...]:
    if not isinstance(value, list):
        raise WriteError(f"the journal's {where} is no list; delete the work folder")
    return tuple(strict_json.from_plain(result_type, item, where) for item in value)
