"""mergekit, where it is installed, merging the same checkpoints linearly."""

from __future__ import annotations

import importlib.util
from dataclasses import replace

from tests.bench.figures import Figure, Table
from tests.bench.measuring import median, run_child, spread
from tests.bench.models import HALF_B
from tests.bench.workspace import PlacedRun, Workspace

NUM_STEPS = 2


def measure(workspace: Workspace) -> Table:
    """Average the local checkpoints of half a billion parameters with both; quick: four layers."""
    title = "mergekit's linear merge of the same local checkpoints"
    if importlib.util.find_spec("mergekit") is None:
        return Table("peers", title, (), ("mergekit: not installed",))
    quick = replace(HALF_B, layers=4, vocabulary=4096)
    run = workspace.run(quick if workspace.quick else HALF_B, NUM_STEPS)
    folders = [str(run.folders.folder(step)) for step in run.folders.steps]
    own, theirs = [], []
    for _ in range(1 if workspace.quick else 3):
        own.append(run_child("cli", arguments=_average(workspace, run)))
        output = str(workspace.fresh("merged"))
        theirs.append(run_child("merge", folders=folders, output=output))
    wall = [one.wall_s / other.wall_s for one, other in zip(theirs, own, strict=True)]
    figures = (
        Figure(
            "average", median([c.wall_s for c in own]), "s", None, spread([c.wall_s for c in own])
        ),
        Figure("mergekit", median([c.wall_s for c in theirs]), "s"),
        Figure("mergekit / average", median(wall), "x", None, spread(wall)),
        Figure("average: peak RSS", max(c.peak_bytes for c in own) / 1e9, "GB"),
        Figure("mergekit: peak RSS", max(c.peak_bytes for c in theirs) / 1e9, "GB"),
    )
    notes = ("Both write the merged model; ours also reads the base and measures every update.",)
    return Table("peers", title, figures, notes)


def _average(workspace: Workspace, run: PlacedRun) -> list[str]:
    where = ["--base", str(run.folders.base), "-o", str(workspace.fresh("predicted"))]
    return ["predict", str(run.folders.run), *where, "--method", "average", "--others", "linear"]
