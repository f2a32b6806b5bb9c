"""The scheduler in a simulated world: who is served when, what is loaded and evicted, and what never is."""

from __future__ import annotations

import pytest

from ollama_swap_proxy.core.events import LoadFailure, ModelChanged, Stopping, ViewOutdated
from ollama_swap_proxy.core.policy import Policy
from tests.core.world import World


def test_a_request_for_a_model_that_is_not_resident_loads_it_and_is_served():
    world = World()
    asked = world.ask("a")
    world.run()
    assert [v.key for _, v in world.loads] == ["a"]
    assert asked.granted_at is not None
    assert asked.ended_at is not None


def test_a_b_a_a_c_a_b_c_arriving_together_costs_three_loads():
    world = World()
    asked = [world.ask(model, at=0.0) for model in "abaacabc"]
    world.run()
    assert [v.key for _, v in world.loads] == ["a", "b", "c"]
    assert all(o.granted_at is not None for o in asked)


def test_requests_for_the_resident_model_run_side_by_side_up_to_parallel():
    world = World(Policy(parallel=4))
    asked = [world.ask("a", hold_s=10.0) for _ in range(6)]
    world.run()
    first = asked[0].granted_at
    assert [o.granted_at == first for o in asked] == [True] * 4 + [False] * 2


def test_an_endless_stream_for_one_model_holds_another_only_for_its_turn():
    world = World()
    for start in range(200):
        world.ask("a", at=start * 0.5, hold_s=2.0)
    other = world.ask("b", at=5.0)
    world.run(until=300)
    # turn limit 10 s from b's arrival, a drain of at most 2 s, unload 0.2 s, load 2 s
    assert other.waited_s < 10 + 2 + 0.2 + 2 + 0.5


def test_nobody_waits_behind_a_model_that_is_idle():
    world = World()
    world.ask("a", hold_s=0.5)
    world.run()
    other = world.ask("b", at=world.now + 2.0)
    world.run()
    assert other.waited_s < 2 + 0.2 + 0.2


def test_a_model_that_has_just_fallen_idle_is_kept_a_moment_for_who_may_come_back():
    world = World()
    world.ask("a", hold_s=0.5)
    world.run()
    other = world.ask("b", at=world.now)
    world.run()
    assert 1.0 < other.waited_s < 1.0 + 2 + 0.2 + 0.2


def test_36_requests_of_six_clients_in_a_loop_over_three_models_cost_at_most_four_loads():
    world = World()
    left = dict.fromkeys(range(6), 5)

    def ask(client: int) -> None:
        world.ask("abc"[client % 3], hold_s=1.0 + client * 0.1, client=f"c{client}", then=lambda _: again(client))

    def again(client: int) -> None:
        if left[client]:
            left[client] -= 1
            world.at(world.now + 0.1 + 0.04 * client, lambda: ask(client))

    for client in left:
        world.at(0.01 * client, lambda client=client: ask(client))
    world.run()
    assert sum(outcome.granted_at is not None for outcome in world.outcomes.values()) == 36
    assert len(world.loads) <= 4


def test_a_client_that_leaves_while_queued_causes_no_swap():
    world = World()
    world.ask("a", hold_s=30.0)
    world.leave(world.ask("b", at=5.0), at=6.0)
    world.run()
    assert [v.key for _, v in world.loads] == ["a"]
    assert world.evictions == []


def test_a_client_that_leaves_during_the_load_leaves_the_load_running_for_its_retry():
    world = World(load_s=60.0)
    world.leave(world.ask("a", at=0.0), at=30.0)
    retry = world.ask("a", at=31.0)
    world.run()
    assert len(world.loads) == 1
    assert retry.granted_at == pytest.approx(60.0, abs=0.5)


def test_a_drain_outlives_its_asker_for_a_moment_only():
    world = World(Policy(turn_limit_s=1.0))
    world.ask("a", hold_s=100.0)
    world.leave(world.ask("b", at=5.0), at=10.0)
    back = world.ask("a", at=11.0)
    world.run()
    assert back.granted_at == pytest.approx(15.0, abs=0.1)
    assert world.evictions == []


def test_a_lost_unload_is_noticed_and_sent_again():
    world = World(lost_unloads=1)
    world.ask("a", hold_s=0.1)
    asked = world.ask("b", at=10.0)
    world.run()
    assert [key for _, key in world.evictions] == ["a", "a"]
    assert asked.granted_at is not None
    assert world.said("eviction_repeated")


def test_an_unload_that_never_happens_ends_with_an_error_that_names_the_victim_and_the_victim_is_served_again():
    world = World(Policy(unload_timeout_s=60))
    world.ask("a", hold_s=0.1)
    asked = world.ask("b", at=10.0)
    world.stubborn.add("a")
    again = world.ask("a", at=20.0)
    world.run(until=200)
    assert asked.rejected is not None
    assert asked.rejected.code == "unload_not_confirmed"
    assert "a" in asked.rejected.message
    assert 69 < asked.ended_at < 75
    assert again.granted_at is not None


def test_a_failed_load_tells_all_who_wait_and_is_not_tried_again_at_once():
    world = World()
    world.ask("a", hold_s=0.5)
    world.failing_loads["bad"] = LoadFailure(500, "no such tensor")
    first, second = world.ask("bad", at=5.0), world.ask("bad", at=5.1)
    soon = world.ask("bad", at=10.0)
    world.run()
    assert first.rejected.status == second.rejected.status == soon.rejected.status == 500
    assert "no such tensor" in soon.rejected.message
    assert 1 <= soon.rejected.retry_after_s <= 59
    assert [v.key for _, v in world.loads].count("bad") == 1


def test_a_model_that_always_fails_is_loaded_at_most_seven_times_in_ten_minutes_beside_working_traffic():
    world = World()
    world.failing_loads["bad"] = LoadFailure(500, "no such tensor")
    good = [world.ask("a", at=float(t), hold_s=0.5) for t in range(0, 600, 2)]
    for t in range(600):
        world.ask("bad", at=t + 0.3)
    world.run()
    assert [v.key for _, v in world.loads].count("bad") <= 7
    assert all(o.granted_at is not None for o in good)


def test_a_pull_of_the_model_ends_its_cool_down():
    world = World()
    world.failing_loads["bad"] = LoadFailure(500, "no such tensor")
    world.ask("bad")
    world.run()
    del world.failing_loads["bad"]
    world.tell(ModelChanged("bad"))
    asked = world.ask("bad", at=world.now)
    world.run()
    assert asked.granted_at is not None


def test_a_full_queue_upstream_is_no_failed_load():
    world = World()
    world.failing_loads["a"] = LoadFailure(503, "busy", transient=True)
    asked = world.ask("a")
    world.at(7.0, world.failing_loads.clear)
    world.run()
    assert asked.granted_at is not None
    assert world.said("cool_down_started") == []


def test_unknown_residency_begins_no_swap_and_the_resident_model_is_served():
    world = World()
    world.ask("a", hold_s=0.1)
    world.run()
    world.ps_broken = "late"
    other = world.ask("b", at=10.0)
    same = world.ask("a", at=11.0)
    world.at(30.0, lambda: setattr(world, "ps_broken", None))
    world.run()
    assert same.waited_s <= 0.3
    assert other.granted_at > 30.0
    assert all(when > 30.0 for when, _ in world.evictions)


def test_an_upstream_that_is_away_answers_the_waiting_within_seconds_and_serves_again_when_back():
    world = World()
    world.unreachable = True
    asked = world.ask("a", at=1.0)
    world.run(until=30.0)
    assert asked.rejected.code == "upstream_down"
    assert asked.ended_at < 8.0
    world.unreachable = False
    again = world.ask("a", at=40.0)
    world.run()
    assert again.granted_at is not None


def test_a_short_restart_of_upstream_is_waited_out():
    world = World()
    world.ask("a", hold_s=0.1)
    world.run()

    def go_down() -> None:
        world.unreachable = True
        world.residents.clear()

    world.at(10.0, go_down)
    asked = world.ask("b", at=10.5)
    world.at(13.0, lambda: setattr(world, "unreachable", False))
    world.run()
    assert asked.granted_at is not None


def test_a_spill_teaches_the_settle_wait_and_is_undone():
    world = World(vram_lag_s=0.8)
    for turn in range(12):
        world.ask("ab"[turn % 2], at=turn * 30.0, hold_s=0.5)
    world.run()
    settle = world.scheduler.snapshot(world.now).settle_s
    assert settle >= 0.8
    assert not any(spilled for _, spilled in world.residents.values())
    assert len(world.said("spill_found")) <= 4


def test_the_largest_of_several_models_does_not_spill_at_every_swap():
    """It was never seen to fit, and nothing as large was ever resident; what it lacks is what was just freed."""
    world = World(vram_lag_s=0.8)
    world.sizes = {"a": 800, "b": 1000}
    for turn in range(12):
        world.ask("ab"[turn % 2], at=turn * 30.0, hold_s=0.5)
    world.run()
    assert not any(spilled for _, spilled in world.residents.values())
    assert len(world.said("spill_found")) <= 4


def test_a_spill_is_not_undone_between_two_requests_of_a_client_in_a_loop():
    world = World(vram_lag_s=0.8)
    world.ask("a", hold_s=0.5)
    for turn in range(5):
        world.ask("b", at=20.0 + turn * 4.0, hold_s=0.5)
    world.run(until=38.0)
    assert [key for _, key in world.evictions] == ["a"]
    world.at(60.0, lambda: None)
    world.run()
    assert [key for _, key in world.evictions] == ["a", "b"]
    assert not any(spilled for _, spilled in world.residents.values())


def test_without_lag_nobody_waits_for_memory():
    world = World()
    for turn in range(6):
        world.ask("ab"[turn % 2], at=turn * 30.0, hold_s=0.5)
    world.run()
    assert world.scheduler.snapshot(world.now).settle_s == 0.0
    assert world.said("settle_started") == []


def test_two_variants_of_a_model_are_never_in_flight_together():
    world = World()
    small = world.ask("a", hold_s=5.0, options="num_ctx=4096")
    large = world.ask("a", at=1.0, options="num_ctx=8192", client="greedy")
    world.run()
    assert large.granted_at > small.ended_at
    assert world.said("variant_reload")[0]["client"] == "greedy"


def test_a_resident_of_unknown_variant_is_tried_by_one_request_first():
    world = World()
    world.residents["a"] = ("?", False)
    asked = [world.ask("a", at=1.0, hold_s=3.0) for _ in range(3)]
    world.run()
    assert world.evictions == []
    assert asked[0].granted_at == pytest.approx(1.0, abs=0.3)
    assert asked[1].granted_at == asked[2].granted_at
    assert asked[1].granted_at >= asked[0].granted_at


def test_a_model_that_unloads_at_once_is_loaded_by_its_own_requests():
    world = World(vanishing={"a"})
    asked = [world.ask("a", at=t * 10.0) for t in range(3)]
    world.run()
    assert all(o.granted_at is not None for o in asked)
    assert len(world.loads) <= 5


def test_what_cannot_be_loaded_by_us_is_loaded_by_its_request_alone():
    world = World()
    world.ask("a", hold_s=0.1)
    audio = world.ask("whisper", at=5.0, recipe=None, hold_s=1.0)
    more = world.ask("whisper", at=5.1, recipe=None, hold_s=1.0)
    world.run()
    assert audio.granted_at is not None
    assert more.granted_at >= audio.granted_at + 2.0
    assert [v.key for _, v in world.loads] == ["a", "whisper"]


def test_a_model_loaded_behind_our_back_during_a_swap_joins_the_victims():
    world = World(unload_s=1.0)
    world.ask("a", hold_s=0.1)
    asked = world.ask("b", at=10.0)
    world.at(10.5, lambda: world.residents.update(foreign=("?", False)))
    world.run()
    assert "foreign" in [key for _, key in world.evictions]
    assert asked.granted_at is not None
    assert set(world.residents) == {"b"}


def test_a_stuck_drain_is_given_up_and_names_what_it_waited_for():
    world = World(Policy(stuck_after_s=50))
    world.ask("a", hold_s=1000.0)
    asked = world.ask("b", at=5.0)
    world.run(until=200)
    assert asked.rejected.code in {"drain_stuck", "nothing_moved"}
    assert "a" in asked.rejected.message


def test_a_full_line_answers_at_once():
    world = World(Policy(line_limit=2))
    world.ask("a", hold_s=50.0)
    world.run(until=5.0)
    asked = [world.ask("b", at=6.0) for _ in range(3)]
    world.run(until=7.0)
    assert asked[2].rejected.code == "line_full"


def test_a_full_line_turns_nobody_away_who_need_not_wait():
    world = World(Policy(line_limit=2, parallel=2))
    world.ask("a", hold_s=50.0)
    for _ in range(2):
        world.ask("b", at=5.0)
    warm = world.ask("a", at=6.0, hold_s=50.0)
    one_too_many = world.ask("a", at=7.0)
    world.run(until=8.0)
    assert warm.waited_s < 0.1
    assert one_too_many.rejected.code == "line_full"


def test_stopping_answers_the_queued_and_lets_the_running_end():
    world = World()
    running = world.ask("a", hold_s=20.0)
    queued = world.ask("b", at=5.0)
    world.at(6.0, lambda: world.tell(Stopping()))
    world.run()
    assert queued.rejected.code == "stopping"
    assert running.ended_at == pytest.approx(22.0, abs=0.5)


def test_a_warm_request_with_a_fresh_view_is_granted_at_once_and_asks_nothing():
    world = World()
    world.ask("a", hold_s=0.1)
    world.run()
    asked = world.ask("a", at=world.now)
    world.run()
    assert asked.waited_s == 0.0


def test_an_unload_that_passed_by_makes_the_next_request_look_first():
    world = World()
    world.ask("a", hold_s=0.1)
    world.run()
    world.tell(ViewOutdated("unload"))
    world.residents.clear()
    asked = world.ask("a", at=world.now)
    world.run()
    assert len(world.loads) == 2
    assert asked.granted_at is not None


def test_same_history_same_commands():
    def play() -> list[object]:
        world = World(vram_lag_s=0.5)
        for n, model in enumerate("abcabcaabbcc"):
            world.ask(model, at=n * 1.7, hold_s=1.0 + n % 3)
        world.run()
        return list(world.steps)

    assert play() == play()
