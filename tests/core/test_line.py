"""The line keeps tickets by variant, in order of arrival, and forgets whoever left."""

from __future__ import annotations

from ollama_swap_proxy.core.line import Line
from ollama_swap_proxy.core.tickets import Ticket, Variant

A, B = Variant("a"), Variant("b")


def _ticket(number: int, variant: Variant) -> Ticket:
    return Ticket(number, variant, variant.key, float(number), None)


def _line(*tickets: Ticket) -> Line:
    line = Line()
    for ticket in tickets:
        line.add(ticket)
    return line


def test_each_variant_has_its_own_order_of_arrival() -> None:
    line = _line(_ticket(1, B), _ticket(2, A), _ticket(3, B))
    assert line.variants() == [B, A]
    assert [ticket.id for ticket in line.waiting_for(B)] == [1, 3]
    assert [ticket.id for ticket in line.heads()] == [1, 2]
    assert sorted(ticket.id for ticket in line) == [1, 2, 3]
    assert len(line) == 3


def test_options_make_two_variants_of_one_key() -> None:
    line = _line(_ticket(1, A), _ticket(2, Variant("a", "num_ctx=1")))
    assert len(line.variants()) == 2


def test_who_leaves_makes_the_next_one_the_head_and_an_empty_variant_is_gone() -> None:
    line = _line(_ticket(1, A), _ticket(2, A))
    assert line.remove(1) is not None
    head = line.head(A)
    assert head is not None
    assert head.id == 2
    assert 1 not in line
    line.remove(2)
    assert line.head(A) is None
    assert line.variants() == []


def test_leaving_twice_is_leaving_once() -> None:
    line = _line(_ticket(1, A))
    line.remove(1)
    assert line.remove(1) is None
    assert len(line) == 0
