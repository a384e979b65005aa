"""README, --help and the code say the same."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import pytest
from manual import commands_in, lines_of_readme

from alpharl_hub.cli import main

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def all_examples() -> list[str]:
    """Collect what README and every command's help tell people to type."""
    found = lines_of_readme()
    for command in main.commands.values():
        found += commands_in(command.callback.__doc__ or "")  # type: ignore[union-attr]
    return found


@pytest.fixture
def _files_that_examples_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Work in a folder that holds what the examples read."""
    (tmp_path / "alpharl.json").write_text("{}", encoding="utf-8")
    for name in ("olmo-2000", "grpo-step-500"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("_files_that_examples_name")
@pytest.mark.parametrize("line", all_examples())
def test_every_documented_command_parses(line: str) -> None:
    """A line of README or help is one that the tool accepts; `test_help.py` runs most of them."""
    _, name, *arguments = shlex.split(line)
    command = main.commands[name]
    # Below the group, as the shell calls it: click keeps a help option that is made for another.
    with (
        main.make_context("alpharl-hub", [name], resilient_parsing=True) as above,
        command.make_context(name, arguments, parent=above) as context,
    ):
        assert context.params, f"{line}: parsed to nothing"


@pytest.mark.parametrize("name", sorted(main.commands))
def test_every_command_has_help_and_an_example(name: str) -> None:
    """Each command's help says what it does and shows how; each option says what it is for."""
    command = main.commands[name]
    assert len(commands_in(command.callback.__doc__ or "")) >= 2  # type: ignore[union-attr]
    options = [p for p in command.params if isinstance(p, click.Option)]
    assert not [option.name for option in options if not option.help]


@pytest.mark.parametrize("name", sorted(main.commands))
def test_readme_names_every_command(name: str) -> None:
    """README shows every command at work."""
    assert f"alpharl-hub {name}" in README


def test_changelog_has_a_section_for_what_is_not_released() -> None:
    """The change log follows Keep a Changelog, newest first, with the released version if any."""
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    sections = re.findall(r"^## \[(.+?)\]", text, re.MULTILINE)
    assert sections[0] == "Unreleased"
    kinds = set(re.findall(r"^### (.+)$", text, re.MULTILINE))
    assert kinds <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}
