"""A prediction from start to end, against the reference way and against another kernel inside.

The reference way: the snapshots of base and checkpoints to the disk, from_pretrained for each, and
torch.linalg.svd of every matrix's update. The singular value decompositions are measured for one
layer and multiplied by layers and checkpoints; fitting and writing are given to it for nothing.
"""

from __future__ import annotations

import time
from dataclasses import replace

import torch
from safetensors import safe_open
from torch import Tensor

from alpharl_hub.numerics.spectral import leading_triplets
from tests.bench.figures import Figure, Table, at_least
from tests.bench.measuring import Cost, median, run_child, spread
from tests.bench.models import HALF_B
from tests.bench.rivals import cheapest, truth, try_sketches, worst_angle
from tests.bench.serving import BASE_REPO, RUN_REPO, Server
from tests.bench.workspace import PlacedRun, Workspace, predict_arguments

NUM_STEPS = 2
REPEATS = 3


def measure(workspace: Workspace) -> Table:
    """Predict from a model of half a billion parameters; quick: four of its layers."""
    quick = replace(HALF_B, layers=4, vocabulary=4096)
    run = workspace.run(quick if workspace.quick else HALF_B, NUM_STEPS)
    deltas = _layer_deltas(run)
    sketch = _equal_sketch(deltas)
    own, rival = [], []
    with workspace.serving(run) as server:
        for _ in range(1 + (1 if workspace.quick else REPEATS)):
            own.append(_predict(workspace, server, run).wall_s)
        # The first one brought the files into the page cache.
        del own[0]
        for _ in range(1 if workspace.quick else 2):
            rival.append(_predict(workspace, server, run, sketch).wall_s)
        download_s, load_s = _download_and_load(workspace, server, run)
    layer_s = _svd_seconds(deltas)
    svd_s = layer_s * run.shapes.layers * run.num_steps
    reference = download_s + load_s + svd_s
    figures = (
        Figure("predict", median(own), "s", None, spread(own)),
        Figure("reference: download", download_s, "s"),
        Figure("reference: from_pretrained", load_s, "s"),
        Figure("reference: linalg.svd, extrapolated", svd_s, "s"),
        Figure("reference / predict", reference / median(own), "x", at_least(50)),
        Figure("predict with svd_lowrank", median(rival), "s", None, spread(rival)),
        Figure("with svd_lowrank / predict", median(rival) / median(own), "x", at_least(4)),
    )
    notes = (
        f"{run.shapes.layers} layers, hidden {run.shapes.hidden}, vocabulary "
        f"{run.shapes.vocabulary}, base and {run.num_steps} checkpoints, unthrottled. One layer's "
        f"SVD took {layer_s:.1f} s on one thread, times {run.shapes.layers * run.num_steps}. "
        f"svd_lowrank with (q, niter) = {sketch}, the cheapest as accurate as the kernel on the "
        "layer's down_proj, in the kernel's place in the same pipeline.",
    )
    return Table("end-to-end", "one prediction", figures, notes)


def _predict(
    workspace: Workspace, server: Server, run: PlacedRun, sketch: tuple[int, int] | None = None
) -> Cost:
    arguments = predict_arguments(run, workspace.fresh("predicted"))
    environment = server.environment()
    if sketch is None:
        return run_child("cli", environment, arguments=arguments)
    q, niter = sketch
    return run_child("cli_with_lowrank", environment, arguments=arguments, q=q, niter=niter)


def _download_and_load(workspace: Workspace, server: Server, run: PlacedRun) -> tuple[float, float]:
    """Return the seconds of downloading all checkpoints and of loading all, one after another."""
    wanted = [(BASE_REPO, "main"), *((RUN_REPO, f"step_{s}") for s in run.folders.steps)]
    download_s = load_s = 0.0
    for repo, revision in wanted:
        folder = str(workspace.fresh("snapshot"))
        taken = run_child(
            "download", server.environment(), repo=repo, revision=revision, folder=folder
        )
        download_s += taken.wall_s
        load_s += run_child("load", server.environment(), folder=folder).wall_s
    workspace.fresh("snapshot")
    return download_s, load_s


def _layer_deltas(run: PlacedRun) -> dict[str, Tensor]:
    """Return the updates of the first layer's matrices at the last step, fp32."""
    files = [run.folders.base, run.folders.folder(run.folders.steps[-1])]
    with (
        safe_open(files[0] / "model.safetensors", "pt") as base,
        safe_open(files[1] / "model.safetensors", "pt") as last,
    ):
        return {
            name: last.get_tensor(name).float() - base.get_tensor(name).float()
            for name in run.shapes.layer_matrices(0)
        }


def _equal_sketch(deltas: dict[str, Tensor]) -> tuple[int, int]:
    """Return the cheapest (q, niter) that is as accurate as the kernel on the largest matrix."""
    (delta_MN,) = [delta for name, delta in deltas.items() if "down_proj" in name]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        true = truth(delta_MN)
        ours = leading_triplets(delta_MN, 1, seed="sketch")
        trials = try_sketches(delta_MN, true)
        found = cheapest(trials, worst_angle(ours.u_RM[0], ours.v_RN[0], true))
    finally:
        torch.set_num_threads(threads)
    assert found is not None, "a wide sketch with many passes is exact"
    return found


def _svd_seconds(deltas: dict[str, Tensor]) -> float:
    """Time the decompositions of one layer on one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    started_s = time.perf_counter()
    for delta_MN in deltas.values():
        torch.linalg.svd(delta_MN, full_matrices=False)
    seconds = time.perf_counter() - started_s
    torch.set_num_threads(threads)
    return seconds
