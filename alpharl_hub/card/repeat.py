"""How to make the same model again: the commands of a card, written from its manifest."""

from __future__ import annotations

import shlex

from alpharl_hub.card.markdown import fenced, number
from alpharl_hub.manifest import MANIFEST_NAME, MethodRecord, RunRecord

LOOKING_BACK = ("average",)
"""Methods that take no target."""


def run_repo(run: RunRecord) -> str | None:
    """Return the one repo on the Hub that all checkpoints come from, or None."""
    sources = {(record.source, record.commit is None) for record in run.checkpoints}
    source, is_local = sources.pop()
    return None if sources or is_local else source


def how_to_repeat(run: RunRecord, method: MethodRecord) -> str:
    """Return the section that says how to make the same model again."""
    is_local = any(record.commit is None for record in run.checkpoints)
    words = (" RUN" if is_local else "") + (" --base BASE" if run.base.commit is None else "")
    commands = [f"alpharl-hub predict{words} --from {MANIFEST_NAME} -o predicted"]
    place = _run_argument(run)
    # Another clock than the steps, and sizes that a sweep chose, stand in the manifest only.
    if place is not None and method.times is None and method.damping <= 1:
        commands += ["", "# the same, spelt out", _command(place, run, method)]
    text = "## How to repeat it\n\n" + fenced(commands, "bash")
    if any(record.commit is None for record in (run.base, *run.checkpoints)):
        text += "\n\nThe local folders are not part of this repo; whoever repeats it needs them."
    return text


def _run_argument(run: RunRecord) -> str | None:
    """Return RUN as the command line takes it, where the manifest holds enough to write it."""
    if run.base.commit is None:
        return None
    if run.layout == "repos":
        return f"hf://{run.pattern.removeprefix('hf://')}"
    repo = run_repo(run)
    if repo is None:
        return None
    if run.layout in ("branches", "tags"):
        return f"hf://{repo}@{run.pattern.replace('/', '%2F')}"
    return f"hf://{repo}/{run.pattern}" if run.layout == "folders" else None


def _command(place: str, run: RunRecord, method: MethodRecord) -> str:
    base = run.base
    base_place = f"hf://{base.source}@{base.commit}" + (f"/{base.folder}" if base.folder else "")
    by_other_means = (method.target_score, method.scale) != (None, None)
    by_other_means = by_other_means or method.name in LOOKING_BACK
    steps = ",".join(str(record.step) for record in run.checkpoints)
    options: list[tuple[str, object]] = [
        ("--base", base_place),
        ("--steps", steps),
        ("--include", run.include),
        ("--exclude", run.exclude),
        ("--method", method.name),
        ("--rank", method.rank),
        ("--target-step", None if by_other_means else method.target_step),
        ("--target-score", method.target_score),
        ("--score-key", run.score_name if method.target_score is not None else None),
        ("--scale", method.scale),
        ("--fit-last", _window(method.fit_last)),
        ("--anchor", method.anchor),
        ("--damping", method.damping),
        ("--others", method.others),
        ("--dtype", method.dtype),
    ]
    words = ["alpharl-hub", "predict", place]
    for name, value in options:
        if value is not None:
            words += [name, number(value, "g") if isinstance(value, float) else str(value)]
    if method.keep_residual:
        words.append("--keep-residual")
    elif method.rescale is False:
        words.append("--no-rescale")
    if method.as_adapter:
        words.append("--as-adapter")
    if run.keep_repeats:
        words.append("--keep-repeats")
    return shlex.join([*words, "-o", "predicted"])


def _window(fit_last: str | None) -> str | None:
    """Write a share of the steps, kept as a decimal fraction, in the way that the option takes."""
    if fit_last is None or fit_last.isdecimal():
        return fit_last
    return f"{100 * float(fit_last):g}%"
