"""What all tests share: no state file is kept, and aioresponses fits the aiohttp that we build on."""

from __future__ import annotations

from collections.abc import Iterator
from unittest.mock import Mock

import pytest
from aiohttp import ClientResponse
from aioresponses import aioresponses, core


class MockedResponse(ClientResponse):
    """A response that was never sent for.

    aioresponses 0.7.9 builds its responses without ``stream_writer``, which aiohttp 3.14 made a required argument.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, stream_writer=Mock(output_size=0), **kwargs)


@pytest.fixture(scope="session", autouse=True)
def _no_state_file() -> Iterator[None]:
    """A proxy that a test starts as a process of its own must not keep anything in the home of whoever runs it."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("OLLAMA_SWAP_PROXY_STATE_FILE", "none")
        yield


@pytest.fixture
def mocked(monkeypatch: pytest.MonkeyPatch) -> Iterator[aioresponses]:
    """Answer every call of an aiohttp ClientSession from a script; what is not in it fails to connect."""
    monkeypatch.setattr(core, "ClientResponse", MockedResponse)
    with aioresponses() as script:
        yield script
