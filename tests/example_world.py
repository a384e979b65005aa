"""A Hub and a folder in which every documented command line works as it stands.

All models are those of the packaged run, whose checkpoints are given the steps that the lines name.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

from hub_fixtures import Commands, files_of

from alpharl_hub.demo.task import DEMO_RUN
from alpharl_hub.local_hub import LocalHub

ME = "hf_me"
SCORE = """
import array, pathlib, sys
data = (pathlib.Path(sys.argv[1]) / "model.safetensors").read_bytes()
weights = array.array("f", data[8 + int.from_bytes(data[:8], "little"):])
print(f"score={sum(map(abs, weights)) / len(weights):.6f}")
"""
EVAL = """#!/bin/sh
mkdir -p "$2" && python score.py "$1" | sed 's/score=\\(.*\\)/{"acc": \\1}/' > "$2/r.json"
"""


def checkpoints(spacing: int) -> dict[int, Path]:
    """The checkpoints of the packaged run, the first at step `spacing`, the next at its double."""
    folders = sorted(DEMO_RUN.glob("step_*"), key=lambda path: int(path.name.split("_")[1]))
    return {spacing * (number + 1): folder for number, folder in enumerate(folders)}


def weights_of(folder: Path) -> dict[str, Path]:
    """The files of a checkpoint but its trainer_state.json, which tells another step."""
    return {n: path for n, path in files_of(folder).items() if n != "trainer_state.json"}


def fill_hub(hub: LocalHub) -> None:
    """Put on the Hub what the lines read from there."""
    bases = ("allenai/Olmo-3-1025-7B", "me/base", "Qwen/Qwen2.5-Math-1.5B")
    for repo in (*bases, "org/olmo-3-7b"):
        hub.add_commit(repo, files=weights_of(DEMO_RUN / "base"))
    for repo, base, spacing in (
        ("allenai/Olmo-3-7B-RL-Zero-Math", "allenai/Olmo-3-1025-7B", 100),
        ("me/run", "me/base", 25),
        ("org/run", "me/base", 25),
    ):
        card = f"---\nlicense: apache-2.0\nbase_model: {base}\n---\n".encode()
        hub.add_commit(repo, files={"README.md": card})
        for step, folder in checkpoints(spacing).items():
            hub.add_commit(repo, files=weights_of(folder), revision=f"step_{step}")
        hub.add_commit(repo, files=weights_of(folder))


def fill_folder(folder: Path) -> None:
    """Put into a folder what the lines read from there and no command has made."""
    shutil.copytree(DEMO_RUN / "base", folder / "base")
    for step, source in checkpoints(25).items():
        target = folder / "runs" / "grpo" / f"checkpoint-{step}"
        shutil.copytree(source, target, ignore=shutil.ignore_patterns("trainer_state.json"))
    # Some lines name the run in a checkout.
    (folder / "alpharl_hub").symlink_to(DEMO_RUN.parent)
    (folder / "score.py").write_text(SCORE, encoding="utf-8")
    (folder / "eval.sh").write_text(EVAL, encoding="utf-8")
    (folder / "eval.sh").chmod(0o755)


def fill_by_commands(folder: Path, commands: Commands) -> None:
    """Have the commands make what other lines read: factors and predicted models."""
    local = ("runs/grpo", "--base", "base")
    how = ("--method", "linear", "--target-step", "500")
    for words in (
        ("extract", *local, "-o", "factors"),
        ("predict", *local, *how, "-o", "grpo-500"),
        ("predict", *local, *how, "-o", "grpo-step-500"),
        ("predict", *local, *how, "-o", "olmo-2000"),
    ):
        done = commands.run(*words, cwd=folder)
        assert done.code == 0, done.stderr


def path_with_python() -> str:
    """PATH on which `python` is the one that runs the tests."""
    return f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
