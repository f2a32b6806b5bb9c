"""The one rule that changes a body: which requests it takes, the one number that changes, and all that does not."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ollama_swap_proxy.bodies import read_at_once
from ollama_swap_proxy.core import endpoints, json_fields
from ollama_swap_proxy.core.endpoints import Endpoint
from ollama_swap_proxy.num_ctx import LeastNumCtx
from ollama_swap_proxy.settings.options import Settings

LEAST = 16384
NESTED = '{"model":"a","messages":[{"content":"\\"options\\":{\\"num_ctx\\":1}","options":{"num_ctx":2}}]}'


def _raised(
    body: bytes | str, endpoint: Endpoint = endpoints.CHAT, parameters: Mapping[str, object] | None = None
) -> bytes | None:
    body = body.encode() if isinstance(body, str) else body
    least = LeastNumCtx(Settings.model_validate({"models": {"a": {"min_num_ctx": LEAST}}}))
    intent = read_at_once(endpoint, {}, body)
    assert intent is not None
    assert intent.name in least.names
    raised = asyncio.run(least.raised(endpoint, intent, parameters or {}, body))
    if raised is None:
        return None
    assert raised[0].options == {**intent.options, "num_ctx": LEAST}
    assert (raised[0].name, raised[0].kind, raised[0].keep_alive_s) == (intent.name, intent.kind, intent.keep_alive_s)
    return raised[1]


@pytest.mark.parametrize(
    ("sent", "raised"),
    [
        ('{"model":"a","options":{"num_ctx":4096}}', '{"model":"a","options":{"num_ctx":16384}}'),
        (
            '{"options" : { "num_ctx" :\t8e3 , "seed":1},"model":"A"}',
            '{"options" : { "num_ctx" :\t16384 , "seed":1},"model":"A"}',
        ),
        ('{"model":"a","options":{"num_ctx":null}}', '{"model":"a","options":{"num_ctx":16384}}'),
        ('{"model":"a","options":{"num\\u005fctx":1}}', '{"model":"a","options":{"num\\u005fctx":16384}}'),
        ('{"model":"a","Options":{"num_ctx":1}}', '{"model":"a","Options":{"num_ctx":16384}}'),
        ('{"model":"a","options":{"seed":1}}', '{"model":"a","options":{"num_ctx":16384,"seed":1}}'),
        ('{"model":"a","options":{ \n}}', '{"model":"a","options":{"num_ctx":16384 \n}}'),
        (' {"model":"a"} trailing', ' {"options":{"num_ctx":16384},"model":"a"} trailing'),
        (NESTED, NESTED.replace("{", '{"options":{"num_ctx":16384},', 1)),
    ],
)
def test_one_number_is_replaced_or_written_in_and_every_other_byte_stays(sent: str, raised: str) -> None:
    assert _raised(sent) == raised.encode()


@pytest.mark.parametrize(
    "sent",
    [
        '{"model":"a","options":{"num_ctx":16384}}',
        '{"model":"a","options":{"num_ctx":32768.5}}',
        '{"model":"a","options":{"num_ctx":1,"num_ctx":2}}',
        '{"model":"a","options":{"num_ctx":1},"options":{"seed":2}}',
        '{"model":"a","options":{"seed":1},"OPTIONS":{"seed":2}}',
        '{"model":"a","options":null}',
    ],
)
def test_what_asks_for_enough_or_is_not_certain_stays_as_it_was_sent(sent: str) -> None:
    assert _raised(sent) is None


@pytest.mark.parametrize(
    ("sent", "raised"),
    [
        ('{"num_ctx":4,"model":"a"}', '{"options":{"num_ctx":16384},"num_ctx":4,"model":"a"}'),
        (
            '{"num_ctx":4,"model":"a","options":{"num_ctx":5}}',
            '{"num_ctx":4,"model":"a","options":{"num_ctx":16384}}',
        ),
        ('{"num_ctx":4,"model":"a","options":{}}', '{"num_ctx":4,"model":"a","options":{"num_ctx":16384}}'),
        (
            '{"model":"a","options":{"options":{"num_ctx":1},"num_ctx":2}}',
            '{"model":"a","options":{"options":{"num_ctx":1},"num_ctx":16384}}',
        ),
    ],
)
def test_a_num_ctx_that_is_no_member_of_options_is_none_and_neither_are_options_within_options(
    sent: str, raised: str
) -> None:
    """Ollama looks at neither; what changes is the context that Ollama would load the model with."""
    assert _raised(sent) == raised.encode()


def test_the_models_own_context_counts_where_the_request_names_none() -> None:
    assert _raised('{"model":"a"}', parameters={"num_ctx": 32768}) is None
    assert _raised('{"model":"a"}', parameters={"num_ctx": 8192}) is not None
    assert _raised('{"model":"a","options":{"num_ctx":1}}', parameters={"num_ctx": 32768}) is not None


@pytest.mark.parametrize("endpoint", endpoints.GATED, ids=lambda endpoint: endpoint.path)
def test_only_ollamas_own_routes_can_name_a_context(endpoint: Endpoint) -> None:
    if endpoint.is_form:
        return
    body = {"model": "a", "input": "x", "max_tokens": 1, "messages": [{"role": "user", "content": "x"}], "prompt": "x"}
    assert (_raised(json.dumps(body), endpoint) is not None) == endpoint.path.startswith("/api/")


def test_a_large_body_is_read_in_slices() -> None:
    body = json.dumps({"prompt": 'x"\\' * 200_000, "model": "a", "options": {"seed": 1, "num_ctx": 8192}}).encode()
    raised = _raised(body, endpoints.GENERATE)
    assert raised == body.replace(b": 8192", b": 16384")


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
_OPTIONS = st.dictionaries(st.sampled_from(["num_ctx", "seed", "top_k"]), st.integers(0, 40_000), max_size=3)


@given(st.dictionaries(st.text(max_size=8), _JSON, max_size=4), st.none() | _OPTIONS, st.booleans(), st.randoms())
def test_a_reader_sees_the_same_request_but_for_its_context(
    others: dict[str, Any], options: dict[str, int] | None, spaced: bool, random: Any
) -> None:
    known = {"model", "options", "keep_alive", "stream", "messages", "tools", "think", "shift"}
    request = {key: value for key, value in others.items() if json_fields.fold(key) not in known}
    request |= {"model": "a", **({} if options is None else {"options": options})}
    keys = list(request)
    random.shuffle(keys)
    sent = {key: request[key] for key in keys}
    body = json.dumps(sent, indent=1 if spaced else None, ensure_ascii=spaced).encode()
    raised = _raised(body)
    if (options or {}).get("num_ctx", 0) >= LEAST:
        assert raised is None
    else:
        assert raised is not None
        assert json.loads(raised) == {**request, "options": {**(options or {}), "num_ctx": LEAST}}
