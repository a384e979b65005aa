"""Whether the bytes of a whole file are those that the Hub has a digest of."""

from __future__ import annotations

import hashlib
import re

from alpharl_hub.errors import RangeReadError

_SHA1 = re.compile(r"[0-9a-f]{40}")


def check_content(content: memoryview, sha256: str | None, git_oid: str | None, what: str) -> None:
    """Compare a whole file with its SHA-256 (large files), or with git's name for it (small ones).

    Raises:
        RangeReadError: it is another content.
    """
    if sha256 is not None:
        require_same(hashlib.sha256(content).hexdigest(), sha256, what)
    elif git_oid is not None and _SHA1.fullmatch(git_oid):
        # https://git-scm.com/book/en/v2/Git-Internals-Git-Objects
        found = hashlib.sha1(b"blob %d\0" % len(content), usedforsecurity=False)
        found.update(content)
        require_same(found.hexdigest(), git_oid, what)


def require_same(found: str, expected: str, what: str) -> None:
    """Raise RangeReadError unless two digests are equal."""
    if found != expected:
        raise RangeReadError(
            f"{what}: its bytes are not those that the Hub has a checksum of; a proxy, a mirror or "
            "a disk has changed them, read it from elsewhere"
        )
