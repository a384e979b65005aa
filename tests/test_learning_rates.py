"""The clock of the learning rate: schedules recognised from logs, and their sums over updates."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Trainer, TrainingArguments, get_scheduler

import alpharl_hub
from alpharl_hub.scores.learning_rates import LearningRateClock, read_learning_rates

PEAK = 3e-6


def rates_of(kind: str, num_updates: int, warmup: int, max_steps: int, **more: Any) -> list[float]:
    """The rates of updates 1 to num_updates + 1, from the scheduler that transformers builds."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=PEAK)
    scheduler = get_scheduler(kind, optimizer, warmup, max_steps, scheduler_specific_kwargs=more)
    rates = []
    for _ in range(num_updates + 1):
        rates.append(float(scheduler.get_last_lr()[0]))
        optimizer.step()
        scheduler.step()
    return rates


def state_text(rows: Iterable[tuple[int, float]], max_steps: int | None) -> str:
    """A trainer_state.json with these (step, learning rate) rows between others."""
    history: list[dict[str, Any]] = []
    for step, rate in rows:
        history.append({"step": step, "learning_rate": rate, "loss": 0.1})
        history.append({"step": step, "eval_loss": 0.2})
    return json.dumps({"log_history": history, "max_steps": max_steps, "global_step": 0})


def logged(rates: list[float], every: int, ahead: int = 0) -> list[tuple[int, float]]:
    """What a trainer logs: at step s the rate of update s, or of update s + 1 (`ahead`)."""
    return [(s, rates[s - 1 + ahead]) for s in range(every, len(rates), every)]


@pytest.mark.parametrize("ahead", [0, 1])
@pytest.mark.parametrize("every", [1, 7])
@pytest.mark.parametrize("warmup", [0, 1, 10, 33])
@pytest.mark.parametrize(
    ("name", "kind"),
    [("constant_with_warmup", "constant"), ("linear", "linear"), ("cosine", "cosine")],
)
def test_schedules_of_transformers_are_recognised_and_summed(
    name: str, kind: str, warmup: int, every: int, ahead: int
) -> None:
    """From 40 % of a run the clock gives the sums of the whole run's rates, at every step."""
    max_steps = 200
    rates = rates_of(name, max_steps, warmup, max_steps)
    rows = logged(rates[:81], every, ahead)
    reading = read_learning_rates(state_text(rows, max_steps))
    assert reading.clock is not None, reading.reason
    assert reading.clock.kind == kind
    # Before the first logged rate only a cosine keeps a trace of its warm-up: its shape.
    unseen = warmup < every + ahead and kind != "cosine"
    assert reading.clock.warmup_steps == (0 if unseen else warmup)
    found = [reading.clock.rate(update) for update in range(1, max_steps + 1)]
    seen = slice(warmup if unseen else 0, None)
    assert found[seen] == pytest.approx(rates[:max_steps][seen], rel=1e-6, abs=1e-6 * PEAK)
    for step in range(max_steps + 1):
        exact = sum(found[:step]) / reading.clock.peak
        assert reading.clock.time(step) == pytest.approx(exact, rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("kind", ["linear", "cosine", "constant_with_warmup"])
def test_a_real_trainer_logs_what_is_recognised(kind: str, tmp_path: Path) -> None:
    """The trainer_state.json of transformers' Trainer gives the rates its optimizer used."""

    class Line(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = torch.nn.Parameter(torch.zeros(1))

        def forward(self, x: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"loss": ((self.w * x - labels) ** 2).mean(), "logits": self.w * x}

    used: list[float] = []

    class Watched(torch.optim.SGD):
        def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
            used.append(float(self.param_groups[0]["lr"]))
            return super().step(closure)

    arguments = TrainingArguments(
        output_dir=str(tmp_path),
        max_steps=24,
        warmup_steps=5,
        learning_rate=PEAK,
        lr_scheduler_type=kind,
        logging_steps=2,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
        dataloader_pin_memory=False,
        per_device_train_batch_size=1,
    )
    rows = [{"x": torch.ones(1), "labels": torch.ones(1)}] * 30
    trainer = Trainer(
        Line(), arguments, train_dataset=rows, optimizer_cls_and_kwargs=(Watched, {"lr": PEAK})
    )
    trainer.train()
    trainer.state.save_to_json(str(tmp_path / "trainer_state.json"))
    clock = read_learning_rates((tmp_path / "trainer_state.json").read_text()).clock
    assert clock is not None
    assert [clock.rate(u) for u in range(1, 25)] == pytest.approx(used, rel=1e-6, abs=1e-6 * PEAK)


def test_the_demo_run_is_constant() -> None:
    """A TRL run at a constant rate: the clock reads the step itself."""
    folder = Path(alpharl_hub.__file__).parent / "demo_run" / "step_72"
    clock = read_learning_rates((folder / "trainer_state.json").read_text()).clock
    assert clock == LearningRateClock("constant", pytest.approx(1.2e-5), 0, None)
    assert [clock.time(s) for s in (0, 1, 72, 240, 100.5)] == [0, 1, 72, 240, 100.5]
    assert clock.words.startswith("a constant learning rate of 1.2e-05")


def test_nothing_moves_beyond_the_end_of_a_decay() -> None:
    """The clock stands still after max_steps, and no step reads a time beyond it."""
    clock = LearningRateClock("linear", PEAK, 0, 10)
    assert clock.time(10) == pytest.approx(5.5)
    assert clock.time(400) == clock.time(10)
    assert clock.step_at(5.6) is None


@pytest.mark.parametrize("kind", ["constant", "linear", "cosine"])
@pytest.mark.parametrize("step", [0.5, 3, 17.25, 60])
def test_a_step_is_found_again_by_its_time(kind: str, step: float) -> None:
    """`step_at` inverts `time`, within warm-up and between whole steps too."""
    clock = LearningRateClock(kind, PEAK, 4, None if kind == "constant" else 80)
    if step == 0.5:
        # The first update of a warm-up has rate 0, so the clock reads 0 until step 1.
        assert clock.time(step) == 0
    else:
        assert clock.step_at(clock.time(step)) == pytest.approx(step, abs=1e-6)


@pytest.mark.parametrize("before", ["constant", "linear"])
def test_a_drop_in_the_middle_leaves_the_future_unknown(before: str) -> None:
    """A rate that jumps follows no schedule that could be continued; the jump is named."""
    rates = rates_of(before, 100, 0, 200)
    dropped = [rate if u < 60 else rate / 10 for u, rate in enumerate(rates)]
    reading = read_learning_rates(state_text(logged(dropped, 10), 200))
    assert reading.clock is None
    assert "at step 60 to" in reading.reason
    assert "at step 70" in reading.reason
    assert reading.reason.endswith("so its future is unknown")


@pytest.mark.parametrize("every", [7, 10, 13, 25])
def test_a_warm_up_that_left_no_trace_is_none(every: int) -> None:
    """Of all warm-ups that a decay along a line may have had before its first row: the shortest."""
    rates = rates_of("linear", 75, 0, 150)
    clock = read_learning_rates(state_text(logged(rates, every), 150)).clock
    assert clock == LearningRateClock("linear", pytest.approx(PEAK), 0, 150)


def test_a_rate_that_is_a_little_off_is_not_smoothed_over() -> None:
    """One row that is 0.1 % lower than the others is a change, not noise: logs hold all digits."""
    rows = [(step, PEAK * (0.999 if step == 50 else 1)) for step in range(10, 110, 10)]
    assert read_learning_rates(state_text(rows, 200)).clock is None


@pytest.mark.parametrize(
    ("kind", "more"),
    [
        ("polynomial", {"power": 2.0}),
        ("cosine_with_min_lr", {"min_lr": PEAK / 5}),
        ("inverse_sqrt", {}),
    ],
)
def test_other_schedules_are_unknown(kind: str, more: dict[str, float]) -> None:
    """Schedules of other shapes are not taken for one of the three."""
    rates = rates_of(kind, 150, 20, 200, **more)
    reading = read_learning_rates(state_text(logged(rates, 5), 200))
    assert reading.clock is None
    assert "neither constant nor" in reading.reason


def test_a_decay_without_max_steps_is_unknown() -> None:
    """Nothing says where a decay ends; a constant rate needs no end."""
    for kind, is_known in (("linear", False), ("constant", True)):
        text = state_text(logged(rates_of(kind, 100, 0, 200), 10), None)
        assert (read_learning_rates(text).clock is not None) == is_known


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "not valid JSON"),
        ("[]", "no log_history"),
        (state_text([(1, PEAK), (2, PEAK)], 10), "2 logged learning rates are too few"),
        (state_text([(1, 0.0), (2, 0.0), (3, 0.0)], 10), "is 0"),
        (state_text([(1, 1e-6), (2, 2e-6), (3, 3e-6)], 10), "still rises"),
        (state_text([(10**14, PEAK), (2 * 10**14, PEAK), (3 * 10**14, PEAK)], 10), "too rarely"),
        (state_text([(s, float("nan")) for s in range(5)], 10), "0 logged learning rates"),
    ],
)
def test_what_cannot_be_told_is_said(text: str, reason: str) -> None:
    """Nothing is guessed and nothing raises; the reason says why there is no clock."""
    reading = read_learning_rates(text)
    assert reading.clock is None
    assert reason in reading.reason


def test_the_newest_line_of_a_restarted_run_wins() -> None:
    """A step that was logged twice counts as it was logged last."""
    rates = rates_of("linear", 60, 0, 100)
    rows = [(10, 1.0), (20, 2.0), *logged(rates, 10)]
    clock = read_learning_rates(state_text(rows, 100)).clock
    assert clock is not None
    assert clock.kind == "linear"
