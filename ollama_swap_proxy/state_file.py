"""The state file: what was learned, kept across restarts.

Owns the file: when it is read and written, and that it is whole at any moment, whoever else writes it. Must not know
what is learned (`core.memory` does). A file that cannot be read or written costs one line in the log, nothing else.

It holds a section for each upstream, since what was learned of one card says nothing of another, and several proxies
may share a file. A section has what was ``learned``; anything else in it is left as it is.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import orjson
import structlog

FORMAT: Final = 1

WRITTEN_EVERY_S: Final = 30.0
"""So often it is looked whether there is anything to write. What is learned in between is lost if we are killed."""

DISK_PATIENCE_S: Final = 5.0
"""So long we wait for the disk, at start and in the end. A write that takes longer goes on; no other begins then."""

LOCK_PATIENCE_S: Final = 1.0
"""So long at the most we wait for another process that writes the same file, which takes it milliseconds."""

LARGEST_BYTES: Final = 16 * 1024**2
"""A larger file is none of ours."""

UPSTREAMS_KEPT: Final = 8
"""Of further upstreams the section that was written longest ago is dropped."""

_Sections = dict[str, dict[str, Any]]


class StateFile:
    """Keeps what ``learned`` returns (JSON values) for this upstream in the file; ``path`` None: nowhere.

    `read` it, then `start`, in the end `close`.
    """

    def __init__(
        self,
        path: Path | None,
        upstream: str,
        learned: Callable[[], dict[str, object]],
        every_s: float = WRITTEN_EVERY_S,
    ) -> None:
        self._path = path
        self._upstream = upstream
        self._learned = learned
        self._every_s = every_s
        self._written: dict[str, object] | None = None
        self._warned = False
        self._writing: tuple[dict[str, object], asyncio.Future[None]] | None = None
        self._keeping: asyncio.Task[None] | None = None
        self._log = structlog.get_logger("state_file")

    async def read(self) -> object | None:
        """Return what was learned in an earlier run, as it stands there; None if there is nothing or it is damaged."""
        if self._path is None:
            return None
        try:
            learned = await learned_in(self._path, self._upstream)
        except (OSError, ValueError) as error:
            self._log.warning("state_not_read", path=str(self._path), reason=reason_of(error))
            return None
        if learned is not None:
            self._log.info("state_read", path=str(self._path))
        return learned

    def start(self) -> None:
        """Write from now on what changes."""
        if self._path is not None:
            self._written = self._learned()
            self._keeping = asyncio.get_running_loop().create_task(self._keep(), name="state file")

    async def close(self) -> None:
        """Write what is not written yet, and end."""
        if self._keeping is not None:
            self._keeping.cancel()
            await asyncio.gather(self._keeping, return_exceptions=True)
            self._keeping = None
            await self._write_if_changed()  # or see the end of a write that is under way
            await self._write_if_changed()

    async def _keep(self) -> None:
        while True:
            await asyncio.sleep(self._every_s)
            await self._write_if_changed()

    async def _write_if_changed(self) -> None:
        if self._path is None:
            return
        if self._writing is None:
            learned = self._learned()
            if learned == self._written:
                return
            loop = asyncio.get_running_loop()
            self._writing = learned, loop.run_in_executor(None, _write, self._path, self._upstream, learned)
        learned, writing = self._writing
        await asyncio.wait({writing}, timeout=DISK_PATIENCE_S)
        error = writing.exception() if writing.done() else TimeoutError()
        if writing.done():
            self._writing = None
        if error is None:
            self._written = learned
        elif not self._warned:
            self._log.warning("state_not_written", path=str(self._path), reason=reason_of(error))
        self._warned = error is not None


async def learned_in(path: Path, upstream: str) -> object | None:
    """Return what was learned of this upstream, as it stands in the file; None if there is nothing.

    Raises:
        OSError: it cannot be read, or not soon.
        ValueError: it is none of ours, or damaged.
    """
    async with asyncio.timeout(DISK_PATIENCE_S):
        sections = await asyncio.to_thread(_read, path)
    return sections.get(upstream, {}).get("learned")


def reason_of(error: BaseException) -> str:
    """Say why the file could not be read or written."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or f"it took longer than {DISK_PATIENCE_S:g} s"


def _read(path: Path) -> _Sections:
    """Return the sections of the file by their upstreams; none where there is no file.

    Raises:
        OSError: it cannot be read.
        ValueError: it is none of ours, or damaged.
    """
    if not path.exists():
        return {}
    _check_is_ours_to_replace(path)
    if path.stat().st_size > LARGEST_BYTES:
        raise ValueError(f"it is larger than {LARGEST_BYTES} bytes")
    try:
        content = orjson.loads(path.read_bytes())
    except orjson.JSONDecodeError as error:
        raise ValueError(f"it is not JSON: {error}") from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ValueError("its format is not known")
    sections = content.get("upstreams")
    if not isinstance(sections, dict) or not all(isinstance(section, dict) for section in sections.values()):
        raise ValueError("it has no sections")
    return sections


def _write(path: Path, upstream: str, learned: dict[str, object]) -> None:
    """Replace the file by one with this section renewed, in one step: whoever reads it sees the old one or the new one.

    Only the owner may read it. What other processes wrote there meanwhile is kept.

    Raises:
        OSError: it cannot be written; then it is as it was.
        ValueError: there is something else in its place.
    """
    path = Path(os.path.realpath(path))  # of a link the file that it points to is replaced
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with _alone_in(path.parent):
        if path.exists():
            _check_is_ours_to_replace(path)
        sections: _Sections = {}
        with contextlib.suppress(ValueError):
            sections = _read(path)
        section = {**sections.pop(upstream, {}), "learned": learned}
        sections = dict([*list(sections.items())[1 - UPSTREAMS_KEPT :], (upstream, section)])
        _replace(path, orjson.dumps({"format": FORMAT, "upstreams": sections}, option=orjson.OPT_INDENT_2))


def _replace(path: Path, content: bytes) -> None:
    descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)  # of mode 0600
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink()
        raise


def _check_is_ours_to_replace(path: Path) -> None:
    """Raise ValueError for what must be neither read (a pipe would block) nor replaced (/dev/null)."""
    if not path.is_file():
        raise ValueError("it is no regular file")


@contextlib.contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Keep other proxies from writing in this folder meanwhile, or what they wrote last would be lost.

    Where that cannot be had we go on without: the file is whole in any case.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        ends_at = time.monotonic() + LOCK_PATIENCE_S
        while not _lock(descriptor) and time.monotonic() < ends_at:
            time.sleep(0.01)
        yield
    finally:
        os.close(descriptor)  # ends the lock, too


def _lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True  # this file system has no locks
    return True
