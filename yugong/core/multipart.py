"""Multipart forms: the small fields of a body that may be hundreds of megabytes.

Rules. Only what is asked for is read, the rest is skipped by searching for the delimiter (RFC 2046 §5.1.1, RFC 7578).
Readers of forms disagree on broken ones, so a form that is not well-formed, or that names a field twice, is refused
rather than guessed at: what was read is what upstream reads. Works on bytes and on a mapped file alike.
"""

from __future__ import annotations

import re
from mmap import mmap

from yugong.base.errors import Refusal, RefusalKind

#: Parts in one form, header bytes in one part, bytes in a field that is read.
MAX_PARTS = 1000
MAX_PART_HEAD = 16 * 1024
MAX_FIELD = 8 * 1024

#: RFC 2046 §5.1.1: at most 70 characters; some clients make longer ones.
_BOUNDARY = re.compile(rb';\s*boundary=(?:"([^"\r\n]{1,200})"|([^\s;",]{1,200}))', re.IGNORECASE)
_DISPOSITION = re.compile(rb"^content-disposition:[ \t]*form-data[ \t]*(.*)$", re.IGNORECASE | re.MULTILINE)
_PARAMETER = re.compile(rb';[ \t]*([^\s=;"]{1,64})[ \t]*=[ \t]*(?:"((?:[^"\\]|\\.)*+)"|([^\s;"]*))[ \t]*')
_PADDING = re.compile(rb"[ \t]*\r\n")


def read_fields(body: bytes | mmap, content_type: bytes, wanted: frozenset[str]) -> dict[str, tuple[int, int]]:
    """Where the values of the `wanted` fields stand in `body`: name to (start, end).

    Raises `Refusal` MALFORMED for a form that is not well-formed, or names a wanted field twice.
    """
    match = _BOUNDARY.search(content_type)
    if match is None:
        raise _malformed("its content type names no boundary")
    delimiter = b"\r\n--" + (match[1] or match[2])
    at = _first_part(body, delimiter)
    found: dict[str, tuple[int, int]] = {}
    for _ in range(MAX_PARTS):
        if body[at : at + 2] == b"--":
            return found
        padding = _PADDING.match(body, at)
        if padding is None:
            raise _malformed("a delimiter is followed by something else")
        start = padding.end()
        end, after = _next_delimiter(body, delimiter, start)
        head_end = body.find(b"\r\n\r\n", start - 2, min(start + MAX_PART_HEAD, end))
        if head_end < 0:
            raise _malformed("a part has no end of its header")
        name = _field_name(body[start:head_end])
        if name is not None and name in wanted:
            if name in found:
                raise _malformed(f"field {name!r} occurs twice")
            if end - head_end - 4 > MAX_FIELD:
                raise _malformed(f"field {name!r} is too long")
            found[name] = (head_end + 4, end)
        at = after
    raise _malformed(f"it has more than {MAX_PARTS} parts")


def _first_part(body: bytes | mmap, delimiter: bytes) -> int:
    """Behind the first delimiter; a preamble before it is skipped."""
    if body[: len(delimiter) - 2] == delimiter[2:]:
        return len(delimiter) - 2
    at = body.find(delimiter)
    if at < 0:
        raise _malformed("its boundary does not occur")
    return at + len(delimiter)


def _next_delimiter(body: bytes | mmap, delimiter: bytes, start: int) -> tuple[int, int]:
    """(end of the part, behind the delimiter). A longer boundary that begins with ours is no delimiter."""
    at = body.find(delimiter, start - 2)
    while at >= 0:
        after = at + len(delimiter)
        if body[after : after + 2] == b"--" or _PADDING.match(body, after):
            return at, after
        at = body.find(delimiter, after)
    raise _malformed("its last part does not end")


def _field_name(head: bytes) -> str | None:
    """The part's name; None for a file, or a part that names none. Parameters are read in order, so a `name=` inside a
    quoted file name is not one."""
    dispositions = _DISPOSITION.findall(head.replace(b"\r\n", b"\n"))
    # Counted loosely too: a spelling that only other readers take for a disposition must not hide a field from us.
    if len(dispositions) > 1 or len(dispositions) != head.lower().count(b"content-disposition"):
        raise _malformed("a part has not one plain disposition")
    if not dispositions:
        return None
    rest: bytes = dispositions[0]
    names: dict[bytes, bytes] = {}
    at = 0
    while match := _PARAMETER.match(rest, at):
        parameter = match[1].lower()
        if parameter in names:
            raise _malformed("a part has a parameter twice")
        names[parameter] = match[3] if match[2] is None else match[2].replace(b'\\"', b'"')
        at = match.end()
    if rest[at:].strip():
        raise _malformed("a part's disposition cannot be read")
    if b"filename" in names or b"filename*" in names or b"name" not in names:
        return None
    return names[b"name"].decode("utf-8", "replace")


def _malformed(what: str) -> Refusal:
    return Refusal(RefusalKind.MALFORMED, f"The multipart body is malformed: {what}.")
