"""Helpers for tests of what people see: rendering, golden files, and reports made by hand.

After a wanted change run the tests with ALPHARL_RENEW_GOLDEN=1, which writes the files in golden/
anew and fails, look at the difference, and run them again without it.
"""

import fcntl
import io
import os
import pty
import struct
import subprocess
import sys
import termios
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
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

GOLDEN = Path(__file__).parent / "golden"
RENEW = "ALPHARL_RENEW_GOLDEN"


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


def assert_golden(name: str, text: str) -> None:
    """Compare a screen with the one that is kept; blanks at the ends of lines are not."""
    text = "\n".join(line.rstrip() for line in text.splitlines()) + "\n"
    path = GOLDEN / name
    if os.environ.get(RENEW):
        path.write_text(text, encoding="utf-8")
        pytest.fail(f"{path} is written anew: look at it, then run this without {RENEW}")
    assert text == path.read_text(encoding="utf-8")


def environment(**changes: str) -> dict[str, str]:
    """Return the environment of a child: this one's without what speaks of terminals."""
    told = ("NO_COLOR", "FORCE_COLOR", "COLUMNS", "LINES", "TERM", "COLORTERM", "PYTHONIOENCODING")
    return {k: v for k, v in os.environ.items() if k not in told} | changes


def show_on_terminal(words: Sequence[str], width: int, where: Path, **changes: str) -> str:
    """Return what a command sends to a terminal of xterm's 256 colours, stderr included."""
    command = [sys.executable, "-m", "alpharl_hub", *words]
    sent = run_on_terminal(command, width, where, PYTHONIOENCODING="utf-8", **changes)
    return sent.replace("\r\n", "\n")


def run_on_terminal(command: Sequence[str], width: int, where: Path, **changes: str) -> str:
    """Return what a program sends to a real pseudo-terminal of a width."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 40, width, 0, 0))
    subprocess.run(
        command,
        stdin=slave,
        stdout=slave,
        stderr=slave,
        cwd=where,
        env=environment(TERM="xterm-256color", **changes),
        check=True,
    )
    os.close(slave)
    sent = b""
    try:
        while block := os.read(master, 65536):
            sent += block
    except OSError:
        pass  # Linux answers EIO where others answer with the end of the file.
    finally:
        os.close(master)
    return sent.decode()
