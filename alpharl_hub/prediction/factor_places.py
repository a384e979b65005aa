"""Where extracted factors lie: in a folder here, or in a repo on a Hub, pinned and not downloaded.

What was pushed by others is read as data: of the manifest nothing is obeyed, and no place on a disk
is ever taken from a repo.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from alpharl_hub import strict_json
from alpharl_hub.errors import ManifestError
from alpharl_hub.manifest import KIND_FACTORS, MANIFEST_NAME, Manifest, RunRecord, read_manifest
from alpharl_hub.output.factor_files import FactorFolder, read_local_places
from alpharl_hub.output.factor_names import FACTOR_FILE, SINGLE_FILE
from alpharl_hub.sources.file_names import leads_out
from alpharl_hub.sources.hub import HubFolder, join_slashed_revision
from alpharl_hub.sources.hub_client import HubClient
from alpharl_hub.sources.hub_uri import RepoPlace, parse_place
from alpharl_hub.sources.local import LocalFolder
from alpharl_hub.sources.local_run import is_local
from alpharl_hub.sources.opening import Opener, RunRequest, offering_near_folder
from alpharl_hub.sources.step_names import PLACEHOLDER
from alpharl_hub.trajectory import Checkpoint, CheckpointStore


@dataclass(frozen=True)
class FactorPlace:
    """Factors that were found; `folder` is None where they lie on a Hub."""

    label: str
    store: CheckpointStore
    folder: Path | None

    def read_manifest(self) -> Manifest:
        """Read alpharl.json.

        Raises:
            ManifestError: it is damaged, too large, or of another kind. SourceError: not readable.
        """
        where = f"{self.label}/{MANIFEST_NAME}"
        manifest = read_manifest(self._manifest_bytes(where), where)
        if manifest.kind != KIND_FACTORS:
            raise ManifestError(
                f"{where}: the manifest of a {manifest.kind}, not of extracted factors"
            )
        require_rising_steps(manifest.run, where)
        return manifest

    def _manifest_bytes(self, where: str) -> bytes:
        if self.folder is not None:
            if leads_out(self.folder, MANIFEST_NAME):
                raise ManifestError(f"{where}: a link that leads out of its folder; extract again")
            return strict_json.read_file(self.folder / MANIFEST_NAME)
        num_bytes = self.store.files()[MANIFEST_NAME].num_bytes
        if num_bytes > strict_json.MAX_DOCUMENT_BYTES:
            raise ManifestError(
                f"{where}: {num_bytes} bytes, more than any manifest has "
                f"({strict_json.MAX_DOCUMENT_BYTES}); is it one?"
            )
        buffer = bytearray(num_bytes)
        self.store.read_into(MANIFEST_NAME, 0, memoryview(buffer))
        return bytes(buffer)

    def open(self, num_steps: int) -> FactorFolder:
        """Read the headers of the factors of that many checkpoints.

        Raises:
            As `FactorFolder`.
        """
        return FactorFolder(self.store, self.label, num_steps)

    def local_places(self) -> Mapping[str, str]:
        """Return where local checkpoints lie, by fingerprint; a repo may not say that."""
        return {} if self.folder is None else read_local_places(self.folder)

    def is_private(self) -> bool:
        """Whether they lie in a private or gated repo."""
        return self.folder is None and self.store.is_private()


def find_factors(request: RunRequest, opener: Opener) -> FactorPlace | None:
    """Return the factors that RUN names, None where it names something else.

    On a Hub that costs refs and one listing, which `opener` keeps for whoever opens it as a run.

    Raises:
        SourceError: the Hub cannot be asked, or has no such repo or revision.
        ManifestError: factors without the manifest that says of what.
    """
    run = request.run
    if PLACEHOLDER in run:
        return None
    if not is_local(run):
        with offering_near_folder(run):
            return _find_on_hub(opener.client(), parse_place(run))
    folder = Path(run).expanduser()
    if any(folder.glob("factors*.safetensors")) and (folder / MANIFEST_NAME).is_file():
        return FactorPlace(str(folder), LocalFolder(folder), folder)
    return None


def _find_on_hub(client: HubClient, place: RepoPlace) -> FactorPlace | None:
    refs = client.refs(place.repo)
    place = join_slashed_revision(place, refs)
    revision = place.revision or "main"
    commit = refs.commit_of(revision)
    if commit is None:
        if place.revision is None:
            return None
        commit = client.commit_of(place.repo, revision)
    checkpoint = Checkpoint(None, place.repo, revision, commit, place.folder)
    store = HubFolder(client, checkpoint)
    files = store.files()
    if not any(FACTOR_FILE.fullmatch(name) for name in files):
        return None
    if MANIFEST_NAME not in files:
        raise ManifestError(
            f"{checkpoint.label}: has {SINGLE_FILE} and no {MANIFEST_NAME}, which says of what; "
            "extract and push again"
        )
    return FactorPlace(checkpoint.label, store, None)


def require_rising_steps(run: RunRecord, where: str) -> None:
    """Refuse checkpoints that no run of ours has: none, or steps that do not rise.

    Raises:
        ManifestError: they are such.
    """
    steps = [-1 if record.step is None else record.step for record in run.checkpoints]
    if not steps or steps[0] < 1 or any(b <= a for a, b in pairwise(steps)):
        raise ManifestError(f"{where}: its checkpoints are not those of one run, in order of steps")
