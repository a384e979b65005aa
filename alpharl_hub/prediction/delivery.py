"""Where a predicted model goes: a folder, a repo on a Hub, or both; and the work folder on the way.

Shards are uploaded as soon as they are complete and then deleted here, unless a folder is wanted
too; what makes the model appear (a rename, a commit) comes last.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from alpharl_hub import strict_json
from alpharl_hub.errors import PushError, WriteError
from alpharl_hub.executors.local import WindowReads
from alpharl_hub.output.folder import (
    check_disk,
    check_output,
    publish,
    work_folder_beside,
    write_file,
)
from alpharl_hub.output.journal import RESULT_FOLDER, Journal, open_journal
from alpharl_hub.output.shards import OutputFile, ShardWriter, make_index
from alpharl_hub.prediction.planning import PredictionPlan
from alpharl_hub.prediction.window_work import PartResult, Recipe, WindowPredictor
from alpharl_hub.push.model_upload import (
    DEFAULT_BRANCH,
    HubAccess,
    ModelUpload,
    PushHooks,
    PushOptions,
    PushResult,
    UploadedShard,
)
from alpharl_hub.sources.adapters import ADAPTER_FILE
from alpharl_hub.sources.contents import INDEX_FILE, SINGLE_FILE
from alpharl_hub.trajectory import Trajectory
from alpharl_hub.windows.plan import Window

Worker = Callable[[WindowReads, str], tuple[PartResult, ...]]
"""Does one window on one device."""


@dataclass(frozen=True)
class PushRequest:
    """A push that is asked for: where to, how, with which token, and who is told."""

    repo: str
    options: PushOptions
    access: HubAccess
    hooks: PushHooks

    def begin(self, private_inputs: bool) -> ModelUpload:
        """Check all that could stop the push, before hours of work."""
        return ModelUpload.begin(
            self.repo,
            self.options,
            private_inputs=private_inputs,
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

    def check(self, steps: Sequence[float]) -> None:
        """Refuse folders that cannot be taken, before anything is read; `steps` as in `lanes`.

        Raises:
            WriteError: one is not empty, or no folder.
        """
        if len(steps) > 1 and self.push is not None and self.push.options.branch != DEFAULT_BRANCH:
            raise PushError("--branch names one branch, and each of several steps gets its own")
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


class LaneDelivery:
    """One model while it is made: its writer, and what happens to finished shards.

    It is put together in `folder` below the work folder's result.
    """

    def __init__(
        self,
        lane: Lane,
        upload: ModelUpload | None,
        files: Sequence[OutputFile],
        journal: Journal,
        folder: str = "",
    ) -> None:
        self._lane = lane
        self._upload = upload
        self._files = files
        self._journal = journal
        self._result = journal.folder / RESULT_FOLDER / folder / lane.name
        # The journal outlives the folder of a lane only when that was moved to its name.
        self._has_windows = any(key.startswith("window ") for key in journal.results)
        self._is_published = self._has_windows and not self._result.is_dir()
        gone = {filename for filename in self._filenames() if self._is_uploaded(filename)}
        files = [] if self._is_published else [f for f in files if f.filename not in gone]
        self.writer = ShardWriter(self._result, files)

    def _filenames(self) -> list[str]:
        return [file.filename for file in self._files]

    def _key(self, filename: str) -> str:
        return f"shard {self._lane.name}/{filename}" if self._lane.name else f"shard {filename}"

    def _is_uploaded(self, filename: str) -> bool:
        return self._key(filename) in self._journal.results

    def require_there(self) -> None:
        """Make sure that an earlier start's shards are there, whose windows are not done again.

        Raises:
            WriteError: one is gone.
        """
        for filename in self.writer.missing() if self._has_windows else ():
            raise WriteError(
                f"{self._result / filename}: gone, though parts of it are done; delete "
                f"{self._journal.folder} to begin again"
            )

    def open(self) -> None:
        """Create what is not there yet."""
        if self._is_published:
            return
        self._result.mkdir(exist_ok=True, parents=True)
        self.writer.open()

    def shard_done(self, filename: str) -> None:
        """Give a shard that is complete its name, and upload it where that is asked for."""
        if self._is_published or self._is_uploaded(filename):
            return
        path = self.writer.complete(filename)
        if self._upload is not None:
            uploaded = self._upload.upload_shard(path)
            self._journal.record(self._key(filename), strict_json.to_plain(uploaded))
            if self._lane.destination.folder is None:
                path.unlink()

    def finish(self, files: Mapping[str, bytes]) -> PushResult | None:
        """Add the small files, push, and move the folder to its name."""
        small = dict(files)
        if any(file.filename not in (SINGLE_FILE, ADAPTER_FILE) for file in self._files):
            small[INDEX_FILE] = make_index(self._files)
        pushed = None
        if self._upload is not None:
            pushed = self._upload.finish(self._uploaded(), small)
        folder = self._lane.destination.folder
        if folder is not None and not self._is_published:
            for name, data in small.items():
                write_file(self._result / name, data)
            publish(self._result, folder, self._lane.destination.overwrite)
        return pushed

    def _uploaded(self) -> list[UploadedShard]:
        keys = [self._key(filename) for filename in self._filenames()]
        results = self._journal.results
        return [strict_json.from_plain(UploadedShard, results[key], key) for key in keys]


class Delivery:
    """The outputs while they are made, one for each lane, and their journal."""

    def __init__(
        self,
        lanes: Sequence[Lane],
        uploads: Sequence[ModelUpload | None],
        plan: PredictionPlan,
        journal: Journal,
    ) -> None:
        self.journal = journal
        self._plan = plan
        self._lanes = [
            LaneDelivery(lane, upload, plan.files, journal)
            for lane, upload in zip(lanes, uploads, strict=True)
        ]
        self.writers = [lane.writer for lane in self._lanes]
        self._missing = self._count_missing()

    def worker(self, trajectory: Trajectory, recipe: Recipe) -> Worker:
        """Return what does the windows."""
        return WindowPredictor(trajectory, recipe, self.writers)

    def _count_missing(self) -> dict[str, int]:
        """Count, for each shard, the windows that are still to be done."""
        missing = {file.filename: 0 for file in self._plan.files}
        for window in self._plan.windows:
            filename = window.output_filename
            if filename is not None and f"window {window.index}" not in self.journal.results:
                missing[filename] += 1
        return missing

    def open(self) -> None:
        """Create what is not there yet, and finish shards that an earlier start had all of."""
        for lane in self._lanes:
            lane.require_there()
            lane.open()
        for filename, count in self._missing.items():
            if count == 0:
                self._shard_done(filename)

    def window_done(self, window: Window) -> None:
        """Note a finished window; its shard is complete with the last one."""
        filename = window.output_filename
        assert filename is not None
        self._missing[filename] -= 1
        if self._missing[filename] == 0:
            self._shard_done(filename)

    def _shard_done(self, filename: str) -> None:
        for lane in self._lanes:
            lane.shard_done(filename)

    def finish(self, number: int, files: Mapping[str, bytes]) -> PushResult | None:
        """Make the model of one lane appear."""
        return self._lanes[number].finish(files)

    def close(self) -> None:
        """Close what is open, and leave it for a later start."""
        for writer in self.writers:
            writer.close()


@contextmanager
def open_delivery(
    lanes: Sequence[Lane],
    private_inputs: bool,
    plan: PredictionPlan,
    identity: Mapping[str, object],
    work: Path,
) -> Iterator[Delivery]:
    """Open the work folder, new or as an earlier start left it; it goes when all is delivered.

    Raises:
        WriteError: another process works there, or it holds another run.
        ResourceError: the disk is too small. PushError: the push could not end well.
    """
    needed_bytes = sum(_needed_bytes(lane.destination, plan) for lane in lanes)
    uploads = begin_uploads(lanes, private_inputs, needed_bytes, work)
    with open_journal(work, identity) as journal:
        delivery = Delivery(lanes, uploads, plan, journal)
        try:
            delivery.open()
            yield delivery
        finally:
            delivery.close()


def begin_uploads(
    lanes: Sequence[Lane], private_inputs: bool, needed_bytes: int, work: Path
) -> list[ModelUpload | None]:
    """Check disk and Hub before anything is read; returns the uploads of the lanes.

    Raises:
        ResourceError: the disk is too small. PushError: the push could not end well.
    """
    if not (work / RESULT_FOLDER).exists():
        check_disk(work, needed_bytes)
    pushes = [lane.destination.push for lane in lanes]
    return [push.begin(private_inputs) if push is not None else None for push in pushes]


def _needed_bytes(destination: Destination, plan: PredictionPlan) -> int:
    return plan.output_bytes if destination.folder is not None else plan.largest_file_bytes


def work_folder(destination: Destination, default: Path) -> Path:
    """Return where to work: as told, beside the output, else `default`."""
    if destination.work_folder is not None:
        return destination.work_folder
    return work_folder_beside(destination.folder) if destination.folder is not None else default
