"""The pieces of a line of YAML: plain and quoted scalars, and flow collections."""

import re
from typing import Any, NoReturn

DOUBLE_QUOTED = re.compile(r'"(?:[^"\\]|\\.)*"', re.DOTALL)
SINGLE_QUOTED = re.compile(r"'(?:[^']|'')*'", re.DOTALL)
FLOW_PLAIN = re.compile(
    r"(?![-?:](?:\s|$)|:)[^\s\[\]{},\"'&*!|>%@`#](?:[^\[\]{},\n:#]|:(?![\s,\[\]{}])|(?<=\S)#)*"
)
LINE_FOLD = re.compile(r"[ \t]*\n(?:[ \t]*\n)*[ \t]*")
ESCAPED = re.compile(
    r"\\\n[ \t]*|\\(?:x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|U[0-9a-fA-F]{8}|.)|" + LINE_FOLD.pattern,
)
ESCAPES = {
    "0": "\0", "a": "\a", "b": "\b", "t": "\t", "\t": "\t", "n": "\n", "v": "\v", "f": "\f",
    "r": "\r", "e": "\x1b", " ": " ", '"': '"', "/": "/", "\\": "\\", "N": "\x85", "_": "\xa0",
    "L": "\u2028", "P": "\u2029",
}  # fmt: skip
INTEGER = re.compile(r"[-+]?[0-9]+", re.ASCII)
PREFIXED_INTEGER = re.compile(r"0o[0-7]+|0x[0-9a-fA-F]+")
FLOAT = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?", re.ASCII)
NOT_FINITE = re.compile(r"[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)")
CONSTANTS = {
    "": None, "~": None, "null": None, "Null": None, "NULL": None,
    "true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False,
}  # fmt: skip


class CardYamlError(ValueError):
    """A text that is not YAML, or more of YAML than is read here."""


def plain_value(text: str) -> Any:
    """Return what a scalar without quotes stands for."""
    if text in CONSTANTS:
        return CONSTANTS[text]
    if INTEGER.fullmatch(text):
        return int(text)
    if PREFIXED_INTEGER.fullmatch(text):
        return int(text, 0)
    if FLOAT.fullmatch(text):
        return float(text)
    if NOT_FINITE.fullmatch(text):
        return float(text.replace(".", ""))
    return text


def unquoted(text: str) -> str:
    """Return the content of a scalar in quotes."""
    inner = text[1:-1]
    if text[0] == "'":
        return folded(inner.replace("''", "'"))

    def replacement(match: re.Match[str]) -> str:
        found = match.group()
        if found.startswith("\\\n"):
            return ""
        if not found.startswith("\\"):
            return folded(found)
        if found[1] in "xuU" and len(found) > 2:
            return chr(int(found[2:], 16))
        if found[1] not in ESCAPES:
            raise CardYamlError(f"unknown escape {found}")
        return ESCAPES[found[1]]

    return ESCAPED.sub(replacement, inner)


def folded(text: str) -> str:
    """Join lines: one break is a space, every further one a line feed."""
    return LINE_FOLD.sub(lambda match: "\n" * (match.group().count("\n") - 1) or " ", text)


class FlowReader:
    """Reads one `[a, b]` or `{a: b}` from the start of a text; `position` is where it ends."""

    def __init__(self, text: str) -> None:
        self._text = text
        self.position = 0

    def value(self) -> Any:
        """Read a value and go past it; raises CardYamlError."""
        self._skip_space()
        opening = self._text[self.position : self.position + 1]
        if opening == "[":
            return self._list()
        if opening == "{":
            return self._dict()
        return self._scalar()

    def _list(self) -> list[Any]:
        items: list[Any] = []
        while not self._closes("]", first=not items):
            items.append(self.value())
        return items

    def _dict(self) -> dict[str, Any]:
        values: dict[str, Any] = {}
        while not self._closes("}", first=not values):
            self._skip_space()
            key = str(self._scalar())
            self._skip_space()
            if not self._text.startswith(":", self.position):
                self._fail("expected a colon")
            self.position += 1
            values[key] = self.value()
        return values

    def _closes(self, bracket: str, *, first: bool) -> bool:
        """Go past the opening bracket or a comma; say whether the closing bracket follows."""
        if first:
            self.position += 1
        self._skip_space()
        if not first and self._text.startswith(",", self.position):
            self.position += 1
            self._skip_space()
        elif not first and not self._text.startswith(bracket, self.position):
            self._fail(f"expected a comma or {bracket}")
        if not self._text.startswith(bracket, self.position):
            return False
        self.position += 1
        return True

    def _scalar(self) -> Any:
        for pattern in (DOUBLE_QUOTED, SINGLE_QUOTED, FLOW_PLAIN):
            match = pattern.match(self._text, self.position)
            if match:
                self.position = match.end()
                is_plain = pattern is FLOW_PLAIN
                return plain_value(match.group().strip()) if is_plain else unquoted(match.group())
        self._fail("expected a value")

    def _skip_space(self) -> None:
        while self._text[self.position : self.position + 1] in (" ", "\t", "\n"):
            self.position += 1

    def _fail(self, message: str) -> NoReturn:
        raise CardYamlError(f"{message} in a list or mapping in brackets")
