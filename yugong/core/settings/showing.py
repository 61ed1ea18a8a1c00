"""Settings as text again, and what changed between two.

Decides: how a value is shown (as it would be written) and that a secret never is; which changes need a restart. Must
not know: where the text goes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

from yugong.core.settings.reading import ROOT, Loaded
from yugong.core.settings.records import SecretRef, Settings
from yugong.core.settings.shapes import ListShape, MapShape, ScalarShape, Shape, StructShape, joined

__all__ = ["Change", "Row", "as_plain", "differences", "rows"]

HIDDEN = "(hidden)"


class Row(msgspec.Struct, frozen=True):
    """One effective value: dotted path, the value as it would be written (plain data), and where it came from."""

    path: str
    value: Any
    origin: str


class Change(msgspec.Struct, frozen=True):
    """One value that is not what it was. `before` or `after` is None when it was or is not there."""

    path: str
    before: Any
    after: Any
    needs_restart: bool

    def __str__(self) -> str:
        verb = "added" if self.before is _ABSENT else "removed" if self.after is _ABSENT else "changed"
        values = [str(one) for one in (self.before, self.after) if one is not _ABSENT]
        shown = HIDDEN if HIDDEN in values[-1] else " → ".join(values)
        return f"{self.path} {verb}: {shown}" + (" (needs a restart)" if self.needs_restart else "")


_ABSENT: Any = msgspec.UNSET


def as_plain(settings: Settings) -> dict[str, Any]:
    """The settings as plain data (mappings, lists, text, numbers), as they would be written; secrets hidden."""
    plain: dict[str, Any] = _plain(ROOT, settings)
    return plain


def rows(loaded: Loaded) -> list[Row]:
    """Every effective value with its origin, in the order of the table."""
    return [
        Row(path, _plain(shape, value), loaded.origin(path))
        for path, shape, value in _leaves(ROOT, loaded.settings, "")
    ]


def differences(old: Settings, new: Settings) -> list[Change]:
    """What is not the same, in the order of the table; secrets are compared, never shown."""
    before, after = _filled(old), _filled(new)
    found = []
    for path in list(after) + [one for one in before if one not in after]:
        was, now = before.get(path), after.get(path)
        if was is None or now is None or was[1] != now[1]:
            shape = (now or was or (ROOT, None))[0]
            found.append(Change(path, _side(was), _side(now), shape.spec.restart))
    return found


def _filled(settings: Settings) -> dict[str, tuple[Shape, Any]]:
    """Every leaf by path; an empty list or mapping is none, its entries coming or going tell it all."""
    return {path: (shape, value) for path, shape, value in _leaves(ROOT, settings, "") if value not in ((), {})}


def _side(leaf: tuple[Shape, Any] | None) -> Any:
    return _ABSENT if leaf is None else _plain(*leaf)


def _leaves(shape: Shape, value: Any, path: str) -> Iterator[tuple[str, Shape, Any]]:
    if isinstance(value, msgspec.Struct) and not isinstance(value, SecretRef) and isinstance(shape, StructShape):
        for name, inner in shape.fields.items():
            yield from _leaves(inner, getattr(value, name), joined(path, name))
    elif isinstance(shape, MapShape) and value:
        for name, child in value.items():
            yield from _leaves(shape.item, child, joined(path, name))
    elif isinstance(shape, ListShape) and value and isinstance(shape.item, StructShape):
        for index, child in enumerate(value):
            yield from _leaves(shape.item, child, joined(path, getattr(child, "id", str(index))))
    else:
        yield path, shape, value


def _plain(shape: Shape, value: Any) -> Any:
    if value is None:
        return None
    if isinstance(value, SecretRef):
        return {
            how: getattr(value, how) for how in ("env", "file", "credential") if getattr(value, how) is not None
        } or {"value": HIDDEN}
    if isinstance(shape, StructShape):
        return {name: _plain(inner, getattr(value, name)) for name, inner in shape.fields.items()}
    if isinstance(shape, MapShape):
        return {name: _plain(shape.item, child) for name, child in value.items()}
    if isinstance(shape, ListShape):
        return [_plain(shape.item, child) for child in value]
    assert isinstance(shape, ScalarShape)
    return shape.kind.write(value)
