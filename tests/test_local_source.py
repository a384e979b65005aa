"""Runs in local folders, as trainers leave them."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hub_fixtures import wide_line
from safetensors.torch import load, save_file
from trajectories import (
    Q_PROJ,
    Run,
    model_config,
    rank_one_line,
    write_checkpoint,
    write_run,
)

from alpharl_hub.errors import AlphaRLError, ScoreError, SourceError, TrajectoryError
from alpharl_hub.sources.base_choice import base_model_of_card
from alpharl_hub.sources.contents import open_contents
from alpharl_hub.sources.local import LocalFolder
from alpharl_hub.sources.local_run import could_be_repo, is_local
from alpharl_hub.sources.opening import RunRequest, open_trajectory
from alpharl_hub.trajectory import Checkpoint, CheckpointContents, Trajectory

STEPS = (20, 100, 300)
LINE = rank_one_line(size=5e-6)


def open_run(run: Path | str, base: Path | None, **options: Any) -> Trajectory:
    """Open a run as a command would."""
    return open_trajectory(RunRequest(str(run), base=str(base) if base else None, **options))


def write_steps(root: Path, name: str, steps: tuple[int, ...] = STEPS, **options: Any) -> Path:
    """Write a base beside `root`, and below it a checkpoint for each step at `name`."""
    options = {"config": model_config(), **options}
    write_checkpoint(root.parent / "base", LINE(0), **options)
    for step in steps:
        write_checkpoint(root / name.format(step), LINE(step), **options)
    return root.parent / "base"


def stored_bytes(contents: CheckpointContents, name: str) -> bytes:
    """Read one tensor's bytes through the store."""
    ref = contents.tensors[name]
    buffer = bytearray(ref.num_bytes)
    contents.store.read_into(contents.path_of(ref.filename), ref.start, memoryview(buffer))
    return bytes(buffer)


def codes(trajectory: Trajectory) -> list[str]:
    """The codes of what was noticed."""
    return [notice.code for notice in trajectory.notices]


def refusal(run: Path | str, base: Path | None = None, **options: Any) -> str:
    """Return the words of the error that opening a run ends with."""
    with pytest.raises(AlphaRLError) as error:
        open_run(run, base, **options)
    return str(error.value)


TRAINERS = {
    "TRL": ("checkpoint-{}", "checkpoint-{step}", ""),
    "verl": ("global_step_{}/actor/huggingface", "global_step_{step}", "actor/huggingface"),
    "verl, weights of its own": ("global_step_{}/hf_model", "global_step_{step}", "hf_model"),
    "OpenRLHF": ("global_step{}_hf", "global_step{step}_hf", ""),
    "SkyRL": ("global_step_{}/policy", "global_step_{step}", "policy"),
    "prime-rl": ("step_{}", "step_{step}", ""),
    "open-instruct": ("step_{}", "step_{step}", ""),
    "slime": ("iter_{:07}", "iter_{step}", ""),
}


def leave_more(trainer: str, root: Path, name: str) -> None:
    """Put what else the trainer writes beside the weights."""
    for step in STEPS:
        folder = root / name.format(step)
        more = {
            "TRL": ["training_args.bin", "optimizer.pt", "rng_state.pth", "scheduler.pt"],
            "verl": ["../fsdp_config.json", "../model_world_size_1_rank_0.pt"],
            "OpenRLHF": [f"../_actor/global_step{step}/mp_rank_00_model_states.pt"],
            "prime-rl": ["STABLE"],
            "SkyRL": ["../trainer_state.pt"],
        }.get(trainer, [])
        for extra in more:
            path = folder / extra
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"")
    if trainer == "verl":
        (root / "latest_checkpointed_iteration.txt").write_text("300")


@pytest.mark.parametrize("trainer", TRAINERS)
def test_folders_of_trainers_are_runs(tmp_path: Path, trainer: str) -> None:
    """Every step is found by its number, and its weights below it, whatever lies beside them."""
    name, pattern, weights_folder = TRAINERS[trainer]
    root = tmp_path / "run"
    config = None if trainer == "prime-rl" else model_config()
    base = write_steps(root, name, config=config)
    leave_more(trainer, root, name)
    trajectory = open_run(root, base)
    assert (trajectory.layout, trajectory.pattern) == ("local", pattern)
    assert trajectory.steps_T == STEPS
    assert [c.weights_folder for c in trajectory.history] == [weights_folder] * 3
    for step, contents in zip(STEPS, trajectory.history, strict=True):
        planted = load((root / name.format(step) / "model.safetensors").read_bytes())
        assert set(contents.tensors) == set(planted)
        assert stored_bytes(contents, Q_PROJ) == planted[Q_PROJ].numpy().tobytes()
    assert trajectory.notices == ()


def test_a_pattern_says_where_the_number_stands(tmp_path: Path) -> None:
    """It may name the folder inside; a step that lacks that folder is left out and mentioned."""
    root = tmp_path / "run"
    base = write_steps(root, "s{}x/deep/model")
    (root / "s7x").mkdir()
    trajectory = open_run(f"{root}/s{{step}}x/deep/model", base)
    assert trajectory.steps_T == STEPS
    assert trajectory.pattern == "s{step}x/deep/model"
    assert codes(trajectory) == ["incomplete_steps"]
    assert "s7x" in trajectory.notices[0].message
    assert "there is s100x, s20x" in refusal(f"{root}/step_{{step}}", base)
    assert "stands more than once" in refusal(f"{root}/s{{step}}x/{{step}}", base)
    assert "stands more than once" in refusal(f"{root}/s{{step}}-{{step}}", base)


def test_unfinished_steps_are_left_out(tmp_path: Path) -> None:
    """prime-rl's mark decides where there is one; a folder without weights is no checkpoint."""
    root = tmp_path / "run"
    base = write_steps(root, "step_{}", config=None)
    for step in (100, 300):
        (root / f"step_{step}" / "STABLE").touch()
    (root / "step_400").mkdir()
    (root / "step_400" / "STABLE").touch()
    for name in ("tmp_step_500", "old_step_300"):
        write_checkpoint(root / name, LINE(300))
    trajectory = open_run(root, base)
    assert trajectory.steps_T == (100, 300)
    assert codes(trajectory) == ["incomplete_steps"]
    assert "2 incomplete step folders" in trajectory.notices[0].message
    assert "step_20," in trajectory.notices[0].message
    assert "step_400" in trajectory.notices[0].message


def test_one_step_of_verl_without_weights_is_left_out(tmp_path: Path) -> None:
    """verl keeps config and tokenizer of every step, weights only where it was told to."""
    root = tmp_path / "run"
    base = write_steps(root, "global_step_{}/actor/huggingface")
    (root / "global_step_100/actor/huggingface/model.safetensors").unlink()
    trajectory = open_run(root, base)
    assert trajectory.steps_T == (20, 300)
    assert codes(trajectory) == ["incomplete_steps"]


STATES = {
    "verl": ("actor/model_world_size_2_rank_0.pt", "python -m verl.model_merger merge"),
    "torch": ("pytorch_model.bin", "only as pickles (pytorch_model.bin), which are never opened"),
    "SkyRL": ("policy/model_state.pt", "only as pickles (policy/model_state.pt)"),
    "DCP": ("trainer/__0_0.distcp", "only as pickles (trainer/__0_0.distcp)"),
    "LoRA": ("adapter_model.safetensors", "has no adapter_config.json beside it"),
    "no weights": ("optimizer.pt", "no model.safetensors and no model.safetensors.index.json"),
}


@pytest.mark.parametrize("kind", STATES)
def test_a_run_without_readable_weights_says_what_there_is(tmp_path: Path, kind: str) -> None:
    """The message names the step's folder, what lies there, and what to do about it."""
    filename, words = STATES[kind]
    base = write_steps(tmp_path / "run", "global_step_{}")
    for step in STEPS:
        folder = tmp_path / "run" / f"global_step_{step}"
        (folder / "model.safetensors").unlink()
        (folder / filename).parent.mkdir(exist_ok=True)
        (folder / filename).write_bytes(b"\x80\x04")
        (folder / "training_args.bin").write_bytes(b"\x80\x04")
    text = refusal(tmp_path / "run", base)
    assert text.startswith(f"{tmp_path}/run/global_step_20: ")
    assert words in text


def test_two_families_of_folders_are_listed(tmp_path: Path) -> None:
    """Which of them is the run is not guessed; the message shows a RUN that says so."""
    base = write_steps(tmp_path / "run", "global_step{}_hf")
    write_steps(tmp_path / "run", "best_global_step{}_hf", (100, 300))
    text = refusal(tmp_path / "run", base)
    assert "global_step{step}_hf (3 steps), best_global_step{step}_hf (2 steps)" in text
    pattern = text.rpartition("such as ")[2]
    assert pattern == f"{tmp_path}/run/global_step{{step}}_hf"
    assert open_run(pattern, base).steps_T == STEPS


def test_no_steps(tmp_path: Path) -> None:
    """A folder that is one model, an empty one and a missing one each say what to type instead."""
    base = write_steps(tmp_path / "run", "best-{}")
    assert refusal(tmp_path / "run", base).endswith(f"such as {tmp_path}/run/checkpoint-{{step}}")
    assert "one model and no steps; say which step it is with --at .=STEP" in refusal(base, base)
    assert "no such folder; to name a repo, write hf://ORG/NAME" in refusal("./nowhere", base)
    text = refusal(tmp_path / "run", tmp_path / "nowhere")
    assert text == refusal(tmp_path / "run", base)


def test_at_adds_folders_as_steps(tmp_path: Path) -> None:
    """--at names folders below RUN, or RUN itself, also where no name carries a number."""
    base = write_steps(tmp_path / "run", "step_{}")
    write_checkpoint(tmp_path / "run", LINE(400), config=model_config())
    trajectory = open_run(tmp_path / "run", base, at=((".", 400),))
    assert trajectory.steps_T == (*STEPS, 400)
    assert stored_bytes(trajectory.last, Q_PROJ) == LINE(400)[Q_PROJ].numpy().tobytes()
    write_steps(tmp_path / "named", "{}", (1, 2))
    (tmp_path / "named" / "1").rename(tmp_path / "named" / "early")
    (tmp_path / "named" / "2").rename(tmp_path / "named" / "late")
    at = (("late", 20), ("early", 10))
    assert open_run(tmp_path / "named", base, at=at).steps_T == (10, 20)
    text = refusal(tmp_path / "run", base, at=((".", 100),))
    assert text == "--at .=100: the run has a step 100 already; give another, or leave it out"
    assert "--at gone=7: " in refusal(tmp_path / "run", base, at=(("gone", 7),))


@pytest.mark.parametrize("sharded", [False, True])
def test_repeats_leave_the_history(tmp_path: Path, sharded: bool) -> None:
    """Of equal neighbours the first stays; what comes back later is no repeat."""
    shards = {"num_shards": 2} if sharded else {}
    base = write_steps(tmp_path / "run", "step_{}", (10, 20, 30, 40, 50, 60), **shards)
    for copy, original in ((20, 10), (30, 10), (50, 10), (60, 10)):
        shutil.rmtree(tmp_path / f"run/step_{copy}")
        shutil.copytree(tmp_path / f"run/step_{original}", tmp_path / f"run/step_{copy}")
    trajectory = open_run(tmp_path / "run", base)
    assert trajectory.steps_T == (10, 40, 50)
    assert codes(trajectory) == ["repeats"]
    assert "steps 20, 30, 60 repeat" in trajectory.notices[0].message
    assert "plateau" in trajectory.notices[0].message
    kept = open_run(tmp_path / "run", base, keep_repeats=True)
    assert kept.steps_T == (10, 20, 30, 40, 50, 60)
    assert kept.notices == ()


def test_one_byte_makes_a_difference(tmp_path: Path) -> None:
    """Large files of equal size are compared whole before one is called a repeat."""
    line = wide_line(256)
    folder = write_checkpoint(tmp_path / "run/step_10", line(10), config=model_config())
    write_checkpoint(tmp_path / "base", line(0), config=model_config())
    for step in (20, 30):
        shutil.copytree(folder, tmp_path / f"run/step_{step}")
    path = tmp_path / "run/step_20/model.safetensors"
    data = bytearray(path.read_bytes())
    data[len(data) // 2 + 20_000] ^= 1
    path.write_bytes(data)
    trajectory = open_run(tmp_path / "run", tmp_path / "base")
    assert trajectory.steps_T == (10, 20, 30)
    path.write_bytes((folder / "model.safetensors").read_bytes())
    assert open_run(tmp_path / "run", tmp_path / "base").steps_T == (10,)


def test_a_dozen_of_many_steps_is_taken(tmp_path: Path) -> None:
    """The line says how many there are, how to take all of them, and how much that is."""
    steps = tuple(range(5, 205, 5))
    base = write_steps(tmp_path / "run", "step_{}", steps)
    trajectory = open_run(tmp_path / "run", base)
    assert len(trajectory.history) == 12
    assert (trajectory.steps_T[0], trajectory.steps_T[-1]) == (5, 200)
    assert [c.step for c in trajectory.listed] == list(steps)
    (notice,) = trajectory.notices
    assert notice.code == "selection"
    assert "12 of 40 checkpoints" in notice.message
    assert "--steps 5- takes all" in notice.message
    everything = open_run(tmp_path / "run", base, steps="5-")
    assert everything.steps_T == steps
    assert everything.notices == ()
    assert open_run(tmp_path / "run", base, steps="5,200", until="40%").steps_T == (5,)


def plain_run(tmp_path: Path) -> Run:
    """A run of two steps."""
    return write_run(tmp_path, (10, 20), LINE)


def test_the_base_is_named_by_the_option_or_is_step_0(tmp_path: Path) -> None:
    """Step 0 is the base and no checkpoint of the history; --base goes before it."""
    run = plain_run(tmp_path)
    shutil.copytree(run.base, run.root / "step_0")
    trajectory = open_run(run.root, None)
    assert trajectory.base_chosen_by == "step_0"
    assert trajectory.base.checkpoint.source == f"{run.root}/step_0"
    assert trajectory.steps_T == (10, 20)
    trajectory = open_run(run.root, run.base)
    assert trajectory.base_chosen_by == "option"
    assert trajectory.base.checkpoint.source == str(run.base)
    assert trajectory.steps_T == (10, 20)
    for step in run.steps:
        shutil.rmtree(run.folder(step))
    assert "step 0 is the base, and there is no other step" in refusal(run.root, at=((".", 0),))


def test_nothing_names_the_base(tmp_path: Path) -> None:
    """The message says where was looked, and what to type."""
    run = plain_run(tmp_path)
    text = refusal(run.root)
    assert text.startswith(f"{run.root}: nothing says what the run started from")
    base = tmp_path / "base"
    assert text.endswith(
        f"name it with --base ORG/NAME or --base FOLDER (there is {base}: --base {base})"
    )
    base.rename(tmp_path / "other")
    assert refusal(run.root).endswith("name it with --base ORG/NAME or --base FOLDER")
    assert "no such folder" in refusal(run.root, tmp_path / "nowhere")


CARDS = {
    "plain": ("---\nlicense: mit\nbase_model: Qwen/Qwen2.5-Math-1.5B\n---\n# x\n", True),
    "quoted": ('---\nbase_model: "Qwen/Qwen2.5-Math-1.5B"\n---\n', True),
    "Windows": ("---\r\nbase_model: Qwen/Qwen2.5-Math-1.5B\r\ntags: [x]\r\n---\r\ntext", True),
    "blanks": ("\n---  \nbase_model:   Qwen/Qwen2.5-Math-1.5B  \n---", True),
    "broken elsewhere": ("---\n: [\nbase_model: Qwen/Qwen2.5-Math-1.5B\n---\n", True),
    "the first block counts": (
        "---\nbase_model: Qwen/Qwen2.5-Math-1.5B\n---\n---\nbase_model: a/b\n---\n",
        True,
    ),
    "list": ("---\nbase_model:\n- Qwen/Qwen2.5-Math-1.5B\n- a/b\n---\n", False),
    "inline list": ("---\nbase_model: [Qwen/Qwen2.5-Math-1.5B]\n---\n", False),
    "path": ("---\nbase_model: /data/Qwen2.5\n---\n", False),
    "deep path": ("---\nbase_model: models/Qwen/Qwen2.5\n---\n", False),
    "name alone": ("---\nbase_model: Qwen2.5\n---\n", False),
    "empty": ("---\nbase_model:\n---\n", False),
    "not in the block": ("# Title\nbase_model: Qwen/Qwen2.5-Math-1.5B\n", False),
    "nested": ("---\nx:\n  base_model: Qwen/Qwen2.5-Math-1.5B\n---\n", False),
    "another key": ("---\nbase_model_relation: finetune\n---\n", False),
}


@pytest.mark.parametrize("kind", CARDS)
def test_the_base_that_a_card_names(kind: str) -> None:
    """One Hub id is an answer, a list or a path is none; the rest of the card may be anything."""
    card, is_answer = CARDS[kind]
    assert base_model_of_card(card) == ("Qwen/Qwen2.5-Math-1.5B" if is_answer else None)


def test_which_names_are_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name is a folder by its first character, or because there is one; hf:// is the Hub."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lab" / "run" / "step_10").mkdir(parents=True)
    for text in ("/lab/none", "./lab/none", "../none", "~/none", ".", "lab/run", "lab/run/", "lab"):
        assert is_local(text), text
    (tmp_path / "lab" / "file").touch()
    assert is_local("lab/file")
    for text in (
        "",
        "lab/none",
        "hf://lab/run",
        "hf://./lab",
        "lab/run@step_10",
        "https://x.y/a/b",
    ):
        assert not is_local(text), text
    assert is_local("lab/run/step_{step}")
    assert not is_local("lab/run/checkpoint-{step}")
    assert not is_local("other/run@step_{step}")
    both = [t for t in ("lab/run", "lab", "./lab/run", "hf://lab/run") if could_be_repo(t)]
    assert both == ["lab/run"]


def test_a_snapshot_of_links_is_read(tmp_path: Path) -> None:
    """The local cache of the Hub's client keeps links to blobs in its folders."""
    run = plain_run(tmp_path)
    blobs = tmp_path / "blobs"
    blobs.mkdir()
    for path in list(run.root.rglob("*.*")):
        blob = blobs / f"{path.parent.name}-{path.name}"
        path.rename(blob)
        path.symlink_to(os.path.relpath(blob, path.parent))
    trajectory = open_run(run.root, run.base)
    assert stored_bytes(trajectory.last, Q_PROJ) == LINE(20)[Q_PROJ].numpy().tobytes()


def test_scores_of_the_trainer_or_of_a_file(tmp_path: Path) -> None:
    """An evaluation's score is taken from trainer_state.json; a file goes before it."""
    run = plain_run(tmp_path)
    assert open_run(run.root, run.base).scores is None
    with pytest.raises(ScoreError, match=r"no checkpoint has a trainer_state\.json"):
        open_run(run.root, run.base, score_key="eval_reward")
    for step in run.steps:
        row = {"step": step, "eval_reward": step / 100, "reward": 0.9}
        state = {"global_step": step, "log_history": [row]}
        (run.folder(step) / "trainer_state.json").write_text(json.dumps(state))
    trajectory = open_run(run.root, run.base)
    assert trajectory.scores is not None
    assert (trajectory.scores.name, trajectory.scores_T()) == ("eval_reward", (0.1, 0.2))
    scores = tmp_path / "scores.csv"
    scores.write_text("step,score\n10,0.3\n20,0.5\n")
    assert open_run(run.root, run.base, scores=scores).scores_T() == (0.3, 0.5)


def test_shards_of_an_index(tmp_path: Path) -> None:
    """Tensors are found in the shard that holds them; a lone file goes before an index."""
    run = write_run(tmp_path, (10, 20), LINE, last_options={"num_shards": 3})
    last = open_run(run.root, run.base).last
    assert len(last.weight_files) == 3
    assert set(last.tensors) == set(LINE(20))
    assert stored_bytes(last, Q_PROJ) == LINE(20)[Q_PROJ].numpy().tobytes()
    write_checkpoint(run.folder(20), LINE(21), config=model_config())
    last = open_run(run.root, run.base).last
    assert [file.filename for file in last.weight_files] == ["model.safetensors"]
    assert stored_bytes(last, Q_PROJ) == LINE(21)[Q_PROJ].numpy().tobytes()


def test_a_bad_index_is_refused(tmp_path: Path) -> None:
    """Missing shards, a tensor in two shards, and names that lead elsewhere."""
    run = write_run(tmp_path, (10, 20), LINE, last_options={"num_shards": 2})
    folder = run.folder(20)
    index = folder / "model.safetensors.index.json"
    one, two = (f"model-0000{i}-of-00002.safetensors" for i in (1, 2))
    shutil.copy(folder / two, tmp_path / "kept")
    (folder / two).unlink()
    assert f"step_20: {two}: named by the index but missing" in refusal(run.root, run.base)
    shutil.copy(folder / one, folder / two)
    text = refusal(run.root, run.base)
    assert f"stands in {one} and in {two}; one of them is stale" in text
    for name in ("../step_10/model.safetensors", "/etc/passwd", "..", "a\\b"):
        index.write_text(json.dumps({"weight_map": {"x": name}}))
        assert "is no file beside it" in refusal(run.root, run.base)
    for broken in ("{}", '{"weight_map": {}}', "[]", "{", '{"weight_map": 3}'):
        index.write_text(broken)
        text = refusal(run.root, run.base)
        assert "step_20: model.safetensors.index.json: " in text
        assert "store it again" in text


def test_a_config_is_read_as_leniently_as_transformers_does(tmp_path: Path) -> None:
    """Infinity stands in real configs; quantization is seen where multimodal models nest it."""
    run = plain_run(tmp_path)
    config = run.folder(20) / "config.json"
    config.write_text('{"time_step_limit": [0.0, Infinity], "tie_word_embeddings": true}')
    assert open_run(run.root, run.base).last.config["tie_word_embeddings"] is True
    for text in (
        '{"quantization_config": {"quant_method": "fp8"}}',
        '{"text_config": {"quantization_config": {"quant_method": "gptq"}}}',
    ):
        config.write_text(text)
        with pytest.raises(TrajectoryError, match="step_20: quantized weights"):
            open_run(run.root, run.base)
    config.write_text("nothing")
    with pytest.raises(SourceError, match=r"step_20: config\.json: no valid JSON"):
        open_run(run.root, run.base)


def test_a_file_that_ends_early_while_it_is_read(tmp_path: Path) -> None:
    """A file cut after it was opened is told by name and byte, not read as zeros."""
    run = plain_run(tmp_path)
    last = open_run(run.root, run.base).last
    path = run.folder(20) / "model.safetensors"
    ref = last.tensors[Q_PROJ]
    os.truncate(path, ref.stop - 100)
    with pytest.raises(SourceError, match=rf"{path}: ends at byte {ref.stop - 100}, 100 too early"):
        stored_bytes(last, Q_PROJ)
    assert (run.root / "step_20").is_dir()


def test_index_that_names_more_than_the_files_hold_is_refused(tmp_path: Path) -> None:
    """A tensor that only the index knows is an upload cut short, and is named."""
    folder = tmp_path / "checkpoint-10"
    folder.mkdir()
    save_file({"a": torch.ones(2, 2)}, folder / "model-00001-of-00001.safetensors")
    weight_map = dict.fromkeys(("a", "b"), "model-00001-of-00001.safetensors")
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    checkpoint = Checkpoint(10, str(folder), None, None, "")
    with pytest.raises(SourceError, match="no file holds b, which it names"):
        open_contents(checkpoint, LocalFolder(folder))


def test_scores_that_nobody_asked_for_stop_nothing(tmp_path: Path) -> None:
    """A broken trainer_state.json matters only to --score-key; a large one is read only for it."""
    run = write_run(tmp_path, (10, 20), LINE)
    for step in (10, 20):
        (run.folder(step) / "trainer_state.json").write_text("{broken")
    request = RunRequest(str(run.root), base=str(run.base))
    assert open_trajectory(request).scores is None
    with pytest.raises(ScoreError, match=r"trainer_state\.json"):
        open_trajectory(replace(request, score_key="eval_reward"))
    history = [{"step": 10, "eval_reward": 0.5}, {"step": 20, "eval_reward": 0.7}]
    state = {"global_step": 20, "log_history": [*history, {"step": 20, "note": "x" * 300_000}]}
    (run.folder(10) / "trainer_state.json").unlink()
    (run.folder(20) / "trainer_state.json").write_text(json.dumps(state))
    assert open_trajectory(request).scores is None
    asked = open_trajectory(replace(request, score_key="eval_reward")).scores
    assert asked is not None
    assert asked.at(20) == 0.7


def test_what_was_predicted_is_no_checkpoint_of_the_run(tmp_path: Path) -> None:
    """A predicted model that was put beside the steps, under such a name, is left out and told."""
    run = write_run(tmp_path, (10, 20, 30), LINE)
    (run.folder(30) / "alpharl.json").write_text("{}")
    found = open_trajectory(RunRequest(str(run.root), base=str(run.base)))
    assert found.steps_T == (10, 20)
    (notice,) = [n for n in found.notices if n.code == "predicted_steps"]
    assert notice.message == "1 predicted models were left out: step_30"
