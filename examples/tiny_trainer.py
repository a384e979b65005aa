"""The runs of `train_tiny_grpo.py`: their recipe, their trainers and how checkpoints are stored."""

import copy
from dataclasses import dataclass, fields, replace
from pathlib import Path

import torch
from datasets import Dataset
from peft import LoraConfig
from tiny_base import EOS, BaseRecipe, train_base
from torch.optim.lr_scheduler import LambdaLR
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    Trainer,
    TrainingArguments,
    default_data_collator,
    set_seed,
)
from trl import GRPOConfig, GRPOTrainer

from alpharl_hub.demo.task import MAX_COMPLETION_TOKENS, Problem, draw_problems, is_correct

DEFAULT_SHARD_SIZE = "50GB"  # the default of save_pretrained: one file
STEP_SCHEDULES = ("drop", "rise")
RESTART_SEED_OFFSET = 1000  # a restarted run draws other problems and other samples


@dataclass(frozen=True)
class Recipe(BaseRecipe):
    """Everything that decides the weights of a run; the fields are the options.

    Fields with a default were added later: a recipe recorded before goes on naming the same run.
    """

    updates: int
    save_every: int
    lr: float
    prompts_per_update: int
    samples_per_prompt: int
    base_dtype: str
    dtype: str
    max_shard_size: str
    base_seed: int | None = None  # None: the seed of the run
    base_is_given: bool = False  # the base was copied with --base, not trained by this recipe
    objective: str = "grpo"
    lora_rank: int = 0  # 0: all weights are trained
    lr_schedule: str = "constant"
    lr_change_at: int = 0  # updates done before the learning rate drops or rises
    lr_factor: float = 3.0  # by which it is divided (drop) or multiplied (rise)
    max_grad_norm: float = 1.0
    restart_at: int = 0  # 0: never

    def base_recipe(self) -> BaseRecipe:
        """The part that decides the base."""
        values = {field.name: getattr(self, field.name) for field in fields(BaseRecipe)}
        base = BaseRecipe(**values)
        return base if self.base_seed is None else replace(base, seed=self.base_seed)

    def lr_multiplier(self, updates_done: int) -> float:
        """What a drop or a rise makes of the learning rate in the next update."""
        if updates_done < self.lr_change_at:
            return 1.0
        return self.lr_factor if self.lr_schedule == "rise" else 1 / self.lr_factor


class StoringTrainer(Trainer):
    """A trainer that computes in fp32 and stores its checkpoints as the recipe says."""

    def __init__(self, recipe: Recipe, **kwargs: object) -> None:
        self.recipe = recipe
        super().__init__(**kwargs)

    def create_scheduler(
        self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None
    ) -> torch.optim.lr_scheduler.LRScheduler:
        recipe = self.recipe
        if self.lr_scheduler is None and recipe.lr_schedule in STEP_SCHEDULES:
            self.lr_scheduler = LambdaLR(optimizer or self.optimizer, recipe.lr_multiplier)
        # a decay spans the whole run, also where only its first updates are repeated
        return super().create_scheduler(recipe.updates, optimizer)

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        super()._save(output_dir, state_dict)
        if (self.recipe.dtype, self.recipe.max_shard_size) != ("float32", DEFAULT_SHARD_SIZE):
            folder = Path(output_dir)
            (folder / "model.safetensors").unlink()  # loaders prefer it to shards beside it
            store(self.model, self.recipe.dtype, self.recipe.max_shard_size, folder)


class StoringGRPOTrainer(StoringTrainer, GRPOTrainer):
    """TRL's GRPOTrainer with stored checkpoints as above."""


def store(model: PreTrainedModel, dtype: str, max_shard_size: str, folder: Path) -> None:
    """Write a model in the given dtype and shard size, leaving the model itself as it is."""
    stored = copy.deepcopy(model).to(getattr(torch, dtype))
    stored.save_pretrained(folder, max_shard_size=max_shard_size)


def load_fp32(folder: Path) -> PreTrainedModel:
    """A stored model, to compute with in fp32."""
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def make_base(recipe: Recipe, folder: Path, given: Path | None = None) -> None:
    """Train the base, or take a given one, and store it.

    A bf16 base is stored on the bf16 grid before training starts.
    """
    if given is None:
        model, tokenizer = train_base(recipe.base_recipe())
    else:
        model, tokenizer = load_fp32(given), AutoTokenizer.from_pretrained(given)
    store(model, recipe.base_dtype, DEFAULT_SHARD_SIZE, folder)
    tokenizer.save_pretrained(folder)


def exact_match_reward(completions: list[str], answer: list[str], **_: object) -> list[float]:
    """The verifiable reward, in the form that TRL asks for."""
    return [float(is_correct(a, c)) for a, c in zip(answer, completions, strict=True)]


def make_arguments(recipe: Recipe, updates: int, seed: int, out: Path) -> TrainingArguments:
    """The trainer's configuration; GRPO is plain, without a KL term."""
    in_steps = recipe.lr_schedule in STEP_SCHEDULES
    shared = {
        "output_dir": str(out),
        "seed": seed,
        "use_cpu": True,
        "max_steps": updates,
        "save_steps": recipe.save_every,
        "save_only_model": True,  # the state of the optimizer is twice as large and never read
        "logging_steps": recipe.save_every,
        "learning_rate": recipe.lr,
        "lr_scheduler_type": "constant" if in_steps else recipe.lr_schedule,
        "max_grad_norm": recipe.max_grad_norm,
        "weight_decay": 0.0,
        "per_device_train_batch_size": recipe.prompts_per_update * recipe.samples_per_prompt,
        "gradient_checkpointing": False,
        "bf16": False,
        "report_to": "none",
        "disable_tqdm": True,
        "ignore_data_skip": True,  # a restarted run reads its own problems from the first one
    }
    if recipe.objective == "sft":
        return TrainingArguments(**shared)
    return GRPOConfig(
        beta=0.0,
        temperature=1.0,
        num_generations=recipe.samples_per_prompt,
        max_completion_length=MAX_COMPLETION_TOKENS,
        **shared,
    )


def supervised_row(problem: Problem, tokenizer: AutoTokenizer) -> dict[str, list[int]]:
    """A problem with its right answer; only the answer is learned."""
    prompt = tokenizer(problem.prompt)["input_ids"]
    answer = tokenizer(problem.answer + EOS)["input_ids"]
    return {"input_ids": prompt + answer, "labels": [-100] * len(prompt) + answer}


def make_sft_trainer(recipe: Recipe, arguments: TrainingArguments, base: Path) -> StoringTrainer:
    """Supervised fine-tuning on right answers; a prompt and its samples count as so many rows."""
    tokenizer = AutoTokenizer.from_pretrained(base)
    num_rows = recipe.updates * recipe.prompts_per_update * recipe.samples_per_prompt
    problems = draw_problems("train", num_rows, arguments.seed + 1)
    return StoringTrainer(
        recipe,
        model=load_fp32(base),
        args=arguments,
        train_dataset=Dataset.from_list([supervised_row(p, tokenizer) for p in problems]),
        data_collator=default_data_collator,
        processing_class=tokenizer,
    )


def make_grpo_trainer(recipe: Recipe, arguments: GRPOConfig, base: Path) -> StoringTrainer:
    """GRPO on all weights, or on LoRA factors of every linear layer."""
    num_rows = recipe.updates * recipe.prompts_per_update
    problems = draw_problems("train", num_rows, arguments.seed + 1)
    rows = [{"prompt": problem.prompt, "answer": problem.answer} for problem in problems]
    lora = LoraConfig(
        r=recipe.lora_rank, lora_alpha=2 * recipe.lora_rank, target_modules="all-linear"
    )
    return StoringGRPOTrainer(
        recipe,
        model=load_fp32(base),
        reward_funcs=exact_match_reward,
        args=arguments,
        train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(base, padding_side="left"),
        peft_config=lora if recipe.lora_rank else None,
    )


def train_part(recipe: Recipe, updates: int, out: Path, checkpoint: Path | None) -> list[dict]:
    """Train up to an update, from the base or on from a checkpoint with a new optimizer."""
    seed = recipe.seed if checkpoint is None else recipe.seed + RESTART_SEED_OFFSET
    set_seed(seed)  # LoRA factors are drawn before the trainer sets its seed
    make_trainer = make_sft_trainer if recipe.objective == "sft" else make_grpo_trainer
    trainer = make_trainer(recipe, make_arguments(recipe, updates, seed, out), out / "base")
    # Checkpoints hold no optimizer, so that a resumed trainer begins a new one.
    trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    return trainer.state.log_history


def train(recipe: Recipe, updates: int, out: Path) -> list[dict]:
    """Train from the stored base for so many updates and return the trainer's log."""
    if not 0 < recipe.restart_at < updates:
        return train_part(recipe, updates, out, None)
    train_part(recipe, recipe.restart_at, out, None)
    return train_part(recipe, updates, out, out / f"checkpoint-{recipe.restart_at}")
