"""What an operation is, and how a path finds its row.

One table a dialect: method, path pattern (`{}` for one segment), and what the line has to know before it reads the
body. A path without a row belongs to its family, so operations that do not exist yet are forwarded too (I1); labels
stay bounded (I13). This file knows no provider.
"""

from __future__ import annotations

from collections.abc import Iterable
from urllib.parse import unquote


class Operation:
    """One row. Slots, because each call reads several of them."""

    __slots__ = (
        "is_metered",
        "is_optional_model",
        "is_repeatable",
        "is_strict",
        "label",
        "method",
        "needs_model",
        "pattern",
        "stream",
    )

    def __init__(
        self,
        method: str,
        pattern: str,
        label: str,
        *,
        model: str = "",
        stream: str = "",
        repeatable: bool = False,
        metered: bool = True,
    ) -> None:
        assert model in {"", "optional", "required"}, model
        self.method = method
        self.pattern = pattern
        self.label = label
        self.needs_model = model == "required"
        #: Whether the body must be readable, because what it costs depends on it.
        self.is_strict = model != ""
        self.is_optional_model = model == "optional"
        #: The name of the rule its event streams follow.
        self.stream = stream
        self.is_repeatable = repeatable
        #: Whether the usage in its answers is this call's own (a retrieved object echoes an older call's).
        self.is_metered = metered

    def __repr__(self) -> str:
        return f"<Operation {self.label} {self.method} {self.pattern}>"


class Table:
    """Finds rows: exact paths by one look-up, patterns segment by segment, the rest by family."""

    __slots__ = ("_exact", "_families", "_other", "_prefixes", "_tree")

    def __init__(
        self, rows: Iterable[Operation], families: dict[str, str], prefixes: tuple[str, ...] = ("/openai/v1/", "/v1/")
    ) -> None:
        """`families`: first segment to the name of the stream rule its answers follow (empty for the plain one)."""
        self._prefixes = prefixes
        self._exact: dict[tuple[str, str], Operation] = {}
        self._tree: dict[object, object] = {}
        for row in rows:
            if "{}" in row.pattern:
                self._plant(row)
            else:
                for prefix in prefixes:
                    self._exact[row.method, prefix[:-1] + row.pattern] = row
        taken = {row.label for row in self._exact.values()}
        self._families: dict[tuple[str, str], Operation] = {}
        for family, stream in families.items():
            label = f"{family}.other" if family in taken else family
            for kind in ("read", "write"):
                self._families[kind, family] = Operation(
                    kind, family, label, stream=stream, repeatable=kind == "read", metered=kind == "write"
                )
        self._other = {
            kind: Operation(kind, "", "other", repeatable=kind == "read", metered=kind == "write")
            for kind in ("read", "write")
        }

    def __repr__(self) -> str:
        return f"<Table of {len(self._exact)} exact paths, {len(self._families) // 2} families>"

    def _plant(self, row: Operation) -> None:
        node = self._tree
        for segment in row.pattern[1:].split("/"):
            child = node.setdefault(segment, {})
            assert isinstance(child, dict)
            node = child
        node[(row.method,)] = row  # no segment is a tuple

    def find(self, method: str, path: str) -> Operation:
        """(hot) The row of a raw path without its query."""
        row = self._exact.get((method, path))
        return row if row is not None else self._find_slowly(method, path)

    def _find_slowly(self, method: str, path: str) -> Operation:
        """Decoded and without a last slash, because some origins serve those alike: an operation must not escape its
        row (I6) by how it is spelled."""
        path = unquote(path).rstrip("/")
        row = self._exact.get((method, path))
        if row is not None:
            return row
        kind = "read" if method in {"GET", "HEAD", "OPTIONS"} else "write"
        for prefix in self._prefixes:
            if path.startswith(prefix):
                segments = path[len(prefix) :].split("/")
                row = self._walk(method, segments)
                return row or self._families.get((kind, segments[0])) or self._other[kind]
        return self._other[kind]

    def _walk(self, method: str, segments: list[str]) -> Operation | None:
        node: object = self._tree
        for segment in segments:
            assert isinstance(node, dict)
            node = node.get(segment) or node.get("{}")
            if node is None:
                return None
        assert isinstance(node, dict)
        row = node.get((method,))
        assert row is None or isinstance(row, Operation)
        return row
