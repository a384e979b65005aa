"""Files of others that are endless, or make the reader wait or open what is his: refused in a line.

Regular expressions of a manifest, documents too large to be read, pipes and devices in the place of
files, and adapters and manifests that name folders of whoever reads them.
"""

from __future__ import annotations

import json
import os
import shutil
import time
import tracemalloc
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from trajectories import Run, fail, rank_one_line, succeed, write_run

from alpharl_hub import strict_json
from alpharl_hub.errors import ManifestError, PushError, TrajectoryError
from alpharl_hub.output.model_files import MAX_COPIED_BYTES
from alpharl_hub.prediction import foreign_patterns
from alpharl_hub.push.finished_folder import read_finished_folder
from alpharl_hub.sources.base_choice import base_model_of_card, base_of_adapter
from alpharl_hub.trajectory import Checkpoint

STEPS = (10, 20, 30, 40)
HUGE_BYTES = 3 << 30
ON_HUB = Checkpoint(10, "lab/run", "step_10", "0" * 40, "")
HERE = Checkpoint(10, "./run/step_10", None, None, "")
ENDLESS = r"([a-z_.0-9]+)+!"
"""Takes twice as long for each letter of a name that it does not fit."""
READERS_OWN = r"^(?!.*layers\.0\.)(?:.*\.)?(q|k|up)_proj\.weight$"
"""More than simple rules would let through, and matched at once."""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run in local folders."""
    return write_run(tmp_path_factory.mktemp("files"), STEPS, rank_one_line())


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory, run: Run) -> Path:
    """A folder with a model that predict wrote, and with factors that extract wrote."""
    folder = tmp_path_factory.mktemp("outputs")
    words = ("--target-step", "80", "-o", str(folder / "model"))
    succeed("predict", *run.arguments(*words, "--include", READERS_OWN))
    succeed("extract", *run.arguments("-o", str(folder / "factors")))
    return folder


@pytest.fixture
def model(tmp_path: Path, outputs: Path) -> Path:
    """The model, to be changed."""
    return shutil.copytree(outputs / "model", tmp_path / "model")


@pytest.fixture
def factors(tmp_path: Path, outputs: Path) -> Path:
    """The factors, to be changed."""
    return shutil.copytree(outputs / "factors", tmp_path / "factors")


def change_run(path: Path, changes: Mapping[str, object]) -> None:
    """Change what a manifest says about its run."""
    document = json.loads(path.read_text())
    path.write_text(json.dumps({**document, "run": {**document["run"], **changes}}))


def repeat(run: Run, model: Path, where: Path) -> list[str]:
    """Arguments that do again what a manifest says."""
    return ["predict", *run.arguments("--from", str(model / "alpharl.json"), "-o", str(where))]


# -- regular expressions -------------------------------------------------------------------------


def test_expressions_that_people_write_are_repeated(tmp_path: Path, run: Run, model: Path) -> None:
    """What was matched for the first time soon is so again, looks ahead and groups included."""
    succeed(*repeat(run, model, tmp_path / "again"))
    names = ("alpharl.json", "model.safetensors")
    for name in names:
        assert (tmp_path / "again" / name).read_bytes() == (model / name).read_bytes()


@pytest.mark.parametrize("key", ["include", "exclude"])
def test_an_endless_expression_of_a_manifest_is_refused(
    tmp_path: Path, run: Run, model: Path, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    """--from a stranger's manifest does not compute until the end of time."""
    monkeypatch.setattr(foreign_patterns, "MAX_CPU_S", 1)
    change_run(model / "alpharl.json", {"include": None, key: ENDLESS})
    started_s = time.monotonic()
    line = fail(*repeat(run, model, tmp_path / "again"))
    assert time.monotonic() - started_s < 30
    assert f"alpharl.json: {ENDLESS!r} takes too long to be matched; name the run, with" in line
    assert not (tmp_path / "again").exists()


def test_an_endless_expression_of_factors_is_refused(
    tmp_path: Path, factors: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither does a prediction from factors that somebody else extracted."""
    monkeypatch.setattr(foreign_patterns, "MAX_CPU_S", 1)
    change_run(factors / "alpharl.json", {"include": ENDLESS})
    line = fail("predict", str(factors), "--target-step", "80", "-o", str(tmp_path / "out"))
    assert f"alpharl.json: {ENDLESS!r} takes too long to be matched" in line


@pytest.mark.parametrize(
    ("expression", "words"),
    [
        ("x" * 1001, "is too long"),
        ("(?:a|b|){4294967294}", "takes too long to be matched"),
        ("(?:()){4000000000}x", "takes too long to be matched"),
        ("a{99999999999}", "takes too long to be matched"),
    ],
)
def test_expressions_have_limits_of_length_time_and_memory(
    expression: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever of them an expression meets, the answer is one short line, soon."""
    monkeypatch.setattr(foreign_patterns, "MAX_CPU_S", 1)
    names = ["model.layers.0.self_attn.q_proj.weight"]
    with pytest.raises(ManifestError) as caught:
        foreign_patterns.require_bounded([expression], names, "alpharl.json")
    assert words in str(caught.value)
    assert len(str(caught.value)) < 400


def test_a_broken_expression_is_named_by_who_uses_it(tmp_path: Path, run: Run, model: Path) -> None:
    """What is no regular expression is called so, not slow; numbers out of range are among it."""
    change_run(model / "alpharl.json", {"include": "(q"})
    line = fail(*repeat(run, model, tmp_path / "again"))
    assert "--include (q: no regular expression" in line
    line = fail("inspect", *run.arguments("--include", "a{99999999999}"))
    assert "--include a{99999999999}: no regular expression" in line


def test_nothing_is_started_without_an_expression(monkeypatch: pytest.MonkeyPatch) -> None:
    """Most manifests have none, and need no other process."""
    monkeypatch.setattr("sys.executable", "/nowhere/python")
    foreign_patterns.require_bounded([], ["a.weight"], "alpharl.json")


# -- size and kind of files ----------------------------------------------------------------------


@pytest.fixture
def little_memory() -> Iterator[None]:
    """Insist that a test takes less memory than the files that it makes."""
    tracemalloc.start()
    yield
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak_bytes < 100_000_000


def grow(path: Path, num_bytes: int = HUGE_BYTES) -> None:
    """Make a file as large, without writing to the disk."""
    path.touch()
    os.truncate(path, num_bytes)


@pytest.mark.usefixtures("little_memory")
def test_a_manifest_of_gigabytes_is_refused_before_it_is_read(
    tmp_path: Path, run: Run, model: Path, factors: Path
) -> None:
    """Its size is looked at first, wherever a manifest is read."""
    words = f"alpharl.json: {HUGE_BYTES} bytes, more than 67108864; not a file of ours"
    for folder in (model, factors):
        grow(folder / "alpharl.json")
    out = str(tmp_path / "out")
    assert words in fail(*repeat(run, model, tmp_path / "out"))
    assert words in fail("predict", str(factors), "--target-step", "80", "-o", out)
    assert words in fail("report", str(factors))
    assert words in fail("push", str(model), "me/model", "--dry-run")


@pytest.mark.usefixtures("little_memory")
@pytest.mark.parametrize("name", ["README.md", "config.json"])
def test_files_that_no_prediction_copies_are_not_sent(model: Path, name: str) -> None:
    """What is sent whole is held in memory: one that is too large stops the push."""
    read_finished_folder(model)
    grow(model / name, MAX_COPIED_BYTES + 1)
    with pytest.raises(PushError, match=rf"{name}: 50000001 bytes, more than predict copies"):
        read_finished_folder(model)


@pytest.mark.usefixtures("little_memory")
def test_an_index_of_gigabytes_is_refused_before_it_is_read(model: Path) -> None:
    """As the manifest beside it is."""
    (model / "model.safetensors").rename(model / "model-00001-of-00001.safetensors")
    grow(model / "model.safetensors.index.json")
    with pytest.raises(ManifestError, match=f"index.json: {HUGE_BYTES} bytes, more than"):
        read_finished_folder(model)


@pytest.mark.parametrize("kind", ["pipe", "device", "link to a device", "link in a circle"])
def test_what_is_no_file_is_no_manifest(tmp_path: Path, run: Run, model: Path, kind: str) -> None:
    """Nobody is waited for at the other end of a pipe, and no device is read."""
    path = model / "alpharl.json"
    path.unlink()
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "link in a circle":
        path.symlink_to(path)
    else:
        path.symlink_to("/dev/zero")
    from_path = Path("/dev/zero") if kind == "device" else path
    with pytest.raises(ManifestError, match=r"no regular file|cannot be opened"):
        strict_json.read_file(from_path)
    if kind in ("pipe", "link to a device"):
        line = fail(*repeat(run, model, tmp_path / "again"))
        assert "no regular file; name the one that this tool wrote" in line
    assert "has no alpharl.json" in fail("push", str(model), "me/model", "--dry-run")


def test_files_that_claim_to_be_empty_are_read_to_the_limit_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The system's own files have no size; what comes out of them counts."""
    monkeypatch.setattr(strict_json, "MAX_DOCUMENT_BYTES", 10)
    with pytest.raises(ManifestError, match="11 bytes, more than 10"):
        strict_json.read_file(Path("/proc/self/status"))
    (tmp_path / "small").write_bytes(b"0123456789")
    assert strict_json.read_file(tmp_path / "small") == b"0123456789"


def test_a_manifest_of_factors_is_no_link_to_elsewhere(tmp_path: Path, factors: Path) -> None:
    """A folder that came from somebody else does not show what else lies on this disk."""
    (factors / "alpharl.json").rename(tmp_path / "elsewhere.json")
    (factors / "alpharl.json").symlink_to(tmp_path / "elsewhere.json")
    assert "a link that leads out of its folder" in fail("report", str(factors))


# -- names of the reader's own folders -----------------------------------------------------------


@pytest.mark.parametrize("where", ["absolute", "relative", "parent", "home"])
def test_an_adapter_on_a_hub_names_no_folder_of_the_reader(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """Though the folder lies here, the line asks for --base; a run in folders may name it."""
    (tmp_path / "work").mkdir()
    (tmp_path / "base").mkdir()
    (tmp_path / "work" / "base").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    places = {"absolute": str(tmp_path / "base"), "relative": "./base", "parent": "../base"}
    named = places.get(where, "~/base")
    with pytest.raises(TrajectoryError) as caught:
        base_of_adapter({"base_model_name_or_path": named}, ON_HUB)
    words = f"names {named} as the base, which is no repo (a repo may name no folder); name it with"
    assert words in str(caught.value)
    assert "--base ORG/NAME or --base FOLDER" in str(caught.value)
    if where != "home":
        found = base_of_adapter({"base_model_name_or_path": named}, HERE)
        assert found is not None
        assert Path(found).is_dir()


def test_a_repo_that_is_called_like_a_folder_here_is_the_repo(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of an adapter on a Hub lab/base is a repo; of one in a folder it is the folder beside."""
    (tmp_path / "lab" / "base").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    config = {"base_model_name_or_path": "lab/base"}
    assert base_of_adapter(config, ON_HUB) == "hf://lab/base"
    assert base_of_adapter(config, HERE) == str(tmp_path / "lab" / "base")


@pytest.mark.parametrize("named", ["/etc", "./base", "../base", "~/base", "base", "a/b/c"])
def test_a_card_names_repos_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, named: str
) -> None:
    """A folder of that name plays no part, and the run is asked for its base."""
    (tmp_path / "base").mkdir()
    monkeypatch.chdir(tmp_path)
    assert base_model_of_card(f"---\nbase_model: {named}\n---\n") is None
    run = write_run(tmp_path / "x", STEPS, rank_one_line())
    for step in STEPS:
        (run.folder(step) / "README.md").write_text(f"---\nbase_model: {named}\n---\n")
    line = fail("inspect", str(run.root))
    assert "name it with --base ORG/NAME or --base FOLDER" in line


@pytest.mark.parametrize("source", ["/etc", "./base", "..", "a/b/c", "lab/run@main", "x"])
def test_a_manifest_names_no_folder_of_the_reader(
    tmp_path: Path, run: Run, model: Path, source: str
) -> None:
    """Not as if it were a repo, and not without one: local folders are those that a user names."""
    path = model / "alpharl.json"
    base = json.loads(path.read_text())["run"]["base"]
    change_run(path, {"base": {**base, "source": source, "commit": "0" * 40}})
    line = fail(*repeat(run, model, tmp_path / "again"))
    assert f"the manifest's checkpoint {source!r} is no repo at a commit" in line
    assert "--base" in line
    change_run(path, {"base": {**base, "source": source}})
    words = ["predict", str(run.root), "--from", str(path), "-o", str(tmp_path / "again")]
    assert f"{source} was a local folder; name it with --base" in fail(*words)
