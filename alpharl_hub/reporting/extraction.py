"""Answer `extract`: the factors of every matrix and step as a folder, a run in little space."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from alpharl_hub import strict_json
from alpharl_hub.card.metadata import stated
from alpharl_hub.manifest import (
    KIND_FACTORS,
    MANIFEST_NAME,
    SCHEMA,
    CardRecord,
    Manifest,
    RunRecord,
    TensorRecord,
    VersionsRecord,
)
from alpharl_hub.output.factor_files import (
    FactorWriter,
    MatrixShape,
    factor_runs,
    make_factor_index,
    plan_factor_files,
)
from alpharl_hub.output.factor_names import INDEX_FILE, LOCAL_PLACES
from alpharl_hub.output.folder import (
    check_disk,
    check_output,
    publish,
    work_folder_beside,
    write_file,
)
from alpharl_hub.output.journal import DEFAULT_PARENT, RESULT_FOLDER, Journal, open_journal
from alpharl_hub.output.shards import DamagedError, OutputFile, ShardWriter
from alpharl_hub.prediction.destination import PushRequest
from alpharl_hub.prediction.records import pool_trust, trust_record
from alpharl_hub.preparation import Prepared, nearest_middle
from alpharl_hub.push.finished_folder import read_finished_folder
from alpharl_hub.push.model_upload import push_finished
from alpharl_hub.reporting.analysis import MatrixResult, WindowAnalyser
from alpharl_hub.results import Extraction
from alpharl_hub.scope import Scope
from alpharl_hub.sources.contents import card_text
from alpharl_hub.trajectory import Trajectory
from alpharl_hub.version import __version__
from alpharl_hub.windows.plan import PREDICTED, Window, plan_analysis
from alpharl_hub.windows.streaming import Compute, Hooks, Reading, find_crew, stream


@dataclass(frozen=True)
class FactorOutput:
    """Where factors are asked to go: a folder, a repo on a Hub, or both.

    Unfinished work lies in `work_dir`; None: beside the folder, else in a folder of its own.
    """

    folder: Path | None
    overwrite: bool = False
    work_dir: Path | None = None
    push: PushRequest | None = None

    def check(self) -> None:
        """Refuse a folder that cannot be taken.

        Raises:
            WriteError: it is not empty, or no folder.
        """
        if self.folder is not None:
            check_output(self.folder, self.overwrite, self.work_dir)


def extract(
    prepared: Prepared,
    run: RunRecord,
    rank: int,
    output: FactorOutput,
    compute: Compute,
    hooks: Hooks,
) -> Extraction:
    """Factorise every matrix at every step in one reading, and write or push what comes of it.

    Raises:
        ResourceError: memory or disk do not suffice; told before anything is read.
        WriteError: the output cannot be written. SourceError, FitError: nothing good was read.
        PushError: the Hub refuses; what could stop the push is asked before anything is read.
    """
    trajectory = prepared.trajectory
    windows = plan_analysis(prepared.scope.matrices)
    files = plan_factor_files(_shapes(windows), len(trajectory.history), rank)
    crew = find_crew(windows, compute)
    versions = VersionsRecord(__version__, torch.__version__, crew.name)
    known_by = _identity(run, versions, rank, windows)
    work = _work_folder(output, known_by)
    if not (work / RESULT_FOLDER).exists():
        check_disk(work, sum(file.num_bytes for file in files))
    push = output.push
    upload = None if push is None else push.begin(run.private, KIND_FACTORS)
    pushed = None
    with open_journal(work, known_by, output.folder) as journal:
        reading = crew.reading(hooks)
        results = _read(prepared, windows, files, rank, work, journal, reading)
        manifest = _manifest(prepared, run, versions, rank, results)
        manifest = replace(manifest, warnings=(*manifest.warnings, *reading.moved.notices))
        _add_small_files(work / RESULT_FOLDER, files, manifest, trajectory)
        if push is not None and upload is not None:
            finished = read_finished_folder(work / RESULT_FOLDER)
            pushed = push_finished(finished, upload, push.repo, push.options.branch)
        if output.folder is not None:
            publish(work / RESULT_FOLDER, output.folder, output.overwrite)
    return Extraction(
        schema=SCHEMA,
        path=None if output.folder is None else str(output.folder),
        manifest=str((output.folder or Path()) / MANIFEST_NAME),
        num_matrices=len(results),
        num_bytes=sum(file.num_bytes for file in files),
        warnings=manifest.warnings,
        url=None if pushed is None else pushed.url,
        commit=None if pushed is None else pushed.commit,
    )


def _work_folder(output: FactorOutput, known_by: Mapping[str, object]) -> Path:
    if output.work_dir is not None:
        return output.work_dir
    if output.folder is not None:
        return work_folder_beside(output.folder)
    digest = hashlib.sha256(strict_json.dump(known_by).encode()).hexdigest()
    return Path(DEFAULT_PARENT) / digest[:16]


def _shapes(windows: Sequence[Window]) -> tuple[MatrixShape, ...]:
    parts = [part for window in windows for part in window.parts]
    return tuple(MatrixShape(part.name, (part.shape[0], part.shape[1])) for part in parts)


def _identity(
    run: RunRecord, versions: VersionsRecord, rank: int, windows: Sequence[Window]
) -> Mapping[str, object]:
    return {
        "versions": strict_json.to_plain(versions),
        "run": strict_json.to_plain(run),
        "rank": rank,
        "windows": hashlib.sha256(repr(windows).encode()).hexdigest(),
    }


def _read(
    prepared: Prepared,
    windows: Sequence[Window],
    files: Sequence[OutputFile],
    rank: int,
    work: Path,
    journal: Journal,
    reading: Reading,
) -> list[MatrixResult]:
    trajectory = prepared.trajectory
    writer = ShardWriter(work / RESULT_FOLDER, files)
    writer.open()
    factors = FactorWriter(writer, files)
    middle = nearest_middle(trajectory.steps_T)
    analyser = WindowAnalyser(trajectory, prepared.scores_T, rank, middle, factors.write)
    try:
        by_window = stream(trajectory, windows, analyser, reading, MatrixResult, journal)
        crcs = {result.name: result.crc32 for found in by_window.values() for result in found}
        for file in files:
            try:
                writer.complete(file.filename, factor_runs(file, crcs))
            except DamagedError as error:
                _forget(windows, file, error.starts, journal)
                raise
    finally:
        writer.close()
    return [result for index in sorted(by_window) for result in by_window[index]]


def _forget(
    windows: Sequence[Window], file: OutputFile, starts: frozenset[int], journal: Journal
) -> None:
    """Have the next start do those windows again whose factors begin at `starts` of a file."""
    names = {ref.name.rpartition(".")[0] for ref in file.tensors if ref.start in starts}
    for window in windows:
        if any(part.name in names for part in window.parts):
            journal.forget(f"window {window.index}")


def _manifest(
    prepared: Prepared,
    run: RunRecord,
    versions: VersionsRecord,
    rank: int,
    results: Sequence[MatrixResult],
) -> Manifest:
    steps_T = prepared.trajectory.steps_T
    middle = nearest_middle(steps_T)
    sums = [result.direction for result in results]
    return Manifest(
        schema=SCHEMA,
        kind=KIND_FACTORS,
        versions=versions,
        run=run,
        method=None,
        rank=rank,
        trust=trust_record(pool_trust(sums, steps_T, middle), steps_T[middle], None),
        rounding=None,
        tensors=factor_records(results, prepared.scope),
        copied_files=(),
        warnings=prepared.notices,
        card=_card_record(prepared.trajectory),
    )


def _card_record(trajectory: Trajectory) -> CardRecord:
    """Write down what the cards of the run and its base state, for the card of the factors."""
    run_card = trajectory.card or card_text(trajectory.last)
    return CardRecord(None, stated(run_card), stated(card_text(trajectory.base)), False)


def _add_small_files(
    folder: Path, files: Sequence[OutputFile], manifest: Manifest, trajectory: Trajectory
) -> None:
    write_file(folder / MANIFEST_NAME, manifest.to_json().encode())
    if len(files) > 1:
        write_file(folder / INDEX_FILE, make_factor_index(files))
    places = {
        contents.identity: os.path.abspath(contents.checkpoint.source)
        for contents in (trajectory.base, trajectory.last)
        if contents.checkpoint.commit is None
    }
    if places:
        write_file(folder / LOCAL_PLACES, (json.dumps(places, indent=1) + "\n").encode())


def factor_records(results: Sequence[MatrixResult], scope: Scope) -> tuple[TensorRecord, ...]:
    """Write down the matrices whose factors were extracted."""
    dtypes = {tensor.name: tensor.last.dtype for tensor in scope.matrices}
    return tuple(
        TensorRecord(
            name=result.name,
            action=PREDICTED,
            dtype=dtypes.get(result.name) or dtypes[result.name.rpartition("[")[0]],
            shape=result.shape,
            sigma=result.quality.sigma,
            frobenius=result.quality.frobenius,
            rank1_share=result.quality.rank1_share,
            q2_step=result.quality.q2_step,
            q2_score=result.quality.q2_score,
            r2_step_in_sample=result.quality.r2_step_in_sample,
            certified=result.quality.certified,
            rounding_loss=None,
            unchanged=None,
        )
        for result in results
    )
