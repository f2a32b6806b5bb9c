"""What was learned longest ago is forgotten first, and learning it again makes it new."""

from __future__ import annotations

from ollama_swap_proxy.core.keeping import keep


def test_the_newest_lessons_are_kept() -> None:
    known: dict[str, int] = {}
    for number, about in enumerate("abac"):
        keep(known, about, number, most=2)
    assert known == {"a": 2, "c": 3}
    assert list(known) == ["a", "c"]
