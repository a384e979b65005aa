"""The manual in README, the --help of all commands: `python -m tests.manual` writes it anew."""

from __future__ import annotations

import re
from pathlib import Path

from click.testing import CliRunner

from alpharl_hub.cli import main

README = Path(__file__).resolve().parent.parent / "README.md"
BEGIN, END = "<!-- manual -->", "<!-- end of the manual -->"
WIDTH = 80


def help_of(name: str) -> str:
    """What `alpharl-hub NAME --help` prints, or with an empty name `alpharl-hub --help`."""
    words = [name, "--help"] if name else ["--help"]
    shown = CliRunner().invoke(main, words, prog_name="alpharl-hub", terminal_width=WIDTH)
    assert shown.exit_code == 0, shown.output
    return shown.output


def manual() -> str:
    """The help of all commands, folded: one line each until it is opened."""
    parts = [f"```text\n{help_of('').rstrip()}\n```"]
    for name in sorted(main.commands):
        summary = f"<summary><code>alpharl-hub {name}</code></summary>"
        parts.append(
            f"<details>\n{summary}\n\n```text\n{help_of(name).rstrip()}\n```\n\n</details>"
        )
    return "\n\n".join(parts)


def with_manual(text: str) -> str:
    """Put the manual of today between its markers."""
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    return f"{before}{BEGIN}\n{manual()}\n{END}{after}"


def commands_in(text: str) -> list[str]:
    """Find the command lines of this tool in a text, joined where they go on in the next line."""
    joined = re.sub(r"\\\n\s*", "", text)
    return re.findall(r"^\s*(?:\$ )?(alpharl-hub [a-z].*)$", joined, re.MULTILINE)


def lines_of_readme() -> list[str]:
    """Find what README tells people to type, but for the manual, which is help."""
    text = README.read_text(encoding="utf-8")
    written = text.split(BEGIN)[0] + text.split(END)[1]
    return commands_in("\n".join(re.findall(r"```(?:bash|text)\n(.*?)```", written, re.DOTALL)))


if __name__ == "__main__":
    README.write_text(with_manual(README.read_text(encoding="utf-8")), encoding="utf-8")
