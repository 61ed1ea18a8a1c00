"""The providers' dialects. One file each that defines `DIALECT`; `catalog()` finds them, so that a new one needs no
other line changed."""

from __future__ import annotations

import pkgutil
from functools import cache
from importlib import import_module

from yugong.core.dialects.dialect import Dialect

#: Claims whatever no other dialect claims.
LAST = "openai"


@cache
def catalog() -> dict[str, Dialect]:
    """Every dialect by name, the last resort last."""
    found: dict[str, Dialect] = {}
    for module in pkgutil.iter_modules(__path__, f"{__name__}."):
        dialect = getattr(import_module(module.name), "DIALECT", None)
        if dialect is not None:
            assert dialect.name not in found, f"two dialects are called {dialect.name}"
            found[dialect.name] = dialect
    found[LAST] = found.pop(LAST)
    return found


@cache
def _claimants() -> tuple[Dialect, ...]:
    return tuple(catalog().values())


def claim(method: str, path: str, header_names: frozenset[bytes]) -> Dialect:
    """(hot) The dialect a call is in, by its raw path without query and its lower-case header names."""
    for dialect in _claimants():
        if dialect.claims(method, path, header_names):
            return dialect
    raise AssertionError("the last dialect claims everything")
