"""Whatever happens to the bytes of a journal, what it gives is what was written, or a refusal."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from trajectories import Run, command, digest, predict, rank_one_line, write_run

from alpharl_hub.errors import WriteError
from alpharl_hub.output.journal import JOURNAL_NAME, RESULT_FOLDER, Journal
from alpharl_hub.windows import plan

IDENTITY = {"run": [1, 2], "method": "alpharl"}
RECORDS = [(f"window {i}", {"value": i / 3, "text": "ä\n\r\u2028"}) for i in range(6)]
Damage = Callable[[bytes], bytes]


def flip(data: bytes, *, place: float, bit: int) -> bytes:
    """Turn over one bit."""
    found = bytearray(data)
    if found:
        found[int(place * (len(found) - 1))] ^= 1 << bit
    return bytes(found)


def cut(data: bytes, *, begin: float, end: float) -> bytes:
    """Take a piece out, or all that follows a place."""
    first, second = sorted((int(begin * len(data)), int(end * len(data))))
    return data[:first] + data[second:]


def insert(data: bytes, *, place: float, more: bytes) -> bytes:
    """Put bytes in between, or at the end."""
    where = int(place * len(data))
    return data[:where] + more + data[where:]


def move_lines(data: bytes, *, order: Sequence[int]) -> bytes:
    """Leave lines in another order: some of them, and some twice."""
    lines = data.splitlines(keepends=True)
    return b"".join(lines[i % len(lines)] for i in order) if lines else data


def journal_bytes(records: Sequence[tuple[str, object]]) -> bytes:
    """What a run with this identity leaves."""
    with TemporaryDirectory() as folder:
        journal = Journal(Path(folder), IDENTITY)
        for key, result in records:
            journal.record(key, result)
        journal.close()
        return (Path(folder) / JOURNAL_NAME).read_bytes()


# Lines with good checksums of a run with the same identity and other results.
OTHER = journal_bytes([(key, {"value": -1.0, "text": "other"}) for key, _ in RECORDS])
OTHER_LINES = OTHER.splitlines(keepends=True)
SHARE = st.floats(0, 1)
DAMAGE: st.SearchStrategy[Damage] = st.one_of(
    st.builds(partial, st.just(flip), place=SHARE, bit=st.integers(0, 7)),
    st.builds(partial, st.just(cut), begin=SHARE, end=SHARE),
    st.builds(partial, st.just(cut), begin=SHARE, end=st.just(1.0)),
    st.builds(partial, st.just(insert), place=SHARE, more=st.binary(max_size=40)),
    st.builds(partial, st.just(insert), place=st.just(1.0), more=st.sampled_from(OTHER_LINES)),
    st.builds(partial, st.just(insert), place=st.just(1.0), more=st.just(b"\0" * 4096)),
    st.builds(partial, st.just(move_lines), order=st.lists(st.integers(0, 6), max_size=8)),
)


@settings(max_examples=100, deadline=None)
@given(st.lists(DAMAGE, min_size=1, max_size=3))
def test_a_damaged_journal_gives_what_was_written_or_nothing(damage: Sequence[Damage]) -> None:
    """Bits, cuts, garbage, doubled and moved lines, lines of another journal: what is read is the
    beginning of what was recorded; and what is recorded next is read again.
    """
    data = journal_bytes(RECORDS)
    for change in damage:
        data = change(data)
    with TemporaryDirectory() as name:
        folder = Path(name)
        Journal(folder, IDENTITY).close()
        (folder / JOURNAL_NAME).write_bytes(data)
        journal = Journal(folder, IDENTITY)
        found = list(journal.results.items())
        assert found == RECORDS[: len(found)]
        journal.record("next", 1)
        journal.close()
        again = Journal(folder, IDENTITY)
        again.close()
        assert list(again.results.items()) == [*found, ("next", 1)]


def test_a_journal_of_another_version_is_refused_by_name(tmp_path: Path) -> None:
    """The line says what it was, what it is, and what to do; the journal stays for that version."""
    journal = Journal(tmp_path, {"versions": {"tool": "1.0", "torch": "2.6"}})
    journal.record("window 0", 1)
    journal.close()
    before = (tmp_path / JOURNAL_NAME).read_bytes()
    wanted = r'versions.tool was "1.0", is "1.1"\); start with those to go on, or delete the folder'
    with pytest.raises(WriteError, match=wanted):
        Journal(tmp_path, {"versions": {"tool": "1.1", "torch": "2.6"}})
    assert (tmp_path / JOURNAL_NAME).read_bytes() == before


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A tiny run of two layers."""
    return write_run(tmp_path_factory.mktemp("damage"), (10, 20, 30, 40), rank_one_line())


class Interrupt(BaseException):
    """Stands for whatever ends a run."""


@pytest.fixture(scope="module")
def interrupted(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which a prediction was begun, with the same windows, and its digest when whole.

    All of its windows but the last are done.
    """
    folder = tmp_path_factory.mktemp("interrupted")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plan, "WINDOW_BYTES", 2000)
        record = Journal.record

        def stop_at_last(journal: Journal, key: str, result: object) -> None:
            if len(journal.results) == 8:
                raise Interrupt
            record(journal, key, result)

        patch.setattr(Journal, "record", stop_at_last)
        arguments = run.arguments("-o", str(folder / "out"), "--target-step", "90")
        with pytest.raises(Interrupt):
            command("predict", *arguments)
    return folder


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(damage=DAMAGE)
def test_a_run_goes_on_from_a_damaged_journal_to_the_same_bytes(
    run: Run, interrupted: Path, damage: Damage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was done and is not believed any more is done again: the bytes are the right ones."""
    monkeypatch.setattr(plan, "WINDOW_BYTES", 2000)
    with TemporaryDirectory() as name:
        wanted, folder = Path(name) / "whole", Path(name) / "found"
        shutil.copytree(interrupted, folder)
        journal = folder / ".out.alpharl-hub" / JOURNAL_NAME
        assert (journal.parent / RESULT_FOLDER).is_dir()
        journal.write_bytes(damage(journal.read_bytes()))
        predict(run, wanted / "out", "--target-step", "90")
        predict(run, folder / "out", "--target-step", "90")
        assert digest(folder / "out") == digest(wanted / "out")
        for path in (folder / "out").iterdir():
            assert path.read_bytes() == (wanted / "out" / path.name).read_bytes()
