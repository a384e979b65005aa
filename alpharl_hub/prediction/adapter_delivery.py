"""Adapters while they are made, and where they go.

Windows leave the factors of their updates in files of the work folder, and tensors that are stored
whole in a file of their own. In the end these become one small file, which is delivered like any
shard. An interrupted run goes on from the windows that its journal holds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from torch import Tensor

from alpharl_hub.executors.local import WindowReads
from alpharl_hub.numerics.low_rank import LowRank
from alpharl_hub.output.adapter_files import (
    AdapterFiles,
    AdapterUpdate,
    make_adapter,
    map_tensors,
    read_factors,
)
from alpharl_hub.output.journal import RESULT_FOLDER, Journal, open_journal
from alpharl_hub.output.shards import DamagedError, ShardWriter
from alpharl_hub.prediction.adapter_planning import (
    UPDATES_FILE,
    WHOLE_FILE,
    adapter_origin,
    layouts,
)
from alpharl_hub.prediction.adapter_work import WindowFactors
from alpharl_hub.prediction.delivery import (
    LaneDelivery,
    Worker,
    begin_uploads,
    forget_damaged,
    window_runs,
)
from alpharl_hub.prediction.destination import Lane, output_of
from alpharl_hub.prediction.planning import PredictionPlan
from alpharl_hub.prediction.window_work import PartResult, Recipe, WindowPredictor
from alpharl_hub.push.model_upload import ModelUpload, PushResult
from alpharl_hub.sources.adapter_fitting import tied_head
from alpharl_hub.sources.adapters import ADAPTER_CONFIG, ADAPTER_FILE
from alpharl_hub.trajectory import Trajectory
from alpharl_hub.windows.plan import Window
from alpharl_hub.windows.streaming import load_results

_PARTS, _ADAPTERS = "parts", "adapters"
"""Folders below the work folder's result: what windows left, and adapters put together."""


class AdapterDelivery:
    """The adapters of all lanes while they are made, and their journal."""

    def __init__(
        self,
        lanes: Sequence[Lane],
        uploads: Sequence[ModelUpload | None],
        plan: PredictionPlan,
        trajectory: Trajectory,
        journal: Journal,
    ) -> None:
        self.journal = journal
        self._lanes = lanes
        self._uploads = uploads
        self._plan = plan
        self._trajectory = trajectory
        parts = journal.folder / RESULT_FOLDER / _PARTS
        self._folders = [parts / str(number) for number in range(len(lanes))]
        whole = [file for file in plan.files if file.filename == WHOLE_FILE]
        self._writers = [ShardWriter(folder, whole) for folder in self._folders]

    def open(self) -> None:
        """Create what is not there yet."""
        is_new = not any(key.startswith("window ") for key in self.journal.results)
        for number, (folder, writer) in enumerate(zip(self._folders, self._writers, strict=True)):
            folder.mkdir(parents=True, exist_ok=True)
            writer.open()
            if is_new:  # later, a folder that is missing was published
                self._delivery(number, None).open()

    def worker(self, trajectory: Trajectory, recipe: Recipe) -> Worker:
        """Return what does the windows."""
        factors = WindowFactors(trajectory, recipe, self._folders)
        whole = WindowPredictor(trajectory, recipe, self._writers)

        def work(reads: WindowReads, device: str) -> tuple[PartResult, ...]:
            is_whole = reads.window.output_filename == WHOLE_FILE
            return whole(reads, device) if is_whole else factors(reads, device)

        return work

    def window_done(self, window: Window, finished: Callable[[], None]) -> None:
        """What a window left stays in its file until all are there."""
        finished()

    def finish(self, number: int, files: Mapping[str, bytes]) -> PushResult | None:
        """Put one adapter together and make it appear."""
        adapter = self._put_together(number)
        delivery = self._delivery(number, adapter)
        delivery.open()
        try:
            if ADAPTER_FILE in delivery.writer.files:
                for start, data in adapter.chunks():
                    delivery.writer.write(ADAPTER_FILE, start, data)
                delivery.shard_done(ADAPTER_FILE)
            return delivery.finish({**files, ADAPTER_CONFIG: adapter.config})
        finally:
            delivery.writer.close()

    def _delivery(self, number: int, adapter: AdapterFiles | None) -> LaneDelivery:
        files = () if adapter is None else (adapter.file,)
        lane, upload = self._lanes[number], self._uploads[number]
        return LaneDelivery(lane, upload, files, self.journal, _ADAPTERS)

    def _put_together(self, number: int) -> AdapterFiles:
        whole = self._whole(number)
        updates: dict[str, LowRank] = {}
        for window in self._plan.windows:
            if window.output_filename == UPDATES_FILE:
                updates.update(self._updates(number, window))
        trajectory = self._trajectory
        layout = layouts(trajectory, tuple(updates))
        found = {name: AdapterUpdate(update, layout[name]) for name, update in updates.items()}
        for name in (*found, *whole):
            head = tied_head(name, trajectory.last, trajectory.base)
            if head is not None and name in found:
                found[head] = AdapterUpdate(updates[name], "linear")
            elif head is not None:
                whole[head] = whole[name]
        dtype = next((ref.dtype for ref in self._plan.files[0].tensors), "F32")
        return make_adapter(found, whole, adapter_origin(trajectory), dtype)

    def _whole(self, number: int) -> dict[str, Tensor]:
        """Read back what is stored whole."""
        writer = self._writers[number]
        if not writer.files:
            return {}
        windows = [w for w in self._plan.windows if w.output_filename == WHOLE_FILE]
        try:
            path = writer.complete(WHOLE_FILE, window_runs(windows, self.journal, number))
        except DamagedError as error:
            forget_damaged(windows, self.journal, error.starts)
            raise
        return dict(map_tensors(path))

    def _updates(self, number: int, window: Window) -> Mapping[str, LowRank]:
        """Read back what a window left."""
        key = f"window {window.index}"
        results = load_results(PartResult, self.journal.results[key], key)
        crcs = {result.name: result.crcs[number] for result in results}
        try:
            return read_factors(self._folders[number], window.index, crcs)
        except DamagedError:
            self.journal.forget(key)
            raise

    def close(self) -> None:
        """Close what is open, and leave it for a later start."""
        for writer in self._writers:
            writer.close()


@contextmanager
def open_adapter_delivery(
    lanes: Sequence[Lane],
    private_inputs: bool,
    plan: PredictionPlan,
    trajectory: Trajectory,
    identity: Mapping[str, object],
    work: Path,
) -> Iterator[AdapterDelivery]:
    """Open the work folder, new or as an earlier start left it; it goes when all is delivered.

    Raises:
        WriteError: another process works there, or it holds another run.
        ResourceError: the disk is too small. PushError: the push could not end well.
    """
    # Parts and adapter lie side by side for a while.
    uploads = begin_uploads(lanes, private_inputs, 2 * len(lanes) * plan.output_bytes, work)
    with open_journal(work, identity, output_of(lanes)) as journal:
        delivery = AdapterDelivery(lanes, uploads, plan, trajectory, journal)
        try:
            delivery.open()
            yield delivery
        finally:
            delivery.close()
