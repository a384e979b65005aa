"""`--method auto`: what it sees, how far it goes, when it keeps the last checkpoint."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from torch import Tensor
from trajectories import Run, as_float64, digest, generator, load_model, write_run

from alpharl_hub.cli import main

STEPS = (10, 20, 30, 40, 50, 60, 70, 80)


def course(turn: float) -> Any:
    """Weights whose path turns: its second half has the cosine cos(turn) with the first.

    16,384 entries in matrices: enough to read a direction on.
    """
    source = generator(9)
    names = [f"model.layers.0.self_attn.{side}_proj.weight" for side in "qkvo"]
    base = {name: 0.05 * torch.randn(64, 64, generator=source) for name in names}
    base["model.embed_tokens.weight"] = torch.randn(20, 64, generator=source)
    base["model.norm.weight"] = torch.ones(64)
    first = {n: torch.randn(w.shape, generator=source) for n, w in base.items() if w.dim() == 2}
    second = {n: torch.randn(w.shape, generator=source) for n, w in first.items()}

    def at(step: int) -> dict[str, Tensor]:
        early, late = min(step, 40), max(0, step - 40)
        moved = {
            n: base[n]
            + 3e-6 * (early * d + late * (np.cos(turn) * d + np.sin(turn) * second[n])).float()
            for n, d in first.items()
        }
        return {**base, **moved}

    return at


def auto(run: Run, *words: str | Path) -> Result:
    """Run predict with its default method, as a user would."""
    return CliRunner().invoke(main, ["predict", *run.arguments(*map(str, words))])


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run that goes straight ahead."""
    return write_run(tmp_path_factory.mktemp("straight"), STEPS, course(0.1))


def document(folder: Path) -> dict[str, Any]:
    """The manifest of a folder."""
    return json.loads((folder / "alpharl.json").read_text())


def test_a_straight_run_is_predicted_as_far_as_asked(straight: Run, tmp_path: Path) -> None:
    """W_T + (s* - s_T) B with B numpy's slope of the recent half, of every tensor."""
    done = auto(straight, "--target-step", "160", "-o", tmp_path / "out", "--dtype", "float32")
    assert done.exit_code == 0, done.output
    found, manifest = load_model(tmp_path / "out"), document(tmp_path / "out")
    assert manifest["auto"]["bound_by"] == "asked"
    assert manifest["auto"]["cosine"] == pytest.approx(np.cos(0.1), abs=0.02)
    assert (manifest["method"]["name"], manifest["method"]["anchor"]) == ("ols", "last")
    recent = [step for step in STEPS if step >= 40]
    for name, tensor in found.items():
        if not tensor.is_floating_point():
            continue
        weights = [as_float64(load_model(straight.folder(s))[name]) for s in recent]
        rows = np.array([w.ravel() for w in weights])
        slope = np.polyfit(recent, rows, 1)[0].reshape(weights[0].shape)
        wanted = weights[-1] + 80 * slope
        np.testing.assert_allclose(as_float64(tensor), wanted, atol=1e-6)
    assert "auto:     direction: cosine" in done.stderr
    assert "as asked" in done.stderr


def test_it_goes_no_farther_than_the_direction_carries(straight: Run, tmp_path: Path) -> None:
    """Asked for too much, or for nothing in particular: 2.5 x the last step; --force goes on."""
    for words in (("--target-step", "800"), ()):
        out = tmp_path / f"out{len(words)}"
        done = auto(straight, *words, "-o", out)
        assert done.exit_code == 0, done.output
        assert document(out)["method"]["target_step"] == pytest.approx(200)
        assert document(out)["auto"]["bound_by"] == "direction"
    assert digest(tmp_path / "out2") == digest(tmp_path / "out0")
    forced = auto(straight, "--target-step", "800", "--force", "-o", tmp_path / "forced")
    assert forced.exit_code == 0
    manifest = document(tmp_path / "forced")
    assert manifest["method"]["target_step"] == 800
    assert manifest["auto"]["forced"] is True
    assert manifest["auto"]["ratio"] == pytest.approx(2.5)


def test_a_step_of_the_past_is_refused_as_one(straight: Run, tmp_path: Path) -> None:
    """Where the run has been there is nothing to choose: one line, before anything is read."""
    for step, said in (
        (
            "45",
            "step 45 lies before the last checkpoint (80): aim beyond it, or take the run's own "
            "of step 40 and 50; --force predicts it",
        ),
        ("80", "step 80 is the last checkpoint itself: aim beyond it; --force predicts it"),
    ):
        done = auto(straight, "--target-step", step, "-o", tmp_path / "out")
        assert (done.exit_code, done.stdout) == (1, "")
        assert done.stderr.splitlines()[-1] == f"Error: auto writes nothing: {said}"
    forced = auto(straight, "--target-step", "45", "--force", "-o", tmp_path / "out")
    assert forced.exit_code == 0, forced.output


def test_a_turning_run_keeps_its_last_checkpoint(tmp_path: Path) -> None:
    """One line, exit 1, nothing written; the evidence is in the manifest of a forced one."""
    run = write_run(tmp_path, STEPS, course(1.0))
    done = auto(run, "--target-step", "160", "-o", tmp_path / "out")
    assert (done.exit_code, done.stdout) == (1, "")
    assert "auto writes nothing" in done.stderr
    assert "cosine 0.5" in done.stderr
    assert not (tmp_path / "out").exists()
    forced = auto(run, "--target-step", "160", "--force", "-o", tmp_path / "forced")
    assert forced.exit_code == 0
    manifest = document(tmp_path / "forced")
    assert manifest["auto"]["ratio"] == 1
    assert manifest["auto"]["cosine"] == pytest.approx(np.cos(1.0), abs=0.03)
    assert "would have kept the last checkpoint" in (tmp_path / "forced" / "README.md").read_text()


def test_scores_bound_the_horizon(straight: Run, tmp_path: Path) -> None:
    """Scores near their ceiling end the way ahead earlier than the direction does."""
    logits = [-1 + 0.06 * step for step in STEPS]
    scores = {str(step): 1 / (1 + np.exp(-z)) for step, z in zip(STEPS, logits, strict=True)}
    (tmp_path / "scores.json").write_text(json.dumps(scores))
    words = ("--scores", tmp_path / "scores.json", "-o", tmp_path / "out", "--json")
    done = auto(straight, "--target-step", "160", *words)
    assert done.exit_code == 0, done.output
    seen = json.loads(done.stdout)["auto"]
    # The line of the logits reaches log(0.99 / 0.01) = 4.595 at step 93.3.
    assert seen["bound_by"] == "score_line"
    assert document(tmp_path / "out")["method"]["target_step"] == 93


def test_a_decaying_learning_rate_is_the_clock(tmp_path: Path) -> None:
    """With a linear decay to step 160 in trainer_state.json the time ahead is what is left."""
    run = write_run(tmp_path, STEPS, course(0.0))
    rows = [{"step": s, "learning_rate": 1e-5 * (1 - (s - 1) / 160)} for s in range(1, 81)]
    state = {"global_step": 80, "max_steps": 160, "log_history": rows}
    (run.folder(80) / "trainer_state.json").write_text(json.dumps(state))
    done = auto(run, "--target-step", "160", "-o", tmp_path / "out")
    assert done.exit_code == 0, done.output
    manifest = document(tmp_path / "out")
    rates = 1e-5 * (1 - np.arange(160) / 160) / 1e-5
    assert manifest["method"]["times"] == pytest.approx([rates[:s].sum() for s in STEPS])
    assert manifest["method"]["target_time"] == pytest.approx(rates.sum())
    assert "cumulative learning rate" in manifest["auto"]["clock"]
    again = auto(run, "--from", tmp_path / "out" / "alpharl.json", "-o", tmp_path / "again")
    assert again.exit_code == 0, again.output
    assert digest(tmp_path / "again") == digest(tmp_path / "out")


def test_a_log_that_counts_otherwise_is_no_clock(tmp_path: Path) -> None:
    """Of a run named by every second update the rates are not put against the names."""
    run = write_run(tmp_path, STEPS, course(0.0))
    rows = [{"step": s, "learning_rate": 1e-5 * (1 - (s - 1) / 320)} for s in range(1, 161)]
    state = {"global_step": 160, "max_steps": 320, "log_history": rows}
    (run.folder(80) / "trainer_state.json").write_text(json.dumps(state))
    done = auto(run, "--target-step", "160", "-o", tmp_path / "out")
    assert done.exit_code == 0, done.output
    manifest = document(tmp_path / "out")
    assert manifest["method"]["times"] is None
    assert "logs update 160" in manifest["auto"]["clock"]


def test_a_run_whose_schedule_has_ended_keeps_its_last_checkpoint(tmp_path: Path) -> None:
    """At the end of a decay no weight would move any more, however straight the path was."""
    run = write_run(tmp_path, STEPS, course(0.0))
    rows = [{"step": s, "learning_rate": 1e-5 * (1 - (s - 1) / 80)} for s in range(1, 81)]
    state = {"global_step": 80, "max_steps": 80, "log_history": rows}
    (run.folder(80) / "trainer_state.json").write_text(json.dumps(state))
    done = auto(run, "--target-step", "160", "-o", tmp_path / "out")
    assert (done.exit_code, done.stdout) == (1, "")
    assert "the learning rate ends at step 80" in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_manifest_of_auto_repeats_what_it_chose(straight: Run, tmp_path: Path) -> None:
    """--from needs no second look: method, window and horizon are in the record."""
    auto(straight, "--target-step", "800", "-o", tmp_path / "out")
    words = ("--from", tmp_path / "out" / "alpharl.json", "-o", tmp_path / "again")
    done = auto(straight, *words)
    assert done.exit_code == 0, done.output
    assert digest(tmp_path / "again") == digest(tmp_path / "out")


@pytest.mark.parametrize(
    "words",
    [
        ("--rank", "2"),
        ("--scale", "2"),
        ("--fit-last", "3"),
        ("--anchor", "base"),
        ("--keep-residual",),
    ],
)
def test_options_that_auto_sets_itself_are_usage_errors(
    straight: Run, tmp_path: Path, words: tuple[str, ...]
) -> None:
    """They name the option; nothing is read."""
    done = auto(straight, *words, "-o", tmp_path / "out")
    assert done.exit_code == 2
    assert f"{words[0]} has no meaning for --method auto" in done.stderr


def test_few_checkpoints_are_too_few(straight: Run, tmp_path: Path) -> None:
    """Three checkpoints say too little; the line tells what to do."""
    done = auto(straight, "--steps", "10,40,80", "--target-step", "120", "-o", tmp_path / "out")
    assert done.exit_code == 1
    assert "3 checkpoints are too few" in done.stderr
