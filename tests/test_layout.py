"""The rooms of the package: imports run downwards, form no circle, and no file is too long to read."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from configparser import ConfigParser
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "recbole_adarec"
# From bottom to top: a room imports from itself and from those before it.
ROOMS = (
    "errors", "version", "distributed", "memory", "storage", "plugins", "data", "model", "losses", "distillation",
    "evaluation", "trainer", "config", "interop", "report", "runs", "studies", "deployment", "quick_start", "tuning",
    "subcommands", "cli",
)  # fmt: skip
LONGEST = 450  # lines
FILES = sorted(path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py"))


def module_name(file: Path) -> str:
    parts = file.with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(file): file for file in FILES}


def imports_of(module: str) -> Iterator[str]:
    """Modules of the package that a module imports anywhere, inside functions too; not what only type checkers read."""
    tree = ast.parse((PACKAGE / MODULES[module]).read_text(encoding="utf-8"))
    checked_only = {
        node
        for test in ast.walk(tree)
        if isinstance(test, ast.If) and ast.unparse(test.test) == "TYPE_CHECKING"
        for node in ast.walk(test)
    }
    for node in ast.walk(tree):
        if node in checked_only:
            continue
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            package, _, inner = name.partition(".")
            if package != "recbole_adarec":
                continue
            while inner and inner not in MODULES:
                inner = inner.rpartition(".")[0]
            if inner and inner != module:
                yield inner


GRAPH = {module: sorted(set(imports_of(module))) for module in MODULES if module}


def test_every_room_has_a_place_in_the_order():
    assert {module.partition(".")[0] for module in GRAPH} == set(ROOMS)


@pytest.mark.parametrize("module", GRAPH)
def test_no_import_runs_upwards(module):
    place = ROOMS.index(module.partition(".")[0])
    upwards = [other for other in GRAPH[module] if ROOMS.index(other.partition(".")[0]) > place]
    assert not upwards, f"{module} imports {upwards}, which stand above it"


def test_imports_form_no_circle():
    finished: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, f"a circle: {' -> '.join([*path[path.index(module) :], module])}"
        if module in finished:
            return
        for other in GRAPH[module]:
            # A package's __init__ imports its own modules, which may import each other.
            visit(other, (*path, module))
        finished.add(module)

    for module in GRAPH:
        visit(module, ())


@pytest.mark.parametrize("file", FILES, ids=str)
def test_no_file_is_too_long(file):
    assert len((PACKAGE / file).read_text(encoding="utf-8").splitlines()) <= LONGEST


def test_all_packages_are_installed():
    setup = ConfigParser()
    setup.read(ROOT / "setup.cfg")
    installed = set(setup["options"]["packages"].split())
    found = {".".join(("recbole_adarec", *file.parent.parts)) for file in FILES if file.name == "__init__.py"}
    assert installed == found | {"recbole_adarec.properties"}
