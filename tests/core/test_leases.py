"""Who uses which model right now."""

from __future__ import annotations

from ollama_swap_proxy.core.leases import Leases
from ollama_swap_proxy.core.tickets import Lease, Ticket, Variant


def lease(number: int, key: str, options: str = "", *, loads: bool = False) -> Lease:
    return Lease(Ticket(number, Variant(key, options), key, 0.0, None), 0.0, loads=loads)


def test_leases_are_counted_by_key_whatever_their_variant() -> None:
    leases = Leases()
    for each in (lease(1, "a"), lease(2, "a", "num_ctx=1"), lease(3, "b")):
        leases.add(each)
    assert leases.running == {"a": 2, "b": 1}
    assert leases.end(1, 1.0) is not None
    assert leases.end(1, 1.0) is None
    assert leases.running == {"a": 1, "b": 1}
    assert [each.ticket.id for each in leases] == [2, 3]
    assert (len(leases), 1 in leases, 2 in leases) == (2, False, True)


def test_a_lease_loads_its_model_until_that_is_loaded() -> None:
    leases = Leases()
    loads = lease(1, "a", loads=True)
    leases.add(loads)
    assert leases.loaders == {"a": loads}
    leases.has_loaded(loads)
    assert not leases.loaders
    assert not loads.loads


def test_a_loader_that_ends_loads_no_longer() -> None:
    leases = Leases()
    leases.add(lease(1, "a", loads=True))
    leases.end(1, 1.0)
    assert not leases.loaders


def test_a_model_is_idle_since_its_last_lease_ended() -> None:
    leases = Leases()
    assert leases.idle_since("a") is None
    for each in (lease(1, "a"), lease(2, "a")):
        leases.add(each)
    leases.end(1, 3.0)
    assert leases.idle_since("a") is None
    leases.end(2, 4.0)
    assert leases.idle_since("a") == 4.0
    assert leases.get(None) is None
