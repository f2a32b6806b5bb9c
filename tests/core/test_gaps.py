"""An idle model keeps its turn for a client that is likely to be back soon, and for no other."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ollama_swap_proxy.core.gaps import CLIENTS_KEPT, NEWCOMER_LINGER_S, Gaps
from ollama_swap_proxy.core.tickets import Variant

A = Variant("sha256:a")
B = Variant("sha256:b")
SWAP_S = 10.0


class Day:
    """A clock, and clients that use it."""

    def __init__(self) -> None:
        self.gaps = Gaps()
        self.now = 0.0

    def asks(self, client: str, variant: Variant = A, *, takes_s: float = 1.0) -> None:
        """Have one request answered from beginning to end."""
        self.gaps.came(client, variant, self.now)
        self.now += takes_s
        self.gaps.ended(client, variant, self.now)

    def loops(self, client: str, gaps_s: list[float], variant: Variant = A) -> None:
        """Have a request answered, and another after each gap: it ends idle, at the beginning of a gap."""
        self.asks(client, variant)
        for gap_s in gaps_s:
            self.now += gap_s
            self.asks(client, variant)

    def linger_s(self, variant: Variant = A, *, swap_cost_s: float = SWAP_S) -> float:
        return self.gaps.linger_s(variant, swap_cost_s, self.now)


@pytest.fixture
def day() -> Day:
    return Day()


def test_a_client_in_a_loop_is_waited_for_until_just_past_its_longest_recent_gap(day: Day) -> None:
    day.loops("agent", [2.0, 3.0, 5.0, 4.0, 2.0])
    assert 5.0 < day.linger_s() < 6.0


def test_a_client_whose_gaps_are_longer_than_a_swap_is_not_waited_for(day: Day) -> None:
    day.loops("human", [30.0, 45.0, 60.0])
    assert day.linger_s() == 0


def test_a_rare_long_gap_is_not_waited_out(day: Day) -> None:
    day.loops("agent", [0.2, 60.0, 8.0, 0.2, 0.2, 0.2, 0.2, 0.2])
    assert 0.2 < day.linger_s() < 0.5


def test_old_gaps_are_forgotten(day: Day) -> None:
    day.loops("agent", [5.0] * 8 + [0.2] * 8)
    assert 0.2 < day.linger_s() < 0.6


@pytest.mark.parametrize("gaps_s", [[], [0.2]])
def test_until_a_client_has_come_back_twice_it_is_waited_for_one_second(day: Day, gaps_s: list[float]) -> None:
    day.loops("new", gaps_s)
    assert day.linger_s() == NEWCOMER_LINGER_S


def test_a_newcomer_is_waited_for_no_longer_than_a_quarter_of_a_swap(day: Day) -> None:
    day.asks("new")
    assert day.linger_s(swap_cost_s=2.0) == 0.5


def test_a_model_that_nobody_used_does_not_linger(day: Day) -> None:
    day.loops("agent", [0.2] * 4, B)
    assert day.linger_s(A) == 0


def test_no_swap_cost_is_worth_no_linger(day: Day) -> None:
    day.loops("agent", [0.0] * 4)
    assert day.linger_s(swap_cost_s=0) == 0


def test_clients_that_ask_once_are_soon_not_waited_for(day: Day) -> None:
    lingers = []
    for number in range(20):
        day.asks(f"once-{number}")
        lingers.append(day.linger_s(swap_cost_s=4.0))
        day.now += 60.0
    assert lingers[0] == NEWCOMER_LINGER_S
    assert not any(lingers[4:])


def test_a_burst_of_newcomers_is_waited_for_as_one_client_would_be(day: Day) -> None:
    """Four clients that may each come back are not four chances: either clients here come back, or they do not."""
    for number in range(4):
        day.asks(f"first-{number}", B, takes_s=0.0)
    assert day.linger_s(B, swap_cost_s=4.0) == NEWCOMER_LINGER_S
    day.now += 2.0
    for number in range(4):
        day.asks(f"second-{number}", takes_s=0.0)
    assert day.linger_s(swap_cost_s=4.0) == 0, "four have stayed away"
    day.asks("first-0", B)
    for number in range(4):
        day.asks(f"third-{number}", takes_s=0.0)
    assert day.linger_s(swap_cost_s=4.0) == NEWCOMER_LINGER_S, "one has come back"


def test_who_has_only_just_been_answered_has_not_stayed_away_yet(day: Day) -> None:
    for number in range(20):
        day.asks(f"once-{number}", takes_s=0.0)
    assert day.linger_s(swap_cost_s=4.0) == NEWCOMER_LINGER_S


def test_a_client_may_be_later_than_ever_by_a_small_part_of_a_dear_swap(day: Day) -> None:
    day.loops("agent", [1.0] * 3)
    just_past_s = 1.0 * 1.1 + 0.05
    assert day.linger_s(swap_cost_s=4.0) == pytest.approx(just_past_s + 0.03 * 4.0)
    assert day.linger_s(swap_cost_s=40.0) == pytest.approx(just_past_s + 0.03 * 40.0)
    day.now += 2.0
    assert day.linger_s(swap_cost_s=4.0) == 0
    assert day.linger_s(swap_cost_s=40.0) == pytest.approx(just_past_s + 0.03 * 40.0 - 2.0)


def test_among_clients_that_ask_once_one_that_comes_back_is_waited_for(day: Day) -> None:
    for number in range(20):
        day.asks(f"once-{number}")
        day.now += 60.0
    day.loops("agent", [0.2, 0.2])
    assert 0.2 < day.linger_s(swap_cost_s=3.0) < 0.5


def test_a_newcomer_among_clients_most_of_whom_came_back_is_waited_for(day: Day) -> None:
    for number in range(10):
        day.asks(f"once-{number}")
        for agent in range(3):
            day.loops(f"agent-{number}-{agent}", [0.2])
        day.now += 60.0
    day.asks("new")
    assert day.linger_s(swap_cost_s=4.0) == NEWCOMER_LINGER_S


def test_that_clients_asked_other_models_only_once_counts_too(day: Day) -> None:
    for number in range(20):
        day.asks(f"once-{number}", B)
        day.now += 60.0
    day.asks("new")
    assert day.linger_s(A, swap_cost_s=4.0) == 0


def test_a_client_that_is_overdue_counts_as_one_that_does_not_come_back(day: Day) -> None:
    day.loops("agent", [0.2] * 8)
    day.now += 0.6
    assert day.linger_s() == 0


def test_what_a_client_has_been_away_already_is_not_waited_for_again(day: Day) -> None:
    day.loops("agent", [8.0] * 4)
    day.now += 7.5
    assert 0.5 < day.linger_s() < 2.0


def test_a_client_whose_gap_is_long_is_waited_for_when_the_first_waiter_comes_near_its_end(day: Day) -> None:
    day.loops("agent", [60.0] * 4)
    assert day.linger_s() == 0
    day.now += 59.0
    assert 1.0 < day.linger_s() <= SWAP_S


def test_gaps_are_noted_while_another_model_is_served(day: Day) -> None:
    for _ in range(4):
        day.asks("agent")
        day.now += 0.3
        day.gaps.came("agent", A, day.now)  # and waits while the card is another's
        day.now += 40.0
        day.gaps.ended("agent", A, day.now)
        day.now += 0.3
    day.asks("agent")
    assert 0.3 < day.linger_s() < 0.7


def test_a_client_that_alternates_between_models_is_waited_for_at_neither(day: Day) -> None:
    lingers = []
    for variant in [A, B] * 4:
        day.now += 0.2
        day.gaps.came("both", variant, day.now)
        day.now += SWAP_S + 1.0
        day.gaps.ended("both", variant, day.now)
        lingers.append(day.linger_s(variant))
    assert not any(lingers[4:])


def test_a_gap_begins_with_the_last_of_the_answers_that_run_side_by_side(day: Day) -> None:
    gaps = day.gaps
    for _ in range(8):
        gaps.came("agent", A, day.now)
        gaps.came("agent", A, day.now)
        gaps.ended("agent", A, day.now + 1.0)
        gaps.came("agent", A, day.now + 5.0)
        gaps.ended("agent", A, day.now + 6.0)
        day.now += 7.0
        assert day.linger_s() == 0  # it is being served
        gaps.ended("agent", A, day.now)
        day.now += 0.2
    day.now -= 0.2
    assert 0.2 < day.linger_s() < 0.6


def test_a_client_that_waits_in_line_is_not_waited_for(day: Day) -> None:
    day.loops("agent", [0.2] * 4)
    day.gaps.came("agent", A, day.now)
    assert day.linger_s() == 0


def test_where_the_quick_client_stays_away_the_slow_one_is_waited_for(day: Day) -> None:
    for _ in range(8):
        for client in ("quick", "slow"):
            day.gaps.ended(client, A, day.now)
        day.gaps.came("quick", A, day.now + 0.2)
        day.gaps.came("slow", A, day.now + 7.0)
        day.now += 8.0
    for client in ("quick", "slow"):
        day.gaps.ended(client, A, day.now)
    assert 7.0 < day.linger_s() < 8.5


def test_many_clients_of_whom_one_is_likely_to_be_back_are_worth_more_waiting_than_each(day: Day) -> None:
    gaps_s = [30.0, 30.0, 30.0, 30.0, 30.0, 30.0, 6.0, 6.0]
    alone = Day()
    alone.loops("some", gaps_s)
    assert alone.linger_s(swap_cost_s=8.0) == 0
    for number in range(10):
        day.now = 0.0
        day.loops(f"some-{number}", gaps_s)
    assert 6.0 < day.linger_s(swap_cost_s=8.0) < 8.0


def test_a_ticket_that_was_given_up_begins_no_gap(day: Day) -> None:
    day.loops("agent", [2.0] * 4)
    day.now += 2.0
    for _ in range(8):
        day.gaps.came("agent", A, day.now)
        day.now += 30.0
        day.gaps.gave_up("agent", A)
        assert day.linger_s() == 0
    day.asks("agent")
    assert 2.0 < day.linger_s() < 2.7


def test_the_ends_of_a_client_that_was_forgotten_change_nothing(day: Day) -> None:
    day.gaps.ended("nobody", A, day.now)
    day.gaps.gave_up("nobody", A)
    assert len(day.gaps) == 0
    assert day.linger_s() == 0


def test_memory_is_bounded(day: Day) -> None:
    for number in range(5 * CLIENTS_KEPT):
        day.asks(f"once-{number}", Variant(f"sha256:{number % 100}"))
        assert len(day.gaps) <= CLIENTS_KEPT


def test_the_clients_that_came_last_are_remembered(day: Day) -> None:
    day.loops("regular", [3.0] * 4)
    for number in range(CLIENTS_KEPT // 2):
        day.asks(f"once-{number}", B)
    day.loops("regular", [])
    for number in range(CLIENTS_KEPT // 2):
        day.asks(f"once-more-{number}", B)
    assert len(day.gaps) < CLIENTS_KEPT
    day.loops("regular", [])
    assert 3.0 < day.linger_s() < 4.0


CLIENTS = st.sampled_from(["", "x", "y", "z"])
STEPS = st.lists(
    st.tuples(
        st.sampled_from(["came", "ended", "gave_up", "linger"]),
        CLIENTS,
        st.sampled_from([A, B]),
        st.one_of(st.just(0.0), st.floats(0, 1e4)),
        st.one_of(st.just(0.0), st.floats(0, 600)),
    ),
    max_size=60,
)


@given(STEPS)
def test_whatever_happens_the_linger_is_between_zero_and_one_swap_and_is_the_same_each_time(
    steps: list[tuple[str, str, Variant, float, float]],
) -> None:
    histories: list[list[float]] = []
    for _ in range(2):
        gaps = Gaps()
        now = 0.0
        lingers = []
        for what, client, variant, passed_s, swap_cost_s in steps:
            now += passed_s
            if what == "came":
                gaps.came(client, variant, now)
            elif what == "ended":
                gaps.ended(client, variant, now)
            elif what == "gave_up":
                gaps.gave_up(client, variant)
            else:
                lingers.append(gaps.linger_s(variant, swap_cost_s, now))
                assert 0 <= lingers[-1] <= swap_cost_s
                assert gaps.linger_s(variant, swap_cost_s, now) == lingers[-1]
        histories.append(lingers)
    assert histories[0] == histories[1]


def test_only_clients_that_have_come_back_before_are_counted_on() -> None:
    gaps = Gaps()
    for round_ in range(4):
        gaps.came("looper", A, 10.0 * round_)
        gaps.ended("looper", A, 10.0 * round_ + 9.5)
    gaps.came("looper", A, 40.0)
    gaps.came("newcomer", B, 40.0)
    linger_s, nobody_back = gaps.outlook(A, 20.0, 45.0)
    assert linger_s == pytest.approx(0.6 + 0.03 * 20.0)
    assert nobody_back == pytest.approx(0.1), "four gaps, half a part for later than ever, half for never"
    linger_s, nobody_back = gaps.outlook(B, 20.0, 45.0)
    assert (linger_s > 0, nobody_back) == (True, 1.0)
    assert gaps.linger_s(A, 20.0, 45.0) == 0.0, "who is here now need not come back"
