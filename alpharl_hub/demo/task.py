"""The task of the packaged demo run: three-digit addition, graded by exact match.

A prompt reads `047+985=` and the answer `2301`: the sum 1032 in four digits, units first, the order
in which a pupil writes them. Which split a problem belongs to follows from a hash of its prompt, so
training, validation and test problems never overlap, whatever their seeds.

Numerical convention: weights are read as stored and computed with in fp32, the next token is the
most likely one. Letters: B problems in a batch, L prompt tokens, G generated tokens.
"""

import hashlib
import math
import random
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Split = Literal["train", "validation", "test"]

DEMO_RUN = Path(__file__).parent.parent / "demo_run"
"""Folder of the packaged run: base/, step_N/, scores.json and how they were made."""

NUM_ADDEND_DIGITS = 3
NUM_ANSWER_DIGITS = NUM_ADDEND_DIGITS + 1
MAX_COMPLETION_TOKENS = NUM_ANSWER_DIGITS + 1  # the digits and the end token
NUM_TEST_PROBLEMS = 2000
_ADDEND_BOUND = 10**NUM_ADDEND_DIGITS


@dataclass(frozen=True)
class Problem:
    """One addition; both addends lie in 0..999."""

    first: int
    second: int

    @property
    def prompt(self) -> str:
        """What the model is given."""
        return f"{self.first:0{NUM_ADDEND_DIGITS}d}+{self.second:0{NUM_ADDEND_DIGITS}d}="

    @property
    def answer(self) -> str:
        """What the model has to write, units first."""
        return f"{self.first + self.second:0{NUM_ANSWER_DIGITS}d}"[::-1]

    @property
    def split(self) -> Split:
        """The only split in which this problem may appear: 8 of 10 problems are for training."""
        tenth = hashlib.sha256(self.prompt.encode()).digest()[0] % 10
        return "test" if tenth == 0 else "validation" if tenth == 1 else "train"


@dataclass(frozen=True)
class TaskScore:
    """Share of problems answered exactly right, with its binomial standard error."""

    score: float
    standard_error: float
    num_problems: int


def draw_problems(split: Split, count: int, seed: int = 0) -> tuple[Problem, ...]:
    """Draw `count` different problems of one split, the same ones on every machine."""
    # random.Random.random is the one generator that Python promises to keep between versions:
    # https://docs.python.org/3/library/random.html#notes-on-reproducibility
    rng = random.Random(seed)
    drawn: dict[Problem, None] = {}
    while len(drawn) < count:
        problem = Problem(int(rng.random() * _ADDEND_BOUND), int(rng.random() * _ADDEND_BOUND))
        if problem.split == split:
            drawn[problem] = None
    return tuple(drawn)


def is_correct(answer: str, completion: str) -> bool:
    """Grade a completion (special tokens removed): nothing but the exact answer counts."""
    return completion == answer


def score_of(outcomes: Iterable[bool]) -> TaskScore:
    """Summarise graded problems; raises ValueError where there are none."""
    graded = list(outcomes)
    if not graded:
        raise ValueError("no graded problem to take a score of")
    share = sum(graded) / len(graded)
    return TaskScore(share, math.sqrt(share * (1 - share) / len(graded)), len(graded))


def greedy_completions(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    prompts: Sequence[str],
    batch_size: int = 500,
) -> list[str]:
    """Complete prompts of equal length by the most likely token at each place."""
    import torch

    completions: list[str] = []
    for start in range(0, len(prompts), batch_size):
        inputs_BL = tokenizer(list(prompts[start : start + batch_size]), return_tensors="pt")
        with torch.inference_mode():
            sequences_BG = model.generate(  # type: ignore[operator]
                **inputs_BL.to(model.device),
                do_sample=False,
                max_new_tokens=MAX_COMPLETION_TOKENS,
                use_cache=True,  # a trainer may have stored the opposite in config.json
                pad_token_id=tokenizer.pad_token_id,
                eos_token_id=tokenizer.eos_token_id,
            )
        generated_BG = sequences_BG[:, inputs_BL["input_ids"].shape[1] :]
        completions += tokenizer.batch_decode(generated_BG, skip_special_tokens=True)
    return completions


def measure_score(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    problems: Sequence[Problem],
) -> TaskScore:
    """Score a model by its greedy answers."""
    completions = greedy_completions(model, tokenizer, [problem.prompt for problem in problems])
    return score_of(
        is_correct(problem.answer, completion)
        for problem, completion in zip(problems, completions, strict=True)
    )


@contextmanager
def _no_loading_bar() -> Iterator[None]:
    """Switch off the bars of transformers for a while: a library draws none."""
    from transformers.utils import logging

    was_enabled = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        if was_enabled:
            logging.enable_progress_bar()  # type: ignore[no-untyped-call]


def load_and_measure(
    source: str | Path,
    revision: str | None = None,
    split: Split = "test",
    num_problems: int = NUM_TEST_PROBLEMS,
) -> TaskScore:
    """Score the stored weights of a local folder or of a Hub repo at a revision."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    where = {} if revision is None else {"revision": revision}
    with _no_loading_bar():
        model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32, **where)
        tokenizer = AutoTokenizer.from_pretrained(source, **where)
    return measure_score(model, tokenizer, draw_problems(split, num_problems))
