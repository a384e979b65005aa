"""`report --html`: one page that needs nothing, shows the report's numbers, and obeys no name."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from html.parser import HTMLParser

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alpharl_hub.drawing.page import MAX_MODULE_ROWS, page_bytes
from alpharl_hub.results import SpectralReport
from tests.report_maker import (
    GROUPS,
    HOSTILE,
    STEPS,
    bare_report,
    planted_names,
    planted_report,
)

VOID = {"meta", "br", "link", "img", "input", "hr"}


@dataclass
class Node:
    """An element: its attributes, its elements and its text, that of its elements included."""

    tag: str
    attributes: dict[str, str] = field(default_factory=dict)
    children: list[Node] = field(default_factory=list)
    text: str = ""

    def all(self, tag: str, css: str = "") -> list[Node]:
        """Every element below with a tag and a class."""
        return [
            node
            for node in self.walk()
            if node.tag == tag and css in ["", *node.attributes.get("class", "").split()]
        ]

    def walk(self) -> list[Node]:
        """Every element below."""
        return [found for child in self.children for found in (child, *child.walk())]

    def by_id(self, name: str) -> Node:
        """The only element of that id."""
        (node,) = (node for node in self.walk() if node.attributes.get("id") == name)
        return node


class Reader(HTMLParser):
    """Reads a page strictly: whatever is opened is closed, in the right order."""

    def __init__(self) -> None:
        super().__init__()
        self.root = Node("")
        self.open = [self.root]
        self.comments: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Go into an element."""
        assert len({name for name, _ in attrs}) == len(attrs), "an attribute stands twice"
        node = Node(tag, {name: value or "" for name, value in attrs})
        self.open[-1].children.append(node)
        if tag not in VOID:
            self.open.append(node)

    def handle_endtag(self, tag: str) -> None:
        """Leave an element."""
        assert self.open.pop().tag == tag

    def handle_data(self, data: str) -> None:
        """Keep text with all elements that it is in."""
        for node in self.open:
            node.text += data

    def handle_comment(self, data: str) -> None:
        """Keep comments apart."""
        self.comments.append(data)


def read(report: SpectralReport, run: str = "org/run") -> Node:
    """Read the page of a report."""
    text = page_bytes(report, run).decode("utf-8")
    reader = Reader()
    reader.feed(text)
    reader.close()
    assert reader.open == [reader.root]
    assert reader.comments == []
    return reader.root


def cells_of(table: Node) -> dict[str, list[str]]:
    """The values of a table's rows by their first cell; what is unknown is empty."""
    (body,) = table.all("tbody")
    return {
        row.children[0].text: [cell.attributes.get("data-v", "") for cell in row.children[1:]]
        for row in body.children
    }


def table_of(page: Node, heading: str) -> Node:
    """The table of a section."""
    for section in page.all("section"):
        if section.children and section.children[0].text == heading:
            (table,) = section.all("table")
            return table
    raise AssertionError(heading)


def drawn_numbers(page: Node, name: str) -> list[np.ndarray]:
    """Read the lines of a chart back in the units of its ticks: an array of (x, y) for each."""
    title = page.by_id(f"{name}-title")
    (chart,) = (svg for svg in page.all("svg", "chart") if title in svg.children)
    to_x = _scale(chart.all("text", "tick-x"), "x", 0)
    to_y = _scale(chart.all("text", "tick-y"), "y", -4)
    found = []
    for line in chart.all("path", "line"):
        pairs = re.findall(r"[ML]([-\d.]+) ([-\d.]+)", line.attributes["d"])
        places = np.array([[float(x), float(y)] for x, y in pairs])
        found.append(np.stack([to_x(places[:, 0]), to_y(places[:, 1])], axis=1))
    return found


def _scale(ticks: Sequence[Node], axis: str, offset: float) -> np.poly1d:
    """From pixels to numbers; a label stands `offset` above its tick."""
    places = [float(tick.attributes[axis]) + offset for tick in ticks]
    values = [float(tick.text.replace("\u2212", "-")) for tick in ticks]
    assert len(ticks) > 1
    return np.poly1d(np.polyfit(places, values, 1))


def matrices_of(report: SpectralReport, group: str) -> list:
    """The matrices of a group, by the end of their names."""
    return [matrix for matrix in report.modules if matrix.name.endswith(f".{group}.weight")]


def test_the_page_answers_first_and_holds_everything() -> None:
    """Heading, answers and warnings come before drawings, those before tables."""
    page = read(planted_report())
    assert [h.text for h in page.all("h1")] == ["Spectral report: org/run"]
    assert page.all("title")[0].text == "Spectral report: org/run"
    assert [dt.text for dt in page.all("dt")] == [
        "Is it rank-1?",
        "Is it linear?",
        "Did it turn?",
        "How far can it be followed?",
    ]
    assert [dd.children[0].text for dd in page.all("dd")] == ["mostly", "yes", "26°", "steady"]
    assert page.all("ul", "warnings")[0].text == "the base looks odd"
    order = [
        n.tag for n in page.walk() if n.tag in ("dl", "table") or n in page.all("svg", "chart")
    ]
    assert order == ["dl", *["svg"] * 10, *["table"] * 3]


def test_sigma_is_drawn_as_median_and_range() -> None:
    """Lines and bands, read back by their ticks, are numpy's over the layers."""
    report, page = planted_report(), read(planted_report())
    for number, group in enumerate(GROUPS):
        sigma_LT = np.array([matrix.sigma for matrix in matrices_of(report, group)])
        (line,) = drawn_numbers(page, f"sigma-{number}")
        np.testing.assert_allclose(line[:, 0], STEPS, atol=0.02)
        np.testing.assert_allclose(line[:, 1], np.median(sigma_LT, axis=0), atol=2e-5)
        title = page.by_id(f"sigma-{number}-title")
        (chart,) = (svg for svg in page.all("svg", "chart") if title in svg.children)
        (band,) = chart.all("path", "band")
        assert band.attributes["d"].count("L") == 2 * len(STEPS) - 1


def test_share_drift_spectrum_path_and_score_are_drawn_as_they_are() -> None:
    """Every other chart reads back to the report's numbers too."""
    report, page = planted_report(), read(planted_report())
    assert report.path is not None
    assert report.score_line is not None
    for number, group in enumerate(GROUPS):
        matrices = matrices_of(report, group)
        shares = np.median([m.rank1_share for m in matrices], axis=0)
        np.testing.assert_allclose(drawn_numbers(page, "share")[number][:, 1], shares, atol=1e-3)
        angles = [[np.nan if d is None else d for d in m.drift] for m in matrices]
        drift = drawn_numbers(page, "drift")[number][:, 1]
        np.testing.assert_allclose(drift, np.nanmedian(angles, axis=0), atol=0.05)
        spectra = np.array([m.singular_values for m in matrices])
        relative = np.median(spectra / spectra[:, :1], axis=0)
        spectrum = drawn_numbers(page, "spectrum")[number]
        np.testing.assert_allclose(spectrum[:, 0], [1, 2, 3, 4], atol=1e-3)
        np.testing.assert_allclose(spectrum[:, 1], relative, atol=1e-3)
    (path,) = drawn_numbers(page, "path")
    np.testing.assert_allclose(path, [(0, 0), *report.path.points], atol=2e-3)
    (line,) = drawn_numbers(page, "score")
    expected = np.polyval(np.polyfit(STEPS, report.score_line.scores, 1), [STEPS[0], STEPS[-1]])
    np.testing.assert_allclose(line[:, 1], expected, atol=1e-3)


def test_one_unit_is_as_long_in_both_directions_of_the_path() -> None:
    """A path that bends looks as bent as it is."""
    page = read(planted_report())
    title = page.by_id("path-title")
    (chart,) = (svg for svg in page.all("svg", "chart") if title in svg.children)
    per_x = _scale(chart.all("text", "tick-x"), "x", 0)[1]
    per_y = _scale(chart.all("text", "tick-y"), "y", -4)[1]
    assert per_x == pytest.approx(-per_y, rel=1e-3)


def test_maps_have_a_cell_for_each_group_and_layer() -> None:
    """The colour is the nearest tenth of the median; the unknown has a look of its own."""
    report, page = planted_report(), read(planted_report())
    for name, value in (("map-share", "rank1_share"), ("map-q2", "q2_step")):
        title = page.by_id(f"{name}-title")
        (chart,) = (svg for svg in page.all("svg", "chart") if title in svg.children)
        cells = {cell.text.split(": ")[0]: cell.attributes["class"] for cell in chart.all("rect")}
        assert len(cells) == len(report.modules)
        for matrix in report.modules:
            _, _, layer, block, module, _ = matrix.name.split(".")
            number = getattr(matrix, value)
            number = number[-1] if isinstance(number, tuple) else number
            tenth = "-" if number is None else str(int(np.rint(10 * np.clip(number, 0, 1))))
            assert cells[f"{block}.{module}, layer {layer}"] == f"q{tenth}"


def test_tables_hold_the_numbers_with_all_digits() -> None:
    """Groups have numpy's medians, matrices their own, and every row a course of sigma."""
    report, page = planted_report(), read(planted_report())
    groups = cells_of(table_of(page, "Module groups"))
    for group in GROUPS:
        matrices = matrices_of(report, group)
        count, sigma, frobenius, share, *_ = groups[group]
        assert int(count) == len(matrices) == 3
        assert float(sigma) == np.median([m.sigma[-1] for m in matrices])
        assert float(frobenius) == np.median([m.frobenius[-1] for m in matrices])
        assert float(share) == np.median([m.rank1_share[-1] for m in matrices])
    rows = cells_of(table_of(page, "Matrices"))
    for m in report.modules:
        expected = [m.sigma[-1], m.frobenius[-1], m.rank1_share[-1], m.drift[0], m.q2_step]
        told = [float(cell) if cell else None for cell in rows[m.name][:5]]
        assert told == expected
    first, *_, last = (row[4] for row in rows.values())
    known = [m.q2_step for m in report.modules if m.q2_step is not None]
    assert (first, float(last)) == ("", max(known))
    assert len(page.all("svg", "spark")) == len(GROUPS) + len(report.modules)
    steps = cells_of(table_of(page, "Checkpoints"))
    assert report.score_line is not None
    scores = [float(row[0]) for row in steps.values()]
    assert dict(zip(map(int, steps), scores, strict=True)) == dict(
        zip(STEPS, report.score_line.scores, strict=True)
    )


def test_nothing_is_fetched_and_only_our_own_script_and_style_are_obeyed() -> None:
    """The policy allows two hashes, which are those of the two elements; there is no address."""
    text = page_bytes(planted_report()).decode()
    page = read(planted_report())
    (policy,) = (
        meta.attributes["content"]
        for meta in page.all("meta")
        if meta.attributes.get("http-equiv") == "Content-Security-Policy"
    )
    assert policy.startswith("default-src 'none'; ")
    for tag, directive in (("style", "style-src"), ("script", "script-src")):
        (node,) = page.all(tag)
        digest = base64.b64encode(hashlib.sha256(node.text.encode()).digest()).decode()
        assert f"{directive} 'sha256-{digest}'" in policy
    assert "unsafe" not in policy
    assert not re.search(r"https?:|//[a-z]|url\(|@import", text)
    names = {name for node in page.walk() for name in node.attributes}
    assert not {name for name in names if name.startswith("on")}
    assert not names & {"src", "href", "srcset", "action", "style", "xlink:href", "data", "poster"}


def test_it_can_be_read_by_everybody() -> None:
    """Language, width of the screen, headings in order, and words for every drawing and table."""
    page = read(planted_report())
    assert page.children[0].attributes["lang"] == "en"
    metas = {m.attributes.get("name"): m.attributes.get("content") for m in page.all("meta")}
    assert metas["viewport"] == "width=device-width, initial-scale=1"
    assert "prefers-color-scheme:dark" in page.all("style")[0].text
    levels = [int(node.tag[1]) for node in page.walk() if re.fullmatch("h[1-6]", node.tag)]
    assert levels[0] == 1
    assert set(levels[1:]) == {2}
    ids = [node.attributes["id"] for node in page.walk() if "id" in node.attributes]
    assert len(ids) == len(set(ids))
    for svg in page.all("svg"):
        if svg.attributes.get("aria-hidden") == "true":
            continue
        assert svg.attributes["role"] == "img"
        if "aria-label" not in svg.attributes:
            assert page.by_id(svg.attributes["aria-labelledby"]).text
            assert page.by_id(svg.attributes["aria-describedby"]).text
    for table in page.all("table"):
        assert table.children[0].tag == "caption"
        assert all(th.attributes["scope"] == "col" for th in table.children[1].all("th"))
    for frame in page.all("div", "wide"):
        assert frame.attributes["tabindex"] == "0"


@given(st.lists(st.text(max_size=20) | st.sampled_from(HOSTILE), min_size=3, max_size=3))
@settings(max_examples=20, deadline=None)
def test_no_name_acts(words: list[str]) -> None:
    """Whatever is in names of runs, tensors and scores, the elements are those of a plain page."""
    run, name, other = words
    hostile = planted_report([f"c.{name}.mlp", "b.mlp"], score_name=other or "x", message=other)
    plain = planted_report(["c.a.mlp", "b.mlp"], score_name="x", message="x")
    page = read(hostile, run or "x")
    skeleton = [(node.tag, sorted(node.attributes)) for node in page.walk()]
    assert skeleton == [(node.tag, sorted(node.attributes)) for node in read(plain, "x").walk()]
    assert page_bytes(hostile, run).decode().replace("\n", "").isprintable()


def test_strangers_words_are_shown_as_they_are() -> None:
    """What looks like markup is text; what cannot be printed is spelt out."""
    page = read(planted_report(["x.mlp"], message=HOSTILE[0]), HOSTILE[3])
    assert page.all("ul", "warnings")[0].text == HOSTILE[0]
    shown = "]]>&amp;\\x1b[2J\\u202e\\ud800\\r\\n"
    assert page.all("h1")[0].text == f"Spectral report: {shown}"


def test_a_model_of_many_experts_gives_a_page_of_bounded_size() -> None:
    """The worst matrices are listed, and it is said how many there are."""
    groups = [f"mlp.experts.{i}.{kind}" for i in range(64) for kind in ("up_proj", "down_proj")]
    report = planted_report(planted_names(12, groups))
    data = page_bytes(report)
    assert len(data) < 1_000_000
    table = table_of(read(report), "Matrices")
    assert len(cells_of(table)) == MAX_MODULE_ROWS
    assert "the first 500 of 1,536" in table.all("caption")[0].text


def test_more_groups_than_styles_are_drawn_together() -> None:
    """Seven groups have lines of their own; what is left over has one."""
    groups = [f"mlp.part_{i}" for i in range(11)]
    report = planted_report(planted_names(2, groups))
    page = read(report)
    labels = [item.text for item in page.all("ul", "legend")[0].children]
    assert labels == [*groups[:7], "4 other groups"]
    rest = [m.sigma for group in groups[7:] for m in matrices_of(report, group)]
    (line,) = drawn_numbers(page, "sigma-7")
    np.testing.assert_allclose(line[:, 1], np.median(rest, axis=0), atol=2e-5)
    assert len(cells_of(table_of(page, "Module groups"))) == 11


def test_what_is_not_there_is_left_out() -> None:
    """One step without scores has no path; without matrices there is a sentence."""
    page = read(bare_report(), "")
    ids = {node.attributes.get("id") for node in page.walk()}
    assert not ids & {"path-title", "score-title", "spectrum-title", "map-q2-title"}
    assert "map-share-title" in ids
    assert page.all("h1")[0].text == "Spectral report"
    nothing = read(planted_report([]))
    assert "no matrix is in scope" in nothing.text
    assert nothing.all("table") == []


def test_the_same_report_gives_the_same_bytes() -> None:
    """Nothing of the hour or of this process gets in."""
    assert page_bytes(planted_report(), "r") == page_bytes(planted_report(), "r")
