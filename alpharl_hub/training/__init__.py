"""For trainers: a callback that keeps a run on the Hub, ready to be extrapolated.

Needs transformers (`pip install "alpharl-hub[train]"` brings it, with trl and peft).
"""

from alpharl_hub.training.callback import CheckpointBranchCallback

__all__ = ["CheckpointBranchCallback"]
