"""Train a tiny model with TRL's GRPOTrainer, each checkpoint on its way to the Hub meanwhile.

The callback is all that is added to a usual script. About two minutes on one CPU core. Needs
`pip install "alpharl-hub[train]"` and a token that may write (HF_TOKEN, or `hf auth login`).

    python examples/grpo_with_callback.py --hub-repo me/tiny-grpo
    alpharl-hub inspect me/tiny-grpo
    alpharl-hub report me/tiny-grpo
    alpharl-hub predict me/tiny-grpo --target-step 200 -o predicted

The repo is made private. It gets a branch step_N for each checkpoint and, as this base lies on no
Hub, the base as step_0. The log has alpharl/rank1_share and alpharl/q2 at each save.

Without network, a Hub on your own machine does as well:

    python -m alpharl_hub.local_hub --root hub --token hf_me=me       (says its endpoint)
    HF_ENDPOINT=http://127.0.0.1:PORT HF_TOKEN=hf_me python examples/grpo_with_callback.py ...
"""

import argparse
import logging
import os
from pathlib import Path

import torch
from datasets import Dataset
from peft import LoraConfig
from tiny_trainer import exact_match_reward, load_fp32
from transformers import AutoTokenizer, set_seed
from transformers.utils import logging as transformers_logging
from trl import GRPOConfig, GRPOTrainer

from alpharl_hub.demo.task import DEMO_RUN, MAX_COMPLETION_TOKENS, draw_problems
from alpharl_hub.training import CheckpointBranchCallback

PROMPTS, SAMPLES = 32, 8


def make_trainer(options: argparse.Namespace) -> GRPOTrainer:
    """A GRPO trainer as anybody would write it, on three-digit additions."""
    problems = draw_problems("train", options.updates * PROMPTS, options.seed)
    lora = LoraConfig(
        r=options.lora_rank, lora_alpha=2 * options.lora_rank, target_modules="all-linear"
    )
    set_seed(options.seed)
    return GRPOTrainer(
        model=load_fp32(options.base),
        processing_class=AutoTokenizer.from_pretrained(options.base, padding_side="left"),
        reward_funcs=exact_match_reward,
        train_dataset=Dataset.from_list(
            [{"prompt": p.prompt, "answer": p.answer} for p in problems]
        ),
        peft_config=lora if options.lora_rank else None,
        args=GRPOConfig(
            output_dir=str(options.out),
            seed=options.seed,
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            max_steps=options.updates,
            save_steps=options.save_every,
            save_total_limit=1,  # the Hub has the others
            logging_steps=options.save_every,
            learning_rate=options.lr,
            lr_scheduler_type="constant",
            beta=0.0,
            temperature=1.0,
            per_device_train_batch_size=PROMPTS * SAMPLES,
            num_generations=SAMPLES,
            max_completion_length=MAX_COMPLETION_TOKENS,
            report_to="none",
            disable_tqdm=True,
        ),
        callbacks=[CheckpointBranchCallback(options.hub_repo)],
    )


def main() -> None:
    """Train and push."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--hub-repo", required=True, metavar="ORG/NAME", help="made if missing")
    parser.add_argument("--out", type=Path, default=Path("tiny-grpo"), metavar="DIR")
    parser.add_argument("--base", type=Path, default=DEMO_RUN / "base", metavar="DIR")
    parser.add_argument("--updates", type=int, default=120)
    parser.add_argument("--save-every", type=int, default=10)
    parser.add_argument("--lr", type=float, default=2e-5)
    parser.add_argument("--lora-rank", type=int, default=0, help="0 trains all weights")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint")
    options = parser.parse_args()
    logging.basicConfig(format="%(message)s")
    logging.getLogger("alpharl_hub").setLevel(logging.INFO)  # also say what has arrived
    transformers_logging.disable_progress_bar()
    torch.set_num_threads(1)
    make_trainer(options).train(resume_from_checkpoint=options.resume or None)


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    main()
