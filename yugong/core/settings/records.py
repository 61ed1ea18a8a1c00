"""Every setting there is: its place, kind, default, range and meaning.

Decides: nothing; it is the table the reading, the JSON Schema, `config show` and the documented example are made from.
Must not know: YAML, where the file is, what is done with a setting.

Units in memory: durations in seconds (float), sizes in bytes (int), rates a second or minute as named, moments in
seconds since 1970. `None` means "not set". Records do not change; a reload makes new ones.
"""

from __future__ import annotations

from typing import Annotated, Any

import msgspec

from yugong.base.secret import Secret
from yugong.core.settings.kinds import (
    ADDRESS,
    DURATION,
    FLAG,
    GLOB,
    HEADER,
    MOMENT,
    NAME,
    NETWORK,
    NUMBER,
    PATH,
    PROXY,
    ROUTE,
    SIZE,
    TEXT,
    URL,
    WHOLE,
    Kind,
    choice,
)

__all__ = [
    "Account",
    "AccountLimits",
    "CustomerKey",
    "Drain",
    "Egress",
    "Intake",
    "Limit",
    "Listen",
    "Log",
    "Metrics",
    "Models",
    "Org",
    "OrgKey",
    "Origin",
    "Relay",
    "Retry",
    "Route",
    "SecretRef",
    "Settings",
    "Spec",
    "TimeoutOverrides",
    "Timeouts",
    "struct_spec",
]

KiB, MiB, GiB = 2**10, 2**20, 2**30
COUNT_MAX = 10**12


class Spec:
    """What the table says of one field, besides its type and default.

    `low` and `high` bound the value in memory (both inclusive); `restart` says that a change needs a restart; `key` is
    the kind of a mapping's names; `items_max` bounds a list or mapping.
    """

    __slots__ = ("doc", "high", "items_max", "key", "kind", "low", "restart")

    def __init__(
        self,
        doc: str,
        kind: Kind | None = None,
        between: tuple[float, float] | None = None,
        *,
        restart: bool = False,
        key: Kind = NAME,
        items_max: int = 1_000_000,
    ) -> None:
        self.doc = doc
        self.kind = kind
        self.low: float | None = between[0] if between else None
        self.high: float | None = between[1] if between else None
        self.restart = restart
        self.key = key
        self.items_max = items_max

    def __repr__(self) -> str:
        return f"<Spec {self.kind.name if self.kind else 'section'}>"


class SecretRef(msgspec.Struct, frozen=True):
    """Where a secret is. Exactly one of the four is given; a bare text stands for `value`.

    `env` also looks for the file named by `NAME_FILE`; `credential` is a file in `$CREDENTIALS_DIRECTORY` (systemd).
    """

    env: Annotated[str | None, Spec("name of an environment variable", TEXT)] = None
    file: Annotated[str | None, Spec("path of a file that only we can read", PATH)] = None
    credential: Annotated[str | None, Spec("name of a systemd credential", NAME)] = None
    value: Annotated[Secret | None, Spec("the secret itself; keep such a file to yourself (chmod 600)")] = None

    def __repr__(self) -> str:
        return f"SecretRef({self})"

    def __str__(self) -> str:
        for how in ("env", "file", "credential"):
            if (name := getattr(self, how)) is not None:
                return f"{how}:{name}"
        return "value:(hidden)"


class Listen(msgspec.Struct, frozen=True, kw_only=True):
    address: Annotated[str | None, Spec("where clients connect, host:port", ADDRESS, restart=True)] = "127.0.0.1:8080"
    unix: Annotated[
        str | None, Spec("a Unix socket to listen on, beside the address or instead of it", PATH, restart=True)
    ] = None
    backlog: Annotated[
        int, Spec("connections the kernel keeps for us until accepted", WHOLE, (1, 65535), restart=True)
    ] = 2048
    workers: Annotated[int, Spec("worker processes; 0 is one for each core", WHOLE, (0, 256), restart=True)] = 1
    connections_max: Annotated[
        int, Spec("client connections a worker keeps open at most", WHOLE, (16, 1_000_000), restart=True)
    ] = 16384
    admin: Annotated[
        str | None, Spec("where /livez, /readyz and /metrics are served, host:port", ADDRESS, restart=True)
    ] = "127.0.0.1:8081"
    trusted_proxies: Annotated[
        tuple[str, ...], Spec("networks whose X-Forwarded-For is believed", NETWORK, items_max=1024)
    ] = ("127.0.0.1/32",)


class Intake(msgspec.Struct, frozen=True, kw_only=True):
    header_timeout: Annotated[
        float, Spec("from a request's first byte to the end of its head", DURATION, (0.1, 600))
    ] = 15.0
    body_timeout: Annotated[float, Spec("for a whole request body", DURATION, (1, 86400))] = 600.0
    body_grace: Annotated[float, Spec("before min_body_rate counts", DURATION, (0, 600))] = 10.0
    min_body_rate: Annotated[int, Spec("least bytes a second a body must come with; 0 is any", SIZE, (0, GiB))] = KiB
    idle_timeout: Annotated[
        float, Spec("a kept-alive client connection may be idle this long", DURATION, (1, 86400))
    ] = 75.0
    write_timeout: Annotated[
        float, Spec("a client that takes no byte of its answer for so long is gone", DURATION, (1, 3600))
    ] = 60.0
    request_line_max: Annotated[int, Spec("request line, with the path and query", SIZE, (256, MiB))] = 16 * KiB
    header_max: Annotated[int, Spec("all header fields of a request together", SIZE, (KiB, MiB))] = 32 * KiB
    headers_max_count: Annotated[int, Spec("header fields of a request", WHOLE, (8, 10_000))] = 128
    body_memory: Annotated[
        int, Spec("a body up to this stays in memory, a larger one goes to disk", SIZE, (0, GiB))
    ] = MiB
    body_max: Annotated[int, Spec("a request body, also after decompression", SIZE, (KiB, 1024 * GiB))] = 512 * MiB
    json_max: Annotated[int, Spec("a JSON request body", SIZE, (KiB, GiB))] = 32 * MiB
    spool_max: Annotated[int, Spec("disk that bodies under way may take in all", SIZE, (0, 1024 * 1024 * GiB))] = (
        8 * GiB
    )
    websocket_frame_max: Annotated[int, Spec("a WebSocket message", SIZE, (KiB, GiB))] = 16 * MiB
    stream_buffer: Annotated[
        int, Spec("bytes kept for a slow reader before its sender is held", SIZE, (4 * KiB, GiB))
    ] = 256 * KiB
    pipeline_max: Annotated[int, Spec("requests a client may send ahead on one connection", WHOLE, (1, 1024))] = 16


class Timeouts(msgspec.Struct, frozen=True, kw_only=True):
    connect: Annotated[float, Spec("to open a connection upstream, TLS included", DURATION, (0.01, 600))] = 5.0
    first_byte: Annotated[
        float, Spec("from the request sent to the first byte of the answer", DURATION, (0.01, 86400))
    ] = 600.0
    silence: Annotated[float, Spec("between two pieces of an answer", DURATION, (0.01, 86400))] = 300.0
    total: Annotated[float, Spec("a whole call, tries and waiting included", DURATION, (0.01, 604800))] = 1800.0
    websocket_silence: Annotated[
        float, Spec("between two frames of a WebSocket, pings included", DURATION, (1, 604800))
    ] = 7200.0
    websocket_total: Annotated[float, Spec("a whole WebSocket", DURATION, (1, 2592000))] = 86400.0


class TimeoutOverrides(msgspec.Struct, frozen=True, kw_only=True):
    connect: Annotated[float | None, Spec("as timeouts.connect, for this route", DURATION, (0.01, 600))] = None
    first_byte: Annotated[float | None, Spec("as timeouts.first_byte, for this route", DURATION, (0.01, 86400))] = None
    silence: Annotated[float | None, Spec("as timeouts.silence, for this route", DURATION, (0.01, 86400))] = None
    total: Annotated[float | None, Spec("as timeouts.total, for this route", DURATION, (0.01, 604800))] = None
    websocket_silence: Annotated[float | None, Spec("as timeouts.websocket_silence", DURATION, (1, 604800))] = None
    websocket_total: Annotated[float | None, Spec("as timeouts.websocket_total", DURATION, (1, 2592000))] = None


class Route(msgspec.Struct, frozen=True, kw_only=True):
    match: Annotated[
        str, Spec("method (or *) and path as sent, without query; * stands for anything; the first match counts", ROUTE)
    ]
    timeouts: Annotated[TimeoutOverrides, Spec("time-outs of the calls that match")] = TimeoutOverrides()


class Retry(msgspec.Struct, frozen=True, kw_only=True):
    attempts: Annotated[int, Spec("attempts for one call, the first included", WHOLE, (1, 16))] = 5
    budget_share: Annotated[float, Spec("attempts beyond the first, as a share of calls", NUMBER, (0, 1))] = 0.12
    budget_floor: Annotated[
        float, Spec("attempts beyond the first that are always allowed, a second", NUMBER, (0, 100_000))
    ] = 10.0
    hold_first_event: Annotated[
        float, Spec("the first event of a stream is held so long at most to see if it is an error", DURATION, (0, 60))
    ] = 1.0


class Drain(msgspec.Struct, frozen=True, kw_only=True):
    lame_duck: Annotated[
        float, Spec("after the listener is closed, connections are still served and told to close", DURATION, (0, 600))
    ] = 5.0
    grace: Annotated[float, Spec("calls under way may go on for so long after that", DURATION, (0, 86400))] = 600.0


class Egress(msgspec.Struct, frozen=True, kw_only=True):
    proxy: Annotated[str, Spec("HTTP proxy that is asked to CONNECT, http://host:port", PROXY)]
    username: Annotated[SecretRef | None, Spec("user at the proxy")] = None
    password: Annotated[SecretRef | None, Spec("password at the proxy")] = None


class Origin(msgspec.Struct, frozen=True, kw_only=True):
    dialect: Annotated[str, Spec("how it speaks: openai, anthropic, …", NAME)]
    url: Annotated[str, Spec("scheme, host and port; the client's path is added", URL)]
    private: Annotated[bool, Spec("it may be at a private or loopback address, and without TLS", FLAG)] = False
    verify: Annotated[bool, Spec("its certificate is checked; false only if private", FLAG)] = True
    ca_file: Annotated[str | None, Spec("certificates to trust instead of the system's, PEM", PATH)] = None
    max_connections: Annotated[int, Spec("connections a worker opens to it at most", WHOLE, (1, 100_000))] = 4096
    keepalive: Annotated[
        float, Spec("an idle connection is kept for so long; below the origin's own", DURATION, (0, 3600))
    ] = 55.0
    resolve_every: Annotated[float, Spec("its name is looked up again after this", DURATION, (1, 86400))] = 30.0


class Limit(msgspec.Struct, frozen=True, kw_only=True):
    models: Annotated[
        tuple[str, ...], Spec("models that share this limit; * stands for anything", GLOB, items_max=10_000)
    ] = ("*",)
    requests_per_minute: Annotated[int | None, Spec("requests a minute", WHOLE, (0, COUNT_MAX))] = None
    tokens_per_minute: Annotated[int | None, Spec("tokens a minute", WHOLE, (0, COUNT_MAX))] = None
    requests_per_day: Annotated[int | None, Spec("requests a day", WHOLE, (0, COUNT_MAX))] = None
    tokens_per_day: Annotated[int | None, Spec("tokens a day", WHOLE, (0, COUNT_MAX))] = None
    images_per_minute: Annotated[int | None, Spec("images a minute", WHOLE, (0, COUNT_MAX))] = None
    concurrency: Annotated[int | None, Spec("calls at once", WHOLE, (0, COUNT_MAX))] = None


class OrgKey(msgspec.Struct, frozen=True, kw_only=True):
    id: Annotated[str, Spec("what it is called in logs and metrics", NAME)]
    secret: Annotated[SecretRef, Spec("where the key is")]
    disabled: Annotated[bool, Spec("not used", FLAG)] = False


class Org(msgspec.Struct, frozen=True, kw_only=True):
    origin: Annotated[str, Spec("name of one of `origins`", NAME)]
    organization: Annotated[str | None, Spec("sent as OpenAI-Organization", TEXT)] = None
    project: Annotated[str | None, Spec("sent as OpenAI-Project", TEXT)] = None
    egress: Annotated[str | None, Spec("name of one of `egress`; not set is straight out", NAME)] = None
    models: Annotated[tuple[str, ...] | None, Spec("models it serves; not set is all", GLOB, items_max=10_000)] = None
    weight: Annotated[float, Spec("share of the calls among orgs with room", NUMBER, (0, 10**9))] = 1.0
    priority: Annotated[int, Spec("tier; a lower number is filled first", WHOLE, (0, 100))] = 0
    tags: Annotated[tuple[str, ...], Spec("labels to choose by", NAME, items_max=64)] = ()
    disabled: Annotated[bool, Spec("not used", FLAG)] = False
    limits: Annotated[
        tuple[Limit, ...], Spec("what upstream allows it; ceilings, the rest is learned", items_max=10_000)
    ] = ()
    keys: Annotated[tuple[OrgKey, ...], Spec("its keys; they share its limits")] = ()


class Models(msgspec.Struct, frozen=True, kw_only=True):
    aliases: Annotated[dict[str, str], Spec("name that clients may use: model it stands for", GLOB, key=GLOB)] = {}


class AccountLimits(msgspec.Struct, frozen=True, kw_only=True):
    requests_per_minute: Annotated[int | None, Spec("requests a minute", WHOLE, (0, COUNT_MAX))] = None
    tokens_per_minute: Annotated[int | None, Spec("tokens a minute", WHOLE, (0, COUNT_MAX))] = None
    concurrency: Annotated[int | None, Spec("calls at once", WHOLE, (0, COUNT_MAX))] = None


class CustomerKey(msgspec.Struct, frozen=True, kw_only=True):
    id: Annotated[str, Spec("what it is called in logs", NAME)]
    value: Annotated[SecretRef, Spec("the key that the client presents, 8 to 512 visible ASCII characters")]
    models: Annotated[
        tuple[str, ...] | None, Spec("models it may use; not set is all of the account's", GLOB, items_max=10_000)
    ] = None
    expires: Annotated[float | None, Spec("refused from then on", MOMENT)] = None
    disabled: Annotated[bool, Spec("refused", FLAG)] = False


class Account(msgspec.Struct, frozen=True, kw_only=True):
    name: Annotated[str | None, Spec("what people call it", TEXT)] = None
    max_wait: Annotated[
        float | None, Spec("its calls wait so long at most for room upstream", DURATION, (0, 86400))
    ] = None
    weight: Annotated[float, Spec("its share when calls wait for room", NUMBER, (0.001, 10**9))] = 1.0
    models: Annotated[tuple[str, ...] | None, Spec("models it may use; not set is all", GLOB, items_max=10_000)] = None
    limits: Annotated[AccountLimits, Spec("what all its keys together may use")] = AccountLimits()
    disabled: Annotated[bool, Spec("all its keys are refused", FLAG)] = False
    keys: Annotated[tuple[CustomerKey, ...], Spec("its keys")] = ()


class Log(msgspec.Struct, frozen=True, kw_only=True):
    access: Annotated[
        str | None, Spec("where the access log goes: stdout, a path, or null for nowhere", PATH, restart=True)
    ] = "stdout"
    level: Annotated[
        str, Spec("least importance that is logged (on stderr)", choice("debug", "info", "warning", "error"))
    ] = "info"


class Metrics(msgspec.Struct, frozen=True, kw_only=True):
    label_values_max: Annotated[
        int, Spec("distinct values of a label from outside (models); the rest is `other`", WHOLE, (1, 100_000))
    ] = 200


class Relay(msgspec.Struct, frozen=True, kw_only=True):
    extra_answer_headers: Annotated[
        tuple[str, ...], Spec("answer headers to pass to the client beside the built-in list", HEADER, items_max=256)
    ] = ()


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """The whole file."""

    listen: Annotated[Listen, Spec("where we are reached")] = Listen()
    data_dir: Annotated[
        str | None, Spec("where we keep what must last; not set is found by itself", PATH, restart=True)
    ] = None
    intake: Annotated[Intake, Spec("what is taken from a client, and how slowly")] = Intake()
    timeouts: Annotated[Timeouts, Spec("how long upstream may take")] = Timeouts()
    routes: Annotated[tuple[Route, ...], Spec("what differs for some paths", items_max=1024)] = ()
    retry: Annotated[Retry, Spec("trying again, before the client got a byte")] = Retry()
    drain: Annotated[Drain, Spec("going down without losing calls")] = Drain()
    egress: Annotated[dict[str, Egress], Spec("ways out, by name")] = {}
    origins: Annotated[dict[str, Origin], Spec("upstreams, by name")] = {}
    orgs: Annotated[dict[str, Org], Spec("what upstream limits, by name")] = {}
    models: Annotated[Models, Spec("names of models")] = Models()
    accounts: Annotated[dict[str, Account], Spec("customers, by name")] = {}
    log: Annotated[Log, Spec("what is written down")] = Log()
    metrics: Annotated[Metrics, Spec("what is counted")] = Metrics()
    relay: Annotated[Relay, Spec("what the client gets of an answer")] = Relay()


def struct_spec(annotation: Any) -> Spec | None:
    """The `Spec` in an `Annotated[...]`, if any."""
    return next((one for one in getattr(annotation, "__metadata__", ()) if isinstance(one, Spec)), None)
