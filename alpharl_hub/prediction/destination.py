"""Where a predicted model is asked to go: a folder, a repo on a Hub, or both."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from alpharl_hub.card.template import CardTemplate
from alpharl_hub.errors import PushError, WriteError
from alpharl_hub.manifest import KIND_MODEL
from alpharl_hub.output.folder import check_output, work_folder_beside
from alpharl_hub.output.journal import RESULT_FOLDER
from alpharl_hub.push.model_upload import (
    DEFAULT_BRANCH,
    HubAccess,
    ModelUpload,
    PushHooks,
    PushOptions,
)
from alpharl_hub.trajectory import Trajectory


@dataclass(frozen=True)
class PushRequest:
    """A push that is asked for: where to, how, with which token, and who is told."""

    repo: str
    options: PushOptions
    access: HubAccess
    hooks: PushHooks

    def begin(self, private_inputs: bool, kind: str = KIND_MODEL) -> ModelUpload:
        """Check all that could stop the push, before hours of work."""
        return ModelUpload.begin(
            self.repo,
            self.options,
            private_inputs=private_inputs,
            kind=kind,
            access=self.access,
            hooks=self.hooks,
        )


@dataclass(frozen=True)
class Destination:
    """Where to: a folder, a repo, or both; unfinished work lies in `work_folder` (None: beside)."""

    folder: Path | None
    overwrite: bool = False
    work_folder: Path | None = None
    license_id: str | None = None
    push: PushRequest | None = None
    card_template: CardTemplate | None = None

    def check(self, steps: Sequence[float]) -> None:
        """Refuse folders that cannot be taken, before anything is read; `steps` as in `lanes`.

        Raises:
            WriteError: one is not empty, or no folder.
        """
        if len(steps) > 1 and self.push is not None:
            if self.push.options.branch != DEFAULT_BRANCH:
                raise PushError("--branch names one branch, and each of several steps gets its own")
            if self.push.options.create_pr:
                raise PushError("--create-pr asks for one model; each of several steps has its own")
        lanes = self.lanes(steps)
        if len(lanes) > 1 and self._is_begun():
            # Some may have got their names before the interruption; the others are checked then.
            return
        for lane in lanes:
            folder = lane.destination.folder
            if folder is not None:
                check_output(folder, self.overwrite, self.work_folder)

    def _is_begun(self) -> bool:
        work = self.work_folder
        if work is None and self.folder is not None:
            work = work_folder_beside(self.folder)
        return work is not None and (work / RESULT_FOLDER).is_dir()

    @property
    def uploaded_to(self) -> list[str] | None:
        """Where shards are that are no longer here: a run begun so can only go on so.

        With a folder they are all kept.
        """
        if self.folder is not None or self.push is None:
            return None
        return [self.push.repo, self.push.options.branch]

    def refuse_inputs(self, trajectory: Trajectory) -> None:
        """Refuse a folder inside of one that is read.

        Raises:
            WriteError: it lies in a local checkpoint or base.
        """
        if self.folder is None:
            return
        output = Path(os.path.realpath(self.folder))
        for contents in (trajectory.base, *trajectory.history):
            checkpoint = contents.checkpoint
            if checkpoint.commit is None and output.is_relative_to(
                os.path.realpath(checkpoint.source)
            ):
                raise WriteError(
                    f"{self.folder}: lies in {checkpoint.source}, which is read; choose another "
                    "folder"
                )

    def lanes(self, steps: Sequence[float | None]) -> tuple[Lane, ...]:
        """Return where each of several models goes: folders step_N, or branches of that name."""
        if len(steps) < 2:
            return (Lane("", self),)
        return tuple(self._lane(f"step_{step:g}") for step in steps)

    def _lane(self, name: str) -> Lane:
        folder = None if self.folder is None else self.folder / name
        push = self.push
        if push is not None:
            push = replace(push, options=replace(push.options, branch=name))
        return Lane(name, replace(self, folder=folder, push=push))


@dataclass(frozen=True)
class Lane:
    """One of the models that a run makes: its name among them, empty when it is the only one."""

    name: str
    destination: Destination


def output_of(lanes: Sequence[Lane]) -> Path | None:
    """Return the folder that the user has named for all of them."""
    folder = lanes[0].destination.folder
    return folder.parent if folder is not None and lanes[0].name else folder


def work_folder(destination: Destination, default: Path) -> Path:
    """Return where to work: as told, beside the output, else `default`."""
    if destination.work_folder is not None:
        return destination.work_folder
    return work_folder_beside(destination.folder) if destination.folder is not None else default
