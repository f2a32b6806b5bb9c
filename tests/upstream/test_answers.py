"""Ollama's control answers: the recorded ones are read in full, and what lacks something is malformed, never empty."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ollama_swap_proxy.upstream import answers
from ollama_swap_proxy.upstream.answers import MalformedAnswerError

TRANSCRIPTS = Path(__file__).parents[1] / "transcripts"


def _recorded(group: str, path: str) -> list[bytes]:
    exchanges: list[dict[str, Any]] = json.loads((TRANSCRIPTS / f"{group}.json").read_text(encoding="utf-8"))
    good = [e["response"] for e in exchanges if e["request"]["path"] == path and e["response"]["status"] == 200]
    whole = [r.get("body") or "".join(chunk["text"] for chunk in r.get("chunks", ())) for r in good]
    return [body.encode() for body in whole if body]


def test_every_recorded_report_is_read() -> None:
    bodies = _recorded("ps", "/api/ps")
    read = [answers.ps_entries(body, wall_s=0.0) for body in bodies]
    assert [len(entries) for entries in read] == [len(json.loads(body)["models"]) for body in bodies]
    assert max(map(len, read)) >= 2
    assert all(entry.expires_in_s is not None and entry.digest for entries in read for entry in entries)


def test_the_recorded_library_is_read() -> None:
    (body, *_) = _recorded("tags_show", "/api/tags")
    entries = answers.tag_entries(body)
    assert {entry.name for entry in entries} == {model["name"] for model in json.loads(body)["models"]}
    assert not any(entry.remote for entry in entries)


def test_expiry_is_relative_whatever_the_zone_and_none_where_it_cannot_be_read() -> None:
    line = {"name": "a", "digest": "d", "expires_at": "1970-01-01T01:00:10.123456789+01:00"}
    (entry,) = answers.ps_entries(json.dumps({"models": [line]}).encode(), wall_s=4.0)
    assert entry.expires_in_s == pytest.approx(6.123456)
    line["expires_at"] = "soon"
    (entry,) = answers.ps_entries(json.dumps({"models": [line]}).encode(), wall_s=4.0)
    assert entry.expires_in_s is None


@pytest.mark.parametrize(
    "body",
    [b"", b"null", b"{}", b"[]", b'{"models":null}', b'{"models":[{"name":"a"}]}', b'{"models":[{"digest":"d"}]}'],
)
def test_a_report_that_lacks_something_is_malformed_and_never_empty(body: bytes) -> None:
    with pytest.raises(MalformedAnswerError):
        answers.ps_entries(body, wall_s=0.0)


def test_weights_are_the_first_from_and_adapters_what_follows_until_the_template() -> None:
    blob, other = (f"/models/blobs/sha256-{digit * 64}" for digit in "ab")
    modelfile = f'# Modelfile\n\nFROM {blob}\nADAPTER {other}\nTEMPLATE """\nFROM {other}\n"""\n'
    show = answers.show_answer(json.dumps({"modelfile": modelfile, "capabilities": ["completion"]}).encode())
    assert (show.weights, show.adapters, show.capabilities) == (blob, (other,), {"completion"})


def test_a_model_without_a_weights_blob_has_no_weights() -> None:
    show = answers.show_answer(json.dumps({"modelfile": "FROM qwen3-mlx\n", "remote_host": "https://x"}).encode())
    assert show.weights == ""
    assert show.remote


def test_of_the_models_own_parameters_only_the_runners_are_kept() -> None:
    parameters = 'num_ctx       8192\nstop          "<|end|>"\ntemperature   0.7\nuse_mmap false'
    show = answers.show_answer(json.dumps({"parameters": parameters}).encode())
    assert show.parameters == {"num_ctx": 8192, "use_mmap": False}


@pytest.mark.parametrize(
    ("version", "safe"),
    [
        ("0.32.4", True),
        ("0.33.0-rc2", True),
        ("v1.0.0", True),
        ("0.32.4-rc1", False),
        ("0.32.3", False),
        ("0.0.0", False),
        ("?", False),
    ],
)
def test_polling_is_safe_from_the_version_on_that_takes_locks(version: str, *, safe: bool) -> None:
    assert answers.ps_is_safe(version) is safe


def test_a_load_is_told_from_an_unload_and_an_embedding_counts() -> None:
    assert answers.loaded(b'{"done":true,"done_reason":"load"}')
    assert answers.loaded(b'{"embeddings":[]}')
    assert not answers.loaded(b'{"done":true,"done_reason":"unload"}')


def test_an_errors_text_is_ollamas_own_or_the_body_shortened() -> None:
    assert answers.error_text(b'{"error":"model not found"}') == "model not found"
    assert answers.error_text(b"<html>" + b"x" * 9000).startswith("<html>x")
    assert len(answers.error_text(b"x" * 9000)) <= 500


def test_hostile_answers_are_read_like_any_other() -> None:
    """Deep JSON and endless digits make Python's own readers raise what no caller expects."""
    assert answers.error_text(b"[" * 200_000).startswith("[[[")
    assert not answers.ps_is_safe("9" * 5000 + ".1.1")
