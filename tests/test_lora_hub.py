"""A LoRA run on a Hub: opened over real HTTP from its branches, base and revision as it names."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hub_fixtures import Commands, files_of
from lora_models import write_adapters, write_base

from alpharl_hub.local_hub import LocalHub

STEPS = (10, 20, 40)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, hub: LocalHub) -> Path:
    """A run of adapters as lab/lora, its base as lab/lora-base, both on disk too."""
    root = tmp_path_factory.mktemp("lora")
    base = write_base(root / "base")
    folders = write_adapters(
        base, [root / f"step_{step}" for step in STEPS], target_modules=["q_proj", "up_proj"]
    )
    hub.add_commit("lab/lora-base", files=files_of(base))
    hub.add_commit("lab/lora", files={"notes.txt": b"see the branches\n"})
    for step, folder in zip(STEPS, folders, strict=True):
        name_base(folder, "lab/lora-base")
        hub.add_commit("lab/lora", files=files_of(folder), revision=f"step_{step}")
    return root


def name_base(folder: Path, base: str, revision: str | None = None) -> None:
    """Write which base an adapter belongs to."""
    path = folder / "adapter_config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "base_model_name_or_path": base, "revision": revision}))


OPEN = """
import json, sys
from alpharl_hub.sources.opening import RunRequest, open_trajectory
found = open_trajectory(RunRequest(sys.argv[1], base=sys.argv[2] or None))
base = found.base.checkpoint
print(json.dumps([found.steps_T, found.base_chosen_by, base.source, base.revision,
                  len(found.last.tensors), found.last.num_bytes]))
"""


def open_run(commands: Commands, run: str, base: str = "") -> subprocess.CompletedProcess[str]:
    """Open a run in a process that knows this Hub."""
    return subprocess.run(
        [sys.executable, "-c", OPEN, run, base],
        env=commands.environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_branches_of_adapters_are_opened(hub: LocalHub, commands: Commands, run: Path) -> None:
    """The steps are the branches and the base is the repo that the adapters name."""
    hub.clear_log()
    done = open_run(commands, "lab/lora")
    assert done.returncode == 0, done.stderr
    steps, chosen_by, base, revision, num_tensors, num_bytes = json.loads(done.stdout)
    assert (steps, chosen_by) == (list(STEPS), "adapter")
    assert (base, revision) == ("lab/lora-base", "main")
    rank, hidden, middle = 4, 16, 24
    assert (num_tensors, num_bytes) == (4, 2 * 4 * rank * (2 * hidden + hidden + middle))
    answers = [r for r in hub.log if (r.file_path or "").endswith(".safetensors")]
    assert answers
    assert max(record.bytes_sent for record in answers) < 10_000


def add_run(hub: LocalHub, repo: str, run: Path, base: str, revision: str | None = None) -> None:
    """Put two steps on a Hub, the last of which names another base."""
    folder = shutil.copytree(run / "step_40", run.parent / repo.replace("/", "-"))
    name_base(folder, base, revision)
    hub.add_commit(repo, files={"notes.txt": b"see the branches\n"})
    hub.add_commit(repo, files=files_of(run / "step_20"), revision="step_20")
    hub.add_commit(repo, files=files_of(folder), revision="step_40")


def test_the_revision_of_the_base_is_kept(hub: LocalHub, commands: Commands, run: Path) -> None:
    """An adapter that names a revision of its base is read against that one."""
    hub.add_commit("lab/lora-base", files=files_of(run / "base"), revision="v1/first")
    add_run(hub, "lab/lora-pinned", run, "lab/lora-base", "v1/first")
    done = open_run(commands, "lab/lora-pinned")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)[2:4] == ["lab/lora-base", "v1/first"]


@pytest.mark.parametrize("named", ["models/base", "./base", "gpt2", "/gone/base"])
def test_a_base_that_is_not_there_is_named(
    hub: LocalHub, commands: Commands, run: Path, named: str
) -> None:
    """A path of the trainer's machine, or a repo that is gone, ends in one line with --base."""
    repo = "lab/lora-" + named.replace("/", "").replace(".", "x")
    add_run(hub, repo, run, named)
    last = open_run(commands, repo).stderr.strip().splitlines()[-1]
    assert "adapter_config.json names" in last
    assert named in last
    assert "--base" in last
    again = open_run(commands, repo, "lab/lora-base")
    assert json.loads(again.stdout)[1] == "option"
