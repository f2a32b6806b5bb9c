"""The running error of the forecasts."""

from __future__ import annotations

import pytest

from ollama_swap_proxy.core.accuracy import ERRORS_KEPT, Accuracy


def test_before_the_first_wait_nothing_is_said_of_the_error() -> None:
    assert Accuracy().median_error is None


def test_the_error_is_a_share_of_the_real_wait_and_the_median_of_them_is_told() -> None:
    accuracy = Accuracy()
    for number, (expected_s, waited_s) in enumerate([(10.0, 8.0), (5.0, 10.0), (9.0, 10.0)]):
        accuracy.foretell(number, 100.0, expected_s)
        accuracy.granted(number, 100.0 + waited_s)
    assert accuracy.median_error == pytest.approx(0.25)


def test_where_there_was_nothing_to_wait_for_there_was_nothing_to_foretell() -> None:
    accuracy = Accuracy()
    accuracy.foretell(1, 0.0, 0.0)
    accuracy.granted(1, 0.005)
    assert accuracy.median_error is None
    accuracy.foretell(2, 0.0, 1.0)
    accuracy.granted(2, 0.005)
    assert accuracy.median_error is not None
    assert accuracy.median_error > 9


def test_who_ends_without_a_grant_teaches_nothing_and_is_forgotten() -> None:
    accuracy = Accuracy()
    accuracy.foretell(1, 0.0, 3.0)
    accuracy.forget(1)
    accuracy.granted(1, 9.0)
    assert accuracy.median_error is None
    assert accuracy.foretold == {}


def test_only_the_newest_errors_count() -> None:
    accuracy = Accuracy()
    for number in range(2 * ERRORS_KEPT):
        accuracy.foretell(number, 0.0, 20.0 if number < ERRORS_KEPT else 10.0)
        accuracy.granted(number, 10.0)
    assert accuracy.median_error == 0.0
