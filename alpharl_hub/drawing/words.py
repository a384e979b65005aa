"""A report in words and in short numbers, for pages and captions."""

from __future__ import annotations

from dataclasses import dataclass

from alpharl_hub.drawing.courses import last_share
from alpharl_hub.results import SpectralReport

ABSENT = "\N{EN DASH}"
_MINUS = "\N{MINUS SIGN}"

_YES, _PARTLY = 0.9, 0.5


@dataclass(frozen=True)
class Answer:
    """One question to a run and its answer; `verdict` is one word, `text` the rest."""

    question: str
    verdict: str
    text: str


def spell_out(text: str) -> str:
    """Return a stranger's text with everything unprintable written out, such as \\x1b and \\u202e.

    Neither a line break nor a mark that turns the direction of writing is left, nor half of a
    character, which no file could hold.
    """
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode("ascii")
        for letter in text
    )


def shorten(text: str, max_chars: int) -> str:
    """Keep the end of a long name: there it differs from the others."""
    return text if len(text) <= max_chars else "…" + text[len(text) - max_chars + 1 :]


def headline(report: SpectralReport) -> str:
    """Say how many matrices at which steps were read."""
    summary, steps = report.summary, report.steps
    matrices = f"{summary.num_matrices:,} {'matrix' if summary.num_matrices == 1 else 'matrices'}"
    if report.sampled:
        matrices = f"a sample: {summary.num_matrices:,} of {summary.num_matrices_in_run:,} matrices"
    if len(steps) == 1:
        return f"{matrices}, 1 checkpoint, step {steps[0]}"
    return f"{matrices}, {len(steps)} checkpoints, steps {steps[0]} to {steps[-1]}"


def answers(report: SpectralReport) -> tuple[Answer, ...]:
    """Answer whether a run is rank-1 and linear, whether it turned, and how far it can be followed.

    All numbers are medians over matrices, at the last step.
    """
    if not report.modules:
        return ()
    summary = report.summary
    found = [_rank1(report), _linear(report)]
    if summary.drift_first_to_last is not None and len(report.steps) > 1:
        found.append(
            Answer(
                "Did it turn?",
                f"{summary.drift_first_to_last:.0f}°",
                "median angle between the first checkpoint's direction and the last one's",
            )
        )
    if summary.trust is not None:
        verdict, _, text = summary.trust.verdict.partition(": ")
        found.append(Answer("How far can it be followed?", verdict, text))
    return tuple(found)


def fraction(value: float | None) -> str:
    """Two decimals; a Q^2 far below zero says no more than that."""
    if value is None:
        return ABSENT
    return f"< {_MINUS}9" if value < -9 else f"{value:.2f}".replace("-", _MINUS)


def magnitude(value: float | None) -> str:
    """Three digits, with an exponent where zeros would be many."""
    if value is None:
        return ABSENT
    if value == 0 or 1e-3 <= abs(value) < 1e3:
        return f"{value:.3g}".replace("-", _MINUS)
    return f"{value:.1e}".replace("e-0", "e-").replace("e+0", "e").replace("-", _MINUS)


def _rank1(report: SpectralReport) -> Answer:
    question = "Is it rank-1?"
    share = report.summary.rank1_share
    if share is None:
        return Answer(question, "unknown", "no matrix differs from the base")
    shares = [last_share(matrix) for matrix in report.modules]
    num_above = sum(one is not None and one >= _PARTLY for one in shares)
    verdict = "yes" if share >= _YES else "mostly" if share >= _PARTLY else "no"
    text = (
        f"median rank-1 share {share:.2f} at step {report.steps[-1]}; "
        f"{num_above} of {len(shares)} matrices at {_PARTLY:.2f} or more"
    )
    more = ". A rank-1 method leaves most of the update out" if verdict == "no" else ""
    return Answer(question, verdict, text + more)


def _linear(report: SpectralReport) -> Answer:
    question, summary = "Is it linear?", report.summary
    if summary.q2_step is None:
        text = f"Q² takes 4 checkpoints that differ; this report has {len(report.steps)}"
        return Answer(question, "unknown", text)
    verdict = "yes" if summary.q2_step >= _YES else "partly" if summary.q2_step >= _PARTLY else "no"
    name = f" ({report.score_name})" if report.score_name else ""
    score = "" if summary.q2_score is None else f", {fraction(summary.q2_score)} on score{name}"
    return Answer(
        question,
        verdict,
        f"median leave-one-out Q² {fraction(summary.q2_step)} on step{score}. In-sample R² "
        f"{fraction(summary.r2_step_in_sample)} decides nothing: noise reaches it too",
    )
