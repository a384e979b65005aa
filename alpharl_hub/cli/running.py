"""What every long command shares: signals, progress on stderr, notices, JSON on stdout."""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import click
from tqdm import tqdm

from alpharl_hub import strict_json
from alpharl_hub.cli.inspect_screen import print_notices
from alpharl_hub.cli.predict_screen import print_actions
from alpharl_hub.cli.progress import Pace, peak_memory_bytes
from alpharl_hub.cli.terminal import escape_text, human_bytes, notes_console, print_labelled
from alpharl_hub.manifest import AutoRecord, Notice, TrustRecord

if TYPE_CHECKING:
    from alpharl_hub.results import TensorAction
    from alpharl_hub.windows.streaming import Hooks

_LOG_EVERY_S = 30.0
_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_GOES_ON = "stopped; the same command goes on from here"
_BEGINS_ANEW = "stopped; the same command begins anew"
_MAX_STOPPING_S = 4.0
"""A stalled connection is not waited for: what counts is on the disk already."""


@dataclass
class Progress:
    """How far it is: a bar on a terminal, else a log line every half minute. From any thread."""

    quiet: bool
    clock: Callable[[], float] = time.monotonic
    _pace: Pace = field(default_factory=Pace)
    _is_first: bool = True
    _bar: Any = None
    _last_log_s: float | None = None
    _is_resume_told: bool = False

    def tell_resume(self, num_done: int, num_windows: int) -> None:
        """Say once that an earlier start of this command is gone on with."""
        if not self.quiet and not self._is_resume_told:
            self._is_resume_told = True
            tqdm.write(f"Goes on: {num_done} of {num_windows} windows are done", file=sys.stderr)

    def __call__(self, done_bytes: int, total_bytes: int) -> None:
        """Show how far the reading is."""
        if self.quiet:
            return
        now_s = self.clock()
        self._last_log_s = now_s if self._last_log_s is None else self._last_log_s
        if self._pace.tell(done_bytes, total_bytes, now_s):
            self._is_first = False
        if sys.stderr.isatty():
            self._show_bar(self._words(now_s))
        elif now_s - self._last_log_s >= _LOG_EVERY_S:
            self._last_log_s = now_s
            click.echo(self._words(now_s), err=True)

    def _words(self, now_s: float) -> str:
        return ("" if self._is_first else "next reading: ") + self._pace.words(now_s)

    def _show_bar(self, words: str) -> None:
        if self._bar is None:
            form = "|{bar:20}| {desc}"
            # A terminal that does not tell its size (0 under `script`) would be shown nothing.
            columns, lines = shutil.get_terminal_size()
            self._bar = tqdm(
                desc=words,
                bar_format=form,
                ascii=True,
                leave=False,
                miniters=0,
                ncols=columns,
                nrows=lines,
            )
        self._bar.set_description_str(words, refresh=False)
        self._bar.total = self._pace.total_bytes
        if self._pace.done_bytes < self._bar.n:
            self._bar.reset()
        self._bar.update(self._pace.done_bytes - self._bar.n)
        if self._pace.done_bytes == self._pace.total_bytes:
            self._bar.refresh()  # these words stay, while what follows is done

    def close(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.close()

    def summarise(self) -> None:
        """Say at the end what was read, how fast, and with how much memory."""
        words = self._pace.summary(self.clock())
        if self.quiet or words is None:
            return
        peak_bytes = peak_memory_bytes()
        memory = "" if peak_bytes is None else f"; {human_bytes(peak_bytes)} of memory at most"
        click.echo(f"{words}{memory}", err=True)


@contextmanager
def stop_on_signals(stop: threading.Event, last_words: str = _GOES_ON) -> Iterator[None]:
    """Turn SIGINT and SIGTERM into `stop`; a second one ends the process at once.

    When that ends the block early, the process says `last_words` and ends with 130 (SIGINT) or 143
    (SIGTERM). A block that gets to its end all the same has done all that was asked: then no signal
    has come.

    A thread of its own takes the signals. A handler would run in the main thread between any two
    steps of it, also while that holds the lock of `stop` in a wait, and `stop.set()` would then
    never return.
    """
    received: list[int] = []
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    watcher = threading.Thread(
        target=_watch, args=(reading, stop, received, last_words), daemon=True
    )
    watcher.start()
    wakeup_before = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    before = [signal.signal(number, _leave_to_watcher) for number in _SIGNALS]
    try:
        yield
    except BaseException as error:
        if not received:
            raise
        _say(last_words)
        raise SystemExit(128 + received[0]) from error
    finally:
        for number, handler in zip(_SIGNALS, before, strict=True):
            signal.signal(number, handler)
        signal.set_wakeup_fd(wakeup_before)
        os.close(writing)
        watcher.join()
        os.close(reading)


def _say(text: str) -> None:
    """Tell on stderr, unless nobody takes it: a terminal that is gone must not keep us from ending.

    Ctrl-C reaches all programs of a pipeline, so that `... 2>&1 | tee log` may have lost its end.
    """
    with suppress(OSError):
        if select.select([], [2], [], 0)[1]:
            os.write(2, f"{text}\n".encode())


def _leave_to_watcher(_number: int, _frame: object) -> None:
    """Do nothing: Python has written the signal's number to the pipe already."""


def _watch(reading: int, stop: threading.Event, received: list[int], last_words: str) -> None:
    """Wait for signals, whose numbers come through the pipe, until its other end is closed."""
    timeout_s = None
    while True:
        if not select.select([reading], [], [], timeout_s)[0]:
            _say(last_words)
            os._exit(128 + received[0])
        data = os.read(reading, 1)
        if not data:
            return
        if data[0] not in _SIGNALS:
            continue
        if received:
            os._exit(128 + data[0])
        received.append(data[0])
        stop.set()
        timeout_s = _MAX_STOPPING_S
        _say("stopping; once more to stop at once")


def tell_wait(verbose: bool) -> Callable[[float, str], None]:
    """Return what is told when a busy server is waited for."""

    def tell(seconds: float, reason: str) -> None:
        if verbose or seconds >= 5:
            click.echo(escape_text(f"waiting {seconds:.0f} s: {reason}"), err=True)

    return tell


def show_notices(notices: Sequence[Notice], quiet: bool) -> None:
    """Print notices on stderr unless quiet."""
    if notices and not quiet:
        print_notices(notices, notes_console())


def print_json(answer: object) -> None:
    """Write one strict JSON document on stdout."""
    click.echo(json.dumps(strict_json.to_plain(answer), allow_nan=False, indent=2))


def show_auto(auto: AutoRecord | None, quiet: bool) -> None:
    """Print on stderr what `--method auto` saw and chose."""
    if auto is None or quiet:
        return
    console = notes_console()
    for words in (*auto.words, f"clock: {auto.clock}"):
        print_labelled(console, "auto:", words)


def show_actions(actions: Sequence[TensorAction], quiet: bool) -> None:
    """Print on stderr what was done to which tensors."""
    if actions and not quiet:
        print_actions(actions, notes_console())


def show_trust(trust: TrustRecord | None, quiet: bool) -> None:
    """Print on stderr what is to be thought of it."""
    if trust is not None and not quiet:
        print_labelled(notes_console(), "trust:", trust.verdict)


@dataclass(frozen=True)
class Session:
    """What a long command hands to the library."""

    progress: Progress
    stop: threading.Event

    def hooks(self) -> Hooks:
        """Return what the library calls while it computes; torch gets one thread a worker."""
        from alpharl_hub.windows.streaming import Hooks

        limit_threads()
        return Hooks(self.progress, self.stop, self.progress.tell_resume)


@contextmanager
def running(options: Mapping[str, Any], keeps_work: bool = True) -> Iterator[Session]:
    """Run a long command: signals stop it, and its progress is taken away at the end.

    `keeps_work`: the same command goes on from where it was stopped.
    """
    session = Session(Progress(options["quiet"]), threading.Event())
    with stop_on_signals(session.stop, _GOES_ON if keeps_work else _BEGINS_ANEW):
        try:
            yield session
        finally:
            session.progress.close()
        session.progress.summarise()


def limit_threads() -> None:
    """Give torch one thread per worker: its own pool fights with ours over the cores.

    With two threads on two virtual cores small operations took 8 ms instead of 10 us at random
    (libgomp spins while its partner is not scheduled).
    """
    import torch

    torch.set_num_threads(1)
