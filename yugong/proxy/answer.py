"""What reaches the client: an upstream answer passed on, an upstream error cleaned, or our own words.

Decides when an answer counts as one (I2): errors and pages are judged by the dialect, a JSON answer is kept until it is
whole, a stream until its first event is content. From the first byte on, whatever breaks is ended honestly (I3).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from yugong.base.errors import Fault, Penalty, Reach, Refusal, RefusalKind, Scope
from yugong.core.dialects.faults import redact
from yugong.core.framing import Kind
from yugong.proxy.relay import Collector, Relay, StreamHead, framing_line, status_line

if TYPE_CHECKING:
    from yugong.proxy.exchange import Exchange
    from yugong.upstream.head import Head
    from yugong.upstream.leg import Attempt

_JSON = b"application/json"
_EVENTS = b"text/event-stream"
_CLOSE = b"Connection: close\r\n"
_NOTHING: list[bytes] = []
_SECRET_MIN = 8  # bytes; what is shorter is no secret, and an answer may hold it by chance

#: Paths that need no key, and whether they ask for readiness. The keeper's own port tells more.
PROBES = {"/livez": False, "/readyz": True}


class Said:
    """What upstream said with a fault: it may have to be said to the client."""

    __slots__ = ("body", "head")

    def __init__(self, head: Head, body: bytes) -> None:
        self.head = head
        self.body = body

    def __repr__(self) -> str:
        return f"<Said {self.head.status} {len(self.body)}B>"

    def conceal(self, credentials: bytes) -> None:
        """Takes out what authenticated the attempt where upstream repeats it: a key may have any form (threat 7)."""
        for line in credentials.split(b"\r\n"):
            secret = line.rpartition(b" ")[2]
            if len(secret) < _SECRET_MIN:
                continue
            for form in (secret, secret.replace(b"/", b"\\/")):  # some write a slash as an escape
                self.body = self.body.replace(form, b"[redacted]")
                self.head.lines = [each.replace(form, b"[redacted]") for each in self.head.lines]


Outcome = tuple[Fault | None, Said | None]
_DONE: Outcome = (None, None)


async def take(exchange: Exchange, going: Attempt) -> Outcome:
    """Passes an answer on, or says what is wrong with it. Raises `WireFault` while no byte has reached the client."""
    head = going.head
    kind = head.content_type
    if head.status >= 400 or (kind.startswith(b"text/html") and _is_page(exchange)):
        return await _judge(exchange, going, head)
    exchange.tap = exchange.dialect.tap(exchange.intent, head.status, kind)
    if kind.startswith(_EVENTS):
        return await _take_stream(exchange, going, head)
    if _is_json(head) and head.status < 300 and head.kind is not Kind.NONE:
        return await _take_whole(exchange, going, head)
    if head.status == 200 and head.kind is Kind.NONE and exchange.intent.needs_model and exchange.method == "POST":
        return _broken("empty", f"a {head.status} without a body"), None
    return await _relay(exchange, going, head, [])


def _is_json(head: Head) -> bool:
    """Whether the body can be read as JSON: not JSON lines, not compressed against our asking."""
    if head.content_type != _JSON and head.content_type.partition(b";")[0].rstrip() != _JSON:
        return False
    return not any(line[:17].lower() == b"content-encoding:" for line in head.lines)


def _is_page(exchange: Exchange) -> bool:
    """Whether HTML is somebody's error page, and not what was asked for: a customer's own file, a path of its own."""
    assert exchange.call is not None
    return exchange.operation != "other" and not exchange.call.path.endswith("/content")


async def _judge(exchange: Exchange, going: Attempt, head: Head) -> Outcome:
    """An answer that is an error, or a page that is no answer."""
    if going.connection.is_done:
        body = going.connection.take_early()
    else:
        collector = Collector(going.connection, exchange.protocol.loop)
        await collector.wait()  # what is too large for an error is not read to its end
        body = b"".join(collector.pieces)
    fault = exchange.dialect.judge(head.status, head.pairs(), body)
    if fault is not None:
        if head.status == 409 and exchange.intent.needs_model:
            fault.is_retryable, fault.scope = True, Scope.MODEL  # there is no object to conflict over; SDKs try again
        return fault, Said(head, body)
    exchange.tap = exchange.dialect.tap(exchange.intent, head.status, head.content_type)
    _write_whole(exchange, head, body)
    return _DONE


async def _take_whole(exchange: Exchange, going: Attempt, head: Head) -> Outcome:
    """A JSON answer: kept until it is whole, so that a truncated one is tried again instead of passed on."""
    connection, tap = going.connection, exchange.tap
    assert tap is not None
    if connection.is_done:
        body = connection.take_early()
    else:
        collector = Collector(connection, exchange.protocol.loop)
        if not await collector.wait():
            return await _relay(exchange, going, head, collector.pieces)
        body = b"".join(collector.pieces)
    tap.feed(body)
    if not tap.is_complete():
        return _broken("malformed", f"a {head.status} of {len(body)} bytes that is not JSON"), None
    _write_whole(exchange, head, body)
    return _DONE


async def _take_stream(exchange: Exchange, going: Attempt, head: Head) -> Outcome:
    """An event stream: held until its first event is content, so that an error there is still tried again."""
    opening = StreamHead(going.connection, exchange.dialect, exchange.protocol.loop)
    fault = await opening.wait(exchange.setup.hold_first_event)
    if fault is not None:
        return fault, Said(head, b"".join(opening.pieces))
    early = opening.pieces
    del opening
    exchange.line.observer.stream_opened()
    try:
        return await _relay(exchange, going, head, early)
    finally:
        exchange.line.observer.stream_closed()


async def _relay(exchange: Exchange, going: Attempt, head: Head, early: list[bytes]) -> Outcome:
    """From here on bytes reach the client."""
    tap, protocol = exchange.tap, exchange.protocol
    assert tap is not None
    assert exchange.call is not None
    framing, is_chunked, must_close = framing_line(head, tap, exchange.call.version)
    if must_close:
        exchange.keeps_alive = False
    relay = Relay(protocol.client_transport(), tap, going.connection)
    _begin(exchange, head.status)
    protocol.relay = relay
    first = _answer_head(exchange, head, framing)
    exchange.let_go()
    head.let_go()
    try:
        broken = await relay.run(first, is_chunked, early)
    finally:
        protocol.relay = None
        exchange.bytes_out = relay.bytes_out
        exchange.usage = tap.usage()
    is_events = head.content_type.startswith(_EVENTS)
    if broken is None and (not is_events or tap.is_complete() or tap.has_failed()):
        relay.end()
        return _DONE
    fault = broken.to_fault() if broken is not None else _broken("truncated", "the stream lacks its end")
    _break(exchange, relay, fault, is_events=is_events)
    return _DONE


def _break(exchange: Exchange, relay: Relay, fault: Fault, *, is_events: bool) -> None:
    """The client has bytes and no more come: an error event and an end, or a closed connection (I3)."""
    exchange.reason = fault.kind
    exchange.keeps_alive = False
    exchange.line.observer.broken(fault.kind)
    if is_events and relay.can_append():
        refusal = Refusal(RefusalKind.BAD_UPSTREAM, "The upstream broke off in the middle of this answer.")
        relay.on_rest(exchange.dialect.stream_error(refusal, exchange.intent))
        relay.end()
    else:
        exchange.protocol.abort_after_writes()


def _broken(kind: str, detail: str) -> Fault:
    return Fault(kind, Scope.ORIGIN, status=200, penalty=Penalty.COUNT, reach=Reach.PARTIAL, detail=detail)


# -- our own writing --------------------------------------------------------------------------------------------------


def _begin(exchange: Exchange, status: int) -> None:
    exchange.status = status
    exchange.has_sent = True
    exchange.first_byte = exchange.line.leg.now() - exchange.started


def _write_whole(exchange: Exchange, head: Head, body: bytes) -> None:
    """Head and body in one write."""
    _begin(exchange, head.status)
    exchange.bytes_out = len(body)
    tap = exchange.tap
    assert tap is not None
    exchange.usage = tap.usage()
    if head.kind is Kind.NONE:
        assert exchange.call is not None
        framing = framing_line(head, tap, exchange.call.version)[0]
    else:
        framing = b"Content-Length: %d\r\n" % len(body)
    exchange.protocol.write(_answer_head(exchange, head, framing) + body)


def _answer_head(exchange: Exchange, head: Head, framing: bytes) -> bytes:
    links = _links_home(exchange, head) if head.links else _NOTHING
    close = b"" if exchange.keeps_alive else _CLOSE
    return b"".join(
        (status_line(head.status), *head.lines, *links, exchange.setup.extra_lines, framing, close, b"\r\n")
    )


def _links_home(exchange: Exchange, head: Head) -> list[bytes]:
    """`Location` and `Link` that name the origin come to name us, by the name the client called."""
    assert exchange.org is not None
    assert exchange.call is not None
    base = exchange.setup.ways[exchange.org].base
    scheme = b"https://" if exchange.protocol.is_secure(exchange) else b"http://"
    ours = scheme + (exchange.call.fields.host or b"localhost")
    return [b"%b: %b\r\n" % (name, value.replace(base, ours)) for name, value in head.links]


def write_fault(exchange: Exchange, fault: Fault, said: Said | None) -> None:
    """The last upstream error, cleaned; or our own words where upstream said nothing."""
    if said is None or said.head.status < 400:
        kind = RefusalKind.UPSTREAM_TIMEOUT if fault.kind.endswith("_timeout") else RefusalKind.BAD_UPSTREAM
        message = "The upstream did not answer this call properly. Please try again later."
        refuse(exchange, Refusal(kind, message, retry_after=fault.wait), is_spent=True)
        return
    head = said.head
    body = exchange.dialect.refuse_fault(fault, said.body)
    lines = head.lines
    if fault.scope is Scope.CALLER and (exchange.method == "HEAD" or not head.content_type.startswith(_JSON)):
        body = redact(said.body)
    elif body != said.body and not head.content_type.startswith(_JSON):
        lines = [line for line in lines if not line.lower().startswith(b"content-type:")]
        lines.append(b"content-type: application/json\r\n")
    if fault.scope is not Scope.CALLER:
        lines = [*lines, b"x-should-retry: false\r\n"]
    length = head.get(b"content-length") if exchange.method == "HEAD" else b""
    _write_answer(exchange, head.status, lines, body, length)


def refuse(exchange: Exchange, refusal: Refusal, *, is_spent: bool = False) -> None:
    """Our own answer, in the dialect's words. `is_spent`: we have tried, the client need not."""
    if not is_spent:
        exchange.reason = refusal.kind.code
        exchange.line.observer.refusal(refusal.kind.code)
    if refusal.close:
        exchange.keeps_alive = False
    status, headers, body = exchange.dialect.refuse(refusal, exchange.id)
    lines = [b"%b: %b\r\n" % item for item in headers]
    if is_spent:
        lines.append(b"x-should-retry: false\r\n")
    _write_answer(exchange, status, lines, body)


def _write_answer(exchange: Exchange, status: int, lines: list[bytes], body: bytes, length: bytes = b"") -> None:
    assert not exchange.has_sent
    _begin(exchange, status)
    exchange.bytes_out = len(body)
    end = b"Content-Length: %b\r\n%b\r\n" % (length or b"%d" % len(body), b"" if exchange.keeps_alive else _CLOSE)
    if exchange.method == "HEAD":
        body = b""
    exchange.protocol.write(b"".join((status_line(status), *lines, exchange.setup.extra_lines, end, body)))


def write_probe(exchange: Exchange, path: str) -> bool:
    """`/livez` and `/readyz`, for whoever balances load on this port. The connection is closed: False."""
    is_fine = not (PROBES[path] and exchange.line.is_draining)
    body = b"ok\n" if is_fine else b"draining\n"
    end = b"Content-Type: text/plain\r\nContent-Length: %d\r\nConnection: close\r\n\r\n" % len(body)
    exchange.protocol.write(status_line(200 if is_fine else 503) + end + body)
    return False
