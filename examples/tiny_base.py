"""The base model of `train_tiny_grpo.py`: tokenizer, network and its careless teacher.

The teacher adds as a pupil does but forgets each carry with a fixed probability. A model trained
on such work knows how to add and is often wrong: reinforcement learning has something to find.
"""

import random
from dataclasses import dataclass

import torch
from transformers import (
    GenerationConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen2Tokenizer,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from alpharl_hub.demo.task import NUM_ADDEND_DIGITS, Problem, draw_problems

PAD, EOS = "<pad>", "<eos>"
CHARACTERS = "0123456789+="
MAX_TOKENS = 32
BATCH_SIZE = 128
NUM_SUPERVISED_PROBLEMS = 60_000


@dataclass(frozen=True)
class BaseRecipe:
    """Everything that decides the base weights."""

    architecture: str
    hidden: int
    layers: int
    seed: int
    supervised_updates: int
    supervised_lr: float
    forget_probability: float


def make_tokenizer() -> Qwen2Tokenizer:
    """One token per character: byte-pair encoding without a single merge.

    Qwen2Tokenizer is what AutoTokenizer makes of any tokenizer beside a Qwen2 or Qwen3 model
    (transformers 5.23), so that checkpoints hold the same tokenizer as the base.
    """
    return Qwen2Tokenizer(
        vocab={token: i for i, token in enumerate([PAD, EOS, *CHARACTERS])},
        merges=[],
        pad_token=PAD,
        eos_token=EOS,
        unk_token=PAD,
        padding_side="left",
        model_max_length=MAX_TOKENS,
    )


def make_network(recipe: BaseRecipe, tokenizer: Qwen2Tokenizer) -> PreTrainedModel:
    """An untrained Qwen2 (separate head) or Qwen3 (tied head) of the recipe's size."""
    tied = recipe.architecture == "qwen3"
    config_class = Qwen3Config if tied else Qwen2Config
    model_class = Qwen3ForCausalLM if tied else Qwen2ForCausalLM
    extra = {"head_dim": recipe.hidden // 4} if tied else {}
    config = config_class(
        vocab_size=len(tokenizer),
        hidden_size=recipe.hidden,
        intermediate_size=3 * recipe.hidden,
        num_hidden_layers=recipe.layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=MAX_TOKENS,
        initializer_range=recipe.hidden**-0.5,
        tie_word_embeddings=tied,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **extra,
    )
    torch.manual_seed(recipe.seed)
    model = model_class(config)
    model.generation_config = GenerationConfig(
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    return model


def careless_answer(problem: Problem, forget_probability: float, rng: random.Random) -> str:
    """Add units first, forgetting each carry with the given probability."""
    digits, carry = [], 0
    first, second = problem.first, problem.second
    for _ in range(NUM_ADDEND_DIGITS):
        carry, digit = divmod(first % 10 + second % 10 + carry, 10)
        digits.append(digit)
        carry = 0 if rng.random() < forget_probability else carry
        first, second = first // 10, second // 10
    return "".join(map(str, [*digits, carry]))


def supervised_tokens(recipe: BaseRecipe, tokenizer: Qwen2Tokenizer) -> torch.Tensor:
    """The teacher's work as token ids: one row per problem, prompt, answer and end token."""
    rng = random.Random(recipe.seed)
    rows = [
        problem.prompt + careless_answer(problem, recipe.forget_probability, rng) + EOS
        for problem in draw_problems("train", NUM_SUPERVISED_PROBLEMS, recipe.seed)
    ]
    return tokenizer(rows, return_tensors="pt")["input_ids"]


def train_base(recipe: BaseRecipe) -> tuple[PreTrainedModel, Qwen2Tokenizer]:
    """Train the base on the teacher's work with AdamW and a one-cycle learning rate."""
    tokenizer = make_tokenizer()
    model = make_network(recipe, tokenizer).train()
    tokens = supervised_tokens(recipe, tokenizer)
    prompt_length = len(Problem(0, 0).prompt)
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.supervised_lr, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, recipe.supervised_lr, total_steps=recipe.supervised_updates
    )
    generator = torch.Generator().manual_seed(recipe.seed)
    for _ in range(recipe.supervised_updates):
        batch = tokens[torch.randint(len(tokens), (BATCH_SIZE,), generator=generator)]
        labels = batch.clone()
        labels[:, :prompt_length] = -100  # only the answer is learned
        model(input_ids=batch, labels=labels).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    return model.eval(), tokenizer
