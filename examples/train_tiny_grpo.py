"""Train a tiny language model with TRL's GRPOTrainer and keep checkpoints to extrapolate from.

A real run in minutes on one CPU core: about 100 k parameters, three-digit addition, a reward that
is 1 for the exact answer and 0 for everything else. Needs `pip install "alpharl-hub[train]"`.

    python examples/train_tiny_grpo.py --out run
    python examples/train_tiny_grpo.py --verify run

The folder holds `base/`, `checkpoint-N/` as TRL writes them, `scores.json` (greedy exact-match
score of the stored weights of each checkpoint on test problems that no training ever saw),
`train.log` (TRL's log, one JSON object a line) and `recipe.json` (arguments, packages, CPU).

One thread and fixed seeds make the run repeatable to the bit on one kind of CPU. Another kind may
order its sums differently and drift apart.
"""

import argparse
import copy
import hashlib
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, fields
from importlib.metadata import version
from pathlib import Path

import torch
from datasets import Dataset
from huggingface_hub import CommitOperationAdd, HfApi
from tiny_base import BaseRecipe, train_base
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from transformers.utils import logging
from trl import GRPOConfig, GRPOTrainer

from alpharl_hub.demo.task import (
    MAX_COMPLETION_TOKENS,
    NUM_TEST_PROBLEMS,
    draw_problems,
    is_correct,
    load_and_measure,
)

PACKAGES = ("torch", "transformers", "trl", "accelerate", "datasets", "tokenizers")
TRAINING_STATE = ("optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin")
DEFAULT_SHARD_SIZE = "50GB"  # the default of save_pretrained: one file


@dataclass(frozen=True)
class Recipe(BaseRecipe):
    """Everything that decides the weights of a run; the fields are the options."""

    updates: int
    save_every: int
    lr: float
    prompts_per_update: int
    samples_per_prompt: int
    base_dtype: str
    dtype: str
    max_shard_size: str


class StoringTrainer(GRPOTrainer):
    """GRPOTrainer that computes in fp32 and stores its checkpoints as the recipe says."""

    def __init__(self, recipe: Recipe, **kwargs: object) -> None:
        self.recipe = recipe
        super().__init__(**kwargs)

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        super()._save(output_dir, state_dict)
        if (self.recipe.dtype, self.recipe.max_shard_size) != ("float32", DEFAULT_SHARD_SIZE):
            folder = Path(output_dir)
            (folder / "model.safetensors").unlink()  # loaders prefer it to shards beside it
            store(self.model, self.recipe.dtype, self.recipe.max_shard_size, folder)


def store(model: PreTrainedModel, dtype: str, max_shard_size: str, folder: Path) -> None:
    """Write a model in the given dtype and shard size, leaving the model itself as it is."""
    stored = copy.deepcopy(model).to(getattr(torch, dtype))
    stored.save_pretrained(folder, max_shard_size=max_shard_size)


def exact_match_reward(completions: list[str], answer: list[str], **_: object) -> list[float]:
    """The verifiable reward, in the form that TRL asks for."""
    return [float(is_correct(a, c)) for a, c in zip(answer, completions, strict=True)]


def make_base(recipe: Recipe, folder: Path) -> None:
    """Train the base and store it; a bf16 base is stored on the bf16 grid before RL starts."""
    model, tokenizer = train_base(recipe)
    store(model, recipe.base_dtype, DEFAULT_SHARD_SIZE, folder)
    tokenizer.save_pretrained(folder)


def make_config(recipe: Recipe, updates: int, out: Path) -> GRPOConfig:
    """TRL's configuration: plain GRPO without a KL term at a constant learning rate."""
    return GRPOConfig(
        output_dir=str(out),
        seed=recipe.seed,
        use_cpu=True,
        max_steps=updates,
        save_steps=recipe.save_every,
        logging_steps=recipe.save_every,
        learning_rate=recipe.lr,
        lr_scheduler_type="constant",
        weight_decay=0.0,
        beta=0.0,
        temperature=1.0,
        per_device_train_batch_size=recipe.prompts_per_update * recipe.samples_per_prompt,
        num_generations=recipe.samples_per_prompt,
        max_completion_length=MAX_COMPLETION_TOKENS,
        gradient_checkpointing=False,
        bf16=False,
        report_to="none",
        disable_tqdm=True,
    )


def train_grpo(recipe: Recipe, updates: int, out: Path) -> list[dict]:
    """Run GRPO from the stored base for so many updates and return TRL's log."""
    problems = draw_problems("train", recipe.updates * recipe.prompts_per_update, recipe.seed + 1)
    rows = [{"prompt": problem.prompt, "answer": problem.answer} for problem in problems]
    trainer = StoringTrainer(
        recipe,
        model=AutoModelForCausalLM.from_pretrained(out / "base", dtype=torch.float32),
        reward_funcs=exact_match_reward,
        args=make_config(recipe, updates, out),
        train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(out / "base", padding_side="left"),
    )
    trainer.train()
    return trainer.state.log_history


def checkpoint_folders(out: Path) -> dict[int, Path]:
    """The folders of a run by step; the base is step 0."""
    found = {int(path.name.removeprefix("checkpoint-")): path for path in out.glob("checkpoint-*")}
    return {0: out / "base", **dict(sorted(found.items()))}


def measure_run(out: Path) -> dict[str, dict]:
    """Score the stored weights of every checkpoint on the test problems."""
    scores = {}
    for step, folder in checkpoint_folders(out).items():
        scores[str(step)] = asdict(load_and_measure(folder, num_problems=NUM_TEST_PROBLEMS))
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


def run(recipe: Recipe, out: Path) -> None:
    """Train, measure and record one run in an empty folder."""
    if out.exists() and any(out.iterdir()):
        sys.exit(f"error: {out} is not empty; name a new folder with --out")
    started = time.monotonic()
    make_base(recipe, out / "base")
    base_done = time.monotonic()
    log = train_grpo(recipe, recipe.updates, out)
    trained = time.monotonic()
    seconds = {"base": round(base_done - started, 1), "grpo": round(trained - base_done, 1)}
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
    """Retrain base and first two checkpoints by the recorded recipe and compare the bytes."""
    written = json.loads((recorded / "recipe.json").read_text())
    recipe = Recipe(**written["arguments"])
    for key, value in describe_machine().items():
        if value != written[key]:
            print(f"note: {key} was {written[key]}, is {value}")
    equal = True
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch)
        make_base(recipe, out / "base")
        train_grpo(recipe, 2 * recipe.save_every, out)
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
    paths = [path for path in sorted(folder.iterdir()) if path.name not in TRAINING_STATE]
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
    options = parser.parse_args(arguments)
    if (options.out is None) == (options.verify is None):
        parser.error("give either --out or --verify")
    return options


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
        run(recipe, options.out)
    if options.push_to:
        push(options.out, options.push_to)


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    main()
