"""LoRA runs predicted as merged models, against peft's own merges and float64 arithmetic."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hub_fixtures import commands_for, files_of, served_hub
from huggingface_hub import close_session
from lora_models import load_base, logits, merged_weights, write_adapters, write_base
from lora_runs import STEPS, LoraRun, curve_adapters, numpy_updates, write_lora_run
from safetensors.torch import load_file, save_file
from test_methods import alpharl64_of_rank, ols64, relex64
from trajectories import as_float64, digest, fail, load_model, succeed

TARGET = 90.0
Q_PROJ = "model.layers.0.self_attn.q_proj.weight"
UP_PROJ = "model.layers.1.mlp.up_proj.weight"
EMBEDDING = "model.embed_tokens.weight"


@dataclass(frozen=True)
class Truth:
    """Base, last weights and deltas of one tensor in float64, as peft merges them."""

    base: np.ndarray
    deltas: tuple[np.ndarray, ...]

    @property
    def last(self) -> np.ndarray:
        """W_T."""
        return self.base + self.deltas[-1]

    def off(self, found: torch.Tensor, delta_hat: np.ndarray) -> float:
        """How far found weights are from W_0 + D_hat, in units of D_hat."""
        wanted = self.base + delta_hat
        return float(np.linalg.norm(as_float64(found) - wanted) / np.linalg.norm(delta_hat))


@cache
def truths(run: LoraRun) -> dict[str, Truth]:
    """The truth of every tensor of a run."""
    base = load_file(run.base / "model.safetensors")
    merged = [merged_weights(run.base, folder) for folder in run.folders]
    return {
        name: Truth(
            as_float64(weights),
            tuple(as_float64(m[name]) - as_float64(weights) for m in merged),
        )
        for name, weights in base.items()
    }


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> LoraRun:
    """A run on attention and MLP, in fp32."""
    return write_lora_run(
        tmp_path_factory.mktemp("lora"), target_modules=["q_proj", "v_proj", "up_proj"]
    )


def predict(run: LoraRun, output: Path, *more: str) -> dict[str, torch.Tensor]:
    """Predict into `output` and return its tensors."""
    succeed("predict", *run.arguments("-o", str(output), *more))
    return load_model(output)


def alpharl(deltas: Sequence[np.ndarray], rank: int, target: float, rescale: bool) -> np.ndarray:
    """D_hat of AlphaRL in float64."""
    found: np.ndarray = alpharl64_of_rank(deltas, STEPS, target, rank, rescale)
    return found


def kept(delta: np.ndarray, rank: int) -> np.ndarray:
    """The leading part of a delta."""
    u, s, vt = np.linalg.svd(delta, full_matrices=False)
    found: np.ndarray = (u[:, :rank] * s[:rank]) @ vt[:rank]
    return found


METHODS: Mapping[str, tuple[tuple[str, ...], Any]] = {
    "alpharl": (("--method", "alpharl"), lambda d: alpharl(d, 1, TARGET, True)),
    "alpharl rank 2": (
        ("--method", "alpharl", "--rank", "2", "--no-rescale"),
        lambda d: alpharl(d, 2, TARGET, False),
    ),
    "alpharl keeps": (
        ("--method", "alpharl", "--keep-residual"),
        lambda d: d[-1] + alpharl(d, 1, TARGET, False) - kept(d[-1], 1),
    ),
    "alpharl from the last": (
        ("--method", "alpharl", "--anchor", "last", "--damping", "0.5"),
        lambda d: d[-1] + 0.5 * (alpharl(d, 1, TARGET, True) - alpharl(d, 1, STEPS[-1], True)),
    ),
    "relex": (("--method", "relex"), lambda d: relex64(d, STEPS, TARGET, 1)),
    "relex rank 2": (
        ("--method", "relex", "--rank", "2", "--anchor", "last"),
        lambda d: d[-1] + relex64(d, STEPS, TARGET, 2) - relex64(d, STEPS, STEPS[-1], 2),
    ),
    "linear": (("--method", "linear"), lambda d: TARGET / STEPS[-1] * d[-1]),
    "linear window": (
        ("--method", "linear", "--fit-last", "3", "--damping", "0.25"),
        lambda d: d[-1] + 0.25 * (TARGET - STEPS[-1]) / (STEPS[-1] - STEPS[2]) * (d[-1] - d[2]),
    ),
    "ols": (("--method", "ols"), lambda d: ols64(d, STEPS, TARGET)),
    "ols from the last": (
        ("--method", "ols", "--anchor", "last"),
        lambda d: d[-1] + ols64(d, STEPS, TARGET) - ols64(d, STEPS, STEPS[-1]),
    ),
    "average": (("--method", "average"), lambda d: np.mean(d[2:], axis=0)),
}


@pytest.mark.parametrize("name", METHODS)
def test_every_method_predicts_what_it_would_of_merged_checkpoints(
    run: LoraRun, tmp_path: Path, name: str
) -> None:
    """Each updated matrix is the method's answer to peft's merges; all others are the base's."""
    options, delta_hat = METHODS[name]
    target = () if name == "average" else ("--target-step", f"{TARGET:g}")
    found = predict(run, tmp_path / "a", *options, *target)
    base = load_file(run.base / "model.safetensors")
    assert list(found) == list(base)
    changed = 0
    for tensor, truth in truths(run).items():
        if np.linalg.norm(truth.deltas[-1]) == 0:
            assert torch.equal(found[tensor], base[tensor])
            continue
        changed += 1
        assert truth.off(found[tensor], delta_hat(truth.deltas)) < 1e-3, tensor
    assert changed == 6


def test_linear_at_the_last_step_is_the_merge_of_the_last_checkpoint(
    run: LoraRun, tmp_path: Path
) -> None:
    """Of weights, and of what the loaded model says."""
    predict(run, tmp_path / "a", "--method", "linear", "--target-step", str(STEPS[-1]))
    merged = merged_weights(run.base, run.folders[-1])
    found = load_base(tmp_path / "a")
    for name, weights in found.state_dict().items():
        torch.testing.assert_close(weights, merged[name], rtol=1e-5, atol=1e-7)
    model = load_base(run.base)
    assert float((logits(model) - logits(found)).abs().max()) > 1e-5
    model.load_state_dict(merged)
    torch.testing.assert_close(logits(found), logits(model), rtol=1e-4, atol=1e-6)


def test_scale_and_rank_come_from_the_adapters_files(tmp_path: Path) -> None:
    """Ranks and alphas by pattern and rsLoRA, by numpy from the stored factors alone."""
    run = write_lora_run(
        tmp_path,
        target_modules=["q_proj", "up_proj"],
        rank_pattern={"up_proj": 2},
        alpha_pattern={"layers.1.mlp.up_proj": 6},
        use_rslora=True,
        lora_alpha=3,
    )
    found = predict(run, tmp_path / "a", "--method", "linear", "--target-step", "100")
    base = load_file(run.base / "model.safetensors")
    updates = numpy_updates(run.folders[-1])
    assert len(updates) == 4
    for name, update in updates.items():
        wanted = as_float64(base[name]) + 100 / STEPS[-1] * update
        off = np.linalg.norm(as_float64(found[name]) - wanted) / np.linalg.norm(update)
        assert off < 1e-5, name


def test_a_bf16_base_is_rounded_once(tmp_path: Path) -> None:
    """Adapters in fp32 over a bf16 base: the output is bf16, the sum of both rounded once."""
    run = write_lora_run(tmp_path, base_dtype=torch.bfloat16, target_modules=["q_proj", "up_proj"])
    found = predict(run, tmp_path / "a", "--method", "linear", "--target-step", "100")
    wide = predict(
        run, tmp_path / "b", "--method", "linear", "--target-step", "100", "--dtype", "float32"
    )
    for name, truth in truths(run).items():
        assert found[name].dtype == torch.bfloat16
        assert wide[name].dtype == torch.float32
        assert torch.equal(found[name], wide[name].bfloat16())
        if np.linalg.norm(truth.deltas[-1]) > 0:
            assert truth.off(wide[name], 100 / STEPS[-1] * truth.deltas[-1]) < 1e-4
    manifest = json.loads((tmp_path / "a" / "alpharl.json").read_text())
    assert {t["dtype"] for t in manifest["tensors"]} == {"BF16"}
    assert manifest["rounding"]["loss"] > 0


VARIANTS: Mapping[str, tuple[Mapping[str, Any], tuple[str, ...], bool]] = {
    "DoRA": ({"target_modules": ["q_proj", "up_proj"], "use_dora": True}, (UP_PROJ,), False),
    "saved modules": (
        {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens", "lm_head"]},
        (EMBEDDING, "lm_head.weight"),
        False,
    ),
    "embedding": ({"target_modules": ["q_proj", "embed_tokens"]}, (EMBEDDING,), False),
    "DoRA on embedding": (
        {"target_modules": ["q_proj", "embed_tokens"], "use_dora": True},
        (EMBEDDING,),
        False,
    ),
    "head": ({"target_modules": ["q_proj", "lm_head"]}, ("lm_head.weight",), False),
    "biases": ({"target_modules": ["q_proj"], "bias": "all"}, (Q_PROJ,), False),
    "Conv1D": (
        {"target_modules": ["c_attn", "c_fc"], "fan_in_fan_out": True},
        ("transformer.h.0.attn.c_attn.weight",),
        True,
    ),
}


@pytest.fixture(scope="module", params=VARIANTS)
def variant(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[LoraRun, tuple[str, ...]]:
    """A run of each kind of LoRA, and which of its tensors are special."""
    options, named, is_gpt2 = VARIANTS[request.param]
    folder = tmp_path_factory.mktemp("variant")
    return write_lora_run(folder, kind="gpt2" if is_gpt2 else "qwen2", **options), named


@pytest.mark.parametrize("others", ["last", "base", "linear"])
def test_variants_of_lora_are_predicted(
    variant: tuple[LoraRun, tuple[str, ...]], tmp_path: Path, others: str
) -> None:
    """alpharl on blocks and --others elsewhere, against peft's merges, whatever is trained."""
    run, named = variant
    found = predict(run, tmp_path / "a", "--target-step", "90", "--others", others)
    ratio = TARGET / STEPS[-1]
    checked = set()
    for tensor, truth in truths(run).items():
        if np.linalg.norm(truth.deltas[-1]) == 0:
            np.testing.assert_array_equal(as_float64(found[tensor]), truth.base)
            continue
        checked.add(tensor)
        if found[tensor].dim() == 2 and (".layers." in tensor or ".h." in tensor):
            wanted = alpharl(truth.deltas, 1, TARGET, True)
        else:
            factor = {"last": 1.0, "base": 0.0, "linear": 1.0 if "ln_" in tensor else ratio}
            wanted = factor[others] * truth.deltas[-1]
        error = np.linalg.norm(as_float64(found[tensor]) - truth.base - wanted)
        assert error < 2e-3 * np.linalg.norm(truth.deltas[-1]), tensor
    assert set(named) <= checked


@pytest.mark.parametrize("method", ["linear", "ols", "relex"])
def test_methods_for_all_tensors_predict_what_else_is_trained(
    variant: tuple[LoraRun, tuple[str, ...]], tmp_path: Path, method: str
) -> None:
    """Whole tensors, DoRA's and embeddings' are extrapolated like matrices."""
    run, named = variant
    found = predict(run, tmp_path / "a", "--target-step", "90", "--method", method)
    for tensor in named:
        truth = truths(run)[tensor]
        wanted = {
            "linear": TARGET / STEPS[-1] * truth.deltas[-1],
            "ols": ols64(truth.deltas, STEPS, TARGET),
            "relex": relex64(truth.deltas, STEPS, TARGET, 1),
        }[method]
        assert truth.off(found[tensor], wanted) < 1e-3


def test_what_is_excluded_is_the_last_merge(run: LoraRun, tmp_path: Path) -> None:
    """Matrices left out by --exclude are those of the last checkpoint, merged."""
    found = predict(run, tmp_path / "a", "--target-step", "90", "--exclude", "mlp")
    truth = truths(run)[UP_PROJ]
    assert truth.off(found[UP_PROJ], truth.deltas[-1]) < 1e-5
    records = json.loads((tmp_path / "a" / "alpharl.json").read_text())["tensors"]
    assert {t["action"] for t in records if t["name"] == UP_PROJ} == {"copied"}


def test_a_start_that_is_not_zero_is_taken_out(tmp_path: Path) -> None:
    """PiSSA: W_0 was split as (W_0 - s B_0 A_0) + s B_0 A_0, so D_t = s (B_t A_t - B_0 A_0)."""
    base = write_base(tmp_path / "base")
    steps = (0, *STEPS)
    folders = write_adapters(
        base, [tmp_path / "run" / f"step_{s}" for s in steps], 2e-4, target_modules=["q_proj"]
    )
    curve_adapters(folders, [step + 5 for step in steps])
    for folder in folders:
        config = json.loads((folder / "adapter_config.json").read_text())
        config["init_lora_weights"] = "pissa_niter_4"
        (folder / "adapter_config.json").write_text(json.dumps(config))
    run = LoraRun(tmp_path / "run", base, steps)
    start, *updates = [numpy_updates(folder)[Q_PROJ] for folder in folders]
    deltas = [update - start for update in updates]
    weights = as_float64(load_file(base / "model.safetensors")[Q_PROJ])
    for options, wanted in (
        (("--method", "linear"), TARGET / STEPS[-1] * deltas[-1]),
        (("--method", "alpharl"), alpharl(deltas, 1, TARGET, True)),
        (("--method", "ols", "--anchor", "last", "--exclude", "layers.0"), deltas[-1]),
    ):
        found = predict(run, tmp_path / options[1], "--target-step", "90", *options)[Q_PROJ]
        off = np.linalg.norm(as_float64(found) - weights - wanted) / np.linalg.norm(wanted)
        assert off < 1e-3, options


@pytest.mark.parametrize(
    "options",
    [
        ("--method", "alpharl", "--target-step", "90"),
        ("--method", "relex", "--rank", "2", "--target-step", "70", "--anchor", "last"),
        ("--method", "ols", "--target-step", "70", "--dtype", "bfloat16"),
    ],
    ids=["alpharl", "relex", "ols"],
)
def test_a_manifest_repeats_it(run: LoraRun, tmp_path: Path, options: tuple[str, ...]) -> None:
    """--from with RUN and --base writes the same weights and the same manifest."""
    predict(run, tmp_path / "a", *options)
    manifest = tmp_path / "a" / "alpharl.json"
    succeed("predict", *run.arguments("--from", str(manifest), "-o", str(tmp_path / "b")))
    assert digest(tmp_path / "a") == digest(tmp_path / "b")
    assert (tmp_path / "b" / "alpharl.json").read_bytes() == manifest.read_bytes()


def test_extracted_factors_predict_the_same(run: LoraRun, tmp_path: Path) -> None:
    """extract, then predict from its folder: the same bytes as from the run."""
    succeed("extract", *run.arguments("-o", str(tmp_path / "factors"), "--rank", "2"))
    succeed("predict", tmp_path / "factors", "-o", tmp_path / "a", "--target-step", "90")
    predict(run, tmp_path / "b", "--target-step", "90")
    assert digest(tmp_path / "a") == digest(tmp_path / "b")


def test_the_report_is_that_of_the_merged_updates(run: LoraRun) -> None:
    """Singular values and shares are numpy's, of peft's merges."""
    answer = json.loads(succeed("report", *run.arguments("--json")).stdout)
    assert answer["steps"] == list(STEPS)
    by_name = {module["name"]: module for module in answer["modules"]}
    known = truths(run)
    assert set(by_name) == {n for n, t in known.items() if np.linalg.norm(t.deltas[-1]) > 0}
    for name, module in by_name.items():
        sigmas = [np.linalg.svd(d, compute_uv=False) for d in known[name].deltas]
        np.testing.assert_allclose(module["sigma"], [s[0] for s in sigmas], rtol=1e-4)
        shares = [s[0] ** 2 / np.sum(s**2) for s in sigmas]
        np.testing.assert_allclose(module["rank1_share"], shares, rtol=1e-3)


def test_auto_chooses_a_step_and_draws_the_line(run: LoraRun, tmp_path: Path) -> None:
    """--method auto: the least-squares line of the recent half, from the last checkpoint on."""
    words = ("--method", "auto", "--target-step", "50", "--force", "--json")
    answer = json.loads(
        succeed("predict", *run.arguments("-o", str(tmp_path / "a"), *words)).stdout
    )
    assert answer["outputs"][0]["target_step"] == 50
    truth = truths(run)[Q_PROJ]
    middle = 2
    recent, steps = truth.deltas[middle:], STEPS[middle:]
    wanted = truth.deltas[-1] + ols64(recent, steps, 50.0) - ols64(recent, steps, STEPS[-1])
    assert answer["auto"]["middle_step"] == STEPS[middle]
    assert truth.off(load_model(tmp_path / "a")[Q_PROJ], wanted) < 1e-3


def test_several_steps_are_predicted_at_once(run: LoraRun, tmp_path: Path) -> None:
    """Each in a folder of its own, as if asked for alone."""
    words = ("--method", "ols", "--target-step", "50,90")
    succeed("predict", *run.arguments("-o", str(tmp_path / "a"), *words))
    alone = predict(run, tmp_path / "b", "--method", "ols", "--target-step", "90")
    together = load_model(tmp_path / "a" / "step_90")
    assert all(torch.equal(together[name], weights) for name, weights in alone.items())
    assert digest(tmp_path / "a" / "step_50") != digest(tmp_path / "b")


def test_a_broken_number_is_named(run: LoraRun, tmp_path: Path) -> None:
    """NaN in a factor ends in one line that names the checkpoint and the tensor."""
    folder = tmp_path / "run"
    for step, source in zip(STEPS, run.folders, strict=True):
        target = folder / f"step_{step}"
        target.mkdir(parents=True)
        for path in source.iterdir():
            (target / path.name).write_bytes(path.read_bytes())
    path = folder / f"step_{STEPS[1]}" / "adapter_model.safetensors"
    tensors = load_file(path)
    name = next(n for n in tensors if "up_proj.lora_B" in n)
    tensors[name][0, 0] = torch.nan
    save_file(tensors, path)
    line = fail(
        *("predict", str(folder), "--base", str(run.base), "-o", str(tmp_path / "a")),
        *("--target-step", "90"),
    )
    assert f"step_{STEPS[1]}" in line
    assert "up_proj" in line
    assert not (tmp_path / "a").exists()


def test_a_saved_module_of_another_size_is_named(tmp_path: Path) -> None:
    """A head with fewer rows than the base's is no head of this base."""
    run = write_lora_run(tmp_path, target_modules=["q_proj"], modules_to_save=["lm_head"])
    for folder in run.folders:
        path = folder / "adapter_model.safetensors"
        tensors = load_file(path)
        head = next(name for name in tensors if "lm_head" in name)
        save_file({**tensors, head: tensors[head][:-4].clone()}, path)
    line = fail("predict", *run.arguments("-o", str(tmp_path / "a"), "--target-step", "90"))
    assert "lm_head.weight" in line
    assert "[44, 16]" in line


def test_a_run_on_a_hub_finds_its_base_by_itself(run: LoraRun, tmp_path: Path) -> None:
    """The base is the repo that adapter_config.json names, and the bytes those of local folders."""
    with served_hub(tmp_path / "hub") as hub, commands_for(tmp_path / "commands", hub) as commands:
        hub.add_commit("lab/tiny-base", files=files_of(run.base))
        hub.add_commit("lab/tiny-lora", files={"notes.txt": b"see the branches\n"})
        for step, folder in zip(STEPS, run.folders, strict=True):
            config = json.loads((folder / "adapter_config.json").read_text())
            config["base_model_name_or_path"] = "lab/tiny-base"
            files: dict[str, Any] = files_of(folder)
            files["adapter_config.json"] = json.dumps(config).encode()
            hub.add_commit("lab/tiny-lora", files=files, revision=f"step_{step}")
        words = ("--target-step", "90", "--method", "ols")
        done = commands.run("predict", "lab/tiny-lora", "-o", tmp_path / "a", *words)
        assert done.code == 0, done.stderr
        again = commands.run("predict", "--from", tmp_path / "a/alpharl.json", "-o", tmp_path / "b")
        assert again.code == 0, again.stderr
    close_session()
    predict(run, tmp_path / "c", *words)
    assert digest(tmp_path / "a") == digest(tmp_path / "b") == digest(tmp_path / "c")
    recorded = json.loads((tmp_path / "a" / "alpharl.json").read_text())["run"]
    assert (recorded["base_chosen_by"], recorded["base_model"]) == ("adapter", "lab/tiny-base")
    assert "base_model: lab/tiny-base" in (tmp_path / "a" / "README.md").read_text()
