"""What a run offers before anything of it is read: its steps, where they lie, and what was seen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from alpharl_hub.errors import TrajectoryError
from alpharl_hub.manifest import Notice
from alpharl_hub.sources.contents import find_weights_folder
from alpharl_hub.trajectory import Checkpoint, CheckpointStore, StoredFile

STABLE_MARK = "STABLE"
"""prime-rl puts this empty file into a broadcast folder when it is complete."""


@dataclass(frozen=True)
class Listing:
    """All steps of a run, pinned; `layout` and `pattern` say how they were found."""

    layout: str
    pattern: str
    checkpoints: tuple[Checkpoint, ...]
    notices: tuple[Notice, ...]


class RunSource(Protocol):
    """A run on disk or on a Hub."""

    def list_steps(self) -> Listing:
        """Find every step without reading any checkpoint."""
        ...

    def no_steps(self) -> TrajectoryError:
        """Return the error for a run in which no step was found."""
        ...

    def look_aside(self, listing: Listing) -> tuple[Notice, ...]:
        """Mention what lies beside the listed steps and is not read."""
        ...

    def extra_checkpoint(self, name: str, step: int) -> Checkpoint:
        """Pin what --at names as a step of the run."""
        ...

    def open_store(self, checkpoint: Checkpoint) -> CheckpointStore:
        """Open one listed checkpoint for reading."""
        ...

    def card_text(self, checkpoint: Checkpoint) -> str | None:
        """Return the model card of a checkpoint, else that of the whole run, else None."""
        ...


def keep_complete(
    files_by_name: Mapping[str, Mapping[str, StoredFile]],
) -> tuple[frozenset[str], tuple[Notice, ...]]:
    """Return the step folders that hold whole weights, and a notice for those left out.

    A folder without safetensors weights is left out when another one has some (verl keeps only
    tokenizer and config unless told otherwise; prime-rl's NCCL transport writes only the mark),
    and one without the STABLE mark when another one carries it. If no folder has weights all are
    kept, so that opening the first says what is there instead.
    """
    whole = {n for n, files in files_by_name.items() if find_weights_folder(files) is not None}
    if not whole:
        return frozenset(files_by_name), ()
    marked = {name for name in whole if STABLE_MARK in files_by_name[name]}
    kept = marked or whole
    left_out = sorted(set(files_by_name) - kept)
    if not left_out:
        return frozenset(kept), ()
    names = ", ".join(left_out[:5]) + (", ..." if len(left_out) > 5 else "")
    message = f"{len(left_out)} incomplete step folders were left out: {names}"
    return frozenset(kept), (Notice("incomplete_steps", message),)
