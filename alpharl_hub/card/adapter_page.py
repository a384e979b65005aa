"""What a card says of a prediction that is a LoRA adapter: what it goes on, and how to load it."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence

from alpharl_hub.card.markdown import fenced
from alpharl_hub.manifest import Manifest

_VLLM_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""What vLLM takes as --max-lora-rank (0.11: https://docs.vllm.ai/en/latest/features/lora.html)."""


def how_to_load_adapter(manifest: Manifest, place: Sequence[str], has_tokenizer: bool) -> str:
    """Return the section on loading; `place` are the lines that say where the adapter is."""
    base = manifest.run.base
    name = base.source if base.commit is not None else f"path/to/{base.source}"
    options = "" if base.commit is None else f", revision={json.dumps(base.commit)}"
    options += f", subfolder={json.dumps(base.folder)}" if base.folder else ""
    classes = "AutoModelForCausalLM, AutoTokenizer" if has_tokenizer else "AutoModelForCausalLM"
    lines = [
        "from peft import PeftModel",
        f"from transformers import {classes}",
        "",
        *place,
        f"base_name = {json.dumps(name)}",
        f'base = AutoModelForCausalLM.from_pretrained(base_name{options}, dtype="auto")',
        "model = PeftModel.from_pretrained(base, name, revision=revision)",
    ]
    if has_tokenizer:
        lines.append("tokenizer = AutoTokenizer.from_pretrained(name, revision=revision)")
    parts = [
        "## How to load it",
        f"This is a LoRA adapter of rank {manifest.rank}, not a model: it is loaded on top of its "
        f"base. {_base_words(manifest)}",
        fenced(lines, "python"),
        _vllm(manifest, name),
    ]
    return "\n\n".join(parts)


def _base_words(manifest: Manifest) -> str:
    if manifest.run.base.commit is None:
        return (
            "That was a local folder, of which only the name is known here: say in `base_name` "
            "where it lies. Loading by the adapter's name alone does not find it."
        )
    return "`adapter_config.json` names it with the commit that was read."


def _vllm(manifest: Manifest, base_name: str) -> str:
    fitting = [rank for rank in _VLLM_RANKS if rank >= (manifest.rank or 1)]
    if not fitting:
        return f"vLLM takes ranks up to {_VLLM_RANKS[-1]}: merge it first (`merge_and_unload`)."
    base = manifest.run.base
    words = ["vllm", "serve", base_name]
    words += [] if base.commit is None else ["--revision", base.commit]
    words += ["--enable-lora", "--max-lora-rank", str(fitting[0])]
    command = shlex.join([*words, "--lora-modules", "predicted=path/to/this/adapter"])
    return (
        "With vLLM, from a local copy (adapters that hold whole modules must be merged first):\n\n"
        + fenced([command], "bash")
    )
