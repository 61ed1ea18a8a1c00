"""What to do after an outcome: the one place that decides about trying again.

Pure: the exchange tells what happened and how far it is, the verdict says what follows and why. Invariants I2 (nothing
is tried again after a byte has reached the client) and I4 (a caller's fault is the caller's) are held here.
"""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple

from yugong.base.errors import Fault, Penalty, Reach, Scope


class Action(Enum):
    """What follows an outcome."""

    RELAY = "relay"  # it is an answer: pass it on
    AGAIN = "again"  # another org, another key, or the same after a while
    ANSWER = "answer"  # the fault is what the client gets
    BREAK = "break"  # the client has bytes already: end them honestly (I3)


class Verdict(NamedTuple):
    """An action, its reason (a bounded label) and the seconds to wait before it."""

    action: Action
    reason: str
    delay: float = 0.0


class Progress(NamedTuple):
    """How far a call is."""

    #: Attempts made, this one included.
    tries: int
    max_tries: int
    #: Whether the retry budget (a share of traffic) has something left.
    has_budget: bool
    #: Seconds until the call's own deadline.
    time_left: float
    has_sent_bytes: bool
    is_repeatable: bool
    #: Whether an org or key not tried yet could take it.
    has_alternative: bool
    #: A random number in [0, 1) for the back-off's jitter.
    spread: float


BACKOFF_BASE = 0.1  # seconds
BACKOFF_CAP = 4.0

_ELSEWHERE = frozenset({Penalty.EXCLUDE, Penalty.PARK, Penalty.QUARANTINE})
_NOT_THIS_ONE = frozenset({401, 404, 429})
#: Statuses by which upstream says that it did not act; any other failure after sending may have happened.
_NOT_ACTED = frozenset({400, 401, 402, 403, 404, 408, 409, 413, 422, 425, 429, 503, 529})


def is_routing(fault: Fault) -> bool:
    """Whether trying elsewhere is choosing, not hammering: it does not count against the retry budget.

    Upstream has said that this key, org or model is not the one, or is full. Overload (503, 529) is said of the whole,
    so it counts like any failure.
    """
    return fault.penalty in _ELSEWHERE or fault.status in _NOT_THIS_ONE


def may_have_acted(fault: Fault) -> bool:
    """Whether upstream can have done what was asked although it failed to say so."""
    return fault.reach >= Reach.SENT and fault.status not in _NOT_ACTED


def judge(fault: Fault | None, progress: Progress) -> Verdict:
    """What follows. `fault` is None for an answer that is one."""
    if fault is None:
        return Verdict(Action.RELAY, "answered")
    if progress.has_sent_bytes:
        return Verdict(Action.BREAK, "client_has_bytes")
    if fault.scope is Scope.CALLER:
        return Verdict(Action.ANSWER, "callers_own")
    if not fault.is_retryable:
        return Verdict(Action.ANSWER, "final")
    if not progress.is_repeatable and may_have_acted(fault):
        return Verdict(Action.ANSWER, "may_have_acted")
    if progress.tries >= progress.max_tries:
        return Verdict(Action.ANSWER, "tries_spent")
    if not progress.has_budget and not is_routing(fault):
        return Verdict(Action.ANSWER, "budget_spent")
    delay = 0.0 if progress.has_alternative else _delay(fault, progress)
    if delay >= progress.time_left:
        return Verdict(Action.ANSWER, "deadline")
    return Verdict(Action.AGAIN, "elsewhere" if progress.has_alternative else "same_again", delay)


def _delay(fault: Fault, progress: Progress) -> float:
    """Exponential back-off with jitter; upstream's own word counts more. Nobody else is there to ask."""
    backoff: float = min(BACKOFF_BASE * 2.0 ** (progress.tries - 1), BACKOFF_CAP) * (0.5 + progress.spread / 2)
    return max(backoff, fault.wait or 0.0)


class RetryBudget:
    """A share of traffic may be tried again, and a few a second besides (Finagle's retry budget).

    So that a dead upstream is asked little more often than a living one: amplification stays below 1 + share.
    """

    __slots__ = ("_floor", "_level", "_share", "_since")

    CAP = 60.0  # retries saved up at most: what many calls timing out together may need at once

    def __init__(self, share: float, floor: float) -> None:
        self._share = share
        self._floor = floor
        self._level = min(floor, self.CAP)
        self._since = 0.0

    def __repr__(self) -> str:
        return f"<RetryBudget {self._level:.1f} left, {self._share:.0%} of calls + {self._floor:g}/s>"

    def earn(self) -> None:
        """A call came in."""
        level = self._level + self._share
        self._level = level if level < self.CAP else self.CAP

    def can_spend(self, now: float) -> bool:
        """Whether one retry is left (`now` in seconds; the floor drips in here)."""
        if self._since:
            self._level = min(self._level + (now - self._since) * self._floor, self.CAP)
        self._since = now
        return self._level >= 1.0

    def spend(self) -> None:
        """A retry was made."""
        self._level -= 1.0
