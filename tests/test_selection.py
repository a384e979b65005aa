"""Which of the listed steps are used."""

from itertools import pairwise

import pytest

from alpharl_hub.errors import TrajectoryError
from alpharl_hub.sources.selection import select_steps

STEPS = (10, 20, 30, 40, 60, 80, 100, 200, 300)


@pytest.mark.parametrize(
    ("spec", "chosen"),
    [
        ("20", (20,)),
        ("40, 20,20", (20, 40)),
        ("30-80", (30, 40, 60, 80)),
        ("25-65", (30, 40, 60)),
        ("100-", (100, 200, 300)),
        ("10-100:30", (10, 40, 100)),
        ("20-:40", (20, 60, 100, 300)),
        ("10,20,40-100:20,200-", (10, 20, 40, 60, 80, 100, 200, 300)),
        ("30-30", (30,)),
    ],
)
def test_steps_picks_single_steps_ranges_and_strides(spec: str, chosen: tuple[int, ...]) -> None:
    """Of a range every listed step is taken, with a stride every multiple of it from the first."""
    assert select_steps(STEPS, spec, None) == chosen


@pytest.mark.parametrize(
    ("until", "last"),
    [
        ("200", 200),
        ("250", 200),
        ("40%", 100),
        ("0.4", 100),
        ("33.4%", 100),
        ("10%", 30),
        ("100%", 300),
        ("1.0", 300),
        ("10", 10),
        ("999", 300),
    ],
)
def test_until_cuts_at_a_step_or_at_a_share_of_the_last(until: str, last: int) -> None:
    """A number with a point up to 1, or with a percent sign, is a share; its step is included."""
    assert select_steps(STEPS, None, until) == STEPS[: STEPS.index(last) + 1]


def test_steps_and_until_together() -> None:
    """The share counts from the last step of the run, not of the selection."""
    assert select_steps(STEPS, "20-100", "20%") == (20, 30, 40, 60)


def test_a_share_includes_the_step_that_it_falls_on() -> None:
    """29 % of 100 is 29, though 0.29 * 100 is less in floating point."""
    assert 0.29 * 100 < 29
    assert select_steps((9, 19, 29, 100), None, "29%") == (9, 19, 29)


def test_without_steps_a_dozen_is_spread_evenly_in_step() -> None:
    """First and last included; what is dense in one place is thinned there."""
    even = tuple(range(10, 1201, 10))
    chosen = select_steps(even, None, None)
    assert len(chosen) == 12
    assert (chosen[0], chosen[-1]) == (10, 1200)
    assert all(100 <= b - a <= 120 for a, b in pairwise(chosen))
    uneven = (*range(1, 21), 100, 200, 300, 400, 500)
    chosen = select_steps(uneven, None, None)
    assert chosen[0] == 1
    assert chosen[-5:] == (100, 200, 300, 400, 500)
    assert len(chosen) <= 12
    assert select_steps(even[:12], None, None) == even[:12]
    assert len(select_steps(even, "10-", None)) == 120
    assert select_steps(even, None, "50%")[-1] == 600


@pytest.mark.parametrize(
    ("spec", "until", "words"),
    [
        ("50", None, "step 50 is not there; its neighbours are 40 and 60"),
        ("5", None, "step 5 is not there; its neighbour is 10"),
        ("301", None, "its neighbour is 300"),
        ("ten", None, "'ten' is neither a step nor a range"),
        ("", None, "'' is neither"),
        ("10,,20", None, "'' is neither"),
        ("-20", None, "'-20' is neither"),
        ("10-20-30", None, "'10-20-30' is neither"),
        ("41-59", None, "no step of the run lies in '41-59'; it has 10 to 300"),
        ("80-30", None, "no step of the run lies in '80-30'"),
        ("10-100:0", None, "stride in '10-100:0' is 0"),
        (None, "5", "--until 5 leaves no checkpoint: the first is at step 10"),
        (None, "1%", "--until 1% leaves no checkpoint"),
        (None, "soon", "--until soon: give a step"),
        (None, "-5", "--until -5: give a step"),
        (None, "0", "--until 0: give a step"),
        (None, "nan", "--until nan: give a step"),
        (None, "120%", "the share is larger than the whole run"),
        ("200-", "100", "--until 100 leaves no checkpoint: the first is at step 200"),
    ],
)
def test_what_selects_nothing_is_refused(spec: str | None, until: str | None, words: str) -> None:
    """The message says which part of the text, and what there is instead."""
    with pytest.raises(TrajectoryError) as error:
        select_steps(STEPS, spec, until)
    assert words in str(error.value)
