"""JSON as clients and upstreams write it: read strictly, edited without being rewritten.

Rules. What is accepted here means the same to every parser: no repeated member, no NaN or infinity, no number outside
a double, no lone surrogate, no invalid UTF-8, no byte order mark, nothing behind the document, at most 254 levels
(what orjson writes; threat 52). What was read is forwarded byte for byte; an edit replaces a span of bytes and leaves
the rest as it came. This file knows no dialect.
"""

from __future__ import annotations

import json
import re
from mmap import mmap

import orjson

from yugong.base.errors import Refusal, RefusalKind

#: The largest document that is read whole. A body over it that has to be read is refused.
MAX_DOCUMENT = 64 * 1024 * 1024

_PIECE = 1024 * 1024
_SPACE = b" \t\r\n"
#: Places `object_after` looks at: a hostile document could hold thousands.
_TRIES = 4
#: Arrays and objects of one document: 27 MB of `[],[],…` held a worker for 10 s, most of it the collector (measured).
MAX_CONTAINERS = 250_000
#: A quotation mark written as an escape (not the text `\\u0022`).
_ESCAPED_QUOTE = re.compile(rb"(?<!\\)(?:\\\\)*+\\u0022")
_TOKEN = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"|[{}\[\],]|[^\s"{}\[\],:]++', re.DOTALL)
_COLON = re.compile(rb"\s*:\s*")


class Invalid(ValueError):
    """Not JSON as this file accepts it; the message names the reason."""


class Repeated(Invalid):
    """JSON, but with a member that occurs twice: parsers disagree on what it says."""


def parse(body: bytes | mmap) -> object:
    """The document. Raises `Invalid`, `Repeated`, or `Refusal` TOO_LARGE over `MAX_DOCUMENT`."""
    if len(body) > MAX_DOCUMENT:
        raise Refusal(RefusalKind.TOO_LARGE, f"JSON bodies are limited to {MAX_DOCUMENT} bytes")
    if len(body) > _PIECE and _count(body, b"[") + _count(body, b"{") > MAX_CONTAINERS:
        raise Refusal(RefusalKind.TOO_LARGE, f"JSON bodies are limited to {MAX_CONTAINERS} arrays and objects")
    try:
        if type(body) is bytes:
            document = orjson.loads(body)
        else:
            with memoryview(body) as view:
                document = orjson.loads(view)
    except orjson.JSONDecodeError as error:
        raise Invalid(str(error)) from None
    # Parsing drops repeated members. So nothing was repeated if the document written anew is the body (the SDKs write
    # compactly), and else exactly if both have the same number of quotation marks, of which a name takes two.
    try:
        rewritten = orjson.dumps(document)
    except orjson.JSONEncodeError:
        raise Invalid("nested too deeply") from None
    if rewritten != body and _count_quotes(body) != rewritten.count(b'"'):
        raise Repeated(f"member {_first_repeated(body)} occurs twice in one object")
    return document


def _count(body: bytes | mmap, byte: bytes) -> int:
    if type(body) is bytes:
        return body.count(byte)
    return sum(body[at : at + _PIECE].count(byte) for at in range(0, len(body), _PIECE))


def _count_quotes(body: bytes | mmap) -> int:
    """Quotation marks, those written as an escape included."""
    count = _count(body, b'"')
    if body.find(b"\\") >= 0 and body.find(b"\\u0022") >= 0:
        count += sum(1 for _ in _ESCAPED_QUOTE.finditer(body))
    return count


def _first_repeated(body: bytes | mmap) -> str:
    """The name of a repeated member, for the message; a general word where the document is too deep to look."""

    def check(pairs: list[tuple[str, object]]) -> None:
        seen: set[str] = set()
        for name, _ in pairs:
            if name in seen and not found:
                found.append(name)
            seen.add(name)

    found: list[str] = []
    try:
        json.loads(bytes(body), object_pairs_hook=check)
    except (RecursionError, ValueError):  # pathological depth, or an integer of thousands of digits
        pass
    return json.dumps(found[0][:64]) if found else "name"


def find_member(body: bytes | mmap, name: str, start: int = 0) -> tuple[int, int, int] | None:
    """(member start, value start, value end) of member `name` of the object that begins at or after `start`.

    `body` must have passed `parse`. None if the object has no such member, or the document is no object.
    """
    plain = b'"' + name.encode() + b'"'
    depth = 0
    key_at = value_at = -1
    is_key = False
    for token in _TOKEN.finditer(body, start):
        first = body[token.start()]
        opens = first in b"{["
        if value_at >= 0 and depth == 1 and not opens:
            return key_at, value_at, token.end()
        if opens:
            depth += 1
            is_key = depth == 1 and first == 123
            if depth == 1 and not is_key:
                return None
        elif first in b"}]":
            depth -= 1
            if depth == 1 and value_at >= 0:
                return key_at, value_at, token.end()
            if depth == 0:
                return None
        elif first == 44:
            is_key = depth == 1
        elif is_key:
            is_key = False
            text = token.group()
            if text == plain or (b"\\" in text and _is_name(text, name)):
                key_at = token.start()
                value_at = _after_colon(body, token.end())
    return None


def _is_name(text: bytes, name: str) -> bool:
    """Whether a member's name, written with escapes, is `name`; a fragment that is no string is not."""
    try:
        return bool(orjson.loads(text) == name)
    except orjson.JSONDecodeError:
        return False


def _after_colon(body: bytes | mmap, at: int) -> int:
    match = _COLON.match(body, at)
    return match.end() if match else at


def splice(body: bytes | mmap, start: int, end: int, new: bytes) -> bytes:
    """`body` with bytes `start`–`end` replaced."""
    return body[:start] + new + body[end:]


def remove_member(document: bytes, name: str) -> bytes:
    """`document` (that passed a parser) without member `name` of its outermost object, its comma included."""
    found = find_member(document, name)
    if found is None:
        return document
    start, _, end = found
    before = document[:start].rstrip(_SPACE)
    if before.endswith(b","):
        return before[:-1] + document[end:]
    after = document[end:].lstrip(_SPACE)
    if after.startswith(b","):
        return document[:start] + after[1:].lstrip(_SPACE)
    return document[:start] + document[end:]


def object_after(text: bytes, name: bytes) -> dict[str, object] | None:
    """The last object that is the value of a member called `name` in a piece of a document; None if there is none.

    For documents of which only an end was kept: whether the member is the outermost one is not known.
    """
    quoted = b'"' + name + b'"'
    at = len(text)
    for _ in range(_TRIES):
        at = text.rfind(quoted, 0, at)
        if at < 0:
            break
        value_at = _after_colon(text, at + len(name) + 2)
        try:
            value, _ = _DECODER.raw_decode(text[value_at:].decode("utf-8", "replace"))
        except (ValueError, RecursionError):
            value = None
        if isinstance(value, dict):
            return value
    return None


_DECODER = json.JSONDecoder()
