"""Runs windows on a Ray cluster, each as a task of its own; imported only when that is asked for.

Ray decides where a task runs, starts it again when its process or machine is lost, and keeps count
of CPUs, GPUs and memory. A task reads its own byte ranges, writes into the shards at their places
and returns the window's results; done twice it writes the same bytes at the same places.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Generic, TypeVar

import ray
import torch
from ray.exceptions import GetTimeoutError, RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from alpharl_hub.errors import AlphaRLError, ResourceError
from alpharl_hub.executors.local import Events, LocalExecutor, Stopped, WindowWork
from alpharl_hub.trajectory import Trajectory
from alpharl_hub.version import __version__
from alpharl_hub.windows.plan import Window, read_cost
from alpharl_hub.windows.reader import WindowReader

Result = TypeVar("Result")

_MAX_RETRIES = 5
"""How many machines or processes one window may lose; errors of ours are not retried."""

_WINDOWS_PER_WORKER = 2
"""One at work and one waiting, so that no worker waits for the answer of this process."""

_POLL_S = 0.2
_KNOCK_S = 5.0
_STOPPING_S = 2.0
_ANSWER_S = 120
"""How long a machine may take to start a process with torch in it."""

_CONNECTED = threading.Event()
"""Set while this process is connected by `connect`, not by who uses the library."""


def connect(address: str | None, verbose: bool, devices: Sequence[str]) -> str:
    """Connect to a cluster once, and return the device that a window gets there.

    Without an address it is the cluster that this machine belongs to, else a new one of this
    machine alone, which ends with this process.

    Raises:
        ResourceError: there is no such cluster, or devices are named that Ray gives out itself.
    """
    if any(device != "cpu" for device in devices):
        raise ResourceError(
            f"--devices {','.join(devices)}: Ray gives out the GPUs of a cluster; leave it out, or "
            "write cpu to use none"
        )
    if address is not None and "://" in address:
        raise ResourceError(
            f"--address {address}: start the command on a machine of the cluster, and give "
            "HOST:PORT or auto"
        )
    if address is not None:
        _check_port(address)
    if not ray.is_initialized():
        # A cluster of this command's own tells nobody about itself, unless the user wants it to.
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        level = logging.INFO if verbose else logging.CRITICAL
        try:
            with _own_signal_handlers():
                ray.init(address=address, log_to_driver=False, logging_level=level)
            # It would still tell on stdout of machines that are lost (Ray 2.60,
            # `listen_error_messages`); there is no public word for silence.
            ray._private.worker._worker_logs_enabled = False
            _CONNECTED.set()
        except (ConnectionError, RuntimeError, ValueError) as error:
            place = f"--address {address}" if address else "--executor ray"
            raise ResourceError(f"{place}: no Ray cluster there ({_first_line(error)})") from error
    has_gpus = any(node.resources.get("GPU", 0.0) >= 1 for node in _nodes())
    return "cuda:0" if has_gpus and not devices else "cpu"


def _check_port(address: str) -> None:
    """Knock at HOST:PORT: where nobody is, Ray would go on trying for two minutes."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal():
        return
    try:
        socket.create_connection((host, int(port)), _KNOCK_S).close()
    except OSError as error:
        reason = error.strerror or error
        raise ResourceError(f"--address {address}: no Ray cluster there ({reason})") from error


def _disconnect() -> None:
    """Let go of a cluster that was not connected to by somebody else."""
    if _CONNECTED.is_set():
        ray.shutdown()
        _CONNECTED.clear()


@contextmanager
def _own_signal_handlers() -> Iterator[None]:
    """Keep what the command does on a signal: Ray ends the process on SIGTERM."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@dataclass(frozen=True)
class _Node:
    """A machine of the cluster: what it can give, all in all."""

    identity: str
    address: str
    resources: Mapping[str, float]

    def num_workers(self, device: str, memory_bytes: int) -> int:
        """How many windows it can work on at a time."""
        need = {"CPU": 1.0, "memory": float(memory_bytes), "GPU": float(device != "cpu")}
        return min(int(self.resources.get(k, 0.0) // v) for k, v in need.items() if v)


def _nodes() -> tuple[_Node, ...]:
    return tuple(
        _Node(row["NodeID"], row["NodeManagerAddress"], row["Resources"])
        for row in ray.nodes()  # type: ignore[no-untyped-call]
        if row["Alive"]
    )


def check_nodes(device: str, memory_bytes: int) -> str:
    """Ask every machine for its versions, and return on what the results are reproducible.

    Raises:
        ResourceError: none can hold a window, or one has other versions or does not answer.
    """
    nodes = [node for node in _nodes() if node.num_workers(device, memory_bytes)]
    if not nodes:
        gpu = "" if device == "cpu" else " and a GPU"
        raise ResourceError(
            f"no machine of the Ray cluster has a CPU, {memory_bytes / 1e9:.2g} GB of memory{gpu} "
            "for a window; start one that has"
        )
    here = (__version__, _public(torch.__version__))
    names = set()
    for node, answer in zip(nodes, _ask(nodes, device), strict=True):
        version, torch_version, name = _get(answer, f"machine {node.address}", _ANSWER_S)
        if version is None:
            raise ResourceError(
                f"machine {node.address}: alpharl-hub cannot be imported there ({name}); install "
                "the same on all machines of the cluster"
            )
        if (version, _public(torch_version)) != here:
            raise ResourceError(
                f"machine {node.address} has alpharl-hub {version} and torch {torch_version}, not "
                f"{here[0]} and {here[1]} as here; install the same everywhere"
            )
        names.add(name)
    return ", ".join(sorted(names))


def _public(version: str) -> str:
    """Leave out the +cpu or +cu128 of a version: the machine that asks may have no GPU."""
    return version.partition("+")[0]


def _ask(nodes: Sequence[_Node], device: str) -> list[ray.ObjectRef[tuple[str | None, str, str]]]:
    """Ask every machine for its versions of this package and torch, and what it computes on."""

    # A function inside of a function travels as code, also to where this package is missing.
    def describe() -> tuple[str | None, str, str]:
        try:
            import torch

            from alpharl_hub.version import __version__
            from alpharl_hub.windows.devices import compute_name
        except ImportError as error:
            return None, "None", str(error)
        return __version__, torch.__version__, compute_name([device])

    # Without any share of a GPU it would see none.
    task = ray.remote(num_cpus=0, num_gpus=0 if device == "cpu" else 0.01, max_retries=0)(describe)
    places = [NodeAffinitySchedulingStrategy(node.identity, soft=False) for node in nodes]
    return [task.options(scheduling_strategy=place).remote() for place in places]


class RayExecutor(Generic[Result]):
    """Spreads windows over the workers of a cluster that is connected.

    Args:
        trajectory: where to read; travels to every worker with the addresses and the token.
        work: what is done with a window; travels too.
        device: cpu, or cuda:0 for a GPU each.
        memory_bytes: what a window needs at the most, the whole process counted.
        stop: set from outside (a signal) to end soon.
        on_bytes: told the bytes that a window has read, when it is done.
        events: who is told of windows that did not fit on their GPU.
    """

    def __init__(
        self,
        trajectory: Trajectory,
        work: WindowWork[Result],
        device: str,
        memory_bytes: int,
        stop: threading.Event,
        on_bytes: Callable[[int], None],
        events: Events,
    ) -> None:
        self._job = _Job(trajectory, work, device)
        self._device = device
        self._memory_bytes = memory_bytes
        self._stop = stop
        self._on_bytes = on_bytes
        self._events = events

    def run(self, windows: Sequence[Window]) -> Iterator[tuple[Window, Result]]:
        """Yield every window with its result, in the order in which they get done.

        Raises:
            AlphaRLError: as the work raised it, or ResourceError when Ray gave a window up.
        """
        if not windows:
            return
        job, todo = ray.put(self._job), deque(windows)
        running: dict[ray.ObjectRef[Any], Window] = {}
        try:
            while todo or running:
                while todo and len(running) < self._max_in_flight():
                    window = todo.popleft()
                    running[self._start(job, window)] = window
                done, _ = ray.wait(list(running), timeout=_POLL_S)
                if self._stop.is_set():
                    raise Stopped
                for reference in done:
                    window = running.pop(reference)
                    result, is_moved = _get(reference, f"window {window.index}")
                    if is_moved:
                        self._events.on_move(window)
                    self._on_bytes(read_cost((window,))[0])
                    yield window, result
        finally:
            _cancel(list(running))
            if self._stop.is_set():
                # At the exit of the process it could take ten seconds, where a signal has reached
                # Ray's own processes too; here who took the signal waits for four.
                _disconnect()

    def _max_in_flight(self) -> int:
        """Machines come and go, so they are counted every time."""
        workers = sum(node.num_workers(self._device, self._memory_bytes) for node in _nodes())
        return _WINDOWS_PER_WORKER * max(1, workers)

    def _start(self, job: ray.ObjectRef[Any], window: Window) -> ray.ObjectRef[Any]:
        task = _do_window.options(
            name=f"window {window.index}",
            num_gpus=0 if self._device == "cpu" else 1,
            memory=self._memory_bytes,
        )
        # In a list it stays a reference, which each worker process opens once.
        return task.remote([job], window)


def _get(reference: ray.ObjectRef[Any], what: str, timeout_s: float | None = None) -> Any:
    """Return what a task returned, or raise what it raised."""
    try:
        return ray.get(reference, timeout=timeout_s)
    except RayTaskError as error:
        if isinstance(error.cause, AlphaRLError):
            raise error.cause from error
        raise
    except GetTimeoutError as error:
        raise ResourceError(
            f"{what}: no answer in {timeout_s:.0f} s; see to the cluster"
        ) from error
    except RayError as error:
        raise ResourceError(f"{what}: given up by Ray ({_first_line(error)})") from error


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def _cancel(running: list[ray.ObjectRef[Any]]) -> None:
    """End what is at work, so that nothing is written any more once the journal is let go."""
    for reference in running:
        ray.cancel(reference, force=True)
    if running:
        ray.wait(running, num_returns=len(running), timeout=_STOPPING_S)


@dataclass(frozen=True)
class _Job:
    """What is the same for all windows of a reading."""

    trajectory: Trajectory
    work: WindowWork[Any]
    device: str


@lru_cache(maxsize=1)
def _open(reference: ray.ObjectRef[_Job]) -> _Job:
    """Take in the job in a worker process, which keeps it, with its connections, for others."""
    torch.set_num_threads(1)
    return ray.get(reference)


@ray.remote(num_cpus=1, max_retries=_MAX_RETRIES, scheduling_strategy="SPREAD")
def _do_window(job: list[ray.ObjectRef[_Job]], window: Window) -> Any:
    """Do one window in a worker process; returns its result, and if the CPU did it for a GPU."""
    opened = _open(job[0])
    reader = WindowReader(opened.trajectory, _ignore_bytes)
    stop = threading.Event()
    moved: list[Window] = []
    events = Events(on_move=moved.append)
    executor = LocalExecutor(reader, opened.work, [opened.device], stop, events)
    ((_, result),) = executor.run([window])
    return result, bool(moved)


def _ignore_bytes(num_bytes: int) -> None:
    """The process that asked counts whole windows: one that is done twice counts once."""
