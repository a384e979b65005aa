"""The demo: real commands on a real run, untouched by the user's surroundings, truly scored."""

from __future__ import annotations

import json
import math
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load, load_file, save

import alpharl_hub
from alpharl_hub.demo import DemoScores, ModelScore, difference_in_errors, in_words
from alpharl_hub.demo.children import Children
from alpharl_hub.demo.task import DEMO_RUN, TaskScore, load_and_measure
from alpharl_hub.errors import AlphaRLError
from alpharl_hub.local_hub import LocalHub

CHECKOUT = Path(alpharl_hub.__file__).parent.parent
PREDICTED = ("tiny-grpo-auto", "tiny-grpo-alpharl", "tiny-grpo-linear")
MEASURED_AGAIN = {
    "demo/tiny-grpo-base": DEMO_RUN / "base",
    "demo/tiny-grpo@step_96": DEMO_RUN / "step_96",
    "demo/tiny-grpo@step_240": DEMO_RUN / "step_240",
}
# Two of 2000 answers may turn where two tokens are equally likely and sums are taken in another
# order, as with another number of threads.
TURNED_ANSWERS = 1e-3
DEAD_PORT = "http://127.0.0.1:9"


def surroundings(tmp_path: Path, **more: str) -> dict[str, str]:
    """An environment in which the package is found and temporary folders lie in `tmp_path`."""
    temporary = tmp_path / "tmp"
    temporary.mkdir(exist_ok=True)
    return {
        **os.environ,
        "PYTHONPATH": str(CHECKOUT),
        "TMPDIR": str(temporary),
        "OMP_NUM_THREADS": "1",
        **more,
    }


def run_demo_program(tmp_path: Path, *words: str, **more: str) -> subprocess.CompletedProcess[str]:
    """Run `alpharl-hub demo` in a folder of its own, to its end."""
    return subprocess.run(
        [sys.executable, "-m", "alpharl_hub", "demo", *words],
        cwd=tmp_path,
        env=surroundings(tmp_path, **more),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@dataclass(frozen=True)
class Outcome:
    """A demo that was run once for all tests of this file."""

    done: subprocess.CompletedProcess[str]
    folder: Path
    kept: Path

    @property
    def table(self) -> dict[str, tuple[float, float]]:
        """Score and standard error by what was loaded."""
        row = re.compile(r"(demo/[\w@-]+) +\d+ +(\d\.\d{4}) +(\d\.\d{4}) ")
        return {m[1]: (float(m[2]), float(m[3])) for m in row.finditer(self.done.stdout)}


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """The demo among settings each of which would stop it, or show, if it reached a program."""
    folder = tmp_path_factory.mktemp("demo")
    home = folder / "home"
    home.mkdir()
    (home / "token").write_text("hf_users_own")
    # A folder called like a repo would be taken for the repo.
    (folder / "demo" / "tiny-grpo").mkdir(parents=True)
    done = run_demo_program(
        folder,
        "--keep",
        "kept",
        HF_TOKEN="hf_users_own",
        HF_HOME=str(home),
        HF_ENDPOINT="http://192.0.2.1",
        HF_HUB_OFFLINE="1",
        TRANSFORMERS_OFFLINE="1",
        HTTP_PROXY=DEAD_PORT,
        HTTPS_PROXY=DEAD_PORT,
        ALL_PROXY=DEAD_PORT,
        http_proxy=DEAD_PORT,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return Outcome(done, folder, folder / "kept")


@pytest.fixture(scope="module")
def kept_hub(outcome: Outcome) -> Iterator[LocalHub]:
    """What the demo's Hub held, served again."""
    with LocalHub(outcome.kept / "hub", {"hf_test": "demo"}) as hub:
        yield hub


def test_demo_leaves_only_what_was_to_be_kept(outcome: Outcome) -> None:
    """Temporary folders are gone, the user's home is as it was, and the rest lies in --keep."""
    assert not list((outcome.folder / "tmp").iterdir())
    assert [path.name for path in (outcome.folder / "home").rglob("*")] == ["token"]
    assert sorted(path.name for path in outcome.folder.iterdir()) == ["demo", "home", "kept", "tmp"]
    assert sorted(path.name for path in outcome.kept.iterdir()) == ["hub", *sorted(PREDICTED)]


def test_demo_shows_every_command_and_no_escapes(outcome: Outcome) -> None:
    """Each command stands as it is typed; a pipe gets plain text, and stderr stays empty."""
    text = outcome.done.stdout.replace(" \\\n     ", "")
    commands = [line.split()[1:3] for line in text.splitlines() if line.startswith("$ ")]
    assert commands == [["alpharl-hub", name] for name in ("inspect", "report", *["predict"] * 3)]
    for method in ("auto", "alpharl", "linear"):
        assert f"--target-step 240 --method {method} --push-to demo/tiny-grpo-{method}" in text
    assert "\x1b" not in outcome.done.stdout
    assert outcome.done.stderr == ""


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Tiny models are scored ten times faster by one thread than by two on two busy cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("one_thread")
def test_table_holds_six_scores_as_measured_again(outcome: Outcome) -> None:
    """Base, last observed, final and all predictions score here what the table says."""
    folders = {
        **MEASURED_AGAIN,
        **{f"demo/{name}": outcome.kept / name for name in PREDICTED},
    }
    assert list(outcome.table) == [
        "demo/tiny-grpo-base",
        "demo/tiny-grpo@step_96",
        *(f"demo/{name}" for name in PREDICTED),
        "demo/tiny-grpo@step_240",
    ]
    for place, (shown, shown_error) in outcome.table.items():
        measured = load_and_measure(folders[place])
        assert measured.num_problems == 2000
        assert shown == pytest.approx(measured.score, abs=TURNED_ANSWERS)
        assert shown_error == pytest.approx(math.sqrt(shown * (1 - shown) / 2000), abs=1e-4)


def test_sentences_are_about_the_scores_in_the_table(outcome: Outcome) -> None:
    """Both differences to the last observed checkpoint are those of the table."""
    last = outcome.table["demo/tiny-grpo@step_96"][0]
    for name in PREDICTED:
        difference = outcome.table[f"demo/{name}"][0] - last
        side = "above" if difference > 0 else "below"
        method = name.rpartition("-")[2]
        assert f"\n{method}: {abs(difference):.4f} {side} the last" in outcome.done.stdout


def test_linear_model_lies_on_the_line_through_base_and_last(outcome: Outcome) -> None:
    """Kept weights are base + 240/96 (last - base) to fp32 rounding; norms are the last one's."""
    base = load_file(DEMO_RUN / "base" / "model.safetensors")
    last = load_file(DEMO_RUN / "step_96" / "model.safetensors")
    found = load_file(outcome.kept / "tiny-grpo-linear" / "model.safetensors")
    assert found.keys() == last.keys()
    for name, values in found.items():
        assert values.dtype == np.float32
        if "norm" in name:
            np.testing.assert_array_equal(values, last[name])
            continue
        start = base[name].astype(np.float64)
        update = 2.5 * (last[name] - start)
        # fp32 rounds the difference, its multiple and the sum: 2.25 units of the largest at most.
        largest = np.maximum.reduce([np.abs(start), np.abs(update), np.abs(start + update)])
        allowed = 2.25 * np.spacing(largest.astype(np.float32))
        assert np.all(np.abs(values - (start + update)) <= allowed), name


def test_pushed_models_are_the_kept_ones_by_the_made_up_user(
    outcome: Outcome, kept_hub: LocalHub
) -> None:
    """The Hub holds the very bytes of the kept folders, committed under the demo's own token."""
    commits = [json.loads(p.read_text()) for p in (outcome.kept / "hub" / "commits").iterdir()]
    for name in PREDICTED:
        for filename in ("model.safetensors", "config.json", "alpharl.json"):
            pushed = kept_hub.read_file(f"demo/{name}", filename)
            assert pushed == (outcome.kept / name / filename).read_bytes()
        authors = {c["author"] for c in commits if c["repo_id"] == f"demo/{name}"}
        assert authors == {"demo"}


def test_run_on_the_hub_is_the_packaged_one(kept_hub: LocalHub) -> None:
    """A branch for each step with its weights; main holds the last one's."""
    steps = [int(path.name.removeprefix("step_")) for path in DEMO_RUN.glob("step_*")]
    branches = {name for name in kept_hub.refs("demo/tiny-grpo") if "step_" in name}
    assert branches == {f"refs/heads/step_{step}" for step in steps}
    for revision, folder in (
        ("step_12", "step_12"),
        ("step_240", "step_240"),
        ("main", "step_240"),
    ):
        served = kept_hub.read_file("demo/tiny-grpo", "model.safetensors", revision)
        assert served == (DEMO_RUN / folder / "model.safetensors").read_bytes()


def children_of(hub: LocalHub, folder: Path) -> tuple[Children, list[str]]:
    """The demo's programs on a Hub, and the lines that they show."""
    shown: list[str] = []
    home = folder / "home"
    home.mkdir()
    return Children(folder, home, hub.endpoint, "hf_test", shown.append), shown


def test_one_zeroed_tensor_changes_the_score(
    outcome: Outcome, kept_hub: LocalHub, tmp_path: Path
) -> None:
    """What is scored is what lies on the Hub: without one of its tensors the model does worse."""
    repo = "demo/tiny-grpo-linear"
    weights = load(kept_hub.read_file(repo, "model.safetensors"))
    name = "model.layers.1.mlp.down_proj.weight"
    weights[name] = np.zeros_like(weights[name])
    files = {"model.safetensors": save(weights, {"format": "pt"})}
    kept_hub.add_commit(repo, files=files, revision="zeroed")
    children, _ = children_of(kept_hub, tmp_path)
    whole, zeroed = children.scores([repo, f"{repo}@zeroed"])
    shown, shown_error = outcome.table[repo]
    assert whole.score == pytest.approx(shown, abs=TURNED_ANSWERS)
    assert zeroed.score < shown - 5 * shown_error


def test_failed_program_is_shown_and_stops_the_demo(tmp_path: Path) -> None:
    """The command, all that it said, and an error with its last words."""
    with LocalHub(tmp_path / "hub", {"hf_test": "demo"}) as hub:
        children, shown = children_of(hub, tmp_path)
        with pytest.raises(AlphaRLError, match=r"`alpharl-hub report` .* status 1 .*demo/none"):
            children.command("report", "demo/none", "--quick")
        assert shown[:2] == ["", "$ alpharl-hub report demo/none --quick"]
        assert "demo/none: no such repo" in shown[-1]
        with pytest.raises(AlphaRLError, match=r"`python -m .*measuring` .* status 1 "):
            children.scores(["demo/none"])
    assert any("demo/none is not a local folder" in line for line in shown)


def test_long_output_is_cut_at_its_first_empty_line(tmp_path: Path) -> None:
    """The help of a command is shown up to there, with the number of lines that follow."""
    with LocalHub(tmp_path / "hub", {"hf_test": "demo"}) as hub:
        children, shown = children_of(hub, tmp_path)
        children.command("demo", "--help")
    assert shown[2].startswith("Usage: ")
    assert re.fullmatch(r"\[\d+ more lines\]", shown[3])
    assert len(shown) == 4


def test_missing_transformers_is_told_at_the_start(tmp_path: Path) -> None:
    """One line with the way to install it, before anything is made."""
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.modules['transformers'] = None\n")
    path = os.pathsep.join([str(tmp_path), str(CHECKOUT)])
    done = run_demo_program(tmp_path, "--keep", "kept", PYTHONPATH=path)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.count("\n") == 1
    assert "pip install 'alpharl-hub[demo]'" in done.stderr
    assert not (tmp_path / "kept").exists()


def test_folder_in_use_is_refused(tmp_path: Path) -> None:
    """--keep takes an empty folder; what lies in another stays as it is."""
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "mine.txt").write_text("mine")
    done = run_demo_program(tmp_path, "--keep", "kept")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.count("\n") == 1
    assert "kept: not empty" in done.stderr
    assert [path.name for path in (tmp_path / "kept").iterdir()] == ["mine.txt"]


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signal_takes_programs_and_folders_along(
    tmp_path: Path, number: signal.Signals, status: int
) -> None:
    """In the middle of a command a signal ends the demo with its status and leaves nothing."""
    with subprocess.Popen(
        [sys.executable, "-m", "alpharl_hub", "demo"],
        cwd=tmp_path,
        env=surroundings(tmp_path),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        for line in process.stdout:
            if line.startswith("$ alpharl-hub inspect"):
                break
        process.send_signal(number)
        # The pipe of stderr ends when every program that holds it has ended.
        rest, words = process.communicate(timeout=30)
    assert process.returncode == status
    assert rest == ""
    assert words == "stopped\n"
    assert not list((tmp_path / "tmp").iterdir())


def model(name: str, num_right: int, num_problems: int = 2000) -> ModelScore:
    """A made-up model with so many right answers."""
    share = num_right / num_problems
    error = math.sqrt(share * (1 - share) / num_problems)
    return ModelScore(name, 0, f"demo/{name}", TaskScore(share, error, num_problems))


def words_for(last: int, alpharl: int, linear: int, final: int) -> tuple[str, ...]:
    """The sentences for so many right answers of 2000."""
    predictions = (model("alpharl", alpharl), model("linear", linear))
    observed, true_final = model("last observed", last), model("true final", final)
    return in_words(DemoScores(model("base", 100), observed, predictions, true_final, "40%"))


def test_sentences_follow_from_the_numbers() -> None:
    """Better, worse, too close and equal are each told, with hand-computed errors.

    Shares of one half have a standard error of 0.01118, so that 0.05 are 3.2 and 0.02 are 1.3
    standard errors of a difference.
    """
    assert words_for(1000, 1100, 1040, 1000) == (
        "alpharl: 0.0500 above the last observed checkpoint (3.2 standard errors).",
        "linear: 0.0200 above the last observed checkpoint "
        "(1.3 standard errors: too little to tell).",
        "Highest score from 40% of the steps: alpharl, 0.5500; "
        "0.0500 above the true final checkpoint (3.2 standard errors).",
    )
    assert words_for(1000, 900, 960, 1040) == (
        "alpharl: 0.0500 below the last observed checkpoint (3.2 standard errors).",
        "linear: 0.0200 below the last observed checkpoint "
        "(1.3 standard errors: too little to tell).",
        "Highest score from 40% of the steps: last observed, 0.5000; "
        "0.0200 below the true final checkpoint (1.3 standard errors: too little to tell).",
    )
    assert words_for(1000, 1000, 1000, 1000) == (
        "alpharl: the same score as the last observed checkpoint.",
        "linear: the same score as the last observed checkpoint.",
        "Highest score from 40% of the steps: last observed, 0.5000; "
        "the same score as the true final checkpoint.",
    )


def test_difference_without_errors_is_none_or_beyond_all() -> None:
    """All right against all wrong has no standard error to count in."""
    right, wrong = TaskScore(1.0, 0.0, 10), TaskScore(0.0, 0.0, 10)
    assert difference_in_errors(right, right) == 0
    assert difference_in_errors(right, wrong) == math.inf
    assert difference_in_errors(wrong, right) == -math.inf
