"""The header parser against safetensors' own core: real, hostile and mutated headers."""

from __future__ import annotations

import json
import struct
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest
import safetensors
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import LlamaConfig, LlamaForCausalLM

from alpharl_hub.errors import HeaderError
from alpharl_hub.safetensors_header import (
    DTYPE_BITS,
    MAX_HEADER_NUM_BYTES,
    Header,
    encode_header,
    header_num_bytes,
    parse_header,
)

Content = dict[str, tuple[str, tuple[int, ...], bytes]]


def as_file(header: str | bytes, data: bytes = b"", stated_num_bytes: int | None = None) -> bytes:
    """A file of a length prefix, a header and data, however wrong."""
    raw = header.encode() if isinstance(header, str) else header
    return (
        struct.pack("<Q", len(raw) if stated_num_bytes is None else stated_num_bytes) + raw + data
    )


def read_by_core(file: bytes) -> Content | None:
    """What safetensors reads, or None where it refuses."""
    try:
        entries = safetensors.deserialize(file)
    except safetensors.SafetensorError:
        return None
    return {name: (e["dtype"], tuple(e["shape"]), bytes(e["data"])) for name, e in entries}


def parse(file: bytes) -> Header:
    """Both steps of the module under test."""
    num_bytes = header_num_bytes(file[:8], len(file), "shard.safetensors")
    return parse_header(file[8 : 8 + num_bytes], len(file), "shard.safetensors")


def read_by_us(file: bytes) -> Content | None:
    """What the module under test reads, or None where it refuses."""
    try:
        header = parse(file)
    except HeaderError:
        return None
    starts = [tensor.start for tensor in header.tensors]
    assert starts == sorted(starts)
    return {t.name: (t.dtype, t.shape, file[t.start : t.stop]) for t in header.tensors}


def tensor(dtype: str = "F32", shape: str = "[2]", offsets: str = "[0,8]", more: str = "") -> str:
    """JSON of one tensor, eight bytes of fp32 unless told otherwise."""
    return f'{{"dtype":"{dtype}","shape":{shape},"data_offsets":{offsets}{more}}}'


def document(*pairs: tuple[str, str]) -> str:
    """JSON object of the pairs, keys and values as they are to stand there."""
    return "{" + ",".join(f'"{key}":{value}' for key, value in pairs) + "}"


def one(name: str = "a", **fields: str) -> str:
    """A header of one tensor."""
    return document((name, tensor(**fields)))


BODY = bytes(range(8))
META = "__metadata__"


def nested(depth: int) -> str:
    """An unknown field whose value lies `depth` arrays deep."""
    return ',"x":' + "[" * depth + "]" * depth


ACCEPTED = {
    "plain": as_file(one(), BODY),
    "no tensors": as_file("{}"),
    "metadata only": as_file(document((META, '{"x":"1"}'))),
    "metadata null": as_file(document((META, "null"), ("a", tensor())), BODY),
    "metadata last": as_file(document(("a", tensor()), (META, '{"x":"1"}')), BODY),
    "metadata key twice": as_file(document((META, '{"x":"1","x":"2"}'))),
    "white space around": as_file(" \n" + one() + "\t\r ", BODY),
    "unknown field": as_file(one(more=',"x":[1.5,{"y":null}]'), BODY),
    "unknown field twice": as_file(one(more=',"x":1,"x":2'), BODY),
    "unknown field 127 deep": as_file(one(more=nested(125)), BODY),
    "unknown huge integer": as_file(one(more=',"x":1' + "0" * 308), BODY),
    "tensor twice, last counts": as_file(
        document(("a", tensor(offsets="[0,99]")), ("a", tensor())), BODY
    ),
    "tensor as array": as_file('{"a":["F32",[2],[0,8]]}', BODY),
    "dtype as object": as_file(one().replace('"F32"', '{"F32":null}'), BODY),
    "escaped field name": as_file(one().replace("dtype", "\\u0064type"), BODY),
    "surrogate pair": as_file(one("\\ud83d\\ude00"), BODY),
    "empty name": as_file(one(""), BODY),
    "zero byte in name": as_file(one("a\\u0000"), BODY),
    "scalar": as_file(one(dtype="F64", shape="[]"), BODY),
    "no elements": as_file(
        document(("a", tensor()), ("z", tensor(shape="[3,0]", offsets="[8,8]"))), BODY
    ),
    "no elements of a huge size": as_file(one(shape="[18446744073709551615,0]", offsets="[0,0]")),
    "written back to front": as_file(
        document(("b", tensor("U8", "[3]", "[5,8]")), ("a", tensor("U8", "[5]", "[0,5]"))), BODY
    ),
    "four-bit elements": as_file(one(dtype="F4", shape="[16]"), BODY),
    "odd header length": as_file(one() + " ", BODY),
}

# Each with the words by which the message names the cause.
REFUSED = {
    "empty file": (b"", "too few"),
    "seven bytes": (b"\0" * 7, "too few"),
    "no header": (b"\0" * 8, "not JSON"),
    "header beyond the file": (as_file(one(), BODY, 1000), "does not fit"),
    "header beyond 100 MB": (as_file(one(), BODY, 100_000_001), "more than the"),
    "header of 2^64 - 1": (as_file(one(), BODY, 2**64 - 1), "more than the"),
    "not UTF-8": (as_file(b'{"\xff":1}'), "not UTF-8 at byte 2"),
    "byte order mark": (as_file("\ufeff" + one(), BODY), "not JSON"),
    "an array": (as_file("[]"), "not a JSON object"),
    "null": (as_file("null"), "not a JSON object"),
    "trailing text": (as_file(one() + "x", BODY), "not JSON"),
    "trailing zero byte": (as_file(one() + "\0", BODY), "not JSON"),
    "trailing comma": (as_file(one()[:-1] + ",}", BODY), "not JSON"),
    "control character": (as_file(one("a\n"), BODY), "not JSON"),
    "half a surrogate pair": (as_file(one("\\ud800"), BODY), "not valid Unicode"),
    "half a pair in metadata": (as_file(document((META, '{"x":"\\udc00"}'))), "not valid Unicode"),
    "half a pair in an unknown field": (as_file(one(more=',"x":{"\\ud800":1}'), BODY), "Unicode"),
    "NaN": (as_file(one(more=',"x":NaN'), BODY), "NaN is not JSON"),
    "number out of range": (as_file(one(more=',"x":1e999'), BODY), "out of range"),
    "integer out of range": (as_file(one(more=',"x":1' + "0" * 5000), BODY), "out of range"),
    "128 deep": (as_file(one(more=nested(126)), BODY), "nested too deeply"),
    "a million deep": (as_file(one(more=nested(10**6)), BODY), "nested too deeply"),
    "metadata twice": (as_file(document((META, "null"), (META, "{}"))), "twice"),
    "metadata an array": (as_file(document((META, "[]"))), "not an object"),
    "metadata nested": (as_file(document((META, '{"x":{}}'))), "other than text under 'x'"),
    "metadata a number": (as_file(document((META, '{"x":1}'))), "other than text under 'x'"),
    "metadata a tensor": (as_file(document((META, tensor())), BODY), "other than text"),
    "tensor no object": (as_file('{"a":3}'), "tensor 'a' is not described"),
    "array too short": (as_file('{"a":["F32",[2]]}'), "tensor 'a' is not described"),
    "an earlier duplicate malformed": (as_file(document(("a", "3"), ("a", tensor())), BODY), "'a'"),
    "field missing": (as_file(one().replace('"shape":[2],', ""), BODY), "no field shape"),
    "field twice": (as_file(one(more=',"shape":[2]'), BODY), "two fields shape"),
    "unknown dtype": (as_file(one(dtype="F31"), BODY), "dtype of tensor 'a' is not known"),
    "dtype in lower case": (as_file(one(dtype="f32"), BODY), "dtype of tensor 'a'"),
    "dtype a number": (as_file(one().replace('"F32"', "0"), BODY), "dtype of tensor 'a'"),
    "shape no list": (as_file(one(shape="2"), BODY), "shape of tensor 'a'"),
    "fractional size": (as_file(one(shape="[2.0]"), BODY), "shape of tensor 'a'"),
    "boolean size": (as_file(one(shape="[2,true]"), BODY), "shape of tensor 'a'"),
    "negative size": (as_file(one(shape="[-2]"), BODY), "shape of tensor 'a'"),
    "minus zero": (as_file(one(shape="[-0]", offsets="[0,0]")), "shape of tensor 'a'"),
    "size of 2^64": (as_file(one(shape="[18446744073709551616]"), BODY), "shape of tensor 'a'"),
    "size of 5000 digits": (as_file(one(shape="[" + "9" * 5000 + "]"), BODY), "out of range"),
    "2^64 elements": (as_file(one(shape="[4294967296,4294967296]"), BODY), "64 bits can count"),
    "2^63 elements": (as_file(one(shape="[9223372036854775808]"), BODY), "size in bits"),
    "too many elements, then none": (
        as_file(one(shape="[18446744073709551615,2,0]", offsets="[0,0]")),
        "64 bits can count",
    ),
    "one offset": (as_file(one(offsets="[8]"), BODY), "data_offsets of tensor 'a'"),
    "three offsets": (as_file(one(offsets="[0,8,8]"), BODY), "data_offsets of tensor 'a'"),
    "negative offset": (as_file(one(offsets="[-1,7]"), BODY), "data_offsets of tensor 'a'"),
    "offsets swapped": (as_file(one(shape="[0]", offsets="[8,0]"), BODY), "at 8 to 0"),
    "gap at the start": (as_file(one(shape="[1]", offsets="[4,8]"), BODY), "position 0 is next"),
    "overlap": (as_file(document(("a", tensor()), ("b", tensor())), BODY), "position 8 is next"),
    "no elements inside another": (
        as_file(document(("a", tensor()), ("z", tensor(shape="[0]", offsets="[4,4]"))), BODY),
        "position 8 is next",
    ),
    "shape and bytes differ": (as_file(one(shape="[3]"), BODY), "has 8 bytes"),
    "half a byte": (as_file(one(dtype="F4", shape="[15]"), BODY), "whole byte"),
    "cut short": (as_file(one(), BODY[:-1]), "take 8 bytes where the file has 7"),
    "too long": (as_file(one(), BODY + b"x"), "take 8 bytes where the file has 9"),
}


@pytest.mark.parametrize("case", ACCEPTED)
def test_reads_what_the_core_reads(case: str) -> None:
    """Every liberty of the format is taken by both, with the same tensors as a result."""
    expected = read_by_core(ACCEPTED[case])
    assert expected is not None
    assert read_by_us(ACCEPTED[case]) == expected


@pytest.mark.parametrize("case", REFUSED)
def test_refuses_what_the_core_refuses(case: str) -> None:
    """Every fault is refused by both, and the one line of ours names the file and the cause."""
    file, cause = REFUSED[case]
    assert read_by_core(file) is None
    with pytest.raises(HeaderError) as caught:
        parse(file)
    message = str(caught.value)
    assert message.startswith("shard.safetensors: ")
    assert cause in message
    assert message.isprintable()
    assert len(message) < 400


@pytest.mark.parametrize("dtype", DTYPE_BITS)
def test_sizes_of_all_dtypes_are_those_of_the_core(dtype: str) -> None:
    """For 0 to 16 elements and 0 to 130 bytes of a dtype both give the same verdict."""
    accepted = 0
    for num_elements in range(17):
        for num_bytes in range(131):
            header = one(dtype=dtype, shape=f"[{num_elements}]", offsets=f"[0,{num_bytes}]")
            file = as_file(header, bytes(num_bytes))
            expected = read_by_core(file)
            assert read_by_us(file) == expected
            accepted += expected is not None
    assert accepted >= 5  # 0, 4, 8, 12 and 16 elements end at a whole byte in every dtype


def test_no_dtype_of_the_core_is_missing() -> None:
    """The core lists its dtypes when it meets an unknown one: the same set as ours."""
    with pytest.raises(safetensors.SafetensorError) as caught:
        safetensors.deserialize(as_file(one(dtype="?"), BODY))
    listed = str(caught.value).split("expected one of ")[1].split(" at line")[0]
    assert set(listed.replace("`", "").split(", ")) == set(DTYPE_BITS)


def test_a_header_may_have_100_million_bytes() -> None:
    """The cap is the core's: exactly 100 MB pass, whatever the file's size allows."""
    prefix = struct.pack("<Q", MAX_HEADER_NUM_BYTES)
    assert header_num_bytes(prefix, MAX_HEADER_NUM_BYTES + 8, "file") == 100_000_000
    with pytest.raises(HeaderError, match="does not fit"):
        header_num_bytes(prefix, MAX_HEADER_NUM_BYTES + 7, "file")


def test_offsets_and_metadata_are_as_stored() -> None:
    """Ranges count from the start of the file, tensors come in the order of their bytes."""
    file = safetensors.torch.save(
        {"b": torch.arange(6.0).reshape(2, 3), "a": torch.ones(5, dtype=torch.bfloat16)},
        {"format": "pt"},
    )
    header = parse(file)
    assert header.metadata == {"format": "pt"}
    first, second = header.tensors
    assert (first.name, first.dtype, first.shape) == ("b", "F32", (2, 3))
    assert first.filename == "shard.safetensors"
    assert file[first.start : first.stop] == struct.pack("<6f", *range(6))
    assert (second.name, second.dtype, second.shape) == ("a", "BF16", (5,))
    assert (second.start, second.stop) == (first.stop, len(file))


TORCH_DTYPES = {
    torch.uint64: "U64",
    torch.int64: "I64",
    torch.float64: "F64",
    torch.complex64: "C64",
    torch.float32: "F32",
    torch.uint32: "U32",
    torch.int32: "I32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.uint16: "U16",
    torch.int16: "I16",
    torch.float8_e8m0fnu: "F8_E8M0",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.float8_e4m3fnuz: "F8_E4M3FNUZ",
    torch.float8_e5m2fnuz: "F8_E5M2FNUZ",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


@pytest.mark.parametrize("metadata", [None, {"format": "pt"}, {'"\\\n\x01ü': "\x7f/\t😀"}])
@pytest.mark.parametrize("suffix", ["", "ä", '"\\', "\n\x00\x1f", "😀.weight"])
def test_writes_the_bytes_that_safetensors_writes(
    metadata: dict[str, str] | None, suffix: str
) -> None:
    """All dtypes, awkward names and every padding give byte-identical headers."""
    state = {
        f"{letter}.{code}{suffix}": torch.zeros(shape).to(dtype)
        for letter, shape in (("z", (2, 3)), ("a", ()), ("m", (0, 4)))
        for dtype, code in TORCH_DTYPES.items()
    }
    entries = [(name, TORCH_DTYPES[t.dtype], tuple(t.shape)) for name, t in state.items()]
    order = list(DTYPE_BITS)
    entries.sort(key=lambda item: (order.index(item[1]), item[0]))
    encoded = encode_header(entries, metadata)
    assert safetensors.torch.save(state, metadata).startswith(encoded)
    assert len(encoded) % 8 == 0


def test_written_header_keeps_the_order_given() -> None:
    """Entries in any order get consecutive ranges and are read back by the core as they were."""
    entries = [("b", "U8", (3,)), ("a", "F32", (2, 1)), ("c", "F4", (4,)), ("z", "I16", (0,))]
    data = bytes(range(3 + 8 + 2))
    file = encode_header(entries, {"b": "2", "a": "1"}) + data
    assert read_by_core(file) == {
        "b": ("U8", (3,), data[:3]),
        "a": ("F32", (2, 1), data[3:11]),
        "c": ("F4", (4,), data[11:]),
        "z": ("I16", (0,), b""),
    }
    assert read_by_us(file) == read_by_core(file)
    assert file[8:].startswith(b'{"__metadata__":{"a":"1","b":"2"},"b":')


@pytest.mark.parametrize(
    ("entries", "cause"),
    [
        ([("a", "F32", (1,)), ("a", "F32", (1,))], "the name is taken"),
        ([("__metadata__", "F32", (1,))], "the name is taken"),
        ([("a", "F33", (1,))], "unknown dtype"),
        ([("a", "F4", (3,))], "whole byte"),
        ([("a", "U8", (2**62, 4))], "64 bits"),
        ([("a" * MAX_HEADER_NUM_BYTES, "U8", (1,))], "use more shards"),
    ],
)
def test_writes_nothing_that_nobody_could_read(
    entries: list[tuple[str, str, tuple[int, ...]]], cause: str
) -> None:
    """Names taken twice, unknown dtypes, broken bytes and oversized headers are refused."""
    with pytest.raises(HeaderError, match=cause):
        encode_header(entries)


def real_files(folder: Path) -> list[bytes]:
    """Files as transformers and safetensors write them: a model, all dtypes, zero sizes."""
    config = LlamaConfig(
        vocab_size=11,
        hidden_size=8,
        intermediate_size=12,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        pad_token_id=0,
    )
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    mixed = {f"x.{code}": torch.zeros(2, 3).to(dtype) for dtype, code in TORCH_DTYPES.items()}
    odd = {
        "": torch.ones(()),
        "schicht.ü\n.gewicht": torch.ones(0, 4),
        "a" * 80: torch.ones(3, dtype=torch.uint8),
        "leer": torch.ones(0),
    }
    return [
        (folder / "model.safetensors").read_bytes(),
        safetensors.torch.save(mixed, {"format": "pt", "note": "ä"}),
        safetensors.torch.save(odd),
        safetensors.torch.save({"w": torch.ones(2, 2)}, {"format": "pt"}),
    ]


class Raw(str):
    """JSON text that is written as it is."""


Pairs = list[list[Any]]  # [key, value] of an object, value again Pairs for an object


def parsed(header: bytes) -> Pairs:
    """A header as nested pairs, so that keys can be doubled and reordered."""
    pairs: Pairs = json.loads(header, object_pairs_hook=lambda items: PairList(map(list, items)))
    return pairs


class PairList(list[Any]):
    """An object, told apart from an array."""


def dumped(value: object) -> str:
    """JSON of nested pairs and raw texts."""
    if isinstance(value, Raw):
        return str(value)
    if isinstance(value, PairList):
        return "{" + ",".join(f"{dumped(key)}:{dumped(item)}" for key, item in value) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(dumped, value)) + "]"
    return json.dumps(value, ensure_ascii=False)


HOSTILE = [
    Raw(text)
    for text in (
        *("null", "true", "[]", "{}", '""', "0", "-0", "-1", "1.0", "1e0", "1e400", "NaN", "01"),
        *("18446744073709551615", "18446744073709551616", "9223372036854775808", "[0]", '"F32"'),
        *('"\\ud800"', '"\\u0000"', '{"F32":null}', "[0,0]", "[0,0,0]", "4294967296", "2.5e-1"),
    )
]
FRAGMENTS = [*'{}[]",:0123456789-.eEuF\\ \n\t\x00\x0b', "null", "\\u0041", "\\ud83d", "[[", "é"]


def some_tensor(pairs: Pairs, random: Random) -> Any:
    """The fields of one tensor of the header."""
    candidates = [pair for pair in pairs if pair[0] != META and isinstance(pair[1], PairList)]
    return random.choice(candidates) if candidates else ["", PairList([["dtype", "U8"]])]


def set_field(fields: Any, name: str, value: object) -> None:
    """Replaces a field, in every place where it stands."""
    fields[:] = [[key, value if key == name else old] for key, old in fields]


def get_field(fields: Any, name: str) -> Any:
    """The first value of a field, None if it was mutated away."""
    return next((value for key, value in fields if key == name), None)


def shuffle(pairs: Pairs, random: Random) -> None:
    """Another order of the entries means the same."""
    random.shuffle(pairs)


def shuffle_fields(pairs: Pairs, random: Random) -> None:
    """Another order of one tensor's fields means the same."""
    random.shuffle(some_tensor(pairs, random)[1])


def add_unknown_field(pairs: Pairs, random: Random) -> None:
    """Unknown fields are skipped, unless they are no JSON or too deep."""
    depth = random.choice([0, 1, 5, 125, 126, 127])
    value = Raw("[" * depth + random.choice(HOSTILE) + "]" * depth)
    some_tensor(pairs, random)[1].append(["extra", value])


def double_entry(pairs: Pairs, random: Random) -> None:
    """A second entry of a name, the same or changed, before or after the first."""
    name, fields = some_tensor(pairs, random)
    twin = PairList(list(field) for field in fields)
    if random.random() < 0.3:
        set_field(twin, random.choice(["dtype", "shape", "data_offsets"]), random.choice(HOSTILE))
    pairs.insert(random.randrange(len(pairs) + 1), [name, twin])


def double_field(pairs: Pairs, random: Random) -> None:
    """A field that stands there twice."""
    fields = some_tensor(pairs, random)[1]
    fields.append(random.choice(fields))


def drop_entry(pairs: Pairs, random: Random) -> None:
    """A gap, or nothing at all for a tensor without elements."""
    if pairs:
        pairs.pop(random.randrange(len(pairs)))


def drop_field(pairs: Pairs, random: Random) -> None:
    """A tensor without one of its fields."""
    fields = some_tensor(pairs, random)[1]
    fields.pop(random.randrange(len(fields)))


def move_offset(pairs: Pairs, random: Random) -> None:
    """One bound of one tensor moved a little or a lot."""
    offsets = get_field(some_tensor(pairs, random)[1], "data_offsets")
    if isinstance(offsets, list) and len(offsets) == 2 and isinstance(offsets[0], int):
        offsets[random.randrange(2)] += random.choice([-8, -1, 1, 4, 2**32, 2**63])


def swap_offsets(pairs: Pairs, random: Random) -> None:
    """Two tensors exchange their places, which is right for tensors of one size."""
    one_, other = some_tensor(pairs, random)[1], some_tensor(pairs, random)[1]
    first, second = get_field(one_, "data_offsets"), get_field(other, "data_offsets")
    set_field(one_, "data_offsets", second)
    set_field(other, "data_offsets", first)


def reshape(pairs: Pairs, random: Random) -> None:
    """Sizes exchanged, ones put in, or a size changed."""
    shape = get_field(some_tensor(pairs, random)[1], "shape")
    if not isinstance(shape, list):
        return
    if random.random() < 0.7:
        shape.insert(random.randrange(len(shape) + 1), 1)
        random.shuffle(shape)
    else:
        size = random.choice([0, 2, 2**32, *HOSTILE])
        shape.insert(random.randrange(len(shape) + 1), size)


def change_dtype(pairs: Pairs, random: Random) -> None:
    """Another dtype, of the same size as often as not."""
    fields = some_tensor(pairs, random)[1]
    old = get_field(fields, "dtype")
    bits = DTYPE_BITS.get(old) if isinstance(old, str) else None
    same = [code for code in DTYPE_BITS if DTYPE_BITS[code] == bits]
    new = random.choice([*same, *same, *DTYPE_BITS, "F128", Raw('{"BF16":null}')])
    set_field(fields, "dtype", new)


def hostile_value(pairs: Pairs, random: Random) -> None:
    """Something else in the place of a field."""
    name = random.choice(["dtype", "shape", "data_offsets"])
    set_field(some_tensor(pairs, random)[1], name, random.choice(HOSTILE))


def change_metadata(pairs: Pairs, random: Random) -> None:
    """More metadata, or other things in its place."""
    if random.random() < 0.5:
        value: object = PairList(
            [["k", "v"], [random.choice("kx"), random.choice(["", "ü\u2028"])]]
        )
    else:
        value = random.choice([Raw("null"), PairList([["k", random.choice(HOSTILE)]]), *HOSTILE])
    if random.random() < 0.8:
        pairs[:] = [pair for pair in pairs if pair[0] != META]
    pairs.insert(random.randrange(len(pairs) + 1), [META, value])


def rename(pairs: Pairs, random: Random) -> None:
    """Another name, written plainly or escaped."""
    names = [
        '"b"',
        '""',
        '"\\u0061"',
        '"\\ud83d\\ude00"',
        '"\\ud83d"',
        '"__metadat\\u0061__"',
        '"\\/"',
    ]
    some_tensor(pairs, random)[0] = Raw(random.choice([*names, '"é"', '"\x7f"', '"\t"']))


def add_empty_tensor(pairs: Pairs, random: Random) -> None:
    """A tensor without elements, at the end of another one or anywhere."""
    offsets = get_field(some_tensor(pairs, random)[1], "data_offsets")
    position = offsets[1] if isinstance(offsets, list) and len(offsets) == 2 else 0
    if random.random() < 0.2:
        position = random.randrange(20)
    fields = [["dtype", "F32"], ["shape", [0]], ["data_offsets", [position, position]]]
    pairs.append([f"empty{random.randrange(3)}", PairList(fields)])


def as_array(pairs: Pairs, random: Random) -> None:
    """A tensor as an array of its fields."""
    pair = some_tensor(pairs, random)
    pair[1] = [value for _, value in pair[1]]


MUTATIONS: list[Callable[[Pairs, Random], None]] = [
    *(shuffle, shuffle_fields, add_unknown_field, double_entry, double_field, drop_entry),
    *(drop_field, move_offset, swap_offsets, reshape, change_dtype, hostile_value),
    *(shuffle, swap_offsets, reshape, change_metadata, rename, add_empty_tensor, as_array),
]


def edited(header: str, random: Random) -> str:
    """The text with a piece put in, taken out or doubled, or white space where it does no harm."""
    position = random.randrange(len(header) + 1)
    length = random.choice([1, 1, 2, 5])
    kind = random.randrange(4)
    if kind == 0:
        return header[:position] + random.choice(FRAGMENTS) + header[position:]
    if kind == 1:
        return header[:position] + header[position + length :]
    if kind == 2:
        return header[: position + length] + header[position:]
    commas = [index for index, letter in enumerate(header) if letter in ",:["]
    position = random.choice(commas) + 1 if commas else 0
    return header[:position] + random.choice([" ", "\n", "\t\r ", "\x0b"]) + header[position:]


def mutate(file: bytes, random: Random) -> bytes:
    """One file with one to three faults or liberties in header, length or data."""
    num_bytes = int.from_bytes(file[:8], "little")
    pairs, data = parsed(file[8 : 8 + num_bytes]), file[8 + num_bytes :]
    kinds = random.choices(
        ["structure", "text", "length", "data"], [12, 5, 1, 1], k=random.choice([1, 1, 1, 2, 3])
    )
    for _ in range(kinds.count("structure")):
        random.choice(MUTATIONS)(pairs, random)
    header = dumped(pairs)
    for _ in range(kinds.count("text")):
        header = edited(header, random)
    if "data" in kinds:
        data = random.choice([data[:-1], data + b"x", b"", data + bytes(8)])
    stated = None
    if "length" in kinds:
        stated = max(0, len(header.encode()) + random.choice([-1, 1, 8, -8, 10**8, 2**60]))
    return as_file(header.encode("utf-8", "surrogatepass"), data, stated)


def test_same_verdict_as_the_core_on_10000_mutated_real_headers(tmp_path: Path) -> None:
    """Nothing is accepted that the core refuses, nothing refused that it accepts, none differs."""
    files = real_files(tmp_path)
    assert all(read_by_core(file) == read_by_us(file) is not None for file in files)
    verdicts: Counter[bool] = Counter()

    @settings(
        max_examples=10_000,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.sampled_from(files), st.integers(0, 2**64 - 1))
    def agree(file: bytes, seed: int) -> None:
        mutated = mutate(file, Random(seed))
        expected = read_by_core(mutated)
        verdicts[expected is not None] += 1
        assert read_by_us(mutated) == expected

    agree()
    assert verdicts.total() >= 10_000
    assert min(verdicts[True], verdicts[False]) >= verdicts.total() / 5, verdicts
