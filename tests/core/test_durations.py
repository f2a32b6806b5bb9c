"""keep_alive values mean to us what they mean to Ollama."""

from __future__ import annotations

import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ollama_swap_proxy.core.durations import FOREVER_NS, OVERFLOWN_NS, BadDurationError, parse_keep_alive_ns

SECOND = 1_000_000_000


@pytest.mark.parametrize(
    ("text", "nanoseconds"),
    [
        *(
            (zero, 0)
            for zero in ("0", "0.0", "-0.0", "-0", '"0"', '"0s"', '"0m"', '"-0s"', '"+0"', '"-0"', "1e-10", "0e5")
        ),
        ('"0.1ns"', 0),
        ("300", 300 * SECOND),
        ("0.5", SECOND // 2),
        ("1e3", 1000 * SECOND),
        *((forever, FOREVER_NS) for forever in ("-1", "-0.001", "-1e-30", '"-1m"', '"-5s"', '"-1ns"')),
        ('"5m"', 300 * SECOND),
        ('"+5m"', 300 * SECOND),
        ('"1h30m"', 5400 * SECOND),
        ('"1.5h"', 5400 * SECOND),
        ('".5s"', SECOND // 2),
        ('"5.s"', 5 * SECOND),
        ('"100ms"', SECOND // 10),
        ('"1us"', 1000),
        ('"1\u00b5s"', 1000),
        ('"1\u03bcs"', 1000),
        ('"9223372036854775807ns"', 2**63 - 1),
        ('"-9223372036854775808ns"', FOREVER_NS),
        ('"000000000000000000000000000001s"', SECOND),
        ("9300000000", OVERFLOWN_NS),
        ("1e20", OVERFLOWN_NS),
    ],
)
def test_a_keep_alive_is_read_as_ollama_reads_it(text, nanoseconds):
    assert parse_keep_alive_ns(json.loads(text)) == nanoseconds


@pytest.mark.parametrize(
    "value",
    [
        *(
            "",
            "10",
            "-1",
            "abc",
            "5",
            "1.5",
            "s",
            ".s",
            "-.s",
            "5 m",
            " 5m",
            "5m ",
            "5d",
            "5M",
            "1h-1m",
            "--1s",
            "-",
            "+",
        ),
        *("\u0665s", "9223372036854775808ns", "-9223372036854775809ns", "9999999999999999999999h", "1m1", "NaN"),
        *(True, False, [], (), ["5m"], 10**400, float("inf")),
    ],
)
def test_what_ollama_refuses_is_refused(value):
    with pytest.raises(BadDurationError):
        parse_keep_alive_ns(value)


@given(st.integers(0, 2000), st.integers(0, 59), st.integers(0, 59))
def test_compound_durations_add_up(hours, minutes, seconds):
    text = f"{hours}h{minutes}m{seconds}s"
    assert parse_keep_alive_ns(text) == (hours * 3600 + minutes * 60 + seconds) * SECOND


@given(st.text(max_size=20) | st.text("0123456789.hmsun-+", max_size=20))
def test_any_text_is_a_duration_or_refused(text):
    with contextlib.suppress(BadDurationError):
        assert 0 <= parse_keep_alive_ns(text) <= FOREVER_NS
