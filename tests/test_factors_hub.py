"""Factors on a Hub: pushed from one machine, reported on and predicted from on another."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hub_fixtures import (
    ALICE,
    BOB,
    Commands,
    add_base,
    add_branches,
    commands_for,
    served_hub,
)
from huggingface_hub import HfApi, ModelCard, close_session
from trajectories import Run, curved_run, digest, succeed, write_run

from alpharl_hub import api
from alpharl_hub.local_hub import Fault, LocalHub
from alpharl_hub.output import factor_files

# The client sends parts of an LFS upload in a way that its HTTP library has deprecated
# (huggingface_hub 2.4, `_upload_parts_iteratively`).
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=<...>':DeprecationWarning")

STEPS = (4, 10, 24, 40)
RUN, BASE, FACTORS = "lab/run", "lab/base", "lab/run-factors"
CARD = b"---\nlicense: apache-2.0\nbase_model: lab/base\n---\n# A run\n"
TARGET = ("--target-step", "90")


@dataclass(frozen=True)
class Place:
    """A Hub with a run and its factors, and two machines that share nothing but the Hub."""

    hub: LocalHub
    here: Commands
    there: Commands
    run: Run
    answer: Any


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """A public run in branches; its factors of rank 2 were pushed from the first machine."""
    root = tmp_path_factory.mktemp("place")
    run = write_run(root, STEPS, curved_run(STEPS))
    with (
        served_hub(root / "hub") as hub,
        commands_for(root / "here", hub) as here,
        commands_for(root / "there", hub) as there,
    ):
        add_base(hub, BASE, run)
        add_branches(hub, RUN, run)
        hub.add_commit(RUN, files={"README.md": CARD})
        done = here.run("extract", RUN, "--rank", "2", "--push-to", FACTORS, "--json", token=ALICE)
        yield Place(hub, here, there, run, done.answer)
    close_session()


def factors_of(place: Place, folder: Path, run: str = RUN, *more: str) -> Path:
    """Extract the same factors into a folder on the first machine."""
    done = place.here.run("extract", run, "--rank", "2", "-o", folder, *more)
    assert done.code == 0, done.stderr
    return folder


def names_on(hub: LocalHub, repo: str) -> set[str]:
    """The files of a repo's main branch."""
    return set(HfApi(endpoint=hub.endpoint, token=ALICE).list_repo_files(repo))


def test_one_commit_holds_factors_manifest_and_card(place: Place, tmp_path: Path) -> None:
    """What -o would write is there to the byte, with a card, and nothing stays behind."""
    folder = factors_of(place, tmp_path / "factors")
    assert names_on(place.hub, FACTORS) == {
        ".gitattributes",
        "README.md",
        "alpharl.json",
        "factors.safetensors",
    }
    for name in ("factors.safetensors", "alpharl.json"):
        assert place.hub.read_file(FACTORS, name) == (folder / name).read_bytes()
    assert place.answer["path"] is None
    assert place.answer["url"] == f"{place.hub.endpoint}/{FACTORS}"
    assert place.answer["commit"] == place.hub.refs(FACTORS)["refs/heads/main"]
    assert not (place.here.folder / ".alpharl-hub").exists()
    commits = [r for r in place.hub.log if f"/{FACTORS}/commit/" in r.path]
    assert len(commits) == 1


def test_the_card_says_what_and_how(place: Place) -> None:
    """Run, base and commits with links, rank, steps, the run's license, and both commands."""
    text = place.hub.read_file(FACTORS, "README.md").decode()
    data = ModelCard(text).data
    assert data.license == "apache-2.0"
    assert data.library_name == "alpharl-hub"
    assert data.tags == ["alpharl-hub", "alpharl-factors", "reinforcement-learning", RUN]
    assert data.base_model is None
    for words in (
        f"alpharl-hub report hf://{FACTORS}",
        "**This is no model**",
        "2 triplets of each update",
        "4: 4, 10, 24, 40",
        *(place.hub.refs(RUN)[f"refs/heads/step_{step}"][:12] for step in STEPS),
        place.hub.refs(BASE)["refs/heads/main"][:12],
        f"https://huggingface.co/{RUN}",
    ):
        assert words in text, words


def test_the_commands_of_the_card_work(place: Place, tmp_path: Path) -> None:
    """What the card tells people to type runs as it stands, on a machine that has nothing."""
    text = place.hub.read_file(FACTORS, "README.md").decode()
    commands = [line.split() for line in text.splitlines() if line.startswith("alpharl-hub ")]
    assert [words[1:3] for words in commands] == [
        ["report", f"hf://{FACTORS}"],
        ["predict", f"hf://{FACTORS}"],
    ]
    for _, *words in commands:
        done = place.there.run(*("90" if word == "N" else word for word in words), cwd=tmp_path)
        assert done.code == 0, done.stderr
    assert (tmp_path / "predicted" / "model.safetensors").exists()


@pytest.mark.parametrize("name", [f"hf://{FACTORS}", FACTORS, f"hf://{FACTORS}@main"])
def test_report_elsewhere_is_the_local_report(place: Place, tmp_path: Path, name: str) -> None:
    """Another machine, with an empty cache, says to the last digit what a folder would."""
    folder = factors_of(place, tmp_path / "factors")
    wanted = place.here.run("report", folder, "--json", "--spectrum", "2")
    found = place.there.run("report", name, "--json", "--spectrum", "2")
    assert found.answer == wanted.answer
    assert not list(place.there.home.rglob("*.safetensors"))


def test_a_report_reads_only_the_factors(place: Place) -> None:
    """The run may be out of reach, and of the factors each byte is asked for once."""
    place.hub.clear_log()
    assert place.there.run("report", f"hf://{FACTORS}", "--json").code == 0
    asked = [record for record in place.hub.log if record.repo is not None]
    assert {record.repo for record in asked} == {FACTORS}
    size = len(place.hub.read_file(FACTORS, "factors.safetensors"))
    read = sum(r.bytes_sent for r in asked if r.file_path == "factors.safetensors")
    assert read <= size + 8


def test_prediction_elsewhere_is_that_from_the_run(place: Place, tmp_path: Path) -> None:
    """From the run, from a folder of factors and from the Hub come the same weights."""
    folder = factors_of(place, tmp_path / "factors")
    place.hub.clear_log()
    found = place.there.run("predict", f"hf://{FACTORS}", "-o", tmp_path / "c", *TARGET)
    assert found.code == 0, found.stderr
    read = {r.revision for r in place.hub.log if (r.file_path or "").startswith("model")}
    refs = place.hub.refs(RUN)
    assert read == {refs["refs/heads/step_40"], place.hub.refs(BASE)["refs/heads/main"]}
    assert place.here.run("predict", RUN, "-o", tmp_path / "a", *TARGET).code == 0
    assert place.here.run("predict", folder, "-o", tmp_path / "b", *TARGET).code == 0
    assert digest(tmp_path / "a") == digest(tmp_path / "b") == digest(tmp_path / "c")
    assert (tmp_path / "b" / "alpharl.json").read_bytes() == (
        tmp_path / "c" / "alpharl.json"
    ).read_bytes()


def test_a_run_costs_no_question_more(place: Place) -> None:
    """That RUN could be factors is found out from listings which reading a run takes anyway."""
    place.hub.clear_log()
    assert place.there.run("report", RUN, "--json", "--quick").code == 0
    asked = [r.path for r in place.hub.log if r.origin == "api" and "/api/" in r.path]
    assert len(asked) == len(set(asked))
    main = place.hub.refs(RUN)["refs/heads/main"]
    assert sum(f"/tree/{main}" in path for path in asked) == 1
    assert sum(path.endswith(f"{RUN}/refs") for path in asked) == 1


def test_a_commit_is_what_it_was(place: Place, tmp_path: Path) -> None:
    """hf://ORG/NAME@COMMIT reads that commit, whatever main holds by now."""
    repo = "lab/pinned-factors"
    done = place.here.run("extract", RUN, "--push-to", repo, "--json", token=ALICE)
    first = done.answer["commit"]
    wanted = place.there.run("report", f"hf://{repo}", "--json").answer
    more = ("--steps", "4,10,24")
    assert place.here.run("extract", RUN, "--push-to", repo, *more, token=ALICE).code == 0
    assert place.there.run("report", f"hf://{repo}@{first}", "--json").answer == wanted
    assert place.there.run("report", f"hf://{repo}", "--json").answer["steps"] == [4, 10, 24]


def test_a_folder_and_a_repo_at_once(place: Place, tmp_path: Path) -> None:
    """-o and --push-to give both; `push DIR` later finds nothing to do; no local place goes up."""
    repo = "lab/both-factors"
    words = ("extract", place.run.root, "--base", place.run.base)
    done = place.here.run(
        *words, "-o", tmp_path / "factors", "--push-to", repo, "--json", token=ALICE
    )
    commit = done.answer["commit"]
    assert done.answer["path"] == str(tmp_path / "factors")
    assert (tmp_path / "factors" / "local-places.json").exists()
    assert not (tmp_path / "factors" / "README.md").exists()
    assert "local-places.json" not in names_on(place.hub, repo)
    everything = b"".join(place.hub.read_file(repo, name) for name in names_on(place.hub, repo))
    assert str(place.run.root.parent).encode() not in everything
    again = place.here.run("push", tmp_path / "factors", repo, "--json", token=ALICE)
    assert again.answer["commit"] == commit


def test_factors_of_a_local_run_say_what_they_need(place: Place, tmp_path: Path) -> None:
    """Elsewhere the report works; a prediction names base and checkpoint, and these are checked."""
    repo = "lab/local-factors"
    words = ("extract", place.run.root, "--base", place.run.base)
    assert place.here.run(*words, "--push-to", repo, token=ALICE).code == 0
    assert place.there.run("report", f"hf://{repo}").code == 0
    card = place.hub.read_file(repo, "README.md").decode()
    assert "--base BASE --at CHECKPOINT=40" in card
    assert "license: other" in card
    out = ("-o", tmp_path / "out", *TARGET)
    refused = place.there.run("predict", f"hf://{repo}", *out)
    assert refused.code == 1
    assert refused.stderr.count("\n") == 1
    assert "made from the local folder base" in refused.stderr
    assert "--base FOLDER" in refused.stderr
    base = ("--base", place.run.base)
    refused = place.there.run("predict", f"hf://{repo}", *base, *out)
    assert "--at FOLDER=40" in refused.stderr
    wrong = place.there.run(
        "predict", f"hf://{repo}", *base, "--at", f"{place.run.folder(24)}=40", *out
    )
    assert "not the weights that the manifest names" in wrong.stderr
    named = ("--at", f"{place.run.folder(40)}=40")
    assert place.there.run("predict", f"hf://{repo}", *base, *named, *out).code == 0
    direct = place.here.run("predict", place.run.root, *base, "-o", tmp_path / "a", *TARGET)
    assert direct.code == 0
    assert digest(tmp_path / "a") == digest(tmp_path / "out")


def test_private_inputs_make_private_factors(place: Place, tmp_path: Path) -> None:
    """Factors of a private run are private, and so is what is predicted from private factors."""
    run = "lab/private-run"
    add_branches(place.hub, run, place.run, private=True)
    words = ("extract", run, "--base", f"hf://{BASE}")
    assert place.here.run(*words, "--push-to", "lab/p-factors", token=ALICE).code == 0
    stranger = place.there.run("report", "hf://lab/p-factors", token=BOB)
    assert stranger.code == 1
    assert "no such repo" in stranger.stderr
    assert place.there.run("report", "hf://lab/p-factors", token=ALICE).code == 0
    place.hub.add_commit("lab/open-factors", files={"notes.txt": b""})
    refused = place.here.run(*words, "--push-to", "lab/open-factors", token=ALICE)
    assert "is public, but the run or its base is private" in refused.stderr
    words = ("extract", RUN, "--private", "--push-to", "lab/q-factors")
    assert place.here.run(*words, token=ALICE).code == 0
    out = tmp_path / "out"
    done = place.there.run("predict", "hf://lab/q-factors", "-o", out, *TARGET, token=ALICE)
    assert done.code == 0, done.stderr
    assert json.loads((out / "alpharl.json").read_text())["run"]["private"] is True


def test_factors_and_models_do_not_replace_each_other(place: Place) -> None:
    """A repo that this tool filled with the one is not taken for the other unasked."""
    model = "lab/model"
    done = place.here.run("predict", RUN, "--push-to", model, *TARGET, token=ALICE)
    assert done.code == 0, done.stderr
    before = place.hub.refs(model)["refs/heads/main"]
    refused = place.here.run("extract", RUN, "--push-to", model, token=ALICE)
    assert "holds the model; choose another repo" in refused.stderr
    refused = place.here.run("predict", RUN, "--push-to", FACTORS, *TARGET, token=ALICE)
    assert "holds the factors of a run; choose another repo" in refused.stderr
    assert place.hub.refs(model)["refs/heads/main"] == before
    words = ("extract", RUN, "--push-to", model, "--overwrite")
    assert place.here.run(*words, token=ALICE).code == 0
    # What the model's run had beside its weights is nobody's to take away.
    assert names_on(place.hub, model) - {"notes.txt"} == names_on(place.hub, FACTORS)
    assert place.there.run("report", f"hf://{model}").code == 0


def weight_bytes(hub: LocalHub) -> int:
    """How much the Hub has sent of weight files."""
    return sum(r.bytes_sent for r in hub.log if (r.file_path or "").startswith("model."))


def test_a_push_that_failed_goes_on(place: Place) -> None:
    """Factors that could not be sent are kept: the next start sends them and reads no weights."""
    words = ("extract", RUN, "--push-to", "lab/late-factors", "-q")
    place.hub.clear_log()
    place.hub.add_fault(Fault(match="/lab/late-factors/commit/", kind="status", status=403))
    refused = place.here.run(*words, token=ALICE)
    assert (refused.code, refused.stderr.count("\n")) == (1, 1)
    assert (place.here.folder / ".alpharl-hub").exists()
    first = weight_bytes(place.hub)
    place.hub.clear_log()
    assert place.here.run(*words, token=ALICE).code == 0
    # Headers are read again, which are a large part of weights so small.
    assert 0 < weight_bytes(place.hub) < first / 2
    assert not (place.here.folder / ".alpharl-hub").exists()


def test_factors_in_several_files_are_whole_or_nothing(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`push DIR` sends every file and the index; elsewhere they are read as one."""
    monkeypatch.setattr(factor_files, "MAX_FILE_BYTES", 2500)
    folder, repo = tmp_path / "factors", "lab/many-factors"
    succeed("extract", *place.run.arguments("-o", str(folder)))
    assert len(list(folder.glob("factors-*-of-*.safetensors"))) > 3
    done = place.here.run("push", folder, repo, token=ALICE)
    assert done.code == 0, done.stderr
    wanted = place.here.run("report", folder, "--json").answer
    assert place.there.run("report", f"hf://{repo}", "--json").answer == wanted
    next(folder.glob("factors-00002-*")).unlink()
    refused = place.here.run("push", folder, "lab/fewer-factors", token=ALICE)
    assert (refused.code, refused.stderr.count("\n")) == (1, 1)
    assert "factors-00002-of-" in refused.stderr
    assert "is missing" in place.here.run("report", folder).stderr


def test_a_pull_request_of_factors(place: Place) -> None:
    """Who may only read offers factors; they are read at their ref before anybody merges."""
    repo = "lab/asked-factors"
    place.hub.add_commit(repo, files={"notes.txt": b"mine\n"})
    done = place.here.run("extract", RUN, "--push-to", repo, "--create-pr", token=BOB)
    assert (done.code, done.stdout) == (0, f"{place.hub.endpoint}/{repo}/discussions/1\n")
    assert names_on(place.hub, repo) == {".gitattributes", "notes.txt"}
    assert place.there.run("report", f"hf://{repo}@refs%2Fpr%2F1").code == 0
    done = place.here.run("predict", RUN, "--push-to", repo, "--create-pr", *TARGET, token=BOB)
    assert (done.code, done.stdout) == (0, f"{place.hub.endpoint}/{repo}/discussions/2\n")
    several = ("predict", RUN, "--push-to", repo, "--create-pr", "--target-step", "60,90")
    refused = place.here.run(*several, token=BOB)
    assert (refused.code, refused.stderr.count("\n")) == (1, 1)
    assert "--create-pr asks for one model" in refused.stderr


def damaged(place: Place, repo: str, what: str) -> str:
    """Put factors with one fault into a repo, and return words of what must be said of it."""
    files: dict[str, bytes | Path | None] = {
        name: place.hub.read_file(FACTORS, name) for name in ("factors.safetensors", "alpharl.json")
    }
    data, manifest = files["factors.safetensors"], json.loads(files["alpharl.json"])  # type: ignore[arg-type]
    options = {"gated": what == "gated", "private": what == "private"}
    words = "ask for access on its page"
    if what == "no manifest":
        del files["alpharl.json"]
        words = "has factors.safetensors and no alpharl.json"
    elif what == "kind":
        files["alpharl.json"] = json.dumps({**manifest, "kind": "model"}).encode()
        words = "the manifest of a model, not of extracted factors"
    elif what == "shard":
        files = {"factors-00001-of-00002.safetensors": data, "alpharl.json": files["alpharl.json"]}
        words = "factors-00002-of-00002.safetensors is missing"
    elif what == "cut":
        assert isinstance(data, bytes)
        files["factors.safetensors"] = data[:-8]
        words = "factors.safetensors"
    elif what == "steps":
        manifest["run"]["checkpoints"] = manifest["run"]["checkpoints"][1:]
        files["alpharl.json"] = json.dumps(manifest).encode()
        words = "are not u, sigma, v and frobenius of 3 steps"
    elif what == "places":
        # What a repo says of folders on this machine is never looked at.
        manifest["run"]["base"] |= {"commit": None, "fingerprint": "f" * 64}
        files["alpharl.json"] = json.dumps(manifest).encode()
        files["local-places.json"] = json.dumps({"f" * 64: "/etc"}).encode()
        words = "is not known here; name it with --base FOLDER"
    elif what == "long":
        files["alpharl.json"] = b" " * ((64 << 20) + 1)
        words = "more than any manifest has"
    elif what == "private":
        words = "no such repo"
    place.hub.add_commit(repo, files=files, **options)
    return words


@pytest.mark.parametrize(
    "what",
    ["no manifest", "kind", "shard", "cut", "steps", "places", "long", "gated", "private"],
)
def test_what_is_wrong_with_a_repo_is_one_line(place: Place, tmp_path: Path, what: str) -> None:
    """Factors that lack something, or are not for everybody, are refused before any work."""
    repo = f"lab/damaged-{what.replace(' ', '-')}"
    words = damaged(place, repo, what)
    command = ("predict", f"hf://{repo}", "-o", tmp_path / "out", *TARGET)
    done = place.there.run(*command, token=BOB)
    assert done.code == 1
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert words in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", ["inspect", "backtest"])
def test_commands_that_need_the_run_say_so(place: Place, command: str) -> None:
    """Factors are no run for what reads weights."""
    done = place.there.run(command, f"hf://{FACTORS}")
    assert done.code == 1
    assert "factors" in done.stderr.partition(": ")[2]
    assert done.stderr.count("\n") == 1


API_SCRIPT = """
from alpharl_hub import api, strict_json
pushed = api.extract("lab/run", push_to="lab/api-factors", private=True, rank=2)
print(strict_json.dump([pushed, api.report("hf://lab/run-factors")]))
"""


def test_notebooks_share_factors_too(place: Place, tmp_path: Path) -> None:
    """`extract(push_to=)` and `report("hf://...")` answer what the commands answer."""
    with pytest.raises(ValueError, match="output, push_to, or both"):
        api.extract(place.run.root)
    done = subprocess.run(
        [sys.executable, "-c", API_SCRIPT],
        env={**place.there.environment, "HF_TOKEN": ALICE},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    pushed, report = json.loads(done.stdout)
    assert pushed["url"] == f"{place.hub.endpoint}/lab/api-factors"
    assert place.hub.read_file("lab/api-factors", "factors.safetensors") == place.hub.read_file(
        FACTORS, "factors.safetensors"
    )
    assert report == place.there.run("report", f"hf://{FACTORS}", "--json").answer
    assert place.there.run("report", "hf://lab/api-factors", token=BOB).code == 1


def test_extract_says_where_to(place: Place) -> None:
    """Without -o and --push-to there is nothing to do."""
    done = place.here.run("extract", RUN)
    assert done.code == 2
    assert "-o DIR, --push-to ORG/NAME, or both" in done.stderr
