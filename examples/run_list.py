"""The fixed list of small real runs on which rules that choose a prediction are tried.

    python examples/run_list.py --out runs
    python examples/run_list.py --out runs plateau restart
    python examples/run_list.py --out other_seeds --seed-offset 100

Every run is trained by `train_tiny_grpo.py` into a folder of its own; finished ones are kept. The
two bases are trained once. The whole list takes about 25 minutes on one CPU core. With a seed
offset the same recipes make runs that nothing was tuned on.
"""

import argparse
import os
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from tiny_base import BaseRecipe
from tiny_trainer import DEFAULT_SHARD_SIZE, Recipe, make_base
from train_tiny_grpo import run
from transformers.utils import logging

QWEN2 = BaseRecipe(
    architecture="qwen2",
    hidden=64,
    layers=2,
    seed=0,
    supervised_updates=1500,
    supervised_lr=5e-3,
    forget_probability=0.52,
)
"""The base of the packaged demo run."""

QWEN3 = replace(QWEN2, architecture="qwen3", seed=7, forget_probability=0.5)


@dataclass(frozen=True)
class NamedRun:
    """A recipe with a name and what it stands for."""

    name: str
    about: str
    recipe: Recipe


def recipe_on(base: BaseRecipe, seed: int, updates: int, lr: float, **others: object) -> Recipe:
    """A GRPO run with 20 checkpoints, 16 prompts x 8 samples and fp32 storage unless said."""
    values = {
        **asdict(base),
        "seed": seed,
        "base_seed": base.seed,
        "updates": updates,
        "save_every": updates // 20,
        "lr": lr,
        "prompts_per_update": 16,
        "samples_per_prompt": 8,
        "base_dtype": "float32",
        "dtype": "float32",
        "max_shard_size": DEFAULT_SHARD_SIZE,
    }
    return Recipe(**{**values, **others})


RUNS = (
    NamedRun(
        "healthy_qwen2",
        "Plain GRPO at a constant learning rate whose score still rises in the end.",
        recipe_on(QWEN2, seed=1, updates=200, lr=1.2e-5),
    ),
    NamedRun(
        "healthy_qwen3",
        "The same kind of run on another architecture with a tied head.",
        recipe_on(QWEN3, seed=2, updates=200, lr=8e-6),
    ),
    NamedRun(
        "healthy_fast",
        "A third rising run: fewer updates of more samples at a higher learning rate.",
        recipe_on(QWEN2, seed=3, updates=120, lr=2e-5, prompts_per_update=32),
    ),
    NamedRun(
        "steady_qwen2",
        "A rising run with large batches, 32 prompts x 8 samples: its direction hardly turns.",
        recipe_on(QWEN2, seed=15, updates=160, lr=1.2e-5, prompts_per_update=32),
    ),
    NamedRun(
        "steady_qwen3",
        "Large batches on the other architecture.",
        recipe_on(QWEN3, seed=16, updates=160, lr=8e-6, prompts_per_update=32),
    ),
    NamedRun(
        "healthy_bf16",
        "A rising run whose base and checkpoints are stored in bf16.",
        recipe_on(QWEN2, seed=4, updates=200, lr=1.2e-5, base_dtype="bfloat16", dtype="bfloat16"),
    ),
    NamedRun(
        "lora",
        "A rising GRPO run on LoRA factors of rank 8, stored as peft adapters.",
        recipe_on(QWEN2, seed=5, updates=200, lr=8e-5, lora_rank=8),
    ),
    NamedRun(
        "sft",
        "Supervised fine-tuning on right answers with a cosine decay of the learning rate.",
        recipe_on(QWEN2, seed=6, updates=400, lr=1.5e-5, objective="sft", lr_schedule="cosine"),
    ),
    NamedRun(
        "plateau",
        "A high learning rate: saturated after a quarter of the run, then trained on.",
        recipe_on(QWEN2, seed=7, updates=200, lr=1.2e-4),
    ),
    NamedRun(
        "noisy",
        "Batches of 4 prompts x 4 samples: the update turns all the time, yet the score rises.",
        recipe_on(
            QWEN2, seed=8, updates=300, lr=1.2e-5, prompts_per_update=4, samples_per_prompt=4
        ),
    ),
    NamedRun(
        "noisy_plateau",
        "Such batches at a higher learning rate: saturated early, then little but noise.",
        recipe_on(QWEN3, seed=14, updates=300, lr=6e-5, prompts_per_update=4, samples_per_prompt=4),
    ),
    NamedRun(
        "lr_drop",
        "The learning rate drops to a tenth after 30 % of the updates.",
        recipe_on(
            QWEN3,
            seed=9,
            updates=200,
            lr=1.5e-5,
            lr_schedule="drop",
            lr_change_at=60,
            lr_factor=10.0,
        ),
    ),
    NamedRun(
        "lr_rise",
        "The learning rate triples after 40 % of the updates.",
        recipe_on(
            QWEN2,
            seed=10,
            updates=200,
            lr=6e-6,
            lr_schedule="rise",
            lr_change_at=80,
            lr_factor=3.0,
        ),
    ),
    NamedRun(
        "restart",
        "Stopped after 30 % and gone on from that checkpoint with a new optimizer and other data.",
        recipe_on(QWEN3, seed=11, updates=200, lr=8e-6, restart_at=60),
    ),
    NamedRun(
        "lr_decay",
        "The learning rate decays linearly to zero over the whole run.",
        recipe_on(QWEN2, seed=12, updates=200, lr=2e-5, lr_schedule="linear"),
    ),
    NamedRun(
        "diffusing",
        "A learning rate far too high and no clipping: the weights wander, the score is jagged.",
        recipe_on(QWEN2, seed=13, updates=200, lr=5e-4, prompts_per_update=8, max_grad_norm=0.0),
    ),
)


def shared_base(recipe: Recipe, out: Path) -> Path:
    """The fp32 base of a recipe, trained when the first run needs it."""
    folder = out / "bases" / f"{recipe.architecture}_seed{recipe.base_seed}"
    if not folder.exists():
        make_base(replace(recipe, base_dtype="float32"), folder)
    return folder


def main() -> None:
    """Make the runs that are asked for and not there yet."""
    names = [named.name for named in RUNS]
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--seed-offset", type=int, default=0, help="added to the seed of each run")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(names)}")
    options = parser.parse_args()
    unknown = set(options.names) - set(names)
    if unknown:
        parser.error(f"no such run: {', '.join(sorted(unknown))}")
    logging.disable_progress_bar()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    for named in RUNS:
        folder = options.out / named.name
        wanted = not options.names or named.name in options.names
        if wanted and not (folder / "scores.json").exists():
            print(f"{named.name}: {named.about}", flush=True)
            recipe = replace(named.recipe, seed=named.recipe.seed + options.seed_offset)
            run(recipe, folder, shared_base(recipe, options.out))


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    main()
