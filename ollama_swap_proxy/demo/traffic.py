"""The clients: three of them, each with a model of its own and habits that are common.

Owns the traffic and the record of what each client saw. Must not know whom it talks to: both sides get the same.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

import aiohttp
from yarl import URL


@dataclass(frozen=True, slots=True)
class Client:
    """Somebody who asks, reads, pauses and asks again, under an API key of its own. ``at_once`` such loops run side by
    side, each with answers that are 10 tokens longer than those of the one before. Times in seconds, before scaling;
    ``starts_s`` is the first question's.
    """

    name: str
    model: str
    does: str
    tokens: int
    pause_s: float
    starts_s: float
    at_once: int = 1


CHAT = Client("chat", "sim-qwen2.5:7b", "a person: asks, reads, asks again", 40, 3.0, 0.2)
CLIENTS = (
    Client("agent", "sim-llama3.1:8b", "two loops, hardly a pause", 25, 0.2, 0.0, at_once=2),
    Client("notes", "sim-mistral:7b", "a batch, two notes at a time", 25, 0.2, 0.1, at_once=2),
    CHAT,
)
"""Two programs and a person: together they want more than the card can give, each a model of its own."""


@dataclass(slots=True)
class Question:
    """One request as its client saw it; times are the loop's, None: not yet. ``error`` is empty where all is well."""

    client: Client
    sent_at: float
    first_byte_at: float | None = None
    ended_at: float | None = None
    error: str = ""

    def waited_s(self, now: float) -> float:
        """How long until the first byte; without one until the end, or so far."""
        waited_until = next((at for at in (self.first_byte_at, self.ended_at) if at is not None), now)
        return waited_until - self.sent_at


Watcher = Callable[[Question], None]


@dataclass
class Crowd:
    """All clients of one side. ``asked``, ``began`` and ``ended`` are called with each question as it goes on."""

    scale: float
    questions: list[Question] = field(default_factory=list)
    asked: Watcher = lambda _: None
    began: Watcher = lambda _: None
    ended: Watcher = lambda _: None

    def waiting(self) -> list[Question]:
        """Questions without a first byte."""
        return [q for q in self.questions if q.first_byte_at is None and q.ended_at is None]

    async def visit(self, url: URL, duration_s: float, patience_s: float) -> None:
        """Ask for ``duration_s``, then wait up to ``patience_s`` for what is open; an answer that misses that is an
        error.
        """
        until = asyncio.get_running_loop().time() + duration_s
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
            try:
                async with asyncio.timeout(duration_s + patience_s), asyncio.TaskGroup() as group:
                    for client in CLIENTS:
                        for number in range(client.at_once):
                            group.create_task(self._loop(session, url, client, number, until), name=client.name)
            except TimeoutError:
                for question in self.questions:
                    if question.ended_at is None:
                        question.error = "no answer"

    async def _loop(self, session: aiohttp.ClientSession, url: URL, client: Client, number: int, until: float) -> None:
        loop = asyncio.get_running_loop()
        await asyncio.sleep((client.starts_s + 0.3 * number) * self.scale)
        while loop.time() < until:
            await self._ask(session, url, client, client.tokens + 10 * number)
            await asyncio.sleep(client.pause_s * self.scale)

    async def _ask(self, session: aiohttp.ClientSession, url: URL, client: Client, tokens: int) -> None:
        loop = asyncio.get_running_loop()
        messages = [{"role": "user", "content": "And then?"}]
        body: dict[str, object] = {
            "model": client.model,
            "messages": messages,
            "options": {"num_predict": tokens},
        }
        headers = {"Authorization": f"Bearer {client.name}"}
        question = Question(client, loop.time())
        self.questions.append(question)
        self.asked(question)
        try:
            async with session.post(url / "api/chat", json=body, headers=headers) as response:
                async for chunk in response.content.iter_any():
                    if chunk and question.first_byte_at is None and response.status == 200:
                        question.first_byte_at = loop.time()
                        self.began(question)
                if response.status != 200:
                    question.error = f"status {response.status}"
        except aiohttp.ClientError as error:
            question.error = type(error).__name__
        question.ended_at = loop.time()
        self.ended(question)
