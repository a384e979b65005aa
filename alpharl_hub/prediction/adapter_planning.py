"""Plan a prediction that is written as a LoRA adapter: which ones can be, and what is read for it.

Letters: M rows, N columns, R rank.

An adapter holds what is added to the base, as factors of rank R. What a LoRA run adds at every
step has a low rank, and so has every sum of it; of runs of whole models only the rank-R part that
alpharl puts on the base has.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from alpharl_hub.errors import FitError
from alpharl_hub.module_names import FLOATING
from alpharl_hub.output.adapter_files import AdapterOrigin, Layout, layout_of, prefix_of
from alpharl_hub.output.model_files import CopiedFile, copied_files
from alpharl_hub.output.shards import OutputFile, OutputTensor, lay_out
from alpharl_hub.prediction.planning import Decider, PredictionPlan, plan_files
from alpharl_hub.safetensors_header import DTYPE_BITS
from alpharl_hub.scope import Scope, ScopedTensor
from alpharl_hub.sources.adapters import ADAPTER_FILE
from alpharl_hub.trajectory import CheckpointContents, LowRankRef, Trajectory
from alpharl_hub.windows.plan import FROM_BASE

UPDATES_FILE = ADAPTER_FILE
"""The file of a plan whose tensors are predicted as factors; their size is known at the end."""

WHOLE_FILE = "whole.safetensors"
"""The file of a plan whose tensors go into the adapter as they are (modules_to_save, biases)."""

FULL_RUN_DTYPE = "F32"
"""Of factors on a run of whole models: R (M + N) numbers are few, and peft computes in fp32."""

_CONV1D_MODELS = frozenset({"gpt2", "openai-gpt"})
"""Models whose blocks store weights as (in, out); their files may lack "transformer." in front."""

_CONV1D_PREFIX = "transformer."

# What describes a model or runs as its code has no place beside an adapter.
_NOT_BESIDE = ("config.json", "generation_config.json")


@dataclass(frozen=True)
class AdapterWish:
    """What of the options decides the rank; the fields are those of `PredictOptions`."""

    method: str
    keep_residual: bool
    anchor: str
    damping: float
    others: str


def require_low_rank(scope: Scope, is_lora: bool, wish: AdapterWish) -> None:
    """Refuse what no adapter of low rank can hold.

    Raises:
        FitError: names the rank that would be needed, and what to change.
    """
    sides = [min(tensor.last.shape[-2:]) for tensor in scope.matrices]
    rank = f"the prediction has full rank (min(M, N) = {max(sides, default=0)})"
    if is_lora:
        if any(_is_magnified(tensor) for tensor in scope.tensors):
            raise FitError(
                f"{rank}: DoRA rescales whole matrices; leave out --as-adapter, which writes the "
                "merged model"
            )
        return
    advice = _full_run_advice(wish)
    if advice is not None:
        raise FitError(f"{rank}: leave out --as-adapter, or {advice}")
    for tensor in scope.tensors:
        _require_adaptable(tensor)


def _is_magnified(tensor: ScopedTensor) -> bool:
    refs = tensor.history or ()
    return any(isinstance(ref, LowRankRef) and ref.magnitude is not None for ref in refs)


def _full_run_advice(wish: AdapterWish) -> str | None:
    """Say what makes the prediction from whole models one of low rank; None where it is."""
    if wish.method != "alpharl":
        return "take --method alpharl"
    if wish.keep_residual:
        return "leave out --keep-residual"
    if wish.anchor != "base":
        return "take --anchor base"
    if wish.damping != 1:
        return "leave out --damping, which mixes in the last checkpoint"
    if wish.others != "base":
        return f"take --others base: --others {wish.others} changes tensors in full"
    return None


def _require_adaptable(tensor: ScopedTensor) -> None:
    name = tensor.name
    if tensor.is_matrix and (len(tensor.last.shape) == 3 or "experts" in name.split(".")):
        raise FitError(
            f"{name}: an adapter for experts is not written; leave out --as-adapter, or "
            "--exclude experts"
        )
    if tensor.last.dtype in FLOATING and (tensor.base is None or tensor.history is None):
        raise FitError(
            f"{name}: {tensor.excluded_because}, so that it is copied in full; leave out "
            "--as-adapter"
        )


def plan_adapter(
    scope: Scope, trajectory: Trajectory, decider: Decider, rank: int, dtype: str | None
) -> PredictionPlan:
    """Plan windows for what an adapter changes; nothing else is read.

    `rank` is the method's; `dtype` the code that is asked for.

    Raises:
        FitError: nothing would be predicted.
    """
    history = trajectory.history
    is_lora = history[-1].adapter is not None
    changed = [t for t in scope.tensors if t.history and decider(t).action != FROM_BASE]
    updates = [t for t in changed if t.is_update or not is_lora]
    whole = [t for t in changed if not (t.is_update or not is_lora)]
    factors = dtype or _factor_dtype(updates)
    files = [_lay_out(UPDATES_FILE, [OutputTensor(t.name, factors, t.last.shape) for t in updates])]
    if whole:
        files.append(_lay_out(WHOLE_FILE, [_whole_tensor(t, dtype) for t in whole]))
    copied = adapter_companions(history[-1], trajectory.base)
    num_bytes = sum(_update_bytes(t, rank, factors) for t in updates)
    num_bytes += sum(file.num_bytes for file in files[1:])
    return plan_files(files, changed, history, decider, copied, num_bytes)


def _factor_dtype(updates: Sequence[ScopedTensor]) -> str:
    """Return the dtype that the run's own adapters have."""
    stored = (tensor.history[-1].dtype for tensor in updates if tensor.history and tensor.is_update)
    return next(stored, FULL_RUN_DTYPE)


def _lay_out(filename: str, tensors: Sequence[OutputTensor]) -> OutputFile:
    return lay_out(filename, tensors, {"format": "pt"})


def _whole_tensor(tensor: ScopedTensor, dtype: str | None) -> OutputTensor:
    assert tensor.history is not None, "what is not compared is no part of an adapter"
    return OutputTensor(tensor.name, dtype or tensor.history[-1].dtype, tensor.last.shape)


def _update_bytes(tensor: ScopedTensor, rank: int, dtype: str) -> int:
    """Bound the bytes of a tensor's factors: a sum has at most the rank of its summands."""
    refs = [*(tensor.history or ()), *([tensor.start] if tensor.start else [])]
    ranks = [min(ref.left.shape) for ref in refs if isinstance(ref, LowRankRef)]
    rows, columns = tensor.last.shape
    bound = min(rows, columns, rank + sum(ranks))
    return bound * (rows + columns) * DTYPE_BITS[dtype] // 8


def adapter_companions(
    last: CheckpointContents, base: CheckpointContents
) -> tuple[CopiedFile, ...]:
    """Choose the files that lie beside an adapter: the tokenizer's, and no model's."""
    found = copied_files(last, base, None)
    return tuple(f for f in found if f.name not in _NOT_BESIDE and not f.name.endswith(".py"))


def adapter_origin(trajectory: Trajectory) -> AdapterOrigin:
    """Say what the adapter belongs to: a repo at a commit, or a folder that is not named."""
    base = trajectory.base.checkpoint
    return AdapterOrigin(
        base=None if base.commit is None else base.source,
        revision=base.commit,
        base_names=frozenset(trajectory.base.tensors),
        config=trajectory.last.adapter,
        prefix=_prefix(trajectory),
    )


def _prefix(trajectory: Trajectory) -> str:
    refs = [r for r in trajectory.last.tensors.values() if isinstance(r, LowRankRef)]
    if refs:
        return prefix_of(refs[0])
    names = trajectory.base.tensors
    lacks = not any(name.startswith(_CONV1D_PREFIX) for name in names)
    return _CONV1D_PREFIX if _is_conv1d(trajectory.base) and lacks else ""


def _is_conv1d(base: CheckpointContents) -> bool:
    return base.config.get("model_type") in _CONV1D_MODELS


def layouts(trajectory: Trajectory, names: Sequence[str]) -> dict[str, Layout]:
    """Return how the layer of each named tensor stores its weight."""
    refs = trajectory.last.tensors
    usual: Layout = "conv1d" if _is_conv1d(trajectory.base) else "linear"
    found: dict[str, Layout] = {}
    for name in names:
        ref = refs.get(name)
        found[name] = layout_of(ref) if isinstance(ref, LowRankRef) else usual
    return found
