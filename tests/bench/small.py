"""How long the smallest runs take: what is left when there is next to nothing to read."""

from __future__ import annotations

from tests.bench.figures import Figure, Table, at_most
from tests.bench.measuring import median, run_child, spread
from tests.bench.models import TINY
from tests.bench.workspace import Workspace

NUM_STEPS = 12


def measure(workspace: Workspace) -> Table:
    """Predict from 12 local checkpoints of a tiny model."""
    run = workspace.run(TINY, NUM_STEPS)
    target = ["--target-step", str(run.target_step), "--method", "alpharl", "-q"]
    seconds = []
    for _ in range(1 if workspace.quick else 5):
        where = ["--base", str(run.folders.base), "-o", str(workspace.fresh("predicted"))]
        cost = run_child("cli", arguments=["predict", str(run.folders.run), *where, *target])
        seconds.append(cost.wall_s)
    figure = Figure("predict", median(seconds), "s", at_most(3.0), spread(seconds))
    elements = (run.shapes.matrix_bytes + run.shapes.other_bytes) // 2
    notes = (f"{elements} parameters, {NUM_STEPS} local checkpoints, without the imports.",)
    return Table("small", "a tiny run", (figure,), notes)
