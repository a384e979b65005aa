"""The page of a model card: what was predicted from what, how well that may hold, how to repeat it.

Every number is about the run and the fit, read from the manifest; none is a score of the predicted
model. Names from others pass through `markdown`.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from statistics import median
from urllib.parse import quote

from alpharl_hub.card.licenses import LicenseChoice
from alpharl_hub.card.limits import bibtex, limits
from alpharl_hub.card.loading import has_tokenizer, how_to_load, is_adapter, listed
from alpharl_hub.card.markdown import ABSENT, code, fenced, link, number, one_line, prose, table
from alpharl_hub.card.repeat import LOOKING_BACK, how_to_repeat, run_repo
from alpharl_hub.manifest import (
    MANIFEST_NAME,
    AutoRecord,
    CheckpointRecord,
    Manifest,
    MethodRecord,
    RunRecord,
    SweepRecord,
    TensorRecord,
    TrustRecord,
)
from alpharl_hub.module_names import layer_and_group

_MAX_ROWS = 40
_MAX_LAYERS = 100
_ACTIONS = {
    "predicted": "predicted by the method",
    "copied": "taken from the last observed checkpoint",
    "base": "taken from the base",
    "linear": "continued along a straight line (`--others linear`)",
}


@dataclass(frozen=True)
class CardFacts:
    """What the card needs and the manifest does not hold.

    `model_name` is the repo it will be pushed to, or the name of its folder. `run_card` and
    `base_card` are the texts of those README.md, for license, language and data sets.
    `files_from_base`: the copied files are the base's.
    """

    model_name: str
    license_override: str | None = None
    run_card: str | None = None
    base_card: str | None = None
    branch: str = "main"
    files_from_base: bool = False


def page(manifest: Manifest, facts: CardFacts, license_: LicenseChoice) -> str:
    """Return the page below the front matter."""
    assert manifest.method is not None, "a manifest of a model names its method"
    parts = [
        f"# {prose(facts.model_name)}",
        _headline(manifest),
        how_to_load(manifest, facts.model_name, facts.branch),
        _how_it_was_made(manifest, manifest.method),
        "## Can it be trusted?\n\n" + _trust(manifest.trust),
        _auto(manifest.auto),
        _sweep(manifest.sweep),
        _fit(manifest.tensors),
        _rounding(manifest),
        _files(manifest, facts),
        _warnings(manifest),
        "## Limits\n\n" + "\n".join(f"- {line}" for line in limits(manifest.method)),
        f"## License\n\n{license_.reason}",
        how_to_repeat(manifest.run, manifest.method),
        "## Citation\n\n" + fenced(bibtex(manifest.method).splitlines(), "bibtex"),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _run_label(run: RunRecord) -> str:
    repo = run_repo(run)
    if repo is not None:
        return link(code(repo), repo)
    return code(run.pattern or run.checkpoints[-1].source)


def _record_label(record: CheckpointRecord) -> str:
    if record.commit is None:
        return code(record.source)
    return link(code(record.source), record.source)


def _headline(manifest: Manifest) -> str:
    run, method = manifest.run, manifest.method
    assert method is not None, "a manifest of a model names its method"
    start = f"This is the RL run {_run_label(run)}, which started from {_record_label(run.base)},"
    standing = "predicted, not evaluated"
    if manifest.sweep is not None:
        standing = "its size was chosen by the scores below, and it is not evaluated beyond them"
    return f"{start} {_how_far(run, method)}; **{standing}**."


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
            f"[{prose(method.paper)}]({quote(method.url, safe=':/')}), with alpharl-hub "
            f"{prose(manifest.versions.alpharl_hub)} and torch {prose(manifest.versions.torch)}.",
            "\n".join(f"- {line}" for line in _parameters(manifest, method)),
            f"Of {len(manifest.tensors)} tensors{changed}: {'; '.join(done)}.",
            _checkpoint_table(manifest.run),
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


def _checkpoint_table(run: RunRecord) -> str:
    scored = run.score_name is not None
    header = ["step", "checkpoint", "content"]
    if scored:
        header.append(f"its score ({code(run.score_name or '')})")
    shown = [run.base, *run.checkpoints]
    rows = [_checkpoint_row(record, record is run.base, scored) for record in shown]
    if len(rows) > _MAX_ROWS:
        half = _MAX_ROWS // 2
        gap = ["…", f"{len(rows) - 2 * half} more in `{MANIFEST_NAME}`", *["…"] * (len(header) - 2)]
        rows = [*rows[:half], gap, *rows[-half:]]
    return table(header, rows)


def _checkpoint_row(record: CheckpointRecord, is_base: bool, scored: bool) -> list[str]:
    step = ABSENT if record.step is None else str(record.step)
    where = record.source if record.revision is None else f"{record.source}@{record.revision}"
    label = code(f"{where}/{record.folder}" if record.folder else where)
    if record.commit is not None:
        label = link(label, record.source, "tree", record.commit, record.folder)
        content = f"commit {code(record.commit[:12])}"
    else:
        content = f"fingerprint {code((record.fingerprint or '')[:12])}"
    row = [f"{step} (base)" if is_base else step, label, content]
    return [*row, number(record.score)] if scored else row


def _trust(trust: TrustRecord | None) -> str:
    if trust is None:
        return "How steady the run's direction is was not read."
    words = [f"**{prose(trust.verdict)}**"]
    if trust.cosine is None:
        words.append("The direction of the update could not be read from these checkpoints.")
    else:
        words.append(_cosine_words(trust, trust.cosine))
    words.append(
        f"By that rule an extrapolation is taken to hold up to {number(trust.cap)} x the last "
        "observed step" + (" (1 x: rather keep the last checkpoint)." if trust.cap <= 1 else ".")
    )
    if trust.requested is not None:
        beyond = trust.requested > trust.cap
        verb = "which is beyond that" if beyond else "which is within that"
        words.append(f"This model was asked for at {number(trust.requested)} x, {verb}.")
    words.append("The rule was learnt on small models; it is a guide and no guarantee.")
    return "\n\n".join((words[0], " ".join(words[1:])))


def _cosine_words(trust: TrustRecord, cosine: float) -> str:
    middle = "" if trust.middle_step is None else f" (they meet at step {trust.middle_step})"
    share = ""
    if trust.share_of_entries is not None:
        share = f", read on the {number(100 * trust.share_of_entries, '.2g')} % smallest weights"
    floor = f" (rounding noise there: {number(trust.floor, '.2g')})" if trust.floor else ""
    text = (
        f"The first and the second half of the run's update{middle} point the same way to a "
        f"cosine of {number(cosine, '.2f')}{share}{floor}; 1 is a straight path."
    )
    if trust.cosine_all_entries is not None:
        text += f" Over all weights it is {number(trust.cosine_all_entries, '.2f')}."
    if trust.speed is not None:
        text += f" The second half moved {number(trust.speed, '.2f')} x as fast along the first."
    return text


def _auto(auto: AutoRecord | None) -> str:
    """Say how method and horizon were chosen."""
    if auto is None:
        return ""
    lines = [f"- {prose(words)}" for words in (*auto.words, f"clock: {auto.clock}")]
    if auto.forced and auto.ratio <= 1:
        lines.append("- **the tool would have kept the last checkpoint; it was told to go on**")
    return "## How far: chosen by the tool\n\n" + "\n".join(lines)


def _sweep(sweep: SweepRecord | None) -> str:
    """Show the scores that the size was chosen by."""
    if sweep is None:
        return ""
    rows = []
    for value, score in sorted(zip(sweep.values, sweep.scores, strict=True)):
        remarks = ["**this model**"] if value == sweep.best_value else []
        remarks += ["the last observed checkpoint"] if value == sweep.last_value else []
        rows.append([number(value, "g"), number(score), ", ".join(remarks)])
    better = "lower is better" if sweep.lower_is_better else "higher is better"
    return (
        "## Size: chosen by a score\n\nWhoever made this model scored candidates of several "
        f"{sweep.axis}s with an evaluation of their own ({better}) and kept the best. The best of "
        "several looks better than it is: measure it on other problems.\n\n"
        + table([sweep.axis, "score", ""], rows)
    )


def _fit(tensors: tuple[TensorRecord, ...]) -> str:
    seen = [tensor for tensor in tensors if tensor.sigma is not None]
    if not seen:
        return "## Spectrum and fit\n\nThis method looks at no spectrum, so there is none to show."
    groups: dict[str, list[TensorRecord]] = {}
    for tensor in seen:
        groups.setdefault(layer_and_group(tensor.name)[1], []).append(tensor)
    rows = [
        [
            code(group),
            str(len(members)),
            _median([tensor.sigma for tensor in members]),
            _median([tensor.rank1_share for tensor in members], ".2f"),
            _median([tensor.q2_step for tensor in members], ".2f"),
            _median([tensor.q2_score for tensor in members], ".2f"),
            _median([tensor.r2_step_in_sample for tensor in members], ".2f"),
        ]
        for group, members in groups.items()
    ]
    header = ["module", "matrices", "σ₁", "rank-1 share", "Q² step", "Q² score", "R² in-sample"]
    parts = (
        "## Spectrum and fit",
        "Medians over the layers, of the update at the last observed checkpoint. σ₁ is its "
        "largest singular value; the rank-1 share is the part of its squared norm that lies "
        "in that one direction. Q² is how well a left-out checkpoint is predicted from the "
        "others (1 is perfect, 0 or less is none). R² in-sample is shown because it is usual: "
        "pure noise reaches high values of it, so it proves nothing.",
        table(header, rows[:_MAX_ROWS]),
        _share_map(seen),
    )
    return "\n\n".join(part for part in parts if part)


def _median(values: list[float | None], spec: str = ".3g") -> str:
    present = [value for value in values if value is not None]
    return number(median(present), spec) if present else ABSENT


def _share_map(tensors: list[TensorRecord]) -> str:
    """Draw the rank-1 share of every matrix as one digit, a row per module, a column per layer."""
    digits: dict[str, dict[int, str]] = {}
    for tensor in tensors:
        layer, group = layer_and_group(tensor.name)
        if layer is not None and tensor.rank1_share is not None:
            tenths = min(9, max(0, int(10 * tensor.rank1_share)))
            digits.setdefault(group, {}).setdefault(layer, str(tenths))
    if not digits:
        return ""
    layers = sorted({layer for row in digits.values() for layer in row})[:_MAX_LAYERS]
    names = {group: one_line(group, 32) for group in list(digits)[:_MAX_ROWS]}
    width = max(len(name) for name in names.values())
    lines = [
        f"{name:<{width}}  " + "".join(digits[group].get(layer, ".") for layer in layers)
        for group, name in names.items()
    ]
    title = f"{'':<{width}}  layer {layers[0]} to {layers[-1]}; 4 stands for a share of 0.4 to 0.5"
    return "Rank-1 share of every matrix:\n\n" + fenced([title, *lines], "text")


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


def _files(manifest: Manifest, facts: CardFacts) -> str:
    source = "base" if facts.files_from_base else "last observed checkpoint"
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
