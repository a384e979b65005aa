"""The demo: the real commands on the packaged run, against a Hub on this machine.

`story` tells it, `children` runs the commands in an environment of their own, `measuring` is the
program that loads the models from that Hub and scores them, and `comparison` puts the scores into
words.
"""

from alpharl_hub.demo.comparison import DemoScores, ModelScore, difference_in_errors, in_words
from alpharl_hub.demo.story import run_demo

__all__ = ["DemoScores", "ModelScore", "difference_in_errors", "in_words", "run_demo"]
