"""The relay of a WebSocket: frames from transport to transport, both ways, until both connections are gone.

Decides how a relay ends: the table `ENDINGS` says for each reason what either side is told. A close frame that one side
sends goes to the other as it came; only where none can come do we write our own. After an end of our making upstream is
closed at once (it must not go on working for nobody), while the client is given `close_timeout` to read what it was
told. Where part of a frame has gone out already, no close frame can follow it: the connection is closed without.

Backpressure is the transports': a full write buffer stops the reading on the other side, and `write_timeout` ends it.
Knows no dialect, pool or money: what it is given to `see` with reads the messages. Frames are judged by core/frames.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from typing import NamedTuple

from aiohttp.web_protocol import RequestHandler

from yugong.base.errors import Refusal
from yugong.core.frames import Clean, FrameCaps, FrameError, FrameScanner, See, Unmask, has_usage, unmask, write_close

maybe_fast_mask: Callable[[bytes, bytearray], None] | None
try:  # aiohttp's C loop: 0.4 µs for a kilobyte instead of 3
    from aiohttp._websocket.helpers import websocket_mask as maybe_fast_mask
except ImportError:  # pragma: no cover - not part of its public interface
    maybe_fast_mask = None


class Ending(NamedTuple):
    """Close codes (RFC 6455 §7.4.1, IANA's registry) for either side, 0 for none of ours, and the words with them."""

    to_client: int
    to_upstream: int
    words: str


#: Why a relay ended. What is told is told only to a side that has not been told yet.
ENDINGS = {
    "closed_by_client": Ending(0, 0, ""),
    "closed_by_upstream": Ending(0, 0, ""),
    "client_lost": Ending(0, 1001, "client gone"),
    "upstream_lost": Ending(1011, 0, "upstream connection lost"),
    "client_broke": Ending(1002, 1001, "protocol error"),
    "upstream_broke": Ending(1011, 1002, "upstream broke the protocol"),
    "refused": Ending(1008, 1001, "refused"),
    "expired": Ending(1001, 1001, "open too long"),
    "idle": Ending(1001, 1001, "idle too long"),
    "client_slow": Ending(1008, 1001, "reading too slowly"),
    "upstream_slow": Ending(1013, 1001, "upstream is not reading"),
    "failed": Ending(1011, 1001, "internal error"),
    "draining": Ending(1012, 1001, "service restart"),
}


class SocketLimits:
    """Sizes in bytes, times in seconds. `hold`: up to which frames are passed on whole; see core/frames."""

    __slots__ = (
        "buffer_max",
        "client_caps",
        "close_timeout",
        "idle_timeout",
        "total_timeout",
        "upstream_caps",
        "write_timeout",
    )

    def __init__(
        self,
        *,
        frame_max: int = 16 << 20,  # OpenAI: an audio append has up to 15 MiB
        message_max: int = 16 << 20,
        client_hold: int = 256 << 10,
        upstream_hold: int = 2 << 20,  # `response.completed` repeats the whole output before its usage
        buffer_max: int = 64 << 10,
        idle_timeout: float = 7200.0,
        total_timeout: float = 86_400.0,
        write_timeout: float = 30.0,
        close_timeout: float = 5.0,
    ) -> None:
        self.client_caps = FrameCaps(frame_max, message_max, client_hold)
        self.upstream_caps = FrameCaps(frame_max, message_max, upstream_hold)
        #: Bytes waiting to be written to one side before the other is no longer read.
        self.buffer_max = buffer_max
        #: Without a byte from either side.
        self.idle_timeout = idle_timeout
        #: From the relay's beginning.
        self.total_timeout = total_timeout
        #: With a write buffer that stays full.
        self.write_timeout = write_timeout
        #: For a closing handshake, and for a client to read its close frame.
        self.close_timeout = close_timeout

    def __repr__(self) -> str:
        return (
            f"<SocketLimits client={self.client_caps!r} idle={self.idle_timeout:g}s "
            f"write={self.write_timeout:g}s close={self.close_timeout:g}s>"
        )


class Ended(NamedTuple):
    """How a relay ended. Bytes as read from each side, frames as passed on."""

    reason: str
    #: The first close code that was sent, by whomever; 0 where none was.
    code: int
    detail: str
    #: Both sides have said close.
    is_clean: bool
    bytes_from_client: int
    bytes_from_upstream: int
    frames_from_client: int
    frames_from_upstream: int

    def __repr__(self) -> str:
        return (
            f"<Ended {self.reason} {self.code}{'' if self.is_clean else ' unclean'} "
            f"client={self.bytes_from_client}B/{self.frames_from_client} "
            f"upstream={self.bytes_from_upstream}B/{self.frames_from_upstream}>"
        )


class Client:
    """A client's connection as taken over from aiohttp: its transport and the frames that came before our 101."""

    __slots__ = ("_handler", "early", "transport")

    def __init__(self, handler: RequestHandler, transport: asyncio.Transport, early: bytes) -> None:
        self._handler = handler
        self.transport = transport
        self.early = early

    def __repr__(self) -> str:
        return f"<Client early={len(self.early)}B>"

    def give_back(self) -> None:
        """Closes what may still be open and lets aiohttp forget the connection. To be called once, after the relay."""
        self.transport.abort()
        self._handler._task_handler = None  # or aiohttp would cancel the task that is calling here
        self._handler.connection_lost(None)


def take_over(handler: RequestHandler) -> Client | None:
    """Takes a connection out of aiohttp's hands after an upgrade request; None if the client has gone meanwhile.

    No `await` may come between this, writing the 101 and `WebSocketRelay.run`. From here `handler` hears nothing more
    of its connection, so it must be told the end by `Client.give_back`. aiohttp 3.14 keeps what follows an upgrade
    request in `_message_tail` (web_protocol.py, `data_received`), and stops reading when that is `read_bufsize` long.
    """
    transport = handler.transport
    if transport is None or transport.is_closing():
        return None
    assert handler._upgraded, "aiohttp saw no upgrade request"
    early, handler._message_tail = handler._message_tail, b""
    handler._buffer_paused = False
    return Client(handler, transport, early)


def on_usage(read: Callable[[bytes], None]) -> See:
    """A `see` that hands on only complete messages which may hold usage."""

    def see(payload: bytes, is_whole: bool) -> None:
        if is_whole and has_usage(payload):
            read(payload)

    return see


def _fast_unmask(key: bytes, payload: bytes) -> bytes:
    assert maybe_fast_mask is not None
    data = bytearray(payload)
    maybe_fast_mask(key, data)
    return bytes(data)


_UNMASK: Unmask = unmask if maybe_fast_mask is None else _fast_unmask


class _Side(asyncio.Protocol):
    """One of the two connections: what comes from it goes to its `peer`."""

    __slots__ = (
        "_relay",
        "bytes",
        "has_said_close",
        "is_client",
        "is_deaf",
        "is_lost",
        "is_open",
        "peer",
        "scanner",
        "slow_timer",
        "transport",
    )

    peer: _Side

    def __init__(
        self, relay: WebSocketRelay, transport: asyncio.Transport, scanner: FrameScanner, *, is_client: bool
    ) -> None:
        self._relay = relay
        self.transport = transport
        self.scanner = scanner
        self.is_client = is_client
        #: Frames may be written to it: it has not been told to close and is not lost.
        self.is_open = True
        self.has_said_close = False
        #: What comes from it counts no more.
        self.is_deaf = False
        self.is_lost = False
        self.bytes = 0
        self.slow_timer: asyncio.TimerHandle | None = None

    def __repr__(self) -> str:
        state = "lost" if self.is_lost else "open" if self.is_open else "closing"
        return f"<_Side {'client' if self.is_client else 'upstream'} {state} {self.bytes}B>"

    def data_received(self, data: bytes) -> None:
        relay = self._relay
        relay.last_heard = relay.now()
        self.bytes += len(data)
        if self.is_deaf:
            return
        scanner, peer = self.scanner, self.peer
        try:
            ready = scanner.feed(data)
        except FrameError as error:
            if error.ready and peer.is_open:
                peer.transport.write(error.ready)
            relay.on_broken(self, error)
            return
        except Refusal as refusal:
            relay.on_refused(self, refusal)
            return
        except Exception as bug:  # in a tap; asyncio would cut the connection without a word
            relay.on_bug(self, bug)
            return
        if ready and peer.is_open:
            peer.transport.write(ready)
        if scanner.is_closed and not self.has_said_close:
            relay.on_close(self)

    def eof_received(self) -> bool:
        """After its close frame a side may stop sending and still wait for the answer; else it is gone."""
        # Over TLS there is no half of a connection; asyncio would warn of a wish for one.
        return self.has_said_close and self.is_open and self.transport.can_write_eof()

    def connection_lost(self, exc: Exception | None) -> None:
        self._relay.on_lost(self, exc)

    def pause_writing(self) -> None:
        if not self.peer.is_lost:
            self.peer.transport.pause_reading()
        self._relay.watch_slow(self)

    def resume_writing(self) -> None:
        if self.slow_timer is not None:
            self.slow_timer.cancel()
            self.slow_timer = None
        if not self.peer.is_lost:
            self.peer.transport.resume_reading()


class WebSocketRelay:
    """Relays frames between two connected transports whose handshakes are done.

    `see_client`, `see_upstream`: called with each text message (see core/frames); a `Refusal` raised there ends the
    relay, the message not passed on. `clean` takes keys out of upstream's text frames and close reasons. `entropy`
    masks the close frames we write to upstream ourselves; every other frame keeps its client's mask.
    """

    __slots__ = (
        "_bug",
        "_client",
        "_code",
        "_detail",
        "_entropy",
        "_expires",
        "_limits",
        "_loop",
        "_over",
        "_reason",
        "_timer",
        "_upstream",
        "last_heard",
        "now",
    )

    def __init__(
        self,
        client: asyncio.Transport,
        upstream: asyncio.Transport,
        limits: SocketLimits,
        *,
        see_client: See | None = None,
        see_upstream: See | None = None,
        clean: Clean | None = None,
        entropy: Callable[[int], bytes] = os.urandom,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self.now = self._loop.time
        #: Loop time of the last byte from either side.
        self.last_heard = self.now()
        self._expires = self.last_heard + limits.total_timeout
        self._limits = limits
        self._entropy = entropy
        from_client = FrameScanner(limits.client_caps, is_masked=True, see=see_client, unmask=_UNMASK)
        from_upstream = FrameScanner(limits.upstream_caps, is_masked=False, see=see_upstream, clean=clean)
        self._client = _Side(self, client, from_client, is_client=True)
        self._upstream = _Side(self, upstream, from_upstream, is_client=False)
        self._client.peer, self._upstream.peer = self._upstream, self._client
        self._over: asyncio.Future[None] = self._loop.create_future()
        #: One timer: first for idleness, then for the end.
        self._timer: asyncio.TimerHandle | None = None
        self._bug: Exception | None = None
        self._reason = ""
        self._code = 0
        self._detail = ""

    def __repr__(self) -> str:
        return f"<WebSocketRelay {self._reason or 'open'} {self._client!r} {self._upstream!r}>"

    async def run(self, from_client: bytes = b"", from_upstream: bytes = b"") -> Ended:
        """Relays until both connections are gone. The arguments are what had been read before, from each side.

        Cancelled, it has told the client that the service restarts, and both connections are closing. A bug in a tap
        is raised when all is closed.
        """
        self._check_time()
        try:
            self._begin(from_client, from_upstream)
            await self._over
        except asyncio.CancelledError:
            self.drain()
            self._client.transport.close()
            raise
        return self._ended()

    def _begin(self, from_client: bytes, from_upstream: bytes) -> None:
        sides = (self._upstream, self._client)
        gone = [side for side in sides if side.transport.is_closing()]  # whoever listened before us was told of it
        for side in sides:
            side.transport.set_protocol(side)
            if side in gone:
                side.is_open = False
            else:
                side.transport.set_write_buffer_limits(high=self._limits.buffer_max)
        for side, early in zip(sides, (from_upstream, from_client), strict=True):
            if early:
                side.data_received(early)
            if side in gone:
                self.on_lost(side, None)
            elif side.peer.slow_timer is None:
                side.transport.resume_reading()

    def drain(self) -> None:
        """Ends the relay because the service does; the client is told to come again (1012)."""
        self._end("draining")

    # -- what happens -----------------------------------------------------------------------------------------------

    def on_close(self, side: _Side) -> None:
        """`side` sent a close frame; it has been passed on if the other was open."""
        side.has_said_close = True
        side.peer.is_open = False
        if not self._reason:
            self._note("closed_by_client" if side.is_client else "closed_by_upstream", side.scanner.close_code)
            self._detail = side.scanner.close_reason.decode("utf-8", "replace")
            self._give_time()
        for each in (side, side.peer):  # both directions are closed: RFC 6455 §7.1.1
            if each.has_said_close and not each.is_open and not each.is_lost:
                each.transport.close()

    def on_broken(self, side: _Side, error: FrameError) -> None:
        side.is_deaf = True
        self._detail = self._detail or error.reason
        self._end("client_broke" if side.is_client else "upstream_broke", error.code if side.is_client else 0)

    def on_refused(self, side: _Side, refusal: Refusal) -> None:
        side.is_deaf = True
        self._detail = self._detail or refusal.message
        self._end("refused")

    def on_bug(self, side: _Side, bug: Exception) -> None:
        """Ends like the rest; `run` raises it in the end."""
        side.is_deaf = True
        self._bug = self._bug or bug
        self._end("failed")

    def on_lost(self, side: _Side, exc: Exception | None) -> None:
        if side.is_lost:
            return
        side.is_lost, side.is_open = True, False
        side.resume_writing()
        if exc is not None:
            self._detail = self._detail or str(exc)
        self._end("client_lost" if side.is_client else "upstream_lost")
        if side.peer.is_lost:
            self._finish()

    def watch_slow(self, side: _Side) -> None:
        reason = "client_slow" if side.is_client else "upstream_slow"
        side.slow_timer = self._loop.call_later(self._limits.write_timeout, self._end, reason)

    def _check_time(self) -> None:
        now = self.now()
        idle = self.last_heard + self._limits.idle_timeout
        if now >= self._expires:
            self._end("expired")
        elif now >= idle:
            self._end("idle")
        else:
            self._timer = self._loop.call_at(min(idle, self._expires), self._check_time)

    # -- the end ----------------------------------------------------------------------------------------------------

    def _end(self, reason: str, code: int = 0) -> None:
        """Tells each side what `ENDINGS` has for it, closes upstream, and leaves the client its time.

        The first reason is the relay's; a later one (a loss while closing) only tells who has not been told.
        """
        ending = ENDINGS[reason]
        if not self._reason:
            self._note(reason, code or ending.to_client or ending.to_upstream)
            self._give_time()
        client, upstream = self._client, self._upstream
        self._tell(client, code or ending.to_client, ending.words)
        if not upstream.is_lost:
            self._tell(upstream, ending.to_upstream, ending.words)
            if upstream.slow_timer is None:
                upstream.transport.close()
            else:
                upstream.transport.abort()  # what it does not read would keep it open

    def _tell(self, side: _Side, code: int, words: str) -> None:
        """Writes our own close frame to a side that is still open, and nothing more after it."""
        if not side.is_open or not code:
            return
        side.is_open = False
        if side.peer.scanner.is_mid_frame:
            side.transport.close()
            return
        words = self._detail if side.is_client and self._reason in ("client_broke", "refused") else words
        side.transport.write(write_close(code, words, b"" if side.is_client else self._entropy(4)))
        if side.has_said_close:
            side.transport.close()
        elif side.is_client and side.transport.can_write_eof():
            side.transport.write_eof()  # a client that reads both has no more to wait for

    def _note(self, reason: str, code: int) -> None:
        self._reason, self._code = reason, code

    def _give_time(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_later(self._limits.close_timeout, self._abort)

    def _abort(self) -> None:
        for side in (self._client, self._upstream):
            if not side.is_lost:
                side.transport.abort()

    def _finish(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._over.done():
            return
        if self._bug is not None:
            self._over.set_exception(self._bug)
        else:
            self._over.set_result(None)

    def _ended(self) -> Ended:
        client, upstream = self._client, self._upstream
        return Ended(
            self._reason,
            self._code,
            self._detail,
            client.has_said_close and upstream.has_said_close,
            client.bytes,
            upstream.bytes,
            client.scanner.frames,
            upstream.scanner.frames,
        )
