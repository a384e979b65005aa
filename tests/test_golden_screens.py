"""Whole screens of commands on the packaged run, held against golden/ (renewed as screens says).

What a machine's speed and memory decide is replaced before the comparison, nothing else.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner
from screens import assert_fits, assert_golden, show_on_terminal

from alpharl_hub.cli import main
from alpharl_hub.demo.task import DEMO_RUN

COMMANDS = {
    "inspect": "inspect ./run --base ./base --until 40% --devices cpu",
    "predict": "predict ./run --base ./base --until 40% --target-step 180 -o later",
    "kept": "predict ./run --base ./base --target-step 2000 --method linear -o far",
    "backtest": "backtest ./run --base ./base --fit-until 40%",
    "compare": "compare ./run/step_96 ./run/step_240 --base ./base",
    "extract": "extract ./run --base ./base --until 40% -o factors",
}
MEASURED = ((re.compile(r"in [\d.]+ m?s(?: \(.*?\))?; [\d.]+ .B of memory"), "in T; M of memory"),)


@pytest.fixture(scope="module")
def where(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder with the packaged run in it."""
    folder = tmp_path_factory.mktemp("screens")
    shutil.copytree(DEMO_RUN, folder / "run")
    shutil.move(folder / "run" / "base", folder / "base")
    return folder


def steady(text: str) -> str:
    """Replace what differs between machines."""
    for pattern, words in MEASURED:
        text = pattern.sub(words, text)
    return text


@pytest.mark.parametrize(
    ("name", "width"), [*((name, 80) for name in COMMANDS), ("inspect", 160), ("predict", 160)]
)
def test_screens_in_a_pipe(
    where: Path, monkeypatch: pytest.MonkeyPatch, name: str, width: int
) -> None:
    """No escapes, no line too wide, and the words that were looked at, stderr included."""
    monkeypatch.chdir(where)
    for made in ("later", "far", "factors"):
        shutil.rmtree(where / made, ignore_errors=True)
    changes = {"COLUMNS": str(width), "FORCE_COLOR": "1"}
    done = CliRunner().invoke(main, COMMANDS[name].split(), env=changes, catch_exceptions=False)
    assert done.exit_code == 0
    text = steady(done.output)
    assert_fits(text, width)
    assert_golden(f"{name}_{width}.txt", text)


@pytest.mark.parametrize("name", ["inspect", "backtest"])
def test_screens_on_a_terminal(where: Path, name: str) -> None:
    """In colour, with escapes kept; with NO_COLOR the same letters without any."""
    words = [*COMMANDS[name].split(), "-q"]
    coloured = steady(show_on_terminal(words, 80, where))
    assert_golden(f"{name}_colour_80.txt", coloured)
    plain = steady(show_on_terminal(words, 80, where, NO_COLOR="1"))
    assert "\x1b" not in plain
    assert re.sub(r"\x1b\[[0-9;]*m", "", coloured) == plain
