"""Peak memory of fresh processes: flat in the number of checkpoints and of layers?"""

from __future__ import annotations

from dataclasses import replace

from tests.bench.figures import Figure, Table, at_most
from tests.bench.measuring import Cost, run_child
from tests.bench.models import Shapes
from tests.bench.workspace import Workspace, extract_arguments, predict_arguments

FLAT = at_most(1.05)

SMALL_LAYERS = Shapes(1024, 4096, 256, 64, layers=4, vocabulary=1024)
"""They fill two windows of 64 MB, so that one is read ahead while the other is worked on."""


def measure(workspace: Workspace) -> Table:
    """Measure extract and predict with few and many checkpoints, and with more layers."""
    many_layers = 8 if workspace.quick else 12
    few, many = (3, 8) if workspace.quick else (3, 30)
    settings = {
        f"T = {few}": (SMALL_LAYERS, few),
        f"T = {many}": (SMALL_LAYERS, many),
        f"T = {few}, {many_layers} layers": (replace(SMALL_LAYERS, layers=many_layers), few),
    }
    figures = []
    # Predict does all that extract does, and writes.
    for command in ("predict",) if workspace.quick else ("extract", "predict"):
        peaks = {}
        for name, (shapes, num_steps) in settings.items():
            peaks[name] = _cost(workspace, shapes, num_steps, command).peak_bytes / 1e9
        names = list(peaks)
        promise = at_most(0.60 + 6 * SMALL_LAYERS.largest_matrix_bytes / 1e9)
        figures += [Figure(f"{command}: {n}", peak, "GB", promise) for n, peak in peaks.items()]
        first, more_steps, more_layers = (peaks[name] for name in names)
        figures.append(Figure(f"{command}: growth with T", more_steps / first, "x", FLAT))
        figures.append(Figure(f"{command}: growth with layers", more_layers / first, "x", FLAT))
    for shapes, num_steps in settings.values():
        workspace.drop(workspace.run(shapes, num_steps))
    notes = (
        f"VmHWM of the whole process; matrices of up to "
        f"{SMALL_LAYERS.largest_matrix_bytes / 1e6:.0f} MB. The peak with matrices of full size is "
        "in the table of stream.",
    )
    return Table("memory", "peak memory", tuple(figures), notes)


def _cost(workspace: Workspace, shapes: Shapes, num_steps: int, command: str) -> Cost:
    run = workspace.run(shapes, num_steps)
    output = workspace.fresh(command)
    arguments = (
        extract_arguments(output) if command == "extract" else predict_arguments(run, output)
    )
    with workspace.serving(run) as server:
        return run_child("cli", server.environment(), arguments=arguments)
