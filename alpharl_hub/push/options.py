"""What a push is asked to be, whom it tells, and what it answers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from alpharl_hub.sources.patience import Patience

DEFAULT_BRANCH = "main"


@dataclass(frozen=True)
class PushOptions:
    """What a user says about a push.

    `private`: True for --private, False for --public, None for neither. `overwrite`: replace what
    this tool has not made. `dry_run`: check everything, change nothing. `create_pr`: open a pull
    request on a repo that is there, anybody's, and leave its branches as they are.
    """

    private: bool | None = None
    branch: str = DEFAULT_BRANCH
    commit_message: str | None = None
    overwrite: bool = False
    dry_run: bool = False
    create_pr: bool = False


def _ignore_notice(message: str) -> None:
    """Nobody wants to know."""


def _ignore_upload(filename: str, num_bytes: int) -> None:
    """Nobody wants to know."""


@dataclass(frozen=True)
class PushHooks:
    """Who is told what, from the thread that pushes; `patience` waits for a busy Hub."""

    on_notice: Callable[[str], None] = _ignore_notice
    on_uploaded: Callable[[str, int], None] = _ignore_upload
    patience: Patience = field(default_factory=Patience)


@dataclass(frozen=True)
class PushResult:
    """Where it is; `commit` is None after a dry run. Names of files added and deleted.

    Of a pull request `url` is its page and `branch` its ref, such as refs/pr/3. `changed` is False
    where the branch held it all: then nothing is added, deleted or asked for, and `url`, `commit`
    and `branch` are those of the repo as it was.
    """

    url: str
    commit: str | None
    branch: str
    added: tuple[str, ...]
    deleted: tuple[str, ...]
    changed: bool = True
