"""The leg out: one wire sent, one answer's head returned, or a `WireFault`.

Decides when waiting is over: connect, first byte, silence between bytes, the whole call. One sweeper looks at every
exchange a few times a second instead of a timer each (a timer costs 1 µs a call, the sweep 0.3 µs an exchange and
second). Knows no keys, pools or dialects; never follows a redirect, keeps no cookie.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Protocol

from yugong.base.errors import Reach, WireFault
from yugong.upstream.connection import Connection
from yugong.upstream.head import Head, HeadReader
from yugong.upstream.origin import Origin, OriginSpec

SWEEP_EVERY = 0.1  # seconds: how late a time-out may be noticed
EXPIRE_EVERY = 20  # sweeps


class Timeouts(Protocol):
    """Seconds to connect, to the answer's head, and between two of its bytes."""

    @property
    def connect(self) -> float: ...

    @property
    def first_byte(self) -> float: ...

    @property
    def silence(self) -> float: ...


class Wire:
    """A request as it goes upstream."""

    __slots__ = ("deadline", "method", "more", "reader", "start", "timeouts")

    def __init__(self, method: str, start: bytes, reader: HeadReader, timeouts: Timeouts, deadline: float) -> None:
        self.method = method
        #: The head, ended by its blank line, and what of the body is in memory.
        self.start = start
        #: Reads the answer's head.
        self.reader = reader
        #: The rest of a body too large for memory, read anew for every attempt.
        self.more: Callable[[], AsyncIterator[bytes]] | None = None
        self.timeouts = timeouts
        #: Loop time at which the whole call is over.
        self.deadline = deadline

    def __repr__(self) -> str:
        return f"<Wire {self.method} {len(self.start)}B{' and more' if self.more is not None else ''}>"


class Attempt:
    """One exchange under way."""

    __slots__ = ("connection", "deadline", "head_by", "origin", "quiet_since", "seen", "silence", "was_sent_whole")

    def __init__(self, origin: Origin, connection: Connection, wire: Wire, now: float) -> None:
        self.origin = origin
        self.connection = connection
        self.head_by = now + wire.timeouts.first_byte
        self.silence = wire.timeouts.silence
        self.deadline = wire.deadline
        self.seen = 0
        self.quiet_since = now
        self.was_sent_whole = True

    def __repr__(self) -> str:
        return f"<Attempt {self.origin.spec.name} {self.connection!r}>"

    @property
    def head(self) -> Head:
        head = self.connection.head
        assert head is not None
        return head

    def overdue(self, now: float) -> WireFault | None:
        """The time-out that has passed, if one has."""
        connection = self.connection
        if now >= self.deadline:
            reach = Reach.SENT if connection.head is None else Reach.PARTIAL
            return WireFault("total_timeout", reach)
        if connection.head is None:
            return WireFault("first_byte_timeout", Reach.SENT) if now >= self.head_by else None
        if connection.received != self.seen or connection.is_done or not connection.is_reading():
            self.seen = connection.received
            self.quiet_since = now  # also while we hold it back: that time is not upstream's, then or afterwards
        elif now - self.quiet_since >= self.silence:
            return WireFault("silence_timeout", Reach.PARTIAL)
        return None


class Leg:
    """All exchanges of a worker with all origins."""

    __slots__ = ("_attempts", "_loop", "_origins", "_sweep_handle", "_sweeps")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._origins: dict[OriginSpec, Origin] = {}
        self._attempts: set[Attempt] = set()
        self._sweeps = 0
        self._sweep_handle = loop.call_later(SWEEP_EVERY, self._sweep)

    def __repr__(self) -> str:
        return f"<Leg attempts={len(self._attempts)} {list(self._origins.values())!r}>"

    def origin(self, spec: OriginSpec) -> Origin:
        """The connections to `spec`, made on first use."""
        origin = self._origins.get(spec)
        if origin is None:
            origin = self._origins[spec] = Origin(spec, self._loop)
        return origin

    async def send(self, origin: Origin, wire: Wire) -> Attempt:
        """Sends `wire` and returns when the answer's head is there. Raises `WireFault`.

        A kept-alive connection that upstream had already closed is no fault: dialled anew, once.
        """
        connection = origin.take()
        while True:
            if connection is None:
                connection = await origin.dial(wire.timeouts.connect)
            waiter = connection.send(wire.method, wire.start, wire.reader)
            attempt = Attempt(origin, connection, wire, self._loop.time())
            self._attempts.add(attempt)
            try:
                if wire.more is not None:
                    await self._send_rest(attempt, waiter, wire.more())
                await waiter
            except WireFault as fault:
                self.drop(attempt)
                if not fault.is_stale:
                    raise
                connection = None
            except BaseException:
                _forget(waiter)
                self.drop(attempt)
                raise
            else:
                return attempt

    async def _send_rest(self, attempt: Attempt, waiter: asyncio.Future[Head], more: AsyncIterator[bytes]) -> None:
        first_byte = attempt.head_by - self._loop.time()
        attempt.was_sent_whole = False
        async for piece in more:
            if waiter.done():  # an early answer (413, 401): the rest is not wanted
                return
            await attempt.connection.write_more(piece)
            attempt.head_by = self._loop.time() + first_byte
        attempt.was_sent_whole = True

    def finish(self, attempt: Attempt) -> None:
        """The exchange is over: the connection is kept, or closed if request or answer did not end."""
        connection = attempt.connection
        transport = connection.transport
        is_written = transport is not None and not transport.get_write_buffer_size()
        if connection.is_done and attempt.was_sent_whole and is_written:
            self._attempts.discard(attempt)
            attempt.origin.give_back(connection)
        else:
            self.drop(attempt)

    def drop(self, attempt: Attempt) -> None:
        """Ends the exchange whatever its state: upstream sees its connection close at once."""
        self._attempts.discard(attempt)
        attempt.connection.abort()
        attempt.origin.busy.discard(attempt.connection)

    def _sweep(self) -> None:
        self._sweep_handle = self._loop.call_later(SWEEP_EVERY, self._sweep)
        self._sweeps += 1
        now = self._loop.time()
        late = [(a, fault) for a in self._attempts if (fault := a.overdue(now)) is not None]
        for attempt, fault in late:
            attempt.connection.abort(fault)
        if self._sweeps % EXPIRE_EVERY == 0:
            for origin in self._origins.values():
                origin.drop_expired(now)

    def now(self) -> float:
        """Loop time, in seconds."""
        return self._loop.time()

    def counts(self) -> tuple[int, int]:
        """Connections carrying an exchange, and idle ones."""
        origins = self._origins.values()
        return sum(len(o.busy) for o in origins), sum(o.idle for o in origins)

    async def retire(self, keep: set[OriginSpec]) -> None:
        """Forgets origins that no setting names any more; exchanges under way end in peace."""
        for spec in [s for s in self._origins if s not in keep]:
            await self._origins.pop(spec).close()

    async def close(self) -> None:
        """Drops every exchange and connection."""
        self._sweep_handle.cancel()
        for attempt in list(self._attempts):
            self.drop(attempt)
        await self.retire(set())


def _forget(waiter: asyncio.Future[Head]) -> None:
    """Nobody will await it: its fault must not come up as one that was never heard."""
    if not waiter.cancel() and not waiter.cancelled():
        waiter.exception()
