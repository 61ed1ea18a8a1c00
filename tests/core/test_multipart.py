"""yugong.core.multipart: the fields upstream will read, or a refusal."""

import email.policy
import mmap
import tempfile
from email.parser import BytesParser

import pytest
from hypothesis import given
from hypothesis import strategies as st

from yugong.base.errors import Refusal, RefusalKind
from yugong.core import multipart
from yugong.core.multipart import read_fields

TYPE = b"multipart/form-data; boundary=XX"
WANTED = frozenset({"model", "stream"})
FILE = b'Content-Disposition: form-data; name="file"; filename="a.mp3"\r\nContent-Type: audio/mpeg\r\n\r\n'


def form(*parts: bytes, end: bytes = b"--\r\n") -> bytes:
    return b"".join(b"--XX\r\n" + part + b"\r\n" for part in parts) + b"--XX" + end


def field(name: str, value: bytes) -> bytes:
    return b'Content-Disposition: form-data; name="' + name.encode() + b'"\r\n\r\n' + value


def values(body: bytes, content_type: bytes = TYPE) -> dict[str, bytes]:
    return {name: body[start:end] for name, (start, end) in read_fields(body, content_type, WANTED).items()}


@given(
    st.permutations(["model", "file", "stream", "other"]),
    st.binary(max_size=30),
    st.text(st.characters(codec="utf-8", exclude_characters="\r\n"), max_size=8),
)
def test_order_and_contents_do_not_matter(order: list[str], blob: bytes, model: str) -> None:
    blob = blob.replace(b"XX", b"")
    parts = {
        "model": field("model", model.encode()),
        "stream": field("stream", b"true"),
        "file": FILE + blob,
        "other": field("prompt", b"\r\n--XY " + blob),
    }
    body = form(*(parts[name] for name in order))
    assert values(body) == {"model": model.encode(), "stream": b"true"}
    # As the standard library reads it.
    message = BytesParser(policy=email.policy.HTTP).parsebytes(b"Content-Type: " + TYPE + b"\r\n\r\n" + body)
    theirs = {part.get_param("name", header="content-disposition"): part for part in message.iter_parts()}
    assert theirs["stream"].get_payload(decode=True) == b"true"


@pytest.mark.parametrize(
    "head",
    [
        b'content-disposition: FORM-DATA; name="model"',
        b"Content-Disposition: form-data; name=model",
        b'Content-Disposition: form-data ; name = "model" ',
        b'Content-Type: text/plain\r\nContent-Disposition: form-data; name="model"',
        b'Content-Disposition: form-data; x="a; name=\\"file\\""; name="model"',
    ],
)
def test_spellings_of_a_name(head: bytes) -> None:
    assert values(form(head + b"\r\n\r\nm")) == {"model": b"m"}


@pytest.mark.parametrize(
    "part",
    [
        b'Content-Disposition: form-data; name="model"; filename="x"\r\n\r\nm',
        b"Content-Disposition: form-data; name=\"model\"; filename*=utf-8''x\r\n\r\nm",
        b'Content-Disposition: form-data; name="file"; filename="; name=\\"model\\""\r\n\r\nm',
        b'Content-Disposition: form-data; filename="; name=model"\r\n\r\nm',
        b'Content-Disposition: form-data; name="Model"\r\n\r\nm',
        b"Content-Disposition: form-data\r\n\r\nm",
        b"Content-Type: text/plain\r\n\r\nm",
        b"\r\nm",
    ],
)
def test_what_is_no_field_of_that_name(part: bytes) -> None:
    assert values(form(part)) == {}


def test_frames() -> None:
    part = field("model", b"m")
    assert values(b"a preamble\r\n" + form(part) + b"an epilogue") == {"model": b"m"}
    assert values(form(part), b'Multipart/Form-Data; charset=x; Boundary="XX"') == {"model": b"m"}
    assert values(form(part).replace(b"--XX\r\n", b"--XX \t\r\n")) == {"model": b"m"}
    assert values(form(field("model", b"a\r\n--XXY\r\nb"))) == {"model": b"a\r\n--XXY\r\nb"}
    assert values(form(field("model", b""))) == {"model": b""}


def test_a_mapped_file() -> None:
    body = form(FILE + b"\0" * 100_000, field("model", b"whisper-1"))
    with tempfile.TemporaryFile() as file:
        file.write(body)
        file.flush()
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as view:
            (start, end) = read_fields(view, TYPE, WANTED)["model"]
            assert view[start:end] == b"whisper-1"


@pytest.mark.parametrize(
    ("body", "content_type", "reason"),
    [
        (form(field("model", b"a")), b"multipart/form-data", "no boundary"),
        (b"nothing", TYPE, "does not occur"),
        (form(field("model", b"a"), end=b""), TYPE, "does not end"),
        (b"--XX\r\n" + field("model", b"a"), TYPE, "does not end"),
        (b"--XXjunk\r\n" + form(), TYPE, "followed by something else"),
        (form(field("model", b"a"), field("model", b"a")), TYPE, "occurs twice"),
        (form(field("model", b"a" * 9000)), TYPE, "too long"),
        (form(b"Content-Disposition: form-data; name=model"), TYPE, "no end of its header"),
        (form(b"X: " + b"y" * 20_000 + b"\r\n\r\n"), TYPE, "no end of its header"),
        (form(b'Content-Disposition: form-data; name="a"; name="model"\r\n\r\nm'), TYPE, "parameter twice"),
        (form(b'Content-Disposition: form-data; name="mod\r\n\r\nm'), TYPE, "cannot be read"),
        (
            form(b"Content-Disposition: form-data; name=a\r\nContent-Disposition: form-data; name=model\r\n\r\nm"),
            TYPE,
            "not one plain disposition",
        ),
        (form(b"Content-Disposition : form-data; name=model\r\n\r\nm"), TYPE, "not one plain disposition"),
        (form(b"Content-Disposition: form-data;\r\n name=model\r\n\r\nm"), TYPE, "cannot be read"),
        (form(*[field("x", b"")] * 1001), TYPE, "more than 1000 parts"),
    ],
)
def test_refused_with_its_reason(body: bytes, content_type: bytes, reason: str) -> None:
    with pytest.raises(Refusal, match=reason) as caught:
        read_fields(body, content_type, WANTED)
    assert caught.value.kind is RefusalKind.MALFORMED


def test_a_thousand_parts_are_allowed() -> None:
    assert multipart.MAX_PARTS == 1000
    assert values(form(*[field("x", b"")] * 998, field("model", b"m"))) == {"model": b"m"}


@given(st.binary(max_size=80), st.binary(max_size=40))
def test_nothing_but_refusals(noise: bytes, more: bytes) -> None:
    for body in (noise, form(noise), form(field("model", noise)) + more, b"--XX\r\n" + noise + b"\r\n--XX" + more):
        for content_type in (TYPE, b"multipart/form-data; boundary=" + more):
            try:
                found = read_fields(body, content_type, WANTED)
            except Refusal:
                continue
            assert all(0 <= start <= end <= len(body) for start, end in found.values())
