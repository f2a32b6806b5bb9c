"""Who shares which call."""

from __future__ import annotations

import asyncio

import pytest

from ollama_swap_proxy.upstream.flight import Flight


class Calls:
    """A call that answers its number, when told to."""

    def __init__(self):
        self.started = 0
        self.finish = asyncio.Semaphore(0)

    async def __call__(self):
        self.started += 1
        number = self.started
        await self.finish.acquire()
        return number


async def settle():
    for _ in range(5):
        await asyncio.sleep(0)


async def test_all_who_ask_while_a_call_is_under_way_share_it():
    calls = Calls()
    flight = Flight("test", calls)
    joiners = [asyncio.ensure_future(flight.join()) for _ in range(3)]
    await settle()
    joiners.append(asyncio.ensure_future(flight.join()))
    calls.finish.release()
    assert await asyncio.gather(*joiners) == [1, 1, 1, 1]


async def test_who_asks_fresh_shares_the_next_call():
    calls = Calls()
    flight = Flight("test", calls)
    old = asyncio.ensure_future(flight.join())
    await settle()
    fresh = [asyncio.ensure_future(flight.join(fresh=True)) for _ in range(3)]
    await settle()
    assert calls.started == 1
    calls.finish.release()
    assert await old == 1
    await settle()
    latest = asyncio.ensure_future(flight.join(fresh=True))
    await settle()
    calls.finish.release()
    calls.finish.release()
    assert await asyncio.gather(*fresh) == [2, 2, 2]
    assert await latest == 3


async def test_a_call_that_has_not_begun_is_fresh_enough():
    calls = Calls()
    calls.finish.release()
    flight = Flight("test", calls)
    assert await asyncio.gather(flight.join(), flight.join(fresh=True)) == [1, 1]


async def test_a_joiner_that_is_cancelled_leaves_the_call_to_the_others():
    calls = Calls()
    flight = Flight("test", calls)
    leaver, stayer = (asyncio.ensure_future(flight.join()) for _ in range(2))
    await settle()
    leaver.cancel()
    await settle()
    calls.finish.release()
    assert await stayer == 1
    assert leaver.cancelled()


async def test_all_joiners_get_the_failure_and_the_next_call_is_a_new_one():
    outcomes = [ValueError("no"), "yes"]

    async def call():
        outcome = outcomes.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    flight = Flight("test", call)
    assert [str(each) for each in await asyncio.gather(flight.join(), flight.join(), return_exceptions=True)] == [
        "no"
    ] * 2
    assert await flight.join() == "yes"


async def test_cancel_ends_the_call_and_its_waiters():
    calls = Calls()
    flight = Flight("test", calls)
    waiters = [asyncio.ensure_future(flight.join()) for _ in range(2)]
    await settle()
    waiters.append(asyncio.ensure_future(flight.join(fresh=True)))
    await settle()
    flight.cancel()
    for waiter in waiters:
        with pytest.raises(asyncio.CancelledError):
            await waiter
