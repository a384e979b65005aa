"""Checkpoints in repos on a Hub: a run's steps from its refs or folders, files by byte ranges."""

from __future__ import annotations

import re
import threading
from collections.abc import Mapping, Sequence
from functools import cached_property
from urllib.parse import unquote

from alpharl_hub.errors import SourceError, TrajectoryError, did_you_mean
from alpharl_hub.manifest import Notice
from alpharl_hub.sources import hub_commits, hub_repos
from alpharl_hub.sources.contents import find_weights_folder
from alpharl_hub.sources.http_reader import SignedAddress
from alpharl_hub.sources.hub_client import HubClient, RepoRefs, cached_file
from alpharl_hub.sources.hub_digests import check_content
from alpharl_hub.sources.hub_uri import RepoPlace
from alpharl_hub.sources.listing import Listing, below, keep_complete
from alpharl_hub.sources.local import read_file_into
from alpharl_hub.sources.step_names import (
    PLACEHOLDER,
    Family,
    choose_family,
    find_families,
    match_pattern,
    match_repo,
    mention_patterns,
)
from alpharl_hub.trajectory import Checkpoint, CheckpointStore, StoredFile

_MAX_CARD_BYTES = 1 << 20
_STEP_IN_TITLE = re.compile(r"\bstep[-_ ]?(\d{1,15})\b", re.IGNORECASE)


class HubFolder:
    """One pinned checkpoint: a folder of a commit of a repo; safe to share between threads."""

    def __init__(self, client: HubClient, checkpoint: Checkpoint) -> None:
        assert checkpoint.commit is not None, "what is on a Hub is pinned"
        self._client = client
        self._repo = checkpoint.source
        self._commit = checkpoint.commit
        self._label = _label(checkpoint, checkpoint.commit)
        self._prefix = f"{checkpoint.folder}/" if checkpoint.folder else ""
        self._addresses: dict[str, SignedAddress] = {}
        self._cached: dict[str, str | None] = {}
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, object]:
        """Give another process all but what is of this machine; addresses save it to ask anew."""
        with self._lock:
            state = {**self.__dict__, "_addresses": dict(self._addresses), "_cached": {}}
        del state["_lock"]
        return state

    def __setstate__(self, state: Mapping[str, object]) -> None:
        self.__dict__.update(state, _lock=threading.Lock())

    def files(self) -> Mapping[str, StoredFile]:
        """List the folder from the commit's tree, which is asked for once."""
        return below(self._client.tree(self._repo, self._commit, self._label), self._prefix)

    def read_into(self, filename: str, start: int, buffer: memoryview) -> None:
        """Fill `buffer`, from the local cache where it holds this file of this commit."""
        path = self._prefix + filename
        with self._lock:
            if path not in self._cached:
                self._cached[path] = cached_file(self._repo, path, self._commit)
            cached = self._cached[path]
        stored = self.files().get(filename)
        what = f"{self._label}: {filename}"
        if stored is None:
            raise SourceError(f"{what}: no such file")
        if cached is not None:
            read_file_into(cached, start, buffer)
            self._check_whole(path, stored, start, buffer, f"{what} (in the cache, as {cached})")
            return

        def address(renew: bool) -> SignedAddress:
            return self._address(path, renew)

        self._client.reader.read_into(
            address, start, buffer, file_num_bytes=stored.num_bytes, what=what
        )
        self._check_whole(path, stored, start, buffer, what)

    def _check_whole(
        self, path: str, stored: StoredFile, start: int, buffer: memoryview, what: str
    ) -> None:
        """Compare a file that was read in one piece with the digest that the Hub tells of it."""
        if start == 0 and len(buffer) == stored.num_bytes:
            git_oid = self._client.git_oid(self._repo, self._commit, path)
            check_content(buffer, stored.sha256, git_oid, what)

    def _address(self, path: str, renew: bool) -> SignedAddress:
        with self._lock:
            if renew or path not in self._addresses:
                self._addresses[path] = self._new_address(path)
            return self._addresses[path]

    def _new_address(self, path: str) -> SignedAddress:
        stored = self._client.tree(self._repo, self._commit).get(path)
        if stored is not None and stored.sha256 is None:
            # A small file comes from the Hub itself: one request less when it is asked for there.
            return self._client.plain_address(self._repo, path, self._commit)
        return self._client.resolve(self._repo, path, self._commit, f"{self._label}: {path}")

    def is_private(self) -> bool:
        """Whether the repo is private or gated."""
        return self._client.facts(self._repo).restricted


def _label(checkpoint: Checkpoint, commit: str) -> str:
    """How messages name a pinned checkpoint: place, commit, and the step where neither tells it."""
    label, parts = checkpoint.label, [f"commit {commit[:12]}"]
    if checkpoint.revision == commit:
        label, parts = label.replace(commit, commit[:12]), []
    if checkpoint.step is not None and not re.search(rf"(?<!\d)0*{checkpoint.step}(?!\d)", label):
        parts.insert(0, f"step {checkpoint.step}")
    return f"{label} ({', '.join(parts)})" if parts else label


class HubRun:
    """A run in one repo, with a branch, tag, folder or commit per step, or in a repo per step."""

    def __init__(self, client: HubClient, place: RepoPlace) -> None:
        self._client = client
        self._in_many_repos = PLACEHOLDER in place.repo
        self._refs = RepoRefs({}, {}) if self._in_many_repos else client.refs(place.repo)
        self._place = join_slashed_revision(place, self._refs)
        self._cards: dict[Checkpoint, str | None] = {}

    def list_steps(self) -> Listing:
        """Find the steps: by the pattern, else branches, tags, folders, commits, in this order."""
        place = self._place
        if self._in_many_repos:
            return hub_repos.list_step_repos(self._client, place)
        if place.revision and PLACEHOLDER in place.revision:
            return self._by_revision_pattern(place.revision)
        if PLACEHOLDER in place.folder:
            return self._by_folder_pattern()
        if place.revision is None and not place.folder:
            found = self._by_refs("branches", self._refs.branches)
            found = found or self._by_refs("tags", self._refs.tags)
            if found:
                return found
        folders = self._by_folders()
        if place.folder or (folders is not None and len(folders.checkpoints) > 1):
            return folders or Listing("single", "", (), ())
        # Where a Trainer deletes old checkpoints, all folders but one hold leftovers at most.
        commits = hub_commits.list_step_commits(self._client, place.repo, self._pinned[1])
        return commits or folders or Listing("single", "", (), ())

    def _by_refs(self, layout: str, refs: Mapping[str, str]) -> Listing | None:
        family = choose_family(find_families(refs), self._place.repo, f"{self._place.repo}@*")
        if family is None:
            return None
        return self._listing_of_refs(layout, family, refs)

    def _by_revision_pattern(self, pattern: str) -> Listing:
        for layout, refs in (("branches", self._refs.branches), ("tags", self._refs.tags)):
            family = match_pattern(pattern, refs)
            if family.names:
                return self._listing_of_refs(layout, family, refs)
        raise self._no_fit("revision", pattern, [*self._refs.branches, *self._refs.tags])

    def _no_fit(self, kind: str, pattern: str, names: Sequence[str]) -> TrajectoryError:
        listed = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
        near = did_you_mean(pattern, mention_patterns(names))
        return TrajectoryError(
            f"{self._place}: no {kind} fits {pattern}; there is {listed or 'none at all'}{near}"
        )

    def _listing_of_refs(self, layout: str, family: Family, refs: Mapping[str, str]) -> Listing:
        checkpoints = tuple(
            Checkpoint(step, self._place.repo, name, refs[name], self._place.folder)
            for step, name in family.names.items()
        )
        return Listing(layout, family.pattern, checkpoints, ())

    def _by_folder_pattern(self) -> Listing:
        before, _, after = self._place.folder.partition(PLACEHOLDER)
        parent, _, stem = before.rpartition("/")
        tail, _, inner = after.partition("/")
        pattern, names = f"{stem}{PLACEHOLDER}{tail}", self._folders_below(parent)
        family = match_pattern(pattern, names)
        if not family.names:
            raise self._no_fit("folder", pattern, names)
        return self._listing_of_folders(family, parent, inner)

    def _by_folders(self) -> Listing | None:
        parent = self._place.folder
        families = find_families(self._folders_below(parent))
        family = choose_family(families, str(self._place), f"{self._place}/*")
        return None if family is None else self._listing_of_folders(family, parent, "")

    def no_steps(self) -> TrajectoryError:
        """Say that this is one model, or none."""
        place, folder = self._place, self._place.folder
        if find_weights_folder(below(self._tree(), f"{folder}/" if folder else "")) is not None:
            revision = place.revision or "main"
            owner, _, name = place.repo.partition("/")
            pattern = match_repo(name)
            hint = f", or write {owner}/{pattern} if every step has a repo" if pattern else ""
            return TrajectoryError(
                f"{place}: one model and no steps; say which step it is with --at {revision}=STEP"
                f"{hint}"
            )
        return TrajectoryError(
            f"{place}: no step found; say where the number stands, such as "
            f"{place.repo}@step-{PLACEHOLDER} or {place}/checkpoint-{PLACEHOLDER}"
        )

    def base_nearby(self) -> str | None:
        """Return the branch `base`, where there is one."""
        return f"{self._place.repo}@base" if "base" in self._refs.branches else None

    def look_aside(self, listing: Listing) -> tuple[Notice, ...]:
        """Mention other kinds of steps, and a main that is none of the steps; a request or two."""
        if listing.layout == hub_commits.LAYOUT:
            return hub_commits.tell_end(self._client, listing, *self._pinned)
        main = self._refs.branches.get("main")
        if main is None or listing.layout not in ("branches", "tags"):
            return ()
        tree = self._client.tree(self._place.repo, main)
        others = [] if listing.layout == "tags" else [("tags", mention_patterns(self._refs.tags))]
        folders = {path.split("/")[0] for path in tree if "/" in path}
        others.append(("folders", mention_patterns(folders)))
        notices = [
            Notice(
                "other_layouts",
                f"there are {kind} named {', '.join(patterns)} too; the {listing.layout} are read",
            )
            for kind, patterns in others
            if patterns
        ]
        if main not in {c.commit for c in listing.checkpoints} and find_weights_folder(tree) == "":
            notices.append(self._main_notice(main, listing))
        return tuple(notices)

    def _main_notice(self, main: str, listing: Listing) -> Notice:
        # The title of its last commit is often all that tells the step of main
        # (allenai/Olmo-3-7B-RL-Zero-Math: "Upload checkpoint from step 2000").
        found = _STEP_IN_TITLE.search(self._client.last_title(self._place.repo, main))
        message = "main is no step of the run and is left out; --at main=STEP takes it"
        if found and all(int(found[1]) != c.step for c in listing.checkpoints):
            message = (
                "main is no step of the run and is left out; its last commit speaks of step "
                f"{int(found[1])}: --at main={int(found[1])} takes it"
            )
        return Notice("main_left_out", message)

    @cached_property
    def _pinned(self) -> tuple[str, str]:
        """The revision that RUN names, and its commit."""
        revision = self._place.revision or "main"
        commit = self._refs.commit_of(revision)
        return revision, commit or self._client.commit_of(self._place.repo, revision)

    def _tree(self) -> Mapping[str, StoredFile]:
        return self._client.tree(self._place.repo, self._pinned[1])

    def _folders_below(self, parent: str) -> tuple[str, ...]:
        prefix = f"{parent}/" if parent else ""
        names = {path.removeprefix(prefix) for path in self._tree() if path.startswith(prefix)}
        return tuple(sorted({name.split("/")[0] for name in names if "/" in name}))

    def _listing_of_folders(self, family: Family, parent: str, inner: str) -> Listing:
        revision, commit = self._pinned
        folders = {
            step: "/".join(part for part in (parent, name, inner) if part)
            for step, name in family.names.items()
        }
        tree = self._tree()
        files = {folder: below(tree, folder + "/") for folder in folders.values()}
        kept, notices = keep_complete(files)
        checkpoints = tuple(
            Checkpoint(step, self._place.repo, revision, commit, folder)
            for step, folder in folders.items()
            if folder in kept
        )
        pattern = "/".join(part for part in (parent, family.pattern, inner) if part)
        return Listing("folders", pattern, checkpoints, notices)

    def extra_checkpoint(self, name: str, step: int) -> Checkpoint:
        """Pin a branch, tag or commit of the repo as a step; with a repo per step, a repo."""
        if self._in_many_repos:
            return hub_repos.pin_repo(self._client, self._place, name, step)
        if self._refs.commit_of(name) is None:
            name = unquote(name)
        commit = self._refs.commit_of(name) or self._client.commit_of(self._place.repo, name)
        folder = "" if PLACEHOLDER in self._place.folder else self._place.folder
        return Checkpoint(step, self._place.repo, name, commit, folder)

    def open_store(self, checkpoint: Checkpoint) -> CheckpointStore:
        """Open one pinned commit."""
        return HubFolder(self._client, checkpoint)

    def card_text(self, checkpoint: Checkpoint) -> str | None:
        """Return the card of the checkpoint's folder, of its commit, or of main."""
        repo = checkpoint.source
        revisions = [(checkpoint.revision, checkpoint.commit)]
        if checkpoint.revision != "main":
            revisions.append(("main", self._client.refs(repo).branches.get("main")))
        for revision, commit in revisions:
            for folder in (checkpoint.folder, ""):
                place = Checkpoint(None, repo, revision, commit, folder)
                card = self._card_at(place) if commit is not None else None
                if card is not None:
                    return card
        return None

    def _card_at(self, place: Checkpoint) -> str | None:
        if place not in self._cards:
            store = HubFolder(self._client, place)
            stored = store.files().get("README.md")
            self._cards[place] = None
            if stored is not None:
                buffer = bytearray(min(stored.num_bytes, _MAX_CARD_BYTES))
                store.read_into("README.md", 0, memoryview(buffer))
                self._cards[place] = buffer.decode("utf-8", errors="replace")
        return self._cards[place]


def join_slashed_revision(place: RepoPlace, refs: RepoRefs) -> RepoPlace:
    """Take a branch with a bare slash as what it is, when exactly one listed ref fits.

    ORG/NAME@feature/x is revision `feature`, folder `x` to the parser; if there is no such ref but
    one called feature/x, that was meant.
    """
    if place.revision is None or not place.folder:
        return place
    parts = [place.revision, *place.folder.split("/")]
    names = [*refs.branches, *refs.tags]
    fitting = []
    for count in range(1, len(parts) + 1):
        revision, folder = "/".join(parts[:count]), "/".join(parts[count:])
        fits = (
            match_pattern(revision, names).names if PLACEHOLDER in revision else revision in names
        )
        if fits:
            fitting.append(RepoPlace(place.repo, revision, folder))
    if len(fitting) > 1:
        listed = " or ".join(f"revision {p.revision} with folder {p.folder!r}" for p in fitting)
        raise TrajectoryError(f"{place}: either {listed}; write the slash of a branch as %2F")
    return fitting[0] if fitting else place


def pin_place(client: HubClient, place: RepoPlace) -> tuple[Checkpoint, CheckpointStore]:
    """Take a repo at a revision (default: main) as a base."""
    if PLACEHOLDER in str(place):
        raise SourceError(f"--base {place}: a base is one model; leave {PLACEHOLDER} out")
    refs = client.refs(place.repo)
    place = join_slashed_revision(place, refs)
    revision = place.revision or "main"
    commit = refs.commit_of(revision) or client.commit_of(place.repo, revision)
    checkpoint = Checkpoint(None, place.repo, revision, commit, place.folder)
    return checkpoint, HubFolder(client, checkpoint)
