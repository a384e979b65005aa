"""Tiny trajectories on disk for tests, and the float64 truth about what is predicted from them.

Letters: T checkpoints, M rows, N columns; W_0 base, W_t checkpoint at step s_t, D_t = W_t - W_0.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from click.testing import CliRunner, Result
from safetensors.torch import load_file, save_file
from sklearn.cross_decomposition import PLSRegression
from torch import Tensor

from alpharl_hub.cli import main

INDEX = "model.safetensors.index.json"
EMBEDDING = "model.embed_tokens.weight"
HEAD = "lm_head.weight"
NORM = "model.norm.weight"
Q_PROJ = "model.layers.0.self_attn.q_proj.weight"
UP_PROJ = "model.layers.1.mlp.up_proj.weight"

VOCAB, HIDDEN, MIDDLE, LAYERS = 40, 16, 24, 2

Tensors = Mapping[str, Tensor]


def model_config(tied: bool = False, dtype: str = "float32") -> dict[str, Any]:
    """The config.json of the tiny Llama that `model_tensors` has the names and shapes of."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": VOCAB,
        "hidden_size": HIDDEN,
        "intermediate_size": MIDDLE,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 8,
        "tie_word_embeddings": tied,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "dtype": dtype,
    }


def generator(seed: int) -> torch.Generator:
    """A seeded source of random numbers."""
    return torch.Generator().manual_seed(seed)


def model_tensors(seed: int = 0, tied: bool = False) -> dict[str, Tensor]:
    """Random fp32 weights of a tiny Llama, the head left out when tied."""
    source = generator(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=source) * 0.05

    tensors = {EMBEDDING: normal(VOCAB, HIDDEN)}
    for layer in range(LAYERS):
        prefix = f"model.layers.{layer}."
        tensors[f"{prefix}self_attn.q_proj.weight"] = normal(16, HIDDEN)
        tensors[f"{prefix}self_attn.k_proj.weight"] = normal(8, HIDDEN)
        tensors[f"{prefix}self_attn.v_proj.weight"] = normal(8, HIDDEN)
        tensors[f"{prefix}self_attn.o_proj.weight"] = normal(HIDDEN, 16)
        tensors[f"{prefix}mlp.gate_proj.weight"] = normal(MIDDLE, HIDDEN)
        tensors[f"{prefix}mlp.up_proj.weight"] = normal(MIDDLE, HIDDEN)
        tensors[f"{prefix}mlp.down_proj.weight"] = normal(HIDDEN, MIDDLE)
        tensors[f"{prefix}input_layernorm.weight"] = 1 + normal(HIDDEN)
        tensors[f"{prefix}post_attention_layernorm.weight"] = 1 + normal(HIDDEN)
    tensors[NORM] = 1 + normal(HIDDEN)
    if not tied:
        tensors[HEAD] = normal(VOCAB, HIDDEN)
    return tensors


def matrix_names(tensors: Tensors) -> list[str]:
    """The matrices of attention and MLP."""
    return [name for name in tensors if "_proj" in name]


def write_weights(path: Path, tensors: Tensors, header_spaces: int = 0) -> None:
    """Write one safetensors file; `header_spaces` blanks shift the data to any offset."""
    save_file({k: v.contiguous() for k, v in tensors.items()}, path, metadata={"format": "pt"})
    if header_spaces:
        data = path.read_bytes()
        (length,) = struct.unpack("<Q", data[:8])
        header = data[8 : 8 + length] + b" " * header_spaces
        path.write_bytes(struct.pack("<Q", len(header)) + header + data[8 + length :])


def write_checkpoint(
    folder: Path,
    tensors: Tensors,
    *,
    dtype: torch.dtype | None = None,
    num_shards: int = 0,
    config: Mapping[str, Any] | None = None,
    header_spaces: int = 0,
) -> Path:
    """Write a model folder as transformers would.

    Floating tensors are cast to `dtype`; with `num_shards` they are dealt out over that many files
    beside an index.
    """
    folder.mkdir(parents=True, exist_ok=True)
    stored = {n: t.to(dtype) if dtype and t.is_floating_point() else t for n, t in tensors.items()}
    if num_shards:
        names = list(stored)
        filenames = [
            f"model-{i + 1:05d}-of-{num_shards:05d}.safetensors" for i in range(num_shards)
        ]
        weight_map = {}
        for i, filename in enumerate(filenames):
            shard = names[i * len(names) // num_shards : (i + 1) * len(names) // num_shards]
            write_weights(folder / filename, {n: stored[n] for n in shard}, header_spaces)
            weight_map.update(dict.fromkeys(shard, filename))
        index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
        (folder / INDEX).write_text(json.dumps(index))
    else:
        write_weights(folder / "model.safetensors", stored, header_spaces)
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config, indent=2))
    return folder


@dataclass(frozen=True)
class Run:
    """A run on disk: `base` and folders step_N below `root`."""

    root: Path
    base: Path
    steps: tuple[int, ...]

    def folder(self, step: int) -> Path:
        """The folder of one step."""
        return self.root / f"step_{step}"

    def arguments(self, *more: str) -> list[str]:
        """RUN and --base, as typed on a command line."""
        return [str(self.root), "--base", str(self.base), *more]


def write_run(
    where: Path,
    steps: Sequence[int],
    at: Callable[[int], Tensors],
    *,
    base_options: Mapping[str, Any] | None = None,
    last_options: Mapping[str, Any] | None = None,
    **options: Any,
) -> Run:
    """Write base (`at(0)`) and steps; the options are those of `write_checkpoint`."""
    options = {"config": model_config(), **options}
    write_checkpoint(where / "base", at(0), **{**options, **(base_options or {})})
    for step in steps:
        special = last_options if step == steps[-1] and last_options else {}
        write_checkpoint(where / "run" / f"step_{step}", at(step), **{**options, **special})
    return Run(where / "run", where / "base", tuple(steps))


def rank_one_line(
    seed: int = 0, tied: bool = False, size: float = 2e-5
) -> Callable[[int], Tensors]:
    """Weights that move along one rank-1 direction per matrix, in proportion to the step."""
    base = model_tensors(seed, tied)
    source = generator(seed + 1)
    directions = {}
    for name in matrix_names(base):
        rows, columns = base[name].shape
        directions[name] = torch.outer(
            torch.randn(rows, generator=source), torch.randn(columns, generator=source)
        )

    def at(step: int) -> Tensors:
        moved = {n: base[n] + size * step * d for n, d in directions.items()}
        return {**base, **moved}

    return at


def exact_line(tied: bool = False) -> Callable[[int], Tensors]:
    """A rank-1 line whose weights bf16 can store exactly at every step up to 100.

    All weights are multiples of 2^-12 below 256 of them: bf16 keeps 8 bits.
    """
    unit = 2.0**-12
    source = generator(5)
    base = {}
    directions = {}
    for name, tensor in model_tensors(0, tied).items():
        base[name] = torch.randint(-90, 91, tensor.shape, generator=source) * unit
        if "_proj" in name:
            rows, columns = tensor.shape
            u_M = torch.randint(0, 2, (rows,), generator=source) * 2.0 - 1
            v_N = torch.randint(0, 2, (columns,), generator=source) * 2.0 - 1
            directions[name] = torch.outer(u_M, v_N) * unit
    return lambda step: {**base, **{n: base[n] + step * d for n, d in directions.items()}}


def curved_run(
    steps: Sequence[int], seed: int = 0, noise: float = 0.1, size: float = 2e-5
) -> Callable[[int], Tensors]:
    """Every tensor but integers moves along three directions that bend, with noise on top."""
    base = model_tensors(seed)
    source = generator(seed + 1)
    last = steps[-1]
    deltas: dict[int, dict[str, Tensor]] = {step: {} for step in steps}
    for name, weights in base.items():
        flat = weights.reshape(len(weights), -1)
        rows, columns = flat.shape
        lefts = [torch.randn(rows, generator=source) for _ in range(3)]
        rights = [torch.randn(columns, generator=source) for _ in range(3)]
        for step in steps:
            s = step / last
            courses = (s**0.7, 0.6 * s**2, 0.35 * s * (1.4 - s))
            clean = sum(
                c * torch.outer(u, v) for c, u, v in zip(courses, lefts, rights, strict=True)
            )
            assert isinstance(clean, Tensor)
            shake = torch.randn(rows, columns, generator=source)
            shake *= noise * clean.norm() / shake.norm()
            deltas[step][name] = (size * last * (clean + shake)).view(weights.shape)

    def at(step: int) -> Tensors:
        return {n: w + deltas[step][n] if step else w for n, w in base.items()}

    return at


def load_model(folder: Path) -> dict[str, Tensor]:
    """All tensors of a model folder, as safetensors reads them."""
    found: dict[str, Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        found.update(load_file(path))
    return found


def as_float64(tensor: Tensor) -> np.ndarray:
    """A tensor of any floating dtype as numpy float64."""
    return tensor.to(torch.float64).numpy()


def digest(folder: Path) -> str:
    """One sha256 over the names and bytes of all weight files of a folder."""
    found = hashlib.sha256()
    for path in sorted(folder.glob("*.safetensors")):
        found.update(path.name.encode() + path.read_bytes())
    return found.hexdigest()


def alpharl_truth(
    base: np.ndarray,
    checkpoints: Sequence[np.ndarray],
    responses: Sequence[float],
    target: float,
    rescale: bool = True,
) -> np.ndarray:
    """W_hat of arXiv 2510.00553 by numpy's SVD and scikit-learn's PLS, in float64."""
    rows, v_N = [], np.zeros(base.shape[1])
    for weights in reversed(checkpoints):
        delta = weights - base
        u_MK, sigma_K, vt_KN = np.linalg.svd(delta, full_matrices=False)
        length = np.linalg.norm(delta) if rescale else sigma_K[0]
        row = length * u_MK[:, 0]
        if not rows:
            v_N = vt_KN[0]
        elif np.dot(row, rows[-1]) < 0:
            row = -row
        rows.append(row)
    y = np.asarray(responses, dtype=np.float64)
    pls = PLSRegression(n_components=1).fit(np.stack(rows[::-1]), y)
    score = (target - y.mean()) / y.std(ddof=1) / pls.y_loadings_[0, 0]
    return base + np.outer(pls.inverse_transform(np.array([[score]]))[0], v_N)


def linear_truth(
    base: np.ndarray,
    checkpoints: Sequence[np.ndarray],
    steps: Sequence[int],
    target: float,
    first: int | None = None,
) -> np.ndarray:
    """W_hat of arXiv 2601.04537 in float64: the line from the base, or from checkpoint `first`."""
    last = checkpoints[-1]
    if first is None:
        return base + target / steps[-1] * (last - base)
    ahead = (target - steps[-1]) / (steps[-1] - steps[first])
    return last + ahead * (last - checkpoints[first])


def relative_error(found: Tensor, wanted: np.ndarray, base: np.ndarray) -> float:
    """|found - wanted| in units of the update |wanted - base|."""
    update = np.linalg.norm(wanted - base)
    return float(np.linalg.norm(as_float64(found) - wanted) / update)


def with_method(arguments: Sequence[str | Path]) -> list[str]:
    """Name a method where `predict` or `inspect` would choose one: these runs are too small for it.

    The planted truths are those of alpharl.
    """
    words = [str(argument) for argument in arguments]
    chooses = words[:1] in (["predict"], ["inspect"]) and not {"--from", "--method"} & set(words)
    return [*words, "--method", "alpharl"] if chooses else words


def command(*arguments: str | Path) -> Result:
    """Run the command line in this process, as a shell would; see `with_method`."""
    return CliRunner().invoke(main, with_method(arguments))


def succeed(*arguments: str | Path) -> Result:
    """Run the command line and insist that it succeeds."""
    result = command(*arguments)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result


def fail(*arguments: str | Path) -> str:
    """Run the command line, insist on exit 1 and one line on stderr; return that line."""
    result = command(*arguments)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 1, result.output
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith("Error: "), line
    return line


def predict(run: Run, output: Path, *more: str) -> dict[str, Tensor]:
    """Predict into `output` and return its tensors."""
    succeed("predict", *run.arguments("-o", str(output), *more))
    return load_model(output)
