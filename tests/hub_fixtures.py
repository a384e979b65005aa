"""What the tests of sources share: runs on a loopback Hub, and commands as processes of their own.

The Hub's client reads HF_ENDPOINT and HF_HOME when it is imported, so commands cannot run in the
tests' own process. Importing takes longer than all the rest, so one process imports everything
once, in an environment of its own, and forks for every command.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from trajectories import Run, with_method

import alpharl_hub
from alpharl_hub.local_hub import LocalHub, child_environment

ALICE, BOB = "hf_alice", "hf_bob"
Files = dict[str, Path]


def files_of(folder: Path, prefix: str = "") -> Files:
    """Name every file of a folder and below, by its path in a repo."""
    return {
        prefix + path.relative_to(folder).as_posix(): path
        for path in folder.rglob("*")
        if path.is_file()
    }


def wide_line(width: int) -> Callable[[int], dict[str, Tensor]]:
    """Weights of one block of square matrices that move along a rank-1 line, in step."""
    source = torch.Generator().manual_seed(width)
    names = [f"model.layers.0.self_attn.{side}_proj.weight" for side in "qkvo"]
    base = {name: 0.05 * torch.randn(width, width, generator=source) for name in names}
    base["model.norm.weight"] = torch.ones(width)
    u_M, v_N = torch.randn(2, width, generator=source)
    line = 2e-5 * torch.outer(u_M, v_N)
    return lambda step: {n: w + step * line if w.dim() == 2 else w for n, w in base.items()}


@contextmanager
def served_hub(root: Path) -> Iterator[LocalHub]:
    """Serve a Hub with two users; alice owns the organisation lab."""
    with LocalHub(root, {ALICE: "alice", BOB: "bob"}, orgs={"lab": ["alice"]}) as hub:
        yield hub


def add_base(hub: LocalHub, repo: str, run: Run, **options: bool) -> str:
    """Put the base of a run on a Hub, and return its commit."""
    return hub.add_commit(repo, files=files_of(run.base), **options)


def add_branches(
    hub: LocalHub, repo: str, run: Run, name: str = "step_{}", **options: bool
) -> dict[int, str]:
    """Put a run on a Hub with a branch for each step, and return the commits.

    `main` holds no model, so that a branch holds the files of its own step only.
    """
    hub.add_commit(repo, files={"notes.txt": b"see the branches\n"}, **options)
    return {
        step: hub.add_commit(repo, files=files_of(run.folder(step)), revision=name.format(step))
        for step in run.steps
    }


@dataclass(frozen=True)
class Done:
    """What a command left: its exit code (negative: the signal), stdout and stderr."""

    code: int
    stdout: str
    stderr: str

    @property
    def answer(self) -> Any:
        """The JSON document on stdout of a command that went well."""
        assert self.code == 0, self.stderr
        return json.loads(self.stdout)


_FORKING_SCRIPT = """
import json, os, resource, runpy, signal, sys, traceback
import alpharl_hub.cli, alpharl_hub.pipeline, matplotlib.figure

print("ready", flush=True)
for line in sys.stdin:
    wanted = json.loads(line)
    child = os.fork()
    if child == 0:
        break
    _, status = os.waitpid(child, 0)
    print(os.waitstatus_to_exitcode(status), flush=True)
else:
    sys.exit()

for number, name in enumerate((os.devnull, wanted["stdout"], wanted["stderr"])):
    flags = os.O_RDONLY if number == 0 else os.O_WRONLY | os.O_CREAT | os.O_TRUNC
    os.dup2(os.open(name, flags), number)
os.chdir(wanted["cwd"])
os.environ.update(wanted["env"])
if wanted["max_file_bytes"] is not None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (wanted["max_file_bytes"],) * 2)
signal.alarm(120)
sys.argv = ["alpharl-hub", *wanted["args"]]
code = 0
try:
    runpy.run_module("alpharl_hub", run_name="__main__", alter_sys=True)
except SystemExit as end:
    code = end.code or 0
except BaseException:
    traceback.print_exc()
    code = 1
# Taking torch apart at the interpreter's end would cost more than the command.
sys.stdout.flush()
sys.stderr.flush()
os._exit(code)
"""


class Commands:
    """Runs commands of alpharl-hub, each in a fork of one process that has imported everything.

    They find this Hub, `home` as HF_HOME, HOME and TMPDIR, and no token but the one given to `run`.
    """

    def __init__(self, folder: Path, endpoint: str, home: Path) -> None:
        self.folder = folder
        self._num_started = 0
        self.home = home
        home.mkdir(parents=True, exist_ok=True)
        root = Path(alpharl_hub.__file__).parents[1]
        ours = {"HOME": str(home), "TMPDIR": str(home)}
        ours |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(root)}
        self.environment = {**child_environment(endpoint, home), **ours}
        self._server = subprocess.Popen(
            [sys.executable, "-c", _FORKING_SCRIPT],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=self.environment,
        )
        assert self._server.stdout is not None
        if self._server.stdout.readline() != "ready\n":
            self.close()
            raise AssertionError("alpharl_hub cannot be imported: see stderr")

    def run(
        self,
        *args: str | Path,
        token: str | None = None,
        cwd: Path | None = None,
        max_file_bytes: int | None = None,
        as_typed: bool = False,
        **variables: str,
    ) -> Done:
        """Run one command to its end, with `as_typed` without a method named for it.

        With `max_file_bytes` the kernel refuses to make any file longer than that.
        """
        self._num_started += 1
        stdout, stderr = (self.folder / f"{name}-{self._num_started}" for name in ("out", "err"))
        wanted = {
            "args": [str(arg) for arg in args] if as_typed else with_method(args),
            "env": variables if token is None else {**variables, "HF_TOKEN": token},
            "cwd": str(cwd or self.folder),
            "stdout": str(stdout),
            "stderr": str(stderr),
            "max_file_bytes": max_file_bytes,
        }
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._server.stdin.write(json.dumps(wanted) + "\n")
        self._server.stdin.flush()
        code = int(self._server.stdout.readline())
        return Done(code, stdout.read_text(), stderr.read_text())

    def close(self) -> None:
        """End the process that forks."""
        self._server.communicate(timeout=30)


@contextmanager
def commands_for(folder: Path, hub: LocalHub, home: Path | None = None) -> Iterator[Commands]:
    """Run commands against a Hub, in `folder` unless they say where else."""
    folder.mkdir(parents=True, exist_ok=True)
    commands = Commands(folder, hub.endpoint, home or folder / "home")
    try:
        yield commands
    finally:
        commands.close()
