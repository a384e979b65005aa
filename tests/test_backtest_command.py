"""`backtest` at the command line: its screen, its options, what it refuses, scores of one test."""

from __future__ import annotations

import json
import math
import shlex
import sys
from pathlib import Path

import pytest
import torch
from backtest_runs import SHAPES, STEPS, backtest_command, bending, straight, write
from trajectories import curved_run, load_model, rank_one_line, write_run

from alpharl_hub.backtesting.cases import choose_truths, parse_limit, plan_windows
from alpharl_hub.backtesting.results import WindowDirection
from alpharl_hub.backtesting.verdict import Fact, judge
from alpharl_hub.errors import TrajectoryError

SCORER = """
import sys
from safetensors.numpy import load_file
truth, model = (load_file(f"{folder}/model.safetensors") for folder in sys.argv[1:3])
names = [name for name in truth if "_proj" in name]
off = sum(((truth[n].astype("f8") - model[n].astype("f8")) ** 2).sum() for n in names)
print(f"score={off ** 0.5}")
"""


def refusal(*arguments: str | Path) -> str:
    """The one line that a failing backtest says."""
    result = backtest_command(*arguments)
    assert result.exit_code == 1, result.output
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith("Error: ")
    return str(line)


def small_run(where: Path, steps: tuple[int, ...] = (10, 20, 30, 40, 50, 60)) -> list[str]:
    """A run of a tiny model, for what needs no numbers."""
    return write_run(where, steps, rank_one_line()).arguments()


def test_the_screen_begins_with_the_verdict_and_fits_80_columns(tmp_path: Path) -> None:
    """Plain text in a pipe: verdict, then a table for each window with every method."""
    scores = tmp_path / "scores.csv"
    rows = [f"{step},{1 / (1 + math.exp(2 - 0.02 * step))}\n" for step in (0, *STEPS)]
    scores.write_text("step,score\n" + "".join(rows))
    run = write(tmp_path, bending, torch.bfloat16, noise=1e-5)
    result = backtest_command(*run, "--scores", scores)
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert "\x1b" not in result.stdout
    assert max(len(line.rstrip()) for line in lines) <= 80
    assert lines[0].startswith("Backtest: 3 matrices, 8 checkpoints, steps 8 to 100")
    assert lines[1].startswith("Verdict   Extrapolating to ")
    assert sum(line.startswith("Fitted up to step ") for line in lines) == 4
    for method in ("last", "average", "linear", "linear-half", "ols", "relex", "alpharl", "auto"):
        assert sum(line.startswith(f"{method} ") for line in lines) == 4
    assert sum(line.startswith("its score ") for line in lines) == 4
    verbose = backtest_command(*run, "-v").stdout
    assert sum(line.startswith("auto ") for line in verbose.splitlines()) == 8
    assert "over all entries" in verbose
    assert "over all entries" not in result.stdout


def test_more_truths_than_fit_beside_each_other_stand_below(tmp_path: Path) -> None:
    """All that are named are shown, four to a table."""
    run = write(tmp_path, straight, noise=1e-5)
    others = write(tmp_path / "others", straight, noise=1e-5, steps=(51, 65, 81, 90))
    named = []
    for name, step in (("a", 51), ("b", 65), ("c", 81), ("d", 90)):
        Path(others[0], f"step_{step}").rename(Path(run[0], name))
        named += ["--truth", f"{name}={step}"]
    result = backtest_command(*run, "--fit-until", "36", *named, "--methods", "auto")
    assert result.exit_code == 0, result.output
    for step in (51, 65, 81, 90, 100):
        assert f"step {step}" in result.stdout
    assert max(len(line.rstrip()) for line in result.stdout.splitlines()) <= 80


def test_quick_reads_a_sample_of_layers_and_says_so(tmp_path: Path) -> None:
    """A run of few layers is read whole; the JSON counts both."""
    found = json.loads(backtest_command(*small_run(tmp_path), "--quick", "--json", "-q").stdout)
    assert found["sampled"] is False
    assert found["num_matrices"] == found["num_matrices_in_run"] == 14


def test_bad_requests_are_one_clear_line(tmp_path: Path) -> None:
    """Each names the option, what is wrong with it, and what to do."""
    run = small_run(tmp_path)
    assert "--fit-until 5 leaves no checkpoint to fit: the first is at step 10" in refusal(
        *run, "--fit-until", "5"
    )
    assert "--fit-until 60 leaves no checkpoint to predict" in refusal(*run, "--fit-until", "60")
    assert "--fit-until soon: give a step" in refusal(*run, "--fit-until", "soon")
    assert "--fit-until 140%: give a step" in refusal(*run, "--fit-until", "140%")
    assert "--methods magic: no method; there are last, average" in refusal(
        *run, "--methods", "magic"
    )
    assert "too few to fit 3" in refusal(*run, "--steps", "10,20,30")
    assert "gone is no folder" in refusal(*run, "--truth", "gone=70")
    assert "--truth step_10=55: left out by --steps or --until" in refusal(
        *run, "--truth", "step_10=55", "--until", "40"
    )
    assert "the largest tensors need" in refusal(*run, "--memory", "1MB")
    for words in (["--evaluate", "true"], ["--score-json", "a.json:b"]):
        assert backtest_command(*run, *words).exit_code == 2


def test_one_checkpoint_is_enough_for_the_line_alone(tmp_path: Path) -> None:
    """Methods that need more have no answer there, and the others are tested all the same."""
    result = backtest_command(*small_run(tmp_path), "--fit-until", "10", "--json", "-q")
    (window,) = json.loads(result.stdout)["windows"]
    has_answer = {
        m["method"] for m in window["truths"][0]["methods"] if m["all_entries"]["error"] is not None
    }
    assert has_answer == {"last", "average", "linear"}
    assert json.loads(result.stdout)["verdict"]["code"] == "unknown"


def test_every_prediction_of_one_test_is_scored(tmp_path: Path) -> None:
    """A score that is the distance to the truth repeats the errors, nearest a ratio of 2."""
    steps = (10, 20, 24, 30, 45, 60)
    run = write_run(tmp_path, steps, curved_run(steps)).arguments()
    scorer = tmp_path / "score.py"
    scorer.write_text(SCORER)
    truth = f"{run[0]}/step_60"
    words = [sys.executable, str(scorer), truth]
    work = tmp_path / "work"
    result = backtest_command(
        *[
            *run,
            "--fit-until",
            "24",
            "--fit-until",
            "30",
            "--json",
            "--lower-is-better",
            "--work-dir",
            work,
        ],
        *["--evaluate", f"{shlex.join(words)} {{model}}"],
    )
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    scored = found["scored"]
    assert (scored["last_step"], scored["truth_step"], scored["ratio"]) == (30, 60, 2.0)
    scores = {model["model"]: model["score"] for model in scored["models"]}
    assert scores.pop("step 60") == 0
    last = scores.pop("step 30")
    truths = {t["step"]: t for t in found["windows"][1]["truths"]}
    errors = {m["method"]: m["all_entries"]["error"] for m in truths[60]["methods"]}
    assert set(scores) == set(errors) - {"last"}
    for method, score in scores.items():
        assert score / last == pytest.approx(errors[method], rel=1e-4), method
    assert not any((work / "models").iterdir())
    assert all(Path(model["log"]).is_file() for model in scored["models"])
    assert "auto: score " in result.stderr


def test_the_last_checkpoint_is_scored_as_it_is_stored(tmp_path: Path) -> None:
    """Not a bit of it changes on the way to the evaluation."""
    run = write(tmp_path, bending, torch.bfloat16)
    seen = tmp_path / "seen"
    copy = f"{seen}/$(basename {{model}})"
    keep = f"mkdir -p {copy} && cp {{model}}/model.safetensors {copy}"
    result = backtest_command(
        *[*run, "--fit-until", "50", "--methods", "auto", "-q", "--work-dir", tmp_path / "work"],
        *["--evaluate", f"{keep} && echo score=1"],
    )
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("Backtest: ")
    assert "Scored    step 50 1.000, step 100 (2.00 x) 1.000" in result.stdout
    for step in (50, 100):
        stored, given = load_model(Path(run[0]) / f"step_{step}"), load_model(seen / f"step_{step}")
        assert all(torch.equal(stored[name], given[name]) for name in SHAPES)


def test_a_failed_evaluation_leaves_the_backtest_on_the_screen(tmp_path: Path) -> None:
    """Its last lines and its log are named, and what was read is not lost."""
    work = tmp_path / "work"
    result = backtest_command(
        *[*small_run(tmp_path), "--methods", "auto", "--work-dir", work],
        *["--evaluate", "echo no GPU in sight {model}; exit 3"],
    )
    assert result.exit_code == 1
    assert result.stdout.startswith("Backtest: ")
    assert "no GPU in sight" in result.stderr
    assert "log.txt" in result.stderr


def test_limits_are_steps_or_shares() -> None:
    """A whole number is a step, a per cent sign or a fraction up to 1 a share of the last."""
    assert parse_limit("40", 200) == 40
    assert 80 <= parse_limit("40%", 200) < 80.001
    assert 80 <= parse_limit("0.4", 200) < 80.001
    assert 12 <= parse_limit("40%", 30) < 12.001
    for text in ("0", "-3", "nan", "x", "1e400%"):
        with pytest.raises(TrajectoryError):
            parse_limit(text, 200)


def test_windows_need_three_checkpoints_unless_asked_for() -> None:
    """30 % of ten steps are too few to average over; what is named is taken."""
    steps = tuple(range(10, 110, 10))
    plain = plan_windows(steps, (), ())
    assert [len(window.fitted) for window in plain] == [3, 4, 5, 7]
    assert [window.truths[-1] for window in plain] == [9] * 4
    assert [w.fitted for w in plan_windows(steps, (), ("10", "20%", "20"))] == [(0,), (0, 1)]
    with pytest.raises(TrajectoryError, match="nothing is left to fit"):
        plan_windows((10, 20), (10, 20), ())


def test_the_whole_run_is_fitted_where_a_truth_lies_beyond() -> None:
    """Shares count from the last step that may be fitted, and the last window has all of these."""
    windows = plan_windows((10, 20, 30, 40, 50, 200), (200,), ())
    assert [w.fitted for w in windows] == [(0, 1, 2), (0, 1, 2, 3, 4)]
    assert windows[-1].truths == (5,)


def test_truths_are_few_named_ones_always_among_them() -> None:
    """The last one too; the others are spread."""
    assert choose_truths(range(10, 110, 10), ()) == (10, 40, 70, 100)
    assert choose_truths(range(10, 110, 10), (20,)) == (10, 20, 50, 100)
    assert choose_truths(range(10, 110, 10), (100,)) == (10, 50, 90, 100)
    assert choose_truths((1, 2, 3, 4, 5, 6), (1, 2, 3, 4, 5)) == (1, 2, 3, 4, 5, 6)
    assert choose_truths((7,), ()) == (7,)


def direction(
    auto_ratio: float, bound_by: str = "direction", cosine: float | None = 0.9
) -> WindowDirection:
    """A whole run whose rule goes so far."""
    return WindowDirection(
        1, 100, 10, 50, None, cosine, None, 0.02, 0.01, auto_ratio, auto_ratio, bound_by
    )


def fact(last: int, ratio: float, error: float | None, auto_ratio: float = 2.0) -> Fact:
    """A test of auto."""
    return Fact(last, round(last * ratio), ratio, error, auto_ratio)


def test_the_horizon_is_the_smaller_of_tested_and_trusted() -> None:
    """Neither a test that went well far ahead nor a steady direction alone decides."""
    passed = [fact(40, 1.5, 0.4), fact(40, 2.5, 0.5), fact(70, 1.4, 0.45)]
    found = judge(passed, direction(1.8))
    assert (found.code, found.horizon, found.tested_ratio) == ("safe", 1.8, 2.5)
    assert found.sentence.startswith(
        "Extrapolating to 1.8 times the observed steps looks safe: in all 3 tests"
    )
    found = judge(passed[2:], direction(2.5))
    assert (found.code, found.horizon) == ("safe", 1.4)
    assert found.sentence.endswith("not tested beyond 1.4 x")
    assert "twice the observed steps" in judge(passed, direction(2.0)).sentence


def test_a_failure_counts_where_auto_would_have_gone_and_at_the_end() -> None:
    """Failing where the rule kept the last checkpoint is the rule's success."""
    passed = [fact(70, 1.2, 0.5), fact(70, 1.4, 0.6)]
    assert judge([fact(30, 1.3, 1.5, auto_ratio=1.0), *passed], direction(2.0)).code == "safe"
    failed = judge([fact(30, 1.1, 1.5, auto_ratio=1.2), *passed], direction(2.0))
    assert failed.code == "keep"
    assert "fitted up to step 30, auto's line to step 33 (1.1 x)" in failed.sentence
    found = judge([*passed, fact(70, 1.8, 1.1, auto_ratio=1.0)], direction(2.0))
    assert (found.code, found.horizon) == ("safe", 1.4)
    assert "at 1.8 x it no longer did (error 1.10)" in found.sentence


@pytest.mark.parametrize(
    ("bound_by", "cosine", "code", "words"),
    [
        ("direction", 0.7, "keep", "turning (cosine 0.70)"),
        ("score_parabola", 0.95, "keep", "the scores have peaked"),
        ("score_line", 0.95, "keep", "the scores leave nothing to gain"),
        ("few_checkpoints", 0.95, "unknown", "too few"),
        ("direction_unknown", None, "unknown", "stands out from rounding"),
    ],
)
def test_what_the_run_looks_like_now_has_the_last_word(
    bound_by: str, cosine: float | None, code: str, words: str
) -> None:
    """However well it went before."""
    found = judge([fact(40, 2.0, 0.3)], direction(1.0, bound_by, cosine))
    assert (found.code, found.horizon) == (code, 1)
    assert words in found.sentence


def test_nothing_tested_is_unknown() -> None:
    """A steady direction without a single test that rounding left is no proof."""
    found = judge([fact(40, 2.0, None)], direction(2.0))
    assert (found.code, found.tested_ratio) == ("unknown", None)
