"""Text and environment in, `Loaded` or every problem out.

Decides: the order: YAML, then the environment over it, then shapes, then rules. Must not know: where the text came
from.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import msgspec

from yugong.core.settings.overlay import overlay
from yugong.core.settings.problems import PROBLEMS_MAX, Place, Problem, problem_at
from yugong.core.settings.records import Settings, Spec
from yugong.core.settings.rules import Facts, check
from yugong.core.settings.shapes import StructShape, Walk
from yugong.core.settings.tree import Node, compose

__all__ = ["ROOT", "Loaded", "read_settings"]

ROOT = StructShape(Spec("the settings file"), Settings)


class Loaded(msgspec.Struct, frozen=True):
    """Settings that hold together, and where each given value came from (path: place); the rest are defaults."""

    settings: Settings
    given: dict[str, Place]

    def __repr__(self) -> str:
        return f"<Loaded given={len(self.given)}>"

    def origin(self, path: str) -> str:
        """`file:line:col`, `environment variable NAME` or `default` for a dotted path."""
        place = self.given.get(path)
        return str(place) if place else "default"


def read_settings(
    text: str,
    file: str = "yugong.yaml",
    environ: Mapping[str, str] | None = None,
    dialects: Collection[str] = (),
) -> Loaded | list[Problem]:
    """Read one settings file and the `YUGONG_…` variables that override it.

    `dialects` are the names an origin may speak; empty leaves them unchecked. Returns either the settings or all
    problems, in the order of the file; whatever the text, nothing is raised.
    """
    tree = compose(text, file)
    problems, walk = list(tree.problems), Walk()
    root, overlaid = overlay(_root_of(tree.root, problems), environ or {}, ROOT)
    problems += overlaid
    settings = ROOT.read(root, "", walk)
    if isinstance(settings, Settings):
        facts = Facts(settings, walk.given, _names(root))
        facts.dialects, facts.whole = dialects, Place(file, 1, 1) if text else Place("defaults")
        walk.problems += check(facts)
    problems += walk.problems
    if problems or not isinstance(settings, Settings):
        return sorted(set(problems))[:PROBLEMS_MAX]
    return Loaded(settings, walk.given)


def _root_of(root: Node | None, problems: list[Problem]) -> Node | None:
    if root is None or root.kind == "map":
        return root
    if not root.is_null and not problems:
        problems.append(problem_at(root.place, "the file is not a mapping", "such as `listen: {address: …}`"))
    return None


def _names(root: Node) -> dict[str, Collection[str]]:
    """The names written in the sections that are referred to."""
    found: dict[str, Collection[str]] = {}
    for section in ("origins", "egress"):
        child = root.value.get(section, (None, None))[1]
        found[section] = child.value if child is not None and child.kind == "map" else {}
    return found
