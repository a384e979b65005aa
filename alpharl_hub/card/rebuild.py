"""A finished folder's card, made anew from its alpharl.json, with what was measured since.

Scores and a backtest are kept in alpharl.json, so that every later card has them; `predict --from`
keeps the backtest, which is of the run, and has no use for the scores of another model. A card that
somebody edited is theirs: it is replaced only when they say so.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from alpharl_hub import strict_json
from alpharl_hub.card.backtests import with_backtest
from alpharl_hub.card.make import (
    CARD_NAME,
    EVAL_FILE,
    PICTURE,
    CardFacts,
    card_files,
    is_as_made,
    is_from_template,
    place_of,
    with_record,
)
from alpharl_hub.card.page import Place
from alpharl_hub.card.scores import ScoreEntry, enter
from alpharl_hub.card.template import CardTemplate
from alpharl_hub.errors import ManifestError, WriteError
from alpharl_hub.manifest import (
    KIND_MODEL,
    MANIFEST_NAME,
    BacktestRecord,
    Manifest,
    read_manifest,
)
from alpharl_hub.output.folder import write_file
from alpharl_hub.sources.local_run import near_folder

_MAIN = "main"


@dataclass(frozen=True)
class RebuiltCard:
    """A new card and the files that go with it; `in_the_way` is why the old one is not ours."""

    folder: Path
    manifest: Manifest
    files: Mapping[str, bytes]
    in_the_way: str | None

    @property
    def text(self) -> str:
        """The card as it would be written."""
        return self.files[CARD_NAME].decode()

    def write(self, overwrite: bool = False) -> tuple[str, ...]:
        """Write the files that differ, and return their names; the card comes last.

        Raises:
            WriteError: the card there was edited and `overwrite` was not given, or the disk
                refuses.
        """
        if self.in_the_way is not None and not overwrite:
            raise WriteError(
                f"{self.folder / CARD_NAME}: {self.in_the_way}, or --overwrite to replace it"
            )
        names = sorted(self.files, key=lambda name: name == CARD_NAME)
        changed = tuple(n for n in names if _read(self.folder / n) != self.files[n])
        for name in changed:
            _put(self.folder, name, self.files[name])
        if EVAL_FILE not in self.files and not _leads_away(self.folder):
            (self.folder / EVAL_FILE).unlink(missing_ok=True)
        return changed


def rebuild_card(
    folder: Path,
    scores: Sequence[ScoreEntry] = (),
    template: CardTemplate | None = None,
    backtest: BacktestRecord | None = None,
) -> RebuiltCard:
    """Make the card of a finished folder anew; nothing is written yet.

    A `backtest` takes the place of the one there.

    Raises:
        ManifestError: the folder holds no predicted model. CardError: a score that is to go is not
            there, the backtest is of another run, or the template cannot be filled in.
    """
    manifest = _read_model(folder)
    found = _read(folder / CARD_NAME)
    old_card = None if found is None else found.decode("utf-8", "replace")
    if manifest.card is None:
        manifest = with_record(manifest, CardFacts("", run_card=old_card))
    manifest = replace(manifest, scores=enter(manifest.scores, scores))
    if backtest is not None:
        manifest = with_backtest(manifest, backtest)
    place = place_of(old_card or "") or Place(folder.resolve().name, _MAIN)
    facts = CardFacts(place.name, branch=place.branch, template=template)
    files = card_files(manifest, facts, old_picture=_read(folder / PICTURE))
    return RebuiltCard(folder, manifest, files, _in_the_way(old_card, template))


def _read_model(folder: Path) -> Manifest:
    if not folder.exists():
        near = near_folder(str(folder))
        hint = f"did you mean {near}?" if near else "name a folder that predict wrote"
        raise ManifestError(f"{folder}: no such folder; {hint}")
    path = folder / MANIFEST_NAME
    if not path.is_file():
        raise ManifestError(f"{folder}: has no {MANIFEST_NAME}; name a folder that predict wrote")
    manifest = read_manifest(strict_json.read_file(path), str(path))
    if manifest.kind != KIND_MODEL:
        raise ManifestError(f"{path}: holds {manifest.kind}, no model; predict from it first")
    return manifest


def _read(path: Path) -> bytes | None:
    """Return what a file holds, None where there is none; links count as none and are replaced."""
    if path.is_symlink() or not path.is_file():
        return None
    return strict_json.read_file(path)


def _in_the_way(old_card: str | None, template: CardTemplate | None) -> str | None:
    """Say why a card must not be replaced, and what else to do; None where it may be."""
    if old_card is None:
        return None
    if not is_as_made(old_card):
        return "edited since this tool made it; keep your words elsewhere, as in --card-template"
    if is_from_template(old_card) and template is None:
        return "made from a template; name it with --card-template"
    return None


def _leads_away(folder: Path) -> bool:
    return (folder / EVAL_FILE).parent.is_symlink()


def _put(folder: Path, name: str, data: bytes) -> None:
    """Write a file under another name and give it its own, so that no reader sees half of it."""
    path = folder / name
    if name == EVAL_FILE and _leads_away(folder):
        raise WriteError(f"{path.parent}: is a link; remove it, then try again")
    staged = path.with_name(f".{path.name}.new")
    try:
        path.parent.mkdir(exist_ok=True)
        write_file(staged, data)
        os.replace(staged, path)
    except OSError as error:
        raise WriteError(f"{path}: cannot be written ({error.strerror}); make it so") from error
