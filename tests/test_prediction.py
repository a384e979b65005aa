"""What predict writes, against float64 truths made without the code under test."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from trajectories import (
    HEAD,
    NORM,
    Q_PROJ,
    Run,
    alpharl_truth,
    as_float64,
    command,
    curved_run,
    exact_line,
    fail,
    generator,
    linear_truth,
    load_model,
    matrix_names,
    model_config,
    predict,
    relative_error,
    succeed,
    write_run,
)
from transformers import AutoModelForCausalLM

STEPS = (4, 10, 24, 31, 40)
SCORES = (0.2, 0.31, 0.45, 0.52, 0.7)
TARGET = 90.0
ALPHARL_TOLERANCE, LINEAR_TOLERANCE = 1e-3, 1e-4


@pytest.fixture(scope="module")
def curved(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A curved, noisy run in fp32."""
    return write_run(tmp_path_factory.mktemp("curved"), STEPS, curved_run(STEPS))


@pytest.fixture(scope="module", params=["fp32", "bf16", "fp32 over bf16"])
def stored(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The same run in every combination of dtypes."""
    half = {"dtype": torch.bfloat16}
    return write_run(
        tmp_path_factory.mktemp("stored"),
        STEPS,
        curved_run(STEPS),
        base_options=half if "bf16" in request.param else None,
        dtype=torch.bfloat16 if request.param == "bf16" else None,
    )


class Truth:
    """What the methods give for one tensor of a run, in float64, from its stored bytes."""

    def __init__(self, run: Run, name: str) -> None:
        self.steps = run.steps
        self.base = as_float64(load_model(run.base)[name])
        self.weights = [as_float64(load_model(run.folder(step))[name]) for step in run.steps]

    @property
    def last(self) -> np.ndarray:
        """W_T."""
        return self.weights[-1]

    def alpharl(
        self, target: float, rescale: bool = True, responses: Sequence[float] | None = None
    ) -> np.ndarray:
        """W_hat of AlphaRL."""
        return alpharl_truth(self.base, self.weights, responses or self.steps, target, rescale)

    def linear(self, target: float, first: int | None = None) -> np.ndarray:
        """W_hat of the line."""
        return linear_truth(self.base, self.weights, self.steps, target, first)

    def error(self, found: Tensor, wanted: np.ndarray) -> float:
        """Distance in units of the update."""
        return relative_error(found, wanted, self.base)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("method", ["alpharl", "linear"])
def test_planted_line_is_continued_to_the_bit(
    tmp_path: Path, dtype: torch.dtype, method: str
) -> None:
    """A rank-1 line through uneven steps comes out as the very weights of the later step."""
    line = exact_line()
    run = write_run(tmp_path, (3, 10, 24, 31), line, dtype=dtype)
    found = predict(run, tmp_path / "out", "--target-step", "62", "--method", method, "--force")
    truth = line(62)
    assert list(found) == list(load_model(run.folder(31)))
    for name in matrix_names(truth):
        assert found[name].dtype == dtype
        # The update is 62 * 2^-12 = 0.015 in every entry. bf16 rounds back to the very weights: two
        # neighbours lie 2^-19 = 2e-6 apart or farther, except around zero.
        torch.testing.assert_close(found[name].float(), truth[name], rtol=0, atol=1e-6 * 0.015)


@pytest.mark.parametrize("name", matrix_names(curved_run(STEPS)(0)))
def test_truths_of_the_two_methods_lie_apart(curved: Run, name: str) -> None:
    """On the curved run the two methods differ by over a tenth of the update: no mix-up passes."""
    truth = Truth(curved, name)
    alpharl, linear = truth.alpharl(TARGET), truth.linear(TARGET)
    assert np.linalg.norm(alpharl - linear) > 0.1 * np.linalg.norm(linear - truth.base)
    assert np.linalg.norm(alpharl - linear) > 0.1 * np.linalg.norm(alpharl - truth.base)


def test_both_methods_match_float64(stored: Run, tmp_path: Path) -> None:
    """AlphaRL and linear equal numpy and scikit-learn on a curved noisy run, in every dtype."""
    options = ("--target-step", f"{TARGET:g}", "--dtype", "float32")
    by_alpharl = predict(stored, tmp_path / "a", *options)
    by_line = predict(stored, tmp_path / "l", *options, "--method", "linear")
    for name in matrix_names(by_alpharl):
        truth = Truth(stored, name)
        assert truth.error(by_alpharl[name], truth.alpharl(TARGET)) < ALPHARL_TOLERANCE
        assert truth.error(by_line[name], truth.linear(TARGET)) < LINEAR_TOLERANCE


def test_prediction_is_rounded_once(stored: Run, tmp_path: Path) -> None:
    """What is stored by default is the fp32 prediction rounded to the last checkpoint's dtype."""
    exact = predict(stored, tmp_path / "f", "--target-step", "90", "--dtype", "float32")
    rounded = predict(stored, tmp_path / "r", "--target-step", "90")
    last = load_model(stored.folder(STEPS[-1]))
    for name, tensor in rounded.items():
        assert tensor.dtype == last[name].dtype
        assert torch.equal(tensor, exact[name].to(last[name].dtype))


ALPHARL_OPTIONS = {
    "no-rescale": ("--no-rescale",),
    "anchor": ("--anchor", "last"),
    "damping": ("--damping", "0.4"),
    "all": ("--no-rescale", "--anchor", "last", "--damping", "0.25"),
}


@pytest.mark.parametrize("options", ALPHARL_OPTIONS.values(), ids=ALPHARL_OPTIONS.keys())
def test_options_of_alpharl_match_float64(
    curved: Run, tmp_path: Path, options: tuple[str, ...]
) -> None:
    """Rescaling, anchor and damping do what methods are documented to do, alone and together."""
    found = predict(curved, tmp_path / "out", "--target-step", f"{TARGET:g}", *options)
    for name in matrix_names(found):
        truth = Truth(curved, name)
        rescale = "--no-rescale" not in options
        wanted = truth.alpharl(TARGET, rescale)
        if "--anchor" in options:
            wanted = truth.last + wanted - truth.alpharl(STEPS[-1], rescale)
        if "--damping" in options:
            wanted = truth.last + float(options[-1]) * (wanted - truth.last)
        assert truth.error(found[name], wanted) < ALPHARL_TOLERANCE


LINEAR_OPTIONS = {
    "scale": (("--scale", "1.7"), 1.7 * STEPS[-1], None),
    "small scale": (("--scale", "0.05"), 0.05 * STEPS[-1], None),
    "count": (("--target-step", "90", "--fit-last", "3"), 90.0, 2),
    "share": (("--target-step", "90", "--fit-last", "50%"), 90.0, 2),
}


@pytest.mark.parametrize(
    ("options", "target", "first"), LINEAR_OPTIONS.values(), ids=LINEAR_OPTIONS.keys()
)
def test_options_of_linear_match_float64(
    curved: Run, tmp_path: Path, options: tuple[str, ...], target: float, first: int | None
) -> None:
    """A multiple of the update, and a line through a window of a count or a share of the steps."""
    found = predict(curved, tmp_path / "out", "--method", "linear", *options)
    last = load_model(curved.folder(STEPS[-1]))
    for name, tensor in found.items():
        if "norm" in name:
            assert torch.equal(tensor, last[name])
        else:
            truth = Truth(curved, name)
            assert truth.error(tensor, truth.linear(target, first)) < LINEAR_TOLERANCE


def test_others_come_from_last_base_or_line(curved: Run, tmp_path: Path) -> None:
    """What AlphaRL does not predict is copied from either side, or put on the line, but norms."""
    options = ("--target-step", f"{TARGET:g}", "--others")
    found = {o: predict(curved, tmp_path / o, *options, o) for o in ("last", "base", "linear")}
    last, base = load_model(curved.folder(STEPS[-1])), load_model(curved.base)
    others = [name for name in last if name not in matrix_names(last)]
    assert {HEAD, NORM} <= set(others)
    for name in others:
        assert torch.equal(found["last"][name], last[name])
        assert torch.equal(found["base"][name], base[name])
        if "norm" in name:
            assert torch.equal(found["linear"][name], last[name])
        else:
            truth = Truth(curved, name)
            assert truth.error(found["linear"][name], truth.linear(TARGET)) < LINEAR_TOLERANCE
    for name in matrix_names(last):
        assert torch.equal(found["last"][name], found["base"][name])
        assert torch.equal(found["last"][name], found["linear"][name])


def test_score_as_response_matches_float64(curved: Run, tmp_path: Path) -> None:
    """With --target-score AlphaRL fits on the scores, and linear aims at the step of their line."""
    scores = tmp_path / "scores.csv"
    rows = (f"{step},{score}" for step, score in zip(STEPS, SCORES, strict=True))
    scores.write_text("\n".join(["step,accuracy", *rows]))
    options = ("--scores", str(scores), "--target-score", "0.95")
    by_alpharl = predict(curved, tmp_path / "a", *options)
    by_line = predict(curved, tmp_path / "l", *options, "--method", "linear")
    slope, intercept = np.polyfit(STEPS, SCORES, 1)
    step = (0.95 - intercept) / slope
    for name in matrix_names(by_alpharl):
        truth = Truth(curved, name)
        wanted = truth.alpharl(0.95, responses=SCORES)
        assert truth.error(by_alpharl[name], wanted) < ALPHARL_TOLERANCE
        assert truth.error(by_line[name], truth.linear(step)) < LINEAR_TOLERANCE


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_dtype_is_what_transformers_loads(curved: Run, tmp_path: Path, dtype: str) -> None:
    """--dtype casts all floating tensors and says so in config.json, the only file edited."""
    predict(curved, tmp_path / "out", "--target-step", "90", "--dtype", dtype)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config == {**model_config(), "dtype": dtype}
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto")
    stored = load_model(tmp_path / "out")
    for name, parameter in model.named_parameters():
        assert str(parameter.dtype) == str(stored[name].dtype) == f"torch.{dtype}"
        assert torch.equal(parameter, stored[name])
    tokens = model.generate(torch.tensor([[1, 5, 7]]), max_new_tokens=4, do_sample=False)
    assert tokens.shape[1] > 3


def test_without_dtype_config_is_copied_as_it_is(curved: Run, tmp_path: Path) -> None:
    """Files beside the weights are the last checkpoint's bytes."""
    predict(curved, tmp_path / "out", "--target-step", "90")
    copied = (tmp_path / "out" / "config.json").read_bytes()
    assert copied == (curved.folder(STEPS[-1]) / "config.json").read_bytes()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--target-step", "3"), "lies before the history"),
        (("--target-step", "3", "--method", "linear"), "lies before the history"),
        (("--target-score", "0.9"), "--scores"),
        (("--target-step", "50", "--steps", "40"), "at least 2 checkpoints"),
        (("--target-step", "50", "--method", "linear", "--fit-last", "1"), "needs two"),
        (("--target-step", "50", "--include", "nothing"), "--include"),
        (("--target-step", "1e300", "--force"), "not finite"),
    ],
)
def test_what_has_no_answer_is_one_line(
    curved: Run, tmp_path: Path, options: tuple[str, ...], words: str
) -> None:
    """Targets, windows and scopes without an answer: exit 1, one line, no output."""
    line = fail("predict", *curved.arguments("-o", str(tmp_path / "out"), *options))
    assert words in line
    assert not (tmp_path / "out").exists()


def test_interpolation_is_told_and_done(curved: Run, tmp_path: Path) -> None:
    """A target inside the history is predicted, with a note."""
    result = succeed(
        "predict", *curved.arguments("-o", str(tmp_path / "out"), "--target-step", "20")
    )
    assert "interpolation" in result.stderr
    found = load_model(tmp_path / "out")
    truth = Truth(curved, Q_PROJ)
    assert truth.error(found[Q_PROJ], truth.alpharl(20)) < ALPHARL_TOLERANCE


def test_independent_deltas_have_no_quality(tmp_path: Path) -> None:
    """Deltas that are drawn anew at every step are not predictable, and the manifest says so."""
    steps = (10, 20, 30, 40, 50, 60)

    def at(step: int) -> dict[str, Tensor]:
        source = torch.Generator().manual_seed(step)
        base = curved_run(steps)(0)
        if step == 0:
            return dict(base)
        return {
            n: w + 1e-5 * step * torch.randn(w.shape, generator=source) for n, w in base.items()
        }

    run = write_run(tmp_path, steps, at)
    predict(run, tmp_path / "out", "--target-step", "90")
    manifest = json.loads((tmp_path / "out" / "alpharl.json").read_text())
    q2 = [t["q2_step"] for t in manifest["tensors"] if t["action"] == "predicted"]
    assert len(q2) == len(matrix_names(load_model(run.base)))
    assert np.median(q2) < 0.2


def bending(step: int) -> dict[str, Tensor]:
    """Three matrices of 90 k entries whose direction turns on the way; step 40 is the last."""
    tensors = {}
    for i, shape in enumerate(((300, 300), (100, 900), (450, 200))):
        source = generator(i)
        base = 0.05 * torch.randn(shape, generator=source)
        first, second = (torch.randn(shape, generator=source) for _ in range(2))
        size = 1e-3 * step / 40
        tensors[f"model.layers.{i}.mlp.up_proj.weight"] = base + size * (first + second * step / 40)
    return tensors


def pooled_cosine(run: Run, middle: int, share: float) -> tuple[float, int]:
    """Cosine of the update's two halves, and how many entries: the smallest |W_0| per matrix."""
    weights = [load_model(f) for f in (run.base, run.folder(middle), run.folder(run.steps[-1]))]
    firsts, seconds = [], []
    for name in weights[0]:
        base, mid, last = (as_float64(w[name]).ravel() for w in weights)
        chosen = np.argsort(np.abs(base), kind="stable")[: round(share * base.size)]
        firsts.append((mid - base)[chosen])
        seconds.append((last - mid)[chosen])
    first, second = np.concatenate(firsts), np.concatenate(seconds)
    cosine = first @ second / np.linalg.norm(first) / np.linalg.norm(second)
    return float(cosine), len(first)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_trust_is_read_on_the_smallest_weights(tmp_path: Path, dtype: torch.dtype) -> None:
    """Manifest, extract and report tell the cosine that numpy finds on 2 % of the entries."""
    run = write_run(tmp_path, (8, 18, 31, 40), bending, dtype=dtype)
    predict(run, tmp_path / "out", "--target-step", "60")
    trust = json.loads((tmp_path / "out" / "alpharl.json").read_text())["trust"]
    cosine, num_entries = pooled_cosine(run, 18, 0.02)
    assert num_entries >= 4000
    assert trust["middle_step"] == 18
    assert trust["share_of_entries"] == pytest.approx(0.02, rel=1e-3)
    assert trust["cosine"] == pytest.approx(cosine, abs=1e-5)
    assert trust["cosine_all_entries"] == pytest.approx(pooled_cosine(run, 18, 1)[0], abs=1e-5)
    assert 0.85 < cosine < 0.95
    assert trust["cap"] == pytest.approx(1 + 1.5 * (cosine - 0.85) / 0.10, abs=1e-4)
    assert trust["requested"] == 1.5
    succeed("extract", *run.arguments("-o", str(tmp_path / "f")))
    extracted = json.loads((tmp_path / "f" / "alpharl.json").read_text())["trust"]
    reported = json.loads(succeed("report", *run.arguments("--json")).stdout)["summary"]["trust"]
    assert extracted == reported
    for key in ("cosine", "cosine_all_entries", "share_of_entries", "floor", "speed", "cap"):
        assert extracted[key] == trust[key]


def broken(run: Run, where: Path, step: int, name: str, value: float) -> Run:
    """Copy a run with one entry of one tensor changed."""
    deltas = {0: load_model(run.base), **{s: load_model(run.folder(s)) for s in run.steps}}
    deltas[step][name].view(-1)[5] = value
    return write_run(where, run.steps, lambda s: deltas[s])


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("command_name", ["predict", "extract"])
def test_not_finite_is_named(curved: Run, tmp_path: Path, value: float, command_name: str) -> None:
    """NaN or Inf in a matrix stops the run; the line names checkpoint, tensor and index."""
    run = broken(curved, tmp_path, 24, Q_PROJ, value)
    more = ("--target-step", "90") if command_name == "predict" else ()
    line = fail(command_name, *run.arguments("-o", str(tmp_path / "out"), *more))
    assert str(run.folder(24)) in line
    assert Q_PROJ in line
    assert "[0, 5]" in line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("step", "name"), [(STEPS[-1], NORM), (0, Q_PROJ)])
def test_not_finite_in_a_copy_or_the_base_is_named(
    curved: Run, tmp_path: Path, step: int, name: str
) -> None:
    """The same holds for tensors that are only copied, and for the base."""
    run = broken(curved, tmp_path, step, name, float("nan"))
    line = fail("predict", *run.arguments("-o", str(tmp_path / "out"), "--target-step", "90"))
    assert str(run.folder(step) if step else run.base) in line
    assert name in line
    assert "5]" in line


def test_wrong_base_stops_and_force_goes_on(curved: Run, tmp_path: Path) -> None:
    """Another model as base is refused before anything is computed; --force takes it."""
    other = write_run(tmp_path, STEPS, curved_run(STEPS, seed=9))
    mixed = Run(curved.root, other.base, STEPS)
    options = ("-o", str(tmp_path / "out"), "--target-step", "90")
    line = fail("predict", *mixed.arguments(*options))
    assert "does not look like the base" in line
    assert "--force" in line
    assert command("predict", *mixed.arguments(*options, "--force")).exit_code == 0
