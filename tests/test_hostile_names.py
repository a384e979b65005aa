"""Names, links and pickles of strangers: nothing leaves its folder, and nothing of theirs runs."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import stat
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from hypothesis import given, settings
from hypothesis import strategies as st
from trajectories import (
    INDEX,
    Run,
    command,
    fail,
    model_config,
    rank_one_line,
    succeed,
    write_run,
)

from alpharl_hub.errors import AlphaRLError, SourceError, TrajectoryError
from alpharl_hub.output.model_files import copied_files
from alpharl_hub.sources.file_names import find_collision, is_portable, leads_out
from alpharl_hub.sources.local import LocalFolder, list_step_folders
from alpharl_hub.sources.selection import select_steps
from alpharl_hub.sources.step_names import find_families, match_pattern, match_repo, match_step
from alpharl_hub.trajectory import CheckpointContents
from tests.fuzz.targets import WHOLE, opened, refusal

STEPS = (10, 20)
LINE = rank_one_line()
SECRET = "-----BEGIN KEY-----"

BAD_NAMES = [
    "",
    ".",
    "..",
    "../x.safetensors",
    "a/b.safetensors",
    "/etc/passwd",
    "/etc/x.safetensors",
    "a\\b.safetensors",
    "..\\x.safetensors",
    "C:\\x.safetensors",
    "C:x.safetensors",
    "a.safetensors:stream",
    "a\0.safetensors",
    "a\n.safetensors",
    "a\x1b[2J.safetensors",
    "a\u202e.safetensors",
    "a\ud800.safetensors",
    "-rf.safetensors",
    ".hidden.safetensors",
    " a.safetensors",
    "a.safetensors ",
    "a.safetensors.",
    "con.safetensors",
    "NUL.safetensors",
    "Com1.safetensors",
    "lpt9.tar.safetensors",
    "aux .safetensors",
    "a*.safetensors",
    "a?.safetensors",
    "a|b.safetensors",
    'a"b.safetensors',
    "<a>.safetensors",
    "x" * 201 + ".safetensors",
    "\u6b65" * 90 + ".safetensors",
]


@pytest.mark.parametrize("name", BAD_NAMES)
def test_shards_with_such_names_are_refused(name: str) -> None:
    """A name of the index becomes a name of the output, so it must be one on every system."""
    assert not is_portable(name)
    index = {"weight_map": {"model.layers.0.self_attn.q_proj.weight": name}}
    line = refusal("index", json.dumps(index).encode())
    assert line is not None
    assert "is no file beside it" in line or "is half a character" in line
    assert line.isprintable()


@pytest.mark.parametrize(
    "name",
    [
        "model-00001-of-00002.safetensors",
        "a b.safetensors",
        "caf\u00e9.safetensors",
        "\u6b65.safetensors",
        "console.safetensors",
        "x" * 188 + ".safetensors",
    ],
)
def test_usual_names_are_taken(name: str) -> None:
    """Names that every system can store, also those that only begin like a device's."""
    assert is_portable(name)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "tokenizer.json", "x"])
def test_an_index_names_nothing_but_safetensors(name: str) -> None:
    """A pickle named by the index is not even looked into."""
    files = {name: WHOLE, INDEX: json.dumps({"weight_map": {"a": name}}).encode()}
    with pytest.raises(SourceError, match="is no file beside it with weights as safetensors"):
        opened(files)


@pytest.mark.parametrize(
    "names",
    [
        ("model-a.safetensors", "MODEL-A.safetensors"),
        ("caf\u00e9.safetensors", "cafe\u0301.safetensors"),
        ("stra\u00dfe.safetensors", "STRASSE.safetensors"),
    ],
)
def test_shards_that_are_one_file_elsewhere_are_refused(names: tuple[str, str]) -> None:
    """Where case does not count the second shard would be written over the first."""
    index = {"weight_map": {f"t{i}": name for i, name in enumerate(names)}}
    line = refusal("index", json.dumps(index).encode())
    assert line is not None
    assert "are one file where case does not count; rename one" in line


@given(st.lists(st.text(max_size=4), max_size=6))
def test_names_collide_exactly_when_case_alone_tells_them_apart(names: list[str]) -> None:
    """What is found are two different names, and equal names are no collision."""
    found = find_collision(names)
    if found is not None:
        assert found[0] != found[1]
    ascii_names = [n for n in dict.fromkeys(names) if n.isascii()]
    lowered = [n.lower() for n in ascii_names]
    assert (find_collision(ascii_names) is None) == (len(set(lowered)) == len(lowered))


# -- what is copied ------------------------------------------------------------------------------


def contents_of(files: dict[str, bytes]) -> CheckpointContents:
    """A checkpoint with weights and these files."""
    return opened({"model.safetensors": WHOLE, "config.json": b"{}", **files})


def copied(files: dict[str, bytes]) -> list[str]:
    """The names of what is copied of them, without config.json."""
    contents = contents_of(files)
    names = [file.name for file in copied_files(contents, contents, None)]
    return [name for name in names if name != "config.json"]


@pytest.mark.parametrize("name", [n for n in BAD_NAMES if n])
def test_files_with_such_names_are_not_copied(name: str) -> None:
    """They would be written elsewhere, hidden, or as something else."""
    assert copied({name.replace("safetensors", "txt"): b"x"}) == []


def test_of_names_that_differ_in_case_the_usual_one_is_copied() -> None:
    """Libraries look for the small letters; the other one must not take their place."""
    files = {"TOKENIZER.json": b"1", "tokenizer.json": b"2", "Tokenizer.JSON": b"3"}
    assert copied(files) == ["tokenizer.json"]
    assert copied({"LICENSE": b"", "merges.txt": b""}) == ["LICENSE", "merges.txt"]


@pytest.mark.parametrize(
    "name",
    [
        "ALPHARL.json",
        "alpharl.json",
        "Readme.MD",
        "local-places.json",
        "Model.SAFETENSORS",
        "model.safetensors.INDEX.json",
        "pytorch_model.bin",
        "optimizer.pt",
        "weights.PKL",
        "state.joblib",
        "model.keras",
        ".netrc",
        ".env",
    ],
)
def test_what_could_be_taken_for_ours_or_be_run_is_not_copied(name: str) -> None:
    """Manifest, card, places, weights, pickles and hidden files, in any case."""
    assert copied({name: b"x"}) == []


LETTERS = st.characters(min_codepoint=0, max_codepoint=0x2FFF)


@settings(max_examples=300, deadline=None)
@given(st.text(LETTERS, min_size=1, max_size=12))
def test_whatever_is_copied_stays_in_its_folder(name: str) -> None:
    """Of any name only one is copied that is a single visible component of a path."""
    for found in copied({name: b"x"}):
        assert Path("/out", found).resolve().parent == Path("/out")
        assert found.isprintable()
        assert not found.startswith((".", "-"))


# -- links ---------------------------------------------------------------------------------------


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """A run of two steps."""
    return write_run(tmp_path, STEPS, LINE)


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    """A file that is nobody's business."""
    (tmp_path / "home").mkdir()
    path = tmp_path / "home" / "id_rsa"
    path.write_text(SECRET)
    return path


def predict_arguments(run: Run, *more: str) -> list[str]:
    """Arguments of a prediction."""
    return ["predict", *run.arguments("--target-step", "40", *more)]


def holding_secret(folder: Path) -> list[Path]:
    """The files below a folder, links left out, that hold the secret."""
    paths = [path for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]
    return [path for path in paths if SECRET.encode() in path.read_bytes()]


@pytest.mark.parametrize("how", ["absolute", "relative", "link to a link", "folder"])
def test_a_link_out_of_the_checkpoint_is_not_copied(
    tmp_path: Path, run: Run, secret: Path, how: str
) -> None:
    """What a checkpoint only points at may be a key: the command stops, and says which link."""
    link = run.folder(20) / "notes.txt"
    if how == "absolute":
        link.symlink_to(secret)
    elif how == "relative":
        link.symlink_to(os.path.relpath(secret, link.parent))
    elif how == "link to a link":
        (run.root / "hop").symlink_to(secret)
        link.symlink_to("../hop")
    else:
        # A folder of weights that is itself a link, beside which anything may lie.
        for path in list(run.folder(20).iterdir()):
            shutil.move(path, secret.parent)
        (run.folder(20) / "policy").symlink_to(secret.parent)
    output = tmp_path / "out"
    line = fail(*predict_arguments(run, "-o", str(output)))
    assert "a link out of its folder, which is not copied into a model" in line
    assert not output.exists()
    assert [path for path in holding_secret(tmp_path) if path != secret] == []


def test_links_within_the_checkpoint_and_to_blobs_of_the_cache_are_copied(
    tmp_path: Path, run: Run
) -> None:
    """The Hub's client keeps snapshots of links; they are the model's own files."""
    cache = tmp_path / "models--lab--run"
    snapshot = cache / "snapshots" / ("0" * 40)
    (cache / "blobs").mkdir(parents=True)
    for step in STEPS:
        (snapshot / f"step_{step}").mkdir(parents=True)
        for path in run.folder(step).iterdir():
            blob = cache / "blobs" / f"{step}{path.name.encode().hex()}"
            shutil.copy(path, blob)
            link = snapshot / f"step_{step}" / path.name
            link.symlink_to(os.path.relpath(blob, link.parent))
    (snapshot / "step_20" / "copy_of_config.json").symlink_to("config.json")
    output = tmp_path / "out"
    succeed(*predict_arguments(Run(snapshot, run.base, STEPS), "-o", str(output)))
    assert json.loads((output / "config.json").read_text()) == model_config()
    copy = output / "copy_of_config.json"
    assert copy.is_file()
    assert not copy.is_symlink()


def test_a_cache_made_by_hand_opens_no_other_place(tmp_path: Path, secret: Path) -> None:
    """A blob that is a link itself, and blobs that are a link to a folder, lead out."""
    cache = tmp_path / "evil"
    snapshot = cache / "snapshots" / "x"
    snapshot.mkdir(parents=True)
    (cache / "blobs").mkdir()
    (cache / "blobs" / "b").symlink_to(secret)
    (snapshot / "a.txt").symlink_to("../../blobs/b")
    assert leads_out(snapshot, "a.txt")
    shutil.rmtree(cache / "blobs")
    (cache / "blobs").symlink_to(secret.parent)
    (snapshot / "c.txt").symlink_to(f"../../blobs/{secret.name}")
    assert leads_out(snapshot, "c.txt")
    (snapshot / "loop").symlink_to("loop")
    assert "loop" not in LocalFolder(snapshot).files()


def test_what_is_no_file_is_not_read(run: Run) -> None:
    """Pipes, devices and links to them would block, or never end."""
    folder = run.folder(20)
    os.mkfifo(folder / "tokenizer.json")
    (folder / "vocab.json").symlink_to("/dev/zero")
    (folder / "trainer_state.json").symlink_to("/dev/zero")
    (folder / "README.md").symlink_to("/dev/zero")
    found = LocalFolder(folder).files()
    assert set(found) == {"config.json", "model.safetensors"}
    succeed("inspect", *run.arguments())


def test_scores_without_end_are_refused(tmp_path: Path, run: Run) -> None:
    """A file of scores is read up to its limit and no further, whatever its size is said to be."""
    scores = tmp_path / "scores.csv"
    scores.symlink_to("/dev/zero")
    line = fail("inspect", *run.arguments("--scores", str(scores)))
    assert "scores.csv: more than 67108864 characters" in line


def test_weights_may_be_links(tmp_path: Path, run: Run) -> None:
    """Large files are linked for good reasons, and a header must be right before one is read."""
    weights = run.folder(20) / "model.safetensors"
    weights.rename(tmp_path / "elsewhere")
    weights.symlink_to(tmp_path / "elsewhere")
    succeed("inspect", *run.arguments())


@pytest.mark.parametrize("kind", ["weights", "manifest", "folder"])
def test_an_output_is_never_written_through_a_link(
    tmp_path: Path, run: Run, secret: Path, kind: str
) -> None:
    """A link that stands in the place of an output file is replaced, and its target stays."""
    output = tmp_path / "out"
    succeed(*predict_arguments(run, "-o", str(output)))
    name = {"weights": "model.safetensors", "manifest": "README.md", "folder": "config.json"}[kind]
    (output / name).unlink()
    (output / name).symlink_to(secret if kind != "folder" else secret.parent)
    succeed(*predict_arguments(run, "-o", str(output), "--overwrite"))
    assert secret.read_text() == SECRET
    assert list(secret.parent.iterdir()) == [secret]
    assert not any(path.is_symlink() for path in output.iterdir())


# -- step folders --------------------------------------------------------------------------------


def test_names_that_are_no_text_are_not_seen(run: Run) -> None:
    """Linux takes any bytes as a name; what is called so is neither a step nor copied."""
    os.mkdir(os.fsencode(run.root) + b"/evil\xff-step-30")
    os.mkdir(os.fsencode(run.root) + b"/evil\xff-step-40")
    folder = os.fsencode(run.folder(20))
    with open(folder + b"/notes\xff.txt", "wb") as file:
        file.write(b"x")
    assert list_step_folders(run.root) == ("step_10", "step_20")
    assert set(LocalFolder(run.folder(20)).files()) == {"config.json", "model.safetensors"}


def test_a_run_below_a_folder_that_is_no_text_is_read(tmp_path: Path) -> None:
    """Where the user's own folders are called so, the answer is written all the same."""
    root = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9"))
    run = write_run(root, STEPS, LINE)
    run.root.rename(root / os.fsdecode(b"r\xfcn"))
    run = Run(root / os.fsdecode(b"r\xfcn"), run.base, STEPS)
    output = tmp_path / "out"
    succeed(*predict_arguments(run, "-o", str(output)))
    pattern = json.loads((output / "alpharl.json").read_text())["run"]["pattern"]
    assert pattern == "r?n/step_{step}"


def test_digits_of_other_scripts_and_line_ends_make_no_step() -> None:
    """Two names that look like the same step must not stop a run, nor count as one."""
    for name in ("step_\u0661\u0660", "step_\uff11\uff10", "step_10\n", "step_10\u0000"):
        assert match_step(name) is None, name
        assert match_pattern("step_{step}", [name]).names == {}
        assert match_repo(f"lab-{name}") is None, name


@settings(max_examples=300, deadline=None)
@given(st.lists(st.text(st.sampled_from("step_-0123456789BT.\n\u0661ckpt/{}"), max_size=14)))
def test_any_names_give_families_or_one_line(names: list[str]) -> None:
    """Names are matched, never trusted: steps are whole numbers, and each name has its own."""
    try:
        families = find_families(names)
    except TrajectoryError:
        return
    for family in families:
        assert all(name in names and 0 <= step < 10**15 for step, name in family.names.items())


@settings(deadline=None)
@given(st.text(max_size=20) | st.from_regex(r"[0-9,:%.-]{0,12}"), st.booleans())
def test_any_selection_gives_steps_or_one_line(text: str, is_until: bool) -> None:
    """--steps and --until never end in anything but a choice or an error of ours."""
    spec, until = (None, text) if is_until else (text, None)
    try:
        chosen = select_steps((10, 20, 30), spec, until)
    except AlphaRLError:
        return
    assert set(chosen) <= {10, 20, 30}


# -- pickles and code ----------------------------------------------------------------------------


class Planted:
    """Leaves a mark where it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return os.mkdir, (str(self.mark),)


PICKLES = ("pytorch_model.bin", "training_args.bin", "optimizer.pt", "weights.pkl", "scores.npy")


def commands_on(run: Run, output: Path) -> Sequence[Callable[[], Result]]:
    """Every command that reads a run."""
    return (
        lambda: command("inspect", *run.arguments()),
        lambda: command("report", *run.arguments()),
        lambda: command("extract", *run.arguments("-o", str(output / "factors"))),
        lambda: command(*predict_arguments(run, "-o", str(output / "model"))),
        lambda: command("compare", str(run.base), str(run.folder(20))),
    )


def test_planted_pickles_are_never_opened(tmp_path: Path, run: Run) -> None:
    """A pickle beside the weights, or under their name, runs in no command."""
    mark = tmp_path / "mark"
    bomb = pickle.dumps(Planted(mark))
    for folder in (run.base, *map(run.folder, STEPS)):
        for name in PICKLES:
            (folder / name).write_bytes(bomb)
    for start in commands_on(run, tmp_path / "out"):
        assert start().exit_code == 0
        assert not mark.exists()
    assert set(PICKLES).isdisjoint(os.listdir(tmp_path / "out" / "model"))
    for folder in (run.base, *map(run.folder, STEPS)):
        (folder / "model.safetensors").write_bytes(bomb)
    for start in commands_on(run, tmp_path / "again"):
        result = start()
        assert result.exit_code == 1
        assert "safetensors" in result.stderr
    for folder in (run.base, *map(run.folder, STEPS)):
        (folder / "model.safetensors").unlink()
    for start in commands_on(run, tmp_path / "again"):
        result = start()
        assert result.exit_code == 1
        assert "weights only as pickles (pytorch_model.bin), which are never" in result.stderr
    assert not mark.exists()
    pickle.loads(bomb)
    assert mark.exists(), "the pickle would have left its mark"


def test_code_of_the_repo_is_copied_named_and_not_run(tmp_path: Path, run: Run) -> None:
    """Python files come along, as transformers needs them; none is imported or run, and the card
    neither asks for trust nor hides them."""
    mark = tmp_path / "mark"
    code = f"import os\nos.mkdir({str(mark)!r})\n"
    config = {
        **model_config(),
        "auto_map": {"AutoModelForCausalLM": "modeling_evil.Evil", "AutoConfig": "setup.Evil"},
        "trust_remote_code": True,
    }
    for folder in (run.base, *map(run.folder, STEPS)):
        (folder / "config.json").write_text(json.dumps(config))
        for name in ("modeling_evil.py", "setup.py", "conftest.py", "sitecustomize.py"):
            (folder / name).write_text(code)
    for start in commands_on(run, tmp_path / "out"):
        assert start().exit_code == 0
    assert not mark.exists()
    output = tmp_path / "out" / "model"
    assert json.loads((output / "config.json").read_text()) == config
    assert (output / "modeling_evil.py").read_text() == code
    card = (output / "README.md").read_text()
    assert "`modeling_evil.py`" in card
    assert "read them first" in card
    example = card.split("```python\n")[1].split("```")[0]
    assert "trust_remote_code" not in example


# -- the shape of tensors ------------------------------------------------------------------------

ODD_SHAPES = {
    "2^63 elements": ([2**63], 0),
    "2^63 elements of two sides": ([2**32, 2**31], 0),
    "2^64 elements": ([2**32, 2**32], 0),
    "more than 64 bits": ([2**62, 2**62], 0),
    "nothing, and then much": ([0, 2**63], 0),
    "a thousand sides": ([1] * 1000, 4),
    "a side of nothing": ([0, 4], 0),
}


def with_tensor(path: Path, shape: list[int], num_bytes: int) -> None:
    """Add a tensor of this shape to a weight file."""
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    body = data[8 + length :] + bytes(num_bytes)
    offsets = [len(body) - num_bytes, len(body)]
    name = "model.layers.0.mlp.extra_proj.weight"
    header[name] = {"dtype": "F32", "shape": shape, "data_offsets": offsets}
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + body)


@pytest.mark.parametrize("case", ODD_SHAPES)
def test_tensors_of_odd_shapes_end_in_a_model_or_one_line(tmp_path: Path, case: str) -> None:
    """A shape is a claim: it is refused, or copied as the nothing that it holds."""
    run = write_run(tmp_path, STEPS, LINE)
    for folder in (run.base, *map(run.folder, STEPS)):
        with_tensor(folder / "model.safetensors", *ODD_SHAPES[case])
    for start in commands_on(run, tmp_path / "out"):
        result = start()
        assert result.exception is None or isinstance(result.exception, SystemExit), case
        assert result.exit_code in (0, 1)


# -- temporary files -----------------------------------------------------------------------------


def test_work_lies_beside_the_output_and_not_in_a_shared_folder(
    tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is written to the folder for temporary files, where others could wait for a name."""
    shared = tmp_path / "shared"
    shared.mkdir()
    monkeypatch.setenv("TMPDIR", str(shared))
    shared.chmod(0o500)
    output = tmp_path / "out"
    succeed(*predict_arguments(run, "-o", str(output)))
    succeed("extract", *run.arguments("-o", str(tmp_path / "factors")))
    assert list(shared.iterdir()) == []
    for path in output.iterdir():
        mode = stat.S_IMODE(path.stat().st_mode)
        assert not mode & (stat.S_IWGRP | stat.S_IWOTH | stat.S_ISUID | stat.S_IXOTH), path


def test_a_token_on_the_command_line_is_advised_against() -> None:
    """Other users of a machine see command lines: wherever --token exists, its help says so."""
    for name in ("inspect", "report", "extract", "predict", "backtest", "sweep", "compare", "push"):
        words = " ".join(command(name, "--help").stdout.split())
        assert "--token" in words, name
        assert "HF_TOKEN is safer: other users see command lines" in words, name
