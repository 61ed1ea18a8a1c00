"""The body of a request: taken in with its digest, in memory when small, else spooled; and what multipart holds.

Memory is flat whatever the size: a spooled body is hashed and written as it comes and searched in windows. Bodies are
taken as they are on the wire (no decompression); `decoded` undoes a content coding when a handler wants to read.
"""

import hashlib
import os
import re
import tempfile
import zlib
from collections.abc import Iterator
from typing import NamedTuple

from aiohttp import StreamReader

WINDOW = 1 << 20
MAX_DECODED = 64 << 20
MAX_PARTS = 1000


class BodyError(ValueError):
    """A body that is too large or cannot be read as what it says it is. `status` is what to answer."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Body:
    """A whole request body: `data` when in memory, else a file at `path`."""

    __slots__ = ("data", "kept", "path", "sha256", "size")

    def __init__(self, data: bytes | None, path: str, sha256: str, size: int) -> None:
        self.data = data
        self.path = path
        self.kept = False
        self.sha256 = sha256
        self.size = size

    def __repr__(self) -> str:
        return f"<Body {self.size} bytes {self.sha256[:8]}{' spooled' if self.path else ''}>"

    def read(self, start: int, end: int) -> bytes:
        if self.data is not None:
            return self.data[start:end]
        with open(self.path, "rb") as file:
            file.seek(start)
            return file.read(max(0, end - start))

    def find(self, needle: bytes, start: int) -> int:
        """Where `needle` next stands, or -1."""
        if self.data is not None:
            return self.data.find(needle, start)
        overlap = len(needle) - 1
        with open(self.path, "rb") as file:
            while start < self.size:
                file.seek(start)
                found = file.read(WINDOW + overlap).find(needle)
                if found >= 0:
                    return start + found
                start += WINDOW
        return -1

    def digest(self, start: int, end: int) -> str:
        """SHA-256 of a part, in hex."""
        made = hashlib.sha256()
        for piece in self.pieces(start, end):
            made.update(piece)
        return made.hexdigest()

    def pieces(self, start: int, end: int) -> Iterator[bytes]:
        """A part, window by window."""
        if self.data is not None:
            yield self.data[start:end]
            return
        with open(self.path, "rb") as file:
            file.seek(start)
            for at in range(start, end, WINDOW):
                yield file.read(min(WINDOW, end - at))

    def decoded(self, coding: str) -> bytes:
        """The body with `content-encoding` undone; raises BodyError."""
        if self.size > MAX_DECODED:
            raise BodyError(413, "too large to read as JSON")
        data = self.read(0, self.size)
        if not coding or coding == "identity":
            return data
        if coding not in ("gzip", "deflate"):
            raise BodyError(415, f"content-encoding {coding} is not known here")
        unpack = zlib.decompressobj(wbits=zlib.MAX_WBITS | 32)  # 32: gzip or zlib, by its header
        try:
            plain = unpack.decompress(data, MAX_DECODED)
        except zlib.error as error:
            raise BodyError(400, f"content-encoding {coding}: {error}") from None
        if unpack.unconsumed_tail:
            raise BodyError(413, "too large to read as JSON")
        return plain

    def keep(self) -> "Body":
        """Let the spool file live on after its attempt, until `release`."""
        self.kept = True
        return self

    def release(self) -> None:
        """Let go of a kept body. A reader that has it open reads on."""
        self.kept = False
        self.forget()

    def forget(self) -> None:
        """Remove the spool file, unless it is kept."""
        if self.path and not self.kept:
            try:
                os.unlink(self.path)
            except FileNotFoundError:
                pass


EMPTY = Body(b"", "", hashlib.sha256(b"").hexdigest(), 0)


async def take_body(content: StreamReader, length: int | None, folder: str, limits: tuple[int, int]) -> Body:
    """Take a body in. `limits` = (bytes kept in memory, bytes at most); raises BodyError 413."""
    memory, most = limits
    if length == 0 or content.at_eof():
        return EMPTY
    if length is not None and length <= memory:
        data = await content.read()
        return Body(data, "", hashlib.sha256(data).hexdigest(), len(data))
    if length is not None and length > most:
        raise BodyError(413, "Request exceeds the maximum size.")
    digest = hashlib.sha256()
    kept: list[bytes] = []
    size = 0
    while size <= memory:
        piece = await content.readany()
        if not piece and content.at_eof():
            return Body(b"".join(kept), "", digest.hexdigest(), size)
        kept.append(piece)
        digest.update(piece)
        size += len(piece)
    return await _spool(content, b"".join(kept), folder, most)


async def _spool(content: StreamReader, first: bytes, folder: str, most: int) -> Body:
    digest = hashlib.sha256(first)
    size = len(first)
    if size > most:
        raise BodyError(413, "Request exceeds the maximum size.")
    handle, path = tempfile.mkstemp(dir=folder, prefix="body-")
    whole = False
    try:
        with open(handle, "wb", buffering=0) as file:  # noqa: ASYNC230 — page cache, 1 MiB at most a turn
            file.write(first)
            while piece := await content.readany():
                size += len(piece)
                if size > most:
                    raise BodyError(413, "Request exceeds the maximum size.")
                digest.update(piece)
                file.write(piece)
        whole = True
    finally:
        if not whole:
            os.unlink(path)
    return Body(None, path, digest.hexdigest(), size)


class Part(NamedTuple):
    """One part of a multipart body: where its content stands in the body."""

    name: str
    filename: str | None
    content_type: str
    start: int
    end: int


_PARAMETER = re.compile(r';\s*([\w*-]+)="((?:[^"\\]|\\.)*)"|;\s*([\w*-]+)=([^;"\s]+)')


def parts_of(body: Body, content_type: str) -> list[Part]:
    """The parts of a `multipart/form-data` body; raises BodyError."""
    boundary = _parameters(content_type).get("boundary")
    if not boundary:
        raise BodyError(400, "multipart without a boundary")
    delimiter = b"\r\n--" + boundary.encode("latin-1", "replace")
    first = delimiter[2:]
    if body.read(0, len(first)) != first:
        raise BodyError(400, "multipart does not start with its boundary")
    found: list[Part] = []
    at = len(first)
    while body.read(at, at + 2) != b"--":
        head_end = body.find(b"\r\n\r\n", at)
        end = body.find(delimiter, head_end + 2) if head_end >= 0 else -1
        if end < 0 or len(found) >= MAX_PARTS or head_end - at > WINDOW:
            raise BodyError(400, "multipart is cut short or has too many parts")
        found.append(_part(body.read(at + 2, head_end), head_end + 4, end))
        at = end + len(delimiter)
    return found


def _part(head: bytes, start: int, end: int) -> Part:
    name, filename, content_type = "", None, "text/plain"
    for line in head.decode("utf-8", "replace").split("\r\n"):
        field, _, value = line.partition(":")
        if field.strip().lower() == "content-disposition":
            parameters = _parameters(value)
            name, filename = parameters.get("name", ""), parameters.get("filename")
        elif field.strip().lower() == "content-type":
            content_type = value.strip()
    return Part(name, filename, content_type, start, max(start, end))


def _parameters(value: str) -> dict[str, str]:
    return {
        (quoted_name or name).lower(): re.sub(r"\\(.)", r"\1", quoted) if quoted_name else plain
        for quoted_name, quoted, name, plain in _PARAMETER.findall(value)
    }


def form_of(body: Body, content_type: str) -> tuple[dict[str, str], dict[str, Part]]:
    """A form's text fields by name (the last wins; `name[]` is `name`) and its files by name; raises BodyError."""
    texts: dict[str, str] = {}
    files: dict[str, Part] = {}
    for part in parts_of(body, content_type):
        name = part.name.removesuffix("[]")
        if part.filename is not None:
            files[name] = part
        elif part.end - part.start <= WINDOW:
            texts[name] = body.read(part.start, part.end).decode("utf-8", "replace")
    return texts, files
