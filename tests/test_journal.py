"""The work folder and its journal: what survives, what is refused, what is cleared away."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from alpharl_hub.errors import FitError, ResourceError, SourceError, WriteError
from alpharl_hub.output.folder import check_disk, check_output, publish
from alpharl_hub.output.journal import JOURNAL_NAME, RESULT_FOLDER, Journal, open_journal

IDENTITY = {"run": {"steps": [1, 2]}, "method": "alpharl"}


def fill(folder: Path, num_results: int = 3) -> Path:
    """Leave a journal with some results behind; gives its path."""
    journal = Journal(folder, IDENTITY)
    for i in range(num_results):
        journal.record(f"window {i}", {"value": i / 3, "text": "ä\n\r\u2028"})
    journal.close()
    return folder / JOURNAL_NAME


def read(folder: Path) -> dict[str, object]:
    """Open a journal again and give its results."""
    journal = Journal(folder, IDENTITY)
    journal.close()
    return journal.results


def test_results_come_back(tmp_path: Path) -> None:
    """What was recorded is there on the next start, to the bit."""
    fill(tmp_path / "work")
    wanted = {f"window {i}": {"value": i / 3, "text": "ä\n\r\u2028"} for i in range(3)}
    assert read(tmp_path / "work") == wanted


def test_every_truncation_keeps_the_whole_lines(tmp_path: Path) -> None:
    """Cut at any byte, the journal gives the results whose lines are whole, and can go on."""
    path = fill(tmp_path)
    data = path.read_bytes()
    ends = [i + 1 for i, byte in enumerate(data) if byte == ord("\n")]
    for length in sorted({*range(0, len(data), 9), *ends, *(end - 1 for end in ends)}):
        path.write_bytes(data[:length])
        num_whole = max(0, sum(end <= length for end in ends) - 1)
        assert list(read(tmp_path)) == [f"window {i}" for i in range(num_whole)]
        journal = Journal(tmp_path, IDENTITY)
        journal.record("window 9", None)
        journal.close()
        assert list(read(tmp_path))[-1] == "window 9"


@pytest.mark.parametrize("line", [0, 1, 3])
def test_damage_drops_a_line_and_what_follows(tmp_path: Path, line: int) -> None:
    """A line whose checksum does not hold ends the journal; without its first line it is new."""
    path = fill(tmp_path)
    lines = path.read_bytes().splitlines(keepends=True)
    lines[line] = lines[line].replace(b"e", b"f", 1)
    path.write_bytes(b"".join(lines))
    assert len(read(tmp_path)) == max(0, line - 1)


def test_other_runs_are_refused_by_what_differs(tmp_path: Path) -> None:
    """A journal with results of another run is refused; the message shows both values."""
    fill(tmp_path)
    with pytest.raises(WriteError, match=r'method was "alpharl", is "linear"'):
        Journal(tmp_path, {**IDENTITY, "method": "linear"})
    with pytest.raises(WriteError, match=r"\(device was null, is 1; run\.steps was \[1, 2\], is 7"):
        Journal(tmp_path, {**IDENTITY, "device": 1, "run": {"steps": 7}})
    assert len(read(tmp_path)) == 3


def test_journal_without_results_is_no_other_run(tmp_path: Path) -> None:
    """A start that was killed before its first result binds nobody, and leaves no file behind."""
    fill(tmp_path, num_results=0)
    (tmp_path / RESULT_FOLDER / "stale.partial").touch()
    journal = Journal(tmp_path, {**IDENTITY, "method": "linear"})
    journal.close()
    assert journal.results == {}
    assert os.listdir(tmp_path / RESULT_FOLDER) == []


def test_results_without_their_bytes_do_not_count(tmp_path: Path) -> None:
    """When the folder of results is gone (it was published), its windows are not done."""
    fill(tmp_path)
    (tmp_path / RESULT_FOLDER).rmdir()
    assert read(tmp_path) == {}


def test_folder_has_one_holder(tmp_path: Path) -> None:
    """While one journal is open a second one is refused; afterwards it is not."""
    first = Journal(tmp_path, IDENTITY)
    with pytest.raises(WriteError, match="another process works there"):
        Journal(tmp_path, IDENTITY)
    first.close()
    Journal(tmp_path, IDENTITY).close()


def test_folder_goes_when_done(tmp_path: Path) -> None:
    """After success nothing of a work folder is left."""
    with open_journal(tmp_path / "work", IDENTITY) as journal:
        journal.record("window 0", 1)
    assert os.listdir(tmp_path) == []


def test_work_dir_of_the_user_keeps_what_is_his(tmp_path: Path) -> None:
    """Other things in a --work-dir stay, whatever happens to the run."""
    (tmp_path / "thesis.tex").write_text("all my work")
    (tmp_path / "photos").mkdir()
    with open_journal(tmp_path, IDENTITY) as journal:
        journal.record("window 0", 1)
    interrupt(tmp_path, FitError("no"), num_results=0)
    assert sorted(os.listdir(tmp_path)) == ["photos", "thesis.tex"]


def test_result_folder_of_somebody_else_is_refused(tmp_path: Path) -> None:
    """A --work-dir that has a folder of the name of ours is not written to."""
    (tmp_path / RESULT_FOLDER).mkdir()
    (tmp_path / RESULT_FOLDER / "mine.txt").touch()
    with pytest.raises(WriteError, match="not made by this tool"):
        Journal(tmp_path, IDENTITY)
    assert os.listdir(tmp_path) == [RESULT_FOLDER]


def interrupt(folder: Path, error: BaseException, num_results: int) -> None:
    """Leave a work folder by an error after some results."""

    def work() -> None:
        with open_journal(folder, IDENTITY) as journal:
            for i in range(num_results):
                journal.record(f"window {i}", i)
            raise error

    with pytest.raises(type(error)):
        work()


@pytest.mark.parametrize("error", [SourceError("gone"), KeyboardInterrupt()])
def test_folder_stays_for_what_may_pass(tmp_path: Path, error: BaseException) -> None:
    """After an interruption the results stay; when there are none yet the folder goes."""
    interrupt(tmp_path / "work", error, num_results=1)
    assert read(tmp_path / "work") == {"window 0": 0}
    interrupt(tmp_path / "none", error, num_results=0)
    assert not (tmp_path / "none").exists()


def test_folder_goes_after_an_error_that_would_return(tmp_path: Path) -> None:
    """A fit without an answer leaves nothing that would refuse the next, other start."""
    interrupt(tmp_path / "work", FitError("NaN"), num_results=1)
    assert os.listdir(tmp_path) == []


def test_work_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    """A file in the way of the folder is a line of ours."""
    (tmp_path / "file").touch()
    with pytest.raises(WriteError, match="file/work: cannot be written"):
        Journal(tmp_path / "file" / "work", IDENTITY)


def make_result(folder: Path) -> Path:
    """A finished result."""
    folder.mkdir(parents=True)
    (folder / "alpharl.json").write_text("new")
    return folder


def test_publish_replaces_only_when_told(tmp_path: Path) -> None:
    """A folder that is not empty is kept, or with overwrite swapped as a whole."""
    result, output = make_result(tmp_path / "work"), tmp_path / "deep" / "out"
    publish(result, output, overwrite=False)
    assert os.listdir(output) == ["alpharl.json"]
    (output / "old").touch()
    result = make_result(tmp_path / "work")
    with pytest.raises(WriteError, match="--overwrite"):
        publish(result, output, overwrite=False)
    assert sorted(os.listdir(output)) == ["alpharl.json", "old"]
    publish(result, output, overwrite=True)
    assert os.listdir(output) == ["alpharl.json"]
    assert os.listdir(output.parent) == ["out"]


def test_what_is_not_ours_is_never_replaced(tmp_path: Path) -> None:
    """A folder without our manifest (the run itself, by mistake) stays, --overwrite or not."""
    (tmp_path / "run" / "checkpoint-10").mkdir(parents=True)
    for overwrite in (False, True):
        with pytest.raises(WriteError, match="this tool did not make it"):
            check_output(tmp_path / "run", overwrite)
    result = make_result(tmp_path / "work")
    with pytest.raises(WriteError, match="this tool did not make it"):
        publish(result, tmp_path / "run", overwrite=True)
    assert os.listdir(tmp_path / "run") == ["checkpoint-10"]


def test_publish_into_an_empty_folder_and_through_a_link(tmp_path: Path) -> None:
    """An empty folder is taken; a link to a folder stays a link, and its target is filled."""
    (tmp_path / "empty").mkdir()
    publish(make_result(tmp_path / "work"), tmp_path / "empty", overwrite=False)
    assert os.listdir(tmp_path / "empty") == ["alpharl.json"]
    (tmp_path / "target").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "target")
    publish(make_result(tmp_path / "work"), tmp_path / "link", overwrite=False)
    assert (tmp_path / "link").is_symlink()
    assert os.listdir(tmp_path / "target") == ["alpharl.json"]


def test_publish_into_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """-o . means the folder that one stands in, when it is empty."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    publish(make_result(tmp_path / "work"), Path("."), overwrite=False)
    assert os.listdir(tmp_path / "here") == ["alpharl.json"]


def test_output_that_is_a_file_is_refused(tmp_path: Path) -> None:
    """Before anything is read."""
    (tmp_path / "file").touch()
    for overwrite in (False, True):
        with pytest.raises(WriteError, match="is no folder"):
            check_output(tmp_path / "file", overwrite)


def test_disk_that_is_too_small_is_refused(tmp_path: Path) -> None:
    """More bytes than the disk has free are refused with both numbers, wherever below it."""
    with pytest.raises(ResourceError, match="1e\\+06 GB are needed"):
        check_disk(tmp_path / "not" / "there", 10**15)
    check_disk(tmp_path / "not" / "there", 1000)
