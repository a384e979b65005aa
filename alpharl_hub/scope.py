"""Which tensors of a trajectory can be compared, and which of them are matrices in scope."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod

from alpharl_hub.errors import TrajectoryError, did_you_mean
from alpharl_hub.manifest import Notice
from alpharl_hub.module_names import FLOATING, why_not_a_matrix
from alpharl_hub.trajectory import CheckpointContents, LowRankRef, StoredRef, TensorRef

_QUANTIZED = re.compile(
    r"(\.weight_scale(_inv|_\d)?|\.scales|\.qweight|\.qzeros|\.absmax|\.weight_packed|\.SCB)$"
)
_PREFIXES = ("module.", "_orig_mod.", "model.language_model.")
_EMBEDDINGS = ("embed_tokens.weight", "wte.weight", "embed_in.weight", "tok_embeddings.weight")
_MIN_COMMON_SHARE = 0.9
_LEFT_OUT = ("not in --include", "in --exclude")


@dataclass(frozen=True)
class ScopedTensor:
    """One tensor of the last checkpoint.

    `base` and `history` (one ref per checkpoint, the last one included) are None when it cannot be
    predicted; `excluded_because` is None exactly for the matrices in scope. Of a LoRA run `last` is
    where the base has it, `is_untouched` says that no adapter updates it, and `start` is what the
    adapter of step 0 adds, where that is not zero.
    """

    name: str
    last: TensorRef
    base: TensorRef | None
    history: tuple[StoredRef, ...] | None
    excluded_because: str | None
    is_untouched: bool = False
    start: StoredRef | None = None

    @property
    def is_matrix(self) -> bool:
        """Whether it is a matrix in scope."""
        return self.excluded_because is None

    @property
    def is_update(self) -> bool:
        """Whether the checkpoints hold what is added to the base's, in factors."""
        return any(isinstance(ref, LowRankRef) for ref in self.history or ())

    @property
    def is_left_out(self) -> bool:
        """Whether it would be a matrix in scope but for --include and --exclude."""
        return self.excluded_because in _LEFT_OUT


@dataclass(frozen=True)
class Scope:
    """All tensors of the last checkpoint in its order, and what was odd about them."""

    tensors: tuple[ScopedTensor, ...]
    notices: tuple[Notice, ...]

    @property
    def matrices(self) -> tuple[ScopedTensor, ...]:
        """The matrices in scope."""
        return tuple(tensor for tensor in self.tensors if tensor.is_matrix)


def count_matrices(tensors: Sequence[ScopedTensor]) -> int:
    """Count matrices, each of a stack."""
    return sum(prod(tensor.last.shape[:-2]) for tensor in tensors)


def find_scope(
    base: CheckpointContents,
    history: Sequence[CheckpointContents],
    include: str | None,
    exclude: str | None,
    start: CheckpointContents | None = None,
) -> Scope:
    """Compare names, shapes and dtypes of all checkpoints.

    Raises:
        TrajectoryError: a shape differs, names hardly agree, or weights are quantized.
    """
    last = history[-1]
    for contents in (base, *history):
        _refuse_quantized(contents)
    if last.adapter is not None:
        _refuse_other_targets(base, history)
    layout = last if last.adapter is None else base
    found = [_scoped(ref, base, history) for ref in _whole_tensors(layout)]
    if start is not None:
        _refuse_other_targets(base, (start, last))
        found = [replace(t, start=start.tensors.get(t.name)) for t in found]
    filtered = tuple(_filter(t, include, exclude) for t in found)
    _require_matches(found, filtered, include, exclude)
    if last.adapter is None:
        _refuse_strangers(filtered, base, last)
    return Scope(filtered, _notices(filtered, base, last))


def _whole_tensors(contents: CheckpointContents) -> list[TensorRef]:
    if contents.adapter is not None:
        raise TrajectoryError(
            f"{contents.checkpoint.label}: a LoRA adapter is no base; name the model it was put on"
        )
    return [ref for ref in contents.tensors.values() if isinstance(ref, TensorRef)]


def _refuse_other_targets(base: CheckpointContents, history: Sequence[CheckpointContents]) -> None:
    """Refuse adapters that do not all update the same tensors of the base."""
    last = history[-1]
    for contents in history:
        strange = set(contents.tensors) - set(base.tensors)
        if strange:
            raise TrajectoryError(
                f"{contents.checkpoint.label}: its adapter updates {min(strange)}, which "
                f"{base.checkpoint.label} has not; name another --base"
            )
        different = set(contents.tensors) ^ set(last.tensors)
        if different:
            raise TrajectoryError(
                f"{contents.checkpoint.label} and {last.checkpoint.label}: only one of the two "
                f"adapters updates {min(different)}; leave one out with --steps"
            )


def _refuse_quantized(contents: CheckpointContents) -> None:
    for name in contents.tensors:
        if _QUANTIZED.search(name):
            raise TrajectoryError(
                f"{contents.checkpoint.label}: {name} belongs to quantized weights; name a run "
                "whose weights are floating point"
            )


def _scoped(
    ref: TensorRef, base: CheckpointContents, history: Sequence[CheckpointContents]
) -> ScopedTensor:
    reason = why_not_a_matrix(ref.name, ref.dtype, ref.shape)
    base_ref = _base_ref(ref.name, base)
    if ref.dtype not in FLOATING:
        untouched = history[-1].adapter is not None
        return ScopedTensor(ref.name, ref, base_ref, None, reason, is_untouched=untouched)
    if base_ref is None:
        return ScopedTensor(ref.name, ref, None, None, "not in the base")
    if history[-1].adapter is not None and ref.name not in history[-1].tensors:
        return ScopedTensor(ref.name, ref, ref, None, "not in the adapter", is_untouched=True)
    refs: list[StoredRef] = []
    for contents in history:
        found = contents.tensors.get(ref.name) or _tied_head(ref.name, contents)
        if found is None:
            gap = f"missing in {contents.checkpoint.label}"
            return ScopedTensor(ref.name, ref, base_ref, None, gap)
        refs.append(found)
    for contents, other in zip((base, *history), (base_ref, *refs), strict=True):
        if history[-1].adapter is None and _has_grown(ref, other):
            return ScopedTensor(ref.name, ref, None, None, "more rows than before")
        _require_same_shape(ref, other, contents, history[-1])
        if other.dtype not in FLOATING:
            return ScopedTensor(ref.name, ref, None, None, f"{other.dtype} elsewhere")
    return ScopedTensor(ref.name, ref, base_ref, tuple(refs), reason)


def _base_ref(name: str, base: CheckpointContents) -> TensorRef | None:
    found = base.tensors.get(name) or _tied_head(name, base)
    assert not isinstance(found, LowRankRef), "a base is no adapter"
    return found


def _tied_head(name: str, contents: CheckpointContents) -> StoredRef | None:
    """Return the embedding for a head that the config ties and the files therefore leave out."""
    if not name.endswith("lm_head.weight") or contents.adapter is not None:
        return None
    config: Mapping[str, object] = contents.config
    nested = config.get("text_config")
    tied = config.get("tie_word_embeddings")
    if tied is None and isinstance(nested, dict):
        tied = nested.get("tie_word_embeddings")
    if tied is not True:
        return None
    for other, ref in contents.tensors.items():
        if other.endswith(_EMBEDDINGS):
            return ref
    return None


def _has_grown(ref: TensorRef, other: StoredRef) -> bool:
    same_rest = len(ref.shape) == len(other.shape) and ref.shape[1:] == other.shape[1:]
    return same_rest and bool(ref.shape) and ref.shape[0] > other.shape[0]


def _require_same_shape(
    ref: TensorRef, other: StoredRef, contents: CheckpointContents, last: CheckpointContents
) -> None:
    if ref.shape != other.shape:
        raise TrajectoryError(
            f"{ref.name}: shape {list(ref.shape)} in {last.checkpoint.label} but "
            f"{list(other.shape)} in {contents.checkpoint.label}; these are not one run, name "
            "another --base or leave a checkpoint out with --steps"
        )


def _filter(tensor: ScopedTensor, include: str | None, exclude: str | None) -> ScopedTensor:
    """Apply --include (only these) and --exclude to the matrices."""
    if not tensor.is_matrix:
        return tensor
    if include is not None and not _search("--include", include, tensor.name):
        return replace(tensor, excluded_because=_LEFT_OUT[0])
    if exclude is not None and _search("--exclude", exclude, tensor.name):
        return replace(tensor, excluded_because=_LEFT_OUT[1])
    return tensor


def _require_matches(
    found: Sequence[ScopedTensor],
    filtered: Sequence[ScopedTensor],
    include: str | None,
    exclude: str | None,
) -> None:
    """Refuse expressions that leave no matrix of those that there are."""
    names = [tensor.name for tensor in found if tensor.is_matrix]
    if not names or any(tensor.is_matrix for tensor in filtered):
        return
    if include is None or any(_search("--include", include, name) for name in names):
        raise TrajectoryError(
            f"--exclude {exclude}: leaves none of {len(names)} matrices; exclude fewer"
        )
    # What people look for is a part of a name, such as q_proj.
    parts = dict.fromkeys(part for name in names for part in name.split("."))
    raise TrajectoryError(
        f"--include {include}: matches none of {len(names)} names such as {names[0]}"
        f"{did_you_mean(include, parts)}"
    )


def _search(option: str, expression: str, name: str) -> bool:
    try:
        return re.search(expression, name) is not None
    except (re.error, OverflowError, RecursionError) as error:
        raise TrajectoryError(
            f"{option} {expression}: no regular expression ({error}); mend it"
        ) from error


def _refuse_strangers(
    tensors: Sequence[ScopedTensor], base: CheckpointContents, last: CheckpointContents
) -> None:
    """Stop when under 90 % of the matrices are in common: the names of both sides say why."""

    def matrices(contents: CheckpointContents) -> set[str]:
        refs = contents.tensors.values()
        return {r.name for r in refs if why_not_a_matrix(r.name, r.dtype, r.shape) is None}

    here, there = matrices(last), matrices(base)
    if not here and not there:
        raise TrajectoryError(
            f"{last.checkpoint.label}: no matrix in scope; name a run of a language model"
        )
    if len(here & there) >= _MIN_COMMON_SHARE * max(len(here), len(there)):
        return
    only_here, only_there = sorted(here - there), sorted(there - here)
    hint = next((p for p in _PREFIXES if any(p in n for n in only_here + only_there)), None)
    raise TrajectoryError(
        f"{last.checkpoint.label} and its base {base.checkpoint.label} share "
        f"{len(here & there)} of {max(len(here), len(there))} matrices: "
        f"{', '.join(only_here[:2]) or 'nothing'} here, {', '.join(only_there[:2]) or 'nothing'} "
        f"there; {f'one side carries the prefix {hint}, ' if hint else ''}name another --base"
    )


def _notices(
    tensors: Sequence[ScopedTensor], base: CheckpointContents, last: CheckpointContents
) -> tuple[Notice, ...]:
    notices: list[Notice] = []

    def tell(code: str, names: Sequence[str], what: str) -> None:
        if names:
            listed = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
            notices.append(Notice(code, f"{len(names)} {what}: {listed}"))

    base_only = [
        n for n in base.tensors if n not in last.tensors and not n.endswith("lm_head.weight")
    ]
    if last.adapter is not None:
        base_only = []
    tell("base_only", base_only, "tensors are only in the base and are left out")
    for code, start, what in (
        ("last_only", "not in the base", "tensors are not in the base and are copied"),
        ("gap", "missing in", "tensors are missing in some checkpoint and are copied"),
        ("grown", "more rows", "tensors have more rows than before and are copied"),
    ):
        tell(code, [t.name for t in tensors if (t.excluded_because or "").startswith(start)], what)
    return tuple(notices)
