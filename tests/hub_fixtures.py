"""What the tests of sources share: tiny runs with a planted course, and a way to run commands.

A command of these tests is a process of its own with an environment of its own, because the Hub's
client reads HF_ENDPOINT, HF_HOME and the like when it is imported. Importing torch takes longer than
all the rest, so one process does that once and forks for every command.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

import alpharl_hub
from alpharl_hub.local_hub import LocalHub, child_environment

ALICE, BOB = "hf_alice", "hf_bob"
Tensors = dict[str, Tensor]
Files = dict[str, bytes]

CONFIG: Mapping[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "tie_word_embeddings": False,
}


def planted_run(
    steps: tuple[int, ...], *, hidden: int = 16, num_layers: int = 2, seed: int = 0
) -> dict[int, Tensors]:
    """Make a base (step 0) and checkpoints that move away from it along one rank-1 line a matrix.

    The last step is 1 % of the base's norm away from it, as RL is; everything is fp32.
    """
    generator = torch.Generator().manual_seed(seed)

    def noise(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    shapes = {f"self_attn.{side}_proj": (hidden, hidden) for side in "qkvo"}
    shapes |= {f"mlp.{name}_proj": (2 * hidden, hidden) for name in ("gate", "up")}
    shapes |= {"mlp.down_proj": (hidden, 2 * hidden)}
    base: Tensors = {"model.embed_tokens.weight": noise(32, hidden)}
    lines: Tensors = {}
    for layer in range(num_layers):
        for module, (rows, columns) in shapes.items():
            name = f"model.layers.{layer}.{module}.weight"
            base[name] = noise(rows, columns)
            line = torch.outer(noise(rows), noise(columns))
            lines[name] = line * (0.01 * base[name].norm() / line.norm())
    base["model.norm.weight"] = torch.ones(hidden)
    last = max(steps)
    run = {0: base}
    for step in steps:
        moved = {name: base[name] + step / last * line for name, line in lines.items()}
        run[step] = {**base, **moved}
    return run


def model_files(
    tensors: Tensors, *, num_shards: int = 1, config: Mapping[str, Any] | None = CONFIG
) -> Files:
    """Write a checkpoint's files as transformers does: one weight file, or shards and an index."""
    files: Files = {} if config is None else {"config.json": json.dumps(config).encode()}
    names = sorted(tensors)
    if num_shards == 1:
        return {**files, "model.safetensors": save(tensors, {"format": "pt"})}
    weight_map = {}
    for i in range(num_shards):
        filename = f"model-{i + 1:05}-of-{num_shards:05}.safetensors"
        part = {name: tensors[name] for name in names[i::num_shards]}
        files[filename] = save(part, {"format": "pt"})
        weight_map |= dict.fromkeys(part, filename)
    index = {"metadata": {}, "weight_map": weight_map}
    return {**files, "model.safetensors.index.json": json.dumps(index).encode()}


def below(folder: str, files: Files) -> Files:
    """Put files into a folder."""
    return {f"{folder}/{name}": data for name, data in files.items()}


def write_files(root: Path, files: Files) -> Path:
    """Write files below a folder, and return it."""
    for name, data in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return root


def weight_digests(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of every weight file of a folder."""
    paths = folder.glob("*.safetensors")
    return {path.name: sha256(path.read_bytes()).hexdigest() for path in paths}


@contextmanager
def served_hub(root: Path) -> Iterator[LocalHub]:
    """Serve a Hub with two users; alice owns the organisation lab."""
    with LocalHub(root, {ALICE: "alice", BOB: "bob"}, orgs={"lab": ["alice"]}) as hub:
        yield hub


def add_branches(
    hub: LocalHub, repo: str, run: Mapping[int, Files], name: str = "step_{}", **options: bool
) -> dict[int, str]:
    """Put a run on a Hub with a branch for each step, and return the commits; step 0 is left out.

    `main` holds no model, so that a branch holds its own step's files only.
    """
    hub.add_commit(repo, files={"notes.txt": b"see the branches\n"}, **options)
    return {
        step: hub.add_commit(repo, files=dict(files), revision=name.format(step))
        for step, files in run.items()
        if step != 0
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
import json, os, resource, runpy, signal, sys
import torch

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
os.environ.clear()
os.environ.update(wanted["env"])
if wanted["max_file_bytes"] is not None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (wanted["max_file_bytes"],) * 2)
signal.alarm(120)
sys.argv = ["alpharl-hub", *wanted["args"]]
runpy.run_module("alpharl_hub", run_name="__main__", alter_sys=True)
"""


class Commands:
    """Runs commands of alpharl-hub, each in a fork of one process that has torch imported."""

    def __init__(self, folder: Path, endpoint: str) -> None:
        self.folder = folder
        self._endpoint = endpoint
        self._num_started = 0
        root = Path(alpharl_hub.__file__).parents[1]
        self._environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(root)}
        self._server = subprocess.Popen(
            [sys.executable, "-c", _FORKING_SCRIPT],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=self._environment,
        )

    def environment(self, home: Path, token: str | None) -> dict[str, str]:
        """Return what a command finds around it: this Hub, its own cache, one token or none."""
        found = child_environment(self._endpoint, home, token, self._environment)
        return {**found, "HOME": str(home), "TMPDIR": str(home)}

    def run(
        self,
        *args: str | Path,
        token: str | None = None,
        home: Path | None = None,
        cwd: Path | None = None,
        max_file_bytes: int | None = None,
        **variables: str,
    ) -> Done:
        """Run one command to its end; `home` becomes HF_HOME, by default a new empty folder.

        With `max_file_bytes` the kernel refuses to make any file longer than that.
        """
        self._num_started += 1
        home = home or self.folder / f"home-{self._num_started}"
        home.mkdir(parents=True, exist_ok=True)
        stdout, stderr = (self.folder / f"{name}-{self._num_started}" for name in ("out", "err"))
        wanted = {
            "args": [str(arg) for arg in args],
            "env": {**self.environment(home, token), **variables},
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
def commands_for(folder: Path, hub: LocalHub) -> Iterator[Commands]:
    """Run commands against a Hub; what they print and their caches lie below `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    commands = Commands(folder, hub.endpoint)
    try:
        yield commands
    finally:
        commands.close()
