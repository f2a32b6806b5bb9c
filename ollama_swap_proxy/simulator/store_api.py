"""Ollama's paths that load nothing: version, tags, show, ps, copy, delete, create, pull, push, blobs.

Owns their JSON. Must not decide about runners. Facts: server/routes.go:1876-1926 and the recorded answers
(tests/transcripts: root_version, tags_show, ps, aliases, blobs, pull_offline, errors_native).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

from ollama_swap_proxy.simulator import names
from ollama_swap_proxy.simulator.generation import SimError
from ollama_swap_proxy.simulator.gojson import Struct, decode, encode
from ollama_swap_proxy.simulator.library import Library, Manifest
from ollama_swap_proxy.simulator.machine import Machine
from ollama_swap_proxy.simulator.model_json import BLOB_PREFIX, details, local_time, show, tag
from ollama_swap_proxy.simulator.models import SimModel
from ollama_swap_proxy.simulator.native import EMPTY_BODY
from ollama_swap_proxy.simulator.runner import Runner

DIGEST = re.compile(r"sha256[:-][0-9a-fA-F]{64}")
_NAMED = {"model": "string", "name": "string"}
_SHOW = Struct("ShowRequest", {**_NAMED, "verbose": "bool", "system": "string", "options": "map[string]interface {}"})
_DELETE = Struct("DeleteRequest", _NAMED)
_COPY = Struct("CopyRequest", {"source": "string", "destination": "string"})
_PULL = Struct("PullRequest", {**_NAMED, "insecure": "bool", "stream": "bool"})
_CREATE = Struct(
    "CreateRequest",
    {
        **_NAMED,
        "stream": "bool",
        "quantize": "string",
        "from": "string",
        "files": "map[string]string",
        "adapters": "map[string]string",
        "template": "string",
        "license": "any",
        "system": "string",
        "parameters": "map[string]interface {}",
        "messages": "[]api.Message",
    },
)


class Store:
    """Answers about the library and the resident models. All methods return a body or raise `SimError`."""

    def __init__(self, machine: Machine, library: Library) -> None:
        self._machine = machine
        self.library = library
        self._tags: tuple[list[Manifest] | None, bytes] = (None, b"")

    def tags(self) -> bytes:
        """GET /api/tags, newest first."""
        manifests = list(self.library)
        if self._tags[0] != manifests:
            self._tags = (manifests, encode({"models": [tag(m) for m in manifests]}))
        return self._tags[1]

    def ps(self, runners: Sequence[Runner]) -> bytes:
        """GET /api/ps: the resident models in this order."""
        return encode({"models": [self._resident(runner) for runner in runners]})

    def show(self, body: bytes) -> bytes:
        """POST /api/show.

        Raises:
            SimError: 400 without a name, 403 for a cloud name, 404 for an unknown one.
        """
        found = decode(body, _SHOW, empty=EMPTY_BODY)
        text = found.get("model") or found.get("name") or ""
        if not text:
            raise SimError(400, "model is required")
        base, source = names.source_of(text)
        if source == "cloud":
            raise SimError(403, "ollama cloud is disabled: remote model details are unavailable")
        manifest = self.named(base if source == "local" else text)
        return encode(show(manifest))

    def named(self, text: str) -> Manifest:
        """The manifest of a name.

        Raises:
            SimError: 400 for an invalid name, 404 for an unknown one.
        """
        name = names.parse(text)
        if not name.valid:
            raise SimError(400, "invalid model name")
        manifest = self.library.find(text)
        if manifest is None:
            raise SimError(404, f"model '{name.short}' not found")
        return manifest

    def copy(self, body: bytes) -> None:
        """POST /api/copy.

        Raises:
            SimError: 400 for an invalid name, 404 for an unknown source.
        """
        found = decode(body, _COPY, empty=EMPTY_BODY)
        source, destination = found.get("source", ""), found.get("destination", "")
        for text, which in ((source, "source"), (destination, "destination")):
            if not names.parse(text).valid:
                raise SimError(400, f'{which} "{text}" is invalid')
        manifest = self.library.find(source)
        if manifest is None:
            raise SimError(404, f'model "{source}" not found')
        self.library.copy(manifest, names.parse(destination), self._wall())

    def delete(self, body: bytes) -> None:
        """DELETE /api/delete; what is loaded stays loaded.

        Raises:
            SimError: 400 for an invalid name, 404 for an unknown one.
        """
        found = decode(body, _DELETE, empty=EMPTY_BODY)
        text = found.get("model") or found.get("name") or ""
        if not names.parse(text).valid:
            raise SimError(400, f'name "{text}" is invalid')
        manifest = self.library.find(text)
        if manifest is None:
            raise SimError(404, f"model '{text}' not found")
        self.library.delete(manifest)

    def create(self, body: bytes) -> tuple[bool, list[Mapping[str, Any]]]:
        """POST /api/create: whether it streams, and its progress; an error in it is the last element.

        An error that is the first element has the ``status`` of the answer with it.

        Raises:
            SimError: 400 for an invalid name or JSON.
        """
        found = decode(body, _CREATE, empty=EMPTY_BODY)
        text = found.get("model") or found.get("name") or ""
        if not names.parse(text).valid:
            raise SimError(400, "invalid model name", early=True)
        stream = bool(found.get("stream", True))
        if found.get("from"):
            return stream, self._create_from(text, found)
        if found.get("files"):
            return stream, self._create_from_files(text, found)
        return stream, [{"error": "neither 'from' or 'files' was specified", "status": 400}]

    def pull(self, body: bytes) -> tuple[bool, list[Mapping[str, Any]]]:
        """POST /api/pull: there is no registry, but a name that is here is up to date.

        Raises:
            SimError: 400 for an invalid name or JSON.
        """
        found = decode(body, _PULL, empty=EMPTY_BODY)
        text = found.get("model") or found.get("name") or ""
        name = names.parse(text)
        if not name.valid:
            raise SimError(400, "invalid model name", early=True)
        stream = bool(found.get("stream", True))
        progress: list[Mapping[str, Any]] = [{"status": "pulling manifest"}]
        manifest = self.library.find(text)
        if manifest is None:
            scheme = "http" if found.get("insecure") and "://" in text else "https"
            url = f"{scheme}://{name.host}/v2/{name.namespace}/{name.model}/manifests/{name.tag}"
            reason = f"dial tcp {name.host}: connect: connection refused"
            return stream, [*progress, {"error": f'pull model manifest: Get "{url}": {reason}'}]
        digest, size = manifest.model.weights_digest, manifest.model.size_bytes
        progress.append(
            {"status": f"pulling {digest[:12]}", "digest": f"sha256:{digest}", "total": size, "completed": size}
        )
        tail = ("verifying sha256 digest", "writing manifest", "success")
        return stream, [*progress, *({"status": status} for status in tail)]

    def push(self, body: bytes) -> tuple[bool, list[Mapping[str, Any]]]:
        """POST /api/push: there is nobody to push to.

        Raises:
            SimError: 400 for an invalid name or JSON.
        """
        found = decode(body, _PULL, empty=EMPTY_BODY)
        name = names.parse(found.get("model") or found.get("name") or "")
        if not name.valid:
            raise SimError(400, "invalid model name", early=True)
        path = f"/models/manifests/{name.host}/{name.namespace}/{name.model}/{name.tag}"
        return bool(found.get("stream", True)), [
            {"status": "retrieving manifest"},
            {"status": "couldn't retrieve manifest"},
            {"error": f"open {path}: no such file or directory"},
        ]

    def store_blob(self, digest: str, data: bytes) -> None:
        """Keep an upload.

        Raises:
            SimError: 400 when the bytes are not what their name says.
        """
        got = f"sha256:{hashlib.sha256(data).hexdigest()}"
        if got != digest.replace("-", ":"):
            raise SimError(400, f'digest mismatch, expected "{digest}", got "{got}"')
        self.library.blobs[digest[7:]] = data

    def has_blob(self, digest: str) -> bool:
        """Whether a blob is there: uploaded, or a model's weights.

        Raises:
            SimError: 400 for a malformed digest.
        """
        if not DIGEST.fullmatch(digest):
            raise SimError(400, "invalid digest format")
        return digest[7:] in self.library.blobs or any(m.model.weights_digest == digest[7:] for m in self.library)

    def _create_from(self, text: str, found: Mapping[str, Any]) -> list[Mapping[str, Any]]:
        base = self.library.find(found["from"])
        if base is None:
            source = names.parse(found["from"])
            url = f"https://{source.host}/v2/{source.namespace}/{source.model}/manifests/{source.tag}"
            reason = f"dial tcp {source.host}: connect: connection refused"
            return [{"status": "pulling manifest"}, {"error": f'pull model manifest: Get "{url}": {reason}'}]
        self.library.derive(base, names.parse(text), found, self._wall())
        using = f"using existing layer sha256:{base.model.weights_digest}"
        made = hashlib.sha256(encode([found.get("system"), found.get("parameters"), text])).hexdigest()
        template = hashlib.sha256(base.model.template.encode()).hexdigest()
        layers = [using, f"using existing layer sha256:{template}", f"creating new layer sha256:{made}"]
        return [{"status": status} for status in (*layers, "writing manifest", "success")]

    def _create_from_files(self, text: str, found: Mapping[str, Any]) -> list[Mapping[str, Any]]:
        digest = next(iter(found["files"].values())).replace("-", ":").removeprefix("sha256:")
        if digest not in self.library.blobs:
            path = f"{BLOB_PREFIX}{digest}"
            return [{"error": f"open {path}: no such file or directory", "status": 500}]
        name = names.parse(text).short
        model = SimModel(
            name,
            max(1.0, len(self.library.blobs[digest]) / (1 << 20)),
            weights=digest,
            system=found.get("system", ""),
            template=found.get("template", "{{ .Prompt }}"),
            parameters=found.get("parameters") or {},
        )
        self.library.add(model, self._wall())
        template = hashlib.sha256(model.template.encode()).hexdigest()
        layers = [f"using existing layer sha256:{digest}", f"using existing layer sha256:{template}"]
        statuses = ("parsing GGUF", "verifying conversion", *layers, "writing manifest", "success")
        return [{"status": status} for status in statuses]

    def _resident(self, runner: Runner) -> Mapping[str, Any]:
        wanted = runner.wanted
        return {
            "name": wanted.name,
            "model": wanted.name,
            "size": runner.size,
            "digest": wanted.digest,
            "details": details(wanted.model),
            "expires_at": local_time(self._machine.expires_wall(runner)),
            "size_vram": runner.size_vram,
            "context_length": wanted.options["num_ctx"],
        }

    def _wall(self) -> float:
        return self._machine.world.clock.wall()
