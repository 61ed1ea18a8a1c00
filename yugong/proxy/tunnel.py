"""A call that becomes a WebSocket: admitted like any call, tried until an upstream switches, then relayed to its end.

Decides when upstream has really accepted: not by its 101 alone, because some let everybody in and say only then that
the key is no good; where upstream speaks first, its first words are awaited before the client gets its own 101, so that
another key can still be tried (I2). Decides also what is read in frames as they go by (usage, faults, rights), and whom
the end of a relay speaks of (`BLAME`). Frames are core/frames' and proxy/websocket's affair, words are the dialect's.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING
from urllib.parse import quote, unquote_plus

from yugong.base.clock import to_ticks
from yugong.base.errors import Fault, Penalty, Reach, Refusal, RefusalKind, Scope, WireFault
from yugong.core import jsonbody
from yugong.core.dialects.faults import redact
from yugong.core.frames import CONTROL_MAX, FrameCaps, FrameError, FrameScanner, has_usage
from yugong.proxy import answer
from yugong.proxy.answer import Said
from yugong.proxy.relay import status_line
from yugong.proxy.websocket import Ended, SocketLimits, WebSocketRelay, take_over
from yugong.upstream.handshake import (
    EARLY_MAX,
    Accepted,
    Declined,
    Upgrade,
    WrongVersion,
    make_key,
    read_upgrade,
    shake_hands,
    write_request,
    write_switch,
)

if TYPE_CHECKING:
    from yugong.core.dialects.dialect import Dialect, Usage
    from yugong.core.keypool.spec import Lease
    from yugong.proxy.exchange import Exchange
    from yugong.proxy.intake import Call, Message
    from yugong.upstream.connection import Connection

#: Operations whose upstream has the first word (`session.created`).
SPEAKS_FIRST = frozenset({"realtime"})

#: The close codes that speak of the opener's credentials or of the server, as the HTTP status they stand for (IANA's
#: registry: 3000 Unauthorized, 3003 Forbidden, 3008 Timeout). OpenAI closes with 3000 on a key it does not know.
STATUS_OF_CLOSE = {1011: 500, 1012: 503, 1013: 503, 3000: 401, 3003: 403, 3008: 408}

#: Whom the end of a relay speaks of, by its reason; what is missing speaks of nobody.
BLAME = {
    "client_lost": "client_gone",
    "client_broke": "client_gone",
    "client_slow": "client_gone",
    "upstream_lost": "truncated",
    "upstream_broke": "malformed",
    "upstream_slow": "silence_timeout",
}

#: Close codes after which there is nothing to tell the operator; 1005 stands for none.
_UNEVENTFUL = frozenset({1000, 1001, 1005})

_HOLD = 256 << 10  # bytes of a client's message that are looked at
_HOLD_LIMITED = 1 << 20  # the same where the model in it decides whether it may pass
_OPENING = FrameCaps(1 << 62, 1 << 62, EARLY_MAX)


async def serve(exchange: Exchange, call: Call) -> None:
    """Serves one WebSocket, from an admitted upgrade request to its end. Raises `Refusal` before the 101."""
    exchange.keeps_alive = False  # aiohttp reads no second request after one for an upgrade
    try:
        assert exchange.message is not None
        upgrade = _read(call, exchange.message)
    except WrongVersion as refusal:
        _refuse_version(exchange, refusal)
        return
    exchange.intent.is_metered = True  # a GET, but no retrieval: what is used on it is its own
    exchange.line.budget.earn()
    ask = exchange.ask()
    fault: Fault | None = None
    said: Said | None = None
    while True:
        try:
            lease = await exchange.reserve(ask)
        except Refusal:
            if fault is None:
                raise
            answer.write_fault(exchange, fault, said)  # nobody else can be asked: the last word is upstream's
            return
        fault, said = await _attempt(exchange, lease, upgrade)
        if fault is None or exchange.has_sent:
            return
        if not await exchange.goes_on(ask, lease, fault):
            answer.write_fault(exchange, fault, said)
            return


def _read(call: Call, message: Message) -> Upgrade:
    if call.version < (1, 1):  # RFC 6455 §4.1
        raise Refusal(RefusalKind.MALFORMED, "A WebSocket is opened with HTTP/1.1.", close=True)
    upgrade = read_upgrade(call.method, message.raw_headers)
    if sum(map(_names_model, call.target.partition("?")[2].split("&"))) > 1:
        # Which of them counts is upstream's to say, so none can be checked against the customer's rights (I6).
        raise Refusal(RefusalKind.MALFORMED, "The query names more than one model.", param="model")
    return upgrade


def _names_model(item: str) -> bool:
    return unquote_plus(item.partition("=")[0]) == "model"


def _refuse_version(exchange: Exchange, refusal: WrongVersion) -> None:
    """The one refusal with a status that HTTP dialects do not know."""
    exchange.reason = refusal.kind.code
    exchange.line.observer.refusal(refusal.kind.code)
    _, headers, body = exchange.dialect.refuse(refusal, exchange.id)
    lines = [b"%b: %b\r\n" % item for item in (*headers, *refusal.headers)]
    end = b"Content-Length: %d\r\nConnection: close\r\n\r\n" % len(body)
    _begin(exchange, refusal.status)
    exchange.bytes_out = len(body)
    exchange.protocol.write(b"".join((status_line(refusal.status), *lines, exchange.setup.extra_lines, end, body)))


def _begin(exchange: Exchange, status: int) -> None:
    exchange.status = status
    exchange.has_sent = True
    exchange.first_byte = exchange.line.leg.now() - exchange.started


# -- an attempt -------------------------------------------------------------------------------------------------------


async def _attempt(exchange: Exchange, lease: Lease, upgrade: Upgrade) -> tuple[Fault | None, Said | None]:
    """One attempt: no fault when a WebSocket was relayed to an end nobody upstream is to blame for; else also what
    upstream said with it."""
    line = exchange.line
    exchange.org = lease.place.org.spec.name
    exchange.attempts += 1
    origin = exchange.setup.ways[exchange.org].origin
    connection: Connection | None = None
    fault: Fault | None = None
    said: Said | None = None
    first_byte: float | None = None
    began = line.leg.now()
    try:
        connection = await origin.dial(exchange.waits.connect)
        answered = await _ask(exchange, lease, upgrade, connection)
        first_byte = line.leg.now() - began
        if isinstance(answered, Declined):
            fault, said = _judge(exchange.dialect, answered)
        else:
            fault = _judge_opening(exchange.dialect, answered)
            if fault is None:
                fault = await _carry(exchange, lease, upgrade, answered)
    except WireFault as broken:
        fault = broken.to_fault()
    except (asyncio.CancelledError, ConnectionResetError):
        fault = WireFault("client_gone", Reach.SENT).to_fault()
        raise
    finally:
        if connection is not None:
            connection.abort()
            origin.busy.discard(connection)
        exchange.settle(lease, fault, first_byte)
    return fault, said


async def _ask(exchange: Exchange, lease: Lease, upgrade: Upgrade, connection: Connection) -> Accepted | Declined:
    """The handshake with upstream, and its first words where it has the first. Raises `WireFault`."""
    line, setup, call = exchange.line, exchange.setup, exchange.call
    assert call is not None
    if connection.transport is None:
        raise WireFault("reset", Reach.UNSENT, "lost before the request")
    org = lease.place.org
    key = make_key(line.entropy(16))
    wire = write_request(
        upgrade,
        call.fields.joined.splitlines(keepends=True),
        target=_target(exchange, call).encode("latin-1"),
        host=setup.ways[org.spec.name].authority,
        credentials=setup.credentials(org, lease.key, exchange.dialect),
        key=key,
    )
    left = exchange.started + exchange.waits.total - line.leg.now()
    return await shake_hands(
        connection.transport,
        wire,
        key,
        upgrade.protocols,
        timeout=max(min(exchange.waits.first_byte, left), 0.0),
        peek=setup.hold_first_event if exchange.operation in SPEAKS_FIRST else 0.0,
    )


def _target(exchange: Exchange, call: Call) -> str:
    """Path and query as upstream knows them: a model that the settings call otherwise here gets its own name."""
    target = exchange.dialect.upstream_path(call.target)
    if exchange.model is None or exchange.model == exchange.model_label:
        return target
    path, _, query = target.partition("?")
    items = (f"model={quote(exchange.model_label, safe='')}" if _names_model(i) else i for i in query.split("&"))
    return f"{path}?{'&'.join(items)}"


def _judge(dialect: Dialect, declined: Declined) -> tuple[Fault, Said | None]:
    """An answer that is no switch: an error as on any call; anything else is none of what was asked for."""
    head = declined.head
    fault = dialect.judge(head.status, head.pairs(), declined.body)
    if fault is None:
        return WireFault("malformed", Reach.HEAD, f"handshake: answered {head.status}").to_fault(), None
    return fault, Said(head, declined.body)


def _judge_opening(dialect: Dialect, accepted: Accepted) -> Fault | None:
    """What the first words say, if they speak of anybody but the caller: its own mistakes are for it to read.

    Raises `WireFault` for what are no frames, and for an upstream that left without a word.
    """
    if not accepted.early:
        if accepted.transport.is_closing():
            raise WireFault("reset", Reach.HEAD, "closed after its 101")
        return None
    texts: list[bytes] = []
    scanner = FrameScanner(_OPENING, is_masked=False, see=lambda payload, _: texts.append(payload))
    try:
        scanner.feed(accepted.early)
    except FrameError as error:
        raise WireFault("malformed", Reach.HEAD, f"frames: {error.reason}") from None
    status = STATUS_OF_CLOSE.get(scanner.close_code)
    if status is not None:
        fault = dialect.judge(status, (), texts[0] if texts else scanner.close_reason)
    else:
        fault = _fault_in(dialect, texts[0]) if texts else None
    return None if fault is None or fault.scope is Scope.CALLER else fault


def _fault_in(dialect: Dialect, payload: bytes) -> Fault | None:
    """The fault a message tells of: one message is what one event is on a stream."""
    found = dialect.first_event(b"data: %b\n\n" % payload.replace(b"\n", b" ").replace(b"\r", b" "))
    return found if isinstance(found, Fault) else None


# -- the relay --------------------------------------------------------------------------------------------------------


async def _carry(exchange: Exchange, lease: Lease, upgrade: Upgrade, accepted: Accepted) -> Fault | None:
    """From the client's 101 to the end; the fault where upstream is to blame for that. Raises `ConnectionResetError`
    if the client has left."""
    line, protocol = exchange.line, exchange.protocol
    session = Session(exchange, lease)
    # Nothing is awaited from here until the relay runs: a byte read in between would be nobody's.
    client = take_over(protocol)
    if client is None:
        raise ConnectionResetError("the client left")
    protocol.step_aside()
    try:
        switch = write_switch(upgrade, accepted)
        client.transport.write(switch[:-2] + exchange.setup.extra_lines + b"\r\n")
        _begin(exchange, 101)
        exchange.setup.pool.note(lease, None, to_ticks(line.leg.now()))  # a probe must not wait for the session's end
        relay = WebSocketRelay(
            client.transport,
            accepted.transport,
            _limits(exchange, session),
            see_client=session.see_client,
            see_upstream=session.see_upstream,
            clean=session.clean,
            entropy=line.entropy,
        )
        line.relays.add(relay)
        try:
            ended = await relay.run(client.early, accepted.early)
        finally:
            line.relays.discard(relay)
    finally:
        client.give_back()
    return _close(exchange, ended)


def _limits(exchange: Exchange, session: Session) -> SocketLimits:
    intake, waits = exchange.setup.intake, exchange.waits
    return SocketLimits(
        frame_max=intake.websocket_frame_max,
        message_max=intake.websocket_frame_max,
        client_hold=_HOLD_LIMITED if session.is_limited else _HOLD,
        buffer_max=intake.stream_buffer,
        idle_timeout=waits.websocket_silence,
        total_timeout=waits.websocket_total,
        write_timeout=intake.write_timeout,
    )


def _close(exchange: Exchange, ended: Ended) -> Fault | None:
    """Puts the end into the record; the fault in it, if there is one."""
    observer = exchange.line.observer
    observer.frames(ended.frames_from_client, ended.frames_from_upstream)
    exchange.bytes_in, exchange.bytes_out = ended.bytes_from_client, ended.bytes_from_upstream
    blame = BLAME.get(ended.reason)
    if blame is None:
        if not ended.is_clean or ended.code not in _UNEVENTFUL:
            exchange.reason = f"{ended.reason} {ended.code}"
        return None
    exchange.reason = blame if blame == "client_gone" else ended.reason
    fault = WireFault(blame, Reach.PARTIAL, ended.detail).to_fault()
    if fault.scope is not Scope.CALLER:
        observer.broken(fault.kind)
    return fault


class Session:
    """What is read in the messages of one WebSocket as they go by."""

    __slots__ = ("_exchange", "_keys", "_lease", "is_limited")

    def __init__(self, exchange: Exchange, lease: Lease) -> None:
        self._exchange = exchange
        self._lease = lease
        #: The customers' keys by which this one was admitted last.
        self._keys = exchange.line.setup.keys
        grant = exchange.grant
        #: Whether the customer may use some models only: then each message is read for the models it names.
        self.is_limited = grant.account.models is not None or grant.key.models is not None

    def __repr__(self) -> str:
        return f"<Session {self._exchange.id}{' limited' if self.is_limited else ''} {self._exchange.usage!r}>"

    # -- from the client ----------------------------------------------------------------------------------------------

    def see_client(self, payload: bytes, is_whole: bool) -> None:
        """Raises `Refusal` for what the customer has no right to: the message is not passed on."""
        exchange = self._exchange
        if exchange.line.setup.keys is not self._keys or exchange.grant.key.expires is not None:
            self._admit_again()
        if self.is_limited:
            self._check_models(payload, is_whole)

    def _admit_again(self) -> None:
        """A session may last a day; a key revoked meanwhile counts no longer than on calls (threat 14)."""
        exchange = self._exchange
        assert exchange.call is not None
        keys, presented = exchange.line.setup.keys, exchange.call.fields.presented
        grant = keys.find(presented) if presented is not None else None
        if grant is None or grant.refusal(exchange.line.wall()) is not None:
            raise Refusal(RefusalKind.INVALID_KEY, "Incorrect API key provided.")
        exchange.grant, self._keys = grant, keys
        self.is_limited = grant.account.models is not None or grant.key.models is not None

    def _check_models(self, payload: bytes, is_whole: bool) -> None:
        if not is_whole:
            raise Refusal(RefusalKind.TOO_LARGE, f"Messages of this account are limited to {_HOLD_LIMITED} bytes.")
        if b"model" not in payload and b"\\u" not in payload:
            return
        try:
            document = jsonbody.parse(payload)
        except jsonbody.Invalid as error:
            raise Refusal(RefusalKind.BAD_JSON, f"We could not parse the message: {error}.") from None
        for model in _models_in(document):
            if not self._exchange.grant.allows(model):
                message = f"The model `{model[:64]}` does not exist or you do not have access to it."
                raise Refusal(RefusalKind.UNKNOWN_MODEL, message, param="model")

    # -- from upstream ------------------------------------------------------------------------------------------------

    def see_upstream(self, payload: bytes, is_whole: bool) -> None:
        """Adds up usage, tells the pool of faults."""
        if not is_whole:
            return
        if has_usage(payload):
            self._add_usage(payload)
        if _may_be_fault(payload):
            fault = _fault_in(self._exchange.dialect, payload)
            if fault is not None:
                self._note(fault)

    def _add_usage(self, payload: bytes) -> None:
        exchange = self._exchange
        tap = exchange.dialect.tap(exchange.intent, 200, b"application/json")
        tap.feed(payload)
        more = tap.usage()
        if more is not None:
            exchange.usage = more if exchange.usage is None else _sum(exchange.usage, more)

    def _note(self, fault: Fault) -> None:
        """The session goes on or ends as upstream likes; the next call shall know."""
        exchange = self._exchange
        if fault.scope is Scope.CALLER:
            return
        exchange.line.observer.fault(fault.scope.value, fault.kind)
        if fault.scope is Scope.MODEL and (exchange.model is None or fault.penalty is not Penalty.COOL):
            return  # it speaks of a model named in a message, not of the one that was leased
        exchange.setup.pool.note(self._lease, fault, to_ticks(exchange.line.leg.now()))

    def clean(self, payload: bytes) -> bytes:
        """Takes the pool's names out of errors and close reasons (threat 7); other messages are the client's own."""
        if payload[:1] != b"{":
            return redact(payload) if len(payload) <= CONTROL_MAX else payload
        dialect = self._exchange.dialect
        fault = _fault_in(dialect, payload)
        return payload if fault is None else dialect.refuse_fault(fault, payload)


def _may_be_fault(payload: bytes) -> bool:
    """Cheap, and wrong only on the side of looking: a quotation mark inside a text is written with a back-slash."""
    return b'"error"' in payload or b'.failed"' in payload


def _models_in(document: object) -> list[str]:
    """Every text of a member named `model`, wherever it stands: which of them upstream obeys is not ours to guess."""
    found: list[str] = []
    rest = [document]
    while rest:
        node = rest.pop()
        if isinstance(node, dict):
            model = node.get("model")
            if isinstance(model, str):
                found.append(model)
            rest += node.values()
        elif isinstance(node, list):
            rest += node
    return found


def _sum(total: Usage, more: Usage) -> Usage:
    """Each response of a session bills by itself; `raw` is the last one's."""
    for unit in ("input", "output", "cached", "cache_write", "reasoning"):
        setattr(total, unit, getattr(total, unit) + getattr(more, unit))
    total.service_tier, total.raw = more.service_tier or total.service_tier, more.raw
    return total
