"""The demo's programs: run one after another, in an environment that knows only the demo's Hub."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import alpharl_hub
from alpharl_hub.demo.task import TaskScore
from alpharl_hub.errors import AlphaRLError
from alpharl_hub.local_hub import child_environment

Say = Callable[[str], None]
"""Takes one line of what is to be shown."""

_SHOWN_WIDTH = 80
_NO_BREAK_SPACE = "\u00a0"


@dataclass(frozen=True)
class Children:
    """Programs that work in `folder` and see the Hub at `endpoint` as their only one.

    `home` is a folder for what they download and for their temporary files: torch leaves some
    behind. Nothing of the user's Hub settings reaches them.
    """

    folder: Path
    home: Path
    endpoint: str
    token: str
    say: Say

    def command(self, *words: str) -> None:
        """Run a command of alpharl-hub: shown as it is typed, with the first part of its output.

        Raises:
            AlphaRLError: the command failed; all of its output has been shown.
        """
        self.say("")
        for line in _as_typed(words):
            self.say(line)
        done = self._run("alpharl_hub", words, stderr=subprocess.STDOUT)
        lines = done.stdout.splitlines()
        if done.returncode:
            raise self._failure(f"alpharl-hub {words[0]}", done.returncode, lines)
        for line in _first_part(lines):
            self.say(line)

    def scores(self, places: Sequence[str]) -> tuple[TaskScore, ...]:
        """Load models from the Hub, each named REPO[@REVISION], and score them.

        Raises:
            AlphaRLError: a model could not be loaded; what was said about it has been shown.
        """
        module = "alpharl_hub.demo.measuring"
        done = self._run(module, places, stderr=subprocess.PIPE)
        if done.returncode:
            raise self._failure(f"python -m {module}", done.returncode, done.stderr.splitlines())
        return tuple(TaskScore(**json.loads(line)) for line in done.stdout.splitlines())

    def _run(
        self, module: str, words: Sequence[str], stderr: int
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", module, *words],
            cwd=self.folder,
            env=self._environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=stderr,
            encoding="utf-8",
            errors="backslashreplace",
            check=False,
        )

    def _environment(self) -> dict[str, str]:
        return {
            **child_environment(self.endpoint, self.home, self.token),
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "TMPDIR": str(self.home),
            # On two busy cores a tiny model was scored in 0.4 s with one thread, in 0.9 to 5.6 s
            # with two.
            "OMP_NUM_THREADS": "1",
            "PYTHONIOENCODING": "utf-8",
            **_import_path(),
        }

    def _failure(self, program: str, status: int, lines: Sequence[str]) -> AlphaRLError:
        for line in lines:
            self.say(line)
        last = next((line for line in reversed(lines) if line.strip()), "no word of why")
        return AlphaRLError(
            f"demo: `{program}` ended with status {status} ({last.strip()}); "
            "all that it said is above"
        )


def _import_path() -> dict[str, str]:
    """Let the programs find this very package, also in a checkout that is not installed."""
    parent = Path(alpharl_hub.__file__).resolve().parent.parent
    if parent.name in ("site-packages", "dist-packages"):
        return {}
    entries = (str(parent), os.environ.get("PYTHONPATH", ""))
    return {"PYTHONPATH": os.pathsep.join(entry for entry in entries if entry)}


def _as_typed(words: Sequence[str]) -> list[str]:
    """Write a command as one types it in a shell, in lines that can be pasted together."""
    text = f"$ alpharl-hub {shlex.join(words)}"
    lines = textwrap.wrap(
        # An option and its value stay on one line: textwrap does not break at this space.
        re.sub(r" (--?[a-z-]+) (?!-)", f" \\1{_NO_BREAK_SPACE}", text),
        _SHOWN_WIDTH - len(" \\"),
        subsequent_indent="      ",
        break_long_words=False,
        break_on_hyphens=False,
    )
    lines = [line.replace(_NO_BREAK_SPACE, " ") for line in lines]
    return [*(f"{line} \\" for line in lines[:-1]), lines[-1]]


def _first_part(lines: Sequence[str]) -> list[str]:
    """Keep what stands before the first empty line, and say how much follows."""
    end = lines.index("") if "" in lines else len(lines)
    num_more = sum(1 for line in lines[end:] if line)
    return [*lines[:end], *([f"[{num_more} more lines]"] if num_more else [])]
