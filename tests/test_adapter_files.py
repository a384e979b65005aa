"""Adapters that are written: peft loads them, and the model says what the merged one says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from lora_models import load_adapted, load_base, logits, write_adapters, write_base
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from test_adapters import VARIANTS, low_rank, open_fitted, stored, weights
from torch import Tensor

from alpharl_hub.numerics.low_rank import LowRank, combine
from alpharl_hub.output.adapter_files import (
    AdapterFiles,
    AdapterOrigin,
    AdapterUpdate,
    layout_of,
    make_adapter,
    prefix_of,
)
from alpharl_hub.output.shards import ShardWriter
from alpharl_hub.trajectory import CheckpointContents, LowRankRef, TensorRef

NAMES = [f"model.layers.{i}.self_attn.{side}_proj.weight" for i in (0, 1) for side in "qkvo"]


def write_files(folder: Path, files: AdapterFiles) -> Path:
    """Write an adapter as a command would."""
    folder.mkdir()
    writer = ShardWriter(folder, [files.file])
    writer.open()
    for start, data in files.chunks():
        writer.write(files.file.filename, start, data)
    writer.complete(files.file.filename)
    (folder / "adapter_config.json").write_bytes(files.config)
    return folder


def merged_logits(base: Path, changed: dict[str, Tensor]) -> Tensor:
    """What the base says with some weights replaced; a head left out is tied."""
    model = load_base(base)
    state = {**model.state_dict(), **changed}
    model.load_state_dict(state)
    return logits(model)


def full_run_adapter(base: Path, updates: dict[str, LowRank], **options: Any) -> AdapterFiles:
    """An adapter for updates of Linear layers of a run of whole models."""
    names = frozenset(load_file(base / "model.safetensors"))
    origin = AdapterOrigin(str(base), None, names)
    return make_adapter({n: AdapterUpdate(u) for n, u in updates.items()}, {}, origin, **options)


def random_update(seed: int, shape: tuple[int, ...], rank: int) -> LowRank:
    """An update that a tiny model's logits feel."""
    source = torch.Generator().manual_seed(seed)
    left_MR = 0.1 * torch.randn(shape[0], rank, generator=source)
    return LowRank(left_MR, torch.randn(rank, shape[1], generator=source))


def assert_says(adapter: Path, base: Path, expected: Tensor) -> None:
    """Compare a loaded adapter's logits with what they should be, and with the base's."""
    found = logits(load_adapted(base, adapter))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert float((logits(load_base(base)) - expected).abs().max()) > 1e-3


def test_ranks_may_differ_from_layer_to_layer(tmp_path: Path) -> None:
    """Ranks 0 to 5 side by side load as they are, a rank-1 update as rank 1."""
    base = write_base(tmp_path / "base")
    stored_base = load_file(base / "model.safetensors")
    ranks = dict(zip(NAMES, (1, 1, 1, 5, 2, 1, 0, 3), strict=True))
    updates = {
        n: random_update(i, stored_base[n].shape, r) for i, (n, r) in enumerate(ranks.items())
    }
    files = full_run_adapter(base, updates)
    adapter = write_files(tmp_path / "adapter", files)
    changed = {n: stored_base[n] + u.dense() for n, u in updates.items()}
    assert_says(adapter, base, merged_logits(base, changed))
    config = json.loads(files.config)
    assert config["r"] == config["lora_alpha"] == 1
    assert config["rank_pattern"] == config["alpha_pattern"]
    assert sorted(config["rank_pattern"].values()) == [2, 3, 5]
    assert config["target_modules"] == ["k_proj", "o_proj", "q_proj", "v_proj"]
    assert (config["task_type"], config["peft_type"]) == ("CAUSAL_LM", "LORA")


def test_layers_without_an_update_are_left_alone(tmp_path: Path) -> None:
    """When only some layers of a kind change, they are named in full and the others get none."""
    base = write_base(tmp_path / "base")
    stored_base = load_file(base / "model.safetensors")
    updates = {n: random_update(1, stored_base[n].shape, 2) for n in NAMES[:3]}
    files = full_run_adapter(base, updates)
    assert json.loads(files.config)["target_modules"] == [
        n.removesuffix(".weight") for n in sorted(NAMES[:3])
    ]
    adapter = write_files(tmp_path / "adapter", files)
    changed = {n: stored_base[n] + u.dense() for n, u in updates.items()}
    assert_says(adapter, base, merged_logits(base, changed))
    loaded = load_adapted(base, adapter)
    assert sum("lora_A" in name for name, _ in loaded.named_parameters()) == 3


def test_factors_may_be_stored_in_bf16(tmp_path: Path) -> None:
    """Another dtype rounds the factors and nothing else."""
    base = write_base(tmp_path / "base")
    stored_base = load_file(base / "model.safetensors")
    updates = {NAMES[0]: random_update(2, stored_base[NAMES[0]].shape, 2)}
    adapter = write_files(tmp_path / "adapter", full_run_adapter(base, updates, dtype="BF16"))
    rounded = {
        n: stored_base[n] + u.left_MR.bfloat16().float() @ u.right_RN.bfloat16().float()
        for n, u in updates.items()
    }
    with safe_open(adapter / "adapter_model.safetensors", "pt") as file:
        assert {file.get_slice(k).get_dtype() for k in file.keys()} == {"BF16"}  # noqa: SIM118
        assert file.metadata() == {"format": "pt"}
    assert_says(adapter, base, merged_logits(base, rounded))


def rewritten(contents: CheckpointContents, base: Path, factor: float) -> AdapterFiles:
    """The adapter of a run with every update scaled, as a prediction would scale it."""
    updates, full, prefix = {}, {}, ""
    for name, ref in contents.tensors.items():
        if isinstance(ref, TensorRef):
            full[name] = stored(contents, ref)
            continue
        assert isinstance(ref, LowRankRef)
        update = combine([low_rank(contents, ref)], [factor])
        updates[name] = AdapterUpdate(update, layout_of(ref))
        prefix = prefix_of(ref)
    names = frozenset(load_file(base / "model.safetensors"))
    origin = AdapterOrigin(str(base), None, names, contents.adapter, prefix)
    return make_adapter(updates, full, origin)


@pytest.mark.parametrize("name", [name for name in VARIANTS if "DoRA" not in name])
def test_an_adapter_of_a_lora_run_says_what_the_merged_model_says(
    tmp_path: Path, name: str
) -> None:
    """Every kind of LoRA that is read can be written: scales, patterns, Conv1D, embeddings, heads.

    Unscaled it is the incoming adapter in other factors; scaled by 1.5 it is the extrapolation.
    """
    kind, options = VARIANTS[name]
    base = write_base(tmp_path / "base", kind)
    (incoming,) = write_adapters(base, [tmp_path / "in"], size=0.1, **options)
    contents = open_fitted(incoming, base)
    same = write_files(tmp_path / "same", rewritten(contents, base, 1.0))
    assert_says(same, base, logits(load_adapted(base, incoming)))
    merged = weights(contents, base)
    stored_base = load_file(base / "model.safetensors")
    for tensor, ref in contents.tensors.items():
        if isinstance(ref, LowRankRef):
            merged[tensor] = stored_base[tensor] + 1.5 * (merged[tensor] - stored_base[tensor])
    scaled = write_files(tmp_path / "scaled", rewritten(contents, base, 1.5))
    assert_says(scaled, base, merged_logits(base, merged))


def test_the_adapter_can_be_read_again(tmp_path: Path) -> None:
    """What is written is read back as the same weights, and names base and commit."""
    base = write_base(tmp_path / "base")
    options = {"target_modules": ["q_proj", "embed_tokens"], "modules_to_save": ["lm_head"]}
    (incoming,) = write_adapters(base, [tmp_path / "in"], use_rslora=True, bias="all", **options)
    contents = open_fitted(incoming, base)
    adapter = write_files(tmp_path / "out", rewritten(contents, base, 1.0))
    before, after = weights(contents, base), weights(open_fitted(adapter, base), base)
    for name in before:
        torch.testing.assert_close(after[name], before[name], rtol=1e-5, atol=1e-7)
    config = json.loads((adapter / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(base)
    assert config["modules_to_save"] == ["lm_head"]
    assert (config["bias"], config["use_rslora"], config["lora_alpha"]) == ("all", False, 4)
    named = make_adapter({}, {}, AdapterOrigin("org/base", "0123abc", frozenset()))
    config = json.loads(named.config)
    assert (config["base_model_name_or_path"], config["revision"]) == ("org/base", "0123abc")


def test_names_get_the_models_prefix_back(tmp_path: Path) -> None:
    """A base whose file lacks "transformer." still gets an adapter that its model understands."""
    base = write_base(tmp_path / "base", "gpt2", tied=True)
    (incoming,) = write_adapters(base, [tmp_path / "in"], size=0.1, target_modules=["c_attn"])
    expected = logits(load_adapted(base, incoming))
    path = base / "model.safetensors"
    tensors = {n.removeprefix("transformer."): t for n, t in load_file(path).items()}
    save_file(tensors, path, metadata={"format": "pt"})
    contents = open_fitted(incoming, base)
    adapter = write_files(tmp_path / "out", rewritten(contents, base, 1.0))
    assert_says(adapter, base, expected)
