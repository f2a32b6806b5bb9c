"""The direction of imports, and the other rules of the house that a reader relies on."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "ollama_swap_proxy"
NAME = PACKAGE.name

RANKS = {
    "": 0,  # the package itself: its version
    "core": 0,
    "addresses": 1,
    "errors": 1,
    "logs": 1,
    "prompt": 1,
    "state_file": 1,
    "access": 2,
    "settings": 2,
    "simulator": 2,
    "bodies": 3,
    "callers": 3,
    "traits": 3,
    "config": 3,
    "listener": 3,
    "upstream": 4,
    "checks": 5,
    "gate": 5,
    "num_ctx": 5,
    "plan": 5,
    "journal": 5,
    "operator": 6,
    "app": 6,
    "serving": 7,
    "demo": 8,
    "first_run": 8,
    "cli": 9,
    "__main__": 10,
}
"""Which room stands on which: a module imports from lower ranks, or from its own room, never upward or sideways."""

NOT_IN_CORE = {
    "asyncio", "concurrent", "datetime", "http", "io", "logging", "multiprocessing", "os", "pathlib", "random",
    "secrets", "select", "selectors", "signal", "socket", "ssl", "subprocess", "threading", "time",
    "urllib.request", "uuid",
}  # fmt: skip
"""Standard library modules that wait, look outside or roll dice: the same history must give the same commands."""

ONLY_SHAPES = {"core/classes", "core/commands", "core/events", "core/tickets"}
"""Modules that hold nothing to test: value types without behaviour of their own."""

TESTED_BY = {
    "core/intake": "core/test_scheduler",
    "upstream/eviction": "upstream/test_simulated",
    "upstream/exchange": "upstream/test_relay",
    "upstream/pool": "upstream/test_relay",
}
"""Modules whose behaviour shows only together with others: the test file that covers them. All others have one of
their name."""

LONGEST_MODULE = 350
LONGEST_TEST = 600

MODULES = sorted(PACKAGE.rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))


def _dotted(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


def _room(dotted: str) -> str:
    return dotted.removeprefix(NAME).removeprefix(".").split(".")[0]


def _imports(tree: ast.AST, *, at_import: bool = False) -> Iterator[str]:
    """Yield every imported module's full name; ``at_import`` leaves out functions and what is for types only."""
    later = [node for node in ast.walk(tree) if isinstance(node, _FUNCTIONS) or _is_for_types(node)]
    inside = {id(node) for block in later for node in ast.walk(block)}
    for node in ast.walk(tree):
        if at_import and id(node) in inside:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute here"
            module = node.module or ""
            yield from (_resolve(module, alias.name) for alias in node.names)


_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


def _is_for_types(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def _resolve(module: str, name: str) -> str:
    path = ROOT.joinpath(*module.split("."))
    return f"{module}.{name}" if (path / f"{name}.py").exists() or (path / name).is_dir() else module


def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def _each(paths: list[Path]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("path", paths, ids=[str(path.relative_to(ROOT)) for path in paths])


@_each(MODULES)
def test_no_module_imports_upward(path: Path) -> None:
    room = _room(_dotted(path))
    assert room in RANKS, f"give the room {room!r} a rank"
    for imported in _imports(_tree(path)):
        other = _room(imported) if imported.split(".")[0] == NAME else room
        assert other == room or RANKS[other] < RANKS[room], f"{_dotted(path)} imports {imported}"


@_each(sorted((PACKAGE / "core").rglob("*.py")))
def test_the_core_is_pure(path: Path) -> None:
    tree = _tree(path)
    for imported in _imports(tree):
        top = imported.split(".")[0]
        assert top == NAME or top in sys.stdlib_module_names, f"imports {imported}"
        assert not {top, imported} & NOT_IN_CORE, f"imports {imported}"
    waits = [node for node in ast.walk(tree) if isinstance(node, ast.AsyncFunctionDef | ast.Await | ast.AsyncFor)]
    assert not waits, "the core does not wait"


@_each(sorted((PACKAGE / "simulator").rglob("*.py")))
def test_the_simulator_imports_nothing_of_the_proxy(path: Path) -> None:
    ours = {_room(imported) for imported in _imports(_tree(path)) if imported.split(".")[0] == NAME}
    assert ours <= {"simulator"}


def test_no_modules_import_each_other_in_a_circle() -> None:
    known = {_dotted(path): path for path in MODULES}
    graph = {name: {i for i in _imports(_tree(path), at_import=True) if i in known} for name, path in known.items()}
    done: set[str] = set()

    def visit(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, " -> ".join([*trail[trail.index(name) :], name])
        if name not in done:
            for other in sorted(graph[name] - {name}):
                visit(other, (*trail, name))
            done.add(name)

    for name in graph:
        visit(name, ())


@_each([path for path in MODULES if path.name != "config.py"])
def test_settings_are_read_nowhere_but_in_config(path: Path) -> None:
    for node in ast.walk(_tree(path)):
        used = node.attr if isinstance(node, ast.Attribute) else node.name if isinstance(node, ast.alias) else ""
        assert used not in {"environ", "environb", "getenv"}, (
            f"line {getattr(node, 'lineno', '?')} reads the environment"
        )


def _has_tests(module: str) -> bool:
    return bool(list((ROOT / "tests").glob(f"{module}*.py")))


def _test_of_its_name(module: str) -> str:
    room, _, name = module.rpartition("/")
    return f"{room}/test_{name}"


@_each([p for room in ("core", "upstream") for p in sorted((PACKAGE / room).rglob("*.py")) if p.name != "__init__.py"])
def test_every_module_of_core_and_upstream_has_a_test_file(path: Path) -> None:
    module = path.relative_to(PACKAGE).with_suffix("").as_posix()
    if module not in ONLY_SHAPES:
        wanted = TESTED_BY.get(module, _test_of_its_name(module))
        assert _has_tests(wanted), f"tests/{wanted}.py is missing"


@pytest.mark.parametrize("module", sorted({*TESTED_BY, *ONLY_SHAPES}))
def test_no_exception_outlives_its_reason(module: str) -> None:
    assert (PACKAGE / f"{module}.py").exists(), f"{module} is gone"
    assert not _has_tests(_test_of_its_name(module)), f"{module} has a test file of its own"


@pytest.mark.parametrize("module", sorted(ONLY_SHAPES))
def test_what_is_said_to_hold_only_shapes_does(module: str) -> None:
    """Small properties and ``__str__`` are part of a shape; whatever branches or loops belongs elsewhere."""
    branching = (ast.If, ast.For, ast.While, ast.Match, ast.Try)
    assert not [node.lineno for node in ast.walk(_tree(PACKAGE / f"{module}.py")) if isinstance(node, branching)]


@_each(MODULES)
def test_every_module_says_what_it_is_and_stays_short(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    says = " ".join((ast.get_docstring(ast.parse(text)) or "").split())
    assert says, "a module opens by saying what it is"
    if not path.stem.startswith("__"):
        assert "Owns " in says, "a module says what it owns"
        assert "Must not " in says, "a module says what it must not do"
    assert len(text.splitlines()) <= LONGEST_MODULE
    assert path.stem not in {"utils", "helpers", "common", "manager"}


@_each(TESTS)
def test_test_files_stay_short(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= LONGEST_TEST


def test_the_map_of_the_core_has_every_module_once() -> None:
    core = PACKAGE / "core"
    places = re.findall(r"`(\w+)`", core.joinpath("__init__.py").read_text().partition("Where to look:")[2])
    assert sorted(places) == sorted(path.stem for path in core.glob("*.py") if path.stem != "__init__")
