"""Runs on a Hub, read over real HTTP by real commands; the Hub's own counters are the witness."""

import json
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hub_fixtures import (
    ALICE,
    BOB,
    Commands,
    Done,
    add_base,
    add_branches,
    commands_for,
    files_of,
    wide_line,
)
from huggingface_hub import snapshot_download
from local_hub_helpers import ask
from trajectories import (
    EMBEDDING,
    Run,
    digest,
    load_model,
    model_config,
    rank_one_line,
    with_method,
    write_checkpoint,
    write_run,
)

from alpharl_hub.local_hub import Fault, LocalHub, RequestRecord

STEPS = (10, 20, 30, 40)
LARGEST_ANSWER_BYTES = 64 << 20


@pytest.fixture(autouse=True)
def calm(hub: LocalHub) -> None:
    """Start every test without faults and with an empty log."""
    hub.clear_faults()
    hub.clear_log()


@pytest.fixture(scope="module")
def commands(tmp_path_factory: pytest.TempPathFactory, hub: LocalHub) -> Iterator[Commands]:
    """Commands with an empty cache; at the end it is still empty."""
    with commands_for(tmp_path_factory.mktemp("commands"), hub) as found:
        yield found
    assert list(found.home.rglob("*")) == []


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, hub: LocalHub) -> Run:
    """A tiny run on disk; lab/base on the Hub is its base and lab/run its branches."""
    found = write_run(tmp_path_factory.mktemp("run"), STEPS, rank_one_line())
    add_base(hub, "lab/base", found)
    add_branches(hub, "lab/run", found)
    return found


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory, hub: LocalHub) -> Run:
    """A run of 5.8 MB a checkpoint on disk, as lab/wide on the Hub with lab/wide-base.

    Base and history are single files, the last checkpoint has four shards.
    """
    folder = tmp_path_factory.mktemp("wide")
    options = {"last_options": {"num_shards": 4}}
    found = write_run(folder, STEPS, wide_line(600), **options)
    add_base(hub, "lab/wide-base", found)
    add_branches(hub, "lab/wide", found)
    return found


@pytest.fixture(scope="module")
def local_digest(run: Run, commands: Commands) -> str:
    """What predict makes of the tiny run's folders on disk."""
    output = commands.folder / "local"
    done = commands.run("predict", *run.arguments("-o", str(output), "--target-step", "80"))
    assert done.code == 0, done.stderr
    return digest(output)


def inspect(commands: Commands, *args: str, **options: str) -> Done:
    """Inspect a run with lab/base, as JSON."""
    return commands.run("inspect", *args, "--base", "lab/base", "--json", **options)


def predict(commands: Commands, output: Path, *args: str, **options: str) -> str:
    """Predict from a Hub and return the digest of the weights."""
    done = commands.run("predict", *args, "--target-step", "80", "-o", output, **options)
    assert done.code == 0, done.stderr
    assert done.stdout == f"{output}\n"
    return digest(output)


def weight_answers(hub: LocalHub) -> list[RequestRecord]:
    """The answers that held bytes of weight files."""
    return [
        record
        for record in hub.log
        if record.bytes_sent and (record.file_path or "").endswith(".safetensors")
    ]


def api_calls(hub: LocalHub) -> list[str]:
    """What was asked of the Hub's API, which it counts; resolves have a limit of their own."""
    return [
        record.path
        for record in hub.log
        if record.origin == "api" and record.path.startswith("/api/models/")
    ]


# -- where the steps lie -------------------------------------------------------------------------


def add_refs(hub: LocalHub, repo: str, run: Run, names: Sequence[str], kind: str) -> None:
    """Put the steps of a run on branches or tags of the given names."""
    for step, name in zip(run.steps, names, strict=True):
        branch = name if kind == "branches" else "work"
        hub.add_commit(repo, files=files_of(run.folder(step)), revision=branch)
        if kind == "tags":
            hub.create_tag(repo, name, branch)


def add_folders(hub: LocalHub, repo: str, run: Run, name: str) -> None:
    """Put the steps of a run into folders of main."""
    files: dict[str, bytes | Path] = {"readme.txt": b"text"}
    for step in run.steps:
        files |= files_of(run.folder(step), name.format(step) + "/")
    hub.add_commit(repo, files=files)


@pytest.fixture(scope="module")
def layouts(hub: LocalHub, run: Run) -> None:
    """The same run in every layout."""
    add_refs(hub, "lab/padded", run, ["step_0010", "step_20", "step_030", "step_40"], "branches")
    hub.add_commit("lab/padded", files={"x": b""}, revision="step1000-tokens4B")
    hub.add_commit("lab/padded", files={"x": b""}, revision="step2000-tokens8B")
    hub.add_commit("lab/padded", files={"x": b""}, revision="latest-checkpoint")
    names = [f"main-step-{step:09}" for step in STEPS]
    add_refs(hub, "lab/open-r1", run, names, "branches")
    add_refs(hub, "lab/tags", run, [f"step-{step}" for step in STEPS], "tags")
    add_refs(hub, "lab/slash", run, [f"rl/step_{step}" for step in STEPS], "branches")
    add_folders(hub, "lab/folders", run, "checkpoint-{}")
    add_folders(hub, "lab/deep", run, "runs/a/global_step_{}/actor/huggingface")
    for step in STEPS:
        inner = files_of(run.folder(step), "weights/")
        hub.add_commit("lab/inner", files=inner, revision=f"step_{step}")


RUNS = {
    "lab/padded": ("branches", "step_{step}"),
    "lab/padded@step_{step}": ("branches", "step_{step}"),
    "hf://lab/padded": ("branches", "step_{step}"),
    "ENDPOINT/lab/padded": ("branches", "step_{step}"),
    "ENDPOINT/lab/padded/tree/step_{step}": ("branches", "step_{step}"),
    "lab/open-r1": ("branches", "main-step-{step}"),
    "lab/tags": ("tags", "step-{step}"),
    "lab/tags@step-{step}": ("tags", "step-{step}"),
    "lab/slash@rl%2Fstep_{step}": ("branches", "rl/step_{step}"),
    "lab/slash@rl/step_{step}": ("branches", "rl/step_{step}"),
    "lab/inner@step_{step}/weights": ("branches", "step_{step}"),
    "lab/folders": ("folders", "checkpoint-{step}"),
    "lab/folders@main": ("folders", "checkpoint-{step}"),
    "lab/folders/checkpoint-{step}": ("folders", "checkpoint-{step}"),
    "lab/folders@main/checkpoint-{step}": ("folders", "checkpoint-{step}"),
    "lab/deep/runs/a": ("folders", "runs/a/global_step_{step}"),
    "lab/deep/runs/a/global_step_{step}/actor/huggingface": (
        "folders",
        "runs/a/global_step_{step}/actor/huggingface",
    ),
    "ENDPOINT/lab/deep/tree/main/runs/a": ("folders", "runs/a/global_step_{step}"),
}


@pytest.mark.parametrize("text", RUNS)
def test_every_layout_is_read(
    hub: LocalHub, commands: Commands, layouts: None, run: Run, text: str
) -> None:
    """The steps are found wherever the number stands, and each is pinned to its commit."""
    done = inspect(commands, text.replace("ENDPOINT", hub.endpoint))
    found = done.answer
    assert (found["layout"], found["pattern"]) == RUNS[text]
    assert [c["step"] for c in found["checkpoints"]] == list(STEPS)
    refs = hub.refs(found["checkpoints"][0]["source"])
    for checkpoint in found["checkpoints"]:
        kind = "tags" if found["layout"] == "tags" else "heads"
        assert checkpoint["commit"] == refs[f"refs/{kind}/{checkpoint['revision']}"]
        assert checkpoint["num_tensors"] == len(load_model(run.folder(10)))
    assert found["warnings"] == []
    assert done.stderr == ""


def test_folders_on_disk_go_before_repos_of_the_same_name(
    commands: Commands, run: Run, tmp_path: Path
) -> None:
    """One line on stderr says which was taken; hf:// takes the repo."""
    (tmp_path / "lab").mkdir()
    (tmp_path / "lab" / "run").symlink_to(run.root)
    found = inspect(commands, "lab/run", "--steps", "10,20", cwd=tmp_path)
    assert found.answer["layout"] == "local"
    assert found.stderr == "RUN lab/run: the folder here is read; hf://lab/run is the repo\n"
    found = inspect(commands, "hf://lab/run", cwd=tmp_path)
    assert found.answer["layout"] == "branches"
    assert found.stderr == ""


def test_other_kinds_of_steps_are_mentioned(hub: LocalHub, commands: Commands, run: Run) -> None:
    """Branches are read where there are branches, tags and folders; one line for each other."""
    add_branches(hub, "lab/kinds", run)
    add_folders(hub, "lab/kinds", run, "checkpoint-{}")
    hub.create_tag("lab/kinds", "v-step-1", "step_10")
    hub.create_tag("lab/kinds", "v-step-2", "step_20")
    found = inspect(commands, "lab/kinds").answer
    assert (found["layout"], found["pattern"]) == ("branches", "step_{step}")
    assert [w["message"] for w in found["warnings"]] == [
        "there are tags named v-step-{step} too; the branches are read",
        "there are folders named checkpoint-{step} too; the branches are read",
    ]


def test_main_is_taken_as_a_step_only_when_it_is_said(
    hub: LocalHub, commands: Commands, run: Run
) -> None:
    """Its number is suggested from the title of its last commit; --at takes it."""
    for step in STEPS[:3]:
        hub.add_commit("lab/olmo", files=files_of(run.folder(step)), revision=f"step_{step}")
    title = "Upload checkpoint from step 40"
    main = hub.add_commit("lab/olmo", files=files_of(run.folder(40)), title=title)
    found = inspect(commands, "lab/olmo").answer
    assert [c["step"] for c in found["checkpoints"]] == [10, 20, 30]
    (warning,) = found["warnings"]
    assert warning["code"] == "main_left_out"
    assert warning["message"].endswith("speaks of step 40: --at main=40 takes it")
    assert sum("/commits/" in call for call in api_calls(hub)) == 1
    found = inspect(commands, "lab/olmo", "--at", "main=40").answer
    assert [c["step"] for c in found["checkpoints"]] == [10, 20, 30, 40]
    assert found["checkpoints"][3]["commit"] == main
    assert found["warnings"] == []
    hub.add_commit("lab/olmo", files={"x": b""}, title="Update at step 20")
    (warning,) = inspect(commands, "lab/olmo").answer["warnings"]
    assert warning["message"].endswith("--at main=STEP takes it")


def test_steps_named_by_hand(hub: LocalHub, commands: Commands, run: Run) -> None:
    """Where no name carries a number, --at says which step a branch or a commit is."""
    early = hub.add_commit("lab/hand", files=files_of(run.folder(10)), revision="early")
    hub.add_commit("lab/hand", files=files_of(run.folder(30)), revision="late")
    slash = hub.add_commit("lab/hand", files=files_of(run.folder(40)), revision="rl/end")
    at = ["late=30", f"{early}=10", "rl%2Fend=40"]
    words = [word for text in at for word in ("--at", text)]
    found = inspect(commands, "lab/hand", *words).answer
    assert [(c["step"], c["commit"]) for c in found["checkpoints"]] == [
        (10, early),
        (30, hub.refs("lab/hand")["refs/heads/late"]),
        (40, slash),
    ]
    assert inspect(commands, "lab/hand", *words[:2], "--at", "rl/end=40").code == 0


def test_the_base_by_the_card_and_by_step_0(hub: LocalHub, commands: Commands, run: Run) -> None:
    """The card of the last step, else the one of main, names the base; step 0 goes before it."""
    add_branches(hub, "lab/carded", run)
    hub.add_commit("lab/carded", files={"README.md": b"---\nbase_model: lab/base\n---\n"})
    found = commands.run("inspect", "lab/carded", "--json").answer
    assert found["base"]["source"] == "lab/base"
    assert found["base"]["chosen_by"] == "card"
    assert found["base"]["commit"] == hub.refs("lab/base")["refs/heads/main"]
    hub.add_commit("lab/carded", files=files_of(run.base), revision="step_0")
    found = commands.run("inspect", "lab/carded", "--json").answer
    assert (found["base"]["source"], found["base"]["chosen_by"]) == ("lab/carded", "step_0")
    assert found["base"]["revision"] == "step_0"


def test_incomplete_folders_of_a_repo_are_left_out(
    hub: LocalHub, commands: Commands, run: Run
) -> None:
    """prime-rl's mark decides where there is one."""
    files = {"step_50/STABLE": b"", "step_20/STABLE": b"", "step_30/STABLE": b""}
    for step in (10, 20, 30):
        files |= files_of(run.folder(step), f"step_{step}/")
    hub.add_commit("lab/prime", files=files)
    found = inspect(commands, "lab/prime").answer
    assert [c["step"] for c in found["checkpoints"]] == [20, 30]
    (warning,) = found["warnings"]
    assert "2 incomplete step folders were left out: " in warning["message"]


def test_repeats_are_seen_by_their_digests(hub: LocalHub, commands: Commands, run: Run) -> None:
    """Equal LFS digests are enough: no weight is read to find a repeat."""
    add_branches(hub, "lab/repeats", run)
    hub.add_commit("lab/repeats", files=files_of(run.folder(40)), revision="step_50")
    found = inspect(commands, "lab/repeats").answer
    assert [c["selected"] for c in found["checkpoints"]] == [True] * 4 + [False]
    assert [w["code"] for w in found["warnings"]] == ["repeats"]


# -- who may read --------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["private", "gated"])
def test_private_and_gated_repos_are_read_by_token(
    hub: LocalHub, commands: Commands, run: Run, local_digest: str, tmp_path: Path, kind: str
) -> None:
    """HF_TOKEN and --token open them; the manifest remembers that somebody had to be let in."""
    add_branches(hub, f"lab/{kind}", run, **{kind: True})
    arguments = (f"lab/{kind}", "--base", "lab/base")
    for i, options in enumerate(({"token": ALICE}, {"HF_TOKEN": "hf_wrong"})):
        more = ("--token", ALICE) if i else ()
        assert predict(commands, tmp_path / str(i), *arguments, *more, **options) == local_digest
        manifest = json.loads((tmp_path / str(i) / "alpharl.json").read_text())
        assert manifest["run"]["private"] is True
    assert commands.run("inspect", *arguments, token=BOB).code == 1
    hub.grant_access(f"lab/{kind}", "bob")
    assert commands.run("inspect", *arguments, token=BOB).code == 0


def test_an_empty_token_is_none(commands: Commands, run: Run) -> None:
    """`--token "$TOKEN"` with nothing in the variable reads public repos as without it."""
    assert inspect(commands, "lab/run", "--token", "").code == 0
    assert inspect(commands, "lab/run", "--token", f" {ALICE}\n").code == 0


def test_credentials_stay_with_the_hub(
    hub: LocalHub, commands: Commands, run: Run, tmp_path: Path
) -> None:
    """The second origin, where large files lie, never sees the token."""
    predict(commands, tmp_path / "out", "lab/run", "--base", "lab/base", token=ALICE)
    storage = [record for record in hub.log if record.origin == "storage"]
    assert len(storage) > len(STEPS)
    assert not any(record.had_authorization for record in storage)
    assert all(record.had_authorization for record in hub.log if record.origin == "api")
    for path in (tmp_path / "out").rglob("*"):
        assert ALICE.encode() not in path.read_bytes()


# -- what is pinned ------------------------------------------------------------------------------


def test_what_was_listed_is_what_is_read(
    hub: LocalHub, commands: Commands, run: Run, local_digest: str, tmp_path: Path
) -> None:
    """Branches that move or go away after they were listed change nothing."""
    commits = add_branches(hub, "lab/moving", run)
    hub.clear_log()
    hub.add_fault(Fault("/lab/moving/tree/", "slow", times=2, seconds=1.5))

    def move() -> None:
        while not any("/lab/moving/refs" in record.path for record in hub.log):
            time.sleep(0.01)
        hub.add_commit("lab/moving", files=files_of(run.base), revision="step_40")
        hub.delete_branch("lab/moving", "step_20")
        moved.set()

    moved = threading.Event()
    thread = threading.Thread(target=move)
    thread.start()
    found = predict(commands, tmp_path / "out", "lab/moving", "--base", "lab/base")
    thread.join()
    assert moved.is_set()
    assert found == local_digest
    trees = [call for call in api_calls(hub) if "/lab/moving/tree/" in call]
    assert {call.split("/tree/")[1].split("?")[0] for call in trees} >= set(commits.values())
    assert sum("/lab/moving/refs" in call for call in api_calls(hub)) == 1


def test_a_manifest_repeats_the_run_from_its_commits(
    hub: LocalHub, commands: Commands, run: Run, local_digest: str, tmp_path: Path
) -> None:
    """Also after the branches went elsewhere; a commit that is gone is told with its step."""
    add_branches(hub, "lab/repeat", run)
    assert predict(commands, tmp_path / "a", "lab/repeat", "--base", "lab/base") == local_digest
    for step in STEPS[:2]:
        hub.delete_branch("lab/repeat", f"step_{step}")
    hub.add_commit("lab/repeat", files=files_of(run.base), revision="step_40")
    manifest = tmp_path / "a" / "alpharl.json"
    done = commands.run("predict", "--from", manifest, "-o", tmp_path / "b")
    assert done.code == 0, done.stderr
    assert digest(tmp_path / "b") == local_digest
    recorded = json.loads(manifest.read_text())
    commit = recorded["run"]["checkpoints"][1]["commit"]
    text = manifest.read_text().replace(commit, "f" * 40)
    (tmp_path / "gone.json").write_text(text)
    done = commands.run("predict", "--from", tmp_path / "gone.json", "-o", tmp_path / "c")
    assert (done.code, done.stdout) == (1, "")
    assert "lab/repeat@step_20 (commit ffffffffffff): no such revision" in done.stderr
    assert not (tmp_path / "c").exists()


# -- what is read --------------------------------------------------------------------------------


def test_no_byte_is_served_twice(
    hub: LocalHub, commands: Commands, wide: Run, tmp_path: Path
) -> None:
    """Counted by the Hub: every byte at most once, one resolve a file, few calls of the API."""
    plan = commands.run("inspect", "lab/wide", "--base", "lab/wide-base", "--json").answer["plan"]
    hub.clear_log()
    predict(commands, tmp_path / "out", "lab/wide", "--base", "lab/wide-base")
    served: dict[tuple[str | None, str | None, str | None], list[tuple[int, int]]] = {}
    for record in weight_answers(hub):
        assert record.range is not None
        assert record.bytes_sent == record.range[1] - record.range[0] <= LARGEST_ANSWER_BYTES
        served.setdefault((record.repo, record.revision, record.file_path), []).append(record.range)
    assert len(served) == 1 + 3 + 4
    for spans in served.values():
        spans.sort()
        assert all(a[1] <= b[0] for a, b in pairwise(spans))
    total = sum(stop - start for spans in served.values() for start, stop in spans)
    assert plan["read_bytes"] <= total <= 1.01 * plan["read_bytes"]
    resolved = Counter(
        (record.repo, record.revision, record.file_path)
        for record in hub.log
        if record.origin == "api" and "/resolve/" in record.path
    )
    for (_, _, path), count in resolved.items():
        # config.json is read once for what it says and once to be copied.
        assert count <= (2 if path == "config.json" else 1), path
    assert len(api_calls(hub)) <= 3 * len(STEPS)


def test_no_weights_lie_on_a_disk(commands: Commands, wide: Run, tmp_path: Path) -> None:
    """The kernel refuses files as long as those of base and history; the result is the same.

    What is there afterwards is the output, and nothing else.
    """
    shards = [path.stat().st_size for path in wide.folder(40).glob("*.safetensors")]
    inputs = [path.stat().st_size for path in wide.base.glob("*.safetensors")]
    limit = max(shards) + 100_000
    assert min(inputs) > 3 * limit
    work = tmp_path / "work"
    work.mkdir()
    options = {"cwd": work, "max_file_bytes": limit}
    found = predict(commands, work / "out", "lab/wide", "--base", "lab/wide-base", **options)
    assert found == predict(commands, tmp_path / "local", *wide.arguments())
    assert list(work.iterdir()) == [work / "out"]
    assert list(commands.home.rglob("*")) == []


def test_inspect_reads_less_than_a_megabyte_of_a_checkpoint(
    hub: LocalHub, commands: Commands, wide: Run
) -> None:
    """Headers, small files and a sample of rows, of checkpoints six times as large."""
    assert min(sum(p.stat().st_size for p in wide.folder(s).iterdir()) for s in STEPS) > 5_000_000
    done = commands.run("inspect", "lab/wide", "--base", "lab/wide-base")
    assert done.code == 0, done.stderr
    sent: Counter[tuple[str | None, str | None]] = Counter()
    for record in hub.log:
        sent[record.repo, record.revision] += record.bytes_sent
    assert len([key for key in sent if key[1] is not None]) >= 1 + len(STEPS)
    assert max(sent.values()) < 1_000_000


def test_no_answer_is_longer_than_64_mib(
    hub: LocalHub, commands: Commands, run: Run, tmp_path: Path
) -> None:
    """A tensor of 80 MiB comes in parts, and each of its bytes once."""
    add_branches(hub, "lab/large", run)
    tensors = load_model(run.folder(40))
    columns = tensors[EMBEDDING].shape[1]
    tensors[EMBEDDING] = torch.zeros((80 << 20) // (4 * columns), columns)
    folder = write_checkpoint(tmp_path / "large", tensors, config=model_config())
    hub.add_commit("lab/large", files=files_of(folder), revision="step_40")
    hub.clear_log()
    predict(commands, tmp_path / "out", "lab/large", "--base", "lab/base")
    file_bytes = (folder / "model.safetensors").stat().st_size
    sizes = [r.bytes_sent for r in weight_answers(hub) if r.range and r.range[1] > 1_000_000]
    assert sum(sizes) <= file_bytes
    assert sum(sizes) > 80 << 20
    assert max(sizes) <= LARGEST_ANSWER_BYTES
    assert torch.equal(load_model(tmp_path / "out")[EMBEDDING], tensors[EMBEDDING])


def test_extracted_factors_spare_the_history(
    hub: LocalHub, commands: Commands, run: Run, tmp_path: Path
) -> None:
    """A prediction from a folder of factors reads base and last checkpoint, at their commits."""
    arguments = ("lab/run", "--base", "lab/base")
    done = commands.run("extract", *arguments, "-o", tmp_path / "factors")
    assert done.code == 0, done.stderr
    direct = predict(commands, tmp_path / "direct", *arguments)
    hub.clear_log()
    assert predict(commands, tmp_path / "out", str(tmp_path / "factors")) == direct
    read = {(record.repo, record.revision) for record in weight_answers(hub)}
    last = hub.refs("lab/run")["refs/heads/step_40"]
    assert read == {("lab/base", hub.refs("lab/base")["refs/heads/main"]), ("lab/run", last)}


def test_a_repo_of_many_branches_costs_by_what_is_selected(
    hub: LocalHub, commands: Commands, tmp_path: Path
) -> None:
    """Of 60 branches 12 are looked at: listing costs one call, a selected step at most three."""
    many = write_run(tmp_path, tuple(range(1, 61)), rank_one_line())
    add_branches(hub, "lab/many", many)
    add_base(hub, "lab/many-base", many)
    hub.clear_log()
    found = commands.run("inspect", "lab/many", "--base", "lab/many-base", "--json").answer
    assert sum(c["selected"] for c in found["checkpoints"]) == 12
    assert len(found["checkpoints"]) == 60
    assert len(api_calls(hub)) <= 3 * 12
    assert sum(call.endswith("/refs") for call in api_calls(hub)) == 2


@pytest.mark.parametrize("by", ["branch", "commit"])
def test_files_in_the_local_cache_are_read_there(
    hub: LocalHub, run: Run, local_digest: str, tmp_path: Path, by: str
) -> None:
    """A file that the cache holds at that commit costs no byte of the Hub; others are streamed."""
    home = tmp_path / "home"
    commits = {s: hub.refs("lab/run")[f"refs/heads/step_{s}"] for s in STEPS}
    for step in STEPS[:3]:
        revision = f"step_{step}" if by == "branch" else commits[step]
        options = {"endpoint": hub.endpoint, "cache_dir": home / "hub", "token": False}
        snapshot_download("lab/run", revision=revision, **options)
    before = sorted(home.rglob("*"))
    hub.clear_log()
    with commands_for(tmp_path / "commands", hub, home) as commands:
        found = predict(commands, tmp_path / "out", "lab/run", "--base", "lab/base")
    assert found == local_digest
    read = {(record.repo, record.revision) for record in weight_answers(hub)}
    base = hub.refs("lab/base")["refs/heads/main"]
    assert read == {("lab/base", base), ("lab/run", commits[40])}
    cached = set(commits[step] for step in STEPS[:3])
    assert not [r for r in hub.log if r.revision in cached and r.file_path is not None]
    assert sorted(home.rglob("*")) == before


# -- what goes wrong on the way ------------------------------------------------------------------

SURVIVED = {
    "busy listing": Fault("/refs", "status", status=429, headers=(("Retry-After", "1"),)),
    "busy tree": Fault("/tree/", "status", status=429, headers=(("Retry-After", "1"),)),
    "busy resolve": Fault("/resolve/", "status", status=503, times=2),
    "reset of the API": Fault("/tree/", "reset"),
    "busy storage": Fault(".safetensors", "status", status=503, origin="storage", times=2),
    "limit of the storage": Fault(
        ".safetensors",
        "status",
        status=429,
        headers=(("RateLimit", '"x";r=0;t=1'),),
        origin="storage",
    ),
    "cut body": Fault(".safetensors", "cut", origin="storage", after_bytes=700, times=3),
    "reset body": Fault(".safetensors", "reset", origin="storage", after_bytes=700, times=3),
    "reset before an answer": Fault(".safetensors", "reset", origin="storage"),
    "expired address": Fault(".safetensors", "status", status=403, origin="storage", skip=3),
    "small file": Fault("config.json", "reset", after_bytes=10),
}


@pytest.mark.parametrize("trouble", SURVIVED)
def test_trouble_on_the_way_changes_nothing(
    hub: LocalHub, commands: Commands, run: Run, local_digest: str, tmp_path: Path, trouble: str
) -> None:
    """The answer is asked for again, and the result is the same to the bit."""
    hub.add_fault(SURVIVED[trouble])
    found = predict(commands, tmp_path / "out", "lab/run", "--base", "lab/base")
    assert found == local_digest
    assert json.loads(ask(f"{hub.endpoint}/local-hub/faults").body) == []


def test_signed_addresses_that_expire_are_renewed(
    run: Run, local_digest: str, tmp_path: Path
) -> None:
    """An address that has grown old is asked for again; here listings have pages of two, too."""
    with LocalHub(tmp_path / "hub", signed_url_lifetime_s=3.0, page_size=2) as hub:
        add_base(hub, "lab/base", run)
        add_branches(hub, "lab/run", run)
        hub.add_fault(Fault(".safetensors", "slow", origin="storage", skip=25, seconds=3.5))
        with commands_for(tmp_path / "commands", hub) as commands:
            found = predict(commands, tmp_path / "out", "lab/run", "--base", "lab/base")
        assert found == local_digest
        refused = [r.status for r in hub.log if r.origin == "storage" and r.status >= 400]
        assert set(refused) == {403}


FATAL = {
    "an hour's wait": (
        Fault("/tree/", "status", status=429, headers=(("Retry-After", "3600"),)),
        "asks to wait 3600 s",
    ),
    "no JSON": (Fault("/refs", "flip"), "does not answer as a Hub does; check HF_ENDPOINT"),
    "no JSON of a repo": (Fault("/api/models/lab/base", "flip", skip=2), "check HF_ENDPOINT"),
    "refused": (Fault("/refs", "status", status=403), "refused by the Hub (status 403)"),
}


@pytest.mark.parametrize("trouble", FATAL)
def test_what_no_repetition_mends_ends_at_once(
    hub: LocalHub, commands: Commands, run: Run, tmp_path: Path, trouble: str
) -> None:
    """One line that says what was wrong with the answer; nothing on stdout, nothing left behind."""
    fault, words = FATAL[trouble]
    hub.add_fault(fault)
    started_s = time.monotonic()
    done = commands.run(
        "predict", "lab/run", "--base", "lab/base", "--target-step", "80", "-o", tmp_path / "out"
    )
    assert time.monotonic() - started_s < 10
    assert (done.code, done.stdout) == (1, "")
    assert len(done.stderr.splitlines()) == 1
    assert words in done.stderr
    assert list(tmp_path.iterdir()) == []


def start(commands: Commands, *args: str, **variables: str) -> "subprocess.Popen[str]":
    """Start `python -m alpharl_hub` as a shell would."""
    return subprocess.Popen(
        [sys.executable, "-m", "alpharl_hub", *with_method(args)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**commands.environment, **variables},
        cwd=commands.folder,
    )


def test_a_wait_is_told_and_ends_with_ctrl_c(hub: LocalHub, commands: Commands, run: Run) -> None:
    """A minute that the server asked for is not sat out once the user has had enough."""
    busy = (("Retry-After", "60"),)
    hub.add_fault(Fault("/lab/run/tree/", "status", times=9, status=429, headers=busy))
    with start(commands, "inspect", "lab/run", "--base", "lab/base") as process:
        assert process.stderr is not None
        line = process.stderr.readline()
        assert line.startswith("waiting 60 s: lab/run@")
        started_s = time.monotonic()
        process.send_signal(signal.SIGINT)
        stdout, stderr = process.communicate(timeout=30)
    assert time.monotonic() - started_s < 5
    assert (process.returncode, stdout) == (130, "")
    assert "Traceback" not in stderr


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"HF_HUB_OFFLINE": "1"}, "lab/run: HF_HUB_OFFLINE is set; unset it, or name local"),
        ({"HF_ENDPOINT": "ftp://localhost"}, "HF_ENDPOINT: its address is not one of the web"),
    ],
)
def test_settings_that_lead_nowhere(
    commands: Commands, run: Run, variables: dict[str, str], words: str
) -> None:
    """The offline switch, and an address that no Hub can have, end at once with one line."""
    with start(commands, "inspect", "lab/run", "--base", "lab/base", **variables) as process:
        stdout, stderr = process.communicate(timeout=30)
    assert (process.returncode, stdout) == (1, "")
    (line,) = stderr.splitlines()
    assert words in line
