"""Helpers for tests of what people see: rendering, and reports made by hand."""

import io
from collections.abc import Callable, Sequence

from rich.cells import cell_len
from rich.console import Console

from alpharl_hub.manifest import Notice, TrustRecord
from alpharl_hub.results import ModuleSpectrum, ReportSummary, SpectralReport

GROUPS = (
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.o_proj",
    "mlp.gate_proj",
    "mlp.up_proj",
    "mlp.down_proj",
)
STEPS = (20, 40, 80, 160)
HOSTILE = "evil\x1b[2J\x1b]0;title\x07[bold]x[/nope]\u202egnp\r\n:smile:"
HOSTILE_SHOWN = "evil\\x1b[2J\\x1b]0;title\\x07[bold]x[/nope]\\u202egnp\\r\\n:smile:"


def render(show: Callable[[Console], None], width: int = 80) -> str:
    """Render on a console that parses markup and emoji as rich does by default."""
    stream = io.StringIO()
    show(Console(file=stream, width=width))
    return stream.getvalue()


def assert_fits(text: str, width: int) -> None:
    """Check that no line is too wide and nothing but newlines controls the terminal."""
    for line in text.split("\n"):
        assert cell_len(line) <= width, line
        assert line.isprintable(), ascii(line)


def line_of(text: str, start: str) -> str:
    """Return the only line that starts so."""
    (line,) = (line for line in text.splitlines() if line.startswith(start))
    return line


def section(text: str, title: str) -> list[str]:
    """Return the lines from a heading to the next empty line."""
    lines = text.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith(title))
    return [*lines[start:], ""][: [*lines[start:], ""].index("")]


def spectrum(
    name: str,
    share: float | None = 0.5,
    q2_step: float | None = 0.95,
    *,
    sigma: float = 0.02,
    drift: float | None = 30.0,
    steps: Sequence[int] = STEPS,
) -> ModuleSpectrum:
    """Make a matrix whose numbers at the last step are those given; earlier ones are decoys."""
    before = len(steps) - 1
    return ModuleSpectrum(
        name=name,
        shape=(64, 32),
        sigma=(*[9.0] * before, sigma),
        frobenius=(*[9.0] * before, 0.0 if share is None else 0.25),
        rank1_share=(*[0.01] * before, share),
        drift=(drift, *[77.0] * before)[: len(steps)],
        q2_step=q2_step,
        q2_score=None if q2_step is None else 0.8,
        r2_step_in_sample=0.99,
        singular_values=(sigma,),
        stable_rank=1 / share if share else None,
    )


def report_of(
    modules: Sequence[ModuleSpectrum],
    *,
    steps: Sequence[int] = STEPS,
    share: float | None = 0.62,
    q2_step: float | None = 0.97,
    warnings: Sequence[Notice] = (),
    trust: TrustRecord | None = None,
) -> SpectralReport:
    """Make a report whose summary is given, not computed."""
    return SpectralReport(
        schema=1,
        steps=tuple(steps),
        sampled=False,
        score_name="accuracy",
        modules=tuple(modules),
        summary=ReportSummary(
            num_matrices=len(modules),
            num_matrices_in_run=len(modules),
            rank1_share=share,
            drift_first_to_last=26.2,
            q2_step=q2_step,
            q2_score=None if q2_step is None else 0.88,
            r2_step_in_sample=0.991,
            trust=trust,
        ),
        path=None,
        score_line=None,
        warnings=tuple(warnings),
    )


def name_of(layer: int, group: str) -> str:
    """Name a matrix as transformers does."""
    return f"model.layers.{layer}.{group}.weight"
