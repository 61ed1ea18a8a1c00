"""Where the pool's numbers live, as the deciding code sees it: rows of integers, found by name, changed under a lock.

One interface, several homes: a plain list in tests and the simulator, a file in memory shared by all workers of a
machine (`store/poolstate`), later a server shared by a cluster. A row is a slice of `cells` that begins at an index; 0
is no row. Reading one cell needs no lock; changing a row does.
"""

from __future__ import annotations

from collections.abc import MutableSequence
from typing import Protocol

HEALTH_ROW = 8  # cells: see health.py
GROUP_ROW = 48  # cells: see buckets.py
LANES = 24  # one for each worker slot of a machine: in-flight calls of its own


class Home(Protocol):
    """The counters' home. `cells` may be indexed and assigned; a row's lock is held for microseconds, never waited
    across."""

    cells: MutableSequence[int]

    def health_row(self, name: str, *, is_made: bool = True) -> int:
        """The index of the health row `name`, made (all zero) if missing; 0 if there is none or the home is full."""
        ...

    def group_row(self, name: str, *, is_made: bool = True) -> int:
        """The same for the buckets of an org's limit group."""
        ...

    def lock(self, row: int) -> None: ...

    def unlock(self, row: int) -> None: ...


class ListHome:
    """A home in one process: for tests, the simulator and a single worker without shared memory."""

    def __init__(self) -> None:
        self.cells: MutableSequence[int] = [0] * HEALTH_ROW
        self._rows: dict[tuple[str, int], int] = {}

    def __repr__(self) -> str:
        return f"<ListHome rows={len(self._rows)}>"

    def _row(self, name: str, size: int, is_made: bool) -> int:
        key = (name, size)
        row = self._rows.get(key, 0)
        if not row and is_made:
            row = self._rows[key] = len(self.cells)
            self.cells.extend([0] * size)
        return row

    def health_row(self, name: str, *, is_made: bool = True) -> int:
        return self._row(name, HEALTH_ROW, is_made)

    def group_row(self, name: str, *, is_made: bool = True) -> int:
        return self._row(name, GROUP_ROW, is_made)

    def lock(self, row: int) -> None:
        """Nobody else is here."""

    def unlock(self, row: int) -> None:
        """Nobody else is here."""
