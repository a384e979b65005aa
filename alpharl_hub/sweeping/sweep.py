"""The sweep: candidates from two endpoints on disk, scored one at a time, the best one written.

The network was read once, for the endpoints. Everything after that can be repeated from them, so
no candidate is kept: the best one is mixed again in the end, to the same bits.
"""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from alpharl_hub import strict_json
from alpharl_hub.errors import FitError, ScoreError
from alpharl_hub.manifest import Notice
from alpharl_hub.methods.correction import Rounding
from alpharl_hub.output.folder import check_disk, write_file
from alpharl_hub.output.shards import OutputFile, make_index, write_error
from alpharl_hub.sources.contents import INDEX_FILE, SINGLE_FILE
from alpharl_hub.sweeping.evaluation import LOG_NAME, Evaluation, evaluate
from alpharl_hub.sweeping.mixing import Mixer
from alpharl_hub.sweeping.results import SCALE, SweepOutcome, SweepRow
from alpharl_hub.sweeping.search import SearchOptions, SizeSearch
from alpharl_hub.tensor_bytes import TORCH_DTYPES
from alpharl_hub.windows.streaming import Results

_CANDIDATES = "candidates"
_ENDPOINT_ITEM_BYTES = 4


@dataclass(frozen=True)
class Endpoints:
    """Two models on one line, floating tensors in fp32, and what candidates will look like.

    `low_value` and `high_value` are where they lie on the axis: scales 0 and 1, or two steps.
    `files` is the layout of a candidate with its final dtypes. `last_value` is where on the axis
    the last checkpoint lies, None where no candidate is it.
    """

    low: Path
    high: Path
    low_value: float
    high_value: float
    files: tuple[OutputFile, ...]
    last_value: float | None = None

    def fraction(self, value: float) -> float:
        """Return how far from `low` (0) to `high` (1), or beyond, a value lies."""
        if value == self.low_value:
            return 0.0
        return (value - self.low_value) / (self.high_value - self.low_value)


@dataclass(frozen=True)
class SweepFolders:
    """Where things go.

    `work` holds the candidate in hand; `evaluations` gets a folder with log and results for each
    candidate and must outlive a restart; `result` (created) gets the best candidate.
    """

    work: Path
    evaluations: Path
    result: Path


@dataclass(frozen=True)
class DiskNeed:
    """What a sweep takes: both endpoints, and one candidate beside them."""

    endpoint_bytes: int
    candidate_bytes: int

    @property
    def total_bytes(self) -> int:
        """All of it."""
        return self.endpoint_bytes + self.candidate_bytes


def disk_need(files: Sequence[OutputFile]) -> DiskNeed:
    """Say what a sweep with candidates of this layout needs, before anything is read."""
    endpoint_bytes = sum(
        ref.num_elements * _ENDPOINT_ITEM_BYTES if ref.dtype in TORCH_DTYPES else ref.num_bytes
        for file in files
        for ref in file.tensors
    )
    return DiskNeed(2 * endpoint_bytes, sum(file.num_bytes for file in files))


def _tell_nobody(*_facts: object) -> None:
    """Nobody watches."""


@dataclass(frozen=True)
class SweepHooks:
    """What the sweep tells while it works, and how it is stopped.

    `on_disk(candidate_bytes)` comes first; `on_candidate(number, budget, value, log)` before each
    evaluation; `on_row(row, is_known)` after it, also for those that an earlier start had done.
    """

    on_disk: Callable[[int], None] = _tell_nobody
    on_candidate: Callable[[int, int, float, Path], None] = _tell_nobody
    on_row: Callable[[SweepRow, bool], None] = _tell_nobody
    stop: threading.Event = field(default_factory=threading.Event)


@dataclass(frozen=True)
class SweepOptions:
    """How candidates are scored, and how the best one is searched for."""

    evaluation: Evaluation
    search: SearchOptions


@dataclass(frozen=True)
class Swept:
    """The outcome, and what rounding did to the floating tensors of the best candidate.

    The updates of `roundings` are those from the endpoint `low`.
    """

    outcome: SweepOutcome
    roundings: Mapping[str, Rounding]


def run_sweep(
    endpoints: Endpoints,
    small_files: Mapping[str, bytes],
    options: SweepOptions,
    folders: SweepFolders,
    journal: Results,
    hooks: SweepHooks,
) -> Swept:
    """Score candidates until the search is done, and write the best one to `folders.result`.

    Args:
        endpoints: what candidates are mixed from.
        small_files: name to bytes of what makes a candidate loadable, beside weights and index.
        options: the user's command, the grid, the budget.
        folders: where to work.
        journal: keeps finished evaluations under keys "evaluation ..."; those that it holds are
            not repeated unless the command or the score's place has changed.
        hooks: who is told.

    Raises:
        ScoreError: impossible options. EvaluationError: an evaluation without a usable score.
        Also of a candidate that overflows its dtype. ResourceError, WriteError: the disk.
        Cancelled: `hooks.stop` was set; what was finished stays in the journal.
    """
    search = SizeSearch(
        options.search.grid(), options.search.budget, options.search.lower_is_better
    )
    maker = _Maker(endpoints, small_files, hooks.stop)
    hooks.on_disk(maker.num_bytes)
    _clear(folders)
    check_disk(folders.work, maker.num_bytes)
    rows: list[SweepRow] = []
    while (value := search.ask()) is not None:
        key = f"evaluation {options.evaluation.digest} {value!r}"
        is_known = key in journal.results
        if not is_known:
            log = folders.evaluations / _log_name(options, value)
            hooks.on_candidate(len(rows) + 1, options.search.budget, value, log)
            row = _score(maker, value, options, folders, hooks.stop)
            journal.record(key, strict_json.to_plain(row))
        rows.append(strict_json.from_plain(SweepRow, journal.results[key], key))
        hooks.on_row(rows[-1], is_known)
        search.tell(value, rows[-1].score)
    outcome = _outcome(search, rows, endpoints.last_value, options.search)
    return Swept(outcome, maker.make(search.best, folders.result))


class _Maker:
    """Makes loadable models of values on the axis."""

    def __init__(
        self, endpoints: Endpoints, small_files: Mapping[str, bytes], stop: threading.Event
    ) -> None:
        self._endpoints = endpoints
        self._mixer = Mixer(endpoints.low, endpoints.high, endpoints.files, stop)
        self._small_files = dict(small_files)
        if any(file.filename != SINGLE_FILE for file in endpoints.files):
            self._small_files[INDEX_FILE] = make_index(endpoints.files)

    @property
    def num_bytes(self) -> int:
        """What one model takes."""
        small_bytes = sum(len(data) for data in self._small_files.values())
        return disk_need(self._endpoints.files).candidate_bytes + small_bytes

    def make(self, value: float, folder: Path) -> dict[str, Rounding]:
        """Write the model at a value, and return what rounding did to its tensors."""
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise write_error(folder, error) from error
        for name, data in self._small_files.items():
            write_file(folder / name, data)
        return self._mixer.write(self._endpoints.fraction(value), folder)


def _score(
    maker: _Maker,
    value: float,
    options: SweepOptions,
    folders: SweepFolders,
    stop: threading.Event,
) -> SweepRow:
    # Every candidate has a name of its own: evaluations keep answers by the path of the model.
    candidate = folders.work / _CANDIDATES / _name(options, value)
    log_name = _log_name(options, value)
    try:
        maker.make(value, candidate)
        where = (folders.evaluations / log_name).parent
        measured = evaluate(options.evaluation, candidate, where, stop)
    except FitError as error:
        # Not left a FitError, which discards the work folder: other values may go well, and the
        # endpoints took a reading of the network.
        raise ScoreError(
            f"{options.search.axis} {value:g}: {error}; or leave out values as large as that"
        ) from error
    finally:
        _clear(folders)
    return SweepRow(value, measured.score, measured.seconds, log_name)


def _clear(folders: SweepFolders) -> None:
    """Delete the candidate in hand, or one that a killed start left behind."""
    shutil.rmtree(folders.work / _CANDIDATES, ignore_errors=True)


def _name(options: SweepOptions, value: float) -> str:
    return f"{options.search.axis}_{value:.10g}"


def _log_name(options: SweepOptions, value: float) -> str:
    return f"{_name(options, value)}/{LOG_NAME}"


def _outcome(
    search: SizeSearch,
    rows: Sequence[SweepRow],
    last_value: float | None,
    options: SearchOptions,
) -> SweepOutcome:
    scores = {row.value: row.score for row in rows}
    return SweepOutcome(
        axis=options.axis,
        rows=tuple(rows),
        best_value=search.best,
        best_score=search.best_score,
        last_value=last_value if last_value in scores else None,
        last_score=None if last_value is None else scores.get(last_value),
        lower_is_better=options.lower_is_better,
        notices=_notices(search, last_value, options),
    )


def _notices(
    search: SizeSearch, last_value: float | None, options: SearchOptions
) -> tuple[Notice, ...]:
    if search.is_flat:
        message = (
            f"every candidate scored {search.best_score:g}: the evaluation cannot tell them "
            "apart; does it score the model in {model}, on enough problems?"
        )
        return (Notice("sweep_flat", message),)
    if search.best == last_value:
        return (Notice("sweep_keeps_last", "no candidate beats the last checkpoint: keep it"),)
    grid = options.grid()
    if len(grid) > 1 and search.best in (grid[0], grid[-1]):
        end, more = ("smallest", "smaller") if search.best == grid[0] else ("largest", "larger")
        flag = "--scales" if options.axis == SCALE else "--target-steps"
        message = (
            f"the best {options.axis}, {search.best:g}, is the {end} that was tried: a {more} one "
            f"may be better; give {flag} with {more} values"
        )
        return (Notice("sweep_at_edge", message),)
    return ()
