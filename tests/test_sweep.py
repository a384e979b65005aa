"""The sweep as a whole: rows, the best model on disk, going on after a kill, and its screen."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file, save_file

from alpharl_hub import strict_json
from alpharl_hub.cli.sweep_screen import print_failure, print_sweep
from alpharl_hub.demo import measuring
from alpharl_hub.demo.task import DEMO_RUN, draw_problems, load_and_measure
from alpharl_hub.errors import ManifestError, ResourceError, ScoreError
from alpharl_hub.output.journal import open_journal
from alpharl_hub.output.shards import OutputTensor, lay_out
from alpharl_hub.sources.patience import Cancelled
from alpharl_hub.sweeping.evaluation import Evaluation, EvaluationError, make_evaluation
from alpharl_hub.sweeping.results import SCALE, STEP, SweepOutcome, SweepRow
from alpharl_hub.sweeping.search import SearchOptions
from alpharl_hub.sweeping.sweep import (
    Endpoints,
    SweepFolders,
    SweepHooks,
    SweepOptions,
    Swept,
    disk_need,
    run_sweep,
)

CHECKOUT = Path(__file__).parent.parent
SINGLE = "model.safetensors"
TOP = 2.4
NAMES = ("a.weight", "b.weight")
DEFAULT_SEARCH = SearchOptions()
SHAPE = (6, 4)

SCORER = """
import json, os, struct, sys, time
model, calls, top, wait_at, out = sys.argv[1:6]
data = open(os.path.join(model, "model.safetensors"), "rb").read()
(length,) = struct.unpack("<Q", data[:8])
place = json.loads(data[8 : 8 + length])["a.weight"]["data_offsets"][0]
(value,) = struct.unpack_from("<f", data, 8 + length + place)
assert json.load(open(os.path.join(model, "config.json"))) == {"a": 1}
with open(calls, "a") as log:
    log.write(f"{value:.4g}\\n")
while wait_at and abs(value - float(wait_at)) < 1e-3 and not os.path.exists(calls + ".go"):
    time.sleep(0.05)
json.dump({"models": os.listdir(os.path.dirname(model))}, open(os.path.join(out, "o.json"), "w"))
print("measured", flush=True)
print(f"score={1 - abs(value - float(top)) ** 2}")
"""
"""Scores a model whose weights all equal its scale, by a parabola; notes every call."""

DRIVER = """
import sys, threading
from pathlib import Path
sys.path.insert(0, str(Path(sys.argv[1])))
from test_sweep import Sweep
from alpharl_hub.cli.running import stop_on_signals
stop = threading.Event()
with stop_on_signals(stop):
    Sweep(Path(sys.argv[2]), wait_at=sys.argv[3]).run(stop=stop)
"""


@dataclass(frozen=True)
class Sweep:
    """A sweep in a folder of its own, between a model of zeros and a model of ones."""

    folder: Path
    top: float = TOP
    wait_at: str = ""
    command: str = ""
    search: SearchOptions = DEFAULT_SEARCH
    ends: tuple[float, float] = (0.0, 1.0)
    last_value: float | None = 0.0

    @property
    def calls_path(self) -> Path:
        """Where the scorer notes each of its calls."""
        return self.folder / "calls"

    @property
    def calls(self) -> list[float]:
        """The scales that were scored, in order."""
        return [float(line) for line in self.calls_path.read_text().split()]

    @property
    def folders(self) -> SweepFolders:
        """Where the sweep works."""
        work = self.folder / "work"
        return SweepFolders(work, work / "evaluations", work / "result")

    def evaluation(self) -> Evaluation:
        """The scorer, or another command."""
        script = self.folder / "scorer.py"
        script.write_text(SCORER)
        words = f"{sys.executable} -S {script} {{model}} {self.calls_path} {self.top}"
        return make_evaluation(self.command or f"{words} '{self.wait_at}' {{out}}")

    def endpoints(self) -> Endpoints:
        """Two models whose weights are the values at which they lie."""
        for name, value in zip(("low", "high"), self.ends, strict=True):
            (self.folder / name).mkdir(exist_ok=True)
            tensors = {key: torch.full(SHAPE, value) for key in NAMES}
            save_file(tensors, self.folder / name / SINGLE, metadata={"format": "pt"})
        files = (lay_out(SINGLE, [OutputTensor(n, "F32", SHAPE) for n in NAMES], {"format": "pt"}),)
        low, high = self.folder / "low", self.folder / "high"
        return Endpoints(low, high, *self.ends, files, self.last_value)

    def run(
        self,
        small_files: Mapping[str, bytes] | None = None,
        hooks: SweepHooks | None = None,
        stop: threading.Event | None = None,
    ) -> Swept:
        """Start it, or go on."""
        hooks = hooks or SweepHooks(stop=stop or threading.Event())
        small_files = small_files or {"config.json": b'{"a": 1}'}
        options = SweepOptions(self.evaluation(), self.search)
        with open_journal(self.folders.work, {"run": "test"}) as journal:
            swept = run_sweep(self.endpoints(), small_files, options, self.folders, journal, hooks)
            self.folders.result.rename(self.folder / "output")
            return swept


def test_a_sweep_finds_the_planted_scale_and_writes_its_model(tmp_path: Path) -> None:
    """The best model lies in the result with all its files; each evaluation left its log."""
    sweep = Sweep(tmp_path)
    swept = sweep.run()
    outcome = swept.outcome
    assert outcome.best_value == pytest.approx(TOP, rel=0.05)
    assert len(outcome.rows) <= 12
    assert [row.value for row in outcome.rows][:8] == [0, 0.5, 1, 1.5, 2, 3, 5, 8]
    assert sweep.calls == [pytest.approx(row.value, rel=1e-3) for row in outcome.rows]
    for row in outcome.rows:
        assert row.score == pytest.approx(1 - (row.value - TOP) ** 2, abs=1e-5)
        log = sweep.folders.evaluations / row.log
        assert log.read_text().startswith("measured\nscore=")
    assert (outcome.axis, outcome.last_value) == (SCALE, 0)
    assert outcome.last_score == pytest.approx(1 - TOP**2)
    assert outcome.notices == ()
    output = tmp_path / "output"
    assert sorted(path.name for path in output.iterdir()) == ["config.json", SINGLE]
    best = load_file(output / SINGLE)
    assert torch.equal(best["b.weight"], torch.full(SHAPE, outcome.best_value))
    assert set(swept.roundings) == set(NAMES)


def test_one_candidate_at_a_time_is_on_disk(tmp_path: Path) -> None:
    """Each evaluation saw its own model only, under a name of its own; none is left."""
    sweep = Sweep(tmp_path)
    outcome = sweep.run().outcome
    seen = [
        json.loads(
            (sweep.folders.evaluations / row.log).with_name("out").joinpath("o.json").read_text()
        )
        for row in outcome.rows
    ]
    assert seen == [{"models": [f"scale_{row.value:g}"]} for row in outcome.rows]
    assert not (sweep.folders.work / "candidates").exists()


def test_shards_get_an_index(tmp_path: Path) -> None:
    """Two weight files: every candidate has the index that says which tensor is where."""
    sweep = replace(
        Sweep(tmp_path, search=SearchOptions(SCALE, (2.0,), budget=2)),
        command="grep -q b.weight {model}/model.safetensors.index.json && echo score=1",
    )
    whole = sweep.endpoints()
    files = tuple(
        lay_out(f"m-{i}.safetensors", [OutputTensor(n, "BF16", SHAPE)], {"format": "pt"})
        for i, n in enumerate(NAMES)
    )
    with open_journal(sweep.folders.work, {}) as journal:
        options = SweepOptions(sweep.evaluation(), sweep.search)
        run_sweep(replace(whole, files=files), {}, options, sweep.folders, journal, SweepHooks())
        index = json.loads((sweep.folders.result / "model.safetensors.index.json").read_text())
        found = load_file(sweep.folders.result / "m-1.safetensors")
    assert index["weight_map"] == {"a.weight": "m-0.safetensors", "b.weight": "m-1.safetensors"}
    assert found["b.weight"].dtype == torch.bfloat16


def test_target_steps_are_mixed_from_two_steps(tmp_path: Path) -> None:
    """Models at steps 100 and 300 give those at all steps; no candidate is the last checkpoint."""
    search = SearchOptions(STEP, (100.0, 200.0, 400.0, 800.0), budget=8)
    sweep = Sweep(tmp_path, top=330, search=search, ends=(100.0, 300.0), last_value=None)
    outcome = sweep.run().outcome
    assert outcome.best_value == pytest.approx(330, rel=0.05)
    assert (outcome.last_value, outcome.last_score) == (None, None)
    assert sweep.calls == [pytest.approx(row.value, rel=1e-3) for row in outcome.rows]
    assert outcome.rows[0].log == "step_100/log.txt"


def test_the_last_checkpoint_may_be_a_step(tmp_path: Path) -> None:
    """Where a prediction anchored at the last checkpoint starts from, its score is named."""
    search = SearchOptions(STEP, (100.0, 200.0), budget=2)
    sweep = Sweep(tmp_path, top=120, search=search, ends=(100.0, 200.0), last_value=100.0)
    outcome = sweep.run().outcome
    assert (outcome.last_value, outcome.last_score) == (100, pytest.approx(1 - 20**2))
    assert [notice.code for notice in outcome.notices] == ["sweep_keeps_last"]


@pytest.mark.parametrize(
    ("top", "code", "words"),
    [
        (20.0, "sweep_at_edge", "the best scale, 8, is the largest that was tried"),
        (-1.0, "sweep_keeps_last", "no candidate beats the last checkpoint"),
    ],
)
def test_an_answer_at_an_end_is_noted(tmp_path: Path, top: float, code: str, words: str) -> None:
    """The largest scale, and the last checkpoint itself."""
    outcome = Sweep(tmp_path, top=top).run().outcome
    assert [notice.code for notice in outcome.notices] == [code]
    assert words in outcome.notices[0].message


def test_scores_that_tell_nothing_are_noted(tmp_path: Path) -> None:
    """An evaluation that gives everything the same score keeps the last checkpoint, and says so."""
    outcome = Sweep(tmp_path, command="echo score=0.5 # {model}").run().outcome
    assert [notice.code for notice in outcome.notices] == ["sweep_flat"]
    assert (outcome.best_value, len(outcome.rows)) == (0, 8)


def test_the_story_is_told(tmp_path: Path) -> None:
    """Disk first, then each candidate before and each row after its evaluation."""
    told: list[tuple[object, ...]] = []
    hooks = SweepHooks(
        on_disk=lambda num_bytes: told.append(("disk", num_bytes)),
        on_candidate=lambda *facts: told.append(("candidate", *facts)),
        on_row=lambda row, is_known: told.append(("row", row.value, is_known)),
    )
    sweep = Sweep(tmp_path, search=SearchOptions(SCALE, (2.0,), budget=2))
    sweep.run(hooks=hooks)
    weights_bytes = (tmp_path / "output" / SINGLE).stat().st_size
    evaluations = sweep.folders.evaluations
    assert told == [
        ("disk", weights_bytes + len(b'{"a": 1}')),
        ("candidate", 1, 2, 0.0, evaluations / "scale_0" / "log.txt"),
        ("row", 0.0, False),
        ("candidate", 2, 2, 2.0, evaluations / "scale_2" / "log.txt"),
        ("row", 2.0, False),
    ]


def test_the_disk_need_counts_endpoints_in_fp32() -> None:
    """Two fp32 copies of the floats, integers as they are, and one candidate."""
    tensors = [OutputTensor("a", "BF16", (10, 10)), OutputTensor("i", "I64", (3,))]
    need = disk_need([lay_out(SINGLE, tensors, {})])
    assert need.endpoint_bytes == 2 * (400 + 24)
    assert need.candidate_bytes > 200 + 24, "the header counts too"
    assert need.total_bytes == need.endpoint_bytes + need.candidate_bytes


def test_too_small_a_disk_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    """A small file of a petabyte cannot be had; its size is said, and nothing is evaluated."""

    class Huge(bytes):
        def __len__(self) -> int:
            return 10**15

    sweep, told = Sweep(tmp_path), []
    with pytest.raises(ResourceError, match="are needed and"):
        sweep.run({"config.json": Huge(b"{}")}, SweepHooks(on_disk=told.append))
    assert told[0] > 10**15
    assert not sweep.calls_path.exists()


def test_a_failing_evaluation_ends_the_sweep_and_keeps_its_log(tmp_path: Path) -> None:
    """After the first one: the log stays, the candidate goes."""
    sweep = Sweep(tmp_path, command="echo no luck; exit 4 # {model}")
    with pytest.raises(EvaluationError, match=r"status 4 \(no luck\)") as caught:
        sweep.run()
    log = sweep.folders.evaluations / "scale_0" / "log.txt"
    assert str(log) in str(caught.value)
    assert log.read_text() == "no luck\n"
    assert not (sweep.folders.work / "candidates").exists()


def test_a_candidate_that_overflows_is_named(tmp_path: Path) -> None:
    """fp16 ends at 65504: the error names the value, and what was scored stays for later."""
    search = SearchOptions(SCALE, (1.0, 70000.0), budget=3)
    sweep = Sweep(tmp_path, search=search, command="echo score=1 # {model}")
    files = (lay_out(SINGLE, [OutputTensor(n, "F16", SHAPE) for n in NAMES], {}),)
    options = SweepOptions(sweep.evaluation(), search)
    ends = replace(sweep.endpoints(), files=files)
    with (
        pytest.raises(ScoreError, match=r"scale 70000: a\.weight: not finite in float16"),
        open_journal(sweep.folders.work, {}) as journal,
    ):
        run_sweep(ends, {}, options, sweep.folders, journal, SweepHooks())
    with open_journal(sweep.folders.work, {}) as journal:
        assert len(journal.results) == 2


def test_impossible_options_are_refused_first(tmp_path: Path) -> None:
    """Before the disk is looked at or anything is written."""
    told: list[int] = []
    sweep = Sweep(tmp_path, search=SearchOptions(SCALE, (1.0, 2.0), budget=2))
    with pytest.raises(ScoreError, match="--budget 2"):
        sweep.run(hooks=SweepHooks(on_disk=told.append))
    assert told == []


def test_another_command_is_another_evaluation(tmp_path: Path) -> None:
    """Scores of a changed command are measured anew; other scales find the known ones again."""
    sweep = Sweep(tmp_path, search=SearchOptions(SCALE, (1.0, 2.0), budget=3))
    wider = SearchOptions(SCALE, (1.0, 2.0, 3.0), budget=4)
    known: list[bool] = []
    hooks = SweepHooks(on_row=lambda _, is_known: known.append(is_known))
    with open_journal(sweep.folders.work, {}) as journal:

        def go(sweep: Sweep, hooks: SweepHooks) -> SweepOutcome:
            options = SweepOptions(sweep.evaluation(), sweep.search)
            small = {"config.json": b'{"a": 1}'}
            ends = sweep.endpoints()
            return run_sweep(ends, small, options, sweep.folders, journal, hooks).outcome

        first = go(sweep, SweepHooks())
        second = go(replace(sweep, search=wider), hooks)
        assert known == [True, True, True, False]
        assert second.rows[:3] == first.rows
        assert sweep.calls == [0, 1, 2, 3]
        third = go(replace(sweep, top=1.1), SweepHooks())
        assert sweep.calls == [0, 1, 2, 3, 0, 1, 2]
        assert (first.best_value, third.best_value) == (2, 1)


def test_a_strange_journal_is_refused(tmp_path: Path) -> None:
    """A row of another shape is no row."""
    sweep = Sweep(tmp_path)
    with open_journal(sweep.folders.work, {}) as journal:
        journal.record(f"evaluation {sweep.evaluation().digest} 0.0", {"value": 0.0})
        options = SweepOptions(sweep.evaluation(), sweep.search)
        with pytest.raises(ManifestError, match="the key 'score' is missing"):
            run_sweep(sweep.endpoints(), {}, options, sweep.folders, journal, SweepHooks())


def start(sweep: Sweep, wait_at: str) -> subprocess.Popen[str]:
    """Run a sweep in a process of its own, whose scorer waits at one scale."""
    return subprocess.Popen(
        [sys.executable, "-c", DRIVER, str(Path(__file__).parent), str(sweep.folder), wait_at],
        env={**os.environ, "PYTHONPATH": str(CHECKOUT), "OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for_calls(sweep: Sweep, number: int) -> None:
    """Wait until so many evaluations have begun."""
    deadline_s = time.monotonic() + 60
    while not sweep.calls_path.exists() or len(sweep.calls) < number:
        assert time.monotonic() < deadline_s, "the sweep does not get on"
        time.sleep(0.05)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_sweep_goes_on_without_repeating(tmp_path: Path, number: int) -> None:
    """Killed in its fourth evaluation it repeats that one only, and ends as if never killed."""
    sweep = Sweep(tmp_path)
    process = start(sweep, wait_at="1.5")
    wait_for_calls(sweep, 4)
    process.send_signal(number)
    _, said = process.communicate(timeout=30)
    assert process.returncode == (-number if number == signal.SIGKILL else 128 + number), said
    assert sweep.calls == [0, 0.5, 1, 1.5]
    if number == signal.SIGTERM:
        assert not (sweep.folders.work / "candidates").exists()
    (tmp_path / "calls.go").touch()
    outcome = replace(sweep, wait_at="1.5").run().outcome
    assert sweep.calls[:9] == [0, 0.5, 1, 1.5, 1.5, 2, 3, 5, 8]
    assert len(sweep.calls) == len(set(sweep.calls)) + 1 == len(outcome.rows) + 1
    assert outcome.best_value == pytest.approx(TOP, rel=0.05)
    best = load_file(tmp_path / "output" / SINGLE)
    assert torch.equal(best["a.weight"], torch.full(SHAPE, outcome.best_value))


def test_a_stop_ends_the_sweep(tmp_path: Path) -> None:
    """Nothing is evaluated once the end was asked for."""
    stop = threading.Event()
    stop.set()
    sweep = Sweep(tmp_path)
    with pytest.raises(Cancelled):
        sweep.run(stop=stop)
    assert not sweep.calls_path.exists()


def test_the_demos_scorer_is_an_evaluation(tmp_path: Path) -> None:
    """A real run: a candidate loads in transformers and scores what its weights score."""
    for name in ("base", "step_96"):
        (tmp_path / name).mkdir()
        floats = {key: w.float() for key, w in load_file(DEMO_RUN / name / SINGLE).items()}
        save_file(floats, tmp_path / name / SINGLE, metadata={"format": "pt"})
    tensors = [OutputTensor(key, "F32", tuple(w.shape)) for key, w in floats.items()]
    files = (lay_out(SINGLE, tensors, {"format": "pt"}),)
    small = {path.name: path.read_bytes() for path in (DEMO_RUN / "base").glob("*.json")}
    command = f"{sys.executable} -m alpharl_hub.demo.measuring {{model}} --split validation"
    evaluation = make_evaluation(f"{command} --num-problems 200")
    folders = SweepFolders(tmp_path / "work", tmp_path / "evaluations", tmp_path / "result")
    options = SweepOptions(evaluation, SearchOptions(STEP, (96.0,)))
    ends = Endpoints(tmp_path / "base", tmp_path / "step_96", 0, 96, files)
    with open_journal(tmp_path / "work", {}) as journal:
        outcome = run_sweep(ends, small, options, folders, journal, SweepHooks()).outcome
    direct = load_and_measure(DEMO_RUN / "step_96", split="validation", num_problems=200)
    assert outcome.best_score == pytest.approx(direct.score, abs=0.011)  # two answers may turn
    log = (tmp_path / "evaluations" / "step_96" / "log.txt").read_text().splitlines()
    assert json.loads(log[-2])["num_problems"] == 200


def test_validation_and_test_problems_are_disjoint() -> None:
    """The sizes used by a sweep and by its report share no problem."""
    validation = {problem.prompt for problem in draw_problems("validation", 200)}
    test = {problem.prompt for problem in draw_problems("test", 2000)}
    assert (len(validation), len(test)) == (200, 2000)
    assert not validation & test


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["{tmp}", "{tmp}", "--split", "test"], "--split scores one model, in a folder"),
        (["demo/tiny-grpo@step_96", "--split", "test"], "--split scores one model, in a folder"),
        (["{tmp}", "--split", "train"], "invalid choice: 'train'"),
        (["{tmp}", "--split", "test", "--num-problems", "0"], "0 is no number of problems"),
        ([], "the following arguments are required: PLACE"),
    ],
)
def test_the_demos_scorer_refuses_what_it_cannot_score(
    tmp_path: Path, words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Wrong usage ends with status 2 and a line on stderr, nothing on stdout."""
    with pytest.raises(SystemExit) as caught:
        measuring.main([word.format(tmp=tmp_path) for word in words])
    assert caught.value.code == 2
    captured = capsys.readouterr()
    assert said in captured.err
    assert captured.out == ""


def outcome_of(scores: Mapping[float, float], **changes: object) -> SweepOutcome:
    """An outcome with these scores in this order; the best is the highest."""
    best = max(scores, key=lambda value: scores[value])
    rows = tuple(SweepRow(v, s, 61.0, f"scale_{v:g}/log.txt") for v, s in scores.items())
    outcome = SweepOutcome(SCALE, rows, best, scores[best], 0.0, scores.get(0.0), False, ())
    return replace(outcome, **changes)  # type: ignore[arg-type]


def screen(outcome: SweepOutcome) -> list[str]:
    """The lines of the screen of a sweep, as a pipe gets them."""
    text = io.StringIO()
    print_sweep(outcome, Console(file=text, width=80, markup=False, highlight=False))
    assert text.getvalue().isascii()
    assert "\x1b" not in text.getvalue()
    lines = text.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    return lines


SCORES = {0.0: 0.4, 0.5: 0.45, 1.0: 0.5, 2.0: 0.61, 8.0: 0.1, 3.24: 0.58}


def test_the_screen_shows_rows_by_value() -> None:
    """The answer, then every candidate in the order of the values with its score and time."""
    lines = screen(outcome_of(SCORES))
    assert lines[0] == "Best size 2: score 0.6100, the last checkpoint 0.4000"
    table = [line.split() for line in lines if "1 min 1 s" in line]
    assert [row[0] for row in table] == ["0", "0.5", "1", "2", "3.24", "8"]
    assert [row[1] for row in table] == ["0.4000", "0.4500", "0.5000", "0.6100", "0.5800", "0.1000"]
    assert [" ".join(row[6:]) for row in table] == ["last checkpoint", "", "", "best", "", ""]


def test_the_plot_has_a_mark_for_every_candidate() -> None:
    """Higher scores stand higher, larger values further right; the best and the last are marked."""
    lines = screen(outcome_of(SCORES))
    plot = [line.partition("| ")[2] for line in lines if " |" in line]
    marks = {
        column: (mark, height)
        for height, line in enumerate(plot)
        for column, mark in enumerate(line)
        if mark != " "
    }
    by_value = [marks[column] for column in sorted(marks)]
    assert [mark for mark, _ in by_value] == ["o", "*", "*", "#", "*", "*"]
    heights = [height for _, height in by_value]
    assert heights[3] == 0
    assert heights[5] == len(plot) - 1
    assert heights[0] > heights[1] > heights[2] > heights[3] < heights[4] < heights[5]
    labels = lines[lines.index(next(line for line in lines if " +--" in line)) + 1].split()
    assert labels == ["0", "0.5", "1", "2", "3.24", "8"]


def test_labels_that_have_no_room_are_left_out() -> None:
    """Of crowded values some are not written, the ends always, and none runs into another."""
    scores = {1 + i / 10: i / 100 for i in range(30)} | {8.0: 0.1}
    lines = screen(outcome_of(scores, last_value=None, last_score=None))
    labels = lines[lines.index(next(line for line in lines if " +--" in line)) + 1].split()
    assert (labels[0], labels[-1]) == ("1", "8")
    assert 2 < len(labels) < len(scores)
    assert set(labels) <= {f"{value:g}" for value in scores}


def test_a_loss_and_a_flat_sweep_have_screens() -> None:
    """Lower is better is said; equal scores give a table and no plot."""
    assert any(
        "lower scores are better" in line
        for line in screen(outcome_of(SCORES, lower_is_better=True))
    )
    flat = screen(outcome_of({0.0: 0.5, 1.0: 0.5}))
    assert flat[0] == "Best size 0: score 0.5000, the last checkpoint"
    assert not any("Score by" in line for line in flat)


def test_the_screen_names_the_axis_and_the_winners_step() -> None:
    """Size is what the options call it, its axis is no straight one, and its step is told."""
    text = io.StringIO()
    print_sweep(outcome_of(SCORES), Console(file=text, width=80), 480.0)
    assert "Best size 2 (step 480): score 0.6100" in text.getvalue()
    assert re.search(r"Score by size .*logarithmic axis", text.getvalue())
    assert "scale" not in text.getvalue()


def test_one_candidate_has_a_screen() -> None:
    """A single target step: a row, and no plot."""
    lines = screen(outcome_of({300.0: 0.5}, axis=STEP, last_value=None, last_score=None))
    assert lines[0] == "Best step 300: score 0.5000"


def test_last_lines_of_an_evaluation_are_shown_safely() -> None:
    """A stranger's output cannot move the cursor."""
    text = io.StringIO()
    error = EvaluationError("failed", ("plain", "\x1b[2Jodd [bold]"))
    print_failure(error, Console(file=text, width=80, markup=False, highlight=False))
    assert text.getvalue() == "  plain\n  \\x1b[2Jodd [bold]\n"


def test_an_outcome_is_strict_json_and_back() -> None:
    """What a manifest or --json holds is read back as it was."""
    outcome = outcome_of(SCORES)
    assert strict_json.load(SweepOutcome, strict_json.dump(outcome), "x") == outcome
