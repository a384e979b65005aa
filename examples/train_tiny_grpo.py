"""Train a tiny language model with TRL's GRPOTrainer and keep checkpoints to extrapolate from.

A real run in minutes on one CPU core: about 100 k parameters, three-digit addition, a reward that
is 1 for the exact answer and 0 for everything else. Needs `pip install "alpharl-hub[train]"`.

    python examples/train_tiny_grpo.py --out run
    python examples/train_tiny_grpo.py --verify run
    python examples/train_tiny_grpo.py --out lora --base run/base --lora-rank 8 --lr 2e-4

The options make other kinds of runs: supervised fine-tuning, LoRA adapters, changes of the learning
rate, a restart with a new optimizer. `run_list.py` holds a list of them.

The folder holds `base/`, `checkpoint-N/` as TRL writes them, `scores.json` (greedy exact-match
score of the stored weights of each checkpoint on test problems that no training ever saw),
`train.log` (TRL's log, one JSON object a line) and `recipe.json` (arguments, packages, CPU).

One thread and fixed seeds make the run repeatable to the bit on one kind of CPU. Another kind may
order its sums differently and drift apart.
"""

import argparse
import hashlib
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, fields
from importlib.metadata import version
from pathlib import Path

import torch
from huggingface_hub import CommitOperationAdd, HfApi
from peft import PeftModel
from tiny_trainer import DEFAULT_SHARD_SIZE, STEP_SCHEDULES, Recipe, load_fp32, make_base, train
from transformers import AutoTokenizer
from transformers.utils import logging

from alpharl_hub.demo.task import (
    NUM_TEST_PROBLEMS,
    TaskScore,
    draw_problems,
    load_and_measure,
    measure_score,
)

PACKAGES = ("torch", "transformers", "trl", "peft", "accelerate", "datasets", "tokenizers")
NOT_PUSHED = ("training_args.bin",)


def checkpoint_folders(out: Path) -> dict[int, Path]:
    """The folders of a run by step; the base is step 0."""
    found = {int(path.name.removeprefix("checkpoint-")): path for path in out.glob("checkpoint-*")}
    return {0: out / "base", **dict(sorted(found.items()))}


def measure_checkpoint(folder: Path, base: Path) -> TaskScore:
    """Score a checkpoint as stored: a whole model, or an adapter on its base."""
    if not (folder / "adapter_config.json").exists():
        return load_and_measure(folder, num_problems=NUM_TEST_PROBLEMS)
    model = PeftModel.from_pretrained(load_fp32(base), folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return measure_score(model, tokenizer, draw_problems("test", NUM_TEST_PROBLEMS))


def measure_run(out: Path) -> dict[str, dict]:
    """Score the stored weights of every checkpoint on the test problems."""
    scores = {}
    for step, folder in checkpoint_folders(out).items():
        scores[str(step)] = asdict(measure_checkpoint(folder, out / "base"))
        print(f"step {step:4d}: {scores[str(step)]['score']:.4f}", flush=True)
    return scores


def cpu_name() -> str:
    """The CPU's own name where Linux tells it, else its family."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def describe_machine() -> dict[str, object]:
    """What else the weights may depend on, for whoever repeats the run."""
    return {
        "cpu": cpu_name(),
        "python": platform.python_version(),
        "packages": {name: version(name) for name in PACKAGES},
    }


def write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n")


def run(recipe: Recipe, out: Path, base: Path | None = None) -> None:
    """Train, measure and record one run in an empty folder, from a given base if there is one."""
    if out.exists() and any(out.iterdir()):
        sys.exit(f"error: {out} is not empty; name a new folder with --out")
    started = time.monotonic()
    make_base(recipe, out / "base", base)
    base_done = time.monotonic()
    log = train(recipe, recipe.updates, out)
    trained = time.monotonic()
    seconds = {
        "base": round(base_done - started, 1),
        recipe.objective: round(trained - base_done, 1),
    }
    write_json(
        out / "recipe.json",
        {"arguments": asdict(recipe), **describe_machine(), "seconds": seconds},
    )
    (out / "train.log").write_text("".join(json.dumps(entry) + "\n" for entry in log))
    write_json(out / "scores.json", measure_run(out))


def weights_sha256(folder: Path) -> dict[str, str]:
    """The sha256 sum of every weight file in a checkpoint folder."""
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.glob("*.safetensors"))
    }


def verify(recorded: Path) -> bool:
    """Retrain base and first two checkpoints by the recorded recipe and compare the bytes.

    A base that was given is not retrained: no recipe made it.
    """
    written = json.loads((recorded / "recipe.json").read_text())
    recipe = Recipe(**written["arguments"])
    now = describe_machine()
    now["packages"] = {name: version(name) for name in written["packages"]}
    for key, value in now.items():
        if value != written[key]:
            print(f"note: {key} was {written[key]}, is {value}")
    equal = True
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch)
        make_base(recipe, out / "base", recorded / "base" if recipe.base_is_given else None)
        train(recipe, 2 * recipe.save_every, out)
        for step, folder in checkpoint_folders(out).items():
            original = recorded / folder.name
            if not original.exists():
                original = recorded / f"step_{step}"
            same = weights_sha256(folder) == weights_sha256(original)
            equal = equal and same
            print(f"step {step}: {'same bytes' if same else 'DIFFERENT'}")
    return equal


def commit_folder(api: HfApi, repo_id: str, folder: Path, branch: str = "main") -> None:
    """Upload what is needed to load a checkpoint as one commit."""
    paths = [path for path in sorted(folder.iterdir()) if path.name not in NOT_PUSHED]
    where = {"repo_id": repo_id, "revision": branch, "commit_message": f"Upload {folder.name}"}
    try:
        api.create_commit(operations=[CommitOperationAdd(p.name, p) for p in paths], **where)
    except ConnectionError:  # what hf_xet 1.8 raises where the Hub has no Xet
        with ExitStack() as opened:
            files = {path.name: opened.enter_context(path.open("rb")) for path in paths}
            operations = [CommitOperationAdd(name, file) for name, file in files.items()]
            api.create_commit(operations=operations, **where)  # open files always go over LFS


def push(out: Path, repo_id: str) -> None:
    """Upload the base as its own repo and every checkpoint as a branch step_N of a second one."""
    api = HfApi()
    api.create_repo(f"{repo_id}-base", exist_ok=True)
    api.create_repo(repo_id, exist_ok=True)
    card = f"---\nbase_model: {repo_id}-base\nbase_model_relation: finetune\n---\n# {repo_id}\n"
    api.upload_file(repo_id=repo_id, path_or_fileobj=card.encode(), path_in_repo="README.md")
    for step, folder in checkpoint_folders(out).items():
        if step == 0:
            commit_folder(api, f"{repo_id}-base", folder)
        else:
            api.create_branch(repo_id, branch=f"step_{step}", exist_ok=True)
            commit_folder(api, repo_id, folder, f"step_{step}")


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Options of the example; those of the recipe have the packaged run's values as defaults."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder of the run")
    parser.add_argument("--base", type=Path, metavar="DIR", help="take this base, train none")
    parser.add_argument("--verify", type=Path, metavar="DIR", help="retrain and compare this run")
    parser.add_argument(
        "--push-to",
        metavar="ORG/NAME",
        help="upload the run in --out; a finished one is not trained again",
    )
    recipe = parser.add_argument_group("recipe")
    recipe.add_argument("--architecture", choices=("qwen2", "qwen3"), default="qwen2")
    recipe.add_argument("--hidden", type=int, default=64)
    recipe.add_argument("--layers", type=int, default=2)
    recipe.add_argument("--seed", type=int, default=0)
    recipe.add_argument("--supervised-updates", type=int, default=1500)
    recipe.add_argument("--supervised-lr", type=float, default=5e-3)
    recipe.add_argument("--forget-probability", type=float, default=0.52)
    recipe.add_argument("--updates", type=int, default=240)
    recipe.add_argument("--save-every", type=int, default=12)
    recipe.add_argument("--lr", type=float, default=1.2e-5)
    recipe.add_argument("--prompts-per-update", type=int, default=32)
    recipe.add_argument("--samples-per-prompt", type=int, default=8)
    recipe.add_argument("--base-dtype", choices=("float32", "bfloat16"), default="float32")
    recipe.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    recipe.add_argument("--max-shard-size", default=DEFAULT_SHARD_SIZE, help='such as "200KB"')
    add_kind_options(parser.add_argument_group("other kinds of runs (part of the recipe)"))
    options = parser.parse_args(arguments)
    options.base_is_given = options.base is not None
    check_options(parser, options)
    return options


def check_options(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """Refuse what does not go together."""
    if (options.out is None) == (options.verify is None):
        parser.error("give either --out or --verify")
    if options.base is not None and not (options.base / "config.json").exists():
        parser.error(f"--base {options.base} holds no model")
    if options.lr_schedule in STEP_SCHEDULES and not options.lr_change_at:
        parser.error(f"--lr-schedule {options.lr_schedule} needs --lr-change-at")
    if options.restart_at % options.save_every:
        parser.error("--restart-at must be a step with a checkpoint: a multiple of --save-every")
    if options.restart_at and options.lr_schedule != "constant":
        parser.error("--restart-at goes with a constant learning rate only")
    stored = (options.objective, options.dtype, options.max_shard_size)
    if options.lora_rank and stored != ("grpo", "float32", DEFAULT_SHARD_SIZE):
        parser.error("--lora-rank goes with GRPO only, and adapters are stored as peft does")


def add_kind_options(kinds: argparse._ArgumentGroup) -> None:
    """Options whose defaults change nothing."""
    kinds.add_argument("--base-seed", type=int, help="seed of the base if not that of the run")
    kinds.add_argument("--objective", choices=("grpo", "sft"), default="grpo")
    kinds.add_argument("--lora-rank", type=int, default=0, help="0 trains all weights")
    kinds.add_argument(
        "--lr-schedule",
        choices=("constant", "linear", "cosine", *STEP_SCHEDULES),
        default="constant",
    )
    kinds.add_argument("--lr-change-at", type=int, default=0, help="updates before drop or rise")
    kinds.add_argument("--lr-factor", type=float, default=3.0, help="divides (drop), multiplies")
    kinds.add_argument("--max-grad-norm", type=float, default=1.0)
    kinds.add_argument("--restart-at", type=int, default=0, help="new optimizer and data after N")


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, verify or push, as asked."""
    options = parse_arguments(arguments)
    logging.disable_progress_bar()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    if options.verify is not None:
        sys.exit(0 if verify(options.verify) else 1)
    recipe = Recipe(**{field.name: getattr(options, field.name) for field in fields(Recipe)})
    if not (options.out / "scores.json").exists():
        run(recipe, options.out, options.base)
    if options.push_to:
        push(options.out, options.push_to)


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    main()
