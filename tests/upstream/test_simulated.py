"""Control, catalog, view and eviction together, on a simulated Ollama: one runner under many names, or under none."""

from __future__ import annotations

import asyncio
import json

import pytest
from yarl import URL

from ollama_swap_proxy.core.events import EvictionAnswered, ResidencyObserved, ResidencyUnknown
from ollama_swap_proxy.core.tickets import LoadRecipe
from ollama_swap_proxy.simulator import SimGPU, SimModel, SimulatedOllama
from ollama_swap_proxy.upstream.catalog import Catalog
from ollama_swap_proxy.upstream.control import Control, ControlError, control_session
from ollama_swap_proxy.upstream.eviction import evict
from ollama_swap_proxy.upstream.view import ResidencyView

MODELS = (
    SimModel("alpha", 4500, load_s=0.01, parameters={"num_ctx": 8192, "temperature": 0.1}),
    SimModel("bravo", 2000, load_s=0.01),
    SimModel("embedder", 300, load_s=0.01, embed=True),
)


class Bench:
    """A simulated Ollama, our view of it, and what an operator does behind our back."""

    def __init__(self, simulator, session):
        self.simulator = simulator
        self.faults = simulator.faults
        self.session = session
        self.control = Control(URL(simulator.url), session, connect_timeout_s=5)
        self.catalog = Catalog(self.control)
        self.view = ResidencyView(self.control, self.catalog, report_timeout_s=0.5)

    async def post(self, path, **fields):
        method = "DELETE" if path == "/api/delete" else "POST"
        async with self.session.request(method, self.simulator.url + path, json=fields | {"stream": False}) as answer:
            assert answer.status == 200, await answer.text()

    async def load(self, name, path="/api/generate", **fields):
        recipe = LoadRecipe(path, json.dumps({"model": name} | fields).encode())
        assert await self.control.load(recipe, timeout_s=5) is None

    async def residents(self):
        outcome = await self.view.observe(fresh=True)
        assert isinstance(outcome, ResidencyObserved), outcome
        return outcome.report.residents

    async def resident(self):
        (only,) = await self.residents()
        return only

    async def key(self, name):
        return (await self.catalog.find(name, max_age_s=0)).key

    async def evict(self, resident):
        return await evict(self.control, self.catalog, resident.key, resident.name)

    async def gone(self):
        async with asyncio.timeout(3):
            while await self.residents():  # noqa: ASYNC110 - ps is all that Ollama offers
                await asyncio.sleep(0.005)


@pytest.fixture
async def bench():
    async with SimulatedOllama(MODELS, gpu=SimGPU(lag_s=0.0)) as simulator, control_session() as session:
        bench = Bench(simulator, session)
        yield bench
        bench.view.cancel()
        bench.catalog.cancel()


async def test_an_entry_tells_key_capabilities_and_the_models_own_runner_options(bench):
    entry = await bench.catalog.find("alpha:latest", max_age_s=1)
    assert entry.spelled == "alpha:latest"
    assert "/blobs/sha256-" in entry.key
    assert entry.capabilities == {"completion"}
    assert entry.parameters == {"num_ctx": 8192}
    assert len(entry.digest) == 64
    assert not entry.remote
    assert bench.catalog.cached("alpha:latest") is entry
    assert (await bench.catalog.find("embedder:latest", max_age_s=1)).capabilities == {"embedding"}


async def test_an_unknown_name_surely_does_not_exist(bench):
    assert await bench.catalog.find("nosuch:latest", max_age_s=1) is None
    assert bench.catalog.cached("nosuch:latest") is None


async def test_an_invalid_name_surely_does_not_exist(bench):
    assert await bench.catalog.find("a b", max_age_s=1) is None


async def test_a_copy_and_a_child_share_the_key(bench):
    await bench.post("/api/copy", source="bravo", destination="Bravo-Copy")
    await bench.post("/api/create", model="bravo-child", **{"from": "bravo"}, system="Be brief.")
    keys = [await bench.key(name) for name in ("bravo:latest", "bravo-copy:latest", "bravo-child:latest")]
    assert len(set(keys)) == 1
    assert keys[0] != await bench.key("alpha:latest")
    names = bench.catalog.names_of(keys[0])
    assert sorted(names) == ["Bravo-Copy:latest", "bravo-child:latest", "bravo:latest"]


async def test_a_resident_loaded_by_its_alias_has_the_key_of_the_model(bench):
    await bench.post("/api/copy", source="bravo", destination="bravo-copy")
    await bench.load("bravo-copy")
    resident = await bench.resident()
    assert resident.name == "bravo-copy:latest"
    assert resident.key == await bench.key("bravo:latest")


async def test_a_deleted_name_keeps_its_key_and_is_evicted_by_another_name(bench):
    await bench.post("/api/create", model="doomed", **{"from": "bravo"}, system="Be brief.")
    await bench.load("doomed")
    before = await bench.resident()
    await bench.post("/api/delete", model="doomed")
    bench.catalog.library_changed("doomed:latest")
    resident = await bench.resident()
    assert (resident.name, resident.key) == ("doomed:latest", before.key)
    assert await bench.evict(resident) == EvictionAnswered(before.key, accepted=True)
    await bench.gone()


async def test_an_eviction_of_a_runner_that_no_name_reaches_says_so(bench):
    await bench.load("bravo")
    before = await bench.resident()
    await bench.post("/api/delete", model="bravo")
    bench.catalog.library_changed()
    resident = await bench.resident()
    assert resident.key == before.key
    answer = await bench.evict(resident)
    assert not answer.accepted
    assert "bravo:latest" in answer.reason
    assert (await bench.resident()).digest == before.digest


async def test_a_deletion_behind_our_back_is_found_when_the_eviction_is_sent(bench):
    await bench.post("/api/copy", source="bravo", destination="bravo-copy")
    await bench.load("bravo-copy")
    resident = await bench.resident()
    await bench.post("/api/delete", model="bravo-copy")
    assert await bench.evict(resident) == EvictionAnswered(resident.key, accepted=True)
    await bench.gone()


async def test_a_name_re_created_behind_our_back_is_not_asked_though_it_would_say_yes(bench):
    await bench.post("/api/copy", source="bravo", destination="bravo-copy")
    await bench.load("bravo-copy")
    resident = await bench.resident()
    await bench.post("/api/create", model="bravo-copy", **{"from": "alpha"})
    assert (await bench.evict(resident)).accepted
    await bench.gone()


async def test_a_name_re_created_while_resident_is_not_used_to_unload_the_old_runner(bench):
    await bench.load("bravo")
    old = await bench.resident()
    await bench.post("/api/create", model="bravo", **{"from": "alpha"})
    bench.catalog.library_changed("bravo:latest")
    orphan = await bench.resident()
    assert (orphan.name, orphan.key) == ("bravo:latest", old.key)
    assert await bench.key("bravo:latest") == await bench.key("alpha:latest") != old.key
    assert not (await bench.evict(orphan)).accepted
    await bench.load("bravo", options={"num_ctx": 256})
    new, again = sorted(await bench.residents(), key=lambda each: each.digest == old.digest)
    assert again.key == old.key
    assert (new.name, new.key) == ("bravo:latest", await bench.key("alpha:latest"))


async def test_an_orphan_is_reached_by_a_child_that_nobody_asked_for(bench):
    await bench.load("bravo")
    before = await bench.resident()
    await bench.post("/api/create", model="child", **{"from": "bravo"}, system="Be brief.")
    await bench.post("/api/delete", model="bravo")
    bench.catalog.library_changed()
    resident = await bench.resident()
    assert resident.key == before.key
    assert (await bench.evict(resident)).accepted
    await bench.gone()


async def test_a_runner_first_seen_after_its_name_was_deleted_has_its_digest_for_a_key(bench):
    await bench.load("bravo")
    await bench.post("/api/delete", model="bravo")
    resident = await bench.resident()
    assert resident.key == f"digest:{resident.digest}"


async def test_an_embedder_is_unloaded_like_any_other(bench):
    await bench.load("embedder", path="/api/embed", input=[])
    assert (await bench.evict(await bench.resident())).accepted
    await bench.gone()


async def test_a_model_changed_behind_our_back_is_found_by_its_digest(bench):
    old = await bench.catalog.find("bravo:latest", max_age_s=60)
    await bench.post("/api/create", model="bravo", **{"from": "alpha"})
    assert await bench.catalog.find("bravo:latest", max_age_s=60) is old
    new = await bench.catalog.find("bravo:latest", max_age_s=0)
    assert new.key == await bench.key("alpha:latest")


async def test_a_refresh_drops_what_is_gone(bench):
    await bench.catalog.find("bravo:latest", max_age_s=60)
    await bench.post("/api/delete", model="bravo")
    await bench.catalog.refresh()
    assert bench.catalog.cached("bravo:latest") is None
    assert await bench.catalog.find("bravo:latest", max_age_s=60) is None


async def test_a_cloud_name_is_remote_and_asks_nobody(bench):
    bench.faults.refuse_connections = True
    assert (await bench.catalog.find("big:120b-cloud", max_age_s=0)).remote


async def test_ps_faults_make_the_view_unknown_and_it_recovers(bench):
    await bench.load("bravo")
    bench.faults.ps_status = 500
    assert isinstance(await bench.view.observe(fresh=True), ResidencyUnknown)
    bench.faults.ps_status = 0
    bench.faults.ps_malformed = True
    assert isinstance(await bench.view.observe(fresh=True), ResidencyUnknown)
    bench.faults.ps_malformed = False
    assert (await bench.resident()).name == "bravo:latest"


async def test_a_blocked_ps_is_late(bench):
    bench.view = ResidencyView(bench.control, bench.catalog, report_timeout_s=0.05)
    bench.faults.ps_block_s = 5.0
    outcome = await bench.view.observe()
    assert isinstance(outcome, ResidencyUnknown)
    assert (outcome.reason, outcome.unreachable) == ("late", False)


async def test_an_upstream_that_went_away_can_tell_nothing(bench):
    await bench.load("bravo")
    resident = await bench.resident()
    await bench.simulator.stop()
    with pytest.raises(ControlError):
        await bench.catalog.find("alpha:latest", max_age_s=0)
    answer = await bench.evict(resident)
    assert not answer.accepted
    assert "bravo:latest" in answer.reason
