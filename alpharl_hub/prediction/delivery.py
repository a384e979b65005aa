"""How a predicted model gets to its folder, its repo or both, and the work folder on the way.

Shards are uploaded as soon as they are complete and then deleted here, unless a folder is wanted
too; what makes the model appear (a rename, a commit) comes last.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from alpharl_hub import strict_json
from alpharl_hub.errors import WriteError
from alpharl_hub.executors.finisher import Finisher
from alpharl_hub.executors.local import WindowReads
from alpharl_hub.output.folder import (
    check_disk,
    publish,
    write_file,
)
from alpharl_hub.output.journal import RESULT_FOLDER, Journal, open_journal
from alpharl_hub.output.read_back import Run
from alpharl_hub.output.shards import (
    DamagedError,
    OutputFile,
    ShardWriter,
    check_written,
    make_index,
)
from alpharl_hub.prediction.destination import Destination, Lane, output_of
from alpharl_hub.prediction.planning import PredictionPlan
from alpharl_hub.prediction.window_work import PartResult, Recipe, WindowPredictor
from alpharl_hub.push.model_upload import (
    ModelUpload,
    PushResult,
    UploadedShard,
)
from alpharl_hub.sources.adapters import ADAPTER_FILE
from alpharl_hub.sources.contents import INDEX_FILE, SINGLE_FILE
from alpharl_hub.trajectory import Trajectory
from alpharl_hub.windows.plan import Window
from alpharl_hub.windows.streaming import load_results

Worker = Callable[[WindowReads, str], tuple[PartResult, ...]]
"""Does one window on one device."""


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
        self._stamps: dict[str, tuple[int, int]] = {}
        """Size and time of change of the shards that were read back."""

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

    def shard_done(self, filename: str, runs: Sequence[Run] | None = None) -> None:
        """Read a complete shard back, give it its name, and upload it where that is asked for.

        `runs` as in `ShardWriter.complete`.
        """
        if self._is_published or self._is_uploaded(filename):
            return
        path = self.writer.complete(filename, runs)
        self._stamps[filename] = _stamp(path)
        if self._upload is not None:
            uploaded = self._upload.upload_shard(path)
            self._journal.record(self._key(filename), strict_json.to_plain(uploaded))
            if self._lane.destination.folder is None:
                path.unlink()

    def touched(self) -> list[OutputFile]:
        """Return the shards that somebody has written to since they were read back."""
        if self._is_published or self._lane.destination.folder is None:
            return []
        return [
            file
            for file in self._files
            if file.filename in self._stamps
            and _stamp(self._result / file.filename) != self._stamps[file.filename]
        ]

    def check(self, file: OutputFile, runs: Sequence[Run]) -> None:
        """Read a shard back that has its name."""
        check_written(self._result / file.filename, file, runs)

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


def _stamp(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_size, found.st_mtime_ns


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
        self._finisher = Finisher()

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
                self._finisher.add(partial(self._shard_done, filename))

    def window_done(self, window: Window, finished: Callable[[], None]) -> None:
        """Note a window that is in the journal; its shard is complete with the last one.

        Reading a shard back and uploading it take long, and go on while others are made.
        """
        self._finisher.add(partial(self._finish_window, window, finished))

    def _finish_window(self, window: Window, finished: Callable[[], None]) -> None:
        filename = window.output_filename
        assert filename is not None
        self._missing[filename] -= 1
        if self._missing[filename] == 0:
            self._shard_done(filename)
        finished()

    def _shard_done(self, filename: str) -> None:
        for number, lane in enumerate(self._lanes):
            with self._forgetting(filename):
                lane.shard_done(filename, self._runs(filename, number))

    def _runs(self, filename: str, number: int) -> list[Run]:
        """Return what was written of a shard of one lane, as the journal has it."""
        windows = [w for w in self._plan.windows if w.output_filename == filename]
        return window_runs(windows, self.journal, number)

    @contextmanager
    def _forgetting(self, filename: str) -> Iterator[None]:
        """Have the next start do the windows again whose bytes are not what they were."""
        try:
            yield
        except DamagedError as error:
            windows = [w for w in self._plan.windows if w.output_filename == filename]
            forget_damaged(windows, self.journal, error.starts)
            raise

    def finish(self, number: int, files: Mapping[str, bytes]) -> PushResult | None:
        """Make the model of one lane appear."""
        self._finisher.wait()
        lane = self._lanes[number]
        for file in lane.touched():
            with self._forgetting(file.filename):
                lane.check(file, self._runs(file.filename, number))
        return lane.finish(files)

    def close(self) -> None:
        """Close what is open, and leave it for a later start."""
        self._finisher.close()
        for writer in self.writers:
            writer.close()


def window_runs(windows: Sequence[Window], journal: Journal, number: int) -> list[Run]:
    """Return the runs of bytes that windows have written for the goal of that number."""
    runs = []
    for window in windows:
        key = f"window {window.index}"
        results = load_results(PartResult, journal.results[key], key)
        for part, result in zip(window.parts, results, strict=True):
            if part.output is not None and number < len(result.crcs):
                runs.append(Run(part.output.start, part.output.stop, result.crcs[number]))
    return runs


def forget_damaged(windows: Sequence[Window], journal: Journal, starts: frozenset[int]) -> None:
    """Have the next start do those windows again that wrote what begins at `starts`."""
    for window in windows:
        if any(part.output is not None and part.output.start in starts for part in window.parts):
            journal.forget(f"window {window.index}")


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
    with open_journal(work, identity, output_of(lanes)) as journal:
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
