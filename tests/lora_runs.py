"""Tiny runs of LoRA adapters on disk whose updates bend, and what numpy says they are."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lora_models import write_adapters, write_base
from safetensors.torch import load_file, save_file

STEPS = (4, 10, 24, 31, 40)
_SIZES = (1.0, 0.45, 0.2, 0.1)


@dataclass(frozen=True)
class LoraRun:
    """A run on disk: `base`, and adapters in folders step_N below `root`."""

    root: Path
    base: Path
    steps: tuple[int, ...]

    @property
    def folders(self) -> list[Path]:
        """The folders of the steps, in their order."""
        return [self.root / f"step_{step}" for step in self.steps]

    def arguments(self, *more: str) -> list[str]:
        """RUN and --base, as typed on a command line."""
        return [str(self.root), "--base", str(self.base), *more]


def write_lora_run(
    where: Path,
    kind: str = "qwen2",
    base_dtype: torch.dtype | None = None,
    tied: bool = False,
    **options: Any,
) -> LoraRun:
    """Write a base and adapters of LoraConfig's `options` that bend as they grow."""
    base = write_base(where / "base", kind, tied)
    if base_dtype is not None:
        path = base / "model.safetensors"
        tensors = {name: tensor.to(base_dtype) for name, tensor in load_file(path).items()}
        save_file(tensors, path, metadata={"format": "pt"})
    folders = [where / "run" / f"step_{step}" for step in STEPS]
    write_adapters(base, folders, size=2e-4, **options)
    curve_adapters(folders, STEPS)
    return LoraRun(where / "run", base, STEPS)


def curve_adapters(folders: Sequence[Path], steps: Sequence[int]) -> None:
    """Give the factors of saved adapters courses of their own, well apart in size.

    Column r of the factor that begins at zero grows as a power of the step; the other one drifts.
    What was saved whole, and DoRA's magnitudes, stay as they are.
    """
    source = torch.Generator().manual_seed(3)
    first = load_file(folders[0] / "adapter_model.safetensors")
    columns = {n: torch.randn(t.shape, generator=source) for n, t in first.items()}
    for folder, step in zip(folders, steps, strict=True):
        path = folder / "adapter_model.safetensors"
        tensors = load_file(path)
        s = step / steps[-1]
        for name, tensor in tensors.items():
            is_grown = re.search(r"lora_(embedding_)?B", name) is not None
            if is_grown:
                courses = [size * s ** (0.7 + 0.3 * r) for r, size in enumerate(_SIZES)]
                sizes_R = torch.tensor(courses[: tensor.shape[1]])
                tensors[name] = 0.001 * columns[name] * sizes_R
            elif re.search(r"lora_(embedding_)?A", name):
                tensors[name] = 0.25 * columns[name] + 0.01 * (tensor - first[name])
        save_file(tensors, path, metadata={"format": "pt"})


def numpy_updates(folder: Path) -> dict[str, np.ndarray]:
    """The updates of Linear layers that an adapter's files describe, in float64, by base names."""
    config = json.loads((folder / "adapter_config.json").read_text())
    tensors = load_file(folder / "adapter_model.safetensors")
    found = {}
    for name, right in tensors.items():
        if not name.endswith(".lora_A.weight"):
            continue
        left = tensors[name.replace("lora_A", "lora_B")]
        module = name.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
        patterns = config["alpha_pattern"]
        alpha = next((a for key, a in patterns.items() if module.endswith(key)), None)
        rank = len(right)
        scale = (alpha or config["lora_alpha"]) / (
            math.sqrt(rank) if config["use_rslora"] else rank
        )
        found[f"{module}.weight"] = scale * left.double().numpy() @ right.double().numpy()
    return found
