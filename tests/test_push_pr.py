"""Pull requests: a push that asks the owners of a repo instead of writing to it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from hub_fixtures import commands_for
from huggingface_hub import HfApi, close_session, snapshot_download
from safetensors.torch import load_file
from test_push import write_output
from trajectories import digest
from transformers import AutoModelForCausalLM

from alpharl_hub.errors import PushError
from alpharl_hub.local_hub import Fault, LocalHub
from alpharl_hub.push.model_upload import (
    HubAccess,
    ModelUpload,
    PushHooks,
    PushOptions,
    PushResult,
    push_folder,
)
from alpharl_hub.sources.patience import Patience

# The client sends parts of an LFS upload in a way that its HTTP library has deprecated
# (huggingface_hub 2.4, `_upload_parts_iteratively`).
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=<...>':DeprecationWarning")

REPO = "alice/model"
COMMIT_PATH = "/api/models/alice/model/commit/"
THEIRS = {
    "model.safetensors": b"theirs",
    "config.json": b"{}",
    "tokenizer.json": b"{}",
    "notes.txt": b"keep me",
}


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[LocalHub]:
    """A Hub with two users; alice's repo holds files that this tool did not make."""
    tokens = {"hf_alice": "alice", "hf_bob": "bob"}
    with LocalHub(tmp_path / "hub", tokens, multipart_chunk_bytes=5000) as started:
        started.add_commit(REPO, files=THEIRS)
        yield started
    close_session()


@pytest.fixture
def output(tmp_path: Path) -> Path:
    """A finished model in several files."""
    return write_output(tmp_path / "out", 1, sharded=True)


def ask_for(
    hub: LocalHub, folder: Path, repo: str = REPO, token: str = "hf_bob", **options: object
) -> PushResult:
    """Open a pull request as bob, who may only read."""
    chosen = PushOptions(create_pr=True, **options)  # type: ignore[arg-type]
    hooks = PushHooks(patience=Patience(sleep=lambda seconds: None))
    return push_folder(folder, repo, chosen, access=HubAccess(token, hub.endpoint), hooks=hooks)


def api(hub: LocalHub, token: str) -> HfApi:
    """The real client."""
    return HfApi(endpoint=hub.endpoint, token=token)


def requests_of(hub: LocalHub, repo: str = REPO) -> list[str]:
    """The pull requests of a repo."""
    return sorted(ref for ref in hub.refs(repo) if ref.startswith("refs/pr/"))


def test_anybodys_repo_is_asked_and_left_as_it_is(hub: LocalHub, output: Path) -> None:
    """One request holds the model; main does not move, and no --overwrite is needed for that."""
    before = hub.refs(REPO)["refs/heads/main"]
    result = ask_for(hub, output, commit_message="A later model")
    assert result.url == f"{hub.endpoint}/{REPO}/discussions/1"
    assert result.branch == "refs/pr/1"
    refs = hub.refs(REPO)
    assert (refs["refs/heads/main"], refs["refs/pr/1"]) == (before, result.commit)
    found = set(api(hub, "hf_bob").list_repo_files(REPO, revision="refs/pr/1"))
    assert found == {path.name for path in output.iterdir()} | {".gitattributes", "notes.txt"}
    assert result.deleted == ("model.safetensors", "tokenizer.json")
    assert len([r for r in hub.log if r.path.startswith(COMMIT_PATH)]) == 1


def test_the_request_says_what_merging_takes_away(hub: LocalHub, output: Path) -> None:
    """Its title is the message; its text names what is replaced, deleted and added."""
    ask_for(hub, output, commit_message="A later model")
    details = api(hub, "hf_bob").get_discussion_details(REPO, 1)
    assert (details.title, details.author, details.status) == ("A later model", "bob", "open")
    lines = details.events[0].content.splitlines()  # type: ignore[attr-defined]
    (replaced,) = (line for line in lines if line.startswith("- **replaces**"))
    (deleted,) = (line for line in lines if line.startswith("- **deletes**"))
    (added,) = (line for line in lines if line.startswith("- adds"))
    assert replaced == "- **replaces** `config.json`,"
    assert deleted == "- **deletes** `model.safetensors`, `tokenizer.json`,"
    assert "`alpharl.json`" in added
    assert "model-00001-of-" in added
    assert "notes.txt" not in details.events[0].content  # type: ignore[attr-defined]


def test_names_of_strangers_cannot_act_in_the_request(hub: LocalHub, output: Path) -> None:
    """A file whose name is Markdown is shown as the text that it is."""
    hub.add_commit(REPO, files={"x`[a](http://b.c)<img src=y>.safetensors": b"1"})
    ask_for(hub, output)
    text = api(hub, "hf_bob").get_discussion_details(REPO, 1).events[0].content  # type: ignore[attr-defined]
    (deleted,) = (line for line in text.splitlines() if line.startswith("- **deletes**"))
    assert "<img" not in deleted
    assert "](" not in deleted


def test_merged_it_is_the_model(hub: LocalHub, output: Path, tmp_path: Path) -> None:
    """After the owner's merge transformers loads from main what lies in the folder."""
    ask_for(hub, output)
    api(hub, "hf_alice").merge_pull_request(REPO, 1)
    downloaded = Path(
        snapshot_download(
            REPO, endpoint=hub.endpoint, token="hf_alice", cache_dir=tmp_path / "cache"
        )
    )
    assert digest(downloaded) == digest(output)
    loaded = AutoModelForCausalLM.from_pretrained(downloaded, dtype="auto").state_dict()
    for path in output.glob("*.safetensors"):
        for name, value in load_file(path).items():
            assert loaded[name].equal(value)
    card = (downloaded / "README.md").read_text()
    assert f'name = "{REPO}"' in card


def test_a_push_that_was_cut_off_asks_once(hub: LocalHub, output: Path) -> None:
    """The answer is lost, or the process with it: the request that is there is the answer."""
    hub.add_fault(Fault(match=COMMIT_PATH, kind="reset", method="POST"))
    first = ask_for(hub, output)
    again = ask_for(hub, output)
    assert again == first
    assert first.url.endswith("/discussions/1")
    assert requests_of(hub) == ["refs/pr/1"]


def test_a_lost_request_is_put_again(hub: LocalHub, output: Path) -> None:
    """When the Hub never saw the commit, the second attempt makes the one request."""
    hub.add_fault(Fault(match=COMMIT_PATH, kind="drop", method="POST", times=2))
    assert ask_for(hub, output).branch == "refs/pr/1"
    assert requests_of(hub) == ["refs/pr/1"]


def test_a_closed_request_is_no_answer(hub: LocalHub, output: Path) -> None:
    """What was turned down is asked anew; other models make other requests."""
    ask_for(hub, output)
    api(hub, "hf_bob").change_discussion_status(REPO, 1, "closed")
    assert ask_for(hub, output).branch == "refs/pr/2"
    other = write_output(output.parent / "other", 2, sharded=True)
    assert ask_for(hub, other).branch == "refs/pr/3"
    assert ask_for(hub, output).branch == "refs/pr/2"


def test_nothing_to_ask_for_asks_nothing(hub: LocalHub, output: Path) -> None:
    """A repo that holds the model already is the answer."""
    ask_for(hub, output)
    api(hub, "hf_alice").merge_pull_request(REPO, 1)
    result = ask_for(hub, output)
    assert (result.url, result.branch) == (f"{hub.endpoint}/{REPO}", "main")
    assert result.commit == hub.refs(REPO)["refs/heads/main"]
    assert (result.added, result.deleted, result.changed) == ((), (), False)
    assert requests_of(hub) == ["refs/pr/1"]


def test_nothing_to_ask_for_is_said(hub: LocalHub, output: Path, tmp_path: Path) -> None:
    """The command says that no request was opened, on stderr and in JSON, and uploads nothing."""
    ask_for(hub, output)
    api(hub, "hf_alice").merge_pull_request(REPO, 1)
    hub.clear_log()
    with commands_for(tmp_path / "commands", hub) as commands:
        done = commands.run("push", output, REPO, "--create-pr", "--json", token="hf_bob")
    assert [r.path for r in hub.log if r.method not in ("GET", "HEAD")] == []
    assert done.stderr.splitlines()[-1] == (
        f"nothing to change: {REPO} holds these files already; no pull request was opened"
    )
    assert "uploaded" not in done.stderr
    assert (done.answer["changed"], done.answer["added"]) == (False, [])


def test_main_may_move_meanwhile(hub: LocalHub, output: Path) -> None:
    """The request follows the commit that was looked at, and keeps to what it said of it."""
    chosen = PushOptions(create_pr=True)
    upload = ModelUpload.begin(
        REPO, chosen, private_inputs=False, access=HubAccess("hf_bob", hub.endpoint)
    )
    uploaded = [upload.upload_shard(path) for path in sorted(output.glob("*.safetensors"))]
    hub.add_commit(REPO, files={"model.safetensors": None, "later.txt": b"1"})
    others = {p.name: p for p in output.iterdir() if p.suffix != ".safetensors"}
    result = upload.finish(uploaded, {**others})
    assert result.branch == "refs/pr/1"
    assert "model.safetensors" in result.deleted
    assert "later.txt" not in api(hub, "hf_bob").list_repo_files(REPO, revision="refs/pr/1")


def test_a_missing_repo_is_not_made(hub: LocalHub, output: Path) -> None:
    """There must be something to ask for a change of; nothing is made, sent or left."""
    with pytest.raises(PushError, match="no such repo, and a pull request needs one"):
        ask_for(hub, output, "bob/none")
    assert not [r for r in hub.log if r.method not in ("GET", "HEAD")]


def test_private_inputs_stay_out_of_public_repos(hub: LocalHub, tmp_path: Path) -> None:
    """A pull request can be read by all who can read the repo: private inputs need --public."""
    folder = write_output(tmp_path / "private", 1, private=True)
    with pytest.raises(PushError, match="is public, but the run or its base is private"):
        ask_for(hub, folder)
    assert requests_of(hub) == []
    assert ask_for(hub, folder, private=False).branch == "refs/pr/1"


def test_a_branch_is_no_place_for_a_request(hub: LocalHub, output: Path) -> None:
    """The Hub opens requests against main only, so another branch is refused before anything."""
    with pytest.raises(PushError, match="leave out --create-pr or the branch other"):
        ask_for(hub, output, branch="other")
    assert hub.log == ()


def test_without_a_token_nothing_is_asked(hub: LocalHub, output: Path) -> None:
    """Anybody may ask, but not nobody."""
    with pytest.raises(PushError, match="does not know this token"):
        ask_for(hub, output, token="hf_nobody")
    assert requests_of(hub) == []


def test_a_hub_that_knows_no_requests_is_told_of(hub: LocalHub, output: Path) -> None:
    """An answer without a request's page is one line, and no crash."""
    hub.add_fault(
        Fault(
            match=COMMIT_PATH,
            kind="status",
            status=200,
            headers=(("Content-Type", "application/json"),),
            text=json.dumps(
                {"commitOid": "a" * 40, "commitUrl": f"{hub.endpoint}/{REPO}/commit/{'a' * 40}"}
            ),
        )
    )
    with pytest.raises(PushError, match="has no 'pullRequestUrl'; look there"):
        ask_for(hub, output)


def test_the_command_shows_the_page(hub: LocalHub, output: Path, tmp_path: Path) -> None:
    """`push --create-pr` prints the request's URL; a dry run says what and changes nothing."""
    with commands_for(tmp_path / "commands", hub) as commands:
        dry = commands.run("push", output, REPO, "--create-pr", "--dry-run", token="hf_bob")
        assert (dry.code, requests_of(hub)) == (0, [])
        assert "would delete model.safetensors, tokenizer.json" in dry.stderr
        done = commands.run("push", output, REPO, "--create-pr", token="hf_bob")
        assert (done.code, done.stdout) == (0, f"{hub.endpoint}/{REPO}/discussions/1\n")
        words = ("push", output, REPO, "--create-pr", "--branch", "x")
        assert commands.run(*words, token="hf_bob").code == 2


def test_shards_go_up_with_the_right_to_read_only(hub: LocalHub, output: Path) -> None:
    """Uploads for a request name no branch, which a reader could not write to."""
    ask_for(hub, output)
    sent = {record.path.rsplit("/", 1)[-1] for record in hub.log if record.method == "PUT"}
    assert sent
    stored = hub.read_file(REPO, "model-00001-of-00004.safetensors", "refs/pr/1")
    original = (output / "model-00001-of-00004.safetensors").read_bytes()
    assert hashlib.sha256(stored).digest() == hashlib.sha256(original).digest()
