"""What a dialect is: the words one provider uses for the same few things.

A dialect reads an intent, writes credentials and refusals, judges answers, reads limits and usage. It decides nothing
about pools, money or retries, and touches no socket. A provider is one file in this folder that defines
`DIALECT: Dialect`, plus one folder of vectors under `tests/vectors/`; `catalog()` finds it by itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from mmap import mmap
from typing import Final, Protocol

from yugong.base.errors import Fault, Penalty, Reach, Refusal, Scope

#: Of an answer: lower-case names.
Headers = Sequence[tuple[bytes, bytes]]
Body = bytes | mmap


class Intent:
    """What a dialect read in a call. One per call; plain slots."""

    __slots__ = (
        "adds_usage",
        "input_bytes",
        "is_metered",
        "is_repeatable",
        "is_stream",
        "max_output",
        "model",
        "model_span",
        "n",
        "needs_model",
        "operation",
        "prefix_key",
        "stream_rule",
    )

    def __init__(self, operation: str) -> None:
        #: Bounded label, e.g. "chat.completions", "files", "other".
        self.operation = operation
        #: As the client wrote it; None where the operation takes none.
        self.model: str | None = None
        #: Where a form's model stands in the body (start, end); None for JSON, where it is looked for when needed.
        self.model_span: tuple[int, int] | None = None
        self.needs_model = False
        self.is_stream = False
        #: Name of the dialect's rule for the event stream this may answer with.
        self.stream_rule = ""
        #: Whether usage in the answer is this call's own: a retrieved object echoes that of the call that made it.
        self.is_metered = True
        #: Whether sending it twice can do no more harm than paying for one answer twice (False: it makes objects).
        self.is_repeatable = True
        self.input_bytes = 0
        #: Output tokens asked for at most, None if unsaid.
        self.max_output: int | None = None
        #: Answers asked for (`n`, `best_of`), at least 1: each may be `max_output` long.
        self.n = 1
        #: Usage must be asked for by us (and what that brings removed again): chat and completions streams.
        self.adds_usage = False
        #: What upstream's prompt cache would key on, if the client says (`prompt_cache_key`, `previous_response_id`).
        self.prefix_key: str | None = None

    def __repr__(self) -> str:
        stream = " stream" if self.is_stream else ""
        return f"<Intent {self.operation} model={self.model}{stream} in={self.input_bytes}B max_out={self.max_output}>"


class Usage:
    """Units one call used. All integers; zero is a value, None is 'not said'.

    In every dialect `input` is all of it, what was read from or written to a cache included, and `output` includes
    `reasoning`: so OpenAI counts. A dialect whose provider counts otherwise adds up.
    """

    __slots__ = ("cached", "cache_write", "input", "is_estimated", "output", "reasoning", "service_tier", "raw")

    def __init__(self, input: int = 0, output: int = 0) -> None:
        self.input = input
        self.output = output
        self.cached = 0
        self.cache_write = 0
        self.reasoning = 0
        self.service_tier: str | None = None
        self.is_estimated = False
        #: The usage object as upstream wrote it, for the ledger.
        self.raw: dict[str, object] | None = None

    def __repr__(self) -> str:
        mark = " estimated" if self.is_estimated else ""
        return f"<Usage in={self.input} (cached {self.cached}) out={self.output}{mark}>"


class LimitReport:
    """What one answer says of one limit of the org that gave it."""

    __slots__ = ("dimension", "limit", "remaining", "reset")

    def __init__(self, dimension: str, limit: int | None, remaining: int | None, reset: float | None) -> None:
        #: "requests" | "tokens" | "input_tokens" | "output_tokens" | "images" …
        self.dimension = dimension
        self.limit = limit
        self.remaining = remaining
        #: Seconds until the bucket is full again.
        self.reset = reset

    def __repr__(self) -> str:
        return f"<LimitReport {self.dimension} {self.remaining}/{self.limit} full in {self.reset}s>"


class LimitFault(Fault):
    """A fault about a limit, with the figures its text gives: what a smaller org must be able to hold."""

    __slots__ = ("dimension", "limit", "requested", "used")

    def __init__(
        self, kind: str, scope: Scope, *, status: int, penalty: Penalty, wait: float | None, detail: str
    ) -> None:
        super().__init__(
            kind, scope, status=status, penalty=penalty, wait=wait, detail=detail, is_retryable=True, reach=Reach.HEAD
        )
        #: "requests" | "tokens" | "images" …, with `_day` for daily ones; None if unsaid.
        self.dimension: str | None = None
        self.limit: int | None = None
        self.used: int | None = None
        self.requested: int | None = None


class FirstEvent:
    """What the head of a stream turned out to be (I2)."""

    CONTENT: Final = "content"  # pass everything on from here
    WAIT: Final = "wait"  # a preamble (created, ping, comment): hold it
    # else a Fault


class Tap(Protocol):
    """Reads an answer as it goes by. `feed` takes decoded body bytes in order and returns what the client gets.

    For most answers that is the very same object, untouched; only a chat stream to which usage was added differs.
    """

    #: True if `feed` always returns its argument: the relay may then pass the framing on as it came.
    is_transparent: bool

    def feed(self, data: bytes) -> bytes: ...

    def finish(self) -> bytes:
        """The upstream body ended cleanly: whatever was still held back for the client."""
        ...

    def usage(self) -> Usage | None:
        """Usage as far as it was said; may be asked at any time, also after a cut."""
        ...

    def is_complete(self) -> bool:
        """Whether the answer ended as its format demands (`[DONE]`, `message_stop`, closing brace …)."""
        ...

    def has_failed(self) -> bool:
        """Whether an error event went by in the stream."""
        ...

    def delivered_events(self) -> int: ...

    def is_between_events(self) -> bool:
        """Whether what `feed` gave back so far ends where an event ends; False for what is no event stream."""
        ...


class Dialect(Protocol):
    """One provider's words. Every method is pure and is called in the hot path only where marked (hot)."""

    name: str

    def claims(self, method: str, path: str, header_names: frozenset[bytes]) -> bool:
        """Whether a call is in this dialect (raw path without query, lower-case header names). The OpenAI dialect is
        asked last and claims everything."""
        ...

    def read(self, method: str, path: str, content_type: bytes, body: Body) -> Intent:
        """(hot) The intent. `path` is the raw path with its query; `body` is bytes, or an mmap of a spooled file.

        Raises `Refusal` (BAD_JSON, MALFORMED, NO_MODEL, UNKNOWN_MODEL, TOO_LARGE) where the operation needs what cannot
        be read, and BAD_JSON wherever a JSON body repeats a member: parsers would disagree on what it says.
        """
        ...

    def prepare(self, intent: Intent, body: Body, model: str | None) -> Body:
        """(hot) The body to send: the very object given, unless usage must be asked for (`intent.adds_usage`) or the
        model renamed (`model` differs from `intent.model`). Edits splice bytes; the rest stays as it came."""
        ...

    def credentials(self, secret: str, header: str | None, organization: str | None, project: str | None) -> bytes:
        """(hot, cached by the caller) Header lines, CRLF-ended, that authenticate a wire."""
        ...

    def upstream_path(self, raw_path: str) -> str:
        """The raw path (with query) as the origin knows it: `/openai/v1/…` becomes `/v1/…`; a key in a query goes."""
        ...

    def judge(self, status: int, headers: Headers, body: bytes) -> Fault | None:
        """What an answer that is not 2xx (or a 2xx that is none, such as an HTML page) means; None: pass it on."""
        ...

    def limits(self, headers: Headers) -> list[LimitReport]: ...

    def has_limits(self, name: bytes) -> bool:
        """(hot) Whether a lower-case header name speaks of limits."""
        ...

    def first_event(self, event: bytes) -> str | Fault:
        """What one whole event at the head of a stream is: `FirstEvent.CONTENT`, `.WAIT`, or the fault it tells of.

        WAIT means that nothing in it is content yet, so an error after it can still be tried again elsewhere. Whoever
        holds events bounds how many bytes, and how long.
        """
        ...

    def tap(self, intent: Intent, status: int, content_type: bytes) -> Tap:
        """(hot) The reader for one answer."""
        ...

    def refuse(self, refusal: Refusal, call_id: str) -> tuple[int, list[tuple[bytes, bytes]], bytes]:
        """Status, headers (without framing) and body of a refusal, in the dialect's own shape."""
        ...

    def refuse_fault(self, fault: Fault, body: bytes) -> bytes:
        """The last upstream error's body, cleaned of keys and organisations, for the client (threat 7). A page that is
        not the dialect's JSON becomes an error that is: the content type is then `application/json`."""
        ...

    def stream_error(self, refusal: Refusal, intent: Intent) -> bytes:
        """An error event that SDKs raise on, to end a broken stream honestly (I3). Only where the client stands
        between events (`Tap.is_between_events`); elsewhere nothing but a closed connection is honest."""
        ...
