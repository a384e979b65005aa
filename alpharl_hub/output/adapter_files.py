"""A LoRA adapter as peft loads it: adapter_config.json and adapter_model.safetensors.

Letters: M rows, N columns of a base tensor, R the rank of its update.

Scales are 1 (alpha = R), so the product of the stored factors is the update. Factors are written in
fp32 unless another dtype is asked for.
"""

from __future__ import annotations

import mmap
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from alpharl_hub import strict_json
from alpharl_hub.errors import HeaderError
from alpharl_hub.numerics.low_rank import LowRank
from alpharl_hub.output.read_back import crc_of, drop_cached
from alpharl_hub.output.shards import (
    DamagedError,
    OutputFile,
    OutputTensor,
    ShardWriter,
    lay_out,
)
from alpharl_hub.safetensors_header import PREFIX_NUM_BYTES, header_num_bytes, parse_header
from alpharl_hub.sources.adapters import ADAPTER_FILE
from alpharl_hub.tensor_bytes import TORCH_DTYPES, memory_of
from alpharl_hub.trajectory import LowRankRef

Layout = Literal["linear", "conv1d", "embedding"]
"""How a layer stores its weight: (out, in), (in, out), or a row per token."""

_PREFIX = "base_model.model."
_FACTORS_STEM = "factors-"


@dataclass(frozen=True)
class AdapterUpdate:
    """The update of one base tensor, in the base's orientation."""

    update: LowRank
    layout: Layout = "linear"


@dataclass(frozen=True)
class AdapterOrigin:
    """What the adapter belongs to.

    `base` is the repo of the base, None of a local one: a folder's name alone could be another's
    repo. `revision` is its commit; `base_names` are its tensors.
    `config` is the adapter_config.json of the run's last checkpoint, None for a run of whole
    models. `prefix` is what the model's names have before the base's, such as "transformer.".
    """

    base: str | None
    revision: str | None
    base_names: frozenset[str]
    config: Mapping[str, object] | None = None
    prefix: str = ""


@dataclass(frozen=True)
class AdapterFiles:
    """What is to be written: the text of adapter_config.json, and the weights with their layout."""

    config: bytes
    file: OutputFile
    tensors: Mapping[str, Tensor]

    def chunks(self) -> Iterator[tuple[int, memoryview]]:
        """Give (start, bytes) of every tensor, for `ShardWriter.write`."""
        for ref in self.file.tensors:
            yield ref.start, memory_of(self.tensors[ref.name])


def layout_of(ref: LowRankRef) -> Layout:
    """Return how the layer stores its weight that an adapter of the run updates."""
    if "lora_embedding_" in ref.left.name:
        return "embedding"
    return "conv1d" if ref.transposed else "linear"


def prefix_of(ref: LowRankRef) -> str:
    """Return what the model's name of a tensor has before the base file's ("" nearly always)."""
    module = ref.left.name.removeprefix(_PREFIX).rpartition(".lora_")[0]
    return module.removesuffix(ref.name.removesuffix(".weight"))


def make_adapter(
    updates: Mapping[str, AdapterUpdate],
    full: Mapping[str, Tensor],
    origin: AdapterOrigin,
    dtype: str = "F32",
) -> AdapterFiles:
    """Put an adapter together.

    updates: by the base's names, each ending in ".weight". full: tensors that replace the base's
    (modules_to_save, biases), stored in their own dtype. dtype: the safetensors code of the
    factors. An update of rank 0 is stored as one column of zeros, for peft knows no rank 0.
    """
    tensors: dict[str, Tensor] = {}
    ranks: dict[str, int] = {}
    for name, found in updates.items():
        module = origin.prefix + name.removesuffix(".weight")
        ranks[module] = max(1, found.update.rank)
        for part, factor in _factors(found).items():
            stored = factor.to(TORCH_DTYPES[dtype], memory_format=torch.contiguous_format)
            tensors[f"{_PREFIX}{module}.{part}"] = stored.cpu().contiguous()
    for name, tensor in full.items():
        tensors[_PREFIX + _full_name(origin.prefix + name, ranks)] = tensor.cpu().contiguous()
    codes = {torch_dtype: code for code, torch_dtype in TORCH_DTYPES.items()}
    outputs = [OutputTensor(n, codes[t.dtype], tuple(t.shape)) for n, t in sorted(tensors.items())]
    config = _config(updates, full, ranks, origin)
    text = strict_json.dump(config, indent=2) + "\n"
    return AdapterFiles(text.encode(), lay_out(ADAPTER_FILE, outputs, {"format": "pt"}), tensors)


def write_factors(folder: Path, index: int, updates: Mapping[str, LowRank]) -> Mapping[str, int]:
    """Write the factors that one window gave, in their dtype; on the disk when this returns.

    Returns the CRC-32 of what was written of each update.

    Raises:
        WriteError: the disk refuses.
    """
    codes = {torch_dtype: code for code, torch_dtype in TORCH_DTYPES.items()}
    tensors = {}
    for name, update in updates.items():
        tensors[f"{name}.left"] = update.left_MR.cpu().contiguous()
        tensors[f"{name}.right"] = update.right_RN.cpu().contiguous()
    outputs = [OutputTensor(n, codes[t.dtype], tuple(t.shape)) for n, t in tensors.items()]
    file = lay_out(factors_path(folder, index).name, outputs, {})
    writer = ShardWriter(folder, [file])
    try:
        writer.open()
        for ref in file.tensors:
            writer.write(file.filename, ref.start, memory_of(tensors[ref.name]))
        writer.complete(file.filename)
    finally:
        writer.close()
    return {name: _update_crc(tensors, name) for name in updates}


def _update_crc(tensors: Mapping[str, Tensor], name: str) -> int:
    return crc_of(memory_of(tensors[f"{name}.{side}"]) for side in ("left", "right"))


def factors_path(folder: Path, index: int) -> Path:
    """Return where the factors of a window lie."""
    return folder / f"{_FACTORS_STEM}{index}.safetensors"


def read_factors(folder: Path, index: int, crcs: Mapping[str, int]) -> Mapping[str, LowRank]:
    """Read what `write_factors` wrote, and answered, widened to fp32.

    Raises:
        DamagedError: it is not what was written.
    """
    path = factors_path(folder, index)
    try:
        tensors = map_tensors(path)
    except (OSError, HeaderError) as error:
        raise _damaged(path, "it") from error
    names = [name.removesuffix(".left") for name in tensors if name.endswith(".left")]
    for name, crc32 in crcs.items():
        if name not in names or _update_crc(tensors, name) != crc32:
            raise _damaged(path, name)
    return {n: LowRank(tensors[f"{n}.left"].float(), tensors[f"{n}.right"].float()) for n in names}


def _damaged(path: Path, name: str) -> DamagedError:
    return DamagedError(
        f"{path}: {name} reads back other than it was written; see to the disk (or who else writes "
        "there), then start again with the same arguments: only this is done again"
    )


def map_tensors(path: Path) -> Mapping[str, Tensor]:
    """Return the tensors of a file of ours without reading them: pages come when they are used."""
    with path.open("rb") as file:
        drop_cached(file.fileno())
        # Private: torch would warn of a tensor that cannot be written to.
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    length = header_num_bytes(mapped[:PREFIX_NUM_BYTES], len(mapped), str(path))
    header = parse_header(
        mapped[PREFIX_NUM_BYTES : PREFIX_NUM_BYTES + length], len(mapped), str(path)
    )
    return {
        ref.name: torch.frombuffer(
            mapped, dtype=TORCH_DTYPES[ref.dtype], count=ref.num_elements, offset=ref.start
        ).view(ref.shape)
        for ref in header.tensors
    }


def _factors(found: AdapterUpdate) -> dict[str, Tensor]:
    """The two factors under peft's names: A is (R, in), B is (out, R)."""
    left_MR, right_RN = found.update.left_MR, found.update.right_RN
    if found.update.rank == 0:
        left_MR = left_MR.new_zeros(len(left_MR), 1)
        right_RN = right_RN.new_zeros(1, right_RN.shape[1])
    if found.layout == "linear":
        return {"lora_A.weight": right_RN, "lora_B.weight": left_MR}
    if found.layout == "conv1d":
        return {"lora_A.weight": left_MR.T, "lora_B.weight": right_RN.T}
    return {"lora_embedding_A": left_MR.T, "lora_embedding_B": right_RN.T}


def _full_name(name: str, ranks: Mapping[str, int]) -> str:
    """Peft keeps the bias of a layer with a LoRA inside of the layer that it wraps."""
    module = name.removesuffix(".bias")
    is_wrapped = module != name and module in ranks
    return f"{module}.base_layer.bias" if is_wrapped else name


def _config(
    updates: Mapping[str, AdapterUpdate],
    full: Mapping[str, Tensor],
    ranks: Mapping[str, int],
    origin: AdapterOrigin,
) -> dict[str, object]:
    incoming = origin.config or {}
    usual = Counter(ranks.values()).most_common(1)[0][0] if ranks else 1
    unusual = {module: rank for module, rank in ranks.items() if rank != usual}
    saved = _saved_modules(incoming.get("modules_to_save"), [origin.prefix + n for n in full])
    biases = [name for name in full if name.endswith(".bias")]
    if origin.config is None:
        saved = sorted({origin.prefix + n.rpartition(".")[0] for n in full if n not in biases})
    return {
        "alpha_pattern": unusual,
        "base_model_name_or_path": origin.base,
        "bias": incoming.get("bias", "none") if biases else "none",
        "ensure_weight_tying": bool(incoming.get("ensure_weight_tying")),
        "fan_in_fan_out": any(found.layout == "conv1d" for found in updates.values()),
        "inference_mode": True,
        "init_lora_weights": True,
        "lora_alpha": usual,
        "lora_dropout": 0.0,
        "modules_to_save": saved or None,
        "peft_type": "LORA",
        "r": usual,
        "rank_pattern": unusual,
        "revision": origin.revision,
        "target_modules": _targets(ranks, origin),
        "task_type": incoming.get("task_type") or "CAUSAL_LM",
        "use_dora": False,
        "use_rslora": False,
    }


def _saved_modules(named: object, full: Sequence[str]) -> list[str]:
    """Of the modules that a run saved whole, those that this adapter holds too."""
    modules = named if isinstance(named, list) else []
    return [m for m in modules if any(f".{m}." in f".{name}" for name in full)]


def _targets(ranks: Mapping[str, int], origin: AdapterOrigin) -> list[str]:
    """Last parts of names where they say exactly which layers; else every layer by its name."""
    lasts = {module.rpartition(".")[2] for module in ranks}
    modules = {origin.prefix + n.removesuffix(".weight") for n in origin.base_names}
    meant = {module for module in modules if module.rpartition(".")[2] in lasts}
    return sorted(lasts if meant == set(ranks) else ranks)
