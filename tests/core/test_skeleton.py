"""A reduced body is judged like the whole one, stays small, and costs bounded work at a time."""

from __future__ import annotations

import json
from collections.abc import Iterable

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ollama_swap_proxy.core import endpoints, json_fields, requests
from ollama_swap_proxy.core.json_fields import BadJSON, Fields
from ollama_swap_proxy.core.skeleton import STEPS_A_PAUSE, VALUE_LIMIT_BYTES, VALUES_KEPT, Keep, Skeleton, Unreadable
from tests.core.documents import bodies, cuts

RULES = {"model": Keep.VALUE, "prompt": Keep.SHAPE, "messages": Keep.SHAPE, "options": {"num_ctx": Keep.VALUE}}


def reduce(pieces: Iterable[bytes], rules=RULES) -> Fields:
    skeleton = Skeleton(rules)
    for piece in pieces:
        for _ in skeleton.feed(piece):
            pass
    return skeleton.fields()


def test_values_are_kept_and_the_rest_is_shape():
    body = {
        "model": "small",
        "prompt": "A" * 100_000,
        "messages": [{"role": "user", "images": ["B" * 100_000]}],
        "options": {"num_ctx": 8192, "stop": ["x"], "unknown": {"a": [1]}},
        "unknown": [[[]]],
    }
    fields = reduce([json.dumps(body).encode()])
    assert {name: list(fields.every(name)) for name in fields.last} == {
        "model": ["small"],
        "prompt": ["..."],
        "messages": [[0]],
        "options": [(("num_ctx", 8192),)],
    }


@pytest.mark.parametrize(
    ("given_json", "shape"),
    [
        ('""', ""),
        ('"x"', "x"),
        ("[ ]", []),
        ("[ [] ]", [0]),
        ("{\n}", ()),
        ('{"a":"}"}', (("", 0),)),
        ("12", 12),
        ("null", None),
        ("true", True),
        (r'"\\"', "\\"),
        (r'"a\"]}"', 'a"]}'),
    ],
)
def test_shapes_keep_type_and_emptiness(given_json, shape):
    assert reduce([f'{{"prompt":{given_json}}}'.encode()]) == Fields({"prompt": shape})


def test_duplicates_are_all_kept_in_order():
    fields = reduce([b'{"model":"a","MODEL":null,"\\u006dodel":"b","options":{"num_ctx":1},"options":{"num_ctx":2}}'])
    assert fields.every("model") == ["a", None, "b"]
    assert fields.merged("options") == {"num_ctx": 2}


@pytest.mark.parametrize(
    "body", [b"", b"  ", b"\xef\xbb\xbf{}", b"[1,2]", b"12", b'{"a":[', b'{"a":"x', b'{"a":1,}', b"{a:1}"]
)
def test_what_is_certainly_no_json_object_is_refused(body):
    with pytest.raises(BadJSON):
        reduce([body])
    with pytest.raises(BadJSON):
        reduce([body[i : i + 1] for i in range(len(body))])


def test_nothing_after_the_object_matters():
    skeleton = Skeleton(RULES)
    assert not list(skeleton.feed(b'{"model":"a"} {"model":"b"}'))
    assert skeleton.is_finished
    assert not list(skeleton.feed(b"[" * 100_000))
    assert skeleton.fields().plain("model") == "a"


@pytest.mark.parametrize(
    "body",
    [
        b'{"model":"' + b" " * (VALUE_LIMIT_BYTES + 1) + b'small"}',
        b'{"options":{"num_ctx":' + b"1" * (VALUE_LIMIT_BYTES + 1) + b"}}",
    ],
)
def test_a_value_too_long_to_keep_makes_a_body_unreadable_unless_it_is_overruled(body):
    with pytest.raises(Unreadable):
        reduce([body])
    if body.startswith(b'{"o'):
        assert reduce([body[:-1] + b',"options":{"num_ctx":1}}']).merged("options") == {"num_ctx": 1}
    else:
        assert reduce([body[:-1] + b',"model":"b"' * VALUES_KEPT + b"}"]).plain("model") == "b"


def test_a_long_value_of_which_only_the_shape_matters_hurts_nobody():
    assert reduce([b'{"prompt":' + b"1" * (VALUE_LIMIT_BYTES + 1) + b"}"]).plain("prompt") == 0


def test_blanks_around_a_name_are_kept_with_it():
    assert reduce([b'{"model":"' + b" " * 3000 + b'small"}']).plain("model") == " " * 3000 + "small"


FLOODS = {
    "one field": (b'"model":"b"', b'"model":"last"'),
    "nulls behind the model": (b'"model":null', b'"prompt":null'),
    "nulls and types in turn": (b'"model":null,"model":1', b'"model":"last"'),
    "other fields": (b'"prompt":"","options":{},"messages":[]', b'"model":"last"'),
    "options": (b'"options":{"num_ctx":1},"options":null,"options":{}', b'"options":{"num_ctx":2},"options":{}'),
}


@pytest.mark.parametrize("flood", FLOODS)
def test_a_flood_of_fields_stays_small_and_hides_nothing(flood):
    filling, last = FLOODS[flood]
    skeleton = Skeleton(RULES)
    for _ in skeleton.feed(b'{"model":"first",' + b"".join([filling, b","] * 50_000) + last + b"}"):
        pass
    assert sum(map(len, skeleton._kept.values())) <= len(RULES) * VALUES_KEPT
    fields = skeleton.fields()
    assert fields.plain("model") == ("last" if b"last" in last else "first")
    assert fields.merged("options") == ({"num_ctx": 2} if flood == "options" else {})


HOSTILE = {
    "brackets": b"[" * 60_000,
    "pairs of brackets": b"[],{}," * 10_000,
    "empty strings": b'"",' * 20_000,
    "tiny objects": b'{"":0},' * 9_000,
}


@pytest.mark.parametrize("filling", HOSTILE)
@pytest.mark.parametrize("start", [b'{"messages":[', b'{"unknown":['])
def test_hostile_containers_are_read_in_portions(filling, start):
    skeleton = Skeleton(RULES)
    data = start + HOSTILE[filling]
    pauses = sum(1 for _ in skeleton.feed(data))
    items = sum(data.count(char) for char in (b"[", b"]", b"{", b"}")) + data.count(b'"') // 2
    assert pauses >= items // STEPS_A_PAUSE - 1


def test_tiny_keys_are_read_in_portions():
    skeleton = Skeleton(RULES)
    pauses = sum(1 for _ in skeleton.feed(b"{" + b'"":0,' * 13_000))
    assert pauses >= 13_000 * 3 // STEPS_A_PAUSE - 1
    assert not skeleton._kept


@pytest.mark.parametrize("filling", [b"A" * 200_000, b"\\n" * 100_000, b'\\"' * 100_000, b"\xff" * 200_000])
def test_strings_cost_no_steps_whatever_is_in_them(filling):
    skeleton = Skeleton(RULES)
    assert not list(skeleton.feed(b'{"prompt":"' + filling))
    assert skeleton._steps < 10


def test_one_byte_at_a_time_keeps_nothing_but_a_token():
    skeleton = Skeleton(RULES)
    for byte in b'{"unknown":"' + b"\\u0041" * 500 + b'","model":"small"}':
        list(skeleton.feed(bytes([byte])))
        assert len(skeleton._data) < 10
    assert skeleton.fields().plain("model") == "small"


@settings(max_examples=400, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_the_skeleton_and_the_whole_body_are_judged_alike(data):
    body = data.draw(bodies())
    pieces = data.draw(cuts(body))
    for endpoint in endpoints.GATED[:-1]:
        try:
            reduced = requests.judge(endpoint, reduce(pieces, requests.RULES))
        except BadJSON:
            with pytest.raises(BadJSON):
                json_fields.read(body)
            return
        try:
            whole = requests.judge(endpoint, json_fields.read(body))
        except BadJSON:
            return  # a mistake in what the skeleton leaves out: in doubt, a lease
        assert {**as_dict(reduced), "reason": ""} == {**as_dict(whole), "reason": ""}


def as_dict(intent: requests.Intent) -> dict[str, object]:
    return {name: getattr(intent, name) for name in intent.__slots__}


def test_where_values_stand_is_told_in_offsets_of_the_whole_body_however_it_is_sliced():
    body = (
        b' {"a": [1, "options"], "options" : {"x": 1, "num_ctx":  42 , "n": {"num_ctx": 3}}, "options": {"num_ctx":7}}'
    )
    for size in (1, 3, len(body)):
        skeleton = Skeleton({"options": {"num_ctx": Keep.VALUE}}, ("options", "num_ctx"))
        for start in range(0, len(body), size):
            for _ in skeleton.feed(body[start : start + size]):
                pass
        found = {name: [body[start:end] for start, end in places] for name, places in skeleton.places.items()}
        assert found["num_ctx"] == [b"42", b"7"]
        assert found["options"] == [b'{"x": 1, "num_ctx":  42 , "n": {"num_ctx": 3}}', b'{"num_ctx":7}']


def test_where_a_name_stands_that_no_rule_is_for_is_not_told():
    skeleton = Skeleton({"options": {"num_ctx": Keep.SHAPE}}, ("options", "num_ctx"))
    list(skeleton.feed(b'{"num_ctx":1,"options":{"options":{"num_ctx":2}},"a":{"options":{"num_ctx":3}}}'))
    assert skeleton.places == {"options": [(23, 48)]}
