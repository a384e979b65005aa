"""A backtest of the run in its model's card: taken from a real answer, kept, and refused if not."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from manifest_maker import manifest, method
from test_hostile_text import OUR_TAGS, TEXT, read_page, split_card, structure
from trajectories import fail, succeed

from alpharl_hub.card.backtests import with_backtest
from alpharl_hub.card.make import CardFacts, card_files, make_card
from alpharl_hub.card.rebuild import rebuild_card
from alpharl_hub.demo.task import DEMO_RUN
from alpharl_hub.errors import CardError
from alpharl_hub.manifest import AutoRecord, BacktestRecord, BacktestRow, read_manifest

RUN = (str(DEMO_RUN), "--base", str(DEMO_RUN / "base"))
TARGET_STEP = 200


@pytest.fixture(scope="module")
def answer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `backtest --json` wrote of the packaged run."""
    path = tmp_path_factory.mktemp("backtest") / "backtest.json"
    path.write_text(succeed("backtest", *RUN, "--fit-until", "40%", "--json").stdout)
    return path


@pytest.fixture(scope="module")
def predicted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model predicted from the same run."""
    folder = tmp_path_factory.mktemp("predicted") / "out"
    how = ("--until", "40%", "--target-step", str(TARGET_STEP), "--fit-last", "50%")
    succeed("predict", *RUN, *how, "--method", "linear", "-o", str(folder))
    return folder


@pytest.fixture
def output(predicted: Path, tmp_path: Path) -> Path:
    """A copy of that model that a test may change."""
    return Path(shutil.copytree(predicted, tmp_path / "out"))


def section_of(card: str) -> str:
    """The section on the backtest."""
    return card.split("### Backtest\n")[1].split("\n##")[0]


def rows_of(section: str) -> list[list[str]]:
    """The cells of its table, without the header."""
    lines = [line for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def changed(answer: Path, where: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """Write the answer with something in it changed."""
    document = json.loads(answer.read_text())
    change(document)
    where.write_text(json.dumps(document))
    return where


def test_the_numbers_are_those_of_the_answer(answer: Path, output: Path) -> None:
    """Verdict and tests stand in the evidence; nothing is written until it is asked for."""
    before = (output / "alpharl.json").read_bytes()
    shown = succeed("card", output, "--backtest", answer).stdout
    document = json.loads(answer.read_text())
    section = section_of(shown.split("## Evidence")[1].split("\n## ")[0])
    assert f"**{document['verdict']['sentence']}.**" in section
    expected = []
    for window in document["windows"]:
        for truth in window["truths"]:
            tests = {test["method"]: test["resolved"] for test in truth["methods"]}
            cells = [str(window["direction"]["last_step"]), str(truth["step"])]
            cells.append(f"{truth['ratio']:.3g} x")
            for name in ("last", "linear-half", "auto"):
                for value in (tests[name]["error"], tests[name]["cosine"]):
                    cells.append("-" if value is None else f"{value:.3g}")
            expected.append(cells)
    assert len(expected) > 1
    assert rows_of(section) == expected
    assert "| `linear-half` (this model's method) error |" in section
    assert f"from step {document['now']['last_step']}; this model is one from step 96," in section
    assert f" at {TARGET_STEP / 96:.3g} x." in section
    steps = document["steps"]
    assert f"read {len(steps)} steps ({steps[0]} to {steps[-1]})," in section
    assert (output / "alpharl.json").read_bytes() == before


def test_it_stays_when_scores_are_entered_later(answer: Path, output: Path) -> None:
    """It is in alpharl.json, of three methods alone, and in every card that is made of it."""
    succeed("card", output, "--backtest", answer, "--write")
    section = section_of((output / "README.md").read_text())
    (output / "README.md").unlink()
    succeed("card", output, "--score", "gsm8k=0.5", "--write")
    text = (output / "README.md").read_text()
    assert section_of(text) == section
    assert "`gsm8k` 0.5" in text
    kept = read_manifest((output / "alpharl.json").read_bytes(), "alpharl.json").backtest
    assert kept is not None
    assert {row.method for row in kept.rows} == {"last", "linear-half", "auto"}


def test_a_model_made_again_has_it(answer: Path, output: Path, tmp_path: Path) -> None:
    """`predict --from` predicts from the same run, so that the backtest holds there too."""
    succeed("card", output, "--backtest", answer, "--write")
    again = tmp_path / "again"
    succeed("predict", *RUN, "--from", output / "alpharl.json", "-o", str(again))
    first, second = ((folder / "README.md").read_text() for folder in (output, again))
    assert section_of(second) == section_of(first)


def test_another_answer_takes_its_place(answer: Path, output: Path, tmp_path: Path) -> None:
    """There is one backtest in a card: the one that was given last."""
    succeed("card", output, "--backtest", answer, "--write")

    def keep(document: dict[str, Any]) -> None:
        document["verdict"].update(code="keep", sentence="Keep what you have", horizon=1.0)
        document["windows"] = []
        document["sampled"] = True

    section = section_of(
        succeed("card", output, "--backtest", changed(answer, tmp_path / "other.json", keep)).stdout
    )
    assert "**Keep what you have.**" in section
    assert "safe" not in section
    assert "in a sample of the layers" in section
    assert "It could test nothing." in section


def broken(name: str) -> Callable[[dict[str, Any]], None]:
    """A change that makes an answer none of ours."""

    def change(document: dict[str, Any]) -> None:
        changes: dict[str, Callable[[], object]] = {
            "schema": lambda: document.update(schema=2),
            "unknown key": lambda: document.update(more=1),
            "missing key": lambda: document.pop("now"),
            "type": lambda: document["windows"][0]["truths"][0].update(step="120"),
            "code": lambda: document["verdict"].update(code="great\n\x1b[31m"),
            "steps": lambda: document.update(steps=[7, 11]),
            "size": lambda: document["verdict"].update(sentence="x" * (5 << 20)),
        }
        changes[name]()

    return change


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("schema", "schema 2 is not 1"),
        ("unknown key", "unknown key 'more'"),
        ("missing key", "'now' is missing"),
        ("type", "expected int, found str"),
        ("code", "its verdict 'great"),
        ("steps", "none of its steps (7 to 11) is one of this model's (12 to 96)"),
        ("size", "more than any backtest writes"),
    ],
)
def test_wrong_answers_are_one_line(
    answer: Path, output: Path, tmp_path: Path, name: str, words: str
) -> None:
    """Another schema, shape, verdict or run is refused, and the folder stays as it is."""
    before = (output / "README.md").read_bytes()
    path = changed(answer, tmp_path / "wrong.json", broken(name))
    line = fail("card", output, "--write", "--backtest", path)
    assert words in line
    assert "--backtest" in line
    assert line.isprintable()
    assert (output / "README.md").read_bytes() == before


@pytest.mark.parametrize("text", ["", "[]", "{", '"x"', '{"schema": 1}'])
def test_other_files_are_one_line(output: Path, tmp_path: Path, text: str) -> None:
    """What is no answer of a backtest is told with what is."""
    path = tmp_path / "other.json"
    path.write_text(text)
    assert "it takes what `alpharl-hub backtest RUN --json` wrote" in fail(
        "card", output, "--backtest", path
    )
    assert "no answer of a backtest" in fail("card", output, "--backtest", output / "alpharl.json")


def record(text: str, **changes: object) -> BacktestRecord:
    """A backtest of the made-up run, with that text wherever one can be."""
    rows = tuple(
        BacktestRow(20, 40, 2.0, name, error, None)
        for name, error in ((text, 0.25), ("last", 1.0), ("auto", None))
    )
    values: dict[str, object] = {
        "steps": (10, 20, 40),
        "last_step": 40,
        "sampled": False,
        "code": "safe",
        "horizon": 2.0,
        "sentence": text,
        "rows": rows,
    }
    return BacktestRecord(**{**values, **changes})  # type: ignore[arg-type]


def test_hostile_texts_keep_the_page_as_it_is() -> None:
    """Names and sentences of a stranger's alpharl.json are text and nothing else."""
    wanted = structure(split_card(make_card(manifest(backtest=record("x")), CardFacts("me/m")))[1])
    hostile = make_card(manifest(backtest=record(TEXT)), CardFacts("me/m"))
    page = split_card(hostile)[1]
    assert structure(page) == wanted
    tags = read_page(page)
    assert tags.tags <= OUR_TAGS
    assert tags.attributes <= {"href", "class"}
    assert tags.comments == []
    assert page.replace("\n", "").isprintable()
    (cells,) = rows_of(section_of(hostile))
    assert cells == ["20", "40", "2 x", "0.25", "-", "1", "-", "-", "-"]


@pytest.mark.parametrize(
    ("code", "horizon", "words"),
    [
        ("safe", 2.0, "This model was asked for at 2.5 x, which is beyond that."),
        ("safe", 2.6, "This model was asked for at 2.5 x, which is within that."),
        ("keep", 1.0, "This model was asked for at 2.5 x, which is beyond that."),
    ],
)
def test_where_the_model_lies_by_the_verdict(code: str, horizon: float, words: str) -> None:
    """The made-up model is of step 100, predicted from step 40, as the backtest's verdict is."""
    tested = record("x", code=code, horizon=horizon)
    text = section_of(make_card(manifest(backtest=tested), CardFacts("me/m")))
    assert words in text
    assert "No row is of `alpharl`, the method of this model." in text


def test_nothing_is_within_an_unknown_horizon() -> None:
    """Where the verdict knows nothing, the card compares nothing with it."""
    tested = record("x", code="unknown", horizon=1.0)
    text = section_of(make_card(manifest(backtest=tested), CardFacts("me/m")))
    assert "asked for" not in text


def test_rows_of_the_method_are_found_by_its_name_in_backtests() -> None:
    """A linear fit of the recent half is `linear-half` there; what auto chose is `auto`."""
    rows = tuple(
        BacktestRow(20, 40, 2.0, name, 0.5, 0.9)
        for name in ("last", "linear", "linear-half", "alpharl", "auto")
    )
    tested = record("x", rows=rows)
    auto = AutoRecord(
        *(None, 2.0, "direction", 0.9, 0.9, 0.02, 0.0, 1.0, 20, None, None, None),
        *("steps", False, ()),
    )
    for made, expected in (
        (manifest(method=method("linear")), ["last", "linear", "auto"]),
        (manifest(method=method("linear", fit_last="0.5")), ["last", "linear-half", "auto"]),
        (manifest(auto=auto), ["last", "auto"]),
    ):
        kept = with_backtest(made, tested).backtest
        assert kept is not None
        assert [row.method for row in kept.rows] == expected


def test_the_library_refuses_another_run(tmp_path: Path) -> None:
    """Without a step in common nothing speaks for the run being the same."""
    for name, data in card_files(manifest(), CardFacts("out")).items():
        (tmp_path / name).write_bytes(data)
    with pytest.raises(CardError, match=r"of another run: none of its steps \(11\)"):
        rebuild_card(tmp_path, backtest=record("x", steps=(11,)))
