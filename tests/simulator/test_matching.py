"""The judge of the contract test can be trusted: what was recorded passes, what was changed does not."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.simulator import matching, timelines
from tests.simulator.transcripts import GROUPS, RECORDER_PORT, Answer, Exchange, read


def answered(exchange: Exchange) -> Answer:
    """The recorded answer, as if it had just come."""
    response = exchange.response
    return Answer(
        status_line=response.get("status_line", ""),
        interim=response.get("interim"),
        headers=response.get("headers") or [],
        body=response.get("body", ""),
        chunks=[chunk["text"] for chunk in response["chunks"]] if "chunks" in response else None,
        end=response.get("end"),
    )


def judge(exchange: Exchange, answer: Answer) -> list[str]:
    return list(matching.differences(exchange, answer, matching.Context(), int(RECORDER_PORT)))


@pytest.mark.parametrize("group", GROUPS)
def test_a_recording_agrees_with_itself(group: str):
    """Also shows that every varying value of the recordings passes its own check."""
    assert not {one.name: lines for one in read(group) if (lines := judge(one, answered(one)))}


CHANGES = {
    "another value": (' small.0"', ' small.1"'),
    "another key": ('"done_reason"', '"reason"'),
    "another order": ('"done":true,"done_reason":"length"', '"done_reason":"length","done":true'),
    "a blank": ('"done":true', '"done": true'),
    "another type": ('"done":true', '"done":"true"'),
    "a date without a zone": ('Z","response"', '","response"'),
    "a negative duration": ('"eval_duration":', '"eval_duration":-'),
    "a line feed": ("}", "}\n"),
    "a number spelled otherwise": ('"eval_count":1', '"eval_count":1.0'),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_body_is_noticed(change: str):
    """Each way in which an encoder can go wrong."""
    exchange = next(one for one in read("generate_chat") if one.name == "query string")
    old, new = CHANGES[change]
    answer = answered(exchange)
    assert old in answer.body
    assert judge(exchange, replace(answer, body=answer.body.replace(old, new)))


def test_headers_and_chunks_are_compared():
    """Case, order, a chunk too many, another end."""
    exchange = read("anthropic")[1]
    answer = answered(exchange)
    assert answer.chunks
    assert not judge(exchange, answer)
    assert judge(exchange, replace(answer, headers=answer.headers[::-1]))
    assert judge(exchange, replace(answer, headers=[[name.lower(), value] for name, value in answer.headers]))
    assert judge(exchange, replace(answer, chunks=[*answer.chunks, "\n"]))
    assert judge(exchange, replace(answer, end="connection lost"))


def test_an_id_must_stay_the_same_within_an_answer():
    """A stream whose chunks have different ids is none."""
    exchange = next(one for one in read("openai") if one.name == "chat completions stream")
    answer = answered(exchange)
    assert answer.chunks
    other = answer.chunks[1].replace("chatcmpl-123", "chatcmpl-124")
    assert judge(exchange, replace(answer, chunks=[answer.chunks[0], other, *answer.chunks[2:]]))


def test_the_order_of_a_timeline_is_compared():
    """Missing facts, facts too many and facts in another order; those close together have no order."""
    fact = timelines.Fact
    expected = [fact(0, "exit a #1", 0), fact(20, "ps [] #1", 20), fact(800, "vram_returned a #1", 800)]

    def played(*moments: tuple[float, str, float]) -> list[str]:
        return list(timelines.compare(expected, [fact(*moment) for moment in moments]))

    in_order = ((1, "ps [] #1", 0), (2, "exit a #1", 2), (3, "vram_returned a #1", 3))
    assert not played(*in_order)
    assert played(*in_order[:2])
    assert played(*in_order, (2.5, "load_start b #1", 2.5))
    assert not played(*in_order, (4, "load_start b #1", 4))
    assert played((1, "vram_returned a #1", 1), (2, "exit a #1", 2), (3, "ps [] #1", 2.5))
    assert not played((1, "vram_returned a #1", 1), (2, "exit a #1", 0.5), (3, "ps [] #1", 0.5))
