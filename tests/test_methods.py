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
from alpharl_hub.methods import METHODS, Clock, MethodOptions, make_method, relex
from alpharl_hub.methods.correction import Rounder, Rounding, add_roundings, combine
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


def dense(found):
    return found if isinstance(found, torch.Tensor) else found.dense()


def relative_error(found, expected):
    found = dense(found)
    return np.linalg.norm(found.double().numpy() - expected) / np.linalg.norm(expected)


def test_the_registry_names_papers_and_needs_no_torch():
    """Help texts and option parsing read it; loading torch there would cost a second."""
    assert {name: info.url for name, info in METHODS.items()} == {
        "alpharl": "https://arxiv.org/abs/2510.00553",
        "relex": "https://arxiv.org/abs/2605.21468",
        "linear": "https://arxiv.org/abs/2601.04537",
        "ols": "https://arxiv.org/abs/2601.04537",
        "average": "https://arxiv.org/abs/2306.03241",
    }
    fields = MethodOptions.__dataclass_fields__
    assert all(option in fields for info in METHODS.values() for option in info.options)
    code = "import sys, alpharl_hub.methods; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("rescale", [True, False])
def test_alpharl_matches_float64_on_a_curved_noisy_run(rescale):
    """Within a thousandth of the update, where it differs from the straight line by a tenth."""
    deltas, target = curved_run(), 170
    clock = Clock(STEPS)
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
    clock = Clock(STEPS, scores, by_score=True)
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
    for name in ("alpharl", "relex", "linear", "ols"):
        for options in (MethodOptions(), MethodOptions(rescale=False)):
            fit = fitted(make_method(name, Clock(STEPS), options), deltas)
            for target in (500, 85, 40):
                assert relative_error(fit.predict_delta(target), target * direction) < 1e-5


@pytest.mark.parametrize("rank", [1, 3])
def test_ready_factors_predict_the_same_bytes(rank):
    """From an extract folder of any rank, or in one pass: the same prediction to the bit."""
    deltas = curved_run(seed=2)
    method = make_method("alpharl", Clock(STEPS), MethodOptions())
    builder = FactorBuilder(NAME, rank)
    for delta in deltas:
        builder.observe(as_fp32(delta))
    ready = method.from_factors(builder.finish(), torch.device("cpu"), builder.certified)
    direct = fitted(method, deltas)
    assert torch.equal(dense(ready.predict_delta(200)), dense(direct.predict_delta(200)))
    assert ready.quality() == direct.quality()


def relex64(deltas, responses, target, rank):
    """numpy's SVD of the stacked deltas and numpy's line through each direction's coefficients."""
    rows = np.array([delta.ravel() for delta in deltas])
    v = np.linalg.svd(rows, full_matrices=False)[2][:rank]
    lines = [np.polyfit(responses, rows @ direction, 1) for direction in v]
    hat = sum(
        np.polyval(line, target) * direction for line, direction in zip(lines, v, strict=True)
    )
    return hat.reshape(deltas[0].shape)


def ols64(deltas, responses, target):
    """numpy's line through every single entry."""
    rows = np.array([delta.ravel() for delta in deltas])
    return np.polyval(np.polyfit(responses, rows, 1), target).reshape(deltas[0].shape)


def with_a_zero(deltas):
    return [0 * deltas[0], *deltas[1:]]


@pytest.mark.parametrize("change", [list, with_a_zero], ids=["all move", "first is zero"])
@pytest.mark.parametrize("fit_last", [None, 4, 0.5])
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_relex_matches_the_svd_of_the_trajectory(rank, fit_last, change):
    """To 1e-4 of the update's norm, at uneven steps, of whole histories and of windows."""
    deltas, target = change(curved_run(seed=7)), 170
    method = make_method("relex", Clock(STEPS), MethodOptions(rank=rank, fit_last=fit_last))
    first = method.observed[0]
    assert first == {None: 0, 4: 3, 0.5: 4}[fit_last]
    expected = relex64(deltas[first:], STEPS[first:], target, rank)
    assert relative_error(fitted(method, deltas).predict_delta(target), expected) < 1e-4


@pytest.mark.parametrize("change", [list, with_a_zero], ids=["all move", "first is zero"])
@pytest.mark.parametrize("fit_last", [None, 2, 4, 0.5])
def test_ols_is_the_line_through_every_entry(fit_last, change):
    """To 1e-4 of the update's norm, against polyfit of every entry by itself."""
    deltas, target = change(curved_run(seed=8)), 170
    method = make_method("ols", Clock(STEPS), MethodOptions(fit_last=fit_last))
    first = method.observed[0]
    expected = ols64(deltas[first:], STEPS[first:], target)
    assert relative_error(fitted(method, deltas).predict_delta(target), expected) < 1e-4


@pytest.mark.parametrize(("fit_last", "first"), [(None, 4), (1, 6), (3, 4), (1.0, 0)])
def test_average_is_the_mean_of_the_window(fit_last, first):
    """Of the recent half unless told otherwise; the response makes no difference."""
    deltas = curved_run(seed=9)
    method = make_method("average", Clock(STEPS), MethodOptions(fit_last=fit_last))
    assert method.observed == tuple(range(first, 7))
    fit = fitted(method, deltas)
    for target in (85, 500):
        assert relative_error(fit.predict_delta(target), np.mean(deltas[first:], axis=0)) < 1e-6


def test_another_clock_replaces_the_steps():
    """With times given, lines are drawn over the times."""
    deltas, times = curved_run(seed=10), (5.0, 9.5, 25.0, 28.0, 40.0, 46.0, 47.5)
    for name, expected in (
        ("ols", ols64(deltas, times, 60.0)),
        ("relex", relex64(deltas, times, 60.0, 1)),
        ("linear", deltas[-1] * 60.0 / 47.5),
    ):
        fit = fitted(make_method(name, Clock(STEPS, times_T=times), MethodOptions()), deltas)
        assert relative_error(fit.predict_delta(60.0), expected) < 1e-4


def test_a_tensor_that_never_moves_is_predicted_not_to_move():
    """Zero deltas everywhere: zero, not NaN, of every method."""
    zeros = [np.zeros((4, 3))] * len(STEPS)
    for name in METHODS:
        assert not dense(
            fitted(make_method(name, Clock(STEPS), MethodOptions()), zeros).predict_delta(200)
        ).any()


def test_runs_of_entries_add_up_to_the_bit():
    """The products of a tensor seen in runs are those of the tensor seen whole."""
    shape = (3, relex.RUN_ELEMENTS + 4321)
    source = torch.Generator().manual_seed(3)
    deltas = [torch.randn(shape, generator=source) for _ in range(3)]
    whole = relex.gram_of(deltas)
    rows = [delta.view(-1) for delta in deltas]
    parts = [
        relex.gram_of_run([row[run].clone() for row in rows]) for run in relex.runs(rows[0].numel())
    ]
    assert len(parts) == 4
    assert torch.equal(whole, parts[0] + parts[1] + parts[2] + parts[3])
    expected = torch.stack(rows).double() @ torch.stack(rows).double().T
    assert torch.allclose(whole, expected, rtol=1e-5, atol=1e-5 * float(expected.max()))


def alpharl64_of_rank(deltas, responses, target, rank, rescale):
    """Rank R in float64: every triplet with a PLS of its own, rescaled together."""
    triplets = [np.linalg.svd(delta) for delta in deltas]
    hat = 0
    for r in range(rank):
        later, rows = None, []
        for delta, (u, s, _) in reversed(list(zip(deltas, triplets, strict=True))):
            column = u[:, r] if later is None else u[:, r] * np.sign(u[:, r] @ later)
            later = column
            scale = np.linalg.norm(delta) / np.linalg.norm(s[:rank]) if rescale else 1
            rows.insert(0, scale * s[r] * column)
        responses = np.array(responses, dtype=np.float64)
        model = PLSRegression(n_components=1).fit(np.array(rows), responses)
        standard = (target - responses.mean()) / responses.std(ddof=1)
        x_hat = model.inverse_transform(np.array([[standard / model.y_loadings_[0, 0]]]))[0]
        hat = hat + np.outer(x_hat, triplets[-1][2][r])
    return hat


def separated_run(seed):
    """Three directions of one strength each, far apart at every step, so that no two ever swap."""
    rng = np.random.default_rng(seed)
    u = np.linalg.qr(rng.normal(size=(50, 3)))[0]
    v = np.linalg.qr(rng.normal(size=(40, 3)))[0]
    return [
        (u * [9 * s, 3 * s * (1 + 0.1 * math.sin(s)), 0.8 * s]) @ v.T
        + 0.02 * s / 85 * rng.normal(size=(50, 40))
        for s in STEPS
    ]


@pytest.mark.parametrize("rescale", [True, False])
@pytest.mark.parametrize("rank", [2, 3])
def test_alpharl_of_higher_rank_matches_float64(rank, rescale):
    """Every triplet has its own fit; together they have the norm of the whole delta."""
    deltas, target = separated_run(11), 150
    options = MethodOptions(rank=rank, rescale=rescale)
    fit = fitted(make_method("alpharl", Clock(STEPS), options), deltas)
    expected = alpharl64_of_rank(deltas, STEPS, target, rank, rescale)
    assert fit.predict_delta(target).rank == rank
    assert relative_error(fit.predict_delta(target), expected) < 1e-3


def test_alpharl_without_the_residual_knows_the_part_it_replaces():
    """`kept_part` is the rank-R part of the last delta, as numpy's SVD has it."""
    deltas = separated_run(12)
    options = MethodOptions(rank=2, keep_residual=True)
    fit = fitted(make_method("alpharl", Clock(STEPS), options), deltas)
    u, s, v = np.linalg.svd(deltas[-1])
    assert relative_error(fit.kept_part(), (u[:, :2] * s[:2]) @ v[:2]) < 1e-4
    expected = alpharl64_of_rank(deltas, STEPS, 150, 2, rescale=False)
    assert relative_error(fit.predict_delta(150), expected) < 1e-3


def test_zero_deltas_are_rows_of_zeros_and_give_no_nan():
    """Early bf16 deltas may vanish; a matrix that never moves is predicted not to move."""
    deltas = curved_run(seed=3)
    deltas[0] = 0 * deltas[0]
    method = make_method("alpharl", Clock(STEPS), MethodOptions())
    assert torch.isfinite(dense(fitted(method, deltas).predict_delta(200))).all()
    frozen = fitted(method, [0 * delta for delta in deltas])
    assert not dense(frozen.predict_delta(200)).any()
    assert frozen.quality().q2_step is None


def test_scopes_differ():
    """alpharl predicts matrices in scope; linear everything but the norms."""
    clock = Clock(STEPS)
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
    method = make_method("linear", Clock(STEPS), MethodOptions(fit_last=fit_last))
    assert method.observed == (first, 6)
    assert method.num_deltas_held == 2
    slope = (deltas[-1] - deltas[first]) / (STEPS[-1] - STEPS[first])
    fit = fitted(method, deltas)
    assert relative_error(fit.predict_delta(130), deltas[-1] + (130 - 85) * slope) < 1e-6
    assert torch.equal(dense(fit.predict_delta(85)), as_fp32(deltas[-1]))


def test_linear_scale_is_exact_and_reads_one_checkpoint():
    """W_0 + a D_T: the detour over the step a s_T does not show in fp32."""
    deltas = curved_run(seed=5)
    clock = Clock((7, 21, 49))
    method = make_method("linear", clock, MethodOptions(scale=1.1))
    assert method.observed == (2,)
    fit = fitted(method, deltas[:3])
    assert torch.equal(dense(fit.predict_delta(1.1 * 49)), as_fp32(deltas[2]) * 1.1)
    assert torch.equal(dense(fit.predict_delta(clock.last)), as_fp32(deltas[2]))
    assert fit.quality() is None


@pytest.mark.parametrize(
    ("name", "clock", "options", "words"),
    [
        ("alpharl", Clock((10,)), MethodOptions(), "at least 2 checkpoints"),
        ("alpharl", Clock((1, 2), (0.5, 0.5), True), MethodOptions(), "every checkpoint"),
        ("relex", Clock((10,)), MethodOptions(), "at least 2 checkpoints"),
        ("relex", Clock((10, 20)), MethodOptions(rank=3), "at least 3 checkpoints"),
        ("ols", Clock((10,)), MethodOptions(), "at least 2 checkpoints"),
        ("ols", Clock((10, 20)), MethodOptions(fit_last=1), "needs two"),
        ("average", Clock((10, 20)), MethodOptions(fit_last=3), "needs one"),
        ("linear", Clock((10, 20)), MethodOptions(fit_last=1), "needs two"),
        ("linear", Clock((10, 20)), MethodOptions(fit_last=3), "needs two"),
        ("linear", Clock((10, 20)), MethodOptions(fit_last=0.4), "needs two"),
        ("linear", Clock((10, 20)), MethodOptions(fit_last=1.5), "share"),
        ("linear", Clock((10, 20)), MethodOptions(scale=2.0, fit_last=2), "exclude"),
        ("linear", Clock((10, 20)), MethodOptions(scale=-1.0), "above 0"),
    ],
)
def test_what_has_no_answer_is_refused_before_anything_is_read(name, clock, options, words):
    """Too short a history, a flat score, an empty window."""
    with pytest.raises(FitError, match=words):
        make_method(name, clock, options)


@pytest.mark.parametrize(
    "arguments",
    [
        ((),),
        ((10, 10),),
        ((20, 10),),
        ((10, 20), (0.5,)),
        ((10, 20), None, True),
        ((10, 20), None, False, (1.0,)),
    ],
)
def test_a_clock_without_order_is_a_value_error(arguments):
    """A caller's mistake, not a user's."""
    with pytest.raises(ValueError, match=r"steps|score"):
        Clock(*arguments)


def combined(base, last, hat, hat_at_last, damping):
    """What is predicted; the update's memory, which the result is written over, is a copy's."""
    return combine(base, last, hat.clone(), hat_at_last, damping)


def test_anchor_comes_before_damping():
    """W_T + d (W_T + D_hat(s*) - D_hat(s_T) - W_T); without anchor W_T + d (W_0 + D_hat - W_T)."""
    rng = np.random.default_rng(6)
    base, last, hat, hat_at_last = rng.normal(size=(4, 5, 3))
    tensors = [as_fp32(x) for x in (base, last, hat, hat_at_last)]
    at_base, at_last = combined(*tensors[:3], None, 1.0), combined(*tensors, 1.0)
    np.testing.assert_allclose(at_base, base + hat, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(at_last, last + hat - hat_at_last, rtol=1e-5, atol=1e-6)
    damped = combined(*tensors[:3], None, 0.25)
    np.testing.assert_allclose(damped, last + 0.25 * (base + hat - last), rtol=1e-5, atol=1e-6)
    damped = combined(*tensors, 0.25)
    np.testing.assert_allclose(damped, last + 0.25 * (hat - hat_at_last), rtol=1e-5, atol=1e-6)
    # An increment of zero keeps the last checkpoint to the bit.
    assert torch.equal(combined(*tensors[:2], tensors[2], tensors[2], 1.0), tensors[1])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("is_base_rounded", [True, False])
def test_rounding_is_done_once_and_measured(dtype, is_base_rounded):
    """The stored values are torch's own rounding, and the sums those of float64."""
    rng = np.random.default_rng(7)
    base = as_fp32(0.02 * rng.normal(size=(300, 200))).to(dtype).float()
    weights = base + as_fp32(1e-5 * rng.normal(size=(300, 200)))
    kept = weights.clone()
    rounded = torch.empty(300, 200, dtype=dtype)
    rounder = Rounder(dtype, NAME, is_base_rounded)
    for run in (slice(0, 50_000), slice(50_000, 60_000)):
        runs = [tensor.view(-1)[run] for tensor in (weights, base, rounded)]
        rounder.round(*runs, torch.empty_like(runs[0]))
    rounding = rounder.finish()
    assert torch.equal(rounded, kept.to(dtype))
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
    rounder = Rounder(torch.float16, NAME)
    weights, base = torch.full((4,), 7e4), torch.zeros(4)
    rounder.round(weights, base, torch.empty(4, dtype=torch.float16), torch.empty(4))
    with pytest.raises(FitError, match=NAME.replace(".", r"\.") + ".*float16"):
        rounder.finish()
