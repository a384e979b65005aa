"""What a kill costs, what an upload holds up, who may write to an output, and what is told."""

from __future__ import annotations

import queue
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hub_fixtures import ALICE, add_base, add_branches, served_hub
from killing import EXITS, MAX_STOPPING_S, Victims, uploads, victims_for
from test_kills import RUN, STEPS, model_arguments, slow_down, tensors_at
from trajectories import write_run

from alpharl_hub.cli.running import Progress
from alpharl_hub.executors.finisher import Finisher
from alpharl_hub.executors.in_hand import InHand
from alpharl_hub.local_hub import Fault, LocalHub
from alpharl_hub.output.journal import Journal, open_journal
from alpharl_hub.output.lock import HeldError
from alpharl_hub.windows.plan import Window


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalHub]:
    """A Hub with a run of small checkpoints in three shards."""
    folder = tmp_path_factory.mktemp("held")
    run = write_run(folder / "run", STEPS, tensors_at, num_shards=3)
    with served_hub(folder / "hub") as found:
        add_base(found, "alice/base", run)
        add_branches(found, "alice/run", run)
        yield found


@pytest.fixture(scope="module")
def victims(hub: LocalHub, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Victims]:
    """Commands of alice's."""
    with victims_for(tmp_path_factory.mktemp("victims"), hub, ALICE) as found:
        yield found


@pytest.fixture(autouse=True)
def quiet_hub(hub: LocalHub, victims: Victims) -> None:
    """Begin with an empty log, without faults, and with nothing running."""
    victims.clear()
    hub.clear_log()
    hub.clear_faults()


def journalled(victims: Victims) -> str:
    """The journal of a run without an output folder."""
    return "".join(p.read_text() for p in victims.folder.glob(".alpharl-hub/*/journal.jsonl"))


def test_an_upload_does_not_hold_back_the_journal(hub: LocalHub, victims: Victims) -> None:
    """While the first shard is on its way all windows get into the journal: a kill then repeats
    none of them; Ctrl-C ends it within five seconds, and the next start says how far it was.
    """
    arguments = [*model_arguments(step=150), "--push-to", "alice/aside"]
    hub.add_fault(Fault("/upload/", "slow", times=100, seconds=20, method="PUT"))
    wanted = [f"model.layers.{i}.mlp" for i in range(12)]
    victim = victims.start(arguments)
    assert victim.wait_until(lambda: all(name in journalled(victims) for name in wanted))
    assert uploads(hub) == []
    assert victim.stop(signal.SIGKILL)[0].code == -signal.SIGKILL
    hub.clear_log()
    victim = victims.start(arguments)
    assert victim.wait_until(lambda: "Goes on: " in victim.stderr.read_text())
    ended, seconds = victim.stop(signal.SIGINT)
    assert ended.code == EXITS[signal.SIGINT]
    assert seconds < MAX_STOPPING_S
    assert "windows are done" in ended.stderr
    hub.clear_faults()
    ended = victims.run([*arguments, "-q"])
    assert (ended.code, ended.stderr) == (0, "")
    middle = hub.refs("alice/run")["refs/heads/step_10"]
    ranges = [r.range for r in hub.log if r.revision == middle and r.range]
    # A matrix has 24,576 bytes; what is less is a header or a sample.
    assert [first for first, last in ranges if last - first > 20_000] == []
    assert len(uploads(hub)) == 3


def test_stopping_says_what_the_same_command_will_do(hub: LocalHub, victims: Victims) -> None:
    """What keeps nothing does not promise to go on."""
    slow_down(hub, seconds=0.3)
    for command, words in (
        (["report", *RUN], "the same command begins anew"),
        (["extract", *RUN, "-o", "factors"], "the same command goes on from here"),
    ):
        hub.clear_log()
        victim = victims.start(command)
        assert victim.wait_until(lambda: any("/resolve/" in record.path for record in hub.log))
        ended, _ = victim.stop(signal.SIGTERM)
        assert ended.code == EXITS[signal.SIGTERM]
        assert words in ended.stderr.splitlines()[-1]


def test_two_work_folders_and_one_output(tmp_path: Path) -> None:
    """The second is refused at its start, wherever it works; a lock that was left is none."""
    output, beside = tmp_path / "out", tmp_path / ".out.alpharl-hub"
    with open_journal(tmp_path / "a", {"run": 1}, output):
        for work in (tmp_path / "b", beside):
            with (
                pytest.raises(HeldError, match="another process works there"),
                open_journal(work, {"run": 1}, output),
            ):
                raise AssertionError("it was let in")
        assert not (tmp_path / "b").exists()
    assert list(tmp_path.iterdir()) == []
    beside.mkdir()
    (beside / "lock").touch()
    with open_journal(tmp_path / "b", {"run": 1}, output):
        assert (tmp_path / "b").exists()
    assert list(tmp_path.iterdir()) == []


def test_unfinished_work_beside_the_output_stays(tmp_path: Path) -> None:
    """A run that works elsewhere leaves what another start left beside the same output."""
    output, beside = tmp_path / "out", tmp_path / ".out.alpharl-hub"
    journal = Journal(beside, {"run": 1})
    journal.record("window 0", 1)
    journal.close()
    with open_journal(tmp_path / "b", {"run": 1}, output):
        assert (tmp_path / "b").exists()
    with open_journal(beside, {"run": 1}, output) as journal:
        assert journal.results == {"window 0": 1}


def test_what_is_forgotten_is_done_again(tmp_path: Path) -> None:
    """A result that is taken back is gone on the next start, and may be given again."""
    journal = Journal(tmp_path, {"run": 1})
    for number in range(3):
        journal.record(f"window {number}", number)
    journal.forget("window 1")
    journal.close()
    journal = Journal(tmp_path, {"run": 1})
    assert journal.results == {"window 0": 0, "window 2": 2}
    journal.record("window 1", 7)
    journal.close()
    journal = Journal(tmp_path, {"run": 1})
    journal.close()
    assert journal.results == {"window 0": 0, "window 1": 7, "window 2": 2}


class Positions(Window):
    """A window that is read from so many checkpoints."""

    def __init__(self, index: int, count: int) -> None:
        super().__init__(index, ())
        object.__setattr__(self, "count", count)

    @property
    def positions(self) -> tuple[int, ...]:
        """As many as were asked for."""
        return tuple(range(getattr(self, "count")))  # noqa: B009


def is_let_through(in_hand: InHand, window: Window) -> bool:
    """Whether a window may be read to its end now."""
    asked: queue.SimpleQueue[None] = queue.SimpleQueue()

    def is_cancelled() -> bool:
        asked.put(None)
        return True

    in_hand.wait_to_end(window, is_cancelled)
    return asked.empty()


def test_a_window_ends_when_the_one_before_it_is_kept() -> None:
    """Of two windows that one worker has begun the second waits before its last checkpoint; copies,
    read from one checkpoint, may be one more; where nothing is kept nobody waits.
    """
    windows = [Positions(i, 5) for i in range(3)]
    in_hand, free = InHand(threading.Event(), True), InHand(threading.Event(), False)
    for one in (in_hand, free):
        for window in (*windows, windows[0]):
            one.begin(window)
    assert [is_let_through(in_hand, w) for w in windows] == [True, False, False]
    assert [is_let_through(free, w) for w in windows] == [True, True, True]
    in_hand.kept(windows[0])
    assert [is_let_through(in_hand, w) for w in windows[1:]] == [True, False]
    copy = Positions(1, 1)
    assert is_let_through(in_hand, copy)
    assert not is_let_through(in_hand, Positions(2, 5))


def test_finisher_hands_back_what_went_wrong() -> None:
    """Calls are made in order; after one that fails none is, and its error comes out."""
    made: list[int] = []

    def call(number: int) -> None:
        made.append(number)
        if number == 2:
            raise OSError("full")

    finisher = Finisher()
    for number in range(3):
        finisher.add(lambda number=number: call(number))
    with pytest.raises(OSError, match="full"):
        finisher.wait()
    with pytest.raises(OSError, match="full"):
        finisher.add(lambda: call(9))
    finisher.close()
    assert made == [0, 1, 2]
    idle = Finisher()
    idle.wait()
    idle.close()


def test_going_on_is_told_once_unless_quiet(capsys: pytest.CaptureFixture[str]) -> None:
    """One line on stderr, and with --quiet none."""
    progress, silent = Progress(False), Progress(True)
    for _ in range(2):
        progress.tell_resume(12, 40)
        silent.tell_resume(12, 40)
    assert capsys.readouterr() == ("", "Goes on: 12 of 40 windows are done\n")
