"""The kept corpus of the fuzzers is read again: what once ended a reader does so no more."""

from __future__ import annotations

import math
import time
from pathlib import Path

import pytest

from alpharl_hub.scores.learning_rates import read_learning_rates
from alpharl_hub.scores.table import parse_scores
from tests.fuzz.targets import READERS, refusal

CORPUS = Path(__file__).parent / "fuzz" / "corpus"
FILES = sorted(path for path in CORPUS.rglob("*") if path.is_file())


def test_every_reader_has_a_corpus() -> None:
    """A reader that is added gets at least one valid file to start from."""
    assert {path.parent.name for path in FILES} == set(READERS)
    assert {path.parent.name for path in FILES if path.name == "valid"} == set(READERS)


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}-{path.name[:24]}")
def test_kept_inputs_end_in_an_answer_or_one_line(path: Path) -> None:
    """Neither another exception than ours, nor a wait."""
    started_s = time.monotonic()
    refusal(path.parent.name, path.read_bytes())
    assert time.monotonic() - started_s < 5


def state(rates: dict[int, str]) -> str:
    """A trainer_state.json with these learning rates, written as they stand."""
    rows = ", ".join(f'{{"step": {s}, "learning_rate": {rate}}}' for s, rate in rates.items())
    return f'{{"global_step": 9, "max_steps": 100, "log_history": [{rows}]}}'


@pytest.mark.parametrize("rate", ["1" + "0" * 290, "1e308", "5e-324", "-1", "NaN", "Infinity"])
def test_rates_that_no_schedule_has_are_left_out(rate: str) -> None:
    """Sums of their squares would leave the range of floats; nobody asked for this file."""
    reading = read_learning_rates(state({s: rate for s in range(1, 9)}))
    assert reading.clock is None
    assert reading.reason


def test_a_rate_logged_at_step_0_belongs_to_the_first_update() -> None:
    """A linear fall logged before every update, from step 0 on, is recognised as such."""
    reading = read_learning_rates(state({s: repr(1e-6 * (1 - s / 100)) for s in range(9)}))
    assert reading.clock is not None
    assert (reading.clock.kind, reading.clock.max_steps) == ("linear", 100)
    assert math.isclose(reading.clock.rate(1), 1e-6)


def test_cells_of_many_digits_are_numbers_or_refused() -> None:
    """A CSV has no escape from the checks that JSON goes through."""
    assert parse_scores("step,score\n1,0." + "1" * 9000, "a.csv", None).at(1) == pytest.approx(
        1 / 9
    )
