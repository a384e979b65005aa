"""From what the workers found to what the manifest says."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import median

from alpharl_hub.manifest import Notice, RoundingRecord, TensorRecord, TrustRecord
from alpharl_hub.methods.correction import Rounding, add_roundings
from alpharl_hub.module_names import layer_and_group
from alpharl_hub.numerics import direction
from alpharl_hub.numerics.direction import DirectionSums, Trust
from alpharl_hub.output.shards import OutputFile
from alpharl_hub.prediction.window_work import PartResult
from alpharl_hub.results import TensorAction

LOW_SHARE = 0.5
HIGH_ROUNDING_LOSS = 0.3
"""Where small real runs began to lose by it; below these lines nothing was seen to suffer."""


def pool_trust(sums: Sequence[DirectionSums], steps_T: Sequence[int], middle: int) -> Trust:
    """Read the direction of the run from the sums of all matrices."""
    return direction.pool(sums, steps_T, middle)


def trust_record(trust: Trust, middle_step: int | None, requested: float | None) -> TrustRecord:
    """Write the reading down, with its one line for people."""
    return TrustRecord(
        cosine=trust.cosine,
        cosine_all_entries=trust.cosine_all_entries,
        share_of_entries=trust.share_of_entries,
        floor=trust.floor,
        speed=trust.speed,
        middle_step=middle_step,
        cap=trust.cap,
        requested=requested,
        verdict=direction.verdict(trust, requested),
    )


def ask_of(record: TrustRecord, requested: float | None) -> TrustRecord:
    """Put another request to a reading that was written down before."""
    trust = Trust(
        cosine=record.cosine,
        cosine_all_entries=record.cosine_all_entries,
        share_of_entries=record.share_of_entries,
        floor=record.floor,
        speed=record.speed,
        cap=record.cap,
    )
    return trust_record(trust, record.middle_step, requested)


def beyond_notice(trust: TrustRecord | None) -> tuple[Notice, ...]:
    """Warn when the target lies farther ahead than the run's direction is taken to carry."""
    if trust is None or trust.requested is None or trust.requested <= max(trust.cap, 1.0) + 1e-9:
        return ()
    message = (
        f"the target is {trust.requested:.2g} x the last step, and the run's direction is taken to "
        f"carry to {trust.cap:.2g} x: evaluate it beside the last checkpoint"
    )
    return (Notice("beyond_trust", message),)


def share_notice(shares: Sequence[float | None]) -> tuple[Notice, ...]:
    """Warn when the first direction holds less than half of the update."""
    present = [share for share in shares if share is not None]
    if not present or median(present) >= LOW_SHARE:
        return ()
    message = (
        f"the first direction holds {median(present):.0%} of the update (median): rank-1 methods "
        "lose the rest, linear ones do not"
    )
    return (Notice("low_rank1_share", message),)


def rounding_notice(rounding: RoundingRecord | None) -> tuple[Notice, ...]:
    """Warn when storing the weights loses much of the predicted update."""
    if rounding is None or rounding.loss is None or rounding.loss <= HIGH_ROUNDING_LOSS:
        return ()
    message = (
        f"storing the result loses {rounding.loss:.0%} of the norm of its update to rounding; "
        "--dtype float32 keeps it"
    )
    return (Notice("rounding_loss", message),)


def pool_rounding(results: Sequence[PartResult], number: int) -> RoundingRecord | None:
    """Pool the rounding of the whole model that is made for goal `number`."""
    pooled = add_roundings(_roundings(results, number))
    return None if pooled is None else RoundingRecord(pooled.loss, pooled.unchanged)


def _roundings(parts: Sequence[PartResult], number: int) -> list[Rounding]:
    found = [part.roundings[number] for part in parts]
    return [rounding for rounding in found if rounding is not None]


def tensor_records(
    results: Sequence[PartResult], files: Sequence[OutputFile], number: int
) -> tuple[TensorRecord, ...]:
    """Write down what was done to each tensor, runs of entries put together.

    Of a stack that was taken apart there is a record for each of its matrices.
    """
    by_tensor: dict[str, dict[str, list[PartResult]]] = {}
    for result in results:
        by_tensor.setdefault(result.tensor, {}).setdefault(result.name, []).append(result)
    return tuple(
        _tensor_record(parts, ref.dtype, ref.shape if name == ref.name else parts[0].shape, number)
        for file in files
        for ref in file.tensors
        for name, parts in by_tensor[ref.name].items()
    )


def _tensor_record(
    parts: Sequence[PartResult], dtype: str, shape: tuple[int, ...], number: int
) -> TensorRecord:
    quality = parts[0].quality
    rounding = add_roundings(_roundings(parts, number))
    return TensorRecord(
        name=parts[0].name,
        action=parts[0].action,
        dtype=dtype,
        shape=shape,
        sigma=quality.sigma if quality else None,
        frobenius=quality.frobenius if quality else None,
        rank1_share=quality.rank1_share if quality else None,
        q2_step=quality.q2_step if quality else None,
        q2_score=quality.q2_score if quality else None,
        r2_step_in_sample=quality.r2_step_in_sample if quality else None,
        certified=quality.certified if quality else None,
        rounding_loss=rounding.loss if rounding else None,
        unchanged=rounding.unchanged if rounding else None,
    )


def summarise_actions(tensors: Sequence[TensorRecord]) -> tuple[TensorAction, ...]:
    """Sum up what was done to which tensors, the most weights first."""
    by_action: dict[str, list[TensorRecord]] = {}
    for tensor in tensors:
        by_action.setdefault(tensor.action, []).append(tensor)
    found = [
        TensorAction(
            action=action,
            num_tensors=len(some),
            num_entries=sum(math.prod(tensor.shape) for tensor in some),
            groups=tuple(dict.fromkeys(layer_and_group(tensor.name)[1] for tensor in some)),
        )
        for action, some in by_action.items()
    ]
    return tuple(sorted(found, key=lambda one: -one.num_entries))
