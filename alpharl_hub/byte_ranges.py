"""Which byte ranges to read for a set of tensors, and how HTTP writes a range down.

Ranges are half-open and counted from the start of a file, as everywhere in this package; HTTP's
inclusive ones (RFC 9110, section 14) exist only inside this module.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from alpharl_hub.trajectory import TensorRef

MAX_RANGE_NUM_BYTES = 64 * 2**20
"""Longest range asked for in one request; longer ones gain no speed and lose more when cut."""

# Nineteen digits hold every position below 2^63, and int() stays cheap on hostile headers.
_CONTENT_RANGE = re.compile(
    r"bytes\s+(\d{1,19})-(\d{1,19})/(\d{1,19}|\*)", re.ASCII | re.IGNORECASE
)


@dataclass(frozen=True)
class ByteRange:
    """Bytes `start` to `stop` of the file `filename`."""

    filename: str
    start: int
    stop: int

    @property
    def num_bytes(self) -> int:
        """Length in bytes."""
        return self.stop - self.start


@dataclass(frozen=True)
class PlannedRange:
    """One request: the bytes `source` belong into the buffer from `dest_start` on."""

    source: ByteRange
    dest_start: int

    @property
    def dest_stop(self) -> int:
        """End of its place in the buffer."""
        return self.dest_start + self.source.num_bytes


@dataclass(frozen=True)
class ContentRange:
    """What an answer says it holds: bytes `start` to `stop` of `total`, None if not told."""

    start: int
    stop: int
    total: int | None


def file_order(refs: Sequence[TensorRef]) -> tuple[TensorRef, ...]:
    """The tensors file by file in the order of their bytes."""
    return tuple(sorted(refs, key=lambda ref: (ref.filename, ref.start, ref.stop, ref.name)))


def dest_starts(refs: Sequence[TensorRef]) -> dict[TensorRef, int]:
    """Where each tensor begins in a buffer that `plan_ranges` of the same `refs` fills.

    The buffer holds the tensors one after another in file order, without gaps.
    """
    starts = {}
    position = 0
    for ref in file_order(refs):
        starts[ref] = position
        position += ref.num_bytes
    return starts


def plan_ranges(
    refs: Sequence[TensorRef], max_range_num_bytes: int = MAX_RANGE_NUM_BYTES
) -> tuple[PlannedRange, ...]:
    """The fewest ranges of at most `max_range_num_bytes` that hold these tensors and nothing else.

    Tensors of one file that touch are read together; no byte is read that was not asked for. The
    destination is one buffer for all of them, see `dest_starts`. Raises ValueError when tensors
    overlap, because a byte would be read twice.
    """
    planned: list[PlannedRange] = []
    dest_start = 0
    for run in _contiguous_runs(refs):
        for start in range(run.start, run.stop, max_range_num_bytes):
            stop = min(start + max_range_num_bytes, run.stop)
            planned.append(PlannedRange(ByteRange(run.filename, start, stop), dest_start))
            dest_start += stop - start
    return tuple(planned)


def _contiguous_runs(refs: Sequence[TensorRef]) -> list[ByteRange]:
    runs: list[ByteRange] = []
    for ref in file_order(refs):
        if not ref.num_bytes:
            continue
        last = runs[-1] if runs and runs[-1].filename == ref.filename else None
        if last is not None and ref.start < last.stop:
            raise ValueError(f"tensor {ref.name!r} overlaps another one in {ref.filename}")
        if last is not None and ref.start == last.stop:
            runs[-1] = ByteRange(ref.filename, last.start, ref.stop)
        else:
            runs.append(ByteRange(ref.filename, ref.start, ref.stop))
    return runs


def range_header(start: int, stop: int) -> str:
    """Value of the `Range` header that asks for bytes `start` to `stop`, at least one."""
    if not 0 <= start < stop:
        raise ValueError(f"HTTP cannot ask for bytes {start} to {stop}")
    return f"bytes={start}-{stop - 1}"


def parse_content_range(value: str) -> ContentRange | None:
    """What a `Content-Range` header of a partial answer says, None if it makes no sense."""
    match = _CONTENT_RANGE.fullmatch(value.strip())
    if match is None:
        return None
    first, last, total = match.groups()
    content = ContentRange(int(first), int(last) + 1, None if total == "*" else int(total))
    if content.start >= content.stop or (
        content.total is not None and content.stop > content.total
    ):
        return None
    return content
