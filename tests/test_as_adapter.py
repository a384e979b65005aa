"""`predict --as-adapter`: what peft makes of the adapter is what the merged prediction says."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lora_models import load_adapted, load_base, logits, merged_weights, write_base
from lora_runs import STEPS, LoraRun, curve_adapters, write_lora_run
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from trajectories import Run, as_float64, command, digest, fail, load_model, succeed

from alpharl_hub.prediction import setting
from alpharl_hub.push.finished_folder import read_finished_folder
from alpharl_hub.windows import plan

ADAPTER = "adapter_model.safetensors"
CONFIG = "adapter_config.json"
PICTURE = "alpharl-evidence.png"
TARGET = ("--target-step", "90")
Q_PROJ = "model.layers.0.self_attn.q_proj.weight"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> LoraRun:
    """A LoRA run on attention and MLP, in fp32."""
    return write_lora_run(
        tmp_path_factory.mktemp("lora"), target_modules=["q_proj", "v_proj", "up_proj"]
    )


def write_full_run(
    where: Path, kind: str = "qwen2", dtype: torch.dtype | None = None, tied: bool = False
) -> LoraRun:
    """A run of whole models in which every tensor moves."""
    base = write_base(where / "base", kind, tied)
    config = (base / "config.json").read_bytes()
    tensors = load_file(base / "model.safetensors")
    source = torch.Generator().manual_seed(7)
    names = [n for n, t in tensors.items() if t.dim() == 2]
    lines = {
        n: [torch.randn(s, generator=source) for s in tensors[n].shape for _ in range(2)]
        for n in names
    }

    def write(folder: Path, step: float) -> None:
        moved = {n: t + 1e-5 * step for n, t in tensors.items()}
        s = step / STEPS[-1]
        for name, (a_M, b_M, a_N, b_N) in lines.items():
            update = s * torch.outer(a_M, a_N) + 0.3 * s**2 * torch.outer(b_M, b_N)
            moved[name] = tensors[name] + 6e-4 * update
        stored = {n: t.to(dtype or t.dtype) for n, t in moved.items()}
        folder.mkdir(parents=True, exist_ok=True)
        save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})
        (folder / "config.json").write_bytes(config)

    write(base, 0)
    for step in STEPS:
        write(where / "run" / f"step_{step}", step)
    return LoraRun(where / "run", base, STEPS)


@pytest.fixture(scope="module")
def full_run(tmp_path_factory: pytest.TempPathFactory) -> LoraRun:
    """A run of whole models in fp32."""
    return write_full_run(tmp_path_factory.mktemp("full"))


def predict(run: LoraRun | Run, output: Path, *more: str) -> Path:
    """Predict an adapter."""
    succeed("predict", *run.arguments("-o", str(output), "--as-adapter", *more))
    return output


def assert_same(run: LoraRun, folder: Path, *options: str) -> Path:
    """Predict as an adapter and merged, and compare all weights and what the models say.

    Within fp32's rounding, in units of the predicted update, which is there.
    """
    adapter = predict(run, folder / "adapter", *options)
    succeed("predict", *run.arguments("-o", str(folder / "merged"), "--dtype", "float32", *options))
    merged, base = load_base(folder / "merged"), load_base(run.base)
    expected, stored = merged.state_dict(), base.state_dict()
    found = merged_weights(run.base, adapter)
    assert any(not torch.equal(expected[name], stored[name]) for name in stored)
    for name, weights in expected.items():
        wanted, origin = as_float64(weights), as_float64(stored[name])
        size = np.linalg.norm(wanted - origin) + 1e-6 * np.linalg.norm(origin)
        assert np.linalg.norm(as_float64(found[name]) - wanted) < 1e-4 * size + 1e-9, name
    said = logits(merged)
    scale = float((said - logits(base)).abs().max())
    assert scale > 0
    torch.testing.assert_close(
        logits(load_adapted(run.base, adapter)), said, rtol=0, atol=1e-3 * scale + 1e-6
    )
    assert read_finished_folder(adapter).weights == (adapter / ADAPTER,)
    return adapter


METHODS: Mapping[str, tuple[str, ...]] = {
    "alpharl": ("--method", "alpharl"),
    "alpharl rank 2": ("--method", "alpharl", "--rank", "2"),
    "alpharl keeps": ("--method", "alpharl", "--keep-residual"),
    "alpharl from the last": ("--method", "alpharl", "--anchor", "last", "--damping", "0.5"),
    "alpharl damped": ("--method", "alpharl", "--damping", "0.5"),
    "relex": ("--method", "relex", "--rank", "2"),
    "linear": ("--method", "linear"),
    "linear window": ("--method", "linear", "--fit-last", "3", "--damping", "0.25"),
    "ols from the last": ("--method", "ols", "--anchor", "last"),
    "excluded": ("--method", "alpharl", "--exclude", "mlp"),
    "auto": ("--method", "auto", "--force"),
}


@pytest.mark.parametrize("options", METHODS.values(), ids=METHODS.keys())
def test_adapters_of_lora_runs_say_what_the_merged_model_says(
    run: LoraRun, tmp_path: Path, options: tuple[str, ...]
) -> None:
    """With every method, anchor and damping."""
    adapter = assert_same(run, tmp_path, *options, *TARGET)
    assert {path.name for path in adapter.iterdir()} - {PICTURE} == {
        *(ADAPTER, CONFIG, "alpharl.json", "README.md"),
    }


VARIANTS: Mapping[str, tuple[Mapping[str, Any], Mapping[str, Any]]] = {
    "saved modules": (
        {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens", "lm_head", "norm"]},
        {},
    ),
    "embedding": ({"target_modules": ["q_proj", "embed_tokens"]}, {}),
    "head": ({"target_modules": ["q_proj", "lm_head"]}, {}),
    "all biases": ({"target_modules": ["q_proj"], "bias": "all"}, {}),
    "patterns": (
        {
            "target_modules": ["q_proj", "up_proj"],
            "rank_pattern": {"up_proj": 2},
            "use_rslora": True,
            "lora_alpha": 3,
        },
        {},
    ),
    "Conv1D": (
        {"target_modules": ["c_attn", "c_fc"], "fan_in_fan_out": True},
        {"kind": "gpt2"},
    ),
    "tied": (
        {
            "target_modules": ["q_proj"],
            "modules_to_save": ["embed_tokens"],
            "ensure_weight_tying": True,
        },
        {"tied": True},
    ),
    "bf16 base": ({"target_modules": ["q_proj"]}, {"base_dtype": torch.bfloat16}),
}


@pytest.fixture(scope="module", params=VARIANTS)
def variant(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> LoraRun:
    """A run of each kind of LoRA."""
    options, how = VARIANTS[request.param]
    return write_lora_run(tmp_path_factory.mktemp("variant"), **how, **options)


@pytest.mark.parametrize(
    "options",
    [("--others", "last"), ("--others", "base"), ("--others", "linear"), ("--method", "ols")],
    ids=lambda options: options[-1],
)
def test_whatever_is_trained_goes_into_the_adapter(
    variant: LoraRun, tmp_path: Path, options: tuple[str, ...]
) -> None:
    """Embeddings, heads, biases and modules that are saved whole, with any --others."""
    assert_same(variant, tmp_path, *options, *TARGET)


def test_a_tied_embedding_has_its_update_on_both_sides(tmp_path: Path) -> None:
    """Peft wants the factors of the head too; its own merge would add them up in one weight."""
    run = write_lora_run(
        tmp_path, tied=True, target_modules=["q_proj", "embed_tokens"], ensure_weight_tying=True
    )
    words = ("--method", "ols", *TARGET)
    adapter = predict(run, tmp_path / "adapter", *words)
    succeed("predict", *run.arguments("-o", str(tmp_path / "merged"), *words))
    said = logits(load_base(tmp_path / "merged"))
    found = logits(load_adapted(run.base, adapter))
    scale = float((said - logits(load_base(run.base))).abs().max())
    torch.testing.assert_close(found, said, rtol=0, atol=1e-3 * scale)
    assert any("lm_head.lora_A" in name for name in load_file(adapter / ADAPTER))
    read_finished_folder(adapter)


@pytest.mark.parametrize("method", ["ols", "relex"])
def test_large_tensors_are_predicted_in_pieces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    """What is stored whole is put together from many windows, read twice where that is needed."""
    run = write_lora_run(tmp_path, target_modules=["q_proj"], modules_to_save=["embed_tokens"])
    whole = predict(run, tmp_path / "whole", "--method", method, *TARGET)
    monkeypatch.setattr(plan, "WINDOW_BYTES", 256)
    monkeypatch.setattr(setting, "MAX_HELD_BYTES", 1000)
    pieces = predict(run, tmp_path / "pieces", "--method", method, *TARGET)
    assert digest(pieces) == digest(whole)


def test_a_start_that_is_not_zero_stays_out(tmp_path: Path) -> None:
    """The adapter of a PiSSA run goes on the base itself, without any preparation of it."""
    run = write_lora_run(tmp_path, target_modules=["q_proj"])
    start = tmp_path / "run" / "step_0"
    start.mkdir()
    for name in (ADAPTER, CONFIG):
        (start / name).write_bytes((run.folders[0] / name).read_bytes())
    folders = [start, *run.folders]
    curve_adapters(folders, [step + 5 for step in (0, *STEPS)])
    for folder in folders:
        config = json.loads((folder / CONFIG).read_text())
        (folder / CONFIG).write_text(json.dumps({**config, "init_lora_weights": "pissa"}))
    adapter = assert_same(run, tmp_path, "--method", "ols", *TARGET)
    assert json.loads((adapter / CONFIG).read_text())["init_lora_weights"] is True


@pytest.mark.parametrize("kind", ["qwen2", "gpt2", "bf16"])
@pytest.mark.parametrize("rank", ["1", "2"])
def test_adapters_of_whole_models_have_the_rank_of_the_method(
    tmp_path: Path, kind: str, rank: str
) -> None:
    """alpharl on the base: rank R everywhere, fp32, and --others base without being asked."""
    dtype = torch.bfloat16 if kind == "bf16" else None
    run = write_full_run(tmp_path / "run", "qwen2" if kind == "bf16" else kind, dtype)
    adapter = assert_same(run, tmp_path, "--others", "base", "--rank", rank, *TARGET)
    again = predict(run, tmp_path / "again", "--rank", rank, *TARGET)
    assert (again / ADAPTER).read_bytes() == (adapter / ADAPTER).read_bytes()
    config = json.loads((adapter / CONFIG).read_text())
    assert (config["r"], config["rank_pattern"]) == (int(rank), {})
    with safe_open(adapter / ADAPTER, "pt") as file:
        assert {file.get_slice(k).get_dtype() for k in file.keys()} == {"F32"}  # noqa: SIM118
    manifest = json.loads((again / "alpharl.json").read_text())
    assert (manifest["rank"], manifest["method"]["others"]) == (int(rank), "base")
    assert {t["action"] for t in manifest["tensors"]} == {"predicted"}


def test_files_that_lack_a_prefix_of_the_model_are_understood(tmp_path: Path) -> None:
    """GPT-2's own files begin with "h.0", the modules that peft wraps with "transformer.h.0"."""
    run = write_full_run(tmp_path, "gpt2", tied=True)
    for folder in (run.base, *run.folders):
        tensors = load_file(folder / "model.safetensors")
        bare = {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}
        assert "lm_head.weight" not in bare
        save_file(bare, folder / "model.safetensors", {"format": "pt"})
    adapter = predict(run, tmp_path / "adapter", *TARGET)
    succeed("predict", *run.arguments("-o", str(tmp_path / "merged"), "--others", "base", *TARGET))
    said = logits(load_base(tmp_path / "merged"))
    torch.testing.assert_close(logits(load_adapted(run.base, adapter)), said, rtol=0, atol=1e-6)
    assert float((said - logits(load_base(run.base))).abs().max()) > 1e-5
    read_finished_folder(adapter)


REFUSED: Mapping[str, tuple[tuple[str, ...], str]] = {
    "linear": (("--method", "linear"), "--method alpharl"),
    "auto": (("--method", "auto"), "--method alpharl"),
    "residual": (("--keep-residual",), "--keep-residual"),
    "last": (("--anchor", "last"), "--anchor base"),
    "damping": (("--damping", "0.5"), "--damping"),
    "others last": (("--others", "last"), "--others base"),
    "others linear": (("--others", "linear"), "--others base"),
}


@pytest.mark.parametrize(("options", "advice"), REFUSED.values(), ids=REFUSED.keys())
def test_full_rank_is_refused(
    full_run: LoraRun, tmp_path: Path, options: tuple[str, ...], advice: str
) -> None:
    """In one line that names the rank and what to change; inspect says the same."""
    words = ("--as-adapter", *TARGET, *options)
    line = fail("predict", *full_run.arguments("-o", str(tmp_path / "a"), *words))
    assert "full rank (min(M, N) = 16): leave out --as-adapter, or " in line
    assert advice in line
    assert list(tmp_path.iterdir()) == []
    if "auto" not in options:
        assert fail("inspect", *full_run.arguments(*words)) == line


def test_dora_is_refused(tmp_path: Path) -> None:
    """DoRA rescales whole matrices: its update has full rank."""
    run = write_lora_run(tmp_path, target_modules=["q_proj"], use_dora=True)
    line = fail("predict", *run.arguments("-o", str(tmp_path / "a"), "--as-adapter", *TARGET))
    assert "full rank (min(M, N) = 16)" in line
    assert "DoRA" in line


def test_what_the_base_lacks_is_refused(tmp_path: Path) -> None:
    """A tensor that only the run has would be copied in full."""
    run = write_full_run(tmp_path)
    path = run.folders[-1] / "model.safetensors"
    save_file({**load_file(path), "score.weight": torch.ones(3, 16)}, path, {"format": "pt"})
    line = fail("predict", *run.arguments("-o", str(tmp_path / "a"), "--as-adapter", *TARGET))
    assert "score.weight" in line
    assert "--as-adapter" in line


def test_experts_are_left_to_the_base_or_refused(tmp_path: Path) -> None:
    """What transformers fuses into one weight has no layer that peft could wrap."""
    run = write_full_run(tmp_path)
    name = "model.layers.0.mlp.experts.0.up_proj.weight"
    for step, folder in zip((0, *STEPS), (run.base, *run.folders), strict=True):
        path = folder / "model.safetensors"
        expert = torch.eye(16) + 1e-4 * step * torch.ones(16, 16)
        save_file({**load_file(path), name: expert}, path, {"format": "pt"})
    words = ("--as-adapter", *TARGET)
    assert name in fail("predict", *run.arguments("-o", str(tmp_path / "a"), *words))
    adapter = predict(run, tmp_path / "a", "--exclude", "experts", *TARGET)
    assert not any("experts" in key for key in load_file(adapter / ADAPTER))


def test_factors_are_stored_as_asked(run: LoraRun, tmp_path: Path) -> None:
    """--dtype is that of the factors; what rounding them loses is measured and small."""
    adapter = predict(run, tmp_path / "a", "--dtype", "bfloat16", *TARGET)
    exact = predict(run, tmp_path / "b", *TARGET)
    with safe_open(adapter / ADAPTER, "pt") as file:
        assert {file.get_slice(k).get_dtype() for k in file.keys()} == {"BF16"}  # noqa: SIM118
    found, wanted = merged_weights(run.base, adapter), merged_weights(run.base, exact)
    base = load_model(run.base)
    lost = sum(float((found[n] - wanted[n]).double().square().sum()) for n in base)
    whole = sum(float((wanted[n] - base[n]).double().square().sum()) for n in base)
    rounding = json.loads((adapter / "alpharl.json").read_text())["rounding"]
    assert rounding["loss"] == pytest.approx((lost / whole) ** 0.5, rel=1e-2)
    assert 1e-4 < rounding["loss"] < 5e-3
    assert json.loads((exact / "alpharl.json").read_text())["rounding"]["loss"] == 0


def test_adapters_in_bf16_give_one_in_bf16(tmp_path: Path) -> None:
    """The factors of LoRA runs keep the dtype that the run stores."""
    run = write_lora_run(tmp_path, target_modules=["q_proj"])
    for folder in run.folders:
        tensors = {n: t.bfloat16() for n, t in load_file(folder / ADAPTER).items()}
        save_file(tensors, folder / ADAPTER, {"format": "pt"})
    adapter = predict(run, tmp_path / "a", "--method", "linear", *TARGET)
    with safe_open(adapter / ADAPTER, "pt") as file:
        assert {file.get_slice(k).get_dtype() for k in file.keys()} == {"BF16"}  # noqa: SIM118
    config = json.loads((adapter / CONFIG).read_text())
    assert config["r"] == 4


@pytest.mark.parametrize("is_lora", [True, False], ids=["LoRA", "whole"])
def test_a_manifest_repeats_it(
    run: LoraRun, full_run: LoraRun, tmp_path: Path, is_lora: bool
) -> None:
    """--from writes every file again, to the byte; --as-adapter beside it is refused."""
    chosen = run if is_lora else full_run
    first = predict(chosen, tmp_path / "one" / "a", *TARGET)
    words = chosen.arguments("--from", str(first / "alpharl.json"), "-o", str(tmp_path / "two/a"))
    assert command("predict", *words, "--as-adapter").exit_code == 2
    succeed("predict", *words)
    for path in first.iterdir():
        assert path.read_bytes() == (tmp_path / "two" / "a" / path.name).read_bytes(), path.name


def test_extracted_factors_give_the_same_adapter(
    run: LoraRun, full_run: LoraRun, tmp_path: Path
) -> None:
    """extract, then predict DIR --as-adapter: the bytes of the run itself."""
    for name, chosen in (("lora", run), ("full", full_run)):
        factors = tmp_path / f"{name}-factors"
        succeed("extract", *chosen.arguments("-o", str(factors)))
        out = tmp_path / name
        succeed("predict", factors, "-o", out, "--as-adapter", *TARGET)
        assert digest(out) == digest(predict(chosen, tmp_path / f"{name}-run", *TARGET))


def test_several_steps_give_several_adapters(run: LoraRun, tmp_path: Path) -> None:
    """A folder for each, as if asked for alone."""
    predict(run, tmp_path / "a", "--method", "ols", "--target-step", "50,90")
    alone = predict(run, tmp_path / "b", "--method", "ols", "--target-step", "90")
    assert digest(tmp_path / "a" / "step_90") == digest(alone)
    assert digest(tmp_path / "a" / "step_50") != digest(alone)


def test_the_card_says_what_it_is(run: LoraRun, full_run: LoraRun, tmp_path: Path) -> None:
    """Library, rank, base and how to load it; the example for a local base names its folder."""
    card = (predict(run, tmp_path / "a", *TARGET) / "README.md").read_text()
    for words in ("library_name: peft", "LoRA adapter of rank 1", "PeftModel", "path/to/base"):
        assert words in card
    assert "--max-lora-rank 8 " in card
    assert "config.json` was changed" not in card
    config = json.loads((tmp_path / "a" / CONFIG).read_text())
    assert (config["base_model_name_or_path"], config["revision"]) == (None, None)
    assert config["task_type"] == "CAUSAL_LM"


def test_tokenizer_files_come_along_and_the_model_config_does_not(tmp_path: Path) -> None:
    """What describes a model would make the folder look like one."""
    run = write_full_run(tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json", "modeling_x.py"):
        (run.folders[-1] / name).write_text("{}")
    adapter = predict(run, tmp_path / "a", *TARGET)
    assert {path.name for path in adapter.iterdir()} - {PICTURE} == {
        *(ADAPTER, CONFIG, "alpharl.json", "README.md"),
        *("tokenizer.json", "tokenizer_config.json"),
    }


def test_inspect_plans_the_adapter(full_run: LoraRun) -> None:
    """Its output is small, and so is what is read: what the adapter leaves alone is not."""
    plans = [
        json.loads(succeed("inspect", *full_run.arguments("--json", *TARGET, *more)).stdout)["plan"]
        for more in ((), ("--as-adapter",))
    ]
    assert plans[1]["output_bytes"] < plans[0]["output_bytes"] / 3
    assert plans[1]["read_bytes"] < plans[0]["read_bytes"]
    screen = succeed("inspect", *full_run.arguments("--as-adapter", *TARGET)).stdout
    assert "--as-adapter" in screen
