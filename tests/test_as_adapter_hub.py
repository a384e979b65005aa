"""Adapters from and to a Hub, over real HTTP: what they name, what they replace, how they go on."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from hub_fixtures import ALICE, Commands, commands_for, files_of, served_hub
from huggingface_hub import close_session, snapshot_download
from lora_models import load_adapted, load_base, logits
from lora_runs import STEPS, LoraRun, write_lora_run
from safetensors.torch import load_file, save_file
from trajectories import digest, fail, succeed

from alpharl_hub.errors import PushError
from alpharl_hub.local_hub import Fault, LocalHub
from alpharl_hub.push.finished_folder import read_finished_folder

ADAPTER = "adapter_model.safetensors"
CONFIG = "adapter_config.json"
PICTURE = "alpharl-evidence.png"
ADAPTER_FILES = {ADAPTER, CONFIG, "alpharl.json", "README.md", "tokenizer.json", ".gitattributes"}
WORDS = ("--method", "ols", "--target-step", "90")


@dataclass(frozen=True)
class Place:
    """A Hub that holds a LoRA run and its base, commands that know it, and the run on disk."""

    hub: LocalHub
    commands: Commands
    run: LoraRun

    @property
    def base_commit(self) -> str:
        """The newest commit of the base's repo."""
        return self.hub.refs("lab/tiny-base")["refs/heads/main"]

    def download(self, repo: str, folder: Path) -> Path:
        """Get the main branch of a repo."""
        return Path(
            snapshot_download(repo, endpoint=self.hub.endpoint, token=ALICE, local_dir=folder)
        )


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """A Hub for all tests of this file."""
    root = tmp_path_factory.mktemp("place")
    run = write_lora_run(root, target_modules=["q_proj", "up_proj"])
    (run.base / "tokenizer.json").write_text("{}")
    with served_hub(root / "hub") as hub, commands_for(root / "commands", hub) as commands:
        hub.add_commit("lab/tiny-base", files=files_of(run.base))
        hub.add_commit("lab/tiny-lora", files={"notes.txt": b"see the branches\n"})
        for step, folder in zip(STEPS, run.folders, strict=True):
            config = json.loads((folder / CONFIG).read_text())
            files: dict[str, Any] = files_of(folder)
            files[CONFIG] = json.dumps(
                {**config, "base_model_name_or_path": "lab/tiny-base"}
            ).encode()
            hub.add_commit("lab/tiny-lora", files=files, revision=f"step_{step}")
        yield Place(hub, commands, run)
    close_session()


def test_an_adapter_names_its_base_at_its_commit(place: Place, tmp_path: Path) -> None:
    """Config, card and manifest name repo and commit; peft loads it; --from repeats the bytes."""
    done = place.commands.run(
        *("predict", "lab/tiny-lora", "-o", tmp_path / "a", "--as-adapter", *WORDS)
    )
    assert done.code == 0, done.stderr
    config = json.loads((tmp_path / "a" / CONFIG).read_text())
    assert config["base_model_name_or_path"] == "lab/tiny-base"
    assert config["revision"] == place.base_commit
    card = (tmp_path / "a" / "README.md").read_text()
    for words in (
        *("base_model: lab/tiny-base", "base_model_relation: adapter", "library_name: peft"),
        f'from_pretrained(base_name, revision="{place.base_commit}"',
        f"vllm serve lab/tiny-base --revision {place.base_commit} --enable-lora",
    ):
        assert words in card
    assert "--as-adapter" in card
    again = place.commands.run("predict", "--from", tmp_path / "a/alpharl.json", "-o", "again")
    assert again.code == 0, again.stderr
    for path in (tmp_path / "a").iterdir():
        if path.name != "README.md":
            assert (place.commands.folder / "again" / path.name).read_bytes() == path.read_bytes()
    succeed("predict", *place.run.arguments("-o", str(tmp_path / "merged"), *WORDS))
    said = logits(load_adapted(place.run.base, tmp_path / "a"))
    torch.testing.assert_close(said, logits(load_base(tmp_path / "merged")), rtol=0, atol=1e-6)


LOAD = """
import sys, torch
from peft import AutoPeftModelForCausalLM
model = AutoPeftModelForCausalLM.from_pretrained(sys.argv[1])
torch.save(model.eval()(torch.arange(1, 13).reshape(2, 6)).logits.detach(), sys.argv[2])
"""


def test_peft_finds_the_base_by_itself(place: Place, tmp_path: Path) -> None:
    """What the config names suffices, also when the base's repo has moved on since."""
    out = tmp_path / "a"
    words = ("predict", "lab/tiny-lora", "-o", out, "--as-adapter", *WORDS)
    assert place.commands.run(*words).code == 0
    expected = logits(load_adapted(place.run.base, out))
    weights = load_file(place.run.base / "model.safetensors")
    moved = tmp_path / "model.safetensors"
    save_file({name: torch.zeros_like(t) for name, t in weights.items()}, moved, {"format": "pt"})
    place.hub.add_commit("lab/tiny-base", files={"model.safetensors": moved})
    subprocess.run(
        [sys.executable, "-c", LOAD, out, tmp_path / "logits"],
        env=place.commands.environment,
        check=True,
        capture_output=True,
    )
    place.hub.add_commit("lab/tiny-base", files=files_of(place.run.base))
    torch.testing.assert_close(torch.load(tmp_path / "logits"), expected, rtol=0, atol=1e-6)


def test_a_pushed_adapter_replaces_a_model_and_the_other_way_round(
    place: Place, tmp_path: Path
) -> None:
    """Nothing of the one stays behind that would be loaded in place of the other."""
    repo = "alice/either"
    words = ("predict", "lab/tiny-lora", "--push-to", repo, *WORDS)
    for turn, more in enumerate((("--as-adapter",), (), ("--as-adapter",))):
        done = place.commands.run(*words, *more, token=ALICE)
        assert done.code == 0, done.stderr
        found = place.download(repo, tmp_path / str(turn))
        names = {path.name for path in found.iterdir() if path.is_file()}
        if more:
            assert names - {PICTURE} == ADAPTER_FILES
        else:
            assert not {ADAPTER, CONFIG} & names
            assert {"model.safetensors", "config.json"} <= names
    assert f'name = "{repo}"' in (tmp_path / "2" / "README.md").read_text()
    succeed("predict", *place.run.arguments("-o", str(tmp_path / "local"), "--as-adapter", *WORDS))
    assert digest(tmp_path / "2") == digest(tmp_path / "local")


def test_a_finished_adapter_is_pushed(place: Place, tmp_path: Path) -> None:
    """`push` takes the folder: checked first, complete, and nothing else that lies there."""
    out = tmp_path / "out"
    succeed("predict", *place.run.arguments("-o", str(out), "--as-adapter", *WORDS))
    (out / "stray.txt").write_text("mine")
    done = place.commands.run("push", out, "alice/finished", token=ALICE)
    assert done.code == 0, done.stderr
    found = place.download("alice/finished", tmp_path / "found")
    assert {path.name for path in found.iterdir() if path.is_file()} - {PICTURE} == ADAPTER_FILES
    assert digest(found) == digest(out)


def test_a_damaged_adapter_is_not_pushed(place: Place, tmp_path: Path) -> None:
    """Half an update, another rank or a missing config: refused with the folder's name."""
    out = tmp_path / "out"
    succeed("predict", *place.run.arguments("-o", str(out), "--as-adapter", *WORDS))
    weights = load_file(out / ADAPTER)
    module = next(iter(weights)).rpartition(".lora_")[0]
    save_file({n: t for n, t in weights.items() if module not in n}, out / ADAPTER)
    with pytest.raises(PushError, match="does not change what"):
        read_finished_folder(out)
    (out / CONFIG).unlink()
    assert CONFIG in fail("push", out, "alice/x", "--dry-run", "--token", "hf_alice")


def read_of(hub: LocalHub, revision: str) -> int:
    """The bytes of weights that were fetched of one branch since the log was cleared."""
    commit = hub.refs("lab/tiny-lora")[f"refs/heads/{revision}"]
    found = [r for r in hub.log if r.revision == commit and r.file_path == ADAPTER]
    return sum(r.bytes_sent for r in found if r.method == "GET")


def test_an_interrupted_adapter_goes_on(place: Place, tmp_path: Path) -> None:
    """A push that is refused between two adapters: the next start reads no update again."""
    several = (*WORDS[:3], "90,120")
    succeed("predict", *place.run.arguments("-o", str(tmp_path / "a"), "--as-adapter", *several))
    words = ("predict", "lab/tiny-lora", "-o", tmp_path / "b", "--push-to", "alice/resumed")
    words += ("--as-adapter", *several)
    place.hub.clear_log()
    place.hub.add_fault(Fault("alice/resumed/commit/step_120", "status", status=403))
    done = place.commands.run(*words, token=ALICE)
    assert done.code == 1
    first_bytes = read_of(place.hub, "step_24")
    assert os.listdir(tmp_path / "b") == ["step_90"]
    (tmp_path / "b" / "step_90").rename(tmp_path / "kept")
    other = place.commands.run(*words, "--damping", "0.5", token=ALICE)
    assert "unfinished run with other arguments" in other.stderr
    (tmp_path / "kept").rename(tmp_path / "b" / "step_90")
    place.hub.clear_log()
    done = place.commands.run(*words, "--overwrite", token=ALICE)
    assert done.code == 0, done.stderr
    # Headers and the sample that checks the base are read again, and nothing of the middle steps.
    assert read_of(place.hub, "step_24") < first_bytes / 2
    for name in ("step_90", "step_120"):
        assert digest(tmp_path / "b" / name) == digest(tmp_path / "a" / name)
    assert sorted(os.listdir(tmp_path)) == ["a", "b"]
