"""Which time-outs a call has.

Decides: the first route that matches method and raw path. Must not know: what a time-out is for.
"""

from __future__ import annotations

from yugong.core.settings.globs import Globs
from yugong.core.settings.records import Route, Settings, TimeoutOverrides, Timeouts

__all__ = ["RouteTable"]

CACHED_MAX = 4096  # paths hold ids, so the cache is emptied when full rather than grown


class RouteTable:
    """The routes of one settings file, compiled. Live as long as the settings it was made from."""

    __slots__ = ("_cache", "_default", "_rows")

    def __init__(self, settings: Settings) -> None:
        self._default = settings.timeouts
        self._rows = [_row(route, settings.timeouts) for route in settings.routes]
        self._cache: dict[tuple[str, str], Timeouts] = {}

    def __repr__(self) -> str:
        return f"<RouteTable routes={len(self._rows)}>"

    def timeouts(self, method: str, raw_path: str) -> Timeouts:
        """The time-outs for a call, in seconds. `raw_path` is the path as sent; a query is ignored."""
        if not self._rows:
            return self._default
        path = raw_path.partition("?")[0]
        found = self._cache.get((method, path))
        if found is None:
            found = next(
                (t for m, pattern, t in self._rows if m in ("*", method) and pattern.matches(path)), self._default
            )
            if len(self._cache) >= CACHED_MAX:
                self._cache.clear()
            self._cache[(method, path)] = found
        return found


def _row(route: Route, base: Timeouts) -> tuple[str, Globs, Timeouts]:
    method, _, path = route.match.partition(" ")
    return method, Globs([path]), _merged(base, route.timeouts)


def _merged(base: Timeouts, over: TimeoutOverrides) -> Timeouts:
    names = Timeouts.__struct_fields__
    return Timeouts(**{name: getattr(base, name) if (own := getattr(over, name)) is None else own for name in names})
