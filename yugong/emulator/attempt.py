"""One attempt: a request as it came, whose it is, what was decided and what became of it. And what an answer is.

One `Attempt` a request, owned by one coroutine; the journal line is read off it. Decides nothing.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from yugong.emulator.body import EMPTY, Body, Part
from yugong.emulator.text import asked_tokens, seed_of

if TYPE_CHECKING:
    from aiohttp.web import BaseRequest

    from yugong.emulator.faults import Fault
    from yugong.emulator.orgs import Group, Org
    from yugong.emulator.spec import EmulatorSpec

JSON = "application/json"
FIXED_TIME = 1_750_000_000  # of a deterministic emulator
SSE = "text/event-stream; charset=utf-8"


class Answer:
    """What to send: a body in memory, or part of a file, or the events of a stream (each whole, blank line and all)."""

    __slots__ = ("body", "content_type", "events", "extra", "file", "status", "tail")

    def __init__(self, body: bytes = b"", content_type: str = JSON, status: int = 200, extra: str = "") -> None:
        self.status = status
        self.content_type = content_type
        self.body = body
        self.extra = extra  # more header lines, each ended by CRLF
        self.events: Iterable[bytes] | None = None
        self.tail = b""  # after the last event, not counted as one: `data: [DONE]`
        self.file: tuple[Body, int, int] | None = None  # body, start, end

    def __repr__(self) -> str:
        shape = "stream" if self.events is not None else "file" if self.file else f"{len(self.body)} bytes"
        return f"<Answer {self.status} {self.content_type} {shape}>"

    @classmethod
    def stream(cls, events: Iterable[bytes], tail: bytes = b"", content_type: str = SSE) -> Answer:
        made = cls(b"", content_type)
        made.events = events
        made.tail = tail
        return made


class Pace:
    """How an answer is to come: `x-emulator-pace: events=…,interval_ms=…,size=…,delay_ms=…,seed=…`."""

    __slots__ = ("delay", "interval", "pieces", "seed", "size")

    def __init__(self, spec: EmulatorSpec) -> None:
        self.pieces = spec.pieces
        self.size = spec.piece_size
        self.interval = spec.interval_ms / 1000
        self.delay = spec.delay_ms / 1000
        self.seed = ""

    def __repr__(self) -> str:
        return f"<Pace {self.pieces}×{self.size}B every {self.interval}s after {self.delay}s>"

    def read(self, header: str) -> None:
        """Take a header's wishes; raises ValueError."""
        for item in header.split(","):
            name, _, value = item.strip().partition("=")
            if name == "events":
                self.pieces = int(value)
            elif name == "size":
                self.size = int(value)
            elif name == "interval_ms":
                self.interval = float(value) / 1000
            elif name == "delay_ms":
                self.delay = float(value) / 1000
            elif name == "seed":
                self.seed = value
            else:
                raise ValueError(f"unknown pace {name!r}")


class Attempt:
    """One request and its fate."""

    __slots__ = (
        "arrived", "body", "chunked", "dialect", "document", "empty", "events", "fault", "files", "group",
        "keep_alive", "key", "key_id", "left_early", "limits", "model", "org", "pace", "path", "prompt",
        "query", "request", "request_id", "sent", "serial", "spec", "started", "status", "streams", "target",
        "texts", "usage",
    )  # fmt: skip

    def __init__(self, request: BaseRequest, spec: EmulatorSpec, serial: str) -> None:
        self.serial = serial  # unique over the emulator's life
        self.arrived = time.time()
        self.started = time.monotonic()
        self.request = request
        self.spec = spec
        self.target = request.raw_path
        path, _, self.query = self.target.partition("?")
        self.path = path.removeprefix("/openai") if path.startswith("/openai/v1/") else path
        headers = request.headers
        self.dialect = "anthropic" if "anthropic-version" in headers or path.startswith("/v1/messages") else "openai"
        self.pace = Pace(spec)
        self.keep_alive = request.keep_alive
        self.chunked = request.version >= (1, 1)
        self.key = ""
        self.key_id = ""
        self.org: Org | None = None
        self.group: Group | None = None  # that admitted it and is to be released
        self.limits: Group | None = None  # whose figures the head tells
        self.body: Body = EMPTY
        self.document: Any = None
        self.texts: dict[str, str] = {}  # of a form
        self.files: dict[str, Part] = {}
        self.model = ""
        self.prompt = b""
        self.empty = ""  # the dimension a fault says is used up
        self.streams = False
        self.fault: Fault | None = None
        self.status = 0  # 0: no head was sent
        self.request_id = f"req_{serial}"
        self.usage: dict[str, int] | None = None
        self.sent = 0  # bytes of body handed to the transport
        self.events = 0
        self.left_early = False

    def __repr__(self) -> str:
        fault = self.fault.kind if self.fault else "-"
        return f"<Attempt {self.request.method} {self.target} key={self.key_id} status={self.status} fault={fault}>"

    @property
    def organization(self) -> str:
        return self.org.spec.organization if self.org else ""

    @property
    def created(self) -> int:
        """Unix seconds for the answer's `created`."""
        return FIXED_TIME if self.spec.deterministic else int(self.arrived)

    @property
    def seed(self) -> str:
        """What the answer's text is made from."""
        if not self.pace.seed:
            self.pace.seed = seed_of(self.prompt)
        return self.pace.seed

    def make_id(self, prefix: str) -> str:
        """An id for an object this answer makes: unique, or derived from the request if all is to be deterministic."""
        return f"{prefix}{self.seed:0>24}" if self.spec.deterministic else prefix + self.serial

    def pieces(self) -> tuple[int, str]:
        """How many pieces the answer has, and its finish reason: `length` when the body's ceiling cut it."""
        ceiling = asked_tokens(self.document)
        if 0 < ceiling < self.pace.pieces:
            return ceiling, "length"
        return self.pace.pieces, "stop"

    def field(self, name: str, default: Any = None) -> Any:
        """A field of the JSON body, or of the form."""
        if isinstance(self.document, dict):
            return self.document.get(name, default)
        return self.texts.get(name, default)

    def line(self) -> dict[str, Any]:
        """The journal line. Header names as they came, in order; no credential, only the key's id."""
        return {
            "time": self.arrived,
            "seconds": round(time.monotonic() - self.started, 6),
            "org": self.org.spec.name if self.org else None,
            "key": self.key_id or None,
            "method": self.request.method,
            "target": self.target,
            "status": self.status,
            "fault": self.fault.kind if self.fault else None,
            "model": self.model or None,
            "stream": self.streams,
            "usage": self.usage,
            "bytes": self.sent,
            "events": self.events,
            "left_early": self.left_early,
            "request_id": self.request_id,
            "call": self.request.headers.get("x-emulator-call"),
            "body_bytes": self.body.size,
            "body_sha256": self.body.sha256,
            "headers": [name.decode("latin-1") for name, _ in self.request.raw_headers],
        }
