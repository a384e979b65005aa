"""Peft adapters as checkpoints: what peft writes and merges is the truth, no formula of ours."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lora_models import (
    load_adapted,
    load_base,
    logits,
    merged_weights,
    write_adapters,
    write_base,
)
from safetensors.torch import load_file, save_file
from torch import Tensor
from trajectories import model_config, model_tensors, write_checkpoint

from alpharl_hub.errors import AlphaRLError, SourceError, TrajectoryError
from alpharl_hub.numerics.low_rank import LowRank, combine, dora_weights, from_stored
from alpharl_hub.sources.adapter_fitting import fit_to_base
from alpharl_hub.sources.contents import open_contents
from alpharl_hub.sources.local import LocalFolder
from alpharl_hub.sources.opening import RunRequest, open_trajectory
from alpharl_hub.trajectory import (
    Checkpoint,
    CheckpointContents,
    LowRankRef,
    TensorRef,
    Trajectory,
)

ATTENTION = ["q_proj", "v_proj"]
DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}


def open_folder(folder: Path, step: int | None = 1) -> CheckpointContents:
    """Open one checkpoint on disk."""
    return open_contents(Checkpoint(step, str(folder), None, None, ""), LocalFolder(folder))


def open_fitted(folder: Path, base: Path) -> CheckpointContents:
    """Open an adapter and fit it to its base."""
    return fit_to_base(open_folder(folder), open_folder(base, None))


def stored(contents: CheckpointContents, ref: TensorRef) -> Tensor:
    """Read one stored tensor."""
    buffer = bytearray(ref.num_bytes)
    contents.store.read_into(contents.path_of(ref.filename), ref.start, memoryview(buffer))
    return torch.frombuffer(buffer, dtype=DTYPES[ref.dtype]).view(ref.shape)


def low_rank(contents: CheckpointContents, ref: LowRankRef) -> LowRank:
    """Read an update."""
    left, right = stored(contents, ref.left), stored(contents, ref.right)
    return from_stored(left, right, ref.scale, ref.transposed)


def weights(contents: CheckpointContents, base: Path) -> dict[str, Tensor]:
    """All weights of the model that an adapter makes of its base, by the base's names."""
    found = load_file(base / "model.safetensors")
    for name, ref in contents.tensors.items():
        if isinstance(ref, TensorRef):
            found[name] = stored(contents, ref)
            continue
        update = low_rank(contents, ref)
        if ref.magnitude is None:
            found[name] = found[name] + update.dense()
        else:
            magnitude = stored(contents, ref.magnitude)
            found[name] = dora_weights(found[name], update, magnitude, per_column=ref.transposed)
    return found


def edit(folder: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    """Change an adapter_config.json."""
    path = folder / "adapter_config.json"
    config = json.loads(path.read_text())
    change(config)
    path.write_text(json.dumps(config))
    return folder


def rename(folder: Path, new: Callable[[str], str]) -> Path:
    """Rename the tensors of an adapter's file."""
    path = folder / "adapter_model.safetensors"
    save_file({new(name): tensor for name, tensor in load_file(path).items()}, path)
    return folder


VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "plain": ("qwen2", {"target_modules": ATTENTION}),
    "all linear": ("qwen2", {"target_modules": "all-linear"}),
    "gaussian": ("qwen2", {"target_modules": ATTENTION, "init_lora_weights": "gaussian"}),
    "rsLoRA": ("qwen2", {"target_modules": ATTENTION, "use_rslora": True}),
    "patterns": (
        "qwen2",
        {
            "target_modules": [*ATTENTION, "up_proj"],
            "rank_pattern": {"layers.1.self_attn.q_proj": 2, "up_proj": 3, "proj": 1},
            "alpha_pattern": {r"^model\.layers\.0\..*v_proj": 20, "layers.[01].mlp.up_proj": 6},
        },
    ),
    "patterns with rsLoRA": (
        "qwen2",
        {"target_modules": ATTENTION, "rank_pattern": {"q_proj": 2}, "use_rslora": True},
    ),
    "DoRA": ("qwen2", {"target_modules": [*ATTENTION, "down_proj"], "use_dora": True}),
    "embedding": ("qwen2", {"target_modules": [*ATTENTION, "embed_tokens"]}),
    "embedding and head": ("qwen2", {"target_modules": ["embed_tokens", "lm_head"]}),
    "DoRA on embedding": ("qwen2", {"target_modules": ["embed_tokens"], "use_dora": True}),
    "saved modules": (
        "qwen2",
        {"target_modules": ATTENTION, "modules_to_save": ["lm_head", "embed_tokens", "norm"]},
    ),
    "all biases": ("qwen2", {"target_modules": ATTENTION, "bias": "all"}),
    "biases of LoRA": ("qwen2", {"target_modules": ["q_proj"], "bias": "lora_only"}),
    "Conv1D": ("gpt2", {"target_modules": ["c_attn", "c_proj", "c_fc"], "fan_in_fan_out": True}),
    "Conv1D unsaid": ("gpt2", {"target_modules": ["c_attn", "c_proj"]}),
    "Conv1D and Linear": ("gpt2", {"target_modules": ["c_attn", "c_proj", "lm_head"]}),
    "Conv1D with DoRA": ("gpt2", {"target_modules": ["c_attn", "c_proj"], "use_dora": True}),
    "Conv1D and embedding": ("gpt2", {"target_modules": ["c_attn", "wte"]}),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_weights_are_those_that_peft_merges(tmp_path: Path, name: str) -> None:
    """Base and updates give peft's merge_and_unload; something changed, and nothing is missing."""
    kind, options = VARIANTS[name]
    base = write_base(tmp_path / "base", kind)
    (adapter,) = write_adapters(base, [tmp_path / "adapter"], **options)
    merged = merged_weights(base, adapter)
    found = weights(open_fitted(adapter, base), base)
    unchanged = load_base(base).state_dict()
    assert set(found) == set(merged)
    assert any(not torch.equal(merged[n], unchanged[n]) for n in merged)
    for tensor in merged:
        torch.testing.assert_close(found[tensor], merged[tensor], rtol=1e-6, atol=1e-7)


def test_contents_say_what_they_are(tmp_path: Path) -> None:
    """An adapter lists what it changes under the base's names, and counts what is stored."""
    base = write_base(tmp_path / "base")
    (adapter,) = write_adapters(base, [tmp_path / "a"], target_modules=ATTENTION)
    contents = open_fitted(adapter, base)
    assert sorted(contents.tensors) == [
        f"model.layers.{layer}.self_attn.{side}_proj.weight" for layer in (0, 1) for side in "qv"
    ]
    ref = contents.tensors["model.layers.0.self_attn.v_proj.weight"]
    assert isinstance(ref, LowRankRef)
    assert (ref.shape, ref.dtype, ref.scale) == ((8, 16), "F32", 2.0)
    assert (ref.num_elements, ref.num_bytes) == (128, 4 * (8 * 4 + 4 * 16))
    file_bytes = sum(
        t.numel() * 4 for t in load_file(adapter / "adapter_model.safetensors").values()
    )
    assert contents.num_bytes == file_bytes
    assert contents.adapter is not None
    assert contents.adapter["r"] == 4
    assert contents.config == {}
    assert open_folder(base).adapter is None


def test_bf16_factors_and_older_names(tmp_path: Path) -> None:
    """`lora_A.default.weight` and wrappers of saved modules mean what today's names mean."""
    base = write_base(tmp_path / "base")
    options = {"target_modules": ATTENTION, "modules_to_save": ["lm_head"], "use_dora": True}
    (adapter,) = write_adapters(base, [tmp_path / "a"], **options)
    before = weights(open_fitted(adapter, base), base)

    def old(name: str) -> str:
        if "lm_head" in name:
            return name.replace("lm_head.", "lm_head.modules_to_save.default.")
        if name.endswith("lora_magnitude_vector"):
            return name + ".default.weight"
        return name.replace(".weight", ".default.weight")

    after = weights(open_fitted(rename(adapter, old), base), base)
    assert all(torch.equal(before[name], after[name]) for name in before)
    path = adapter / "adapter_model.safetensors"
    save_file({n: t.bfloat16() for n, t in load_file(path).items()}, path)
    halved = weights(open_fitted(adapter, base), base)
    for name in before:
        torch.testing.assert_close(halved[name].float(), before[name], rtol=2e-2, atol=1e-3)


def test_base_files_without_the_models_prefix(tmp_path: Path) -> None:
    """The original GPT-2's file says h.0 where its model, and the adapter, say transformer.h.0."""
    base = write_base(tmp_path / "base", "gpt2")
    (adapter,) = write_adapters(base, [tmp_path / "a"], target_modules=["c_attn"])
    merged = merged_weights(base, adapter)
    path = base / "model.safetensors"
    save_file({n.removeprefix("transformer."): t for n, t in load_file(path).items()}, path)
    found = weights(open_fitted(adapter, base), base)
    assert "h.0.attn.c_attn.weight" in found
    for name, tensor in found.items():
        full = name if name in merged else f"transformer.{name}"
        torch.testing.assert_close(tensor, merged[full], rtol=1e-6, atol=1e-7)


def refusal(folder: Path, base: Path) -> str:
    """Return the words with which an adapter is refused."""
    with pytest.raises(AlphaRLError) as error:
        open_fitted(folder, base)
    assert "\n" not in str(error.value)
    return str(error.value)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "IA3": ({"peft_type": "IA3"}, "a IA3 adapter"),
    "AdaLoRA": ({"peft_type": "ADALORA"}, "a ADALORA adapter"),
    "VeRA": ({"peft_type": "VERA"}, "a VERA adapter"),
    "QALoRA": ({"use_qalora": True}, "use_qalora is set"),
    "layers twice": ({"layer_replication": [[0, 1], [0, 1]]}, "layer_replication is set"),
    "bias in B": ({"lora_bias": True}, "lora_bias is set"),
    "tokens": ({"trainable_token_indices": [3]}, "trainable_token_indices is set"),
    "parameters": ({"target_parameters": ["experts.gate"]}, "target_parameters is set"),
    "aLoRA": ({"alora_invocation_tokens": [1, 2]}, "alora_invocation_tokens is set"),
    "of tomorrow": ({"use_something_new": 3}, "use_something_new is set"),
    "random start": ({"init_lora_weights": False}, "init_lora_weights is False"),
    "LoftQ": ({"init_lora_weights": "loftq"}, "init_lora_weights is 'loftq'"),
    "no rank": ({"r": None}, "r is None"),
    "bad pattern": ({"rank_pattern": {"(": 4}}, "rank_pattern has '('"),
    "no pattern": ({"alpha_pattern": {"q": "x"}}, "alpha_pattern is no list of numbers"),
    "another rank": ({"rank_pattern": {"q_proj": 8}}, "rank 4 in A, 4 in B and 8 in"),
    "DoRA without magnitudes": ({"use_dora": True}, "lora_magnitude_vector is one too few"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_configs_that_mean_something_else_are_refused(tmp_path: Path, name: str) -> None:
    """One line names the file, what is set and what to do."""
    changes, words = REFUSED[name]
    base = write_base(tmp_path / "base")
    (adapter,) = write_adapters(base, [tmp_path / "a"], target_modules=ATTENTION)
    message = refusal(edit(adapter, lambda config: config.update(changes)), base)
    assert words in message
    assert str(adapter) in message


ODD_NAMES = {
    "bias of B": ("lora_B.weight", "lora_B.bias", "no part of LoRA that is read"),
    "half a pair": ("q_proj.lora_A.weight", "o_proj.lora_A.weight", "one too"),
    "unknown part": ("lora_A.weight", "lora_E", "is not understood"),
    "wrapper": ("q_proj.lora_A.weight", "q_proj.original_module.weight", "is not understood"),
    "no such layer": (".layers.1.", ".layers.7.", "does not have; name another --base"),
}


@pytest.mark.parametrize("name", ODD_NAMES)
def test_names_that_are_not_understood_are_refused(tmp_path: Path, name: str) -> None:
    """Nothing in the file is passed over in silence."""
    old, new, words = ODD_NAMES[name]
    base = write_base(tmp_path / "base")
    (adapter,) = write_adapters(base, [tmp_path / "a"], target_modules=ATTENTION)
    assert words in refusal(rename(adapter, lambda n: n.replace(old, new)), base)


def test_other_bases_and_changed_copies_are_refused(tmp_path: Path) -> None:
    """Another shape, and an embedding that is not the base's beside the LoRA on it, stop."""
    base = write_base(tmp_path / "base")
    write_checkpoint(tmp_path / "other", model_tensors(), config=model_config())
    (adapter,) = write_adapters(base, [tmp_path / "a"], target_modules=["embed_tokens"])
    assert "[48, 16], but it is [40, 16]" in refusal_of_other_shape(adapter, tmp_path / "other")
    path = adapter / "adapter_model.safetensors"
    tensors = load_file(path)
    (copy,) = [name for name in tensors if "base_layer" in name]
    tensors[copy] = tensors[copy] + 1e-3
    save_file(tensors, path)
    assert "brings a model.embed_tokens.weight of its own" in refusal(adapter, base)


def refusal_of_other_shape(adapter: Path, base: Path) -> str:
    """Return the refusal without the frozen copy, which would be compared first."""
    copy = shutil.copytree(adapter, adapter.parent / "without")
    path = copy / "adapter_model.safetensors"
    save_file({n: t for n, t in load_file(path).items() if "base_layer" not in n}, path)
    return refusal(copy, base)


@pytest.mark.parametrize("options", [
    {"target_modules": ["embed_tokens"]},
    {"target_modules": ["lm_head"]},
    {"target_modules": ATTENTION, "modules_to_save": ["embed_tokens"]},
    {"target_modules": ATTENTION, "modules_to_save": ["lm_head"]},
])  # fmt: skip
def test_half_of_a_tied_pair_is_refused(tmp_path: Path, options: dict[str, Any]) -> None:
    """A tied model cannot hold an embedding and a head that were trained apart."""
    base = write_base(tmp_path / "base", tied=True)
    (adapter,) = write_adapters(base, [tmp_path / "a"], **options)
    assert "ties embedding and head" in refusal(adapter, base)


@pytest.mark.parametrize("options", [
    {"target_modules": ["embed_tokens"]},
    {"target_modules": ATTENTION, "modules_to_save": ["embed_tokens"]},
])  # fmt: skip
def test_a_pair_that_stays_tied_is_read_once(tmp_path: Path, options: dict[str, Any]) -> None:
    """With ensure_weight_tying the embedding's update is the head's as well."""
    base = write_base(tmp_path / "base", tied=True)
    (adapter,) = write_adapters(base, [tmp_path / "a"], ensure_weight_tying=True, **options)
    found = weights(open_fitted(adapter, base), base)
    assert "lm_head.weight" not in found
    model = load_base(base)
    model.load_state_dict({**found, "lm_head.weight": found["model.embed_tokens.weight"]})
    # Peft's merge would add the update to the one shared tensor twice: its unmerged model is asked.
    torch.testing.assert_close(
        logits(model), logits(load_adapted(base, adapter)), rtol=1e-4, atol=1e-5
    )


def write_lora_run(where: Path, steps: tuple[int, ...] = (10, 20, 40), **options: Any) -> Path:
    """Write a base and a run of adapters as TRL leaves them; return the run."""
    base = write_base(where / "base")
    options = {"target_modules": ATTENTION, **options}
    write_adapters(base, [where / "run" / f"checkpoint-{step}" for step in steps], **options)
    return where / "run"


def open_run(run: Path, **options: Any) -> Trajectory:
    """Open a run as a command would."""
    return open_trajectory(RunRequest(str(run), **options))


def test_a_run_of_adapters_is_opened(tmp_path: Path) -> None:
    """Steps in order, the base that the adapters name, the scores that the trainer logged."""
    run = write_lora_run(tmp_path)
    for step in (10, 20, 40):
        rows = [{"step": s, "reward": s / 100} for s in (10, 20, 40) if s <= step]
        state = run / f"checkpoint-{step}" / "trainer_state.json"
        state.write_text(json.dumps({"log_history": rows}))
    trajectory = open_run(run, score_key="reward")
    assert trajectory.steps_T == (10, 20, 40)
    assert trajectory.base_chosen_by == "adapter"
    assert Path(trajectory.base.checkpoint.source) == tmp_path / "base"
    assert trajectory.scores_T() == (0.1, 0.2, 0.4)
    assert trajectory.start is None
    for step, contents in zip(trajectory.steps_T, trajectory.history, strict=True):
        merged = merged_weights(tmp_path / "base", run / f"checkpoint-{step}")
        found = weights(contents, tmp_path / "base")
        for name in merged:
            torch.testing.assert_close(found[name], merged[name], rtol=1e-6, atol=1e-7)


def test_repeats_are_told_by_weights_and_scale(tmp_path: Path) -> None:
    """The same factors are a repeat, unless the config scales them otherwise."""
    run = write_lora_run(tmp_path)
    shutil.copytree(run / "checkpoint-40", run / "checkpoint-50")
    edit(run / "checkpoint-50", lambda config: config["target_modules"].reverse())
    shutil.copytree(run / "checkpoint-40", run / "checkpoint-60")
    edit(run / "checkpoint-60", lambda config: config.update(lora_alpha=16))
    trajectory = open_run(run)
    assert trajectory.steps_T == (10, 20, 40, 60)
    assert "steps 50 repeat" in next(n.message for n in trajectory.notices if n.code == "repeats")


def test_a_run_of_both_kinds_is_refused(tmp_path: Path) -> None:
    """Adapters and whole models in one run: the line names one of each; --steps chooses."""
    run = write_lora_run(tmp_path)
    shutil.copytree(tmp_path / "base", run / "checkpoint-50")
    with pytest.raises(TrajectoryError) as error:
        open_run(run)
    assert "checkpoint-10 is an adapter" in str(error.value)
    assert "checkpoint-50 a whole model" in str(error.value)
    assert open_run(run, steps="10,20", base=str(tmp_path / "base")).steps_T == (10, 20)


def test_an_adapter_is_no_base(tmp_path: Path) -> None:
    """--base with an adapter stops, and so does a base that is nowhere."""
    run = write_lora_run(tmp_path)
    with pytest.raises(TrajectoryError, match="an adapter and no model"):
        open_run(run, base=str(run / "checkpoint-10"))
    edit(run / "checkpoint-40", lambda c: c.update(base_model_name_or_path="/gone/model"))
    with pytest.raises(TrajectoryError, match="names /gone/model as the base, which is no folder"):
        open_run(run)
    trajectory = open_run(run, base=str(tmp_path / "base"))
    assert [n.code for n in trajectory.notices] == ["adapter_bases"]


def test_an_adapter_without_its_config_is_refused(tmp_path: Path) -> None:
    """Without adapter_config.json nobody knows the scale."""
    run = write_lora_run(tmp_path)
    (run / "checkpoint-20" / "adapter_config.json").unlink()
    with pytest.raises(SourceError, match=r"has no adapter_config\.json beside it"):
        open_run(run, base=str(tmp_path / "base"))


def test_places_of_trainers(tmp_path: Path) -> None:
    """verl keeps adapters in actor/lora_adapter; a whole model beside an adapter goes first."""
    base = write_base(tmp_path / "base")
    folder = tmp_path / "step" / "actor" / "lora_adapter"
    write_adapters(base, [folder], target_modules=ATTENTION)
    assert open_folder(tmp_path / "step").weights_folder == "actor/lora_adapter"
    shutil.copytree(base, tmp_path / "step" / "policy")
    contents = open_folder(tmp_path / "step")
    assert (contents.weights_folder, contents.adapter) == ("policy", None)


@pytest.mark.parametrize("init", ["pissa", "olora"])
def test_a_base_that_was_changed_needs_step_0(tmp_path: Path, init: str) -> None:
    """PiSSA takes its first product out of the base: W_t = W_0 - s B_0 A_0 + s B_t A_t."""
    run = write_lora_run(tmp_path, (10, 20), init_lora_weights=init)
    with pytest.raises(TrajectoryError, match="changes the base before the first step"):
        open_run(run)
    base = tmp_path / "base"
    write_adapters(
        base, [run / "checkpoint-0"], size=0.0, target_modules=ATTENTION, init_lora_weights=init
    )
    trajectory = open_run(run)
    assert trajectory.steps_T == (10, 20)
    assert trajectory.base_chosen_by == "adapter"
    start = trajectory.start
    assert start is not None
    merged = merged_weights(base, run / "checkpoint-20")
    stored_base = load_file(base / "model.safetensors")
    for name, ref in trajectory.last.tensors.items():
        first = start.tensors[name]
        assert isinstance(ref, LowRankRef)
        assert isinstance(first, LowRankRef)
        update = combine([low_rank(trajectory.last, ref), low_rank(start, first)], [1.0, -1.0])
        torch.testing.assert_close(
            stored_base[name] + update.dense(), merged[name], rtol=1e-5, atol=1e-6
        )


def test_a_zero_adapter_at_step_0_is_no_base(tmp_path: Path) -> None:
    """A plain LoRA that was saved at step 0 changes nothing: the base is the one that it names."""
    run = write_lora_run(tmp_path)
    write_adapters(tmp_path / "base", [run / "checkpoint-0"], size=0.0, target_modules=ATTENTION)
    trajectory = open_run(run)
    assert (trajectory.base_chosen_by, trajectory.steps_T) == ("adapter", (10, 20, 40))
    assert trajectory.start is None
