"""How many leases a model gets: against an Ollama of virtual time, and whatever it is told."""

from __future__ import annotations

import heapq
import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ollama_swap_proxy.core.slots import FIRST_MOST, KEPT_PER_LEASE, LIMIT, MODELS_KEPT, Slots

KEY = "blob"
NEVER_TOLD = 1e9


@dataclass
class Request:
    """One request: how long its prompt and its answer take, and whether the answer is streamed."""

    prompt_s: float
    answer_s: float
    streams: bool = True
    began_at: float = 0.0
    first_byte_at: float = 0.0


@dataclass
class Ollama:
    """Serves so many requests at once, first come first served, from a line that never runs dry."""

    parallel: int
    slots: Slots = field(default_factory=Slots)
    now: float = 0.0
    told_every_s: float = 1.0
    read_late_s: float = 0.0
    numbers: list[int] = field(default_factory=list)
    ends: list[float] = field(default_factory=list)
    ids: int = 0

    def serve(self, requests: list[Request]) -> None:
        """Serve them all, with as many leases as `Slots` says; ``numbers`` is what it said after each release."""
        line, queue = deque(requests), deque[tuple[int, Request]]()
        due: list[tuple[float, int, str]] = []
        leased: dict[int, Request] = {}
        busy = 0
        while True:
            while line and len(leased) < self.slots.most(KEY):
                self.ids += 1
                leased[self.ids] = line.popleft()
                queue.append((self.ids, leased[self.ids]))
                self.slots.began(KEY, self.ids, self.now)
            while queue and busy < self.parallel:
                busy += 1
                ticket_id, request = queue.popleft()
                request.first_byte_at = self.now + request.prompt_s
                heapq.heappush(due, (request.first_byte_at + request.answer_s, ticket_id, "end"))
                if request.streams:
                    heapq.heappush(due, (request.first_byte_at + self.told_every_s, ticket_id, "progress"))
            if not due:
                return
            self.now, ticket_id, what = heapq.heappop(due)
            if ticket_id not in leased:
                continue
            request = leased[ticket_id]
            if what == "progress":
                self.slots.streamed(KEY, ticket_id, request.first_byte_at)
                continue
            busy -= 1
            del leased[ticket_id]
            stream = (request.first_byte_at, self.now + self.read_late_s) if request.streams else None
            self.slots.ended(KEY, ticket_id, self.now, stream)
            self.numbers.append(self.slots.most(KEY))
            self.ends.append(self.now)


def requests(seed: int, count: int, prompt_s: tuple[float, float] = (0.02, 0.2)) -> list[Request]:
    rng = random.Random(seed)  # noqa: S311 - a simulation
    return [Request(rng.uniform(*prompt_s), rng.uniform(1.0, 9.0)) for _ in range(count)]


@pytest.mark.parametrize("told_every_s", [1.0, NEVER_TOLD])
@pytest.mark.parametrize("parallel", [1, 2, 4])
@pytest.mark.parametrize("seed", range(10))
def test_within_twenty_streams_it_is_what_ollama_serves_and_one_more(
    parallel: int, seed: int, told_every_s: float
) -> None:
    ollama = Ollama(parallel, told_every_s=told_every_s)
    ollama.serve(requests(seed, 200))
    assert ollama.numbers[19] == parallel + 1
    late = ollama.numbers[20:]
    assert late.count(parallel + 1) >= 0.97 * len(late)


@pytest.mark.parametrize("told_every_s", [1.0, NEVER_TOLD])
@pytest.mark.parametrize("seed", range(10))
def test_eight_side_by_side_are_all_used_within_twenty_streams(seed: int, told_every_s: float) -> None:
    ollama = Ollama(8, told_every_s=told_every_s)
    ollama.serve(requests(seed, 200))
    assert 8 <= ollama.numbers[19] <= 16
    assert ollama.numbers[-1] == 9


@pytest.mark.parametrize("prompt_s", [(0.02, 0.2), (0.0, 3.0), (1.0, 1.0)])
@pytest.mark.parametrize("parallel", [1, 4, 8])
def test_throughput_is_that_of_no_limit(parallel: int, prompt_s: tuple[float, float]) -> None:
    for seed in range(5):
        learned, unlimited = Ollama(parallel), Ollama(parallel, Slots(200))
        for ollama in (learned, unlimited):
            ollama.serve(requests(seed, 200, prompt_s))
        took_s = [ollama.ends[180] - ollama.ends[20] for ollama in (learned, unlimited)]
        assert took_s[1] / took_s[0] >= 0.96  # which request is the last one leaves some play


@pytest.mark.parametrize("prompt_s", [(0.02, 0.2), (0.0, 3.0), (2.0, 2.0)])
def test_with_one_slot_a_drain_is_two_generations(prompt_s: tuple[float, float]) -> None:
    for seed in range(10):
        ollama = Ollama(1)
        ollama.serve(requests(seed, 200, prompt_s))
        assert set(ollama.numbers[20:]) == {2}


@pytest.mark.parametrize(("before", "after"), [(4, 1), (1, 4), (2, 1), (8, 4)])
def test_a_model_loaded_anew_with_another_number_of_slots_is_found_out(before: int, after: int) -> None:
    for seed in range(10):
        ollama = Ollama(before)
        ollama.serve(requests(seed, 400))
        assert ollama.numbers[-1] == before + 1
        ollama.slots.loaded(KEY)
        ollama.parallel = after
        ollama.serve(requests(seed + 100, 60))
        assert ollama.numbers[400 + 29] == after + 1


def test_streams_of_a_few_milliseconds_give_evidence_as_they_end() -> None:
    rng = random.Random(1)  # noqa: S311 - a simulation
    ollama = Ollama(1)
    ollama.serve([Request(0.001, rng.uniform(0.005, 0.02)) for _ in range(20)])
    assert ollama.numbers[-1] == 2


def test_turns_of_a_few_requests_each_add_up() -> None:
    ollama = Ollama(1)
    for turn in range(5):
        ollama.slots.loaded(KEY)
        ollama.serve(requests(turn, 4))
    assert ollama.numbers[-1] == 2


def test_answers_that_are_not_streamed_are_no_evidence() -> None:
    ollama = Ollama(1)
    ollama.serve([Request(0.1, 5.0, streams=False) for _ in range(100)])
    assert set(ollama.numbers) == {FIRST_MOST}


def test_streams_beside_silent_answers_of_another_kind_do_not_shrink_it() -> None:
    slots = Slots()
    for n in range(0, 400, 4):  # four slots: one streams, three make an answer that comes whole
        for ticket_id in range(n, n + 4):
            slots.began(KEY, ticket_id, n)
        slots.ended(KEY, n, n + 3.0, (n + 0.1, n + 3.0))
        for ticket_id in range(n + 1, n + 4):
            slots.ended(KEY, ticket_id, n + 3.5, None)
    assert slots.most(KEY) == FIRST_MOST


def test_answers_that_come_in_one_burst_at_the_end_do_not_shrink_it() -> None:
    rng = random.Random(2)  # noqa: S311 - a simulation
    ollama = Ollama(4)
    streams, bursts = requests(1, 400), [Request(rng.uniform(1.0, 9.0), 0.002) for _ in range(400)]  # tool calls
    ollama.serve([rng.choice(pair) for pair in zip(streams, bursts, strict=True)])
    assert min(ollama.numbers) >= 4


def test_a_single_moment_of_silence_is_no_verdict() -> None:
    slots = Slots()
    for round_at in (0.0, 100.0, 200.0):  # three of four leases: nothing makes them wait
        for ticket_id in range(3):
            slots.began(KEY, ticket_id, round_at)
        for ticket_id in range(3):
            slots.ended(KEY, ticket_id, round_at + 90.0, (round_at + 0.001, round_at + 90.0))
    for ticket_id in range(3):
        slots.began(KEY, ticket_id, 300.0)
    for ticket_id in range(3):
        slots.ended(KEY, ticket_id, 310.0 + 10 * ticket_id, (300.1 + 10 * ticket_id, 310.0 + 10 * ticket_id))
    assert slots.most(KEY) == FIRST_MOST


def test_last_bytes_that_are_read_late_do_not_pass_for_streams_side_by_side() -> None:
    ollama = Ollama(1, read_late_s=0.4)
    ollama.serve(requests(1, 40))
    assert set(ollama.numbers[20:]) == {2}


def test_a_long_stream_counts_while_it_runs() -> None:
    ollama = Ollama(4)
    ollama.serve([Request(0.1, 1e6), *requests(1, 39)])
    assert ollama.numbers[19] == 5
    untold = Ollama(4, told_every_s=NEVER_TOLD)
    untold.serve([Request(0.1, 1e6), *requests(1, 39)])
    assert untold.numbers[19] == FIRST_MOST  # it might be an answer that is not streamed


def test_prompts_that_take_as_long_as_answers_do_not_pass_for_waiting() -> None:
    for seed in range(3):
        ollama = Ollama(8)
        ollama.serve(requests(seed, 400, (0.0, 10.0)))
        late = ollama.numbers[100:]
        assert sum(number >= 8 for number in late) > 0.9 * len(late)


def test_long_prompts_that_others_overtake_do_not_pass_for_waiting() -> None:
    rng = random.Random(3)  # noqa: S311 - a simulation
    ollama = Ollama(8)
    ollama.serve([Request(60.0 if rng.random() < 0.05 else 0.1, rng.uniform(1.0, 9.0)) for _ in range(600)])
    late = ollama.numbers[100:]
    assert sum(number >= 8 for number in late) > 0.97 * len(late)


@pytest.mark.parametrize("began_to_stream_at", [1004.9, 1002.0])
def test_one_stream_that_seems_to_begin_before_another_ended_does_not_raise_a_number_that_was_judged(
    began_to_stream_at: float,
) -> None:
    ollama = Ollama(1)
    ollama.serve(requests(1, 40))
    ollama.slots.began(KEY, 1000, 1000.0)
    ollama.slots.began(KEY, 1001, 1000.0)
    ollama.slots.ended(KEY, 1000, 1005.0, (1000.1, 1005.0))
    ollama.slots.ended(KEY, 1001, 1010.0, (began_to_stream_at, 1010.0))
    assert ollama.slots.most(KEY) == 2


def test_a_setting_overrides() -> None:
    ollama = Ollama(1, Slots(50))
    ollama.serve(requests(1, 60))
    assert set(ollama.numbers) == {50}
    assert not ollama.slots._models


def test_models_do_not_learn_from_each_other() -> None:
    ollama = Ollama(1)
    ollama.serve(requests(1, 40))
    assert (ollama.slots.most(KEY), ollama.slots.most("other")) == (2, FIRST_MOST)


def test_what_is_kept_of_models_is_bounded_and_none_in_use_is_forgotten() -> None:
    slots = Slots()
    slots.began("in use", 0, 0.0)
    for n in range(1, 3 * MODELS_KEPT):
        slots.began(f"model {n}", n, float(n))
        slots.ended(f"model {n}", n, n + 0.5, None)
    assert len(slots._models) <= MODELS_KEPT
    assert "in use" in slots._models


def test_requests_one_by_one_leave_nothing_behind() -> None:
    slots = Slots()
    slots.began(KEY, 0, 0.0)
    for n in range(1, 100):
        slots.began(KEY, n, float(n))
        slots.ended(KEY, n - 1, n + 0.1, (n - 0.5, n + 0.1))
    slots.ended(KEY, 99, 100.0, (99.5, 100.0))
    model = slots._models[KEY]
    assert (len(model.running), len(model.ended), len(model.unjudged)) == (0, 0, 0)


Step = tuple[str, str, int, float, float, bool]
steps = st.lists(
    st.tuples(
        st.sampled_from(["began", "streamed", "ended", "ended", "loaded"]),
        st.sampled_from(["a", "b"]),
        st.integers(0, 12),
        st.floats(0.0, 5.0),
        st.floats(-1.0, 5.0),
        st.booleans(),
    ),
    max_size=200,
)


def _tell(slots: Slots, told: list[Step], check: Callable[[], None] = lambda: None) -> list[int]:
    now = 0.0
    said = []
    for what, key, ticket_id, after_s, ago_s, streams in told:
        now += after_s
        if what == "began":
            slots.began(key, ticket_id, now)
        elif what == "streamed":
            slots.streamed(key, ticket_id, now - ago_s)
        elif what == "ended":
            slots.ended(key, ticket_id, now, (now - ago_s, now) if streams else None)
        else:
            slots.loaded(key)
        said.append(slots.most(key))
        check()
    return said


@given(told=steps)
def test_whatever_it_is_told_the_number_stays_within_its_bounds_and_memory_too(told: list[Step]) -> None:
    slots = Slots()

    def check() -> None:
        for model in slots._models.values():
            assert 2 <= model.most <= LIMIT
            assert len(model.unjudged) <= len(model.ended) <= KEPT_PER_LEASE * model.most
            assert len(model.doubts) == LIMIT

    _tell(slots, told, check)


@given(told=steps)
def test_the_same_history_gives_the_same_numbers(told: list[Step]) -> None:
    assert _tell(Slots(), told) == _tell(Slots(), told)


@given(told=steps)
def test_it_never_more_than_doubles_at_once(told: list[Step]) -> None:
    said = _tell(Slots(), [(what, "a", *rest) for what, _, *rest in told])  # type: ignore[misc]
    assert all(after <= 2 * before for before, after in pairwise([FIRST_MOST, *said]))
