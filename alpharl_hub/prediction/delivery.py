"""Where a predicted model goes: a folder, a repo on a Hub, or both; and the work folder on the way.

Shards are uploaded as soon as they are complete and then deleted here, unless a folder is wanted
too; what makes the model appear (a rename, a commit) comes last.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from alpharl_hub import strict_json
from alpharl_hub.output.folder import (
    check_disk,
    check_output,
    publish,
    work_folder_beside,
    write_file,
)
from alpharl_hub.output.journal import RESULT_FOLDER, Journal, open_journal
from alpharl_hub.output.shards import ShardWriter, make_index
from alpharl_hub.prediction.planning import PredictionPlan
from alpharl_hub.push.model_upload import (
    HubAccess,
    ModelUpload,
    PushHooks,
    PushOptions,
    PushResult,
    UploadedShard,
)
from alpharl_hub.sources.contents import INDEX_FILE, SINGLE_FILE
from alpharl_hub.windows.plan import Window


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

    def check(self) -> None:
        """Refuse a folder that cannot be taken, before anything is read.

        Raises:
            WriteError: it is not empty, or no folder.
        """
        if self.folder is not None:
            check_output(self.folder, self.overwrite, self.work_folder)


class Delivery:
    """The output while it is made: writer, journal, and what happens to finished shards."""

    def __init__(
        self,
        destination: Destination,
        upload: ModelUpload | None,
        work: Path,
        plan: PredictionPlan,
        journal: Journal,
    ) -> None:
        self.journal = journal
        self._upload = upload
        self._destination = destination
        self._work = work
        self._result = work / RESULT_FOLDER
        self._plan = plan
        gone = {key.partition(" ")[2] for key in journal.results if key.startswith("shard ")}
        files = [file for file in plan.files if file.filename not in gone]
        self.writer = ShardWriter(self._result, files)
        self._missing = self._count_missing()

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
        self.writer.open()
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
        if f"shard {filename}" in self.journal.results:
            return
        path = self.writer.complete(filename)
        if self._upload is not None:
            uploaded = self._upload.upload_shard(path)
            self.journal.record(f"shard {filename}", strict_json.to_plain(uploaded))
            if self._destination.folder is None:
                path.unlink()

    def finish(self, files: Mapping[str, bytes]) -> PushResult | None:
        """Add the small files, push, and move the folder to its name."""
        small = dict(files)
        if any(file.filename != SINGLE_FILE for file in self._plan.files):
            small[INDEX_FILE] = make_index(self._plan.files)
        pushed = None
        if self._upload is not None:
            pushed = self._upload.finish(self._uploaded(), small)
        folder = self._destination.folder
        if folder is not None:
            for name, data in small.items():
                write_file(self._result / name, data)
            publish(self._result, folder, self._destination.overwrite)
        return pushed

    def _uploaded(self) -> list[UploadedShard]:
        keys = [f"shard {file.filename}" for file in self._plan.files]
        results = self.journal.results
        return [strict_json.from_plain(UploadedShard, results[key], key) for key in keys]


@contextmanager
def open_delivery(
    destination: Destination,
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
    check_disk(work, _needed_bytes(destination, plan, work))
    upload = destination.push.begin(private_inputs) if destination.push else None
    with open_journal(work, identity) as journal:
        delivery = Delivery(destination, upload, work, plan, journal)
        try:
            delivery.open()
            yield delivery
        finally:
            delivery.writer.close()


def _needed_bytes(destination: Destination, plan: PredictionPlan, work: Path) -> int:
    if (work / RESULT_FOLDER).exists():
        return 0
    return plan.output_bytes if destination.folder is not None else plan.largest_file_bytes


def work_folder(destination: Destination, default: Path) -> Path:
    """Return where to work: as told, beside the output, else `default`."""
    if destination.work_folder is not None:
        return destination.work_folder
    return work_folder_beside(destination.folder) if destination.folder is not None else default
