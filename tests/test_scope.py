"""Tensors that differ from checkpoint to checkpoint: sharding, tied heads, gaps, growth, dtypes."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor
from trajectories import (
    EMBEDDING,
    HEAD,
    HIDDEN,
    INDEX,
    NORM,
    Q_PROJ,
    UP_PROJ,
    VOCAB,
    Run,
    as_float64,
    curved_run,
    digest,
    fail,
    generator,
    linear_truth,
    load_model,
    matrix_names,
    model_config,
    predict,
    rank_one_line,
    relative_error,
    succeed,
    write_checkpoint,
    write_run,
)
from transformers import AutoModelForCausalLM

from alpharl_hub.errors import TrajectoryError
from alpharl_hub.scope import find_scope
from alpharl_hub.sources.contents import open_contents
from alpharl_hub.sources.local_run import pin_folder
from alpharl_hub.windows import plan

STEPS = (4, 10, 24, 40)
TARGET = ("--target-step", "80")


def manifest_of(folder: Path) -> dict[str, Any]:
    """The alpharl.json of an output."""
    return json.loads((folder / "alpharl.json").read_text())


def actions(folder: Path) -> dict[str, str]:
    """What was done to each tensor, as the manifest says."""
    return {tensor["name"]: tensor["action"] for tensor in manifest_of(folder)["tensors"]}


def warnings(folder: Path) -> dict[str, str]:
    """Warnings of the manifest by code."""
    return {warning["code"]: warning["message"] for warning in manifest_of(folder)["warnings"]}


def change(at: Callable[[int], Mapping[str, Tensor]], **changes: Any) -> Callable[[int], Any]:
    """Change a run: `drop`: {step: names}, `add`: {step: tensors}; the base is step 0."""
    drop, add = changes.get("drop", {}), changes.get("add", {})

    def changed(step: int) -> dict[str, Tensor]:
        kept = {n: t for n, t in at(step).items() if n not in drop.get(step, ())}
        return {**kept, **add.get(step, {})}

    return changed


EVERYWHERE = (0, *STEPS)


def test_output_is_sharded_as_the_last_checkpoint(tmp_path: Path) -> None:
    """File names, tensors, their order, metadata and index are the last checkpoint's."""
    at = curved_run(STEPS)
    plain = write_run(tmp_path / "plain", STEPS, at)
    mixed = write_run(
        tmp_path / "mixed",
        STEPS,
        at,
        num_shards=2,
        base_options={"num_shards": 0},
        last_options={"num_shards": 3},
    )
    whole = predict(plain, tmp_path / "a", *TARGET)
    found = predict(mixed, tmp_path / "b", *TARGET)
    assert whole.keys() == found.keys()
    assert all(torch.equal(whole[name], found[name]) for name in whole)
    last = mixed.folder(STEPS[-1])
    shards = sorted(path.name for path in last.glob("*.safetensors"))
    assert len(shards) == 3
    assert sorted(path.name for path in (tmp_path / "b").glob("*.safetensors")) == shards
    for name in shards:
        with safe_open(last / name, "pt") as given, safe_open(tmp_path / "b" / name, "pt") as made:
            assert made.offset_keys() == given.offset_keys()
            assert made.metadata() == given.metadata()
    index = json.loads((tmp_path / "b" / INDEX).read_text())
    assert index["weight_map"] == json.loads((last / INDEX).read_text())["weight_map"]
    assert index["metadata"]["total_size"] == sum(4 * tensor.numel() for tensor in found.values())


@pytest.mark.parametrize("num_shards", [1, 2])
def test_sharded_output_loads(tmp_path: Path, num_shards: int) -> None:
    """Transformers loads sharded outputs, a single shard beside an index included."""
    run = write_run(tmp_path, STEPS, curved_run(STEPS), num_shards=num_shards)
    found = predict(run, tmp_path / "out", *TARGET)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto")
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, found[name])


@pytest.mark.parametrize("tied_steps", [(0,), STEPS, (4, 10), (40,)], ids=str)
def test_tied_head_on_either_side(tmp_path: Path, tied_steps: tuple[int, ...]) -> None:
    """Where the config ties and the head is left out, the head is the embedding."""
    at = change(curved_run(STEPS), drop=dict.fromkeys(tied_steps, (HEAD,)))
    for step in EVERYWHERE:
        folder = tmp_path / ("base" if step == 0 else f"run/step_{step}")
        write_checkpoint(folder, at(step), config=model_config(tied=step in tied_steps))
    run = Run(tmp_path / "run", tmp_path / "base", STEPS)
    found = predict(run, tmp_path / "out", *TARGET, "--others", "linear")
    assert found.keys() == load_model(run.folder(40)).keys()
    base = as_float64(at(0).get(HEAD, at(0)[EMBEDDING]))
    if HEAD in found:
        truth = linear_truth(base, [as_float64(at(40)[HEAD])], (40,), 80)
        assert relative_error(found[HEAD], truth, base) < 1e-4
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto")
    head = model.get_output_embeddings().weight
    assert torch.equal(head, found.get(HEAD, found[EMBEDDING]))


def test_head_that_is_missing_but_not_tied_is_no_embedding(tmp_path: Path) -> None:
    """Without the config's word a missing head is a gap: the last checkpoint's is copied."""
    run = write_run(tmp_path, STEPS, change(curved_run(STEPS), drop={0: (HEAD,)}))
    found = predict(run, tmp_path / "out", *TARGET, "--others", "linear")
    assert torch.equal(found[HEAD], load_model(run.folder(40))[HEAD])
    assert HEAD in warnings(tmp_path / "out")["last_only"]


def test_tensors_on_one_side_only(tmp_path: Path) -> None:
    """Only in the last: copied and told. Only in the base: left out and told."""
    extra, old = torch.randn(6, 5), torch.randn(3, 3)
    name = "model.layers.0.mlp.extra.weight"
    at = change(
        curved_run(STEPS), add={40: {name: extra}, 0: {"old.weight": old}}, drop={10: (UP_PROJ,)}
    )
    run = write_run(tmp_path, STEPS, at)
    found = predict(run, tmp_path / "out", *TARGET)
    assert torch.equal(found[name], extra)
    assert "old.weight" not in found
    assert torch.equal(found[UP_PROJ], load_model(run.folder(40))[UP_PROJ])
    assert actions(tmp_path / "out")[UP_PROJ] == "copied"
    told = warnings(tmp_path / "out")
    assert name in told["last_only"]
    assert "old.weight" in told["base_only"]
    assert UP_PROJ in told["gap"]


def test_grown_tensors_are_copied(tmp_path: Path) -> None:
    """More rows than before, in vocabulary or matrix: the last checkpoint's bytes, and a word."""
    wide = torch.randn(VOCAB + 8, HIDDEN)
    tall = torch.randn(30, HIDDEN)
    at = change(curved_run(STEPS), add={40: {EMBEDDING: wide, HEAD: wide + 1, UP_PROJ: tall}})
    run = write_run(tmp_path, STEPS, at)
    found = predict(run, tmp_path / "out", *TARGET, "--others", "linear")
    assert torch.equal(found[EMBEDDING], wide)
    assert torch.equal(found[HEAD], wide + 1)
    assert torch.equal(found[UP_PROJ], tall)
    assert warnings(tmp_path / "out")["grown"].startswith("3 tensors")


@pytest.mark.parametrize("shape", [(VOCAB - 1, HIDDEN), (VOCAB, HIDDEN + 1), (VOCAB, HIDDEN, 1)])
def test_other_shapes_stop(tmp_path: Path, shape: tuple[int, ...]) -> None:
    """Any other difference in shape names the tensor, both shapes and both places."""
    run = write_run(
        tmp_path, STEPS, change(curved_run(STEPS), add={40: {EMBEDDING: torch.ones(shape)}})
    )
    line = fail("predict", *run.arguments("-o", str(tmp_path / "out"), *TARGET))
    for part in (EMBEDDING, str(list(shape)), f"[{VOCAB}, {HIDDEN}]", str(run.folder(40))):
        assert part in line
    assert not (tmp_path / "out").exists()


ODD_TENSORS = {
    "model.counter": torch.tensor(7),
    "model.mask": torch.tensor([[True, False], [False, True]]),
    "model.layers.0.self_attn.position_ids": torch.arange(12).view(3, 4),
    "model.layers.0.mlp.table": torch.randint(-9, 9, (4, 4), dtype=torch.int8),
    "model.layers.0.mlp.small": torch.randn(4, 4).to(torch.float8_e4m3fn),
    "model.layers.0.mlp.waves": torch.randn(4, 4, dtype=torch.complex64),
    "model.layers.0.mlp.empty": torch.zeros(0, 4),
    "model.layers.0.mlp.scale": torch.tensor(0.5),
}


@pytest.mark.parametrize(
    "options",
    [(), ("--dtype", "bfloat16"), ("--others", "base"), ("--others", "linear")],
    ids=["plain", "dtype", "base", "linear"],
)
def test_tensors_that_are_not_floating_are_copied_byte_for_byte(
    tmp_path: Path, options: tuple[str, ...]
) -> None:
    """Integers, booleans, 8-bit floats and complex numbers are never computed with or cast."""
    changed = {n: t + 1 if t.dtype == torch.int64 else t for n, t in ODD_TENSORS.items()}
    at = change(curved_run(STEPS), add={**dict.fromkeys(EVERYWHERE, ODD_TENSORS), 40: changed})
    run = write_run(tmp_path, STEPS, at)
    found = predict(run, tmp_path / "out", *TARGET, *options)
    for name, tensor in changed.items():
        if tensor.dtype == torch.float32 and "--dtype" in options:
            assert torch.equal(found[name], tensor.bfloat16())
            continue
        assert found[name].dtype == tensor.dtype
        assert found[name].shape == tensor.shape
        assert torch.equal(
            found[name].reshape(-1).view(torch.uint8), tensor.reshape(-1).view(torch.uint8)
        )


def test_float64_is_stored_as_float64(tmp_path: Path) -> None:
    """A trajectory in fp64 gives fp64 weights, computed in fp32."""
    run = write_run(tmp_path, STEPS, rank_one_line(), dtype=torch.float64)
    found = predict(run, tmp_path / "out", *TARGET)
    truth = rank_one_line()(80)
    for name in matrix_names(found):
        assert found[name].dtype == torch.float64
        base = as_float64(rank_one_line()(0)[name])
        assert relative_error(found[name], as_float64(truth[name]), base) < 1e-3


@pytest.mark.parametrize("method", ["alpharl", "linear"])
@pytest.mark.parametrize("others", ["last", "base", "linear"])
def test_large_tensors_are_cut_without_a_trace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, others: str
) -> None:
    """Tensors far beyond a window give the bytes that they give in one piece."""
    odd = {k: v for k, v in ODD_TENSORS.items() if v.dtype != torch.complex64}
    odd["model.big_table"] = torch.randint(0, 250, (77, 31), dtype=torch.uint8)
    at = change(curved_run(STEPS), add=dict.fromkeys(EVERYWHERE, odd))
    half = {"dtype": torch.bfloat16}
    run = write_run(tmp_path, STEPS, at, base_options=half)
    options = (*TARGET, "--method", method, "--others", others)
    predict(run, tmp_path / "whole", *options)
    monkeypatch.setattr(plan, "WINDOW_BYTES", 100)
    predict(run, tmp_path / "cut", *options)
    assert digest(tmp_path / "cut") == digest(tmp_path / "whole")
    for name in ("rounding", "tensors"):
        whole, cut = (manifest_of(tmp_path / f)[name] for f in ("whole", "cut"))
        assert_close(whole, cut)


def assert_close(a: object, b: object) -> None:
    """Compare plain values, floats to rounding: sums of squares are added in another order."""
    if isinstance(a, dict) and isinstance(b, dict):
        assert a.keys() == b.keys()
        a, b = list(a.values()), list(b.values())
    if isinstance(a, list) and isinstance(b, list):
        assert len(a) == len(b)
        for one, other in zip(a, b, strict=True):
            assert_close(one, other)
    elif isinstance(a, float):
        assert b == pytest.approx(a, rel=1e-6)
    else:
        assert a == b


@pytest.mark.parametrize("step", [0, 10, 40])
def test_index_of_nan_in_a_cut_tensor_is_that_of_the_tensor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    """The message counts from the start of the tensor, not of the piece that was at work."""
    tensors = {s: dict(curved_run(STEPS)(s)) for s in EVERYWHERE}
    tensors[step][EMBEDDING] = tensors[step][EMBEDDING].clone()
    tensors[step][EMBEDDING][33, 7] = torch.inf
    run = write_run(tmp_path, STEPS, lambda s: tensors[s])
    monkeypatch.setattr(plan, "WINDOW_BYTES", 100)
    options = ("--method", "linear", "--fit-last", "3")
    line = fail("predict", *run.arguments("-o", str(tmp_path / "out"), *TARGET, *options))
    assert f"{EMBEDDING} holds NaN or Inf at index [33, 7]" in line
    assert str(run.folder(step) if step else run.base) in line


def test_include_and_exclude_choose_matrices(tmp_path: Path) -> None:
    """Only matrices that the expressions let through are predicted; the rest is copied."""
    run = write_run(tmp_path, STEPS, curved_run(STEPS))
    predict(run, tmp_path / "out", *TARGET, "--include", r"\.1\.", "--exclude", "mlp")
    done = {name for name, action in actions(tmp_path / "out").items() if action == "predicted"}
    assert done == {f"model.layers.1.self_attn.{x}_proj.weight" for x in "qkvo"}
    predict(run, tmp_path / "line", *TARGET, "--method", "linear", "--exclude", "mlp")
    found = actions(tmp_path / "line")
    assert {n for n, action in found.items() if action == "copied"} == {
        name for name in found if "mlp" in name or "norm" in name
    }
    line = fail("predict", *run.arguments("-o", str(tmp_path / "x"), *TARGET, "--include", "("))
    assert "--include (: no regular expression" in line


@pytest.mark.parametrize("method", ["alpharl", "relex", "ols", "linear", "average"])
def test_stack_of_experts_is_predicted_matrix_by_matrix(tmp_path: Path, method: str) -> None:
    """Each slice of a 3-D tensor of experts is a matrix; other 3-D tensors are none."""
    name, conv = "model.layers.0.mlp.experts.gate_up_proj", "model.layers.0.mixer.conv1d.weight"
    u_EM, v_EN = (
        torch.randn(3, 4, generator=generator(1)),
        torch.randn(3, 5, generator=generator(2)),
    )
    line = u_EM[:, :, None] * v_EN[:, None, :]
    add = {s: {name: 1 + 1e-3 * s * line, conv: torch.full((3, 1, 4), 1.0 + s)} for s in EVERYWHERE}
    run = write_run(tmp_path, STEPS, change(curved_run(STEPS), add=add))
    target = () if method == "average" else TARGET
    found = predict(run, tmp_path / "out", *target, "--method", method)
    if method != "average":
        assert torch.allclose(found[name], 1 + 1e-3 * float(TARGET[1]) * line, atol=1e-5)
    manifest = json.loads((tmp_path / "out" / "alpharl.json").read_text())
    records = {r["name"]: r for r in manifest["tensors"] if r["name"].startswith(name)}
    one = method == "relex"
    assert list(records) == ([name] if one else [f"{name}[{e}]" for e in range(3)])
    assert {r["action"] for r in records.values()} == {"predicted"}
    if method == "alpharl":
        assert torch.equal(found[conv], add[40][conv])
        assert all(r["shape"] == [4, 5] and r["rank1_share"] > 0.99 for r in records.values())


def test_stack_of_experts_is_extracted_matrix_by_matrix(tmp_path: Path) -> None:
    """Factors are those of each slice, and predict the same as the run itself."""
    name = "model.layers.0.mlp.experts.gate_up_proj"
    add = {
        s: {name: 1 + 1e-5 * s * torch.randn(3, 4, 5, generator=generator(s))} for s in EVERYWHERE
    }
    run = write_run(tmp_path, STEPS, change(curved_run(STEPS), add=add))
    succeed("extract", *run.arguments("-o", str(tmp_path / "factors")))
    succeed("predict", tmp_path / "factors", "-o", tmp_path / "a", *TARGET)
    direct = predict(run, tmp_path / "b", *TARGET)
    assert torch.equal(load_model(tmp_path / "a")[name], direct[name])
    report = json.loads(succeed("report", *run.arguments("--json")).stdout)
    shapes = {m["name"]: m["shape"] for m in report["modules"] if "experts" in m["name"]}
    assert shapes == {f"{name}[{e}]": [4, 5] for e in range(3)}


@pytest.mark.parametrize(
    ("change_last", "words"),
    [
        (lambda t: {f"module.{n}": w for n, w in t.items()}, "prefix module."),
        (
            lambda t: {
                n.replace("model.layers", "model.language_model.layers"): w for n, w in t.items()
            },
            "prefix model.language_model.",
        ),
        (lambda t: {n.replace("_proj", "_map"): w for n, w in t.items()}, "name another --base"),
        (lambda t: {**t, "model.layers.0.mlp.up_proj.weight_scale": torch.ones(1)}, "quantized"),
        (lambda t: {n: w for n, w in t.items() if "proj" not in n}, "share 0 of 14 matrices"),
    ],
    ids=["module", "language_model", "names", "quantized", "no matrices"],
)
def test_strangers_are_refused(
    tmp_path: Path, change_last: Callable[[Mapping[str, Tensor]], Any], words: str
) -> None:
    """Names that hardly agree and quantized weights stop with what is on both sides."""
    at = curved_run(STEPS)
    run = write_run(tmp_path, STEPS, lambda s: change_last(at(s)) if s else at(0))
    line = fail("predict", *run.arguments("-o", str(tmp_path / "out"), *TARGET))
    assert words in line


def test_scope_keeps_the_order_of_the_last_checkpoint(tmp_path: Path) -> None:
    """Tensors come in the order of the last checkpoint's files and data, matrices among them."""
    at = curved_run(STEPS)
    contents = [
        open_contents(*pin_folder(str(write_checkpoint(tmp_path / str(s), at(s), num_shards=n))))
        for s, n in ((0, 0), (4, 2), (40, 3))
    ]
    scope = find_scope(contents[0], contents[1:], None, None)
    order = []
    for path in sorted((tmp_path / "40").glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            order.extend(file.offset_keys())
    assert [tensor.name for tensor in scope.tensors] == order
    assert {tensor.name for tensor in scope.matrices} == set(matrix_names(at(0)))
    reasons = {tensor.name: tensor.excluded_because for tensor in scope.tensors}
    assert reasons[NORM] == "not a matrix"
    assert reasons[EMBEDDING] == "outside the attention and MLP blocks"
    assert reasons[Q_PROJ] is None


def test_no_matrix_at_all_is_refused(tmp_path: Path) -> None:
    """Two folders without any matrix in a block are no language models."""
    contents = open_contents(
        *pin_folder(str(write_checkpoint(tmp_path, {"conv.weight": torch.ones(4, 4)})))
    )
    with pytest.raises(TrajectoryError, match="no matrix in scope"):
        find_scope(contents, [contents], None, None)


def test_run_without_its_own_config_takes_the_files_of_the_base(tmp_path: Path) -> None:
    """A trainer that writes weights only leaves the base's files to make the model load."""
    run = write_run(
        tmp_path, STEPS, curved_run(STEPS), config=None, base_options={"config": model_config()}
    )
    (run.base / "tokenizer_config.json").write_text("{}")
    succeed("predict", *run.arguments("-o", str(tmp_path / "out"), *TARGET))
    assert (tmp_path / "out" / "tokenizer_config.json").read_text() == "{}"
    AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto")
