"""Plays recorded exchanges again, from plain sockets, and keeps what came back in the form of the recordings."""

from __future__ import annotations

import asyncio
import base64
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent.parent / "transcripts"
GROUPS = sorted(path.stem for path in FOLDER.glob("*.json") if not path.stem.endswith(".timeline"))
RECORDER_PORT = "21534"


@dataclass(frozen=True)
class Exchange:
    """One recorded exchange."""

    name: str
    request: dict[str, Any]
    response: dict[str, Any]
    start_ms: float
    end_ms: float

    @property
    def leaves_after_ms(self) -> float | None:
        """When the client closed the connection or gave up, counted from the request; None: it stayed to the end."""
        if self.response.get("end") in {"client closed the connection", "timeout"}:
            return float(self.response.get("total_ms", self.end_ms - self.start_ms))
        return None


def read(group: str) -> list[Exchange]:
    """A group's exchanges in the order of their starts."""
    rows = json.loads((FOLDER / f"{group}.json").read_text())
    names = ("name", "request", "response", "start_ms", "end_ms")
    return sorted((Exchange(**{name: row[name] for name in names}) for row in rows), key=lambda one: one.start_ms)


def read_timeline(group: str) -> dict[str, Any] | None:
    """A group's timeline, if it has one."""
    path = FOLDER / f"{group}.timeline.json"
    return json.loads(path.read_text()) if path.exists() else None


@dataclass
class Answer:
    """What came back. ``chunks`` is None for a body that was not chunked; ``end`` as in the recordings."""

    status_line: str = ""
    interim: str | None = None
    headers: list[list[str]] = field(default_factory=list)
    body: str = ""
    chunks: list[str] | None = None
    end: str | None = None

    @property
    def at(self) -> datetime | None:
        """The Date header."""
        return date_of(self.headers)


def date_of(headers: Sequence[Sequence[str]]) -> datetime | None:
    """The moment of a Date header."""
    found = [value for name, value in headers if name == "Date" and value]
    return parsedate_to_datetime(found[0]).astimezone(UTC) if found else None


@dataclass(frozen=True)
class Wire:
    """How to send: the bytes of the head, and those of the body that are sent ("held back" bodies are cut)."""

    head: bytes
    body: bytes
    expects_continue: bool = False


def wire(request: dict[str, Any], port: int, replace: dict[str, str], bodies: dict[str, bytes]) -> Wire:
    """The bytes of a recorded request for a server on ``port``.

    ``replace``: text to put in the place of recorded text (digests of our own); ``bodies``: recorded placeholder of a
    body that was left out -> the body.
    """
    swap = {RECORDER_PORT: str(port), **replace}

    def ours(text: str) -> str:
        for old, new in swap.items():
            text = text.replace(old, new)
        return text

    if "body_base64" in request:
        body = base64.b64decode(request["body_base64"])
    else:
        recorded = request.get("body", "")
        body = bodies.get(recorded, ours(recorded).encode())
    lines = [f"{request['method']} {ours(request['path'])} HTTP/{request['http']}"]
    lines += [f"{name}: {ours(value)}" for name, value in request["headers"]]
    head = "\r\n".join([*lines, "", ""]).encode()
    return Wire(head, body, any(name == "Expect" for name, _ in request["headers"]))


async def play(port: int, sent: Wire, *, hold_back: float | None, leave_after_s: float | None) -> Answer:
    """Send one request on a connection of its own and read the answer.

    ``hold_back``: the share of the body that is sent, None for all of it. ``leave_after_s``: close the connection then.
    """
    answer = Answer()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        async with asyncio.timeout(leave_after_s):
            writer.write(sent.head)
            if sent.expects_continue:
                await _read_head(reader, answer)
                if answer.status_line.split()[1] != "100":
                    await _read_body(reader, answer, has_body=True)
                    return answer
                answer = Answer(interim=answer.status_line)
            writer.write(sent.body if hold_back is None else sent.body[: int(len(sent.body) * hold_back)])
            await _read_head(reader, answer)
            status = answer.status_line.split()[1]
            has_body = not sent.head.startswith(b"HEAD") and status not in {"204", "304"}
            await _read_body(reader, answer, has_body=has_body)
    except TimeoutError:
        answer.end = "client closed the connection"
    finally:
        writer.transport.abort()
    return answer


async def _read_head(reader: asyncio.StreamReader, answer: Answer) -> None:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    answer.status_line, *lines = head.removesuffix("\r\n\r\n").split("\r\n")
    answer.headers = [line.split(": ", 1) if ": " in line else [line.removesuffix(":"), ""] for line in lines]


async def _read_body(reader: asyncio.StreamReader, answer: Answer, *, has_body: bool) -> None:
    headers = {name.lower(): value for name, value in answer.headers}
    if not has_body:
        return
    if headers.get("transfer-encoding") == "chunked":
        answer.chunks = []
        while size := int(await reader.readuntil(b"\r\n"), 16):
            data = await reader.readexactly(size + 2)
            assert data.endswith(b"\r\n")
            answer.chunks.append(data[:-2].decode())
        assert await reader.readexactly(2) == b"\r\n"
        answer.end = "last chunk"
    elif "content-length" in headers:
        answer.body = (await reader.readexactly(int(headers["content-length"]))).decode()
    else:
        answer.body = (await reader.read()).decode()


def normalised(text: str, port: int) -> str:
    """An answer's text as the recordings have it: their port, their folder of models."""
    return re.sub(rf"\b{port}\b", RECORDER_PORT, text)
