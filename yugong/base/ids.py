"""Identifiers: of calls, and nothing else yet.

Readable, sortable by start within a process, unguessable enough to quote in a support mail; no secret lives in one.
Randomness comes in as an argument.
"""

from __future__ import annotations

_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"  # Crockford's base 32: no i, l, o, u


class CallIds:
    """Makes `yg_` + process nonce + counter. `nonce`: at least 8 bytes of randomness, one draw for each process."""

    __slots__ = ("_count", "_prefix")

    def __init__(self, nonce: bytes) -> None:
        number = int.from_bytes(nonce[:8], "big")
        self._prefix = "yg_" + "".join(_ALPHABET[(number >> shift) & 31] for shift in range(0, 60, 5))
        self._count = 0

    def __repr__(self) -> str:
        return f"<CallIds {self._prefix} made={self._count}>"

    def next(self) -> str:
        """The next id, e.g. `yg_3k9v0c2m7q1x-1a`."""
        self._count += 1
        return f"{self._prefix}-{self._count:x}"
