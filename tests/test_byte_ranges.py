"""Planning of ranges, and HTTP's notation for them."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alpharl_hub.byte_ranges import (
    ByteRange,
    ContentRange,
    PlannedRange,
    dest_starts,
    parse_content_range,
    plan_ranges,
    range_header,
)
from alpharl_hub.trajectory import TensorRef


def ref(name: str, start: int, stop: int, filename: str = "m") -> TensorRef:
    """A tensor of bytes."""
    return TensorRef(name, "U8", (stop - start,), filename, start, stop)


def test_touching_tensors_are_one_range_and_gaps_are_not_read() -> None:
    """Given out of order: two that touch become one request, the one behind a gap another."""
    refs = [ref("c", 40, 50), ref("b", 20, 30), ref("a", 10, 20)]
    assert plan_ranges(refs) == (
        PlannedRange(ByteRange("m", 10, 30), 0),
        PlannedRange(ByteRange("m", 40, 50), 20),
    )
    assert {r.name: start for r, start in dest_starts(refs).items()} == {"a": 0, "b": 10, "c": 20}


def test_files_are_never_joined() -> None:
    """Ranges that would touch but lie in two shards stay two."""
    refs = [ref("a", 0, 8, "m-1"), ref("b", 8, 16, "m-2")]
    assert [planned.source.filename for planned in plan_ranges(refs)] == ["m-1", "m-2"]


def test_long_runs_are_cut_into_pieces_of_the_given_size() -> None:
    """Pieces do not respect the borders of tensors; the last one is the rest."""
    refs = [ref("a", 3, 10), ref("b", 10, 25)]
    assert plan_ranges(refs, max_range_num_bytes=10) == (
        PlannedRange(ByteRange("m", 3, 13), 0),
        PlannedRange(ByteRange("m", 13, 23), 10),
        PlannedRange(ByteRange("m", 23, 25), 20),
    )


def test_ranges_have_64_mib_at_most_unless_told_otherwise() -> None:
    """The default keeps every answer within 64 MiB."""
    planned = plan_ranges([ref("a", 0, 2**27 + 1)])
    assert [item.source.num_bytes for item in planned] == [2**26, 2**26, 1]


def test_tensors_without_bytes_cost_nothing() -> None:
    """A tensor of no elements has a place in the buffer and no request."""
    refs = [ref("z", 8, 8), ref("a", 0, 8)]
    assert plan_ranges(refs) == (PlannedRange(ByteRange("m", 0, 8), 0),)
    assert {r.name: start for r, start in dest_starts(refs).items()} == {"a": 0, "z": 8}
    assert plan_ranges([ref("z", 8, 8)]) == plan_ranges([]) == ()


def test_overlapping_tensors_are_refused() -> None:
    """No byte is ever read twice."""
    with pytest.raises(ValueError, match="'b' overlaps"):
        plan_ranges([ref("a", 0, 8), ref("b", 7, 9)])


@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 30), st.booleans()), max_size=20),
    st.integers(1, 40),
    st.integers(0, 2**32),
)
def test_following_the_plan_gives_every_tensor_its_bytes(
    layout: list[tuple[int, int, bool]], max_range_num_bytes: int, seed: int
) -> None:
    """For any layout with some tensors left out: the right bytes and no others, in short ranges."""
    files: dict[str, bytes] = {}
    refs = []
    for number, (shard, num_bytes, wanted) in enumerate(layout):
        content = files.get(f"m{shard}", b"")
        start = len(content)
        files[f"m{shard}"] = content + bytes((number + i) % 251 for i in range(num_bytes))
        if wanted:
            refs.append(ref(f"t{number}", start, start + num_bytes, f"m{shard}"))
    Random(seed).shuffle(refs)

    planned = plan_ranges(refs, max_range_num_bytes)
    buffer = bytearray(sum(item.num_bytes for item in refs))
    for item in planned:
        source = item.source
        buffer[item.dest_start : item.dest_stop] = files[source.filename][
            source.start : source.stop
        ]
        assert 0 < source.num_bytes <= max_range_num_bytes
    starts = dest_starts(refs)
    for tensor in refs:
        stored = files[tensor.filename][tensor.start : tensor.stop]
        assert buffer[starts[tensor] : starts[tensor] + tensor.num_bytes] == stored
    assert sum(item.source.num_bytes for item in planned) == len(buffer)


def test_range_header_is_inclusive() -> None:
    """HTTP counts the last byte in."""
    assert range_header(0, 1) == "bytes=0-0"
    assert range_header(8, 64) == "bytes=8-63"
    with pytest.raises(ValueError, match="cannot ask for bytes 5 to 5"):
        range_header(5, 5)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("bytes 0-0/1", ContentRange(0, 1, 1)),
        ("bytes 8-63/1000", ContentRange(8, 64, 1000)),
        (" Bytes  8-63/* ", ContentRange(8, 64, None)),
        ("bytes */1000", None),
        ("bytes 9-8/1000", None),
        ("bytes 0-1000/1000", None),
        ("bytes 0-9", None),
        ("items 0-9/10", None),
        ("bytes 0-9/10, bytes 20-29/30", None),
        ("bytes -1-9/10", None),
        ("bytes 0-" + "9" * 5000 + "/10", None),
        ("bytes \u0660-\u0669/\u0661\u0660", None),
        ("", None),
    ],
)
def test_content_range_is_read_strictly(value: str, expected: ContentRange | None) -> None:
    """What does not name one range of bytes within its total is no answer."""
    assert parse_content_range(value) == expected
