"""Errors offer what was perhaps meant, at no cost; -v tells why, ALPHARL_DEBUG where."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
from hub_fixtures import ALICE, Commands, add_base, add_branches, commands_for
from trajectories import rank_one_line, write_run

from alpharl_hub.cli.causes import causes_of, without_secrets
from alpharl_hub.errors import did_you_mean
from alpharl_hub.local_hub import LocalHub

STEPS = (100, 200, 300, 400)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, hub: LocalHub) -> Path:
    """A folder with runs/grpo and runs/base, whose copies are lab/run and lab/base on the Hub."""
    root = tmp_path_factory.mktemp("place")
    run = write_run(root / "runs", STEPS, rank_one_line(size=2e-6))
    run.root.rename(root / "runs" / "grpo")
    moved = type(run)(root / "runs" / "grpo", run.base, STEPS)
    add_base(hub, "lab/base", moved)
    add_branches(hub, "lab/run", moved)
    add_branches(hub, "lab/based", moved)
    add_base(hub, "lab/run-step-100", moved)
    add_base(hub, "lab/run-step-200", moved)
    hub.add_commit("lab/based", files={"notes.txt": b"x"}, revision="base")
    return root


@pytest.fixture(scope="module")
def commands(
    tmp_path_factory: pytest.TempPathFactory, hub: LocalHub, place: Path
) -> Iterator[Commands]:
    """Commands against that Hub; a folder of factors lies in `place` too."""
    with commands_for(tmp_path_factory.mktemp("commands"), hub) as found:
        made = found.run("extract", "runs/grpo", "--base", "runs/base", "-o", "factors", cwd=place)
        assert made.code == 0, made.stderr
        yield found


GOOD = "./runs/grpo --base ./runs/base"
CASES = {
    "report ./runs/gprt": "no such folder; did you mean ./runs/grpo? To name a repo, write hf://",
    "report ./rnus/grpo": "did you mean ./runs/grpo?",
    "report ./rnus/gpro": "did you mean ./runs?",
    "report runs/gprt": "runs/gprt: no such repo; check the name (private repos need --token or "
    "HF_TOKEN); did you mean the folder ./runs/grpo?",
    "report grpp --base ./runs/base": "grpp: neither a folder here nor",
    "report ./runs/grpo --base ./runs/bsae": "did you mean ./runs/base?",
    f"report {GOOD} --at stp_100=500": "did you mean ./runs/grpo/step_100?",
    "report lab/run@stpe_100 --base lab/base": "no such revision, or it was deleted; check its "
    "branches and tags; did you mean step_100?",
    "report lab/run --base lab/base@mian": "did you mean main?",
    "report lab/run --base lab/base --at step_4000=4000": "did you mean step_400?",
    "report lab/run@step_130 --base lab/base": "did you mean step_100?",
    "report lab/run@step_290 --base lab/base": "did you mean step_300?",
    "report lab/run@stp_{step} --base lab/base": "did you mean step_{step}?",
    "report ./runs/grpo/stp_{step} --base lab/base": "did you mean step_{step}?",
    "report lab/run-step{step} --base lab/base": "did you mean run-step-{step}?",
    f"report {GOOD} --steps 1000": "its neighbour is 400; did you mean 100?",
    f"report {GOOD} --steps 250": "its neighbours are 200 and 300",
    f"report {GOOD} --until 20": "the first is at step 100; give that or a later one",
    f"report {GOOD} --until 140%": "larger than the whole run; give 100% or less",
    f"report {GOOD} --include q_prj": "--include q_prj: matches none of 14 names such as "
    "model.layers.0.mlp.down_proj.weight; did you mean q_proj?",
    f"report {GOOD} --exclude proj": "--exclude proj: leaves none of 14 matrices; exclude fewer",
    f"report {GOOD} --layers 9-12": "--layers 9-12: matches no matrix; there are layers 0-1",
    f"report {GOOD} --modules q_prj": "--modules q_prj: matches none of 14 names such as "
    "model.layers.0.mlp.down_proj.weight; did you mean q_proj?",
    "report ./factors --layers 9": "--layers 9: matches no matrix; there are layers 0-1",
    "report ./factors --layers 1 --modules layers.0": "matches none of 7 names in --layers 1",
    f"report {GOOD} --devices gpu:1": "write cpu or cuda:0; did you mean cuda:1?",
    f"report {GOOD} --devices mps": "only cpu and cuda devices are supported; write cpu or cuda:0",
    f"backtest {GOOD} --fit-until 200 --methods relxe": "did you mean relex?",
    "report ./runs/grpo": "(there is ./runs/base: --base ./runs/base)",
    "report lab/based": "(there is lab/based@base: --base lab/based@base)",
    "predict ./factors --target-step 500 -o out": "add --method alpharl and a --target-step, or",
}


@pytest.mark.parametrize("line", CASES)
def test_near_misses_are_offered(commands: Commands, place: Path, line: str) -> None:
    """One line, exit 1, with the name or number that is there and most like what was typed."""
    done = commands.run(*shlex.split(line), cwd=place, as_typed=True)
    assert (done.code, done.stdout) == (1, ""), done
    (shown,) = done.stderr.splitlines()
    assert CASES[line] in shown


USAGE = {
    "predct x": "'predict'",
    "predict x --tagret-step 5": "'--target-step'",
    "predict x -o y --target-step 5 --method alpharI": "did you mean alpharl?",
    "predict x -o y --target-step 5 --method linaer": "'average'; did you mean linear?",
}


@pytest.mark.parametrize("line", USAGE)
def test_near_misses_of_commands_options_and_methods(
    commands: Commands, place: Path, line: str
) -> None:
    """A usage error names the command, the option or the method that is most alike."""
    done = commands.run(*shlex.split(line), cwd=place, as_typed=True)
    assert done.code == 2
    assert USAGE[line] in done.stderr.splitlines()[-1]


def test_nothing_is_offered_where_nothing_is_alike(commands: Commands, place: Path) -> None:
    """A wild guess would be worse than none."""
    for line in ("report ./zzz", "report lab/run@zzz --base lab/base", "report lab/zzz"):
        assert "did you mean" not in commands.run(*shlex.split(line), cwd=place).stderr


def test_a_suggestion_costs_no_request(commands: Commands, place: Path, hub: LocalHub) -> None:
    """The Hub is asked as often for a near miss as for a name that is like no other."""

    def paths_for(revision: str) -> list[str]:
        before = len(hub.log)
        commands.run("report", f"lab/run@{revision}", "--base", "lab/base", cwd=place)
        return [record.path.replace(revision, "X") for record in hub.log[before:]]

    assert paths_for("stpe_100") == paths_for("zzz") != []


# -- causes --------------------------------------------------------------------------------------


def test_verbose_shows_the_cause_below_the_line(commands: Commands, place: Path) -> None:
    """Without -v there is one line; with it the server's own answer stands beneath the same."""
    words = ("report", "lab/run@stpe_100", "--base", "lab/base")
    brief = commands.run(*words, cwd=place).stderr.splitlines()
    first, *causes = commands.run(*words, "-v", cwd=place).stderr.splitlines()
    assert brief == [first]
    assert causes[0].startswith("  because of RevisionNotFoundError: ")
    assert "404" in causes[0]


def test_debug_shows_the_traceback(commands: Commands, place: Path) -> None:
    """For a report of a bug the whole traceback is to be had."""
    done = commands.run("report", "./runs/gprt", cwd=place, ALPHARL_DEBUG="1")
    assert done.code == 1
    assert "Traceback (most recent call last)" in done.stderr
    assert "SourceError: " in done.stderr


def test_verbose_tells_no_secrets(commands: Commands, place: Path) -> None:
    """Tokens are in no cause, neither a good one nor one that no header can carry."""
    words = ("report", "lab/run@zzz", "--base", "lab/base", "-v")
    broken = commands.run(*words, "--token", "hf_secret\nhf_other", cwd=place)
    good = commands.run(*words, token=ALICE, cwd=place)
    for done in (broken, good):
        assert done.code == 1
        assert "because of" in done.stderr
        for secret in ("secret", "other", ALICE):
            assert secret not in done.stderr


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Illegal header value b'Bearer hf_a'", "Illegal header value b'Bearer ***"),
        ("Bearer abc def", "Bearer ***"),
        ("for https://x.co/a?X-Sig=abc&t=1 now", "for https://x.co/a?*** now"),
        ("proxy http://me:word@host:1/ failed", "proxy http://***@host:1/ failed"),
        ("404 for https://x.co/a/b", "404 for https://x.co/a/b"),
    ],
)
def test_secrets_are_written_over(text: str, shown: str) -> None:
    """What lets somebody in is not shown, and the rest is."""
    assert without_secrets(text) == shown


def test_causes_are_told_the_nearest_first_and_once() -> None:
    """The chain is followed as Python shows it; a wrapper that repeats the words is left out."""

    def fail() -> None:
        try:
            try:
                raise OSError("refused")
            except OSError as error:
                raise ValueError("no answer") from error
        except ValueError as error:
            raise KeyError("top") from error

    with pytest.raises(KeyError) as caught:
        fail()
    assert causes_of(caught.value) == [
        "because of ValueError: no answer",
        "because of OSError: refused",
    ]
    assert causes_of(ValueError("alone")) == []


def test_did_you_mean_takes_the_most_alike_and_bounds_its_work() -> None:
    """The nearest of several; nothing of nothing; endless names are not compared."""
    assert did_you_mean("step_1000", ["step_10", "step_100", "main"]) == "; did you mean step_100?"
    assert did_you_mean("x", []) == ""
    assert did_you_mean("a" * 10_000, ["a" * 9_999]) == ""


def test_of_names_with_numbers_the_nearest_number_is_meant() -> None:
    """step_36 reads more like step_13 than step_12 does, which is the neighbour."""
    names = ["step_36", "step_130", "step_12", "stop_13"]
    assert did_you_mean("step_13", names) == "; did you mean step_12?"
    assert did_you_mean("ckpt-40", ["ckpt_40", "ckpt-400", "ckpt-60"]) == "; did you mean ckpt-60?"
