"""What will be read, in which order, and what it costs: known from headers alone.

The output's tensors are cut into windows, in the order of its files. A window reads the base and
then each checkpoint in turn; nothing of it is kept when the next one starts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from alpharl_hub.byte_ranges import plan_ranges
from alpharl_hub.output.shards import OutputFile
from alpharl_hub.safetensors_header import DTYPE_BITS
from alpharl_hub.scope import ScopedTensor
from alpharl_hub.trajectory import TensorRef

WINDOW_BYTES = 64 << 20
"""Large enough for full speed over long distances, small enough to keep a few in memory."""

MAX_RANGE_BYTES = 16 << 20
"""One request; ten times the time to its first byte at 100 MB/s and 15 ms."""

ROUNDED_ELEMENTS = 1 << 22
"""A prediction is rounded in chunks of so many entries: 16 MiB in fp32, six of them at a time."""

BASE = -1
"""The base's position among what a window reads; the history's are 0 to T - 1."""

PREDICTED, COPIED, FROM_BASE, LINEAR = "predicted", "copied", "base", "linear"

PROCESS_BYTES = 300_000_000
"""The process itself with torch loaded; resident, measured with torch 2.13 on the CPU."""

ALLOCATOR_OVERHEAD = 1.1
"""Blocks that were freed and not given back (glibc); up to 4 % were measured."""

READERS_BYTES = 8 * (1 << 20)
"""Sockets' and threads' buffers."""


@dataclass(frozen=True)
class Part:
    """A tensor, or a run of entries of one too large for a window, with what happens to it.

    `reads` maps a position (BASE or 0 to T - 1) to where the bytes lie. `output` is where the
    result goes; None where nothing is written (report). `probe` asks for the direction reading.
    `shape` is the part's own; it begins `first` entries into the tensor, of `tensor_shape`.
    """

    name: str
    shape: tuple[int, ...]
    action: str
    probe: bool
    reads: Mapping[int, TensorRef]
    output: TensorRef | None
    tensor_shape: tuple[int, ...]
    first: int = 0

    @property
    def num_elements(self) -> int:
        """Number of entries of this part."""
        count = 1
        for side in self.shape:
            count *= side
        return count

    def index_of(self, entry: int) -> list[int]:
        """Return the index within the whole tensor of one entry of this part."""
        index = []
        rest = self.first + entry
        for side in reversed(self.tensor_shape):
            rest, place = divmod(rest, side)
            index.append(place)
        return index[::-1]


@dataclass(frozen=True)
class Window:
    """Parts that are read together; `index` is its number within the run."""

    index: int
    parts: tuple[Part, ...]

    def reads_at(self, position: int) -> tuple[tuple[int, TensorRef], ...]:
        """Return what is read of one checkpoint: (the part's place in the window, where)."""
        found = ((place, part.reads.get(position)) for place, part in enumerate(self.parts))
        return tuple((place, ref) for place, ref in found if ref is not None)

    @property
    def positions(self) -> tuple[int, ...]:
        """The checkpoints that are read, base first, then in the order of steps."""
        return tuple(sorted({position for part in self.parts for position in part.reads}))

    @property
    def output_filename(self) -> str | None:
        """The shard that it belongs to."""
        return self.parts[0].output.filename if self.parts[0].output else None


@dataclass(frozen=True)
class Cost:
    """What a plan costs; `requests` are ranges and one resolve a file, headers included."""

    readings: int
    read_bytes: int
    requests: int
    peak_memory_bytes: int
    output_bytes: int


Decide = Callable[[ScopedTensor], tuple[str, frozenset[int], bool]]
"""Says of a tensor what happens to it, which positions are read for it, and whether to probe."""


def plan_windows(
    files: Sequence[OutputFile],
    tensors: Mapping[str, ScopedTensor],
    decide: Decide,
    last_position: int,
) -> tuple[Window, ...]:
    """Cut the output into windows of at most WINDOW_BYTES, shard by shard."""
    windows: list[Window] = []
    for file in files:
        parts = [
            part
            for ref in file.tensors
            for part in _parts_of(tensors[ref.name], ref, decide(tensors[ref.name]), last_position)
        ]
        for group in group_by_bytes(parts):
            windows.append(Window(len(windows), group))
    return tuple(windows)


def plan_analysis(matrices: Sequence[ScopedTensor]) -> tuple[Window, ...]:
    """Cut matrices into windows that read the base and every checkpoint and write nothing."""
    parts = []
    for tensor in matrices:
        assert tensor.base is not None
        assert tensor.history is not None
        reads = {BASE: tensor.base, **dict(enumerate(tensor.history))}
        shape = tensor.last.shape
        parts.append(Part(tensor.name, shape, PREDICTED, True, reads, None, shape))
    return tuple(Window(i, group) for i, group in enumerate(group_by_bytes(parts)))


def _parts_of(
    tensor: ScopedTensor,
    output: TensorRef,
    decision: tuple[str, frozenset[int], bool],
    last_position: int,
) -> Iterator[Part]:
    action, positions, probe = decision
    reads: dict[int, TensorRef] = {}
    for position in sorted(positions):
        if position == last_position:
            reads[position] = tensor.last
        elif position == BASE:
            assert tensor.base is not None
            reads[BASE] = tensor.base
        else:
            assert tensor.history is not None
            reads[position] = tensor.history[position]
    shape = tensor.last.shape
    whole = Part(tensor.name, shape, action, probe, reads, output, shape)
    if tensor.is_matrix or tensor.last.num_bytes <= WINDOW_BYTES:
        yield whole
    else:
        yield from _cut(whole)


def _cut(whole: Part) -> Iterator[Part]:
    """Cut a large tensor into runs of entries; right wherever entries do not meet each other."""
    widest = max(ref.num_bytes for ref in whole.reads.values())
    num_elements = whole.num_elements
    # Eight entries fill whole bytes in every dtype, the 4-bit ones included.
    step = max(8, WINDOW_BYTES * num_elements // widest // 8 * 8)
    assert whole.output is not None
    for first in range(0, num_elements, step):
        count = min(step, num_elements - first)
        yield replace(
            whole,
            shape=(count,),
            reads={p: _slice(ref, first, count) for p, ref in whole.reads.items()},
            output=_slice(whole.output, first, count),
            first=first,
        )


def _slice(ref: TensorRef, first: int, count: int) -> TensorRef:
    bits = DTYPE_BITS[ref.dtype]
    start = ref.start + first * bits // 8
    return replace(ref, shape=(count,), start=start, stop=start + count * bits // 8)


def group_by_bytes(parts: Sequence[Part]) -> Iterator[tuple[Part, ...]]:
    """Group neighbours into windows by the bytes of their largest reading."""
    group: list[Part] = []
    total = 0
    for part in parts:
        num_bytes = part_bytes(part)
        if group and total + num_bytes > WINDOW_BYTES:
            yield tuple(group)
            group, total = [], 0
        group.append(part)
        total += num_bytes
    if group:
        yield tuple(group)


def part_bytes(part: Part) -> int:
    """Return the bytes of a part in the checkpoint that stores it widest."""
    return max(ref.num_bytes for ref in part.reads.values())


def read_cost(windows: Sequence[Window]) -> tuple[int, int]:
    """Return (bytes, requests) of one reading of all windows, a resolve for each file included."""
    num_bytes = num_requests = 0
    files: set[tuple[int, str]] = set()
    for window in windows:
        for position in window.positions:
            refs = read_once([ref for _, ref in window.reads_at(position)])
            num_bytes += sum(ref.num_bytes for ref in refs)
            num_requests += len(plan_ranges(refs, MAX_RANGE_BYTES))
            files.update((position, ref.filename) for ref in refs)
    return num_bytes, num_requests + len(files)


def read_once(refs: Sequence[TensorRef]) -> tuple[TensorRef, ...]:
    """Leave out what stands twice: a head that is tied in one checkpoint is its embedding there."""
    return tuple(dict.fromkeys(refs))


def window_memory_bytes(window: Window, num_deltas_held: int, next_bytes: int) -> int:
    """Bound what one worker holds for a window.

    As stored: the base, the last reading and, where the direction is probed, the middle one; and
    two more, which are read ahead and are in the end those of a later window (`next_bytes` each).
    In fp32: what the methods keep; of the largest part that is computed what is predicted at the
    target and at the last step (the delta before that is one of them), and chunks at rounding.
    One output, twice.
    """
    sizes = sorted((_reading_bytes(window, p) for p in window.positions), reverse=True)
    num_kept = 3 if any(part.probe for part in window.parts) else 2
    stored = max(sum(sizes[: num_kept + 2]), sum(sizes[:num_kept]) + 2 * next_bytes)
    predicted = [part.num_elements for part in window.parts if part.action == PREDICTED]
    linear = [part.num_elements for part in window.parts if part.action == LINEAR]
    held = 4 * (num_deltas_held * sum(predicted) + sum(linear))
    largest = max(predicted + linear, default=0)
    rounding = 6 * 4 * min(largest, ROUNDED_ELEMENTS)
    output = 2 * max(part.output.num_bytes if part.output else 0 for part in window.parts)
    return stored + held + 2 * 4 * largest + rounding + output


def _reading_bytes(window: Window, position: int) -> int:
    return sum(ref.num_bytes for _, ref in window.reads_at(position))


def peak_memory_bytes(
    windows: Sequence[Window], num_workers: int, num_deltas_held: int, kept_bytes: int
) -> int:
    """Bound the resident memory of the whole process."""
    needs, next_bytes = [], 0
    for window in reversed(windows):
        needs.append(window_memory_bytes(window, num_deltas_held, next_bytes))
        largest = max((_reading_bytes(window, p) for p in window.positions), default=0)
        next_bytes = max(next_bytes, largest)
    needs.sort(reverse=True)
    working_bytes = int(ALLOCATOR_OVERHEAD * sum(needs[:num_workers]))
    return PROCESS_BYTES + READERS_BYTES + kept_bytes + working_bytes
