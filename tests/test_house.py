"""The house and its papers agree: locks with pyproject, targets with the Makefile, the version with the changelog."""

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

import yugong

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
LOCKS = {"requirements.lock": (), "requirements-dev.lock": ("test", "dev")}
"""Lock file → the extras it carries beside what the program needs to run."""

TARGETS = "help run demo test check system compiled bench bench-peers fuzz lock clean".split()


def locked(name: str) -> dict[str, tuple[str, int]]:
    """Package → its version and how many hashes it has; fails on any line that is neither pin, hash nor comment."""
    pins: dict[str, tuple[str, int]] = {}
    text = (ROOT / name).read_text("utf-8").replace("\\\n", " ")
    for line in text.splitlines():
        pin = line.partition("#")[0].split()
        if not pin:
            continue
        package, equals, version = pin[0].partition("==")
        assert equals, f"{name}: not a pin: {line[:60]}"
        assert all(re.fullmatch(r"--hash=sha256:[0-9a-f]{64}", word) for word in pin[1:]), f"{name}: {line[:60]}"
        pins[canonicalize_name(package)] = (version, len(pin) - 1)
    return pins


def required(extras: tuple[str, ...]) -> Iterator[Requirement]:
    project = PROJECT["project"]
    for text in PROJECT["build-system"]["requires"] + project["dependencies"]:
        yield Requirement(text)
    for extra in extras:
        yield from map(Requirement, project["optional-dependencies"][extra])


@pytest.mark.parametrize(("name", "extras"), LOCKS.items(), ids=list(LOCKS))
def test_lock_holds_what_the_project_asks_for(name: str, extras: tuple[str, ...]) -> None:
    pins = locked(name)
    for requirement in required(extras):
        version, hashes = pins.get(canonicalize_name(requirement.name), ("", 0))
        assert hashes, f"{requirement} is not in {name}; run `make lock`"
        assert requirement.specifier.contains(Version(version)), f"{name} pins {version} for {requirement}"


@pytest.mark.parametrize("name", LOCKS)
def test_lock_has_hashes_and_no_address(name: str) -> None:
    pins = locked(name)
    assert pins
    assert [package for package, (_, hashes) in pins.items() if hashes == 0] == []
    assert not re.search(r"://|^-", (ROOT / name).read_text("utf-8"), re.MULTILINE)


def test_tests_run_on_the_versions_that_are_served() -> None:
    development = locked("requirements-dev.lock")
    assert {name: pin for name, pin in locked("requirements.lock").items() if development.get(name) != pin} == {}


def test_every_target_exists_and_is_listed() -> None:
    listed = subprocess.run(["make", "--no-print-directory", "help"], cwd=ROOT, capture_output=True, check=True).stdout
    assert sorted(line.split()[1] for line in listed.decode().splitlines()) == sorted(TARGETS)


def test_old_python_is_refused_in_words(tmp_path: Path) -> None:
    old = tmp_path / "python-old"
    old.write_text('#!/bin/sh\n[ "$1" = --version ] && { echo Python 3.9.2; exit 0; }\nexit 1\n')
    old.chmod(0o755)
    words = ["make", "--no-print-directory", "run", f"PYTHON={old}", f"VENV={tmp_path}/venv"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "needs Python 3.11 or later" in done.stderr
    assert "Python 3.9.2" in done.stderr
    assert not (tmp_path / "venv").exists()


GUARDED = """
import asyncio

async def test_leaves_a_task():
    assert type(asyncio.get_running_loop()).__module__.startswith("uvloop")
    test_leaves_a_task.kept = asyncio.create_task(asyncio.sleep(60), name="left-behind")

async def test_is_tidy():
    await asyncio.create_task(asyncio.sleep(0))
"""


def test_a_task_left_behind_fails_its_test(tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_bytes((ROOT / "tests" / "conftest.py").read_bytes())
    (tmp_path / "test_guarded.py").write_text(GUARDED)
    words = [sys.executable, "-m", "pytest", "-q", "-c", str(ROOT / "pyproject.toml"), f"--rootdir={tmp_path}"]
    done = subprocess.run([*words, str(tmp_path)], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert "2 passed, 1 error" in done.stdout
    assert "tasks left running" in done.stdout
    assert "left-behind" in done.stdout


def test_version_is_in_the_changelog() -> None:
    changelog = (ROOT / "CHANGELOG.md").read_text("utf-8")
    versions = re.findall(r"^## \[(\d[^\]]*)\]", changelog, re.MULTILINE)
    assert versions[0] == yugong.__version__
    assert versions == sorted(versions, key=Version, reverse=True)


def test_markers_are_what_make_leaves_out() -> None:
    markers = {marker.partition(":")[0] for marker in PROJECT["tool"]["pytest"]["ini_options"]["markers"]}
    named = set(re.findall(r'-m "([^"]*)"', (ROOT / "Makefile").read_text("utf-8")))
    assert {word for expression in named for word in expression.split()} - {"not", "and", "or"} == markers


def test_ci_is_make_test() -> None:
    script = ROOT / ".ci" / "run"
    assert script.stat().st_mode & 0o100
    assert script.read_text("utf-8").rstrip().endswith("\nmake test")


# --- what is compiled ------------------------------------------------------------------------------------------------

COMPILED = frozenset(
    f"{folder}/{name}".replace("/", ".")
    for folder, names in PROJECT["tool"]["yugong"]["compile"].items()
    for name in names
)


def heirs(name: str, source: str) -> Iterator[str]:
    """The classes of a module that is not compiled which inherit from one that is."""
    tree = ast.parse(source)
    origins: dict[str, str] = {}
    for node in ast.walk(tree):
        for alias in node.names if isinstance(node, ast.Import | ast.ImportFrom) else ():
            module = f"{node.module}." if isinstance(node, ast.ImportFrom) else ""
            origins[alias.asname or alias.name] = module + alias.name
    for node in ast.walk(tree):
        for base in map(ast.unparse, node.bases) if isinstance(node, ast.ClassDef) else ():
            first, dot, rest = base.partition(".")
            whole = origins.get(base) or origins.get(first, first) + dot + rest
            if whole.rpartition(".")[0] in COMPILED:
                yield f"{name}: {node.name} inherits from {whole}"


def test_every_compiled_module_exists_and_is_named_once() -> None:
    table = PROJECT["tool"]["yugong"]["compile"]
    assert [name for name in COMPILED if not (ROOT / f"{name.replace('.', '/')}.py").is_file()] == []
    assert [names for names in table.values() if names != sorted(set(names))] == []
    assert "yugong.proxy.exchange" in COMPILED, "by it one tells whether anything is"


def test_nothing_uncompiled_inherits_from_the_compiled() -> None:
    """An instance of a subclass that was not compiled with its base is refused by compiled callers: a TypeError."""
    found: list[str] = []
    for path in sorted((ROOT / "yugong").rglob("*.py")):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        if name not in COMPILED:
            found += heirs(name, path.read_text("utf-8"))
    assert found == []


@pytest.mark.parametrize(
    "source",
    [
        "from yugong.proxy.exchange import Exchange\nclass Odd(Exchange): pass",
        "from yugong.proxy import exchange as e\nclass Odd(e.Exchange): pass",
        "import yugong.proxy.exchange\nclass Odd(yugong.proxy.exchange.Exchange): pass",
    ],
)
def test_an_heir_of_the_compiled_is_seen(source: str) -> None:
    assert list(heirs("x", source)) == ["x: Odd inherits from yugong.proxy.exchange.Exchange"]


def test_constants_of_compiled_classes_are_final() -> None:
    """Compiled, a plain one is an attribute of each object, and reading it from the class gives a descriptor."""
    found: list[str] = []
    for module in sorted(COMPILED):
        for node in ast.walk(ast.parse((ROOT / f"{module.replace('.', '/')}.py").read_text("utf-8"))):
            is_enum = isinstance(node, ast.ClassDef) and any("Enum" in ast.unparse(base) for base in node.bases)
            body = node.body if isinstance(node, ast.ClassDef) and not is_enum else []
            lines = [ast.unparse(line) for line in body if isinstance(line, ast.Assign | ast.AnnAssign)]
            found += [f"{module}: {line}" for line in lines if re.match(r"[A-Z]\w*( =|: (?!Final|ClassVar))", line)]
    assert found == []


def test_nothing_compiled_lies_among_the_sources() -> None:
    """It would be imported instead of the source beside it, also after that has changed."""
    assert [path for path in (ROOT / "yugong").rglob("*") if path.suffix in (".so", ".pyd", ".c")] == []


def test_the_choice_of_make_is_what_is_tested() -> None:
    """`PYTHONSAFEPATH=1` asks for what is installed; without it the tree comes first."""
    is_tree = Path(yugong.__file__).is_relative_to(ROOT / "yugong")
    assert is_tree is not bool(sys.flags.safe_path)
