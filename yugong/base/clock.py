"""Time as the product counts it.

Two clocks, never mixed. *Monotonic* seconds (float) for deadlines inside one process and *ticks* (integer microseconds
of the same system-wide monotonic clock) in memory shared by processes; wall time only for records and expiry dates.
This file reads neither: it converts what it is given.
"""

from __future__ import annotations

SECOND = 1_000_000  # ticks


def to_ticks(seconds: float) -> int:
    """Seconds of the monotonic clock as integer microseconds."""
    return int(seconds * SECOND)
