"""Tiny models with trained-looking adapters, made and saved by transformers and peft themselves."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor
from transformers import AutoModelForCausalLM, GPT2Config, PreTrainedModel, Qwen2Config

TOKENS = torch.arange(1, 13).reshape(2, 6)


def write_base(folder: Path, kind: str = "qwen2", tied: bool = False) -> Path:
    """Save a tiny Qwen2, or a GPT-2 whose layers are stored as (in, out)."""
    torch.manual_seed(0)
    if kind == "qwen2":
        config: Any = Qwen2Config(
            vocab_size=48,
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            tie_word_embeddings=tied,
        )
    else:
        config = GPT2Config(
            vocab_size=48, n_embd=16, n_layer=2, n_head=2, n_positions=32, tie_word_embeddings=tied
        )
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


@contextmanager
def quiet() -> Iterator[None]:
    """Let peft warn: that embeddings are saved, that fan_in_fan_out was set for Conv1D."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def write_adapters(
    base: Path, folders: Sequence[Path], size: float = 0.02, **options: Any
) -> list[Path]:
    """Save an adapter for each folder, each a random step on from the one before.

    `options` are LoraConfig's; everything that trains moves, also what began at zero.
    """
    torch.manual_seed(1)
    with quiet():
        config = LoraConfig(task_type="CAUSAL_LM", **{"r": 4, "lora_alpha": 8, **options})
        model = get_peft_model(load_base(base), config)
        for folder in folders:
            with torch.no_grad():
                for parameter in model.parameters():
                    if parameter.requires_grad:
                        parameter += size * torch.randn_like(parameter)
            model.save_pretrained(folder)
    return list(folders)


def load_base(base: Path) -> PreTrainedModel:
    """Load a model in fp32."""
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    return model


def load_adapted(base: Path, adapter: Path) -> Any:
    """Load a model with an adapter, as users do."""
    with quiet():
        return PeftModel.from_pretrained(load_base(base), adapter)


def merged_weights(base: Path, adapter: Path) -> dict[str, Tensor]:
    """The weights that peft merges, by the model's names."""
    with quiet():
        merged = load_adapted(base, adapter).merge_and_unload()
    return {name: value.detach().clone() for name, value in merged.state_dict().items()}


def logits(model: Any) -> Tensor:
    """What a model says to a few tokens."""
    with torch.no_grad():
        found: Tensor = model.eval()(TOKENS).logits
    return found
