"""Try `--method auto` on finished runs: does it ever lose, and what does it gain?

    python examples/run_list.py --out runs
    python examples/judge_auto.py runs --shares 40% --problems 2000

For every run and share of its steps, auto predicts up to the run's own last step (and may refuse,
which keeps the last observed checkpoint). The stored weights are scored on test problems that
nothing was trained on. `gap closed` is the gain over the last observed checkpoint as a share of
what training on would have gained. `in errors` counts standard errors of the difference. With
--with-scores auto is also given the score of every checkpoint that it sees.
"""

import argparse
import json
import math
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from run_list import RUNS
from transformers.utils import logging

from alpharl_hub.demo.task import TaskScore, load_and_measure
from alpharl_hub.errors import FitError
from alpharl_hub.pipeline import predict_run
from alpharl_hub.prediction.delivery import Destination
from alpharl_hub.prediction.setting import PredictOptions
from alpharl_hub.prediction.targets import TargetOptions
from alpharl_hub.preparation import ScopeOptions
from alpharl_hub.sources.opening import RunRequest
from alpharl_hub.windows.streaming import Compute, Hooks


@dataclass(frozen=True)
class Case:
    """One run cut at one step."""

    run: Path
    last_step: int
    final_step: int


def cases(root: Path, shares: list[float]) -> Iterator[Case]:
    """Every finished run below `root`, in the order of the list, cut at each share."""
    order = [named.name for named in RUNS]
    finished = [path.parent for path in root.glob("*/scores.json")]
    for run in sorted(finished, key=lambda path: order.index(path.name)):
        steps = sorted(int(path.name.rpartition("-")[2]) for path in run.glob("checkpoint-*"))
        for share in shares:
            yield Case(run, [s for s in steps if s <= share * steps[-1] + 1e-9][-1], steps[-1])


def recorded(run: Path, step: int) -> TaskScore:
    """The score that was measured after training, on 2,000 test problems."""
    return TaskScore(**json.loads((run / "scores.json").read_text())[str(step)])


def auto(case: Case, with_scores: bool, out: Path) -> tuple[float, str] | None:
    """Let auto predict into `out`: (step, what bound it), or None where it refuses."""
    request = RunRequest(
        str(case.run),
        base=str(case.run / "base"),
        until=str(case.last_step),
        scores=case.run / "scores.json" if with_scores else None,
    )
    options = PredictOptions(target=TargetOptions((float(case.final_step),)))
    # A learning rate far too high moves weights farther than the check of the base expects.
    scope = ScopeOptions(force=True)
    try:
        answer = predict_run(request, scope, options, Destination(out), Compute(("cpu",)), Hooks())
    except FitError:
        return None
    assert answer.auto is not None, "auto says what it chose"
    return answer.outputs[0].target_step or 0.0, answer.auto.bound_by


def judge(case: Case, with_scores: bool, num_problems: int, known: dict[Path, TaskScore]) -> str:
    """One row of the table."""
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "predicted"
        chosen = auto(case, with_scores, out)
        last, final = known[case.run / str(case.last_step)], known[case.run / str(case.final_step)]
        score = last if chosen is None else load_and_measure(out, num_problems=num_problems)
    gain, gap = score.score - last.score, final.score - last.score
    error = math.hypot(score.standard_error, last.standard_error)
    how = "refused, last kept" if chosen is None else f"step {chosen[0]:.0f} ({chosen[1]})"
    closed = f"{gain / gap:5.0%}" if gap > 2 * error else "    -"
    errors = gain / error if error else 0.0
    return (
        f"{case.run.name:14s} {case.last_step:4d} of {case.final_step:4d}  {last.score:.3f} -> "
        f"{score.score:.3f} ({errors:+5.1f} errors)  final {final.score:.3f}  gap closed {closed}  "
        f"{how}"
    )


def main() -> None:
    """Judge every run below a folder."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("root", type=Path, help="what run_list.py wrote")
    parser.add_argument("--shares", nargs="+", default=["40%"], metavar="SHARE")
    parser.add_argument("--problems", type=int, default=2000)
    parser.add_argument("--with-scores", action="store_true")
    options = parser.parse_args()
    logging.disable_progress_bar()
    torch.set_num_threads(1)
    shares = [float(share.rstrip("%")) / 100 for share in options.shares]
    for case in cases(options.root, shares):
        known = {
            case.run / str(step): recorded(case.run, step)
            for step in (case.last_step, case.final_step)
        }
        print(judge(case, options.with_scores, options.problems, known), flush=True)


if __name__ == "__main__":
    main()
