"""Evaluations: the user's command, the score that it leaves, and how everything it starts ends."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from alpharl_hub.errors import ScoreError, WriteError
from alpharl_hub.sources.patience import Cancelled
from alpharl_hub.sweeping.evaluation import (
    Evaluation,
    EvaluationError,
    Measurement,
    evaluate,
    fill_in,
    make_evaluation,
)

ODD_NAMES = ["plain", "two words", "it's", 'a"b', "$HOME", "`id`", "back\\slash", "a;b", "ü*?"]


def run(
    folder: Path, command: str, score_json: str | None = None, model: Path | None = None
) -> Measurement:
    """Evaluate a model that is an empty folder, without anybody who stops it."""
    model = model or folder / "model"
    model.mkdir(parents=True, exist_ok=True)
    evaluation = make_evaluation(command, score_json)
    return evaluate(evaluation, model, folder / "evaluation", threading.Event())


def refusal(folder: Path, command: str, score_json: str | None = None) -> EvaluationError:
    """The error of an evaluation that leaves no score; its log is named in it."""
    with pytest.raises(EvaluationError) as caught:
        run(folder, command, score_json)
    assert str(folder / "evaluation" / "log.txt") in str(caught.value)
    assert "\n" not in str(caught.value)
    return caught.value


@pytest.mark.parametrize("name", ODD_NAMES)
@pytest.mark.parametrize(
    "form", ["{model}", '"{model}"', "'{model}'", "a={model},b", '"a {model}"']
)
def test_a_path_is_one_argument_in_any_quotes(tmp_path: Path, name: str, form: str) -> None:
    """Whatever the folder is called, the program gets its path, in one piece, unchanged."""
    model = tmp_path / name
    show = "import json, sys; print(json.dumps(sys.argv[1:]))"
    command = fill_in(f"{shlex.quote(sys.executable)} -c '{show}' {form} end", model, tmp_path)
    done = subprocess.run(["/bin/sh", "-c", command], capture_output=True, text=True, check=True)
    bare = form[1:-1] if form[0] in "'\"" else form
    assert json.loads(done.stdout) == [bare.replace("{model}", str(model)), "end"]


def test_other_braces_stay(tmp_path: Path) -> None:
    """JSON, shell variables and awk keep their braces, also around a placeholder."""
    model, out = tmp_path / "m", tmp_path / "o"
    command = (
        """x --gen '{"n": 1}' ${HOME} {} {models} --args '{"path": "{model}"}' -o {out}/{out}"""
    )
    assert fill_in(command, model, out) == (
        """x --gen '{"n": 1}' ${HOME} {} {models} """
        f"""--args '{{"path": "{model}"}}' -o {out}/{out}"""
    )


def test_a_path_that_looks_like_a_placeholder_is_not_replaced_again(tmp_path: Path) -> None:
    """A folder called {out} stays {out}."""
    assert fill_in("x {model}", Path("/a/{out}"), tmp_path) == "x '/a/{out}'"


def test_the_last_score_line_counts(tmp_path: Path) -> None:
    """Among other output, after blanks, and where a progress bar left its line open."""
    command = (
        r"printf 'score=0.25\n 10%%|#   |\r100%%|####|\r  score=-1.5e-1 \nscores=7\n' # {model}"
    )
    assert run(tmp_path, command).score == -0.15


def test_stderr_is_read_and_kept_too(tmp_path: Path) -> None:
    """Both streams are in the log, in order, and a score may stand on either."""
    assert run(tmp_path, "echo one; echo score=2 >&2; echo three # {model}").score == 2
    log = tmp_path / "evaluation" / "log.txt"
    assert log.read_text() == "one\nscore=2\nthree\n"


def test_the_time_is_that_of_the_command(tmp_path: Path) -> None:
    """A command that sleeps for 0.3 s took at least that."""
    assert 0.3 <= run(tmp_path, "sleep 0.3; echo score=1 # {model}").seconds < 10


def test_out_is_fresh_each_time(tmp_path: Path) -> None:
    """What an earlier evaluation wrote is gone; the folder exists."""
    command = "ls {out}; touch {out}/left; echo score=$(ls {out} | wc -l | tr -d ' ') # {model}"
    assert run(tmp_path, command).score == 1
    assert run(tmp_path, command).score == 1
    assert (tmp_path / "evaluation" / "log.txt").read_text() == "score=1\n"


def test_the_command_reads_no_input(tmp_path: Path) -> None:
    """A program that asks a question gets no answer instead of waiting for one."""
    assert run(tmp_path, "cat; echo score=1 # {model}").score == 1


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("echo first; echo went wrong; exit 3 # {model}", r"status 3 \(went wrong\)"),
        ("echo hello # {model}", r"printed no line score=NUMBER .* \(hello\)"),
        ("true # {model}", "printed no line score=NUMBER"),
        ("echo score=nan # {model}", "the score nan"),
        ("echo score=-inf # {model}", "the score -inf"),
        ("echo score=high # {model}", "score=high, which is no number"),
        ("echo score=1; kill -9 $$ # {model}", "signal SIGKILL"),
        ("no-such-program-here {model}", "status 127"),
    ],
)
def test_no_score_is_an_error(tmp_path: Path, command: str, words: str) -> None:
    """One line says what happened, with the last that was printed and where the rest is."""
    error = refusal(tmp_path, command)
    assert isinstance(error, ScoreError)
    with pytest.raises(EvaluationError, match=words):
        raise error


def test_the_last_lines_come_with_the_error(tmp_path: Path) -> None:
    """Twenty of them, the empty ones left out."""
    error = refusal(tmp_path, "seq 1 50; echo; echo end; exit 1 # {model}")
    assert error.last_lines == (*(str(i) for i in range(32, 51)), "end")


def lm_eval_results(accuracy: float) -> dict[str, object]:
    """The shape of what lm-eval writes: metric names hold a comma, task names may hold dots."""
    return {
        "results": {
            "arc_easy": {"alias": "arc_easy", "acc,none": accuracy, "acc_stderr,none": "N/A"},
            "math.v1.1": {"exact_match,flexible-extract": accuracy / 2},
        },
        "config": {"model_args": {"n": 1}},
    }


@pytest.mark.parametrize(
    ("keys", "score"),
    [
        ("results.arc_easy.acc,none", 0.75),
        ("results.math.v1.1.exact_match,flexible-extract", 0.375),
        ("config.model_args.n", 1.0),
    ],
)
def test_a_score_in_json_is_found_by_its_keys(tmp_path: Path, keys: str, score: float) -> None:
    """Keys with dots and commas, in a file in a folder below {out} whose name holds the time."""
    source = tmp_path / "made.json"
    source.write_text(json.dumps(lm_eval_results(0.75)))
    command = f"mkdir {{out}}/name; cp {source} {{out}}/name/results_2026.json # {{model}}"
    assert run(tmp_path, command, f"results_*.json:{keys}").score == score


def test_a_key_may_hold_a_colon_and_the_longest_match_wins(tmp_path: Path) -> None:
    """Only the first colon parts file from keys; "a.b" is looked for before "a", then "b"."""
    source = tmp_path / "made.json"
    source.write_text(json.dumps({"task:5|0": {"a": {"b": 1}, "a.b": 2, "c": {"d": 3}, "c.d": {}}}))
    command = f"cp {source} {{out}}/r.json # {{model}}"
    assert run(tmp_path, command, "r.json:task:5|0.a.b").score == 2
    assert run(tmp_path, command, "r.json:task:5|0.c.d").score == 3


def test_the_newest_matching_file_counts(tmp_path: Path) -> None:
    """An evaluation may write intermediate results first."""
    command = (
        "echo '{\"s\": 1}' > {out}/z.json; echo '{\"s\": 2}' > {out}/a.json; "
        "touch -d '2001-01-01' {out}/z.json # {model}"
    )
    assert run(tmp_path, command, "*.json:s").score == 2


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('{"a": {"x": 1, "y": "2"}}', r"no number a\.b .* which has a\.x"),
        ('{"a": {"b": "0.5"}}', r"no number a\.b .* which has no number"),
        ('{"a": {"b": true}}', r"no number a\.b"),
        ('{"a": {"b": NaN}}', "the score nan"),
        ("[1, 2]", r"no number a\.b"),
        ("{", "no JSON"),
    ],
)
def test_json_without_the_number_is_an_error(tmp_path: Path, content: str, words: str) -> None:
    """The line says which keys there are, or what is wrong with the file."""
    source = tmp_path / "made.json"
    source.write_text(content)
    with pytest.raises(EvaluationError, match=words):
        run(tmp_path, f"cp {source} {{out}}/r.json # {{model}}", "r.json:a.b")


def test_a_missing_results_file_is_an_error(tmp_path: Path) -> None:
    """A printed score does not stand in for the file that was asked for."""
    error = refusal(tmp_path, "echo score=1 # {model} {out}", "r_*.json:a")
    with pytest.raises(EvaluationError, match=r"left no file r_\*\.json below .*out"):
        raise error


@pytest.mark.parametrize(
    ("command", "score_json", "words"),
    [
        ("score.sh", None, r"--evaluate: .* \{model\}"),
        ("score.sh {model}", "r.json:a", r"does not say \{out\}"),
        ("score.sh {model} {out}", "r.json", "give FILE:KEY.PATH"),
        ("score.sh {model} {out}", ":a", "give FILE:KEY.PATH"),
        ("score.sh {model} {out}", "r.json:", "give FILE:KEY.PATH"),
        ("score.sh {model} {out}", "/etc/r.json:a", "give FILE:KEY.PATH"),
        ("score.sh {model} {out}", "../r.json:a", "give FILE:KEY.PATH"),
        ("score.sh {model} {out}", "x/**/r.json:a", "give FILE:KEY.PATH"),
    ],
)
def test_impossible_evaluations_are_refused(
    command: str, score_json: str | None, words: str
) -> None:
    """Before anything is read: what is missing, and an example."""
    with pytest.raises(ScoreError, match=words):
        make_evaluation(command, score_json)


def test_the_digest_tells_evaluations_apart() -> None:
    """Another command, file or key is another evaluation; the same is the same."""
    made = [
        make_evaluation("a {model} {out}"),
        make_evaluation("b {model} {out}"),
        make_evaluation("a {model} {out}", "f:k"),
        make_evaluation("a {model} {out}", "g:k"),
        make_evaluation("a {model} {out}", "f:l"),
    ]
    assert len({evaluation.digest for evaluation in made}) == 5
    assert Evaluation("a {model} {out}").digest == made[0].digest


def test_a_folder_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    """A file in the place of the evaluation's folder: a line of ours, no traceback."""
    (tmp_path / "evaluation").write_text("in the way")
    with pytest.raises(WriteError, match="evaluation: cannot be written"):
        run(tmp_path, "echo score=1 # {model}")


def is_alive(pid: int) -> bool:
    """Whether a process runs; one that has ended and waits for its parent does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state not in "ZX"


def wait_until_ended(pids: list[int], timeout_s: float = 8) -> bool:
    """Wait for processes to end."""
    deadline_s = time.monotonic() + timeout_s
    while any(is_alive(pid) for pid in pids):
        if time.monotonic() > deadline_s:
            return False
        time.sleep(0.02)
    return True


def wait_for_pids(paths: list[Path], timeout_s: float = 30) -> list[int]:
    """Wait until processes have written their ids."""
    deadline_s = time.monotonic() + timeout_s
    while not all(path.exists() and path.read_text().endswith("\n") for path in paths):
        assert time.monotonic() < deadline_s, "the command did not start"
        time.sleep(0.02)
    return [int(path.read_text()) for path in paths]


def family(folder: Path) -> tuple[str, list[Path]]:
    """A command with a child and a grandchild, the latter deaf to TERM, that sleep for long."""
    child, grandchild = folder / "child", folder / "grandchild"
    command = (
        f"(sh -c 'trap \"\" TERM; echo $$ > {grandchild}; while :; do sleep 1; done' & "
        f"sh -c 'echo $$ > {child}; exec sleep 300') # {{model}}"
    )
    return command, [child, grandchild]


def test_stop_ends_the_whole_family(tmp_path: Path) -> None:
    """The stop event ends children and grandchildren, in less than the four seconds there are."""
    command, paths = family(tmp_path)
    stop = threading.Event()
    pids: list[int] = []

    def stop_when_started() -> None:
        pids.extend(wait_for_pids(paths))
        stop.set()

    stopper = threading.Thread(target=stop_when_started)
    stopper.start()
    with pytest.raises(Cancelled):
        evaluate(make_evaluation(command), tmp_path, tmp_path / "evaluation", stop)
    stopped_s = time.monotonic()
    stopper.join()
    assert len(pids) == 2
    assert wait_until_ended(pids, timeout_s=1)
    assert time.monotonic() - stopped_s < 4


def test_a_set_stop_starts_nothing(tmp_path: Path) -> None:
    """Nothing runs once the end was asked for."""
    stop = threading.Event()
    stop.set()
    with pytest.raises(Cancelled):
        evaluate(make_evaluation(f"touch {tmp_path}/x {{model}}"), tmp_path, tmp_path / "e", stop)
    assert not (tmp_path / "x").exists()


def test_what_runs_on_in_the_background_is_ended(tmp_path: Path) -> None:
    """A server that the command forgot does not outlive it: its model is deleted next."""
    pid_path = tmp_path / "server"
    command = f"sleep 300 & echo $! > {pid_path}; echo score=1 # {{model}}"
    assert run(tmp_path, command).score == 1
    assert wait_until_ended([int(pid_path.read_text())])


OWNER = """
import sys, threading
from pathlib import Path
from alpharl_hub.sweeping.evaluation import evaluate, make_evaluation
folder = Path(sys.argv[1])
evaluate(make_evaluation(sys.argv[2]), folder, folder / "evaluation", threading.Event())
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_the_family_ends_with_a_killed_owner(tmp_path: Path, number: int) -> None:
    """Even where this program has no time to do anything, nothing of the evaluation stays."""
    command, paths = family(tmp_path)
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER, str(tmp_path), command],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)},
    )
    pids = wait_for_pids(paths)
    owner.send_signal(number)
    assert owner.wait(timeout=10) == -number
    assert wait_until_ended(pids)
