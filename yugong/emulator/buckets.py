"""Continuously refilling buckets and the headers and words that tell of them. Pure: `now` is an argument (seconds).

OpenAI charges at admission: one request and max(the answer's ceiling, the estimated request) tokens, and gives nothing
back (facts: providers §2). `reset` is the time to a full bucket; the wait to the next call that fits is in
`retry-after` and in the text.
"""

import math
from collections import deque
from typing import NamedTuple

MINUTE = 60.0
DAY = 86_400.0

# dimension → (limit's name in the spec, period, `error.type`, words of the message)
DIMENSIONS: dict[str, tuple[str, float, str, str]] = {
    "requests": ("rpm", MINUTE, "requests", "requests per min (RPM)"),
    "tokens": ("tpm", MINUTE, "tokens", "tokens per min (TPM)"),
    "requests_day": ("rpd", DAY, "requests", "requests per day (RPD)"),
    "tokens_day": ("tpd", DAY, "tokens", "tokens per day (TPD)"),
    "images": ("ipm", MINUTE, "requests", "images per minute"),
    "input_tokens": ("itpm", MINUTE, "tokens", "input tokens per minute"),
    "output_tokens": ("otpm", MINUTE, "tokens", "output tokens per minute"),
}


class Bucket:
    """`capacity` units, refilled at capacity/period a second, full at first."""

    __slots__ = ("at", "capacity", "level", "rate")

    def __init__(self, capacity: float, period: float, now: float) -> None:
        self.capacity = float(capacity)
        self.rate = capacity / period
        self.level = self.capacity
        self.at = now

    def __repr__(self) -> str:
        return f"<Bucket {self.level:.1f}/{self.capacity:.0f} +{self.rate:.3f}/s>"

    def refill(self, now: float) -> float:
        """The level at `now`. A clock that went back refills nothing."""
        if now > self.at:
            level = self.level + (now - self.at) * self.rate
            self.level = level if level < self.capacity else self.capacity
            self.at = now
        return self.level

    def wait(self, amount: float) -> float:
        """Seconds until `amount` is there, as of the last refill; infinite if it never can be."""
        if amount > self.capacity:
            return math.inf
        return max(0.0, (amount - self.level) / self.rate)

    def reset(self) -> float:
        """Seconds until full, as of the last refill."""
        return (self.capacity - self.level) / self.rate


class Shortage(NamedTuple):
    """Why a call was not admitted."""

    dimension: str  # of DIMENSIONS, or "concurrency"
    limit: int
    used: int
    requested: int
    wait: float  # seconds; infinite = can never fit


class Window:
    """What was let in over the last minute, in slots of 100 ms, and the most any such minute held.

    A full bucket admits its capacity at once and as much again over the minute, so a client that keeps the limit as
    upstream does can reach twice the limit here; the sign of asking for too much is a shortage, not this figure.
    """

    __slots__ = ("most_requests", "most_tokens", "requests", "slots", "tokens")

    def __init__(self) -> None:
        self.slots: deque[list[int]] = deque()
        self.requests = self.tokens = self.most_requests = self.most_tokens = 0

    def add(self, tokens: int, now: float) -> None:
        slot = int(now * 10)
        slots = self.slots
        if slots and slots[-1][0] >= slot:
            slots[-1][1] += 1
            slots[-1][2] += tokens
        else:
            slots.append([slot, 1, tokens])
            while slots[0][0] <= slot - 600:
                _, requests, old = slots.popleft()
                self.requests -= requests
                self.tokens -= old
        self.requests += 1
        self.tokens += tokens
        if self.requests > self.most_requests:
            self.most_requests = self.requests
        if self.tokens > self.most_tokens:
            self.most_tokens = self.tokens


def go_duration(seconds: float) -> str:
    """A duration as Go prints it and OpenAI sends it: `12ms`, `7.66s`, `6m0s`, `1h2m3s`."""
    if seconds <= 0:
        return "0s"
    if seconds < 1:
        ms = math.ceil(seconds * 1000)
        return f"{ms}ms" if ms < 1000 else "1s"
    whole_ms = math.ceil(seconds * 1000)
    minutes, ms = divmod(whole_ms, 60_000)
    text = f"{ms / 1000:.3f}".rstrip("0").rstrip(".") + "s"
    if not minutes:
        return text
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes}m{text}" if hours else f"{minutes}m{text}"
