"""The nouns of the project: tensors in files, checkpoints at steps, the trajectory of one run.

Standard library only; everything is frozen. Bytes are counted from the start of a file and ranges
are half-open, everywhere.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Protocol

from alpharl_hub.manifest import Notice
from alpharl_hub.scores.table import ScoreTable


@dataclass(frozen=True)
class TensorRef:
    """Where one tensor lies: `filename` within its checkpoint, bytes `start` to `stop` of it.

    `dtype` is the safetensors code ("BF16", "F32", ...).
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    filename: str
    start: int
    stop: int

    @property
    def num_bytes(self) -> int:
        """Stored size in bytes."""
        return self.stop - self.start

    @property
    def num_elements(self) -> int:
        """Number of entries; 1 for a scalar."""
        return prod(self.shape)

    @property
    def parts(self) -> tuple[TensorRef, ...]:
        """What is stored of it: itself."""
        return (self,)


@dataclass(frozen=True)
class LowRankRef:
    """A tensor that a LoRA adapter updates: W_0 + scale * left @ right, in the base's orientation.

    `left` (M x r) and `right` (r x N) are where the factors lie; with `transposed` the file holds
    them as (r x M) and (N x r), that is D = scale * (right_stored @ left_stored).T, which is what
    layers do that store their weights as (in, out), and embeddings. `magnitude` is DoRA's vector.
    `name` and `shape` are those of the base's tensor.
    """

    name: str
    shape: tuple[int, ...]
    left: TensorRef
    right: TensorRef
    scale: float
    transposed: bool = False
    magnitude: TensorRef | None = None

    @property
    def parts(self) -> tuple[TensorRef, ...]:
        """What is stored of it: both factors, and the magnitudes if there are any."""
        found = (self.left, self.right)
        return found if self.magnitude is None else (*found, self.magnitude)

    @property
    def dtype(self) -> str:
        """The safetensors code of the factors; the weights themselves are the base's."""
        return self.left.dtype

    @property
    def filename(self) -> str:
        """The file that holds the factors."""
        return self.left.filename

    @property
    def num_bytes(self) -> int:
        """Stored size of all parts in bytes."""
        return sum(part.num_bytes for part in self.parts)

    @property
    def num_elements(self) -> int:
        """Number of entries of the tensor that is updated."""
        return prod(self.shape)


StoredRef = TensorRef | LowRankRef
"""What a checkpoint holds of one tensor: all of it, or what an adapter adds to the base's."""


@dataclass(frozen=True)
class Checkpoint:
    """Where one checkpoint lies, pinned: what is read later is this commit.

    `source` is a repo id, or the path of a local folder (then `commit` is None); `folder` is the
    path inside the repo, empty for its root; `step` is None for a base that is no step of the run.
    """

    step: int | None
    source: str
    revision: str | None
    commit: str | None
    folder: str

    @property
    def label(self) -> str:
        """How messages name it: where it lies, and nothing else."""
        revision = self.revision
        if revision is not None and revision == self.commit:
            revision = revision[:12]
        place = f"{self.source}@{revision}" if revision else self.source
        return f"{place}/{self.folder}" if self.folder else place


@dataclass(frozen=True)
class StoredFile:
    """One file of a checkpoint; `sha256` where the Hub tells it without reading the file."""

    filename: str
    num_bytes: int
    sha256: str | None


class CheckpointStore(Protocol):
    """Reads the files of one pinned checkpoint: a folder on disk, or a commit on a Hub."""

    def files(self) -> Mapping[str, StoredFile]:
        """List the files of the folder and below, by path relative to the folder."""
        ...

    def read_into(self, filename: str, start: int, buffer: memoryview) -> None:
        """Fill `buffer` with the bytes of the file from `start` on, or raise SourceError."""
        ...

    def is_private(self) -> bool:
        """Whether somebody had to be let in to read it (private or gated repos)."""
        ...


@dataclass(frozen=True)
class CheckpointContents:
    """A checkpoint whose headers have been read.

    `weights_folder` is where below the checkpoint's folder the weights lie ("" or
    "actor/huggingface", ...). `tensors` keeps the order of files and, inside them, of data;
    `identity` is equal for two checkpoints if (Hub) or only if (folders) their weights are.
    `adapter` is the parsed adapter_config.json of a checkpoint that holds a LoRA adapter; its
    `tensors` are then those that it changes, under the base's names, and no others.
    `config_bytes` is config.json as it was read, so that nobody asks for it again.
    """

    checkpoint: Checkpoint
    store: CheckpointStore
    weights_folder: str
    weight_files: tuple[StoredFile, ...]
    tensors: Mapping[str, StoredRef]
    metadata: Mapping[str, Mapping[str, str]]
    config: Mapping[str, object]
    identity: str
    num_bytes_read: int
    adapter: Mapping[str, object] | None = None
    config_bytes: bytes | None = None

    @property
    def num_bytes(self) -> int:
        """Bytes of all tensors."""
        return sum(ref.num_bytes for ref in self.tensors.values())

    @property
    def dtype(self) -> str:
        """The dtype code that holds most of the bytes."""
        by_dtype: dict[str, int] = {}
        for ref in self.tensors.values():
            by_dtype[ref.dtype] = by_dtype.get(ref.dtype, 0) + ref.num_bytes
        return max(by_dtype, key=lambda code: by_dtype[code]) if by_dtype else ""

    def path_of(self, filename: str) -> str:
        """Return the path below the checkpoint's folder of a file beside the weights."""
        return f"{self.weights_folder}/{filename}" if self.weights_folder else filename

    @property
    def fingerprint(self) -> str | None:
        """What stands for the commit of a local folder; None on the Hub."""
        return self.identity if self.checkpoint.commit is None else None


@dataclass(frozen=True)
class Trajectory:
    """One run: a base and its checkpoints in the order of steps.

    `listed` are all steps that were found; `history` those that were selected, without repeats of
    identical weights (unless `keep_repeats`); `layout` is branches, tags, folders,
    commits, repos, local or single;
    `card` is the text of the run's own README.md. `start` is the adapter at step 0 of a run whose
    LoRA product was not zero there and had been taken out of the base (PiSSA and its kin): then
    the update of step t is the product of t less that of `start`.
    """

    layout: str
    pattern: str
    base: CheckpointContents
    base_chosen_by: str
    listed: tuple[Checkpoint, ...]
    selected_steps: tuple[int, ...]
    history: tuple[CheckpointContents, ...]
    scores: ScoreTable | None
    private: bool
    card: str | None
    notices: tuple[Notice, ...]
    keep_repeats: bool = False
    start: CheckpointContents | None = None

    @property
    def steps_T(self) -> tuple[int, ...]:
        """The steps of the history, rising."""
        return tuple(_step_of(contents.checkpoint) for contents in self.history)

    @property
    def last(self) -> CheckpointContents:
        """The last checkpoint of the history."""
        return self.history[-1]

    def scores_T(self) -> tuple[float | None, ...]:
        """The score of every checkpoint of the history, None where there is none."""
        if self.scores is None:
            return (None,) * len(self.history)
        return tuple(self.scores.at(step) for step in self.steps_T)


def _step_of(checkpoint: Checkpoint) -> int:
    assert checkpoint.step is not None, "a checkpoint of the history has a step"
    return checkpoint.step


def nearest_steps(step: int, steps: Sequence[int]) -> str:
    """Name the neighbours of a step that is not there, for an error."""
    below = [s for s in steps if s < step]
    above = [s for s in steps if s > step]
    neighbours = [str(max(below))] if below else []
    if above:
        neighbours.append(str(min(above)))
    return " and ".join(neighbours)
