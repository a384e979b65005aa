"""The loopback Hub, asked by the real huggingface_hub client."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import HfApi, hf_hub_download, snapshot_download, try_to_load_from_cache
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from local_hub_helpers import ALICE, BOB, CONFIG, WEIGHTS, ask, hub_for_clients

from alpharl_hub.local_hub import LocalHub


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


@pytest.fixture
def nobody(hub: LocalHub) -> HfApi:
    """The client without a token."""
    return HfApi(endpoint=hub.endpoint, token=False)


def git_blob_id(content: bytes) -> str:
    """The name git gives to a content."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def status_of(error: pytest.ExceptionInfo[HfHubHTTPError]) -> int:
    """The status that an error of the client came with."""
    return error.value.response.status_code


def test_whoami_names_the_user_and_refuses_an_unknown_token(hub: LocalHub, alice: HfApi) -> None:
    """A known token has a name and organisations; an unknown one is refused everywhere."""
    me = alice.whoami()
    assert (me["name"], [org["name"] for org in me["orgs"]]) == ("alice", ["lab"])
    hub.add_commit("lab/open", files={"config.json": CONFIG})
    stranger = HfApi(endpoint=hub.endpoint, token="hf_wrong")
    with pytest.raises(HfHubHTTPError, match="Invalid user token"):
        stranger.whoami()
    with pytest.raises(HfHubHTTPError, match="Invalid credentials") as error:
        stranger.model_info("lab/open")
    assert status_of(error) == 401
    assert not isinstance(error.value, RepositoryNotFoundError)


def test_create_repo_once_and_only_where_the_user_may(alice: HfApi, nobody: HfApi) -> None:
    """A repo is made once, private if asked, in the user's own namespaces only."""
    url = alice.create_repo("alice/model", private=True)
    assert url.repo_id == "alice/model"
    assert alice.model_info("alice/model").private is True
    assert alice.list_repo_files("alice/model") == [".gitattributes"]
    assert alice.create_repo("alice/model", exist_ok=True).repo_id == "alice/model"
    assert alice.create_repo("lab/model").repo_id == "lab/model"
    assert alice.model_info("lab/model").private is False
    with pytest.raises(HfHubHTTPError) as error:
        alice.create_repo("alice/model")
    assert status_of(error) == 409
    with pytest.raises(HfHubHTTPError) as error:
        alice.create_repo("bob/model")
    assert status_of(error) == 403
    with pytest.raises(HfHubHTTPError) as error:
        nobody.create_repo("alice/other")
    assert status_of(error) == 401


def test_repo_settings_and_deletion(alice: HfApi, bob: HfApi) -> None:
    """The owner hides, gates and deletes a repo; others can do none of it."""
    alice.create_repo("alice/model")
    with pytest.raises(HfHubHTTPError) as error:
        bob.delete_repo("alice/model")
    assert status_of(error) == 403
    alice.update_repo_settings("alice/model", gated="manual")
    assert bob.model_info("alice/model").gated == "manual"
    alice.update_repo_settings("alice/model", private=True)
    with pytest.raises(RepositoryNotFoundError):
        bob.model_info("alice/model")
    alice.auth_check("alice/model")
    alice.delete_repo("alice/model")
    assert alice.repo_exists("alice/model") is False


def test_branches_tags_and_refs(alice: HfApi, bob: HfApi) -> None:
    """Branches and tags are made from a revision, listed with their commits, and deleted."""
    alice.create_repo("alice/model")
    main = alice.model_info("alice/model").sha
    alice.create_branch("alice/model", branch="step/10")
    alice.create_branch("alice/model", branch="step/10", exist_ok=True)
    alice.create_tag("alice/model", tag="v1", revision="step/10")
    refs = alice.list_repo_refs("alice/model")
    assert {ref.name: ref.target_commit for ref in refs.branches} == {"main": main, "step/10": main}
    assert [(ref.name, ref.ref) for ref in refs.tags] == [("v1", "refs/tags/v1")]
    assert alice.model_info("alice/model", revision="step/10").sha == main
    with pytest.raises(HfHubHTTPError) as error:
        alice.create_branch("alice/model", branch="step/10")
    assert status_of(error) == 409
    with pytest.raises(HfHubHTTPError) as error:
        bob.create_branch("alice/model", branch="mine")
    assert status_of(error) == 403
    with pytest.raises(RevisionNotFoundError):
        alice.create_branch("alice/model", branch="late", revision="no-such-branch")
    alice.delete_branch("alice/model", branch="step/10")
    alice.delete_tag("alice/model", tag="v1")
    refs = alice.list_repo_refs("alice/model")
    assert ([ref.name for ref in refs.branches], refs.tags) == (["main"], [])


def test_model_info_has_sizes_hashes_and_card(hub: LocalHub, nobody: HfApi) -> None:
    """Siblings carry git's blob id, and the SHA-256 of an LFS file; the card's metadata is read."""
    card = b"---\nbase_model: lab/base\nlicense: mit\ntags:\n- rl\n---\n# Model\n"
    files = {"README.md": card, "config.json": CONFIG, "model.safetensors": WEIGHTS}
    files["empty.safetensors"] = b""
    sha = hub.add_commit("lab/model", files=files)
    info = nobody.repo_info("lab/model", files_metadata=True)
    found = {file.rfilename: file for file in info.siblings}
    assert (info.sha, info.private, info.gated, info.tags) == (sha, False, False, ["rl"])
    assert info.card_data.base_model == "lab/base"
    assert found["config.json"].blob_id == git_blob_id(CONFIG)
    assert found["config.json"].lfs is None
    assert (found["empty.safetensors"].size, found["empty.safetensors"].lfs) == (0, None)
    weights = found["model.safetensors"]
    sha256 = hashlib.sha256(WEIGHTS).hexdigest()
    assert (weights.size, weights.lfs.size, weights.lfs.sha256) == (10240, 10240, sha256)
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize 10240\n"
    assert weights.blob_id == git_blob_id(pointer.encode())
    assert weights.lfs.pointer_size == len(pointer)


def test_tree_goes_over_pages(hub: LocalHub, nobody: HfApi) -> None:
    """A listing of more entries than a page holds is whole, recursive or not, and has folders."""
    names = [f"{i}.txt" for i in range(7)] + ["a/b/deep.txt", "a/flat.txt"]
    hub.add_commit("lab/model", files={name: name.encode() for name in names}, title="all")
    hub.clear_log()
    everything = list(nobody.list_repo_tree("lab/model", recursive=True))
    assert [entry.path for entry in everything] == sorted([*names, ".gitattributes", "a", "a/b"])
    assert len(hub.log) == 4
    top = [entry.path for entry in nobody.list_repo_tree("lab/model")]
    assert top == sorted([*names[:7], ".gitattributes", "a"])
    inside = [entry.path for entry in nobody.list_repo_tree("lab/model", path_in_repo="a")]
    assert inside == ["a/b", "a/flat.txt"]
    with pytest.raises(EntryNotFoundError):
        list(nobody.list_repo_tree("lab/model", path_in_repo="missing"))


def test_expanded_tree_names_the_last_change_of_every_path(hub: LocalHub, nobody: HfApi) -> None:
    """With expand, a path carries the youngest commit that changed it."""
    hub.add_commit("lab/model", files={"a/1.txt": b"1", "2.txt": b"2"}, title="first")
    hub.add_commit("lab/model", files={"2.txt": b"two"}, title="second")
    entries = nobody.list_repo_tree("lab/model", recursive=True, expand=True)
    titles = {entry.path: entry.last_commit.title for entry in entries}
    assert titles == {
        ".gitattributes": "initial commit",
        "2.txt": "second",
        "a": "first",
        "a/1.txt": "first",
    }


def test_paths_info_leaves_out_what_is_missing(hub: LocalHub, nobody: HfApi) -> None:
    """Files and folders are described, unknown paths are not in the answer."""
    hub.add_commit("lab/model", files={"a/model.safetensors": WEIGHTS, "config.json": CONFIG})
    found = nobody.get_paths_info("lab/model", ["a", "a/model.safetensors", "nowhere"])
    assert [entry.path for entry in found] == ["a", "a/model.safetensors"]
    assert found[1].lfs.sha256 == hashlib.sha256(WEIGHTS).hexdigest()


def test_history_is_listed_newest_first_over_pages(hub: LocalHub, nobody: HfApi) -> None:
    """Commits have titles and rising dates; a branch shares the history of main."""
    for step in range(4):
        hub.add_commit("lab/model", files={"step.txt": b"%d" % step}, title=f"step {step}")
    hub.add_commit("lab/model", files={"x": b"x"}, title="aside", revision="branch")
    commits = nobody.list_repo_commits("lab/model", revision="branch")
    titles = ["aside", "step 3", "step 2", "step 1", "step 0", "initial commit"]
    assert [commit.title for commit in commits] == titles
    dates = [commit.created_at for commit in commits]
    assert dates == sorted(set(dates), reverse=True)
    assert nobody.list_repo_commits("lab/model")[0].title == "step 3"
    answer = ask(f"{hub.endpoint}/api/models/lab/model/commits/main?limit=2")
    assert [row["title"] for row in json.loads(answer.body)] == ["step 3", "step 2"]
    assert 'rel="next"' in answer.headers["link"]
    assert "limit=2" in answer.headers["link"]


def test_downloads_are_the_bytes_that_were_put(
    hub: LocalHub, nobody: HfApi, tmp_path: Path
) -> None:
    """Large and small files arrive whole, by branch and by commit, alone and as a snapshot."""
    source = tmp_path / "model.safetensors"
    source.write_bytes(WEIGHTS)
    files = {"model.safetensors": source, "sub/config.json": CONFIG, "empty.txt": b""}
    sha = hub.add_commit("lab/model", files=files, revision="step_10")
    cache = tmp_path / "cache"
    options = {"endpoint": hub.endpoint, "cache_dir": cache, "token": False}
    large = hf_hub_download("lab/model", "model.safetensors", revision="step_10", **options)
    small = hf_hub_download("lab/model", "sub/config.json", revision=sha, **options)
    assert (Path(large).read_bytes(), Path(small).read_bytes()) == (WEIGHTS, CONFIG)
    folder = Path(snapshot_download("lab/model", revision="step_10", **options))
    assert folder.name == sha
    assert (folder / "empty.txt").read_bytes() == b""
    assert nobody.file_exists("lab/model", "model.safetensors") is False


def test_private_repo_exists_for_its_members_only(
    hub: LocalHub, alice: HfApi, bob: HfApi, nobody: HfApi
) -> None:
    """Strangers cannot tell a private repo from a missing one; a grant opens it."""
    hub.add_commit("lab/secret", files={"config.json": CONFIG}, private=True)
    assert alice.model_info("lab/secret").private is True
    for api, status in ((bob, 404), (nobody, 401)):
        for repo_id in ("lab/secret", "lab/missing"):
            with pytest.raises(RepositoryNotFoundError) as error:
                api.model_info(repo_id)
            assert status_of(error) == status
            with pytest.raises(RepositoryNotFoundError):
                api.hf_hub_download(repo_id, "config.json", dry_run=True)
    hub.grant_access("lab/secret", "bob")
    assert bob.model_info("lab/secret").id == "lab/secret"
    hub.set_private("lab/secret", False)
    assert nobody.model_info("lab/secret").private is False


def test_gated_repo_lists_its_files_but_keeps_them(
    hub: LocalHub, bob: HfApi, nobody: HfApi, tmp_path: Path
) -> None:
    """A gated repo is public except for the content of its files."""
    files = {"config.json": CONFIG, "model.safetensors": WEIGHTS}
    hub.add_commit("lab/gated", files=files, gated=True)
    for api, status in ((bob, 403), (nobody, 401)):
        assert api.model_info("lab/gated").gated == "manual"
        assert "config.json" in api.list_repo_files("lab/gated")
        for name in files:
            with pytest.raises(GatedRepoError) as error:
                api.hf_hub_download("lab/gated", name, cache_dir=tmp_path / "cache")
            assert status_of(error) == status
    hub.grant_access("lab/gated", "bob")
    path = bob.hf_hub_download("lab/gated", "config.json", cache_dir=tmp_path / "cache")
    assert Path(path).read_bytes() == CONFIG
    hub.set_gated("lab/gated", False)
    assert nobody.file_exists("lab/gated", "config.json")


def test_missing_revision_and_entry_have_their_own_errors(
    hub: LocalHub, nobody: HfApi, tmp_path: Path
) -> None:
    """A deleted branch is a missing revision; a missing file is a missing entry."""
    sha = hub.add_commit("lab/model", files={"config.json": CONFIG}, revision="step_1")
    hub.create_tag("lab/model", "kept", "step_1")
    hub.delete_branch("lab/model", "step_1")
    with pytest.raises(RevisionNotFoundError):
        nobody.model_info("lab/model", revision="step_1")
    for revision in ("kept", sha):
        assert nobody.model_info("lab/model", revision=revision).sha == sha
    with pytest.raises(RevisionNotFoundError):
        nobody.hf_hub_download("lab/model", "a", revision="f" * 40, cache_dir=tmp_path)
    with pytest.raises(EntryNotFoundError):
        nobody.hf_hub_download("lab/model", "a", revision="kept", cache_dir=tmp_path)
    # The answer names the commit, so that the cache remembers what is not there.
    remembered = try_to_load_from_cache("lab/model", "a", cache_dir=tmp_path, revision=sha)
    assert remembered is not None
    assert not isinstance(remembered, str)


def test_list_models_shows_what_the_user_may_see(
    hub: LocalHub, alice: HfApi, bob: HfApi, nobody: HfApi
) -> None:
    """Models are listed by author over pages, private ones to members only."""
    for step in range(5):
        hub.add_commit(f"lab/run-step{step}", files={"a": b"a"}, private=step == 4)
    hub.add_commit("bob/other", files={"a": b"a"})
    public = [f"lab/run-step{step}" for step in range(4)]
    assert [model.id for model in nobody.list_models(author="lab")] == public
    assert [model.id for model in bob.list_models(author="lab")] == public
    assert [model.id for model in alice.list_models(author="lab")] == [*public, "lab/run-step4"]
    assert [model.id for model in alice.list_models(author="lab", search="step2")] == [public[2]]
    assert [model.id for model in nobody.list_models(limit=1)] == ["bob/other"]


def test_list_models_tells_what_it_is_asked_for(hub: LocalHub, nobody: HfApi) -> None:
    """A list of models holds neither commits nor files unless these fields are named."""
    commit = hub.add_commit("lab/model", files={"a": b"a"}, gated=True)
    (short,) = nobody.list_models(author="lab")
    assert (short.sha, short.siblings, short.gated, short.private) == (None, None, None, False)
    (asked,) = nobody.list_models(author="lab", expand=["sha", "siblings", "gated"])
    assert (asked.sha, asked.gated, asked.private) == (commit, "manual", None)
    assert [file.rfilename for file in asked.siblings] == [".gitattributes", "a"]
    (full,) = nobody.list_models(author="lab", full=True)
    assert (full.sha, full.gated, full.author) == (commit, "manual", "lab")
