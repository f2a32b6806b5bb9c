"""Where the code says what a fact stands on: what it names in this repository is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = sorted((ROOT / "ollama_swap_proxy").rglob("*.py"))
RECORDED = {path.name.partition(".")[0] for path in (ROOT / "tests" / "transcripts").glob("*.json")}
LISTED = re.compile(r"tests/transcripts(?:: | \()([a-z0-9_, ]+)\)|tests/transcripts/(\w+)|\btranscripts? (\w+)\)")


def _recordings(text: str) -> set[str]:
    """Return the recordings that a text names: in a list in brackets, by their path, or one by one."""
    found = [listed or path or one for listed, path, one in LISTED.findall(" ".join(text.split()))]
    return {name for names in found for name in names.split(", ")}


def test_the_code_cites_recordings() -> None:
    cited = set().union(*(_recordings(path.read_text(encoding="utf-8")) for path in SOURCES))
    assert len(cited) > 15


@pytest.mark.parametrize("path", SOURCES, ids=[str(path.relative_to(ROOT)) for path in SOURCES])
def test_what_the_code_cites_is_there(path: Path) -> None:
    text = " ".join(path.read_text(encoding="utf-8").split())
    assert _recordings(text) <= RECORDED
    for page, section in re.findall(r'(docs/\w+\.md)(?: \("([^"]+)"\))?', text):
        assert (ROOT / page).exists(), page
        assert not section or f"## {section}\n" in (ROOT / page).read_text(encoding="utf-8"), section
    assert not re.search(r"\bsection \d", text), "sections have names here"
