"""What can go wrong on demand, by header or by lot. Pure: randomness is a seeded generator of each rule's own.

A fault is written `KIND[:PARAM…]`. The request header is `x-emulator-fault: KIND[:PARAM…][;times=N][;orgs=a|b]`:
`times` lets it strike only the first N attempts of one call (told apart by `x-emulator-call`, else by the body's
digest and path), `orgs` only the orgs named. Rules of the spec (`FaultRule`) strike by share.

`KINDS` is the whole list. Its stages say when and to what a kind applies:

- `listener`  to new connections; not by header, but by rule or by `Listener.set`
- `early`     in place of the answer, before admission: nothing is charged or billed
- `head`      likewise, but on the wire itself
- `unary`     to the framing of any answer, after admission: charged and billed
- `stream`    to streamed answers only, after admission: charged, billed for what was written
"""

import random
from collections import OrderedDict
from collections.abc import Iterable
from typing import NamedTuple

from yugong.emulator import errors
from yugong.emulator.buckets import Shortage
from yugong.emulator.errors import Trouble
from yugong.emulator.spec import FaultRule

KINDS: dict[str, tuple[str, str]] = {
    # kind: (stage, what it does and its parameters)
    "connect_refused": ("listener", "the listening socket is closed (share 1) or new connections are reset"),
    "tls_error": ("listener", "bytes that are no TLS answer to the handshake, then the end"),
    "401": ("early", "invalid_api_key"),
    "402": ("early", "billing error (Anthropic)"),
    "403_country": ("early", "unsupported_country_region_territory"),
    "404_model": ("early", "model_not_found"),
    "400": ("early", "a caller's mistake"),
    "408": ("early", "request time-out"),
    "409": ("early", "conflict"),
    "413": ("early", "request too large"),
    "429_requests": ("early", "rate limit on requests; PARAM = wait in ms (1000)"),
    "429_tokens": ("early", "rate limit on tokens; PARAM = wait in ms (1000)"),
    "429_too_large": ("early", "request too large for this org"),
    "429_quota": ("early", "no money; PARAM = code (insufficient_quota)"),
    "429_slow_down": ("early", "slow_down"),
    "500": ("early", "server_error"),
    "502": ("early", "bad gateway, JSON body"),
    "503": ("early", "server_is_overloaded; PARAM = retry-after in ms"),
    "504": ("early", "gateway time-out"),
    "520": ("early", "Cloudflare: unknown error, HTML body"),
    "521": ("early", "Cloudflare: web server is down, HTML body"),
    "522": ("early", "Cloudflare: connection timed out, HTML body"),
    "523": ("early", "Cloudflare: origin unreachable, HTML body"),
    "524": ("early", "Cloudflare: a timeout occurred, HTML body"),
    "529": ("early", "overloaded (Anthropic)"),
    "html_error": ("early", "an HTML page; PARAM = status (502)"),
    "empty_200": ("early", "200 with no body"),
    "redirect": ("early", "307; PARAM = Location (http://169.254.169.254/latest/)"),
    "204": ("early", "204, no body"),
    "304": ("early", "304, no body"),
    "reset_before_head": ("head", "TCP reset, nothing sent"),
    "close_before_head": ("head", "connection closed, nothing sent"),
    "reset_mid_head": ("head", "half a head, then reset"),
    "stuck_head": ("head", "never answers; ends when the client leaves"),
    "garbage": ("head", "bytes that are not HTTP, then the end"),
    "malformed": ("head", "PARAM = chunk (bad chunk size), status (bad status line), header, or both (two framings)"),
    "slow_head": ("unary", "the answer comes PARAM ms late (1000)"),
    "reset_after_head": ("unary", "the head, then reset"),
    "truncated_json": ("unary", "content-length as if whole, half the body, then the end; a stream is cut in half"),
    "wrong_length": ("unary", "content-length PARAM (10) bytes too small, then the end"),
    "close_framed": ("unary", "no length, no chunks: the end of the connection ends it"),
    "huge_header": ("unary", "a header of PARAM bytes (65536) in the head"),
    "informational": ("unary", "103 Early Hints before the answer; PARAM = how many (1)"),
    "close_after": ("unary", "a good answer, then the connection is closed unannounced"),
    "slow_body": ("unary", "the body in pieces, PARAM ms between (100); streams: the same as slow_stream"),
    "error_first_event": ("stream", "200 whose first event is an error; PARAM = its code (server_error)"),
    "error_mid_stream": ("stream", "an error event after PARAM events (3)"),
    "cut_stream": (
        "stream",
        "cut after PARAM events (3); second PARAM = close, rst, or done (chunks ended, no [DONE])",
    ),
    "cut_bytes": ("stream", "cut after PARAM bytes of body (200); second PARAM as above"),
    "stuck_stream": ("stream", "silence after PARAM events (3)"),
    "slow_stream": ("stream", "PARAM ms (200) between events"),
    "garbage_stream": ("stream", "after PARAM events (3), bytes that are no event, then the proper end"),
}

CLOUDFLARE = {
    "520": "Web server is returning an unknown error",
    "521": "Web server is down",
    "522": "Connection timed out",
    "523": "Origin is unreachable",
    "524": "A timeout occurred",
}


# What the parameters may be, where they are not numbers: kind → which → words allowed (None: any)
WORDS: dict[str, dict[int, tuple[str, ...] | None]] = {
    "429_quota": {0: None},
    "redirect": {0: None},
    "error_first_event": {0: None},
    "malformed": {0: ("chunk", "status", "header", "both")},
    "cut_stream": {1: ("close", "rst", "done")},
    "cut_bytes": {1: ("close", "rst", "done")},
}


class FaultError(ValueError):
    """A fault nobody knows, or a parameter that cannot be read."""


class Fault(NamedTuple):
    """One fault about to strike."""

    kind: str
    params: tuple[str, ...]
    stage: str

    def number(self, i: int, default: int) -> int:
        """The i-th parameter as a number."""
        return int(self.params[i]) if i < len(self.params) and self.params[i] else default

    def word(self, i: int, default: str) -> str:
        return self.params[i] if i < len(self.params) and self.params[i] else default


def parse_fault(text: str) -> Fault:
    """`KIND[:PARAM…]`; raises FaultError."""
    kind, _, rest = text.strip().partition(":")
    known = KINDS.get(kind)
    if known is None:
        raise FaultError(f"unknown fault {kind!r}; known are {', '.join(KINDS)}")
    if kind == "redirect":
        return Fault(kind, (rest,), known[0])  # its parameter is a URL and keeps its colons
    params = tuple(rest.split(":")) if rest else ()
    for i, param in enumerate(params):
        allowed = WORDS.get(kind, {}).get(i, ())
        if allowed is not None and param and not (param in allowed or (not allowed and param.isdecimal())):
            raise FaultError(f"{kind}: {param!r} is none of {', '.join(allowed) or 'the numbers'}")
    return Fault(kind, params, known[0])


class Rule:
    """A fault rule with its generator and its count."""

    __slots__ = ("fault", "left", "rng", "spec", "struck")

    def __init__(self, spec: FaultRule) -> None:
        self.spec = spec
        self.fault = parse_fault(spec.kind)
        self.rng = random.Random(spec.seed)
        self.left = spec.count
        self.struck = 0

    def __repr__(self) -> str:
        return f"<Rule {self.spec.kind} share={self.spec.share} struck={self.struck}>"

    def draw(self, org: str, model: str, path: str, streams: bool) -> Fault | None:
        spec = self.spec
        if self.left == 0 or (spec.orgs and org not in spec.orgs) or (spec.models and model not in spec.models):
            return None
        if spec.paths and not path.startswith(spec.paths):
            return None
        if self.fault.stage == "stream" and not streams:
            return None
        return self._lot()

    def draw_connection(self) -> Fault | None:
        """A draw for a new connection, of a listener rule."""
        return None if self.left == 0 else self._lot()

    def _lot(self) -> Fault | None:
        if self.spec.share < 1 and self.rng.random() >= self.spec.share:
            return None
        if self.left is not None:
            self.left -= 1
        self.struck += 1
        return self.fault


class FaultPlan:
    """The rules in force and the calls already struck by header."""

    __slots__ = ("_struck_calls", "attempt_rules", "connection_rules", "struck")

    def __init__(self, rules: Iterable[FaultRule] = ()) -> None:
        self.attempt_rules: list[Rule] = []
        self.connection_rules: list[Rule] = []
        self.struck: dict[str, int] = {}
        self._struck_calls: OrderedDict[str, int] = OrderedDict()
        self.replace(rules)

    def __repr__(self) -> str:
        return f"<FaultPlan {self.attempt_rules + self.connection_rules}>"

    def replace(self, rules: Iterable[FaultRule]) -> None:
        """Put other rules in force; raises FaultError and then changes nothing."""
        made = [Rule(each) for each in rules]
        self.attempt_rules = [rule for rule in made if rule.fault.stage != "listener"]
        self.connection_rules = [rule for rule in made if rule.fault.stage == "listener"]

    def from_header(self, header: str, org: str, call: str) -> Fault | None:
        """The fault a request asks for; raises FaultError."""
        text, *options = [part.strip() for part in header.split(";")]
        fault = parse_fault(text)
        if fault.stage == "listener":
            raise FaultError(f"{fault.kind} strikes connections; set it by rule or on the listener")
        times = None
        for option in options:
            name, _, value = option.partition("=")
            if name == "times" and value.isdigit():
                times = int(value)
            elif name == "orgs":
                if org not in value.split("|"):
                    return None
            else:
                raise FaultError(f"unknown option {option!r}")
        if times is not None and not self._may_strike(f"{call} {text}", times):
            return None
        return fault

    def _may_strike(self, call: str, times: int) -> bool:
        struck = self._struck_calls.pop(call, 0)
        self._struck_calls[call] = min(struck + 1, times)
        if len(self._struck_calls) > 100_000:
            self._struck_calls.popitem(last=False)
        return struck < times

    def by_lot(self, org: str, model: str, path: str, streams: bool) -> Fault | None:
        for rule in self.attempt_rules:
            fault = rule.draw(org, model, path, streams)
            if fault is not None:
                return fault
        return None

    def for_connection(self) -> Fault | None:
        for rule in self.connection_rules:
            fault = rule.draw_connection()
            if fault is not None:
                return fault
        return None

    def note(self, kind: str) -> None:
        self.struck[kind] = self.struck.get(kind, 0) + 1


def trouble_of(fault: Fault, model: str, organization: str, key: str) -> Trouble | None:
    """The JSON error an `early` fault answers with; None for those that answer otherwise."""
    kind = fault.kind
    model = model or "gpt-4o"
    if kind in ("429_requests", "429_tokens", "429_too_large"):
        return _limit_trouble(fault, model, organization)
    if kind == "429_quota":
        return _quota_trouble(fault)
    if kind == "503":
        wait = fault.number(0, 0) / 1000 or None
        return Trouble(503, "service_unavailable_error", "server_is_overloaded", errors.OVERLOADED, wait=wait)
    fixed = _FIXED.get(kind)
    if fixed is not None:
        return fixed
    if kind == "401":
        return errors.wrong_key(key or "sk-none")
    if kind == "404_model":
        return errors.no_model(model)
    return None


_FIXED = {
    "400": errors.bad_request("We could not parse the JSON body of your request.", None),
    "402": Trouble(402, "billing_error", "billing_error", "There is an issue with your billing information."),
    "403_country": Trouble(403, "request_forbidden", "unsupported_country_region_territory", errors.COUNTRY),
    "408": Trouble(408, "request_timeout", None, "The request timed out. Please try again."),
    "409": Trouble(409, "conflict_error", None, "The resource was updated by another request. Please try again."),
    "413": Trouble(413, "invalid_request_error", None, "Request exceeds the maximum size."),
    "429_slow_down": errors.slow_down(),
    "500": Trouble(500, "server_error", None, errors.SERVER_ERROR),
    "502": Trouble(502, "server_error", None, "Bad gateway."),
    "504": Trouble(504, "server_error", None, "The request timed out upstream."),
    "529": Trouble(529, "overloaded_error", None, "Overloaded"),
}


def _limit_trouble(fault: Fault, model: str, organization: str) -> Trouble:
    wait = fault.number(0, 1000) / 1000
    if fault.kind == "429_requests":
        return errors.short_of(Shortage("requests", 60, 60, 1, wait), model, organization)
    if fault.kind == "429_tokens":
        return errors.short_of(Shortage("tokens", 30_000, 29_937, 385, wait), model, organization)
    return errors.short_of(Shortage("tokens", 30_000, 0, 31_538, float("inf")), model, organization)


def _quota_trouble(fault: Fault) -> Trouble:
    code = fault.word(0, "insufficient_quota")
    if code in errors.QUOTA:
        return Trouble(429, "insufficient_quota", code, errors.QUOTA[code])
    # Anthropic names these in details.error_code (facts: providers §5)
    message = "This request would exceed your account's limit. Please try again later."
    return Trouble(429, "insufficient_quota", code, message, details={"error_code": code})
