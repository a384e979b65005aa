"""What is asked of the Hub, by its own log, against what must be read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tests.bench.figures import Figure, Table, at_most
from tests.bench.measuring import run_child
from tests.bench.models import QUARTER_GB, SEVEN_B, SEVEN_B_PAIR, sparse_run
from tests.bench.stream import NUM_STEPS
from tests.bench.workspace import PlacedRun, Workspace, extract_arguments, predict_arguments

QUICK_STEPS = 10


def measure(workspace: Workspace) -> Table:
    """Count bytes, resolves and API calls of one extract and one predict."""
    run = workspace.run(QUARTER_GB if workspace.quick else SEVEN_B_PAIR, NUM_STEPS)
    matrices = (run.num_steps + 1) * run.shapes.matrix_bytes
    factors = extract_arguments(workspace.fresh("factors"))
    model = predict_arguments(run, workspace.fresh("predicted"))
    figures = [
        *_ask(workspace, run, "extract", factors, matrices),
        *_ask(workspace, run, "predict", model, matrices + run.shapes.other_bytes),
        _first_table(workspace),
    ]
    notes = (
        "Must be read: the matrices of base and checkpoints, and for predict the other tensors of "
        f"the last one; here {matrices / 1e9:.2f} GB. Headers and configs come on top.",
        f"The quick report is of {SEVEN_B.layers} layers and {QUICK_STEPS} checkpoints, files of "
        "zeros without disk space.",
    )
    return Table("requests", "what is asked of the Hub", tuple(figures), notes)


def _ask(
    workspace: Workspace, run: PlacedRun, name: str, arguments: Sequence[str], must_read: int
) -> list[Figure]:
    with workspace.serving(run) as server:
        server.clear_log()
        run_child("cli", server.environment(), arguments=arguments)
        asked = server.asked()
        kept = _bytes_below(server.home)
    calls = asked.num_api_calls / run.num_steps
    # Signed addresses hold for an hour, which these readings do not last.
    resolves = at_most(float(asked.num_resolved_files))
    return [
        Figure(f"{name}: bytes sent", asked.sent_bytes / must_read, "x", at_most(1.01)),
        Figure(f"{name}: resolves", asked.num_resolves, "", resolves),
        Figure(f"{name}: API calls per checkpoint", calls, "", at_most(3)),
        Figure(f"{name}: input bytes on disk", kept, "B", at_most(0)),
    ]


def _first_table(workspace: Workspace) -> Figure:
    """Measure what `report --quick` reads of a model of 7 billion parameters before it shows it."""
    steps = tuple(10 * (i + 1) for i in range(QUICK_STEPS))
    run = sparse_run(workspace.fresh("sparse"), SEVEN_B, steps)
    options = ("--base", str(run.base), "--quick", "--force", "--keep-repeats", "-q")
    cost = run_child("cli", arguments=["report", str(run.run), *options])
    share = cost.read_bytes / (SEVEN_B.matrix_bytes * (1 + QUICK_STEPS))
    return Figure("report --quick: bytes before its table", share, "of all", at_most(0.02))


def _bytes_below(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
