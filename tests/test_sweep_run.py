"""`sweep` from a run to the best model, with evaluations that are programs of their own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from trajectories import (
    Run,
    as_float64,
    digest,
    fail,
    load_model,
    rank_one_line,
    succeed,
    write_run,
)

from alpharl_hub.cli import main

STEPS = (10, 20, 30, 40)

# The score is best where the model is nearest to the one that is wanted.
SCORER = """
import json, pathlib, sys
import numpy as np
from safetensors.numpy import load_file
def load(folder):
    found = {}
    for path in sorted(pathlib.Path(folder).glob("*.safetensors")):
        found.update(load_file(path))
    return found
model, wanted = load(sys.argv[1]), load(sys.argv[2])
far = sum(float(((model[n].astype(float) - w) ** 2).sum()) for n, w in wanted.items()) ** 0.5
score = 1 / (1 + 1000 * far)
if len(sys.argv) > 3:
    out = pathlib.Path(sys.argv[3]) / "deep"
    out.mkdir()
    (out / "results_1.json").write_text(json.dumps({"results": {"t": {"acc,none": score}}}))
else:
    print(f"score={score}")
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A straight fp32 run."""
    return write_run(tmp_path_factory.mktemp("swept"), STEPS, rank_one_line())


@pytest.fixture(scope="module")
def scorer(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A command that scores {model} by its distance from step 90 of the same line."""
    folder = tmp_path_factory.mktemp("scorer")
    (folder / "score.py").write_text(SCORER)
    wanted = write_run(folder / "wanted", (90,), rank_one_line())
    return f"{sys.executable} {folder / 'score.py'} {{model}} {wanted.folder(90)}"


def document(folder: Path) -> dict[str, Any]:
    """The manifest of a folder."""
    return json.loads((folder / "alpharl.json").read_text())


def test_the_best_size_is_found_and_written(run: Run, scorer: str, tmp_path: Path) -> None:
    """Scale 1 is step 80: the wanted step 90 is scale 1.25, within 5 %; the last one is scored."""
    out = tmp_path / "best"
    words = run.arguments("-o", str(out), "--evaluate", scorer, "--json", "--method", "linear")
    answer = json.loads(succeed("sweep", *words, "--dtype", "float32").stdout)
    sweep = answer["sweep"]
    assert sweep["best_value"] == pytest.approx(1.25, rel=0.05)
    assert len(sweep["rows"]) <= 12
    assert 0.0 in [row["value"] for row in sweep["rows"]]
    for row in sweep["rows"]:
        assert (tmp_path / "best.sweep" / row["log"]).read_text().startswith("score=")
    low, high = (load_model(run.folder(s)) for s in (30, 40))
    found = load_model(out)
    size = sweep["best_value"]
    for name, tensor in found.items():
        if tensor.is_floating_point() and tensor.dim() == 2 and "norm" not in name:
            last = as_float64(high[name])
            slope = (last - as_float64(low[name])) / 10
            np.testing.assert_allclose(as_float64(tensor), last + size * 40 * slope, atol=2e-6)
    manifest = document(out)
    assert manifest["method"]["damping"] == size
    assert manifest["sweep"]["scores"] == [row["score"] for row in sweep["rows"]]
    card = (out / "README.md").read_text()
    assert "## Size: chosen by a score" in card
    assert "predicted, not evaluated" not in card
    assert sorted(p.name for p in tmp_path.iterdir()) == ["best", "best.sweep"]


def test_the_best_model_is_repeated_by_its_manifest(run: Run, scorer: str, tmp_path: Path) -> None:
    """Mixed from endpoints or predicted with the size at once: the same bytes."""
    out = tmp_path / "best"
    words = ("--scales", "0.5,1,2", "--budget", "4", "--method", "linear")
    succeed("sweep", *run.arguments("-o", str(out), "--evaluate", scorer, *words))
    manifest = out / "alpharl.json"
    succeed("predict", *run.arguments("--from", str(manifest), "-o", str(tmp_path / "again")))
    assert digest(tmp_path / "again") == digest(out)


def test_steps_are_swept_too(run: Run, scorer: str, tmp_path: Path) -> None:
    """The best of given steps and those between them; 90 is the truth."""
    words = ("--target-steps", "50,70,100,130", "--json")
    done = run.arguments("-o", str(tmp_path / "best"), "--evaluate", scorer, *words)
    sweep = json.loads(succeed("sweep", *done).stdout)["sweep"]
    assert sweep["axis"] == "step"
    assert sweep["best_value"] == pytest.approx(90, rel=0.05)
    assert document(tmp_path / "best")["method"]["target_step"] == sweep["best_value"]


def test_a_score_in_a_json_file(run: Run, scorer: str, tmp_path: Path) -> None:
    """As lm-eval leaves it: a file in a folder below {out}, a key with a comma."""
    words = (
        "--scales",
        "1,2",
        "--budget",
        "3",
        "--score-json",
        "results_*.json:results.t.acc,none",
    )
    command = f"{scorer} {{out}}"
    arguments = run.arguments("-o", str(tmp_path / "best"), "--evaluate", command, *words)
    done = succeed("sweep", *arguments)
    assert "Best size 1 (step " in done.stdout


@pytest.mark.parametrize(
    ("command", "words"),
    [("echo no score here", "{model}"), ("true {model}", "score="), ("false {model}", "status 1")],
)
def test_an_evaluation_without_a_score_stops_at_once(
    run: Run, tmp_path: Path, command: str, words: str
) -> None:
    """After the first one, with its last lines; nothing is published."""
    arguments = run.arguments("-o", str(tmp_path / "best"), "--evaluate", command)
    done: Result = CliRunner().invoke(main, ["sweep", *arguments])
    assert done.exit_code in (1, 2)
    assert words in done.stderr
    assert not (tmp_path / "best").exists()


def test_stopped_from_outside_it_goes_on_where_it_was(
    run: Run, scorer: str, tmp_path: Path
) -> None:
    """SIGTERM ends it with its evaluation; the same command repeats no finished evaluation."""
    seen = tmp_path / "seen"
    slow = f"echo once >> {seen}; sleep 1; {scorer}"
    words = run.arguments("-o", str(tmp_path / "best"), "--evaluate", slow, "--scales", "1,2,3")
    arguments = [sys.executable, "-m", "alpharl_hub", "sweep", *words, "--budget", "4"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    child = subprocess.Popen(
        arguments, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 60
    while not seen.exists() or len(seen.read_text().splitlines()) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    child.send_signal(signal.SIGTERM)
    _, stderr = child.communicate(timeout=20)
    assert child.returncode == 143, stderr
    assert not (tmp_path / "best").exists()
    done = succeed("sweep", *words, "--budget", "4")
    assert "known from before" in done.stderr
    assert (tmp_path / "best" / "model.safetensors").exists()
    # Two were begun before, one of them finished; four candidates in all.
    assert len(seen.read_text().splitlines()) == 5


def test_impossible_options_are_told_first(run: Run, tmp_path: Path) -> None:
    """Two axes, no place to write to, a folder that is taken."""
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "mine").touch()
    taken = run.arguments("-o", str(tmp_path / "taken"), "--evaluate", "true {model}")
    assert "not empty" in fail("sweep", *taken)
    for words in (
        ("--scales", "1", "--target-steps", "50", "-o", "x"),
        (),
        ("--target-steps", "50", "--target-step", "60", "-o", "x"),
    ):
        arguments = ["sweep", *run.arguments("--evaluate", "true {model}", *words)]
        assert CliRunner().invoke(main, arguments).exit_code == 2
