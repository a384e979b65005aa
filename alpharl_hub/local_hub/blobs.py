"""File contents on disk, named by their SHA-256, and what a commit knows of each file."""

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

# The Hub's own limit for files kept in git: https://huggingface.co/docs/hub/repositories-storage-limits
MAX_REGULAR_BYTES = 10 * 1024**2
_LFS_ENDINGS = (
    ".safetensors .bin .pt .pth .ckpt .gguf .onnx .h5 .msgpack .npy .npz .parquet .arrow "
    ".model .zip .gz .tar .tgz .zst .pkl .pickle .joblib"
)
LFS_SUFFIXES = tuple(_LFS_ENDINGS.split())
GIT_ATTRIBUTES = "".join(
    f"*{suffix} filter=lfs diff=lfs merge=lfs -text\n" for suffix in LFS_SUFFIXES
).encode()


@dataclass(frozen=True)
class FileEntry:
    """One file of a commit; `git_oid` is the name of its blob, or of its LFS pointer, in git."""

    size_bytes: int
    sha256: str
    git_oid: str
    is_lfs: bool

    @property
    def etag(self) -> str:
        """The name of the content: SHA-256 of an LFS file, git blob id of a regular one."""
        return self.sha256 if self.is_lfs else self.git_oid

    @property
    def pointer_bytes(self) -> int:
        """Size of the LFS pointer that git keeps in place of the file."""
        return len(_lfs_pointer(self.sha256, self.size_bytes))


@dataclass(frozen=True)
class Received:
    """Bytes that arrived and lie in a temporary file."""

    path: Path
    size_bytes: int
    sha256: str
    md5: str


def belongs_in_lfs(path: str, size_bytes: int) -> bool:
    """Say whether the Hub keeps a file of this name and size in LFS."""
    return size_bytes > 0 and (path.endswith(LFS_SUFFIXES) or size_bytes > MAX_REGULAR_BYTES)


def lfs_entry(sha256: str, size_bytes: int) -> FileEntry:
    """Describe a file kept in LFS."""
    return FileEntry(size_bytes, sha256, _git_oid(_lfs_pointer(sha256, size_bytes)), is_lfs=True)


class BlobStore:
    """Contents under `root/blobs`; unfinished uploads, until the next start, in `root/incoming`."""

    def __init__(self, root: Path) -> None:
        self._blobs = root / "blobs"
        self.incoming = root / "incoming"
        self._blobs.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(self.incoming, ignore_errors=True)
        self.incoming.mkdir()

    def path_of(self, sha256: str) -> Path:
        """Return where a content lies, or would lie."""
        return self._blobs / sha256[:2] / sha256

    def size_of(self, sha256: str) -> int | None:
        """Return the size of a content in bytes, None when it is not here."""
        path = self.path_of(sha256)
        return path.stat().st_size if path.is_file() else None

    def receive(self, pieces: Iterable[bytes]) -> Received:
        """Write pieces to a temporary file, hashing on the way."""
        sha256, md5, size_bytes = hashlib.sha256(), hashlib.md5(usedforsecurity=False), 0
        handle, name = tempfile.mkstemp(dir=self.incoming)
        with os.fdopen(handle, "wb") as file:
            for piece in pieces:
                file.write(piece)
                sha256.update(piece)
                md5.update(piece)
                size_bytes += len(piece)
        return Received(Path(name), size_bytes, sha256.hexdigest(), md5.hexdigest())

    def adopt(self, received: Received) -> None:
        """Give a received file its final name."""
        target = self.path_of(received.sha256)
        target.parent.mkdir(exist_ok=True)
        received.path.replace(target)

    def add(self, path_in_repo: str, content: bytes | Path) -> FileEntry:
        """Take in bytes or a file (by hard link where the disk allows) and describe it."""
        if isinstance(content, bytes):
            self.adopt(received := self.receive([content]))
            sha256, size_bytes = received.sha256, received.size_bytes
        else:
            sha256, size_bytes = self._link(content), content.stat().st_size
        if belongs_in_lfs(path_in_repo, size_bytes):
            return lfs_entry(sha256, size_bytes)
        git_oid = _git_oid(self.path_of(sha256).read_bytes())
        return FileEntry(size_bytes, sha256, git_oid, is_lfs=False)

    def _link(self, source: Path) -> str:
        with source.open("rb") as file:
            hasher = hashlib.sha256()
            while piece := file.read(1 << 20):
                hasher.update(piece)
        target = self.path_of(hasher.hexdigest())
        if not target.exists():
            target.parent.mkdir(exist_ok=True)
            try:
                os.link(source, target)
            except OSError:  # another file system, or one without hard links
                shutil.copyfile(source, target)
        return hasher.hexdigest()


def _lfs_pointer(sha256: str, size_bytes: int) -> bytes:
    """https://github.com/git-lfs/git-lfs/blob/main/docs/spec.md"""
    text = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size_bytes}\n"
    return text.encode()


def _git_oid(content: bytes) -> str:
    header = b"blob %d\0" % len(content)
    return hashlib.sha1(header + content, usedforsecurity=False).hexdigest()
