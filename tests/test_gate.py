"""The gate: every command is carried out, and every call is answered to the scheduler, whatever happens in it."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any, cast

import pytest
from structlog.testing import capture_logs

from ollama_swap_proxy.core.events import EvictionAnswered, LoadFailure, ResidencyObserved, UpstreamIdentified
from ollama_swap_proxy.core.policy import Policy
from ollama_swap_proxy.core.scheduler import Scheduler
from ollama_swap_proxy.core.tickets import LoadRecipe, Report, Resident, Ticket, Variant
from ollama_swap_proxy.errors import ProxyError
from ollama_swap_proxy.gate import Gate
from ollama_swap_proxy.upstream.control import ControlError


class Upstream:
    """Control, catalog and view in one: answers at once, or raises what it is told to."""

    def __init__(self) -> None:
        self.resident = "a"
        self.defect_in: set[str] = set()
        self.failure: LoadFailure | None = None
        self.loads = 0
        self.kept: list[float] = []

    def _fail_if_told(self, call: str) -> None:
        if call in self.defect_in:
            raise LookupError(f"a defect in {call}")

    async def identify(self) -> UpstreamIdentified:
        self._fail_if_told("identify")
        return UpstreamIdentified("0.33.0", ps_is_safe=True)

    async def observe(self, *, fresh: bool) -> ResidencyObserved:
        assert fresh
        self._fail_if_told("observe")
        now = asyncio.get_running_loop().time()
        listed = (Resident(self.resident, self.resident, "d", 1, 1),) if self.resident else ()
        return ResidencyObserved(Report(now, listed))

    async def names_reaching(self, _: str, listed_name: str) -> list[str]:
        self._fail_if_told("evict")
        return [listed_name]

    async def unload(self, _: str) -> Any:
        self.resident = ""
        return type("Answer", (), {"status": 200, "error": ""})()

    async def keep_alive(self, _: LoadRecipe, keep_alive: float) -> None:
        self.kept.append(keep_alive)
        if "keep_alive" in self.defect_in:
            raise ControlError("timeout", "late")

    async def load(self, recipe: LoadRecipe, _: float) -> LoadFailure | None:
        self._fail_if_told("load")
        self.loads += 1
        self.resident = recipe.body.decode()
        return self.failure

    def cancel(self) -> None:
        pass


@pytest.fixture
async def upstream():
    return Upstream()


@pytest.fixture
async def gate(upstream: Upstream):
    loop = asyncio.get_running_loop()
    policy = Policy(unload_timeout_s=0.2, stuck_after_s=0.4, load_timeout_s=5)
    part = cast("Any", upstream)
    gate = Gate(Scheduler(replace(policy, settle_first_s=0.0), loop.time()), part, part, part)
    gate.start()
    yield gate
    await gate.close()


def ticket(gate: Gate, model: str) -> Ticket:
    now = asyncio.get_running_loop().time()
    return Ticket(gate.next_id(), Variant(model), model, now, LoadRecipe("/api/generate", model.encode()))


async def acquire(gate: Gate, model: str):
    asked = ticket(gate, model)
    held = gate.ask(asked)
    return held if held is not None else await asyncio.wait_for(gate.wait(asked), 3)


async def acquire_four(gate: Gate):
    """All leases that a model has; the first shows with which options it is resident."""
    first = await acquire(gate, "a")
    gate.first_byte(first)
    return [first, *[await acquire(gate, "a") for _ in range(3)]]


async def test_a_ticket_is_granted_after_its_swap_and_a_warm_one_without_waiting(gate, upstream):
    held = await acquire(gate, "b")
    assert (upstream.resident, upstream.loads, held.swapped) == ("b", 1, True)
    gate.release(held, failed=False)
    again = gate.ask(ticket(gate, "b"))
    assert again is not None
    assert not again.swapped


@pytest.mark.parametrize(
    ("call", "code"), [("observe", "nothing_moved"), ("evict", "unload_not_confirmed"), ("load", "load_failed")]
)
async def test_a_defect_in_a_call_ends_the_wait_with_an_error(gate, upstream, call, code):
    """The scheduler waits for the outcome of each call; a call that raises must not leave it waiting for ever."""
    gate.release(await acquire(gate, "a"), failed=False)
    upstream.defect_in = {call}
    with capture_logs() as lines, pytest.raises(ProxyError) as caught:
        await acquire(gate, "b")
    assert caught.value.code == code
    assert [line for line in lines if line["event"] == "control_call_failed"]


async def test_a_defect_in_asking_for_the_version_is_told_too(upstream):
    upstream.defect_in = {"identify"}
    part = cast("Any", upstream)
    gate = Gate(
        Scheduler(Policy(stuck_after_s=0.3, settle_first_s=0.0), asyncio.get_running_loop().time()), part, part, part
    )
    gate.start()
    with capture_logs(), pytest.raises(ProxyError):
        await acquire(gate, "b")
    await gate.close()


async def test_a_client_that_leaves_in_the_step_of_its_grant_gives_the_lease_back(gate):
    held = await acquire_four(gate)
    waiting = ticket(gate, "a")
    assert gate.ask(waiting) is None
    task = asyncio.get_running_loop().create_task(gate.wait(waiting))
    await asyncio.sleep(0)
    gate.release(held.pop(), failed=False)  # grants the waiting ticket
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert len(gate.snapshot().leases) == 3
    for each in held:
        gate.release(each, failed=False)
    assert gate.snapshot().leases == ()


async def test_a_client_that_leaves_while_it_waits_is_forgotten(gate):
    held = await acquire_four(gate)
    waiting = ticket(gate, "a")
    assert gate.ask(waiting) is None
    task = asyncio.get_running_loop().create_task(gate.wait(waiting))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert gate.snapshot().lines == ()
    for each in held:
        gate.release(each, failed=False)
    assert gate.snapshot().leases == ()


async def test_what_is_told_twice_or_too_late_changes_nothing(gate):
    held = await acquire(gate, "a")
    gate.release(held, failed=False)
    gate.release(held, failed=True)
    gate.tell(EvictionAnswered("a", accepted=True))
    assert gate.snapshot().leases == ()
    assert gate.snapshot().swap is None


class Answer:
    """A request's answer: has moved when it is told to, and notes how it is cut off."""

    streamed = True

    def __init__(self) -> None:
        self.first_byte_at: float | None = None
        self.last_byte_at: float | None = None
        self.error: ProxyError | None = None

    def cut_off(self, error: ProxyError, /) -> None:
        self.error = error


async def cutting_gate(upstream: Upstream) -> Gate:
    part = cast("Any", upstream)
    policy = Policy(first_byte_timeout_s=0.1, idle_stream_timeout_s=0.15)
    gate = Gate(Scheduler(policy, asyncio.get_running_loop().time()), part, part, part)
    gate.start()
    gate.release(await acquire(gate, "b"), failed=False)
    return gate


async def test_a_silent_request_is_cut_off_with_the_error_that_the_scheduler_gives(upstream):
    gate, answer = await cutting_gate(upstream), Answer()
    held = gate.ask(ticket(gate, "b"), answer)
    assert held is not None
    await asyncio.sleep(0.05)
    assert answer.error is None
    await asyncio.sleep(0.08)
    assert answer.error is not None
    assert (answer.error.code, answer.error.status) == ("upstream_timeout", 504)
    gate.release(held, failed=True)
    await gate.close()


async def test_one_whose_byte_we_have_not_told_yet_is_not_cut_off_but_told(upstream):
    gate, answer = await cutting_gate(upstream), Answer()
    held = gate.ask(ticket(gate, "b"), answer)
    assert held is not None
    await asyncio.sleep(0.05)
    answer.first_byte_at = answer.last_byte_at = asyncio.get_running_loop().time()
    await asyncio.sleep(0.08)
    assert answer.error is None
    assert gate.snapshot().leases[0].silent_s < 0.13
    await asyncio.sleep(0.09)
    assert answer.error is not None
    assert "idle_stream_timeout_s" in answer.error.message
    gate.release(held, failed=True)
    await gate.close()


@pytest.mark.parametrize("fails", [False, True])
async def test_a_keep_alive_is_set_and_its_failure_told(upstream, fails):
    upstream.defect_in = {"keep_alive"} if fails else set()
    part = cast("Any", upstream)
    gate = Gate(Scheduler(Policy(keep_alive=60.0), asyncio.get_running_loop().time()), part, part, part)
    gate.start()
    with capture_logs() as lines:
        gate.release(await acquire(gate, "b"), failed=False)
        await asyncio.sleep(0.01)
        gate.release(await acquire(gate, "c"), failed=False)
    assert upstream.kept == [60.0, 60.0]
    assert bool([line for line in lines if line["event"] == "keep_alive_not_set"]) is fails
    await gate.close()
