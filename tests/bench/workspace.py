"""The temporary folder of one benchmark: runs are made when a part first needs them."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.bench.models import RunFolders, Shapes, write_run
from tests.bench.serving import BASE_REPO, RUN_REPO, Server, fill_hub, serve

CERTIFICATE = Path(__file__).parents[1] / "data" / "loopback.pem"


@dataclass(frozen=True)
class PlacedRun:
    """A run on the disk and on a Hub that is not being served yet."""

    shapes: Shapes
    folders: RunFolders
    root: Path

    @property
    def num_steps(self) -> int:
        """How many checkpoints there are beside the base."""
        return len(self.folders.steps)

    @property
    def target_step(self) -> int:
        """A step to predict: twice the last."""
        return 2 * self.folders.steps[-1]


@dataclass
class Workspace:
    """Makes, keeps and drops runs below `folder`."""

    folder: Path
    quick: bool
    _runs: dict[tuple[Shapes, int], PlacedRun] = field(default_factory=dict)

    def run(self, shapes: Shapes, num_steps: int) -> PlacedRun:
        """Return a run of these shapes, making it the first time."""
        key = (shapes, num_steps)
        if key not in self._runs:
            place = self.folder / f"run-{len(self._runs)}"
            steps = tuple(100 * (i + 1) for i in range(num_steps))
            placed = PlacedRun(shapes, write_run(place / "models", shapes, steps), place)
            fill_hub(place / "hub", placed.folders)
            self._runs[key] = placed
        return self._runs[key]

    def drop(self, run: PlacedRun) -> None:
        """Delete a run that no later part needs, and its disk space with it."""
        self._runs = {key: kept for key, kept in self._runs.items() if kept is not run}
        shutil.rmtree(run.root)

    def fresh(self, name: str) -> Path:
        """Return a folder that is not there."""
        shutil.rmtree(self.folder / name, ignore_errors=True)
        return self.folder / name

    @contextmanager
    def serving(
        self, run: PlacedRun, rate_bytes_per_s: float | None = None, tls: bool = False
    ) -> Iterator[Server]:
        """Serve a run, with a new and empty HF_HOME."""
        home = self.fresh("home")
        certificate = CERTIFICATE if tls else None
        with serve(run.root / "hub", home, rate_bytes_per_s, certificate) as server:
            yield server


def extract_arguments(output: Path) -> list[str]:
    """Return the command that extracts a served run."""
    return ["extract", RUN_REPO, "--base", BASE_REPO, "-o", str(output), "-q"]


def predict_arguments(run: PlacedRun, output: Path) -> list[str]:
    """Return the command that predicts from a served run."""
    target = ["--target-step", str(run.target_step), "--method", "alpharl", "-q"]
    return ["predict", RUN_REPO, "--base", BASE_REPO, "-o", str(output), *target]
