"""What `report` shows: answers, map, tables, plots; whole screens are held against golden/.

golden/report_*.txt are of the packaged run, golden/details_*.txt of a report made by hand: where
matrices tie, the last digit of another machine would turn their order. After a wanted change run
`ALPHARL_RENEW_GOLDEN=1 pytest tests/test_report_screens.py`, which writes the files anew and fails,
look at the difference, and run the tests again without it.
"""

import io
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console
from screens import (
    GROUPS,
    HOSTILE,
    HOSTILE_SHOWN,
    STEPS,
    assert_fits,
    assert_golden,
    line_of,
    name_of,
    render,
    report_of,
    section,
    show_on_terminal,
    spectrum,
)

from alpharl_hub.cli import main
from alpharl_hub.cli.report_details import Details, LayerRanges
from alpharl_hub.cli.report_map import map_ruler, sparkline, tenth_style
from alpharl_hub.cli.report_screen import print_report
from alpharl_hub.demo.task import DEMO_RUN
from alpharl_hub.manifest import Notice, TrustRecord
from alpharl_hub.pipeline import report_run
from alpharl_hub.preparation import ScopeOptions
from alpharl_hub.reporting.report import ReportRequest
from alpharl_hub.results import ModuleSpectrum, RunPath, ScoreLine, SpectralReport
from alpharl_hub.sources.opening import RunRequest
from alpharl_hub.windows.streaming import Compute, Hooks

ALL_DETAILS = Details(LayerRanges(), "", None, None, 3, True, True)
FILES = ("--plot FILE", "--html FILE", "--csv FILE")
ESCAPES = re.compile(r"\x1b\[[0-9;]*m")


def show_report(
    report: SpectralReport, width: int = 80, details: Details | None = None, quick: bool = False
) -> str:
    """Render a report."""
    details = details or Details()
    return render(lambda console: print_report(report, console, details, quick=quick), width)


def made_report() -> SpectralReport:
    """Make a report with everything in it: layers, something outside them, a path and scores."""
    steps = (10, 20, 30, 40, 50, 60)
    modules = []
    for layer in (0, 1, 10):
        for number, group in enumerate(GROUPS[:3]):
            share = None if (layer, number) == (10, 2) else 0.125 + 0.25 * number + 0.02 * layer
            one = spectrum(
                name_of(layer, group), share, 0.9 - 0.125 * number - 0.03 * layer, steps=steps
            )
            sigma = tuple(0.001 * (number + 1) * (t + 1) for t in range(6))
            values = (sigma[-1], sigma[-1] / 2, sigma[-1] / 4)
            norm = sigma[-1] / share**0.5 if share else 0.0
            made = replace(one, sigma=sigma, frobenius=(norm,) * 6, singular_values=values)
            modules.append(made)
    modules.append(spectrum("model.connector.mlp.weight", 0.95, None, steps=steps))
    points = ((1.0, 0.5), (2.0, 0.9), (3.0, 1.0), (4.0, 0.7), (5.0, 0.2), (6.0, -0.6))
    return replace(
        report_of(modules, steps=steps, share=0.43),
        path=RunPath(points, (0.96, 0.031)),
        score_line=ScoreLine("accuracy", (0.3, 0.41, 0.5, 0.62, 0.68, 0.8), 0.01, 0.2, 0.993),
        warnings=(Notice("low_rank1_share", "said above"), Notice("gap", "step 35 is missing")),
    )


# Whole screens


@pytest.fixture(scope="module")
def packaged_run() -> SpectralReport:
    """The report of the packaged run, which all machines agree on to the digits shown."""
    request = RunRequest(run=str(DEMO_RUN), base=str(DEMO_RUN / "base"))
    return report_run(request, ScopeOptions(), ReportRequest(), Compute(), Hooks())


@pytest.mark.parametrize("width", [80, 160])
def test_the_first_screen(packaged_run: SpectralReport, width: int) -> None:
    """One screen of 24 lines with a prompt below it; colour changes no letter of it."""
    plain = render(lambda console: print_report(packaged_run, console, more=FILES), width)
    assert_fits(plain, width)
    assert len(plain.splitlines()) < 24
    stream = io.StringIO()
    console = Console(file=stream, width=width, force_terminal=True, color_system="256")
    print_report(packaged_run, console, more=FILES)
    coloured = stream.getvalue()
    assert ESCAPES.sub("", coloured) == plain
    assert_golden(f"report_{width}.txt", plain)


@pytest.mark.parametrize("width", [80, 160])
def test_the_first_screen_in_colour(packaged_run: SpectralReport, width: int) -> None:
    """The escapes are kept too: black on colours of xterm's 256, and bold."""
    stream = io.StringIO()
    console = Console(file=stream, width=width, force_terminal=True, color_system="256")
    print_report(packaged_run, console, more=FILES)
    assert_golden(f"report_colour_{width}.txt", stream.getvalue())


def test_the_command_on_a_terminal() -> None:
    """A terminal of 80 columns is sent that screen, in colour."""
    words = ["report", str(DEMO_RUN), "--base", str(DEMO_RUN / "base"), "-q"]
    assert_golden("report_colour_80.txt", show_on_terminal(words, 80, DEMO_RUN))


def show_in_pipe(*words: str, **changes: str) -> str:
    """Return what the command writes where no terminal is."""
    command = ["report", str(DEMO_RUN), "--base", str(DEMO_RUN / "base"), "-q", *words]
    answer = CliRunner().invoke(main, command, env=changes, catch_exceptions=False)
    assert answer.exit_code == 0
    return answer.stdout


def test_the_command_in_a_pipe() -> None:
    """No escapes, whatever FORCE_COLOR says, and as wide as COLUMNS."""
    assert_golden("report_160.txt", show_in_pipe(COLUMNS="160", FORCE_COLOR="1"))


@pytest.mark.parametrize("width", [80, 160])
def test_all_details(width: int) -> None:
    """Everything that can be asked for, of a report made by hand."""
    text = show_report(made_report(), width, ALL_DETAILS)
    assert_fits(text, width)
    assert_golden(f"details_{width}.txt", text)


# The answers


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
        "Rank-1?   mostly: median share 0.62 at step 160; 0.50 or more in 3 of 4 matrices",
        "Linear?   yes: leave-one-out Q^2 0.97 on step, 0.88 on score (accuracy); "
        "in-sample R^2 decides nothing",
        "Weakest   self_attn.q_proj (Q^2 0.41, share 0.49) and layer 0 (0.65, 0.59)",
        "Drift     26 degrees from the first checkpoint's direction to the last one's",
        "Trust     steady: safe to 2.5 x",
        "Warning   loading casts the weights",
    ]


@pytest.mark.parametrize(
    ("share", "q2_step", "rank1", "linear"),
    [(0.95, 0.5, "yes", "partly"), (0.5, 0.49, "mostly", "NO"), (0.49, 0.9, "NO", "yes")],
)
def test_verdicts_follow_the_medians(share: float, q2_step: float, rank1: str, linear: str) -> None:
    """From 0.9 up is yes, below 0.5 is no; a low share warns about rank-1 methods, once."""
    low = Notice("low_rank1_share", "rank-1 methods lose the rest of the update")
    text = show_report(
        report_of(
            [spectrum(name_of(0, "mlp.up_proj"))],
            share=share,
            q2_step=q2_step,
            warnings=[low] if share < 0.5 else [],
        )
    )
    assert line_of(text, "Rank-1?").split()[1] == f"{rank1}:"
    assert line_of(text, "Linear?").split()[1] == f"{linear}:"
    words = " ".join(text.split()).lower()
    assert words.count("rank-1 methods lose the rest of the update") == (share < 0.5)


def test_what_did_not_move_is_not_the_weakest() -> None:
    """A frozen group has no fit at all; the weakest is one of those that moved."""
    modules = [
        spectrum(name_of(0, "mlp.up_proj"), 0.8, 0.9),
        spectrum(name_of(1, "mlp.up_proj"), 0.9, 0.9),
        spectrum(name_of(0, "mlp.gate_proj"), 0.4, 0.9),
        spectrum(name_of(2, "self_attn.q_proj"), None, None),
    ]
    line = line_of(show_report(report_of(modules)), "Weakest")
    assert line == "Weakest   mlp.gate_proj (share 0.40) and layer 0 (0.60)"


def test_what_is_the_same_everywhere_makes_nothing_weak() -> None:
    """Numbers that look alike in all rows are left out; of equal Q^2 as shown the share counts."""
    shares = {("mlp.up_proj", 0): 0.30, ("mlp.up_proj", 1): 0.30, ("mlp.gate_proj", 0): 0.30}
    alike = [spectrum(name_of(i, group), s, 0.999) for (group, i), s in shares.items()]
    assert "Weakest" not in show_report(report_of(alike))
    layers = [
        spectrum(name_of(0, "mlp.up_proj"), 0.80, 0.996),
        spectrum(name_of(1, "mlp.up_proj"), 0.40, 0.999),
    ]
    assert line_of(show_report(report_of(layers)), "Weakest") == "Weakest   layer 1 (share 0.40)"


def test_few_checkpoints_have_no_q2() -> None:
    """Below four checkpoints Q^2 is unknown, and modules are ranked by share alone."""
    modules = [spectrum(name_of(i, "mlp.up_proj"), s, None) for i, s in enumerate((0.7, 0.3))]
    report = report_of(modules, steps=STEPS[-3:], q2_step=None)
    text = show_report(report, details=Details(modules=""))
    expected = "Linear?   unknown: Q^2 takes 4 checkpoints that differ; this report has 3"
    assert line_of(text, "Linear?") == expected
    names = [line.split()[0] for line in section(text, "Modules")[4:]]
    assert names == ["layers.1.mlp.up_proj", "layers.0.mlp.up_proj"]


def test_one_matrix_at_one_step_and_none_at_all() -> None:
    """The smallest reports print without a weakest group, and without tables."""
    one = [spectrum(name_of(0, "mlp.up_proj"), None, None, drift=None, steps=(7,))]
    report = report_of(one, steps=(7,), share=None, q2_step=None)
    text = show_report(report, details=ALL_DETAILS)
    assert text.startswith("Spectral report: 1 matrix, 1 checkpoint, step 7\n")
    assert "Rank-1?   unknown: no matrix differs from the base" in text
    assert "Weakest" not in text
    assert "1 of 1 do not differ from the base" in text
    assert "There is none: the run did not move" in text
    assert "There are no scores of all checkpoints; --scores FILE gives them" in text
    none = show_report(report_of([], share=None, q2_step=None, warnings=[Notice("x", "careful")]))
    assert none.splitlines() == [
        "Spectral report: 0 matrices, 4 checkpoints, steps 20 to 160",
        "There is nothing to show: no matrix is in scope",
        "Warning   careful",
    ]


def test_a_sample_says_so_in_the_first_line() -> None:
    """Nobody takes a sample for the whole run: one of 50 matrices is 2 %."""
    report = report_of([spectrum(name_of(0, "mlp.up_proj"))])
    summary = replace(report.summary, num_matrices_in_run=50)
    text = show_report(replace(report, sampled=True, summary=summary), quick=True)
    first, second = text.splitlines()[:2]
    assert first == ("Report of a SAMPLE: 1 of 50 matrices (2%), 4 checkpoints, steps 20 to 160")
    assert second.startswith("Rank-1?")


def test_quick_says_that_it_read_all() -> None:
    """A run that is too small for a sample is read whole, and said to be."""
    report = report_of([spectrum(name_of(0, "mlp.up_proj"))])
    said = "all: a run as small as this one needs no --quick"
    assert line_of(show_report(report, quick=True), "Read") == f"Read      {said}"
    assert "Read " not in show_report(report)


def test_numbers_that_are_none_are_shown_as_unknown() -> None:
    """NaN and infinity neither end the command nor count in a median."""
    bad = float("nan")
    broken = ModuleSpectrum(
        *(name_of(0, "mlp.up_proj"), (4, 4), (bad, bad, bad, bad), (bad,) * 4, (bad,) * 4),
        *((bad,) * 4, bad, float("inf"), bad, (bad,), bad),
    )
    report = report_of([broken, spectrum(name_of(1, "mlp.up_proj"), 0.75)], share=bad, q2_step=bad)
    path, line = RunPath(((bad, bad),) * 4, (bad, bad)), ScoreLine("s", (bad,) * 4, bad, bad, bad)
    text = show_report(replace(report, path=path, score_line=line), details=ALL_DETAILS)
    assert "nan" not in text
    assert "Rank-1?   unknown" in text
    assert "Linear?   unknown" in text
    assert line_of(text, "mlp.up_proj  ").split()[1:4] == ["0.75", "30", "0.95"]
    assert section(text, "Modules")[-1].split() == ["layers.0.mlp.up_proj", *"-----", "????"]


# The groups and their map


def test_a_group_shows_the_medians_of_its_matrices_at_the_last_step() -> None:
    """Medians by hand: sigma 0.0015, share 0.4, drift 50, Q^2 0.9; earlier steps only as bars."""
    group = "self_attn.q_proj"
    modules = [
        spectrum(name_of(0, group), 0.2, 0.8, sigma=0.001, drift=40.0),
        spectrum(name_of(1, group), 0.4, 0.9, sigma=0.002, drift=50.0),
        spectrum(name_of(2, group), 0.9, None, sigma=123.4, drift=None),
        spectrum(name_of(3, group), None, 1.0, sigma=0.0, drift=60.0),
    ]
    text = show_report(report_of(modules), 160, Details(layers=LayerRanges()))
    numbers = ["4", "0.00150", "0.250", "0.40", "2.50", "50", "0.90", "0.80", "0.99", "███▁"]
    assert line_of(text, f"{group} ").split() == [group, *numbers, "2", "4", "9", "-"]
    layers = [line.split() for line in section(text, "Layers")[4:]]
    assert layers[1][:5] == ["1", "0.00200", "0.250", "0.40", "2.50"]
    assert layers[2][:9] == ["2", "123", "0.250", "0.90", "1.11", "-", "-", "-", "0.99"]
    assert layers[3][:9] == ["3", "0", "0", "-", "-", "60", "1.00", "0.80", "0.99"]


def map_rows(text: str) -> dict[str, str]:
    """Read the map: what stands behind the bars, by group."""
    lines = section(text, "medians at")
    start = lines[0].index("share by layer")
    return {line.split()[0]: line[start:].rstrip() for line in lines[1:]}


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
    rows = map_rows(show_report(report_of(modules)))
    assert rows["step"] == "9   11  13-"
    assert rows["mlp.up_proj"] == "0 0 1 5 - ."
    assert rows["self_attn.q_proj"] == "8 9 9 . . ."
    assert rows["head.mlp"] == ". . . . . 2"


def test_layers_fold_where_there_is_no_room_for_all() -> None:
    """Ninety layers: every digit stands for as many, and the screen stays a screen."""
    modules = [
        spectrum(name_of(layer, group), 0.25 if layer < 45 else 0.75)
        for layer in range(90)
        for group in GROUPS
    ]
    text = show_report(report_of(modules))
    assert_fits(text, 80)
    assert len(text.splitlines()) <= 24
    rows = map_rows(text)
    assert all(re.fullmatch("2{15}7{15}", rows[group]) for group in GROUPS)
    assert "A column of the map is the median of the layers up to the next one's." in text
    assert rows["step"] == "0    15   30   45   60   75"


@given(st.integers(1, 200), st.integers(1, 3))
def test_a_ruler_names_the_column_below_it(num_layers: int, stride: int) -> None:
    """Whatever number stands in the ruler stands above its own layer, and none touch."""
    columns: dict[str, Sequence] = {str(layer): () for layer in range(num_layers)}
    ruler = map_ruler(columns, stride)
    found = [(match.start(), int(match[0])) for match in re.finditer(r"\d+", ruler)]
    if num_layers > 10 or stride > 1:
        assert all(start == layer * stride for start, layer in found)
        assert found[0] == (0, 0)
    else:
        assert ruler == "0123456789"[:num_layers]


def test_black_stands_on_every_colour_of_the_map() -> None:
    """WCAG asks for a contrast of 4.5; the 256 colours are xterm's cube with steps 95 to 255."""

    def channel(value: int) -> float:
        part = (0, 95, 135, 175, 215, 255)[value] / 255
        return part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4

    for tenth in range(10):
        number = int(re.findall(r"\d+", tenth_style(tenth))[-1]) - 16
        red, green, blue = (channel(number // place % 6) for place in (36, 6, 1))
        luminance = 0.2126 * red + 0.7152 * green + 0.0722 * blue
        assert tenth_style(tenth).startswith("color(16) on ")
        assert (luminance + 0.05) / 0.05 >= 7


@pytest.mark.parametrize("width", [60, 80, 160])
def test_many_long_groups_fit(width: int) -> None:
    """Forty groups with long names: thirty are shown, by the ends of their names."""
    groups = [f"linear_attn.very_long_name_of_a_projection_{i:02d}" for i in range(40)]
    modules = [spectrum(name_of(layer, g)) for layer in range(48) for g in groups]
    text = show_report(report_of(modules), width)
    assert_fits(text, width)
    assert "and 10 more: --top N shows more" in text
    shown = [line.split()[0] for line in text.splitlines() if line.startswith("..")]
    assert len(shown) == 30
    assert all(g.endswith(one.removeprefix("..")) for g, one in zip(groups, shown, strict=False))
    assert len(set(shown)) == 30


# Bars


@pytest.mark.parametrize(
    ("values", "encoding", "bars"),
    [
        ((1, 2, 3, 4, 5, 6, 7, 8), "utf-8", "▂▃▄▅▆▇██"),
        ((0, 4, 8), "ascii", ".+@"),
        ((0, 4, 8), "latin-1", ".+@"),
        ((0, 4, 8), "no such encoding", ".+@"),
        ((None, 2.0, float("nan")), "utf-8", "?█?"),
        ((0.0, 0.0), "utf-8", "▁▁"),
        ((), "utf-8", ""),
    ],
)
def test_bars_go_from_zero_to_the_largest(
    values: Sequence[float | None], encoding: str, bars: str
) -> None:
    """Eighths of the largest; ASCII where nothing else can be encoded; "?" for the unknown."""
    assert sparkline(values, 8, encoding) == bars


def test_many_checkpoints_are_thinned_out_and_keep_their_ends() -> None:
    """Of a hundred values the first, the last and six evenly between them are drawn."""
    values = [8.0, *[1.0] * 98, 4.0]
    assert sparkline(values, 8, "utf-8") == "█▂▂▂▂▂▂▅"


def test_an_ascii_console_gets_ascii(tmp_path: Path) -> None:
    """A report with every detail is written where only ASCII can be."""
    path = tmp_path / "report.txt"
    with path.open("w", encoding="ascii") as file:
        print_report(made_report(), Console(file=file, width=80), ALL_DETAILS)
    # Sixths of eight levels, by hand: 1, 2, 4, 5, 6 and the last.
    assert line_of(path.read_text(), "self_attn.q_proj").split()[4] == ":-+*#@"


# Details


def labels_of(text: str, title: str) -> list[str]:
    """Read the first word of every row of a table."""
    return [line.split()[0] for line in section(text, title)[4:]]


def test_nothing_is_shown_that_was_not_asked_for_but_its_name_is() -> None:
    """The last line names what there is to see besides, and no more once that is shown."""
    report = made_report()
    first = show_report(report)
    assert first.splitlines()[-1] == (
        "More      --layers, --modules, --spectrum 8, --path, --score-line"
    )
    every = show_report(report, details=ALL_DETAILS)
    titles = ("Layers", "Modules", "Singular values", "Path", "Score by step")
    for title in titles:
        assert not re.search(f"^{title} ", first, re.MULTILINE)
        assert re.search(f"^{title} ", every, re.MULTILINE)
    assert "More  " not in every


def test_layers_and_patterns_restrict_every_detail() -> None:
    """Only the chosen layers' chosen matrices stand in the tables; the first screen is the same."""
    report, layers = made_report(), LayerRanges(((0, 0), (5, 99)))
    details = Details(layers=layers, modules="q_proj|k_proj", num_singular_values=3)
    text = show_report(report, details=details)
    assert labels_of(text, "Layers") == ["0", "10"]
    names = {f"layers.{i}.self_attn.{p}" for i in (0, 10) for p in ("q_proj", "k_proj")}
    assert set(labels_of(text, "Modules")) == names
    assert set(labels_of(text, "Singular values")[::2]) == names
    first_screen = show_report(report).partition("\nMore")[0]
    assert text.startswith(first_screen)


def test_modules_stand_weakest_first() -> None:
    """Unknown Q^2 is worst of all; a tie goes by share; what did not move comes last."""
    fits = [(0.9, 0.99), (0.2, 0.5), (0.1, 0.5), (0.3, None), (0.6, 0.98), (0.6, -50.0)]
    modules = [spectrum(name_of(i, "mlp.up_proj"), *fit) for i, fit in enumerate(fits)]
    modules.append(spectrum(name_of(6, "mlp.up_proj"), None, None))
    text = show_report(report_of(modules), details=Details(modules=""))
    rows = section(text, "Modules")[4:]
    assert [row.split()[0] for row in rows[:-1]] == [
        f"layers.{i}.mlp.up_proj" for i in (3, 5, 2, 1, 4, 0, 6)
    ]
    assert rows[-1].startswith("1 of 7 do not differ from the base")
    assert "< -9" in rows[1]


@pytest.mark.parametrize(
    ("key", "order"),
    [
        ("sigma", [1, 2, 0, 3]),
        ("norm", [0, 1, 2, 3]),
        ("share", [0, 2, 1, 3]),
        ("-share", [1, 2, 0, 3]),
        ("stable-rank", [0, 2, 1, 3]),
        ("drift", [2, 1, 0, 3]),
        ("q2", [2, 0, 1, 3]),
        ("-q2", [1, 0, 2, 3]),
        ("q2-score", [0, 1, 2, 3]),
        ("name", [0, 1, 2, 3]),
        ("-name", [3, 2, 1, 0]),
    ],
)
def test_rows_are_sorted_by_a_key(key: str, order: list[int]) -> None:
    """Low shares and Q^2 first, else high; a minus turns it; the unknown is last either way."""
    modules = [
        spectrum(name_of(0, "mlp.up_proj"), 0.2, 0.5, sigma=0.1, drift=10.0),
        spectrum(name_of(1, "mlp.up_proj"), 0.8, 0.9, sigma=0.3, drift=20.0),
        spectrum(name_of(2, "mlp.up_proj"), 0.5, 0.3, sigma=0.2, drift=30.0),
        spectrum(name_of(3, "mlp.up_proj"), None, None, sigma=0.0, drift=None),
    ]
    text = show_report(report_of(modules), details=Details(modules="", sort=key))
    found = [int(label.split(".")[1]) for label in labels_of(text, "Modules")[:4]]
    assert found == order


def test_top_cuts_every_table_and_says_so() -> None:
    """Modules are cut at twenty, layers at none, and both where --top says."""
    modules = [spectrum(name_of(i, "mlp.up_proj"), i / 30) for i in range(25)]
    report = report_of(modules)
    text = show_report(report, details=Details(layers=LayerRanges(), modules=""))
    assert len(section(text, "Layers")) == 4 + 25
    assert section(text, "Modules")[24:] == ["and 5 more: --top N shows more, --json all of them"]
    text = show_report(report, details=Details(layers=LayerRanges(), modules="", top=3))
    assert labels_of(text, "Layers") == ["0", "1", "2", "and"]
    assert labels_of(text, "Modules") == [*(f"layers.{i}.mlp.up_proj" for i in range(3)), "and"]


def test_top_leaves_the_first_table_whole() -> None:
    """The groups are the answer to where it is weak: only more of them can be asked for."""
    modules = [spectrum(name_of(0, f"mlp.part{i}_proj"), i / 50) for i in range(40)]
    for top, num_shown in ((2, 30), (None, 30), (35, 35)):
        text = show_report(report_of(modules), details=Details(top=top))
        assert len(re.findall(r"^mlp.part\d+_proj", text, re.MULTILINE)) == num_shown


def test_a_spectrum_shows_values_and_what_they_hold_together() -> None:
    """By hand, |D|_F 5 with 4, 2 and 1: 16, 20 and 21 of 25; a smaller matrix has fewer."""
    one = replace(
        spectrum(name_of(0, "mlp.up_proj"), 0.64),
        frobenius=(5.0,) * 4,
        singular_values=(4.0, 2.0, 1.0),
    )
    small = replace(
        spectrum(name_of(1, "mlp.down_proj"), 1.0), frobenius=(3.0,) * 4, singular_values=(3.0,)
    )
    text = show_report(report_of([one, small]), details=Details(num_singular_values=3))
    assert [line.split() for line in section(text, "Singular values")[4:]] == [
        ["mlp.up_proj", "1.56", "4.00", "2.00", "1.00"],
        ["0.64", "0.80", "0.84"],
        ["mlp.down_proj", "1.00", "3.00", "-", "-"],
        ["1.00", "-", "-"],
    ]


def test_a_long_spectrum_goes_on_below() -> None:
    """Forty values do not fit beside each other; every one of them is there."""
    values = tuple(float(40 - k) for k in range(40))
    norm = sum(value**2 for value in values) ** 0.5
    one = spectrum(name_of(0, "mlp.up_proj"))
    one = replace(one, frobenius=(norm,) * 4, singular_values=values)
    text = show_report(report_of([one]), details=Details(num_singular_values=40))
    assert_fits(text, 80)
    rows = [line.split()[2:] for line in text.splitlines() if re.match("mlp.up_proj +2.00", line)]
    assert [float(cell) for row in rows for cell in row] == list(values)


# Plots


def plot_of(text: str, title: str) -> list[str]:
    """Read a plot without its frame: the rows from above, each a text of one character a cell."""
    return [line.partition("|")[2] for line in section(text, title) if " |" in line]


def test_the_path_has_its_points_where_they_belong() -> None:
    """The base stands at the origin, the highest point in the first row, the last at the right."""
    text = show_report(made_report(), details=Details(path=True))
    rows = plot_of(text, "Path")
    width = max(map(len, rows))
    marks = {(i, j) for i, row in enumerate(rows) for j, cell in enumerate(row) if cell == "o"}
    assert len(marks) == 6
    # y spans -0.6 to 1.0 in 14 rows, so that 0 lies 0.6 / 1.6 * 13 = 4.9 above the lowest.
    assert rows[13 - 5][0] == "B"
    assert (0, round((width - 1) / 2)) in marks
    assert max(marks) == (13, width - 1)
    for step in ("10", "20", "30", "40", "50", "60"):
        assert any(re.search(rf"(o {step}\b)|(\b{step} o)", row) for row in rows), step
    words = " ".join(text.split())
    assert "Across lies 96% of the squared length, up 3%" in words
    assert "the frame is 3.8 times as wide as high" in words  # 6 / 1.6 = 3.75


def test_a_score_line_tells_its_fit_and_what_it_is_worth() -> None:
    """Slope and R^2 are there, with the warning; the first score is at the left, below its line."""
    text = show_report(made_report(), details=Details(score_line=True))
    rows = plot_of(text, "Score by step")
    assert len(rows) == 14
    assert rows[-1][0] == "o"
    assert rows[0].endswith(("o", "."))
    words = " ".join(text.split())
    assert "least-squares line 0.0100 per step (.), in-sample R^2 0.99." in words
    assert "That R^2 decides nothing" in words


def test_plots_of_one_checkpoint_and_of_equal_scores() -> None:
    """A point has no line, and equal scores have one without an R^2."""
    one = [spectrum(name_of(0, "mlp.up_proj"), steps=(7,))]
    line = ScoreLine("s", (0.5,), None, None, None)
    report = replace(
        report_of(one, steps=(7,)), score_line=line, path=RunPath(((2.0, 0.0),), (1, 0))
    )
    text = show_report(report, details=Details(path=True, score_line=True))
    assert "one step makes no line" in text
    flat = ScoreLine("s", (0.5,) * 4, 0.0, 0.5, None)
    report = replace(report_of([spectrum(name_of(0, "mlp.up_proj"))]), score_line=flat)
    text = show_report(report, details=Details(score_line=True))
    assert "least-squares line 0 per step (.)." in text
    assert "decides nothing:" not in text


# Strangers' names, and the command's words


@pytest.mark.parametrize("width", [80, 160])
def test_hostile_names_in_a_report_are_harmless(width: int) -> None:
    """Escape sequences, markup, bidirectional marks and newlines are shown, not obeyed."""
    trust = TrustRecord(None, None, None, None, None, None, 1.0, None, HOSTILE)
    modules = [spectrum(f"model.layers.{i}.{HOSTILE}.weight") for i in range(3)]
    report = report_of(modules, trust=trust, warnings=[Notice("x", HOSTILE)])
    line = ScoreLine(HOSTILE, (0.1, 0.2, 0.3, 0.4), 0.1, 0.0, 1.0)
    report = replace(report, score_name=HOSTILE, score_line=line)
    text = show_report(report, width, ALL_DETAILS)
    assert_fits(text, width)
    assert HOSTILE_SHOWN in text
    assert f"Warning   {HOSTILE_SHOWN}" in text
    assert f"Score by step ({HOSTILE_SHOWN})" in text


@pytest.mark.parametrize("width", [1, 7, 20, 39])
def test_a_very_narrow_screen_is_no_error(width: int) -> None:
    """Whatever COLUMNS says, the report comes."""
    assert show_report(made_report(), width, ALL_DETAILS)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.text(min_size=1, max_size=120), min_size=1, max_size=6), st.integers(70, 170))
def test_any_names_fit_any_width(names: list[str], width: int) -> None:
    """Whatever tensors and messages are called, no line is wider than the screen."""
    modules = [spectrum(name) for name in names]
    notices = [Notice("x", name) for name in names]
    text = show_report(report_of(modules, warnings=notices), width, ALL_DETAILS)
    assert_fits(text, width)
    assert max(map(cell_len, text.splitlines())) > 40


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--modules", "./run"], "--modules took it for its value: write RUN first"),
        (["--layers", "./run"], "write layers as 0,4-7, and RUN before them"),
        (["run", "--modules", "("], "is no regular expression"),
        (["run", "--sort", "color"], "choose from name, sigma, norm"),
        (["run", "--json", "--layers"], "--layers has no meaning with --json"),
        (["run", "--spectrum", "0"], "0 is not in the range x>=1"),
        ([], "Missing argument 'RUN'"),
    ],
)
def test_words_that_make_no_report(words: list[str], said: str) -> None:
    """Before anything is read, the message says which option is meant and what to write."""
    answer = CliRunner().invoke(main, ["report", *words])
    assert answer.exit_code == 2
    assert said in " ".join(answer.output.split())


def test_options_reach_the_screen(tmp_path: Path) -> None:
    """Layers, a pattern, an order, a count, K and a file are passed on from the command's words."""
    words = ["--include", "self_attn", "--layers=1", "--modules", "[qk]_proj", "--sort", "-name"]
    table = tmp_path / "table.csv"
    text = show_in_pipe(*words, "--top", "2", "--spectrum", "2", "--csv", str(table))
    assert "layers.1.self_attn.q_proj" in table.read_text()
    assert labels_of(text, "Layers") == ["1"]
    names = ["layers.1.self_attn.q_proj", "layers.1.self_attn.k_proj"]
    assert line_of(text, "More").split()[1:] == ["--path,", "--plot", "FILE,", "--html", "FILE"]
    assert labels_of(text, "Modules") == names
    lines = [line.split() for line in section(text, "Singular values")[4:]]
    assert [line[0] for line in lines[::2]] == names
    for values, shares in zip(lines[::2], lines[1::2], strict=True):
        assert len(values) == 4
        assert 0 < float(shares[0]) < float(shares[1]) < 1
        assert abs(1 / float(shares[0]) - float(values[1])) < 0.02 * float(values[1])
