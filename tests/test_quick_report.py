"""What `report --quick` reads: a fiftieth of a large run, and every kind of matrix."""

from __future__ import annotations

from pathlib import Path

import pytest

from alpharl_hub.preparation import Prepared, ScopeOptions, prepare
from alpharl_hub.reporting.sample import MIN_BYTES, NUM_CHECKPOINTS, quick_sample
from alpharl_hub.sources.opening import RunRequest, open_trajectory
from tests.bench.models import SEVEN_B, SEVEN_B_PAIR, Shapes, sparse_run

KINDS = {"down_proj", "gate_proj", "up_proj", "k_proj", "o_proj", "q_proj", "v_proj"}


def sampled(folder: Path, shapes: Shapes, num_steps: int) -> tuple[Prepared, Prepared]:
    """A run of zeros on a disk that stores none of them: all of it, and the sample."""
    steps = tuple(10 * (i + 1) for i in range(num_steps))
    run = sparse_run(folder, shapes, steps)
    trajectory = open_trajectory(RunRequest(str(run.run), base=str(run.base), keep_repeats=True))
    whole = prepare(trajectory, ScopeOptions(), stop_on_wrong_base=False)
    return whole, quick_sample(whole)


def read_bytes(prepared: Prepared) -> int:
    """Two bytes for every entry of the base and of each checkpoint."""
    entries = sum(tensor.last.num_elements for tensor in prepared.scope.matrices)
    return 2 * entries * (1 + len(prepared.trajectory.history))


@pytest.mark.parametrize("num_steps", [4, 10, 12])
def test_seven_billion_parameters_are_sampled_at_a_fiftieth(tmp_path: Path, num_steps: int) -> None:
    """At most 2 % of the bytes, from the first to the last checkpoint and from several depths."""
    whole, sample = sampled(tmp_path, SEVEN_B, num_steps)
    share = read_bytes(sample) / read_bytes(whole)
    assert 0.01 < share <= 0.02
    (told,) = [notice.message for notice in sample.notices if notice.code == "quick"]
    assert told.startswith(f"{share:.1%} of the matrices' bytes were read: ")
    assert told.endswith(f"at {min(num_steps, 5)} of {num_steps} checkpoints")
    steps = sample.trajectory.steps_T
    assert (steps[0], steps[-1], len(steps)) == (10, 10 * num_steps, min(num_steps, 5))
    for tensor in sample.scope.matrices:
        assert tensor.history is not None
        assert [ref.filename for ref in tensor.history] == ["model.safetensors"] * len(steps)
    layers = {tensor.name.split(".")[2] for tensor in sample.scope.matrices}
    assert len(layers) > 2
    if num_steps >= 10:
        assert {tensor.name.split(".")[-2] for tensor in sample.scope.matrices} == KINDS


def test_a_small_run_is_read_whole(tmp_path: Path) -> None:
    """Where little is all there is, nothing is left out."""
    whole, sample = sampled(tmp_path, Shapes(64, 128, 32, 16, layers=2, vocabulary=200), 12)
    assert read_bytes(whole) < MIN_BYTES
    assert sample is whole


def test_the_checkpoints_that_are_left_out_are_not_read(tmp_path: Path) -> None:
    """The history of every matrix is that of the checkpoints, in their order."""
    whole, sample = sampled(tmp_path, SEVEN_B_PAIR, 9)
    assert sample.trajectory.steps_T == (10, 30, 50, 70, 90)
    assert len(sample.trajectory.history) == NUM_CHECKPOINTS
    by_name = {tensor.name: tensor for tensor in whole.scope.matrices}
    for tensor in sample.scope.matrices:
        history = by_name[tensor.name].history
        assert history is not None
        assert tensor.history == history[::2]
