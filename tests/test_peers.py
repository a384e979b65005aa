"""Models go both ways between this tool and others: mergekit, safetensors, transformers, peft.

mergekit (0.1.5) itself is not needed: what it writes is laid out here as it does. It fills shards
in the order in which it made the tensors, up to a limit, in the dtype of the merge; it keeps
mergekit_config.yml and a card beside them.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from hub_fixtures import ALICE, served_hub
from huggingface_hub import HfApi
from lora_models import load_base, quiet
from lora_runs import LoraRun, write_lora_run
from peft import LoraConfig, get_peft_model, load_peft_weights, set_peft_model_state_dict
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from trajectories import (
    EMBEDDING,
    HEAD,
    INDEX,
    Run,
    Tensors,
    as_float64,
    curved_run,
    exact_line,
    fail,
    linear_truth,
    model_config,
    predict,
    relative_error,
    succeed,
    write_run,
)
from transformers import AutoModelForCausalLM

STEPS = (4, 10, 24, 40)
# Forced: what bf16 stores exactly moves farther than RL does, which is told of a wrong base.
TARGET = ("--target-step", "80", "--force")
SHARD_BYTES = 6000
CARD = (
    "---\nbase_model: []\nlibrary_name: transformers\ntags:\n- mergekit\n- merge\n\n---\n# merged\n"
)


def packed(tensors: Tensors, max_bytes: int) -> list[dict[str, Tensor]]:
    """Fill shards in the given order, a new one where the next tensor would go over the limit."""
    shards: list[dict[str, Tensor]] = [{}]
    for name, tensor in tensors.items():
        if shards[-1] and num_bytes(shards[-1]) + tensor.nbytes > max_bytes:
            shards.append({})
        shards[-1][name] = tensor.contiguous()
    return shards


def num_bytes(tensors: Tensors) -> int:
    """The bytes of all tensors together."""
    return sum(tensor.nbytes for tensor in tensors.values())


def write_merge(
    folder: Path, tensors: Tensors, dtype: torch.dtype = torch.bfloat16, tied: bool = False
) -> Path:
    """Write a merged model: sorted names, shards of at most SHARD_BYTES, config, card, recipe."""
    folder.mkdir(parents=True, exist_ok=True)
    stored = {name: tensors[name].to(dtype) for name in sorted(tensors)}
    shards = packed(stored, SHARD_BYTES)
    weight_map = {}
    for number, shard in enumerate(shards, 1):
        filename = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        save_file(shard, folder / filename, metadata={"format": "pt"})
        weight_map.update(dict.fromkeys(shard, filename))
    metadata = {"total_size": num_bytes(stored), "mergekit_version": "0.1.5"}
    (folder / INDEX).write_text(json.dumps({"metadata": metadata, "weight_map": weight_map}))
    config = model_config(tied, str(dtype).removeprefix("torch."))
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "mergekit_config.yml").write_text("merge_method: linear\n")
    (folder / "README.md").write_text(CARD)
    return folder


def shapes_of(folder: Path) -> dict[str, tuple[str, tuple[int, ...]]]:
    """File and shape of every tensor, as safetensors opens the files; none stands in two."""
    found = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as shard:
            assert shard.metadata() == {"format": "pt"}
            for name in shard.keys():  # noqa: SIM118 - a shard is no mapping
                assert name not in found
                found[name] = (path.name, tuple(shard.get_slice(name).get_shape()))
    return found


def load_strictly(folder: Path) -> Any:
    """Load with transformers, which must find each tensor it wants and want each it finds."""
    model, info = AutoModelForCausalLM.from_pretrained(
        folder, dtype="auto", output_loading_info=True
    )
    wrong = {kind: names for kind, names in info.items() if names}
    assert wrong == {}
    return model


def test_a_merge_is_a_checkpoint(tmp_path: Path) -> None:
    """A merge in a run, sharded in its own way and in bf16, gives what float64 says it must."""
    at = curved_run(STEPS)
    run = write_run(tmp_path, STEPS[:-1], at)
    write_merge(run.folder(STEPS[-1]), at(STEPS[-1]))
    last = {name: tensor.bfloat16() for name, tensor in at(STEPS[-1]).items()}

    found = predict(run, tmp_path / "out", *TARGET, "--method", "linear", "--dtype", "float32")

    assert set(found) == set(last)
    for name in (name for name in last if "norm" not in name):
        base = as_float64(at(0)[name])
        truth = linear_truth(base, [as_float64(last[name])], (STEPS[-1],), 80.0)
        assert relative_error(found[name], truth, base) < 1e-5, name


def test_the_prediction_of_a_merge_has_its_layout(tmp_path: Path) -> None:
    """Shard names and their tensors are the merge's, and none is larger than mergekit's limit."""
    at = exact_line()
    run = write_run(tmp_path, STEPS[:-1], at, dtype=torch.bfloat16)
    merge = write_merge(run.folder(STEPS[-1]), at(STEPS[-1]))

    predict(run, tmp_path / "out", *TARGET)

    assert shapes_of(tmp_path / "out") == shapes_of(merge)
    assert (merge / "mergekit_config.yml").is_file()
    assert not (tmp_path / "out" / "mergekit_config.yml").exists()
    for path in (tmp_path / "out").glob("*.safetensors"):
        with safe_open(path, "pt") as shard:
            tensors = {name: shard.get_tensor(name) for name in shard.keys()}  # noqa: SIM118
        assert num_bytes(tensors) <= SHARD_BYTES or len(tensors) == 1


def test_a_run_of_merges_asks_for_its_base(tmp_path: Path) -> None:
    """A merge's card names no base, or several; the error says how to name one."""
    at = exact_line()
    for step in STEPS[:2]:
        write_merge(tmp_path / f"step_{step}", at(step))

    assert "name it with --base" in fail("predict", str(tmp_path), *TARGET, "-o", "never")


@pytest.mark.parametrize("tied", [False, True], ids=["own head", "tied head"])
def test_a_merge_is_a_base(tmp_path: Path, tied: bool) -> None:
    """A run that started from a merge is predicted as from the same base written elsewhere."""
    at = exact_line(tied)
    config = model_config(tied, "bfloat16")
    run = write_run(tmp_path, STEPS, at, dtype=torch.bfloat16, config=config)
    merge = write_merge(tmp_path / "merge", at(0), tied=tied)

    plain = predict(run, tmp_path / "plain", *TARGET)
    merged = predict(Run(run.root, merge, run.steps), tmp_path / "out", *TARGET)

    assert set(plain) == set(merged)
    assert all(torch.equal(plain[name], merged[name]) for name in plain)


def test_a_merge_that_wrote_the_tied_head_is_a_checkpoint(tmp_path: Path) -> None:
    """A head stored beside the embedding that it is tied to stays equal to it."""
    at = exact_line(tied=True)
    config = model_config(True, "bfloat16")
    run = write_run(tmp_path, STEPS[:-1], at, dtype=torch.bfloat16, config=config)
    last = dict(at(STEPS[-1]))
    write_merge(run.folder(STEPS[-1]), {**last, HEAD: last[EMBEDDING].clone()}, tied=True)

    found = predict(run, tmp_path / "out", *TARGET)

    assert torch.equal(found.get(HEAD, found[EMBEDDING]), found[EMBEDDING])
    model = load_strictly(tmp_path / "out")
    assert torch.equal(model.lm_head.weight, found[EMBEDDING])


CASES = {
    "one file": {},
    "shards": {"num_shards": 3},
    "bf16 shards": {"num_shards": 3, "dtype": torch.bfloat16},
    "tied bf16 shards": {"num_shards": 3, "dtype": torch.bfloat16, "tied": True},
}


@pytest.mark.parametrize("case", CASES)
def test_everybody_reads_what_is_written(tmp_path: Path, case: str) -> None:
    """safetensors, the index, transformers and the Hub's client agree on one set of tensors."""
    options = dict(CASES[case])
    tied = bool(options.pop("tied", False))
    at = exact_line(tied)
    dtype = options.get("dtype", torch.float32)
    config = model_config(tied, str(dtype).removeprefix("torch."))
    run = write_run(tmp_path, STEPS, at, config=config, **options)
    folder = tmp_path / "out"

    tensors = predict(run, folder, *TARGET)

    opened = shapes_of(folder)
    assert {name: shape for name, (_, shape) in opened.items()} == {
        name: tuple(tensor.shape) for name, tensor in at(0).items()
    }
    assert {tensor.dtype for tensor in tensors.values()} == {dtype}
    if "num_shards" in options:
        index = json.loads((folder / INDEX).read_text())
        assert index["weight_map"] == {name: filename for name, (filename, _) in opened.items()}
        assert index["metadata"]["total_size"] == num_bytes(tensors)
    else:
        assert not (folder / INDEX).exists()
    model = load_strictly(folder)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, tensors[name]), name
    with served_hub(tmp_path / "hub") as hub:
        files = {path.name: path for path in folder.iterdir()}
        hub.add_commit("alice/predicted", files=files)
        api = HfApi(endpoint=hub.endpoint, token=ALICE)
        metadata = api.get_safetensors_metadata("alice/predicted")
    assert metadata.sharded == ("num_shards" in options)
    assert metadata.weight_map == {name: filename for name, (filename, _) in opened.items()}
    code = "BF16" if dtype == torch.bfloat16 else "F32"
    assert metadata.parameter_count == {code: sum(t.numel() for t in tensors.values())}


@pytest.fixture(scope="module")
def lora_run(tmp_path_factory: pytest.TempPathFactory) -> LoraRun:
    """A run of adapters on attention and MLP."""
    where = tmp_path_factory.mktemp("lora")
    return write_lora_run(where, target_modules=["q_proj", "up_proj"])


def test_peft_finds_every_factor_of_an_adapter_and_no_other(
    tmp_path: Path, lora_run: LoraRun
) -> None:
    """All that the adapter holds goes into a model made from its config, which lacks nothing."""
    folder = tmp_path / "adapter"
    arguments = lora_run.arguments("-o", str(folder), "--target-step", "80", "--method", "linear")
    succeed("predict", *arguments, "--as-adapter")

    with quiet():
        model = get_peft_model(load_base(lora_run.base), LoraConfig.from_pretrained(folder))
        result = set_peft_model_state_dict(model, load_peft_weights(str(folder)))

    assert result.unexpected_keys == []
    assert [name for name in result.missing_keys if "lora_" in name] == []
    filled = Counter(
        name.partition(".lora_")[0] for name, _ in model.named_parameters() if "lora_" in name
    )
    assert len(filled) == 4
    assert set(filled.values()) == {2}
