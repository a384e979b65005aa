"""Repos, refs and commits as JSON files: a commit maps every path to its content.

root/repos/ORG/NAME.json   one `Repo`
root/commits/SHA.json      one `Commit`
root/blobs/                see `blobs`
"""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, timedelta, timezone
from pathlib import Path
from threading import RLock
from types import MappingProxyType

from alpharl_hub.local_hub.blobs import GIT_ATTRIBUTES, BlobStore, FileEntry

# A clock of one minute a commit, so that the same history has the same dates and the same shas.
FIRST_DATE = datetime(2025, 1, 1, tzinfo=timezone.utc)
MAIN = "refs/heads/main"


@dataclass(frozen=True)
class Commit:
    """One state of a repo."""

    sha: str
    repo_id: str
    parent: str | None
    title: str
    message: str
    author: str
    date: str
    files: Mapping[str, FileEntry]


@dataclass(frozen=True)
class Repo:
    """One repo; `refs` maps full names (refs/heads/main, refs/tags/v1, refs/pr/1) to shas.

    `statuses` tells of pull requests, by number, that are not open, or were not.
    """

    repo_id: str
    private: bool
    gated: bool
    created_at: str
    num_commits: int = 0
    refs: Mapping[str, str] = field(default_factory=dict)
    granted: tuple[str, ...] = ()
    statuses: Mapping[str, str] = field(default_factory=dict)

    @property
    def namespace(self) -> str:
        """The user or organisation that owns it."""
        return self.repo_id.split("/")[0]

    def names(self, prefix: str) -> dict[str, str]:
        """Return the refs under a prefix, without it, in order of name."""
        chosen = ((name, sha) for name, sha in self.refs.items() if name.startswith(prefix))
        return {name.removeprefix(prefix): sha for name, sha in sorted(chosen)}


@dataclass(frozen=True)
class Change:
    """What a commit does: None deletes the path."""

    files: Mapping[str, FileEntry | None]
    title: str
    message: str
    author: str


class Storage:
    """Everything that the Hub keeps; safe to use from many threads."""

    def __init__(self, root: Path) -> None:
        self.blobs = BlobStore(root)
        self.lock = RLock()
        self._repo_folder, self._commit_folder = root / "repos", root / "commits"
        self._commit_folder.mkdir(exist_ok=True)
        self._commits: dict[str, Commit] = {}
        self._repos: dict[str, Repo] = {}
        for path in sorted(self._repo_folder.glob("*/*.json")):
            raw = json.loads(path.read_text())
            self._repos[raw["repo_id"]] = Repo(**{**raw, "granted": tuple(raw["granted"])})

    def repo(self, repo_id: str) -> Repo | None:
        """Return a repo, None when there is none."""
        return self._repos.get(repo_id)

    def repos(self) -> list[Repo]:
        """Return all repos in order of name."""
        with self.lock:
            return [self._repos[name] for name in sorted(self._repos)]

    def save(self, repo: Repo) -> Repo:
        """Write a repo down."""
        path = self._repo_path(repo.repo_id)
        with self.lock:
            path.parent.mkdir(parents=True, exist_ok=True)
            _write_json(path, asdict(repo))
            self._repos[repo.repo_id] = repo
        return repo

    def create(self, repo_id: str, *, private: bool, gated: bool, author: str) -> Repo:
        """Make a repo whose branch main has a first commit, as on the Hub."""
        attributes = self.blobs.add(".gitattributes", GIT_ATTRIBUTES)
        change = Change({".gitattributes": attributes}, "initial commit", "", author)
        with self.lock:
            self.save(Repo(repo_id, private, gated, _date(0)))
            self.commit(repo_id, MAIN, None, change)
            return self._repos[repo_id]

    def delete(self, repo_id: str) -> None:
        """Forget a repo; its contents stay."""
        with self.lock:
            del self._repos[repo_id]
            self._repo_path(repo_id).unlink()

    def set_ref(self, repo_id: str, ref: str, sha: str | None) -> Repo:
        """Point a ref at a commit; None deletes it."""
        with self.lock:
            repo = self._repos[repo_id]
            kept = {name: target for name, target in repo.refs.items() if name != ref}
            return self.save(replace(repo, refs=kept if sha is None else {**kept, ref: sha}))

    def find(self, repo: Repo, revision: str) -> Commit | None:
        """Return the commit that a branch, tag, full ref name or 40-digit sha names."""
        for name in (f"refs/heads/{revision}", f"refs/tags/{revision}", revision):
            if name in repo.refs:
                return self.read_commit(repo.refs[name])
        if len(revision) != 40 or not set(revision) <= set("0123456789abcdef"):
            return None
        commit = self.read_commit(revision)
        return commit if commit and commit.repo_id == repo.repo_id else None

    def read_commit(self, sha: str) -> Commit | None:
        """Return a commit by its full sha."""
        path = self._commit_folder / f"{sha}.json"
        if sha not in self._commits and path.is_file():
            raw = json.loads(path.read_text())
            files = {name: FileEntry(**entry) for name, entry in raw.pop("files").items()}
            self._commits[sha] = Commit(files=MappingProxyType(files), **raw)
        return self._commits.get(sha)

    def forget(self, repo_id: str, sha: str) -> None:
        """Delete a commit, and the refs that point to it; its contents stay."""
        with self.lock:
            repo = self._repos[repo_id]
            self.save(replace(repo, refs={n: at for n, at in repo.refs.items() if at != sha}))
            del self._commits[sha]
            (self._commit_folder / f"{sha}.json").unlink()

    def history(self, commit: Commit) -> Iterator[Commit]:
        """Yield a commit and its ancestors, the newest first."""
        current: Commit | None = commit
        while current is not None:
            yield current
            current = self.read_commit(current.parent) if current.parent else None

    def commit(self, repo_id: str, ref: str, parent: Commit | None, change: Change) -> Commit:
        """Write a commit on top of `parent` and move `ref` to it."""
        with self.lock:
            repo = self._repos[repo_id]
            merged = {**(parent.files if parent else {}), **change.files}
            files = {path: entry for path, entry in sorted(merged.items()) if entry is not None}
            unnamed = Commit(
                sha="",
                repo_id=repo_id,
                parent=parent.sha if parent else None,
                title=change.title,
                message=change.message,
                author=change.author,
                date=_date(repo.num_commits),
                files=files,
            )
            text = json.dumps(asdict(unnamed), sort_keys=True).encode()
            sha = hashlib.sha1(text, usedforsecurity=False).hexdigest()
            commit = replace(unnamed, sha=sha)
            _write_json(self._commit_folder / f"{sha}.json", asdict(commit))
            self._commits[sha] = replace(commit, files=MappingProxyType(files))
            refs = {**repo.refs, ref: sha}
            self.save(replace(repo, num_commits=repo.num_commits + 1, refs=refs))
            return self._commits[sha]

    def _repo_path(self, repo_id: str) -> Path:
        namespace, name = repo_id.split("/")
        return self._repo_folder / namespace / f"{name}.json"


def _date(num_commits: int) -> str:
    moment = FIRST_DATE + timedelta(minutes=num_commits)
    return moment.strftime("%Y-%m-%dT%H:%M:%S.000Z")


def _write_json(path: Path, value: object) -> None:
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(value))
    os.replace(partial, path)
