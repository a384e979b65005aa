"""How a card says that its prediction is loaded: a model, or a LoRA adapter on its base."""

from __future__ import annotations

import json
import shlex

from alpharl_hub.card.markdown import code, fenced
from alpharl_hub.manifest import Manifest

_VLLM_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""What vLLM takes as --max-lora-rank: https://docs.vllm.ai/en/v0.14.0/api/vllm/config/lora/"""


_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")


def example_place(name: str, branch: str) -> tuple[str, str]:
    """Return the two lines of the example of loading that say where the model is."""
    return (
        f"name = {json.dumps(name)}  # this repo, or a folder that holds its files",
        f"revision = {json.dumps(branch)}",
    )


def serving_line(name: str, branch: str) -> str:
    """Return the command that serves the model of that name, as far as its place matters."""
    return shlex.join(["vllm", "serve", name, "--revision", branch])


def is_adapter(manifest: Manifest) -> bool:
    """Whether the prediction was written as a LoRA adapter."""
    return manifest.method is not None and manifest.method.as_adapter is True


def has_tokenizer(manifest: Manifest) -> bool:
    """Whether a tokenizer came along."""
    return any(name in _TOKENIZER_FILES for name in manifest.copied_files)


def listed(names: list[str]) -> str:
    """Return names of files as code."""
    return ", ".join(code(name) for name in names)


def how_to_load(manifest: Manifest, name: str, branch: str) -> str:
    """Return the section on loading what lies in the repo or folder of that name."""
    if is_adapter(manifest):
        return _load_adapter(manifest, name, branch)
    lines = [
        f"from transformers import {_classes(manifest)}",
        "",
        *example_place(name, branch),
        'model = AutoModelForCausalLM.from_pretrained(name, revision=revision, dtype="auto")',
        *_tokenizer(manifest),
    ]
    text = "\n\n".join(
        (
            "## Use",
            fenced(lines, "python"),
            "Served by vLLM:",
            fenced([serving_line(name, branch) + _serving_tokenizer(manifest)], "bash"),
        )
    )
    scripts = [name for name in manifest.copied_files if name.endswith(".py")]
    if scripts:
        text += (
            f"\n\nPython files came along from the run: {listed(scripts)}. They run on your "
            "machine if you pass `trust_remote_code=True`; read them first."
        )
    return text


def _classes(manifest: Manifest) -> str:
    model = "AutoModelForCausalLM"
    return f"{model}, AutoTokenizer" if has_tokenizer(manifest) else model


def _tokenizer(manifest: Manifest) -> list[str]:
    line = "tokenizer = AutoTokenizer.from_pretrained(name, revision=revision)"
    return [line] if has_tokenizer(manifest) else []


def _serving_tokenizer(manifest: Manifest) -> str:
    """Name the base's tokenizer to vLLM, which looks for one beside the weights."""
    base = manifest.run.base
    if has_tokenizer(manifest) or base.commit is None or base.folder:
        return ""
    return " " + shlex.join(["--tokenizer", base.source, "--tokenizer-revision", base.commit])


def _load_adapter(manifest: Manifest, name: str, branch: str) -> str:
    base = manifest.run.base
    base_name = base.source if base.commit is not None else f"path/to/{base.source}"
    options = "" if base.commit is None else f", revision={json.dumps(base.commit)}"
    options += f", subfolder={json.dumps(base.folder)}" if base.folder else ""
    lines = [
        "from peft import PeftModel",
        f"from transformers import {_classes(manifest)}",
        "",
        *example_place(name, branch),
        f"base_name = {json.dumps(base_name)}",
        f'base = AutoModelForCausalLM.from_pretrained(base_name{options}, dtype="auto")',
        "model = PeftModel.from_pretrained(base, name, revision=revision)",
        *_tokenizer(manifest),
    ]
    parts = [
        "## Use",
        f"This is a LoRA adapter of rank {manifest.rank}, not a model: it is loaded on top of its "
        f"base. {_base_words(manifest)}",
        fenced(lines, "python"),
        _vllm(manifest, base_name),
    ]
    return "\n\n".join(parts)


def _base_words(manifest: Manifest) -> str:
    if manifest.run.base.commit is None:
        return (
            "That was a local folder, of which only the name is known here and which "
            "`adapter_config.json` does not name: say in `base_name` where it lies."
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
