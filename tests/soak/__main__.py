"""`python -m tests.soak [--minutes 15] [--kills 20]`: what a long run over a bad line must survive.

First commands are struck by signals when the Hub has moved so many bytes, drawn from a seed; then
all commands go round in one process while one answer in twenty is spoilt. Ends with status 1 where
something was lost, differs, or grows.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from tests.soak.stress import Looped, loop_under_faults
from tests.soak.strikes import strike_all

MAX_SLOPE_MB_PER_MINUTE = 1.0


def main() -> int:
    """Do both parts and print what was seen."""
    options = _options()
    problems: list[str] = []
    with tempfile.TemporaryDirectory(prefix="alpharl-soak-", dir=options.folder) as folder:
        print(f"seed {options.seed}", flush=True)
        if options.kills:
            for struck in strike_all(Path(folder) / "kills", options.kills, options.seed):
                print(struck.text(), flush=True)
                problems += struck.problems()
        if options.minutes:
            place = Path(folder) / "loop"
            size = (options.minutes, options.checkpoints, options.faults)
            looped = loop_under_faults(place, *size, options.seed)
            print(_text(looped), flush=True)
            problems += looped.problems(MAX_SLOPE_MB_PER_MINUTE)
    for problem in problems:
        print(f"NOT GOOD: {problem}")
    return 1 if problems else 0


def _text(looped: Looped) -> str:
    judged = "" if looped.is_judged else " (too short to be judged)"
    seen = "; ".join(_held(what, looped) for what in ("descriptors", "threads"))
    return (
        f"loop: {looped.rounds} rounds of {looped.num_commands} commands in "
        f"{looped.minutes:.1f} min, {looped.num_faults} of {looped.num_requests} answers "
        f"spoilt\n"
        f"memory: {looped.last[-1].rss_bytes / 1e6:.0f} MB at the end, "
        f"{looped.slope_mb_per_minute:+.2f} MB/min over the last ten minutes, two thirds of the "
        f"time at most{judged}, what is in use {looped.used_slope_mb_per_minute:+.2f}\n{seen}"
    )


def _held(what: str, looped: Looped) -> str:
    first, last = (
        sorted(getattr(sample, what) for sample in samples)
        for samples in (looped.first, looped.last)
    )
    return f"{what} {first[0]}-{first[-1]} in the first round, {last[0]}-{last[-1]} in the last"


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=15, help="of the loop; 0 leaves it out")
    parser.add_argument("--kills", type=int, default=20, help="at least; 0 leaves them out")
    parser.add_argument("--checkpoints", type=int, default=75)
    parser.add_argument("--faults", type=float, default=0.05, help="share of answers spoilt")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="where the temporary folder is made")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
