"""Frozen dataclasses to strict JSON and back.

Strict both ways: NaN and infinities are written as null, and reading refuses unknown keys, missing
keys, duplicate keys and values of another type, so that a document from somebody else is data of a
known shape or nothing.
"""

from __future__ import annotations

import json
import math
import types
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from alpharl_hub.errors import ManifestError

Record = TypeVar("Record")

MAX_DOCUMENT_BYTES = 256 << 20
"""A manifest lists a few hundred bytes per tensor; a quarter of a gigabyte is no manifest."""


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
    """Write a dataclass or plain value as one JSON document."""
    return json.dumps(to_plain(value), indent=indent, ensure_ascii=False, allow_nan=False)


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


def parse(text: str | bytes, where: str) -> Any:
    """Parse one JSON document without duplicate keys or NaN; `where` names it in errors.

    Raises:
        ManifestError: the text is no such document.
    """
    if len(text) > MAX_DOCUMENT_BYTES:
        raise ManifestError(f"{where}: larger than {MAX_DOCUMENT_BYTES} bytes; not a file of ours")
    try:
        return json.loads(
            text,
            object_pairs_hook=_refuse_duplicates,
            parse_constant=_refuse_constant,
            parse_float=_finite,
        )
    except (ValueError, RecursionError) as error:
        raise ManifestError(f"{where}: not valid JSON ({error}); write it anew") from error


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
        raise ManifestError(f"{where}: unknown key {unknown[0]!r}; made by another version?")
    built = {}
    for field in fields(record_type):
        if field.name in value:
            built[field.name] = _build(
                hints[field.name], value[field.name], f"{where}.{field.name}"
            )
        elif field.default is MISSING and field.default_factory is MISSING:
            raise ManifestError(f"{where}: the key {field.name!r} is missing")
    return record_type(**built)
