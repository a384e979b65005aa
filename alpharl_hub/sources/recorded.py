"""Open again the very checkpoints that a manifest names.

A manifest may come from a stranger: repos and commits are checked for their form, and a local
folder is only ever one that the user named, compared by fingerprint.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import PurePosixPath

from alpharl_hub.errors import ManifestError
from alpharl_hub.manifest import CheckpointRecord
from alpharl_hub.sources.contents import open_contents
from alpharl_hub.sources.hub import HubFolder
from alpharl_hub.sources.hub_client import HubClient
from alpharl_hub.strict_json import shown
from alpharl_hub.trajectory import Checkpoint, CheckpointContents, CheckpointStore

FindLocal = Callable[[CheckpointRecord], tuple[Checkpoint, CheckpointStore]]
"""Says which local folder, named by the user, is the one recorded."""

_COMMIT = re.compile(r"^[0-9a-f]{40}$")
_REPO = re.compile(r"^[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*$")


def open_recorded(
    records: Sequence[CheckpointRecord],
    client: Callable[[], HubClient],
    find_local: FindLocal,
) -> tuple[CheckpointContents, ...]:
    """Open checkpoints as recorded, each on the Hub at its commit or in the user's folder.

    Raises:
        ManifestError: a record is malformed, or a local folder holds other weights by now.
        SourceError: a commit is gone or cannot be read.
    """
    return tuple(_open(record, client, find_local) for record in records)


def _open(
    record: CheckpointRecord, client: Callable[[], HubClient], find_local: FindLocal
) -> CheckpointContents:
    if record.commit is None:
        contents = open_contents(*find_local(record))
        if contents.fingerprint != record.fingerprint:
            meant = "the base" if record.step is None else f"step {record.step}"
            raise ManifestError(
                f"{contents.checkpoint.label}: not the weights that the manifest names as {meant} "
                f"({record.source}); name the folder that has them"
            )
        return contents
    parts = PurePosixPath(record.folder).parts
    if not (_COMMIT.fullmatch(record.commit) and _REPO.fullmatch(record.source)) or ".." in parts:
        raise ManifestError(
            f"the manifest's checkpoint {shown(record.source)} is no repo at a commit; name a RUN "
            "and --base of your own instead of --from"
        )
    checkpoint = Checkpoint(
        record.step, record.source, record.revision, record.commit, record.folder
    )
    return open_contents(checkpoint, HubFolder(client(), checkpoint))
