"""Frozen dataclasses to strict JSON and back.

Strict both ways: NaN and infinities are written as null, and reading refuses unknown keys, missing
keys, duplicate keys and values of another type, so that a document from somebody else is data of a
known shape or nothing.

`read_int`, `require_unicode` and `shown` are also for the readers that are more lenient, of configs
and scores.
"""

from __future__ import annotations

import json
import math
import os
import stat
import types
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from alpharl_hub.errors import ManifestError

Record = TypeVar("Record")

MAX_DOCUMENT_BYTES = 64 << 20
"""A manifest takes 400 bytes per tensor, and no model has 100,000. JSON takes up to 25 times its
size in memory while it is read (measured: 20 MB of `[],` 490 MB)."""

_MAX_INT_DIGITS = 300
_MAX_SHOWN_CHARS = 100


def to_plain(value: Any) -> Any:
    """Turn dataclasses, tuples and mappings into what `json` writes; NaN and infinities to None."""
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: to_plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): to_plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def dump(value: Any, *, indent: int | None = None) -> str:
    """Write a dataclass or plain value as one JSON document.

    Halves of surrogate pairs, which names of files can hold and UTF-8 cannot, become "?".
    """
    text = json.dumps(to_plain(value), indent=indent, ensure_ascii=False, allow_nan=False)
    return text if text.isascii() else text.encode("utf-8", "replace").decode("utf-8")


def read_int(text: str) -> int:
    """Read an integer of a JSON document, for `parse_int`; any that passes fits into a float.

    Raises:
        ValueError: more digits than that. Python's own words on it name an interpreter setting.
    """
    if len(text) > _MAX_INT_DIGITS:
        raise ValueError(f"a number of {len(text)} digits is out of range")
    return int(text)


def require_unicode(document: object) -> None:
    """Refuse JSON in which an escape such as \\ud800 stands for half a character.

    Python reads it, and fails when the text is printed, written or used as a name of a file.

    Raises:
        ValueError: there is one.
    """
    try:
        json.dumps(document, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError as error:
        half = str(error.object[error.start])
        raise ValueError(f"{half!r} is half a character") from None


def why_not_json(error: ValueError | RecursionError) -> str:
    """Say in a few words why a document could not be parsed."""
    return "nested too deeply" if isinstance(error, RecursionError) else str(error)


def shown(text: str) -> str:
    """Quote a stranger's text for a message: one line, escaped, not endless."""
    return repr(_cut(text))


def shown_value(value: object) -> str:
    """Write any value of a stranger's document for a message, as short as `shown`."""
    return shown(value) if isinstance(value, str) else _cut(repr(value))


def _cut(text: str) -> str:
    return text if len(text) <= _MAX_SHOWN_CHARS else text[: _MAX_SHOWN_CHARS - 3] + "..."


def _refuse_duplicates(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    document = dict(pairs)
    if len(document) != len(pairs):
        raise ValueError("the same key stands twice in one object")
    return document


def _refuse_constant(text: str) -> Any:
    raise ValueError(f"{text} is not JSON")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"the number {text[:20]} is out of range")
    return value


def read_file(path: Path) -> bytes:
    """Read a file that holds a document: a regular one, and none that is too large for it.

    Its size is looked at before it is read; of a pipe or a device nothing is awaited.

    Raises:
        ManifestError: it is no such file, or cannot be read.
    """
    try:
        # Opening a pipe waits for a writer without O_NONBLOCK, which regular files know nothing of.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except OSError as error:
        raise ManifestError(f"{path}: cannot be opened ({error.strerror}); name another") from error
    with open(descriptor, "rb") as file:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise ManifestError(f"{path}: no regular file; name the one that this tool wrote")
        _require_small(found.st_size, path)
        try:
            data = file.read(MAX_DOCUMENT_BYTES + 1)
        except OSError as error:
            raise ManifestError(f"{path}: cannot be read ({error.strerror}); try again") from error
    _require_small(len(data), path)
    return data


def _require_small(num_bytes: int, where: object) -> None:
    if num_bytes > MAX_DOCUMENT_BYTES:
        raise ManifestError(
            f"{where}: {num_bytes} bytes, more than {MAX_DOCUMENT_BYTES}; not a file of ours, name "
            "another"
        )


def parse(text: str | bytes, where: str) -> Any:
    """Parse one JSON document in UTF-8 without duplicate keys or NaN; `where` names it in errors.

    Raises:
        ManifestError: the text is no such document.
    """
    _require_small(len(text), where)
    try:
        document = json.loads(
            text if isinstance(text, str) else text.decode("utf-8"),
            object_pairs_hook=_refuse_duplicates,
            parse_constant=_refuse_constant,
            parse_float=_finite,
            parse_int=read_int,
        )
        require_unicode(document)
        return document
    except (ValueError, RecursionError) as error:
        raise ManifestError(
            f"{where}: not valid JSON ({why_not_json(error)}); write it anew"
        ) from error


def load(record_type: type[Record], text: str | bytes, where: str) -> Record:
    """Read one document into `record_type`, a frozen dataclass.

    Raises:
        ManifestError: not JSON, an unknown or missing key, or a value of another type.
    """
    return from_plain(record_type, parse(text, where), where)


def from_plain(record_type: type[Record], plain: object, where: str) -> Record:
    """Turn what `json` read into `record_type`; the counterpart of `to_plain`.

    Raises:
        ManifestError: an unknown or missing key, or a value of another type.
    """
    value = _build(record_type, plain, where)
    assert isinstance(value, record_type)
    return value


def _build(expected: Any, value: Any, where: str) -> Any:
    origin = get_origin(expected)
    if origin in (Union, types.UnionType):
        return _build_optional(expected, value, where)
    if origin is tuple:
        if not isinstance(value, list):
            raise ManifestError(f"{where}: a list was expected")
        item = get_args(expected)[0]
        return tuple(_build(item, entry, f"{where}[{i}]") for i, entry in enumerate(value))
    if origin in (dict, Mapping):
        if not isinstance(value, dict):
            raise ManifestError(f"{where}: an object was expected")
        item = get_args(expected)[1]
        return {key: _build(item, entry, f"{where}.{key}") for key, entry in value.items()}
    if is_dataclass(expected):
        return _build_record(expected, value, where)
    if expected is float and type(value) is int:
        return float(value)
    if type(value) is not expected:
        raise ManifestError(f"{where}: expected {expected.__name__}, found {type(value).__name__}")
    return value


def _build_optional(expected: Any, value: Any, where: str) -> Any:
    if value is None:
        return None
    (present,) = (part for part in get_args(expected) if part is not type(None))
    return _build(present, value, where)


def _build_record(record_type: Any, value: Any, where: str) -> Any:
    if not isinstance(value, dict):
        raise ManifestError(f"{where}: an object was expected")
    hints = get_type_hints(record_type)
    unknown = sorted(set(value) - set(hints))
    if unknown:
        raise ManifestError(f"{where}: unknown key {shown(unknown[0])}; made by another version?")
    built = {}
    for field in fields(record_type):
        if field.name in value:
            built[field.name] = _build(
                hints[field.name], value[field.name], f"{where}.{field.name}"
            )
        elif field.default is MISSING and field.default_factory is MISSING:
            raise ManifestError(f"{where}: the key {field.name!r} is missing")
    return record_type(**built)
