"""What people see: consoles, and the screen of an inspection."""

import re
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from screens import (
    GROUPS,
    HOSTILE,
    HOSTILE_SHOWN,
    assert_fits,
    environment,
    render,
    run_on_terminal,
    section,
)

from alpharl_hub.cli.inspect_screen import (
    fold_steps,
    places,
    print_command,
    print_inspection,
    print_notices,
)
from alpharl_hub.cli.terminal import escape_text, human_bytes, human_count, human_duration
from alpharl_hub.manifest import Notice
from alpharl_hub.results import (
    BaseAnswer,
    CountCost,
    ExcludedTensor,
    Inspection,
    ListedCheckpoint,
    MeasuredRate,
    PlanCost,
    ScopeGroup,
)
from alpharl_hub.sources.selection import select_steps


def checkpoint(step: int, *, selected: bool = True) -> ListedCheckpoint:
    """Make a branch of a run; what was not read is None."""
    return ListedCheckpoint(
        step=step,
        source="org/run",
        revision=f"step_{step}",
        commit=f"{step:08d}" + "f" * 32,
        folder="",
        selected=selected,
        score=0.5 + step / 1000 if selected else None,
        dtype="BF16" if selected else None,
        num_tensors=1338 if selected else None,
        num_bytes=3_087_467_144 if selected else None,
        num_files=2 if selected else None,
    )


INSPECTION = Inspection(
    schema=1,
    layout="branches",
    pattern="step_{step}",
    base=BaseAnswer("org/base", "main", "4a83ca6e" + "0" * 32, "card"),
    checkpoints=tuple(checkpoint(step, selected=step % 100 == 0) for step in range(10, 310, 10)),
    score_name="accuracy",
    scope=tuple(ScopeGroup(group, 28) for group in GROUPS),
    excluded=(
        ExcludedTensor("model.embed_tokens.weight", "outside the attention and MLP blocks"),
        *(ExcludedTensor(f"model.layers.{i}.mlp.gate.weight", "a router") for i in range(28)),
    ),
    plan=PlanCost(1, 27_787_204_296, 3210, 1_900_000_000, 3_087_467_144, ()),
    rate=None,
    warnings=(
        Notice("selection", "3 of 30 checkpoints are used"),
        Notice("gap", "2 tensors are missing in some checkpoint"),
        Notice("wrong_base", "this does not look like the base of this run"),
    ),
)
COMMAND = "alpharl-hub predict 'org/run@step_{step}' --base org/base --target-step 600 -o ./out-600"


def show_inspection(inspection: Inspection, width: int = 80, command: str = COMMAND) -> str:
    """Render an inspection."""
    return render(lambda console: print_inspection(inspection, console, command), width)


# Terminals and pipes

SCRIPT = """
from rich.text import Text
from alpharl_hub.cli.terminal import data_console, notes_console
for console in (data_console(), notes_console()):
    console.print(Text("w" * 200, style="bold red"))
    console.print("[bold]:smile: \\u6b65")
"""


def run_in_terminal(**changes: str) -> str:
    """Return what SCRIPT sends to a terminal of 100 columns."""
    return run_on_terminal([sys.executable, "-c", SCRIPT], 100, Path.cwd(), **changes)


@pytest.mark.parametrize(("columns", "width"), [(None, 80), ("100", 100), ("wide", 80)])
def test_a_pipe_gets_plain_text(columns: str | None, width: int) -> None:
    """80 columns or as many as COLUMNS says; no escapes for FORCE_COLOR, and ASCII will do."""
    told = {} if columns is None else {"COLUMNS": columns}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        capture_output=True,
        env=environment(FORCE_COLOR="1", PYTHONIOENCODING="ascii", TERM="xterm", **told),
        check=True,
    )
    lines = ["w" * min(width, 200 - at) for at in range(0, 200, width)]
    expected = "\n".join([*lines, "[bold]:smile: \\u6b65\n"])
    assert done.stdout.decode("ascii") == expected
    assert done.stderr.decode("ascii") == expected


def test_a_terminal_gets_styles_at_its_own_width_and_none_with_no_color() -> None:
    """A real terminal is bold and red; NO_COLOR takes every escape away, bold included."""
    styled = run_in_terminal()
    assert "\x1b[1;31m" + "w" * 100 + "\x1b[0m" in styled
    plain = run_in_terminal(NO_COLOR="1")
    assert "\x1b" not in plain
    assert "w" * 100 + "\r\n" in plain


def test_strangers_text_becomes_one_visible_line() -> None:
    """Control characters are spelt out; printable letters of any script stay."""
    assert escape_text(HOSTILE) == HOSTILE_SHOWN
    assert escape_text("step_10 \u6b65 caf\u00e9 [x]") == "step_10 \u6b65 caf\u00e9 [x]"
    assert escape_text("\udc80\x9b31m\u2028") == "\\udc80\\x9b31m\\u2028"


@pytest.mark.parametrize(
    ("num_bytes", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.00 kB"),
        (9_996, "10.0 kB"),
        (99_960, "100 kB"),
        (999_499, "999 kB"),
        (999_500, "1.00 MB"),
        (3_087_467_144, "3.09 GB"),
        (31_400_000_000, "31.4 GB"),
        (2_500_000_000_000_000, "2.50 PB"),
    ],
)
def test_bytes_have_three_digits_in_decimal_units(num_bytes: int, text: str) -> None:
    """Sizes are those of disks and links, in powers of 1000."""
    assert human_bytes(num_bytes) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0"),
        (999_999, "999,999"),
        (1_234_567, "1.23 million"),
        (494_032_768, "494 million"),
        (7_615_616_512, "7.62 billion"),
    ],
)
def test_counts_are_exact_below_a_million(count: int, text: str) -> None:
    """Parameters are told in millions, files and requests exactly."""
    assert human_count(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.02, "1 s"),
        (59.4, "59 s"),
        (59.6, "1 min 0 s"),
        (372, "6 min 12 s"),
        (6240, "1 h 44 min"),
        (86_399, "23 h 59 min"),
        (266_400, "3 d 2 h"),
    ],
)
def test_durations_have_two_units(seconds: float, text: str) -> None:
    """A duration is never zero and never more exact than it can be."""
    assert human_duration(seconds) == text


@settings(max_examples=40, deadline=None)
@given(st.lists(st.text(min_size=1, max_size=120), min_size=1, max_size=6), st.integers(70, 170))
def test_any_names_of_an_inspection_fit_any_width(names: list[str], width: int) -> None:
    """Whatever revisions and messages are called, no line is wider than the screen."""
    inspection = replace(
        INSPECTION,
        pattern=names[0],
        base=BaseAnswer(names[0], names[0], names[0], names[0]),
        checkpoints=tuple(replace(checkpoint(i), revision=name) for i, name in enumerate(names)),
        scope=tuple(ScopeGroup(name, 1) for name in names),
        excluded=tuple(ExcludedTensor(name, name) for name in names),
        warnings=tuple(Notice("x", name) for name in names),
    )
    assert_fits(show_inspection(inspection, width), width)


# The inspection


@pytest.mark.parametrize("width", [80, 160])
def test_an_inspection_fits_one_screen(width: int) -> None:
    """It has at most 40 lines, none too wide, and no blanks at their ends."""
    text = show_inspection(INSPECTION, width)
    assert_fits(text, width)
    assert len(text.splitlines()) <= 40
    assert not [line for line in text.splitlines() if line != line.rstrip()]


def test_an_inspection_says_what_was_found() -> None:
    """Layout, base with its reason, scores, scope and every excluded matrix are there."""
    text = show_inspection(INSPECTION, 160)
    assert text.splitlines()[:6] == [
        "Found     branches step_{step}: 30 checkpoints, steps 10-300:10; 3 selected",
        "Base      org/base@main (4a83ca6e): base_model of the model card",
        "Scores    accuracy of 3 of 3 selected checkpoints: 0.6000 at step 100, 0.8000 at step 300",
        f"In scope  196 matrices: 28 each of {', '.join(GROUPS)}",
        "Left out  outside the attention and MLP blocks: model.embed_tokens.weight",
        "          a router: model.layers.*.mlp.gate.weight (28 x)",
    ]
    heads, rule, *rows = section(text, "Selected checkpoints")[1:]
    assert heads.split() == [
        "step",
        "where",
        "commit",
        "dtype",
        "tensors",
        "size",
        "files",
        "score",
    ]
    assert set(rule) == {"-"}
    assert [line.split() for line in rows] == [
        ["100", "step_100", "00000100", "BF16", "1,338", "3.09", "GB", "2", "0.6000"],
        ["200", "step_200", "00000200", "BF16", "1,338", "3.09", "GB", "2", "0.7000"],
        ["300", "step_300", "00000300", "BF16", "1,338", "3.09", "GB", "2", "0.8000"],
        ["Not", "used", "27", "checkpoints,", "steps", "10-90:10,110-190:10,210-290:10"],
    ]


def test_an_inspection_says_what_it_costs() -> None:
    """27.787 GB at 100 MB/s are 277.9 s."""
    assert section(show_inspection(INSPECTION), "What predict would cost") == [
        "What predict would cost",
        "reads     27.8 GB in 3,210 requests: 4 min 38 s at 100 MB/s",
        "memory    1.90 GB at most",
        "disk      3.09 GB for the output; nothing that is read is kept",
    ]


def test_an_inspection_says_what_other_numbers_of_checkpoints_would_cost() -> None:
    """At the rate that was measured: 50 GB at 25 MB/s are 33 min 20 s."""
    counts = (CountCost(6, 50_000_000_000), CountCost(30, 90_000_000_000))
    plan = replace(INSPECTION.plan, readings=2, other_counts=counts)
    measured = replace(INSPECTION, plan=plan, rate=MeasuredRate(25e6, 8_000_000))
    assert section(show_inspection(measured, 120), "What predict would cost")[1:3] == [
        "reads     27.8 GB in 3,210 requests, 2 readings: 18 min 31 s at 25.0 MB/s, measured just "
        "now on one connection",
        "instead   with 6: 50.0 GB, 33 min 20 s; with all 30: 90.0 GB, 1 h 0 min "
        "(--steps, --until)",
    ]


def test_warnings_come_most_important_first_and_then_the_next_command() -> None:
    """A wrong base comes first, what was selected last and as a note; the command ends it."""
    assert show_inspection(INSPECTION).splitlines()[-7:] == [
        "Warning   this does not look like the base of this run",
        "Warning   2 tensors are missing in some checkpoint",
        "Note      3 of 30 checkpoints are used",
        "",
        "Next",
        "  alpharl-hub predict 'org/run@step_{step}' --base org/base --target-step 600 \\",
        "      -o ./out-600",
    ]


def test_unknown_codes_stand_between_warnings_and_notes() -> None:
    """A notice that this screen does not know is a warning, before mere notes."""
    notices = [Notice("selection", "s"), Notice("new", "n"), Notice("repeats", "r")]
    text = render(lambda console: print_notices(notices, console))
    assert text == "Warning   r\nWarning   n\nNote      s\n"


def test_local_runs_without_scores_have_no_empty_columns() -> None:
    """Folders stand for revisions, and columns that nothing is known for are left out."""
    folders = tuple(
        replace(
            checkpoint(step),
            source=f"/data/runs/grpo/checkpoint-{step}/actor",
            revision=None,
            commit=None,
            score=None,
        )
        for step in (8, 16)
    )
    text = show_inspection(replace(INSPECTION, layout="local", checkpoints=folders, excluded=()))
    lines = section(text, "Selected checkpoints")
    assert lines[1].split() == ["step", "where", "dtype", "tensors", "size", "files"]
    assert lines[3].split()[:2] == ["8", "checkpoint-8/actor"]
    assert "Scores    none; --scores FILE gives them" in text
    assert "Left out" not in text
    assert "Not used" not in text


def test_a_place_is_what_tells_a_checkpoint_from_the_others() -> None:
    """One folder goes by its name, Windows paths are cut too, equal sources by revision."""
    one = replace(checkpoint(1), source="C:\\runs\\step_1", revision=None)
    two = replace(one, source="C:\\runs\\step_2")
    assert places([one]) == ["step_1"]
    assert places([one, two]) == ["step_1", "step_2"]
    assert places([checkpoint(1), checkpoint(2)]) == ["step_1", "step_2"]


def test_long_selections_are_folded_in_the_middle() -> None:
    """Of forty selected checkpoints the first and the last three are listed."""
    every = tuple(checkpoint(step) for step in range(1, 41))
    text = show_inspection(replace(INSPECTION, checkpoints=every))
    rows = [line.split()[0] for line in section(text, "Selected checkpoints")[3:]]
    assert rows == ["1", "2", "3", "...", "38", "39", "40"]


@pytest.mark.parametrize("width", [80, 160])
def test_hostile_names_in_an_inspection_are_harmless(width: int) -> None:
    """Revisions, patterns, tensor names and warnings of strangers are shown, not obeyed."""
    inspection = replace(
        INSPECTION,
        pattern=HOSTILE,
        base=BaseAnswer(HOSTILE, HOSTILE, HOSTILE, HOSTILE),
        checkpoints=(replace(checkpoint(1), revision=HOSTILE, dtype=HOSTILE[:9]),),
        scope=(ScopeGroup(HOSTILE, 1),),
        excluded=(ExcludedTensor(HOSTILE, HOSTILE),),
        warnings=(Notice("x", HOSTILE),),
    )
    text = show_inspection(inspection, width, f"alpharl-hub predict {shlex.quote(HOSTILE)}")
    assert all(line.isprintable() for line in text.split("\n"))
    assert text.count(HOSTILE_SHOWN) >= 5


@given(st.lists(st.integers(0, 60), min_size=1, max_size=6, unique=True).map(sorted))
def test_folded_steps_are_what_the_option_takes(steps: list[int]) -> None:
    """The text, given to --steps, selects exactly those steps again."""
    assert select_steps(range(61), fold_steps(steps), None) == tuple(steps)


def test_many_irregular_steps_are_cut_short() -> None:
    """Beyond six ranges the middle is left out and the last stays."""
    assert fold_steps([2**k for k in range(12)]) == "1,2,4,8,...,2048"
    assert fold_steps([10, 20, 30, 100, 300]) == "10-30:10,100,300"
    assert fold_steps([]) == ""


def test_a_broken_command_line_means_the_same_to_a_shell(tmp_path: Path) -> None:
    """Quotes, blanks, dollars and line breaks at narrow widths reach a program unchanged."""
    words = ["--base", "a b", "$HOME", "it's", "{step}", "back\\slash", "x" * 70, "-o", "./out"]
    text = render(lambda console: print_command(shlex.join(["probe", *words]), console), 40)
    assert text.count("\\\n") >= 3
    probe = tmp_path / "probe"
    probe.write_text("#!/bin/sh\nprintf '%s\\n' \"$@\"\n")
    probe.chmod(0o755)
    command = re.sub("probe", str(probe), text, count=1)
    done = subprocess.run(["/bin/sh", "-c", command], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == words
