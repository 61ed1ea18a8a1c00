"""One call, in a straight line: read `serve` and `_serve` and you have read the product.

An `Exchange` is owned by one coroutine and gathers the nouns of one call: the call, its customer, its intent, its
leases, its outcome. Log, metrics and ledger read only it, when it has ended. Each step is decided elsewhere (intake,
accounts, dialects, keypool, attempt) and the answer is written by `answer`; this file only walks.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from aiohttp.streams import EMPTY_PAYLOAD

from yugong.base.clock import SECOND, to_ticks
from yugong.base.errors import Fault, Reach, Refusal, RefusalKind, Scope, WireFault
from yugong.core import attempt
from yugong.core.attempt import Action, Progress
from yugong.core.dialects import claim
from yugong.core.keypool import buckets
from yugong.core.keypool.spec import Ask, Lease, Shortage
from yugong.proxy import answer, intake, tunnel
from yugong.upstream.leg import Wire

if TYPE_CHECKING:
    from aiohttp.streams import StreamReader

    from yugong.core.accounts import Grant, KeyRing
    from yugong.core.dialects.dialect import Dialect, Intent, Tap, Usage
    from yugong.core.settings import Timeouts
    from yugong.proxy.answer import Said
    from yugong.proxy.line import Line, Setup, Way
    from yugong.proxy.listener import ClientProtocol
    from yugong.upstream.leg import Attempt

#: Bytes a token takes on the average of English and code (OpenAI's own rule of thumb), for reserving only.
BYTES_A_TOKEN = 4
#: Tokens an answer is taken to need where the call does not say.
OUTPUT_GUESS = 512
GONE = 499  # nginx's: the client left before its answer


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
        "first_data",
        "grant",
        "has_sent",
        "id",
        "intent",
        "is_stream",
        "keeps_alive",
        "key_id",
        "line",
        "message",
        "method",
        "model",
        "model_label",
        "operation",
        "org",
        "parts",
        "path",
        "payload",
        "protocol",
        "reason",
        "setup",
        "started",
        "status",
        "tap",
        "usage",
        "waits",
    )

    def __init__(self, line: Line, protocol: ClientProtocol, now: float) -> None:
        self.line = line
        self.setup: Setup = line.setup
        self.protocol = protocol
        self.started = now
        #: The head as aiohttp parsed it and the bytes it came with, until they have been read.
        self.message: intake.Message | None = None
        self.first_data = b""
        self.payload: StreamReader
        #: The wire before and after what the org puts in, until the client has its first byte.
        self.parts = _NO_PARTS
        self.call: intake.Call | None = None
        self.dialect: Dialect
        self.intent: Intent
        self.grant: Grant
        self.waits: Timeouts
        self.tap: Tap | None = None
        self.keeps_alive = False
        #: Whether a byte of the answer has been written to the client.
        self.has_sent = False
        # What the record says.
        self.id = line.call_id()
        self.client = protocol.client
        self.account: str | None = None
        self.key_id: str | None = None
        self.agent: str | None = None
        self.method = self.path = ""
        self.dialect_name = "openai"
        self.operation = "unread"
        self.model: str | None = None
        self.model_label = "none"
        self.is_stream = False
        self.org: str | None = None
        self.reason: str | None = None
        self.first_byte: float | None = None
        self.duration = 0.0
        self.status = self.attempts = self.bytes_in = self.bytes_out = 0
        self.usage: Usage | None = None

    def __repr__(self) -> str:
        return f"<Exchange {self.id} {self.method} {self.path} {self.status} tries={self.attempts} {self.reason or ''}>"

    # -- the line -----------------------------------------------------------------------------------------------------

    async def serve(self) -> bool:
        """Serves one call; whether the client's connection may carry another."""
        message = self.message
        assert message is not None
        if message.path in answer.PROBES:
            return answer.write_probe(self, message.path)
        del message
        self.line.observer.started()
        try:
            try:
                call = self._open()
                if call.has_body:
                    await self._take_body(call)
                self._read_intent(call)
                if call.websocket:
                    await tunnel.serve(self, call)
                else:
                    self.parts = self._wire_parts(call)
                    del call
                    await self._serve()
            except Refusal as refusal:
                answer.refuse(self, refusal)
        except asyncio.CancelledError:
            self.reason = "client_gone"
            self.status = self.status or GONE
            raise
        except ConnectionResetError:  # the client left between two steps of ours
            self.reason = "client_gone"
            self.status = self.status or GONE
        except Exception as bug:
            self._own_up(bug)
        finally:
            self._close()
        return self.keeps_alive and self.payload.is_eof()

    async def _serve(self) -> None:
        self.line.budget.earn()
        ask = self.ask()
        fault: Fault | None = None
        said = None
        while True:
            try:
                lease = await self.reserve(ask)
            except Refusal:
                if fault is None:
                    raise
                answer.write_fault(self, fault, said)  # nobody else can be asked: the last word is upstream's
                return
            fault, said = await self._attempt(lease)
            if fault is None:
                return
            if not await self.goes_on(ask, lease, fault):
                answer.write_fault(self, fault, said)
                return

    def reject(self, refusal: Refusal) -> None:
        """Answers what was no call at all: bytes that are not HTTP."""
        self.line.observer.started()
        self.dialect = claim("GET", "/", _NO_NAMES)
        answer.refuse(self, refusal)
        self._close()

    def _own_up(self, bug: Exception) -> None:
        """A bug of ours: told to the operator with the call's id, to the client as nothing but that id (threat 9)."""
        self.line.report(f"bug in call {self.id}", bug)
        self.keeps_alive = False
        if self.has_sent:
            self.protocol.abort_after_writes()
        else:
            message = f"Internal error. If it persists, tell the operator this id: {self.id}"
            answer.refuse(self, Refusal(RefusalKind.INTERNAL, message, close=True))
        self.reason = "bug"

    def _close(self) -> None:
        """The record is complete: observers are told."""
        self.duration = self.line.leg.now() - self.started
        self.tap = None  # the record lives on a while: without the bodies
        self._drop_call()
        self.line.observer.finished(self)

    # -- reading ------------------------------------------------------------------------------------------------------

    def _open(self) -> intake.Call:
        """Head, dialect, customer. Nothing of the body is read before the customer is known (I6)."""
        message = self.message
        assert message is not None
        self.method, self.path = message.method, message.path
        # aiohttp 3.14.5 gives a chunked body's last trailer to the next request of the connection: there is none.
        self.keeps_alive = not (message.should_close or message.chunked or self.line.is_draining)
        self.dialect = claim(self.method, self.path, _NO_NAMES)  # whose words a refusal of the head is in
        fields = self.protocol.fields_of(message, self.first_data)
        self.agent = fields.agent
        call = self.call = intake.read_head(message, self.setup.intake, fields)
        if not call.websocket:
            self.message = None  # 6 kB that nobody needs for the rest of a stream
        self.first_data = b""
        if not call.path.startswith(_PREFIXES):
            raise Refusal(RefusalKind.NOT_FOUND, f"Invalid URL ({call.method} {call.path[:256]})")
        if fields.names or call.path != call.target:
            self.dialect = claim(call.method, call.path, fields.names)
        self.dialect_name = self.dialect.name
        if fields.forwarded_for and self.setup.is_trusted(self.client):
            self.client = fields.forwarded_for.rpartition(b",")[2].strip().decode("latin-1")
        grant = self.grant = _admit(self.setup.keys, fields.presented, self.line.wall())
        self.account, self.key_id = grant.account.id, grant.key.id
        self.waits = self.setup.waits(self.method, call.path)
        return call

    async def _take_body(self, call: intake.Call) -> None:
        if call.fields.expects_continue:
            self.protocol.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        await intake.read_body(call, self.payload, self.setup.intake, self.line.spool)
        self.bytes_in = call.size

    def _read_intent(self, call: intake.Call) -> None:
        fields = call.fields
        body = call.spooled.view() if call.spooled is not None else call.body
        if fields.content_encoding and isinstance(body, bytes):
            body = intake.decoded(call, self.setup.intake.json_max)
        intent = self.intent = self.dialect.read(call.method, call.target, fields.content_type, body)
        self.operation, self.model, self.is_stream = intent.operation, intent.model, intent.is_stream
        if fields.content_encoding:
            intent.adds_usage = False  # a compressed body is passed on as it came
        if intent.model is not None:
            if not self.grant.allows(intent.model):
                raise no_model(intent.model)
            self.model_label = self.setup.aliases.get(intent.model, intent.model)

    def ask(self) -> Ask:
        """What the call asks of the pool."""
        intent = self.intent
        if intent.model is None:
            return Ask(self.dialect_name, None, _NO_TOKENS)
        tokens = intent.input_bytes // BYTES_A_TOKEN + (intent.max_output or OUTPUT_GUESS)
        images = 1 if intent.operation.startswith("images") else 0
        return Ask(self.dialect_name, self.model_label, buckets.cost(1, tokens, images))

    def _wire_parts(self, call: intake.Call) -> tuple[bytes, bytes]:
        """The wire before and after what the org puts in (host and credentials)."""
        body = self._body(call)
        path = self.dialect.upstream_path(call.target)
        size = call.spooled.size if call.spooled is not None else len(body)
        length = b"Content-Length: %d\r\n" % size if size or call.has_body or call.method in _WITH_BODY else b""
        before = f"{call.method} {path} HTTP/1.1\r\nHost: ".encode("latin-1")
        return before, b"%bAccept-Encoding: identity\r\n%b\r\n%b" % (call.fields.joined, length, body)

    def _body(self, call: intake.Call) -> bytes:
        """What goes upstream of a body in memory: the client's own bytes, unless a word must be put in."""
        intent = self.intent
        is_renamed = intent.model is not None and intent.model != self.model_label
        if not (intent.adds_usage or is_renamed) or call.spooled is not None or call.fields.content_encoding:
            return call.body
        prepared = self.dialect.prepare(intent, call.body, self.model_label if intent.model is not None else None)
        assert isinstance(prepared, bytes)
        return prepared

    # -- an attempt ---------------------------------------------------------------------------------------------------

    async def reserve(self, ask: Ask) -> Lease:
        """A lease, as soon as there is room. Raises `Refusal`."""
        pool, now = self.setup.pool, self.line.leg.now
        found = pool.reserve(ask, int(now() * SECOND))
        if isinstance(found, Lease):
            return found
        patience = self.started + min(self._patience(), self.waits.total)
        while isinstance(found, Shortage):
            if found.why == "avoided":
                ask.forgive()
            elif found.why == "full" and found.until <= patience * SECOND:
                await asyncio.sleep(max(found.until / SECOND - now(), 0.001))
            else:
                raise _no_room(found, now(), self.model)
            found = pool.reserve(ask, int(now() * SECOND))
        return found

    def _patience(self) -> float:
        """Seconds the call may wait for room: its own word, its account's, the settings'."""
        assert self.call is not None
        for seconds in (self.call.fields.max_wait, self.grant.account.max_wait):
            if seconds is not None:
                return seconds
        return self.setup.max_wait

    async def _attempt(self, lease: Lease) -> tuple[Fault | None, Said | None]:
        """One attempt: no fault when the client has its answer; else also what upstream said with it."""
        line = self.line
        self.org = lease.place.org.spec.name
        self.attempts += 1
        way = self.setup.ways[self.org]
        going: Attempt | None = None
        fault: Fault | None = None
        said: Said | None = None
        first_byte: float | None = None
        sent_at = line.leg.now()
        try:
            going = await line.leg.send(way.origin, self._wire(lease, way))
            first_byte = line.leg.now() - sent_at
            if going.head.has_limits:
                self._learn(lease, going)
            fault, said = await answer.take(self, going)
        except WireFault as broken:
            fault = broken.to_fault()
        except asyncio.CancelledError:
            fault = WireFault("client_gone", Reach.SENT).to_fault()
            raise
        finally:
            if going is not None:
                line.leg.finish(going)
            self.settle(lease, fault, first_byte)
        if said is not None:
            said.conceal(self.setup.credentials(lease.place.org, lease.key, self.dialect))
        return fault, said

    def _wire(self, lease: Lease, way: Way) -> Wire:
        """The request as this org gets it."""
        setup, call = self.setup, self.call
        assert call is not None
        before, after = self.parts
        lines = setup.credentials(lease.place.org, lease.key, self.dialect)
        start = b"%b%b\r\n%b%b" % (before, way.authority, lines, after)
        wire = Wire(self.method, start, setup.reader, self.waits, self.started + self.waits.total)
        if call.spooled is not None:
            wire.more = call.spooled.pieces
        return wire

    def let_go(self) -> None:
        """The client has its first byte: what could only serve another attempt is not kept for the rest of a stream."""
        self.parts = _NO_PARTS
        self._drop_call()
        self.protocol.forget_fields()
        if self.payload.is_eof():
            self.payload = EMPTY_PAYLOAD

    def _drop_call(self) -> None:
        call, self.call = self.call, None
        if call is not None and call.spooled is not None:
            call.spooled.close()

    def _learn(self, lease: Lease, going: Attempt) -> None:
        pool, head = self.setup.pool, going.head
        now = to_ticks(self.line.leg.now())
        if head.status < 400 and not pool.is_worth_learning(lease, now):
            return
        for report in self.dialect.limits(head.pairs()):
            dimension = _DIMENSIONS.get(report.dimension)
            if dimension is not None:
                pool.learn(lease, dimension, report.limit, report.remaining, now)

    def settle(self, lease: Lease, fault: Fault | None, first_byte: float | None) -> None:
        """The pool hears of the attempt, observers too."""
        pool, observer = self.setup.pool, self.line.observer
        now = int(self.line.leg.now() * SECOND)
        name = lease.place.org.spec.name
        pool.note(lease, fault, now)
        if fault is None:
            observer.attempt(name, "ok")
            pool.release(lease, now, first_byte, was_sent=True)
        else:
            observer.attempt(name, fault.kind)
            observer.fault(fault.scope.value, fault.kind)
            pool.release(lease, now, first_byte, was_sent=fault.reach is not Reach.UNSENT)

    async def goes_on(self, ask: Ask, lease: Lease, fault: Fault) -> bool:
        """Whether another attempt follows; waits what must be waited before it."""
        setup, line = self.setup, self.line
        now = line.leg.now()
        _avoid(ask, lease, fault)
        progress = Progress(
            tries=self.attempts,
            max_tries=setup.max_tries,
            has_budget=line.budget.can_spend(now),
            time_left=self.started + self.waits.total - now,
            has_sent_bytes=self.has_sent,
            is_repeatable=self.intent.is_repeatable,
            has_alternative=setup.pool.has_other(ask),
            spread=line.rng(),
        )
        verdict = attempt.judge(fault, progress)
        if verdict.action is not Action.AGAIN:
            self.reason = f"{fault.kind}: {verdict.reason}"
            return False
        if not attempt.is_routing(fault):
            line.budget.spend()
        line.observer.retry(fault.kind)
        if verdict.delay:
            await asyncio.sleep(verdict.delay)
        return True


#: Where APIs are. Whatever a dialect does not know there is forwarded all the same.
_PREFIXES = ("/v1/", "/openai/v1/")
_NO_PARTS = (b"", b"")
_NO_NAMES: frozenset[bytes] = frozenset()
_NO_TOKENS = buckets.cost(1, 0)
_WITH_BODY = frozenset({"POST", "PUT", "PATCH"})
_DIMENSIONS = {
    "requests": buckets.Dimension.REQUESTS_MINUTE,
    "tokens": buckets.Dimension.TOKENS_MINUTE,
    "images": buckets.Dimension.IMAGES_MINUTE,
}


def _avoid(ask: Ask, lease: Lease, fault: Fault) -> None:
    """The next attempt goes to another org; to another key of the same where the fault is the key's alone."""
    if fault.scope is Scope.KEY:
        ask.avoid(None, lease.key.row)
        if len(lease.place.org.keys) > 1:
            return
    ask.avoid(lease.place.org.spec.name, None)


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


_TRY_LATER = "Please try again later."


def _no_room(shortage: Shortage, now: float, model: str | None) -> Refusal:
    """Why nobody can take the call, in words for the client."""
    wait = max(shortage.until / SECOND - now, 1.0) if shortage.until < buckets.NEVER else None
    if shortage.why == "no_org":
        return no_model(model)
    if shortage.why == "too_large":
        message = "Request too large: it fits under no organization's limit here."
        return Refusal(RefusalKind.RATE_LIMITED, message)
    if shortage.why == "full":
        message = f"The upstream organizations have no room for this call at the moment. {_TRY_LATER}"
        return Refusal(RefusalKind.NO_ROOM, message, retry_after=wait)
    message = f"No upstream is available for this call at the moment. {_TRY_LATER}"
    return Refusal(RefusalKind.NO_UPSTREAM, message, retry_after=wait)
