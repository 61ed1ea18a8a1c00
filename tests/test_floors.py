"""The house stands: who may import whom, floors 0 and 1 stay pure, nothing grows too big.

Reads every module of `yugong/` by AST and imports none of them, so a module that fails to import is still judged. Each
rule is a function from modules to findings; the rules are proved on small made-up trees that break them, and then held
over the real one. The tables are the rules: what is not in them is not allowed.
"""

import ast
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "yugong"

FLOORS = {
    "": 0,  # yugong/__init__.py itself: the version, nothing else
    "base": 0,
    "core": 1,
    "store": 2,
    "upstream": 2,
    "proxy": 3,
    "surface": 4,
    "cli": 5,
    "worker": 5,
    "supervisor": 5,
    "keeper": 5,
    "wiring": 5,
    "__main__": 5,
}
"""First component under the package → floor (design: floors)."""

TOP = 5
STRANGERS = {("store", "upstream"), ("upstream", "store")}
"""Same floor, yet they do not see each other."""

EMULATOR = "emulator"
"""Separate from all floors: imports only itself, and only the top floor may start it."""

PURE_FLOORS = (0, 1)
PURE_MODULES = frozenset(
    """
    __future__ abc array ast base64 binascii bisect builtins codecs collections contextlib copy cryptography
    dataclasses datetime decimal difflib email enum fnmatch fractions functools hashlib heapq hmac html http io
    ipaddress itertools json keyword math mmap msgspec numbers operator orjson re string struct textwrap tomllib
    types typing unicodedata urllib weakref yaml zlib
    """.split()
)
"""What floors 0 and 1 may import from outside: nothing in it reads or changes the world, but for the names below."""

IMPURE_NAMES = frozenset(
    """
    datetime.datetime.now datetime.datetime.utcnow datetime.datetime.today datetime.date.today
    email.utils.localtime email.utils.make_msgid http.client http.server http.cookiejar io.open io.FileIO io.open_code
    urllib.request urllib.robotparser
    """.split()
)
"""Dotted names within those modules that are not pure after all."""

IMPURE_CALLS = frozenset("__import__ breakpoint compile eval exec input open print mmap.mmap".split())
"""What may not be called. A mapped body may be named as a type and read; mapping it is for those who keep files."""

IMPURE_METHODS = frozenset("generate generate_key generate_private_key generate_parameters".split())
"""Attributes that draw randomness in `cryptography`; refused in modules that import it."""

LOADERS = {"importlib", "pkgutil"}
LOADER_MODULE = f"{PACKAGE}.core.dialects"
"""The one pure module that finds its neighbours by itself, so that a provider is one file and needs no list."""

MAX_FILE, MAX_FUNCTION, MAX_POSITIONAL = 500, 60, 5
LONG_MARK = "# long:"


class Module:
    """One source file, parsed: its dotted name, where it stands, and what it imports."""

    __slots__ = ("floor", "is_package", "name", "room", "source", "tree")

    def __init__(self, name: str, source: str, *, is_package: bool) -> None:
        self.name, self.source, self.is_package = name, source, is_package
        self.tree = ast.parse(source, name)
        self.room = room_of(name)
        self.floor = FLOORS.get(self.room)

    def __repr__(self) -> str:
        return f"<Module {self.name} floor={self.floor}>"


def room_of(dotted: str) -> str:
    """`yugong.core.x` → `core`; the package itself → ""."""
    return dotted.partition(".")[2].partition(".")[0]


Tree = dict[str, Module]
Rule = Callable[[Tree], Iterator[str]]


def grow(sources: dict[str, str]) -> Tree:
    """Relative paths and their text → modules by dotted name."""
    tree = {}
    for path, source in sources.items():
        parts = path.removesuffix(".py").split("/")
        is_package = parts[-1] == "__init__"
        name = ".".join(parts[:-1] if is_package else parts)
        tree[name] = Module(name, source, is_package=is_package)
    return tree


def imports(module: Module, *, typing_only: bool = True) -> Iterator[tuple[int, str, str]]:
    """Line, module and name (or "") of each import, relative ones made absolute."""
    for node in walk(module.tree, typing_only=typing_only):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name, ""
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = module.name.split(".")
                keep = len(parts) - node.level + module.is_package
                base = ".".join(parts[:keep] + ([base] if base else []))
            for alias in node.names:
                yield node.lineno, base, alias.name


def walk(root: ast.AST, *, typing_only: bool) -> Iterator[ast.AST]:
    """`ast.walk`, and whether to go into `if TYPE_CHECKING:` blocks."""
    rest = [root]
    while rest:
        node = rest.pop()
        yield node
        if isinstance(node, ast.If) and not typing_only and "TYPE_CHECKING" in ast.unparse(node.test):
            rest.extend(node.orelse)
        else:
            rest.extend(ast.iter_child_nodes(node))


def inner_imports(module: Module, tree: Tree, *, typing_only: bool) -> Iterator[tuple[int, str]]:
    """Line and dotted name of each module of the package that this one imports."""
    for line, base, name in imports(module, typing_only=typing_only):
        if base.split(".")[0] == PACKAGE:
            yield line, f"{base}.{name}" if f"{base}.{name}" in tree else base


# --- rules -----------------------------------------------------------------------------------------------------------


def every_module_has_a_floor(tree: Tree) -> Iterator[str]:
    for module in tree.values():
        if module.floor is None and module.room != EMULATOR:
            yield f"{module.name}: `{module.room}` is on no floor"


def imports_go_down(tree: Tree) -> Iterator[str]:
    for module in tree.values():
        for line, target in inner_imports(module, tree, typing_only=True):
            room = room_of(target)
            if why := refused_import(module, room):
                yield f"{module.name}:{line}: imports {target}: {why}"


def refused_import(module: Module, room: str) -> str:
    """Why a module may not import from this room, or ""."""
    if EMULATOR in (module.room, room):
        may = module.room == room or module.floor == TOP or room == ""
        return "" if may else "the emulator and the rest do not know each other"
    floor = FLOORS.get(room)
    if floor is None:
        return "no such room"
    if module.floor is not None and floor > module.floor:
        return f"floor {floor} is above floor {module.floor}"
    return "they do not see each other" if (module.room, room) in STRANGERS else ""


def imports_have_no_cycle(tree: Tree) -> Iterator[str]:
    """Type-only imports aside, as they do not happen."""
    edges = {
        name: sorted({target for _, target in inner_imports(module, tree, typing_only=False)} - {name})
        for name, module in tree.items()
    }
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> Iterator[str]:
        if name in path:
            yield f"cycle: {' → '.join([*path[path.index(name) :], name])}"
        elif name not in done:
            for target in edges.get(name, ()):
                yield from visit(target, (*path, name))
            done.add(name)

    for name in edges:
        yield from visit(name, ())


def nothing_is_loaded_by_name(tree: Tree) -> Iterator[str]:
    """An import the other rules cannot see; only the dialects have it."""
    for module in tree.values():
        for node in ast.walk(module.tree):
            if isinstance(node, ast.Name | ast.Attribute) and module.name != LOADER_MODULE:
                name = node.id if isinstance(node, ast.Name) else node.attr
                if name in ("import_module", "__import__", "spec_from_file_location"):
                    yield f"{module.name}:{node.lineno}: {name}"


def pure_floors_do_not_wait(tree: Tree) -> Iterator[str]:
    waits = (ast.AsyncFunctionDef, ast.AsyncFor, ast.AsyncWith, ast.Await)
    for module in pure(tree):
        for node in ast.walk(module.tree):
            if isinstance(node, waits):
                yield f"{module.name}:{node.lineno}: {type(node).__name__}"
            elif isinstance(node, ast.comprehension) and node.is_async:
                yield f"{module.name}:{node.iter.lineno}: async comprehension"


def pure_floors_import_only_pure(tree: Tree) -> Iterator[str]:
    for module in pure(tree):
        for line, base, name in imports(module, typing_only=False):
            first = base.split(".")[0]
            known = first in PURE_MODULES or first == PACKAGE or (first in LOADERS and module.name == LOADER_MODULE)
            if not known:
                yield f"{module.name}:{line}: imports {base}"
            elif is_impure(base) or is_impure(f"{base}.{name}"):
                yield f"{module.name}:{line}: imports {base}.{name}".removesuffix(".")


def is_impure(dotted: str) -> bool:
    return any(dotted == name or dotted.startswith(name + ".") for name in IMPURE_NAMES)


def pure_floors_touch_nothing(tree: Tree) -> Iterator[str]:
    """No clock, file, terminal or randomness through a builtin or a name that a pure module happens to carry."""
    for module in pure(tree):
        names = bound_names(module)
        for node in ast.walk(module.tree):
            if isinstance(node, ast.Call) and resolved(node.func, names) in IMPURE_CALLS:
                yield f"{module.name}:{node.lineno}: {ast.unparse(node.func)}()"
            elif isinstance(node, ast.Attribute):
                draws = node.attr in IMPURE_METHODS and "cryptography" in module.source
                if draws or is_impure(resolved(node, names)):
                    yield f"{module.name}:{node.lineno}: {ast.unparse(node)}"


def bound_names(module: Module) -> dict[str, str]:
    """Names bound in a module → what they stand for, as far as imports tell; "" for its own functions and classes."""
    names = {}
    for node in ast.walk(module.tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and node in module.tree.body:
            names[node.name] = ""
        elif isinstance(node, ast.Import):
            names.update(
                {a.asname or a.name.split(".")[0]: a.name if a.asname else a.name.split(".")[0] for a in node.names}
            )
        elif isinstance(node, ast.ImportFrom):
            names.update({a.asname or a.name: f"{node.module or ''}.{a.name}" for a in node.names})
    return names


def resolved(node: ast.expr, names: dict[str, str]) -> str:
    """`dt.datetime.now` → `datetime.datetime.now`, where the module says what `dt` is; builtins as they stand."""
    first, dot, rest = ast.unparse(node).partition(".")
    return f"{names.get(first, '?' if dot else first)}{dot}{rest}"


def pure(tree: Tree) -> Iterable[Module]:
    return (module for module in tree.values() if module.floor in PURE_FLOORS)


def every_file_opens_with_its_rules(tree: Tree) -> Iterator[str]:
    for module in tree.values():
        if not ast.get_docstring(module.tree):
            yield f"{module.name}: says nothing of what it decides"


def files_stay_small(tree: Tree) -> Iterator[str]:
    for module in tree.values():
        if (lines := module.source.count("\n")) > MAX_FILE:
            yield f"{module.name}: {lines} lines"


def functions_stay_small(tree: Tree) -> Iterator[str]:
    for module, function in functions(tree):
        first, last = function.lineno, function.end_lineno or function.lineno
        text = "\n".join(module.source.splitlines()[max(first - 2, 0) : last])
        mark = text.partition(LONG_MARK)[2].partition("\n")[0].strip()
        if last - first + 1 > MAX_FUNCTION and not mark:
            yield f"{module.name}:{first}: {function.name} has {last - first + 1} lines and no `{LONG_MARK} reason`"


def parameters_stay_few(tree: Tree) -> Iterator[str]:
    for module, function in functions(tree):
        names = [arg.arg for arg in (*function.args.posonlyargs, *function.args.args)]
        count = len(names) - (names[:1] in (["self"], ["cls"]))
        if count > MAX_POSITIONAL:
            yield f"{module.name}:{function.lineno}: {function.name} takes {count} by position"


def functions(tree: Tree) -> Iterator[tuple[Module, ast.FunctionDef | ast.AsyncFunctionDef]]:
    for module in tree.values():
        for node in ast.walk(module.tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield module, node


RULES: tuple[Rule, ...] = (
    every_module_has_a_floor,
    imports_go_down,
    imports_have_no_cycle,
    nothing_is_loaded_by_name,
    pure_floors_do_not_wait,
    pure_floors_import_only_pure,
    pure_floors_touch_nothing,
    every_file_opens_with_its_rules,
    files_stay_small,
    functions_stay_small,
    parameters_stay_few,
)


# --- the rules see what they should ----------------------------------------------------------------------------------

FILLER = "\n".join(f"    x = {n}" for n in range(70))

BROKEN: list[tuple[Rule, dict[str, str]]] = [
    (every_module_has_a_floor, {"yugong/attic/x.py": ""}),
    (every_module_has_a_floor, {"yugong/helpers.py": ""}),
    (imports_go_down, {"yugong/base/x.py": "from yugong.core import y"}),
    (imports_go_down, {"yugong/base/x.py": "from ..core.y import z"}),
    (imports_go_down, {"yugong/core/__init__.py": "from ..store import y"}),
    (imports_go_down, {"yugong/core/x.py": "def f():\n    import yugong.proxy.line"}),
    (imports_go_down, {"yugong/core/x.py": "if TYPE_CHECKING:\n    from yugong.store.y import Z"}),
    (imports_go_down, {"yugong/store/x.py": "from yugong.upstream.y import z"}),
    (imports_go_down, {"yugong/upstream/x.py": "from yugong import store", "yugong/store/__init__.py": ""}),
    (imports_go_down, {"yugong/surface/x.py": "from yugong import worker", "yugong/worker.py": ""}),
    (imports_go_down, {"yugong/core/x.py": "from yugong.attic import y"}),
    (imports_go_down, {"yugong/emulator/x.py": "from yugong.base import y"}),
    (imports_go_down, {"yugong/surface/x.py": "from yugong.emulator import y"}),
    (imports_have_no_cycle, {"yugong/core/a.py": "from . import b", "yugong/core/b.py": "from . import a"}),
    (
        imports_have_no_cycle,
        {
            "yugong/core/a.py": "from yugong.core.b import x",
            "yugong/core/b.py": "import yugong.core.c",
            "yugong/core/c.py": "def f():\n    from .a import y",
        },
    ),
    (nothing_is_loaded_by_name, {"yugong/proxy/x.py": "import importlib\nimportlib.import_module('yugong.cli')"}),
    (nothing_is_loaded_by_name, {"yugong/core/x.py": "__import__('os')"}),
    (pure_floors_do_not_wait, {"yugong/base/x.py": "async def f(): pass"}),
    (pure_floors_do_not_wait, {"yugong/core/keypool/x.py": "async def f():\n    await g()"}),
    (pure_floors_do_not_wait, {"yugong/core/x.py": "f = lambda: [x async for x in y]"}),
    *[
        (pure_floors_import_only_pure, {"yugong/core/x.py": f"import {name}"})
        for name in (
            "asyncio socket logging random secrets time os os.path pathlib uuid threading subprocess sys ssl sqlite3 "
            "fcntl tempfile aiohttp uvloop multiprocessing importlib pkgutil urllib.request http.client"
        ).split()
    ],
    (pure_floors_import_only_pure, {"yugong/base/x.py": "from os import PathLike"}),
    (pure_floors_import_only_pure, {"yugong/base/x.py": "from urllib import request"}),
    (pure_floors_import_only_pure, {"yugong/core/x.py": "def f():\n    from time import monotonic"}),
    (pure_floors_import_only_pure, {"yugong/core/x.py": "if TYPE_CHECKING:\n    pass\nelse:\n    import time"}),
    (pure_floors_import_only_pure, {"yugong/core/dialects/openai.py": "import importlib"}),
    (pure_floors_touch_nothing, {"yugong/core/x.py": "from datetime import datetime\ndatetime.now()"}),
    (pure_floors_touch_nothing, {"yugong/core/x.py": "import datetime as dt\nf = dt.datetime.utcnow"}),
    (pure_floors_touch_nothing, {"yugong/core/x.py": "from datetime import date as day\nday.today()"}),
    (pure_floors_touch_nothing, {"yugong/core/x.py": "import io\nio.open('x')"}),
    (pure_floors_touch_nothing, {"yugong/core/x.py": "from mmap import mmap\nmmap(3, 0)"}),
    (pure_floors_touch_nothing, {"yugong/core/x.py": "import mmap as m\nm.mmap(3, 0)"}),
    (pure_floors_touch_nothing, {"yugong/core/x.py": "def f():\n    print(1)"}),
    (pure_floors_touch_nothing, {"yugong/base/x.py": "text = open('x').read()"}),
    (
        pure_floors_touch_nothing,
        {"yugong/core/x.py": "from cryptography.x import x25519\nx25519.X25519PrivateKey.generate()"},
    ),
    (every_file_opens_with_its_rules, {"yugong/core/x.py": "x = 1"}),
    (files_stay_small, {"yugong/core/x.py": "x = 1\n" * 501}),
    (functions_stay_small, {"yugong/core/x.py": f"def f():\n{FILLER}"}),
    (functions_stay_small, {"yugong/core/x.py": f"async def f():\n    # long:\n{FILLER}"}),
    (parameters_stay_few, {"yugong/core/x.py": "def f(a, b, c, d, e, g): pass"}),
    (parameters_stay_few, {"yugong/core/x.py": "class C:\n    def f(self, a, b, /, c, d, e, g): pass"}),
]

SOUND = {
    "yugong/__init__.py": '"""Yugong."""\n__version__ = "1"',
    "yugong/base/ids.py": '"""Ids."""\nfrom datetime import UTC, datetime\nx = datetime(1, 1, 1, tzinfo=UTC)',
    "yugong/core/__init__.py": '"""Core."""\nfrom yugong.base.ids import x',
    "yugong/core/a.py": (
        '"""A."""\nfrom typing import TYPE_CHECKING\nfrom .b import y\nif TYPE_CHECKING:\n    import random\n'
        "def open(rng: 'random.Random') -> float: return rng.random()\nopen(y)\n"
        "def now(self): return self.clock.now()"
    ),
    "yugong/core/b.py": (
        '"""B."""\nfrom mmap import mmap\nfrom typing import TYPE_CHECKING\ny: mmap\n'
        "if TYPE_CHECKING:\n    from .a import now"
    ),
    "yugong/core/dialects/__init__.py": '"""Dialects."""\nimport importlib, pkgutil\nimportlib.import_module("x")',
    "yugong/store/file.py": '"""File."""\nimport os, time\nfrom yugong.core import a\nasync def f(): open("x")',
    "yugong/upstream/leg.py": '"""Leg."""\nfrom ..base import ids\nfrom .. import __version__',
    "yugong/proxy/line.py": '"""Line."""\nfrom yugong.store import file\nfrom yugong.upstream import leg',
    "yugong/emulator/__init__.py": '"""Emulator."""\nfrom .orgs import x',
    "yugong/emulator/orgs.py": '"""Orgs."""\nx = 1',
    "yugong/cli.py": '"""Cli."""\nfrom yugong.emulator import orgs\nfrom yugong import proxy, worker',
    "yugong/worker.py": f'"""Worker."""\n# long: a table of signals\ndef f(self, a, b, c, d, e, *, g):\n{FILLER}',
}


def named(case: tuple[Rule, dict[str, str]]) -> str:
    return f"{case[0].__name__}: {' | '.join(case[1].values())[:60]}"


@pytest.mark.parametrize("case", BROKEN, ids=named)
def test_rule_sees_what_breaks_it(case: tuple[Rule, dict[str, str]]) -> None:
    rule, sources = case
    assert list(rule(grow(sources)))


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_rule_lets_sound_code_be(rule: Rule) -> None:
    assert list(rule(grow(SOUND))) == []


def test_every_rule_is_proved() -> None:
    assert {rule for rule, _ in BROKEN} == set(RULES)


def test_findings_say_where() -> None:
    tree = grow({"yugong/store/x.py": "import os\nfrom yugong.proxy.line import f"})
    assert list(imports_go_down(tree)) == ["yugong.store.x:2: imports yugong.proxy.line: floor 3 is above floor 2"]


# --- the house -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def house() -> Tree:
    paths = sorted((ROOT / PACKAGE).rglob("*.py"))
    assert paths, "no sources found"
    return grow({path.relative_to(ROOT).as_posix(): path.read_text("utf-8") for path in paths})


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_house(rule: Rule, house: Tree) -> None:
    assert list(rule(house)) == []
