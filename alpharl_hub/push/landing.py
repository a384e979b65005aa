"""What must be in a commit after a push, and whether it is."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from alpharl_hub.errors import PushError
from alpharl_hub.push.hub_target import RemoteFile, UploadedShard


@dataclass(frozen=True)
class ExpectedFile:
    """What a file must be in the commit; `git_oid` is None for a weight file, always in LFS."""

    num_bytes: int
    sha256: str
    git_oid: str | None

    def is_met_by(self, found: RemoteFile | None) -> bool:
        """Whether a file of a commit is this one."""
        if found is None or found.is_folder or found.num_bytes != self.num_bytes:
            return False
        if found.sha256 is not None:
            return found.sha256 == self.sha256
        return found.git_oid == self.git_oid


@dataclass(frozen=True)
class Expected:
    """The files that a commit must hold, by name, and those that it must not."""

    files: Mapping[str, ExpectedFile]
    deleted: Sequence[str]

    def is_met_by(self, found: Mapping[str, RemoteFile]) -> bool:
        """Whether a commit with these files is the one that was wanted."""
        return not self.differing(found)

    def differing(self, found: Mapping[str, RemoteFile]) -> list[str]:
        """Name what is missing, other than it must be, or left over."""
        wrong = [name for name, file in self.files.items() if not file.is_met_by(found.get(name))]
        return [*wrong, *(name for name in self.deleted if name in found)]

    def require(self, found: Mapping[str, RemoteFile], repo: str) -> None:
        """Make sure that a commit holds what was sent.

        Raises:
            PushError: it does not.
        """
        differing = self.differing(found)
        if differing:
            names = ", ".join(differing[:3])
            raise PushError(f"{repo}: the Hub does not hold what was sent ({names}); push again")


def expect(
    uploaded: Sequence[UploadedShard],
    other_files: Mapping[str, bytes | Path],
    deleted: Sequence[str],
) -> Expected:
    """Say what a commit of these files must hold."""
    files = {s.filename: ExpectedFile(s.num_bytes, s.sha256, None) for s in uploaded}
    files |= {name: _expect_small(data) for name, data in other_files.items()}
    return Expected(files, deleted)


def _expect_small(data: bytes | Path) -> ExpectedFile:
    content = data if isinstance(data, bytes) else data.read_bytes()
    # https://git-scm.com/book/en/v2/Git-Internals-Git-Objects
    blob = hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False)
    return ExpectedFile(len(content), hashlib.sha256(content).hexdigest(), blob.hexdigest())
