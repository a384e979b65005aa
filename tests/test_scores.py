"""Scores: from files of every kind to one table of a score per step."""

import csv
import io
import json
import math
import re
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import TrainerState

from alpharl_hub.errors import ScoreError
from alpharl_hub.scores import rows as score_rows
from alpharl_hub.scores.table import (
    ScoreTable,
    evaluation_keys,
    parse_scores,
    require_scores,
    scores_from_trainer_state,
)

STEPS = (8, 16, 40, 88)
SCORES = (0.31, 0.38, 0.52, 0.83)
BY_STEP = dict(zip(STEPS, SCORES, strict=True))


def csv_text(header: list[str], rows: list[list[object]]) -> str:
    """Write a CSV file with the standard library."""
    stream = io.StringIO(newline="")
    csv.writer(stream).writerows([header, *rows])
    return stream.getvalue()


def lines_text(rows: list[dict[str, object]]) -> str:
    """Write a JSON lines file with the standard library."""
    return "".join(json.dumps(row) + "\n" for row in rows)


def trl_rows(step: int, reward: float, eval_reward: float | None) -> list[dict[str, object]]:
    """Give the rows that TRL's GRPOTrainer logs at one step, with an evaluation where asked."""
    metrics = {
        "num_tokens": 4096.0 * step,
        "completions/mean_length": 11.5,
        "completions/clipped_ratio": 0.0,
        "rewards/exact_match/mean": reward,
        "rewards/exact_match/std": 0.4,
        "reward": reward,
        "reward_std": 0.4,
        "frac_reward_zero_std": 0.25,
        "entropy": 0.9,
        "clip_ratio/high_max": 0.0,
    }
    clock = {"epoch": step / 100, "step": step}
    train = {"loss": 0.01, "grad_norm": math.nan, "learning_rate": 1e-6, **metrics, **clock}
    if eval_reward is None:
        return [train]
    speed = {"eval_loss": 0.02, "eval_runtime": 3.0, "eval_samples_per_second": 21.0}
    of_eval = {
        **{f"eval_{name}": value for name, value in metrics.items()},
        "eval_rewards/exact_match/mean": eval_reward,
        "eval_reward": eval_reward,
    }
    return [train, {**speed, "eval_steps_per_second": 2.0, **of_eval, **clock}]


def state_text(folder: Path, history: list[dict[str, object]], global_step: int) -> str:
    """Write a trainer_state.json the way the Trainer does, NaN included."""
    path = folder / "trainer_state.json"
    TrainerState(global_step=global_step, max_steps=200, log_history=history).save_to_json(
        str(path)
    )
    return path.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("filename", "text"),
    [
        ("scores.csv", csv_text(["step", "accuracy"], [[s, y] for s, y in BY_STEP.items()])),
        ("scores.csv", "\ufeffStep, acc \n8.0,.31\n016,0.38\n\n40,5.2e-1\n 88 , 0.83\n"),
        ("scores.JSON", json.dumps(BY_STEP)),
        ("scores.json", json.dumps({s: {"acc": y, "note": "x"} for s, y in BY_STEP.items()})),
        ("scores.json", json.dumps([{"step": s, "score": y} for s, y in BY_STEP.items()])),
        ("scores.json", json.dumps({f"{s:09d}": y for s, y in BY_STEP.items()}, indent=2)),
        ("run.jsonl", lines_text([{"step": s, "acc": y} for s, y in BY_STEP.items()])),
    ],
)
def test_one_column_of_numbers_needs_no_key(filename: str, text: str) -> None:
    """Every format gives the same score per step, and a lone column is found without its name."""
    table = parse_scores(text, filename, None)
    assert table.by_step == BY_STEP
    assert (table.where, table.lower_is_better) == (filename, False)
    assert (table.at(8), table.at(9)) == (0.31, None)


def test_key_of_verl_file_log_is_found_below_data() -> None:
    """verl's file logger nests the numbers below `data`; validation happens on some steps only."""
    rows: list[dict[str, object]] = []
    for step in range(1, 9):
        data = {"critic/score/mean": 0.1 * step, "training/global_step": step}
        if step % 4 == 0:
            data["val-core/gsm8k/acc/mean@1"] = step / 10
        rows.append({"step": step, "data": data})
    table = parse_scores(lines_text(rows), "exp.jsonl", "val-core/gsm8k/acc/mean@1")
    assert table == ScoreTable("val-core/gsm8k/acc/mean@1", {4: 0.4, 8: 0.8}, "exp.jsonl")


def test_flat_log_with_several_rows_per_step_is_read_by_key() -> None:
    """prime-rl appends flat rows, with evaluation and training of one step on separate lines."""
    rows: list[dict[str, object]] = [
        {"step": 0, "time": 1.0, "eval/aime/avg@16": 0.25},
        {"step": 0, "time": 2.0, "reward/all/mean": 0.5},
        {"step": 10, "time": 3.0, "eval/aime/avg@16": 0.5},
    ]
    table = parse_scores(lines_text(rows), "metrics.jsonl", "eval/aime/avg@16", True)
    assert table.by_step == {0: 0.25, 10: 0.5}
    assert table.lower_is_better


def test_key_score_is_preferred_among_several() -> None:
    """A column called score is meant, whatever stands beside it."""
    text = csv_text(["step", "problems", "score"], [[10, 200, 0.5], [20, 200, 0.75]])
    assert parse_scores(text, "s.csv", None).by_step == {10: 0.5, 20: 0.75}
    assert parse_scores(text, "s.csv", "problems").by_step == {10: 200, 20: 200}


@pytest.mark.parametrize("filename", ["s.csv", "s.json", "s.jsonl"])
def test_values_that_are_not_there_are_left_out(filename: str) -> None:
    """Empty cells, null, NaN and infinities are no scores and no errors."""
    values = [0.5, None, math.nan, math.inf, -math.inf, 0.75]
    rows: list[dict[str, object]] = [{"step": i, "acc": value} for i, value in enumerate(values)]
    texts = {
        "s.csv": csv_text(["step", "acc"], [[i, value] for i, value in enumerate(values)]),
        "s.json": json.dumps(rows),
        "s.jsonl": "\n" + lines_text(rows),
    }
    assert parse_scores(texts[filename], filename, None).by_step == {0: 0.5, 5: 0.75}


def test_step_that_comes_twice() -> None:
    """The newest line of a log wins; in CSV and JSON the two must agree."""
    twice: list[dict[str, object]] = [{"step": 5, "score": 0.5}, {"step": 5, "score": 0.25}]
    again = [*twice, {"step": 5, "score": None}]
    assert parse_scores(lines_text(again), "log.jsonl", None).by_step == {5: 0.25}
    assert parse_scores("step,score\n5,0.5\n05,.5\n", "s.csv", None).by_step == {5: 0.5}
    with pytest.raises(ScoreError, match=r"s.json, row 2: a second score of step 5, 0.25 after"):
        parse_scores(json.dumps(twice), "s.json", None)
    with pytest.raises(ScoreError, match=r"s.json, '05': a second score of step 5"):
        parse_scores('{"5": 0.5, "05": 0.25}', "s.json", None)


def test_several_columns_without_a_key_are_listed() -> None:
    """The choice is the user's: ten names are shown, and how many more there are."""
    names = [f"task{i}" for i in range(13)]
    text = csv_text(["step", *names, "comment"], [[10, *range(13), "good"]])
    with pytest.raises(ScoreError, match="--score-key") as caught:
        parse_scores(text, "s.csv", None)
    assert re.findall(r"'(\w+)'", str(caught.value)) == names[:10]
    assert "13 columns" in str(caught.value)
    assert str(caught.value).endswith("and 3 more")


def test_missing_key_names_near_ones() -> None:
    """A misspelt key is answered with what it may have meant."""
    text = json.dumps([{"step": 1, "accuracy": 0.5, "loss": 2.0, "tokens": 17}])
    with pytest.raises(ScoreError, match=r"no key 'acuracy'; it has 'accuracy'$"):
        parse_scores(text, "s.json", "acuracy")
    with pytest.raises(ScoreError, match=r"it has 'accuracy', 'loss', 'tokens'$"):
        parse_scores(text, "s.json", "zzz")


HOSTILE = {
    "deep nesting": ("s.json", "[" * 200_000),
    "deep nesting in a line": ("s.jsonl", '{"step":' * 100_000),
    "key twice": ("s.json", '{"10": 0.5, "20": 0.6, "10": 0.7}'),
    "key twice in a row": ("s.jsonl", '{"step": 1, "score": 0.5, "score": 0.6}'),
    "integer of 5000 digits": ("s.json", '{"10": ' + "9" * 5000 + "}"),
    "integer beyond float": ("s.json", '{"10": ' + "9" * 400 + "}"),
    "step beyond float": ("s.json", '[{"step": ' + "9" * 400 + ', "score": 1}]'),
    "step with a share": ("s.csv", "step,score\n1.5,0.5\n"),
    "step below zero": ("s.csv", "step,score\n-1,0.5\n"),
    "step is a truth value": ("s.json", '[{"step": true, "score": 1}]'),
    "step is NaN": ("s.json", '[{"step": NaN, "score": 1}]'),
    "no step": ("s.json", '[{"score": 1}]'),
    "name instead of a step": ("s.json", '{"accuracy": 0.5}'),
    "row is a number": ("s.jsonl", "0.5\n"),
    "only a number": ("s.json", "0.5"),
    "truncated line": ("s.jsonl", '{"step": 1, "score": 0.5}\n{"step": 2, "sc'),
    "empty": ("s.json", ""),
    "empty CSV": ("s.csv", ""),
    "empty log": ("s.jsonl", "\n\n"),
    "no scores": ("s.json", "{}"),
    "only nulls": ("s.json", '{"10": null}'),
    "semicolons": ("s.csv", "step;score\n1;0.5\n"),
    "two step columns": ("s.csv", "step,Step,score\n1,1,0.5\n"),
    "column twice": ("s.csv", "step,score,score\n1,0.5,0.6\n"),
    "short line": ("s.csv", "step,score,loss\n1,0.5\n"),
    "open quote": ("s.csv", 'step,score\n1,"0.5\n'),
    "cell too long": ("s.csv", "step,score\n1," + "5" * 200_000 + "\n"),
    "trainer state": ("trainer_state.json", '{"global_step": 1, "log_history": []}'),
    "unknown format": ("s.yaml", "10: 0.5"),
    "no suffix": ("scores", '{"10": 0.5}'),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_bad_files_are_refused_in_one_line(case: str) -> None:
    """Whatever strangers write, the answer is one short line that begins with the file."""
    filename, text = HOSTILE[case]
    with pytest.raises(ScoreError) as caught:
        parse_scores(text, filename, None)
    message = str(caught.value)
    assert message.startswith(filename)
    assert "\n" not in message
    assert len(message) < 250


@pytest.mark.parametrize(
    ("text", "found"),
    [('"0.5"', "'0.5'"), ("true", "bool"), ("[0.5]", "list"), ('"\\u001b[31m"', "x1b")],
)
def test_value_that_is_no_number_is_shown(text: str, found: str) -> None:
    """A named column must hold numbers; control characters do not reach the terminal."""
    with pytest.raises(ScoreError, match=re.escape(found)) as caught:
        parse_scores(f'{{"10": {{"acc": 0.5}}, "20": {{"acc": {text}}}}}', "s.json", "acc")
    assert str(caught.value).isprintable()
    assert "'20'" in str(caught.value)


def test_text_beyond_the_limit_is_not_parsed() -> None:
    """A text above 64 MiB is refused by its length."""
    text = " " * (score_rows.MAX_TEXT_CHARS + 1)
    with pytest.raises(ScoreError, match="67108864 characters"):
        parse_scores(text, "s.json", None)
    with pytest.raises(ScoreError, match="67108864 characters"):
        scores_from_trainer_state({1: text}, None)


def test_large_hostile_objects_are_refused_quickly() -> None:
    """A repeated key or column among 200,000 is found without comparing all pairs."""
    started = time.process_time()
    names = [f"{i:020d}" for i in range(200_000)]
    text = "{" + ",".join(f'"{name}":1' for name in [*names, names[5]]) + "}"
    with pytest.raises(ScoreError, match=r"'0*5' stands twice"):
        parse_scores(text, "s.json", None)
    with pytest.raises(ScoreError, match=r"two columns are called '0*5'"):
        parse_scores(",".join(["step", *names, names[5]]), "s.csv", None)
    with pytest.raises(ScoreError, match=r"no key 'x0*1'"):
        parse_scores(json.dumps({"1": dict.fromkeys(names, 1)}), "s.json", "x" + names[1])
    assert time.process_time() - started < 8


def test_eval_reward_of_trainer_state_is_taken_without_a_key(tmp_path: Path) -> None:
    """Of what TRL logs in an evaluation, only its reward is a score."""
    history: list[dict[str, object]] = []
    states = {}
    for step, score in BY_STEP.items():
        history += trl_rows(step, 0.9, score)
        states[step] = state_text(tmp_path, history, step)
    assert evaluation_keys(states) == ("eval_reward",)
    assert scores_from_trainer_state(states, None) == ScoreTable(
        "eval_reward", BY_STEP, "trainer_state.json"
    )


def test_training_reward_is_never_taken_silently(tmp_path: Path) -> None:
    """Without an evaluation there is no score, unless the reward is asked for by name."""
    states = {8: state_text(tmp_path, trl_rows(8, 0.5, None), 8)}
    assert scores_from_trainer_state(states, None) is None
    table = scores_from_trainer_state(states, "reward", lower_is_better=True)
    assert table == ScoreTable("reward", {8: 0.5}, "trainer_state.json", True)


def test_two_evaluation_scores_need_a_key(tmp_path: Path) -> None:
    """With two candidates none is guessed; both are listed for the message."""
    row: dict[str, object] = {"eval_accuracy": 0.5, "eval_f1": 0.25, "eval_loss": 1.0, "step": 8}
    states = {8: state_text(tmp_path, [row], 8)}
    assert evaluation_keys(states) == ("eval_accuracy", "eval_f1")
    assert scores_from_trainer_state(states, None) is None
    table = scores_from_trainer_state(states, "eval_f1")
    assert table is not None
    assert table.by_step == {8: 0.25}


def test_checkpoint_without_its_own_row_gets_the_mean_since_the_one_before(tmp_path: Path) -> None:
    """Rows are averaged over (previous checkpoint, this one], and the averaged steps are named."""
    rewards = {5: 0.1, 10: 0.2, 15: 0.4, 20: 0.6, 25: 0.7}
    history = [row for step, reward in rewards.items() for row in trl_rows(step, reward, None)]
    states = {step: state_text(tmp_path, history, step) for step in (7, 10, 22, 23)}
    table = scores_from_trainer_state(states, "reward")
    assert table is not None
    assert table.by_step == pytest.approx({7: 0.1, 10: 0.2, 22: np.mean([0.4, 0.6])})
    assert table.averaged_steps == (7, 22)
    with pytest.raises(
        ScoreError, match=r"no 'reward' for step 23 \(steps with a score: 7 to 22\)"
    ):
        require_scores(table, (7, 23))


def test_rows_are_matched_by_the_counter_of_the_trainer(tmp_path: Path) -> None:
    """A run that names every second optimizer step is read by the counter in its own files."""
    states = {
        named: state_text(tmp_path, trl_rows(2 * named, named / 10, None), 2 * named)
        for named in (1, 2, 3)
    }
    table = scores_from_trainer_state(states, "reward")
    assert table is not None
    assert table.by_step == pytest.approx({1: 0.1, 2: 0.2, 3: 0.3})
    assert table.averaged_steps == ()


@pytest.mark.parametrize(
    ("text", "key", "complaint"),
    [
        ("[]", None, "trainer_state.json of step 8: it has no log_history"),
        ('{"log_history": {"1": 2}}', None, "no log_history"),
        ('{"log_history": [{"reward": 1}]}', None, r"log_history\[0\]: an object with a 'step'"),
        ('{"log_history": [], "global_step": -1}', None, "whole number"),
        ("{", None, "trainer_state.json of step 8: not valid JSON"),
        ('{"log_history": [{"step": 8, "reward": 1}]}', "rewards", "it has 'reward'"),
        ('{"log_history": [{"step": 8, "reward": null}]}', "reward", "no number in any row"),
        ('{"log_history": [{"step": 8, "reward": "a"}]}', "reward", "not a number"),
    ],
)
def test_bad_trainer_state_is_refused(text: str, key: str | None, complaint: str) -> None:
    """A file that is no trainer_state.json, or has no such key, is named with its step."""
    with pytest.raises(ScoreError, match=complaint):
        scores_from_trainer_state({8: text}, key)


def test_required_scores_follow_the_steps() -> None:
    """All there: in the order of the steps. Some missing: five are named, the others counted."""
    table = ScoreTable("acc", BY_STEP, "s.csv")
    assert require_scores(table, STEPS) == SCORES
    assert require_scores(table, (40, 8)) == (0.52, 0.31)
    with pytest.raises(ScoreError, match=r"step 1, 2, 3, 4, 5 and 2 more \(.*: 8 to 88\)"):
        require_scores(table, (1, 2, 3, 4, 5, 6, 7, 8))


@given(
    scores=st.dictionaries(
        st.integers(0, 10**15), st.floats(-1e100, 1e100), min_size=1, max_size=8
    ),
    suffix=st.sampled_from(["csv", "json", "jsonl"]),
)
def test_every_table_survives_every_format(scores: dict[int, float], suffix: str) -> None:
    """What the standard library writes is read back to the bit."""
    rows: list[dict[str, object]] = [{"step": s, "score": y} for s, y in scores.items()]
    text = {
        "csv": csv_text(["score", "step"], [[y, s] for s, y in scores.items()]),
        "json": json.dumps(scores),
        "jsonl": lines_text(rows),
    }[suffix]
    assert parse_scores(text, f"s.{suffix}", None).by_step == scores
