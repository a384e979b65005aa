"""An adapter and the base that it belongs to: names, orientation, ties and frozen copies."""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from dataclasses import replace

from alpharl_hub.errors import TrajectoryError
from alpharl_hub.module_names import layer_and_group
from alpharl_hub.sources.adapters import BASE_COPY, transpose_ref
from alpharl_hub.trajectory import CheckpointContents, LowRankRef, StoredRef, TensorRef

_HEADS = ("lm_head.weight", "embed_out.weight")
_EMBEDDINGS = ("embed_tokens.weight", "wte.weight", "embed_in.weight", "tok_embeddings.weight")
_SAMPLE_ENTRIES = 4096
_ENTRY_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}
_UNPACKED = {"F64": "d", "F32": "f", "F16": "e"}


def fit_to_base(contents: CheckpointContents, base: CheckpointContents) -> CheckpointContents:
    """Name and turn the updates of an adapter as the base stores its tensors.

    Base files may lack a first component (GPT-2's are "h.0..." in the file and "transformer.h.0..."
    in the model), and layers that store (in, out) are told by their shape, because one config
    serves Linear and Conv1D layers. Anything but an adapter is returned as it is.

    Raises:
        TrajectoryError: a tensor that the base does not have, another shape, a tied head or
            embedding of which only one was trained, a base weight that was changed.
    """
    if contents.adapter is None:
        return contents
    named = {_name_in(base, name, contents): ref for name, ref in contents.tensors.items()}
    _settle_ties(named, contents, base)
    for name in [name for name in named if name.endswith(BASE_COPY)]:
        _check_copy(named.pop(name), name.removesuffix(BASE_COPY) + ".weight", contents, base)
    block_turned = _orientation_of_blocks(named, base)
    fitted: dict[str, StoredRef] = {}
    for name, ref in named.items():
        if isinstance(ref, LowRankRef):
            fitted[name] = _fit(replace(ref, name=name), base, contents, block_turned)
        else:
            fitted[name] = replace(ref, name=name)
    return replace(contents, tensors=fitted)


def _name_in(base: CheckpointContents, name: str, contents: CheckpointContents) -> str:
    """Find the base's name of a model's tensor; a head that the base ties keeps its own."""
    is_copy = name.endswith(BASE_COPY)
    plain = name.removesuffix(BASE_COPY) + ".weight" if is_copy else name
    for candidate in (plain, plain.partition(".")[2]):
        if candidate in base.tensors:
            return candidate.removesuffix(".weight") + BASE_COPY if is_copy else candidate
    if plain.endswith(_HEADS):
        return name
    raise TrajectoryError(
        f"{contents.checkpoint.label}: its adapter changes {plain}, which "
        f"{base.checkpoint.label} does not have; name another --base"
    )


def tied_head(name: str, contents: CheckpointContents, base: CheckpointContents) -> str | None:
    """Return the head that an adapter of the run must hold beside this embedding; None for none.

    Peft stores both sides of a pair that it keeps tied.
    """
    stays_tied = bool((contents.adapter or {}).get("ensure_weight_tying")) and is_tied(base)
    return _HEADS[0] if stays_tied and name.endswith(_EMBEDDINGS) else None


def _settle_ties(
    named: dict[str, StoredRef], contents: CheckpointContents, base: CheckpointContents
) -> None:
    """Refuse an adapter that pulls a tied head and embedding apart: no tied model can hold it.

    What peft writes of the head of a model that stays tied says what the embedding's says, and
    leaves `named`.
    """
    if not is_tied(base):
        return
    embedding = next((n for n in named if n.endswith(_EMBEDDINGS)), None)
    head = next((n for n in named if n.endswith(_HEADS)), None)
    stays_tied = bool((contents.adapter or {}).get("ensure_weight_tying"))
    if embedding is not None and head is not None:
        one, other = named[embedding], named[head]
        if isinstance(one, TensorRef) and isinstance(other, TensorRef):
            stays_tied = stays_tied or _samples(contents, one) == _samples(contents, other)
    if (embedding is not None or head is not None) and not (stays_tied and embedding is not None):
        raise TrajectoryError(
            f"{contents.checkpoint.label}: its adapter trains {embedding or head} apart from its "
            f"twin, but {base.checkpoint.label} ties embedding and head; merge it into an untied "
            "model first (peft: merge_and_unload)"
        )
    for name in [n for n in named if n.replace(BASE_COPY, ".weight").endswith(_HEADS)]:
        del named[name]


def is_tied(base: CheckpointContents) -> bool:
    """Whether one tensor serves as embedding and head; many configs leave their default out."""
    nested = base.config.get("text_config")
    places = (base.config, nested if isinstance(nested, dict) else {})
    if any(place.get("tie_word_embeddings") is True for place in places):
        return True
    return not any(name.endswith(_HEADS) for name in base.tensors)


def _orientation_of_blocks(named: Mapping[str, StoredRef], base: CheckpointContents) -> bool | None:
    """Whether the layers of the blocks turn out the other way round than the config says.

    Told by those that are not square; None when they are all square. Peft keeps one
    fan_in_fan_out, that of the layer it met last: a LoRA on GPT-2's Conv1D layers and on its
    Linear head has the head's.
    """
    turned = set()
    for name, ref in named.items():
        stored = base.tensors.get(name)
        if isinstance(ref, LowRankRef) and stored is not None and _is_block_matrix(name, ref):
            if stored.shape == ref.shape[::-1]:
                turned.add(True)
            elif stored.shape == ref.shape:
                turned.add(False)
    return turned.pop() if len(turned) == 1 else None


def _is_block_matrix(name: str, ref: LowRankRef) -> bool:
    return ref.shape[0] != ref.shape[1] and layer_and_group(name)[0] is not None


def _fit(
    ref: LowRankRef,
    base: CheckpointContents,
    contents: CheckpointContents,
    block_turned: bool | None,
) -> LowRankRef:
    stored = base.tensors[ref.name]
    is_square = ref.shape[0] == ref.shape[1]
    is_in_block = layer_and_group(ref.name)[0] is not None
    is_embedding = "lora_embedding_" in ref.left.name
    turn = bool(block_turned) and is_in_block if is_square else ref.shape != stored.shape
    fitted = transpose_ref(ref) if turn and not is_embedding else ref
    if fitted.shape != stored.shape:
        raise TrajectoryError(
            f"{contents.checkpoint.label}: its adapter changes {ref.name} as {list(ref.shape)}, "
            f"but it is {list(stored.shape)} in {base.checkpoint.label}; name another --base"
        )
    if ref.magnitude is not None:
        length = fitted.shape[1] if fitted.transposed else fitted.shape[0]
        if ref.magnitude.num_elements != length:
            raise TrajectoryError(
                f"{contents.checkpoint.label}: {ref.magnitude.name} has "
                f"{ref.magnitude.num_elements} entries where {length} are needed; store it again"
            )
    return fitted


def _check_copy(
    copy: StoredRef, name: str, contents: CheckpointContents, base: CheckpointContents
) -> None:
    """Compare a frozen weight that was saved beside its LoRA with the base's, at three places.

    It says nothing new unless somebody resized the vocabulary or trained it too.
    """
    stored = base.tensors.get(name)
    assert isinstance(copy, TensorRef), "a frozen copy is a whole tensor"
    if not isinstance(stored, TensorRef) or not _agree(contents, copy, base, stored):
        raise TrajectoryError(
            f"{contents.checkpoint.label}: its adapter brings a {name} of its own beside the LoRA "
            f"on it, and {base.checkpoint.label} has another; merge it into its base first (peft: "
            "merge_and_unload)"
        )


def _agree(
    contents: CheckpointContents, copy: TensorRef, base: CheckpointContents, stored: TensorRef
) -> bool:
    if copy.shape != stored.shape:
        return False
    # A copy in fewer bits than the base was rounded when the base was loaded.
    exact = _ENTRY_BYTES.get(copy.dtype, 0) >= _ENTRY_BYTES.get(stored.dtype, 0)
    tolerance = 0.0 if exact and copy.dtype in ("F32", "F64", stored.dtype) else 2.0**-7
    pairs = zip(_samples(contents, copy), _samples(base, stored), strict=True)
    return all(math.isclose(a, b, rel_tol=tolerance, abs_tol=tolerance * 1e-4) for a, b in pairs)


def _samples(contents: CheckpointContents, ref: TensorRef) -> tuple[float, ...]:
    """Read entries at the start, in the middle and at the end of a floating tensor."""
    size = _ENTRY_BYTES.get(ref.dtype)
    if size is None:
        raise TrajectoryError(
            f"{contents.checkpoint.label}: {ref.name} is {ref.dtype}; name a run whose weights are "
            "floating point"
        )
    count = min(_SAMPLE_ENTRIES, ref.num_elements)
    found: list[float] = []
    for first in sorted({0, (ref.num_elements - count) // 2, ref.num_elements - count}):
        buffer = bytearray(count * size)
        path = contents.path_of(ref.filename)
        contents.store.read_into(path, ref.start + first * size, memoryview(buffer))
        if ref.dtype == "BF16":
            words = struct.unpack(f"<{count}H", buffer)
            buffer = bytearray(struct.pack(f"<{count}I", *(word << 16 for word in words)))
        found.extend(struct.unpack(f"<{count}{_UNPACKED.get(ref.dtype, 'f')}", buffer))
    return tuple(found)
