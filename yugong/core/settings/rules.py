"""What must hold between settings.

Decides: references that lead nowhere, values that contradict each other, destinations that would give a key away. Must
not know: YAML, files, the environment.

Each rule is one function in `RULES`; it gets what could be read (records with a problem of their own are absent) and
the names that were written, so that one mistake is told once.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from ipaddress import ip_address
from urllib.parse import urlsplit

from yugong.base.secret import Secret
from yugong.core.settings.problems import Place, Problem, closest, problem_at, quoted
from yugong.core.settings.records import Origin, Settings
from yugong.core.settings.shapes import joined

__all__ = ["RULES", "Facts", "check", "is_presentable"]

# RFC 9110 §7.6.1, and what frames the message: these are written by us, never passed on. Cookies would tie one
# customer's calls to another's at the origin's edge.
_NOT_RELAYED = frozenset({
    "connection", "keep-alive", "proxy-authenticate", "proxy-authorization", "proxy-connection", "te", "trailer",
    "transfer-encoding", "upgrade", "content-length", "set-cookie", "set-cookie2",
})  # fmt: skip
CUSTOMER_KEY_LENGTH = (8, 512)


class Facts:
    """What the rules look at."""

    __slots__ = ("dialects", "given", "names", "settings", "whole")

    def __init__(self, settings: Settings, given: dict[str, Place], names: dict[str, Collection[str]]) -> None:
        self.settings = settings
        self.given = given
        self.names = names  # section: the names written in it, also of entries that could not be read
        self.dialects: Collection[str] = ()
        self.whole = Place("defaults")  # where a problem with a default is shown

    def __repr__(self) -> str:
        return f"<Facts orgs={len(self.settings.orgs)} given={len(self.given)}>"

    def problem(self, path: str, what: str, hint: str = "") -> Problem:
        place = self.given.get(path, self.whole)
        return problem_at(place, f"{path}: {what}", hint)


def check(facts: Facts) -> list[Problem]:
    """Every problem that every rule finds."""
    return [problem for rule in RULES for problem in rule(facts)]


def is_presentable(value: bytes) -> bool:
    """Whether a client can present `value` in a header: visible ASCII of a bearable length."""
    low, high = CUSTOMER_KEY_LENGTH
    return low <= len(value) <= high and all(0x21 <= byte <= 0x7E for byte in value)


def _listening(facts: Facts) -> Iterator[Problem]:
    listen = facts.settings.listen
    if listen.address is None and listen.unix is None:
        yield facts.problem("listen.address", "neither an address nor a socket to listen on", "such as 127.0.0.1:8080")
    if listen.address is not None and listen.address == listen.admin and not listen.address.endswith(":0"):
        yield facts.problem("listen.admin", "the same as listen.address", "give it a port of its own")


def _sizes(facts: Facts) -> Iterator[Problem]:
    intake = facts.settings.intake
    for name in ("body_memory", "json_max"):  # a default that is larger does no harm: body_max holds anyway
        if f"intake.{name}" in facts.given and getattr(intake, name) > intake.body_max:
            yield facts.problem(f"intake.{name}", "larger than body_max", "no body is larger than body_max")
    if intake.body_max > intake.spool_max:
        culprit = "body_max" if "intake.spool_max" not in facts.given else "spool_max"
        yield facts.problem(
            f"intake.{culprit}", "body_max is larger than spool_max", "one such body would not fit on disk"
        )


def _references(facts: Facts) -> Iterator[Problem]:
    for name, org in facts.settings.orgs.items():
        path = joined("orgs", name)
        for field, section in (("origin", "origins"), ("egress", "egress")):
            wanted, known = getattr(org, field), facts.names[section]
            if wanted is not None and wanted not in known:
                hint = closest(wanted, known) or _definition(section, wanted)
                yield facts.problem(f"{path}.{field}", f"{quoted(wanted)} is not one of `{section}`", hint)


def _definition(section: str, name: str) -> str:
    example = "{dialect: openai, url: https://api.openai.com}" if section == "origins" else "{proxy: http://host:3128}"
    return f"define it: {section}: {{{name}: {example}}}"


def _dialects(facts: Facts) -> Iterator[Problem]:
    for name, origin in facts.settings.origins.items():
        if facts.dialects and origin.dialect not in facts.dialects:
            hint = closest(origin.dialect, facts.dialects) or "known are " + ", ".join(sorted(facts.dialects))
            yield facts.problem(joined("origins", name) + ".dialect", f"{quoted(origin.dialect)} is not known", hint)


def _destinations(facts: Facts) -> Iterator[Problem]:
    """A key is only sent where its owner can mean it to go (facts/threats 1, 2)."""
    for name, origin in facts.settings.origins.items():
        path = joined("origins", name)
        if origin.private:
            continue
        if origin.url.startswith("http://"):
            yield facts.problem(
                f"{path}.url", "keys would travel without TLS", "https://, or `private: true` for a host of your own"
            )
        if not origin.verify:
            yield facts.problem(
                f"{path}.verify",
                "anyone could pose as this origin",
                "`ca_file`, or `private: true` for a host of your own",
            )
        if _is_inside(origin):
            yield facts.problem(f"{path}.url", "a loopback or private address", "`private: true` if that is meant")


def _is_inside(origin: Origin) -> bool:
    host = urlsplit(origin.url).hostname or ""
    try:
        return not ip_address(host).is_global
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def _aliases(facts: Facts) -> Iterator[Problem]:
    aliases = facts.settings.models.aliases
    for name, model in aliases.items():
        path = joined("models.aliases", name)
        if "*" in name or "*" in model:
            yield facts.problem(path, "an alias is for one name, without *")
        elif model in aliases:
            yield facts.problem(path, f"{quoted(model)} is an alias itself", "name the model")


def _proxies(facts: Facts) -> Iterator[Problem]:
    for name, egress in facts.settings.egress.items():
        if egress.password is not None and egress.username is None:
            yield facts.problem(joined("egress", name) + ".password", "a password without a username")


def _customer_keys(facts: Facts) -> Iterator[Problem]:
    """A key names one account: the same value twice would leave it to chance who pays."""
    seen: dict[bytes, str] = {}
    low, high = CUSTOMER_KEY_LENGTH
    for name, account in facts.settings.accounts.items():
        for key in account.keys:
            path = joined(joined("accounts", name) + ".keys", key.id) + ".value"
            if not isinstance(key.value.value, Secret):
                continue
            value = key.value.value.reveal()
            if not is_presentable(value):
                yield facts.problem(
                    path, "a key that no client could present", f"{low} to {high} visible ASCII characters"
                )
            if (other := seen.setdefault(value, path)) != path:
                yield facts.problem(path, f"the same key as {other}", "each key belongs to one account")


def _answer_headers(facts: Facts) -> Iterator[Problem]:
    for index, header in enumerate(facts.settings.relay.extra_answer_headers):
        if header.lower() in _NOT_RELAYED:
            path = f"relay.extra_answer_headers.{index}"
            yield facts.problem(path, f"{quoted(header)} is never passed on")


RULES: tuple[Callable[[Facts], Iterator[Problem]], ...] = (
    _listening,
    _sizes,
    _references,
    _dialects,
    _destinations,
    _aliases,
    _proxies,
    _customer_keys,
    _answer_headers,
)
