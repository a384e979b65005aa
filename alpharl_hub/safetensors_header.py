"""The header of a safetensors file: read as strictly as the format's own core, and written.

A file is 8 bytes of header length (little-endian u64), a JSON header, then the tensors' bytes
without a gap. Standard library only, so that a header can be judged before torch is imported.

What is accepted was found by experiment against safetensors 0.8 (`safetensors.deserialize`), and a
test holds the two together. Where the core is more lenient than one would think, so is this module,
because a file must not mean one thing here and another in the library that loads it: white space
before the header, the last one of duplicate tensor names, unknown fields, `"__metadata__": null`,
a tensor as `[dtype, shape, offsets]` and a dtype as `{"F32": null}`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NoReturn

from alpharl_hub.errors import HeaderError
from alpharl_hub.strict_json import shown
from alpharl_hub.trajectory import TensorRef

DTYPE_BITS = {
    "U64": 64,
    "I64": 64,
    "F64": 64,
    "C64": 64,
    "F32": 32,
    "U32": 32,
    "I32": 32,
    "BF16": 16,
    "F16": 16,
    "U16": 16,
    "I16": 16,
    "F8_E5M2FNUZ": 8,
    "F8_E4M3FNUZ": 8,
    "F8_E8M0": 8,
    "F8_E4M3": 8,
    "F8_E5M2": 8,
    "I8": 8,
    "U8": 8,
    "F6_E3M2": 6,
    "F6_E2M3": 6,
    "F4": 4,
    "BOOL": 8,
}
"""Bits per element of every dtype, in the order in which the core lays tensors out in a file."""

PREFIX_NUM_BYTES = 8
"""Size of the length that stands before the header."""

MAX_HEADER_NUM_BYTES = 100_000_000
"""The core's own limit."""

_METADATA = "__metadata__"
_U64_MAX = 2**64 - 1
_MAX_DEPTH = 127  # nested arrays and objects that serde_json reads: one less than its limit of 128
_TENSOR_FIELDS = ("dtype", "shape", "data_offsets")


@dataclass(frozen=True)
class Header:
    """What one safetensors header says: its tensors in the order of their bytes, its metadata."""

    tensors: tuple[TensorRef, ...]
    metadata: Mapping[str, str]


@dataclass(frozen=True)
class _TensorInfo:
    """One entry of the header; offsets count from the end of the header."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


class _Flaw(Exception):
    """Why a header is refused; becomes a HeaderError where the name of the file is known."""


class _Object(tuple[tuple[str, object], ...]):
    """A JSON object as its pairs, so that duplicate keys stay visible and arrays stay lists."""


def header_num_bytes(prefix: bytes, file_num_bytes: int, where: str) -> int:
    """Length of the header in bytes, without the 8 bytes of `prefix` that state it.

    Raises HeaderError when the file cannot hold such a header, before anything is allocated for it.
    """
    if file_num_bytes < PREFIX_NUM_BYTES or len(prefix) < PREFIX_NUM_BYTES:
        raise HeaderError(
            f"{where}: {file_num_bytes} bytes are too few for a safetensors file; "
            "it is incomplete, store it again"
        )
    num_bytes = int.from_bytes(prefix[:PREFIX_NUM_BYTES], "little")
    if num_bytes > MAX_HEADER_NUM_BYTES:
        raise HeaderError(
            f"{where}: claims a header of {num_bytes} bytes, more than the "
            f"{MAX_HEADER_NUM_BYTES} that the format allows; is it a safetensors file?"
        )
    if PREFIX_NUM_BYTES + num_bytes > file_num_bytes:
        raise HeaderError(
            f"{where}: a header of {num_bytes} bytes does not fit into {file_num_bytes} bytes; "
            "it is incomplete or no safetensors file, store it again"
        )
    return num_bytes


def parse_header(header: bytes, file_num_bytes: int, filename: str) -> Header:
    """The tensors and the metadata of a file of `file_num_bytes` that begins with this `header`.

    `header` are the bytes after the 8 of the length, as many as that length says. The tensors come
    in the order of their bytes and cover the rest of the file exactly; their offsets count from the
    start of the file. Raises HeaderError for everything that safetensors' own core refuses.
    """
    try:
        infos, metadata = _read_entries(_json_object(header))
        ordered = sorted(infos.items(), key=lambda item: (item[1].start, item[1].stop))
        data_num_bytes = file_num_bytes - PREFIX_NUM_BYTES - len(header)
        _check_coverage(ordered, data_num_bytes)
    except _Flaw as flaw:
        raise HeaderError(
            f"{filename}: no valid safetensors header ({flaw}); "
            "the file is damaged, store it again or choose another checkpoint"
        ) from None
    data_start = PREFIX_NUM_BYTES + len(header)
    tensors = tuple(
        TensorRef(
            name=name,
            dtype=info.dtype,
            shape=info.shape,
            filename=filename,
            start=data_start + info.start,
            stop=data_start + info.stop,
        )
        for name, info in ordered
    )
    return Header(tensors=tensors, metadata=metadata)


def encode_header(
    entries: Sequence[tuple[str, str, Sequence[int]]], metadata: Mapping[str, str] | None = None
) -> bytes:
    """The first bytes of a file that holds `entries` (name, dtype, shape) in the order given.

    The 8 bytes of the length are included and the whole is padded with spaces to a multiple of 8.
    For entries sorted by (position of the dtype in DTYPE_BITS, name) the bytes are those that
    safetensors writes, as long as the metadata has one key: the core writes several in the random
    order of a hash table, this function sorts them. `metadata=None` leaves `__metadata__` out.
    Raises HeaderError for entries that no safetensors file can hold.
    """
    document: dict[str, object] = {}
    if metadata is not None:
        document[_METADATA] = dict(sorted(metadata.items()))
    start = 0
    for name, dtype, shape in entries:
        if name in document or name == _METADATA:
            raise HeaderError(f"cannot store tensor {shown(name)}: the name is taken; rename it")
        try:
            stop = start + _stored_num_bytes(dtype, shape)
        except _Flaw as flaw:
            raise HeaderError(
                f"cannot store tensor {shown(name)}: {flaw}; choose another dtype"
            ) from None
        document[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [start, stop]}
        start = stop
    text = json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    if len(text) > MAX_HEADER_NUM_BYTES:
        raise HeaderError(
            f"{len(entries)} tensors need a header of {len(text)} bytes, more than the "
            f"{MAX_HEADER_NUM_BYTES} that the format allows; use more shards"
        )
    return len(text).to_bytes(PREFIX_NUM_BYTES, "little") + text


def _json_object(header: bytes) -> _Object:
    """The header as JSON, with exactly the liberties that serde_json takes."""
    try:
        document = json.loads(
            header.decode("utf-8"),
            object_pairs_hook=_Object,
            parse_int=_integer,
            parse_float=_finite,
            parse_constant=_refuse_constant,
        )
    except UnicodeDecodeError as error:
        raise _Flaw(f"not UTF-8 at byte {error.start}") from None
    except json.JSONDecodeError as error:
        raise _Flaw(f"not JSON: {error}") from None
    except RecursionError:
        raise _Flaw("nested too deeply") from None
    if not isinstance(document, _Object):
        raise _Flaw("not a JSON object")
    return document


def _integer(text: str) -> int | float:
    """An unsigned 64-bit integer, or a float, which is refused wherever a count is needed.

    serde_json reads -0 and integers beyond 64 bits as floats too. The length is looked at first
    because Python refuses to convert thousands of digits.
    """
    if len(text) <= 20 and not text.startswith("-") and int(text) <= _U64_MAX:
        return int(text)
    return _finite(text)


def _finite(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise _Flaw("a number is out of range")
    return value


def _refuse_constant(text: str) -> NoReturn:
    raise _Flaw(f"{text} is not JSON")


def _read_entries(document: _Object) -> tuple[dict[str, _TensorInfo], dict[str, str]]:
    infos: dict[str, _TensorInfo] = {}
    metadata: dict[str, str] | None = None
    for name, value in document:
        _check_text(name)
        if name != _METADATA:
            infos[name] = _tensor_info(name, value)
        elif metadata is not None:
            raise _Flaw(f"{_METADATA} stands there twice")
        else:
            metadata = _metadata(value)
    return infos, metadata or {}


def _metadata(value: object) -> dict[str, str]:
    if value is None:
        return {}
    if not isinstance(value, _Object):
        raise _Flaw(f"{_METADATA} is not an object")
    metadata = {}
    for key, text in value:
        if not isinstance(text, str):
            raise _Flaw(f"{_METADATA} holds something other than text under {shown(key)}")
        _check_text(key)
        _check_text(text)
        metadata[key] = text
    return metadata


def _tensor_info(name: str, value: object) -> _TensorInfo:
    where = f"tensor {shown(name)}"
    if isinstance(value, _Object):
        fields = _known_fields(where, value)
    elif isinstance(value, list) and len(value) == len(_TENSOR_FIELDS):
        fields = dict(zip(_TENSOR_FIELDS, value, strict=True))
    else:
        raise _Flaw(f"{where} is not described by an object")
    shape, offsets = fields["shape"], fields["data_offsets"]
    if not isinstance(shape, list) or not all(type(size) is int for size in shape):
        raise _Flaw(f"the shape of {where} is not a list of sizes")
    if (
        not isinstance(offsets, list)
        or len(offsets) != 2
        or not all(type(offset) is int for offset in offsets)
    ):
        raise _Flaw(f"the data_offsets of {where} are not two positions")
    return _TensorInfo(_dtype(where, fields["dtype"]), tuple(shape), offsets[0], offsets[1])


def _known_fields(where: str, entry: _Object) -> dict[str, object]:
    fields: dict[str, object] = {}
    for key, value in entry:
        if key not in _TENSOR_FIELDS:
            _check_text(key)
            _check_ignored(value, depth=3)
        elif key in fields:
            raise _Flaw(f"{where} has two fields {key}")
        else:
            fields[key] = value
    for key in _TENSOR_FIELDS:
        if key not in fields:
            raise _Flaw(f"{where} has no field {key}")
    return fields


def _dtype(where: str, value: object) -> str:
    if isinstance(value, _Object) and len(value) == 1 and value[0][1] is None:
        value = value[0][0]
    if not isinstance(value, str):
        raise _Flaw(f"the dtype of {where} is not a name")
    if value not in DTYPE_BITS:
        raise _Flaw(f"the dtype of {where} is not known: {shown(value)}")
    return value


def _check_ignored(value: object, depth: int) -> None:
    """What stands in unknown fields plays no part, but must be JSON that the core can read."""
    if isinstance(value, str):
        _check_text(value)
    elif isinstance(value, _Object | list):
        if depth > _MAX_DEPTH:
            raise _Flaw("nested too deeply")
        if isinstance(value, _Object):
            for key, _ in value:
                _check_text(key)
            value = [item for _, item in value]
        for item in value:
            _check_ignored(item, depth + 1)


def _check_text(text: str) -> None:
    """Python's JSON lets halves of surrogate pairs pass, which are no Unicode text."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise _Flaw(f"{shown(text)} is not valid Unicode") from None


def _check_coverage(ordered: Sequence[tuple[str, _TensorInfo]], data_num_bytes: int) -> None:
    """The tensors, in the order of their bytes, must fill the file without gap or overlap."""
    position = 0
    for name, info in ordered:
        where = f"tensor {shown(name)}"
        if info.start != position or info.stop < info.start:
            raise _Flaw(
                f"{where} lies at {info.start} to {info.stop} where position {position} is next"
            )
        try:
            num_bytes = _stored_num_bytes(info.dtype, info.shape)
        except _Flaw as flaw:
            raise _Flaw(f"{where}: {flaw}") from None
        if num_bytes != info.stop - info.start:
            raise _Flaw(
                f"{where} has {info.stop - info.start} bytes, its dtype and shape need {num_bytes}"
            )
        position = info.stop
    if position != data_num_bytes:
        raise _Flaw(f"its tensors take {position} bytes where the file has {data_num_bytes}")


def _stored_num_bytes(dtype: str, shape: Sequence[int]) -> int:
    """Stored size of a tensor in bytes, in 64-bit arithmetic that refuses to overflow."""
    if dtype not in DTYPE_BITS:
        raise _Flaw(f"unknown dtype {shown(dtype)}")
    num_elements = 1
    for size in shape:
        num_elements *= size
        if num_elements > _U64_MAX:
            raise _Flaw("the shape has more elements than 64 bits can count")
    num_bits = num_elements * DTYPE_BITS[dtype]
    if num_bits > _U64_MAX:
        raise _Flaw("the size in bits is more than 64 bits can count")
    if num_bits % 8:
        raise _Flaw(f"{num_elements} elements of {dtype} do not end at a whole byte")
    return num_bits // 8
