"""What `backtest --json` wrote, read back for a model's card."""

from __future__ import annotations

from pathlib import Path

from alpharl_hub import strict_json
from alpharl_hub.backtesting.results import KEEP, SAFE, UNKNOWN, Backtest
from alpharl_hub.errors import CardError, ManifestError
from alpharl_hub.manifest import BacktestRecord, BacktestRow
from alpharl_hub.results import SCHEMA

MAX_BYTES = 4 << 20
"""All of it may go into alpharl.json. A test of every method takes 2 kB; this is 2,000 tests."""


def read_backtest(path: Path) -> BacktestRecord:
    """Read an answer of `backtest` from a file, with the tests of all its methods.

    Raises:
        CardError: it cannot be read, or is no such answer of this version.
    """
    try:
        data = strict_json.read_file(path)
        if len(data) > MAX_BYTES:
            raise ManifestError(f"{path}: {len(data)} bytes, more than any backtest writes")
        answer = _read(data, str(path))
    except ManifestError as error:
        raise CardError(
            f"--backtest {error}; it takes what `alpharl-hub backtest RUN --json` wrote"
        ) from error
    return BacktestRecord(
        steps=answer.steps,
        last_step=answer.now.last_step,
        sampled=answer.sampled,
        code=answer.verdict.code,
        horizon=answer.verdict.horizon,
        sentence=answer.verdict.sentence,
        rows=_rows(answer),
    )


def _read(data: bytes, where: str) -> Backtest:
    document = strict_json.parse(data, where)
    found = document.get("schema") if isinstance(document, dict) else None
    if not isinstance(document, dict) or "verdict" not in document:
        raise ManifestError(f"{where}: no answer of a backtest")
    if found != SCHEMA or isinstance(found, bool):
        raise ManifestError(f"{where}: schema {strict_json.shown_value(found)} is not {SCHEMA}")
    answer = strict_json.from_plain(Backtest, document, where)
    if answer.verdict.code not in (SAFE, KEEP, UNKNOWN):
        code = strict_json.shown(answer.verdict.code)
        raise ManifestError(f"{where}: its verdict {code} is not one of this version's")
    return answer


def _rows(answer: Backtest) -> tuple[BacktestRow, ...]:
    return tuple(
        BacktestRow(
            fitted_until=window.direction.last_step,
            step=truth.step,
            ratio=truth.ratio,
            method=test.method,
            error=test.resolved.error,
            cosine=test.resolved.cosine,
        )
        for window in answer.windows
        for truth in window.truths
        for test in truth.methods
    )
