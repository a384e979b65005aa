"""What a run offers before anything of it is read: its steps, where they lie, and what was seen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from alpharl_hub.errors import TrajectoryError
from alpharl_hub.manifest import MANIFEST_NAME, Notice
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

    def base_nearby(self) -> str | None:
        """Return what lies beside the steps under the name `base`, as --base would name it."""
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


def below(tree: Mapping[str, StoredFile], prefix: str) -> Mapping[str, StoredFile]:
    """Return the files below a folder, by path relative to it."""
    return {
        path.removeprefix(prefix): StoredFile(path.removeprefix(prefix), f.num_bytes, f.sha256)
        for path, f in tree.items()
        if path.startswith(prefix)
    }


def keep_complete(
    files_by_name: Mapping[str, Mapping[str, StoredFile]],
    what: str = "step folders",
) -> tuple[frozenset[str], tuple[Notice, ...]]:
    """Return the step folders that hold whole weights, and a notice for those left out.

    A folder without safetensors weights is left out when another one has some (verl keeps only
    tokenizer and config unless told otherwise; prime-rl's NCCL transport writes only the mark),
    and one without the STABLE mark when another one carries it. If no folder has weights all are
    kept, so that opening the first says what is there instead. What this tool has predicted is no
    checkpoint of the run, though it may lie beside them.
    """
    predicted = {name for name, files in files_by_name.items() if MANIFEST_NAME in files}
    written = {name: files for name, files in files_by_name.items() if name not in predicted}
    notices = _tell_left_out("predicted_steps", sorted(predicted), "predicted models")
    whole = {n for n, files in written.items() if find_weights_folder(files) is not None}
    if not whole:
        return frozenset(written), notices
    marked = {name for name in whole if STABLE_MARK in written[name]}
    kept = marked or whole
    left_out = sorted(set(written) - kept)
    notices += _tell_left_out("incomplete_steps", left_out, f"incomplete {what}")
    return frozenset(kept), notices


def _tell_left_out(code: str, names: Sequence[str], what: str) -> tuple[Notice, ...]:
    if not names:
        return ()
    shown = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
    return (Notice(code, f"{len(names)} {what} were left out: {shown}"),)
