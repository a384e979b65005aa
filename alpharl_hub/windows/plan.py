"""What will be read, in which order, and what it costs: known from headers alone.

The output's tensors are cut into windows, in the order of its files. A window reads the base and
then each checkpoint in turn; nothing of it is kept when the next one starts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod

from alpharl_hub.byte_ranges import plan_ranges
from alpharl_hub.output.shards import OutputFile
from alpharl_hub.safetensors_header import DTYPE_BITS
from alpharl_hub.scope import ScopedTensor
from alpharl_hub.trajectory import LowRankRef, StoredRef, TensorRef

WINDOW_BYTES = 48 << 20
"""Large enough for full speed over long distances, small enough to keep a few in memory."""

MIN_WINDOW_BYTES = 4 << 20
"""Small windows, where a method holds every delta, are still worth a request."""

MAX_RANGE_BYTES = 16 << 20
"""One request; ten times the time to its first byte at 100 MB/s and 15 ms."""

ROUNDED_ELEMENTS, ROUNDED_ON_DEVICE = 1 << 17, 1 << 22
"""A prediction is rounded in chunks of so many entries: on a CPU they stay in its cache."""

BASE, START = -1, -2
"""Positions of the base, and of the adapter of step 0 where a LoRA run began with another product
than zero; the history's are 0 to T - 1."""

PREDICTED, COPIED, FROM_BASE, LINEAR = "predicted", "copied", "base", "linear"
SURVEYED = "surveyed"
"""What happens to a part; a surveyed one is looked at in a reading of its own, before the others.
"""

WHOLE, MATRIX, ENTRIES = "whole", "matrix", "entries"
"""What of a tensor meets in a fit, and is therefore never cut."""

PROCESS_BYTES = 380_000_000
"""The process itself with torch loaded and what its libraries keep for each thread: 320 MB were
measured of local folders (torch 2.13 on the CPU), some more over HTTP."""

ALLOCATOR_OVERHEAD = 1.1
"""Blocks that were freed and not given back (glibc); up to 4 % were measured."""

READERS_BYTES = 8 * (1 << 20)
"""Sockets' and threads' buffers."""


@dataclass(frozen=True)
class Part:
    """A tensor, a matrix of a stack, or a run of entries of a large tensor, and what happens to it.

    `name` is the matrix's, NAME[e] in a stack; `tensor` is the tensor's. `reads` maps a position
    (BASE or 0 to T - 1) to where the bytes lie. `output` is where the result goes; None where
    nothing is written (report). `probe` asks for the direction reading. `shape` is the part's own;
    it begins `first` entries into the tensor, of `tensor_shape`.
    """

    name: str
    tensor: str
    shape: tuple[int, ...]
    action: str
    probe: bool
    reads: Mapping[int, StoredRef]
    output: TensorRef | None
    tensor_shape: tuple[int, ...]
    first: int = 0

    @property
    def num_elements(self) -> int:
        """Number of entries of this part."""
        return prod(self.shape)

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
        """Return what is read of one checkpoint: (the part's place in the window, where).

        A tensor that is stored in factors has an entry for each of them.
        """
        found = ((place, part.reads.get(position)) for place, part in enumerate(self.parts))
        return tuple((place, ref) for place, s in found if s is not None for ref in s.parts)

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


@dataclass(frozen=True)
class Decision:
    """What happens to a tensor, which positions are read for it, and whether to probe.

    `fitted` is what its fit needs together: WHOLE, each MATRIX (of a stack), or nothing (ENTRIES).
    """

    action: str
    positions: frozenset[int]
    probe: bool
    fitted: str = ENTRIES


Decide = Callable[[ScopedTensor], Decision]


def plan_windows(
    files: Sequence[OutputFile],
    tensors: Mapping[str, ScopedTensor],
    decide: Decide,
    num_deltas_held: int,
) -> tuple[Window, ...]:
    """Cut the output into windows, shard by shard; smaller ones where many deltas are held."""
    windows: list[Window] = []
    for file in files:
        parts = [
            part
            for ref in file.tensors
            for part in _parts_of(tensors[ref.name], ref, decide(tensors[ref.name]))
        ]
        for group in group_by_bytes(parts, _window_bytes(num_deltas_held)):
            windows.append(Window(len(windows), group))
    return tuple(windows)


def plan_analysis(
    matrices: Sequence[ScopedTensor], positions: Sequence[int] | None = None
) -> tuple[Window, ...]:
    """Cut matrices into windows that read the base and checkpoints (all) and write nothing."""
    parts: list[Part] = []
    for tensor in matrices:
        assert tensor.history is not None
        wanted = range(len(tensor.history)) if positions is None else positions
        reads = _reads_of(tensor, frozenset({BASE, *wanted}))
        shape = tensor.last.shape
        whole = Part(tensor.name, tensor.name, shape, PREDICTED, True, reads, None, shape)
        parts.extend(_slices(whole) if len(shape) == 3 else [whole])
    return tuple(Window(i, group) for i, group in enumerate(group_by_bytes(parts)))


def plan_survey(
    tensors: Sequence[ScopedTensor], positions: Sequence[int], run_elements: int
) -> tuple[Window, ...]:
    """Cut tensors into runs of so many entries that are read at these positions."""
    parts: list[Part] = []
    for tensor in tensors:
        reads = _reads_of(tensor, frozenset({BASE, *positions}))
        shape = tensor.last.shape
        whole = Part(tensor.name, tensor.name, shape, SURVEYED, False, reads, None, shape)
        parts.extend(_cut(whole, run_elements))
    groups = group_by_bytes(parts, _window_bytes(len(positions)))
    return tuple(Window(i, group) for i, group in enumerate(groups))


def _window_bytes(num_deltas_held: int) -> int:
    return min(WINDOW_BYTES, max(MIN_WINDOW_BYTES, WINDOW_BYTES // max(1, num_deltas_held // 2)))


def _reads_of(tensor: ScopedTensor, positions: frozenset[int]) -> Mapping[int, StoredRef]:
    reads: dict[int, StoredRef] = {}
    for position in sorted(positions):
        if position == BASE:
            assert tensor.base is not None
            reads[BASE] = tensor.base
        else:
            # Without a history only the last checkpoint is read, to be copied.
            reads[position] = tensor.history[position] if tensor.history else tensor.last
    if tensor.start is not None and any(isinstance(ref, LowRankRef) for ref in reads.values()):
        reads[START] = tensor.start
    return reads


def _parts_of(tensor: ScopedTensor, output: TensorRef, decision: Decision) -> Sequence[Part]:
    reads, shape = _reads_of(tensor, decision.positions), tensor.last.shape
    name, action, probe = tensor.name, decision.action, decision.probe
    whole = Part(name, name, shape, action, probe, reads, output, shape)
    if decision.fitted == WHOLE or any(isinstance(ref, LowRankRef) for ref in reads.values()):
        return [whole]
    if tensor.is_matrix and len(shape) == 3:
        return _slices(whole)
    if decision.fitted == MATRIX or part_bytes(whole) <= WINDOW_BYTES:
        return [whole]
    # Eight entries fill whole bytes in every dtype, the 4-bit ones included.
    return _cut(whole, max(8, WINDOW_BYTES * whole.num_elements // part_bytes(whole) // 8 * 8))


def _slices(stack: Part) -> Sequence[Part]:
    """Cut a stack of matrices into its matrices."""
    num_matrices, rows, columns = stack.shape
    return [
        replace(_run(stack, i * rows * columns, (rows, columns)), name=f"{stack.name}[{i}]")
        for i in range(num_matrices)
    ]


def _cut(whole: Part, run_elements: int) -> Sequence[Part]:
    """Cut a large tensor into runs of entries; right wherever entries do not meet each other."""
    num_elements = whole.num_elements
    return [
        _run(whole, first, (min(run_elements, num_elements - first),))
        for first in range(0, num_elements, run_elements)
    ]


def _run(whole: Part, first: int, shape: tuple[int, ...]) -> Part:
    """Take entries that lie together."""
    reads = {position: _slice(ref, first, shape) for position, ref in whole.reads.items()}
    output = None if whole.output is None else _slice(whole.output, first, shape)
    return replace(whole, shape=shape, reads=reads, output=output, first=first)


def _slice(ref: StoredRef, first: int, shape: tuple[int, ...]) -> TensorRef:
    assert isinstance(ref, TensorRef), "what is stored in factors is never cut"
    bits = DTYPE_BITS[ref.dtype]
    start = ref.start + first * bits // 8
    return replace(ref, shape=shape, start=start, stop=start + prod(shape) * bits // 8)


def group_by_bytes(
    parts: Sequence[Part], window_bytes: int | None = None
) -> Iterator[tuple[Part, ...]]:
    """Group neighbours into windows (of WINDOW_BYTES) by the bytes of their largest reading."""
    limit = WINDOW_BYTES if window_bytes is None else window_bytes
    group: list[Part] = []
    total = 0
    for part in parts:
        num_bytes = part_bytes(part)
        if group and total + num_bytes > limit:
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


def window_memory_bytes(
    window: Window, num_deltas_held: int, num_outputs: int, next_bytes: int
) -> int:
    """Bound what one worker holds for a window.

    As stored: the base and the last reading, and two more, which are read ahead and are in the end
    those of a later window (`next_bytes` each). In fp32: what the methods keep, the delta of the
    largest part that is computed, and chunks at rounding. Outputs of two windows: this one's, while
    the one before is still being written.
    """
    sizes = sorted((_reading_bytes(window, p) for p in window.positions), reverse=True)
    stored = max(sum(sizes[:4]), sum(sizes[:2]) + 2 * next_bytes)
    predicted = [p.num_elements for p in window.parts if p.action in (PREDICTED, SURVEYED)]
    linear = [part.num_elements for part in window.parts if part.action == LINEAR]
    held = 4 * (num_deltas_held * sum(predicted) + sum(linear))
    largest = max(predicted + linear, default=0)
    if any(isinstance(ref, LowRankRef) for part in window.parts for ref in part.reads.values()):
        # The middle and the last checkpoint are then put together, one matrix at a time.
        held += 2 * 4 * largest
    rounding = 6 * 4 * min(largest, ROUNDED_ELEMENTS)
    output = 2 * num_outputs * sum(p.output.num_bytes if p.output else 0 for p in window.parts)
    return stored + held + 4 * largest + rounding + output


def _reading_bytes(window: Window, position: int) -> int:
    return sum(ref.num_bytes for _, ref in window.reads_at(position))


def peak_memory_bytes(
    windows: Sequence[Window], num_workers: int, num_deltas_held: int, num_outputs: int
) -> int:
    """Bound the resident memory of the whole process."""
    needs, next_bytes = [], 0
    for window in reversed(windows):
        needs.append(window_memory_bytes(window, num_deltas_held, num_outputs, next_bytes))
        largest = max((_reading_bytes(window, p) for p in window.positions), default=0)
        next_bytes = max(next_bytes, largest)
    needs.sort(reverse=True)
    working_bytes = int(ALLOCATOR_OVERHEAD * sum(needs[:num_workers]))
    return PROCESS_BYTES + READERS_BYTES + working_bytes
