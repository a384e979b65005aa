"""Synthetic runs from a seed: a base and checkpoints in bf16, as large as asked, quickly made.

Letters: M rows, N columns, K planted directions, T checkpoints.

W_0 is normal with a deviation of 0.02. What is added at a checkpoint has K directions whose sizes
fall from sigma_2/sigma_1 = 0.7 on, and noise; together they change about as many bf16 values as
published RL runs do, and sigma_1^2 is about a twelfth of the stored update's squared norm.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from alpharl_hub.safetensors_header import encode_header
from alpharl_hub.tensor_bytes import memory_of

DIRECTIONS = 48
"""More than the rivals' sketches are wide: updates of real runs have no such end."""
BASE_DEVIATION, LOW_RANK_DEVIATION, NOISE_DEVIATION = 0.02, 4e-5, 2e-5
BLOCK_ELEMENTS = 1 << 22
POOL_ELEMENTS = (1 << 24) + 43
"""Normal numbers are drawn once and taken from a random place on: drawing costs the most."""


@dataclass(frozen=True)
class Shapes:
    """The sides of a Llama-like model with tied embeddings."""

    hidden: int
    intermediate: int
    key_value: int
    head: int
    layers: int
    vocabulary: int

    def config(self) -> dict[str, object]:
        """Return its config.json."""
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "vocab_size": self.vocabulary,
            "hidden_size": self.hidden,
            "intermediate_size": self.intermediate,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.hidden // self.head,
            "num_key_value_heads": self.key_value // self.head,
            "head_dim": self.head,
            "tie_word_embeddings": True,
            "dtype": "bfloat16",
        }

    def layer_matrices(self, layer: int) -> dict[str, tuple[int, int]]:
        """Return the shapes of one layer's matrices."""
        h, i, kv = self.hidden, self.intermediate, self.key_value
        prefix = f"model.layers.{layer}."
        return {
            f"{prefix}mlp.down_proj.weight": (h, i),
            f"{prefix}mlp.gate_proj.weight": (i, h),
            f"{prefix}mlp.up_proj.weight": (i, h),
            f"{prefix}self_attn.k_proj.weight": (kv, h),
            f"{prefix}self_attn.o_proj.weight": (h, h),
            f"{prefix}self_attn.q_proj.weight": (h, h),
            f"{prefix}self_attn.v_proj.weight": (kv, h),
        }

    def matrices(self) -> dict[str, tuple[int, int]]:
        """Return the shapes of all layers' matrices."""
        found: dict[str, tuple[int, int]] = {}
        for layer in range(self.layers):
            found.update(self.layer_matrices(layer))
        return found

    def tensors(self) -> dict[str, tuple[int, ...]]:
        """Return the shapes of all tensors, in the order of the file."""
        found: dict[str, tuple[int, ...]] = {
            "model.embed_tokens.weight": (self.vocabulary, self.hidden),
            "model.norm.weight": (self.hidden,),
            **self.matrices(),
        }
        for layer in range(self.layers):
            for side in ("input_layernorm", "post_attention_layernorm"):
                found[f"model.layers.{layer}.{side}.weight"] = (self.hidden,)
        return dict(sorted(found.items()))

    @property
    def matrix_bytes(self) -> int:
        """Bytes of the layers' matrices in bf16."""
        return 2 * sum(rows * columns for rows, columns in self.matrices().values())

    @property
    def other_bytes(self) -> int:
        """Bytes of all other tensors in bf16."""
        total = sum(torch.Size(shape).numel() for shape in self.tensors().values())
        return 2 * total - self.matrix_bytes

    @property
    def largest_matrix_bytes(self) -> int:
        """Bytes of the largest matrix of a layer in bf16."""
        return 2 * self.hidden * max(self.intermediate, self.hidden)


SEVEN_B_PAIR = Shapes(3584, 18944, 512, 128, layers=2, vocabulary=1024)
"""Two layers of a model of 7 billion parameters."""

SEVEN_B = replace(SEVEN_B_PAIR, layers=28, vocabulary=152064)
"""All of it; too large to be written."""

QUARTER_GB = Shapes(2560, 13568, 512, 128, layers=1, vocabulary=1024)
"""One smaller layer, 0.25 GB."""

HALF_B = Shapes(896, 4864, 128, 64, layers=24, vocabulary=151936)
"""A model of half a billion parameters."""

TINY = Shapes(64, 128, 32, 16, layers=2, vocabulary=200)
"""About 100 000 parameters."""


@dataclass(frozen=True)
class RunFolders:
    """A base and the checkpoints of a run, each a model folder."""

    base: Path
    run: Path
    steps: tuple[int, ...]

    def folder(self, step: int) -> Path:
        """Return the folder of one step."""
        return self.run / f"step_{step}"


class _Normal:
    """Seeded normal numbers, taken from a pool."""

    def __init__(self, seed: int) -> None:
        self._source = torch.Generator().manual_seed(seed)
        self._pool_P = torch.randn(POOL_ELEMENTS, generator=self._source)

    def take(self, num_elements: int) -> Tensor:
        last = POOL_ELEMENTS - num_elements
        start = int(torch.randint(last, (1,), generator=self._source))
        return self._pool_P[start : start + num_elements]


def write_run(folder: Path, shapes: Shapes, steps: tuple[int, ...], seed: int = 0) -> RunFolders:
    """Write a base and one checkpoint for each step; needs memory for a few blocks only."""
    found = RunFolders(folder / "base", folder / "run", steps)
    tensors = shapes.tensors()
    header = encode_header([(n, "BF16", s) for n, s in tensors.items()], {"format": "pt"})
    normal = _Normal(seed)
    with ExitStack() as stack:
        files = []
        for place in (found.base, *(found.folder(step) for step in steps)):
            place.mkdir(parents=True)
            (place / "config.json").write_text(json.dumps(shapes.config(), indent=2) + "\n")
            files.append(stack.enter_context((place / "model.safetensors").open("wb")))
            files[-1].write(header)
        shares = [step / steps[-1] for step in steps]
        for shape in tensors.values():
            for block in _tensor_blocks(shape, shares, normal):
                for file, values in zip(files, block, strict=True):
                    _write(file, values)
    return found


def sparse_run(folder: Path, shapes: Shapes, steps: tuple[int, ...]) -> RunFolders:
    """Write a run of zeros that takes no space on a disk: for what depends on shapes alone."""
    found = RunFolders(folder / "base", folder / "run", steps)
    tensors = [(name, "BF16", shape) for name, shape in shapes.tensors().items()]
    header = encode_header(tensors, {"format": "pt"})
    for place in (found.base, *(found.folder(step) for step in steps)):
        place.mkdir(parents=True)
        (place / "config.json").write_text(json.dumps(shapes.config(), indent=2) + "\n")
        with (place / "model.safetensors").open("wb") as file:
            file.write(header)
            file.truncate(len(header) + shapes.matrix_bytes + shapes.other_bytes)
    return found


def _write(file: BinaryIO, values: Tensor) -> None:
    stored = values.to(torch.bfloat16).contiguous()
    file.write(memory_of(stored))


def _tensor_blocks(
    shape: tuple[int, ...], shares: list[float], normal: _Normal
) -> Iterator[list[Tensor]]:
    """Yield row blocks of one tensor: of the base, then of each checkpoint."""
    if len(shape) == 1:
        yield [torch.ones(shape)] * (1 + len(shares))
        return
    rows, columns = shape
    size_K = 0.7 * 0.95 ** (torch.arange(DIRECTIONS) - 1.0)
    size_K[0] = 1.0
    size_K *= LOW_RANK_DEVIATION / torch.linalg.vector_norm(size_K)
    right_KN = normal.take(DIRECTIONS * columns).view(DIRECTIONS, columns)
    block_rows = max(1, BLOCK_ELEMENTS // columns)
    for top in range(0, rows, block_rows):
        height = min(block_rows, rows - top)
        left_MK = normal.take(height * DIRECTIONS).view(height, DIRECTIONS) * size_K
        base_MN = normal.take(height * columns).view(height, columns) * BASE_DEVIATION
        base_MN = base_MN.to(torch.bfloat16).float()
        found = [base_MN]
        for share in shares:
            # Later directions come in later, so that the leading one turns a little.
            course_K = share ** (1 + 0.02 * torch.arange(DIRECTIONS))
            noise_MN = normal.take(height * columns).view(height, columns)
            moved_MN = torch.addmm(base_MN, left_MK * course_K, right_KN)
            found.append(moved_MN.add_(noise_MN, alpha=NOISE_DEVIATION * share**0.5))
        yield found
