"""Bad input: exit 1, one line that names the thing and the next action, and nothing left behind."""

import json
import shlex
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from hub_fixtures import (
    ALICE,
    BOB,
    Commands,
    add_base,
    add_branches,
    files_of,
)
from trajectories import (
    EMBEDDING,
    Q_PROJ,
    UP_PROJ,
    Run,
    Tensors,
    model_config,
    rank_one_line,
    write_checkpoint,
    write_run,
)

from alpharl_hub.local_hub import LocalHub

STEPS = (10, 20, 30, 40)
LINE = rank_one_line()
SINGLE = "model.safetensors"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, hub: LocalHub) -> Path:
    """The folder in which commands are started: a good run, its base, and much that is bad."""
    root = tmp_path_factory.mktemp("place")
    run = write_run(root, STEPS, LINE)
    for spoil in SPOILED.values():
        spoil(root)
    write_scores(root)
    fill_hub(hub, root, run)
    return root


# -- what is bad on disk -------------------------------------------------------------------------


def with_last(root: Path, name: str, tensors: Tensors, **options: Any) -> Path:
    """Copy the run, but for its last checkpoint, and return the last one's folder."""
    for step in STEPS[:-1]:
        shutil.copytree(root / "run" / f"step_{step}", root / name / f"step_{step}")
    options = {"config": model_config(), **options}
    return write_checkpoint(root / name / "step_40", tensors, **options)


def edit_last(root: Path, name: str, edit: Callable[[bytearray], None]) -> None:
    """Copy the run, with the bytes of its last weight file edited."""
    path = with_last(root, name, LINE(40)) / SINGLE
    data = bytearray(path.read_bytes())
    edit(data)
    path.write_bytes(data)


def cut_data(data: bytearray) -> None:
    """Drop the end of the last tensor."""
    del data[-1000:]


def cut_header(data: bytearray) -> None:
    """Drop all but the first half of the header."""
    del data[300:]


def break_header(data: bytearray) -> None:
    """Turn the header into something else than JSON."""
    data[8] ^= 0x20


def overlap_tensors(data: bytearray) -> None:
    """Say of the last tensor that it lies where the first one does."""
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    names = [name for name in header if name != "__metadata__"]
    one, other = names[0], names[-1]
    header[other]["data_offsets"] = header[one]["data_offsets"]
    data[8 : 8 + length] = json.dumps(header, separators=(",", ":")).encode().ljust(length)


def claim_much(data: bytearray) -> None:
    """Claim a header that is larger than any may be."""
    data[:8] = (1 << 40).to_bytes(8, "little")


def pickles(root: Path) -> None:
    """A run whose weights are pickles."""
    for step in STEPS:
        folder = root / "pickles" / f"step_{step}"
        folder.mkdir(parents=True)
        (folder / "pytorch_model.bin").write_bytes(b"\x80\x04N.")
        (folder / "config.json").write_text(json.dumps(model_config()))


def quantized(root: Path) -> None:
    """A checkpoint that says so in its config, and one whose tensors do."""
    scheme = {"quantization_config": {"quant_method": "fp8"}}
    with_last(root, "fp8", LINE(40), config={**model_config(), **scheme})
    tensors = dict(LINE(40))
    tensors[UP_PROJ.replace("weight", "qweight")] = torch.zeros(4, 4, dtype=torch.int32)
    with_last(root, "gptq", tensors)


def mismatched(root: Path) -> None:
    """Bases and checkpoints of other shapes, other names and other models."""
    narrow = {**LINE(0), Q_PROJ: LINE(0)[Q_PROJ][:, :8].clone()}
    write_checkpoint(root / "narrow-base", narrow, config=model_config())
    with_last(root, "narrow", {**LINE(40), Q_PROJ: LINE(40)[Q_PROJ][:8].clone()})
    prefixed = {f"module.{name}": tensor for name, tensor in LINE(0).items()}
    write_checkpoint(root / "prefixed-base", prefixed, config=model_config())
    write_checkpoint(root / "other-base", rank_one_line(seed=8)(0), config=model_config())
    write_checkpoint(root / "vision", {EMBEDDING: LINE(0)[EMBEDDING]})
    for step in STEPS[:2]:
        write_checkpoint(root / "embeddings" / f"step_{step}", {EMBEDDING: LINE(0)[EMBEDDING]})


def not_a_number(root: Path) -> None:
    """A checkpoint with a NaN in it."""
    weights = LINE(40)[UP_PROJ].clone()
    weights[3, 5] = float("nan")
    with_last(root, "nan", {**LINE(40), UP_PROJ: weights})


def families(root: Path) -> None:
    """Folders of two families, and of none."""
    for name in ("two/step_{}", "two/checkpoint-{}", "none/final{}"):
        for step in STEPS[:2]:
            shutil.copytree(root / "run" / f"step_{step}", root / name.format(step))


def outputs(root: Path) -> None:
    """An output that holds something, and one that is a file."""
    (root / "full").mkdir()
    (root / "full" / "thesis.tex").write_text("the only copy")
    (root / "file").write_text("the only copy")


def larger_than_the_disk(root: Path) -> None:
    """A checkpoint with an embedding of more bytes than the disk has free; the file is a hole."""
    path = with_last(root, "huge", LINE(40)) / SINGLE
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    start = len(data) - 8 - length
    num_rows = (shutil.disk_usage(root).free + (1 << 30)) // 64
    header["model.embed_more.weight"] = {
        "dtype": "F32",
        "shape": [num_rows, 16],
        "data_offsets": [start, start + 64 * num_rows],
    }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])
    with path.open("r+b") as file:
        file.truncate(8 + len(text) + start + 64 * num_rows)


SPOILED: dict[str, Callable[[Path], None]] = {
    "truncated": lambda root: edit_last(root, "truncated", cut_data),
    "truncated header": lambda root: edit_last(root, "cut-header", cut_header),
    "corrupt header": lambda root: edit_last(root, "corrupt", break_header),
    "overlapping tensors": lambda root: edit_last(root, "overlap", overlap_tensors),
    "endless header": lambda root: edit_last(root, "endless", claim_much),
    "empty file": lambda root: edit_last(root, "empty", bytearray.clear),
    "pickles": pickles,
    "quantized": quantized,
    "mismatched": mismatched,
    "not a number": not_a_number,
    "families": families,
    "outputs": outputs,
    "disk": larger_than_the_disk,
}


def write_scores(root: Path) -> None:
    """Score files: good, flat, falling, with gaps, and none at all."""
    tables = {
        "good": {s: s / 100 for s in STEPS},
        "flat": {s: 0.5 for s in STEPS},
        "falling": {s: 1 - s / 100 for s in STEPS},
        "gap": {s: s / 100 for s in STEPS if s != 30},
        "strangers": {s + 1: 0.5 for s in STEPS},
    }
    for name, table in tables.items():
        (root / f"{name}.json").write_text(json.dumps({str(k): v for k, v in table.items()}))
    (root / "words.csv").write_text("step,score\n10,good\n")
    (root / "two.csv").write_text("step,a,b\n10,0.1,0.2\n20,0.2,0.3\n")
    (root / "empty.json").write_text("")


def fill_hub(hub: LocalHub, root: Path, run: Run) -> None:
    """Put good and bad runs on the Hub."""
    add_base(hub, "lab/base", run)
    add_branches(hub, "lab/run", run)
    add_branches(hub, "lab/private", run, private=True)
    add_branches(hub, "lab/gated", run, gated=True)
    add_branches(hub, "lab/two", run)
    add_branches(hub, "lab/two", run, name="main-step-{}")
    hub.add_commit("lab/empty", files={"notes.txt": b"soon"})
    card = b"---\nbase_model: lab/gone\n---\n"
    add_branches(hub, "lab/carded", run)
    hub.add_commit("lab/carded", files={"README.md": card})
    for name in ("truncated", "corrupt", "pickles"):
        bad = Run(root / name, run.base, STEPS)
        add_branches(hub, f"lab/{name}", bad)
    hub.add_commit("alice/taken", files=files_of(run.base))


# -- the table -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """What is typed after the command, and words of the line that comes back.

    `only` names the commands that it is bad for, `token` is HF_TOKEN.
    """

    arguments: str
    words: tuple[str, ...]
    only: tuple[str, ...] = ("inspect", "report", "extract", "predict")
    token: str | None = None


READING = ("report", "extract", "predict")
PREDICT = ("predict",)
WRITING = ("extract", "predict")
HUB_RUN = "lab/run --base lab/base"

CASES = {
    "unknown repo": Case(
        "lab/nothing --base ./base",
        ("lab/nothing: no such repo; check the name", "private repos need --token or HF_TOKEN"),
    ),
    "unknown repo, with a token": Case(
        "lab/nothing --base ./base",
        ("lab/nothing: no such repo; check the name", "your token may not see it"),
        token=ALICE,
    ),
    "private without token": Case(
        "lab/private --base ./base",
        ("lab/private: no such repo", "private repos need --token or HF_TOKEN"),
    ),
    "private, a stranger's token": Case(
        "lab/private --base ./base", ("lab/private: no such repo",), token=BOB
    ),
    "gated without token": Case(
        "lab/gated --base ./base",
        ("lab/gated@step_", "config.json", "ask for access on its page, then pass"),
    ),
    "gated, a stranger's token": Case(
        "lab/gated --base ./base", ("lab/gated@step_", "ask for access on its page"), token=BOB
    ),
    "bad token": Case(
        HUB_RUN, ("lab/run: the Hub does not know this token; make a new one",), token="hf_no"
    ),
    "unknown revision": Case(
        "lab/run@nothing --base ./base", ("lab/run@nothing: no such revision",)
    ),
    "pattern that nothing fits": Case(
        "lab/run@iter_{step} --base ./base",
        ("lab/run@iter_{step}: no revision fits", "there is main, step_10"),
    ),
    "folders that nothing fits": Case(
        "lab/run/checkpoint-{step} --base ./base", ("no folder fits checkpoint-{step}",)
    ),
    "no steps on the Hub": Case(
        "lab/empty --base ./base", ("lab/empty: no step found; say where the number stands",)
    ),
    "one model on the Hub": Case(
        "lab/base --base ./base", ("lab/base: one model and no steps", "--at main=STEP")
    ),
    "no steps here": Case(
        "./none --base ./base", ("./none: no step found; say where the number", "./none/checkpoint")
    ),
    "one model here": Case("./base --base ./base", ("./base: one model", "--at .=STEP")),
    "no such folder": Case(
        "./nowhere --base ./base", ("nowhere: no such folder", "write hf://ORG/NAME")
    ),
    "two families on the Hub": Case(
        "lab/two --base ./base",
        ("main-step-{step} (4 steps), step_{step} (4 steps)", "such as lab/two@main-step-{step}"),
    ),
    "two families here": Case(
        "./two --base ./base",
        ("checkpoint-{step} (2 steps), step_{step} (2", "such as ./two/checkpoint-{step}"),
    ),
    "repo per step": Case("lab/run-step-{step} --base ./base", ("lab/run-step-{step}",)),
    "two numbers": Case("lab/run@a{step}/{step} --base ./base", ("stands more than once",)),
    "parent folder": Case("lab/run/../run --base ./base", ("`..` has no place",)),
    "hidden parent folder": Case("lab/run@a%2F..%2Fb --base ./base", ("`..` has no place",)),
    "nothing": Case("'' --base ./base", ("an empty text names neither a folder nor a repo",)),
    "nothing as base": Case("./run --base ''", ("an empty text names neither",)),
    "file": Case(
        f"run/step_10/{SINGLE} --base ./base", ("model.safetensors: a file; name the folder that",)
    ),
    "file as base": Case(f"./run --base base/{SINGLE}", (f"--base base/{SINGLE}: a file",)),
    "base without weights": Case(
        "./run --base ./none", ("none: no model.safetensors and no model.safetensors.index.json",)
    ),
    "token of many parts": Case(
        f"{HUB_RUN} --token 'hf_a\nhf_b'", ("lab/run: the token cannot be sent", "copy it again")
    ),
    "data set": Case("hf://datasets/lab/run --base ./base", ("a dataset; only model repos",)),
    "other site": Case(
        "https://example.com/lab/run --base ./base", ("on another Hub than the one in use",)
    ),
    "no name": Case("gpt2 --base ./base", ("gpt2: neither a folder here nor ORG/NAME",)),
    "odd name": Case("lab/a--b --base ./base", ("lab/a--b: neither a folder here nor",)),
    "control characters": Case("lab/a\x1b[2J --base ./base", ("lab/a\\x1b[2J: neither",)),
    "step that is not there": Case(
        "./run --base ./base --steps 10,25", ("step 25 is not there; its neighbours are 20 and 30",)
    ),
    "nothing until there": Case("./run --base ./base --until 5", ("first is at step 10",)),
    "step that is there": Case("lab/run --at main=20 --base ./base", ("has a step 20 already",)),
    "unknown revision at": Case("lab/run --at gone=50 --base ./base", ("lab/run@gone: no such",)),
    "no base": Case("./run", ("./run: nothing says what the run started from", "--base ORG/NAME")),
    "no base on the Hub": Case("lab/run", ("lab/run: nothing says what", "--base ORG/NAME")),
    "base that is not there": Case("./run --base ./gone", ("--base ./gone: no such folder",)),
    "base repo that is not there": Case("./run --base lab/gone", ("lab/gone: no such repo",)),
    "base of the card is not there": Case(
        "lab/carded",
        ("lab/gone: no such repo", "names it as base_model, --base names another"),
    ),
    "base with a placeholder": Case("./run --base lab/x-{step}", ("--base", "leave {step} out")),
    "wrong base": Case(
        "./run --base ./other-base",
        ("other-base does not look like the base", "name the right --base, or --force"),
        only=READING,
    ),
    "base of another step": Case(
        "./run --steps 10,20 --base ./run/step_40",
        ("step_40 does not look like the base", "step 20 is no farther from it than step 10"),
        only=READING,
    ),
    "shape of the base": Case(
        "./run --base ./narrow-base",
        (Q_PROJ, "[16, 16] in run/step_40", "[16, 8] in narrow-base", "not one run"),
    ),
    "shape of a checkpoint": Case(
        "./narrow --base ./base",
        (Q_PROJ, "[8, 16] in narrow/step_40", "[16, 16] in base", "--steps"),
    ),
    "names of the base": Case(
        "./run --base ./prefixed-base",
        ("share 0 of 14 matrices", "carries the prefix module., name another --base"),
    ),
    "no language model": Case("./embeddings --base ./vision", ("no matrix in scope",)),
    "quantized by config": Case(
        "./fp8 --base ./base", ("fp8/step_40: quantized weights", "floating point")
    ),
    "quantized by tensors": Case(
        "./gptq --base ./base", ("up_proj.qweight belongs to quantized weights",)
    ),
    "pickles here": Case(
        "./pickles --base ./base",
        ("pickles/step_10: weights only as pickles (pytorch_model.bin)", "convert them"),
    ),
    "pickles on the Hub": Case(
        "lab/pickles --base ./base", ("lab/pickles@step_10: weights only as pickles", "convert")
    ),
    "corrupt header": Case(
        "./corrupt --base ./base",
        ("corrupt/step_40: model.safetensors: no valid safetensors header", "store it again"),
    ),
    "corrupt header on the Hub": Case(
        "lab/corrupt --base ./base", ("lab/corrupt@step_40: model.safetensors: no valid",)
    ),
    "truncated file": Case(
        "./truncated --base ./base", ("truncated/step_40: model.safetensors:", "store it again")
    ),
    "truncated file on the Hub": Case(
        "lab/truncated --base ./base", ("lab/truncated@step_40: model.safetensors:",)
    ),
    "truncated header": Case(
        "./cut-header --base ./base", ("cut-header/step_40: model.safetensors:", "incomplete")
    ),
    "empty file": Case("./empty --base ./base", ("empty/step_40: model.safetensors: 0 bytes",)),
    "endless header": Case("./endless --base ./base", ("claims a header of 1099511627776 bytes",)),
    "overlapping tensors": Case("./overlap --base ./base", ("overlap/step_40", "damaged")),
    "not a number": Case("./nan --base ./base", ("nan/step_40", UP_PROJ, "[3, 5]"), only=READING),
    "target before the history": Case(
        "./run --base ./base --steps 20- --target-step 15",
        ("step 15 lies before the history, which begins at 20",),
        only=PREDICT,
    ),
    "target score before the history": Case(
        "./run --base ./base --scores good.json --target-score 0.01",
        ("before the first checkpoint of the history (10)",),
        only=PREDICT,
    ),
    "one checkpoint": Case(
        "./run --base ./base --steps 40 --target-step 80", ("at least 2 checkpoints",), only=PREDICT
    ),
    "no scores": Case(
        "./run --base ./base --target-score 0.9",
        ("--target-score needs the score of every checkpoint", "--scores FILE"),
        only=PREDICT,
    ),
    "flat scores": Case(
        "./run --base ./base --scores flat.json --target-score 0.9",
        ("scores of steps 10 to 40", "0.5 everywhere", "--target-step"),
        only=PREDICT,
    ),
    "falling scores": Case(
        "./run --base ./base --scores falling.json --target-score 0.9",
        ("does not rise with the step", "--lower-is-better"),
        only=PREDICT,
    ),
    "a score is missing": Case(
        "./run --base ./base --scores gap.json --target-score 0.9",
        ("gap.json: no 'score' for step", "leave these checkpoints out with --steps"),
        only=PREDICT,
    ),
    "scores of other steps": Case(
        "./run --base ./base --scores strangers.json --target-score 0.9",
        ("strangers.json: no 'score' for step 10, 20", "(steps with a score: 11 to 41)"),
        only=PREDICT,
    ),
    "scores that are words": Case(
        "./run --base ./base --scores words.csv", ("words.csv: no number",)
    ),
    "two columns of scores": Case(
        "./run --base ./base --scores two.csv", ("--score-key: 'a', 'b'",)
    ),
    "empty scores": Case("./run --base ./base --scores empty.json", ("empty.json",)),
    "unknown score key": Case(
        "./run --base ./base --scores two.csv --score-key c", ("two.csv: no key 'c'; it has 'a',",)
    ),
    "no trainer state": Case(
        "./run --base ./base --score-key eval_reward", ("no checkpoint has a trainer_state.json",)
    ),
    "output is not empty": Case(
        "./run --base ./base -o full",
        ("full: not empty; choose another folder, this tool did not make it",),
        only=WRITING,
    ),
    "disk too small": Case(
        "./huge --base ./base", ("GB are needed and", "make room, or choose another"), only=PREDICT
    ),
    "memory too small": Case(
        "./run --base ./base --memory 1MB",
        ("--memory 1MB",),
        only=("inspect", "predict"),
    ),
    "no such device": Case(
        "./run --base ./base --devices tpu:0", ("--devices tpu:0",), only=("inspect", "predict")
    ),
    "bad expression": Case("./run --base ./base --include (", ("--include (: no regular",)),
    "nothing included": Case(
        "./run --base ./base --include nothing", ("--include",), only=("inspect", "predict")
    ),
    "push without a token": Case(
        f"{HUB_RUN} --push-to alice/model", ("alice/model", "token"), only=PREDICT
    ),
    "push with a bad token": Case(
        "./run --base ./base --push-to alice/model", ("token",), only=PREDICT, token="hf_no"
    ),
    "push to a stranger": Case(
        f"{HUB_RUN} --push-to alice/model", ("alice/model",), only=PREDICT, token=BOB
    ),
    "push over somebody's model": Case(
        f"{HUB_RUN} --push-to alice/taken",
        ("alice/taken", "--over"),
        only=PREDICT,
        token=ALICE,
    ),
    "push to no name": Case(f"{HUB_RUN} --push-to model", ("model",), only=PREDICT, token=ALICE),
}


def typed(case: Case, command: str) -> list[str]:
    """Complete a case to a whole command."""
    words = [command, *shlex.split(case.arguments)]
    if command in WRITING and not {"-o", "--push-to"} & set(words):
        words += ["-o", "out"]
    if command == "predict" and not any(word.startswith("--target") for word in words):
        words += ["--target-step", "80"]
    return words


def everything(root: Path) -> dict[str, int]:
    """Every file and folder below the root, with its time of change."""
    return {str(path): path.stat().st_mtime_ns for path in root.rglob("*")}


@pytest.mark.parametrize(
    ("name", "command"), [(name, c) for name, case in CASES.items() for c in case.only]
)
def test_bad_input(commands: Commands, place: Path, name: str, command: str) -> None:
    """Exit 1, stdout empty, one line on stderr with what, where and what next, no file changed."""
    case = CASES[name]
    before = everything(place)
    done = commands.run(*typed(case, command), token=case.token, cwd=place)
    assert (done.code, done.stdout) == (1, ""), done
    (line,) = done.stderr.splitlines()
    assert line.startswith("Error: ")
    assert line.isprintable()
    for words in case.words:
        assert words in line, line
    assert everything(place) == before


USAGE = {
    "no run": "predict --target-step 8 -o out",
    "no output": "predict ./run --base ./base --target-step 80",
    "no target": "predict ./run --base ./base -o out",
    "two targets": "predict ./run --base ./base -o out --target-step 80 --target-score 0.9",
    "scale of alpharl": "predict ./run --base ./base -o out --scale 2",
    "output is a file": "predict ./run --base ./base -o file --target-step 80",
    "unknown method": "predict ./run --base ./base -o out --target-step 80 --method magic",
    "private and public": "predict ./run -o out --push-to a/b --target-step 8 --private --public",
    "damping of 2": "predict ./run -o out --target-step 8 --damping 2",
    "memory in words": "predict ./run -o out --target-step 8 --memory much",
    "at without a step": "inspect ./run --at main",
    "at with a word": "inspect ./run --at main=last",
    "scores that are not there": "inspect ./run --scores gone.json",
    "rank 0": "extract ./run -o out --rank 0",
    "extract without output": "extract ./run",
    "unknown option": "inspect ./run --magic",
    "unknown command": "conjure ./run",
    "push of a folder that is not there": "push gone a/b",
}


@pytest.mark.parametrize("name", USAGE)
def test_usage_errors(commands: Commands, place: Path, name: str) -> None:
    """Exit 2 with the usage on stderr, nothing on stdout, no file changed."""
    before = everything(place)
    done = commands.run(*USAGE[name].split(), cwd=place)
    assert (done.code, done.stdout) == (2, ""), done
    assert done.stderr.startswith("Usage: ")
    assert "\nError: " in done.stderr
    assert everything(place) == before


def test_an_error_with_json_leaves_stdout_empty(commands: Commands, place: Path) -> None:
    """A reader of stdout gets a whole document or nothing."""
    done = commands.run("inspect", "./run", "--json", cwd=place)
    assert (done.code, done.stdout) == (1, "")
    assert commands.run("inspect", "./run", "--base", "base", "--json", cwd=place).answer["plan"]
