"""A Ray cluster of two machines, here two nodes of one: the same bytes as on one machine."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from hub_fixtures import ALICE, add_base, add_branches, served_hub
from lora_runs import write_lora_run
from ray.cluster_utils import Cluster
from test_resume import STEPS, TARGET, WINDOW_BYTES, Child, tensors_at
from trajectories import Run, digest, with_method, write_run

from alpharl_hub.errors import WriteError
from alpharl_hub.local_hub import Fault, LocalHub, child_environment
from alpharl_hub.output.shards import OutputTensor, ShardWriter, lay_out

RUN, BASE = "alice/run", "alice/base"
ON_HUB = (RUN, "--base", BASE)
NODE: dict[str, Any] = {"num_cpus": 1, "object_store_memory": 80_000_000}
# A node that is gone is missed within a second.
QUICK = {
    "health_check_initial_delay_ms": 0,
    "health_check_period_ms": 300,
    "health_check_failure_threshold": 3,
}
PYTHONPATH = os.pathsep.join(sys.path)

DRIVER = f"""
import json, os, sys
from alpharl_hub.windows import plan
plan.WINDOW_BYTES = {WINDOW_BYTES}
from alpharl_hub.cli import main

answers = os.fdopen(os.dup(1), "w")
for line in sys.stdin:
    for number, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    code = 0
    try:
        main(json.loads(line))
    except SystemExit as end:
        code = end.code
    sys.stdout.flush()
    print(code, file=answers, flush=True)
"""


@dataclass(frozen=True)
class Done:
    """What a command left."""

    code: int
    stdout: str
    stderr: str


class Driver:
    """Runs commands one after another in a process that stays connected to the cluster."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self.folder = folder
        self._process = subprocess.Popen(
            [sys.executable, "-c", DRIVER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=folder,
            env=environment,
        )

    def run(self, *arguments: str) -> Done:
        """Run one command to its end."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(with_method(arguments)) + "\n")
        self._process.stdin.flush()
        code = int(self._process.stdout.readline())
        return Done(code, *((self.folder / name).read_text() for name in ("out", "err")))

    def succeed(self, *arguments: str) -> str:
        """Run one command that ends well; gives its stdout."""
        done = self.run(*arguments)
        assert done.code == 0, done.stderr
        return done.stdout

    def close(self) -> None:
        """End the process."""
        self._process.communicate(timeout=60)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """Two nodes with a CPU each; their processes know of no Hub and no token."""
    before = dict(os.environ)
    os.environ.update(PYTHONPATH=PYTHONPATH, HF_ENDPOINT="http://127.0.0.1:9")
    os.environ.pop("HF_TOKEN", None)
    head = {**NODE, "include_dashboard": False, "_system_config": QUICK}
    # Not pytest's own folder: the path of a socket has a hundred characters at the most.
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder:
        started = Cluster(initialize_head=True, head_node_args={**head, "temp_dir": folder})
        started.add_node(**NODE)
        yield started
        started.shutdown()
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The run of the tests of interruptions, 2 MB a checkpoint."""
    return write_run(tmp_path_factory.mktemp("ray"), STEPS, tensors_at, num_shards=3)


@pytest.fixture(scope="module")
def hub(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalHub]:
    """A Hub that has the run in private repos."""
    with served_hub(tmp_path_factory.mktemp("hub")) as started:
        add_base(started, BASE, run, private=True)
        add_branches(started, RUN, run, private=True)
        yield started


@pytest.fixture(scope="module")
def environment(hub: LocalHub, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What the command has and the cluster has not: the Hub and a token."""
    found = child_environment(hub.endpoint, tmp_path_factory.mktemp("home"), ALICE)
    return {**found, "PYTHONPATH": PYTHONPATH, "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def driver(
    cluster: Cluster, environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Driver]:
    """A process that runs commands."""
    started = Driver(tmp_path_factory.mktemp("driver"), environment)
    yield started
    started.close()


@pytest.fixture(scope="module")
def on_ray(cluster: Cluster) -> tuple[str, ...]:
    """The options that choose the cluster."""
    return ("--executor", "ray", "--address", cluster.address)


@pytest.fixture(scope="module")
def whole(driver: Driver) -> str:
    """The digest of a prediction from the Hub on one machine."""
    driver.succeed("predict", *ON_HUB, *TARGET, "-o", "whole")
    return digest(driver.folder / "whole")


def resolves(hub: LocalHub) -> list[str]:
    """The addresses of files that were asked for, in order."""
    return sorted(record.path for record in hub.log if "/resolve/" in record.path)


def contents(folder: Path) -> dict[str, bytes]:
    """The bytes of all files below a folder."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_a_prediction_from_a_private_repo_has_the_bytes_of_local(
    driver: Driver, whole: str, hub: LocalHub, cluster: Cluster, on_ray: tuple[str, ...]
) -> None:
    """Workers get Hub, token and addresses from the command, ask for none anew, and log none."""
    hub.clear_log()
    driver.succeed("predict", *ON_HUB, *TARGET, "-o", "again")
    wanted = resolves(hub)
    hub.clear_log()
    done = driver.run("predict", *ON_HUB, *TARGET, "-o", "ray", *on_ray)
    assert (done.code, done.stdout) == (0, "ray\n"), done.stderr
    assert "ray" not in done.stderr.lower()
    assert digest(driver.folder / "ray") == whole
    assert resolves(hub) == wanted
    logs = Path(cluster.head_node.get_session_dir_path())
    assert not any(ALICE.encode() in text for text in contents(logs / "logs").values())


def test_a_push_without_a_folder_uploads_the_bytes_of_local(
    driver: Driver, whole: str, hub: LocalHub, on_ray: tuple[str, ...]
) -> None:
    """Shards lie in the default work folder until uploaded; a worker renews an expired address."""
    hub.add_fault(Fault("", "status", status=403, method="GET", origin="storage", skip=250))
    hub.clear_log()
    driver.succeed("predict", *ON_HUB, *TARGET, "--push-to", "alice/pushed", *on_ray)
    shards = {n: d for n, d in contents(driver.folder / "whole").items() if "safetensors" in n}
    assert len(shards) == 4
    for name, data in shards.items():
        assert hub.read_file("alice/pushed", name) == data
    assert not (driver.folder / ".alpharl-hub").exists()
    (refused,) = [i for i, record in enumerate(hub.log) if record.status == 403]
    renewed = [r for r in hub.log[refused:] if "/resolve/" in r.path and "safetensors" in r.path]
    assert [(r.status, r.had_authorization) for r in renewed] == [(302, True)]


def test_other_commands_and_local_folders_give_what_local_gives(
    driver: Driver, run: Run, on_ray: tuple[str, ...], tmp_path: Path
) -> None:
    """Extract, a prediction from what it wrote, backtest, adapters; folders named relatively."""
    place = os.path.relpath(run.root, driver.folder)
    arguments = (place, "--base", os.path.relpath(run.base, driver.folder))
    lora = write_lora_run(tmp_path, target_modules=["q_proj", "up_proj"])
    adapter = (*lora.arguments(), "--as-adapter", "--target-step", "90")
    for name, more in (("one", ()), ("two", on_ray)):
        driver.succeed("extract", *arguments, "-o", f"{name}/factors", *more)
        driver.succeed("predict", f"{name}/factors", *TARGET, "-o", f"{name}/predicted", *more)
        driver.succeed("predict", *adapter, "-o", f"{name}/adapter", *more)
        words = driver.succeed("backtest", *arguments, "--json", *more)
        (driver.folder / name / "backtest.json").write_text(words)
    found, wanted = contents(driver.folder / "two"), contents(driver.folder / "one")
    assert len(wanted) >= 15
    assert found.keys() == wanted.keys()
    assert [name for name in wanted if found[name] != wanted[name]] == []


def test_an_error_in_a_worker_is_one_line(
    driver: Driver, on_ray: tuple[str, ...], tmp_path: Path
) -> None:
    """NaN in one matrix is told as on one machine, and nothing stays behind."""

    def broken(step: int) -> dict[str, torch.Tensor]:
        tensors = tensors_at(step)
        if step == 30:
            tensors["model.layers.41.mlp.up_proj.weight"][3, 5] = torch.nan
        return tensors

    arguments = write_run(tmp_path, STEPS, broken, num_shards=3).arguments("-o", "broken")
    local = driver.run("predict", *arguments, *TARGET)
    assert "layers.41" in local.stderr
    assert driver.run("predict", *arguments, *TARGET, *on_ray) == local
    assert local.code == 1
    assert not (driver.folder / ".broken.alpharl-hub").exists()


def test_a_cluster_that_is_not_there_is_one_line(
    driver: Driver, on_ray: tuple[str, ...], run: Run
) -> None:
    """So are an address of Ray's own client, devices that Ray gives out, and an address alone."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    extract = ("extract", *run.arguments("-o", "never"))
    for more, code, words in (
        (("--executor", "ray", "--address", f"127.0.0.1:{port}"), 1, "no Ray cluster there"),
        (("--executor", "ray", "--address", "ray://127.0.0.1:10001"), 1, "give HOST:PORT or auto"),
        ((*on_ray, "--devices", "cuda:0,cuda:1"), 1, "Ray gives out the GPUs"),
        (("--address", "auto"), 2, "add --executor ray"),
    ):
        done = driver.run(*extract, *more)
        assert (done.code, done.stdout) == (code, "")
        assert words in done.stderr
        assert code == 2 or len(done.stderr.splitlines()) == 1


def test_a_machine_with_another_version_is_refused(
    driver: Driver, cluster: Cluster, on_ray: tuple[str, ...], run: Run, tmp_path: Path
) -> None:
    """Its bits might be others; the line says what is where."""
    (tmp_path / "alpharl_hub" / "windows").mkdir(parents=True)
    for name, text in (
        ("__init__.py", ""),
        ("version.py", "__version__ = '0.0.9'"),
        ("windows/__init__.py", ""),
        ("windows/devices.py", "def compute_name(devices): return 'cpu'"),
    ):
        (tmp_path / "alpharl_hub" / name).write_text(text)
    node = cluster.add_node(**NODE, env_vars={"PYTHONPATH": str(tmp_path)})
    done = driver.run("extract", *run.arguments("-o", "never"), *on_ray)
    cluster.remove_node(node)
    assert (done.code, done.stdout) == (1, "")
    assert "has alpharl-hub 0.0.9" in done.stderr
    assert not (driver.folder / "never").exists()


@pytest.fixture
def slow(hub: LocalHub, environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Children read from the Hub, which is slow enough to be interrupted."""
    for name, value in environment.items():
        monkeypatch.setenv(name, value)


def start(folder: Path, *arguments: str) -> Child:
    """Start a prediction in a process of its own, with tiny windows."""
    return Child(
        folder / ".out.alpharl-hub",
        *("predict", *ON_HUB, *TARGET, "-o", str(folder / "out"), *arguments),
    )


def end(children: Sequence[Child]) -> None:
    """Leave no process behind."""
    for child in children:
        if child.process.poll() is None:
            child.process.kill()
            child.process.communicate()


@pytest.mark.usefixtures("slow")
def test_stopped_and_killed_it_goes_on_with_either_executor(
    driver: Driver, whole: str, on_ray: tuple[str, ...], tmp_path: Path
) -> None:
    """SIGTERM and SIGKILL; what local began Ray goes on with, and the other way round."""
    children = []
    for number, status, num_bytes, more in (
        (signal.SIGKILL, -9, 35_000, ()),
        (signal.SIGTERM, 143, 70_000, on_ray),
        (signal.SIGKILL, -9, 105_000, on_ray),
    ):
        children.append(start(tmp_path, *more))
        try:
            assert children[-1].wait_for_journal(num_bytes)
            code, seconds, stderr = children[-1].signal(number)
        finally:
            end(children)
        assert code == status, stderr
        assert seconds < 5
    driver.succeed("predict", *ON_HUB, *TARGET, "-o", str(tmp_path / "out"))
    assert digest(tmp_path / "out") == whole


def windows_at(node: Any) -> list[bytes]:
    """The windows that a node works on: the titles that Ray gives its processes."""
    raylet = node.all_processes["raylet"][0].process.pid
    children = Path(f"/proc/{raylet}/task/{raylet}/children").read_text().split()
    titles = []
    for child in children:
        with contextlib.suppress(FileNotFoundError):
            titles.append(Path(f"/proc/{child}/cmdline").read_bytes())
    return [title for title in titles if title.startswith(b"ray::window ")]


@pytest.mark.usefixtures("slow")
def test_a_machine_lost_in_the_middle_changes_nothing(
    whole: str, cluster: Cluster, on_ray: tuple[str, ...], tmp_path: Path
) -> None:
    """Its windows are done by the other one."""
    child = start(tmp_path, *on_ray)
    try:
        assert child.wait_for_journal(40_000)
        (node,) = cluster.worker_nodes
        while not windows_at(node):
            assert child.process.poll() is None
        cluster.remove_node(node, allow_graceful=False)
        assert child.process.poll() is None
        status, stdout, stderr = child.finish()
    finally:
        end([child])
        cluster.add_node(**NODE)
    assert (status, stdout) == (0, f"{tmp_path / 'out'}\n"), stderr
    assert digest(tmp_path / "out") == whole


def test_a_folder_that_is_not_shared_is_refused(tmp_path: Path) -> None:
    """A writer that travelled writes into the file that was meant, into no other of its name."""
    file = lay_out("a.safetensors", [OutputTensor("x", "F32", (4,))], {})
    writer = ShardWriter(tmp_path, [file])
    writer.open()
    travelled = pickle.loads(pickle.dumps(writer))
    start_byte = file.tensors[0].start
    travelled.write("a.safetensors", start_byte, memoryview(b"abcd" * 4))
    travelled.sync("a.safetensors")
    partial = tmp_path / "a.safetensors.partial"
    assert partial.read_bytes() == file.header + b"abcd" * 4
    partial.rename(tmp_path / "moved")
    for _ in range(2):
        with pytest.raises(WriteError, match="share"):
            travelled.write("a.safetensors", start_byte, memoryview(b"efgh"))
        partial.write_bytes(bytes(file.num_bytes))
    writer.close()
    assert (tmp_path / "moved").read_bytes() == file.header + b"abcd" * 4
