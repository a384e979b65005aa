"""The callback for transformers' Trainer and TRL's trainers."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import (
    PreTrainedModel,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from alpharl_hub.errors import AlphaRLError, PushError
from alpharl_hub.push.hub_target import HubAccess
from alpharl_hub.sources.patience import Patience
from alpharl_hub.training.pushes import BackgroundPushes, FailedPush
from alpharl_hub.training.run_repo import (
    RunBase,
    RunRepo,
    branch_of,
    find_base,
    is_repo_name,
    run_card,
)
from alpharl_hub.training.spectrum import SpectrumWatch, is_whole

logger = logging.getLogger(__name__)

_NAMED_STEPS = 6


class CheckpointBranchCallback(TrainerCallback):
    """Keeps a run on the Hub, ready to be extrapolated: a branch `step_N` for each checkpoint.

    Each checkpoint that the trainer saves is pushed in the background: weights (of LoRA runs the
    adapter), config, tokenizer and trainer_state.json, never the optimizer's state, random states
    or pickles. A push that fails costs one line of warning, and is tried once more at the end of
    the training, which waits for what is under way; so does the process when the training ends with
    an error. A base that is a repo on the Hub is named in
    the cards; a folder, or a model that was never stored, is pushed as `step_0`.

    At every save `alpharl/rank1_share` and `alpharl/q2` of a few matrices go into the log (see
    `alpharl_hub.training.spectrum` for what they are and the memory they take).

    Only the first process of a distributed training does anything.

    Args:
        repo: ORG/NAME; made where it is missing. A repo keeps one run: a new one is refused where
            steps lie already, a resumed one goes on.
        base_model: ORG/NAME of the base, where the model itself does not say it.
        public: whether a repo that is made is public; one that exists stays as it is.
        log_spectrum: whether to measure and log.
        access: Hub and token, if not those of the environment (HF_TOKEN, `hf auth login`).

    Raises:
        PushError: `repo` or `base_model` is no name of a repo; or, at the start of a training from
            step 0, nothing can be pushed (no token, no right to write, another run in the repo).
    """

    def __init__(
        self,
        repo: str,
        *,
        base_model: str | None = None,
        public: bool = False,
        log_spectrum: bool = True,
        access: HubAccess | None = None,
    ) -> None:
        for name in (repo, base_model):
            if name is not None and not is_repo_name(name):
                raise PushError(f"{name!r}: no name of a repo on the Hub; write ORG/NAME")
        patience = Patience(on_wait=lambda wait_s, why: logger.info("%s: %.0f s", why, wait_s))
        self._repo = RunRepo(repo, access or HubAccess(), patience, public)
        self._base_model = base_model
        self._log_spectrum = log_spectrum
        self._watch: SpectrumWatch | None = None
        self._unlogged: dict[str, float] = {}
        self._pushes: BackgroundPushes | None = None
        self._base = RunBase(None, None)
        self._is_adapter = False
        self._is_open = False

    def attach(self, trainer: Trainer) -> None:
        """Put the callback into a trainer, before those that report.

        Weights & Biases, TensorBoard and the like then get the numbers as well; given to the
        trainer as `callbacks=[...]`, only its own log and what it prints have them.
        """
        trainer.callback_handler.callbacks.insert(1, self)  # the first one decides what is saved
        self.on_init_end(trainer.args, trainer.state, trainer.control, model=trainer.model)

    def on_init_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Keep the start of a few matrices: a resumed training has not loaded its weights yet."""
        if state.is_world_process_zero and self._log_spectrum:
            self._watch = SpectrumWatch.begin(kwargs["model"])

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Find out whether the repo can be written, and push what the run starts from."""
        if not state.is_world_process_zero:
            return
        model = kwargs["model"]
        self._begin_watch(state, model)
        configs = list(getattr(model, "peft_config", {}).values())
        self._is_adapter = bool(configs)
        named = (
            configs[0].base_model_name_or_path if configs else getattr(model, "name_or_path", None)
        )
        self._base = find_base(named or "", self._base_model)
        folder = _output_folder(args)
        self._pushes = BackgroundPushes(self._repo, folder, self._open)
        try:
            self._check_steps(state.global_step)
        except PushError as error:
            if state.global_step == 0:
                raise
            logger.warning("%s; the training goes on, and each save tries again", error)
        self._push_base(state, model, kwargs.get("processing_class"))
        if state.global_step > 0:
            # It may have been on its way when the earlier process ended.
            self._push_saved(folder, state.global_step)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        """Measure before a save, so that the checkpoint's own trainer_state.json has it."""
        return self._measure_before_save(state, control)

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        """Measure before a save at the end of an epoch."""
        return self._measure_before_save(state, control)

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Add what was measured to what is logged."""
        if self._unlogged:
            kwargs["logs"].update(self._unlogged)
            state.log_history[-1].update(self._unlogged)
            self._unlogged = {}

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Take the checkpoint that was just saved, and leave its push to the thread."""
        if state.is_world_process_zero:
            self._push_saved(_output_folder(args), state.global_step)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Wait for the pushes, and say what is missing on the Hub."""
        if self._pushes is None:
            return
        repo = self._repo.repo
        if self._pushes.num_waiting:
            logger.warning("%s: waiting for pushes, %d to go", repo, self._pushes.num_waiting)
        failed = self._pushes.finish()
        self._pushes = None
        if failed:
            logger.warning("%s lacks what failed to be pushed: %s", repo, _listed(failed))
            _say_how_by_hand(repo, failed)

    def _begin_watch(self, state: TrainerState, model: Any) -> None:
        if not self._log_spectrum:
            return
        if self._watch is None and state.global_step == 0:
            self._watch = SpectrumWatch.begin(model)
        if self._watch is None or not self._watch.names:
            self._watch = None
            logger.warning(
                "alpharl/* is not logged: the start of the run is not known here, or no matrix of "
                "attention or MLP is trained whole in this process (DoRA, FSDP, ZeRO-3)"
            )

    def _measure_before_save(self, state: TrainerState, control: TrainerControl) -> TrainerControl:
        if control.should_save and self._watch is not None:
            if self._watch.last_step != state.global_step:
                try:
                    self._unlogged = dict(self._watch.measure(state.global_step))
                except AlphaRLError as error:
                    logger.warning("alpharl/* is not logged any more: %s", error)
                    self._watch = None
            control.should_log = control.should_log or bool(self._unlogged)
        return control

    def _open(self) -> None:
        """Make repo and card where they are missing; once."""
        if not self._is_open:
            self._repo.open(self._card(None))
            self._is_open = True

    def _check_steps(self, at_step: int) -> None:
        """Refuse to mix two runs; say what of an earlier attempt lies ahead.

        Raises:
            PushError: a new run, and the repo holds one; or the repo cannot be written.
        """
        steps = self._repo.open(self._card(None))
        self._is_open = True
        later = sorted(step for step in steps if step > at_step)
        if later and at_step == 0:
            raise PushError(
                f"{self._repo.repo}: holds a run already ({branch_of(later[0])} to "
                f"{branch_of(later[-1])}); name another repo, or delete these branches"
            )
        if later:
            logger.warning(
                "%s: %s to %s are of an earlier attempt, until this one comes to them",
                *(self._repo.repo, branch_of(later[0]), branch_of(later[-1])),
            )

    def _card(self, step: int | None) -> str:
        return run_card(self._repo.repo, self._base.repo, self._is_adapter, step)

    def _push_base(self, state: TrainerState, model: Any, processing_class: Any) -> None:
        """Push a base that is no repo as step 0."""
        assert self._pushes is not None, "pushes begin with the training"
        if self._base.repo is not None:
            return
        try:
            if self._base.folder is not None:
                self._pushes.submit_in_place(0, self._base.folder, self._card(0))
                return
            if state.global_step == 0 and isinstance(model, PreTrainedModel) and is_whole(model):
                saved = self._pushes.staging / "base"
                model.save_pretrained(saved)
                if processing_class is not None:
                    processing_class.save_pretrained(saved)
                self._pushes.submit(0, saved, self._card(0))
                return
        except (AlphaRLError, OSError) as error:
            logger.warning("the base was not pushed: %s", error)
            return
        if state.global_step == 0:
            logger.warning(
                "%s will not say what the run started from; pass base_model=ORG/NAME, or --base "
                "when it is read",
                self._repo.repo,
            )

    def _push_saved(self, folder: Path, step: int) -> None:
        assert self._pushes is not None, "pushes begin with the training"
        saved = folder / f"{PREFIX_CHECKPOINT_DIR}-{step}"
        try:
            self._pushes.submit(step, saved, self._card(step))
        except (AlphaRLError, OSError) as error:
            logger.warning("step %d was not pushed: %s", step, error)


def _listed(failed: Sequence[FailedPush]) -> str:
    """Name the steps, and the reason of the first one: mostly it is one for all."""
    steps = ", ".join(str(push.step) for push in failed[:_NAMED_STEPS])
    more = ", ..." if len(failed) > _NAMED_STEPS else ""
    return f"step {steps}{more} ({failed[0].reason})"


def _say_how_by_hand(repo: str, failed: Sequence[FailedPush]) -> None:
    for push in failed:
        if push.folder.is_dir():
            logger.warning(
                "by hand: hf upload %s %s . --revision %s "
                "--exclude '*.pt' '*.pth' '*.bin' README.md",
                *(repo, push.folder, branch_of(push.step)),
            )
            return


def _output_folder(args: TrainingArguments) -> Path:
    assert args.output_dir is not None, "transformers fills it in"
    return Path(args.output_dir)
