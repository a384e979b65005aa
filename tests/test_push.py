"""Pushing a predicted model: to a real server over HTTP, through the real client."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import asdict, fields
from pathlib import Path

import pytest
import torch
from hub_fixtures import commands_for
from huggingface_hub import CommitOperationAdd, snapshot_download
from manifest_maker import copied_tensor, manifest, run
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from alpharl_hub.card.make import CardFacts, make_card
from alpharl_hub.errors import HeaderError, ManifestError, PushError
from alpharl_hub.local_hub import Fault, LocalHub, child_environment
from alpharl_hub.push.model_upload import (
    HubAccess,
    ModelUpload,
    PushHooks,
    PushOptions,
    PushResult,
    UploadedShard,
    push_folder,
)
from alpharl_hub.sources.patience import Patience

# The client sends parts of an LFS upload in a way that its HTTP library has deprecated
# (huggingface_hub 2.4, `_upload_parts_iteratively`).
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=<...>':DeprecationWarning")

REPO = "alice/model"
COMMIT_PATH = "/api/models/alice/model/commit/"
INDEX = "model.safetensors.index.json"


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[LocalHub]:
    """A Hub without Xet and with two users, that takes larger files in parts."""
    tokens = {"hf_alice": "alice", "hf_bob": "bob"}
    with LocalHub(tmp_path / "hub", tokens, multipart_chunk_bytes=5000) as started:
        yield started


def write_output(folder: Path, seed: int, *, sharded: bool = False, private: bool = False) -> Path:
    """Write what predict leaves behind, with the random weights of a real model class."""
    config = LlamaConfig(
        vocab_size=32,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=32,
    )
    torch.manual_seed(seed)
    LlamaForCausalLM(config).save_pretrained(folder, max_shard_size="8KB" if sharded else "1GB")
    tensors = []
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118 - no mapping
                view = file.get_slice(name)
                tensors.append(copied_tensor(name, view.get_dtype(), tuple(view.get_shape())))
    made = manifest(
        run=run(private=private),
        tensors=tuple(tensors),
        copied_files=("config.json", "generation_config.json"),
    )
    (folder / "alpharl.json").write_text(made.to_json())
    (folder / "README.md").write_text(make_card(made, CardFacts(folder.name)))
    return folder


@pytest.fixture
def output(tmp_path: Path) -> Path:
    """A finished model in one file."""
    return write_output(tmp_path / "single", 1)


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    """A finished model in several files, other than `output`."""
    return write_output(tmp_path / "sharded", 2, sharded=True)


def access(hub: LocalHub, token: str | None = "hf_alice") -> HubAccess:
    """Alice's token at this Hub."""
    return HubAccess(token, hub.endpoint)


def push(
    hub: LocalHub,
    folder: Path,
    repo: str = REPO,
    waits_s: list[float] | None = None,
    **options: object,
) -> PushResult:
    """Push a folder as Alice; waits are written down and not waited."""
    waits_s = [] if waits_s is None else waits_s
    hooks = PushHooks(patience=Patience(sleep=waits_s.append))
    return push_folder(folder, repo, PushOptions(**options), access=access(hub), hooks=hooks)  # type: ignore[arg-type]


def begin(hub: LocalHub, **options: object) -> ModelUpload:
    """Start an upload as Alice."""
    chosen = PushOptions(**options)  # type: ignore[arg-type]
    return ModelUpload.begin(REPO, chosen, private_inputs=False, access=access(hub))


def root(hub: LocalHub, tmp_path: Path, branch: str = "main") -> Path:
    """Download a branch of the repo with the Hub's own client."""
    return Path(
        snapshot_download(
            REPO,
            revision=branch,
            endpoint=hub.endpoint,
            token="hf_alice",
            cache_dir=tmp_path / "cache",
        )
    )


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    """Every tensor of the weight files of a folder."""
    return {
        name: value
        for path in sorted(folder.glob("*.safetensors"))
        for name, value in load_file(path).items()
    }


def assert_loads_as(downloaded: Path, folder: Path) -> None:
    """transformers loads from the download what lies in the folder."""
    loaded = AutoModelForCausalLM.from_pretrained(downloaded, dtype="auto").state_dict()
    expected = tensors_of(folder)
    assert set(expected) <= set(loaded)
    for name, value in expected.items():
        assert torch.equal(loaded[name], value)


def refs(hub: LocalHub) -> Mapping[str, str]:
    """The branches of the repo, empty where there is no repo."""
    try:
        return hub.refs(REPO)
    except KeyError:
        return {}


def other_files(folder: Path) -> dict[str, bytes | Path]:
    """The files of a folder that are no weights."""
    return {p.name: p for p in folder.iterdir() if p.suffix != ".safetensors"}


def puts(hub: LocalHub) -> list[str]:
    """Addresses that file contents were sent to."""
    return [record.path for record in hub.log if record.method == "PUT"]


def changing_requests(hub: LocalHub) -> list[str]:
    """Requests that could have changed anything."""
    return [r.path for r in hub.log if r.method not in ("GET", "HEAD")]


def test_new_repo_holds_a_model_that_loads(hub: LocalHub, output: Path, tmp_path: Path) -> None:
    """One commit makes the repo's model, public, complete and loadable."""
    result = push(hub, output)
    assert result.url == f"{hub.endpoint}/{REPO}"
    assert result.commit == refs(hub)["refs/heads/main"]
    downloaded = root(hub, tmp_path)
    assert_loads_as(downloaded, output)
    files = {path.name for path in downloaded.iterdir()}
    assert files == {path.name for path in output.iterdir()} | {".gitattributes"}
    assert len([r for r in hub.log if r.path.startswith(COMMIT_PATH)]) == 1
    card = (downloaded / "README.md").read_text()
    assert f'name = "{REPO}"' in card


def change_manifest(folder: Path, **changes: object) -> None:
    """Write other values into a folder's alpharl.json."""
    path = folder / "alpharl.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def run_child(hub: LocalHub, home: Path, folder: Path, token: str | None) -> tuple[str, str]:
    """Push in a process of its own; return what it wrote to stdout and stderr."""
    script = (
        "import sys; from pathlib import Path\n"
        "from alpharl_hub.push.model_upload import PushHooks, PushOptions, push_folder\n"
        "from alpharl_hub.errors import PushError\n"
        "hooks = PushHooks(on_notice=print)\n"
        "try: push_folder(Path(sys.argv[1]), 'alice/model', PushOptions(), hooks=hooks)\n"
        "except PushError as error: print(error)\n"
    )
    environment = child_environment(hub.endpoint, home, token)
    environment["PYTHONPATH"] = os.pathsep.join(sys.path)
    command = [sys.executable, "-c", script, str(folder)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return done.stdout, done.stderr


def test_push_goes_by_lfs_in_silence(hub: LocalHub, sharded: Path, tmp_path: Path) -> None:
    """A Hub without Xet is found out by asking, and said once; the library draws no bars.

    The Hub wants *.model in LFS too, so the commit itself has files to upload.
    """
    extra = ("tokenizer.model", "spiece.model")
    for name in extra:
        (sharded / name).write_bytes(name.encode())
    change_manifest(sharded, copied_files=["config.json", *extra])
    stdout, stderr = run_child(hub, tmp_path / "home", sharded, "hf_alice")
    assert stdout == f"{REPO}: uploads go by LFS\n"
    assert stderr == ""
    assert len(puts(hub)) > len(extra)
    assert hub.read_file(REPO, "spiece.model") == b"spiece.model"


def test_sharded_model_replaces_single_file(
    hub: LocalHub, output: Path, sharded: Path, tmp_path: Path
) -> None:
    """The old single file, adapter and tokenizer go; the new shards are what loads."""
    push(hub, output)
    stale = ("adapter_config.json", "pytorch_model.bin", "added_tokens.json")
    kept = ("notes.txt", "logs/model.safetensors")
    hub.add_commit(REPO, files={name: b"{}" for name in (*stale, *kept)})
    result = push(hub, sharded)
    assert result.deleted == tuple(sorted(("model.safetensors", *stale)))
    downloaded = root(hub, tmp_path)
    assert not [name for name in result.deleted if (downloaded / name).exists()]
    assert all((downloaded / name).exists() for name in kept)
    assert (downloaded / INDEX).exists()
    assert_loads_as(downloaded, sharded)


def test_single_file_replaces_shards(
    hub: LocalHub, output: Path, sharded: Path, tmp_path: Path
) -> None:
    """The other way round: no shard and no index is left."""
    push(hub, sharded)
    push(hub, output)
    downloaded = root(hub, tmp_path)
    assert [path.name for path in downloaded.glob("*.safetensors*")] == ["model.safetensors"]
    assert_loads_as(downloaded, output)


def test_same_model_again_makes_no_commit(hub: LocalHub, output: Path) -> None:
    """What is there already is not committed again."""
    first = push(hub, output)
    assert push(hub, output).commit == first.commit
    assert refs(hub)["refs/heads/main"] == first.commit


def test_an_unchanged_folder_is_not_said_to_be_uploaded(
    hub: LocalHub, output: Path, tmp_path: Path
) -> None:
    """The second time no byte and no commit is sent, and stderr and JSON say just that."""
    with commands_for(tmp_path / "commands", hub) as commands:
        first = commands.run("push", output, REPO, "--json", token="hf_alice")
        assert "uploaded model.safetensors (" in first.stderr
        assert first.answer["changed"] is True
        hub.clear_log()
        again = commands.run("push", output, REPO, "--json", token="hf_alice")
        quiet = commands.run("push", output, REPO, "--quiet", token="hf_alice")
    assert changing_requests(hub) == []
    assert again.stderr.splitlines()[-2:] == [
        f"model.safetensors: {REPO} has its bytes already",
        f"nothing to change: {REPO} holds these files already; no commit was made",
    ]
    assert "uploaded" not in again.stderr
    wanted = {**first.answer, "added": [], "deleted": [], "changed": False}
    assert again.answer == wanted
    assert (quiet.code, quiet.stdout, quiet.stderr) == (0, f"{hub.endpoint}/{REPO}\n", "")


def test_only_the_weights_that_the_branch_lacks_are_sent(hub: LocalHub, sharded: Path) -> None:
    """One changed shard of four goes up; the others keep their bytes and are in the new commit."""
    push(hub, sharded)
    path = sorted(sharded.glob("*.safetensors"))[1]
    save_file({name: value + 1 for name, value in load_file(path).items()}, path)
    hub.clear_log()
    told: list[str] = []
    sent: list[str] = []
    hooks = PushHooks(told.append, lambda name, _size: sent.append(name))
    result = push_folder(sharded, REPO, PushOptions(), access=access(hub), hooks=hooks)
    assert sent == [path.name]
    assert result.changed
    kept = [p.name for p in sorted(sharded.glob("*.safetensors")) if p != path]
    assert [line.partition(":")[0] for line in told if "already" in line] == kept
    for shard in sharded.glob("*.safetensors"):
        assert hub.read_file(REPO, shard.name) == shard.read_bytes()


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    """The library says so, and names the folder that was perhaps meant."""
    (tmp_path / "predicted").mkdir()
    with pytest.raises(ManifestError, match=r"no such folder; did you mean .*/predicted"):
        push_folder(tmp_path / "predictd", REPO, PushOptions())
    with pytest.raises(ManifestError, match="no such folder; name what predict or extract wrote"):
        push_folder(tmp_path / "x", REPO, PushOptions())


def test_foreign_repo_needs_overwrite(hub: LocalHub, output: Path, tmp_path: Path) -> None:
    """Files that this tool did not make are replaced only when the user says so."""
    before = hub.add_commit(REPO, files={"model.safetensors": b"theirs", "alpharl.json": b"{}"})
    with pytest.raises(PushError, match="--overwrite") as caught:
        push(hub, output)
    assert "alpharl.json, model.safetensors" in str(caught.value)
    assert refs(hub)["refs/heads/main"] == before
    assert not puts(hub)
    push(hub, output, overwrite=True)
    assert_loads_as(root(hub, tmp_path), output)


def test_half_made_repo_is_finished(hub: LocalHub, output: Path) -> None:
    """An empty repo, as an interrupted push leaves it, needs no --overwrite."""
    begin(hub)
    assert refs(hub)
    assert push(hub, output).commit == refs(hub)["refs/heads/main"]


def fetch(url: str) -> bytes:
    """Read an address as a stranger would."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(url) as answer:
        return bytes(answer.read())


def is_private(hub: LocalHub, repo: str) -> bool:
    """Whether a stranger is told that the repo does not exist."""
    try:
        fetch(f"{hub.endpoint}/api/models/{repo}")
    except urllib.error.HTTPError as error:
        error.close()
        return error.code == 401
    return False


@pytest.mark.parametrize(
    ("private_inputs", "private", "expected"),
    [
        (False, None, False),
        (True, None, True),
        (True, False, False),
        (False, True, True),
    ],
)
def test_visibility_of_a_new_repo(
    hub: LocalHub, tmp_path: Path, private_inputs: bool, private: bool | None, expected: bool
) -> None:
    """Private inputs make a private model, unless the user says --public; else it is public."""
    folder = write_output(tmp_path / "out", 1, private=private_inputs)
    push(hub, folder, private=private)
    assert is_private(hub, REPO) is expected


def test_private_inputs_do_not_go_public_by_accident(hub: LocalHub, tmp_path: Path) -> None:
    """A public repo takes a model of private inputs only with --public."""
    folder = write_output(tmp_path / "out", 1, private=True)
    hub.add_commit(REPO, files={".gitattributes": b""})
    with pytest.raises(PushError, match=r"private or gated; .* --public"):
        push(hub, folder)
    assert not changing_requests(hub)
    assert push(hub, folder, private=False).commit is not None


def test_private_repo_stays_private(hub: LocalHub, tmp_path: Path) -> None:
    """A private repo takes private inputs without a word."""
    folder = write_output(tmp_path / "out", 1, private=True)
    hub.add_commit(REPO, files={".gitattributes": b""}, private=True)
    push(hub, folder)
    assert is_private(hub, REPO)


def test_branch_is_made_and_leaves_main_alone(
    hub: LocalHub, output: Path, sharded: Path, tmp_path: Path
) -> None:
    """A branch starts from main, gets the model, and main keeps its own."""
    first = push(hub, output)
    result = push(hub, sharded, branch="try/2")
    assert refs(hub)["refs/heads/main"] == first.commit
    assert refs(hub)["refs/heads/try/2"] == result.commit
    assert result.url == f"{hub.endpoint}/{REPO}/tree/try%2F2"
    downloaded = root(hub, tmp_path, "try/2")
    assert not (downloaded / "model.safetensors").exists()
    assert 'revision = "try/2"' in (downloaded / "README.md").read_text()
    assert_loads_as(downloaded, sharded)


def test_commit_message_is_the_users(hub: LocalHub, output: Path) -> None:
    """The title of the commit is what the user wrote."""
    push(hub, output, commit_message="step 100")
    commits = json.loads(fetch(f"{hub.endpoint}/api/models/{REPO}/commits/main"))
    assert commits[0]["title"] == "step 100"


def test_dry_run_changes_nothing(hub: LocalHub, output: Path, sharded: Path) -> None:
    """A dry run names what would be added and deleted, and asks the Hub for nothing else."""
    planned = push(hub, output, dry_run=True)
    assert planned.commit is None
    assert planned.deleted == ()
    assert refs(hub) == {}
    push(hub, output)
    before = refs(hub)
    hub.clear_log()
    planned = push(hub, sharded, dry_run=True)
    assert planned.added == tuple(sorted(path.name for path in sharded.iterdir()))
    assert planned.deleted == ("model.safetensors",)
    assert not changing_requests(hub)
    assert refs(hub) == before
    done = push(hub, sharded)
    assert (done.added, done.deleted) == (planned.added, planned.deleted)


def test_dry_run_still_refuses(hub: LocalHub, output: Path) -> None:
    """A dry run finds the same reasons not to push."""
    hub.add_commit(REPO, files={"model.safetensors": b"theirs"})
    with pytest.raises(PushError, match="--overwrite"):
        push(hub, output, dry_run=True)


def test_uploaded_shards_are_kept_over_a_restart(
    hub: LocalHub, sharded: Path, tmp_path: Path
) -> None:
    """Shards that went up before an interruption are committed without their bytes."""
    upload = begin(hub)
    journal = []
    others = other_files(sharded)
    kept = tmp_path / "kept"
    kept.mkdir()
    for path in sorted(sharded.glob("*.safetensors")):
        journal.append(json.dumps(asdict(upload.upload_shard(path))))
        path.rename(kept / path.name)
    assert len(puts(hub)) >= len(journal) > 1
    hub.clear_log()
    shards = [UploadedShard(**json.loads(line)) for line in journal]
    result = begin(hub).finish(shards, others)
    assert not puts(hub)
    assert result.commit == refs(hub)["refs/heads/main"]
    assert_loads_as(root(hub, tmp_path), kept)


def test_client_still_has_the_private_fields() -> None:
    """The two private fields that say `uploaded already` exist in the installed client."""
    assert {"_upload_mode", "_is_uploaded", "upload_info"} <= {
        field.name for field in fields(CommitOperationAdd)
    }


def test_shards_that_the_hub_lost_are_refused(hub: LocalHub, sharded: Path) -> None:
    """A commit that names bytes which the Hub does not have fails in the Hub's words."""
    shard = UploadedShard("model.safetensors", "0" * 64, 10)
    with pytest.raises(PushError, match="LFS object that was not uploaded"):
        begin(hub).finish([shard], other_files(sharded))


def test_moved_branch_is_not_overwritten(hub: LocalHub, output: Path) -> None:
    """A commit of somebody else in between stops the push and stays."""
    upload = begin(hub)
    shard = upload.upload_shard(output / "model.safetensors")
    theirs = hub.add_commit(REPO, files={"notes.txt": b"mine"})
    with pytest.raises(PushError, match=r"somebody else committed .* push again"):
        upload.finish([shard], other_files(output))
    assert refs(hub)["refs/heads/main"] == theirs


def test_lost_answer_to_the_commit_is_found_out(hub: LocalHub, output: Path) -> None:
    """When the commit was made and its answer lost, it is found and not made again."""
    hub.add_fault(Fault(match=COMMIT_PATH, kind="reset", method="POST"))
    result = push(hub, output)
    assert result.commit == refs(hub)["refs/heads/main"]
    assert len([r for r in hub.log if r.path.startswith(COMMIT_PATH)]) == 1


def test_busy_hub_is_asked_again(hub: LocalHub, output: Path) -> None:
    """A commit and a question that meet a busy Hub are repeated after the wait asked for."""
    busy = (("Retry-After", "7"),)
    hub.add_fault(Fault(match=COMMIT_PATH, kind="status", status=503, headers=busy, times=2))
    hub.add_fault(Fault(match="/api/whoami", kind="status", status=429))
    waits_s: list[float] = []
    assert push(hub, output, waits_s=waits_s).commit == refs(hub)["refs/heads/main"]
    assert len(waits_s) == 3
    assert waits_s[1:] == [7.0, 7.0]


def test_hub_that_stays_busy_is_given_up(hub: LocalHub, output: Path) -> None:
    """Patience ends, with a line that says so."""
    hub.add_fault(Fault(match=COMMIT_PATH, kind="status", status=503, times=50))
    waits_s: list[float] = []
    with pytest.raises(PushError, match=r"503.*later"):
        push(hub, output, waits_s=waits_s)
    assert 1 <= len(waits_s) < 10


def test_hour_long_wait_is_not_waited(hub: LocalHub, output: Path) -> None:
    """A Hub that asks for an hour (its quota of commits) stops the push at once."""
    busy = (("Retry-After", "3600"),)
    hub.add_fault(Fault(match=COMMIT_PATH, kind="status", status=429, headers=busy))
    waits_s: list[float] = []
    with pytest.raises(PushError, match="3600"):
        push(hub, output, waits_s=waits_s)
    assert waits_s == []


def test_full_storage_stops_in_the_hubs_words(hub: LocalHub, output: Path) -> None:
    """A 403 is not repeated, and its words reach the user."""
    words = (("X-Error-Message", "Private repository storage limit reached"),)
    fault = Fault(
        match="/info/lfs/objects/batch", kind="status", status=403, headers=words, times=9
    )
    hub.add_fault(fault)
    waits_s: list[float] = []
    with pytest.raises(PushError, match="Private repository storage limit reached"):
        push(hub, output, waits_s=waits_s)
    assert waits_s == []
    assert len([r for r in hub.log if r.path.endswith("/objects/batch")]) == 1


def test_unknown_token(hub: LocalHub, output: Path) -> None:
    """A token that the Hub does not know is found out before anything else."""
    with pytest.raises(PushError, match="does not know this token"):
        push_folder(output, REPO, PushOptions(), access=access(hub, "hf_nobody"))
    assert [record.path for record in hub.log] == ["/api/whoami-v2"]


def test_missing_token(hub: LocalHub, output: Path, tmp_path: Path) -> None:
    """Without any token the user is told how to give one."""
    stdout, _ = run_child(hub, tmp_path / "home", output, None)
    assert stdout == f"{REPO}: pushing needs a token; pass --token or set HF_TOKEN\n"
    assert hub.log == ()


def test_no_right_to_write(hub: LocalHub, output: Path) -> None:
    """Somebody else's repo, and a new one in somebody else's name, are refused before uploads."""
    push(hub, output)
    for repo in (REPO, "alice/other"):
        hub.clear_log()
        with pytest.raises(PushError, match=r"not allowed \(403"):
            push_folder(output, repo, PushOptions(), access=access(hub, "hf_bob"))
        assert not puts(hub)


@pytest.mark.parametrize("repo", ["model", "a/b/c", "alice/mo del", "alice/..", "", "-x/y"])
def test_impossible_names_of_repos(hub: LocalHub, output: Path, repo: str) -> None:
    """A name that no repo can have is refused without asking."""
    with pytest.raises(PushError, match="ORG/NAME"):
        push(hub, output, repo)
    assert hub.log == ()


def test_unreachable_hub(output: Path) -> None:
    """Where nobody answers the user reads where it was tried."""
    waits_s: list[float] = []
    hooks = PushHooks(patience=Patience(sleep=waits_s.append))
    with pytest.raises(PushError, match=r"alice/model: .*refused.*try again later"):
        push_folder(
            output, REPO, PushOptions(), access=HubAccess("hf_x", "http://127.0.0.1:9"), hooks=hooks
        )
    assert waits_s


def test_other_bytes_on_the_hub_are_noticed(hub: LocalHub, output: Path) -> None:
    """After the commit the Hub is asked what it holds, and another checksum is an error."""
    same_length = "alice/other"
    assert len(same_length) == len(REPO)
    push(hub, output, same_length)
    listing = fetch(f"{hub.endpoint}/api/models/{same_length}/tree/main")
    sha256 = hashlib.sha256((output / "model.safetensors").read_bytes()).hexdigest()
    position = listing.index(sha256.encode()) + 5
    # The listing before the commit is too short for it: a digit changes in the one afterwards.
    tree = f"/api/models/{REPO}/tree/"
    hub.add_fault(Fault(match=tree, kind="flip", after_bytes=position))
    with pytest.raises(PushError, match=r"does not hold what was sent \(model.safetensors\)"):
        push(hub, output)


def test_only_known_files_go_up(hub: LocalHub, output: Path) -> None:
    """What else lies in the folder stays there."""
    for name in ("notes.txt", "optimizer.pt", ".env", "other.safetensors"):
        (output / name).write_text("secret")
    assert not {"notes.txt", "optimizer.pt", ".env", "other.safetensors"} & set(
        push(hub, output).added
    )


@pytest.mark.parametrize(
    "name",
    [
        "../secret.txt",
        "/etc/passwd",
        "sub/secret.txt",
        ".env",
        "",
        "a\\b",
        "x\ny",
        "-rf",
        "pytorch_model.bin",
        "adapter_config.json",
        "missing.txt",
        "link.txt",
        "folder",
    ],
)
def test_hostile_manifest_sends_nothing(hub: LocalHub, output: Path, name: str) -> None:
    """A manifest names plain files of its folder or nothing: no path, link, folder or pickle."""
    (output.parent / "secret.txt").write_text("secret")
    (output / "link.txt").symlink_to(output.parent / "secret.txt")
    (output / "folder").mkdir()
    (output / "pytorch_model.bin").write_text("pickle")
    change_manifest(output, copied_files=["config.json", name])
    with pytest.raises((ManifestError, PushError), match="predict"):
        push(hub, output)
    assert hub.log == ()


@pytest.mark.parametrize(
    ("damage", "error", "words"),
    [
        (lambda f: (f / "alpharl.json").unlink(), ManifestError, "has no alpharl.json"),
        (lambda f: (f / "alpharl.json").write_text("{"), ManifestError, "not valid JSON"),
        (lambda f: change_manifest(f, kind="factors"), PushError, "factors.safetensors: missing"),
        (lambda f: change_manifest(f, run_this="rm"), ManifestError, "unknown key 'run_this'"),
        (lambda f: (f / "README.md").unlink(), PushError, "README.md: missing"),
        (lambda f: next(f.glob("*-00001-*")).unlink(), PushError, "missing"),
        (lambda f: (f / INDEX).unlink(), PushError, "model.safetensors: missing"),
        (lambda f: (f / INDEX).write_text('{"metadata": {}}'), PushError, "has no weight_map"),
        (lambda f: (f / "model.safetensors").write_text(""), PushError, "remove the stray one"),
        (
            lambda f: os.truncate(next(f.glob("*-00001-*")), 3000),
            HeaderError,
            "no valid safetensors header",
        ),
        (
            lambda f: save_file({"x": torch.zeros(2)}, next(f.glob("*-00001-*"))),
            PushError,
            "not those that alpharl.json describes",
        ),
        (
            lambda f: (f / INDEX).write_text((f / INDEX).read_text().replace("total_size", "size")),
            PushError,
            "does not fit the weight files",
        ),
        (
            lambda f: (f / INDEX).write_text(
                (f / INDEX).read_text().replace("model-00001", "../model-00001")
            ),
            PushError,
            "is no weight file of this folder",
        ),
    ],
)
def test_unfinished_folders_are_refused(
    hub: LocalHub, sharded: Path, damage: object, error: type[Exception], words: str
) -> None:
    """A folder that is not whole, or not what its manifest says, is refused without asking."""
    damage(sharded)  # type: ignore[operator]
    with pytest.raises(error, match=words) as caught:
        push(hub, sharded)
    assert "\n" not in str(caught.value)
    assert hub.log == ()
