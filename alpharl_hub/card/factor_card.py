"""The small card (README.md) of a repo of extracted factors, from their manifest alone.

Names from others pass through `markdown`; local folders appear by name, as in the manifest.
"""

from __future__ import annotations

from collections.abc import Sequence

from huggingface_hub import ModelCardData

from alpharl_hub.card.checkpoints import checkpoint_table, record_label, run_label
from alpharl_hub.card.licenses import LicenseChoice, StatedBy, choose_license
from alpharl_hub.card.markdown import code, fenced, hub_url, number, prose, table
from alpharl_hub.card.metadata import is_hub_id, stated
from alpharl_hub.card.repeat import run_repo
from alpharl_hub.manifest import CheckpointRecord, Manifest, RunRecord

TAGS = ("alpharl-hub", "alpharl-factors", "reinforcement-learning")
_UNSTATED = stated(None)


def make_factor_card(manifest: Manifest, repo: str, branch: str, num_bytes: int) -> str:
    """Return README.md of factors; `manifest.kind` must be "factors".

    `repo` and `branch` are where they are pushed to, `num_bytes` is the size of the factor files.
    """
    run = manifest.run
    record = manifest.card
    license_ = choose_license(
        None if record is None else record.license,
        (
            StatedBy("run", record.run if record else _UNSTATED, _repo_url(run.checkpoints[-1])),
            StatedBy("base", record.base if record else _UNSTATED, _repo_url(run.base)),
        ),
        (),
    )
    parts = (
        f"# {prose(repo)}",
        _headline(run),
        _glance(manifest, num_bytes),
        _use(manifest, repo, branch),
        f"## What was read\n\n{checkpoint_table(run)}",
        f"## License\n\n{license_.reason}",
    )
    return "\n\n".join((f"---\n{_front_matter(run, license_)}\n---", *parts)) + "\n"


def _front_matter(run: RunRecord, license_: LicenseChoice) -> str:
    repo = run_repo(run)
    data = ModelCardData(
        license=license_.identifiers[0],
        license_name=license_.name,
        license_link=license_.link,
        library_name="alpharl-hub",
        tags=[*TAGS, *([repo] if repo is not None and is_hub_id(repo) else [])],
    )
    if len(license_.identifiers) > 1:
        data["license"] = list(license_.identifiers)
    return data.to_yaml()


def _headline(run: RunRecord) -> str:
    return (
        f"What the RL run {run_label(run)} changed in its base {record_label(run.base)}, in little "
        "space: the largest singular triplets of every matrix's update at every step that was "
        "read. **This is no model**, and nothing loads it as one."
    )


def _glance(manifest: Manifest, num_bytes: int) -> str:
    run, rank = manifest.run, manifest.rank or 1
    steps = [record.step for record in run.checkpoints]
    versions = manifest.versions
    rows = [
        ["**Run**", run_label(run)],
        ["**Base**", record_label(run.base)],
        ["**Rank**", f"{rank} triplet{'s' if rank > 1 else ''} of each update"],
        ["**Steps**", f"{len(steps)}: {_listed(steps)}"],
        ["**Matrices**", str(len(manifest.tensors))],
        ["**Size**", f"{number(num_bytes / 1e6)} MB, in fp32"],
        ["**Made with**", f"{code(f'alpharl-hub {versions.alpharl_hub}')}, without training"],
    ]
    if run.score_name is not None:
        rows.insert(4, ["**Scores of the steps**", code(run.score_name)])
    if manifest.trust is not None:
        rows.append(["**Direction of the run**", prose(manifest.trust.verdict)])
    return table(["", ""], rows)


def _listed(steps: Sequence[int | None]) -> str:
    shown = [str(step) for step in steps]
    return ", ".join(shown if len(shown) <= 12 else [*shown[:6], "…", *shown[-3:]])


def _target(manifest: Manifest) -> str:
    """Return a step for the example: no farther ahead than the run's direction carries."""
    last, trust = manifest.run.checkpoints[-1].step or 0, manifest.trust
    if trust is None or trust.cap <= 1:
        return "N"
    return str(int(last * min(2.0, trust.cap)))


def _use(manifest: Manifest, repo: str, branch: str) -> str:
    run = manifest.run
    place = f"hf://{repo}" if branch == "main" else f"hf://{repo}@{branch.replace('/', '%2F')}"
    words = f"alpharl-hub predict {place} --method alpharl --target-step {_target(manifest)}"
    needed = (run.base, *((run.start,) if run.start else ()), run.checkpoints[-1])
    local = [record for record in needed if record.commit is None]
    for record in local:
        words += " --base BASE" if record is run.base else f" --at CHECKPOINT={record.step}"
    text = (
        "## How to use it\n\n"
        + fenced([f"alpharl-hub report {place}", f"{words} -o predicted"], "bash")
        + "\n\nThe report reads this repo and nothing else. A prediction reads of the run only the "
        "base and the last checkpoint besides, at the commits that stand below."
    )
    if local:
        names = " and ".join(code(record.source) for record in local)
        text += (
            f" Of these {names} {'are' if len(local) > 1 else 'is'} no part of any repo: "
            "whoever predicts needs the folder and names it."
        )
    return text


def _repo_url(record: CheckpointRecord) -> str | None:
    return hub_url(record.source) if record.commit is not None else None
