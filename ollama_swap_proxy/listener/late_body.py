"""A body that its client still sends although its answer is complete.

Owns how long that is borne. Must not answer.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Final

from ollama_swap_proxy.listener.content import Content, MalformedBody

LATE_BODY_S: Final = 10.0
"""How long a client may still send, before its connection is closed."""


async def drop(content: Content) -> None:
    """Read and drop the rest of a body, for ``LATE_BODY_S`` at the longest, or until it turns out to be malformed."""
    with contextlib.suppress(TimeoutError, MalformedBody):
        async with asyncio.timeout(LATE_BODY_S):
            while not content.is_eof():
                await content.readany()
