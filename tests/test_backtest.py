"""Backtests: every error and cosine against float64, and verdicts of runs whose course is known."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from backtest_runs import (
    SHAPES,
    STEPS,
    Course,
    backtest_command,
    bending,
    bf16_spacing,
    distance,
    save,
    smallest,
    straight,
    turning_at,
    write,
)
from lora_models import merged_weights, write_adapters, write_base
from trajectories import as_float64, load_model, succeed, write_checkpoint

from alpharl_hub.backtesting.candidates import CHOICES

Matrices = Sequence[tuple[np.ndarray, Sequence[np.ndarray]]]


def answer(*arguments: str | Path) -> dict[str, Any]:
    """Backtest and read its JSON."""
    result = backtest_command(*arguments, "--json", "-q")
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def matrices_of(arguments: Sequence[str], steps: Sequence[int] = STEPS) -> Matrices:
    """Base and checkpoints of every matrix of a run as they are stored."""
    base = load_model(Path(arguments[2]))
    models = [load_model(Path(arguments[0]) / f"step_{step}") for step in steps]
    return [(as_float64(base[name]), [as_float64(m[name]) for m in models]) for name in SHAPES]


def cell(found: dict[str, Any], last: int, truth: int, method: str) -> dict[str, Any]:
    """One method's test."""
    (test,) = [m for m in truth_of(found, last, truth)["methods"] if m["method"] == method]
    return dict(test)


def truth_of(found: dict[str, Any], last: int, step: int) -> dict[str, Any]:
    """One truth of one window."""
    (window,) = [w for w in found["windows"] if w["direction"]["last_step"] == last]
    (truth,) = [t for t in window["truths"] if t["step"] == step]
    return dict(truth)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_errors_and_cosines_are_those_of_the_dense_predictions(
    tmp_path: Path, dtype: torch.dtype
) -> None:
    """All methods, on uneven steps, over all entries and over the smallest 2 %."""
    run = write(tmp_path, bending, dtype, noise=1e-5)
    found = answer(*run, "--fit-until", "50", "--fit-until", "64")
    matrices = matrices_of(run)
    assert [w["direction"]["last_step"] for w in found["windows"]] == [50, 64]
    for last, truth in ((50, 100), (64, 80), (64, 100)):
        fitted = range(STEPS.index(last) + 1)
        share = truth_of(found, last, truth)["share_of_entries"]
        assert share == pytest.approx(0.02, rel=1e-3)
        assert [m["method"] for m in truth_of(found, last, truth)["methods"]] == list(CHOICES)
        for method in CHOICES:
            test = cell(found, last, truth, method)
            for key, part in (("all_entries", None), ("resolved", 0.02)):
                error, cosine = distance(method, matrices, STEPS, fitted, STEPS.index(truth), part)
                near = 1e-3 if method == "alpharl" else 1e-5
                assert test[key]["error"] == pytest.approx(error, rel=near), (method, key)
                if method == "last":
                    assert test[key]["cosine"] is None
                else:
                    assert test[key]["cosine"] == pytest.approx(cosine, abs=near), (method, key)


def test_the_last_checkpoint_has_error_one(tmp_path: Path) -> None:
    """That is what 1 means, and nothing but rounding can lie between."""
    found = answer(*write(tmp_path, bending, torch.bfloat16), "--methods", "linear")
    for window in found["windows"]:
        for truth in window["truths"]:
            names = [m["method"] for m in truth["methods"]]
            assert names == ["last", "linear", "auto"]
            assert truth["methods"][0]["all_entries"]["error"] == pytest.approx(1, rel=1e-12)


def test_fewer_entries_are_read_where_rounding_is_coarse(tmp_path: Path) -> None:
    """The share is halved until rounding is under a tenth of the change; then, never too few."""
    run = write(tmp_path, straight, torch.bfloat16, size=1.5e-7)
    found = answer(*run, "--fit-until", "50", "--methods", "auto")
    matrices = matrices_of(run)
    seen = set()
    for step in (64, 80, 100):
        truth = truth_of(found, 50, step)
        last, there = STEPS.index(50), STEPS.index(step)

        def floor(share: float, last: int = last, there: int = there) -> float:
            spacing = moved = 0.0
            for base, weights in matrices:
                chosen = smallest(base, share)
                a, b = weights[last].ravel()[chosen], weights[there].ravel()[chosen]
                spacing += float(np.sum(bf16_spacing(a) ** 2 + bf16_spacing(b) ** 2))
                moved += float(np.sum((a - b) ** 2))
            return float(np.sqrt(spacing / 12 / moved))

        # Half a percent of 454,000 are under 4000.
        wanted = next((share for share in (0.02, 0.01) if floor(share) <= 0.1), None)
        seen.add(wanted)
        if wanted is None:
            assert truth["share_of_entries"] is None
            assert truth["methods"][-1]["resolved"] == {"error": None, "cosine": None}
            assert truth["methods"][-1]["all_entries"]["error"] is not None
        else:
            assert truth["share_of_entries"] == pytest.approx(wanted, rel=1e-3)
            assert truth["floor"] == pytest.approx(floor(wanted), rel=1e-6)
    assert seen == {None, 0.01, 0.02}


def test_the_direction_is_that_of_report_on_a_run_that_ends_there(tmp_path: Path) -> None:
    """Cosines, share and cap of a window are those of the same run cut at its last step."""
    run = write(tmp_path, bending, torch.bfloat16, noise=1e-5)
    # At the end of the window up to 64 one matrix is back where it was in its middle, at 30.
    source = torch.Generator().manual_seed(4)
    returning = (0.02 * torch.randn(400, 300, generator=source)).bfloat16()
    for step in (0, *STEPS):
        folder = Path(run[0]) / f"step_{step}" if step else Path(run[2])
        moved = 1.5 if step in (30, 64) else 1 + step / 90
        model = {**load_model(folder), "model.layers.1.mlp.up_proj.weight": returning * moved}
        save(folder, model)
    found = answer(*run, "--fit-until", "36", "--fit-until", "70%", "--methods", "auto", "--force")
    for window in (*found["windows"], {"direction": found["now"]}):
        direction = window["direction"]
        cut = ["--until", str(direction["last_step"]), "--json", "-q", "--force"]
        trust = json.loads(succeed("report", *run, *cut).stdout)["summary"]["trust"]
        for key in ("cosine", "cosine_all_entries", "share_of_entries", "floor", "cap"):
            assert direction[key] == pytest.approx(trust[key], rel=1e-5), key
        assert direction["middle_step"] == trust["middle_step"]
        assert direction["auto_ratio"] == pytest.approx(
            trust["cap"] if direction["num_checkpoints"] >= 4 and trust["cap"] >= 1.05 else 1
        )


def test_predict_itself_writes_what_was_tested(tmp_path: Path) -> None:
    """The model that `predict` makes of the cut run is as far from the truth as the table says."""
    run = write(tmp_path, bending, noise=1e-5)
    found = answer(*run, "--fit-until", "50", "--methods", "alpharl,relex")
    base, truth = load_model(Path(run[2])), load_model(Path(run[0]) / "step_100")
    last = load_model(Path(run[0]) / "step_50")
    for method in ("alpharl", "relex"):
        output = tmp_path / method
        cut = ["--until", "50", "--target-step", "100", "--method", method, "-o", str(output)]
        succeed("predict", *run, *cut)
        made = load_model(output)
        error = sum(float((made[n].double() - truth[n]).square().sum()) for n in SHAPES)
        move = sum(float((last[n].double() - truth[n]).square().sum()) for n in SHAPES)
        assert set(made) == set(base)
        wanted = (error / move) ** 0.5
        assert cell(found, 50, 100, method)["all_entries"]["error"] == pytest.approx(
            wanted, rel=1e-5
        )


@pytest.mark.parametrize("use_dora", [False, True])
def test_a_lora_run_reads_as_its_merged_weights(tmp_path: Path, use_dora: bool) -> None:
    """Adapters, and the whole models that peft merges from them, have the same errors."""
    base = write_base(tmp_path / "base")
    steps = (2, 5, 9, 12, 20)
    folders = [tmp_path / "lora" / f"step_{step}" for step in steps]
    write_adapters(base, folders, size=2e-4, use_dora=use_dora)
    for folder in folders:
        config = json.loads((base / "config.json").read_text())
        weights = merged_weights(base, folder)
        write_checkpoint(tmp_path / "merged" / folder.name, weights, config=config)
    tests = [
        answer(tmp_path / kind, "--base", base, "--fit-until", "12")["windows"][0]["truths"][0]
        for kind in ("lora", "merged")
    ]
    for adapted, merged in zip(tests[0]["methods"], tests[1]["methods"], strict=True):
        assert adapted["method"] == merged["method"]
        near = 1e-2 if merged["method"] == "alpharl" else 1e-4
        error = merged["all_entries"]["error"]
        assert adapted["all_entries"]["error"] == pytest.approx(error, rel=near)


@pytest.mark.parametrize(
    ("course", "noise", "code"),
    [(straight, 2e-5, "safe"), (turning_at(50), 5e-6, "keep"), (bending, 5e-6, "safe")],
    ids=["line with noise", "turns at half", "bends"],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_verdicts(
    tmp_path: Path, course: Course, noise: float, code: str, dtype: torch.dtype
) -> None:
    """A run that goes on is safe, one that turns is not, whatever it is stored in."""
    found = answer(*write(tmp_path, course, dtype, noise), "--methods", "auto")
    assert found["verdict"]["code"] == code, found["verdict"]
    if code == "safe":
        assert 1.5 < found["verdict"]["horizon"] <= 2.5
        assert found["verdict"]["sentence"].startswith("Extrapolating to ")
    else:
        assert found["verdict"]["horizon"] == 1
        assert found["verdict"]["sentence"].startswith("Keep the last checkpoint: ")


def test_a_plateau_keeps_the_last_checkpoint(tmp_path: Path) -> None:
    """Weights that stopped at half and only shake there since gain nothing ahead."""
    run = write(tmp_path, lambda step: (min(step, 45.0),), torch.bfloat16, noise=2e-5)
    found = answer(*run, "--methods", "auto")
    assert found["verdict"]["code"] == "keep"
    assert "farther" in found["verdict"]["sentence"]
    assert found["now"]["auto_ratio"] == 1


def test_what_rounding_hides_is_unknown(tmp_path: Path) -> None:
    """An update too small for bf16 gives no verdict, and no number that could mislead."""
    found = answer(*write(tmp_path, straight, torch.bfloat16, size=2e-8), "--methods", "auto")
    assert found["verdict"]["code"] == "unknown"
    assert found["verdict"]["tested_ratio"] is None
    for window in found["windows"]:
        assert all(truth["floor"] is None for truth in window["truths"])


def test_a_truth_is_predicted_and_never_fitted(tmp_path: Path) -> None:
    """A wild checkpoint named as truth changes no fit, and stands in every window's table."""
    run = write(tmp_path, bending)
    wild = Path(run[0]) / "wild"
    base = load_model(Path(run[2]))
    model = load_model(Path(run[0]) / "step_50")
    source = torch.Generator().manual_seed(1)
    for name in SHAPES:
        model[name] += 1e-4 * torch.randn(base[name].shape, generator=source)
    wild.mkdir()
    save(wild, {name: tensor.contiguous() for name, tensor in model.items()})
    (wild / "config.json").write_text((Path(run[2]) / "config.json").read_text())
    plain = answer(*run, "--fit-until", "36", "--fit-until", "64")
    found = answer(*run, "--fit-until", "36", "--fit-until", "64", "--truth", "wild=45")
    assert found["truth_steps"] == [45]
    for last in (36, 64):
        for method in CHOICES:
            for key in ("all_entries", "resolved"):
                test, same = (cell(f, last, 100, method)[key] for f in (found, plain))
                assert test["error"] == pytest.approx(same["error"], rel=1e-8), method
    assert found["now"]["cosine"] == pytest.approx(plain["now"]["cosine"], rel=1e-8)
    assert found["now"]["num_checkpoints"] == len(STEPS)
    few = answer(*run, "--fit-until", "36", "--steps", "8-36", "--truth", "wild=45")
    assert [t["step"] for t in few["windows"][0]["truths"]] == [45]
    fitted, weights = range(4), [as_float64(model[name]) for name in SHAPES]
    matrices = [
        (start, [*stored[:4], there])
        for (start, stored), there in zip(matrices_of(run), weights, strict=True)
    ]
    error, _ = distance("ols", matrices, (*STEPS[:4], 45), fitted, 4)
    found_error = cell(found, 36, 45, "ols")["all_entries"]["error"]
    assert found_error == pytest.approx(error, rel=1e-5)


def test_scores_are_shown_and_bound_the_horizon(tmp_path: Path) -> None:
    """Window ends and truths carry their scores; scores that have peaked keep the last one."""
    run = write(tmp_path, straight, noise=5e-6)
    scores = tmp_path / "scores.csv"
    values = dict(zip((0, *STEPS), (0.1, 0.3, 0.45, 0.6, 0.62, 0.63, 0.6, 0.5, 0.4), strict=True))
    scores.write_text("step,score\n" + "".join(f"{s},{v}\n" for s, v in values.items()))
    found = answer(*run, "--methods", "auto", "--scores", scores)
    assert found["score_name"] == "score"
    for window in found["windows"]:
        assert window["direction"]["score"] == values[window["direction"]["last_step"]]
        assert [t["score"] for t in window["truths"]] == [
            values[t["step"]] for t in window["truths"]
        ]
    assert found["verdict"]["code"] == "keep"
    assert "the scores have peaked" in found["verdict"]["sentence"]
    assert answer(*run, "--methods", "auto")["verdict"]["code"] == "safe"


def test_auto_is_tested_on_the_clock_that_it_would_run_on(tmp_path: Path) -> None:
    """Under a decaying learning rate weights that follow its sum are foreseen, by auto alone."""
    peak, max_steps = 1e-3, 120

    def rate(step: int) -> float:
        return peak * (1 - (step - 1) / max_steps)

    def course(step: float) -> tuple[float, ...]:
        return (sum(rate(s) for s in range(1, int(step) + 1)) / peak,)

    run = write(tmp_path, course)
    for step in STEPS:
        log = [{"step": s, "learning_rate": rate(s), "loss": 0.1} for s in range(1, step + 1)]
        state = {"log_history": log, "max_steps": max_steps, "global_step": step}
        (Path(run[0]) / f"step_{step}" / "trainer_state.json").write_text(json.dumps(state))
    found = answer(*run, "--fit-until", "50", "--methods", "ols")
    (window,) = found["windows"]
    assert window["clock"].startswith("cumulative learning rate")
    words = ["--evaluate", "cp {model}/alpharl.json {out}; echo score=1"]
    backtest_command(*run, "--fit-until", "50", "--methods", "ols", *words, "--work-dir", tmp_path)
    for method, has_times in (("auto", True), ("ols", False)):
        manifest = json.loads((tmp_path / method / "out" / "alpharl.json").read_text())
        assert (manifest["method"]["times"] is not None) == has_times
    assert cell(found, 50, 100, "auto")["all_entries"]["error"] < 0.02
    assert cell(found, 50, 100, "ols")["all_entries"]["error"] > 0.2


def test_a_small_model_is_read_on_more_of_its_entries(tmp_path: Path) -> None:
    """Where 2 % are under 4000 entries the share is doubled."""
    run = write(tmp_path, bending, torch.bfloat16, noise=1e-5)
    found = answer(*run, "--fit-until", "50", "--methods", "ols", "--include", "mlp")
    assert truth_of(found, 50, 100)["share_of_entries"] == pytest.approx(0.04, rel=1e-3)
    (matrix,) = [m for m, name in zip(matrices_of(run), SHAPES, strict=True) if "mlp" in name]
    error, cosine = distance("ols", [matrix], STEPS, range(5), STEPS.index(100), 0.04)
    test = cell(found, 50, 100, "ols")["resolved"]
    assert test["error"] == pytest.approx(error, rel=1e-5)
    assert test["cosine"] == pytest.approx(cosine, abs=1e-5)


def test_a_frozen_matrix_changes_no_reading(tmp_path: Path) -> None:
    """It takes no part in errors, shares, rounding floors and directions."""
    run = write(tmp_path, bending, torch.bfloat16, noise=1e-5)
    plain = answer(*run, "--fit-until", "50")
    frozen = torch.randn(400, 300, generator=torch.Generator().manual_seed(2)).bfloat16()
    for folder in (Path(run[2]), *(Path(run[0]) / f"step_{step}" for step in STEPS)):
        model = load_model(folder)
        model["model.layers.1.mlp.up_proj.weight"] = 0.02 * frozen
        save(folder, model)
    found = answer(*run, "--fit-until", "50")
    assert (plain["num_matrices"], found["num_matrices"]) == (3, 4)
    for key in ("verdict", "now", "windows"):
        assert found[key] == plain[key]


def test_matrices_that_never_move_and_stacks_of_experts_change_nothing(tmp_path: Path) -> None:
    """A frozen matrix says nothing; the matrices of a 3-D stack count one by one."""
    run = write(tmp_path, bending, noise=1e-5)
    plain = answer(*run, "--fit-until", "50")
    frozen = torch.randn(40, 30, generator=torch.Generator().manual_seed(2)) * 0.02
    up = "model.layers.0.mlp.up_proj.weight"
    for folder in (Path(run[2]), *(Path(run[0]) / f"step_{step}" for step in STEPS)):
        model = load_model(folder)
        model["model.layers.1.mlp.up_proj.weight"] = frozen
        stack = model.pop(up).reshape(3, 150, 320)
        model["model.layers.0.mlp.experts.up_proj"] = stack.contiguous()
        save(folder, model)
    found = answer(*run, "--fit-until", "50")
    assert found["num_matrices"] == 6
    for method in ("last", "average", "linear", "linear-half", "ols", "auto"):
        for step in (64, 80, 100):
            error = cell(plain, 50, step, method)["all_entries"]["error"]
            again = cell(found, 50, step, method)["all_entries"]["error"]
            assert again == pytest.approx(error, rel=1e-8), method
    assert cell(found, 50, 100, "alpharl")["all_entries"]["error"] is not None


def test_the_number_of_workers_changes_no_bit(tmp_path: Path) -> None:
    """One worker or three, the answer is the same text."""
    run = write(tmp_path, bending, torch.bfloat16)
    texts = {
        backtest_command(*run, "--json", "-q", "--devices", devices).stdout
        for devices in ("cpu", "cpu,cpu,cpu")
    }
    assert len(texts) == 1


def test_nan_in_a_checkpoint_is_named(tmp_path: Path) -> None:
    """It stops with the checkpoint, the tensor and the index."""
    run = write(tmp_path, straight)
    folder = Path(run[0]) / "step_64"
    model = load_model(folder)
    name = next(iter(SHAPES))
    model[name][2, 3] = float("nan")
    save(folder, model)
    result = backtest_command(*run, "--methods", "ols")
    assert result.exit_code == 1
    assert f"step_64: {name} holds NaN or Inf at index [2, 3]" in result.stderr
