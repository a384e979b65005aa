"""Which clock `--method auto` would have run on, had the run ended at one of its checkpoints."""

from __future__ import annotations

from alpharl_hub.backtesting.results import STEPS
from alpharl_hub.scores.learning_rates import CONSTANT, LearningRateClock, read_learning_rates
from alpharl_hub.sources.contents import trainer_state_text
from alpharl_hub.trajectory import CheckpointContents

_MAX_STATE_BYTES = 4 << 20


def read_clock(last: CheckpointContents) -> tuple[LearningRateClock | None, str]:
    """Return the cumulative learning rate as a clock, and its name; None where steps do as well."""
    text = trainer_state_text(last, _MAX_STATE_BYTES)
    if text is None:
        return None, STEPS
    reading = read_learning_rates(text)
    clock = reading.clock
    if clock is None:
        return None, f"{STEPS} ({reading.reason})"
    if clock.kind == CONSTANT and clock.warmup_steps == 0:
        return None, f"{STEPS} ({clock.words})"
    return clock, f"cumulative learning rate ({clock.words})"
