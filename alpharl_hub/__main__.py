"""`alpharl-hub` and `python -m alpharl_hub`, which hear signals before anything is imported."""

from __future__ import annotations

import atexit
import os
import signal
from contextlib import suppress


def main() -> None:
    """Run the command line."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _leave)
    # Registered first, it is called last.
    atexit.register(_end_in_peace)
    from alpharl_hub.cli import main as command_line
    from alpharl_hub.cli.terminal import escape_words_of_libraries

    escape_words_of_libraries()
    command_line(prog_name="alpharl-hub")


def _leave(number: int, _frame: object) -> None:
    """End at once: until a command listens to signals itself, only imports are going on.

    An exception would not do. Imported in the wrong moment a package takes it for its own failure
    and goes on without a part of itself (seen with numpy, which torch can do without).
    """
    with suppress(OSError):  # nobody may listen any more, and that must not keep us from ending
        os.write(2, b"stopped\n")
    os._exit(128 + number)


def _end_in_peace() -> None:
    """Let no signal change how a command has ended, while Python takes its modules down.

    It would put back the system's handlers first, so that one that comes then kills a process
    which has done everything (CPython's `_PySignal_Fini`, which leaves ignored ones alone; with
    torch that lasts for a good part of a second).
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


if __name__ == "__main__":
    main()
