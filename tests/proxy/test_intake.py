"""What is let in, and as what (threats 25–27, 38, 39, 41, 42, 47): heads as aiohttp's own C parser gives them."""

import asyncio
import gzip
import zlib
from collections.abc import Iterator

import pytest
from aiohttp.base_protocol import BaseProtocol
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.http_parser import HttpRequestParser
from hypothesis import given
from hypothesis import strategies as st

from yugong.base.errors import Refusal, RefusalKind
from yugong.base.headers import HOP_BY_HOP, NOT_UPSTREAM
from yugong.core.settings import Intake
from yugong.proxy import intake

LIMITS = Intake()
AUTH = "Authorization: Bearer sk-1"


@pytest.fixture(scope="module", autouse=True)
def loop() -> Iterator[None]:
    global LOOP
    LOOP = asyncio.new_event_loop()
    yield
    LOOP.close()


LOOP: asyncio.AbstractEventLoop


def parse(data: bytes) -> intake.Message:
    parser = HttpRequestParser(BaseProtocol(LOOP), LOOP, 65536, max_line_size=16384, max_headers=128)
    messages, _, _ = parser.feed_data(data)
    return messages[0][0]


def take(*lines: str | bytes, start: str | bytes = "GET /v1/models HTTP/1.1", host: str = "Host: a") -> intake.Call:
    """The head of these lines, taken in."""
    first = start if isinstance(start, bytes) else start.encode()
    rest = [line if isinstance(line, bytes) else line.encode() for line in ((host,) if host else ()) + lines]
    message = parse(b"\r\n".join([first, *rest, b"", b""]))
    return intake.read_head(message, LIMITS, intake.sort_fields(message.raw_headers))


def refused(*lines: str | bytes, kind: RefusalKind = RefusalKind.MALFORMED, **how: str) -> None:
    with pytest.raises(Refusal) as caught:
        take(*lines, **how)
    assert caught.value.kind is kind
    assert caught.value.close or kind is RefusalKind.INVALID_KEY


# -- the request line (threats 26, 27) --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path",
    "/v1/models /v1/models?a=b/../c /v1/files/a.b /v1/files/..a /v1/a%20b /v1/%E4%BD%A0 /v1/x?y=%2e%2e//z "
    "/v1/models/ft:gpt-4o:org::id /v1/a;b=c /v1/a%25b /v1/...".split(),
)
def test_a_path_with_one_meaning_comes_through_raw(path: str) -> None:
    call = take(start=f"GET {path} HTTP/1.1")
    assert call.target == path
    assert call.path == path.split("?", maxsplit=1)[0]


@pytest.mark.parametrize(
    "path",
    "/v1/../admin /v1/./models /v1/.. /v1/. /v1/%2e%2e/admin /v1/%2E%2e/admin /v1/.%2e/admin /v1/%2e /v1//models "
    "/v1/%2f../x /v1%2f..%2fadmin /v1/a%00 /v1/a\\b /v1/a%5cb /v1/a%5Cb /v1/%252e%252e/x /v1/%252fx /v1/%255c "
    "/v1/%2500 /v1/%2525 //v1/models http://evil/v1/models https://evil/v1/models * v1/models /v1/a#b "
    "/v1/\xe9 /v1/x?\xe9 /v1/x?a#b".split(),
)
def test_a_path_with_two_meanings_is_refused(path: str) -> None:
    try:
        refused(start=f"GET {path} HTTP/1.1")
    except HttpProcessingError:
        pass  # the parser would not have it either: the listener answers 400


@given(st.text("/.%2eEfF5cC0a?#\\ \x00\xe9", max_size=12))
def test_a_path_let_in_has_no_second_reading(tail: str) -> None:
    target = "/v1/" + tail
    try:
        call = take(start=f"GET {target} HTTP/1.1".encode("latin-1"))
    except (Refusal, HttpProcessingError):
        return
    assert call.target == target.rstrip(" ")  # blanks before the version are not of the path (RFC 9112 §3)
    read = call.path.replace("%2e", ".").replace("%2E", ".").replace("%2f", "/").replace("%2F", "/")
    assert not {".", ".."} & set(read.split("/"))
    assert "//" not in call.path and "\\" not in read and "%5c" not in read.lower() and "%00" not in read
    assert call.target.isascii() and call.target.isprintable() and not {" ", "#"} & set(call.target)


@given(st.text("ab/.%2e", max_size=8))
def test_a_judgement_does_not_change_with_the_asking(tail: str) -> None:
    known = intake.Known(intake._BAD_PATH, is_allowed=False)
    assert known.has("/v1/" + tail) is known.has("/v1/" + tail) is intake._PATHS.has("/v1/" + tail)


def test_what_is_known_is_bounded() -> None:
    known = intake.Known(intake._BAD_PATH, is_allowed=False)
    assert all(known.has(f"/v1/{number}") for number in range(3 * intake._KNOWN_MAX))
    assert not known.has("/v1/../x")
    assert repr(known) == f"<Known {intake._KNOWN_MAX}>"


@pytest.mark.parametrize("version", ["HTTP/2.0", "HTTP/0.9"])
def test_only_http_1_is_spoken(version: str) -> None:
    refused(AUTH, start=f"GET /v1/models {version}")


def test_a_request_line_without_a_version_is_refused() -> None:
    refused(AUTH, start="GET /v1/models")


# -- Host (threat 25) -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["a", "a.b:80", "127.0.0.1:1", "[::1]", "[::1]:8080", "a_b-c"])
def test_a_host_is_taken(host: str) -> None:
    assert take(host=f"Host: {host}").fields.host == host.encode()


@pytest.mark.parametrize(
    "host", ["a/b?c#@d", "a@b", "a b", "a:", "a:b", "a:123456", "[::1", "::1", "", "a,b", "é", "a\tb"]
)
def test_a_host_that_is_none_is_refused(host: str) -> None:
    refused(host=f"Host: {host}")


def test_a_host_is_due_once_from_http_1_1_on() -> None:
    with pytest.raises(HttpProcessingError):
        take(host="")
    with pytest.raises(Refusal):  # should the parser ever let it through
        intake.read_head(parse(b"GET /v1/a HTTP/1.1\r\nHost: a\r\n\r\n"), LIMITS, intake.sort_fields(()))
    with pytest.raises(Refusal):
        intake.sort_fields(((b"Host", b"a"), (b"host", b"a")))
    assert take(host="", start="GET /v1/models HTTP/1.0").fields.host == b""


# -- credentials (threat 39) ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "line",
    ["Authorization: Bearer sk-1", "authorization: bearer  sk-1", "api-key: sk-1", "X-Api-Key: sk-1",
     "x-goog-api-key: sk-1", "Sec-WebSocket-Protocol: realtime, openai-insecure-api-key.sk-1"],
)  # fmt: skip
def test_a_key_is_found_wherever_clients_put_it_and_goes_no_further(line: str) -> None:
    fields = take(line, "X-A: 1").fields
    assert fields.presented == b"sk-1"
    assert fields.joined == b"X-A: 1\r\n"
    assert all(b"sk-1" not in protocol for protocol in fields.protocols)


def test_two_keys_are_refused_and_one_said_twice_is_one() -> None:
    with pytest.raises(Refusal):
        intake.sort_fields(((b"Authorization", b"Bearer sk-1"), (b"Authorization", b"Bearer sk-2")))
    refused("api-key: sk-1", "Authorization: Bearer sk-2")
    refused("api-key: sk-2", "Sec-WebSocket-Protocol: openai-insecure-api-key.sk-1")
    assert take(AUTH, "x-api-key: sk-1").fields.presented == b"sk-1"


@pytest.mark.parametrize("value", ["Basic eDp5", "Bearer", "sk-1", "Token sk-1"])
def test_an_authorization_of_another_kind_is_told(value: str) -> None:
    refused(f"Authorization: {value}", kind=RefusalKind.INVALID_KEY)


# -- headers that end here (threats 41, 42) ---------------------------------------------------------------------------


@given(
    st.lists(st.sampled_from([*sorted(HOP_BY_HOP | NOT_UPSTREAM), b"x-a", b"X-B", b"accept"]), max_size=12), st.data()
)
def test_what_never_goes_upstream_does_not(names: list[bytes], data: st.DataObject) -> None:
    values = {b"host": b"a", b"expect": b"100-continue", b"x-yugong-max-wait": b"1", b"connection": b"keep-alive",
              b"transfer-encoding": b"Chunked"}  # fmt: skip
    pairs = []
    for name in dict.fromkeys(names):
        cased = data.draw(st.sampled_from([name, name.title(), name.upper()]))
        pairs.append((cased, values.get(name.lower(), b"secret")))
    fields = intake.sort_fields(tuple(pairs))
    passed = [line.partition(b":")[0] for line in fields.joined.splitlines()]
    assert passed == [name for name, _ in pairs if name.lower() not in HOP_BY_HOP | NOT_UPSTREAM]


@given(
    st.permutations(
        [(b"X-A", b"1"), (b"Connection", b"x-a, Close"), (b"X-B", b"2"), (b"connection", b"X-C"), (b"x-c", b"3")]
    )
)
def test_what_connection_names_ends_here_in_any_order(pairs: list[tuple[bytes, bytes]]) -> None:
    assert intake.sort_fields(tuple(pairs)).joined == b"X-B: 2\r\n"


@pytest.mark.parametrize("name", ["Authorization", "host", "Content-Type", "content-length"])
def test_connection_cannot_take_out_what_is_relied_on(name: str) -> None:
    refused(AUTH, f"Connection: close, {name}")


def test_a_forwarded_address_is_kept_for_who_may_be_believed_and_not_passed_on() -> None:
    fields = take(
        "X-Forwarded-For: 1.1.1.1", "x-forwarded-for: 2.2.2.2", "X-Real-IP: 3.3.3.3", "Forwarded: for=4"
    ).fields
    assert fields.forwarded_for == b"1.1.1.1,2.2.2.2"
    assert fields.joined == b""


@pytest.mark.parametrize(
    "line",
    ["Expect: 200-ok", "x-yugong-max-wait: x", "x-yugong-max-wait: nan", "x-yugong-max-wait: -1",
     "x-yugong-max-wait: inf", "x-yugong-max-wait: 86401", "Transfer-Encoding: gzip, chunked", "Transfer-Encoding:"],
)  # fmt: skip
def test_what_cannot_be_meant_is_refused(line: str) -> None:
    refused(line)


@pytest.mark.parametrize("name", [b"Content-Type", b"Content-Encoding"])
def test_what_may_be_said_once_is_refused_twice(name: bytes) -> None:
    with pytest.raises(Refusal):
        intake.sort_fields(((name, b"a"), (name.lower(), b"a")))


_NAMES = st.text("abcXYZ-", min_size=1, max_size=6).map(lambda name: f"Q{name}".encode())
_VALUES = st.text("abc 12:;,\xe9", max_size=8).map(lambda value: value.strip().encode("latin-1"))


@given(st.lists(st.tuples(_NAMES, _VALUES), max_size=8))
def test_unknown_headers_go_upstream_as_they_came(pairs: list[tuple[bytes, bytes]]) -> None:
    expected = b"".join(b"%b: %b\r\n" % pair for pair in pairs)
    assert intake.sort_fields((*pairs, (b"Host", b"a"))).joined == expected


# -- the body's size --------------------------------------------------------------------------------------------------


def test_a_declared_body_is_measured_before_it_comes() -> None:
    start = "POST /v1/files HTTP/1.1"
    assert take(f"Content-Length: {LIMITS.body_max}", start=start).has_body
    assert not take("Content-Length: 0", start=start).has_body
    assert take("Transfer-Encoding: chunked", start=start).has_body
    refused(f"Content-Length: {LIMITS.body_max + 1}", start=start, kind=RefusalKind.TOO_LARGE)


@pytest.mark.parametrize("pack", [gzip.compress, zlib.compress])
def test_a_bomb_is_measured_by_what_it_becomes(pack: object) -> None:
    assert callable(pack)
    call = take("Content-Encoding: gzip", start="POST /v1/files HTTP/1.1")
    call.body = pack(b"x" * 10_000)
    assert intake.decoded(call, 10_000) == b"x" * 10_000
    for limit in (9_999, 1):
        with pytest.raises(Refusal) as caught:
            intake.decoded(call, limit)
        assert caught.value.kind is RefusalKind.TOO_LARGE


@given(st.binary(max_size=40), st.sampled_from([b"gzip", b"x-gzip", b"deflate", b"br", b"gzip, gzip"]))
def test_a_broken_coding_is_refused_and_nothing_else(body: bytes, coding: bytes) -> None:
    fields = intake.sort_fields(((b"Content-Encoding", coding),))
    call = intake.Call("POST", "/v1/files", (1, 1), fields)
    call.body = body
    with pytest.raises(Refusal):
        intake.decoded(call, 1_000)


# -- the bytes a head is known by -------------------------------------------------------------------------------------


@given(st.lists(st.tuples(_NAMES, _VALUES), max_size=5), st.integers(0, 2))
def test_equal_blocks_have_equal_fields(pairs: list[tuple[bytes, bytes]], length: int) -> None:
    lines = b"".join(b"%b: %b\r\n" % pair for pair in pairs)
    datas = [
        b"POST /v1/%b HTTP/1.1\r\nHost: a\r\n%bContent-Length: %d\r\n\r\n" % (path, lines, size)
        for path, size in ((b"a", length), (b"bb", 99))
    ]
    blocks, fields = [], []
    for data in datas:
        message = parse(data)
        blocks.append(intake.block_of(data, message))
        fields.append(intake.sort_fields(message.raw_headers).joined)
    assert blocks[0] and blocks[0] == blocks[1] and fields[0] == fields[1]


def test_a_head_that_does_not_begin_the_bytes_has_no_block() -> None:
    data = b"GET /v1/a HTTP/1.1\r\nHost: a\r\nX-A: 1\r\n\r\n"
    message = parse(data)
    assert intake.block_of(data, message)
    for at in range(1, len(data)):
        assert intake.block_of(data[at:], message) == b""
        assert intake.block_of(data[:at], message) == b""
    assert intake.block_of(b"GET /v1/b HTTP/1.1\r\nHost: a\r\nX-A: 1\r\n\r\n", message) == b""
    assert intake.block_of(b"GET /v1/a HTTP/1.1\r\nHost: a\r\n\r\n", message) == b""
