"""Predict a later RL fine-tuned model from early checkpoints, streamed from the Hugging Face Hub.

Importing the package is light: torch is loaded by the functions that compute.
"""

from alpharl_hub.errors import AlphaRLError
from alpharl_hub.version import __version__

__all__ = ["AlphaRLError", "__version__"]
