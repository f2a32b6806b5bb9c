"""Clients that leave: at each stop of their way, by every way of leaving, and what it costs the others (nothing)."""

from __future__ import annotations

import asyncio
import json
import socket

import pytest

from ollama_swap_proxy.core import steps
from ollama_swap_proxy.simulator import SimModel
from tests.end_to_end.stage import PROMPT_S, SCALE, Stage, eventually, generate, staged, within


class Client:
    """A raw client of the proxy, with one request sent."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    @classmethod
    async def asks(cls, stage: Stage, model: str, tokens: int = 30_000, **fields) -> Client:
        client = cls(*await asyncio.open_connection("127.0.0.1", stage.service.listen.port))
        body = json.dumps(generate(model, tokens, **fields)).encode()
        head = f"POST /api/generate HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
        client.writer.write(head.encode() + body)
        return client

    def leave(self, how: str) -> None:
        if how == "half-close":
            self.writer.write_eof()
        elif how == "close":
            self.writer.close()
        else:
            sock = self.writer.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
            self.writer.transport.abort()

    def gone(self) -> None:
        self.writer.transport.abort()

    async def has_first_token(self) -> None:
        await within(5, self.reader.readuntil(b"\r\n\r\n"))
        await within(5, self.reader.readuntil(b"\n"))


WAYS = ["close", "reset", "half-close"]


def aborted(stage: Stage, model: str) -> int:
    return sum(1 for e in stage.ollama.ledger.of("serve_end", model=model) if e.fields["outcome"] == "aborted")


@pytest.mark.parametrize("how", WAYS)
async def test_while_queued_its_ticket_is_gone_at_once_and_causes_no_swap(stage, how):
    async with stage.streaming("a"):
        client = await Client.asks(stage, "b")
        await stage.wait_for_line(1)
        client.leave(how)
        assert await eventually(lambda: stage.waiting == 0) < PROMPT_S
    await stage.served("a")
    await asyncio.sleep(0.02)
    assert stage.loads == ["a"]
    assert stage.unloads() == 0
    client.gone()


@pytest.mark.parametrize("how", WAYS)
@pytest.mark.parametrize("stream", [True, False], ids=["streaming", "not streaming"])
async def test_while_it_is_served_upstream_hears_of_it_at_once(stage, how, stream):
    await stage.served("a")
    client = await Client.asks(stage, "a", stream=stream)
    if stream:
        await client.has_first_token()
    await eventually(lambda: stage.ollama.ledger.count("serve_start") == 2)
    assert aborted(stage, "a") == 0
    client.leave(how)
    assert await eventually(lambda: aborted(stage, "a") == 1) < PROMPT_S
    assert await eventually(lambda: not stage.snapshot.leases) < PROMPT_S
    await stage.served("b")
    client.gone()


async def test_while_it_prefills_upstream_hears_of_it_at_once():
    slow = SimModel("slow", 4500, load_s=1.5, prompt_ms=60_000)
    async with staged((slow,)) as stage:
        client = await Client.asks(stage, "slow")
        await eventually(lambda: stage.ollama.ledger.count("serve_start"))
        client.leave("close")
        assert await eventually(lambda: aborted(stage, "slow") == 1) < PROMPT_S


async def test_while_its_model_loads_the_load_goes_on_for_its_own_retry():
    """A load of 60 s, a client that gives up at 30 s and tries three times (times scaled): one load."""
    slow = SimModel("slow", 4500, load_s=60, token_ms=50)
    async with staged((slow,)) as stage:
        answers = []
        for _ in range(3):
            try:
                answers.append(await within(30 * SCALE, stage.ask("slow")))
            except TimeoutError:
                continue
            break
        assert [answer.status for answer in answers] == [200]
        assert stage.loads == ["slow"]


async def test_while_its_model_loads_the_load_goes_on_for_the_others(stage):
    stage.ollama.faults.hang_load = "a"
    first = await Client.asks(stage, "a", 2)
    await eventually(lambda: stage.loads == ["a"])
    second = stage.begin("a")
    await stage.wait_for_line(2)
    first.leave("close")
    await stage.wait_for_line(1)
    stage.ollama.faults.hang_load = ""
    assert (await second).status == 200
    assert stage.loads == ["a"]


async def test_all_leave_while_the_victim_goes_and_the_load_follows_all_the_same(stage):
    """Who asked is likely to be back: what was begun is finished, once."""
    await stage.served("a")
    stage.ollama.faults.slow_unload_s = 0.1 / SCALE
    client = await Client.asks(stage, "b")
    await eventually(lambda: stage.unloads() == 1)
    client.leave("close")
    await stage.wait_for_line(0)
    await eventually(lambda: stage.resident == ["b"] and not stage.phase)
    assert stage.loads == ["a", "b"]


async def test_one_that_leaves_a_drain_holds_the_others_up_for_a_moment_only(monkeypatch):
    monkeypatch.setattr(steps, "DRAIN_AFTERLIFE_S", 0.2)
    async with staged(turn_limit_s=0.05) as stage, stage.streaming("a"):
        client = await Client.asks(stage, "b")
        await eventually(lambda: stage.phase == "draining")
        client.leave("close")
        await within(2, stage.served("a"))
        assert stage.loads == ["a"]
        assert stage.unloads() == 0


async def test_one_that_comes_back_to_a_drain_finds_it_as_far_as_it_was():
    async with staged(turn_limit_s=0.05) as stage:
        async with stage.streaming("a"):
            client = await Client.asks(stage, "b")
            await eventually(lambda: stage.phase == "draining")
            begun = stage.snapshot.swap.id
            client.leave("close")
            await stage.wait_for_line(0)
            again = stage.begin("b")
            await stage.wait_for_line(1)
            assert stage.snapshot.swap.id == begun
        assert (await again).status == 200


@pytest.mark.parametrize("how", ["close", "reset"])
@pytest.mark.parametrize("first", ["holder", "waiter"])
async def test_grant_and_departure_in_the_same_step(how, first):
    """The lease that a departure frees goes to one that departs in the same step of the loop; nothing is left over."""
    async with staged(parallel=1) as stage:
        for _ in range(10):
            holder = await Client.asks(stage, "a")
            await holder.has_first_token()
            waiter = await Client.asks(stage, "a")
            await stage.wait_for_line(1)
            pair = (holder, waiter) if first == "holder" else (waiter, holder)
            for client in pair:
                client.leave(how)
            await eventually(lambda: not stage.snapshot.leases and not stage.waiting)
            await within(2, stage.served("a"))
        assert stage.loads == ["a"]
        await eventually(lambda: not any(runner.refs for runner in stage.ollama.world.table.values()))


async def test_many_that_leave_together_leave_nothing_behind(stage):
    clients = [await Client.asks(stage, "abc"[n % 3]) for n in range(60)]
    await eventually(lambda: stage.snapshot.leases)
    for client in clients:
        client.leave("reset")
    await eventually(lambda: not stage.snapshot.leases and not stage.waiting)
    await eventually(lambda: not stage.service._server.connections)
    gate = stage.service._gate
    assert (gate._waiting, gate._decided, gate._held) == ({}, {}, {})
    for model in "abc":
        await stage.served(model)
    assert stage.overlaps == []


async def test_a_departure_during_the_upload_is_no_ticket(stage):
    _, writer = await asyncio.open_connection("127.0.0.1", stage.service.listen.port)
    writer.write(b'POST /api/generate HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\n{"model": "a"')
    await eventually(lambda: stage.service._server.connections)
    writer.close()
    await eventually(lambda: not stage.service._server.connections)
    assert stage.loads == []
    await stage.served("a")
