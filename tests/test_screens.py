"""What people see: consoles, the report's screen, the inspection's screen."""

import io
import os
import pty
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console

from alpharl_hub.cli.inspect_screen import (
    fold_steps,
    places,
    print_command,
    print_inspection,
    print_notices,
)
from alpharl_hub.cli.report_screen import print_report
from alpharl_hub.cli.terminal import escape_text, human_bytes, human_count, human_duration
from alpharl_hub.manifest import Notice, TrustRecord
from alpharl_hub.results import (
    BaseAnswer,
    ExcludedTensor,
    Inspection,
    ListedCheckpoint,
    ModuleSpectrum,
    PlanCost,
    ReportSummary,
    ScopeGroup,
    SpectralReport,
)
from alpharl_hub.sources.selection import select_steps

GROUPS = (
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.o_proj",
    "mlp.gate_proj",
    "mlp.up_proj",
    "mlp.down_proj",
)
STEPS = (20, 40, 80, 160)
HOSTILE = "evil\x1b[2J\x1b]0;title\x07[bold]x[/nope]\u202egnp\r\n:smile:"
HOSTILE_SHOWN = "evil\\x1b[2J\\x1b]0;title\\x07[bold]x[/nope]\\u202egnp\\r\\n:smile:"


def render(show: Callable[[Console], None], width: int = 80) -> str:
    """Render on a console that parses markup and emoji as rich does by default."""
    stream = io.StringIO()
    show(Console(file=stream, width=width))
    return stream.getvalue()


def assert_fits(text: str, width: int) -> None:
    """Check that no line is too wide and nothing but newlines controls the terminal."""
    for line in text.split("\n"):
        assert cell_len(line) <= width, line
        assert line.isprintable(), ascii(line)


def line_of(text: str, start: str) -> str:
    """Return the only line that starts so."""
    (line,) = (line for line in text.splitlines() if line.startswith(start))
    return line


def section(text: str, title: str) -> list[str]:
    """Return the lines from a heading to the next empty line."""
    lines = text.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith(title))
    return [*lines[start:], ""][: [*lines[start:], ""].index("")]


def spectrum(
    name: str,
    share: float | None = 0.5,
    q2_step: float | None = 0.95,
    *,
    sigma: float = 0.02,
    drift: float | None = 30.0,
    steps: Sequence[int] = STEPS,
) -> ModuleSpectrum:
    """Make a matrix whose numbers at the last step are those given; earlier ones are decoys."""
    before = len(steps) - 1
    return ModuleSpectrum(
        name=name,
        shape=(64, 32),
        sigma=(*[9.0] * before, sigma),
        frobenius=(*[9.0] * before, 0.0 if share is None else 0.25),
        rank1_share=(*[0.01] * before, share),
        drift=(drift, *[77.0] * before)[: len(steps)],
        q2_step=q2_step,
        q2_score=None if q2_step is None else 0.8,
        r2_step_in_sample=0.99,
        singular_values=(sigma,),
        stable_rank=1 / share if share else None,
    )


def report_of(
    modules: Sequence[ModuleSpectrum],
    *,
    steps: Sequence[int] = STEPS,
    share: float | None = 0.62,
    q2_step: float | None = 0.97,
    warnings: Sequence[Notice] = (),
    trust: TrustRecord | None = None,
) -> SpectralReport:
    """Make a report whose summary is given, not computed."""
    return SpectralReport(
        schema=1,
        steps=tuple(steps),
        sampled=False,
        score_name="accuracy",
        modules=tuple(modules),
        summary=ReportSummary(
            num_matrices=len(modules),
            num_matrices_in_run=len(modules),
            rank1_share=share,
            drift_first_to_last=26.2,
            q2_step=q2_step,
            q2_score=None if q2_step is None else 0.88,
            r2_step_in_sample=0.991,
            trust=trust,
        ),
        path=None,
        score_line=None,
        warnings=tuple(warnings),
    )


def name_of(layer: int, group: str) -> str:
    """Name a matrix as transformers does."""
    return f"model.layers.{layer}.{group}.weight"


def show_report(report: SpectralReport, width: int = 80) -> str:
    """Render a report."""
    return render(lambda console: print_report(report, console), width)


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
    plan=PlanCost(1, 27_787_204_296, 3210, 1_900_000_000, 3_087_467_144),
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


def environment(**changes: str) -> dict[str, str]:
    """Return the environment of a child: this one's without what speaks of terminals."""
    told = ("NO_COLOR", "FORCE_COLOR", "COLUMNS", "LINES", "TERM", "PYTHONIOENCODING")
    return {k: v for k, v in os.environ.items() if k not in told} | changes


def run_in_terminal(**changes: str) -> str:
    """Return what SCRIPT sends to a real pseudo-terminal."""
    master, slave = pty.openpty()
    subprocess.run(
        [sys.executable, "-c", SCRIPT],
        stdin=slave,
        stdout=slave,
        stderr=slave,
        env=environment(TERM="xterm-256color", **changes),
        check=True,
    )
    os.close(slave)
    sent = b""
    try:
        while block := os.read(master, 65536):
            sent += block
    except OSError:
        pass  # Linux answers EIO where others answer with the end of the file.
    finally:
        os.close(master)
    return sent.decode()


def test_a_pipe_gets_80_columns_without_escapes_whatever_the_environment_says() -> None:
    """FORCE_COLOR, COLUMNS and an ASCII encoding change nothing but unencodable letters."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        capture_output=True,
        env=environment(FORCE_COLOR="1", COLUMNS="200", PYTHONIOENCODING="ascii", TERM="xterm"),
        check=True,
    )
    expected = "w" * 80 + "\n" + "w" * 80 + "\n" + "w" * 40 + "\n[bold]:smile: \\u6b65\n"
    assert done.stdout.decode("ascii") == expected
    assert done.stderr.decode("ascii") == expected


def test_a_terminal_gets_styles_at_its_own_width_and_none_with_no_color() -> None:
    """A real terminal is bold and red; NO_COLOR takes every escape away, bold included."""
    styled = run_in_terminal(COLUMNS="100")
    assert "\x1b[1;31m" + "w" * 100 + "\x1b[0m" in styled
    plain = run_in_terminal(COLUMNS="100", NO_COLOR="1")
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


# The report


def test_the_first_lines_answer_the_three_questions() -> None:
    """Rank-1, linear and where not come first, with the run's trust and the warnings."""
    trust = TrustRecord(0.951, 0.26, 0.02, 0.03, 1.1, 80, 2.5, None, "steady: safe to 2.5 x")
    modules = [
        spectrum(name_of(0, "mlp.up_proj"), 0.7, 0.99),
        spectrum(name_of(1, "mlp.up_proj"), 0.9, 0.99),
        spectrum(name_of(0, "self_attn.q_proj"), 0.49, 0.31),
        spectrum(name_of(1, "self_attn.q_proj"), 0.5, 0.51),
    ]
    warning = Notice("dtype_differs", "loading casts the weights")
    text = show_report(report_of(modules, trust=trust, warnings=[warning]), 160)
    assert text.splitlines()[:7] == [
        "Spectral report: 4 matrices, 4 checkpoints, steps 20 to 160",
        "Rank-1?   mostly: median rank-1 share 0.62 at step 160; 3 of 4 matrices at 0.50 or more",
        "Linear?   yes: median leave-one-out Q^2 0.97 on step, 0.88 on score (accuracy). "
        "In-sample R^2 0.99 decides nothing: noise reaches it too",
        "Weakest   group self_attn.q_proj (Q^2 0.41, share 0.49) "
        "and layer 0 (Q^2 0.65, share 0.59)",
        "Drift     26 degrees from the first checkpoint's direction to the last one's",
        "Trust     steady: safe to 2.5 x",
        "Warning   loading casts the weights",
    ]


@pytest.mark.parametrize(
    ("share", "q2_step", "rank1", "linear"),
    [(0.95, 0.5, "yes", "partly"), (0.5, 0.49, "mostly", "NO"), (0.49, 0.9, "NO", "yes")],
)
def test_verdicts_follow_the_medians(share: float, q2_step: float, rank1: str, linear: str) -> None:
    """From 0.9 up is yes, below 0.5 is no; a low share warns about rank-1 methods."""
    text = show_report(
        report_of([spectrum(name_of(0, "mlp.up_proj"))], share=share, q2_step=q2_step)
    )
    assert line_of(text, "Rank-1?").split()[1] == f"{rank1}:"
    assert line_of(text, "Linear?").split()[1] == f"{linear}:"
    assert ("leaves most of the update out" in " ".join(text.split())) == (share < 0.5)


def test_a_group_shows_the_medians_of_its_matrices_at_the_last_step() -> None:
    """Medians by hand: sigma 0.0015, share 0.4, drift 50, Q^2 0.9; earlier steps are not shown."""
    group = "self_attn.q_proj"
    modules = [
        spectrum(name_of(0, group), 0.2, 0.8, sigma=0.001, drift=40.0),
        spectrum(name_of(1, group), 0.4, 0.9, sigma=0.002, drift=50.0),
        spectrum(name_of(2, group), 0.9, None, sigma=123.4, drift=None),
        spectrum(name_of(3, group), None, 1.0, sigma=0.0, drift=60.0),
    ]
    text = show_report(report_of(modules))
    assert section(text, "Module groups")[-1].split() == [
        *(group, "4", "0.00150", "0.250", "0.40", "50", "0.90", "0.80", "0.99"),
    ]
    layers = [line.split() for line in section(text, "Layers")[4:]]
    assert layers[1] == ["1", "1", "0.00200", "0.250", "0.40", "50", "0.90", "0.80", "0.99"]
    assert layers[2] == ["2", "1", "123", "0.250", "0.90", "-", "-", "-", "0.99"]
    assert layers[3] == ["3", "1", "0", "0", "-", "60", "1.00", "0.80", "0.99"]


def test_worst_and_best_modules_are_ranked_by_q2_then_share() -> None:
    """Unknown Q^2 is worst of all; a tie goes by share; a matrix without update is only counted."""
    fits = [(0.9, 0.99), (0.2, 0.5), (0.1, 0.5), (0.3, None), (0.6, 0.98), (0.6, 0.97)]
    fits += [(0.6, 0.7), (0.6, 0.8), (0.6, -50.0), (0.8, 0.99)]
    modules = [spectrum(name_of(i, "mlp.up_proj"), *fit) for i, fit in enumerate(fits)]
    modules.append(spectrum(name_of(10, "mlp.up_proj"), None, None))
    text = show_report(report_of(modules))
    worst = [line.split()[0] for line in section(text, "Worst modules")[4:]]
    best = [line.split()[0] for line in section(text, "Best modules")[4:8]]
    assert worst == [f"layers.{i}.mlp.up_proj" for i in (3, 8, 2, 1)]
    assert best == [f"layers.{i}.mlp.up_proj" for i in (0, 9, 4, 5)]
    assert "1 of 11 do not differ from the base" in text
    assert "< -9" in section(text, "Worst modules")[5]


def test_the_map_shows_tenths_of_the_share() -> None:
    """By hand: the digit is the first decimal, 9 includes 1; "-" is no update, "." no matrix."""
    shares = {"mlp.up_proj": (0.0, 0.0999, 0.1, 0.55), "self_attn.q_proj": (0.899, 0.9, 1.0)}
    modules = [
        spectrum(name_of(9 + layer, group), share)
        for group, values in shares.items()
        for layer, share in enumerate(values)
    ]
    modules.append(spectrum(name_of(13, "mlp.up_proj"), None))
    modules.append(spectrum("head.mlp.weight", 0.25))
    lines = section(show_report(report_of(modules)), "Rank-1 share by group and layer")
    assert lines[1:6] == [
        "layer               1 1 1 1  ",
        "                  9 0 1 2 3 -",
        "mlp.up_proj       0 0 1 5 - .",
        "self_attn.q_proj  8 9 9 . . .",
        "head.mlp          . . . . . 2",
    ]


def test_eighty_layers_fold_into_one_screen_of_80_columns() -> None:
    """Pairs of layers share a column: by hand 20 columns at 0.25 and 20 at 0.75; 12 rows of 7."""
    modules = [
        spectrum(name_of(layer, group), 0.25 if layer < 40 else 0.75)
        for layer in range(80)
        for group in GROUPS
    ]
    text = show_report(report_of(modules))
    assert_fits(text, 80)
    lines = section(text, "Rank-1 share by group and layer")
    digits = [f"{layer:2d}" for layer in range(0, 80, 2)]
    assert lines[1] == "layer             " + "".join(pair[0] for pair in digits)
    assert lines[2] == " " * 18 + "".join(pair[1] for pair in digits)
    assert lines[3:10] == [f"{group:18}" + "2" * 20 + "7" * 20 for group in GROUPS]
    rows = [line.split()[:2] for line in section(text, "Layers")[4:]]
    assert rows == [[f"{i}-{min(i + 6, 79)}", "49" if i < 77 else "21"] for i in range(0, 80, 7)]
    assert len(text.splitlines()) <= 70


@pytest.mark.parametrize("width", [60, 80, 160])
def test_many_long_groups_fit(width: int) -> None:
    """Forty groups with long names: thirty are shown, the map keeps the ends of the names."""
    groups = [f"linear_attn.very_long_name_of_a_projection_{i:02d}" for i in range(40)]
    modules = [spectrum(name_of(layer, g)) for layer in range(48) for g in groups]
    text = show_report(report_of(modules), width)
    assert_fits(text, width)
    assert "and 10 more, which --json lists" in text
    lines = section(text, "Rank-1 share by group and layer")
    assert all(cell_len(line) <= min(width, 80) for line in lines)
    assert [line.split()[0] for line in lines if line.startswith("..")] == [
        f"..{group[-28:]}" for group in groups[:30]
    ]


def test_few_checkpoints_have_no_q2() -> None:
    """Below four checkpoints Q^2 is unknown, and modules are ranked by share alone."""
    modules = [spectrum(name_of(i, "mlp.up_proj"), s, None) for i, s in enumerate((0.7, 0.3))]
    text = show_report(report_of(modules, steps=STEPS[-3:], q2_step=None))
    expected = "Linear?   unknown: Q^2 takes 4 checkpoints that differ; this report has 3"
    assert line_of(text, "Linear?") == expected
    names = [line.split()[0] for line in section(text, "Modules, worst first")[4:]]
    assert names == ["layers.1.mlp.up_proj", "layers.0.mlp.up_proj"]


def test_one_matrix_at_one_step_and_none_at_all() -> None:
    """The smallest reports print without a weakest group, and without tables."""
    one = [spectrum(name_of(0, "mlp.up_proj"), None, None, drift=None, steps=(7,))]
    text = show_report(report_of(one, steps=(7,), share=None, q2_step=None))
    assert text.startswith("Spectral report: 1 matrix, 1 checkpoint, step 7\n")
    assert "Rank-1?   unknown: no matrix differs from the base" in text
    assert "Weakest" not in text
    assert "1 of 1 do not differ from the base" in text
    none = show_report(report_of([], share=None, q2_step=None, warnings=[Notice("x", "careful")]))
    assert none.splitlines() == [
        "Spectral report: 0 matrices, 4 checkpoints, steps 20 to 160",
        "There is nothing to show: no matrix is in scope",
        "Warning   careful",
    ]


def test_a_sample_says_so_in_the_first_line() -> None:
    """Nobody takes a sample for the whole run."""
    report = report_of([spectrum(name_of(0, "mlp.up_proj"))])
    summary = replace(report.summary, num_matrices_in_run=196)
    text = show_report(replace(report, sampled=True, summary=summary))
    assert text.splitlines()[0] == (
        "Spectral report of a SAMPLE: 1 of 196 matrices, 4 checkpoints, steps 20 to 160"
    )


@pytest.mark.parametrize("width", [80, 160])
def test_hostile_names_in_a_report_are_harmless(width: int) -> None:
    """Escape sequences, markup, bidirectional marks and newlines are shown, not obeyed."""
    trust = TrustRecord(None, None, None, None, None, None, 1.0, None, HOSTILE)
    modules = [spectrum(f"model.layers.{i}.{HOSTILE}.weight") for i in range(3)]
    report = report_of(modules, trust=trust, warnings=[Notice("x", HOSTILE)])
    text = show_report(replace(report, score_name=HOSTILE), width)
    assert_fits(text, width)
    assert HOSTILE_SHOWN in text
    assert f"Warning   {HOSTILE_SHOWN}" in text


@settings(max_examples=40, deadline=None)
@given(st.lists(st.text(min_size=1, max_size=120), min_size=1, max_size=6), st.integers(70, 170))
def test_any_names_fit_any_width(names: list[str], width: int) -> None:
    """Whatever tensors, revisions and messages are called, no line is wider than the screen."""
    modules = [spectrum(name) for name in names]
    notices = [Notice("x", name) for name in names]
    assert_fits(show_report(report_of(modules, warnings=notices), width), width)
    inspection = replace(
        INSPECTION,
        pattern=names[0],
        base=BaseAnswer(names[0], names[0], names[0], names[0]),
        checkpoints=tuple(replace(checkpoint(i), revision=name) for i, name in enumerate(names)),
        scope=tuple(ScopeGroup(name, 1) for name in names),
        excluded=tuple(ExcludedTensor(name, name) for name in names),
        warnings=tuple(notices),
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
        "reads     27.8 GB in 3,210 requests (1 reading); 4 min 38 s at 100 MB/s",
        "memory    1.90 GB at most",
        "disk      3.09 GB for the output; nothing that is read is kept",
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
    """Of forty selected checkpoints the first and the last eight are listed."""
    every = tuple(checkpoint(step) for step in range(1, 41))
    text = show_inspection(replace(INSPECTION, checkpoints=every))
    rows = [line.split()[0] for line in section(text, "Selected checkpoints")[3:]]
    assert rows == [*map(str, range(1, 9)), "...", *map(str, range(33, 41))]


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
