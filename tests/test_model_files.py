"""What lies beside the weights of a predicted model: copied bytes, and one edit where asked for."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from trajectories import (
    curved_run,
    load_model,
    model_config,
    predict,
    succeed,
    write_checkpoint,
    write_run,
)
from transformers import AutoModelForCausalLM

from alpharl_hub.output.model_files import MAX_COPIED_BYTES, copied_files, dtype_notice, with_dtype
from alpharl_hub.sources.contents import dump_config, open_contents
from alpharl_hub.sources.local_run import pin_folder
from alpharl_hub.trajectory import CheckpointContents

STEPS = (4, 10, 24, 40)
TARGET = ("--target-step", "80")
WEIGHTS = {"model.layers.0.mlp.up_proj.weight": torch.ones(4, 4)}

COPIED = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "vocab.txt",
    "tokenizer.model",
    "spiece.model",
    "tekken.json",
    "chat_template.jinja",
    "chat_template.json",
    "preprocessor_config.json",
    "processor_config.json",
    "configuration_custom.py",
    "modeling_custom.py",
    "LICENSE",
    "LICENSE.txt",
    "NOTICE",
    "USE_POLICY.md",
)
LEFT = (
    "README.md",
    "alpharl.json",
    "trainer_state.json",
    "training_args.bin",
    "optimizer.pt",
    "optimizer.bin",
    "scheduler.pt",
    "scaler.pt",
    "rng_state.pth",
    "rng_state_0.pth",
    "pytorch_model.bin",
    "pytorch_model-00001-of-00002.bin",
    "pytorch_model.bin.index.json",
    "model.safetensors.index.json",
    "consolidated.safetensors",
    "consolidated.00.pth",
    "model.gguf",
    "model.onnx",
    "tf_model.h5",
    "flax_model.msgpack",
    "weights.npz",
    "notes.pkl",
    "zero_to_fp32.py",
    "latest",
    "STABLE",
    "events.out.tfevents.1",
    "train.log",
    "metrics.jsonl",
    "scores.csv",
    "all_results.json",
    "train_results.json",
    "eval_results.json",
    ".gitattributes",
    ".hidden",
)


def open_folder(folder: Path) -> CheckpointContents:
    """Open a local model folder."""
    return open_contents(*pin_folder(str(folder)))


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A folder with weights, and every kind of file beside and below them."""
    folder = write_checkpoint(tmp_path / "model", WEIGHTS, config=model_config())
    for name in (*COPIED[1:], *LEFT):
        (folder / name).write_bytes(f"bytes of {name}\r\n".encode() + b"\xff\x00")
    for name in ("global_step40", "original", "onnx", "1_Pooling"):
        (folder / name).mkdir()
        (folder / name / "config.json").write_text("{}")
    return folder


def test_files_that_describe_the_model_are_copied(model: Path) -> None:
    """Config, tokenizer, templates, code and license go along, byte for byte; nothing else."""
    contents = open_folder(model)
    found = {file.name: file.read() for file in copied_files(contents, contents, None)}
    assert sorted(found) == sorted(COPIED)
    assert all(data == (model / name).read_bytes() for name, data in found.items())


def test_large_files_are_not_copied(model: Path) -> None:
    """Up to 50 MB a file is copied, beyond that it is none that describes a model."""
    os.truncate(model / "tokenizer.json", MAX_COPIED_BYTES)
    os.truncate(model / "vocab.json", MAX_COPIED_BYTES + 1)
    contents = open_folder(model)
    names = {file.name for file in copied_files(contents, contents, None)}
    assert "tokenizer.json" in names
    assert "vocab.json" not in names


def test_files_of_a_trainer_folder_lie_beside_the_weights(tmp_path: Path) -> None:
    """Below actor/huggingface the neighbours of the weights are copied, not those of the step."""
    folder = tmp_path / "global_step_40"
    write_checkpoint(folder / "actor" / "huggingface", WEIGHTS, config=model_config())
    (folder / "actor" / "huggingface" / "tokenizer.json").write_text("inner")
    (folder / "tokenizer.json").write_text("outer")
    (folder / "actor" / "extra.json").write_text("outer")
    contents = open_folder(folder)
    found = {file.name: file.read() for file in copied_files(contents, contents, None)}
    assert sorted(found) == ["config.json", "tokenizer.json"]
    assert found["tokenizer.json"] == b"inner"


def test_base_helps_out_when_the_checkpoint_has_weights_only(model: Path, tmp_path: Path) -> None:
    """Without a config.json beside the last weights all files are the base's."""
    bare = write_checkpoint(tmp_path / "bare", WEIGHTS)
    (bare / "tokenizer.json").write_text("of the step")
    files = copied_files(open_folder(bare), open_folder(model), None)
    found = {file.name: file.read() for file in files}
    assert sorted(found) == sorted(COPIED)
    assert found["tokenizer.json"] == (model / "tokenizer.json").read_bytes()


CONFIGS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "new name": ({"a": 1, "dtype": "bfloat16", "b": 2}, {"a": 1, "dtype": "float32", "b": 2}),
    "old name": ({"torch_dtype": "bfloat16"}, {"torch_dtype": "float32"}),
    "both": (
        {"torch_dtype": "float16", "dtype": "bfloat16"},
        {"torch_dtype": "float32", "dtype": "float32"},
    ),
    "none": ({"a": 1}, {"a": 1, "dtype": "float32"}),
    "nested": (
        {"dtype": "bfloat16", "text_config": {"dtype": "bfloat16", "x": [1]}, "vision_config": {}},
        {"dtype": "float32", "text_config": {"dtype": "float32", "x": [1]}, "vision_config": {}},
    ),
    "only nested": (
        {"text_config": {"torch_dtype": "bfloat16"}},
        {"text_config": {"torch_dtype": "float32"}, "dtype": "float32"},
    ),
    "nested without": (
        {"dtype": "bfloat16", "text_config": {"x": 1}},
        {"dtype": "float32", "text_config": {"x": 1}},
    ),
}


@pytest.mark.parametrize(("given", "wanted"), CONFIGS.values(), ids=CONFIGS.keys())
def test_config_names_the_new_dtype_wherever_it_named_one(
    given: dict[str, Any], wanted: dict[str, Any]
) -> None:
    """Only dtype and torch_dtype change, at the top and in text_config; the order stays."""
    before = json.dumps(given)
    edited = with_dtype(given, "float32")
    assert json.dumps(edited) == json.dumps(wanted)
    assert json.dumps(given) == before


def test_edited_config_keeps_everything_else(tmp_path: Path) -> None:
    """Letters, infinities and the order of keys survive the one edit."""
    config = {"z": "größe\u2028", "limit": [0.0, float("inf")], "dtype": "float32", "a": None}
    folder = write_checkpoint(tmp_path, WEIGHTS, config=config)
    contents = open_folder(folder)
    (file,) = copied_files(contents, contents, "BF16")
    text = file.read().decode()
    assert json.loads(text) == {**config, "dtype": "bfloat16"}
    assert list(json.loads(text)) == list(config)
    assert text == dump_config({**config, "dtype": "bfloat16"}).decode()


@pytest.mark.parametrize(
    ("config", "stored", "told"),
    [
        ({"dtype": "bfloat16"}, "F32", True),
        ({"torch_dtype": "float32"}, "BF16", True),
        ({"text_config": {"dtype": "float16"}}, "BF16", True),
        ({"dtype": "bfloat16"}, "BF16", False),
        ({}, "BF16", False),
        ({"dtype": None}, "F32", False),
    ],
)
def test_other_dtype_in_config_is_told(
    tmp_path: Path, config: dict[str, Any], stored: str, told: bool
) -> None:
    """Where config.json names another dtype than the weights have, a load casts: a warning."""
    contents = open_folder(write_checkpoint(tmp_path, WEIGHTS, config=config))
    notices = dtype_notice(contents, stored)
    assert [notice.code for notice in notices] == ["dtype_differs"] * told


def test_fp32_checkpoints_with_a_bf16_config_are_told(tmp_path: Path) -> None:
    """The common case of a trainer that saves its fp32 master weights; --dtype ends it."""
    run = write_run(tmp_path, STEPS, curved_run(STEPS), config=model_config(dtype="bfloat16"))
    arguments = run.arguments("-o", str(tmp_path / "out"), *TARGET)
    assert "--dtype bfloat16 writes what is loaded" in " ".join(
        succeed("predict", *arguments).stderr.split()
    )
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto")
    assert loaded.dtype == torch.bfloat16
    again = succeed("predict", *arguments, "--overwrite", "--dtype", "bfloat16")
    assert "loaded" not in again.stderr
    assert {t.dtype for t in load_model(tmp_path / "out").values()} == {torch.bfloat16}


def test_warning_looks_at_the_config_that_is_copied(tmp_path: Path) -> None:
    """When the base's config goes along, it is the base's dtype that a load would cast to."""
    run = write_run(
        tmp_path,
        STEPS,
        curved_run(STEPS),
        config=None,
        base_options={"config": model_config(dtype="bfloat16"), "dtype": torch.bfloat16},
    )
    predict(run, tmp_path / "out", *TARGET)
    warnings = json.loads((tmp_path / "out" / "alpharl.json").read_text())["warnings"]
    assert "dtype_differs" in [warning["code"] for warning in warnings]


def test_run_below_trainer_folders_gives_a_flat_model(tmp_path: Path) -> None:
    """Weights from global_step_N/actor/huggingface come out as a model folder of their own."""
    at = curved_run(STEPS)
    write_checkpoint(tmp_path / "base", at(0), config=model_config())
    for step in STEPS:
        folder = tmp_path / "run" / f"global_step_{step}" / "actor" / "huggingface"
        write_checkpoint(folder, at(step), config=model_config(), num_shards=2)
        (folder / "tokenizer.json").write_text("{}")
    options = ("--base", tmp_path / "base", "-o", tmp_path / "out", *TARGET)
    succeed("predict", tmp_path / "run", *options)
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {
        "README.md",
        "alpharl.json",
        "alpharl-evidence.png",
        "config.json",
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
        "model.safetensors.index.json",
        "tokenizer.json",
    }
    AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto")
