"""The run, its base and its checkpoints, as a card names them.

Local folders appear by name, as in the manifest; names from others pass through `markdown`.
"""

from __future__ import annotations

from alpharl_hub.card.markdown import ABSENT, code, link, number, table
from alpharl_hub.card.repeat import run_repo
from alpharl_hub.manifest import MANIFEST_NAME, CheckpointRecord, RunRecord

_MAX_ROWS = 40


def run_label(run: RunRecord) -> str:
    """Return how a card names the run, with a link where it is one repo."""
    repo = run_repo(run)
    if repo is not None:
        return link(code(repo), repo)
    return code(run.pattern or run.checkpoints[-1].source)


def record_label(record: CheckpointRecord) -> str:
    """Return how a card names the repo or folder of a checkpoint."""
    if record.commit is None:
        return code(record.source)
    return link(code(record.source), record.source)


def checkpoint_table(run: RunRecord) -> str:
    """Return the base and every checkpoint, with links to their commits."""
    scored = run.score_name is not None
    header = ["step", "checkpoint", "content"]
    if scored:
        header.append(f"its score ({code(run.score_name or '')})")
    shown = [run.base, *run.checkpoints]
    rows = [_checkpoint_row(record, record is run.base, scored) for record in shown]
    if len(rows) > _MAX_ROWS:
        half = _MAX_ROWS // 2
        gap = ["…", f"{len(rows) - 2 * half} more in `{MANIFEST_NAME}`", *["…"] * (len(header) - 2)]
        rows = [*rows[:half], gap, *rows[-half:]]
    return table(header, rows)


def _checkpoint_row(record: CheckpointRecord, is_base: bool, scored: bool) -> list[str]:
    step = ABSENT if record.step is None else str(record.step)
    where = record.source if record.revision is None else f"{record.source}@{record.revision}"
    label = code(f"{where}/{record.folder}" if record.folder else where)
    if record.commit is not None:
        label = link(label, record.source, "tree", record.commit, record.folder)
        content = f"commit {code(record.commit[:12])}"
    else:
        content = f"fingerprint {code((record.fingerprint or '')[:12])}"
    row = [f"{step} (base)" if is_base else step, label, content]
    return [*row, number(record.score)] if scored else row
