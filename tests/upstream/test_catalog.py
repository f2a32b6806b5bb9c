"""What exists and which names are one runner, against scripted lists: sharing, freshness and races."""

from __future__ import annotations

import asyncio
import json

import aiohttp
import pytest
from aioresponses import CallbackResult
from yarl import URL

from ollama_swap_proxy.core.events import EvictionAnswered
from ollama_swap_proxy.upstream.catalog import Catalog
from ollama_swap_proxy.upstream.control import Control, ControlError, control_session
from ollama_swap_proxy.upstream.eviction import evict

SCRIPTED = URL("http://ollama.test:11434")


class Library:
    """Answers /api/tags and /api/show from two tables, and counts."""

    def __init__(self, mocked, tags, shows):
        self.tags = tags
        self.shows = shows
        self.asked = []
        mocked.get(SCRIPTED / "api/tags", callback=self._answer_tags, repeat=True)
        mocked.post(SCRIPTED / "api/show", callback=self._answer_show, repeat=True)

    def _answer_tags(self, _url, **_kwargs):
        self.asked.append("tags")
        return CallbackResult(payload={"models": self.tags})

    async def _answer_show(self, _url, **kwargs):
        name = json.loads(kwargs["data"])["model"]
        self.asked.append(name)
        await asyncio.sleep(0)
        show = self.shows.get(name)
        if callable(show):
            show = show()
        return CallbackResult(payload=show) if show is not None else CallbackResult(status=404, payload={})


def tag(name, digit, **more):
    return {"name": name, "digest": digit * 64, "size": 7} | more


def modelfile(digit):
    return {"modelfile": f"# x\n\nFROM /models/blobs/sha256-{digit * 64}\nTEMPLATE x\n", "capabilities": ["completion"]}


@pytest.fixture
async def catalog(mocked):
    async with control_session() as session:
        yield Catalog(Control(SCRIPTED, session, connect_timeout_s=5))


async def test_all_who_look_for_a_name_at_once_share_one_look(catalog, mocked):
    library = Library(mocked, [tag("a:latest", "1")], {"a:latest": modelfile("a")})
    first, *others = await asyncio.gather(*(catalog.find("a:latest", max_age_s=60) for _ in range(5)))
    assert all(other is first for other in others)
    assert library.asked.count("a:latest") == 1


async def test_a_known_name_is_proven_by_one_list_and_not_shown_again(catalog, mocked):
    library = Library(mocked, [tag("a:latest", "1")], {"a:latest": modelfile("a")})
    await catalog.find("a:latest", max_age_s=60)
    library.asked.clear()
    await catalog.find("a:latest", max_age_s=60)
    assert library.asked == []
    await catalog.find("a:latest", max_age_s=0)
    assert library.asked == ["tags"]


async def test_a_model_re_created_while_it_is_read_is_read_again(catalog, mocked):
    library = Library(mocked, [tag("a:latest", "1")], {})

    def re_created():
        library.tags = [tag("a:latest", "2")]
        library.shows["a:latest"] = modelfile("b")
        return modelfile("a")

    library.shows["a:latest"] = re_created
    entry = await catalog.find("a:latest", max_age_s=60)
    assert (entry.digest, entry.key) == ("2" * 64, "/models/blobs/sha256-" + "b" * 64)


async def test_a_change_that_passes_while_a_model_is_read_leaves_nothing_cached(catalog, mocked):
    library = Library(mocked, [tag("a:latest", "1")], {})

    def changed():
        catalog.library_changed("a:latest")
        return modelfile("a")

    library.shows["a:latest"] = changed
    await catalog.find("a:latest", max_age_s=60)
    assert catalog.cached("a:latest") is None


async def test_a_remote_stub_is_known_from_the_list_and_never_shown(catalog, mocked):
    stub = tag("stub:latest", "3", remote_host="https://ollama.com:443", remote_model="big")
    library = Library(mocked, [stub, tag("big:120b-cloud", "4", remote_host="https://ollama.com:443")], {})
    entry = await catalog.find("stub:latest", max_age_s=60)
    assert entry.remote
    assert catalog.cached("stub:latest") == entry
    assert catalog.names_of(entry.key) == ()
    assert library.asked == ["tags"]


async def test_an_mlx_model_has_its_digest_for_a_key(catalog, mocked):
    Library(mocked, [tag("mlx:latest", "5")], {"mlx:latest": {"modelfile": "# x\nFROM mlx:latest\n"}})
    entry = await catalog.find("mlx:latest", max_age_s=60)
    assert entry.key == "digest:" + "5" * 64
    assert catalog.names_of(entry.key) == ("mlx:latest",)


async def test_an_eviction_names_the_answer_that_was_no_404(catalog, mocked):
    Library(mocked, [tag("a:latest", "1")], {"a:latest": modelfile("a")})
    mocked.post(SCRIPTED / "api/generate", status=500, payload={"error": "boom"})
    entry = await catalog.find("a:latest", max_age_s=60)
    answer = await evict(catalog._control, catalog, entry.key, "a:latest")
    assert answer == EvictionAnswered(entry.key, accepted=False, reason="Ollama did not unload a:latest: boom")


async def test_an_eviction_by_a_makeshift_key_finds_the_runner_after_its_key_was_learned(catalog, mocked):
    Library(mocked, [tag("a:latest", "1")], {"a:latest": modelfile("a")})
    mocked.post(SCRIPTED / "api/generate", payload={"done_reason": "unload"})
    await catalog.find("a:latest", max_age_s=60)
    makeshift = "digest:" + "1" * 64
    assert await evict(catalog._control, catalog, makeshift, "a:latest") == EvictionAnswered(makeshift, accepted=True)


async def test_an_existing_name_that_cannot_be_read_is_an_error_not_none(catalog, mocked):
    mocked.get(SCRIPTED / "api/tags", payload={"models": [tag("a:latest", "1")]})
    mocked.post(SCRIPTED / "api/show", status=500, payload={"error": "boom"})
    with pytest.raises(ControlError):
        await catalog.find("a:latest", max_age_s=60)


async def test_a_catalog_of_a_dead_upstream_raises(unused_tcp_port):
    async with aiohttp.ClientSession() as session:
        catalog = Catalog(Control(URL(f"http://127.0.0.1:{unused_tcp_port}"), session, connect_timeout_s=5))
        with pytest.raises(ControlError):
            await catalog.find("a:latest", max_age_s=60)
