"""From a folder, or from shards as they are made, to one commit that makes the model appear.

What could stop a push is found out before the first byte of a weight is read. The commit adds
everything at once and takes away what would load in place of it: an older model's weights, indexes
and adapters. A push that was cut off is begun again; what the Hub has is not sent twice.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from urllib.parse import quote

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

from alpharl_hub.card.factor_card import make_factor_card
from alpharl_hub.card.make import CARD_NAME, EVAL_FILE, PICTURE, with_place
from alpharl_hub.errors import ManifestError, PushError
from alpharl_hub.manifest import KIND_FACTORS, KIND_MODEL, MANIFEST_NAME, read_manifest
from alpharl_hub.output.factor_names import FACTOR_FILE
from alpharl_hub.push.finished_folder import (
    WEIGHTS,
    FinishedFolder,
    read_finished_folder,
)
from alpharl_hub.push.hub_target import (
    HubAccess,
    HubTarget,
    PullRequest,
    RemoteFile,
    RepoState,
    UploadedShard,
)
from alpharl_hub.push.landing import Expected, expect
from alpharl_hub.push.options import DEFAULT_BRANCH, PushHooks, PushOptions, PushResult
from alpharl_hub.push.pull_requests import describe, find_open_request
from alpharl_hub.push.refusals import UnsureError
from alpharl_hub.sources.adapters import ADAPTER_CONFIG
from alpharl_hub.sources.hub_session import MAX_ANSWER_BYTES

__all__ = [
    "DEFAULT_BRANCH",
    "HubAccess",
    "ModelUpload",
    "PushHooks",
    "PushOptions",
    "PushResult",
    "UploadedShard",
    "push_folder",
]

_TITLES = {
    KIND_MODEL: "Predict a model with alpharl-hub",
    KIND_FACTORS: "Extract the factors of a run with alpharl-hub",
}
_SHORT = {KIND_MODEL: "the model", KIND_FACTORS: "the factors of a run"}
_WHAT = {KIND_MODEL: "a predicted model", KIND_FACTORS: "the factors of a training run"}

# Files of an older model that would be read together with the new weights: tokenizers come in
# several files, and a left-over one is loaded in place of none.
_STALE_COMPANIONS = re.compile(
    r"^(tokenizer.*|vocab\.(json|txt)|merges\.txt|added_tokens\.json|special_tokens_map\.json"
    r"|spiece\.model|chat_template\.(jinja|json)|generation_config\.json"
    r"|(pre)?processor_config\.json)$"
)
_GIT_ATTRIBUTES = ".gitattributes"


class ModelUpload:
    """A push in progress: `begin`, then `upload_shard` for each weight file, then `finish`."""

    def __init__(
        self,
        target: HubTarget,
        options: PushOptions,
        hooks: PushHooks,
        kind: str,
        parent: str | None,
        old_files: Mapping[str, RemoteFile],
    ) -> None:
        self._target = target
        self._kind = kind
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
        kind: str = KIND_MODEL,
        access: HubAccess | None = None,
        hooks: PushHooks | None = None,
    ) -> ModelUpload:
        """Check token, rights and target, and make repo and branch where they are missing.

        For a pull request the repo must be there, and nothing but reading it must be allowed.
        `private_inputs`: the model comes from something private or gated, so it must not become
        public unless the user says so. `kind` is that of the manifest that will be sent.

        Raises:
            PushError: the push could not end well; nothing was changed, or only an empty repo made.
        """
        access, hooks = access or HubAccess(), hooks or PushHooks()
        _check_names(repo, options)
        target = HubTarget(repo, access, hooks.patience, create_pr=options.create_pr)
        target.check_token()
        private = private_inputs if options.private is None else options.private
        state = target.look()
        old_files: Mapping[str, RemoteFile] = {}
        if state is not None:
            _check_visibility(repo, state.private, private, private_inputs)
            old_files = _files_to_replace(target, state, options, kind)
        elif options.create_pr:
            raise PushError(
                f"{repo}: no such repo, and a pull request needs one; leave out --create-pr to "
                "make it"
            )
        if options.dry_run:
            return cls(target, options, hooks, kind, None, old_files)
        if state is None:
            target.create(private=True if private else options.private)
        parent = _ensure_branch(target, options.branch)
        if not target.choose_transfer(options.branch):
            hooks.on_notice(f"{repo}: uploads go by LFS")
        return cls(target, options, hooks, kind, parent, target.files(parent))

    def upload_shard(self, path: Path) -> UploadedShard:
        """Send one finished weight file, under its own name; afterwards it may be deleted.

        What the branch holds, under whatever name, is not sent again.

        Raises:
            PushError: the Hub refuses, or the line stays down.
        """
        assert self._parent is not None, "a dry run ends with its plan"
        there = {file.sha256 for file in self._old_files.values() if file.sha256 is not None}
        shard = self._target.upload(path, self._options.branch, there)
        if shard.sha256 in there:
            self._hooks.on_notice(f"{shard.filename}: {self._target.repo} has its bytes already")
        else:
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
        names = {*other_files, *(shard.filename for shard in uploaded)}
        expected = expect(uploaded, other_files, self.stale_files(names))
        if expected.is_met_by(self._old_files):
            return self._nothing_to_do()
        landed = self._commit(uploaded, other_files, expected)
        assert landed.commit is not None, "only a dry run makes none"
        expected.require(self._target.files(landed.commit), self._target.repo)
        return replace(landed, added=tuple(sorted(names)), deleted=tuple(expected.deleted))

    def plan(self, names: Collection[str]) -> PushResult:
        """Say what a push of files of these names would do; all that there is in a dry run."""
        there = self._on_branch(None)
        return replace(there, added=tuple(sorted(names)), deleted=self.stale_files(names))

    def _commit(
        self,
        uploaded: Sequence[UploadedShard],
        other_files: Mapping[str, bytes | Path],
        expected: Expected,
    ) -> PushResult:
        """Commit, or ask for it, once, however often the answer is lost."""
        assert self._parent is not None, "a dry run ends with its plan"
        found = self._requested(expected) if self._options.create_pr else None
        num_failures = 0
        while found is None:
            try:
                return self._commit_once(self._parent, uploaded, other_files, expected)
            except UnsureError as error:
                found = self._landed_after_all(expected, error)
                if found is None:
                    num_failures += 1
                    self._target.pause(error.cause, num_failures)
        return found

    def _commit_once(
        self,
        parent: str,
        uploaded: Sequence[UploadedShard],
        other_files: Mapping[str, bytes | Path],
        expected: Expected,
    ) -> PushResult:
        message = self._options.commit_message or _TITLES[self._kind]
        target, branch, deleted = self._target, self._options.branch, expected.deleted
        if not self._options.create_pr:
            commit = target.commit(branch, parent, message, uploaded, other_files, deleted)
            return self._on_branch(commit)
        words = describe(_WHAT[self._kind], branch, parent, self._old_files, expected)
        opened = target.open_pull_request(parent, message, words, uploaded, other_files, deleted)
        return self._as_request(opened)

    def _nothing_to_do(self) -> PushResult:
        """Say that the branch holds all of it already, and answer where."""
        not_done = "no pull request was opened" if self._options.create_pr else "no commit was made"
        self._hooks.on_notice(
            f"nothing to change: {self._target.repo} holds these files already; {not_done}"
        )
        return replace(self._on_branch(self._parent), changed=False)

    def _landed_after_all(self, expected: Expected, error: UnsureError) -> PushResult | None:
        """Return where a commit whose answer was lost is, None where it was not made.

        Raises:
            UnsureError: somebody else has moved the branch.
        """
        if self._options.create_pr:
            return self._requested(expected)
        head = self._target.head(self._options.branch)
        if head is None or head == self._parent:
            return None
        if not expected.is_met_by(self._target.files(head)):
            raise error
        return self._on_branch(head)

    def _requested(self, expected: Expected) -> PushResult | None:
        found = find_open_request(self._target, expected)
        return None if found is None else self._as_request(found)

    def _as_request(self, found: PullRequest) -> PushResult:
        return PushResult(found.url, found.commit, found.ref, (), ())

    def _on_branch(self, commit: str | None) -> PushResult:
        branch = self._options.branch
        url = f"{self._target.endpoint}/{self._target.repo}"
        if branch != DEFAULT_BRANCH:
            url += f"/tree/{quote(branch, safe='')}"
        return PushResult(url, commit, branch, (), ())


def push_folder(
    folder: Path,
    repo: str,
    options: PushOptions,
    *,
    access: HubAccess | None = None,
    hooks: PushHooks | None = None,
) -> PushResult:
    """Push what predict or extract wrote, as its manifest names it, and nothing else.

    Raises:
        ManifestError, PushError, HeaderError: the folder is no finished output, or the Hub refuses.
    """
    finished = read_finished_folder(folder)
    upload = ModelUpload.begin(
        repo,
        options,
        private_inputs=finished.manifest.run.private,
        kind=finished.manifest.kind,
        access=access,
        hooks=hooks,
    )
    if options.dry_run:
        names = {*finished.others, *(path.name for path in finished.weights), CARD_NAME}
        return upload.plan(names)
    return push_finished(finished, upload, repo, options.branch)


def push_finished(
    finished: FinishedFolder, upload: ModelUpload, repo: str, branch: str
) -> PushResult:
    """Send a folder that was looked at, with the card for its new place.

    Raises:
        PushError: the Hub refuses.
    """
    uploaded = [upload.upload_shard(path) for path in finished.weights]
    others: dict[str, bytes | Path] = {**finished.others}
    if finished.manifest.kind == KIND_FACTORS:
        num_bytes = sum(shard.num_bytes for shard in uploaded)
        others[CARD_NAME] = make_factor_card(finished.manifest, repo, branch, num_bytes).encode()
    else:
        card = finished.others[CARD_NAME].read_text(encoding="utf-8", errors="replace")
        others[CARD_NAME] = with_place(card, repo, branch).encode()
    return upload.finish(uploaded, others)


def _is_stale(name: str, names: Collection[str]) -> bool:
    """Whether a file would say of the new model what was true of the old one.

    A repo of an adapter or of factors is no model: with an older model's config it would look like
    one. Scores and the picture are of the weights that go.
    """
    is_no_model = ADAPTER_CONFIG in names or any(map(FACTOR_FILE.fullmatch, names))
    return name in (EVAL_FILE, PICTURE) or (name == "config.json" and is_no_model)


def _check_names(repo: str, options: PushOptions) -> None:
    branch = options.branch
    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise PushError(f"{repo}: no name of a repo ({error}); write ORG/NAME") from error
    if "/" not in repo:
        raise PushError(f"{repo}: whose repo? write ORG/NAME")
    if not branch or branch.startswith(("-", "refs/")) or not branch.isprintable():
        raise PushError(f"{repo}: {branch!r} is no name of a branch")
    if options.create_pr and branch != DEFAULT_BRANCH:
        raise PushError(
            f"{repo}: a pull request asks for a change of {DEFAULT_BRANCH}; leave out --create-pr "
            f"or the branch {branch}"
        )


def _check_visibility(repo: str, is_private: bool, private: bool, private_inputs: bool) -> None:
    if is_private or not private:
        return
    why = "the run or its base is private or gated" if private_inputs else "--private was given"
    raise PushError(
        f"{repo}: is public, but {why}; choose another repo, make this one private in its "
        "settings, or pass --public"
    )


def _files_to_replace(
    target: HubTarget, state: RepoState, options: PushOptions, kind: str
) -> Mapping[str, RemoteFile]:
    """List what the branch holds, or will hold once made; refuse what this tool has not made.

    A pull request replaces nothing before somebody has read what it would, and merged it.
    """
    commit = state.branches.get(options.branch) or state.branches.get(DEFAULT_BRANCH)
    files = {} if commit is None else target.files(commit)
    foreign = sorted(set(files) - {_GIT_ATTRIBUTES})
    if commit is None or not foreign or options.overwrite or options.create_pr:
        return files
    found = _kind_of(target, commit, files.get(MANIFEST_NAME))
    if found is None:
        raise PushError(
            f"{target.repo}: holds files that this tool did not make ({', '.join(foreign[:3])}); "
            f"choose another repo, or pass --overwrite to put {_SHORT[kind]} in their place"
        )
    if found != kind:
        raise PushError(
            f"{target.repo}: holds {_SHORT[found]}; choose another repo, or pass --overwrite to "
            f"put {_SHORT[kind]} in its place"
        )
    return files


def _kind_of(target: HubTarget, commit: str, manifest: RemoteFile | None) -> str | None:
    """Return of which kind the repo's manifest is, None where this tool wrote none."""
    if manifest is None or manifest.num_bytes > MAX_ANSWER_BYTES:
        return None
    try:
        return read_manifest(target.read(MANIFEST_NAME, commit), MANIFEST_NAME).kind
    except ManifestError:
        return None


def _ensure_branch(target: HubTarget, branch: str) -> str:
    """Return the commit of the branch, made from main where it is missing."""
    head = target.head(branch)
    if head is None and branch != DEFAULT_BRANCH:
        target.create_branch(branch, DEFAULT_BRANCH)
        head = target.head(branch)
    if head is None:
        raise PushError(f"{target.repo}: has no branch {branch}; make it, then push again")
    return head
