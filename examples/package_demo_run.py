"""Copy a run of `train_tiny_grpo.py` into the layout of the packaged demo run.

    python examples/package_demo_run.py RUN alpharl_hub/demo_run

Files are copied byte for byte, and only what prediction and scoring need: `base/`, `step_N/`, the
recipe, the scores and the log. The state of the optimizer stays behind.
"""

import hashlib
import shutil
import sys
from pathlib import Path

RECORDS = ("recipe.json", "scores.json", "train.log")
MODEL_FILES = (
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "trainer_state.json",
)
README = """\
Checkpoints of a real GRPO run on three-digit addition, made by examples/train_tiny_grpo.py.
`recipe.json` says how, `scores.json` holds the measured test scores, `train.log` is TRL's log.
Check the bytes: `sha256sum -c SHA256SUMS`; repeat the start: `train_tiny_grpo.py --verify DIR`.
"""


def copy_checkpoint(source: Path, target: Path) -> None:
    """Copy the files of one checkpoint that are needed to load and to predict."""
    target.mkdir(parents=True)
    for name in MODEL_FILES:
        if (source / name).exists():  # the base was never in a trainer, so it has no state
            shutil.copyfile(source / name, target / name)


def write_sums(folder: Path) -> None:
    """Write SHA256SUMS over all files, in the format of sha256sum."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    lines = [
        f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.relative_to(folder).as_posix()}\n"
        for path in files
    ]
    (folder / "SHA256SUMS").write_text("".join(lines))


def package(run: Path, target: Path) -> None:
    """Write the packaged run into a new folder."""
    copy_checkpoint(run / "base", target / "base")
    for source in run.glob("checkpoint-*"):
        copy_checkpoint(source, target / source.name.replace("checkpoint-", "step_"))
    for name in RECORDS:
        shutil.copyfile(run / name, target / name)
    (target / "README.md").write_text(README)
    write_sums(target)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: python examples/package_demo_run.py RUN TARGET")
    package(Path(sys.argv[1]), Path(sys.argv[2]))
