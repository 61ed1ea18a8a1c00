"""The three families of failure.

A `Refusal` is ours: why a call is not served. A `Fault` is theirs: what upstream did, and whom it speaks of. Everything
else is a bug and stays an ordinary exception. Foreign exceptions are translated into these once, at the seam where
they arise. This file knows neither HTTP dialects nor sockets: a dialect turns a refusal into its own words.
"""

from __future__ import annotations

from enum import Enum, IntEnum


class RefusalKind(Enum):
    """Why Yugong itself does not serve a call; the value is (HTTP status, stable code)."""

    MALFORMED = (400, "malformed_request")
    BAD_JSON = (400, "invalid_json")
    NO_MODEL = (400, "model_required")
    INVALID_KEY = (401, "invalid_api_key")
    FORBIDDEN = (403, "forbidden")
    UNKNOWN_MODEL = (404, "model_not_found")
    NOT_FOUND = (404, "not_found")
    TIMEOUT = (408, "request_timeout")
    CONFLICT = (409, "conflict")
    TOO_LARGE = (413, "request_too_large")
    HEADERS_TOO_LARGE = (431, "headers_too_large")
    RATE_LIMITED = (429, "rate_limit_exceeded")
    NO_BALANCE = (429, "insufficient_quota")
    NO_ROOM = (429, "pool_exhausted")
    INTERNAL = (500, "internal_error")
    BAD_UPSTREAM = (502, "upstream_error")
    NO_UPSTREAM = (503, "no_upstream_available")
    SEALED = (503, "vault_sealed")
    OVERLOADED = (503, "overloaded")
    UPSTREAM_TIMEOUT = (504, "upstream_timeout")
    NO_SPACE = (507, "insufficient_storage")

    @property
    def status(self) -> int:
        return self.value[0]

    @property
    def code(self) -> str:
        return self.value[1]


class Refusal(Exception):
    """Why a call is not served. `message` is for the client: it names no path, table or key."""

    __slots__ = ("close", "kind", "message", "param", "retry_after")

    def __init__(
        self,
        kind: RefusalKind,
        message: str,
        *,
        param: str | None = None,
        retry_after: float | None = None,
        close: bool = False,
    ) -> None:
        super().__init__(message)
        self.kind = kind
        self.message = message
        self.param = param
        #: Seconds after which trying again makes sense; None where it does not.
        self.retry_after = retry_after
        #: Whether the client's connection cannot be used further (its framing is lost).
        self.close = close

    def __repr__(self) -> str:
        return f"<Refusal {self.kind.code} {self.kind.status}: {self.message}>"


class Scope(Enum):
    """Whom a fault speaks of: only that is ever held against anybody (I4)."""

    CALLER = "caller"  # the client's own doing: nobody's health
    KEY = "key"
    ORG = "org"
    MODEL = "model"  # one limit group or model of one org
    ORIGIN = "origin"
    EGRESS = "egress"  # our own way out: our address, our country


class Penalty(Enum):
    """What a fault does to the thing its scope names."""

    NONE = "none"
    COUNT = "count"  # one strike: enough of them eject
    COOL = "cool"  # wait as told (or as the bucket says), nothing is wrong
    EXCLUDE = "exclude"  # out for this model only, for long
    PARK = "park"  # no money: out until somebody pays; probed rarely
    QUARANTINE = "quarantine"  # refused: out until a person looks or a rare probe passes


class Reach(IntEnum):
    """How far an attempt came; decides whether repeating it can do a thing twice."""

    UNSENT = 0  # upstream cannot have acted on it
    SENT = 1  # it may have
    HEAD = 2  # upstream answered
    PARTIAL = 3  # part of the body arrived


class Fault:
    """What upstream did wrong in one attempt."""

    __slots__ = ("detail", "is_retryable", "kind", "penalty", "reach", "scope", "status", "wait")

    def __init__(
        self,
        kind: str,
        scope: Scope,
        *,
        status: int = 0,
        is_retryable: bool = True,
        penalty: Penalty = Penalty.NONE,
        wait: float | None = None,
        reach: Reach = Reach.HEAD,
        detail: str = "",
    ) -> None:
        #: Bounded label: one of the names in a dialect's table or `WireFault`.
        self.kind = kind
        self.scope = scope
        self.status = status
        self.is_retryable = is_retryable
        self.penalty = penalty
        #: Seconds upstream asked us to wait, if it said.
        self.wait = wait
        self.reach = reach
        #: For operators; already redacted.
        self.detail = detail

    def __repr__(self) -> str:
        again = "retry" if self.is_retryable else "final"
        wait = "" if self.wait is None else f" wait={self.wait:g}s"
        return f"<Fault {self.kind} {self.scope.value} {self.status} {again} {self.penalty.value}{wait}>"


class WireFault(Exception):
    """A fault of the transport, raised by `upstream` where a foreign exception is translated.

    `kind` is one of `WIRE_FAULTS`; `reach` says how far the attempt had come.
    """

    __slots__ = ("detail", "is_stale", "kind", "reach")

    def __init__(self, kind: str, reach: Reach, detail: str = "", *, is_stale: bool = False) -> None:
        super().__init__(kind)
        assert kind in WIRE_FAULTS, kind
        self.kind = kind
        self.reach = reach
        self.detail = detail
        #: A kept-alive connection that upstream had closed before it saw our request: not a fault, dial again.
        self.is_stale = is_stale

    def __repr__(self) -> str:
        return f"<WireFault {self.kind} {self.reach.name.lower()}{' stale' if self.is_stale else ''}>"

    def to_fault(self) -> Fault:
        """The same as a fault of the origin (or of the egress for a broken proxy on our way out)."""
        scope = Scope.EGRESS if self.kind in _EGRESS else Scope.CALLER if self.kind == "client_gone" else Scope.ORIGIN
        penalty = Penalty.NONE if scope is Scope.CALLER else Penalty.COUNT
        is_retryable = self.kind not in _FINAL
        return Fault(self.kind, scope, penalty=penalty, is_retryable=is_retryable, reach=self.reach, detail=self.detail)


#: Everything that can go wrong between two sockets; the label values of `yugong_faults_total{kind}` for the wire.
WIRE_FAULTS = frozenset(
    {
        "resolve",
        "forbidden_address",
        "connect",
        "connect_timeout",
        "tls",
        "egress_proxy",
        "reset",
        "first_byte_timeout",
        "silence_timeout",
        "total_timeout",
        "truncated",
        "malformed",
        "answer_head_too_large",
        "client_gone",
    }
)
_EGRESS = frozenset({"egress_proxy"})
_FINAL = frozenset({"client_gone", "total_timeout", "forbidden_address"})
