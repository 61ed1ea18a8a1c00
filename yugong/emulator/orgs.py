"""The live organisations: who a key belongs to, which bucket a model draws on, what was admitted, refused and billed.

Admission is one step: all dimensions are looked at, then all are charged, or none. `now` is an argument.
"""

import time
from collections import OrderedDict
from fnmatch import fnmatchcase
from typing import Any

from yugong.emulator.buckets import DIMENSIONS, Bucket, Shortage, Window, go_duration
from yugong.emulator.spec import EmulatorSpec, GroupSpec, OrgSpec

CACHE_FLOOR_BYTES = 4096  # 1 024 tokens: OpenAI caches no shorter prefix
CACHE_STEP_BYTES = 512  # and counts in steps of 128 tokens


class Group:
    """The live buckets of one limit group of one org."""

    __slots__ = ("buckets", "concurrency", "in_flight", "name", "peak", "refused", "window")

    def __init__(self, spec: GroupSpec, now: float) -> None:
        self.name = spec.name
        self.concurrency = spec.limits.concurrency
        self.buckets: list[tuple[str, Bucket]] = []
        for dimension, (limit, period, _, _) in DIMENSIONS.items():
            capacity = getattr(spec.limits, limit)
            if capacity is not None:
                self.buckets.append((dimension, Bucket(capacity, period, now)))
        self.in_flight = self.peak = 0
        self.refused: dict[str, int] = {}
        self.window = Window()

    def __repr__(self) -> str:
        return f"<Group {self.name} in_flight={self.in_flight} {self.buckets}>"

    def admit(self, amounts: dict[str, int], now: float) -> Shortage | None:
        """Charge `amounts` in every limited dimension, or say what is short and charge nothing."""
        shortage = self._look(amounts, now)
        if shortage is not None:
            self.refused[shortage.dimension] = self.refused.get(shortage.dimension, 0) + 1
            return shortage
        for dimension, bucket in self.buckets:
            bucket.level -= amounts.get(dimension, 0)
        self.window.add(amounts["tokens"], now)
        self.in_flight += 1
        if self.in_flight > self.peak:
            self.peak = self.in_flight
        return None

    def _look(self, amounts: dict[str, int], now: float) -> Shortage | None:
        if self.concurrency is not None and self.in_flight >= self.concurrency:
            return Shortage("concurrency", self.concurrency, self.in_flight, 1, 1.0)
        for dimension, bucket in self.buckets:
            amount = amounts.get(dimension, 0)
            level = bucket.refill(now)
            if amount > level:
                used = round(bucket.capacity - level)
                return Shortage(dimension, int(bucket.capacity), used, amount, bucket.wait(amount))
        return None

    def pretend(self, dimension: str, wait: float, now: float) -> Shortage | None:
        """A shortage that would last `wait` seconds, in figures that fit together; None if that is not limited."""
        for name, bucket in self.buckets:
            bucket.refill(now)
            if name == dimension:
                capacity = int(bucket.capacity)
                requested = 1 if dimension == "requests" else max(1, round(bucket.rate * wait))
                return Shortage(dimension, capacity, capacity, requested, wait)
        return None

    def headers(self, dialect: str, wall: float, empty: str = "") -> str:
        """What a head tells of the limits, as of the last look, as header lines.

        `wall` is the wall clock, `empty` a dimension to be told as used up.
        """
        lines = ""
        for dimension, bucket in self.buckets:
            level, reset = (
                (0.0, bucket.capacity / bucket.rate) if dimension == empty else (bucket.level, bucket.reset())
            )
            if dialect == "anthropic":
                name = f"anthropic-ratelimit-{dimension.replace('_', '-')}-"
                full = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(wall + reset + 0.999))
                lines += f"{name}limit: {bucket.capacity:.0f}\r\n{name}remaining: {max(0, int(level))}\r\n"
                lines += f"{name}reset: {full}\r\n"
            elif dimension in ("requests", "tokens"):
                lines += (
                    f"x-ratelimit-limit-{dimension}: {bucket.capacity:.0f}\r\n"
                    f"x-ratelimit-remaining-{dimension}: {max(0, int(level))}\r\n"
                    f"x-ratelimit-reset-{dimension}: {go_duration(reset)}\r\n"
                )
        return lines

    def stats(self) -> dict[str, Any]:
        limits = {name: int(bucket.capacity) for name, bucket in self.buckets}
        return {
            "limits": limits,
            "in_flight": self.in_flight,
            "peak_concurrency": self.peak,
            "most_requests_a_minute": self.window.most_requests,
            "most_tokens_a_minute": self.window.most_tokens,
            "refused": dict(self.refused),
            # Asked for more than there was: the one sign of it upstream would show.
            "above_limits": bool(self.refused),
        }


class Org:
    """One live organisation."""

    __slots__ = ("_by_model", "attempts", "billed", "cache", "files", "groups", "responses", "spec", "statuses")

    def __init__(self, spec: OrgSpec, now: float) -> None:
        self.spec = spec
        self.groups = [(each, Group(each, now)) for each in spec.groups]
        self._by_model: dict[str, Group | None] = {}
        self.attempts = 0
        self.statuses: dict[int, int] = {}
        self.billed: dict[str, int] = {}
        self.cache: OrderedDict[bytes, bytes] = OrderedDict()  # prompt heads → the last prompt that had it
        self.responses: OrderedDict[str, dict[str, Any]] = OrderedDict()
        self.files: OrderedDict[str, Any] = OrderedDict()

    def __repr__(self) -> str:
        return f"<Org {self.spec.name} attempts={self.attempts} groups={len(self.groups)}>"

    def group_of(self, model: str) -> Group | None:
        """The group a model draws on; None when this org does not have the model."""
        found = self._by_model.get(model)
        if found is None and model not in self._by_model:
            found = self._match(model)
            if len(self._by_model) < 1000:
                self._by_model[model] = found
        return found

    def _match(self, model: str) -> Group | None:
        for spec, group in self.groups:
            if any(pattern in (model, "*") or fnmatchcase(model, pattern) for pattern in spec.models):
                return group
        return None

    def bill(self, usage: dict[str, int]) -> None:
        billed = self.billed
        for unit, amount in usage.items():
            billed[unit] = billed.get(unit, 0) + amount

    def cached_tokens(self, prompt: bytes) -> int:
        """Tokens of the prompt's head this org has seen before; notes the prompt. Prompt caches are per org."""
        if len(prompt) < CACHE_FLOOR_BYTES:
            return 0
        head = prompt[:CACHE_FLOOR_BYTES]
        before = self.cache.pop(head, None)
        self.cache[head] = prompt
        if len(self.cache) > 256:
            self.cache.popitem(last=False)
        if before is None:
            return 0
        end = CACHE_FLOOR_BYTES
        while end + CACHE_STEP_BYTES <= len(prompt):
            if before[end : end + CACHE_STEP_BYTES] != prompt[end : end + CACHE_STEP_BYTES]:
                break
            end += CACHE_STEP_BYTES
        return end // 4

    def stats(self) -> dict[str, Any]:
        return {
            "organization": self.spec.organization,
            "attempts": self.attempts,
            "statuses": {str(status): count for status, count in sorted(self.statuses.items())},
            "billed": dict(self.billed),
            "groups": {group.name: group.stats() for _, group in self.groups},
        }


class Orgs:
    """All organisations and their keys."""

    __slots__ = ("_by_key", "all")

    def __init__(self, spec: EmulatorSpec, now: float) -> None:
        self.all = {each.name: Org(each, now) for each in spec.orgs}
        self._by_key: dict[str, tuple[Org, str]] = {}
        for org in self.all.values():
            for i, key in enumerate(org.spec.keys):
                self._by_key[key] = (org, f"{org.spec.name}/{i}")

    def __repr__(self) -> str:
        return f"<Orgs {len(self.all)} keys={len(self._by_key)}>"

    def find(self, key: str) -> tuple[Org, str] | None:
        """The org of a key and the key's id (`org/number`)."""
        return self._by_key.get(key)

    def stats(self) -> dict[str, Any]:
        return {name: org.stats() for name, org in self.all.items()}
