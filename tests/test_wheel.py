"""What a release holds: built as `python -m build` does it, from a tree without leftovers."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from email.message import Message
from email.parser import Parser
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import alpharl_hub
from alpharl_hub.methods import METHODS

ROOT = Path(__file__).parents[1]
PACKAGE = "alpharl_hub"
LEFTOVERS = shutil.ignore_patterns("__pycache__", ".*_cache", "*.pyc")
SOURCES = (PACKAGE, "tests", "examples", ".ci")
FILES = ("pyproject.toml", "MANIFEST.in", "README.md", "LICENSE", "CHANGELOG.md", "CITATION.cff")
# Of the extras, those that the package itself imports from; `train` also serves the examples.
RUNTIME_EXTRAS = ("demo", "plot", "ray", "train")


@dataclass(frozen=True)
class Release:
    """A built sdist and the wheel that was built from it alone."""

    sdist: Path
    wheel: Path

    @property
    def sdist_names(self) -> set[str]:
        """The files of the sdist, without the folder that they are in."""
        with tarfile.open(self.sdist) as archive:
            names = [member.name for member in archive.getmembers() if member.isfile()]
        return {name.partition("/")[2] for name in names}

    @property
    def wheel_names(self) -> set[str]:
        """The files of the wheel."""
        with zipfile.ZipFile(self.wheel) as archive:
            return set(archive.namelist())

    @property
    def metadata(self) -> Message:
        """METADATA of the wheel."""
        (name,) = (n for n in self.wheel_names if n.endswith(".dist-info/METADATA"))
        with zipfile.ZipFile(self.wheel) as archive:
            return Parser().parsestr(archive.read(name).decode())

    def requirements(self, extra: str = "") -> set[str]:
        """The names of what an extra adds, or of what is always installed."""
        found = set()
        for line in self.metadata.get_all("Requires-Dist", []):
            requirement = Requirement(line)
            of_extra = re.search(r"""extra == ["'](\w+)["']""", str(requirement.marker or ""))
            if (of_extra[1] if of_extra else "") == extra:
                found.add(canonicalize_name(requirement.name))
        return found


def build(kind: str, tree: Path, output: Path) -> Path:
    """Call the build backend as pip does, with the setuptools that is installed."""
    script = f"from setuptools import build_meta; build_meta.build_{kind}({str(output)!r})"
    done = subprocess.run([sys.executable, "-c", script], cwd=tree, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (built,) = output.glob("*.tar.gz" if kind == "sdist" else "*.whl")
    return built


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Release:
    """Copy the tree, make the sdist from the copy and the wheel from the unpacked sdist."""
    tmp_path = tmp_path_factory.mktemp("release")
    tree, output = tmp_path / "tree", tmp_path / "dist"
    output.mkdir()
    for name in SOURCES:
        shutil.copytree(ROOT / name, tree / name, ignore=LEFTOVERS)
    for name in FILES:
        shutil.copy(ROOT / name, tree / name)
    sdist = build("sdist", tree, output)
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path / "unpacked", filter="data")
    (unpacked,) = (tmp_path / "unpacked").iterdir()
    return Release(sdist, build("wheel", unpacked, output))


def package_files() -> set[str]:
    """Every file of the package as it lies in the tree."""
    found = (path for path in (ROOT / PACKAGE).rglob("*") if path.is_file())
    return {path.relative_to(ROOT).as_posix() for path in found if "__pycache__" not in path.parts}


def test_the_wheel_holds_the_whole_package_and_nothing_else(release: Release) -> None:
    """Code, py.typed and the demo run are in it; tests, examples and the gate are not."""
    wanted = package_files()
    assert {f"{PACKAGE}/py.typed", f"{PACKAGE}/demo_run/base/model.safetensors"} <= wanted
    outside = {name for name in release.wheel_names if ".dist-info/" not in name}
    assert outside == wanted


def test_the_sdist_holds_what_the_wheel_is_built_from(release: Release) -> None:
    """Package, licence and citation are in it; tests without their helpers are of no use there."""
    names = {name for name in release.sdist_names if ".egg-info/" not in name}
    assert names == package_files() | set(FILES) | {"PKG-INFO", "setup.cfg"}


def test_the_wheel_names_version_licence_and_command(release: Release) -> None:
    """Version and licence are the package's own, and `alpharl-hub` is the only command."""
    metadata = release.metadata
    assert metadata["Version"] == alpharl_hub.__version__
    assert metadata["License-Expression"] == "Apache-2.0"
    folder = f"{PACKAGE}-{alpharl_hub.__version__}.dist-info"
    with zipfile.ZipFile(release.wheel) as archive:
        assert archive.read(f"{folder}/licenses/LICENSE") == (ROOT / "LICENSE").read_bytes()
        commands = archive.read(f"{folder}/entry_points.txt").decode().split("\n")
    assert [line for line in commands if " = " in line] == [
        "alpharl-hub = alpharl_hub.__main__:main"
    ]


def imported_modules() -> Iterator[str]:
    """The first name of every import in the package."""
    for path in (ROOT / PACKAGE).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                yield from (alias.name.partition(".")[0] for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module:
                yield node.module.partition(".")[0]


def test_what_is_installed_is_what_is_imported(release: Release) -> None:
    """Every foreign import is declared, and the core brings nothing that is not imported."""
    foreign = set(imported_modules()) - set(sys.stdlib_module_names) - {PACKAGE}
    owners = packages_distributions()
    imported = {canonicalize_name(owners[name][0]) for name in foreign}
    core = release.requirements()
    extras = set().union(*(release.requirements(extra) for extra in RUNTIME_EXTRAS))
    assert core <= imported
    assert imported <= core | extras


def test_the_citation_is_of_this_version() -> None:
    """CITATION.cff has the fields that its format asks for, version, date, and all methods' papers.

    The date is that of the version's heading in the changelog, and is absent before a release.
    https://github.com/citation-file-format/citation-file-format/blob/main/schema-guide.md
    """
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors"} <= set(citation)
    assert citation["cff-version"] == "1.2.0"
    assert all({"type", "title", "authors"} <= set(one) for one in citation["references"])
    cited = {(one["title"], one["url"]) for one in citation["references"]}
    assert cited == {(method.paper, method.url) for method in METHODS.values()}
    assert citation["version"] == alpharl_hub.__version__
    heading = rf"(?m)^## \[{re.escape(alpharl_hub.__version__)}\] - (\S+)$"
    released = re.search(heading, (ROOT / "CHANGELOG.md").read_text())
    assert str(citation.get("date-released")) == (released[1] if released else "None")
