"""The kinds of single values a settings file holds, each with its reading, its writing and its JSON Schema.

Decides: how a duration, a size, a network … is written, and which spellings are traps (YAML 1.1 takes `no` for false,
`1:30` for 90, `010` for 8, `1_000` for 1000). Must not know: which setting has which kind.

A kind reads text and raises `Rejected`; it never guesses what was meant, it says it.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import UTC, datetime
from ipaddress import ip_address, ip_network
from typing import Any
from urllib.parse import urlsplit

from yugong.core.settings.problems import Rejected, closest, quoted
from yugong.core.settings.tree import implicit_type

__all__ = [
    "ADDRESS",
    "DURATION",
    "FLAG",
    "GLOB",
    "HEADER",
    "MOMENT",
    "NAME",
    "NETWORK",
    "NUMBER",
    "PATH",
    "PROXY",
    "ROUTE",
    "SIZE",
    "TEXT",
    "URL",
    "WHOLE",
    "Kind",
    "choice",
]

_FIELD_NAME = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"  # RFC 9110 §5.6.2
_DURATION = re.compile(r"(\d{1,12}(?:\.\d{1,9})?)(ms|s|m|h|d)?")
_SIZE = re.compile(r"(\d{1,15})(B|KiB|MiB|GiB|TiB)?")
_UNITS = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400}
_POWERS = {"B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}
_LOOSE_SIZE = re.compile(r"(\d{1,15})\s?([KMGT])I?B?", re.IGNORECASE)
_SEXAGESIMAL = re.compile(r"[-+]?\d[\d_]*(:[0-5]?\d)+(\.\d*)?")


class Kind:
    """One kind of scalar.

    `read(text, is_plain)` returns the value or raises `Rejected`; `write(value)` is its inverse; `schema` is its JSON
    Schema; `unit` is what the value in memory counts.
    """

    __slots__ = ("name", "read", "schema", "unit", "write")

    def __init__(
        self,
        name: str,
        read: Callable[[str, bool], Any],
        write: Callable[[Any], Any],
        schema: dict[str, Any],
        unit: str = "",
    ) -> None:
        self.name = name
        self.read = read
        self.write = write
        self.schema = schema
        self.unit = unit

    def __repr__(self) -> str:
        return f"<Kind {self.name}>"


def _number_trap(text: str) -> None:
    """Raise for a spelling that YAML 1.1 reads as another number than a person does."""
    if _SEXAGESIMAL.fullmatch(text):
        raise Rejected(f"{quoted(text)} is a number to the base of 60 in YAML", "write it with a unit, such as 90s")
    if "_" in text and text.replace("_", "").isdigit():
        raise Rejected(f"{quoted(text)} has underscores", f"did you mean {text.replace('_', '')[:20]}?")
    if re.fullmatch(r"[-+]?0\d+", text):
        octal = f"{int(text[:20], 8)}" if re.fullmatch(r"[-+]?[0-7]{1,20}", text) else "nothing"
        raise Rejected(f"{quoted(text)} is octal in YAML ({octal})", f"did you mean {text.lstrip('+-0')[:20] or '0'}?")
    if re.fullmatch(r"[-+]?0[xob][0-9a-fA-F_]+", text):
        raise Rejected(f"{quoted(text)} is not decimal", "write it in decimal")
    if text.lstrip("+-.").casefold() in ("inf", "infinity", "nan"):
        raise Rejected(f"{quoted(text)} is not a limit", "every limit is finite; write the largest value you want")


def _read_flag(text: str, is_plain: bool) -> bool:
    if is_plain and text in ("true", "false"):
        return text == "true"
    meant = {"yes": "true", "on": "true", "y": "true", "no": "false", "off": "false", "n": "false"}.get(
        text.casefold(), text.casefold()
    )
    hint = f"did you mean {meant} (without quotes)?" if meant in ("true", "false") else ""
    raise Rejected(f"{quoted(text)} is neither true nor false", hint)


def _read_whole(text: str, is_plain: bool) -> int:
    if is_plain and re.fullmatch(r"-?(0|[1-9]\d{0,17})", text):
        return int(text)
    _number_trap(text)
    hint = "remove the quotes" if not is_plain and re.fullmatch(r"-?\d+", text) else ""
    raise Rejected(f"{quoted(text)} is not a whole number", hint)


def _read_number(text: str, is_plain: bool) -> float:
    if is_plain and re.fullmatch(r"-?(0|[1-9]\d{0,14})(\.\d{1,15})?", text):
        return float(text)
    _number_trap(text)
    hint = "remove the quotes" if not is_plain and re.fullmatch(r"-?\d+(\.\d+)?", text) else "such as 0.25 or 3"
    raise Rejected(f"{quoted(text)} is not a number", hint)


def _read_duration(text: str, is_plain: bool) -> float:
    _number_trap(text)
    match = _DURATION.fullmatch(text)
    if not match or not (match[2] or is_plain):
        loose = re.fullmatch(
            r"(\d{1,12})\s?(milliseconds?|msec|seconds?|secs?|minutes?|mins?|hours?|hrs?|days?|ms|s|m|h|d|MS|S|M|H|D)",
            text,
        )
        unit = "" if not loose else ("ms" if loose[2].casefold().startswith(("ms", "milli")) else loose[2][0].lower())
        hint = f"did you mean {loose[1]}{unit}?" if loose else "such as 250ms, 5s, 10m, 1h, or a number of seconds"
        raise Rejected(f"{quoted(text)} is not a duration", hint)
    number = float(match[1])
    return number / 1000 if match[2] == "ms" else number * _UNITS[match[2] or "s"]


def _write_duration(seconds: float) -> str:
    for unit in ("d", "h", "m", "s"):
        if seconds >= _UNITS[unit] and seconds % _UNITS[unit] == 0:
            return f"{seconds / _UNITS[unit]:.0f}{unit}"
    whole_ms = round(seconds * 1000)
    return f"{whole_ms}ms" if seconds and whole_ms / 1000 == seconds else f"{seconds:.9f}".rstrip("0").rstrip(".") + "s"


def _read_size(text: str, is_plain: bool) -> int:
    _number_trap(text)
    match = _SIZE.fullmatch(text)
    if match and (match[2] or is_plain):
        return int(match[1]) * _POWERS[match[2] or "B"]
    loose = _LOOSE_SIZE.fullmatch(text)
    hint = (
        f"did you mean {loose[1]}{loose[2].upper()}iB?" if loose else "such as 64KiB, 1MiB, 8GiB, or a number of bytes"
    )
    raise Rejected(f"{quoted(text)} is not a size", hint)


def _write_size(size: int) -> str:
    for unit in ("TiB", "GiB", "MiB", "KiB"):
        if size and size % _POWERS[unit] == 0:
            return f"{size // _POWERS[unit]}{unit}"
    return f"{size}B"


def _read_text(text: str, is_plain: bool) -> str:
    taken_for = implicit_type(text) if is_plain else "str"
    if taken_for == "null":
        raise Rejected("nothing, where text is due", "remove the line or write the text")
    if taken_for not in ("str", "value", "merge"):
        raise Rejected(f"{quoted(text)} is not text: YAML takes it for a {taken_for}", "put it in quotes")
    if not 0 < len(text) <= 4096:
        raise Rejected("text is empty" if not text else "text is longer than 4096 characters")
    if not text.isprintable():
        raise Rejected(f"{quoted(text)} holds a control character")
    return text


def _text(pattern: str, what: str, hint: str) -> Callable[[str, bool], str]:
    compiled = re.compile(pattern)

    def read(text: str, is_plain: bool) -> str:
        _read_text(text, is_plain)
        if not compiled.fullmatch(text):
            raise Rejected(f"{quoted(text)} is not {what}", hint)
        return text

    return read


def _read_address(text: str, is_plain: bool) -> str:
    if is_plain and re.fullmatch(r"\d{1,5}", text):
        raise Rejected(f"{quoted(text)} is only a port", f"did you mean 127.0.0.1:{text}?")
    host, colon, port = _read_text(text, is_plain).rpartition(":")
    if not colon or not re.fullmatch(r"\d{1,5}", port) or int(port) > 65535:
        raise Rejected(f"{quoted(text)} is not host:port", "such as 127.0.0.1:8080 or [::1]:8080")
    try:
        if host.startswith("[") and host.endswith("]"):
            ip_address(host[1:-1])
        elif not re.fullmatch(r"[A-Za-z0-9._-]+", host) or re.fullmatch(r"[\d.]+", host):
            ip_address(host)
    except ValueError:
        hint = f"an IPv6 address goes in brackets: [{host}]:{port}" if host.count(":") > 1 else ""
        raise Rejected(f"{quoted(host)} is no address", hint) from None
    if host.count(":") and not host.startswith("["):
        raise Rejected(f"{quoted(text)} is ambiguous", f"did you mean [{host}]:{port}?")
    return text


def _read_network(text: str, is_plain: bool) -> str:
    _read_text(text, is_plain)
    try:
        return str(ip_network(text))
    except ValueError:
        pass
    try:
        meant = f"did you mean {ip_network(text, strict=False)}?"  # host bits set
    except ValueError:
        meant = "such as 10.0.0.0/8 or 192.0.2.7/32"
    raise Rejected(f"{quoted(text)} is not a network", meant)


def _split_url(text: str, is_plain: bool, schemes: tuple[str, ...]) -> str:
    """The URL as `scheme://host[:port]`; everything else in it is refused."""
    _read_text(text, is_plain)
    try:
        parts = urlsplit(text)
        host, port = parts.hostname or "", parts.port
    except ValueError:
        raise Rejected("not a URL", "such as https://api.openai.com") from None
    if parts.scheme not in schemes or not host:
        raise Rejected(
            f"{quoted(text)} is not a URL with {' or '.join(schemes)}", f"such as {schemes[0]}://host.example"
        )
    if parts.username is not None or parts.password is not None:
        raise Rejected("a user or password in a URL", "secrets are given by reference: {env: NAME}, {file: PATH}")
    if parts.path not in ("", "/") or parts.query or parts.fragment:
        raise Rejected("a URL with a path or query", "leave them out: the client's own path goes upstream")
    if not re.fullmatch(r"[a-z0-9._-]{1,253}|[0-9a-f:.]{2,45}", host) or not text.isascii():
        raise Rejected(f"{quoted(host)} is not a host name", "write an international name in its xn-- form")
    shown = f"[{host}]" if ":" in host else host
    return f"{parts.scheme}://{shown}" + (f":{port}" if port is not None else "")


def _read_url(text: str, is_plain: bool) -> str:
    return _split_url(text, is_plain, ("https", "http"))


def _read_proxy(text: str, is_plain: bool) -> str:
    return _split_url(text, is_plain, ("http",))


def _read_moment(text: str, is_plain: bool) -> float:
    """RFC 3339 with a zone, in or out of quotes; in memory seconds since 1970 (UTC)."""
    try:
        moment = datetime.fromisoformat(text)
        if moment.tzinfo is not None:
            return moment.timestamp()
    except (ValueError, OverflowError):
        pass
    hint = "it needs a time and a zone: " if re.fullmatch(r"[\d: T-]+", text) else ""
    raise Rejected(f"{quoted(text)} is not a moment in time", hint + "such as 2027-01-31T00:00:00Z")


def _write_moment(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat().replace("+00:00", "Z")


def choice(*names: str) -> Kind:
    """One of a few words."""

    def read(text: str, is_plain: bool) -> str:
        if text in names:
            return text
        hint = closest(text, names) or "one of " + ", ".join(names)
        raise Rejected(f"{quoted(text)} is not known here", hint)

    return Kind("choice", read, str, {"enum": list(names)})


def _as_is(value: Any) -> Any:
    return value


_STRING = {"type": "string"}
_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}"
_ROUTE = r"(\*|[A-Z]{1,16}) /[!-~]*"

FLAG = Kind("flag", _read_flag, _as_is, {"type": "boolean"})
WHOLE = Kind("whole number", _read_whole, _as_is, {"type": "integer"})
NUMBER = Kind("number", _read_number, _as_is, {"type": "number"})
DURATION = Kind(
    "duration",
    _read_duration,
    _write_duration,
    {"type": ["string", "number"], "pattern": f"^{_DURATION.pattern}$"},
    "seconds",
)
SIZE = Kind("size", _read_size, _write_size, {"type": ["string", "integer"], "pattern": f"^{_SIZE.pattern}$"}, "bytes")
TEXT = Kind("text", _read_text, _as_is, {**_STRING, "minLength": 1, "maxLength": 4096})
PATH = Kind("path", _read_text, _as_is, {**_STRING, "minLength": 1, "maxLength": 4096})
NAME = Kind(
    "name",
    _text(_NAME, "a name", "letters, digits, . _ - and at most 64 of them"),
    _as_is,
    {**_STRING, "pattern": f"^{_NAME}$"},
)
GLOB = Kind(
    "pattern",
    _text(r"[!-~]{1,256}", "a pattern", "a model's name, in which * stands for anything"),
    _as_is,
    {**_STRING, "maxLength": 256},
)
ROUTE = Kind(
    "route",
    _text(_ROUTE, "a route", "such as `POST /v1/chat/completions` or `* /v1/realtime*`"),
    _as_is,
    {**_STRING, "pattern": f"^{_ROUTE}$"},
)
HEADER = Kind(
    "header",
    _text(_FIELD_NAME, "a header's name", "such as x-request-id"),
    _as_is,
    {**_STRING, "pattern": f"^{_FIELD_NAME}$"},
)
ADDRESS = Kind("address", _read_address, _as_is, {**_STRING, "pattern": r"^.+:\d{1,5}$"})
NETWORK = Kind("network", _read_network, _as_is, _STRING)
URL = Kind("URL", _read_url, _as_is, {**_STRING, "pattern": "^https?://"})
PROXY = Kind("proxy", _read_proxy, _as_is, {**_STRING, "pattern": "^http://"})
MOMENT = Kind("moment", _read_moment, _write_moment, _STRING)
