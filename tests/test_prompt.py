"""A future whose waiting task goes on at once."""

from __future__ import annotations

import asyncio

import pytest

from ollama_swap_proxy.prompt import Prompt


@pytest.fixture
async def told() -> list[str]:
    return []


async def waits(prompt: Prompt[str], told: list[str]) -> None:
    try:
        told.append(await prompt)
    except asyncio.CancelledError:
        told.append("cancelled")
        raise


async def test_from_a_plain_callback_the_task_runs_inside_wake(told: list[str]) -> None:
    loop = asyncio.get_running_loop()
    prompt: Prompt[str] = Prompt(loop)
    task = loop.create_task(waits(prompt, told))

    def callback() -> None:
        prompt.set_result("came")
        told.append("before")
        prompt.wake()
        told.append("behind")

    loop.call_soon(callback)
    await task
    assert told == ["before", "came", "behind"]


async def test_from_within_a_task_it_runs_on_the_next_turn(told: list[str]) -> None:
    loop = asyncio.get_running_loop()
    prompt: Prompt[str] = Prompt(loop)
    task = loop.create_task(waits(prompt, told))
    await asyncio.sleep(0)
    prompt.tell("came")
    assert told == []
    await task
    assert told == ["came"]


async def test_what_came_before_anybody_waited_is_there_at_once(told: list[str]) -> None:
    prompt: Prompt[str] = Prompt(asyncio.get_running_loop())
    prompt.tell("came")
    await waits(prompt, told)
    assert told == ["came"]


async def test_a_waiting_task_can_be_cancelled_and_a_late_result_wakes_nobody(told: list[str]) -> None:
    loop = asyncio.get_running_loop()
    prompt: Prompt[str] = Prompt(loop)
    task = loop.create_task(waits(prompt, told))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert told == ["cancelled"]
    assert prompt.done()
    assert prompt.cancelled()
    prompt.wake()
    assert told == ["cancelled"]


async def test_a_cancel_in_the_step_in_which_it_came_still_cancels(told: list[str]) -> None:
    loop = asyncio.get_running_loop()
    prompt: Prompt[str] = Prompt(loop)
    task = loop.create_task(waits(prompt, told))
    await asyncio.sleep(0)
    prompt.tell("came")
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert told == ["cancelled"]
    assert not prompt.cancelled()


async def test_cancelling_the_prompt_itself_cancels_who_waits_now_or_later(told: list[str]) -> None:
    loop = asyncio.get_running_loop()
    prompt: Prompt[str] = Prompt(loop)
    task = loop.create_task(waits(prompt, told))
    await asyncio.sleep(0)
    assert prompt.cancel()
    assert not prompt.cancel()
    for late in (task, loop.create_task(waits(prompt, told))):
        with pytest.raises(asyncio.CancelledError):
            await late
    assert told == ["cancelled", "cancelled"]


async def test_what_the_task_raises_stays_in_the_task() -> None:
    loop = asyncio.get_running_loop()
    prompt: Prompt[str] = Prompt(loop)

    async def fails() -> None:
        await prompt
        raise LookupError

    task = loop.create_task(fails())
    loop.call_soon(prompt.tell, "came")
    with pytest.raises(LookupError):
        await task
