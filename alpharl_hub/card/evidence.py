"""What a card shows of the run: how steady it is, how the size was chosen, spectrum and fit."""

from __future__ import annotations

from statistics import median

from alpharl_hub.card.backtests import backtest_section
from alpharl_hub.card.markdown import ABSENT, code, fenced, number, one_line, picture, prose, table
from alpharl_hub.manifest import AutoRecord, Manifest, SweepRecord, TensorRecord, TrustRecord
from alpharl_hub.module_names import layer_and_group

PICTURE = "alpharl-evidence.png"
"""The picture of the evidence, where one was drawn."""

_MAX_ROWS = 40
_MAX_LAYERS = 100


def evidence(manifest: Manifest, has_picture: bool) -> str:
    """Return the section; the map of shares is drawn in letters where no picture lies beside."""
    parts = (
        "## Evidence",
        picture(picture_words(manifest), PICTURE) if has_picture else "",
        "### Can it be trusted?\n\n" + _trust(manifest.trust),
        backtest_section(manifest),
        _auto(manifest.auto),
        _sweep(manifest.sweep),
        _fit(manifest.tensors, not has_picture),
    )
    return "\n\n".join(part for part in parts if part)


def picture_words(manifest: Manifest) -> str:
    """Say in words what the picture shows: Markdown on one line, for those who cannot see it."""
    shares = [t.rank1_share for t in manifest.tensors if t.rank1_share is not None]
    q2 = [t.q2_step for t in manifest.tensors if t.q2_step is not None]
    words = []
    if shares:
        low, high = number(min(shares), ".2f"), number(max(shares), ".2f")
        words.append(
            f"Rank-1 share of the update of {len(shares)} matrices by module and layer, from {low} "
            f"to {high}, median {number(median(shares), '.2f')}"
        )
    if q2:
        words.append(f"Q² of each matrix by module, median {number(median(q2), '.2f')}")
    if manifest.sweep is not None:
        words.append(f"scores of {len(manifest.sweep.scores)} candidates by {manifest.sweep.axis}")
    elif any(record.score is not None for record in manifest.run.checkpoints):
        words.append(
            f"score of the checkpoints ({code(manifest.run.score_name or 'score')}) by step"
        )
    text = "; ".join(words)
    return text[:1].upper() + text[1:]


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
    return "### How far: chosen by the tool\n\n" + "\n".join(lines)


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
        "### Size: chosen by a score\n\nWhoever made this model scored candidates of several "
        f"{sweep.axis}s with an evaluation of their own ({better}) and kept the best. The best of "
        "several looks better than it is: measure it on other problems.\n\n"
        + table([sweep.axis, "score", ""], rows)
    )


def _fit(tensors: tuple[TensorRecord, ...], with_map: bool) -> str:
    seen = [tensor for tensor in tensors if tensor.sigma is not None]
    if not seen:
        return "### Spectrum and fit\n\nThis method looks at no spectrum, so there is none to show."
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
        "### Spectrum and fit",
        "Medians over the layers, of the update at the last observed checkpoint. σ₁ is its "
        "largest singular value; the rank-1 share is the part of its squared norm that lies "
        "in that one direction. Q² is how well a left-out checkpoint is predicted from the "
        "others (1 is perfect, 0 or less is none). R² in-sample is shown because it is usual: "
        "pure noise reaches high values of it, so it proves nothing.",
        table(header, rows[:_MAX_ROWS]),
        _share_map(seen) if with_map else "",
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
