"""A strict reader of the YAML that model cards are written in.

Block and flow collections, plain, quoted and block scalars, comments; types as in the core schema
of YAML 1.2 (https://yaml.org/spec/1.2.2/#103-core-schema). Refused, with the number of the line:
tags, anchors and aliases, complex and duplicate keys, tabs as indentation, several documents,
comments inside flow collections.
"""

import re
from dataclasses import dataclass
from typing import Any, NoReturn

from alpharl_hub.local_hub.card_scalars import (
    DOUBLE_QUOTED,
    SINGLE_QUOTED,
    CardYamlError,
    FlowReader,
    folded,
    plain_value,
    unquoted,
)

COMMENT = re.compile(r"(?:^|\s)#")
KEY_END = re.compile(r":(?=\s|$)")
BLOCK_HEADER = re.compile(r"([|>])(?:([+-])?([1-9])?|([1-9])([+-]))(?:\s+#.*)?\s*")
# In a folded block, a break between two lines that are not indented further.
FOLD = re.compile(r"^(\S[^\n]*)\n(\n*)(?=\S)", re.MULTILINE)
NOT_A_VALUE = tuple("&*!%@`,]}|>")


def parse_yaml(text: str) -> Any:
    """Return what a YAML text holds; raises CardYamlError with the line that cannot be read."""
    reader = _BlockReader(text)
    value = reader.block(-1)
    if reader.next_line() is not None:
        reader.fail("unexpected text")
    return value


@dataclass(frozen=True)
class _Line:
    indent: int
    text: str

    @property
    def is_item(self) -> bool:
        return self.text == "-" or self.text.startswith("- ")


class _BlockReader:
    """Reads nested blocks; `_position` is the line that is read next."""

    def __init__(self, text: str) -> None:
        self._lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
        self._position = 0

    def fail(self, message: str) -> NoReturn:
        raise CardYamlError(f"line {self._position + 1}: {message}")

    def next_line(self) -> _Line | None:
        """Return the next line that is neither blank nor a comment, without going past it."""
        while self._position < len(self._lines):
            raw = self._lines[self._position].rstrip()
            text = raw.lstrip(" ")
            if text.startswith("\t"):
                self.fail("a tab cannot indent")
            if text and not text.startswith("#"):
                if raw.startswith(("---", "...", "%")):
                    self.fail("only one document is allowed")
                return _Line(len(raw) - len(text), text)
            self._position += 1
        return None

    def block(self, parent: int) -> Any:
        """Read what is indented more than `parent`; None if nothing is."""
        line = self.next_line()
        if line is None or line.indent <= parent:
            return None
        if line.is_item:
            return self._sequence(line.indent)
        if self._split_key(line.text) is not None:
            return self._mapping(line.indent)
        return self._scalar(line.text, parent)

    def _sequence(self, indent: int) -> list[Any]:
        items = []
        while (line := self.next_line()) and line.indent == indent and line.is_item:
            rest = line.text[1:].lstrip()
            # What follows the dash is a block of its own, at the column where it stands.
            column = indent + len(line.text) - len(rest)
            self._lines[self._position] = " " * column + rest
            items.append(self.block(indent))
        if line and line.indent > indent:
            self.fail("unexpected indentation")
        return items

    def _mapping(self, indent: int) -> dict[str, Any]:
        values: dict[str, Any] = {}
        while (line := self.next_line()) and line.indent == indent and not line.is_item:
            split = self._split_key(line.text)
            if split is None:
                self.fail("expected a key and a colon")
            key, rest = split
            if key in values:
                self.fail(f"the key {key!r} is here twice")
            values[key] = self._value(rest, indent)
        if line and line.indent > indent:
            self.fail("unexpected indentation")
        return values

    def _split_key(self, text: str) -> tuple[str, str] | None:
        quoted = DOUBLE_QUOTED.match(text) or SINGLE_QUOTED.match(text)
        if quoted:
            end = KEY_END.match(text[quoted.end() :].lstrip())
            tail = text[quoted.end() :].lstrip()
            return (unquoted(quoted.group()), tail[1:].strip()) if end else None
        if text.startswith(("? ", ": ")) or text in ("?", ":"):
            self.fail("complex keys are not supported")
        if text.startswith(("[", "{", '"', "'", *NOT_A_VALUE)):
            return None
        comment = COMMENT.search(text)
        end = KEY_END.search(text[: comment.start()] if comment else text)
        return (text[: end.start()].rstrip(), text[end.end() :].strip()) if end else None

    def _value(self, rest: str, indent: int) -> Any:
        if rest and not rest.startswith("#"):
            if _Line(0, rest).is_item:
                self.fail("a list must start on a line of its own")
            return self._scalar(rest, indent)
        self._position += 1
        line = self.next_line()
        if line and line.indent == indent and line.is_item:
            return self._sequence(indent)
        return self.block(indent)

    def _scalar(self, text: str, parent: int) -> Any:
        header = BLOCK_HEADER.fullmatch(text)
        if header:
            return self._block_scalar(header, parent)
        if text.startswith(('"', "'", "[", "{")):
            return self._delimited(text)
        if text.startswith(NOT_A_VALUE):
            self.fail(f"a value cannot start with {text[0]}")
        return self._plain(text, parent)

    def _delimited(self, text: str) -> Any:
        """Read a quoted scalar or a flow collection, which may go on over several lines."""
        everything = "\n".join([text, *self._lines[self._position + 1 :]])
        if text.startswith(("[", "{")):
            flow = FlowReader(everything)
            try:
                value: Any = flow.value()
            except CardYamlError as error:
                self.fail(str(error))
            length = flow.position
        else:
            match = DOUBLE_QUOTED.match(everything) or SINGLE_QUOTED.match(everything)
            if match is None:
                self.fail("a quotation has no end")
            value, length = unquoted(match.group()), match.end()
        tail = everything[length:].split("\n", 1)[0]
        if tail.strip() and not tail.lstrip().startswith("#"):
            self.fail(f"unexpected text after a value: {tail.strip()}")
        self._position += everything.count("\n", 0, length) + 1
        return value

    def _plain(self, text: str, parent: int) -> Any:
        pieces: list[str] = []
        while True:
            comment = COMMENT.search(text)
            piece = text[: comment.start()] if comment else text
            if KEY_END.search(piece):
                self.fail("a colon within a value needs quotes around the value")
            pieces.append(piece.strip())
            self._position += 1
            if comment or self._position == len(self._lines):
                break
            text = self._lines[self._position].strip()
            indent = len(self._lines[self._position]) - len(self._lines[self._position].lstrip(" "))
            if text and (indent <= parent or text.startswith("#")):
                break
        joined = folded("\n".join(pieces).rstrip("\n"))
        return plain_value(joined)

    def _block_scalar(self, header: re.Match[str], parent: int) -> str:
        style, chomp_1, digit_1, digit_2, chomp_2 = header.groups()
        chomp, digit = chomp_1 or chomp_2, digit_1 or digit_2
        self._position += 1
        raw: list[str] = []
        while self._position < len(self._lines):
            line = self._lines[self._position]
            if line.strip() and len(line) - len(line.lstrip(" ")) <= parent:
                break
            raw.append(line)
            self._position += 1
        indents = [len(line) - len(line.lstrip(" ")) for line in raw if line.strip()]
        indent = max(parent, 0) + int(digit) if digit else (indents or [0])[0]
        if indents and min(indents) < indent:
            self.fail("a block of text is indented less than its first line")
        text = "\n".join(line[indent:] for line in raw)
        body = text.rstrip("\n")
        has_no_break = self._position == len(self._lines) and text == body
        if style == ">":
            body = FOLD.sub(lambda match: match.group(1) + (match.group(2) or " "), body)
        if chomp == "-" or not body or has_no_break:
            return body
        return body + (text[len(text.rstrip("\n")) :] + "\n" if chomp == "+" else "\n")
