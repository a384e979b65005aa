"""Methods and what follows them, against the formulas in float64 and scikit-learn's PLS."""

from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from sklearn.cross_decomposition import PLSRegression

from alpharl_hub.errors import FitError
from alpharl_hub.methods import METHODS, Clock, MethodOptions, make_method
from alpharl_hub.methods.correction import Rounding, add_roundings, combine, round_to
from alpharl_hub.numerics.factors import FactorBuilder

NAME = "model.layers.0.mlp.up_proj.weight"
STEPS = (5, 10, 30, 35, 60, 80, 85)


def as_fp32(values):
    return torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32))


def fitted(method, deltas):
    """Let a method see the deltas it asks for, in memory that is used again for each."""
    fit = method.fit(NAME, deltas[0].shape)
    scratch = torch.empty(deltas[0].shape)
    for position in method.observed:
        fit.observe(scratch.copy_(as_fp32(deltas[position])))
    return fit


def curved_run(noise=0.1, seed=0, rows=60, columns=48):
    """A rank-3 run whose parts grow at different speeds, with noise of a tenth of its norm."""
    rng = np.random.default_rng(seed)
    u = np.linalg.qr(rng.normal(size=(rows, 3)))[0]
    v = np.linalg.qr(rng.normal(size=(columns, 3)))[0]
    deltas = []
    for step in STEPS:
        s = step / STEPS[-1]
        delta = (u * [3 * s, 2 * s**2, 1.5 * math.sqrt(s)]) @ v.T
        disturbance = rng.normal(size=delta.shape)
        disturbance *= noise * np.linalg.norm(delta) / np.linalg.norm(disturbance)
        deltas.append(1e-2 * (delta + disturbance))
    return deltas


def alpharl64(deltas, responses, target, rescale):
    """The method in float64: numpy's SVD, scikit-learn's PLS and its inverse_transform."""
    triplets = [np.linalg.svd(delta) for delta in deltas]
    u_T, v_T = triplets[-1][0][:, 0], triplets[-1][2][0]
    if u_T[np.argmax(np.abs(u_T))] < 0:
        u_T, v_T = -u_T, -v_T
    rows, later = [], u_T
    for delta, (u, s, _) in reversed(list(zip(deltas, triplets, strict=True))):
        column = u[:, 0] * np.sign(u[:, 0] @ later)
        rows.insert(0, column * (np.linalg.norm(delta) if rescale else s[0]))
        later = column
    responses = np.array(responses, dtype=np.float64)
    model = PLSRegression(n_components=1).fit(np.array(rows), responses)
    standard = (target - responses.mean()) / responses.std(ddof=1)
    x_hat = model.inverse_transform(np.array([[standard / model.y_loadings_[0, 0]]]))[0]
    return np.outer(x_hat, v_T)


def relative_error(found, expected):
    return np.linalg.norm(found.double().numpy() - expected) / np.linalg.norm(expected)


def test_the_registry_names_papers_and_needs_no_torch():
    """Help texts and option parsing read it; loading torch there would cost a second."""
    assert list(METHODS) == ["alpharl", "linear"]
    assert METHODS["alpharl"].url == "https://arxiv.org/abs/2510.00553"
    assert METHODS["linear"].url == "https://arxiv.org/abs/2601.04537"
    fields = MethodOptions.__dataclass_fields__
    assert all(option in fields for info in METHODS.values() for option in info.options)
    code = "import sys, alpharl_hub.methods; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("rescale", [True, False])
def test_alpharl_matches_float64_on_a_curved_noisy_run(rescale):
    """Within a thousandth of the update, where it differs from the straight line by a tenth."""
    deltas, target = curved_run(), 170
    clock = Clock(STEPS, target)
    alpharl = fitted(make_method("alpharl", clock, MethodOptions(rescale=rescale)), deltas)
    linear = fitted(make_method("linear", clock, MethodOptions()), deltas)
    expected = alpharl64(deltas, STEPS, target, rescale)
    straight = deltas[-1] * (target / STEPS[-1])
    assert np.linalg.norm(expected - straight) > 0.1 * np.linalg.norm(straight)
    assert relative_error(alpharl.predict_delta(target), expected) < 1e-3
    assert relative_error(linear.predict_delta(target), straight) < 1e-6


def test_alpharl_takes_a_score_as_the_response():
    """The paper's way: rows on scores, inverted at the target score; quality on both."""
    deltas, scores = curved_run(), (0.1, 0.15, 0.3, 0.33, 0.5, 0.62, 0.6)
    clock = Clock(STEPS, 0.9, scores, by_score=True)
    fit = fitted(make_method("alpharl", clock, MethodOptions()), deltas)
    for target in (0.9, 0.6):
        expected = alpharl64(deltas, scores, target, rescale=True)
        assert relative_error(fit.predict_delta(target), expected) < 1e-3
    quality = fit.quality()
    assert quality.q2_step > 0.9
    assert quality.q2_score > 0.9
    assert quality.certified


def test_a_planted_straight_rank_1_line_is_recovered_to_rounding():
    """Uneven steps, an exact line: either method, at any target, gives the point on the line."""
    rng = np.random.default_rng(1)
    direction = np.outer(rng.normal(size=40), rng.normal(size=30)) * 1e-4
    deltas = [step * direction for step in STEPS]
    for name in METHODS:
        for options in (MethodOptions(), MethodOptions(rescale=False)):
            fit = fitted(make_method(name, Clock(STEPS, 500), options), deltas)
            for target in (500, 85, 40):
                assert relative_error(fit.predict_delta(target), target * direction) < 1e-5


@pytest.mark.parametrize("rank", [1, 3])
def test_ready_factors_predict_the_same_bytes(rank):
    """From an extract folder of any rank, or in one pass: the same prediction to the bit."""
    deltas = curved_run(seed=2)
    method = make_method("alpharl", Clock(STEPS, 200), MethodOptions())
    builder = FactorBuilder(NAME, rank)
    for delta in deltas:
        builder.observe(as_fp32(delta))
    ready = method.from_factors(builder.finish(), torch.device("cpu"), builder.certified)
    direct = fitted(method, deltas)
    assert torch.equal(ready.predict_delta(200), direct.predict_delta(200))
    assert ready.quality() == direct.quality()


def test_zero_deltas_are_rows_of_zeros_and_give_no_nan():
    """Early bf16 deltas may vanish; a matrix that never moves is predicted not to move."""
    deltas = curved_run(seed=3)
    deltas[0] = 0 * deltas[0]
    method = make_method("alpharl", Clock(STEPS, 200), MethodOptions())
    assert torch.isfinite(fitted(method, deltas).predict_delta(200)).all()
    frozen = fitted(method, [0 * delta for delta in deltas])
    assert not frozen.predict_delta(200).any()
    assert frozen.quality().q2_step is None


def test_scopes_differ():
    """alpharl predicts matrices in scope; linear everything but the norms."""
    clock = Clock(STEPS, 200)
    alpharl = make_method("alpharl", clock, MethodOptions())
    assert alpharl.covers(NAME, (4, 4), True)
    assert not alpharl.covers("lm_head.weight", (4, 4), False)
    linear = make_method("linear", clock, MethodOptions())
    for name in (NAME, "model.embed_tokens.weight", "model.layers.0.self_attn.q_proj.bias"):
        assert linear.covers(name, (4,), False)
    for name in (
        "model.norm.weight",
        "model.layers.0.input_layernorm.weight",
        "model.layers.3.self_attn.q_norm.weight",
        "transformer.h.0.ln_1.weight",
        "encoder.layer.0.output.LayerNorm.bias",
    ):
        assert not linear.covers(name, (4,), False)


@pytest.mark.parametrize(
    ("fit_last", "first"), [(2, 5), (4, 3), (7, 0), (0.5, 4), (0.1, 5), (1.0, 0)]
)
def test_linear_with_a_window_goes_through_its_first_checkpoint(fit_last, first):
    """W_T + (s* - s_T)/(s_T - s_m) (W_T - W_m), m the first of K, or within a share of the span."""
    deltas = curved_run(seed=4)
    method = make_method("linear", Clock(STEPS, 130), MethodOptions(fit_last=fit_last))
    assert method.observed == (first, 6)
    assert method.num_deltas_held == 2
    slope = (deltas[-1] - deltas[first]) / (STEPS[-1] - STEPS[first])
    fit = fitted(method, deltas)
    assert relative_error(fit.predict_delta(130), deltas[-1] + (130 - 85) * slope) < 1e-6
    assert torch.equal(fit.predict_delta(85), as_fp32(deltas[-1]))


def test_linear_scale_is_exact_and_reads_one_checkpoint():
    """W_0 + a D_T: the detour over the step a s_T does not show in fp32."""
    deltas = curved_run(seed=5)
    clock = Clock((7, 21, 49), 1.1 * 49)
    method = make_method("linear", clock, MethodOptions(scale=1.1))
    assert method.observed == (2,)
    fit = fitted(method, deltas[:3])
    assert torch.equal(fit.predict_delta(clock.target), as_fp32(deltas[2]) * 1.1)
    assert torch.equal(fit.predict_delta(clock.last), as_fp32(deltas[2]))
    assert fit.quality() is None


@pytest.mark.parametrize(
    ("name", "clock", "options", "words"),
    [
        ("alpharl", Clock((10,), 20), MethodOptions(), "at least 2 checkpoints"),
        ("alpharl", Clock((10, 20), 9), MethodOptions(), "before the history"),
        ("alpharl", Clock((1, 2), 0.9, (0.5, 0.5), True), MethodOptions(), "every checkpoint"),
        ("linear", Clock((10, 20), 9), MethodOptions(), "before the history"),
        ("linear", Clock((10, 20), 40), MethodOptions(fit_last=1), "needs two"),
        ("linear", Clock((10, 20), 40), MethodOptions(fit_last=3), "needs two"),
        ("linear", Clock((10, 20), 40), MethodOptions(fit_last=0.4), "needs two"),
        ("linear", Clock((10, 20), 40), MethodOptions(fit_last=1.5), "share"),
        ("linear", Clock((10, 20), 40), MethodOptions(scale=2.0, fit_last=2), "exclude"),
        ("linear", Clock((10, 20), -20), MethodOptions(scale=-1.0), "above 0"),
    ],
)
def test_what_has_no_answer_is_refused_before_anything_is_read(name, clock, options, words):
    """Too short a history, a target before it, a flat score, an empty window."""
    with pytest.raises(FitError, match=words):
        make_method(name, clock, options)


@pytest.mark.parametrize(
    "arguments",
    [
        ((), 10.0),
        ((10, 10), 20.0),
        ((20, 10), 30.0),
        ((10, 20), 30.0, (0.5,)),
        ((10, 20), 30.0, None, True),
    ],
)
def test_a_clock_without_order_is_a_value_error(arguments):
    """A caller's mistake, not a user's."""
    with pytest.raises(ValueError, match=r"steps|score"):
        Clock(*arguments)


def test_anchor_comes_before_damping():
    """W_T + d (W_T + D_hat(s*) - D_hat(s_T) - W_T); without anchor W_T + d (W_0 + D_hat - W_T)."""
    rng = np.random.default_rng(6)
    base, last, hat, hat_at_last = rng.normal(size=(4, 5, 3))
    tensors = [as_fp32(x) for x in (base, last, hat, hat_at_last)]
    at_base, at_last = combine(*tensors[:3], None, 1.0), combine(*tensors, 1.0)
    np.testing.assert_allclose(at_base, base + hat, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(at_last, last + hat - hat_at_last, rtol=1e-5, atol=1e-6)
    damped = combine(*tensors[:3], None, 0.25)
    np.testing.assert_allclose(damped, last + 0.25 * (base + hat - last), rtol=1e-5, atol=1e-6)
    damped = combine(*tensors, 0.25)
    np.testing.assert_allclose(damped, last + 0.25 * (hat - hat_at_last), rtol=1e-5, atol=1e-6)
    # An increment of zero keeps the last checkpoint to the bit.
    assert torch.equal(combine(*tensors[:2], tensors[2], tensors[2], 1.0), tensors[1])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_rounding_is_done_once_and_measured(dtype):
    """The stored values are torch's own rounding, and the sums those of float64."""
    rng = np.random.default_rng(7)
    base = as_fp32(0.02 * rng.normal(size=(300, 200))).to(dtype).float()
    weights = base + as_fp32(1e-5 * rng.normal(size=(300, 200)))
    kept = weights.clone()
    rounded, rounding = round_to(weights, dtype, base, NAME)
    assert rounded.dtype == dtype
    assert torch.equal(rounded, kept.to(dtype))
    assert torch.equal(weights, kept)
    lost = (rounded.double() - kept.double()).square().sum()
    update = (kept.double() - base.double()).square().sum()
    assert rounding.lost_squared == pytest.approx(float(lost), rel=1e-5, abs=1e-30)
    assert rounding.update_squared == pytest.approx(float(update), rel=1e-3)
    assert rounding.num_unchanged == int((rounded == base.to(dtype)).sum())
    assert rounding.num_entries == 60_000
    assert rounding.loss == pytest.approx(math.sqrt(float(lost / update)), rel=1e-3, abs=1e-9)


def test_rounding_is_pooled_by_sums_of_squares():
    """A tensor with a large update weighs more than one with a small one."""
    pooled = add_roundings([Rounding(1.0, 4.0, 1, 10), Rounding(0.0, 96.0, 5, 20)])
    assert pooled is not None
    assert pooled.loss == pytest.approx(0.1)
    assert pooled.unchanged == pytest.approx(0.2)
    assert add_roundings([]) is None
    assert Rounding(0.0, 0.0, 3, 3).loss is None


def test_a_prediction_that_overflows_names_the_tensor():
    """fp16 ends at 65504: a far target must not write infinities."""
    base = torch.zeros(2, 2)
    with pytest.raises(FitError, match=NAME.replace(".", r"\.") + ".*float16"):
        round_to(torch.full((2, 2), 7e4), torch.float16, base, NAME)
