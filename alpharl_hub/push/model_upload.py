"""From a folder, or from shards as they are made, to one commit that makes the model appear.

What could stop a push is found out before the first byte of a weight is read. The commit adds
everything at once and takes away what would load in place of it: an older model's weights, indexes
and adapters. A push that was cut off is begun again; what the Hub has is not sent twice.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

from alpharl_hub.card.make import CARD_NAME, EVAL_FILE, PICTURE, with_place
from alpharl_hub.errors import ManifestError, PushError
from alpharl_hub.manifest import MANIFEST_NAME, read_manifest
from alpharl_hub.push.finished_folder import WEIGHTS, read_finished_folder
from alpharl_hub.push.hub_target import (
    HubAccess,
    HubTarget,
    RemoteFile,
    RepoState,
    UploadedShard,
)
from alpharl_hub.push.refusals import UnsureError
from alpharl_hub.sources.adapters import ADAPTER_CONFIG
from alpharl_hub.sources.hub_session import MAX_ANSWER_BYTES
from alpharl_hub.sources.patience import Patience

__all__ = [
    "HubAccess",
    "ModelUpload",
    "PushHooks",
    "PushOptions",
    "PushResult",
    "UploadedShard",
    "push_folder",
]

DEFAULT_BRANCH = "main"

# Files of an older model that would be read together with the new weights: tokenizers come in
# several files, and a left-over one is loaded in place of none.
_STALE_COMPANIONS = re.compile(
    r"^(tokenizer.*|vocab\.(json|txt)|merges\.txt|added_tokens\.json|special_tokens_map\.json"
    r"|spiece\.model|chat_template\.(jinja|json)|generation_config\.json"
    r"|(pre)?processor_config\.json)$"
)
_GIT_ATTRIBUTES = ".gitattributes"


@dataclass(frozen=True)
class PushOptions:
    """What a user says about a push.

    `private`: True for --private, False for --public, None for neither. `overwrite`: replace what
    this tool has not made. `dry_run`: check everything, change nothing.
    """

    private: bool | None = None
    branch: str = DEFAULT_BRANCH
    commit_message: str | None = None
    overwrite: bool = False
    dry_run: bool = False


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
    """Where the model is; `commit` is None after a dry run. Names of files added and deleted."""

    url: str
    commit: str | None
    branch: str
    added: tuple[str, ...]
    deleted: tuple[str, ...]


@dataclass(frozen=True)
class _Expected:
    """What a file must be in the commit; `git_oid` is None for a weight file, always in LFS."""

    num_bytes: int
    sha256: str
    git_oid: str | None

    def is_met_by(self, found: RemoteFile | None) -> bool:
        if found is None or found.is_folder or found.num_bytes != self.num_bytes:
            return False
        if found.sha256 is not None:
            return found.sha256 == self.sha256
        return found.git_oid == self.git_oid


class ModelUpload:
    """A push in progress: `begin`, then `upload_shard` for each weight file, then `finish`."""

    def __init__(
        self,
        target: HubTarget,
        options: PushOptions,
        hooks: PushHooks,
        parent: str | None,
        old_files: Mapping[str, RemoteFile],
    ) -> None:
        self._target = target
        self._options = options
        self._hooks = hooks
        self._parent = parent
        self._old_files = old_files

    @classmethod
    def begin(
        cls,
        repo: str,
        options: PushOptions,
        *,
        private_inputs: bool,
        access: HubAccess | None = None,
        hooks: PushHooks | None = None,
    ) -> ModelUpload:
        """Check token, rights and target, and make repo and branch where they are missing.

        `private_inputs`: the model comes from something private or gated, so it must not become
        public unless the user says so.

        Raises:
            PushError: the push could not end well; nothing was changed, or only an empty repo made.
        """
        access, hooks = access or HubAccess(), hooks or PushHooks()
        _check_names(repo, options.branch)
        target = HubTarget(repo, access, hooks.patience)
        target.check_token()
        private = private_inputs if options.private is None else options.private
        state = target.look()
        old_files: Mapping[str, RemoteFile] = {}
        if state is not None:
            _check_visibility(repo, state.private, private, private_inputs)
            old_files = _files_to_replace(target, state, options)
        if options.dry_run:
            return cls(target, options, hooks, None, old_files)
        if state is None:
            target.create(private=True if private else options.private)
        parent = _ensure_branch(target, options.branch)
        if not target.choose_transfer(options.branch):
            hooks.on_notice(f"{repo}: uploads go by LFS")
        return cls(target, options, hooks, parent, target.files(parent))

    def upload_shard(self, path: Path) -> UploadedShard:
        """Send one finished weight file, under its own name; afterwards it may be deleted.

        Raises:
            PushError: the Hub refuses, or the line stays down.
        """
        assert self._parent is not None, "a dry run ends with its plan"
        shard = self._target.upload(path, self._options.branch)
        self._hooks.on_uploaded(shard.filename, shard.num_bytes)
        return shard

    def stale_files(self, names: Collection[str]) -> tuple[str, ...]:
        """Return the old files that must go when files of these names arrive."""
        return tuple(
            name
            for name, file in sorted(self._old_files.items())
            if not file.is_folder
            and name not in names
            and (WEIGHTS.search(name) or _STALE_COMPANIONS.match(name) or _is_stale(name, names))
        )

    def finish(
        self, uploaded: Sequence[UploadedShard], other_files: Mapping[str, bytes | Path]
    ) -> PushResult:
        """Make the one commit, and look whether the Hub has in it what was sent.

        `other_files` are index, config, tokenizer, card and manifest, by name.

        Raises:
            PushError: the commit was refused, somebody else committed meanwhile, or the Hub holds
                other bytes than were sent.
        """
        expected = {s.filename: _Expected(s.num_bytes, s.sha256, None) for s in uploaded}
        expected |= {name: _expect(data) for name, data in other_files.items()}
        names = tuple(sorted(expected))
        deleted = self.stale_files(names)
        commit = self._commit(uploaded, other_files, expected, deleted)
        _check_landed(self._target.repo, self._target.files(commit), expected, deleted)
        return self._result(commit, names, deleted)

    def plan(self, names: Collection[str]) -> PushResult:
        """Say what a push of files of these names would do; all that there is in a dry run."""
        return self._result(None, tuple(sorted(names)), self.stale_files(names))

    def _commit(
        self,
        uploaded: Sequence[UploadedShard],
        other_files: Mapping[str, bytes | Path],
        expected: Mapping[str, _Expected],
        deleted: Sequence[str],
    ) -> str:
        """Commit, once, however often the answer is lost."""
        assert self._parent is not None, "a dry run ends with its plan"
        if _has_landed(self._old_files, expected, deleted):
            return self._parent
        message = self._options.commit_message or "Predict a model with alpharl-hub"
        branch, num_failures = self._options.branch, 0
        while True:
            try:
                return self._target.commit(
                    branch, self._parent, message, uploaded, other_files, deleted
                )
            except UnsureError as error:
                head = self._target.head(branch)
                if head is not None and head != self._parent:
                    if _has_landed(self._target.files(head), expected, deleted):
                        return head
                    raise
                num_failures += 1
                self._target.pause(error.cause, num_failures)

    def _result(
        self, commit: str | None, added: tuple[str, ...], deleted: tuple[str, ...]
    ) -> PushResult:
        branch = self._options.branch
        url = f"{self._target.endpoint}/{self._target.repo}"
        if branch != DEFAULT_BRANCH:
            url += f"/tree/{quote(branch, safe='')}"
        return PushResult(url, commit, branch, added, deleted)


def push_folder(
    folder: Path,
    repo: str,
    options: PushOptions,
    *,
    access: HubAccess | None = None,
    hooks: PushHooks | None = None,
) -> PushResult:
    """Push what predict wrote: weights, index, copied files, card and manifest, and nothing else.

    Raises:
        ManifestError, PushError, HeaderError: the folder is no finished output, or the Hub refuses.
    """
    finished = read_finished_folder(folder)
    upload = ModelUpload.begin(
        repo,
        options,
        private_inputs=finished.manifest.run.private,
        access=access,
        hooks=hooks,
    )
    if options.dry_run:
        return upload.plan({*finished.others, *(path.name for path in finished.weights)})
    uploaded = [upload.upload_shard(path) for path in finished.weights]
    card = finished.others[CARD_NAME].read_text(encoding="utf-8", errors="replace")
    others: dict[str, bytes | Path] = {**finished.others}
    others[CARD_NAME] = with_place(card, repo, options.branch).encode()
    return upload.finish(uploaded, others)


def _is_stale(name: str, names: Collection[str]) -> bool:
    """Whether a file would say of the new model what was true of the old one.

    An adapter's repo is no model: with an older model's config it would look like one. Scores and
    the picture are of the weights that go.
    """
    return name in (EVAL_FILE, PICTURE) or (name == "config.json" and ADAPTER_CONFIG in names)


def _check_names(repo: str, branch: str) -> None:
    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise PushError(f"{repo}: no name of a repo ({error}); write ORG/NAME") from error
    if "/" not in repo:
        raise PushError(f"{repo}: whose repo? write ORG/NAME")
    if not branch or branch.startswith(("-", "refs/")) or not branch.isprintable():
        raise PushError(f"{repo}: {branch!r} is no name of a branch")


def _check_visibility(repo: str, is_private: bool, private: bool, private_inputs: bool) -> None:
    if is_private or not private:
        return
    why = "the run or its base is private or gated" if private_inputs else "--private was given"
    raise PushError(
        f"{repo}: is public, but {why}; choose another repo, make this one private in its "
        "settings, or pass --public"
    )


def _files_to_replace(
    target: HubTarget, state: RepoState, options: PushOptions
) -> Mapping[str, RemoteFile]:
    """List what the branch holds, or will hold once made; refuse what this tool has not made."""
    commit = state.branches.get(options.branch) or state.branches.get(DEFAULT_BRANCH)
    files = {} if commit is None else target.files(commit)
    foreign = sorted(set(files) - {_GIT_ATTRIBUTES})
    if commit is None or not foreign or options.overwrite:
        return files
    if not _is_ours(target, commit, files.get(MANIFEST_NAME)):
        raise PushError(
            f"{target.repo}: holds files that this tool did not make ({', '.join(foreign[:3])}); "
            "choose another repo, or pass --overwrite to put the model in their place"
        )
    return files


def _is_ours(target: HubTarget, commit: str, manifest: RemoteFile | None) -> bool:
    if manifest is None or manifest.num_bytes > MAX_ANSWER_BYTES:
        return False
    try:
        read_manifest(target.read(MANIFEST_NAME, commit), MANIFEST_NAME)
    except ManifestError:
        return False
    return True


def _ensure_branch(target: HubTarget, branch: str) -> str:
    """Return the commit of the branch, made from main where it is missing."""
    head = target.head(branch)
    if head is None and branch != DEFAULT_BRANCH:
        target.create_branch(branch, DEFAULT_BRANCH)
        head = target.head(branch)
    if head is None:
        raise PushError(f"{target.repo}: has no branch {branch}; make it, then push again")
    return head


def _expect(data: bytes | Path) -> _Expected:
    content = data if isinstance(data, bytes) else data.read_bytes()
    # https://git-scm.com/book/en/v2/Git-Internals-Git-Objects
    blob = hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False)
    return _Expected(len(content), hashlib.sha256(content).hexdigest(), blob.hexdigest())


def _has_landed(
    files: Mapping[str, RemoteFile], expected: Mapping[str, _Expected], deleted: Sequence[str]
) -> bool:
    met = all(wanted.is_met_by(files.get(name)) for name, wanted in expected.items())
    return met and not any(name in files for name in deleted)


def _check_landed(
    repo: str,
    files: Mapping[str, RemoteFile],
    expected: Mapping[str, _Expected],
    deleted: Sequence[str],
) -> None:
    if _has_landed(files, expected, deleted):
        return
    wrong = [name for name, wanted in expected.items() if not wanted.is_met_by(files.get(name))]
    left = [name for name in deleted if name in files]
    raise PushError(
        f"{repo}: the Hub does not hold what was sent ({', '.join([*wrong, *left][:3])}); "
        "push again"
    )
