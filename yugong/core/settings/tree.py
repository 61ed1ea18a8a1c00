"""YAML text to a tree whose every node knows its line and column.

Decides: which YAML is taken at all: one document, plain tags, unique keys, bounded depth, bounded aliases. Must not
know: the settings' schema.

It reads the parser's events instead of PyYAML's composed nodes: the composer recurses (deep nesting ends in a
RecursionError or, in its C form, a crashed process) and does not tell a repeated key.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import yaml

from yugong.core.settings.problems import PROBLEMS_MAX, Place, Problem, closest, problem_at, quoted

__all__ = ["DEPTH_MAX", "EXPANSION_MAX", "TEXT_MAX", "Node", "Tree", "compose", "implicit_type"]

DEPTH_MAX = 32  # levels; the schema needs 8
EXPANSION_MAX = (
    1_000_000  # nodes that aliases may add: 10 000 orgs sharing a base of 100; a "billion laughs" is over at once
)
TEXT_MAX = 64 * 1024 * 1024  # characters; 10 000 orgs of 10 keys are 12 MB

_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the same events, ten times as fast
_RESOLVERS: dict[str | None, list[tuple[str, Any]]] = yaml.SafeLoader.yaml_implicit_resolvers
_PREFIX = "tag:yaml.org,2002:"
_TAGS = {None, "!", _PREFIX + "str", _PREFIX + "int", _PREFIX + "float", _PREFIX + "bool", _PREFIX + "null"} | {
    _PREFIX + "map",
    _PREFIX + "seq",
}


class Node:
    """One YAML node: `kind` is `text` (a scalar), `map`, `list`, or `hole` where a problem has been told already.

    `value` is the text, a dict of name to (place of the name, node), or a list of nodes. `is_plain` says that a scalar
    was written without quotes, so that YAML may take it for something else than text. `size` counts nodes, aliases
    expanded.
    """

    __slots__ = ("is_plain", "kind", "place", "size", "value")

    def __init__(self, kind: str, value: Any, place: Place, is_plain: bool = False) -> None:
        self.kind = kind
        self.value = value
        self.place = place
        self.is_plain = is_plain
        self.size = 1

    def __repr__(self) -> str:
        return f"<Node {self.kind} at {self.place} size={self.size}>"

    @property
    def is_null(self) -> bool:
        return self.kind == "text" and self.is_plain and self.value in ("", "~", "null", "Null", "NULL")


class Tree:
    """What `compose` found: the root (None for an empty document) and the problems met on the way."""

    __slots__ = ("problems", "root")

    def __init__(self, root: Node | None, problems: list[Problem]) -> None:
        self.root = root
        self.problems = problems

    def __repr__(self) -> str:
        return f"<Tree root={self.root!r} problems={len(self.problems)}>"


def implicit_type(text: str) -> str:
    """What YAML 1.1 takes an unquoted `text` for: str, bool, int, float, null, timestamp, merge or value."""
    for tag, pattern in _RESOLVERS.get(text[:1], []) + _RESOLVERS.get(None, []):
        if pattern.match(text):
            return tag.removeprefix(_PREFIX)
    return "str"


def compose(text: str, file: str) -> Tree:
    """Read `text` as one YAML document. Never raises: what is wrong is in the tree's problems."""
    composer = _Composer(file)
    bad = _unreadable(text, file)
    if bad is None:
        try:
            composer.take(_events(text))
        except yaml.YAMLError as error:
            composer.problems.append(_syntax_problem(error, text, file))
    else:
        composer.problems.append(bad)
    return Tree(composer.root, composer.problems)


def _events(text: str) -> Iterator[Any]:
    loader = _LOADER(text)
    try:
        while loader.check_event():
            yield loader.get_event()
    finally:
        loader.dispose()


def _unreadable(text: str, file: str) -> Problem | None:
    if len(text) > TEXT_MAX:
        return Problem(file, 1, 1, f"larger than {TEXT_MAX} characters")
    for index, char in enumerate(text) if not text.isascii() else ():
        if "\ud800" <= char <= "\udfff":  # the C parser would raise UnicodeEncodeError
            return Problem(file, *_line_col(text, index), "not valid UTF-8")
    return None


def _line_col(text: str, index: int) -> tuple[int, int]:
    before = text[: max(0, index)]
    return before.count("\n") + 1, len(before) - (before.rfind("\n") + 1) + 1


def _syntax_problem(error: yaml.YAMLError, text: str, file: str) -> Problem:
    if isinstance(error, yaml.MarkedYAMLError):
        mark = error.problem_mark or error.context_mark
        what = error.problem or error.context or "not valid YAML"
        line, col = (mark.line + 1, mark.column + 1) if mark else (1, 1)
        return problem_at(Place(file, line, col), f"not valid YAML: {what}", _syntax_hint(what, text, line))
    position = getattr(error, "position", 0)  # yaml.reader.ReaderError: a character YAML does not allow
    line, col = _line_col(text, position)
    return Problem(
        file,
        line,
        col,
        "a control character, which YAML does not allow",
        "remove it or write it as an escape in quotes",
    )


def _syntax_hint(what: str, text: str, line: int) -> str:
    lines = text.split("\n", line)
    written = lines[line - 1] if line <= len(lines) else ""
    if "\t" in what or "\\t" in what or "tab" in what or "\t" in written[: len(written) - len(written.lstrip())]:
        return "indent with spaces, YAML takes no tabs"
    if "mapping values" in what:
        return "put the value in quotes if it holds a colon and a space, or check the indentation"
    return ""


class _Composer:
    """Events in, nodes out, with one frame a level on an own stack."""

    def __init__(self, file: str) -> None:
        self.file = file
        self.root: Node | None = None
        self.problems: list[Problem] = []
        self.anchors: dict[str, Node] = {}
        self.open: list[_Frame] = []
        self.documents = 0
        self.skipped = 0  # depth inside a part that is too deep or has been given up
        self.expanded = 0

    def take(self, events: Iterator[Any]) -> None:
        for event in events:
            if len(self.problems) >= PROBLEMS_MAX:
                return
            if isinstance(event, yaml.DocumentStartEvent):
                self.documents += 1
                if self.documents > 1:
                    self.problem(self.place(event), "a second document (`---`)", "a settings file is one document")
                    return
            elif isinstance(event, yaml.ScalarEvent):
                self.scalar(event)
            elif isinstance(event, yaml.AliasEvent):
                self.alias(event)
            elif isinstance(event, yaml.MappingStartEvent | yaml.SequenceStartEvent):
                self.start(event)
            elif isinstance(event, yaml.MappingEndEvent | yaml.SequenceEndEvent):
                self.end()

    def place(self, event: Any) -> Place:
        return Place(self.file, event.start_mark.line + 1, event.start_mark.column + 1)

    def problem(self, place: Place, what: str, hint: str = "") -> None:
        self.problems.append(problem_at(place, what, hint))

    def check_tag(self, event: Any) -> None:
        if event.tag not in _TAGS:
            self.problem(self.place(event), f"a YAML tag {quoted(event.tag)}", "settings need no tags; remove it")

    def scalar(self, event: Any) -> None:
        if self.skipped:
            return
        self.check_tag(event)
        is_plain = not event.style and event.tag in (None, "!") and bool(event.implicit[0])
        node = Node("text", event.value, self.place(event), is_plain)
        self.anchor(event, node)
        self.attach(node)

    def start(self, event: Any) -> None:
        if self.skipped or len(self.open) >= DEPTH_MAX:
            if not self.skipped:
                self.problem(self.place(event), f"nested deeper than {DEPTH_MAX} levels")
                self.attach(Node("hole", None, self.place(event)))
            self.skipped += 1
            return
        self.check_tag(event)
        kind = "map" if isinstance(event, yaml.MappingStartEvent) else "list"
        node = Node(kind, {} if kind == "map" else [], self.place(event))
        self.anchor(event, node)
        self.open.append(_Frame(node))

    def end(self) -> None:
        if self.skipped:
            self.skipped -= 1
            return
        frame = self.open.pop()
        for source in frame.merges:
            self.merge(frame.node, source)
        frame.node.size += frame.size
        self.attach(frame.node)

    def anchor(self, event: Any, node: Node) -> None:
        if event.anchor:
            self.anchors[event.anchor] = node

    def alias(self, event: Any) -> None:
        if self.skipped:
            return
        place, node = self.place(event), self.anchors.get(event.anchor)
        if node is None:
            hint = closest(event.anchor, self.anchors) or "put text that begins with * in quotes"
            self.problem(place, f"an alias {quoted('*' + event.anchor)} without an anchor", hint)
        elif any(frame.node is node for frame in self.open):
            self.problem(place, f"an alias {quoted('*' + event.anchor)} inside what it stands for")
            node = None
        elif self.expanded + node.size > EXPANSION_MAX:
            self.problem(place, f"aliases that stand for more than {EXPANSION_MAX} values")
            node = None
        self.expanded += node.size if node else 0
        self.attach(node or Node("hole", None, place))

    def attach(self, node: Node) -> None:
        if not self.open:
            self.root = node
            return
        frame = self.open[-1]
        frame.size += node.size
        if frame.node.kind == "list":
            frame.node.value.append(node)
        elif not frame.has_key:
            frame.has_key, frame.key = True, self.read_key(node)
            frame.key_place = node.place
        else:
            frame.has_key = False
            self.pair(frame, node)

    def read_key(self, node: Node) -> str | None:
        if node.kind != "text":
            if node.kind != "hole":
                self.problem(node.place, "a name that is not text")
            return None
        name = str(node.value)
        taken_for = implicit_type(name) if node.is_plain else "str"
        if taken_for not in ("str", "merge"):
            self.problem(
                node.place, f"{quoted(name)} as a name, which YAML takes for {_NAMED[taken_for]}", "put it in quotes"
            )
        return name

    def pair(self, frame: _Frame, node: Node) -> None:
        name, place = frame.key, frame.key_place
        if name is None:
            return
        if name == "<<":
            frame.merges.append(node)
        elif name in frame.node.value:
            first = frame.node.value[name][0]
            self.problem(place, f"{quoted(name)} is repeated", f"it stands in line {first.line} already")
        else:
            frame.node.value[name] = (place, node)

    def merge(self, into: Node, source: Node) -> None:
        """`<<: *base`: what `into` does not say comes from `source`; in a list the earlier wins (YAML 1.1 merge)."""
        for one in source.value if source.kind == "list" else [source]:
            if one.kind == "hole":
                continue
            if one.kind != "map":
                self.problem(one.place, "`<<` merges mappings only", "`<<: *name` with an anchor on a mapping")
                continue
            for name, pair in one.value.items():
                into.value.setdefault(name, pair)


_NAMED = {
    "bool": "true or false",
    "int": "a number",
    "float": "a number",
    "null": "nothing",
    "timestamp": "a date",
    "merge": "a merge",
    "value": "a default",
}


class _Frame:
    __slots__ = ("has_key", "key", "key_place", "merges", "node", "size")

    def __init__(self, node: Node) -> None:
        self.node = node
        self.size = 0
        self.has_key = False
        self.key: str | None = None
        self.key_place = node.place
        self.merges: list[Node] = []
