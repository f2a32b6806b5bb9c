"""The numbers hang together: what bounds what."""

from __future__ import annotations

from ollama_swap_proxy.core import policy
from ollama_swap_proxy.core.policy import Policy


def test_a_warm_request_waits_for_a_report_for_less_than_a_report_may_age():
    assert policy.STALE_VIEW_PATIENCE_S < Policy().ps_max_age_s <= Policy().ps_interval_s


def test_old_versions_are_polled_less_often():
    assert policy.POLL_S < policy.CAREFUL_POLL_S


def test_no_bound_of_a_step_exceeds_the_bound_of_the_whole_wait():
    numbers = Policy()
    assert max(numbers.stuck_after_s, numbers.load_timeout_s, numbers.unload_timeout_s) < numbers.give_up_after_s
    assert numbers.cool_down_s < numbers.cool_down_max_s <= numbers.give_up_after_s


def test_a_drains_afterlife_and_the_log_of_a_slow_one_come_before_it_is_stuck():
    assert policy.DRAIN_AFTERLIFE_S < policy.DRAIN_SLOW_AFTER_S < Policy().stuck_after_s


def test_the_first_settle_wait_is_within_the_longest():
    assert 0 < policy.SETTLE_FIRST_S <= Policy().settle_max_s
