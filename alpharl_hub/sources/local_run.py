"""A run whose checkpoints are folders on this machine."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path

from alpharl_hub.errors import SourceError, TrajectoryError, did_you_mean
from alpharl_hub.manifest import MANIFEST_NAME, Notice
from alpharl_hub.sources.contents import find_weights_folder
from alpharl_hub.sources.listing import Listing, keep_complete
from alpharl_hub.sources.local import LocalFolder, list_step_folders
from alpharl_hub.sources.step_names import (
    PLACEHOLDER,
    Family,
    choose_family,
    find_families,
    match_pattern,
    mention_patterns,
)
from alpharl_hub.trajectory import Checkpoint, CheckpointStore, StoredFile

_MAX_CARD_CHARS = 1 << 20
_NEAR = 0.5
"""How alike a folder's name must be to be offered for one that is not there: grpo for gprt."""


class LocalRun:
    """Step folders below one root, found by their names or by a pattern with {step}."""

    def __init__(self, run: str) -> None:
        if run.count(PLACEHOLDER) > 1:
            raise SourceError(f"{run}: {PLACEHOLDER} stands more than once; one number is the step")
        path = Path(run).expanduser()
        self.text = run
        self.inner = ""
        self.pattern: str | None = None
        if PLACEHOLDER in run:
            parts = path.parts
            position = next(i for i, part in enumerate(parts) if PLACEHOLDER in part)
            self.pattern = parts[position]
            self.inner = "/".join(parts[position + 1 :])
            path = Path(*parts[:position])
        self.root = path

    def list_steps(self) -> Listing:
        """List the step folders; a folder that is itself a model has none."""
        require_folder(self.root, str(self.root))
        family = self._family(list_step_folders(self.root))
        if family is None:
            return Listing("single", "", (), ())
        files = {name: self._files(name) for name in family.names.values()}
        kept, notices = keep_complete(files)
        checkpoints = tuple(
            Checkpoint(step, str(self._path(name)), None, None, "")
            for step, name in family.names.items()
            if name in kept
        )
        pattern = f"{family.pattern}/{self.inner}" if self.inner else family.pattern
        return Listing("local", pattern, checkpoints, notices)

    def _family(self, names: tuple[str, ...]) -> Family | None:
        if self.pattern is None:
            families = [f for f in find_families(names) if not self._is_predicted(f)]
            return choose_family(tuple(families), self.text, f"{self.text.rstrip('/')}/*")
        family = match_pattern(self.pattern, names)
        if not family.names:
            raise TrajectoryError(
                f"{self.root}: no folder fits {self.pattern}; there is {', '.join(names[:5])}"
                f"{did_you_mean(self.pattern, mention_patterns(names))}"
                if names
                else f"{self.root}: no folder fits {self.pattern}; it has no folders, name another"
            )
        return family

    def _is_predicted(self, family: Family) -> bool:
        """Whether this tool wrote all of it: predictions beside a run are no run of their own."""
        return all((self.root / name / MANIFEST_NAME).is_file() for name in family.names.values())

    def no_steps(self) -> TrajectoryError:
        """Say that the folder is one model, or none."""
        if find_weights_folder(LocalFolder(self.root).files()) is not None:
            return TrajectoryError(
                f"{self.text}: one model and no steps; say which step it is with --at .=STEP"
            )
        return TrajectoryError(
            f"{self.text}: no step found; say where the number stands, such as "
            f"{self.text.rstrip('/')}/checkpoint-{PLACEHOLDER}"
        )

    def base_nearby(self) -> str | None:
        """Return the folder `base` in or beside the run, where one holds weights."""
        for folder in (self.root / "base", self.root.parent / "base"):
            if folder.is_dir() and find_weights_folder(LocalFolder(folder).files()) is not None:
                return spelt_as_folder(folder)
        return None

    def look_aside(self, listing: Listing) -> tuple[Notice, ...]:
        """Say nothing: what lies beside step folders is anybody's."""
        return ()

    def _files(self, name: str) -> Mapping[str, StoredFile]:
        """List one step's files; a step that lacks the folder of the pattern has none."""
        path = self._path(name)
        return LocalFolder(path).files() if path.is_dir() else {}

    def _path(self, name: str) -> Path:
        return self.root / name / self.inner if self.inner else self.root / name

    def extra_checkpoint(self, name: str, step: int) -> Checkpoint:
        """Take the folder `name` below the root (or ".", the root itself) as a step."""
        path = self.root / name
        if not path.is_dir():
            near = near_folder(str(path))
            hint = f"; did you mean {near}?" if near else "; name one that is there"
            raise SourceError(f"--at {name}={step}: {path} is no folder{hint}")
        return Checkpoint(step, str(path), None, None, "")

    def open_store(self, checkpoint: Checkpoint) -> CheckpointStore:
        """Open one of the folders."""
        return LocalFolder(Path(checkpoint.source))

    def card_text(self, checkpoint: Checkpoint) -> str | None:
        """Return the README.md beside the weights, else the one of the run's root."""
        for folder in (Path(checkpoint.source), self.root):
            card = folder / "README.md"
            if card.is_file():
                return _read_card(card)
        return None


def _read_card(path: Path) -> str | None:
    """Read a card, or its beginning, where all that is looked for stands."""
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            return file.read(_MAX_CARD_CHARS)
    except OSError as error:
        raise SourceError(f"{path}: cannot be read ({error.strerror})") from error


def pin_folder(text: str) -> tuple[Checkpoint, CheckpointStore]:
    """Take a local folder as a base."""
    path = Path(text).expanduser()
    require_folder(path, f"--base {text}")
    return Checkpoint(None, str(path), None, None, ""), LocalFolder(path)


def require_folder(path: Path, what: str) -> None:
    """Refuse what is no folder.

    Raises:
        SourceError: nothing is there, or a file.
    """
    if path.is_file():
        raise SourceError(f"{what}: a file; name the folder that it lies in")
    if not path.is_dir():
        near = near_folder(str(path))
        hint = f"did you mean {near}? To" if near else "to"
        raise SourceError(f"{what}: no such folder; {hint} name a repo, write hf://ORG/NAME")


def near_folder(text: str) -> str | None:
    """Return the folder here whose name is most like one that is not there, None without any."""
    parts = Path(text).parts
    for count, part in enumerate(parts):
        parent = Path(*parts[:count])
        if (parent / part).exists():
            continue
        try:
            found = [path.name for path in parent.iterdir() if path.is_dir()]
        except OSError:
            return None
        near = get_close_matches(part, found, n=1, cutoff=_NEAR)
        if not near:
            return None
        whole = parent.joinpath(near[0], *parts[count + 1 :])
        return spelt_as_folder(whole if whole.is_dir() else parent / near[0])
    return None


def spelt_as_folder(path: Path) -> str:
    """Write a path so that it names no repo: Path drops a leading "./"."""
    text = str(path)
    return text if text.startswith(("/", ".", "~")) else f"./{text}"


def is_local(text: str) -> bool:
    """Whether a RUN or base names a folder: by its first character, or because it is one.

    With a {step} it is one when a folder fits.
    """
    if text.startswith("hf://") or not text:
        return False
    if text.startswith(("/", ".", "~")) or Path(text).exists():
        return True
    parts = Path(text).parts
    position = next((i for i, part in enumerate(parts) if PLACEHOLDER in part), None)
    if position is None or text.count(PLACEHOLDER) > 1:
        return False
    root = Path(*parts[:position])
    return root.is_dir() and bool(match_pattern(parts[position], list_step_folders(root)).names)


def could_be_repo(text: str) -> bool:
    """Whether the name of a folder could name a repo just as well, but for the folder being there.

    Only the form is looked at: ORG/NAME and what may follow.
    """
    if text.startswith(("/", ".", "~")) or "/" not in text.strip("/"):
        return False
    return is_local(text) and not Path(text).is_file()
