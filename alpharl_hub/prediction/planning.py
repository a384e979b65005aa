"""Plan a prediction: what happens to each tensor, what is read for it, and what that costs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from alpharl_hub.errors import FitError
from alpharl_hub.methods import Method
from alpharl_hub.methods.relex import RUN_ELEMENTS, Relex
from alpharl_hub.module_names import FLOATING
from alpharl_hub.output.model_files import CopiedFile, copied_files
from alpharl_hub.output.shards import OutputFile, OutputTensor, lay_out
from alpharl_hub.scope import Scope, ScopedTensor
from alpharl_hub.sources.remembering import RememberingStore
from alpharl_hub.trajectory import CheckpointContents, TensorRef
from alpharl_hub.windows.plan import (
    BASE,
    COPIED,
    ENTRIES,
    FROM_BASE,
    LINEAR,
    MATRIX,
    PREDICTED,
    WHOLE,
    Decision,
    Window,
    plan_survey,
    plan_windows,
    read_cost,
)

DTYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
"""What --dtype takes, by the code that safetensors has for it."""

ANCHORS = ("base", "last")
"""What --anchor takes: where the predicted update starts from."""

OTHERS = ("last", "base", "linear")
"""What --others takes: where tensors out of the method's scope come from."""


MAX_HELD_BYTES = 4 << 30
"""What deltas held together may take without --memory: a tensor that needs more is read twice."""


@dataclass(frozen=True)
class Decider:
    """Decides tensor by tensor; `history` are the positions of the trajectory that was opened.

    `middle` is where the direction is probed, None when that was done before (extracted factors);
    `factorised` are then the names whose factors are there. `max_held_bytes`: what the deltas of
    one tensor may take, where a method needs them together.
    """

    method: Method
    others: Method | None
    others_option: str
    last_position: int
    middle: int | None
    factorised: frozenset[str] | None
    max_held_bytes: int = MAX_HELD_BYTES

    def __call__(self, tensor: ScopedTensor) -> Decision:
        """Say what happens to one tensor."""
        action = self._action(tensor)
        probe = tensor.is_matrix and self.middle is not None
        positions: set[int] = set()
        if action == COPIED:
            positions = {self.last_position, *((BASE,) if tensor.is_update else ())}
        elif action == FROM_BASE:
            positions = {BASE}
        else:
            positions = {BASE, self.last_position}
            method = self.others if action == LINEAR else self.method
            if method is not None and (self.factorised is None or action == LINEAR):
                positions |= set(method.observed)
        if probe and self.middle is not None:
            positions |= {BASE, self.middle, self.last_position}
        return Decision(action, frozenset(positions), probe, self._fitted(tensor, action))

    def _fitted(self, tensor: ScopedTensor, action: str) -> str:
        if action != PREDICTED or not self.method.meets_entries or self.is_surveyed(tensor):
            return ENTRIES
        return WHOLE if isinstance(self.method, Relex) else MATRIX

    def is_surveyed(self, tensor: ScopedTensor) -> bool:
        """Whether all deltas of a tensor are needed together and do not fit into memory."""
        if not isinstance(self.method, Relex) or self._action(tensor) != PREDICTED:
            return False
        if tensor.is_update:
            return False
        held_bytes = 4 * tensor.last.num_elements * self.method.num_deltas_held
        return held_bytes > self.max_held_bytes

    def _action(self, tensor: ScopedTensor) -> str:
        if tensor.is_untouched:
            return FROM_BASE
        comparable = tensor.base is not None and tensor.history is not None
        floating = tensor.last.dtype in FLOATING
        if comparable and floating and self._covers(tensor):
            return PREDICTED
        if self.others_option == "base" and comparable:
            return FROM_BASE
        if comparable and floating and self.others is not None:
            name, shape = tensor.name, tensor.last.shape
            if self.others.covers(name, shape, tensor.is_matrix):
                return LINEAR
        return COPIED

    def _covers(self, tensor: ScopedTensor) -> bool:
        if self.factorised is not None:
            first = f"{tensor.name}[0]" if len(tensor.last.shape) == 3 else tensor.name
            return first in self.factorised
        if tensor.is_left_out:
            return False
        return self.method.covers(tensor.name, tensor.last.shape, tensor.is_matrix)


@dataclass(frozen=True)
class PredictionPlan:
    """Everything that is known before the first weight is read.

    `survey` are the windows of an earlier reading, of tensors that are read twice.
    """

    files: tuple[OutputFile, ...]
    survey: tuple[Window, ...]
    windows: tuple[Window, ...]
    copied: tuple[CopiedFile, ...]
    read_bytes: int
    requests: int
    output_bytes: int
    num_deltas_held: int

    @property
    def readings(self) -> int:
        """How often the largest tensors are read."""
        return 2 if self.survey else 1

    @property
    def largest_file_bytes(self) -> int:
        """Bytes of the largest shard."""
        return max(file.num_bytes for file in self.files)


def layout_of(base: CheckpointContents, last: CheckpointContents) -> CheckpointContents:
    """Return whose tensors, files and dtypes the output has: the last checkpoint's.

    A LoRA adapter is merged into its base, whose layout stays.
    """
    return last if last.adapter is None else base


def output_files(layout: CheckpointContents, dtype: str | None) -> tuple[OutputFile, ...]:
    """Lay out the output as a checkpoint is, with another dtype where asked for."""
    by_file: dict[str, list[TensorRef]] = {f.filename: [] for f in layout.weight_files}
    for ref in layout.tensors.values():
        assert isinstance(ref, TensorRef), "a model holds whole tensors"
        by_file[ref.filename].append(ref)
    return tuple(
        lay_out(
            filename,
            [OutputTensor(r.name, _output_dtype(r.dtype, dtype), r.shape) for r in refs],
            layout.metadata[filename] or {"format": "pt"},
        )
        for filename, refs in by_file.items()
    )


def _output_dtype(stored: str, asked: str | None) -> str:
    return asked if asked is not None and stored in FLOATING else stored


def plan_prediction(
    scope: Scope,
    base: CheckpointContents,
    history: Sequence[CheckpointContents],
    decider: Decider,
    dtype: str | None,
) -> PredictionPlan:
    """Plan windows, output and copies.

    Raises:
        FitError: nothing would be predicted.
    """
    last = history[-1]
    files = output_files(layout_of(base, last), dtype)
    copied = copied_files(last, base, dtype)
    num_bytes = sum(file.num_bytes for file in files)
    return plan_files(files, scope.tensors, history, decider, copied, num_bytes)


def plan_files(
    files: Sequence[OutputFile],
    scoped: Sequence[ScopedTensor],
    history: Sequence[CheckpointContents],
    decider: Decider,
    copied: tuple[CopiedFile, ...],
    weight_bytes: int,
) -> PredictionPlan:
    """Plan the windows that fill these files, whose weights will have so many bytes.

    Raises:
        FitError: nothing would be predicted.
    """
    tensors = {tensor.name: tensor for tensor in scoped}
    windows = plan_windows(files, tensors, decider, decider.method.num_deltas_held)
    surveyed = [tensor for tensor in scoped if decider.is_surveyed(tensor)]
    survey = plan_survey(surveyed, decider.method.observed, RUN_ELEMENTS)
    if not any(part.action == PREDICTED for window in windows for part in window.parts):
        raise FitError("no tensor is in the method's scope; see inspect, and --include")
    read_bytes, requests = map(sum, zip(read_cost(survey), read_cost(windows), strict=True))
    read_bytes += _only_sampled_bytes(history, windows)
    small_bytes = sum(file.stored.num_bytes for file in copied)
    return PredictionPlan(
        files=tuple(files),
        survey=survey,
        windows=windows,
        copied=copied,
        read_bytes=read_bytes,
        requests=requests + 2 * sum(file.replacement is None for file in copied),
        output_bytes=weight_bytes + small_bytes,
        num_deltas_held=decider.method.num_deltas_held,
    )


def _only_sampled_bytes(history: Sequence[CheckpointContents], windows: Sequence[Window]) -> int:
    """Count what was read to check the base, of checkpoints that the windows do not read."""
    read = {position for window in windows for position in window.positions}
    stores = (c.store for position, c in enumerate(history) if position not in read)
    return sum(store.num_bytes_kept for store in stores if isinstance(store, RememberingStore))
