"""The reference way: the snapshot on the disk, from_pretrained, torch.linalg.svd per matrix."""

from __future__ import annotations

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
