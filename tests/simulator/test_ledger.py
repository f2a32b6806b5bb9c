"""What the ledger computes from its entries."""

from __future__ import annotations

from ollama_swap_proxy.simulator.ledger import Ledger, Overlap


def life(ledger: Ledger, model: str, runner: int, times: tuple[float, ...], *, generating: bool = True) -> None:
    """Load start, load done, evict, exit, memory back; fewer times leave the end open."""
    kinds = ("load_start", "load_done", "evict", "exit", "vram_returned")
    for at, kind in zip(times, kinds, strict=False):
        ledger.note(at, kind, model, runner, generating=generating, spilled=False, size_vram=1)


def test_models_one_after_the_other_do_not_overlap():
    ledger = Ledger()
    life(ledger, "a:latest", 1, (0, 1, 5, 5.1, 5.5))
    life(ledger, "b:latest", 2, (5.5, 6, 9, 9.1, 9.5))
    assert ledger.overlaps() == []
    assert ledger.own_seconds() == 1 + 0.5 + 0.5 + 0.5


def test_a_load_while_memory_returns_and_one_beside_a_living_model_are_told_apart():
    ledger = Ledger()
    life(ledger, "a:latest", 1, (0, 1, 5, 6, 8))
    life(ledger, "b:latest", 2, (4, 7))
    assert ledger.overlaps(until=20) == [
        Overlap("a:latest", "b:latest", 4, 6, "alive"),
        Overlap("a:latest", "b:latest", 6, 8, "returning"),
    ]


def test_an_embedder_beside_a_generating_model_is_no_overlap():
    ledger = Ledger()
    life(ledger, "a:latest", 1, (0, 1))
    life(ledger, "e:latest", 2, (2, 3), generating=False)
    assert ledger.overlaps() == []


def test_a_load_that_failed_or_was_aborted_is_told():
    ledger = Ledger()
    ledger.note(0, "load_start", "a:latest", 1)
    ledger.note(1, "load_failed", "a:latest", 1, text="no")
    ledger.note(2, "load_start", "a:latest", 2)
    ledger.note(5, "load_aborted", "a:latest", 2)
    ledger.note(6, "load_start", "a:latest", 3)
    assert [(load.outcome, load.seconds) for load in ledger.loads("a")] == [
        ("failed", 1),
        ("aborted", 3),
        ("loading", 0),
    ]
    assert ledger.loads("b") == []


def test_names_may_be_asked_with_and_without_their_tag():
    ledger = Ledger()
    ledger.note(0, "load_start", "a:latest", 1)
    assert ledger.count("load_start", "a") == ledger.count("load_start", "a:latest") == 1
    assert ledger.count("load_start", "a:7b") == 0
