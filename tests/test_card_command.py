"""`alpharl-hub card DIR`: shown, made anew, and kept from replacing what somebody wrote."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from hub_fixtures import ALICE, Commands, add_base, add_branches, commands_for, served_hub
from huggingface_hub import ModelCard, parse_eval_result_entries
from manifest_maker import manifest
from rich.cells import cell_len
from rich.console import Console
from trajectories import command, exact_line, fail, succeed, write_run

from alpharl_hub.card.make import EVAL_FILE, PICTURE, CardFacts, card_files
from alpharl_hub.card.rebuild import rebuild_card
from alpharl_hub.cli.card import print_card
from alpharl_hub.errors import ManifestError
from alpharl_hub.local_hub import LocalHub
from alpharl_hub.manifest import ScoreRecord, read_manifest


@pytest.fixture
def output(tmp_path: Path) -> Path:
    """A finished folder, but for its weights, which the card does not look at."""
    folder = tmp_path / "out"
    folder.mkdir()
    for name, data in card_files(manifest(), CardFacts("out")).items():
        (folder / name).write_bytes(data)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_preview_shows_and_writes_nothing(output: Path) -> None:
    """In a pipe the card comes as it would be written, and the folder stays as it is."""
    before = contents(output)
    shown = succeed("card", output, "--score", "gsm8k=0.5")
    assert ModelCard(shown.stdout).data.eval_results[0].metric_value == 0.5
    assert shown.stderr == "not written: add --write\n"
    assert contents(output) == before
    assert succeed("card", output).stdout == before["README.md"].decode()


def test_rebuilding_changes_nothing(output: Path) -> None:
    """A card made anew from its alpharl.json is the card, also where it was lost."""
    before = contents(output)
    assert "all is as it was" in succeed("card", output, "--write").stderr
    assert contents(output) == before
    (output / "README.md").unlink()
    (output / PICTURE).unlink()
    written = succeed("card", output, "--write")
    assert written.stdout == f"{output / 'README.md'}\n"
    assert contents(output) == before


def test_scores_stay_when_the_card_is_made_anew(output: Path) -> None:
    """What was measured is in alpharl.json, in the card and in the Hub's file, until taken out."""
    succeed("card", output, "--write", "--score", "gsm8k=0.5", "--score", "a/b#c=0.25")
    (output / "README.md").unlink()
    succeed("card", output, "--write")
    text = (output / "README.md").read_text()
    assert [r.metric_value for r in ModelCard(text).data.eval_results] == [0.5, 0.25]
    (entry,) = parse_eval_result_entries(yaml.safe_load((output / EVAL_FILE).read_text()))
    assert (entry.dataset_id, entry.task_id, entry.value) == ("a/b", "c", 0.25)
    kept = read_manifest((output / "alpharl.json").read_bytes(), "alpharl.json")
    assert kept.scores == (
        ScoreRecord("gsm8k", None, None, 0.5),
        ScoreRecord("a/b", "c", None, 0.25),
    )
    succeed("card", output, "--write", "--score", "gsm8k=", "--score", "a/b#c=")
    assert not (output / EVAL_FILE).exists()
    assert "predicted, not evaluated" in (output / "README.md").read_text()


def test_edited_card_is_replaced_only_when_told(output: Path) -> None:
    """Words of the user's own stay, with the scores beside them unwritten, until --overwrite."""
    path = output / "README.md"
    path.write_text(path.read_text() + "\nTrained on Tuesdays.\n")
    before = contents(output)
    line = fail("card", output, "--write", "--score", "gsm8k=0.5")
    assert str(path) in line
    assert "edited" in line
    assert "--overwrite" in line
    assert contents(output) == before
    assert "edited" in succeed("card", output).stderr
    succeed("card", output, "--write", "--overwrite", "--score", "gsm8k=0.5")
    assert "Tuesdays" not in path.read_text()
    assert "`gsm8k` 0.5" in path.read_text()


def test_card_of_a_template_asks_for_it_again(output: Path, tmp_path: Path) -> None:
    """An organisation's card does not fall back to the standard one by itself."""
    template = tmp_path / "lab.j2"
    template.write_text("# The lab's own\n\n{{ summary }}\n")
    succeed("card", output, "--card-template", template, "--write")
    assert "# The lab's own" in (output / "README.md").read_text()
    assert "--card-template" in fail("card", output, "--write", "--score", "gsm8k=0.5")
    succeed("card", output, "--card-template", template, "--write", "--score", "gsm8k=0.5")
    text = (output / "README.md").read_text()
    assert "# The lab's own" in text
    assert "`gsm8k` 0.5" in text


def test_a_folder_that_is_not_there(output: Path) -> None:
    """It is said to be missing, not to lack its alpharl.json; a near one is offered."""
    with pytest.raises(ManifestError, match=r"oat: no such folder; did you mean .*/out"):
        rebuild_card(output.with_name("oat"))
    with pytest.raises(ManifestError, match="nope: no such folder; name a folder that predict"):
        rebuild_card(output.with_name("nope"))
    output.with_name("empty").mkdir()
    with pytest.raises(ManifestError, match=r"empty: has no alpharl\.json"):
        rebuild_card(output.with_name("empty"))


def test_moved_card_stays_where_it_was_moved(output: Path) -> None:
    """A card that names a repo keeps naming it, whatever the folder is called."""
    for name, data in card_files(manifest(), CardFacts("me/model", branch="try")).items():
        (output / name).write_bytes(data)
    succeed("card", output, "--write", "--score", "gsm8k=0.5")
    text = (output / "README.md").read_text()
    assert 'name = "me/model"' in text
    assert 'revision = "try"' in text
    assert ModelCard(text).data.model_name == "me/model"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--score", "gsm8k"], "--score 'gsm8k'"),
        (["--score", "gsm8k="], "no such score"),
    ],
)
def test_wrong_scores_are_one_line(output: Path, arguments: list[str], words: str) -> None:
    """What is no score is told with how to write one."""
    assert words in fail("card", output, *arguments)


def test_other_folders_are_refused(output: Path, tmp_path: Path) -> None:
    """A folder without a manifest, or of factors, has no card."""
    (tmp_path / "empty").mkdir()
    assert "has no alpharl.json" in fail("card", tmp_path / "empty")
    made = manifest(kind="factors")
    (output / "alpharl.json").write_text(made.to_json())
    assert "holds factors, no model" in fail("card", output)
    assert command("card", output, "--overwrite").exit_code == 2


def test_links_are_not_followed_when_written(output: Path, tmp_path: Path) -> None:
    """A README.md or a folder of scores that leads elsewhere does not carry our bytes there."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "precious.md").write_text("precious")
    (output / "README.md").unlink()
    (output / "README.md").symlink_to(elsewhere / "precious.md")
    succeed("card", output, "--write")
    assert not (output / "README.md").is_symlink()
    (output / ".eval_results").symlink_to(elsewhere)
    assert "is a link" in fail("card", output, "--write", "--score", "a/b#c=1")
    assert contents(elsewhere) == {"precious.md": b"precious"}


@pytest.mark.parametrize("width", [80, 160])
def test_card_is_rendered_on_a_terminal(width: int) -> None:
    """The page is laid out for the width, and the picture is told in words."""
    text = card_files(manifest(), CardFacts("me/model"))["README.md"].decode()
    stream = io.StringIO()
    print_card(Console(file=stream, width=width, markup=False, emoji=False), text)
    lines = stream.getvalue().splitlines()
    assert max(cell_len(line) for line in lines) <= width
    shown = " ".join(" ".join(lines).split())
    assert "base_model: org/base" in shown
    assert "predicted, not evaluated" in shown
    assert f"(Picture {PICTURE}: Rank-1 share of the update" in shown
    assert "made this card" not in shown


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalHub]:
    """A Hub with a run on it."""
    root = tmp_path_factory.mktemp("hub")
    with served_hub(root / "hub") as hub:
        run = write_run(root / "weights", (10, 20, 40), exact_line())
        add_base(hub, "lab/base", run)
        add_branches(hub, "lab/run", run)
        yield hub


@pytest.fixture(scope="module")
def commands(hub: LocalHub, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Commands]:
    """Commands that find that Hub."""
    with commands_for(tmp_path_factory.mktemp("commands"), hub) as commands:
        yield commands


PREDICT = ("predict", "lab/run", "--base", "lab/base", "--target-step", "100", "--force")


def test_pushed_card_brings_its_picture_and_scores(
    hub: LocalHub, commands: Commands, tmp_path: Path
) -> None:
    """A push sends picture and scores with the card, whose links lead to the public Hub."""
    folder = tmp_path / "out"
    done = commands.run(*PREDICT, "-o", folder, "--push-to", "alice/m", token=ALICE)
    assert done.code == 0, done.stderr
    text = (folder / "README.md").read_text()
    assert (
        f"https://huggingface.co/lab/run/tree/{hub.refs('lab/run')['refs/heads/step_40']}" in text
    )
    assert hub.endpoint not in text
    assert 'name = "alice/m"' in text
    assert hub.read_file("alice/m", PICTURE) == (folder / PICTURE).read_bytes()
    done = commands.run("card", folder, "--write", "--score", "a/b#c:accuracy=0.5")
    assert done.code == 0, done.stderr
    done = commands.run("push", folder, "alice/m", token=ALICE)
    assert done.code == 0, done.stderr
    card = ModelCard(hub.read_file("alice/m", "README.md").decode())
    assert [result.metric_value for result in card.data.eval_results] == [0.5]
    (entry,) = parse_eval_result_entries(yaml.safe_load(hub.read_file("alice/m", EVAL_FILE)))
    assert (entry.dataset_id, entry.task_id, entry.value) == ("a/b", "c", 0.5)
    # Another model in its place is not the one that was measured.
    done = commands.run(*PREDICT, "--anchor", "last", "--push-to", "alice/m", token=ALICE)
    assert done.code == 0, done.stderr
    with pytest.raises(KeyError):
        hub.read_file("alice/m", EVAL_FILE)
    assert "model-index" not in hub.read_file("alice/m", "README.md").decode()


def test_template_of_predict_is_looked_at_first(
    hub: LocalHub, commands: Commands, tmp_path: Path
) -> None:
    """A wrong template ends `predict` before anything is read; a right one makes the card."""
    template = tmp_path / "lab.j2"
    template.write_text("# Lab\n\n{{ nosuch }}\n")
    arguments = (*PREDICT, "-o", tmp_path / "out", "--card-template", template)
    hub.clear_log()
    done = commands.run(*arguments)
    assert (done.code, hub.log) == (1, ())
    assert f"{template}, line 3: no variable 'nosuch'" in done.stderr
    template.write_text("# Lab\n\n{{ summary }}\n")
    done = commands.run(*arguments)
    assert done.code == 0, done.stderr
    assert "# Lab" in (tmp_path / "out" / "README.md").read_text()


def test_model_with_scores_can_be_made_again(commands: Commands, tmp_path: Path) -> None:
    """`--from` takes an alpharl.json that holds scores, and leaves them out of the new model's."""
    first, again = tmp_path / "first", tmp_path / "again"
    for arguments in (
        (*PREDICT, "-o", first),
        ("card", first, "--write", "--score", "gsm8k=0.5"),
        ("predict", "--from", first / "alpharl.json", "-o", again),
    ):
        done = commands.run(*arguments)
        assert done.code == 0, done.stderr
    assert (again / "model.safetensors").read_bytes() == (first / "model.safetensors").read_bytes()
    made = read_manifest((again / "alpharl.json").read_bytes(), "alpharl.json")
    assert made.scores == ()
