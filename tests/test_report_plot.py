"""`report --plot`: a figure for a paper, the same each time, that hides nothing from anybody."""

from __future__ import annotations

import hashlib
import re
import struct
import subprocess
import sys
import zlib
from pathlib import Path
from xml.etree import ElementTree

import matplotlib
import numpy as np
import pytest

from alpharl_hub.cli.report_files import ReportFile, write_report_files
from alpharl_hub.drawing.figures import report_figure
from alpharl_hub.drawing.palette import DARK, LIGHT, STYLES, shade, shade_class
from alpharl_hub.errors import WriteError
from tests.report_maker import (
    GROUPS,
    HOSTILE,
    STEPS,
    bare_report,
    planted_names,
    planted_report,
)

SVG = "{http://www.w3.org/2000/svg}"
ROOT = Path(__file__).parent.parent

# Simulated colour vision after Machado, Oliveira and Fernandes (2009), severity 1, on linear RGB.
# https://www.inf.ufrgs.br/~oliveira/pubs_files/CVD_Simulation/CVD_Simulation.html
VISIONS = {
    "usual": np.eye(3),
    "protanopia": np.array(
        [
            [0.152286, 1.052583, -0.204868],
            [0.114503, 0.786281, 0.099216],
            [-0.003882, -0.048116, 1.051998],
        ]
    ),
    "deuteranopia": np.array(
        [
            [0.367322, 0.860646, -0.227968],
            [0.280085, 0.672501, 0.047413],
            [-0.011820, 0.042940, 0.968881],
        ]
    ),
    "tritanopia": np.array(
        [
            [1.255528, -0.076749, -0.178779],
            [-0.078411, 0.930809, 0.147602],
            [0.004733, 0.691367, 0.303900],
        ]
    ),
}
TO_XYZ = np.array(
    [
        [0.4124564, 0.3575761, 0.1804375],
        [0.2126729, 0.7151522, 0.0721750],
        [0.0193339, 0.1191920, 0.9503041],
    ]
)


@pytest.fixture(scope="module")
def drawing() -> ElementTree.Element:
    """The planted report as SVG."""
    return ElementTree.fromstring(report_figure(planted_report(), "svg"))


def drawn_places(drawing: ElementTree.Element, name: str) -> np.ndarray:
    """The corners of a line, in pixels: (x, y) from the upper left."""
    (group,) = (g for g in drawing.iter(f"{SVG}g") if g.get("id") == name)
    path = group.find(f"{SVG}path")
    assert path is not None
    pairs = re.findall(r"[ML] ([-\d.]+) ([-\d.]+)", path.get("d", ""))
    return np.array(pairs, dtype=float)


def assert_on_one_scale(drawing: ElementTree.Element, expected: dict[str, np.ndarray]) -> None:
    """Check that each line's heights are one straight function of its numbers, for all of them."""
    heights = np.concatenate([drawn_places(drawing, name)[:, 1] for name in expected])
    numbers = np.concatenate(list(expected.values()))
    slope, start = np.polyfit(numbers, heights, 1)
    assert slope < 0
    np.testing.assert_allclose(heights, slope * numbers + start, atol=0.02)


def test_lines_are_the_medians_on_one_scale(drawing: ElementTree.Element) -> None:
    """Sigma, share, drift and spectrum, read back from the file, are numpy's medians."""
    report = planted_report()
    expected: dict[str, dict[str, np.ndarray]] = {"sigma": {}, "share": {}, "spectrum": {}}
    for number, group in enumerate(GROUPS):
        matrices = [m for m in report.modules if m.name.endswith(f".{group}.weight")]
        sigma = np.median([m.sigma for m in matrices], axis=0)
        share = np.median([m.rank1_share for m in matrices], axis=0)
        spectra = np.array([m.singular_values for m in matrices])
        relative = np.median(spectra / spectra[:, :1], axis=0)
        expected["sigma"][f"sigma-{number}"] = sigma
        expected["share"][f"share-{number}"] = share
        expected["spectrum"][f"spectrum-{number}"] = relative
        steps = drawn_places(drawing, f"share-{number}")[:, 0]
        fit = np.polyfit(STEPS, steps, 1)
        np.testing.assert_allclose(steps, np.polyval(fit, STEPS), atol=0.02)
    for name in ("share", "spectrum", "sigma"):
        assert_on_one_scale(drawing, expected[name])


def test_path_and_score_are_those_of_the_report(drawing: ElementTree.Element) -> None:
    """The path begins at the base, has one scale for both directions, and the line is the fit."""
    report = planted_report()
    assert report.path is not None
    assert report.score_line is not None
    points = np.array([(0.0, 0.0), *report.path.points])
    places = drawn_places(drawing, "path")
    across, down = (
        np.polyfit(points[:, 0], places[:, 0], 1),
        np.polyfit(*(points.T[1], places.T[1]), 1),
    )
    np.testing.assert_allclose(places[:, 0], np.polyval(across, points[:, 0]), atol=0.02)
    np.testing.assert_allclose(places[:, 1], np.polyval(down, points[:, 1]), atol=0.02)
    assert across[0] == pytest.approx(-down[0], rel=5e-3)
    ends = drawn_places(drawing, "score-line")
    fit = np.polyfit(STEPS, report.score_line.scores, 1)
    line = np.polyval(fit, [STEPS[0], STEPS[-1]])
    (marks,) = (g for g in drawing.iter(f"{SVG}g") if g.get("id") == "scores")
    uses = np.array(
        [[float(u.get("x", "")), float(u.get("y", ""))] for u in marks.iter(f"{SVG}use")]
    )
    assert len(uses) == len(STEPS)
    scale = np.polyfit(report.score_line.scores, uses[:, 1], 1)
    np.testing.assert_allclose(uses[:, 1], np.polyval(scale, report.score_line.scores), atol=0.02)
    np.testing.assert_allclose(ends[:, 1], np.polyval(scale, line), atol=0.02)


def test_a_png_is_as_wide_as_two_columns_at_300_dots_an_inch() -> None:
    """It is 7 inches wide; its chunks are whole, and none holds a date."""
    data = report_figure(bare_report(), "png")
    chunks, start = {}, 8
    while start < len(data):
        (length,) = struct.unpack(">I", data[start : start + 4])
        kind, content = data[start + 4 : start + 8], data[start + 8 : start + 8 + length]
        (checksum,) = struct.unpack(">I", data[start + 8 + length : start + 12 + length])
        assert zlib.crc32(kind + content) == checksum
        chunks[kind] = content
        start += 12 + length
    assert struct.unpack(">I", chunks[b"IHDR"][:4]) == (2100,)
    dots_per_metre, _, _ = struct.unpack(">IIB", chunks[b"pHYs"])
    assert dots_per_metre * 0.0254 == pytest.approx(300, rel=1e-3)
    assert b"tIME" not in chunks
    assert chunks[b"tEXt"].startswith(b"Software\x00alpharl-hub")


def test_fonts_are_embedded_as_outlines(drawing: ElementTree.Element) -> None:
    """A PDF holds TrueType fonts and no Type 3; an SVG has shapes for letters, and no address."""
    data = report_figure(bare_report(), "pdf")
    assert b"/FontFile2" in data
    assert b"/Type3" not in data
    assert b"CreationDate" not in data
    assert list(drawing.iter(f"{SVG}text")) == []
    assert drawing.get("width") == "504pt"
    links = {value for node in drawing.iter() for key, value in node.items() if "href" in key}
    assert all(link.startswith(("#", "data:")) for link in links)


@pytest.mark.parametrize("file_format", ["png", "svg", "pdf"])
def test_a_figure_is_written_whole_and_replaces_only_figures_of_ours(
    tmp_path: Path, file_format: str
) -> None:
    """It is the drawn bytes and nothing beside them; somebody else's picture is refused."""
    path, foreign = tmp_path / f"r.{file_format.upper()}", tmp_path / f"foreign.{file_format}"
    options = {"plot_file": path, "html_file": None, "csv_file": None}
    assert write_report_files(planted_report([]), options) == [path]
    assert list(tmp_path.iterdir()) == [path]
    kind = ReportFile((f".{file_format}",), is_drawn=True)
    assert kind.convert(str(path), None, None) == path
    assert write_report_files(planted_report([]), options) == [path]
    foreign.write_bytes(b"a picture")
    with pytest.raises(WriteError, match="did not make it"):
        kind.convert(str(foreign), None, None)


DRAW = """
import hashlib
from alpharl_hub.drawing.figures import report_figure
from tests.report_maker import bare_report
for file_format in ("svg", "pdf"):
    print(hashlib.sha256(report_figure(bare_report(), file_format)).hexdigest())
"""


def test_other_processes_and_settings_give_the_same_bytes(tmp_path: Path) -> None:
    """Neither the hour, nor the seed of hashes, nor a matplotlibrc of the user gets in."""
    (tmp_path / "matplotlibrc").write_text(
        "font.size: 20\nsvg.fonttype: none\nlines.linewidth: 9\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", DRAW],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT), "PYTHONHASHSEED": "77", "HOME": str(tmp_path)},
    )
    own = [report_figure(bare_report(), name) for name in ("svg", "pdf")]
    assert done.stdout.split() == [hashlib.sha256(data).hexdigest() for data in own]


def test_settings_of_the_caller_are_left_alone() -> None:
    """A notebook's own figures look after ours as before."""
    before = dict(matplotlib.rcParams)
    report_figure(planted_report([]), "svg")
    assert dict(matplotlib.rcParams) == before


def test_names_that_are_formulas_or_lack_letters_are_drawn() -> None:
    """Dollar signs are no formula, and other scripts no reason to warn or stop."""
    names = [f"model.layers.0.{name}.mlp" for name in HOSTILE]
    report = planted_report(names, score_name=HOSTILE[4])
    assert report_figure(report, "pdf").startswith(b"%PDF-")


def test_more_groups_than_styles_share_the_last_one() -> None:
    """Eight lines are drawn at most, whatever the number of groups."""
    report = planted_report(planted_names(1, [f"mlp.part_{i}" for i in range(10)]))
    drawing = ElementTree.fromstring(report_figure(report, "svg"))
    ids = {g.get("id", "") for g in drawing.iter(f"{SVG}g")}
    assert {name for name in ids if name.startswith("sigma-")} == {f"sigma-{i}" for i in range(8)}


MISSING = """
import sys
sys.modules["matplotlib"] = None
import click
from alpharl_hub.cli.report_files import report_file_options
from alpharl_hub.errors import AlphaRLError
@click.command()
@report_file_options
def command(**options):
    print("the run is read")
try:
    command.main(sys.argv[1:], standalone_mode=False)
except AlphaRLError as error:
    print(error)
"""


def test_a_missing_matplotlib_is_told_before_anything_is_read(tmp_path: Path) -> None:
    """One line says what to install; a page takes no matplotlib."""
    for option, name, told in (
        ("--plot", "r.png", "--plot: matplotlib is missing, which draws it; "),
        ("--html", "r.html", "the run is read"),
    ):
        done = subprocess.run(
            [sys.executable, "-c", MISSING, option, str(tmp_path / name)],
            capture_output=True,
            text=True,
            check=True,
            env={"PYTHONPATH": str(ROOT)},
        )
        assert done.stdout.startswith(told)
        assert done.stdout.count("\n") == 1
        assert ("pip install 'alpharl-hub[plot]'" in done.stdout) == (option == "--plot")


def linear(colour: str) -> np.ndarray:
    """A colour as linear RGB from 0 to 1."""
    coded = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    return np.where(coded <= 0.04045, coded / 12.92, ((coded + 0.055) / 1.055) ** 2.4)


def lab(rgb: np.ndarray) -> np.ndarray:
    """Linear RGB as CIE L*a*b* under D65."""
    xyz = TO_XYZ @ np.clip(rgb, 0, 1) / np.array([0.95047, 1, 1.08883])
    x, y, z = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize("is_dark", [False, True])
def test_lines_differ_for_everybody_and_stand_out(is_dark: bool) -> None:
    """Every pair differs by 20 or more under each kind of vision; contrast is 3 or more."""
    colours = [style.dark if is_dark else style.light for style in STYLES]
    for vision in VISIONS.values():
        seen = [lab(vision @ linear(colour)) for colour in colours]
        gaps = [np.linalg.norm(a - b) for i, a in enumerate(seen) for b in seen[:i]]
        assert min(gaps) > 20
    paper = (TO_XYZ @ linear((DARK if is_dark else LIGHT).paper))[1]
    for colour in colours:
        low, high = sorted([paper, (TO_XYZ @ linear(colour))[1]])
        assert (high + 0.05) / (low + 0.05) >= 3


def test_no_two_lines_differ_by_colour_alone() -> None:
    """Dash and marker are each used once."""
    assert len({style.dash for style in STYLES}) == len({style.marker for style in STYLES}) == 8


def test_shades_become_lighter_all_the_way() -> None:
    """A copy of the map in grey keeps its order; numbers outside have the colours of the ends."""
    lightness = [lab(linear(shade(i / 100)))[0] for i in range(101)]
    assert (np.diff(lightness) > 0).all()
    assert (shade(-3), shade(7)) == (shade(0), shade(1))
    assert [shade_class(value) for value in (-9, 0.04, 0.06, 0.94, 0.96, 2)] == [0, 0, 1, 9, 10, 10]
