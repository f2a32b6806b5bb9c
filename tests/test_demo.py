"""The demonstration: ends by itself, counts what happened, and can be interrupted."""

from __future__ import annotations

import asyncio
import io
import os
import re
import signal

import pytest
import structlog
from rich.console import Console

from ollama_swap_proxy import demo
from ollama_swap_proxy.demo.tally import closing_table, count, serving_spans, time_in_first_only
from ollama_swap_proxy.demo.traffic import CLIENTS, Crowd, Question
from ollama_swap_proxy.simulator.ledger import Ledger

AGENT, NOTES, CHAT = CLIENTS


def _off_a_terminal() -> Console:
    return Console(file=io.StringIO(), width=80, highlight=False)


def _printed(console: Console) -> str:
    return console.file.getvalue()


async def test_it_ends_by_itself_and_shows_every_step_of_a_swap_and_both_sides_figures():
    console = _off_a_terminal()
    configured = structlog.get_config()
    assert await demo.run(time_scale=0.1, console=console) == 0
    text = _printed(console)
    for step in ("swap: qwen2.5 in", "asks Ollama to unload", "confirmed: it is gone", "loads mistral", "is loaded"):
        assert step in text
    assert re.search(r"chat +waits for qwen2.5", text)
    assert re.search(r"chat +its answer begins, after", text)
    for client in CLIENTS:
        (figures,) = re.findall(rf"  to {client.name} +│ +(\d+) │ +(\d+)", text)
        assert all(int(figure) > 0 for figure in figures)
    assert max(map(len, text.splitlines())) <= 80
    assert "\x1b" not in text
    assert structlog.get_config() == configured


async def test_ctrl_c_ends_it_with_the_figures_so_far():
    console = _off_a_terminal()
    running = asyncio.create_task(demo.run(console=console))
    async with asyncio.timeout(10):
        while "loads llama3.1" not in _printed(console):  # noqa: ASYNC110 - a screen tells nobody
            await asyncio.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)
        assert await running == 0
    assert "Stopped early" in _printed(console)
    assert re.search(r"  to agent +│ +0 │", _printed(console))


async def test_on_a_terminal_both_cards_are_shown_while_it_runs():
    console = Console(file=io.StringIO(), width=80, height=40, force_terminal=True, color_system=None)
    assert await demo.run(time_scale=0.15, console=console) == 0
    assert re.search(r"Ollama alone +(loading )?llama3.1", _printed(console))


@pytest.mark.parametrize(
    ("waiting", "serving", "lost_s"),
    [
        ([], [(0, 5)], 0),
        ([(0, 4)], [], 4),
        ([(0, 4), (1, 3)], [(2, 9)], 2),
        ([(0, 10)], [(1, 3), (2, 4), (6, 7)], 6),
        ([(0, 1), (5, 6)], [(1, 5)], 2),
    ],
)
def test_lost_is_the_time_in_which_somebody_waits_and_nobody_is_served(waiting, serving, lost_s):
    assert time_in_first_only(waiting, serving) == lost_s


def test_figures_come_from_the_clients_records_and_the_ledger():
    crowd = Crowd(1.0)
    crowd.questions = [
        Question(AGENT, 0.0, first_byte_at=2.0, ended_at=3.0),
        Question(CHAT, 1.0, ended_at=4.0, error="status 503"),
        Question(NOTES, 2.0),
    ]
    ledger = Ledger()
    ledger.note(0.0, "load_start", "m", 1)
    ledger.note(1.5, "load_done", "m", 1, spilled=True)
    ledger.note(1.5, "serve_start", "m", 1)
    ledger.note(3.0, "serve_end", "m", 1)
    figures = count(crowd, ledger, now=6.0)
    assert figures.answers == {"agent": 1, "chat": 0, "notes": 0}
    assert figures.waits_s == {"agent": [2.0], "chat": [3.0], "notes": [4.0]}
    assert (figures.loads, figures.spills, figures.errors) == (1, 1, 1)
    assert figures.lost_s == 1.5 + 3.0
    assert figures.swapping_s == 1.5
    assert closing_table(figures, figures).row_count == 13


def test_an_answer_under_way_is_served_until_now():
    ledger = Ledger()
    ledger.note(1.0, "serve_start", "m", 1)
    ledger.note(2.0, "serve_start", "m", 1)
    ledger.note(3.0, "serve_end", "m", 1)
    assert sorted(serving_spans(ledger, 9.0)) == [(1.0, 3.0), (2.0, 9.0)]
