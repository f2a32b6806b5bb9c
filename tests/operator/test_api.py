"""The operator's first pages, drawn from a snapshot, over a real socket."""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator

import pytest
from aiohttp.test_utils import TestClient, TestServer

from ollama_swap_proxy.config import Settings
from ollama_swap_proxy.core.events import (
    Arrived,
    Event,
    ModeSet,
    Paused,
    ResidencyObserved,
    ResidencyUnknown,
    Resumed,
    Stopping,
)
from ollama_swap_proxy.core.explain import Explanation
from ollama_swap_proxy.core.policy import Policy
from ollama_swap_proxy.core.scheduler import Scheduler
from ollama_swap_proxy.core.snapshot import ResistingSeen, Snapshot, SwapSeen
from ollama_swap_proxy.core.tickets import LoadRecipe, Report, Resident, Ticket, Variant
from ollama_swap_proxy.errors import ProxyError
from ollama_swap_proxy.operator.api import oldest_report_s, operator_app, unready_reasons

OLDEST_S = oldest_report_s(Settings())
SWAP = SwapSeen(
    1,
    "b:latest",
    "",
    "request",
    "evicting",
    100.0,
    0.0,
    200.0,
    ("a:latest",),
    (),
    trial=False,
    reload=None,
    waits_for_leases=(),
)


def _nobody(_event: object) -> None:
    pytest.fail("looking tells the scheduler something")


def seen(**changes: object) -> Snapshot:
    scheduler = Scheduler(Policy())
    scheduler.handle(ResidencyObserved(Report(0.0, (Resident("k", "a:latest", "d", 100, 60),))), 0.1)
    scheduler.handle(Arrived(Ticket(7, Variant("other"), "b:latest", 0.2, LoadRecipe("/api/generate", b"{}"))), 0.2)
    return dataclasses.replace(scheduler.snapshot(0.3), **changes)


async def nothing_to_explain(model: str) -> Explanation | str:
    return f"there is no {model}"


def test_a_healthy_proxy_is_ready():
    assert unready_reasons(seen(swap=None), OLDEST_S) == []


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"unreachable_for_s": 1.0, "unknown": "nothing listens there"}, "nothing listens there"),
        ({"report_age_s": None}, "no report"),
        ({"report_age_s": 16.0, "unknown": "late"}, "late"),
        ({"swap": dataclasses.replace(SWAP, overdue_s=6.0)}, "evicting for 100 s, 6 s past its bound"),
        ({"resisting": (ResistingSeen("k", 9.0, 1, "a did not go"),)}, "a did not go"),
        ({"stopping": True}, "stopping"),
    ],
)
def test_what_keeps_us_from_our_job_is_named(changes: dict[str, object], word: str):
    reasons = unready_reasons(seen(**{"swap": None, **changes}), OLDEST_S)
    assert any(word in reason for reason in reasons)


def test_a_step_may_take_as_long_as_its_bound_and_a_moment_more():
    for overdue_s in (0.0, 1.0):
        swap = dataclasses.replace(SWAP, phase_s=5000.0, overdue_s=overdue_s)
        assert unready_reasons(seen(swap=swap), OLDEST_S) == []


def test_the_eviction_of_a_model_that_others_loaded_may_take_as_long_as_a_drain():
    scheduler = Scheduler(Policy(unload_timeout_s=60.0, stuck_after_s=600.0))
    scheduler.handle(ResidencyObserved(Report(0.0, (Resident("k", "a:latest", "d", 100, 60),))), 0.1)
    scheduler.handle(Arrived(Ticket(7, Variant("other"), "b:latest", 0.2, LoadRecipe("/api/generate", b"{}"))), 0.2)
    assert unready_reasons(dataclasses.replace(scheduler.snapshot(500.0), report_age_s=0.0), OLDEST_S) == []
    assert unready_reasons(dataclasses.replace(scheduler.snapshot(620.0), report_age_s=0.0), OLDEST_S)


def test_the_oldest_report_follows_the_settings():
    slow = seen(swap=None, report_age_s=100.0)
    assert unready_reasons(slow, oldest_report_s(Settings(ps_interval_s=60))) == []
    assert len(unready_reasons(slow, OLDEST_S)) == 1


async def test_the_routes_answer_from_the_snapshot_of_the_moment():
    picture = seen()
    async with TestClient(TestServer(operator_app(lambda: picture, nothing_to_explain, _nobody, Settings()))) as client:
        assert (await client.get("/healthz")).status == 200
        shown = await (await client.get("/v1/snapshot")).json()
        assert shown["residents"][0] | {"name": "a:latest", "spilled_bytes": 40} == shown["residents"][0]
        assert shown["swap"]["target"] == "b:latest"
        assert shown["lines"][0]["waiting"] == 1
        assert shown["lines"][0]["classes"][0]["class"] == "normal"
        assert shown["upstream"] == "http://127.0.0.1:11434"
        assert (await client.get("/readyz")).status == 200
        picture = seen(stopping=True)
        answer = await client.get("/readyz")
        assert answer.status == 503
        assert (await answer.json())["reasons"] == ["stopping"]


def test_unknown_residency_shows_with_its_reason():
    scheduler = Scheduler(Policy())
    scheduler.handle(ResidencyUnknown(0.0, "late"), 2.0)
    scheduler.handle(Stopping(), 2.0)
    assert scheduler.snapshot(2.0).unknown == "late"


async def test_a_web_page_that_rebinds_a_name_sees_nothing():
    async with TestClient(TestServer(operator_app(seen, nothing_to_explain, _nobody, Settings()))) as client:
        answer = await client.get("/v1/snapshot", headers={"Host": "evil.test"})
        assert (answer.status, await answer.text()) == (403, "")
        assert answer.headers["X-Ollama-Swap-Proxy-Error"] == "host_not_allowed"


async def test_an_explanation_is_told_as_data_and_in_words():
    async def explain(model: str) -> Explanation | str:
        return Scheduler(Policy()).explain(Ticket(0, Variant("k"), model, 5.0, None), 5.0)

    async with TestClient(TestServer(operator_app(seen, explain, _nobody, Settings()))) as client:
        answer = await client.get("/v1/explain", params={"model": "qwen3:8b"})
        told = await answer.json()
        assert (answer.status, told["model"], told["prospect"]) == (200, "qwen3:8b", "held_off")
        assert told["class"] == "normal"
        assert told["text"].startswith("A request for qwen3:8b would wait, held off: what is resident is unknown")


async def test_what_cannot_be_explained_is_said_in_words():
    async def explain(model: str) -> Explanation | str:
        if model == "x":
            raise ProxyError("upstream_down", 502, "Ollama does not answer")
        return f"there is no {model}"

    async with TestClient(TestServer(operator_app(seen, explain, _nobody, Settings()))) as client:
        for query, status, error in [("x", 502, "not answer"), ("y", 404, "there is no y"), ("", 400, "which model?")]:
            answer = await client.get("/v1/explain", params={"model": query})
            assert answer.status == status
            assert error in (await answer.json())["error"]


JSON = {"Content-Type": "application/json"}


class Panel:
    """The operator's listener of a scheduler, and what was told through it."""

    def __init__(self) -> None:
        self.scheduler = Scheduler(Policy())
        self.told: list[Event] = []

    def tell(self, event: Event) -> None:
        self.told.append(event)
        self.scheduler.handle(event, 1.0)

    def snapshot(self) -> Snapshot:
        return self.scheduler.snapshot(3.0)


@pytest.fixture
def panel() -> Panel:
    return Panel()


@pytest.fixture
async def client(panel: Panel) -> AsyncIterator[TestClient]:
    async with TestClient(
        TestServer(operator_app(panel.snapshot, nothing_to_explain, panel.tell, Settings()))
    ) as client:
        yield client


async def test_the_operator_sets_the_mode_pauses_and_resumes(panel: Panel, client: TestClient):
    answer = await client.post("/v1/mode", json={"mode": "manual"})
    assert (answer.status, await answer.json()) == (200, {"mode": "manual", "mode_for_s": 2.0, "paused_for_s": None})
    answer = await client.post("/v1/pause", headers=JSON)
    assert (answer.status, (await answer.json())["paused_for_s"]) == (200, 2.0)
    answer = await client.post("/v1/resume", json={})
    assert (answer.status, (await answer.json())["paused_for_s"]) == (200, None)
    assert panel.told == [ModeSet("manual"), Paused(), Resumed()]
    shown = await (await client.get("/v1/snapshot")).json()
    assert (shown["mode"], shown["paused_for_s"]) == ("manual", None)


@pytest.mark.parametrize(
    ("path", "body", "words"),
    [
        ("/v1/mode", "", "a JSON object"),
        ("/v1/mode", "[]", "a JSON object"),
        ("/v1/mode", "{}", "MODE one of auto, manual, bypass"),
        ("/v1/mode", '{"mode": "of transport"}', "MODE one of auto, manual, bypass"),
        ("/v1/mode", '{"mode": ["auto"]}', "MODE one of auto, manual, bypass"),
        ("/v1/mode", '{"mode": "auto", "for_s": 5}', "MODE one of auto, manual, bypass"),
        ("/v1/pause", '{"for_s": 5}', "an empty object"),
        ("/v1/resume", "null", "a JSON object"),
    ],
)
async def test_a_bad_body_is_told_what_is_expected(panel: Panel, client: TestClient, path: str, body: str, words: str):
    answer = await client.post(path, data=body, headers=JSON)
    assert answer.status == 400
    assert words in (await answer.json())["error"]
    assert panel.told == []


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data"])
async def test_what_a_web_page_can_post_unasked_changes_nothing(panel: Panel, client: TestClient, kind: str):
    answer = await client.post("/v1/mode", data='{"mode": "manual"}', headers={"Content-Type": kind})
    assert answer.status == 415
    answer = await client.post("/v1/pause", data=b"")
    assert answer.status == 415
    assert panel.told == []


@pytest.mark.parametrize("origin", ["http://evil.test", "null", "https://127.0.0.1", "http://127.0.0.1:1"])
async def test_a_page_of_another_origin_changes_nothing(panel: Panel, client: TestClient, origin: str):
    answer = await client.post("/v1/pause", headers={**JSON, "Origin": origin})
    assert answer.status == 403
    assert panel.told == []


async def test_a_page_of_this_listener_may(panel: Panel, client: TestClient):
    own = f"http://{client.host}:{client.port}"
    assert (await client.post("/v1/pause", headers={**JSON, "Origin": own})).status == 200
    assert panel.told == [Paused()]


async def test_a_page_that_rebinds_a_name_changes_nothing(panel: Panel, client: TestClient):
    answer = await client.post("/v1/pause", headers={**JSON, "Host": "evil.test", "Origin": "http://evil.test"})
    assert (answer.status, await answer.text()) == (403, "")
    assert panel.told == []


async def test_looking_changes_nothing(panel: Panel, client: TestClient):
    assert (await client.get("/v1/pause")).status == 405
    assert panel.told == []
