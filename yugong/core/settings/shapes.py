"""From a YAML tree to records, by the table in `records`.

Decides: what shape each place must have, and that everything wrong is told at once. Must not know: the meaning of any
setting (that is `rules`), where the tree came from.

A shape's `read` never raises: it notes the problem and returns `BAD`, and the walk goes on.
"""

from __future__ import annotations

import types
from functools import cache
from typing import Any, Union, get_args, get_origin, get_type_hints

import msgspec

from yugong.base.secret import SECRET_MAX, Secret
from yugong.core.settings.kinds import Kind
from yugong.core.settings.problems import PROBLEMS_MAX, Place, Problem, Rejected, closest, problem_at, quoted
from yugong.core.settings.records import SecretRef, Spec, struct_spec
from yugong.core.settings.tree import Node, implicit_type

__all__ = [
    "BAD",
    "ListShape",
    "MapShape",
    "ScalarShape",
    "SecretShape",
    "Shape",
    "StructShape",
    "Walk",
    "item_name",
    "joined",
    "shape_of",
]

BAD: Any = object()  # "there was something, and it was wrong": distinct from every value and from absence
_FOUND = {"text": "a single value", "map": "a mapping", "list": "a list"}


class Walk:
    """What one reading gathers: problems, and the place of every value that was given."""

    __slots__ = ("given", "problems")

    def __init__(self) -> None:
        self.problems: list[Problem] = []
        self.given: dict[str, Place] = {}

    def __repr__(self) -> str:
        return f"<Walk given={len(self.given)} problems={len(self.problems)}>"

    def bad(self, place: Place, what: str, hint: str = "") -> Any:
        """Note a problem (up to `PROBLEMS_MAX`); returns `BAD`."""
        if len(self.problems) < PROBLEMS_MAX:
            self.problems.append(problem_at(place, what, hint))
        return BAD


class Shape:
    """What a place must look like. `is_nullable`: an explicit null stands for "not set"."""

    is_nullable = False
    expected = "a value"

    def __init__(self, spec: Spec) -> None:
        self.spec = spec

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.expected}>"

    def read(self, node: Node, path: str, walk: Walk) -> Any:
        """The value at `node`, or `BAD` with the problems noted."""
        if node.kind == "hole":
            return BAD
        walk.given[path] = node.place
        if node.is_null and self.is_nullable:
            return None
        return self.build(node, path, walk)

    def build(self, node: Node, path: str, walk: Walk) -> Any:
        raise NotImplementedError

    def mismatch(self, node: Node, path: str, walk: Walk) -> Any:
        found = "nothing" if node.is_null else _FOUND[node.kind]
        hint = "remove the line, or indent what belongs to it" if node.is_null else ""
        return walk.bad(node.place, f"{path or 'the file'}: {found}, where {self.expected} is due", hint)


class ScalarShape(Shape):
    def __init__(self, spec: Spec, kind: Kind) -> None:
        super().__init__(spec)
        self.kind = kind
        self.expected = f"a {kind.name}"

    def build(self, node: Node, path: str, walk: Walk) -> Any:
        if node.kind != "text":
            return self.mismatch(node, path, walk)
        try:
            value = self.kind.read(node.value, node.is_plain)
            self.check_range(value)
            return value
        except Rejected as error:
            return walk.bad(node.place, f"{path}: {error.what}", error.hint)

    def check_range(self, value: Any) -> None:
        low, high, write = self.spec.low, self.spec.high, self.kind.write
        if low is not None and value < low:
            raise Rejected(f"{write(value)} is too small", f"at least {write(type(value)(low))}")
        if high is not None and value > high:
            raise Rejected(f"{write(value)} is too large", f"at most {write(type(value)(high))}")


class SecretShape(Shape):
    """A secret in the clear. Its problems never show it."""

    expected = "the secret as text"

    def build(self, node: Node, path: str, walk: Walk) -> Any:
        if node.kind != "text":
            return self.mismatch(node, path, walk)
        if node.is_plain and implicit_type(node.value) != "str":
            return walk.bad(node.place, f"{path}: a secret that YAML does not take for text", "put it in quotes")
        try:
            return Secret(node.value)
        except ValueError:
            return walk.bad(node.place, f"{path}: a secret has 1 to {SECRET_MAX} bytes")


class ListShape(Shape):
    """A list; a single plain value stands for a list of one."""

    expected = "a list"

    def __init__(self, spec: Spec, item: Shape) -> None:
        super().__init__(spec)
        self.item = item
        self.identity = "id" if isinstance(item, StructShape) and "id" in item.fields else ""

    def build(self, node: Node, path: str, walk: Walk) -> Any:
        if isinstance(self.item, ScalarShape) and node.kind == "text" and not node.is_null:
            value = self.item.read(node, path, walk)
            return BAD if value is BAD else (value,)
        if node.kind != "list":
            return self.mismatch(node, path, walk)
        if len(node.value) > self.spec.items_max:
            return walk.bad(node.place, f"{path}: more than {self.spec.items_max} entries")
        first: dict[str, Place] = {}
        values = [self.element(one, index, path, walk, first) for index, one in enumerate(node.value)]
        return tuple(value for value in values if value is not BAD)

    def element(self, node: Node, index: int, path: str, walk: Walk, first: dict[str, Place]) -> Any:
        name = item_name(node, self.identity) or str(index)
        if self.identity and name in first:
            return walk.bad(
                node.place,
                f"{path}: the id {quoted(name)} is repeated",
                f"it stands in line {first[name].line} already",
            )
        first[name] = node.place
        return self.item.read(node, joined(path, name), walk)


class MapShape(Shape):
    """A mapping with names of its owner's choosing."""

    expected = "a mapping"

    def __init__(self, spec: Spec, item: Shape) -> None:
        super().__init__(spec)
        self.item = item

    def build(self, node: Node, path: str, walk: Walk) -> Any:
        if node.kind != "map":
            return self.mismatch(node, path, walk)
        if len(node.value) > self.spec.items_max:
            return walk.bad(node.place, f"{path}: more than {self.spec.items_max} entries")
        found = {}
        for name, (place, child) in node.value.items():
            try:
                self.spec.key.read(name, False)
            except Rejected as error:
                walk.bad(place, f"{path}: {error.what}", error.hint)
                continue
            value = self.item.read(child, joined(path, name), walk)
            if value is not BAD:
                found[name] = value
        return found


class StructShape(Shape):
    """A mapping with the names of a record's fields."""

    expected = "a mapping"

    def __init__(self, spec: Spec, record: type[msgspec.Struct]) -> None:
        super().__init__(spec)
        self.record = record
        self.fields = field_shapes(record)
        self.required = tuple(one.name for one in msgspec.structs.fields(record) if one.required)

    def build(self, node: Node, path: str, walk: Walk) -> Any:
        if node.kind != "map":
            return self.mismatch(node, path, walk)
        values, is_whole = {}, True
        for name, (place, child) in node.value.items():
            shape = self.fields.get(name)
            if shape is None:
                where = f"in `{path}`" if path else "at the top"
                walk.bad(place, f"{quoted(name)} is not known {where}", self.suggest(name))
                continue
            value = shape.read(child, joined(path, name), walk)
            if value is BAD:
                is_whole &= name not in self.required
            else:
                values[name] = value
        return self.make(values, is_whole, node, path, walk)

    def make(self, values: dict[str, Any], is_whole: bool, node: Node, path: str, walk: Walk) -> Any:
        for name in self.required:
            if name not in node.value:
                walk.bad(node.place, f"{path}: `{name}` is missing", self.fields[name].spec.doc)
                is_whole = False
        return self.record(**values) if is_whole else BAD

    def suggest(self, name: str) -> str:
        return closest(name, self.fields) or (f"known are {', '.join(self.fields)}" if len(self.fields) <= 8 else "")


class RefShape(StructShape):
    """Where a secret is: a mapping with exactly one of four names, or the secret itself."""

    expected = "{env: NAME}, {file: PATH}, {credential: NAME} or {value: …}"

    def build(self, node: Node, path: str, walk: Walk) -> Any:
        if node.kind == "text" and not node.is_null:
            value = self.fields["value"].read(node, path, walk)
            return BAD if value is BAD else SecretRef(value=value)
        before = len(walk.problems)
        built = super().build(node, path, walk)
        if node.kind == "map" and len(walk.problems) == before:
            given = [name for name in self.fields if getattr(built, name) is not None]
            if len(given) != 1:
                return walk.bad(
                    node.place, f"{path}: {len(given)} places for one secret", f"exactly one of {self.expected}"
                )
        return built


def joined(path: str, name: str) -> str:
    """`path.name`; a name with a dot of its own is put in quotes, so that no two places have the same path."""
    step = f'"{name}"' if "." in name else name
    return f"{path}.{step}" if path else step


def item_name(node: Node, identity: str) -> str:
    """The text of `identity` in a list's entry, or nothing."""
    if identity and node.kind == "map" and identity in node.value:
        child = node.value[identity][1]
        return str(child.value) if child.kind == "text" else ""
    return ""


@cache
def field_shapes(record: type[msgspec.Struct]) -> dict[str, Shape]:
    """The shape of each field of a record, by name, in the order of the table."""
    hints = get_type_hints(record, include_extras=True)
    return {one.name: shape_of(hints[one.name]) for one in msgspec.structs.fields(record)}


def shape_of(annotation: Any) -> Shape:
    """The shape for an annotated type of the table."""
    spec = struct_spec(annotation)
    assert spec is not None, f"no Spec in {annotation}"
    plain = get_args(annotation)[0]
    if get_origin(plain) in (Union, types.UnionType):
        present = [one for one in get_args(plain) if one is not types.NoneType]
        shape = _shape_of_type(present[0], spec)
        shape.is_nullable = True
        return shape
    return _shape_of_type(plain, spec)


def _shape_of_type(kind: Any, spec: Spec) -> Shape:
    if get_origin(kind) is tuple:
        return ListShape(spec, _shape_of_type(get_args(kind)[0], spec))
    if get_origin(kind) is dict:
        return MapShape(spec, _shape_of_type(get_args(kind)[1], spec))
    if kind is Secret:
        return SecretShape(spec)
    if kind is SecretRef:
        return RefShape(spec, SecretRef)
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        return StructShape(spec, kind)
    assert spec.kind is not None, f"no kind for {kind}"
    return ScalarShape(spec, spec.kind)
