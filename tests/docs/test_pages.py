"""Pages as documented: links resolve, commands exist, words and codes are those of the code."""

from __future__ import annotations

import ast
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from ollama_swap_proxy import __version__
from ollama_swap_proxy.cli import main
from ollama_swap_proxy.core import endpoints
from ollama_swap_proxy.upstream.heads import REQUEST_RULES

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "ollama_swap_proxy"
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
OURS = [path for path in sorted(PACKAGE.rglob("*.py")) if "simulator" not in path.parts]


def _read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def _table_words(page: str, heading: str = "") -> list[str]:
    section = page.partition(heading)[2] if heading else page
    return re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE)


def _anchors(page: str) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", page, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", PAGES, ids=[page.name for page in PAGES])
def test_relative_links_resolve(path: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", path.read_text(encoding="utf-8")):
        if target.startswith(("http://", "https://")):
            continue
        name, _, anchor = target.partition("#")
        there = (path.parent / name).resolve() if name else path
        assert there.exists(), target
        if anchor:
            assert anchor in _anchors(there.read_text(encoding="utf-8")), target


def test_make_targets_named_in_the_pages_exist() -> None:
    targets = set(re.findall(r"^([a-z]+):", _read("Makefile"), re.MULTILINE))
    for path in PAGES:
        text = path.read_text(encoding="utf-8")
        named = set(re.findall(r"(?:^|`)make ([a-z]+)", text, re.MULTILINE))
        assert named <= targets, f"{path.name}: {named - targets}"


def test_commands_named_in_the_pages_exist() -> None:
    for path in PAGES:
        text = path.read_text(encoding="utf-8")
        named = set(re.findall(r"(?<!/)(?<!called )\bollama-swap-proxy ([a-z]+)\b", text))
        assert named <= set(main.commands), f"{path.name}: {named - set(main.commands)}"  # type: ignore[attr-defined]


def test_every_command_is_told_to_the_reader() -> None:
    text = "\n".join(path.read_text(encoding="utf-8") for path in PAGES)
    for command in main.commands:  # type: ignore[attr-defined]
        assert f"ollama-swap-proxy {command}" in text or f"make {command}" in text, command


def test_the_changelog_has_this_version() -> None:
    headings = re.findall(r"^## \[(.+?)\]", _read("CHANGELOG.md"), re.MULTILINE)
    assert headings[0] == "Unreleased" if "dev" in __version__ else __version__ in headings


def test_every_run_time_dependency_has_its_reason_and_there_are_at_most_ten() -> None:
    wanted = [re.split(r"[<>=~!]", d)[0] for d in tomllib.loads(_read("pyproject.toml"))["project"]["dependencies"]]
    section = _read("docs/design.md").partition("## What it stands on")[2].partition("\n## ")[0]
    assert re.findall(r"^\| ([a-z-]+) \|", section, re.MULTILINE)[1:] == sorted(wanted, key=section.index)
    assert len(wanted) <= 10


def test_the_design_names_every_room() -> None:
    section = _read("docs/design.md").partition("## The rooms")[2].partition("\n## ")[0]
    named = set(re.findall(r"`([\w./]+)`", section))
    for path in PACKAGE.iterdir():
        if path.is_dir() and (path / "__init__.py").exists():
            assert f"{path.name}/" in named, path.name
        elif path.suffix == ".py" and not path.name.startswith("__"):
            assert path.name in named, path.name


def test_every_error_code_is_documented_and_no_other() -> None:
    documented = _table_words(_read("docs/api.md"), "## Errors of ours")
    assert set(documented) == set(_codes())


def _codes() -> Iterator[str]:
    """Yield every code that an answer of ours can be marked with: those of errors, and marks of other answers."""
    for path in OURS:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and node.args:
                if ast.unparse(node.func).rpartition(".")[2] in {"ProxyError", "Rejection"}:
                    yield from _texts(tree, node.args[0])
            elif isinstance(node, ast.Tuple) and len(node.elts) == 2 and ast.unparse(node.elts[0]) == "MARK":
                yield from _texts(tree, node.elts[1])


def _texts(tree: ast.Module, value: ast.expr | None) -> Iterator[str]:
    """Yield the texts that an expression can be: a text, one of two, or a name that stands for them."""
    if isinstance(value, ast.Constant) and isinstance(value.value, str):
        yield value.value
    elif isinstance(value, ast.IfExp):
        yield from _texts(tree, value.body)
        yield from _texts(tree, value.orelse)
    elif isinstance(value, ast.Name):
        for node in ast.walk(tree):
            if isinstance(node, ast.Assign | ast.AnnAssign) and re.match(rf"{value.id}\b", ast.unparse(node)):
                yield from _texts(tree, node.value)


def _is_pattern(call: ast.Call) -> bool:
    return ast.unparse(call.func) == "re.compile"


def test_no_text_of_ours_makes_the_ollama_cli_start_a_server_of_its_own() -> None:
    for path in OURS:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        documentation = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        patterns = [node.args for node in ast.walk(tree) if isinstance(node, ast.Call) and _is_pattern(node)]
        documentation.update(id(argument) for arguments in patterns for argument in arguments)
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in documentation:
                said = node.value.lower()
                assert " refused" not in said, f"{path.name}:{node.lineno}"
                assert "could not connect" not in said, f"{path.name}:{node.lineno}"


def test_every_glossary_word_names_something_in_the_code() -> None:
    """A class, function, parameter, field or enum member has the word, or a form of it, among the words of its name."""
    words = {word for path in OURS for name in _names_given(path) for word in _words_of(name)}
    for line in re.findall(r"^\| ([a-z, -]+) \|", _read("docs/glossary.md"), re.MULTILINE)[1:]:
        for term in line.split(", "):
            for word in term.split("-"):
                assert words & _forms(word), f"the glossary has {term!r}, the code has not"


def _names_given(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name
        elif isinstance(node, ast.arg):
            yield node.arg
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            yield node.target.id
        elif isinstance(node, ast.Assign):
            yield from (target.id for target in node.targets if isinstance(target, ast.Name))


def _words_of(name: str) -> list[str]:
    return [word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", name)]


def _forms(word: str) -> set[str]:
    """Nouns of the glossary are verbs in names of functions, and participles in those of events and phases."""
    stem = re.sub(r"(ation|ion|e)$", "", word)
    doubled = stem + stem[-1]
    endings = ("s", "ed", "ing", "ion") if stem == word else ("e", "es", "ed", "ing", "ions")
    return {word} | {stem + ending for ending in endings} | {doubled + ending for ending in ("ed", "ing")}


def test_the_readme_lists_the_fate_of_every_request_header_that_does_not_simply_pass() -> None:
    table = README.partition("Request headers")[2].partition("Everything else:")[0].lower()
    for rule in REQUEST_RULES:
        assert f"`{rule.name.decode()}`" in table, rule.name


def test_the_readme_lists_every_gated_route() -> None:
    sentence = README.partition("**Gated routes**")[2].partition("\n\n")[0]
    assert set(re.findall(r"`(/\S+)`", sentence)) == {endpoint.path for endpoint in endpoints.GATED}


def test_what_is_said_of_ollama_is_backed_by_recordings() -> None:
    named = set(re.findall(r"tests/transcripts/(\w+)\.json", _read("docs/ollama.md")))
    assert len(named) > 15
    for name in named:
        assert (ROOT / "tests" / "transcripts" / f"{name}.json").exists()


def test_the_log_lines_told_to_the_operator_are_those_that_the_code_writes() -> None:
    """Core modules write a line by `State.say`, the others by a structlog logger; the first argument is its name."""
    call = re.compile(r'(?:\.say|(?:_log|get_logger\("\w+"\))\.[a-z]+)\(\s*"([a-z_]+)"')
    said = {"request"}  # whose level depends, so that it is no direct call
    for module in OURS:
        if module.parent.name != "demo":
            said.update(call.findall(module.read_text(encoding="utf-8")))
    page = _read("docs/operations.md").partition("## What the log says")[2].partition("\n## ")[0]
    assert {"swap_decided", "handler_failed", "cannot_listen"} <= said
    assert said <= set(re.findall(r"`([a-z_]+)`", page))
    table = page.partition("The ones to watch for:")[2].partition("\n\nFurther")[0]
    rows = re.findall(r"^\| (`[^|]+`) \|", table, re.MULTILINE)
    assert {name for row in rows for name in re.findall(r"`(\w+)`", row)} <= said
