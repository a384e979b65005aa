"""Commits to the loopback Hub by the real huggingface_hub client."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, close_session
from huggingface_hub.errors import BadRequestError, EntryNotFoundError, HfHubHTTPError
from local_hub_helpers import ALICE, BOB, CONFIG, WEIGHTS, hub_for_clients

from alpharl_hub.local_hub import LocalHub

# The client's own upload of open files uses a parameter that its HTTP library deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalHub]:
    """A Hub with two users, an organisation of alice's, and three entries to a page."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    with hub_for_clients(tmp_path / "hub") as served:
        yield served


@pytest.fixture
def alice(hub: LocalHub) -> HfApi:
    """The client with alice's token."""
    return HfApi(endpoint=hub.endpoint, token=ALICE)


@pytest.fixture
def bob(hub: LocalHub) -> HfApi:
    """The client with bob's token."""
    return HfApi(endpoint=hub.endpoint, token=BOB)


def status_of(error: pytest.ExceptionInfo[HfHubHTTPError]) -> int:
    """The status that an error of the client came with."""
    return error.value.response.status_code


def test_commit_of_an_open_file_goes_by_lfs(hub: LocalHub, alice: HfApi, tmp_path: Path) -> None:
    """One commit adds an LFS file and a small one and deletes a file and a folder."""
    old = {"old.safetensors": b"old", "logs/1.txt": b"1", "logs/2.txt": b"2", "keep.txt": b"k"}
    hub.add_commit("alice/model", files=old)
    path = tmp_path / "model.safetensors"
    path.write_bytes(WEIGHTS)
    hub.clear_log()
    with path.open("rb") as file:
        operations = [
            CommitOperationAdd("model.safetensors", file),
            CommitOperationAdd("config.json", CONFIG),
            CommitOperationDelete("old.safetensors"),
            CommitOperationDelete("logs/"),
        ]
        commit = alice.create_commit(
            "alice/model", operations, commit_message="New", commit_description="Why"
        )
    assert hub.refs("alice/model")["refs/heads/main"] == commit.oid
    kept = [".gitattributes", "config.json", "keep.txt", "model.safetensors"]
    assert alice.list_repo_files("alice/model") == kept
    assert hub.read_file("alice/model", "model.safetensors") == WEIGHTS
    newest = alice.list_repo_commits("alice/model")[0]
    assert (newest.title, newest.message, newest.authors) == ("New", "Why", ["alice"])
    uploads = [record for record in hub.log if record.method == "PUT"]
    assert [(u.origin, u.bytes_received, u.had_authorization) for u in uploads] == [
        ("storage", len(WEIGHTS), False)
    ]


def test_known_content_is_not_uploaded_and_no_change_is_no_commit(
    hub: LocalHub, alice: HfApi, tmp_path: Path
) -> None:
    """A content the Hub has is not sent again; a commit that changes nothing is not made."""
    before = hub.add_commit("alice/model", files={"a.safetensors": WEIGHTS, "c.json": CONFIG})
    path = tmp_path / "model.safetensors"
    path.write_bytes(WEIGHTS)

    def push(name: str) -> str:
        with path.open("rb") as file:
            operations = [CommitOperationAdd(name, file), CommitOperationAdd("c.json", CONFIG)]
            return alice.create_commit("alice/model", operations, commit_message="again").oid

    assert push("a.safetensors") == before
    assert push("b.safetensors") != before
    assert hub.read_file("alice/model", "b.safetensors") == WEIGHTS
    assert not [record for record in hub.log if record.method == "PUT"]


@pytest.mark.parametrize("num_bytes", [1000, 2500, 3000])
def test_multipart_upload_joins_the_parts(tmp_path: Path, num_bytes: int) -> None:
    """A file above the size of a part goes in parts of that size and is whole afterwards."""
    content = hashlib.shake_256(b"weights").digest(num_bytes)
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with LocalHub(tmp_path / "hub", {ALICE: "alice"}, multipart_chunk_bytes=1000) as hub:
        api = HfApi(endpoint=hub.endpoint, token=ALICE)
        api.create_repo("alice/model")
        with path.open("rb") as file:
            operation = CommitOperationAdd("model.safetensors", file)
            api.preupload_lfs_files("alice/model", [operation])
            api.create_commit("alice/model", [operation], commit_message="parts")
        parts = [record.bytes_received for record in hub.log if record.method == "PUT"]
        assert hub.read_file("alice/model", "model.safetensors") == content
        assert list((tmp_path / "hub" / "incoming").glob("*/*")) == []
    close_session()
    assert (sum(parts), max(parts), len(parts)) == (num_bytes, 1000, -(-num_bytes // 1000))


def test_commit_on_a_moved_branch_is_refused(hub: LocalHub, alice: HfApi) -> None:
    """parent_commit holds the place: 412 once the branch is elsewhere, and nothing changes."""
    first = hub.add_commit("alice/model", files={"a.txt": b"1"})
    second = hub.add_commit("alice/model", files={"a.txt": b"2"})
    operations = [CommitOperationAdd("b.txt", b"b")]
    with pytest.raises(HfHubHTTPError) as error:
        alice.create_commit("alice/model", operations, commit_message="late", parent_commit=first)
    assert status_of(error) == 412
    assert hub.refs("alice/model")["refs/heads/main"] == second
    done = alice.create_commit(
        "alice/model", operations, commit_message="in time", parent_commit=second
    )
    assert hub.refs("alice/model")["refs/heads/main"] == done.oid


def test_pull_request_leaves_the_branch_alone(hub: LocalHub, bob: HfApi) -> None:
    """Who may not write gets 403, but may open a pull request, which has a revision of its own."""
    main = hub.add_commit("alice/model", files={"a.txt": b"1"})
    operations = [CommitOperationAdd("b.txt", b"b")]
    with pytest.raises(HfHubHTTPError) as error:
        bob.create_commit("alice/model", operations, commit_message="mine")
    assert status_of(error) == 403
    pull = bob.create_commit("alice/model", operations, commit_message="please", create_pr=True)
    assert (pull.pr_num, pull.pr_revision) == (1, "refs/pr/1")
    assert hub.refs("alice/model")["refs/heads/main"] == main
    refs = bob.list_repo_refs("alice/model", include_pull_requests=True)
    assert [(ref.ref, ref.target_commit) for ref in refs.pull_requests] == [("refs/pr/1", pull.oid)]
    assert "b.txt" in bob.list_repo_files("alice/model", revision="refs/pr/1")
    assert hub.read_file("alice/model", "b.txt", "refs/pr/1") == b"b"


def test_deleting_what_is_not_there_is_an_error(hub: LocalHub, alice: HfApi) -> None:
    """A deletion of an unknown file or folder fails and changes nothing."""
    main = hub.add_commit("alice/model", files={"a/1.txt": b"1"})
    for path in ("missing.txt", "missing/"):
        with pytest.raises(EntryNotFoundError, match="doesn't exist"):
            alice.create_commit(
                "alice/model", [CommitOperationDelete(path)], commit_message="delete"
            )
    assert hub.refs("alice/model")["refs/heads/main"] == main


def test_uploads_that_need_xet_fail_as_on_any_hub_without_it(
    hub: LocalHub, alice: HfApi, tmp_path: Path
) -> None:
    """A path goes by Xet, which is not here: the client raises the builtin ConnectionError."""
    main = hub.add_commit("alice/model", files={"a.txt": b"a"})
    path = tmp_path / "model.safetensors"
    path.write_bytes(WEIGHTS)
    with pytest.raises(ConnectionError, match="xet-write-token"):
        alice.upload_file(
            path_or_fileobj=path, path_in_repo="model.safetensors", repo_id="alice/model"
        )
    assert hub.refs("alice/model")["refs/heads/main"] == main


def test_same_history_has_the_same_shas_and_outlives_the_server(tmp_path: Path) -> None:
    """Shas depend on content, titles and order alone; a new server over the folder has it all."""

    def fill(hub: LocalHub, last: bytes) -> list[str]:
        hub.add_commit("lab/model", files={"a.txt": b"a", "old": b"o"}, title="one")
        hub.add_commit("lab/model", files={"a.txt": last, "old": None}, title="two", revision="b")
        return sorted(hub.refs("lab/model").values())

    with LocalHub(tmp_path / "1") as one, LocalHub(tmp_path / "2") as two:
        shas = fill(one, b"same")
        assert fill(two, b"same") == shas
        assert all(len(sha) == 40 for sha in shas)
    with LocalHub(tmp_path / "3") as three:
        assert fill(three, b"other") != shas
    with LocalHub(tmp_path / "1") as again:
        assert sorted(again.refs("lab/model").values()) == shas
        assert again.read_file("lab/model", "a.txt", "b") == b"same"
        api = HfApi(endpoint=again.endpoint, token=False)
        assert api.list_repo_files("lab/model", revision="b") == [".gitattributes", "a.txt"]
    close_session()


@pytest.mark.parametrize("path", ["../x", "a//b", "/x", "a/./b", ".git/config"])
def test_paths_that_leave_the_repo_are_refused(hub: LocalHub, alice: HfApi, path: str) -> None:
    """A path that the client's own check lets through is still checked by the Hub."""
    hub.add_commit("alice/model", files={"a.txt": b"a"})
    operation = CommitOperationAdd("placeholder", b"x")
    operation.path_in_repo = path
    with pytest.raises(BadRequestError, match="Invalid path"):
        alice.create_commit("alice/model", [operation], commit_message="escape")
