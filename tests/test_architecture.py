"""The shape of the package: which way imports point, who may use what, how large things get."""

from __future__ import annotations

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

import alpharl_hub
from alpharl_hub.cli import main

PACKAGE = "alpharl_hub"
ROOT = Path(alpharl_hub.__file__).parent
TESTS = Path(__file__).parent

LAYERS: dict[str, tuple[str, ...]] = {
    "nouns": (
        *("errors", "version", "strict_json", "manifest", "module_names", "scores"),
        *("trajectory", "results", "report_records"),
    ),
    "mathematics and formats": (
        *("byte_ranges", "safetensors_header", "tensor_bytes", "scope", "numerics", "methods"),
    ),
    "files and repos": ("sources", "output", "drawing", "card", "push"),
    "one pass": ("windows", "executors", "base_check", "preparation"),
    "stories": ("prediction", "reporting", "sweeping", "backtesting", "pipeline"),
    "programs": ("api", "training", "cli", "demo", "local_hub", "__main__", ""),
}
"""From the bottom to the top: a module imports from its own layer and from those below it."""

ALLOWED: dict[str, tuple[str, ...]] = {
    "click": ("cli",),
    "rich": ("cli",),
    "tqdm": ("cli.running",),
    "huggingface_hub": (
        *("sources.hub_client", "sources.hub_session", "sources.hub_uri"),
        *("push.guarded_client", "push.hub_target", "push.questions", "push.refusals"),
        *("card.metadata", "card.factor_card", "push.model_upload"),
    ),
    "urllib3": ("sources.http_answers", "sources.http_reader", "sources.http_routes"),
    "ray": ("executors.ray",),
    "yaml": ("card.metadata",),
    "jinja2": ("card.template",),
    "matplotlib": ("drawing",),
    "transformers": ("demo.task", "training.callback"),
    "torch": (
        *("numerics", "methods", "tensor_bytes", "windows.reader", "windows.devices"),
        "windows.buffers",
        *("base_check", "prediction.predict", "prediction.setting", "prediction.deltas"),
        *(
            "prediction.survey",
            "prediction.window_work",
            "prediction.adapter_delivery",
            "prediction.adapter_work",
            "executors.ray",
        ),
        *("reporting.analysis", "reporting.extraction", "reporting.report"),
        *("sweeping.mixing", "backtesting"),
        *("output.factor_files", "output.adapter_files"),
        *("cli.running", "demo.task", "training.spectrum"),
    ),
}
"""Which modules (or whole packages) may import what is not in the standard library."""

MATHEMATICS = ("numerics", "methods")
MAX_MODULE_LINES = 400
MAX_FUNCTION_LINES = 60


def module_name(path: Path) -> str:
    """The name of a module below the package; the package itself is the empty name."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in sorted(ROOT.rglob("*.py"))}


@cache
def tree_of(path: Path) -> ast.Module:
    """The syntax tree of a source file."""
    return ast.parse(path.read_text(encoding="utf-8"))


def imported(path: Path) -> set[str]:
    """Every module that a file imports, at its top, in functions, and for type checking."""
    found = set()
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            module = node.module or ""
            for alias in node.names:
                inner = f"{module}.{alias.name}".removeprefix(f"{PACKAGE}.")
                is_module = module.split(".")[0] == PACKAGE and inner in MODULES
                found.add(f"{module}.{alias.name}" if is_module else module)
    return found


def own_imports(name: str) -> set[str]:
    """The modules of the package that one of them imports."""
    return {
        other.removeprefix(PACKAGE).removeprefix(".")
        for other in imported(MODULES[name])
        if other.split(".")[0] == PACKAGE
    } - {name}


def is_within(name: str, places: tuple[str, ...]) -> bool:
    """Whether a module is one of the places or inside of one."""
    return any(name == place or (place and name.startswith(f"{place}.")) for place in places)


def layer_of(name: str) -> int:
    """The number of the layer that a module belongs to."""
    found = [i for i, places in enumerate(LAYERS.values()) if is_within(name, places)]
    assert len(found) == 1, f"{name}: in {len(found)} layers; every module belongs to one"
    return found[0]


def test_imports_point_downwards() -> None:
    """No module imports from a layer above its own."""
    upward = [
        f"{name} -> {other}"
        for name in MODULES
        for other in own_imports(name)
        # Everybody may ask the package for its errors and version, which it only passes on.
        if other and layer_of(other) > layer_of(name)
    ]
    assert upward == []


def test_imports_have_no_cycle() -> None:
    """Modules can be put in an order in which each imports only earlier ones."""
    remaining = {name: own_imports(name) for name in MODULES}
    while remaining:
        ready = {name for name, needed in remaining.items() if not needed & remaining.keys()}
        assert ready, f"a cycle among {sorted(remaining)}"
        remaining = {name: needed for name, needed in remaining.items() if name not in ready}


def test_local_hub_stands_alone() -> None:
    """The Hub for demo and tests uses the standard library and its own modules only."""
    for name, path in MODULES.items():
        if not is_within(name, ("local_hub",)):
            continue
        for other in imported(path):
            top = other.split(".")[0]
            assert top in sys.stdlib_module_names or other.startswith(f"{PACKAGE}.local_hub"), other


def test_third_parties_are_used_only_where_they_may() -> None:
    """Each import of another distribution stands on the list; numpy stands nowhere."""
    for name, path in MODULES.items():
        for other in imported(path):
            top = other.split(".")[0]
            if top != PACKAGE and top not in sys.stdlib_module_names:
                assert is_within(name, ALLOWED.get(top, ())), f"{name} imports {other}"


def test_every_permission_is_used() -> None:
    """The list of permissions holds no module that does not need it any more."""
    for top, places in ALLOWED.items():
        for place in places:
            users = [name for name in MODULES if is_within(name, (place,))]
            used = {other.split(".")[0] for name in users for other in imported(MODULES[name])}
            assert top in used, f"{place} does not import {top}"


def test_mathematics_knows_no_files() -> None:
    """Numeric modules take tensors: they import nothing that opens, reads or writes."""
    for name, path in MODULES.items():
        if is_within(name, MATHEMATICS):
            tops = {other.split(".")[0] for other in imported(path)}
            assert not tops & {"os", "io", "pathlib", "shutil", "tempfile", "json"}, name


@pytest.mark.parametrize("name", MODULES)
def test_modules_and_functions_stay_small(name: str) -> None:
    """A module has under 400 lines and a function under 60."""
    assert len(MODULES[name].read_text(encoding="utf-8").splitlines()) < MAX_MODULE_LINES
    for node in ast.walk(tree_of(MODULES[name])):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            num_lines = (node.end_lineno or 0) - node.lineno + 1
            assert num_lines < MAX_FUNCTION_LINES, node.name


def undocumented(tree: ast.Module) -> list[str]:
    """Public functions, classes and methods of public classes without a docstring."""
    found = [] if ast.get_docstring(tree) else ["the module"]
    bodies = [("", tree.body)]
    while bodies:
        prefix, body = bodies.pop()
        for node in body:
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                continue
            if node.name.startswith("_"):
                continue
            if not ast.get_docstring(node):
                found.append(prefix + node.name)
            if isinstance(node, ast.ClassDef):
                bodies.append((f"{node.name}.", node.body))
    return found


@pytest.mark.parametrize("name", MODULES)
def test_everything_public_is_documented(name: str) -> None:
    """Modules, public classes, functions and methods say what they are for."""
    assert undocumented(tree_of(MODULES[name])) == []


TEST_FILES = sorted(TESTS.glob("*.py"))
UNTOUCHABLE = {"huggingface_hub", "transformers", "torch"}


def origins(tree: ast.Module) -> dict[str, str]:
    """Where each imported name of a file comes from: its top package."""
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                top = alias.name.split(".")[0]
                found[alias.asname or top] = top
        elif isinstance(node, ast.ImportFrom):
            top = (node.module or "").split(".")[0]
            found.update({alias.asname or alias.name: top for alias in node.names})
    return found


@pytest.mark.parametrize("path", TEST_FILES, ids=lambda path: path.name)
def test_tests_replace_nothing_of_others_and_say_what_they_hold(path: Path) -> None:
    """Every test has a docstring; none replaces a part of torch, transformers or the client."""
    tree = tree_of(path)
    known = origins(tree)
    assert "mock" not in known
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
            assert ast.get_docstring(node), node.name
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            if node.func.attr not in ("setattr", "delattr") or not node.args:
                continue
            target: ast.AST = node.args[0]
            while isinstance(target, ast.Attribute):
                target = target.value
            if isinstance(target, ast.Constant):
                top = str(target.value).split(".")[0]
            else:
                top = known.get(target.id, "") if isinstance(target, ast.Name) else ""
            assert top not in UNTOUCHABLE, f"line {node.lineno}"


LIGHT = """
import sys
import alpharl_hub
heavy = {"torch", "numpy", "transformers", "huggingface_hub"}
assert not heavy & set(sys.modules), sorted(heavy & set(sys.modules))
from alpharl_hub.cli import main
for arguments in ([], *([name] for name in main.commands)):
    try:
        main([*arguments, "--help"])
    except SystemExit as end:
        assert end.code == 0
assert not heavy & set(sys.modules), sorted(heavy & set(sys.modules))
"""


def test_import_and_help_are_light() -> None:
    """`import alpharl_hub`, `--help` and every command's --help load no heavy library."""
    ended = subprocess.run(
        [sys.executable, "-c", LIGHT],
        env={"PYTHONPATH": str(ROOT.parent), "PATH": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    for command in main.commands:
        assert f"Usage: -c {command}" in ended.stdout
