"""Several targets pushed in one reading: a branch for each, as if each had been pushed alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hub_fixtures import ALICE, Commands
from safetensors.torch import load
from trajectories import Run, load_model, rank_one_line, write_run

from alpharl_hub.local_hub import LocalHub

STEPS = (10, 20, 40)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A straight run in two shards."""
    return write_run(tmp_path_factory.mktemp("run"), STEPS, rank_one_line(), num_shards=2)


def test_each_target_gets_a_branch(
    hub: LocalHub, commands: Commands, run: Run, tmp_path: Path
) -> None:
    """The weights of a branch are those of the folder of that step; nothing is left behind."""
    words = run.arguments(*("--method", "ols", "--target-step", "80,120"))
    done = commands.run("predict", *words, "--push-to", "alice/many", "--json", token=ALICE)
    assert done.code == 0, done.stderr
    outputs = json.loads(done.stdout)["outputs"]
    assert [o["url"].rpartition("/tree/")[2] for o in outputs] == ["step_80", "step_120"]
    alone = commands.run("predict", *words, "-o", tmp_path / "here")
    assert alone.code == 0, alone.stderr
    for output in outputs:
        branch = output["url"].rpartition("/tree/")[2]
        index = json.loads(hub.read_file("alice/many", "model.safetensors.index.json", branch))
        files = sorted(set(index["weight_map"].values()))
        found = {}
        for name in files:
            found.update(load(hub.read_file("alice/many", name, branch)))
        wanted = load_model(tmp_path / "here" / branch)
        assert sorted(found) == sorted(wanted)
        assert all((found[name] == wanted[name]).all() for name in wanted)
        manifest = json.loads(hub.read_file("alice/many", "alpharl.json", branch))
        assert f"step_{manifest['method']['target_step']:g}" == branch
    assert not list(commands.folder.glob(".alpharl-hub*"))


def test_one_branch_for_several_targets_is_refused(commands: Commands, run: Run) -> None:
    """--branch names one; nothing is read or made."""
    words = run.arguments(*("--method", "ols", "--target-step", "80,120", "--branch", "main2"))
    done = commands.run("predict", *words, "--push-to", "alice/other", token=ALICE)
    assert (done.code, done.stdout) == (1, "")
    assert "--branch names one branch" in done.stderr
