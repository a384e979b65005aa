"""Answer `compare`: how far one model is from another, in units of the update of the second.

Letters: A the first model, B the second, C the base of B.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from alpharl_hub.errors import (
    AlphaRLError,
    FitError,
    ManifestError,
    SourceError,
    TrajectoryError,
)
from alpharl_hub.executors.local import WindowReads
from alpharl_hub.manifest import MANIFEST_NAME, CheckpointRecord, Notice, read_manifest
from alpharl_hub.module_names import FLOATING, layer_and_group
from alpharl_hub.numerics.difference import (
    DifferenceSums,
    add_differences,
    are_finite,
    difference_sums,
)
from alpharl_hub.results import SCHEMA, ComparedModel, Comparison, GroupDifference
from alpharl_hub.sources.contents import open_contents
from alpharl_hub.sources.local_run import is_local, require_folder
from alpharl_hub.sources.opening import Opener, RunRequest
from alpharl_hub.sources.recorded import open_recorded
from alpharl_hub.sources.step_names import PLACEHOLDER
from alpharl_hub.trajectory import (
    Checkpoint,
    CheckpointContents,
    CheckpointStore,
    TensorRef,
    Trajectory,
)
from alpharl_hub.windows.devices import choose_devices, fit_workers
from alpharl_hub.windows.plan import BASE, WINDOW_BYTES, Part, Window, group_by_bytes
from alpharl_hub.windows.streaming import Compute, Hooks, Reading, stream

_FIRST, _SECOND = 0, 1
_COMPARED = "compared"
_MAX_MANIFEST_BYTES = 64 << 20
_POOLED = "all"


@dataclass(frozen=True)
class CompareRequest:
    """Two models and their base, each a repo on the Hub or a folder, as typed.

    `allowed_hosts` as in `RunRequest`. `on_wait` is told when a busy server is waited for, and
    `stop` ends such a wait early.
    """

    first: str
    second: str
    base: str | None = None
    token: str | None = field(default=None, repr=False)
    allowed_hosts: frozenset[str] = frozenset()
    on_wait: Callable[[float, str], None] = lambda seconds, reason: None
    stop: threading.Event = field(default_factory=threading.Event)


@dataclass(frozen=True)
class OpenedModels:
    """The models with their headers read; `base_chosen_by` is option, manifest or None."""

    first: CheckpointContents
    second: CheckpointContents
    base: CheckpointContents | None
    base_chosen_by: str | None
    notices: tuple[Notice, ...]


@dataclass(frozen=True)
class _Pairing:
    """Which tensors meet: (name, A's, B's, C's or None), and which have nobody to meet."""

    pairs: tuple[tuple[str, TensorRef, TensorRef, TensorRef | None], ...]
    only_in_first: tuple[str, ...]
    only_in_second: tuple[str, ...]
    not_in_base: tuple[str, ...]
    not_floating: tuple[str, ...]


@dataclass(frozen=True)
class PartDifference:
    """The sums over one part of a tensor."""

    tensor: str
    sums: DifferenceSums


def open_models(request: CompareRequest) -> OpenedModels:
    """Open two models, and the base: the one named, else the one in an alpharl.json on the Hub.

    Raises:
        SourceError, HeaderError: something cannot be read.
        TrajectoryError: adapters or quantized weights.
    """
    opener = Opener(
        RunRequest(
            request.first,
            token=request.token,
            allowed_hosts=request.allowed_hosts,
            on_wait=request.on_wait,
            stop=request.stop,
        )
    )
    first, second = _open(opener, request.first), _open(opener, request.second)
    if request.base is not None:
        return OpenedModels(first, second, _open(opener, request.base), "option", ())
    base: CheckpointContents | None = None
    notices: tuple[Notice, ...] = ()
    for contents in (second, first):
        if base is None:
            base, found = _recorded_base(opener, contents)
            notices = (*notices, *found)
    return OpenedModels(first, second, base, None if base is None else "manifest", notices)


def _open(opener: Opener, text: str) -> CheckpointContents:
    if PLACEHOLDER in text:
        raise SourceError(f"{text}: one model is compared with one; put a number for {PLACEHOLDER}")
    if is_local(text):
        require_folder(Path(text).expanduser(), text)
    contents = open_contents(*opener.base(text))
    if contents.adapter is not None:
        raise TrajectoryError(
            f"{contents.checkpoint.label}: an adapter, which holds no whole model to compare; "
            "merge it into its base first (peft: merge_and_unload)"
        )
    return contents


def _recorded_base(
    opener: Opener, contents: CheckpointContents
) -> tuple[CheckpointContents | None, tuple[Notice, ...]]:
    """Open the base that a predicted model's manifest names on a Hub; nobody asked for it."""
    stored = contents.store.files().get(MANIFEST_NAME)
    if stored is None or stored.num_bytes > _MAX_MANIFEST_BYTES:
        return None, ()
    buffer = bytearray(stored.num_bytes)
    where = f"{contents.checkpoint.label}: {MANIFEST_NAME}"
    try:
        contents.store.read_into(MANIFEST_NAME, 0, memoryview(buffer))
        record = read_manifest(bytes(buffer), where).run.base
        if record.commit is None:
            return None, ()
        (base,) = open_recorded([record], opener.client, _refuse_local)
    except AlphaRLError as error:
        message = f"the base that {where} names is not read ({error}); --base names one"
        return None, (Notice("recorded_base", message),)
    return base, ()


def _refuse_local(record: CheckpointRecord) -> tuple[Checkpoint, CheckpointStore]:
    raise ManifestError(f"{record.source} is a folder that only its user can name")


def compare(models: OpenedModels, compute: Compute, hooks: Hooks) -> Comparison:
    """Read both models, and the base, once and add up how they differ.

    Raises:
        TrajectoryError: a shape differs, or the models have no tensor in common.
        ResourceError: memory does not suffice; told before anything is read.
        SourceError, FitError: something cannot be read, or holds NaN.
    """
    pairing = _pair(models)
    windows = _plan(pairing)
    workers = fit_workers(windows, choose_devices(compute.devices), 0, 0, compute.memory_bytes)
    trajectory = _as_trajectory(models)
    work = WindowComparer([c.checkpoint.label for c in (*trajectory.history, trajectory.base)])
    reading = Reading(workers.devices, hooks)
    results = stream(trajectory, windows, work, reading, PartDifference)
    found = [part for i in sorted(results) for part in results[i]]
    comparison = _make_comparison(models, pairing, found)
    return replace(comparison, warnings=(*comparison.warnings, *reading.moved.notices))


class WindowComparer:
    """Adds up the parts of windows; one object serves all workers. `labels` are for errors."""

    def __init__(self, labels: Sequence[str]) -> None:
        self._labels = labels

    def __call__(self, reads: WindowReads, device: str) -> tuple[PartDifference, ...]:
        """Do one window on one device."""
        found = dict(reads.readings)
        results = []
        for place, part in enumerate(reads.window.parts):
            sides = {position: found[position][place][0] for position in part.reads}
            for position, stored in sides.items():
                if not are_finite(stored):
                    raise FitError(
                        f"{self._labels[position]}: {part.tensor} holds NaN or Inf, which is no "
                        "distance from anything; mend that model"
                    )
            sums = difference_sums(sides[_FIRST], sides[_SECOND], sides.get(BASE))
            results.append(PartDifference(part.tensor, sums))
        return tuple(results)


def _pair(models: OpenedModels) -> _Pairing:
    first, second, base = models.first, models.second, models.base
    pairs = []
    not_in_base, not_floating = [], []
    for name, there in second.tensors.items():
        here = first.tensors.get(name)
        if here is None:
            continue
        if here.shape != there.shape:
            raise TrajectoryError(
                f"{name}: shape {list(here.shape)} in {first.checkpoint.label} but "
                f"{list(there.shape)} in {second.checkpoint.label}; only models of one "
                "architecture can be compared"
            )
        if here.dtype not in FLOATING or there.dtype not in FLOATING:
            not_floating.append(name)
            continue
        origin = None if base is None else base.tensors.get(name)
        if origin is not None and (origin.shape != there.shape or origin.dtype not in FLOATING):
            origin = None
        if base is not None and origin is None:
            not_in_base.append(name)
        pairs.append(
            (name, _whole(here), _whole(there), None if origin is None else _whole(origin))
        )
    if not pairs:
        raise TrajectoryError(
            f"{first.checkpoint.label} and {second.checkpoint.label} have no floating tensor in "
            "common; name two models of one architecture"
        )
    if base is not None and len(not_in_base) == len(pairs):
        raise TrajectoryError(
            f"{base.checkpoint.label} has none of their tensors; name another --base"
        )
    return _Pairing(
        tuple(pairs),
        tuple(name for name in first.tensors if name not in second.tensors),
        tuple(name for name in second.tensors if name not in first.tensors),
        tuple(not_in_base),
        tuple(not_floating),
    )


def _whole(ref: object) -> TensorRef:
    assert isinstance(ref, TensorRef), "adapters were refused"
    return ref


def _plan(pairing: _Pairing) -> tuple[Window, ...]:
    """Cut the tensors into windows; entries do not meet, so that large tensors are cut too."""
    parts: list[Part] = []
    for name, first, second, base in pairing.pairs:
        refs = {_FIRST: first, _SECOND: second, **({} if base is None else {BASE: base})}
        entry_bytes = max(ref.num_bytes // max(1, ref.num_elements) for ref in refs.values())
        run_elements = WINDOW_BYTES // max(1, entry_bytes)
        for start in range(0, first.num_elements, run_elements):
            count = min(run_elements, first.num_elements - start)
            reads = {position: _run(ref, start, count) for position, ref in refs.items()}
            parts.append(
                # Probed parts are those of which three readings are held at a time.
                Part(name, name, (count,), _COMPARED, True, reads, None, first.shape, start)
            )
    return tuple(Window(i, group) for i, group in enumerate(group_by_bytes(parts)))


def _run(ref: TensorRef, first: int, count: int) -> TensorRef:
    """Take entries that lie together; floating dtypes have whole bytes."""
    entry_bytes = ref.num_bytes // ref.num_elements
    start = ref.start + first * entry_bytes
    return replace(ref, shape=(count,), start=start, stop=start + count * entry_bytes)


def _as_trajectory(models: OpenedModels) -> Trajectory:
    """Make what a reading takes, with A and B as its history.

    Without a base nothing is read at position BASE, so that B may stand there.
    """
    return Trajectory(
        layout="single",
        pattern="",
        base=models.second if models.base is None else models.base,
        base_chosen_by=models.base_chosen_by or "",
        listed=(),
        selected_steps=(),
        history=(models.first, models.second),
        scores=None,
        private=False,
        card=None,
        notices=models.notices,
    )


def _make_comparison(
    models: OpenedModels, pairing: _Pairing, parts: Sequence[PartDifference]
) -> Comparison:
    by_tensor: dict[str, list[DifferenceSums]] = {}
    for part in parts:
        by_tensor.setdefault(part.tensor, []).append(part.sums)
    by_group: dict[str, list[DifferenceSums]] = {}
    for name, sums in by_tensor.items():
        by_group.setdefault(layer_and_group(name)[1], []).append(add_differences(sums))
    pooled = [sums for group in by_group.values() for sums in group]
    return Comparison(
        schema=SCHEMA,
        first=_describe(models.first),
        second=_describe(models.second),
        base=None if models.base is None else _describe(models.base),
        base_chosen_by=models.base_chosen_by,
        groups=tuple(_difference(group, sums) for group, sums in by_group.items()),
        pooled=_difference(_POOLED, pooled),
        only_in_first=pairing.only_in_first,
        only_in_second=pairing.only_in_second,
        not_in_base=pairing.not_in_base,
        not_floating=pairing.not_floating,
        warnings=models.notices,
    )


def _describe(contents: CheckpointContents) -> ComparedModel:
    place = contents.checkpoint
    return ComparedModel(place.source, place.revision, place.commit, place.folder, contents.dtype)


def _difference(group: str, tensors: Sequence[DifferenceSums]) -> GroupDifference:
    sums = add_differences(tensors)
    updates = sums.updates
    return GroupDifference(
        group=group,
        num_tensors=len(tensors),
        num_entries=sums.num_entries,
        equal_share=sums.equal_share,
        error_of_weights=sums.error,
        error_of_update=None if updates is None else updates.error,
        cosine_of_updates=None if updates is None else updates.cosine,
        length_of_update=None if updates is None else updates.length,
    )
