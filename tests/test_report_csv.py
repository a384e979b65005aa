"""`report --csv`: a table that reads back to the same numbers, and how its file is written."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import click
import numpy as np
import pandas
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alpharl_hub.cli.report_files import report_file_options, write_report_files
from alpharl_hub.drawing.table import table_bytes
from alpharl_hub.errors import WriteError
from alpharl_hub.results import SpectralReport
from tests.report_maker import GROUPS, HOSTILE, STEPS, bare_report, planted_report

FORMULA_SIGNS = "=+-@\uff1d\uff0b\uff0d\uff20"


def rows_of(report: SpectralReport) -> list[dict[str, str]]:
    """Read a table back with the standard library."""
    text = table_bytes(report).decode("utf-8")
    return list(csv.DictReader(io.StringIO(text, newline="")))


def run_command(arguments: list[str], report: SpectralReport | None = None) -> list[Path]:
    """Run a command that has the options and writes the files, as `report` does."""

    @click.command()
    @report_file_options
    def command(**options: Any) -> list[Path]:
        assert report is not None, "the run was read"
        return write_report_files(report, options, "org/run")

    answer: list[Path] = command.main(arguments, standalone_mode=False)
    return answer


def test_there_is_a_row_for_each_matrix_and_step_with_the_same_bits() -> None:
    """Names, layers, modules and steps are those of the report; numbers read back exactly."""
    report = planted_report()
    rows = rows_of(report)
    assert len(rows) == 3 * len(GROUPS) * len(STEPS)
    at = {(row["name"], int(row["step"])): row for row in rows}
    for matrix in report.modules:
        for t, step in enumerate(STEPS):
            row = at[matrix.name, step]
            assert matrix.name == f"model.layers.{row['layer']}.{row['module']}.weight"
            assert (row["num_rows"], row["num_columns"]) == ("64", "32")
            assert float(row["sigma"]) == matrix.sigma[t]
            assert float(row["frobenius"]) == matrix.frobenius[t]
            assert float(row["rank1_share"]) == matrix.rank1_share[t]
            assert row["drift_deg"] == ("" if matrix.drift[t] is None else repr(matrix.drift[t]))
            assert row["q2_step"] == ("" if matrix.q2_step is None else repr(matrix.q2_step))
            assert float(row["q2_score"]) == matrix.q2_score
            assert float(row["r2_step_in_sample"]) == matrix.r2_step_in_sample
            assert report.score_line is not None
            assert float(row["score"]) == report.score_line.scores[t]


def test_further_singular_values_stand_at_the_last_step() -> None:
    """sigma_2 and further are known there only, and empty elsewhere."""
    report = planted_report()
    for matrix in report.modules:
        *early, last = [row for row in rows_of(report) if row["name"] == matrix.name]
        found = [float(last[f"sigma_{k}"]) for k in (2, 3, 4)]
        np.testing.assert_array_equal(found, matrix.singular_values[1:])
        assert {row[f"sigma_{k}"] for row in early for k in (2, 3, 4)} == {""}


def test_pandas_reads_it_at_once(tmp_path: Path) -> None:
    """Types are guessed right, the unknown is NaN, and grouped medians are those of numpy."""
    report = planted_report()
    path = tmp_path / "report.csv"
    path.write_bytes(table_bytes(report))
    frame = pandas.read_csv(path)
    assert frame["step"].dtype == frame["layer"].dtype == np.int64
    assert frame["sigma"].dtype == frame["q2_step"].dtype == np.float64
    assert frame["drift_deg"].isna().sum() == 1
    medians = frame[frame["step"] == STEPS[-1]].groupby("module")["sigma"].median()
    for group in GROUPS:
        sigmas = [m.sigma[-1] for m in report.modules if m.name.endswith(f"{group}.weight")]
        # The fast parser of older versions misses the last bit.
        assert medians[group] == pytest.approx(np.median(sigmas), rel=1e-14)


def test_what_is_unknown_is_empty() -> None:
    """A matrix that did not move has neither share nor drift, and a run without scores no score."""
    (row,) = (row for row in rows_of(bare_report()) if row["name"] == "layers.0.mlp.up_proj")
    assert (row["sigma"], row["rank1_share"], row["drift_deg"]) == ("0.0", "", "")
    assert (row["score"], row["q2_step"]) == ("", "")


@given(st.text(max_size=12).map(lambda text: f"{text}.mlp") | st.sampled_from(HOSTILE))
@settings(max_examples=60, deadline=None)
def test_no_name_is_computed_or_breaks_a_row(name: str) -> None:
    """Whatever a tensor is called: one line a row, no control character, and never a formula."""
    text = table_bytes(planted_report([name])).decode("utf-8")
    assert len(text.splitlines()) == 1 + len(STEPS)
    assert all(line.isprintable() for line in text.split("\n"))
    for row in rows_of(planted_report([name])):
        assert not row["name"].startswith(tuple(FORMULA_SIGNS))
        assert not row["module"].startswith(tuple(FORMULA_SIGNS))
        if name.isprintable():
            assert row["name"].removeprefix("'") == name.removeprefix("'")


@pytest.mark.parametrize("sign", FORMULA_SIGNS)
def test_formulas_stand_behind_an_apostrophe(sign: str) -> None:
    """Every sign that a spreadsheet computes from is kept, as text."""
    assert {row["name"] for row in rows_of(planted_report([f"{sign}1+1"]))} == {f"'{sign}1+1"}


@pytest.mark.parametrize(
    ("option", "name"), [("--csv", "r.html"), ("--html", "r.csv"), ("--plot", "r.jpg")]
)
def test_a_wrong_suffix_is_a_usage_error(tmp_path: Path, option: str, name: str) -> None:
    """It is told before anything is read, with the suffixes that would do."""
    with pytest.raises(click.BadParameter, match=r"ends in one of \.") as caught:
        run_command([option, str(tmp_path / name)])
    assert caught.value.exit_code == 2


def test_a_place_that_takes_no_file_is_refused_before_reading(tmp_path: Path) -> None:
    """A missing folder, a folder of that name, and a file system that cannot be written."""
    for path, complaint in (
        (tmp_path / "nowhere" / "r.csv", "there is no folder"),
        (Path("/proc/r.csv"), "cannot be written"),
    ):
        with pytest.raises(WriteError, match=complaint):
            run_command(["--csv", str(path)])
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(WriteError, match="exists"):
        run_command(["--csv", str(tmp_path / "folder.csv")])


def test_only_our_own_files_are_replaced(tmp_path: Path) -> None:
    """A second report takes the place of the first; scores of that name stay as they are."""
    own, scores = tmp_path / "own.csv", tmp_path / "scores.csv"
    scores.write_text("step,score\n20,0.5\n")
    first, second = planted_report(), planted_report(["layers.0.mlp.up_proj"])
    assert run_command(["--csv", str(own)], first) == [own]
    assert run_command(["--csv", str(own)], second) == [own]
    assert own.read_bytes() == table_bytes(second)
    with pytest.raises(WriteError, match="did not make it"):
        run_command(["--csv", str(scores)])
    assert scores.read_text() == "step,score\n20,0.5\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["own.csv", "scores.csv"]


def test_page_and_table_are_written_together_and_replaced(tmp_path: Path) -> None:
    """Both files are there, each as the umask lets new files be; a link stays one."""
    table, page, link = tmp_path / "r.csv", tmp_path / "r.html", tmp_path / "link.html"
    link.symlink_to(page)
    for _ in range(2):
        written = run_command(["--csv", str(table), "--html", str(link)], planted_report())
        assert written == [table, page]
    (tmp_path / "plain").touch()
    assert table.stat().st_mode == page.stat().st_mode == (tmp_path / "plain").stat().st_mode
    assert link.is_symlink()
    assert b"org/run" in page.read_bytes()
