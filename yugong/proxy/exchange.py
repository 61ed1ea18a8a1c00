"""One call, in a straight line: read `serve` and `_serve` and you have read the product.

An `Exchange` is owned by one coroutine and gathers the nouns of one call: the call, its customer, its intent, its
leases, its outcome. Log, metrics and ledger read only it, when it has ended. Each step is decided elsewhere (intake,
accounts, dialects, keypool, attempt); this file only walks.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from yugong.base.clock import SECOND, to_ticks
from yugong.base.errors import Fault, Penalty, Reach, Refusal, RefusalKind, Scope, WireFault
from yugong.core import attempt
from yugong.core.attempt import Action, Progress
from yugong.core.dialects import claim
from yugong.core.framing import Kind
from yugong.core.keypool import buckets
from yugong.core.keypool.buckets import Dimension
from yugong.core.keypool.pool import Ask
from yugong.core.keypool.spec import Lease, Shortage
from yugong.proxy import intake
from yugong.proxy.relay import Collector, Relay, StreamHead, answer_lines, framing_line, status_line
from yugong.upstream.leg import Wire

if TYPE_CHECKING:
    from aiohttp.http_parser import RawRequestMessage
    from aiohttp.streams import StreamReader

    from yugong.core.accounts import Grant, KeyRing
    from yugong.core.dialects.dialect import Dialect, Intent, Tap, Usage
    from yugong.core.settings import Timeouts
    from yugong.proxy.line import Line
    from yugong.proxy.listener import ClientProtocol
    from yugong.upstream.connection import Head
    from yugong.upstream.leg import Attempt

#: Bytes a token takes on the average of English and code (OpenAI's own rule of thumb), for reserving only.
BYTES_A_TOKEN = 4
#: What an answer is taken to need where the call does not say.
OUTPUT_GUESS = 512
GONE = 499  # nginx's: the client left before its answer

_JSON = b"application/json"
_EVENTS = b"text/event-stream"


class Exchange:
    """One call from its first byte to its record."""

    __slots__ = (
        "account",
        "agent",
        "attempts",
        "bytes_in",
        "bytes_out",
        "call",
        "client",
        "dialect",
        "dialect_name",
        "duration",
        "first_byte",
        "grant",
        "has_sent",
        "id",
        "intent",
        "is_stream",
        "keeps_alive",
        "key_id",
        "line",
        "method",
        "model",
        "model_label",
        "operation",
        "org",
        "path",
        "protocol",
        "reason",
        "relay",
        "setup",
        "started",
        "status",
        "tap",
        "usage",
        "waits",
    )

    def __init__(self, line: Line, protocol: ClientProtocol, now: float) -> None:
        self.line = line
        self.setup = line.setup
        self.protocol = protocol
        self.started = now
        self.id = line.call_id()
        self.client = protocol.client
        self.call: intake.Call
        self.dialect: Dialect
        self.intent: Intent
        self.grant: Grant | None = None
        self.waits: Timeouts
        self.relay: Relay | None = None
        self.tap: Tap | None = None
        self.keeps_alive = False
        #: Whether a byte of the answer has been written to the client.
        self.has_sent = False
        # What the record says.
        self.account: str | None = None
        self.key_id: str | None = None
        self.agent: str | None = None
        self.method = ""
        self.path = ""
        self.dialect_name = "openai"
        self.operation = "unread"
        self.model: str | None = None
        self.model_label = "none"
        self.is_stream = False
        self.status = 0
        self.org: str | None = None
        self.attempts = 0
        self.reason: str | None = None
        self.first_byte: float | None = None
        self.duration = 0.0
        self.bytes_in = 0
        self.bytes_out = 0
        self.usage: Usage | None = None

    def __repr__(self) -> str:
        return f"<Exchange {self.id} {self.method} {self.path} {self.status} tries={self.attempts} {self.reason or ''}>"

    # -- the line -----------------------------------------------------------------------------------------------------

    async def serve(self, message: RawRequestMessage, payload: StreamReader) -> bool:
        """Serves one call; whether the client's connection may carry another."""
        self.line.observer.started()
        try:
            try:
                self._open(message)
                await self._take_body(payload)
                await self._serve()
            except Refusal as refusal:
                self.refuse(refusal)
        except asyncio.CancelledError:
            self.reason = "client_gone"
            self.status = self.status or GONE
            raise
        finally:
            self._close()
        return self.keeps_alive and payload.is_eof()

    def _open(self, message: RawRequestMessage) -> None:
        """Head, customer, dialect. Nothing of the body is read before the customer is known."""
        self.method, self.path = message.method, message.path
        self.keeps_alive = not message.should_close and not self.line.is_draining
        self.dialect = claim(self.method, self.path.partition("?")[0], frozenset())
        self.agent = message.headers.get("User-Agent")
        call = self.call = intake.read_head(message, self.setup.intake)
        if call.header_names:
            self.dialect = claim(call.method, call.path, frozenset(call.header_names))
        self.dialect_name = self.dialect.name
        if call.forwarded_for and self.setup.is_trusted(self.client):
            self.client = call.forwarded_for.rpartition(b",")[2].strip().decode("latin-1")
        grant = self.grant = _admit(self.setup.keys, call.presented, self.line.wall())
        self.account, self.key_id = grant.account.id, grant.key.id

    def reject(self, refusal: Refusal) -> None:
        """Answers what was no call at all: bytes that are not HTTP."""
        self.line.observer.started()
        self.dialect = claim("GET", "/", frozenset())
        self.refuse(refusal)
        self._close()

    async def _take_body(self, payload: StreamReader) -> None:
        call = self.call
        if call.expects_continue:
            self.protocol.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        if call.has_body:
            await intake.read_body(call, payload, self.setup.intake, self.line.spool)
            self.bytes_in = call.size

    async def _serve(self) -> None:
        self._read_intent()
        self.waits = self.setup.waits(self.method, self.call.path)
        self.line.budget.earn()
        ask = self._ask()
        body = self._body()
        head = self._wire_head(body)
        while True:
            lease = await self._reserve(ask)
            fault, carried = await self._attempt(lease, head, body)
            if carried is None and fault is None:
                return
            assert fault is not None
            if not await self._goes_on(ask, lease, fault):
                self._answer_fault(fault, carried)
                return

    # -- reading ------------------------------------------------------------------------------------------------------

    def _read_intent(self) -> None:
        call = self.call
        if call.spooled is not None:
            looked_at: object = call.spooled.view()
        else:
            looked_at = intake.decoded(call, self.setup.intake.json_max) if call.content_encoding else call.body
        intent = self.intent = self.dialect.read(call.method, call.target, call.content_type, looked_at)  # type: ignore[arg-type]
        self.operation, self.model, self.is_stream = intent.operation, intent.model, intent.is_stream
        if call.content_encoding:
            intent.adds_usage = False  # a compressed body is passed on as it came
        model = intent.model
        if model is not None:
            target = self.setup.aliases.get(model)
            assert self.grant is not None
            if not self.grant.allows(model):
                raise no_model(model)
            self.model_label = model if target is None else target

    def _ask(self) -> Ask:
        intent = self.intent
        tokens = intent.input_bytes // BYTES_A_TOKEN + (intent.max_output or OUTPUT_GUESS) if intent.model else 0
        model = self.setup.aliases.get(intent.model, intent.model) if intent.model else None
        return Ask(self.dialect_name, model, buckets.cost(1, tokens, 1 if intent.operation.startswith("images") else 0))

    def _body(self) -> bytes:
        call, intent = self.call, self.intent
        if call.spooled is not None or not call.has_body or call.content_encoding:
            return call.body
        target = self.setup.aliases.get(intent.model, intent.model) if intent.model else None
        if not intent.adds_usage and target == intent.model:
            return call.body
        prepared = self.dialect.prepare(intent, call.body, target)
        assert isinstance(prepared, bytes)
        return prepared

    def _wire_head(self, body: bytes) -> tuple[bytes, bytes]:
        """The wire's head before and after what the org puts in (host and credentials)."""
        call = self.call
        path = self.dialect.upstream_path(call.target)
        size = call.spooled.size if call.spooled is not None else len(body)
        length = b"Content-Length: %d\r\n" % size if call.has_body or size else b""
        if not length and call.method in ("POST", "PUT", "PATCH"):
            length = b"Content-Length: 0\r\n"
        first = f"{call.method} {path} HTTP/1.1\r\nHost: ".encode("latin-1")
        return first, b"%bAccept-Encoding: identity\r\n%b\r\n" % (b"".join(call.lines), length)

    # -- an attempt ---------------------------------------------------------------------------------------------------

    async def _reserve(self, ask: Ask) -> Lease:
        """A lease, waiting for room if need be. Raises `Refusal`."""
        line = self.line
        loop = self.protocol.loop
        wait = self._patience()
        patience = min(self.started + wait, self.started + self.waits.total)
        while True:
            now = loop.time()
            found = self.setup.pool.reserve(ask, int(now * SECOND))
            if isinstance(found, Lease):
                return found
            if found.why == "avoided":  # all have been asked once: other keys, then the same again
                if ask.avoid_orgs:
                    ask.avoid_orgs.clear()
                else:
                    ask.avoid_keys.clear()
                continue
            if found.why != "full" or found.until > patience * SECOND:
                line.observer.refusal(found.why)
                raise self._no_room(found, now)
            await asyncio.sleep(max(found.until / SECOND - now, 0.001))

    def _patience(self) -> float:
        """Seconds the call may wait for room: its own word, its account's, the settings'."""
        assert self.grant is not None
        for seconds in (self.call.max_wait, self.grant.account.max_wait):
            if seconds is not None:
                return seconds
        return self.setup.max_wait

    def _no_room(self, shortage: Shortage, now: float) -> Refusal:
        wait = max(shortage.until / SECOND - now, 1.0) if shortage.until < buckets.NEVER else None
        if shortage.why == "no_org":
            return no_model(self.intent.model)
        if shortage.why == "too_large":
            return Refusal(
                RefusalKind.RATE_LIMITED, "Request too large: no organization here has a limit that it fits under."
            )
        if shortage.why == "full":
            message = "The upstream organizations have no room for this call at the moment. Please try again later."
            return Refusal(RefusalKind.NO_ROOM, message, retry_after=wait)
        message = "No upstream is available for this call at the moment. Please try again later."
        return Refusal(RefusalKind.NO_UPSTREAM, message, retry_after=wait)

    async def _attempt(
        self, lease: Lease, head: tuple[bytes, bytes], body: bytes
    ) -> tuple[Fault | None, _Carried | None]:
        """One attempt: (None, None) when the client has its answer, else the fault and what upstream said with it."""
        line, org = self.line, lease.place.org
        way = self.setup.ways[org.spec.name]
        self.attempts += 1
        self.org = org.spec.name
        lines = self.setup.credentials(org, lease.key, self.dialect)
        wire = Wire(
            self.call.method,
            b"%b%b\r\n%b%b" % (head[0], way.authority, lines, head[1]),
            body,
            self.waits,
            self.started + self.waits.total,
        )
        if self.call.spooled is not None:
            wire.more = self.call.spooled.pieces()
        sent_at = line.leg.now()
        going: Attempt | None = None
        fault: Fault | None = None
        carried: _Carried | None = None
        first_byte: float | None = None
        try:
            going = await line.leg.send(way.origin, wire)
            first_byte = line.leg.now() - sent_at
            fault, carried = await self._take_answer(lease, going)
        except WireFault as broken:
            fault = broken.to_fault()
        except asyncio.CancelledError:
            fault = WireFault("client_gone", Reach.SENT).to_fault()
            raise
        finally:
            if going is not None:
                if going.connection.is_done:
                    line.leg.finish(going)
                else:
                    line.leg.drop(going)
            self._settle(lease, fault, first_byte)
        return fault, carried

    def _settle(self, lease: Lease, fault: Fault | None, first_byte: float | None) -> None:
        """The pool hears of the attempt, observers too."""
        pool, observer = self.setup.pool, self.line.observer
        now = to_ticks(self.line.leg.now())
        if fault is None:
            observer.attempt(lease.place.org.spec.name, "ok")
        else:
            observer.attempt(lease.place.org.spec.name, fault.kind)
            observer.fault(fault.scope.value, fault.kind)
        pool.note(lease, fault, now)
        pool.release(lease, now, first_byte, fault is None or fault.reach is not Reach.UNSENT)

    async def _take_answer(self, lease: Lease, going: Attempt) -> tuple[Fault | None, _Carried | None]:
        """Looks at the answer's head and passes it on, or says what is wrong with it."""
        head = going.head
        self._learn(lease, head)
        kind = head.get(b"content-type")
        if head.status >= 400 or kind.startswith(b"text/html"):
            return await self._judge(going, head)
        self.tap = self.dialect.tap(self.intent, head.status, kind)
        if kind.startswith(_EVENTS):
            return await self._relay_stream(going, head)
        if kind.startswith(_JSON) and head.status < 300 and head.kind is not Kind.NONE:
            return await self._relay_whole(going, head)
        return await self._relay(going, head, [])

    def _learn(self, lease: Lease, head: Head) -> None:
        has_limits = self.dialect.has_limits
        if not any(has_limits(name) for name, _ in head.headers):
            return
        now = to_ticks(self.line.leg.now())
        for report in self.dialect.limits(head.headers):
            dimension = _DIMENSIONS.get(report.dimension)
            if dimension is not None:
                self.setup.pool.learn(lease, dimension, report.limit, report.remaining, now)

    async def _judge(self, going: Attempt, head: Head) -> tuple[Fault | None, _Carried | None]:
        """An answer that is an error, or a page that is no answer."""
        body = await self._collect(going)
        fault = self.dialect.judge(head.status, head.headers, body)
        if fault is not None:
            return fault, _Carried(head, body)
        self.tap = self.dialect.tap(self.intent, head.status, head.get(b"content-type"))
        self._write_whole(head, body)
        return None, None

    async def _collect(self, going: Attempt) -> bytes:
        """A body up to what is kept in memory; the rest of a larger one is not read."""
        if going.connection.is_done:
            return going.connection.take_early()
        collector = Collector(going.connection, self.protocol.loop)
        await collector.wait()
        return b"".join(collector.pieces)

    # -- passing on ---------------------------------------------------------------------------------------------------

    async def _relay_whole(self, going: Attempt, head: Head) -> tuple[Fault | None, _Carried | None]:
        """A JSON answer: kept until it is whole, so that a truncated one is tried again instead of passed on."""
        connection = going.connection
        if connection.is_done:
            body = connection.take_early()
        else:
            collector = Collector(connection, self.protocol.loop)
            if not await collector.wait():
                return await self._relay(going, head, collector.pieces)
            body = b"".join(collector.pieces)
        assert self.tap is not None
        self.tap.feed(body)
        if not self.tap.is_complete():
            detail = f"a 200 of {len(body)} bytes that is not JSON"
            return Fault(
                "malformed", Scope.ORIGIN, status=200, penalty=Penalty.COUNT, reach=Reach.PARTIAL, detail=detail
            ), None
        self._write_whole(head, body)
        return None, None

    async def _relay_stream(self, going: Attempt, head: Head) -> tuple[Fault | None, _Carried | None]:
        """An event stream: its first event is held until it is content, so that an error there is still tried again."""
        opening = StreamHead(going.connection, self.dialect, self.protocol.loop)
        fault = await opening.wait(self.setup.hold_first_event)
        if fault is not None:
            return fault, _Carried(head, b"".join(opening.pieces))
        self.line.observer.stream_opened()
        try:
            return await self._relay(going, head, opening.pieces)
        finally:
            self.line.observer.stream_closed()

    async def _relay(self, going: Attempt, head: Head, early: list[bytes]) -> tuple[Fault | None, _Carried | None]:
        """From here on bytes reach the client: whatever breaks is ended honestly (I2, I3)."""
        tap = self.tap
        assert tap is not None
        connection = going.connection
        framing, is_chunked, must_close = framing_line(head, tap, self.call.version)
        if must_close:
            self.keeps_alive = False
        relay = self.relay = Relay(self.protocol.client_transport(), tap, connection)
        first = self._answer_head(head, framing)
        self.has_sent = True
        self.status = head.status
        self.first_byte = self.line.leg.now() - self.started
        self.protocol.relay = relay
        try:
            broken = await relay.run(first, is_chunked, early)
        finally:
            self.protocol.relay = None
            self.bytes_out = relay.bytes_out
            self.usage = tap.usage()
        is_events = head.get(b"content-type").startswith(_EVENTS)
        if broken is None and (not is_events or tap.is_complete() or tap.has_failed()):
            relay.end()
            return None, None
        fault = broken.to_fault() if broken is not None else _cut_short()
        self._break(relay, fault, is_events=is_events)
        return None, None

    def _break(self, relay: Relay, fault: Fault, *, is_events: bool) -> None:
        """The client has bytes and no more come: an error event and an end, or a closed connection (I3)."""
        self.reason = fault.kind
        self.keeps_alive = False
        self.line.observer.broken(fault.kind)
        if is_events:
            refusal = Refusal(RefusalKind.BAD_UPSTREAM, "The upstream broke off in the middle of this answer.")
            relay.on_rest(self.dialect.stream_error(refusal, self.intent))
            relay.end()
        else:
            self.protocol.abort_after_writes()

    def _write_whole(self, head: Head, body: bytes) -> None:
        """Head and body in one write."""
        self.status = head.status
        self.has_sent = True
        self.first_byte = self.line.leg.now() - self.started
        self.bytes_out = len(body)
        if self.tap is not None:
            self.usage = self.tap.usage()
        if head.kind is Kind.NONE:
            framing = framing_line(head, self.tap, self.call.version)[0] if self.tap is not None else b""
        else:
            framing = b"Content-Length: %d\r\n" % len(body)
        self.protocol.write(self._answer_head(head, framing) + body)

    def _answer_head(self, head: Head, framing: bytes) -> bytes:
        lines = answer_lines(head, self.setup.to_client)
        if head.status in _LINKING or any(name == b"link" for name, _ in head.headers):
            lines.extend(self._links_home(head))
        return b"".join(
            (
                status_line(head.status),
                *lines,
                self.setup.extra_lines,
                framing,
                b"" if self.keeps_alive else _CLOSE,
                b"\r\n",
            )
        )

    def _links_home(self, head: Head) -> list[bytes]:
        """`Location` and `Link` that name the origin come to name us, by the name the client called."""
        assert self.org is not None
        base = self.setup.ways[self.org].base
        host = self.call.host or b"localhost"
        ours = (b"https://" if self.protocol.is_secure(self) else b"http://") + host
        return [
            b"%b: %b\r\n" % (name, value.replace(base, ours))
            for name, value in head.headers
            if name in (b"location", b"link")
        ]

    # -- going on or giving up ----------------------------------------------------------------------------------------

    async def _goes_on(self, ask: Ask, lease: Lease, fault: Fault) -> bool:
        """Whether another attempt follows; waits what must be waited before it."""
        setup, line = self.setup, self.line
        now = line.leg.now()
        ask.avoid_orgs.add(lease.place.org.spec.name)
        if fault.scope is Scope.KEY:
            ask.avoid_keys.add(lease.key.row)
            if len(lease.place.org.keys) > 1:
                ask.avoid_orgs.discard(lease.place.org.spec.name)
        verdict = attempt.judge(
            fault,
            Progress(
                tries=self.attempts,
                max_tries=setup.max_tries,
                has_budget=line.budget.can_spend(now),
                time_left=self.started + self.waits.total - now,
                has_sent_bytes=self.has_sent,
                is_repeatable=self.intent.is_repeatable,
                has_alternative=setup.pool.has_other(ask),
                spread=line.rng(),
            ),
        )
        self.reason = f"{fault.kind}: {verdict.reason}"
        if verdict.action is not Action.AGAIN:
            return False
        if not attempt.is_routing(fault):
            line.budget.spend()
        line.observer.retry(fault.kind)
        if verdict.delay:
            await asyncio.sleep(verdict.delay)
        return True

    def _answer_fault(self, fault: Fault, carried: _Carried | None) -> None:
        """The last upstream error, cleaned; or our own words where upstream said nothing."""
        if fault.scope is not Scope.CALLER:
            self.reason = fault.kind
        if carried is None or carried.head.status < 400:
            kind = RefusalKind.UPSTREAM_TIMEOUT if fault.kind.endswith("_timeout") else RefusalKind.BAD_UPSTREAM
            message = "The upstream did not answer this call properly. Please try again later."
            self.refuse(Refusal(kind, message, retry_after=fault.wait), is_spent=True)
            return
        head = carried.head
        body = self.dialect.refuse_fault(fault, carried.body)
        lines = answer_lines(head, self.setup.to_client)
        if body != carried.body and not head.get(b"content-type").startswith(_JSON):
            lines = [line for line in lines if not line.startswith(b"content-type:")]
            lines.append(b"content-type: application/json\r\n")
        if fault.scope is not Scope.CALLER:
            lines.append(b"x-should-retry: false\r\n")
        self._write_answer(head.status, lines, body)

    def refuse(self, refusal: Refusal, *, is_spent: bool = False) -> None:
        """Our own answer, in the dialect's words."""
        self.reason = self.reason or refusal.kind.code
        if not is_spent:
            self.line.observer.refusal(refusal.kind.code)
        if refusal.close:
            self.keeps_alive = False
        status, headers, body = self.dialect.refuse(refusal, self.id)
        lines = [b"%b: %b\r\n" % item for item in headers]
        if is_spent:
            lines.append(b"x-should-retry: false\r\n")
        self._write_answer(status, lines, body)

    def _write_answer(self, status: int, lines: list[bytes], body: bytes) -> None:
        assert not self.has_sent
        self.has_sent = True
        self.status = status
        self.first_byte = self.line.leg.now() - self.started
        self.bytes_out = len(body)
        end = b"Content-Length: %d\r\n%b\r\n" % (len(body), b"" if self.keeps_alive else _CLOSE)
        if self.method == "HEAD":
            body = b""
        self.protocol.write(b"".join((status_line(status), *lines, self.setup.extra_lines, end, body)))

    def _close(self) -> None:
        """The record is complete: observers are told."""
        self.duration = self.line.leg.now() - self.started
        call = getattr(self, "call", None)
        if call is not None and call.spooled is not None:
            call.spooled.close()
        self.line.observer.finished(self)


class _Carried:
    """What upstream said with a fault: it may have to be said to the client."""

    __slots__ = ("body", "head")

    def __init__(self, head: Head, body: bytes) -> None:
        self.head = head
        self.body = body


_CLOSE = b"Connection: close\r\n"
_LINKING = frozenset({201, 202, 301, 302, 303, 307, 308})
_DIMENSIONS = {
    "requests": Dimension.REQUESTS_MINUTE,
    "tokens": Dimension.TOKENS_MINUTE,
    "images": Dimension.IMAGES_MINUTE,
}


def _cut_short() -> Fault:
    return Fault("truncated", Scope.ORIGIN, status=200, penalty=Penalty.COUNT, reach=Reach.PARTIAL)


def _admit(keys: KeyRing, presented: bytes | None, now: float) -> Grant:
    """The customer. An unknown, an expired and a revoked key get one and the same answer (threat 8)."""
    if presented is None:
        message = (
            "You didn't provide an API key. You need to provide your API key in an Authorization header using Bearer "
            "auth (i.e. Authorization: Bearer YOUR_KEY)."
        )
        raise Refusal(RefusalKind.INVALID_KEY, message)
    grant = keys.find(presented)
    refusal = grant.refusal(now) if grant is not None else None
    if grant is None or (refusal is not None and refusal.kind is RefusalKind.INVALID_KEY):
        raise Refusal(RefusalKind.INVALID_KEY, "Incorrect API key provided.")
    if refusal is not None:
        raise refusal
    return grant


def no_model(model: str | None) -> Refusal:
    """The refusal of a model that this customer cannot have, whether it exists or not."""
    message = f"The model `{(model or '')[:256]}` does not exist or you do not have access to it."
    return Refusal(RefusalKind.UNKNOWN_MODEL, message, param="model")
