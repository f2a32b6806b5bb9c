"""The line keeps tickets by variant and class, in order of arrival, lets clients take turns, and forgets who left."""

from __future__ import annotations

from ollama_swap_proxy.core.classes import NORMAL, TicketClass
from ollama_swap_proxy.core.line import Line
from ollama_swap_proxy.core.tickets import Ticket, Variant

A, B = Variant("a"), Variant("b")


BATCH = TicketClass("batch", 0, 600.0)


def _ticket(
    number: int, variant: Variant, *, client: str = "", klass: TicketClass = NORMAL, at: float | None = None
) -> Ticket:
    return Ticket(number, variant, variant.key, float(number) if at is None else at, None, client, klass=klass)


def _line(*tickets: Ticket) -> Line:
    line = Line()
    for ticket in tickets:
        line.add(ticket)
    return line


def test_each_variant_has_its_own_order_of_arrival() -> None:
    line = _line(_ticket(1, B), _ticket(2, A), _ticket(3, B))
    assert line.variants() == [B, A]
    assert [ticket.id for ticket in line.waiting_for(B)] == [1, 3]
    assert [ticket.id for ticket in map(line.oldest, line.variants()) if ticket] == [1, 2]
    assert sorted(ticket.id for ticket in line) == [1, 2, 3]
    assert len(line) == 3


def test_options_make_two_variants_of_one_key() -> None:
    line = _line(_ticket(1, A), _ticket(2, Variant("a", "num_ctx=1")))
    assert len(line.variants()) == 2


def test_who_leaves_makes_the_next_one_the_oldest_and_an_empty_variant_is_gone() -> None:
    line = _line(_ticket(1, A), _ticket(2, A))
    assert line.remove(1) is not None
    oldest = line.oldest(A)
    assert oldest is not None
    assert oldest.id == 2
    assert 1 not in line
    line.remove(2)
    assert line.oldest(A) is None
    assert not line.awaits(A)
    assert line.variants() == []


def test_leaving_twice_is_leaving_once() -> None:
    line = _line(_ticket(1, A))
    line.remove(1)
    assert line.remove(1) is None
    assert len(line) == 0


def test_the_clients_of_a_class_take_turns_at_grants() -> None:
    line = _line(*(_ticket(number, A, client="x") for number in range(1, 101)), _ticket(101, A, client="y"))
    granted = []
    for _ in range(4):
        ticket = line.fairest(A, NORMAL)
        granted.append(ticket.id)
        line.remove(ticket.id, granted=True)
    assert granted == [1, 101, 2, 3]


def test_who_leaves_costs_its_client_no_turn() -> None:
    line = _line(_ticket(1, A, client="x"), _ticket(2, A, client="y"), _ticket(3, A, client="x"))
    line.remove(1)
    assert line.fairest(A, NORMAL).id == 3


def test_classes_wait_apart() -> None:
    line = _line(_ticket(1, A, klass=BATCH), _ticket(2, A), _ticket(3, A, klass=BATCH))
    assert [ticket.id for ticket in line.oldest_by_class(A)] == [1, 2]
    assert line.goes_behind(_ticket(4, A, klass=BATCH))
    assert not line.goes_behind(_ticket(4, A, klass=BATCH, at=2.0))
    line.remove(2)
    assert not line.goes_behind(_ticket(4, A))
    assert [ticket.id for ticket in line.waiting_for(A)] == [1, 3]


def test_an_old_ticket_takes_its_place_among_those_that_came_before_it() -> None:
    line = _line(_ticket(1, A, at=5.0), _ticket(2, A, at=8.0), _ticket(3, A, at=6.0))
    assert [ticket.id for ticket in line.waiting_for(A)] == [1, 3, 2]
    line.remove(1)
    oldest = line.oldest(A)
    assert oldest is not None
    assert oldest.id == 3
