"""Settings from environment variables: `YUGONG_SECTION__KEY=value`.

Decides: which variable means which place, and puts its value into the tree, so that it is read by the same rules as the
file. Must not know: the process's environment (it is an argument), what a setting means.

`__` goes one level down, names are case-insensitive. Where names are free (orgs, accounts …) the one in the file that
differs only in case is meant, else a new one in lower case; entries of a list with an `id` are named by it. A value is
YAML (`[a, b]` is a list); a secret is taken as it stands, and `…_FILE` names the file that holds it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from yugong.core.settings.problems import Place, Problem, closest, problem_at, quoted
from yugong.core.settings.shapes import (
    ListShape,
    MapShape,
    RefShape,
    SecretShape,
    Shape,
    StructShape,
    item_name,
    joined,
)
from yugong.core.settings.tree import Node, compose

__all__ = ["RESERVED", "overlay"]

_PREFIX = "YUGONG_"
# Read by others: the path of the settings file itself, and what the processes tell each other.
RESERVED = frozenset({"YUGONG_CONFIG"})
# Kubernetes (and Docker's old links) describe a service called "yugong" to its neighbours, and to itself, in these.
# https://kubernetes.io/docs/concepts/services-networking/service/#environment-variables
_SERVICE_LINK = re.compile(r"YUGONG_(SERVICE_HOST|SERVICE_PORT(_.+)?|PORT(_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)?)")


def overlay(root: Node | None, environ: Mapping[str, str], shape: StructShape) -> tuple[Node, list[Problem]]:
    """The tree with every `YUGONG_…` of `environ` put in; what was given is not changed."""
    problems: list[Problem] = []
    claimed: dict[str, str] = {}
    root = root or Node("map", {}, Place("defaults"))
    for name in sorted(environ):  # so that the same environment always says the same
        if not name.upper().startswith(_PREFIX) or name in RESERVED or _SERVICE_LINK.fullmatch(name):
            continue
        steps = name[len(_PREFIX) :].split("__")
        root = _Setter(name, environ[name], problems, claimed).put(root, steps, shape, "")
    return root, problems


class _Setter:
    """One variable on its way down the tree. Nodes are copied on the way: they may be shared by aliases."""

    def __init__(self, variable: str, value: str, problems: list[Problem], claimed: dict[str, str]) -> None:
        self.variable = variable
        self.claimed = claimed  # path: the variable that set it
        self.place = Place(f"environment variable {variable}")
        self.value = value
        self.problems = problems

    def put(self, node: Node | None, steps: list[str], shape: Shape, path: str) -> Node:
        if not steps or isinstance(shape, RefShape):
            self.claim(path)
        if not steps:
            return self.leaf(shape)
        node = self.branch(node, shape)
        if isinstance(shape, StructShape):
            return self.into_struct(node, steps, shape, path)
        if isinstance(shape, MapShape):
            return self.into_map(node, steps, shape, path)
        if isinstance(shape, ListShape) and shape.identity and isinstance(shape.item, StructShape):
            return self.into_list(node, steps, shape, path)
        return self.unknown(node, f"`{path}` has no parts", "")

    def claim(self, path: str) -> None:
        """One place, one variable: `A__B` and `a__b`, or a secret and its `…_FILE`, would leave it to chance."""
        other = self.claimed.setdefault(path, self.variable)
        if other != self.variable:
            self.problems.append(problem_at(self.place, f"`{path}` is set by {other} too", "remove one of them"))

    def branch(self, node: Node | None, shape: Shape) -> Node:
        """A copy of what is there, or an empty mapping or list."""
        kind = "list" if isinstance(shape, ListShape) else "map"
        if node is None or node.is_null or (isinstance(shape, RefShape) and node.kind == "text"):
            return Node(kind, [] if kind == "list" else {}, self.place)
        copy = Node(node.kind, node.value, node.place, node.is_plain)
        copy.value = node.value.copy() if node.kind != "text" else node.value
        return copy

    def leaf(self, shape: Shape) -> Node:
        if isinstance(shape, SecretShape | RefShape):
            return Node("text", self.value, self.place)
        tree = compose(self.value, self.place.file)
        for one in tree.problems:
            self.problems.append(problem_at(self.place, one.what, one.hint))
        if tree.problems:
            return Node("hole", None, self.place)
        return _placed(tree.root or Node("text", "", self.place, True), self.place)

    def into_struct(self, node: Node, steps: list[str], shape: StructShape, path: str) -> Node:
        if node.kind != "map":
            return node  # the walk will say so
        name = steps[0].lower()
        inner = shape.fields.get(name)
        if inner is None and len(steps) == 1 and name.endswith("_file"):
            secret = name.removesuffix("_file")
            if isinstance(shape.fields.get(secret), RefShape):
                self.claim(joined(path, secret))
                file = (self.place, Node("text", self.value, self.place))
                node.value[secret] = (self.place, Node("map", {"file": file}, self.place))
                return node
        if inner is None:
            return self.unknown(
                node,
                f"{quoted(name)} is not known {f'in `{path}`' if path else 'at the top'}",
                closest(name, shape.fields),
            )
        if isinstance(shape, RefShape):
            node.value.clear()  # one place for one secret: this variable's
        child = node.value.get(name, (self.place, None))[1]
        node.value[name] = (self.place, self.put(child, steps[1:], inner, joined(path, name)))
        return node

    def into_map(self, node: Node, steps: list[str], shape: MapShape, path: str) -> Node:
        if node.kind == "map":
            name = next((one for one in node.value if one.lower() == steps[0].lower()), steps[0].lower())
            child = node.value.get(name, (self.place, None))[1]
            node.value[name] = (self.place, self.put(child, steps[1:], shape.item, joined(path, name)))
        return node

    def into_list(self, node: Node, steps: list[str], shape: ListShape, path: str) -> Node:
        if node.kind != "list":
            return node
        name, found = steps[0].lower(), None
        for index, one in enumerate(node.value):
            if item_name(one, shape.identity).lower() == name:
                found = index
        if found is None:
            identity = (self.place, Node("text", name, self.place))
            node.value.append(Node("map", {shape.identity: identity}, self.place))
            found = len(node.value) - 1
        node.value[found] = self.put(node.value[found], steps[1:], shape.item, joined(path, name))
        return node

    def unknown(self, node: Node, what: str, hint: str) -> Node:
        self.problems.append(problem_at(self.place, what, hint))
        return node


def _placed(node: Node, place: Place) -> Node:
    """The same tree, all of it at one place."""
    copy = Node(node.kind, node.value, place, node.is_plain)
    if node.kind == "map":
        copy.value = {name: (place, _placed(child, place)) for name, (_, child) in node.value.items()}
    elif node.kind == "list":
        copy.value = [_placed(child, place) for child in node.value]
    return copy
