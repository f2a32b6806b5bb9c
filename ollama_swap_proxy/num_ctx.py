"""The one rule by which a request's body is changed: a context that is too small is raised to what the operator set.

Owns which requests that is, and the new body. Must not change anything else: one number is replaced, or written in
where there is none, and every other byte stays as it was sent. What is not certain stays as it is: a key that is given
twice, options that are no object, a body in a file.

Ollama loads a model anew for another num_ctx (server/sched.go:1381), so that two clients with different ones make it
reload for each of their turns. They share one runner only if both ask for the same number.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Mapping
from typing import Final

from ollama_swap_proxy.bodies import SLICE_BYTES, SYNCHRONOUS_LIMIT_BYTES
from ollama_swap_proxy.core.endpoints import Endpoint
from ollama_swap_proxy.core.requests import Intent
from ollama_swap_proxy.core.skeleton import Keep, Rules, Skeleton
from ollama_swap_proxy.settings.options import Settings

_OPTIONS, _NUM_CTX = "options", "num_ctx"
_RULES: Final[Rules] = {_OPTIONS: {_NUM_CTX: Keep.SHAPE}}
_BLANKS: Final = b" \t\r\n"


class LeastNumCtx:
    """The contexts that were set for single models. ``names`` are the canonical names that have one."""

    def __init__(self, settings: Settings) -> None:
        self._least = {name: table.min_num_ctx for name, table in settings.models.items() if table.min_num_ctx}
        self.names = self._least.keys()

    def asked_by_all(self, name: str, parameters: Mapping[str, object]) -> Mapping[str, object]:
        """Return the runner options of a plain native request for this model: none, or the least context."""
        least = self._least.get(name, 0)
        return {_NUM_CTX: least} if _is_less(parameters.get(_NUM_CTX), least) else {}

    async def raised(
        self, endpoint: Endpoint, intent: Intent, parameters: Mapping[str, object], body: bytes
    ) -> tuple[Intent, bytes] | None:
        """Return the request as it is to be sent, or None if it stays as it is.

        ``parameters`` are the model's own, which hold where the request names no context. The surfaces of OpenAI and
        Anthropic cannot name one.
        """
        least = self._least.get(intent.name, 0)
        asked = intent.options.get(_NUM_CTX, parameters.get(_NUM_CTX))
        if not (endpoint.is_native and _is_less(asked, least)):
            return None
        changed = with_num_ctx(body, await _places(body), least)
        if changed is None:
            return None
        return dataclasses.replace(intent, options={**intent.options, _NUM_CTX: least}), changed


def _is_less(asked: object, least: int) -> bool:
    """Say whether a context is too small; one that is not named counts as too small."""
    return least > 0 and not (isinstance(asked, int | float) and asked >= least)


async def _places(body: bytes) -> Mapping[str, list[tuple[int, int]]]:
    """Find the values of options at the top level and of num_ctx directly within them.

    A large body is read in slices, for others to go on meanwhile.
    """
    skeleton = Skeleton(_RULES, (_OPTIONS, _NUM_CTX))
    for start in range(0, len(body), SLICE_BYTES):
        for _ in skeleton.feed(body[start : start + SLICE_BYTES]):
            await asyncio.sleep(0)
        if len(body) > SYNCHRONOUS_LIMIT_BYTES:
            await asyncio.sleep(0)
    return skeleton.places


def with_num_ctx(body: bytes, places: Mapping[str, list[tuple[int, int]]], num_ctx: int) -> bytes | None:
    """Return the body with this num_ctx, or None where it is not certain which value counts.

    ``body`` is a JSON object with a model, ``places`` are those that `Skeleton` found in it.
    """
    options, given = places.get(_OPTIONS, []), places.get(_NUM_CTX, [])
    if len(options) > 1 or len(given) > 1:
        return None
    if given:
        start, end = given[0]
        return b"%b%d%b" % (body[:start], num_ctx, body[end:])
    if not options:
        start = body.index(b"{") + 1
        return b'%b"options":{"num_ctx":%d},%b' % (body[:start], num_ctx, body[start:])
    start, end = options[0]
    inside = body[start + 1 : end]
    if body[start : start + 1] != b"{":
        return None
    comma = b"" if inside.strip(_BLANKS) == b"}" else b","
    return b'%b"num_ctx":%d%b%b' % (body[: start + 1], num_ctx, comma, body[start + 1 :])
