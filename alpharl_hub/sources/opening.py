"""Open the trajectory of a run: list its steps, select, pin, read headers, find base and scores."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from alpharl_hub.errors import ScoreError, SourceError, TrajectoryError
from alpharl_hub.manifest import Notice
from alpharl_hub.scores.rows import MAX_TEXT_CHARS
from alpharl_hub.scores.table import (
    ScoreTable,
    parse_scores,
    require_scores,
    scores_from_trainer_state,
)
from alpharl_hub.sources.adapter_fitting import fit_to_base
from alpharl_hub.sources.adapters import moves_base
from alpharl_hub.sources.base_choice import BaseAnswer, choose_base
from alpharl_hub.sources.contents import is_adapter, open_contents, trainer_state_text
from alpharl_hub.sources.hub import HubRun, pin_place
from alpharl_hub.sources.hub_client import HubClient
from alpharl_hub.sources.hub_uri import parse_place
from alpharl_hub.sources.listing import Listing, RunSource
from alpharl_hub.sources.local_run import LocalRun, is_local, near_folder, pin_folder
from alpharl_hub.sources.patience import Patience
from alpharl_hub.sources.repeats import drop_repeats
from alpharl_hub.sources.selection import MAX_UNASKED_CHECKPOINTS, select_steps
from alpharl_hub.sources.verification import verify_weights
from alpharl_hub.strict_json import shown
from alpharl_hub.trajectory import (
    Checkpoint,
    CheckpointContents,
    CheckpointStore,
    StoredFile,
    Trajectory,
)

_OPENING_THREADS = 8
_NAMED_BY = {
    "card": "the run's card names it as base_model",
    "adapter": "adapter_config.json names it as the base",
}

MAX_ASKED_BYTES = 64 << 20
MAX_UNASKED_BYTES = 256 << 10
"""How large a trainer_state.json may be: long runs log megabytes, once for every checkpoint."""


def _ignore_progress(done_bytes: int, total_bytes: int) -> None:
    """Nobody wants to know."""


def _ignore_wait(seconds: float, reason: str) -> None:
    """Nobody wants to know."""


@dataclass(frozen=True)
class RunRequest:
    """What a user says about a run; the fields are the options of the command line.

    `at` holds (name, step) pairs. Redirects of a public Hub may lead to `allowed_hosts` though they
    are in a private network. With `verify` every weight file is read whole first and compared with
    its Hub's digest; `on_verified(done_bytes, total_bytes)` is told how far that is. `on_wait` is
    told when a busy server is waited for, and `stop` ends such a wait early.
    """

    run: str
    base: str | None = None
    steps: str | None = None
    until: str | None = None
    at: tuple[tuple[str, int], ...] = ()
    scores: Path | None = None
    score_key: str | None = None
    lower_is_better: bool = False
    keep_repeats: bool = False
    token: str | None = field(default=None, repr=False)
    allowed_hosts: frozenset[str] = frozenset()
    verify: bool = False
    on_wait: Callable[[float, str], None] = _ignore_wait
    on_verified: Callable[[int, int], None] = _ignore_progress
    stop: threading.Event = field(default_factory=threading.Event)


class Opener:
    """Opens places on one Hub and on this machine; the Hub is asked only when one is named."""

    def __init__(self, request: RunRequest) -> None:
        self._request = request
        self._client: HubClient | None = None

    def client(self) -> HubClient:
        """Return the one client of this run."""
        if self._client is None:
            request = self._request
            patience = Patience(on_wait=request.on_wait, stop=request.stop)
            self._client = HubClient(request.token, patience, allowed_hosts=request.allowed_hosts)
        return self._client

    def run(self, text: str) -> RunSource:
        """Open what RUN names."""
        if is_local(text):
            return LocalRun(text)
        with offering_near_folder(text):
            return HubRun(self.client(), parse_place(text))

    def base(self, text: str) -> tuple[Checkpoint, CheckpointStore]:
        """Open what --base, or a card, names."""
        if is_local(text):
            return pin_folder(text)
        with offering_near_folder(text):
            return pin_place(self.client(), parse_place(text))


@contextmanager
def offering_near_folder(text: str) -> Iterator[None]:
    """Where `text` names no repo that can be read, offer the folder that was perhaps meant."""
    try:
        yield
    except SourceError as error:
        near = near_folder(text) if "@" not in text else None
        if near is None:
            raise
        raise SourceError(f"{error}; did you mean the folder {near}?") from error.__cause__


def open_trajectory(request: RunRequest, opener: Opener | None = None) -> Trajectory:
    """Open a run: every checkpoint pinned, selected ones with their headers read.

    `opener`: one that has asked the Hub something before, so that it is not asked again.

    Raises:
        SourceError: something cannot be read. TrajectoryError: no steps, two families, no base.
        ScoreError: the scores asked for are not there.
    """
    opener = opener or Opener(request)
    source = opener.run(request.run)
    listing = _with_extras(source.list_steps(), source, request)
    aside = source.look_aside(listing)
    steps = [_step(c) for c in listing.checkpoints if _step(c) != 0]
    if not steps:
        raise TrajectoryError(
            f"{request.run}: step 0 is the base, and there is no other step; name a run with more"
        )
    selected = select_steps(steps, request.steps, request.until)
    chosen = [c for c in listing.checkpoints if c.step in selected]
    first = [c for c in listing.checkpoints if c.step == 0 and is_adapter(_files(source, c))]
    opened = _open_all([(c, source.open_store(c)) for c in [*first, *chosen]])
    _require_one_kind(opened)
    answer = choose_base(request.base, listing.checkpoints, opened[-1], source, request.run)
    base = _open_base(opener, answer, source)
    opened = [fit_to_base(contents, base) for contents in opened]
    start = opened.pop(0) if first else None
    _check_start(opened, start)
    kept, notices = (tuple(opened), ()) if request.keep_repeats else drop_repeats(opened)
    start = start if _has_moved_base(kept) else None
    verified = _verify(request, [base, *kept, *([start] if start else [])])
    scores = _find_scores(request, kept)
    return Trajectory(
        layout=listing.layout,
        pattern=listing.pattern,
        base=base,
        base_chosen_by=answer.chosen_by,
        listed=listing.checkpoints,
        selected_steps=selected,
        history=kept,
        scores=scores,
        private=any(contents.store.is_private() for contents in (base, *kept)),
        card=source.card_text(kept[-1].checkpoint),
        notices=(
            *(*listing.notices, *aside, *_tell_selection(request, steps, opened)),
            *(*_tell_settings(kept), *_tell_missing_scores(request, scores, kept)),
            *(*_tell_other_bases(kept), *_tell_named_base(kept[-1], base, answer), *notices),
            *verified,
        ),
        keep_repeats=request.keep_repeats,
        start=start,
    )


def _verify(request: RunRequest, contents: Sequence[CheckpointContents]) -> tuple[Notice, ...]:
    """Read and compare every weight file where that is asked for, and say what it came to."""
    if not request.verify:
        return ()
    found = verify_weights(contents, on_progress=request.on_verified, stop=request.stop)
    text = f"{found.num_files} weight files ({found.num_bytes / 1e9:.3g} GB) are what the Hub has"
    if found.unknown:
        count, first = len(found.unknown), found.unknown[0]
        nothing = f"{count} weight files could not be compared, such as {first}: no Hub has digests"
        text = f"{text}; {nothing}" if found.num_files else f"--verify: {nothing}"
    return (Notice("verified", text),)


def _files(source: RunSource, checkpoint: Checkpoint) -> Mapping[str, StoredFile]:
    return source.open_store(checkpoint).files()


def _require_one_kind(opened: Sequence[CheckpointContents]) -> None:
    """Refuse a run of which some checkpoints are adapters and some whole models."""
    adapters = [c for c in opened if c.adapter is not None]
    whole = [c for c in opened if c.adapter is None]
    if adapters and whole:
        raise TrajectoryError(
            f"{adapters[0].checkpoint.label} is an adapter and {whole[0].checkpoint.label} a whole "
            "model; choose one kind with --steps"
        )


def _tell_other_bases(history: Sequence[CheckpointContents]) -> tuple[Notice, ...]:
    """Mention adapters that name different bases; a run that was moved may do so rightly."""
    named = [c.adapter.get("base_model_name_or_path") for c in history if c.adapter is not None]
    different = sorted({str(name) for name in named if name})
    if len(different) < 2:
        return ()
    message = f"the adapters name different bases: {', '.join(different[:3])}; one is used for all"
    return (Notice("adapter_bases", message),)


def _tell_named_base(
    last: CheckpointContents, base: CheckpointContents, answer: BaseAnswer
) -> tuple[Notice, ...]:
    """Mention a base on the Hub that is another than the adapter names."""
    named = last.adapter.get("base_model_name_or_path") if last.adapter is not None else None
    source = base.checkpoint.source
    if answer.chosen_by == "adapter" or base.checkpoint.commit is None or not named:
        return ()
    if not isinstance(named, str) or named.count("/") != 1 or named == source:
        return ()
    message = f"the adapter names {named} as its base, and {source} is taken"
    return (Notice("adapter_base", message),)


def _tell_settings(history: Sequence[CheckpointContents]) -> tuple[Notice, ...]:
    """Mention adapters of one run that scale their updates differently."""
    keys = ("r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern")
    adapters = [c.adapter for c in history if c.adapter is not None]
    uneven = [key for key in keys if len({repr(a.get(key)) for a in adapters}) > 1]
    if not uneven:
        return ()
    message = f"the checkpoints' adapter configs differ in {', '.join(uneven)}: is that the run's?"
    return (Notice("adapter_settings", message),)


def _has_moved_base(history: Sequence[CheckpointContents]) -> bool:
    return any(c.adapter is not None and moves_base(c.adapter) for c in history)


def _check_start(history: Sequence[CheckpointContents], start: CheckpointContents | None) -> None:
    """Refuse a run that changed its base before step 1 and does not say how (PiSSA and its kin)."""
    for contents in history:
        if contents.adapter is None or not moves_base(contents.adapter):
            continue
        if start is None or start.adapter is None:
            start_name = shown(str(contents.adapter["init_lora_weights"]))
            raise TrajectoryError(
                f"{contents.checkpoint.label}: init_lora_weights is {start_name}, which changes "
                "the base before the first step; put the adapter of step 0 beside the others, or "
                "merge them first"
            )


def _open_base(opener: Opener, answer: BaseAnswer, source: RunSource) -> CheckpointContents:
    try:
        if answer.checkpoint is not None:
            place, store = answer.checkpoint, source.open_store(answer.checkpoint)
        else:
            assert answer.text is not None
            place, store = opener.base(answer.text)
        base = open_contents(place, store)
    except SourceError as error:
        if answer.chosen_by not in _NAMED_BY:
            raise
        raise SourceError(
            f"{error}; {_NAMED_BY[answer.chosen_by]}, --base names another"
        ) from error
    if base.adapter is not None:
        raise TrajectoryError(
            f"{place.label}: an adapter and no model; name the model that it was trained on with "
            "--base"
        )
    return base


def _step(checkpoint: Checkpoint) -> int:
    assert checkpoint.step is not None, "what is listed has a step"
    return checkpoint.step


def _with_extras(listing: Listing, source: RunSource, request: RunRequest) -> Listing:
    checkpoints = list(listing.checkpoints)
    for name, step in request.at:
        if any(c.step == step for c in checkpoints):
            raise TrajectoryError(
                f"--at {name}={step}: the run has a step {step} already; give another, or leave "
                "it out"
            )
        checkpoints.append(source.extra_checkpoint(name, step))
    if not checkpoints:
        raise source.no_steps()
    checkpoints.sort(key=_step)
    return Listing(listing.layout, listing.pattern, tuple(checkpoints), listing.notices)


def _open_all(
    places: Sequence[tuple[Checkpoint, CheckpointStore]],
) -> list[CheckpointContents]:
    with ThreadPoolExecutor(_OPENING_THREADS) as pool:
        return list(pool.map(lambda place: open_contents(*place), places))


def _tell_missing_scores(
    request: RunRequest, scores: ScoreTable | None, history: Sequence[CheckpointContents]
) -> tuple[Notice, ...]:
    """Mention scores that cannot be used because some are missing."""
    if request.scores is None or scores is None:
        return ()
    missing = [_step(c.checkpoint) for c in history if scores.at(_step(c.checkpoint)) is None]
    if not missing:
        return ()
    message = (
        f"{request.scores.name}: no score for {len(missing)} of {len(history)} checkpoints (step "
        f"{missing[0]}, ...): scores count only where every checkpoint has one"
    )
    return (Notice("scores_missing", message),)


def _tell_selection(
    request: RunRequest, steps: Sequence[int], opened: Sequence[CheckpointContents]
) -> tuple[Notice, ...]:
    if request.steps is not None or len(steps) <= MAX_UNASKED_CHECKPOINTS:
        return ()
    limit = request.until
    eligible = select_steps(steps, f"{steps[0]}-", limit)
    if len(eligible) <= len(opened):
        return ()
    total = sum(contents.num_bytes for contents in opened) / len(opened) * len(eligible)
    message = (
        f"{len(opened)} of {len(eligible)} checkpoints are used, spread evenly; "
        f"--steps {eligible[0]}- takes all ({total / 1e9:.2g} GB of weights)"
    )
    return (Notice("selection", message),)


def _find_scores(request: RunRequest, history: Sequence[CheckpointContents]) -> ScoreTable | None:
    if request.scores is not None:
        text = _read_scores(request.scores)
        table = parse_scores(text, request.scores.name, request.score_key, request.lower_is_better)
        steps = [_step(c.checkpoint) for c in history]
        if all(table.at(step) is None for step in steps):
            require_scores(table, steps)
        return table
    return _logged_scores(request, history)


def _read_scores(path: Path) -> str:
    """Read a file of scores, or the first part of one that is too long: its reader refuses it."""
    try:
        with path.open(encoding="utf-8") as file:
            return file.read(MAX_TEXT_CHARS + 1)
    except (OSError, UnicodeDecodeError) as error:
        raise ScoreError(
            f"{path}: cannot be read as text ({error}); name a file of scores"
        ) from error


def _logged_scores(request: RunRequest, history: Sequence[CheckpointContents]) -> ScoreTable | None:
    """Look for scores in trainer_state.json; what nobody asked for may be missing or broken."""
    is_asked_for = request.score_key is not None
    limit = MAX_ASKED_BYTES if is_asked_for else MAX_UNASKED_BYTES
    states = {_step(c.checkpoint): trainer_state_text(c, limit) for c in history}
    texts = {step: text for step, text in states.items() if text is not None}
    if not texts and is_asked_for:
        raise ScoreError(
            f"--score-key {request.score_key}: no checkpoint has a trainer_state.json; "
            "give the scores with --scores FILE"
        )
    try:
        return scores_from_trainer_state(texts, request.score_key, request.lower_is_better)
    except ScoreError:
        if is_asked_for:
            raise
        return None
