"""The demo from top to bottom: a Hub, the run on it, the commands, the scores."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

from alpharl_hub.demo.children import Children, Say
from alpharl_hub.demo.comparison import DemoScores, ModelScore
from alpharl_hub.demo.task import DEMO_RUN, NUM_TEST_PROBLEMS
from alpharl_hub.errors import AlphaRLError, WriteError
from alpharl_hub.local_hub import LocalHub
from alpharl_hub.manifest import MANIFEST_NAME
from alpharl_hub.output.shards import write_error
from alpharl_hub.sources.selection import select_steps

BASE_REPO = "demo/tiny-grpo-base"
RUN_REPO = "demo/tiny-grpo"
METHODS = ("auto", "alpharl", "linear")
SHARE = "40%"
"""How much of the run the predictions see."""

HUB_FOLDER = "hub"
"""Where in the folder of --keep the Hub's contents lie."""

_USER, _TOKEN = "demo", "hf_made_up_for_the_demo"
_CARD = f"""---
base_model: {BASE_REPO}
license: apache-2.0
library_name: transformers
pipeline_tag: text-generation
---

# tiny-grpo

GRPO on three-digit addition with a verifiable reward; one branch per checkpoint, main is the last.
"""


def run_demo(keep: Path | None, say: Say) -> DemoScores:
    """Put the packaged run on a Hub of its own, predict from its start, and score the outcome.

    `keep` is the folder that the Hub's contents and the predicted models are left in; without it
    nothing is left. `say` is given every line of the story, the scores excepted.

    Raises:
        AlphaRLError: transformers is missing, or a command failed.
        WriteError: `keep` cannot be made or is not empty.
    """
    _check_transformers()
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(TemporaryDirectory(prefix="alpharl-hub-demo-")))
        work = _empty_folder(keep if keep is not None else scratch / "work")
        hub = stack.enter_context(LocalHub(work / HUB_FOLDER, {_TOKEN: _USER}))
        steps = fill_hub(hub)
        say(f"A Hub for this demo runs at {hub.endpoint} and holds")
        say(f"  {BASE_REPO}  a tiny model that adds carelessly")
        say(f"  {RUN_REPO}       its GRPO run: {len(steps)} checkpoints, a branch for each")
        home = scratch / "home"
        home.mkdir()
        children = Children(work, home, hub.endpoint, _TOKEN, say)
        _run_commands(children, steps[-1], with_folders=keep is not None)
        return _measure(children, steps, hub)


def _check_transformers() -> None:
    if importlib.util.find_spec("transformers") is None:
        raise AlphaRLError(
            "demo: transformers is missing, which loads the models; pip install 'alpharl-hub[demo]'"
        )


def _empty_folder(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise WriteError(f"{folder}: not empty; choose another folder to keep the demo in")
    except OSError as error:
        raise write_error(folder, error) from error
    return folder.resolve()


def fill_hub(hub: LocalHub) -> tuple[int, ...]:
    """Put the packaged run on a Hub: its base, a branch for each step, the last one as main."""
    steps = sorted(int(path.name.removeprefix("step_")) for path in DEMO_RUN.glob("step_*"))
    hub.add_commit(BASE_REPO, files=_files(DEMO_RUN / "base"), title="The base")
    hub.add_commit(RUN_REPO, files={"README.md": _CARD.encode()}, title="The card")
    for step in steps:
        files = _files(DEMO_RUN / f"step_{step}")
        hub.add_commit(RUN_REPO, files=files, revision=f"step_{step}", title=f"Step {step}")
    hub.add_commit(RUN_REPO, files=_files(DEMO_RUN / f"step_{steps[-1]}"), title="The last step")
    return tuple(steps)


def _files(folder: Path) -> dict[str, bytes]:
    """Read a folder; the Hub would link files, and a kept one must not be the packaged one."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def _predicted_repo(method: str) -> str:
    return f"{RUN_REPO}-{method}"


def _run_commands(children: Children, target_step: int, with_folders: bool) -> None:
    children.command("inspect", RUN_REPO, "--until", SHARE)
    children.command("report", RUN_REPO, "--until", SHARE, "--quick")
    for method in METHODS:
        repo = _predicted_repo(method)
        words = ["predict", RUN_REPO, "--until", SHARE, "--target-step", str(target_step)]
        words += ["--method", method, "--push-to", repo]
        if with_folders:
            words += ["-o", repo.partition("/")[2]]
        children.command(*words)


def _predicted_step(hub: LocalHub, method: str) -> int:
    """Return the step that a prediction aims at: auto stops where the direction carries no more."""
    manifest = json.loads(hub.read_file(_predicted_repo(method), MANIFEST_NAME))
    return round(float(manifest["method"]["target_step"]))


def _measure(children: Children, steps: Sequence[int], hub: LocalHub) -> DemoScores:
    last, final = select_steps(steps, None, SHARE)[-1], steps[-1]
    models = [
        ("base", 0, BASE_REPO),
        ("last observed", last, f"{RUN_REPO}@step_{last}"),
        *((method, _predicted_step(hub, method), _predicted_repo(method)) for method in METHODS),
        ("true final", final, f"{RUN_REPO}@step_{final}"),
    ]
    children.say("")
    children.say(
        f"Loading {len(models)} models from that Hub with transformers; "
        f"{NUM_TEST_PROBLEMS:,} sums for each ..."
    )
    scores = children.scores([place for _, _, place in models])
    base, last_observed, *predictions, true_final = (
        ModelScore(*model, score) for model, score in zip(models, scores, strict=True)
    )
    return DemoScores(base, last_observed, tuple(predictions), true_final, SHARE)
