"""The reference way: the snapshot on the disk, from_pretrained, torch.linalg.svd per matrix."""

from __future__ import annotations

import importlib
from pathlib import Path

from tests.bench.child import Measured, measured


def download(repo: str, revision: str, folder: str) -> Measured:
    """Take a snapshot of a repo to the disk."""
    from huggingface_hub import snapshot_download

    return measured(lambda: snapshot_download(repo, revision=revision, local_dir=folder))


def load(folder: str) -> Measured:
    """Load one model in fp32, as the reference scripts do."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(1)
    path = Path(folder)
    return measured(lambda: AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32))


def merge(folders: list[str], output: str) -> Measured:
    """Average models with mergekit, one tensor at a time as it does by default."""
    config_module = importlib.import_module("mergekit.config")
    merge_module = importlib.import_module("mergekit.merge")
    models = [{"model": folder, "parameters": {"weight": 1.0}} for folder in folders]
    config = {"merge_method": "linear", "models": models, "dtype": "bfloat16"}
    wanted = config_module.MergeConfiguration.model_validate(config)
    options = merge_module.MergeOptions(copy_tokenizer=False)
    return measured(lambda: merge_module.run_merge(wanted, output, options))
