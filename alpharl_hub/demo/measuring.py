"""python -m alpharl_hub.demo.measuring REPO[@REVISION] ...: score models of the Hub in use.

Writes the `TaskScore` of each as one line of JSON on stdout, in the order of the arguments.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict

from alpharl_hub.demo.task import load_and_measure


def main(places: list[str]) -> int:
    """Score what the arguments name."""
    for place in places:
        repo, _, revision = place.partition("@")
        score = load_and_measure(repo, revision or None)
        sys.stdout.write(json.dumps(asdict(score)) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
