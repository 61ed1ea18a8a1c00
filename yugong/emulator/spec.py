"""What an emulator is to be: its organisations, their limits, its faults and its pace.

These records are settings; the live state grown from them is in `orgs` and `faults`. Nothing here opens, waits or
reads a clock. `EmulatorSpec.from_document` reads the JSON form strictly: an unknown or mistyped field is an error.
"""

import hashlib
from dataclasses import dataclass, field, fields
from typing import Any

DEMO_KEY = "sk-yugong-demo-key-it-is-public-and-no-secret"  # well known on purpose: the demo upstream bills nobody

DEFAULT_MODELS = (
    "gpt-5.6",
    "gpt-5.6-mini",
    "gpt-4o",
    "gpt-4o-mini",
    "text-embedding-3-small",
    "text-embedding-3-large",
    "gpt-image-1",
    "gpt-4o-mini-tts",
    "tts-1",
    "gpt-4o-transcribe",
    "whisper-1",
    "omni-moderation-latest",
    "gpt-realtime",
    "claude-opus-5-5",
    "claude-haiku-4-5-20251001",
)


class SpecError(ValueError):
    """A specification that cannot be read; the text says where and what."""


@dataclass(slots=True)
class Limits:
    """Ceilings of one limit group. `None` is no limit. Minutes and days are sliding, refilled continuously."""

    rpm: int | None = None  # requests a minute
    tpm: int | None = None  # tokens a minute, counted at admission
    rpd: int | None = None  # requests a day
    tpd: int | None = None  # tokens a day
    ipm: int | None = None  # images a minute
    itpm: int | None = None  # input tokens a minute (Anthropic)
    otpm: int | None = None  # output tokens a minute (Anthropic)
    concurrency: int | None = None  # calls at once


LIMIT_NAMES = tuple(each.name for each in fields(Limits))


@dataclass(slots=True)
class GroupSpec:
    """Models that share one set of buckets. `models` are exact names or patterns of `fnmatch` (`gpt-4o*`)."""

    name: str = "default"
    models: tuple[str, ...] = ("*",)
    limits: Limits = field(default_factory=Limits)


@dataclass(slots=True)
class OrgSpec:
    """One organisation: what is limited and billed. A model no group names does not exist for it (404).

    `trouble` is a standing fault (any kind of `faults.KINDS`, such as `429_quota`) that all its calls meet.
    """

    name: str
    keys: tuple[str, ...]
    organization: str = ""
    groups: tuple[GroupSpec, ...] = (GroupSpec(),)
    trouble: str = ""

    def __post_init__(self) -> None:
        if not self.organization:
            self.organization = "org-" + _digest(self.name)[:24]

    def __repr__(self) -> str:
        return f"<OrgSpec {self.name} {self.organization} keys={len(self.keys)} groups={len(self.groups)}>"


@dataclass(slots=True)
class FaultRule:
    """A fault that strikes by lot: `share` of the attempts that match get it, drawn from its own seeded generator.

    Empty `orgs`, `models` or `paths` match everything; `paths` are prefixes. `count` caps how often it strikes.
    """

    kind: str  # "KIND[:PARAM…]", as in the request header
    share: float = 1.0
    orgs: tuple[str, ...] = ()
    models: tuple[str, ...] = ()
    paths: tuple[str, ...] = ()
    count: int | None = None
    seed: int = 0


@dataclass(slots=True)
class EmulatorSpec:
    """Everything an emulator is told. Times in milliseconds, sizes in bytes."""

    orgs: tuple[OrgSpec, ...] = ()
    faults: tuple[FaultRule, ...] = ()
    models: tuple[str, ...] = DEFAULT_MODELS  # what GET /v1/models lists; any other name is served as well
    pieces: int = 16  # pieces (= output tokens) of an answer unless asked otherwise
    piece_size: int = 0  # bytes each piece is padded to; 0 = as it comes
    interval_ms: float = 0.0  # between the events of a stream
    delay_ms: float = 0.0  # before the head
    deterministic: bool = False  # ids, times and trace headers derived from the request alone
    journal: str | None = None  # path; None = a temporary file, "" = no journal
    journal_fsync: bool = False  # sync after each line
    journal_max_bytes: int = 1 << 30  # lines past it are counted, not kept
    memory_body_bytes: int = 2 << 20  # a larger request body is spooled to disk
    max_body_bytes: int = 600 << 20  # a larger one is answered 413
    max_stored: int = 10_000  # responses kept per org; older ones are forgotten
    max_connections: int = 20_000

    def __repr__(self) -> str:
        return f"<EmulatorSpec orgs={len(self.orgs)} faults={len(self.faults)} pieces={self.pieces}>"

    @classmethod
    def demo(cls) -> "EmulatorSpec":
        """One org with generous limits and the well-known `DEMO_KEY`."""
        limits = Limits(rpm=30_000, tpm=30_000_000, ipm=3_000)
        return cls(orgs=(OrgSpec("demo", (DEMO_KEY,), groups=(GroupSpec(limits=limits),)),), interval_ms=15.0)

    @classmethod
    def uniform(cls, orgs: int = 1, keys: int = 1, limits: Limits | None = None, **rest: Any) -> "EmulatorSpec":
        """`orgs` alike organisations named `org-0`, … with `keys` keys each; `rest` are fields of the spec."""
        group = GroupSpec(limits=limits or Limits())
        made = tuple(_uniform_org(f"org-{i}", keys, group) for i in range(orgs))
        return cls(orgs=made, **rest)

    @classmethod
    def from_document(cls, document: Any) -> "EmulatorSpec":
        """Read the JSON form; raises SpecError."""
        values = _checked(document, cls, "spec")
        values["orgs"] = tuple(_org(each, f"orgs[{i}]") for i, each in enumerate(_list(values, "orgs", "spec")))
        values["faults"] = tuple(rule_from(each, f"faults[{i}]") for i, each in enumerate(_list(values, "faults", "")))
        if "models" in values:
            values["models"] = tuple(_list(values, "models", "spec"))
        return cls(**values)

    def keys(self) -> dict[str, list[str]]:
        """Keys by org name, as the ready line prints them. They are the emulator's own and open nothing else."""
        return {org.name: list(org.keys) for org in self.orgs}


def rule_from(document: Any, where: str = "fault") -> FaultRule:
    """One fault rule out of JSON; raises SpecError."""
    values = _checked(document, FaultRule, where)
    if "kind" not in values:
        raise SpecError(f"{where}: kind is missing")
    for name in ("orgs", "models", "paths"):
        values[name] = tuple(_list(values, name, where))
    return FaultRule(**values)


def _uniform_org(name: str, keys: int, group: GroupSpec) -> OrgSpec:
    made = tuple(f"sk-emulator-{_digest(f'{name}/{i}')[:40]}" for i in range(keys))
    return OrgSpec(name, made, groups=(group,))


def _org(document: Any, where: str) -> OrgSpec:
    """An org; limits directly on it (`rpm`, …) are short for one group of all models."""
    if not isinstance(document, dict):
        raise SpecError(f"{where}: an object is due")
    short = {name: value for name, value in document.items() if name in LIMIT_NAMES}
    values = _checked({k: v for k, v in document.items() if k not in short}, OrgSpec, where)
    if "name" not in values or "keys" not in values:
        raise SpecError(f"{where}: name and keys are due")
    values["keys"] = tuple(_list(values, "keys", where))
    if short and "groups" in values:
        raise SpecError(f"{where}: limits stand either on the org or on its groups")
    if "groups" in values:
        groups = _list(values, "groups", where)
        values["groups"] = tuple(_group(each, f"{where}.groups[{i}]") for i, each in enumerate(groups))
    else:
        values["groups"] = (GroupSpec(limits=_limits(short, where)),)
    return OrgSpec(**values)


def _group(document: Any, where: str) -> GroupSpec:
    if not isinstance(document, dict):
        raise SpecError(f"{where}: an object is due")
    short = {name: value for name, value in document.items() if name in LIMIT_NAMES}
    values = _checked({k: v for k, v in document.items() if k not in short}, GroupSpec, where)
    values["limits"] = _limits(short | dict(values.get("limits") or {}), where)
    if "models" in values:
        values["models"] = tuple(_list(values, "models", where))
    return GroupSpec(**values)


def _limits(document: dict[str, Any], where: str) -> Limits:
    values = _checked(document, Limits, where)
    for name, value in values.items():
        if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value <= 0):
            raise SpecError(f"{where}.{name}: a positive integer or null is due")
    return Limits(**values)


def _checked(document: Any, record: type, where: str) -> dict[str, Any]:
    if not isinstance(document, dict):
        raise SpecError(f"{where}: an object is due")
    known = {each.name for each in fields(record)}
    unknown = sorted(set(document) - known)
    if unknown:
        raise SpecError(f"{where}: unknown {', '.join(unknown)}; known are {', '.join(sorted(known))}")
    return dict(document)


def _list(values: dict[str, Any], name: str, where: str) -> list[Any]:
    value = values.get(name, [])
    if not isinstance(value, list | tuple):
        raise SpecError(f"{where}.{name}: a list is due")
    return list(value)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
