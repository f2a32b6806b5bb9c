"""Reports: who shares them, how fresh they are, and what becomes of one that cannot be had."""

from __future__ import annotations

import asyncio
import itertools

import pytest
from aioresponses import CallbackResult
from yarl import URL

from ollama_swap_proxy.core.events import ResidencyObserved, ResidencyUnknown
from ollama_swap_proxy.upstream.catalog import Catalog
from ollama_swap_proxy.upstream.control import Control, control_session
from ollama_swap_proxy.upstream.view import ResidencyView

UPSTREAM = URL("http://ollama.test:11434")


@pytest.fixture
async def view():
    """A view over an upstream that a test scripts; its clock moves by one at each look."""
    async with control_session() as session:
        control = Control(UPSTREAM, session, connect_timeout_s=5)
        ticks = itertools.count(1)
        view = ResidencyView(control, Catalog(control), report_timeout_s=0.05, clock=lambda: float(next(ticks)))
        yield view
        view.cancel()


class Reports:
    """Answers /api/ps, each time after the test's word; the size counts the reports."""

    def __init__(self, mocked):
        self.asked = 0
        self.answer = asyncio.Semaphore(0)
        self.begun = asyncio.Semaphore(0)
        mocked.get(UPSTREAM / "api/ps", callback=self._answer, repeat=True)
        mocked.get(UPSTREAM / "api/tags", payload={"models": []}, repeat=True)

    async def _answer(self, _url, **_kwargs):
        self.asked += 1
        number = self.asked
        self.begun.release()
        await self.answer.acquire()
        return CallbackResult(payload={"models": [{"name": "a:latest", "digest": "d" * 64, "size": number}]})


async def test_all_who_ask_at_once_share_one_report(view, mocked):
    reports = Reports(mocked)
    reports.answer.release()
    first, *others = await asyncio.gather(*(view.observe() for _ in range(5)))
    assert isinstance(first, ResidencyObserved)
    assert all(other is first for other in others)
    assert reports.asked == 1


async def test_a_report_under_way_is_too_old_for_who_asks_fresh(view, mocked):
    reports = Reports(mocked)
    old = asyncio.ensure_future(view.observe())
    await reports.begun.acquire()
    joined = asyncio.ensure_future(view.observe())
    fresh = [asyncio.ensure_future(view.observe(fresh=True)) for _ in range(3)]
    await asyncio.sleep(0)
    assert reports.asked == 1
    reports.answer.release()
    assert (await joined) is (await old)
    reports.answer.release()
    first, *others = await asyncio.gather(*fresh)
    assert all(other is first for other in others)
    assert first.report.residents[0].size_bytes == 2
    before, after = (await old).report, first.report
    assert before.asked_at < after.asked_at


async def test_a_late_report_is_unknown_and_its_call_is_cancelled(view, mocked):
    reports = Reports(mocked)
    assert await view.observe() == ResidencyUnknown(asked_at=1.0, reason="late")
    reports.answer.release()
    assert isinstance(await view.observe(), ResidencyObserved)


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ({"body": "{}"}, "malformed"),
        ({"body": '{"models":[{"name":"a:latest"}]}'}, "malformed"),
        ({"status": 500, "payload": {"error": "nil model"}}, "status 500: nil model"),
    ],
)
async def test_a_report_that_cannot_be_read_is_unknown_not_empty(view, mocked, answer, reason):
    mocked.get(UPSTREAM / "api/ps", **answer)
    outcome = await view.observe()
    assert isinstance(outcome, ResidencyUnknown)
    assert outcome.reason.startswith(reason)
    assert not outcome.unreachable


async def test_an_upstream_that_is_not_there_is_unreachable(unused_tcp_port):
    async with control_session() as session:
        control = Control(URL(f"http://127.0.0.1:{unused_tcp_port}"), session, connect_timeout_s=5)
        outcome = await ResidencyView(control, Catalog(control), report_timeout_s=2).observe()
    assert isinstance(outcome, ResidencyUnknown)
    assert outcome.unreachable


async def test_an_asker_that_leaves_takes_nobody_elses_report(view, mocked):
    reports = Reports(mocked)
    leaver, stayer = asyncio.ensure_future(view.observe()), asyncio.ensure_future(view.observe())
    await reports.begun.acquire()
    leaver.cancel()
    reports.answer.release()
    assert isinstance(await stayer, ResidencyObserved)
    assert reports.asked == 1


async def test_a_report_does_not_wait_for_keys_that_cannot_be_learned(view, mocked):
    mocked.get(UPSTREAM / "api/ps", payload={"models": [{"name": "a:latest", "digest": "d" * 64}]})
    mocked.get(UPSTREAM / "api/tags", status=500)
    outcome = await view.observe()
    assert [each.key for each in outcome.report.residents] == ["digest:" + "d" * 64]


async def test_an_upstream_that_takes_connections_and_closes_them_is_unreachable_too(unused_tcp_port):
    """A port forwarder whose server is down."""

    async def close(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    server = await asyncio.start_server(close, "127.0.0.1", unused_tcp_port)
    async with server, control_session() as session:
        control = Control(URL(f"http://127.0.0.1:{unused_tcp_port}"), session, connect_timeout_s=5)
        outcome = await ResidencyView(control, Catalog(control), report_timeout_s=2).observe()
    assert isinstance(outcome, ResidencyUnknown)
    assert outcome.unreachable
