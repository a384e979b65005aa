"""Checkpoints on their way to the Hub, one after the other, in a thread of their own.

A trainer may delete a checkpoint while it is pushed (save_total_limit). So its files are taken by
hard links first, which costs no space until then; where a disk has none, they are copied. On a line
slower than the training, what waits to be pushed stays on the disk.

The Hub's client has one session for the whole process. While something is pushed, requests that
others make with it are watched too (see `push.guarded_client`), and the client draws no bars.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from alpharl_hub.errors import PushError
from alpharl_hub.output.model_files import MAX_COPIED_BYTES
from alpharl_hub.push.model_upload import ModelUpload, PushHooks, PushOptions
from alpharl_hub.training.run_repo import CARD_NAME, RunRepo, branch_of

logger = logging.getLogger(__name__)

_STAGING = ".alpharl-hub-pushing"
# Never pushed: what only this trainer could go on from, pickles (which run code when they are
# opened), and the trainer's own card, whose base_model may be a path, which the Hub refuses.
_LEFT_HERE = re.compile(
    r"^(\.|optimizer|scheduler|scaler|rng_state|training_args)|^README\.md$"
    r"|\.(bin|pt|pth|ckpt|distcp|pkl|pickle|h5|msgpack|tmp|lock)$",
    re.IGNORECASE,
)
_WEIGHTS = ".safetensors"


@dataclass(frozen=True)
class FailedPush:
    """A step that the Hub does not have, where its checkpoint was saved, and why."""

    step: int
    folder: Path
    reason: str


@dataclass(frozen=True)
class _Job:
    step: int
    saved: Path
    card: str


def stage(saved: Path, staging: Path) -> Path:
    """Take what is pushed of a saved checkpoint by links, or by copies where there are none.

    Raises:
        PushError: the folder holds no safetensors weights.
        OSError: it cannot be read, or the disk is full.
    """
    if staging.exists():
        shutil.rmtree(staging)
    files = pushed_files(saved)
    staging.mkdir(parents=True)
    for path in files:
        try:
            os.link(path.resolve(), staging / path.name)
        except OSError:
            shutil.copyfile(path, staging / path.name)
    return staging


def pushed_files(saved: Path) -> tuple[Path, ...]:
    """List what is pushed of a saved checkpoint: weights, config, tokenizer and trainer_state.json.

    Raises:
        PushError: the folder holds no safetensors weights.
    """
    files = [p for p in sorted(saved.iterdir()) if p.is_file() and not _LEFT_HERE.search(p.name)]
    kept = [p for p in files if p.suffix == _WEIGHTS or p.stat().st_size <= MAX_COPIED_BYTES]
    if not any(path.suffix == _WEIGHTS for path in kept):
        raise PushError(
            f"{saved}: holds no safetensors weights; have the trainer save whole checkpoints "
            "(FSDP: state_dict_type FULL_STATE_DICT; DeepSpeed: stage3_gather_16bit_weights)"
        )
    return tuple(kept)


def push_step(repo: RunRepo, folder: Path, step: int, card: str) -> str:
    """Push the files of a folder to the branch of a step, in one commit, and return its sha.

    What the branch already has is not sent again.

    Raises:
        PushError: the Hub refuses, or the line stays down. OSError: a file cannot be read.
    """
    files = pushed_files(folder)
    # A branch without weights would be in the way of whoever reads the run meanwhile, and the store
    # of weights is one for all branches: so they go up before the branch is made.
    first = _begin(repo, PushOptions(overwrite=True))
    weights = [first.upload_shard(path) for path in files if path.suffix == _WEIGHTS]
    # Whatever the branch holds came from main, or from an earlier attempt of this run.
    options = PushOptions(
        branch=branch_of(step), commit_message=f"Save step {step}", overwrite=True
    )
    others: dict[str, bytes | Path] = {p.name: p for p in files if p.suffix != _WEIGHTS}
    result = _begin(repo, options).finish(weights, {**others, CARD_NAME: card.encode()})
    assert result.commit is not None, "this is no dry run"
    return result.commit


def _begin(repo: RunRepo, options: PushOptions) -> ModelUpload:
    hooks = PushHooks(patience=repo.patience)
    return ModelUpload.begin(
        repo.repo, options, private_inputs=False, access=repo.access, hooks=hooks
    )


class BackgroundPushes:
    """Pushes checkpoints in the order in which they were saved, while the trainer goes on.

    Args:
        repo: where to.
        folder: the trainer's output folder; links to what waits lie in it, hidden.
        prepare: called before each push, in the thread; whatever it raises fails that push.
    """

    def __init__(self, repo: RunRepo, folder: Path, prepare: Callable[[], None]) -> None:
        self._repo = repo
        self._staging = folder / _STAGING
        self._prepare = prepare
        # Not a daemon: what was begun is finished also when the training ends with an error.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="alpharl-hub-push")
        self._futures: dict[int, tuple[_Job, Future[str]]] = {}
        shutil.rmtree(self._staging, ignore_errors=True)  # of a process that was killed

    @property
    def num_waiting(self) -> int:
        """How many are not done yet."""
        return sum(not future.done() for _, future in self._futures.values())

    @property
    def staging(self) -> Path:
        """A folder for what is made only to be pushed."""
        return self._staging

    def submit(self, step: int, saved: Path, card: str) -> None:
        """Take a saved checkpoint; it may be deleted afterwards.

        Raises:
            PushError: it holds no weights. OSError: it cannot be read, or the disk is full.
        """
        staged = stage(saved, self._staging / branch_of(step))
        self._start(_Job(step, saved, card), staged)

    def submit_in_place(self, step: int, folder: Path, card: str) -> None:
        """Take a folder that nobody deletes."""
        self._start(_Job(step, folder, card), folder)

    def finish(self) -> tuple[FailedPush, ...]:
        """Wait for all; those that failed are tried once more, where the trainer still has them."""
        for job, future in list(self._futures.values()):
            if future.exception() is not None and job.saved.is_dir():
                self._start(job, job.saved)
        failed = [
            FailedPush(job.step, job.saved, _words(error))
            for job, future in self._futures.values()
            if (error := future.exception()) is not None
        ]
        self._thread.shutdown()
        shutil.rmtree(self._staging, ignore_errors=True)
        return tuple(failed)

    def _start(self, job: _Job, folder: Path) -> None:
        future = self._thread.submit(self._push, job, folder)
        self._futures[job.step] = (job, future)
        future.add_done_callback(lambda done: self._tell(job.step, done))

    def _push(self, job: _Job, folder: Path) -> str:
        try:
            self._prepare()
            return push_step(self._repo, folder, job.step, job.card)
        finally:
            if folder.parent == self._staging:
                shutil.rmtree(folder, ignore_errors=True)

    def _tell(self, step: int, done: Future[str]) -> None:
        error = done.exception()
        if error is None:
            logger.info("step %d is at %s, branch %s", step, self._repo.repo, branch_of(step))
            return
        # A bug has its place shown, and ends no training either.
        is_expected = isinstance(error, PushError | OSError)
        logger.warning(
            "step %d was not pushed: %s",
            step,
            _words(error),
            exc_info=None if is_expected else error,
        )


def _words(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
