"""The page of a model card: what was predicted from what, how well that may hold, how to repeat it.

Every number is about the run and the fit, read from the manifest; none is a score of the predicted
model, but for those that somebody measured and entered. Names from others pass through `markdown`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import quote

from alpharl_hub.card.checkpoints import checkpoint_table, record_label, run_label
from alpharl_hub.card.evidence import evidence
from alpharl_hub.card.licenses import LicenseChoice
from alpharl_hub.card.limits import bibtex, limits
from alpharl_hub.card.loading import has_tokenizer, how_to_load, is_adapter, listed
from alpharl_hub.card.markdown import code, fenced, number, one_line, prose, table
from alpharl_hub.card.repeat import LOOKING_BACK, how_to_repeat
from alpharl_hub.card.scores import measured_words, score_section
from alpharl_hub.manifest import (
    Manifest,
    MethodRecord,
    RunRecord,
)

_ACTIONS = {
    "predicted": "predicted by the method",
    "copied": "taken from the last observed checkpoint",
    "base": "taken from the base",
    "linear": "continued along a straight line (`--others linear`)",
}


@dataclass(frozen=True)
class Place:
    """Where the model is: the repo it goes to, or its folder's name; the branch there."""

    name: str
    branch: str


def title(place: Place) -> str:
    """Return the first line of the page."""
    return f"# {prose(place.name)}"


def sections(
    manifest: Manifest, place: Place, license_: LicenseChoice, has_picture: bool
) -> Mapping[str, str]:
    """Return what stands below the title, in its order; a section may be empty."""
    method = manifest.method
    assert method is not None, "a manifest of a model names its method"
    listed_limits = limits(method, bool(manifest.scores))
    assert manifest.card is not None, "a card is made of a manifest with its record"
    return {
        "summary": f"{_headline(manifest, method)}\n\n{_glance(manifest, method)}",
        "use": how_to_load(manifest, place.name, place.branch),
        "scores": score_section(manifest.scores),
        "how_it_was_made": _how_it_was_made(manifest, method),
        "evidence": evidence(manifest, has_picture),
        "rounding": _rounding(manifest),
        "limits": "## Limits\n\n" + "\n".join(f"- {line}" for line in listed_limits),
        "warnings": _warnings(manifest),
        "files": _files(manifest, manifest.card.files_from_base),
        "repeat": how_to_repeat(manifest.run, method),
        "license": f"## License\n\n{license_.reason}",
        "citation": "## Citation\n\n" + fenced(bibtex(method).splitlines(), "bibtex"),
    }


def _headline(manifest: Manifest, method: MethodRecord) -> str:
    run = manifest.run
    start = f"This is the RL run {run_label(run)}, which started from {record_label(run.base)},"
    return f"{start} {_how_far(run, method)}; **{_standing(manifest)}**."


def _standing(manifest: Manifest) -> str:
    if manifest.scores:
        return f"measured: {measured_words(manifest.scores)}"
    if manifest.sweep is not None:
        return "its size was chosen by the scores below, and it is not evaluated beyond them"
    return "predicted, not evaluated"


def _glance(manifest: Manifest, method: MethodRecord) -> str:
    """Put what a reader asks first into a few lines."""
    steps = [record.step for record in manifest.run.checkpoints]
    span = f"step {steps[0]}" if len(steps) == 1 else f"steps {steps[0]} to {steps[-1]}"
    what = f"LoRA adapter of rank {manifest.rank}" if is_adapter(manifest) else "model"
    counted = f"{len(steps)} checkpoint" + ("" if len(steps) == 1 else "s")
    rows = [
        ["**What**", f"a {what}, computed from checkpoints; nobody trained it"],
        ["**From**", f"{counted} of {run_label(manifest.run)} ({span})"],
        ["**Base**", record_label(manifest.run.base)],
        ["**How far**", _how_far(manifest.run, method)],
        ["**Method**", f"`{one_line(method.name)}`, [{prose(method.paper)}]({_paper(method)})"],
        ["**Evaluated**", f"{_standing(manifest)}" if manifest.scores else "no"],
    ]
    trust = manifest.trust
    if trust is not None:
        is_beyond = trust.requested is not None and trust.requested > trust.cap
        beyond = "; **this model goes beyond that**" if is_beyond else ""
        rows.append(["**Direction of the run**", f"{prose(trust.verdict)}{beyond}"])
    return table(["", ""], rows)


def _paper(method: MethodRecord) -> str:
    return quote(method.url, safe=":/")


def _how_far(run: RunRecord, method: MethodRecord) -> str:
    last = run.checkpoints[-1]
    observed = f"the last observed step {last.step}"
    if method.name in LOOKING_BACK:
        return f"averaged over its last checkpoints up to {observed}"
    if method.target_step is None:
        return f"predicted with {number(method.scale, 'g')} x the update at {observed}"
    step = f"step {number(method.target_step, 'g')}"
    if last.step:
        step += f", {number(method.target_step / last.step)} x {observed}"
    if method.target_score is None:
        return f"predicted at {step}"
    goal = number(method.target_score, "g")
    return (
        f"predicted at {step} (where a line through its scores reaches {goal}, the target that "
        "was asked for; nobody has seen this model reach it)"
    )


def _how_it_was_made(manifest: Manifest, method: MethodRecord) -> str:
    actions = Counter(tensor.action for tensor in manifest.tensors)
    done = [f"{count} {_ACTIONS.get(action, action)}" for action, count in actions.items()]
    changed = " that the adapter changes" if is_adapter(manifest) else ""
    return "\n\n".join(
        (
            "## How it was made",
            f"No training: every weight was computed from checkpoints that the run had "
            f"already written, by the method `{one_line(method.name)}` of "
            f"[{prose(method.paper)}]({_paper(method)}), with "
            f"{code(f'alpharl-hub {manifest.versions.alpharl_hub}')} and "
            f"{code(f'torch {manifest.versions.torch}')}.",
            "\n".join(f"- {line}" for line in _parameters(manifest, method)),
            f"Of {len(manifest.tensors)} tensors{changed}: {'; '.join(done)}.",
            checkpoint_table(manifest.run),
        )
    )


def _parameters(manifest: Manifest, method: MethodRecord) -> list[str]:
    stored = method.dtype or "the last checkpoint stores it"
    if method.as_adapter:
        dtypes = ", ".join(dict.fromkeys(tensor.dtype for tensor in manifest.tensors))
        stored = f"a LoRA adapter, {dtypes}"
    given: list[tuple[str, object]] = [
        ("target step", None if method.name in LOOKING_BACK else method.target_step),
        ("target score", method.target_score),
        ("scale", method.scale),
        ("fitted against the", method.response),
        ("directions kept", method.rank),
        ("kept part rescaled to the whole update's norm", method.rescale),
        ("rest of the last update kept", method.keep_residual or None),
        ("fitted on the last", method.fit_last),
        ("anchored at the", method.anchor),
        ("damping" if method.damping <= 1 else "size", method.damping),
        ("tensors out of the method's scope from", method.others),
        ("stored as", stored),
    ]
    return [f"{label}: {_value(value)}" for label, value in given if value is not None]


def _value(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return number(value, "g") if isinstance(value, float) else prose(str(value))


def _rounding(manifest: Manifest) -> str:
    rounding = manifest.rounding
    if rounding is None or rounding.loss is None:
        return ""
    text = (
        f"## Rounding\n\nStoring the weights as {_stored_dtypes(manifest)} lost "
        f"{number(100 * rounding.loss, '.2g')} % of the norm of the predicted update."
    )
    if rounding.unchanged is not None:
        text += f" {number(100 * rounding.unchanged, '.2g')} % of the entries equal the base's."
    return text


def _stored_dtypes(manifest: Manifest) -> str:
    return ", ".join(code(dtype) for dtype in dict.fromkeys(t.dtype for t in manifest.tensors))


def _files(manifest: Manifest, from_base: bool) -> str:
    source = "base" if from_base else "last observed checkpoint"
    names = list(manifest.copied_files)
    words = f"Copied from the {source}: {listed(names)}." if names else "No other files."
    if manifest.method is not None and manifest.method.dtype and not is_adapter(manifest):
        words += " `config.json` was changed to name the dtype."
    tokenizer = (
        f"The tokenizer is the one stored with the {source}."
        if has_tokenizer(manifest)
        else "No tokenizer was stored with it; use the one of the base."
    )
    stored = f"Weights are stored as {_stored_dtypes(manifest)}."
    return f"## Files\n\n{stored} {words} {tokenizer}"


def _warnings(manifest: Manifest) -> str:
    if not manifest.warnings:
        return ""
    lines = [f"- {code(notice.code)}: {prose(notice.message)}" for notice in manifest.warnings]
    return "## What the tool warned of\n\n" + "\n".join(lines)
