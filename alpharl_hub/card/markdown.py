"""Other people's names in a Markdown page: shown exactly, never obeyed.

Repo, branch, folder, score and tensor names come from strangers. Whatever stands in them, a page
made with these functions keeps its structure: no tag, link, table cell or code block of theirs.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from urllib.parse import quote

HUB_URL = "https://huggingface.co"
"""Where links to repos lead; a manifest names no endpoint of its own."""

ABSENT = "-"

_MAX_NAME_CHARS = 160
_MAX_PROSE_CHARS = 600
_PLAIN_NAME = re.compile(r"[\w./:@+=,{}*%~#()-]+(?: [\w./:@+=,{}*%~#()-]+)*", re.ASCII)
# Also addresses, of which GitHub's dialect makes links, and what would begin a list within a list:
# https://github.github.com/gfm/#autolinks-extension-
_ACTIVE = re.compile(
    r"[\\`*_{}\[\]<>|~&$@#^]|:(?=//)|(?<=www)\.|^[-+]|^\d(?=\d{0,8}[.)])", re.IGNORECASE
)


def one_line(text: str, max_chars: int = _MAX_NAME_CHARS) -> str:
    """Return printable text on one line, cut where it is long.

    Line breaks, controls and the marks that turn the direction of writing become U+FFFD.
    """
    cut = text if len(text) <= max_chars else text[: max_chars - 1] + "…"
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in cut)


def code(name: str) -> str:
    """Return a name as inline code, also within a table."""
    shown = one_line(name)
    if _PLAIN_NAME.fullmatch(shown):
        return f"`{shown}`"
    # Inside <code> nothing but a tag or a pipe could act, and a character reference is neither:
    # https://spec.commonmark.org/0.31.2/#entity-and-numeric-character-references
    inner = "".join(c if c.isalnum() or c == " " else f"&#{ord(c)};" for c in shown)
    return f"<code>{inner}</code>"


def prose(text: str) -> str:
    """Return a sentence of others as plain text; not for the start of a line."""
    shown = one_line(text, _MAX_PROSE_CHARS)
    return _ACTIVE.sub(lambda match: f"&#{ord(match[0])};", shown)


def fenced(lines: Sequence[str], language: str = "") -> str:
    """Return lines as a code block that none of them can end."""
    # A fence ends only at a line of nothing but as many backticks as opened it.
    longest = max((len(run) for line in lines for run in re.findall(r"`+", line)), default=0)
    fence = "`" * max(3, longest + 1)
    return "\n".join([fence + language, *(one_line(line, 1000) for line in lines), fence])


def link(label: str, *path: str) -> str:
    """Return a link to a page of the Hub; `label` is Markdown, the parts of the path are not."""
    return f"[{label}]({hub_url(*path)})"


def picture(alt: str, filename: str) -> str:
    """Return a picture that lies beside the page; what it shows is told to whoever cannot see it.

    `alt` is Markdown on one line.
    """
    return f"![{alt}]({quote(filename)})"


def hub_url(*path: str) -> str:
    """Return the address of a page of the Hub from its parts, each of which may hold slashes."""
    return "/".join([HUB_URL, *(quote(one_line(part), safe="/") for part in path if part)])


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table; the cells are Markdown."""
    lines = ["| " + " | ".join(cells) + " |" for cells in (header, ["---"] * len(header), *rows)]
    return "\n".join(lines)


def number(value: float | None, spec: str = ".3g") -> str:
    """Return a number, or a dash where there is none."""
    return ABSENT if value is None or not math.isfinite(value) else format(value, spec)
