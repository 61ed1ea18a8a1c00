"""Bodies: taken in whole whatever their size, and forms read alike from memory and from disk."""

import asyncio
import contextlib
import gzip
import hashlib
import os
from pathlib import Path

import pytest
from aiohttp import StreamReader
from aiohttp.base_protocol import BaseProtocol
from hypothesis import given
from hypothesis import strategies as st

from yugong.emulator import body as body_module
from yugong.emulator.body import Body, BodyError, form_of, parts_of, take_body

KIND = 'multipart/form-data; boundary="b0und"'
contents = st.lists(st.binary(max_size=60).filter(lambda data: b"\r\n--b0und" not in b"\r\n" + data), max_size=5)


def form(parts: list[bytes]) -> bytes:
    made = b""
    for i, data in enumerate(parts):
        made += b'--b0und\r\nContent-Disposition: form-data; name="p%d"; filename="f%d"\r\n\r\n%b\r\n' % (i, i, data)
    return made + b"--b0und--\r\n"


def in_memory(data: bytes) -> Body:
    return Body(data, "", hashlib.sha256(data).hexdigest(), len(data))


@given(contents, st.integers(8, 64))
def test_forms_read_alike_from_memory_and_disk(parts: list[bytes], window: int) -> None:
    data = form(parts)
    handle, path = body_module.tempfile.mkstemp()
    os.write(handle, data)
    os.close(handle)
    spooled = Body(None, path, "", len(data))
    whole = body_module.WINDOW
    try:
        found = parts_of(in_memory(data), KIND)
        assert [data[part.start : part.end] for part in found] == parts
        body_module.WINDOW = 1 << 20 if window == 64 else 100 + window  # small windows, so that needles straddle them
        assert parts_of(spooled, KIND) == found
        assert [b"".join(spooled.pieces(part.start, part.end)) for part in found] == parts
    finally:
        body_module.WINDOW = whole
        spooled.forget()
    assert not os.path.exists(path)


@given(st.binary(max_size=200))
def test_anything_else_is_refused_properly(data: bytes) -> None:
    with contextlib.suppress(BodyError):  # and nothing else
        form_of(in_memory(b"--b0und\r\n" + data), KIND)


def test_fields_and_files() -> None:
    data = (
        b'--b0und\r\nContent-Disposition: form-data; name="include[]"\r\n\r\nlogprobs\r\n'
        b'--b0und\r\ncontent-disposition: form-data; name="file"; filename="a \\"b\\".wav"\r\n'
        b"Content-Type: audio/wav\r\n\r\nRIFF\r\n--b0und--"
    )
    texts, files = form_of(in_memory(data), KIND)
    assert texts == {"include": "logprobs"}
    assert (files["file"].filename, files["file"].content_type) == ('a "b".wav', "audio/wav")


@pytest.mark.parametrize(
    ("kind", "data"), [("multipart/form-data", b"--b0und--"), (KIND, b"x"), (KIND, b"--b0und\r\nA: b\r\n")]
)
def test_forms_that_are_none(kind: str, data: bytes) -> None:
    with pytest.raises(BodyError):
        parts_of(in_memory(data), kind)


async def taken(data: bytes, length: int | None, folder: Path, limits: tuple[int, int]) -> Body:
    loop = asyncio.get_running_loop()
    reader = StreamReader(BaseProtocol(loop), 2**16, loop=loop)
    for at in range(0, len(data), 100):
        reader.feed_data(data[at : at + 100])
    reader.feed_eof()
    return await take_body(reader, length, str(folder), limits)


@pytest.mark.parametrize("size", [0, 1, 99, 100, 101, 5000])
@pytest.mark.parametrize("declared", [True, False])
async def test_small_in_memory_large_on_disk(tmp_path: Path, size: int, declared: bool) -> None:
    data = os.urandom(size)
    body = await taken(data, size if declared else None, tmp_path, (100, 10_000))
    assert (body.size, body.sha256) == (size, hashlib.sha256(data).hexdigest())
    assert body.read(0, size) == data
    assert bool(body.path) == (size > 100)
    body.forget()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("declared", [True, False])
async def test_too_large_is_refused_and_leaves_nothing(tmp_path: Path, declared: bool) -> None:
    with pytest.raises(BodyError) as told:
        await taken(b"x" * 5000, 5000 if declared else None, tmp_path, (100, 4000))
    assert told.value.status == 413
    assert list(tmp_path.iterdir()) == []


def test_codings() -> None:
    packed = in_memory(gzip.compress(b'{"a":1}'))
    assert packed.decoded("gzip") == b'{"a":1}'
    for coding, status in (("br", 415), ("deflate", 400)):
        with pytest.raises(BodyError) as told:
            in_memory(b"none of it").decoded(coding)
        assert told.value.status == status
    bomb = in_memory(gzip.compress(bytes(body_module.MAX_DECODED + 1), 1))
    with pytest.raises(BodyError) as told:
        bomb.decoded("gzip")
    assert told.value.status == 413
