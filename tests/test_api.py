"""The functions for notebooks: what the commands do, as values; and the notebook itself."""

from __future__ import annotations

import json
import math
import os
import threading
from pathlib import Path

import nbformat
import pandas
import pytest
import torch
from nbclient import NotebookClient
from trajectories import Run, curved_run, digest, load_model, matrix_names, succeed, write_run

from alpharl_hub import AlphaRLError, api
from alpharl_hub.errors import TrajectoryError

STEPS = (4, 10, 24, 31, 40)
NOTEBOOK = Path(__file__).parent.parent / "examples" / "notebook.ipynb"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Five checkpoints over a base."""
    return write_run(tmp_path_factory.mktemp("api"), STEPS, curved_run(STEPS))


@pytest.fixture(scope="module")
def opened(run: Run) -> api.Run:
    """The run, opened once for several uses."""
    return api.open_trajectory(run.root, base=run.base)


def test_an_opened_run_says_what_it_is(run: Run, opened: api.Run) -> None:
    """Steps and base are those of the folders; a token is not shown."""
    assert opened.steps == STEPS
    assert opened.base == str(run.base)
    some = api.open_trajectory(run.root, base=run.base, steps=[4, 24, 40], token="hf_secret")
    assert some.steps == (4, 24, 40)
    assert "3 checkpoints, steps 4 to 40" in repr(some)
    assert "hf_secret" not in repr(some)


def test_records_are_what_the_command_reports_for_pandas(run: Run, opened: api.Run) -> None:
    """One row per matrix and step, with the numbers of `report --json`."""
    table = pandas.DataFrame(api.records(api.report(opened, num_singular_values=2)))
    assert len(table) == len(STEPS) * len(matrix_names(load_model(run.base)))
    told = json.loads(succeed("report", *run.arguments("--json")).stdout)
    for module in told["modules"]:
        rows = table[table.name == module["name"]].sort_values("step")
        assert rows.step.tolist() == list(STEPS)
        for column, key in (("sigma", "sigma"), ("drift_deg", "drift"), ("frobenius",) * 2):
            assert rows[column].tolist() == pytest.approx(module[key], rel=1e-5)
        assert rows.q2_step.tolist() == pytest.approx([module["q2_step"]] * len(STEPS), rel=1e-4)
        layer, _, group = module["name"].removeprefix("model.layers.").partition(".")
        assert set(rows.layer) == {int(layer)}
        assert set(rows.module) == {group.removesuffix(".weight")}


def test_further_singular_values_are_those_of_the_last_delta(run: Run, opened: api.Run) -> None:
    """sigma_2 and sigma_3 are numpy's, at the last step; earlier steps have none."""
    table = pandas.DataFrame(api.records(api.report(opened, num_singular_values=3)))
    base, last = load_model(run.base), load_model(run.folder(40))
    for name in matrix_names(base):
        wanted = torch.linalg.svdvals(last[name].double() - base[name].double())[:3].tolist()
        rows = table[table.name == name].sort_values("step")
        found = rows.iloc[-1][["sigma", "sigma_2", "sigma_3"]].tolist()
        assert found == pytest.approx(wanted, rel=1e-2)
        assert rows.iloc[-1].stable_rank == pytest.approx(
            float((last[name].double() - base[name].double()).norm() ** 2) / wanted[0] ** 2,
            rel=1e-3,
        )
        assert all(math.isnan(value) for value in rows.sigma_2.tolist()[:-1])


def test_predict_and_extract_write_what_the_commands_write(
    run: Run, opened: api.Run, tmp_path: Path
) -> None:
    """The same bytes, from an opened run, from its place and from its factors."""
    told: list[tuple[int, int]] = []
    work = api.Work(("cpu",), on_progress=lambda done, total: told.append((done, total)))
    options = {"target_step": 80, "method": "alpharl"}
    answer = api.predict(opened, tmp_path / "predicted", work=work, **options)
    assert answer.outputs[0].path == str(tmp_path / "predicted")
    assert told[-1][0] == told[-1][1] > 0
    arguments = ("--method", "alpharl", "--target-step", "80", "-o", str(tmp_path / "typed"))
    succeed("predict", *run.arguments(*arguments))
    assert digest(tmp_path / "predicted") == digest(tmp_path / "typed")
    found = api.extract(opened, tmp_path / "factors")
    assert found.num_matrices == len(matrix_names(load_model(run.base)))
    api.predict(tmp_path / "factors", tmp_path / "from-factors", **options)
    assert digest(tmp_path / "from-factors") == digest(tmp_path / "typed")


def test_threads_of_torch_are_left_as_they_were(opened: api.Run) -> None:
    """A notebook's own torch keeps its threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        api.report(opened)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_bad_input_is_an_error_of_ours(run: Run, tmp_path: Path) -> None:
    """One tree of errors; a call that says nothing about where to is a mistake of the caller's."""
    with pytest.raises(TrajectoryError, match="no base"):
        api.open_trajectory(run.root)
    with pytest.raises(AlphaRLError, match="nowhere"):
        api.open_trajectory(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="output, push_to, or both"):
        api.predict(run.root, target_step=80)


def test_a_stopped_call_goes_on(opened: api.Run, tmp_path: Path) -> None:
    """`stop` ends a prediction with nothing at its place; the same call then finishes it."""
    stop = threading.Event()
    work = api.Work(("cpu",), on_progress=lambda done, total: stop.set(), stop=stop)
    with pytest.raises(api.Stopped):
        api.predict(opened, tmp_path / "out", target_step=80, method="ols", work=work)
    assert not (tmp_path / "out").exists()
    api.predict(opened, tmp_path / "out", target_step=80, method="ols")
    assert (tmp_path / "out" / "config.json").is_file()


def test_the_notebook_runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """From the first cell to the last; the predicted model is better than the last observed."""
    for name in [name for name in os.environ if name.startswith("HF_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    NotebookClient(notebook, timeout=300, kernel_name="python3").execute()
    texts = [
        output["data"]["text/plain"]
        for cell in notebook.cells
        for output in cell.get("outputs", [])
        if "text/plain" in output.get("data", {})
    ]
    rows = dict(line.rsplit(maxsplit=3)[:2] for line in texts[-1].splitlines()[1:])
    assert float(rows["predicted"]) > float(rows["last observed"]) + 0.1
    printed = [
        output["text"]
        for cell in notebook.cells
        for output in cell.get("outputs", [])
        if output["output_type"] == "stream" and output["name"] == "stdout"
    ]
    assert printed[-1].split()[:3] == ["README.md", "alpharl.json", "config.json"]
