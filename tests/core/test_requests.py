"""What a request asks for; and that nothing is taken for a refusal which Ollama would serve."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings

from ollama_swap_proxy.bodies import Body, read_intent
from ollama_swap_proxy.core import endpoints, json_fields
from ollama_swap_proxy.core.endpoints import Endpoint
from ollama_swap_proxy.core.requests import RUNNER_OPTIONS, Intent, Kind, judge, judge_form, surely_refused_by
from tests.core.documents import bodies

TRANSCRIPTS = Path(__file__).parents[1] / "transcripts"
CAPABILITIES = {
    "embedder": ["embedding"],
    "toolman": ["completion", "tools"],
}


def intent(endpoint: Endpoint, body: dict[str, Any] | str) -> Intent:
    text = body if isinstance(body, str) else json.dumps(body)
    return judge(endpoint, json_fields.read(text.encode()))


def exchanges() -> Iterator[tuple[str, dict[str, Any]]]:
    for path in sorted(TRANSCRIPTS.glob("*.json")):
        if path.name.endswith(".timeline.json"):
            continue
        for exchange in json.loads(path.read_text()):
            request = exchange["request"]
            if endpoints.match(request["method"], request["path"]):
                yield f"{path.stem}: {exchange['name']}", exchange


def body_of(request: dict[str, Any]) -> bytes:
    if "body_base64" in request:
        return base64.b64decode(request["body_base64"])
    body = request.get("body", "").encode()
    if ["Transfer-Encoding", "chunked"] in request.get("headers", []):
        body = body.split(b"\r\n")[1]
    return body


async def judged(request: dict[str, Any]) -> Intent:
    endpoint = endpoints.match(request["method"], request["path"])
    assert endpoint is not None
    body = Body(1 << 20)
    await body.append(body_of(request))
    return await read_intent(endpoint, request["path"], dict(request.get("headers", [])), body)


EXCHANGES = dict(exchanges())


@pytest.mark.parametrize("name", EXCHANGES)
async def test_nothing_that_ollama_served_is_taken_for_a_refusal(name):
    exchange = EXCHANGES[name]
    found = await judged(exchange["request"])
    capabilities = CAPABILITIES.get(found.model, ["completion"])
    status = exchange["response"].get("status")
    if status is None or status < 400:
        assert found.kind in {Kind.LEASE, Kind.UNLOAD}
        assert not surely_refused_by(found, capabilities)
        body = exchange["response"].get("body") or ""
        assert (found.kind is Kind.UNLOAD) == ('"done_reason":"unload"' in body)


LEFT_TO_OLLAMA = (
    *("aliases", "busy_keep_alive", "busy_victim", "deleted"),
    *("disconnect", "faults", "load_timeout", "queue_full"),
)
"""Groups whose errors come from what happened to the model, not from the request."""


async def test_all_recorded_refusals_are_recognised_but_for_those_that_only_the_catalog_can_know():
    """The list of what is not recognised is part of the test: it may only shrink."""
    missed = set()
    for name, exchange in EXCHANGES.items():
        status = exchange["response"].get("status")
        if status is None or status < 400 or name.startswith(LEFT_TO_OLLAMA):
            continue
        found = await judged(exchange["request"])
        capabilities = CAPABILITIES.get(found.model, ["completion"])
        if found.kind is Kind.LEASE and not surely_refused_by(found, capabilities):
            missed.add((found.name, status))
    assert missed <= {("nosuch:latest", 404), ("nosuch-cloud:latest", 404), ("big:latest", 500)}


async def test_cloud_names_of_the_transcripts_go_to_the_cloud():
    for name, exchange in EXCHANGES.items():
        if name.startswith("cloud_disabled") and exchange["response"]["status"] == 403:
            assert (await judged(exchange["request"])).kind is Kind.CLOUD, name


def test_an_unload_is_an_empty_prompt_and_a_keep_alive_of_exactly_zero():
    for zero in (0, 0.0, -0.0, "0", "0s", "-0s", 1e-10):
        for endpoint in (endpoints.GENERATE, endpoints.CHAT):
            assert intent(endpoint, {"model": "m", "keep_alive": zero}).kind is Kind.UNLOAD
    for body in (
        {"keep_alive": 0.001},
        {"keep_alive": -1},
        {"keep_alive": 1e20},
        {"keep_alive": 0, "prompt": "x", "messages": [{}]},
    ):
        assert intent(endpoints.GENERATE, {"model": "m", **body}).kind is Kind.LEASE
        assert intent(endpoints.CHAT, {"model": "m", **body}).kind is Kind.LEASE
    assert intent(endpoints.GENERATE, '{"model":"m","keep_alive":0,"keep_alive":null}').kind is Kind.LEASE
    assert intent(endpoints.GENERATE, '{"model":"m","keep_alive":0,"options":{"num_ctx":"big"}}').kind is Kind.UNLOAD
    assert intent(endpoints.EMBED, {"model": "m", "keep_alive": 0}).kind is Kind.LEASE
    assert intent(endpoints.EMBEDDINGS, {"model": "m", "keep_alive": 0}).kind is Kind.LEASE
    assert intent(endpoints.V1_COMPLETIONS, {"model": "m", "keep_alive": 0}).kind is Kind.LEASE


def test_an_unload_needs_no_capability():
    assert not surely_refused_by(intent(endpoints.GENERATE, {"model": "m", "keep_alive": 0}), ["embedding"])


@pytest.mark.parametrize(
    ("keep_alive", "seconds"),
    [("null", None), ("0.5", 0.5), ('"1h30m"', 5400.0), ("-1", math.inf), ('"-5s"', math.inf), ("1e20", 0.0)],
)
def test_keep_alive_is_told_in_seconds(keep_alive, seconds):
    body = f'{{"model":"m","prompt":"x","keep_alive":{keep_alive}}}'
    assert intent(endpoints.GENERATE, body).keep_alive_s == seconds
    assert intent(endpoints.V1_COMPLETIONS, body).keep_alive_s is None


@pytest.mark.parametrize(
    ("endpoint", "body"),
    [
        (endpoints.GENERATE, {}),
        (endpoints.GENERATE, {"model": " "}),
        (endpoints.GENERATE, {"model": "a b"}),
        (endpoints.GENERATE, {"model": 1}),
        (endpoints.GENERATE, {"model": "m", "MODEL": ["m"]}),
        (endpoints.GENERATE, {"model": "m:local:cloud"}),
        (endpoints.GENERATE, {"model": "m", "prompt": 1}),
        (endpoints.GENERATE, {"model": "m", "stream": "yes"}),
        (endpoints.GENERATE, {"model": "m", "stream": 1, "STREAM": True}),
        (endpoints.GENERATE, {"model": "m", "raw": 1}),
        (endpoints.GENERATE, {"model": "m", "images": "x"}),
        (endpoints.GENERATE, {"model": "m", "options": []}),
        (endpoints.GENERATE, {"model": "m", "options": {"num_ctx": "big"}}),
        (endpoints.GENERATE, {"model": "m", "options": {"num_ctx": True}}),
        (endpoints.GENERATE, {"model": "m", "options": {"use_mmap": 1}}),
        (endpoints.GENERATE, {"model": "m", "keep_alive": "10"}),
        (endpoints.CHAT, {"model": "m", "messages": {}}),
        (endpoints.CHAT, {"model": "m", "messages": "hi"}),
        (endpoints.CHAT, {"model": "m", "tools": {}}),
        (endpoints.CHAT, {"model": "m", "keep_alive": True}),
        (endpoints.EMBED, {"model": "m", "input": 1}),
        (endpoints.EMBED, {"model": "m", "input": {"a": 1}}),
        (endpoints.EMBEDDINGS, {"model": "m", "keep_alive": {}}),
        (endpoints.EMBEDDINGS, {"model": "m", "options": {"num_ctx": []}}),
        (endpoints.V1_CHAT, {"model": "m"}),
        (endpoints.V1_CHAT, {"model": "m", "messages": []}),
        (endpoints.V1_CHAT, {"model": "m", "messages": [{}], "max_tokens": "four"}),
        (endpoints.V1_EMBEDDINGS, {"model": "m"}),
        (endpoints.V1_EMBEDDINGS, {"model": "m", "input": []}),
        (endpoints.V1_MESSAGES, {"model": "m", "messages": [{}]}),
        (endpoints.V1_MESSAGES, {"model": "m", "messages": [{}], "max_tokens": 0}),
        (endpoints.V1_MESSAGES, {"model": "m", "max_tokens": 1}),
        (endpoints.V1_RESPONSES, {"model": "m", "stream": 1}),
    ],
)
def test_what_no_release_of_ollama_serves_is_a_sure_refusal(endpoint, body):
    found = intent(endpoint, body)
    assert found.kind is Kind.SURE_REFUSAL
    assert found.reason


@pytest.mark.parametrize(
    ("endpoint", "body"),
    [
        (endpoints.GENERATE, {"model": "m", "prompt": None, "options": None, "keep_alive": None, "stream": None}),
        (endpoints.GENERATE, {"model": "m", "think": "deeply"}),
        (endpoints.GENERATE, {"model": "m", "format": 1}),
        (endpoints.GENERATE, {"model": "m", "messages": 1, "tools": 2, "unknown": {}}),
        (endpoints.GENERATE, {"model": "m", "options": {"num_ctx": None, "NUM_CTX": "big", "x": []}}),
        (endpoints.GENERATE, {"model": "m", "options": {"num_ctx": 8192.5, "draft_num_predict": "x"}}),
        (endpoints.EMBED, {"model": "m", "input": [1, 2]}),
        (endpoints.V1_CHAT, {"model": "m", "messages": [1], "keep_alive": "bad", "options": 3, "stop": 1}),
        (endpoints.V1_COMPLETIONS, {"model": "m", "prompt": ["a"]}),
        (endpoints.V1_EMBEDDINGS, {"model": "m", "input": ""}),
        (endpoints.V1_MESSAGES, {"model": "m", "messages": [1], "max_tokens": 1.5}),
        (endpoints.V1_RESPONSES, {"model": "m"}),
    ],
)
def test_in_doubt_it_is_a_lease(endpoint, body):
    assert intent(endpoint, body).kind is Kind.LEASE


def test_options_and_shift_are_told_as_the_request_gave_them():
    body = {
        "model": "m",
        "shift": False,
        "options": {"num_ctx": 8192, "num_gpu": -1, "temperature": 1, "NUM_BATCH": 1},
    }
    assert intent(endpoints.GENERATE, body).options == {"num_ctx": 8192, "num_gpu": -1, "shift": False}
    assert intent(endpoints.EMBED, body).options == {"num_ctx": 8192, "num_gpu": -1}
    assert intent(endpoints.V1_COMPLETIONS, body).options == {}


def test_nulls_are_options_only_where_ollama_asks_whether_they_are_there():
    nulls = dict.fromkeys(RUNNER_OPTIONS)
    found = intent(endpoints.GENERATE, {"model": "m", "options": nulls})
    assert found.options == {"num_batch": None, "draft_num_predict": None}


@pytest.mark.parametrize(
    ("endpoint", "body", "needs"),
    [
        (endpoints.GENERATE, {"suffix": "x"}, {"completion", "insert"}),
        (endpoints.GENERATE, {"suffix": "", "think": False}, {"completion"}),
        (endpoints.CHAT, {"tools": [{}], "think": True}, {"completion", "tools", "thinking"}),
        (endpoints.CHAT, {"tools": []}, {"completion"}),
        (endpoints.V1_CHAT, {"messages": [1], "tools": [{}]}, {"completion", "tools"}),
        (endpoints.V1_MESSAGES, {"messages": [1], "max_tokens": 1, "tools": [{}]}, {"completion"}),
        (endpoints.EMBED, {}, set()),
        (endpoints.V1_EMBEDDINGS, {"input": "x"}, set()),
        (endpoints.V1_IMAGES, {}, {"image"}),
        (endpoints.V1_IMAGE_EDITS, {}, {"image"}),
    ],
)
def test_needed_capabilities_are_those_that_ollama_checks(endpoint, body, needs):
    found = intent(endpoint, {"model": "m", **body})
    assert found.needs == needs
    assert not surely_refused_by(found, None)
    assert surely_refused_by(found, ["completion", "tools", "thinking", "insert", "vision"]) is (needs == {"image"})
    assert not surely_refused_by(found, ["image"])
    assert surely_refused_by(found, ["embedding"]) is bool(needs)


@pytest.mark.parametrize("body", ['{"model":"m:cloud","Model":"small"}', '{"model":"m:cloud","model":"small"}'])
def test_where_ollamas_two_readings_of_the_model_differ_it_is_a_lease(body):
    found = intent(endpoints.V1_COMPLETIONS, body)
    assert (found.kind, found.name) == (Kind.LEASE, "small:latest")


def test_a_form_is_judged_by_its_model():
    assert judge_form("Whisper").name == "whisper:latest"
    assert judge_form("Whisper").kind is Kind.LEASE
    assert judge_form("w:cloud").kind is Kind.CLOUD
    assert judge_form("").kind is Kind.SURE_REFUSAL
    assert judge_form("a b").kind is Kind.SURE_REFUSAL


def test_a_model_that_cannot_be_encoded_is_cleaned():
    assert intent(endpoints.GENERATE, '{"model":"\\ud800"}').model == "\ufffd"


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(bodies())
def test_every_body_has_a_judgement(body):
    for endpoint in endpoints.GATED[:-1]:
        try:
            fields = json_fields.read(body)
        except json_fields.BadJSON:
            return
        found = judge(endpoint, fields)
        assert found.name or found.kind is Kind.SURE_REFUSAL
        found.model.encode()
