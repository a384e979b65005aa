"""A clock that runs with the learning rate: how much of a run's learning lies before a step.

Letters: update u = 1, 2, ... takes the weights of step u - 1 to step u at the rate lr_u; a schedule
is lr_u = peak * factor(u - 1), as in transformers' optimization.py. N is max_steps, w the number of
updates that warm up.

What is logged at step s is the rate of update s (transformers 5: trainer.py asks before the
scheduler steps) or that of update s + 1 (trainers that ask afterwards); both are tried. All is
computed in float64, sums in closed form.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise

from alpharl_hub.errors import ScoreError
from alpharl_hub.scores.rows import check_size, parse_json, read_row, read_step

CONSTANT, LINEAR, COSINE = "constant", "linear", "cosine"

TOLERANCE = 1e-5
"""How far a logged rate may lie from the schedule, in units of the peak; logs hold all digits."""

_MIN_RATE, _MAX_RATE = 1e-30, 1e6
"""Beyond them nobody trains, and sums of squares could leave the range of floats."""

_MIN_ROWS = 3
_MAX_WARMUPS_TIMES_ROWS = 2_000_000
_STATE_FILE = "trainer_state.json"


@dataclass(frozen=True)
class LearningRateClock:
    """A schedule that was recognised.

    `kind` is constant, linear or cosine (both fall to zero at `max_steps`, which is None for
    constant), `peak` the rate after `warmup_steps` updates of a linear rise from zero.
    """

    kind: str
    peak: float
    warmup_steps: int
    max_steps: int | None

    def rate(self, update: int) -> float:
        """Return the learning rate of an update, counted from 1."""
        return self.peak * self._factor(update - 1)

    def time(self, step: float) -> float:
        """Return the sum of the rates of updates 1 to `step`, in units of the peak.

        Under a constant rate that is the step itself. Between whole steps it is linear; beyond
        `max_steps` it stands still.
        """
        whole = math.floor(step)
        rest = step - whole
        return self._sum(whole) + (rest * self._factor(whole) if rest else 0.0)

    def step_at(self, time: float) -> float | None:
        """Return the first step at which the clock reads `time`, None if the schedule ends before.

        Right to 1e-9 of the step.
        """
        last = self.max_steps
        low, high = 0.0, float(math.ceil(time) + self.warmup_steps if last is None else last)
        if self.time(high) < time:
            return None
        while high - low > 1e-9 * max(1.0, high):
            half = (low + high) / 2
            low, high = (half, high) if self.time(half) < time else (low, half)
        return high

    @property
    def words(self) -> str:
        """Name the schedule for people."""
        if self.kind == CONSTANT:
            # Whether a decay follows a long constant part stands in no file.
            text = f"a constant learning rate of {self.peak:.3g} so far, taken to stay"
        else:
            shape = "a line" if self.kind == LINEAR else "a cosine"
            text = f"a learning rate that falls from {self.peak:.3g} to 0 at step {self.max_steps}"
            text += f" along {shape}"
        return text + (f", after {self.warmup_steps} of warm-up" if self.warmup_steps else "")

    def _factor(self, done: int) -> float:
        """The rate after `done` updates, in units of the peak."""
        warmup = self.warmup_steps
        if done < 0:
            return 0.0  # some log a rate at step 0, and no update came before the first
        if done < warmup:
            return done / warmup
        if self.max_steps is None:
            return 1.0
        progress = (done - warmup) / max(1, self.max_steps - warmup)
        if progress >= 1:
            return 0.0
        return 1 - progress if self.kind == LINEAR else 0.5 * (1 + math.cos(math.pi * progress))

    def _sum(self, num_updates: int) -> float:
        """The sum of `_factor` over 0 to num_updates - 1."""
        warmup = self.warmup_steps
        rising = min(num_updates, warmup)
        warmed = rising * (rising - 1) / (2 * warmup) if warmup else 0.0
        count = max(0, num_updates - warmup)
        if self.max_steps is None:
            return warmed + count
        length = max(1, self.max_steps - warmup)
        count = min(count, length)
        if self.kind == LINEAR:
            return warmed + count - count * (count - 1) / (2 * length)
        # cos 0 + cos x + ... + cos (n - 1) x = sin(n x / 2) cos((n - 1) x / 2) / sin(x / 2)
        half = math.pi / (2 * length)
        cosines = math.sin(count * half) * math.cos((count - 1) * half) / math.sin(half)
        return warmed + 0.5 * (count + cosines)


@dataclass(frozen=True)
class ScheduleReading:
    """The clock, or None where the rates to come are unknown; `reason` says which and why.

    `has_changed`: the rates changed along no schedule that is known.

    A warm-up that ends before the first logged rate leaves no trace but in the shape of a cosine:
    the clock has none then, and reads at most half of those updates too much.
    """

    clock: LearningRateClock | None
    reason: str
    has_changed: bool = False

    @property
    def uneven_clock(self) -> LearningRateClock | None:
        """The clock where it differs from the steps."""
        clock = self.clock
        is_even = clock is None or (clock.kind == CONSTANT and clock.warmup_steps == 0)
        return None if is_even else clock


def read_schedule(text: str, named_step: int) -> ScheduleReading:
    """Read the schedule as a clock for the steps that checkpoints are named by.

    A schedule counts updates. Where the checkpoint of this text is named otherwise (relex-rlvr
    names every second update) the two cannot be put together, and there is no clock.
    """
    reading = read_learning_rates(text)
    if reading.clock is None:
        return reading
    document = parse_json(text, _STATE_FILE)
    update = document.get("global_step") if isinstance(document, dict) else None
    if update != named_step:
        reason = f"the checkpoint named {named_step} logs update {update}: counted otherwise"
        return ScheduleReading(None, reason)
    return reading


def read_learning_rates(text: str) -> ScheduleReading:
    """Recognise the schedule from the text of the last checkpoint's trainer_state.json.

    Whatever cannot be read or recognised is told in `reason` and raises nothing: nobody asked for
    this file.
    """
    try:
        rates, max_steps = _read(text)
    except ScoreError as error:
        return ScheduleReading(None, f"the learning rates are not read: {error}")
    if len(rates) < _MIN_ROWS:
        return ScheduleReading(
            None, f"{len(rates)} logged learning rates are too few to tell a schedule by"
        )
    peak = max(rates.values())
    if peak <= 0:
        return ScheduleReading(None, "every logged learning rate is 0")
    warmups = _possible_warmups(rates)
    if warmups is None:
        return ScheduleReading(None, "the learning rate still rises: its peak is not known yet")
    if len(warmups) * len(rates) > _MAX_WARMUPS_TIMES_ROWS:
        return ScheduleReading(None, "the learning rate is logged too rarely to tell its warm-up")
    fits = _fits(rates, max_steps, warmups)
    worst, _, clock = min(fits, key=lambda fit: fit[:2])
    if worst > TOLERANCE:
        return ScheduleReading(None, _why_unknown(rates, max_steps), has_changed=True)
    return ScheduleReading(clock, clock.words)


def _read(text: str) -> tuple[Mapping[int, float], int]:
    """The logged rates by rising step, the newest of each, and max_steps (0 where unknown)."""
    check_size(text, _STATE_FILE)
    document = parse_json(text, _STATE_FILE)
    history = document.get("log_history") if isinstance(document, dict) else None
    if not isinstance(document, dict) or not isinstance(history, list):
        raise ScoreError(f"{_STATE_FILE}: it has no log_history")
    rates: dict[int, float] = {}
    for i, entry in enumerate(history):
        row = read_row(entry, f"{_STATE_FILE}, log_history[{i}]")
        rate = row.values.get("learning_rate")
        if isinstance(rate, int | float) and not isinstance(rate, bool) and 0 <= rate <= _MAX_RATE:
            rates[row.step] = float(rate) if rate >= _MIN_RATE else 0.0
    max_steps = document.get("max_steps")
    is_known = isinstance(max_steps, int) and max_steps > 0
    return dict(sorted(rates.items())), read_step(max_steps, _STATE_FILE) if is_known else 0


def _possible_warmups(rates: Mapping[int, float]) -> range | None:
    """How many updates may have warmed up: up to the highest rate, give or take a row.

    None where the highest rate is the last one.
    """
    steps = list(rates)
    top = max(steps, key=lambda step: (rates[step], -step))
    place = steps.index(top)
    if place == 0:
        # Nothing of a warm-up was logged.
        return range(0, steps[0] + 1)
    if place == len(steps) - 1:
        return None
    # A rise of the rate is a warm-up that reaches at least to the row before the highest one.
    return range(max(0, steps[place - 1] - 1), steps[place + 1] + 1)


_Fit = tuple[float, int, LearningRateClock]


def _fits(rates: Mapping[int, float], max_steps: int, warmups: range) -> Iterator[_Fit]:
    """Every schedule with its error: (largest error in units of the peak, rank, schedule)."""
    kinds: list[tuple[str, int | None]] = [(CONSTANT, None)]
    if max_steps >= max(rates):
        kinds += [(LINEAR, max_steps), (COSINE, max_steps)]
    for kind, last in kinds:
        for warmup in warmups:
            shape = LearningRateClock(kind, 1.0, warmup, last)
            for ahead in (0, 1):
                factors = [shape.rate(step + ahead) for step in rates]
                squares = math.fsum(f * f for f in factors)
                if squares == 0:
                    continue
                values = rates.values()
                peak = math.fsum(f * r for f, r in zip(factors, values, strict=True)) / squares
                if peak <= 0:
                    continue
                worst = max(abs(r - peak * f) for f, r in zip(factors, values, strict=True))
                # Digits that rounding makes must not choose among equals: the shortest warm-up.
                error = round(worst / peak, 9)
                yield error, warmup, LearningRateClock(kind, peak, warmup, last)


def _why_unknown(rates: Mapping[int, float], max_steps: int) -> str:
    until = f" to step {max_steps}" if max_steps else ""
    text = f"the learning rate is neither constant nor falls along a line or a cosine{until}"
    changes = [(abs(rates[b] - rates[a]), a, b) for a, b in pairwise(rates)]
    change, before, after = max(changes)
    spread = max(rates.values()) - min(rates.values())
    if change > 0.5 * spread:
        text += (
            f" (from {rates[before]:.3g} at step {before} to {rates[after]:.3g} at step {after})"
        )
    return f"{text}, so its future is unknown"
