"""The callback for trainers: real trainings by transformers, pushed to a Hub on loopback.

Numbers are held against numpy and scikit-learn in float64, on the weights that the Hub has.
"""

from __future__ import annotations

import json
import logging
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hub_fixtures import ALICE, BOB, Commands, commands_for, files_of, served_hub
from huggingface_hub import HfApi
from lora_models import quiet, write_base
from peft import LoraConfig, get_peft_model
from safetensors.numpy import load, load_file
from sklearn.cross_decomposition import PLSRegression
from transformers import (
    AutoModelForCausalLM,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    default_data_collator,
)
from transformers.utils import logging as transformers_logging

from alpharl_hub.errors import FitError, PushError
from alpharl_hub.local_hub import Fault, LocalHub
from alpharl_hub.push.hub_target import HubAccess
from alpharl_hub.training import CheckpointBranchCallback
from alpharl_hub.training.spectrum import MAX_MATRICES, SpectrumWatch

# The client sends parts of an LFS upload in a way that its HTTP library has deprecated
# (huggingface_hub 2.4, `_upload_parts_iteratively`).
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=<...>':DeprecationWarning")

RUN, BASE = "lab/run", "lab/base"
STEPS = (2, 4, 6, 8, 10)
SHARE, LINEARITY = "alpharl/rank1_share", "alpharl/q2"
LOG = "alpharl_hub.training"


@pytest.fixture(autouse=True)
def _no_bars() -> None:
    transformers_logging.disable_progress_bar()


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[LocalHub]:
    """A Hub with the organisation lab."""
    with served_hub(tmp_path / "hub") as started:
        yield started


@pytest.fixture(scope="module")
def reading(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[LocalHub, Commands]]:
    """Another such Hub, shared by tests that read a run of their own by commands."""
    folder = tmp_path_factory.mktemp("reading")
    with served_hub(folder / "hub") as hub, commands_for(folder / "commands", hub) as commands:
        yield hub, commands


def branches_of(hub: LocalHub, repo: str = RUN) -> set[str]:
    """The names of a repo's branches."""
    return {name.removeprefix("refs/heads/") for name in hub.refs(repo)}


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A tiny Qwen2 in a folder."""
    return write_base(tmp_path / "base")


def callback_for(
    hub: LocalHub, token: str = ALICE, repo: str = RUN, **options: Any
) -> CheckpointBranchCallback:
    """A callback that pushes to this Hub as alice."""
    access = HubAccess(token=token, endpoint=hub.endpoint)
    return CheckpointBranchCallback(repo, access=access, **options)


def trainer_for(
    model: Any, out: Path, *callbacks: TrainerCallback, max_steps: int = 10, **options: Any
) -> Trainer:
    """A trainer of `model` on eight fixed rows, that saves every second step."""
    rows = torch.randint(0, 48, (8, 6), generator=torch.Generator().manual_seed(3))
    values: dict[str, Any] = {
        "output_dir": str(out),
        "use_cpu": True,
        "max_steps": max_steps,
        "save_steps": 2,
        "logging_steps": 5,
        "learning_rate": 5e-5,
        "lr_scheduler_type": "constant",
        "per_device_train_batch_size": 4,
        "report_to": "none",
        "disable_tqdm": True,
    }
    return Trainer(
        model=model,
        args=TrainingArguments(**{**values, **options}),
        train_dataset=[{"input_ids": row, "labels": row} for row in rows],
        data_collator=default_data_collator,
        callbacks=list(callbacks),
    )


def load_model(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def lora_model(folder: Path, **options: Any) -> Any:
    torch.manual_seed(0)
    config = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", **options)
    with quiet():
        return get_peft_model(load_model(folder), config)


def logged(trainer: Trainer, key: str) -> dict[int, float]:
    """What the trainer's log has under a key, by step."""
    return {entry["step"]: entry[key] for entry in trainer.state.log_history if key in entry}


def wanted_share(delta_MN: np.ndarray) -> float:
    sigma = np.linalg.svd(delta_MN.astype(np.float64), compute_uv=False)
    return float(sigma[0] ** 2 / (sigma**2).sum())


def wanted_linearity(deltas: list[np.ndarray]) -> float:
    """Leave-one-out Q^2 by scikit-learn, of rows |D| u whose signs agree."""
    rows: list[np.ndarray] = []
    for delta_MN in deltas:
        u_MM, _, _ = np.linalg.svd(delta_MN.astype(np.float64))
        u_M = u_MM[:, 0] * np.linalg.norm(delta_MN)
        rows.append(-u_M if rows and rows[-1] @ u_M < 0 else u_M)
    x_TM, y_T = np.stack(rows), np.array(STEPS[: len(rows)], dtype=np.float64)
    errors = []
    for left_out in range(len(y_T)):
        kept = np.arange(len(y_T)) != left_out
        model = PLSRegression(n_components=1).fit(x_TM[kept], y_T[kept])
        errors.append(y_T[left_out] - model.predict(x_TM[[left_out]]).item())
    return float(1 - np.square(errors).sum() / np.square(y_T - y_T.mean()).sum())


def test_run_with_a_base_in_a_folder_is_understood_at_once(
    reading: tuple[LocalHub, Commands], base: Path, tmp_path: Path
) -> None:
    """Branches hold every step and the base as step_0; inspect, report and predict read them."""
    (hub, commands), run = reading, "lab/whole"
    trainer_for(load_model(base), tmp_path / "out", callback_for(hub, repo=run)).train()
    assert branches_of(hub, run) == {"main", *(f"step_{step}" for step in (0, *STEPS))}
    listing = commands.run("inspect", run, "--json", token=ALICE).answer
    selected = [entry["step"] for entry in listing["checkpoints"] if entry["selected"]]
    assert selected == list(STEPS)
    assert (listing["base"]["revision"], listing["base"]["chosen_by"]) == ("step_0", "step_0")
    assert commands.run("report", run, "--json", token=ALICE).answer["steps"] == list(STEPS)
    done = commands.run("predict", run, "--target-step", "20", "-o", "predicted", token=ALICE)
    assert done.code == 0, done.stderr
    assert load_model(commands.folder / "predicted").config.hidden_size == 16


def test_branch_holds_the_checkpoint_and_nothing_of_the_optimizer(
    hub: LocalHub, base: Path, tmp_path: Path
) -> None:
    """Weights, config and trainer_state.json arrive byte for byte; state and pickles stay."""
    trainer_for(load_model(base), tmp_path / "out", callback_for(hub)).train()
    saved = tmp_path / "out" / "checkpoint-4"
    assert (saved / "optimizer.pt").exists()
    assert (saved / "rng_state.pth").exists()
    for name in ("model.safetensors", "config.json", "trainer_state.json"):
        assert hub.read_file(RUN, name, "step_4") == (saved / name).read_bytes()
    for name in ("optimizer.pt", "rng_state.pth", "scheduler.pt", "training_args.bin"):
        with pytest.raises(KeyError):
            hub.read_file(RUN, name, "step_4")
    assert not (tmp_path / "out" / ".alpharl-hub-pushing").exists()


def test_base_that_is_a_repo_is_named_and_not_pushed(
    reading: tuple[LocalHub, Commands], base: Path, tmp_path: Path
) -> None:
    """With a base on the Hub the card says so, there is no step_0, and inspect finds it."""
    (hub, commands), run = reading, "lab/based"
    hub.add_commit(BASE, files=files_of(base))
    callback = callback_for(hub, repo=run, base_model=BASE)
    trainer_for(load_model(base), tmp_path / "out", callback, max_steps=4).train()
    assert branches_of(hub, run) == {"main", "step_2", "step_4"}
    for revision in ("main", "step_4"):
        assert f'base_model: "{BASE}"' in hub.read_file(run, "README.md", revision).decode()
    listing = commands.run("inspect", run, "--json", token=ALICE).answer
    assert (listing["base"]["source"], listing["base"]["chosen_by"]) == (BASE, "card")


def test_model_that_was_never_stored_is_pushed_as_step_0(
    hub: LocalHub, base: Path, tmp_path: Path
) -> None:
    """A model made in memory is saved before the first step, and step_0 has those weights."""
    model = AutoModelForCausalLM.from_config(load_model(base).config)
    model.name_or_path = ""
    start = {name: weight.numpy().copy() for name, weight in model.state_dict().items()}
    trainer_for(model, tmp_path / "out", callback_for(hub), max_steps=2).train()
    pushed = load(hub.read_file(RUN, "model.safetensors", "step_0"))
    assert set(pushed) == set(start)
    assert all(np.array_equal(pushed[name], start[name]) for name in start)


def test_numbers_are_those_of_the_stored_weights(base: Path, hub: LocalHub, tmp_path: Path) -> None:
    """Share and Q^2 in the log are medians over the sample that numpy and scikit-learn confirm."""
    names = SpectrumWatch.begin(load_model(base)).names
    assert len(names) == MAX_MATRICES
    trainer = trainer_for(load_model(base), tmp_path / "out", callback_for(hub))
    trainer.train()
    start = load_file(base / "model.safetensors")
    weights = [load_file(tmp_path / f"out/checkpoint-{t}/model.safetensors") for t in STEPS]
    deltas = {name: [w[name].astype(np.float64) - start[name] for w in weights] for name in names}
    shares = logged(trainer, SHARE)
    assert tuple(shares) == STEPS
    for place, step in enumerate(STEPS):
        wanted = np.median([wanted_share(deltas[name][place]) for name in names])
        assert shares[step] == pytest.approx(wanted, rel=1e-4)
    linearities = logged(trainer, LINEARITY)
    assert tuple(linearities) == STEPS[3:]
    for count in (4, 5):
        wanted = np.median([wanted_linearity(deltas[name][:count]) for name in names])
        assert linearities[STEPS[count - 1]] == pytest.approx(wanted, abs=1e-3)


def test_checkpoint_on_the_hub_knows_its_own_numbers(
    hub: LocalHub, base: Path, tmp_path: Path
) -> None:
    """The trainer_state.json of a step ends with what was measured at that very step."""
    trainer_for(load_model(base), tmp_path / "out", callback_for(hub), max_steps=4).train()
    state = json.loads(hub.read_file(RUN, "trainer_state.json", "step_4"))
    assert [entry["step"] for entry in state["log_history"] if SHARE in entry] == [2, 4]


def test_weights_are_those_of_a_training_without_it(
    hub: LocalHub, base: Path, tmp_path: Path
) -> None:
    """The callback changes no weight by a bit: it draws no random number of the training's."""
    for out, callbacks in (("with", [callback_for(hub)]), ("without", [])):
        model = load_model(base)
        model.config.attention_dropout = 0.1
        trainer_for(model, tmp_path / out, *callbacks, max_steps=4, seed=5).train()
    one, other = (
        load_file(tmp_path / out / "checkpoint-4/model.safetensors") for out in ("with", "without")
    )
    assert all(np.array_equal(one[name], other[name]) for name in other)


class Recorder(TrainerCallback):
    """Stands for Weights & Biases: a callback that reports, and comes before those of users."""

    def __init__(self) -> None:
        self.seen: list[dict[str, float]] = []

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.seen.append(dict(kwargs["logs"]))


def test_attached_callback_tells_those_that_report(
    hub: LocalHub, base: Path, tmp_path: Path
) -> None:
    """After `attach`, callbacks that were there before get the numbers too."""
    recorder = Recorder()
    trainer = trainer_for(load_model(base), tmp_path / "out", recorder, max_steps=2)
    callback_for(hub).attach(trainer)
    trainer.train()
    assert [SHARE in logs for logs in recorder.seen] == [True, False]  # step 2; the summary


def test_lora_run_is_pushed_as_adapters(
    reading: tuple[LocalHub, Commands], base: Path, tmp_path: Path
) -> None:
    """Of a LoRA run the adapter goes up, its base folder as step_0; inspect and report read it."""
    (hub, commands), run = reading, "lab/lora"
    trainer = trainer_for(lora_model(base), tmp_path / "out", callback_for(hub, repo=run))
    trainer.train()
    saved = tmp_path / "out/checkpoint-4/adapter_model.safetensors"
    assert hub.read_file(run, saved.name, "step_4") == saved.read_bytes()
    with pytest.raises(KeyError):
        hub.read_file(run, "model.safetensors", "step_4")
    assert 'library_name: "peft"' in hub.read_file(run, "README.md", "step_4").decode()
    listing = commands.run("inspect", run, "--json", token=ALICE).answer
    assert listing["base"]["revision"] == "step_0"
    report = commands.run("report", run, "--json", token=ALICE).answer
    by_name = {module["name"]: module["rank1_share"][-1] for module in report["modules"]}
    names = [
        name.removeprefix("base_model.model.") for name in SpectrumWatch.begin(trainer.model).names
    ]
    wanted = np.median([by_name[name] for name in names])
    assert logged(trainer, SHARE)[10] == pytest.approx(wanted, rel=1e-4)


def test_start_of_a_lora_that_is_not_zero_is_taken_off(base: Path) -> None:
    """With PiSSA the update is what has changed since the start, not the whole product."""
    model = lora_model(base, init_lora_weights="pissa")
    watch = SpectrumWatch.begin(model)
    module = model.get_submodule(watch.names[0].removesuffix(".weight"))
    left, right = module.lora_B["default"].weight, module.lora_A["default"].weight
    scale = module.scaling["default"]
    before = scale * left.detach().double().numpy() @ right.detach().double().numpy()
    with torch.no_grad():
        noise = torch.Generator().manual_seed(1)
        for factor in (left, right):
            factor += 0.01 * torch.randn(factor.shape, generator=noise)
    after = scale * left.detach().double().numpy() @ right.detach().double().numpy()
    # The other matrices have not moved, so that they have no share.
    assert watch.measure(1)[SHARE] == pytest.approx(wanted_share(after - before), rel=1e-3)


def test_failed_push_ends_nothing_and_is_made_up_for(
    hub: LocalHub, base: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A refused commit is one line of warning, and is tried again at the end with success."""
    hub.add_fault(Fault("/commit/step_4", "status", status=403, text="not today"))
    with caplog.at_level(logging.WARNING, logger=LOG):
        trainer_for(load_model(base), tmp_path / "out", callback_for(hub), max_steps=6).train()
    warned = [r.getMessage() for r in caplog.records if "was not pushed" in r.getMessage()]
    assert len(warned) == 1
    assert "step 4" in warned[0]
    assert "403" in warned[0]
    assert "\n" not in warned[0]
    weights = (tmp_path / "out/checkpoint-4/model.safetensors").read_bytes()
    assert hub.read_file(RUN, "model.safetensors", "step_4") == weights


def test_what_the_hub_lacks_is_said_at_the_end(
    hub: LocalHub, base: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A step that is refused for good is named with a command; the others are there."""
    hub.add_fault(Fault("/commit/step_4", "status", times=99, status=403))
    with caplog.at_level(logging.WARNING, logger=LOG):
        trainer_for(load_model(base), tmp_path / "out", callback_for(hub), max_steps=6).train()
    lacking, by_hand = (record.getMessage() for record in caplog.records[-2:])
    assert lacking.startswith(f"{RUN} lacks what failed to be pushed: step 4 ({RUN}: ")
    folder = tmp_path / "out/checkpoint-4"
    assert f"hf upload {RUN} {folder} . --revision step_4 --exclude" in by_hand
    assert load(hub.read_file(RUN, "model.safetensors", "step_6"))


def test_checkpoints_that_the_trainer_deletes_arrive_all_the_same(
    hub: LocalHub, base: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """On a slow Hub the training is done first, with one checkpoint left; all steps arrive."""
    hub.add_fault(Fault("/commit/step_0", "slow", seconds=3.0))
    trainer = trainer_for(load_model(base), tmp_path / "out", callback_for(hub), save_total_limit=1)
    with caplog.at_level(logging.WARNING, logger=LOG):
        trainer.train()
    assert [path.name for path in (tmp_path / "out").glob("checkpoint-*")] == ["checkpoint-10"]
    (said,) = (r.getMessage() for r in caplog.records if r.name.startswith(LOG))
    assert said == f"{RUN}: waiting for pushes, 6 to go"
    assert branches_of(hub) == {"main", *(f"step_{step}" for step in (0, *STEPS))}
    pushed = load(hub.read_file(RUN, "model.safetensors", "step_4"))
    last = load_file(tmp_path / "out/checkpoint-10/model.safetensors")
    assert not np.array_equal(pushed["lm_head.weight"], last["lm_head.weight"])


def test_resumed_run_goes_on_where_it_was(
    hub: LocalHub, base: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A second process pushes what the first one lost, warns of steps ahead, and measures on."""
    out = tmp_path / "out"
    hub.add_fault(Fault("/commit/step_4", "status", times=99, status=403))
    trainer_for(load_model(base), out, callback_for(hub), max_steps=6).train()
    hub.clear_faults()
    shutil.rmtree(out / "checkpoint-6")
    caplog.clear()
    trainer = trainer_for(load_model(base), out, callback_for(hub), max_steps=8)
    with caplog.at_level(logging.WARNING, logger=LOG):
        trainer.train(resume_from_checkpoint=str(out / "checkpoint-4"))
    assert "step_6 to step_6 are of an earlier attempt" in caplog.records[0].getMessage()
    for step in (4, 6, 8):
        weights = (out / f"checkpoint-{step}/model.safetensors").read_bytes()
        assert hub.read_file(RUN, "model.safetensors", f"step_{step}") == weights
    start, now = (
        load_file(folder / "model.safetensors") for folder in (base, out / "checkpoint-8")
    )
    names = SpectrumWatch.begin(load_model(base)).names
    wanted = np.median([wanted_share(now[name].astype(np.float64) - start[name]) for name in names])
    assert logged(trainer, SHARE)[8] == pytest.approx(wanted, rel=1e-4)


def test_second_run_into_the_same_repo_is_refused_before_it_starts(
    hub: LocalHub, base: Path, tmp_path: Path
) -> None:
    """Two runs in one repo would be read as one: the second one stops before its first step."""
    trainer_for(load_model(base), tmp_path / "one", callback_for(hub), max_steps=4).train()
    second = trainer_for(load_model(base), tmp_path / "two", callback_for(hub), max_steps=4)
    with pytest.raises(PushError, match=r"holds a run already \(step_2 to step_4\)"):
        second.train()
    assert second.state.global_step == 0


def test_token_that_may_not_write_stops_a_new_run_but_no_resumed_one(
    hub: LocalHub, base: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Bob, who is not of the lab, learns it at once; a resumed training warns and goes on."""
    out = tmp_path / "out"
    with pytest.raises(PushError, match="lab/run"):
        trainer_for(load_model(base), out, callback_for(hub, BOB), max_steps=4).train()
    trainer_for(load_model(base), out, max_steps=4).train()
    resumed = trainer_for(load_model(base), out, callback_for(hub, BOB), max_steps=6)
    with caplog.at_level(logging.WARNING, logger=LOG):
        resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == 6
    assert "the training goes on" in caplog.records[0].getMessage()


def test_new_repos_are_private_unless_asked(hub: LocalHub, base: Path, tmp_path: Path) -> None:
    """What a training pushes by itself is not public by accident."""
    for repo, public in (("lab/closed", False), ("lab/open", True)):
        callback = callback_for(hub, repo=repo, public=public)
        trainer_for(load_model(base), tmp_path / repo, callback, max_steps=2).train()
        assert HfApi(hub.endpoint, token=ALICE).model_info(repo).private is not public


def test_only_the_first_process_does_anything(hub: LocalHub, base: Path, tmp_path: Path) -> None:
    """In another process of a distributed training the Hub is not asked, nor anything logged."""
    trainer = trainer_for(load_model(base), tmp_path / "out", max_steps=2)
    trainer.state.is_world_process_zero = False
    callback = callback_for(hub)
    callback.attach(trainer)
    trainer.control.should_save = True
    events = (trainer.args, trainer.state, trainer.control)
    callback.on_train_begin(*events, model=trainer.model)
    callback.on_step_end(*events)
    callback.on_save(*events)
    callback.on_train_end(*events)
    assert not trainer.control.should_log
    assert hub.log == ()


def test_weights_that_are_spread_over_processes_end_the_measuring_only(
    hub: LocalHub, base: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Where a weight is a stand-in, as under ZeRO-3, an error says so: no number is made up."""
    model = load_model(base)
    watch = SpectrumWatch.begin(model)
    module = model.get_submodule(watch.names[0].removesuffix(".weight"))
    module.weight = torch.nn.Parameter(torch.empty(0))
    with pytest.raises(FitError, match=r"k_proj\.weight: this process does not hold all of it"):
        watch.measure(1)


def test_names_that_are_no_repos_are_refused(hub: LocalHub) -> None:
    """A repo without an owner, or a folder as base_model, is an error when it is written."""
    for repo, base_model in (("run", None), (RUN, "./base")):
        with pytest.raises(PushError, match="write ORG/NAME"):
            CheckpointBranchCallback(repo, base_model=base_model)


class Stumble(TrainerCallback):
    """A training that fails in its fifth step."""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 5:
            raise ZeroDivisionError


def test_what_was_saved_before_an_error_arrives(hub: LocalHub, base: Path, tmp_path: Path) -> None:
    """A training that ends with an error ends with that error, and its checkpoints are pushed."""
    trainer = trainer_for(load_model(base), tmp_path / "out", callback_for(hub), Stumble())
    with pytest.raises(ZeroDivisionError):
        trainer.train()
    until = time.monotonic() + 30
    while "step_4" not in branches_of(hub) and time.monotonic() < until:
        time.sleep(0.05)
    assert branches_of(hub) == {"main", "step_0", "step_2", "step_4"}


def test_branch_appears_after_its_weights_went_up(
    hub: LocalHub, base: Path, tmp_path: Path
) -> None:
    """Whoever reads the run while a large checkpoint is pushed finds no branch without weights."""
    callback = callback_for(hub, base_model=BASE)
    trainer_for(load_model(base), tmp_path / "out", callback, max_steps=4).train()
    paths = [(record.method, record.path) for record in hub.log]
    made = paths.index(("POST", f"/api/models/{RUN}/branch/step_4"))
    assert sum(method == "PUT" for method, _ in paths[:made]) == 2
    assert not any(method == "PUT" for method, _ in paths[made:])


def test_numbers_of_a_save_at_the_end_of_an_epoch_are_logged_at_that_step(
    hub: LocalHub, base: Path, tmp_path: Path
) -> None:
    """Saving by epoch works as saving by steps does: two steps here are an epoch."""
    options = {"save_strategy": "epoch", "logging_strategy": "epoch"}
    trainer = trainer_for(
        load_model(base), tmp_path / "out", callback_for(hub), max_steps=4, **options
    )
    trainer.train()
    assert tuple(logged(trainer, SHARE)) == (2, 4)
    assert branches_of(hub) == {"main", "step_0", "step_2", "step_4"}
