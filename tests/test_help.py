"""--help: grouped, complete, true to its examples, short enough for a terminal; and completion."""

from __future__ import annotations

import os
import pty
import re
import select
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import click
import pytest
from example_world import ME, fill_by_commands, fill_folder, fill_hub, path_with_python
from hub_fixtures import Commands, commands_for
from huggingface_hub import HfApi, close_session
from manual import README, commands_in, help_of, lines_of_readme, manual, with_manual

import alpharl_hub
from alpharl_hub.cli import main
from alpharl_hub.cli.help import title_of
from alpharl_hub.local_hub import LocalHub

CHECKOUT = Path(alpharl_hub.__file__).parent.parent
COMMANDS = sorted(main.commands)

RUN_ELSEWHERE = {
    "alpharl-hub demo": "tests/test_demo.py",
    "alpharl-hub demo --keep ./demo": "tests/test_demo.py",
}
"""Examples that take a minute, and the tests that run them."""

NOT_HERE = ("alpharl_hub.demo.measuring", "--executor ray")
"""What README lines need that this world has not: minutes of evaluation, a cluster of machines."""


def examples() -> list[str]:
    """Every example of every command's help."""
    return [line for name in COMMANDS for line in commands_in(main.commands[name].help or "")]


def readme_lines() -> list[str]:
    """Every line of README that is to be typed, where help does not hold the same one."""
    lines = [line for line in lines_of_readme() if not any(word in line for word in NOT_HERE)]
    return [line for line in dict.fromkeys(lines) if line not in examples()]


# -- what is shown -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_stands_beneath_a_title_of_its_own(name: str) -> None:
    """No option is left without a title, and each is shown once, beneath its own."""
    options = [p for p in main.commands[name].params if isinstance(p, click.Option)]
    assert not [option.name for option in options if title_of(option) == "Options"]
    shown: dict[str, list[str]] = {}
    title = ""
    for line in help_of(name).splitlines():
        if re.fullmatch(r"[A-Z][\w ]+:", line):
            title = line[:-1]
        elif title and line.startswith("  -"):
            for flag in re.findall(r"(?<![\w-])--?[a-z][a-z-]*", line.strip().split("  ")[0]):
                shown.setdefault(flag, []).append(title)
    for option in options:
        for flag in (*option.opts, *option.secondary_opts):
            assert shown[flag] == [title_of(option)], flag


@pytest.mark.parametrize("name", COMMANDS)
def test_every_default_is_shown(name: str) -> None:
    """An option that has a value of its own without being given says which."""
    words = " ".join(help_of(name).split())
    for option in main.commands[name].params:
        has_value = isinstance(option, click.Option) and not option.is_flag
        if has_value and isinstance(option.default, str | int | float):
            assert f"[default: {option.default}" in words, option.name


@pytest.mark.parametrize("name", ["", *COMMANDS])
def test_help_fits_into_80_columns(name: str) -> None:
    """No line of any help is wider than the terminals that most people have."""
    assert max(map(len, help_of(name).splitlines())) <= 80


def test_commands_are_listed_with_whole_sentences() -> None:
    """The list of commands has one line each, none of them cut."""
    shown = help_of("")
    for name in COMMANDS:
        (line,) = (line for line in shown.splitlines() if line.split()[:1] == [name])
        assert line.endswith(".")
        assert not line.endswith("...")


# -- the examples --------------------------------------------------------------------------------


@dataclass(frozen=True)
class World:
    """The Hub, the commands that use it, and the folder that every example gets a copy of."""

    hub: LocalHub
    commands: Commands
    template: Path


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """Where all examples work."""
    root = tmp_path_factory.mktemp("examples")
    template = root / "template"
    template.mkdir()
    with LocalHub(root / "hub", {ME: "me"}) as hub:
        fill_hub(hub)
        fill_folder(template)
        with commands_for(root / "commands", hub) as commands:
            fill_by_commands(template, commands)
            yield World(hub, commands, template)
    close_session()


def place_for(world: World, words: list[str], tmp_path: Path) -> Path:
    """Copy the folder as it is before a command: without what it is about to write or predict."""
    place = tmp_path / "place"
    output = Path(words[words.index("-o") + 1]).name if "-o" in words else None
    ignore = shutil.ignore_patterns(*([output] if output else []))
    shutil.copytree(world.template, place, symlinks=True, ignore=ignore)
    if "--target-step" in words:
        for folder in (place / "runs" / "grpo").iterdir():
            if int(folder.name.split("-")[1]) > 200:
                shutil.rmtree(folder)
    return place


def forget_pushed(world: World, words: list[str]) -> None:
    """Take away the repo that a command pushes to: examples stand for themselves."""
    to = words[2] if words[0] == "push" else None
    if "--push-to" in words:
        to = words[words.index("--push-to") + 1]
    if to is not None and "--create-pr" not in words:
        HfApi(world.hub.endpoint, token=ME).delete_repo(to, missing_ok=True)


@pytest.mark.parametrize("line", [*examples(), *readme_lines()])
def test_documented_commands_work_as_they_stand(line: str, world: World, tmp_path: Path) -> None:
    """What help and README tell people to type ends well, and leaves what it promises."""
    if line in RUN_ELSEWHERE:
        assert (CHECKOUT / RUN_ELSEWHERE[line]).is_file()
        return
    _, *words = shlex.split(line)
    place = place_for(world, words, tmp_path)
    forget_pushed(world, words)
    done = world.commands.run(*words, token=ME, cwd=place, as_typed=True, PATH=path_with_python())
    assert done.code == 0, done.stderr
    assert done.stdout
    if "-o" in words:
        assert (place / words[words.index("-o") + 1] / "alpharl.json").is_file()
    if "--push-to" in words:
        assert words[words.index("--push-to") + 1] in done.stdout


# -- the manual ----------------------------------------------------------------------------------


def test_readme_holds_the_help_of_all_commands() -> None:
    """The manual in README is what --help says; `python -m tests.manual` writes it anew."""
    text = README.read_text(encoding="utf-8")
    assert with_manual(text) == text, "run: python -m tests.manual"
    for name in COMMANDS:
        assert f"<code>alpharl-hub {name}</code>" in manual()


# -- completion ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """An environment in which `alpharl-hub` is a program."""
    folder = tmp_path_factory.mktemp("bin")
    script = folder / "alpharl-hub"
    words = f"{shlex.quote(sys.executable)} -m alpharl_hub"
    script.write_text(f'#!/bin/sh\nexec {words} "$@"\n', encoding="utf-8")
    script.chmod(0o755)
    path = f"{folder}{os.pathsep}{os.environ['PATH']}"
    kept = {"HOME": str(folder), "TERM": "dumb", "LC_ALL": "C.UTF-8"}
    return {**kept, "PATH": path, "PYTHONPATH": str(CHECKOUT)}


def completions(program: dict[str, str], shell: str, *words: str) -> list[tuple[str, str]]:
    """Ask as the script of a shell asks; (type, value) of each answer."""
    typed = {"COMP_WORDS": shlex.join(["alpharl-hub", *words]), "COMP_CWORD": str(len(words))}
    if shell == "fish":
        typed["COMP_CWORD"] = words[-1]
    asked = {**program, **typed, "_ALPHARL_HUB_COMPLETE": f"{shell}_complete"}
    done = subprocess.run(
        ["alpharl-hub"], env=asked, capture_output=True, text=True, check=True, timeout=60
    )
    assert not done.stderr
    lines = done.stdout.splitlines()
    if shell == "zsh":
        return list(zip(lines[::3], lines[1::3], strict=True))
    cut = [line.split(",", 1) for line in lines]
    return [(kind, value.split("\t")[0]) for kind, value in cut]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_shells_are_offered_commands_options_methods_files_and_folders(
    program: dict[str, str], shell: str
) -> None:
    """What can be known is completed; for a RUN the folders, for --scores the files."""
    assert ("plain", "predict") in completions(program, shell, "pre")
    assert ("plain", "--target-step") in completions(program, shell, "predict", "x", "--target")
    methods = completions(program, shell, "predict", "x", "--method", "al")
    assert methods == [("plain", "alpharl")]
    assert completions(program, shell, "report", "./ru") == [("dir", "./ru")]
    assert completions(program, shell, "report", "x", "--base", "./b") == [("dir", "./b")]
    assert completions(program, shell, "report", "x", "--scores", "./s") == [("file", "./s")]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_script_is_there_for_every_shell(program: dict[str, str], shell: str) -> None:
    """The variable that README names makes the program print a script for that shell."""
    asked = {**program, "_ALPHARL_HUB_COMPLETE": f"{shell}_source"}
    done = subprocess.run(["alpharl-hub"], env=asked, capture_output=True, text=True, check=True)
    assert "_ALPHARL_HUB_COMPLETE" in done.stdout
    assert f"{shell}_complete" in done.stdout


def test_completing_imports_nothing_heavy(program: dict[str, str]) -> None:
    """A TAB costs no import of torch or of the Hub's client."""
    typed = {"COMP_WORDS": "alpharl-hub predict x --method a", "COMP_CWORD": "4"}
    asked = {**program, **typed, "_ALPHARL_HUB_COMPLETE": "bash_complete"}
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "alpharl_hub"],
        env=asked,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "plain,alpharl" in done.stdout
    imported = {line.rsplit("|", 1)[-1].strip() for line in done.stderr.splitlines()}
    assert "click" in imported
    assert not imported & {"torch", "numpy", "transformers", "huggingface_hub"}


STARTS = {
    "bash": (
        ["bash", "--norc", "--noprofile", "-i"],
        'bind "set enable-bracketed-paste off"; PS1="ready>"; '
        'eval "$(_ALPHARL_HUB_COMPLETE=bash_source alpharl-hub)"',
    ),
    "zsh": (
        ["zsh", "-f", "-i"],
        'PS1="ready>"; autoload -Uz compinit; compinit -u -D; '
        'eval "$(_ALPHARL_HUB_COMPLETE=zsh_source alpharl-hub)"',
    ),
}
INTERACTIVE = [shell for shell in STARTS if shutil.which(shell)]


class Terminal:
    """A shell at a terminal of its own, typed into and read."""

    def __init__(self, words: list[str], environment: dict[str, str], cwd: Path) -> None:
        self._pid, self._terminal = pty.fork()
        if self._pid == 0:
            os.chdir(cwd)
            os.execvpe(words[0], words, environment)
        self._seen = ""

    def type(self, text: str) -> None:
        """Type, TAB included."""
        os.write(self._terminal, text.encode())

    def wait_for(self, text: str) -> None:
        """Read until a text is shown, from behind what was waited for before."""
        end_s = time.monotonic() + 60
        while text not in self._seen:
            assert time.monotonic() < end_s, f"{text!r} is not shown, but {self._seen!r}"
            if select.select([self._terminal], [], [], 0.5)[0]:
                self._seen += os.read(self._terminal, 4096).decode(errors="replace")
        self._seen = self._seen.split(text, 1)[1]

    def close(self) -> None:
        """Hang up."""
        os.kill(self._pid, signal.SIGKILL)
        os.waitpid(self._pid, 0)
        os.close(self._terminal)


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of forkpty:DeprecationWarning")
@pytest.mark.parametrize("shell", INTERACTIVE)
def test_tab_completes_at_a_real_shell(shell: str, program: dict[str, str], tmp_path: Path) -> None:
    """Sourced as README says, TAB ends a command, an option and the name of a folder."""
    (tmp_path / "runs" / "grpo").mkdir(parents=True)
    words, start = STARTS[shell]
    terminal = Terminal(words, program, tmp_path)
    try:
        terminal.type(f"{start}; echo be''gun\n")
        terminal.wait_for("begun")
        terminal.wait_for("ready>")
        terminal.type("alpharl-hub insp\t")
        terminal.wait_for("inspect ")
        terminal.type("./ru\t")
        terminal.wait_for("./runs/")
        terminal.type("grpo --target-sc\t")
        terminal.wait_for("--target-score ")
    finally:
        terminal.close()


@pytest.mark.parametrize("shell", [name for name in ["fish"] if shutil.which(name)])
def test_fish_completes(shell: str, program: dict[str, str], tmp_path: Path) -> None:
    """Sourced as README says, fish asks and understands the answers."""
    (tmp_path / "runs").mkdir()
    ask = '; complete -C "alpharl-hub insp"; complete -C "alpharl-hub inspect ./ru"'
    done = subprocess.run(
        [
            shell,
            "--no-config",
            "-c",
            f"_ALPHARL_HUB_COMPLETE=fish_source alpharl-hub | source{ask}",
        ],
        env=program,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert [line.split("\t")[0] for line in done.stdout.splitlines()] == ["inspect", "./runs/"]
