"""Forms are read as Go reads them, in whatever pieces they come; and never guessed at."""

from __future__ import annotations

import pytest

from ollama_swap_proxy.core.forms import (
    HEAD_LIMIT_BYTES,
    LINE_LIMIT_BYTES,
    MODEL_LIMIT_BYTES,
    PARTS_LIMIT,
    STEPS_A_PAUSE,
    BadForm,
    Form,
    FormReader,
    UnreadableForm,
    parse_parameters,
)

MODEL = b'Content-Disposition: form-data; name="model"'
FILE = b'--B\r\nContent-Disposition: form-data; name="file"; filename="x.wav"\r\n\r\nAAAA\r\n'
END = b"--B--\r\n"


def part(head: bytes, value: bytes = b"b") -> bytes:
    return b"--B\r\n" + head + b"\r\n\r\n" + value + b"\r\n"


def read(body: bytes, slice_bytes: int = 1 << 20, boundary: str = "B") -> Form:
    reader = FormReader(boundary)
    for start in range(0, len(body), slice_bytes):
        for _ in reader.feed(body[start : start + slice_bytes]):
            pass
    return reader.end()


READ_BY_GO = {
    "plain": part(MODEL) + FILE + END,
    "file first": FILE + part(MODEL) + END,
    "the first model counts": part(MODEL) + part(MODEL, b"c") + FILE + END,
    "preamble": b"This is a multipart message\r\n" + part(MODEL) + FILE + END,
    "line feeds only": (part(MODEL) + FILE + END).replace(b"\r\n", b"\n"),
    "blank behind the boundary": part(MODEL).replace(b"--B\r\n", b"--B \t\r\n") + FILE + END,
    "no line break at the end": part(MODEL) + FILE + b"--B--",
    "epilogue": part(MODEL) + FILE + END + b"--B\r\nwhatever",
    "nine headers": part(b"".join(b"X-%d: 1\r\n" % i for i in range(8)) + MODEL) + FILE + END,
    "a long header": part(b"X: " + b"a" * 5000 + b"\r\n" + MODEL) + FILE + END,
    "the first of two dispositions": part(MODEL + b'\r\nContent-Disposition: form-data; name="x"') + FILE + END,
    "RFC 2231": part(b"Content-Disposition: form-data; name*=UTF-8''mod%65l") + FILE + END,
    "folded": part(b'Content-Disposition: form-data;\r\n name="model"') + FILE + END,
    "no quotes": part(b"CONTENT-DISPOSITION:Form-Data;NAME=model;") + FILE + END,
    "quoted-printable": part(MODEL + b"\r\nContent-Transfer-Encoding: Quoted-Printable", b"=62=\r\n") + FILE + END,
    "no content, then another": part(b'Content-Disposition: form-data; name="x"', b"") + part(MODEL) + FILE + END,
    "what looks like a boundary": part(MODEL) + FILE.replace(b"AAAA", b"\r\n--Bad\r\n--B-\r\n--\r\n") + END,
    "an empty part without its line break": b"--B\r\nX: y\r\n\r\n" + part(MODEL) + FILE + END,
    "a name for the file in two ways": part(MODEL)
    + FILE.replace(b'x.wav"', b"caf\xc3\xa9.wav\"; filename*=utf-8''caf%C3%A9.wav")
    + END,
}


@pytest.mark.parametrize("what", READ_BY_GO)
@pytest.mark.parametrize("slice_bytes", [1, 7, 1 << 20])
def test_a_form_that_go_reads_is_read(what, slice_bytes):
    assert read(READ_BY_GO[what], slice_bytes) == Form("b", has_audio=True)


@pytest.mark.parametrize(
    ("body", "form"),
    [
        (END, Form("", has_audio=False)),
        (part(MODEL) + END, Form("b", has_audio=False)),
        (FILE + END, Form("", has_audio=True)),
        (part(MODEL) + FILE.replace(b"AAAA", b"") + FILE + END, Form("b", has_audio=False)),
        (part(MODEL + b'; filename="x"') + part(MODEL.replace(b"model", b"Model")) + END, Form("", has_audio=False)),
        (part(MODEL.replace(b"form-data", b"attachment")) + part(b"X: y") + END, Form("", has_audio=False)),
        (part(MODEL.replace(b"model", b"file")) + END, Form("", has_audio=False)),
    ],
)
def test_what_go_does_not_find_is_not_found(body, form):
    assert read(body) == form


@pytest.mark.parametrize(
    "body", [b"", b"hello", b'{"model":"b"}\r\n', b"--B", part(MODEL), part(MODEL)[:-2], part(MODEL) + FILE + b"--B-"]
)
def test_a_form_without_an_end_is_refused_for_certain(body):
    for slice_bytes in (1, 1 << 20):
        with pytest.raises(BadForm):
            read(body, slice_bytes)


UNREADABLE = {
    "cut off in a head, which Go takes for the end": part(MODEL) + FILE + b"--B\r\nX: y",
    "a long line in front": b"x" * (LINE_LIMIT_BYTES + 1) + b"\r\n" + part(MODEL) + FILE + END,
    "a longer head": part(b"X: " + b"a" * HEAD_LIMIT_BYTES + b"\r\n" + MODEL) + FILE + END,
    "a longer model": part(MODEL, b" " * MODEL_LIMIT_BYTES + b"b") + FILE + END,
    "many parts": part(b"X: y") * PARTS_LIMIT + part(MODEL) + FILE + END,
    "a header without a colon": part(b"bad\r\n" + MODEL) + FILE + END,
    "a blank in front of a colon": part(MODEL.replace(b":", b" :")) + FILE + END,
    "two names": part(MODEL + b'; name="x"') + FILE + END,
    "a name in pieces": part(MODEL.replace(b"name=", b"name*0=")) + FILE + END,
    "a name in another charset": part(b"Content-Disposition: form-data; name*=latin1''model") + FILE + END,
    "a quote that does not end": part(MODEL[:-1]) + FILE + END,
    "a line between parts": part(MODEL) + b"--B--x\r\n" + FILE + END,
}


@pytest.mark.parametrize("what", UNREADABLE)
def test_what_might_be_read_in_another_way_is_unreadable(what):
    with pytest.raises(UnreadableForm):
        read(UNREADABLE[what])


def test_boundaries_may_be_long_and_odd():
    assert read((part(MODEL) + FILE + END).replace(b"--B", b"--" + b"B" * 300), boundary="B" * 300).model == "b"
    body = (part(MODEL) + FILE + END).replace(b"--B", b"--B\xff")
    assert read(body, boundary="B\udcff").model == "b"


@pytest.mark.parametrize("filling", [b"--B\r\n\r\n\r\n" * PARTS_LIMIT, b"\n" * 10_000, FILE + b"\r\n--Bx" * 10_000])
def test_hostile_forms_are_read_in_portions(filling):
    assert sum(1 for _ in FormReader("B").feed(filling)) >= PARTS_LIMIT // STEPS_A_PAUSE


def test_a_file_that_passes_by_is_not_kept():
    reader = FormReader("B")
    for data in (FILE[:-2], *[b"\0" * 65536] * 20):
        assert not list(reader.feed(data))
        assert len(reader._data) - reader._position <= len(b"\r\n--B")


@pytest.mark.parametrize(
    ("text", "kind", "parameters"),
    [
        ("", "", {}),
        (" Multipart/Form-Data ;Boundary = B ; ", "multipart/form-data", {"boundary": "B"}),
        ('a/b; x="C:\\dir\\\\\\"y"; z=""', "a/b", {"x": 'C:\\dir\\"y', "z": ""}),
        ("a/b; x=1; x*=us-ascii'en'%41", "a/b", {"x": "A"}),
        ("a/b; x=1; x=1", "a/b", None),
        ("a/b; x*=utf-8''%4", "a/b", None),
        ("a/b; x*y=utf-8''a", "a/b", None),
        ("a/b; x", "a/b", None),
        ("a/b; x=\u00e9", "a/b", None),
        ('a/b; x="1"2', "a/b", None),
    ],
)
def test_parameters_of_a_header_are_told_where_there_is_no_doubt(text, kind, parameters):
    assert parse_parameters(text) == (kind, parameters)


@pytest.mark.timeout(10)
def test_a_hundred_thousand_parameters_are_read_in_one_go() -> None:
    """Looking at the rest of the text again for each took minutes, on the event loop."""
    text = "multipart/form-data" + "".join(f"; a{n}=b" for n in range(200_000))
    kind, parameters = parse_parameters(text)
    assert (kind, len(parameters or ())) == ("multipart/form-data", 200_000)
