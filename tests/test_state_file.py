"""The state file is whole at any moment, for its owner only, shared without loss, and never a reason to fail."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import stat
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from ollama_swap_proxy import state_file
from ollama_swap_proxy.state_file import LARGEST_BYTES, UPSTREAMS_KEPT, StateFile

HERE, THERE = "http://127.0.0.1:11434", "http://127.0.0.1:11435"
OFTEN_S = 0.002
Learned = dict[str, object]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "folder" / "state.json"


@asynccontextmanager
async def _kept(path: Path | None, learned: Learned, upstream: str = HERE, every_s: float = 60) -> AsyncIterator[None]:
    """A proxy that runs, from its start to its stop; what it learns is put into ``learned``."""
    file = StateFile(path, upstream, lambda: dict(learned), every_s)
    found = await file.read()
    if isinstance(found, dict):
        learned |= found
    file.start()
    yield
    await file.close()


async def _run(path: Path | None, upstream: str = HERE, **more: object) -> Learned:
    """A proxy that starts, learns something and stops; return what it knew when it had started."""
    learned: Learned = {}
    async with _kept(path, learned, upstream):
        found = dict(learned)
        learned |= more
    return found


async def _eventually(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110 - a file tells nobody
            await asyncio.sleep(0.001)


def _put(path: Path, content: bytes) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)


def _bytes(path: Path) -> bytes:
    return path.read_bytes()


def _content(path: Path) -> dict[str, Any]:
    return dict(json.loads(_bytes(path)))


def _names(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


def _mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def _inode(path: Path) -> int:
    """A file that is written anew is another one."""
    return path.stat().st_ino


async def test_what_was_learned_is_there_after_a_restart(path: Path) -> None:
    with capture_logs() as lines:
        assert await _run(path, settle_s=1.5) == {}
        assert await _run(path) == {"settle_s": 1.5}
    assert [line["event"] for line in lines] == ["state_read"]


async def test_only_its_owner_can_read_it_and_nothing_else_is_left(path: Path) -> None:
    await _run(path, a=1)
    assert _mode(path) == 0o600
    assert _mode(path.parent) == 0o700
    assert _names(path.parent) == ["state.json"]


async def test_nothing_learned_nothing_written(path: Path) -> None:
    await _run(path)
    assert not path.parent.exists()


async def test_without_a_path_nothing_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    await _run(None, a=1)
    assert await _run(None) == {}
    assert not _names(tmp_path)


async def test_it_is_written_while_we_run_and_only_when_something_changed(path: Path) -> None:
    learned: Learned = {}
    async with _kept(path, learned, every_s=OFTEN_S):
        learned["a"] = 1
        await _eventually(path.exists)
        first = _inode(path)
        await asyncio.sleep(10 * OFTEN_S)
        assert _inode(path) == first
        learned["a"] = 2
        await _eventually(lambda: _inode(path) != first)
    assert await _run(path) == {"a": 2}


async def test_who_reads_while_others_write_finds_it_whole(path: Path) -> None:
    """Two proxies on one file, each with its own Ollama, and a reader: no torn file, and nobody's section is lost."""
    first: Learned = {}
    second: Learned = {}
    async with _kept(path, first, HERE, OFTEN_S), _kept(path, second, THERE, OFTEN_S):
        first["n"] = second["n"] = 0
        await _eventually(path.exists)
        for number in range(100):
            first["n"] = second["n"] = number
            first["long"] = second["long"] = "x" * 20_000
            content = _content(path)
            assert set(content) == {"format", "upstreams"}
            await asyncio.sleep(OFTEN_S / 4)
    assert (await _run(path, HERE))["n"] == 99
    assert (await _run(path, THERE))["n"] == 99
    assert _names(path.parent) == ["state.json"]


async def test_each_upstream_has_its_own_section_and_of_those_only_so_many_are_kept(path: Path) -> None:
    for number in range(UPSTREAMS_KEPT + 1):
        await _run(path, f"http://host-{number}:11434", n=number)
    assert await _run(path, "http://host-0:11434") == {}
    for number in range(1, UPSTREAMS_KEPT + 1):
        assert await _run(path, f"http://host-{number}:11434") == {"n": number}


async def test_what_else_a_section_has_is_left_as_it_is(path: Path) -> None:
    await _run(path, a=1)
    content = _content(path)
    content["upstreams"][HERE]["operator"] = {"mode": "manual"}
    _put(path, json.dumps(content).encode())
    await _run(path, a=2)
    section = _content(path)["upstreams"][HERE]
    assert section == {"operator": {"mode": "manual"}, "learned": {"a": 2}}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"\xff\x00",
        b"[]",
        b"{}",
        b'{"format": 2, "upstreams": {}}',
        b'{"format": 1}',
        b'{"format": 1, "upstreams": []}',
        b'{"format": 1, "upstreams": {"http://127.0.0.1:11434": 7}}',
        b'{"format": 1, "upstreams": ' + b"[" * 100_000,
        b" " * (LARGEST_BYTES + 1),
    ],
    ids=range(11),
)
async def test_a_damaged_file_is_one_warning_and_is_replaced_when_there_is_something_to_keep(
    path: Path, content: bytes
) -> None:
    _put(path, content)
    with capture_logs() as lines:
        assert await _run(path) == {}
        assert _bytes(path) == content
        assert await _run(path, a=1) == {}
    assert [(line["event"], line["log_level"]) for line in lines] == [("state_not_read", "warning")] * 2
    assert all(line["path"] == str(path) and line["reason"] for line in lines)
    assert await _run(path) == {"a": 1}


async def test_a_folder_that_cannot_be_made_or_written_is_one_warning(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    learned: Learned = {}
    with capture_logs() as lines:
        async with _kept(tmp_path / "file" / "state.json", learned, every_s=OFTEN_S):
            for number in range(10):
                learned["n"] = number
                await asyncio.sleep(OFTEN_S)
    assert [line["event"] for line in lines] == ["state_not_written"]
    assert lines[0]["log_level"] == "warning"


async def test_it_is_written_as_soon_as_that_is_possible_again(tmp_path: Path) -> None:
    path = tmp_path / "file" / "state.json"
    path.parent.write_text("", encoding="utf-8")
    learned: Learned = {}
    with capture_logs() as lines:
        async with _kept(path, learned, every_s=OFTEN_S):
            learned["a"] = 1
            await _eventually(lambda: lines)
            path.parent.unlink()
            await _eventually(path.exists)
    assert await _run(path) == {"a": 1}


@pytest.mark.parametrize("kind", ["pipe", "folder", "device"])
async def test_what_is_no_file_is_neither_read_nor_replaced(tmp_path: Path, kind: str) -> None:
    path = Path("/dev/null") if kind == "device" else tmp_path / kind
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    before = _inode(path)
    with capture_logs() as lines:
        assert await _run(path, a=1) == {}
    assert [line["event"] for line in lines] == ["state_not_read", "state_not_written"]
    assert all(line["reason"] == "it is no regular file" for line in lines)
    assert _inode(path) == before


async def test_a_link_stays_one_and_the_file_that_it_points_to_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "link"
    path.symlink_to(tmp_path / "real" / "state.json")
    await _run(path, a=1)
    assert path.is_symlink()
    assert await _run(tmp_path / "real" / "state.json") == {"a": 1}


async def test_a_write_that_fails_half_way_leaves_the_old_file_and_no_other(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await _run(path, a=1)

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    with capture_logs() as lines, monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        await _run(path, a=2)
    assert lines[-1]["reason"] == "No space left on device"
    assert _names(path.parent) == ["state.json"]
    assert await _run(path) == {"a": 1}


async def test_what_changes_during_a_write_that_lasts_is_written_after_it(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The stop comes during a write: the older state must not come last."""
    path.parent.mkdir()
    descriptor = os.open(path.parent, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    begun = asyncio.Event()
    loop, write = asyncio.get_running_loop(), state_file._write

    def told(path: Path, upstream: str, learned: Learned) -> None:
        loop.call_soon_threadsafe(begun.set)
        write(path, upstream, learned)

    monkeypatch.setattr(state_file, "_write", told)
    learned: Learned = {}
    async with _kept(path, learned, every_s=OFTEN_S):
        learned["a"] = 1
        await begun.wait()
        learned["a"] = 2
        loop.call_later(0.02, os.close, descriptor)
    assert await _run(path) == {"a": 2}


async def test_a_lock_that_somebody_keeps_does_not_keep_us_for_long(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(state_file, "LOCK_PATIENCE_S", 0.02)
    path.parent.mkdir()
    descriptor = os.open(path.parent, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    try:
        await _run(path, a=1)
    finally:
        os.close(descriptor)
    assert await _run(path) == {"a": 1}


async def test_a_disk_that_does_not_answer_holds_up_neither_start_nor_stop(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await _run(path, a=1)
    monkeypatch.setattr(state_file, "DISK_PATIENCE_S", 0.01)
    monkeypatch.setattr(state_file, "LOCK_PATIENCE_S", 0.08)
    descriptor = os.open(path.parent, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    try:
        with capture_logs() as lines:
            await _run(path, a=2)
    finally:
        os.close(descriptor)
    assert [line["event"] for line in lines] == ["state_read", "state_not_written"]
    assert "took longer" in lines[-1]["reason"]
