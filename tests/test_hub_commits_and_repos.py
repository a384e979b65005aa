"""Runs with a commit or a repo for every step, read over real HTTP by real commands."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from hub_fixtures import (
    ALICE,
    Commands,
    Done,
    Files,
    add_base,
    add_branches,
    commands_for,
    files_of,
)
from huggingface_hub import HfApi
from trajectories import Run, digest, rank_one_line, write_run

from alpharl_hub.local_hub import LocalHub

STEPS = (10, 20, 30, 40)


@pytest.fixture(autouse=True)
def calm(hub: LocalHub) -> None:
    """Start every test with an empty log."""
    hub.clear_log()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, hub: LocalHub) -> Run:
    """A tiny run on disk, whose base is lab/base on the Hub."""
    found = write_run(tmp_path_factory.mktemp("run"), STEPS, rank_one_line())
    add_base(hub, "lab/base", found)
    return found


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The same steps on another path: what a run made before it was started again."""
    return write_run(tmp_path_factory.mktemp("other"), STEPS, rank_one_line(seed=7))


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
    return digest(output)


def api_calls(hub: LocalHub) -> list[str]:
    """What was asked of the Hub's API, which it counts."""
    return [
        record.path
        for record in hub.log
        if record.origin == "api" and record.path.startswith("/api/models")
    ]


def push(
    hub: LocalHub, repo: str, run: Run, steps: Sequence[int], title: str = "step {}", **options: str
) -> dict[int, str]:
    """Overwrite the model in the root of a repo once for every step, as a Trainer does."""
    return {
        step: hub.add_commit(
            repo,
            files=files_of(run.folder(step)),
            title=f"Training in progress, {title.format(step)}",
            **options,
        )
        for step in steps
    }


def found_commits(found: Done) -> dict[int, str]:
    """The commit of every step."""
    return {c["step"]: c["commit"] for c in found.answer["checkpoints"]}


def warnings(found: Done) -> dict[str, str]:
    """The warnings of an inspection by their codes."""
    return {w["code"]: w["message"] for w in found.answer["warnings"]}


# -- a commit for every step ---------------------------------------------------------------------


def test_a_commit_for_every_step(
    hub: LocalHub, commands: Commands, run: Run, local_digest: str, tmp_path: Path
) -> None:
    """Each step is its commit, which the end of training does not change; nothing is warned of."""
    commits = push(hub, "lab/saves", run, STEPS)
    end: Files | dict[str, bytes] = {"README.md": b"---\nbase_model: lab/base\n---\n"}
    hub.add_commit("lab/saves", files=end, title="End of training")
    found = commands.run("inspect", "lab/saves", "--json")
    assert found_commits(found) == commits
    answer = found.answer
    assert (answer["layout"], answer["pattern"]) == (
        "commits",
        "Training in progress, step {step}",
    )
    assert {c["revision"] for c in answer["checkpoints"]} == set(commits.values())
    assert (answer["base"]["source"], answer["base"]["chosen_by"]) == ("lab/base", "card")
    assert answer["warnings"] == []
    report = commands.run("report", "lab/saves", "--quick")
    assert report.code == 0
    assert report.stderr.startswith("read ")
    assert "4 checkpoints, steps 10 to 40" in report.stdout
    screen = commands.run("inspect", "lab/saves")
    assert "commits titled Training in progress, step {step}: 4 checkpoints" in screen.stdout
    output = tmp_path / "out"
    assert predict(commands, output, "lab/saves") == local_digest
    # What is pushed later is not read when the same prediction is made again.
    push(hub, "lab/saves", run, (10, 20))
    done = commands.run("predict", "--from", output / "alpharl.json", "-o", tmp_path / "again")
    assert done.code == 0, done.stderr
    assert digest(tmp_path / "again") == local_digest


def test_commits_cost_few_calls(hub: LocalHub, commands: Commands, run: Run) -> None:
    """The history is listed once; a tree is asked for only where a step is selected."""
    push(hub, "lab/cheap", run, STEPS)
    hub.clear_log()
    found = inspect(commands, "lab/cheap", "--steps", "10,40")
    assert [c["selected"] for c in found.answer["checkpoints"]] == [True, False, False, True]
    calls = api_calls(hub)
    assert sum("/commits/" in call for call in calls) == 1
    assert sum("/lab/cheap/tree/" in call for call in calls) == 2
    # Refs and history of the run, then refs, tree and facts of the base, trees, facts of the run.
    assert len(calls) <= 2 + 3 * 2


def test_histories_and_lists_go_over_pages(run: Run, local_digest: str, tmp_path: Path) -> None:
    """Two entries to a page, of commits as of repos, are put together again."""
    with LocalHub(tmp_path / "hub", page_size=2) as hub:
        add_base(hub, "lab/base", run)
        commits = push(hub, "lab/saves", run, STEPS)
        for step in STEPS:
            hub.add_commit(f"lab/rl-step-{step}", files=files_of(run.folder(step)))
        with commands_for(tmp_path / "commands", hub) as commands:
            assert found_commits(inspect(commands, "lab/saves")) == commits
            assert sum("/commits/" in call for call in api_calls(hub)) == 3
            hub.clear_log()
            found = inspect(commands, "lab/rl-step-{step}")
            assert sum(call == "/api/models" for call in api_calls(hub)) == 2
            assert [c["step"] for c in found.answer["checkpoints"]] == list(STEPS)
            output = tmp_path / "out"
            arguments = ("lab/rl-step-{step}", "--base", "lab/base")
            assert predict(commands, output, *arguments) == local_digest


def test_a_run_that_started_again(
    hub: LocalHub, commands: Commands, run: Run, other: Run, tmp_path: Path
) -> None:
    """The newest commit of a step counts; steps that were not reached again are named."""
    old = push(hub, "lab/again", other, STEPS)
    hub.add_commit("lab/again", files={"model.safetensors": None}, title="Delete the old attempt")
    new = push(hub, "lab/again", run, (10, 20))
    found = inspect(commands, "lab/again")
    assert found_commits(found) == {**new, 30: old[30], 40: old[40]}
    told = warnings(found)
    assert told["restarted"].startswith("steps 10, 20 were pushed more than once")
    assert told["left_behind"].startswith("steps 30, 40 were pushed before the run was restarted")
    assert told["left_behind"].endswith("--until 20 goes without")
    found = inspect(commands, "lab/again", "--until", "20")
    assert [c["selected"] for c in found.answer["checkpoints"]] == [True, True, False, False]


RESTARTS = {
    "resumed": (10, 20, 30, 20, 30, 40),
    "other numbers": (10, 20, 40, 15, 30, 45),
    "once": (10, 20, 30, 40),
    "last only": (10, 20, 30, 40, 30),
}
TOLD = {
    "resumed": {"restarted": "steps 20, 30 were pushed more than once"},
    "other numbers": {"left_behind": "--steps 10,15,30,45 goes without"},
    "once": {},
    "last only": {"restarted": "step 30 was pushed", "left_behind": "--until 30 goes without"},
}


@pytest.mark.parametrize("kind", RESTARTS)
def test_the_order_of_commits_tells_what_a_restart_left(
    hub: LocalHub, commands: Commands, run: Run, kind: str
) -> None:
    """A step is left behind if a lower one was pushed after it, and it was not pushed again."""
    repo, newest = f"lab/order-{kind.replace(' ', '-')}", {}
    for i, step in enumerate(RESTARTS[kind]):
        files = {**files_of(run.folder(10)), "count.txt": b"%d" % i}
        title = f"Training in progress, step {step}"
        newest[step] = hub.add_commit(repo, files=files, title=title)
    found = inspect(commands, repo, "--keep-repeats")
    assert found_commits(found) == newest
    told = {c: m for c, m in warnings(found).items() if c in ("restarted", "left_behind")}
    assert set(told) == set(TOLD[kind])
    for code, words in TOLD[kind].items():
        assert words in told[code]


@pytest.mark.parametrize("folder", ["last-checkpoint", "checkpoint-{}"])
def test_whole_checkpoints_in_commits(
    hub: LocalHub, commands: Commands, run: Run, folder: str
) -> None:
    """A Trainer that pushes its checkpoints as well leaves the scores there: these are read.

    The weights of earlier steps are not in the last commit any more, but in their own.
    """
    repo = f"lab/whole-{folder[:4]}"
    commits = {}
    for step in STEPS:
        push(hub, repo, run, [step])
        state = {"global_step": step, "log_history": [{"step": step, "eval_reward": step / 100}]}
        files: dict[str, bytes | Path | None] = {
            path: None for path in files_of(run.folder(10), f"checkpoint-{step - 10}/")
        }
        files |= files_of(run.folder(step), f"{folder.format(step)}/")
        files[f"{folder.format(step)}/trainer_state.json"] = json.dumps(state).encode()
        title = f"Training in progress, step {step}, checkpoint"
        commits[step] = hub.add_commit(repo, files=files, title=title)
    found = inspect(commands, repo)
    assert found.answer["layout"] == "commits"
    assert found_commits(found) == commits
    assert [c["folder"] for c in found.answer["checkpoints"]] == [folder.format(s) for s in STEPS]
    assert [c["score"] for c in found.answer["checkpoints"]] == [0.1, 0.2, 0.3, 0.4]
    assert found.answer["warnings"] == []


def test_folders_go_before_commits(hub: LocalHub, commands: Commands, run: Run) -> None:
    """With all checkpoints in folders, as with branches, nobody asks for the history."""
    for step in STEPS:
        title = f"Training in progress, step {step}, checkpoint"
        files = files_of(run.folder(step), f"checkpoint-{step}/")
        hub.add_commit("lab/all", files=files, title=title)
    assert inspect(commands, "lab/all").answer["layout"] == "folders"
    add_branches(hub, "lab/branched", run)
    push(hub, "lab/branched", run, STEPS)
    hub.clear_log()
    assert inspect(commands, "lab/branched", "--at", "main=50").answer["layout"] == "branches"
    assert not any("/commits/" in call for call in api_calls(hub))


def test_a_push_in_parts_is_one_push(hub: LocalHub, commands: Commands, run: Run) -> None:
    """The client ends the titles of further parts with their number; the last one is complete."""
    commits = {}
    for step in STEPS:
        files = files_of(run.folder(step))
        title = f"Training in progress, step {step}"
        part = {name: path for name, path in files.items() if name == "config.json"}
        hub.add_commit("lab/parts", files=part, title=title)
        commits[step] = hub.add_commit("lab/parts", files=files, title=f"{title} (part 2)")
    found = inspect(commands, "lab/parts")
    assert found_commits(found) == commits
    assert found.answer["warnings"] == []


def test_epochs_count_where_there_are_no_steps(hub: LocalHub, commands: Commands, run: Run) -> None:
    """Epochs are steps only if no commit names a step, and a warning says so."""
    for repo in ("lab/epochs", "lab/mixed"):
        for epoch, step in enumerate(STEPS, 1):
            title = f"Training in progress, epoch {epoch}"
            hub.add_commit(repo, files=files_of(run.folder(step)), title=title)
    found = inspect(commands, "lab/epochs")
    assert found.answer["pattern"] == "Training in progress, epoch {step}"
    assert sorted(found_commits(found)) == [1, 2, 3, 4]
    assert "every step here is an epoch" in warnings(found)["epochs"]
    commits = push(hub, "lab/mixed", run, STEPS)
    found = inspect(commands, "lab/mixed")
    assert found_commits(found) == commits
    assert "epochs" not in warnings(found)


def test_a_last_model_without_a_number_is_mentioned(
    hub: LocalHub, commands: Commands, run: Run
) -> None:
    """Where the end of training brought other weights, a warning says how to take them."""
    push(hub, "lab/ended", run, STEPS[:3])
    final = hub.add_commit("lab/ended", files=files_of(run.folder(40)), title="Model save")
    hub.add_commit("lab/ended", files={"README.md": b"# model\n"}, title="End of training")
    message = warnings(inspect(commands, "lab/ended"))["main_left_out"]
    assert "End of training" in message
    assert message.endswith("--at main=STEP takes it")
    found = inspect(commands, "lab/ended", "--at", "main=40")
    assert found.answer["warnings"] == []
    assert found_commits(found)[40] == hub.refs("lab/ended")["refs/heads/main"] != final
    found = inspect(commands, "lab/ended", "--at", f"{final}=40")
    assert found_commits(found)[40] == final
    assert found.answer["warnings"] == []


def test_the_history_of_a_branch(hub: LocalHub, commands: Commands, run: Run, other: Run) -> None:
    """The revision that is named is the one whose commits are steps; main has others."""
    on_main = push(hub, "lab/two", other, (10, 20))
    on_work = push(hub, "lab/two", run, (30, 40), revision="work")
    assert found_commits(inspect(commands, "lab/two")) == on_main
    assert found_commits(inspect(commands, "lab/two@work")) == {**on_main, **on_work}
    assert found_commits(inspect(commands, f"lab/two@{on_work[30]}")) == {
        **on_main,
        30: on_work[30],
    }


def test_a_single_commit_is_no_run(hub: LocalHub, commands: Commands, run: Run) -> None:
    """One step in a title, or titles of other words, make no run; the way out is named."""
    push(hub, "lab/one", run, (10,))
    push(hub, "lab/one", run, (20,), title="step {} of many")
    done = inspect(commands, "lab/one")
    assert (done.code, done.stdout) == (1, "")
    assert "one model and no steps; say which step it is with --at main=STEP" in done.stderr
    found = inspect(commands, "lab/one", "--at", "main=20", "--method", "linear")
    assert sorted(found_commits(found)) == [20]


# -- a repo for every step -----------------------------------------------------------------------


def add_repos(hub: LocalHub, run: Run, name: str, prefix: str = "") -> dict[int, str]:
    """Put every step into a repo of its own, and return the commits."""
    return {
        step: hub.add_commit(name.format(step), files=files_of(run.folder(step), prefix))
        for step in run.steps
    }


@pytest.fixture(scope="module")
def families(hub: LocalHub, run: Run) -> None:
    """The same run under every kind of name, with neighbours that are no steps of it."""
    add_repos(hub, run, "lab/DAPO-step-{:04}")
    add_repos(hub, run, "lab/Qwen3_4B_step_{}")
    add_repos(hub, run, "lab/grpo-run5-step{}")
    add_repos(hub, run, "lab/sgd-step{}-best-val")
    add_repos(hub, run, "lab/inner-{}", "weights/")
    add_repos(hub, run, "lab/INTELLECT-1-step-{}000")
    for neighbour in (
        *("DAPO-step-0005-best", "DAPO-step-1000-tokens4B", "DAPO-steps", "GDAPO-step-7"),
        *("sgd-step7", "sgd-step7-best-val-2", "DAPO-step-x"),
    ):
        hub.add_commit(f"lab/{neighbour}", files=files_of(run.folder(10)))
    hub.add_commit("bob/DAPO-step-50", files=files_of(run.folder(10)))


REPOS = {
    "lab/DAPO-step-{step}": "lab/DAPO-step-{:04}",
    "hf://lab/DAPO-step-{step}": "lab/DAPO-step-{:04}",
    "ENDPOINT/lab/DAPO-step-{step}": "lab/DAPO-step-{:04}",
    "lab/DAPO-step-{step}@main": "lab/DAPO-step-{:04}",
    "lab/Qwen3_4B_step_{step}": "lab/Qwen3_4B_step_{}",
    "lab/grpo-run5-step{step}": "lab/grpo-run5-step{}",
    "lab/sgd-step{step}-best-val": "lab/sgd-step{}-best-val",
    "lab/inner-{step}/weights": "lab/inner-{}",
    "lab/INTELLECT-1-step-{step}": "lab/INTELLECT-1-step-{}",
}


@pytest.mark.parametrize("text", REPOS)
def test_a_repo_for_every_step(
    hub: LocalHub, commands: Commands, families: None, run: Run, text: str
) -> None:
    """Numbers are matched against what there is; each repo is pinned to the commit of its main."""
    hub.clear_log()
    found = inspect(commands, text.replace("ENDPOINT", hub.endpoint))
    assert found.answer["layout"] == "repos"
    place = text.replace("hf://", "")
    assert found.answer["pattern"] == place.replace("ENDPOINT/", "")
    scale = 1000 if "INTELLECT" in text else 1
    steps = [scale * step for step in STEPS]
    assert [c["step"] for c in found.answer["checkpoints"]] == steps
    assert [c["source"] for c in found.answer["checkpoints"]] == [
        REPOS[text].format(step) for step in steps
    ]
    for checkpoint in found.answer["checkpoints"]:
        assert checkpoint["commit"] == hub.refs(checkpoint["source"])["refs/heads/main"]
        assert checkpoint["revision"] == "main"
    assert found.answer["warnings"] == []
    # One list, a tree for each step, with a revision a commit for each; the base has four.
    assert len(api_calls(hub)) <= 1 + 2 * len(STEPS) + 4


def test_repos_are_predicted_from_and_repeated(
    hub: LocalHub, commands: Commands, families: None, local_digest: str, tmp_path: Path
) -> None:
    """From several repos the same model is made, and again from the manifest when they moved."""
    for step in STEPS:
        content = {
            name: hub.read_file(f"lab/grpo-run5-step{step}", name)
            for name in ("config.json", "model.safetensors")
        }
        hub.add_commit(f"lab/moved-step-{step}", files=content)
    arguments = ("lab/moved-step-{step}", "--base", "lab/base")
    assert predict(commands, tmp_path / "a", *arguments) == local_digest
    for step in STEPS:
        hub.add_commit(f"lab/moved-step-{step}", files={"model.safetensors": b"broken"})
    manifest = tmp_path / "a" / "alpharl.json"
    done = commands.run("predict", "--from", manifest, "-o", tmp_path / "b")
    assert done.code == 0, done.stderr
    assert digest(tmp_path / "b") == local_digest
    recorded = json.loads(manifest.read_text())["run"]
    assert (recorded["layout"], recorded["private"]) == ("repos", False)
    assert [c["source"] for c in recorded["checkpoints"]] == [
        f"lab/moved-step-{step}" for step in STEPS
    ]
    done = commands.run("extract", "lab/grpo-run5-step{step}", *arguments[1:], "-o", tmp_path / "f")
    assert done.code == 0, done.stderr
    direct = predict(commands, tmp_path / "c", "lab/grpo-run5-step{step}", *arguments[1:])
    assert predict(commands, tmp_path / "d", str(tmp_path / "f")) == direct == local_digest
    card = (tmp_path / "a" / "README.md").read_text()
    assert "lab/moved-step-{step}" in card


def test_a_repo_of_step_0_is_the_base(hub: LocalHub, commands: Commands, run: Run) -> None:
    """It goes before the card of the last step, which names the base where there is none."""
    add_repos(hub, run, "lab/zero-step-{}")
    card = {"README.md": b"---\nbase_model: lab/base\n---\n"}
    hub.add_commit("lab/zero-step-40", files=card)
    found = commands.run("inspect", "lab/zero-step-{step}", "--json").answer
    assert (found["base"]["source"], found["base"]["chosen_by"]) == ("lab/base", "card")
    hub.add_commit("lab/zero-step-0", files=files_of(run.base))
    found = commands.run("inspect", "lab/zero-step-{step}", "--json").answer
    assert (found["base"]["source"], found["base"]["chosen_by"]) == ("lab/zero-step-0", "step_0")


def test_one_private_repo_among_them(
    hub: LocalHub, commands: Commands, run: Run, local_digest: str, tmp_path: Path
) -> None:
    """With a token it is a step and what is made is private; without one it does not exist."""
    hub.add_commit("lab/some-step-20", files=files_of(run.folder(20)), private=True)
    add_repos(hub, run, "lab/some-step-{}")
    arguments = ("lab/some-step-{step}", "--base", "lab/base")
    assert predict(commands, tmp_path / "out", *arguments, token=ALICE) == local_digest
    manifest = json.loads((tmp_path / "out" / "alpharl.json").read_text())
    assert manifest["run"]["private"] is True
    assert sorted(found_commits(inspect(commands, "lab/some-step-{step}"))) == [10, 30, 40]
    for step in (10, 30, 40):
        hub.set_private(f"lab/some-step-{step}", True)
    done = inspect(commands, "lab/some-step-{step}")
    assert done.code == 1
    assert done.stderr.endswith("private repos need --token or HF_TOKEN\n")


def test_gated_repos_are_told_as_such(hub: LocalHub, commands: Commands, run: Run) -> None:
    """A gated repo is listed for everybody; what is made with access to it stays private."""
    add_repos(hub, run, "lab/gate-step-{}")
    hub.set_gated("lab/gate-step-20", True)
    done = inspect(commands, "lab/gate-step-{step}")
    assert done.code == 1
    assert "lab/gate-step-20" in done.stderr
    assert "ask for access on its page" in done.stderr
    assert inspect(commands, "lab/gate-step-{step}", token=ALICE).code == 0


def test_a_revision_of_every_repo(hub: LocalHub, commands: Commands, run: Run) -> None:
    """The revision is taken of all, and where one has none the message names it."""
    commits = {}
    for step in STEPS:
        hub.add_commit(f"lab/rev-step-{step}", files={"x": b""})
        files = files_of(run.folder(step))
        commits[step] = hub.add_commit(f"lab/rev-step-{step}", files=files, revision="rl/final")
    found = inspect(commands, "lab/rev-step-{step}@rl%2Ffinal")
    assert found_commits(found) == commits
    assert {c["revision"] for c in found.answer["checkpoints"]} == {"rl/final"}
    hub.delete_branch("lab/rev-step-30", "rl/final")
    done = inspect(commands, "lab/rev-step-{step}@rl%2Ffinal")
    assert done.code == 1
    assert "lab/rev-step-30@rl/final: no such revision" in done.stderr


def test_what_is_no_checkpoint_among_the_repos(hub: LocalHub, commands: Commands, run: Run) -> None:
    """Predicted models and repos without weights are left out, and named; a list tells both."""
    add_repos(hub, run, "lab/left-step-{}")
    predicted = {**files_of(run.folder(40)), "alpharl.json": b"{}"}
    hub.add_commit("lab/left-step-500", files=predicted)
    hub.add_commit("lab/left-step-50", files={"config.json": b"{}"})
    found = inspect(commands, "lab/left-step-{step}")
    assert sorted(found_commits(found)) == list(STEPS)
    told = warnings(found)
    assert told["predicted_steps"] == "1 predicted models were left out: lab/left-step-500"
    assert told["incomplete_steps"] == "1 incomplete repos were left out: lab/left-step-50"
    hub.add_commit("lab/made-step-500", files=predicted)
    done = inspect(commands, "lab/made-step-{step}")
    assert done.code == 1
    assert "no other repo fits made-step-{step}" in done.stderr


def test_a_repo_named_by_hand(hub: LocalHub, commands: Commands, run: Run) -> None:
    """--at takes a repo as a step, where every step is a repo."""
    add_repos(hub, run, "lab/hand-step-{}")
    final = hub.add_commit("lab/hand-final", files=files_of(run.base))
    found = inspect(commands, "lab/hand-step-{step}", "--at", "lab/hand-final=50")
    assert found_commits(found)[50] == final
    done = inspect(commands, "lab/hand-step-{step}", "--at", "main=50")
    assert done.code == 1
    assert "write --at ORG/NAME=50" in done.stderr


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("lab/none-step-{step}", "no repo fits none-step-{step}; there is none of such a name"),
        ("lab/sgd-step{step}-worst", "no repo fits sgd-step{step}-worst; there is sgd-step10-be"),
        ("none-step-{step}", "must be 'namespace/name', got 'none-step-{step}'"),
        ("{step}/name", "with a repo for every step write ORG/NAME-{step}"),
        ("lab/a-{step}@step_{step}", "stands more than once"),
        ("lab/pair-step-{step}", "pair-step-07 and pair-step-7 are both step 7"),
        ("lab/DAPO-step-0010", "--at main=STEP, or write lab/DAPO-step-{step} if every step has"),
        ("lab/sgd-step10-best-val", "or write lab/sgd-step{step}-best-val if every step has a"),
        ("lab/" + "a" * 82 + "-step{step}", "there is none of such a name"),
        ("lab/" + "a" * 96 + "-step{step}", "the maximum length is 96"),
    ],
)
def test_names_that_lead_nowhere(
    hub: LocalHub, commands: Commands, families: None, run: Run, text: str, words: str
) -> None:
    """One line says what is there, or how to write what was meant."""
    for name in ("pair-step-7", "pair-step-07"):
        hub.add_commit(f"lab/{name}", files={"x": b""})
    done = inspect(commands, text)
    assert (done.code, done.stdout) == (1, "")
    assert words in done.stderr


def test_only_what_is_selected_is_looked_at(
    hub: LocalHub, commands: Commands, tmp_path: Path
) -> None:
    """Of 30 repos 12 are opened; the list tells the commits of all and who may read them."""
    many = write_run(tmp_path, tuple(range(1, 31)), rank_one_line())
    add_repos(hub, many, "lab/many-step-{}")
    add_base(hub, "lab/many-base", many)
    hub.clear_log()
    found = commands.run(
        "inspect", "lab/many-step-{step}", "--base", "lab/many-base", "--json"
    ).answer
    assert len(found["checkpoints"]) == 30
    assert sum(c["selected"] for c in found["checkpoints"]) == 12
    calls = api_calls(hub)
    assert sum(call == "/api/models" for call in calls) == 1
    assert len(calls) <= 1 + 12 + 4


def test_the_list_agrees_with_the_client(hub: LocalHub, families: None) -> None:
    """What the real client finds by the same search holds all the repos of the run."""
    api = HfApi(endpoint=hub.endpoint, token=False)
    found = {m.id: m for m in api.list_models(author="lab", search="DAPO-step", expand=["sha"])}
    for step in STEPS:
        repo = f"lab/DAPO-step-{step:04}"
        assert found[repo].sha == hub.refs(repo)["refs/heads/main"]
        assert found[repo].private is None
