"""Bodies are read by Go's rules, not by Python's."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ollama_swap_proxy.core.json_fields import BadJSON, Fields, TooDeep, clean, fold, read
from tests.core.documents import bodies, dumped


def test_keys_match_in_any_case_and_by_gos_two_folding_letters():
    fields = read('{"MODEL":"a","\u212aeep_alive":1,"me\u017f\u017fages":[],"\\u006dodel":"b"}'.encode())
    assert {name: list(fields.every(name)) for name in fields.last} == {
        "model": ["a", "b"],
        "keep_alive": [1],
        "messages": [[]],
    }
    assert fold("İmodel") != "imodel"


def test_the_last_duplicate_wins_but_null_leaves_a_plain_field_alone():
    fields = read(b'{"model":"a","Model":"b","model":null}')
    assert fields.plain("model") == "b"
    assert fields.nullable("model") is None
    assert fields.every("model") == ["a", "b", None]
    assert fields.plain("prompt") is None


def test_objects_given_for_a_map_add_up_and_null_empties_it():
    assert read(b'{"options":{"a":1,"b":2},"options":{"b":3,"B":null}}').merged("options") == {
        "a": 1,
        "b": 3,
        "B": None,
    }
    assert read(b'{"options":{"a":1},"options":null}').merged("options") == {}
    assert read(b'{"options":{"a":1,"a":2}}').merged("options") == {"a": 2}


@pytest.mark.parametrize("tail", ["", " ", "x", "{}", "]", "\x00", '{"model":"b"}'])
def test_what_follows_the_first_value_is_ignored(tail):
    assert read(f' \n\t\r{{"model":"a"}}{tail}'.encode()).plain("model") == "a"


def test_a_null_body_is_an_object_without_members():
    assert read(b" null") == Fields()


@pytest.mark.parametrize(
    "body",
    [
        b"\xef\xbb\xbf{}",
        b"{nope",
        b'{"model":"small"',
        b'{"model":"small',
        b'{"model":"sm\nall"}',
        b'{"model":"sm\x00all"}',
        b'{"model":"\\x"}',
        b'{"model":"\\u12"}',
        b'{"a":NaN}',
        b'{"a":Infinity}',
        b'{"a":-Infinity}',
        b'{"a":01}',
        b'{"a":1.}',
        b'{"a":.5}',
        b'{"a":+1}',
        b'{"a":1e}',
        b'{"a":0x1}',
        b'{"a":1,}',
        b'{"a":[1,]}',
        b'{"a" 1}',
        b"{'a':1}",
        b'{"a":tru}',
        b'{"a":nul',
        b"{1:2}",
        b'\x0c{"a":1}',
        b'{"a":1 /* */}',
        b"[]",
        b'"x"',
        b"1",
        b"true",
        '{"a":1}'.encode("utf-16"),
        b"\x1f\x8b\x08\x00",
    ],
)
def test_what_go_refuses_is_refused(body):
    with pytest.raises(BadJSON):
        read(body)


@pytest.mark.parametrize("body", [b"", b" ", b"\r\n\t "])
def test_a_body_without_a_value_is_refused_in_gos_word(body):
    with pytest.raises(BadJSON, match=r"^EOF$"):
        read(body)


def test_bytes_that_are_no_utf8_are_tolerated():
    assert read(b'{"model":"a\xff\xc3(b"}').plain("model") == "a\ufffd\ufffd(b"


def test_long_numbers_are_numbers():
    fields = read(b'{"a":' + b"9" * 5000 + b',"b":1e999,"model":"x"}')
    assert fields.plain("model") == "x"
    assert isinstance(fields.plain("a"), float)


def test_deep_nesting_is_left_to_another_reader():
    with pytest.raises(TooDeep):
        read(b'{"a":' + b"[" * 9000 + b"]" * 9000 + b"}")


def test_a_lone_surrogate_is_replaced_as_go_does():
    text = read(b'{"a":"x\\ud800y","b":"\\ud83d\\ude00"}')
    assert clean(str(text.plain("a"))) == "x\ufffdy"
    assert clean(str(text.plain("b"))) == "\U0001f600"


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text(max_size=6), JSON_VALUES, max_size=5))
def test_all_that_json_libraries_write_is_read(value):
    fields = read(dumped(value))
    assert list(fields.last) == list(dict.fromkeys(fold(key) for key in value))
    assert json.dumps(value, ensure_ascii=True).encode() == dumped(value)


@given(bodies())
def test_every_body_is_read_or_refused(body):
    try:
        fields = read(body)
    except BadJSON:
        return
    assert all(key == fold(key) for key in fields.last)
