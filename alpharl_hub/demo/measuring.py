"""python -m alpharl_hub.demo.measuring PLACE ...: score models by the demo's task.

A PLACE is a folder, or REPO[@REVISION] of the Hub in use. Writes the `TaskScore` of each as one
line of JSON on stdout, in the order of the arguments. With --split there is one PLACE, a folder,
and a last line `score=0.1234` follows, which makes this an evaluation for a sweep.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from alpharl_hub.demo.task import NUM_TEST_PROBLEMS, TaskScore, load_and_measure


def main(arguments: Sequence[str]) -> int:
    """Score what the arguments name."""
    parser = _parser()
    given = parser.parse_args(arguments)
    if given.split is None:
        for place in given.places:
            repo, _, revision = place.partition("@")
            _write(load_and_measure(repo, revision or None, num_problems=given.num_problems))
        return 0
    if len(given.places) > 1 or not Path(given.places[0]).is_dir():
        parser.error("--split scores one model, in a folder")
    score = load_and_measure(
        Path(given.places[0]), split=given.split, num_problems=given.num_problems
    )
    _write(score)
    sys.stdout.write(f"score={score.score:.4f}\n")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m alpharl_hub.demo.measuring",
        description="Score models by the demo's task: three-digit addition, exact answers only.",
    )
    parser.add_argument("places", nargs="+", metavar="PLACE", help="a folder, or REPO[@REVISION]")
    parser.add_argument(
        "--split",
        choices=("validation", "test"),
        help="score a folder by these problems and print score=NUMBER (they share none)",
    )
    parser.add_argument(
        "--num-problems", type=_positive, default=NUM_TEST_PROBLEMS, help="how many problems"
    )
    return parser


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is no number of problems")
    return int(text)


def _write(score: TaskScore) -> None:
    sys.stdout.write(json.dumps(asdict(score)) + "\n")


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
