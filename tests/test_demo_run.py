"""The packaged GRPO run is complete and real, and its task is graded as it says."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import random
from pathlib import Path
from types import ModuleType

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from alpharl_hub.demo.task import (
    DEMO_RUN,
    MAX_COMPLETION_TOKENS,
    NUM_TEST_PROBLEMS,
    Problem,
    draw_problems,
    greedy_completions,
    is_correct,
    load_and_measure,
    score_of,
)

EXAMPLES = Path(__file__).parent.parent / "examples"
MAX_TOTAL_BYTES = 10_000_000
STEPS = sorted(int(path.name.removeprefix("step_")) for path in DEMO_RUN.glob("step_*"))


def folder_of(step: int) -> Path:
    """The folder of a checkpoint; step 0 is the base."""
    return DEMO_RUN / (f"step_{step}" if step else "base")


def read_json(name: str) -> dict:
    """A record of the run."""
    return json.loads((DEMO_RUN / name).read_text())


def load_example(name: str) -> ModuleType:
    """Import a module of examples/, which is no package."""
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_sums_cover_every_file_and_hold() -> None:
    """SHA256SUMS names each packaged file once, and each has the sum written there."""
    lines = (DEMO_RUN / "SHA256SUMS").read_text().splitlines()
    written = {name: digest for digest, name in (line.split("  ") for line in lines)}
    found = {
        path.relative_to(DEMO_RUN).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in DEMO_RUN.rglob("*")
        if path.is_file() and path.name != "SHA256SUMS"
    }
    assert len(lines) == len(written)
    assert written == found


def test_run_is_small_enough_to_be_packaged() -> None:
    """All files of the run together stay within 10 MB."""
    files = [path for path in DEMO_RUN.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= MAX_TOTAL_BYTES


def test_run_has_scores_for_base_and_every_checkpoint() -> None:
    """At least ten checkpoints at the steps of the recipe, each with a measured score."""
    recipe = read_json("recipe.json")["arguments"]
    every, last = recipe["save_every"], recipe["updates"]
    assert len(STEPS) >= 10
    assert list(range(every, last + 1, every)) == STEPS
    scores = read_json("scores.json")
    assert [int(step) for step in scores] == [0, *STEPS]
    assert {score["num_problems"] for score in scores.values()} == {NUM_TEST_PROBLEMS}


def test_run_learned_and_was_still_learning_at_two_fifths() -> None:
    """The score rises by far more than chance, both before and after 40 % of the steps."""
    scores = read_json("scores.json")
    early = max(step for step in STEPS if step <= 0.4 * STEPS[-1])
    base, observed, final = (scores[str(step)] for step in (0, early, STEPS[-1]))
    assert 0.2 <= base["score"] <= 0.5
    assert observed["score"] > base["score"] + 5 * base["standard_error"]
    assert final["score"] > observed["score"] + 5 * observed["standard_error"]


@pytest.mark.parametrize("step", [0, *STEPS])
def test_checkpoint_loads_by_itself(step: int) -> None:
    """Each folder alone gives transformers its fp32 weights, to the bit, and a tokenizer."""
    folder = folder_of(step)
    model, info = AutoModelForCausalLM.from_pretrained(
        folder, dtype="auto", output_loading_info=True
    )
    assert not any(info.values())
    stored = load_file(folder / "model.safetensors")
    loaded = model.state_dict()
    assert stored.keys() == loaded.keys()
    assert all(torch.equal(stored[name], loaded[name]) for name in stored)
    assert {tensor.dtype for tensor in stored.values()} == {torch.float32}
    tokenizer = AutoTokenizer.from_pretrained(folder)
    token_ids = tokenizer("047+985=")["input_ids"]
    assert len(token_ids) == 8
    assert tokenizer.decode(token_ids) == "047+985="


def test_every_checkpoint_holds_other_weights() -> None:
    """No two checkpoints are the same file, the base included."""
    digests = {
        hashlib.sha256((folder_of(step) / "model.safetensors").read_bytes()).digest()
        for step in [0, *STEPS]
    }
    assert len(digests) == len(STEPS) + 1


@pytest.mark.parametrize("step", STEPS)
def test_trainer_state_is_the_trainers_own(step: int) -> None:
    """The state beside a checkpoint is of that step, and the log of the run begins with it."""
    state = json.loads((folder_of(step) / "trainer_state.json").read_text())
    log = [json.loads(line) for line in (DEMO_RUN / "train.log").read_text().splitlines()]
    assert state["global_step"] == step
    assert state["log_history"] == log[: len(state["log_history"])]
    assert state["log_history"][-1]["step"] == step


@pytest.mark.parametrize("step", [0, STEPS[-1]])
def test_recorded_scores_are_measured_again(step: int) -> None:
    """Base and last checkpoint score what is written, up to what another CPU's rounding turns."""
    recorded = read_json("scores.json")[str(step)]
    measured = load_and_measure(folder_of(step))
    assert measured.num_problems == recorded["num_problems"]
    assert abs(measured.score - recorded["score"]) <= 2 * recorded["standard_error"]


def test_greedy_completion_is_the_argmax_of_each_step() -> None:
    """Batched completions equal a plain loop over full forward passes, one prompt at a time."""
    folder = folder_of(STEPS[-1])
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    prompts = [problem.prompt for problem in draw_problems("validation", 7)]
    expected = []
    for prompt in prompts:
        ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
        for _ in range(MAX_COMPLETION_TOKENS):
            with torch.inference_mode():
                chosen = model(ids, use_cache=False).logits[:, -1:].argmax(-1)
            ids = torch.cat([ids, chosen], dim=1)
        text = tokenizer.decode(ids[0, len(prompt) :])
        expected.append(text.partition("<eos>")[0])
    assert greedy_completions(model, tokenizer, prompts, batch_size=3) == expected


@pytest.mark.parametrize(
    ("first", "second", "prompt", "answer"),
    [
        (47, 985, "047+985=", "2301"),
        (0, 0, "000+000=", "0000"),
        (999, 999, "999+999=", "8991"),
        (120, 3, "120+003=", "3210"),
    ],
)
def test_problem_is_written_units_first(first: int, second: int, prompt: str, answer: str) -> None:
    """Prompts have fixed width, and the answer is the sum in four digits from the units up."""
    problem = Problem(first, second)
    assert (problem.prompt, problem.answer) == (prompt, answer)


@pytest.mark.parametrize(
    ("completion", "correct"),
    [
        ("2301", True),
        ("1032", False),
        ("2300", False),
        ("230", False),
        ("23010", False),
        ("2301 ", False),
        ("", False),
    ],
)
def test_only_the_exact_answer_counts(completion: str, correct: bool) -> None:
    """Order, length and blanks all count for 047+985."""
    assert is_correct("2301", completion) is correct


def test_splits_share_no_problem() -> None:
    """The splits are disjoint for any seeds, and a draw has no problem twice."""
    drawn = {
        split: {problem.prompt for problem in draw_problems(split, 2000, seed)}
        for split, seed in (("train", 3), ("validation", 4), ("test", 4))
    }
    assert [len(prompts) for prompts in drawn.values()] == [2000] * 3
    assert len(set.union(*drawn.values())) == 6000


def test_test_problems_never_change() -> None:
    """The problems behind the recorded scores, by their first three and the sum over all."""
    problems = draw_problems("test", NUM_TEST_PROBLEMS)
    assert [problem.prompt for problem in problems[:3]] == ["706+547=", "476+089=", "757+876="]
    digest = hashlib.sha256("".join(problem.prompt for problem in problems).encode()).hexdigest()
    assert digest.startswith("e5a45223a526fcb7")


def test_score_has_the_binomial_error() -> None:
    """Three right of four: 0.75 with sqrt(0.75 * 0.25 / 4)."""
    score = score_of([True, False, True, True])
    assert (score.score, score.num_problems) == (0.75, 4)
    assert score.standard_error == pytest.approx(0.21650635)


def test_no_outcomes_have_no_score() -> None:
    """A share of nothing is refused."""
    with pytest.raises(ValueError, match="no graded problem"):
        score_of([])


@pytest.mark.parametrize(
    ("forget_probability", "answer"),
    [(0.0, "2301"), (1.0, "2290")],
)
def test_teacher_forgets_carries(forget_probability: float, answer: str) -> None:
    """The base's teacher adds 047+985 rightly, or digit by digit when each carry is forgotten."""
    careless_answer = load_example("tiny_base").careless_answer
    assert careless_answer(Problem(47, 985), forget_probability, random.Random(0)) == answer
