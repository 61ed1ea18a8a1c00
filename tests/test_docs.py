"""The papers say what is there: every setting, metric, command, route and module, and nothing that is not.

README.md and ARCHITECTURE.md mark the parts that follow from the code with `<!-- name -->` … `<!-- /name -->`. Some of
them are made from it word for word:

    python tests/test_docs.py        prints those as the papers must have them
"""

from __future__ import annotations

import argparse
import ast
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))

from tests.test_floors import EMULATOR, FLOORS, TOP  # noqa: E402
from yugong import cli  # noqa: E402
from yugong.base.errors import RefusalKind  # noqa: E402
from yugong.core.settings.schema import setting_paths  # noqa: E402
from yugong.supervisor.exits import MEANINGS, Exit  # noqa: E402
from yugong.supervisor.upgrade import SIGNALS  # noqa: E402
from yugong.surface.accesslog import FIELDS  # noqa: E402
from yugong.surface.metrics import METRICS  # noqa: E402
from yugong.surface.ops import ROUTES  # noqa: E402

PAPERS = {name: (ROOT / name).read_text("utf-8") for name in ("README.md", "ARCHITECTURE.md", "CHANGELOG.md")}
README, ARCHITECTURE = PAPERS["README.md"], PAPERS["ARCHITECTURE.md"]
EXAMPLE = (ROOT / "conf" / "yugong.yaml").read_text("utf-8")
MAKEFILE = (ROOT / "Makefile").read_text("utf-8")

PLACES = ("/v1", "/openai/v1", "/livez", "/readyz", "/metrics", "/etc/", "/run/", "~/")
"""What a path in the papers may begin with: a route, or where such things are on anybody's machine."""


def section(paper: str, name: str) -> str:
    """What stands between the marks, without blank lines at its ends."""
    found = re.findall(rf"<!-- {name} -->\n(.*?)\n<!-- /{name} -->", paper, re.DOTALL)
    assert len(found) == 1, f"{len(found)} sections called {name}"
    text: str = found[0].strip("\n")
    return text


def fences(paper: str, language: str) -> list[str]:
    """The code blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", paper, re.DOTALL | re.MULTILINE)


def quoted(paper: str) -> list[str]:
    """Everything that stands between back-ticks in running text, code blocks left out."""
    return re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```$", "", paper, flags=re.DOTALL | re.MULTILINE))


def rows(table: str) -> list[list[str]]:
    """The cells of a Markdown table, its head left out."""
    lines = [line for line in table.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


# --- made from the code, word for word -------------------------------------------------------------------------------


def table(head: str, cells: Iterable[tuple[object, ...]]) -> str:
    names = head.split(", ")
    lines = [f"| {' | '.join(names)} |", "|" + "---|" * len(names)]
    return "\n".join(lines + [f"| {' | '.join(str(cell) for cell in row)} |" for row in cells])


def metrics() -> str:
    listed = ((f"`{s.name}`", s.kind, ", ".join(f"`{x}`" for x in s.labels) or "–", s.help) for s in METRICS)
    return table("metric, kind, labels, what it says", listed)


def fields() -> str:
    return table("field, what it says", ((f"`{name}`", text) for name, text in FIELDS.items()))


def routes() -> str:
    return table("path, what it says", ((f"`{path}`", text) for path, (text, _) in ROUTES.items()))


def exits() -> str:
    return table("exit code, what it says", ((code.value, text) for code, text in MEANINGS.items()))


MADE: dict[str, Callable[[], str]] = {"metrics": metrics, "fields": fields, "routes": routes, "exits": exits}


@pytest.mark.parametrize("name", MADE)
def test_what_is_made_from_the_code_is_as_made(name: str) -> None:
    assert section(README, name) == MADE[name](), f"paste the output of `python {Path(__file__).relative_to(ROOT)}`"


def test_every_exit_code_has_a_meaning() -> None:
    assert set(MEANINGS) == set(Exit)


# --- settings --------------------------------------------------------------------------------------------------------


def test_every_setting_named_in_the_papers_exists() -> None:
    """That `conf/yugong.yaml` has all of them, and no other, is held by tests/core/test_settings_rooms.py."""
    known = {path.replace(".*", "") for path in setting_paths()}
    sections = {path.partition(".")[0] for path in known}
    parts = {path.rpartition(".")[0] for path in known}
    named = [word for paper in PAPERS.values() for word in quoted(paper)]
    dotted = {
        word for word in named if re.fullmatch(r"[a-z_]+(\.[a-z_]+)+", word) and word.partition(".")[0] in sections
    }
    assert dotted, "no paper names a setting"
    assert {word for word in dotted if word not in known | parts and not word.endswith((".py", ".yaml"))} == set()


@pytest.mark.parametrize("text", fences(README, "yaml"))
def test_settings_in_the_readme_are_good(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "yugong.yaml"
    path.write_text(text)
    for variable in re.findall(r"\{env: (\w+)\}", text):
        monkeypatch.setenv(variable, f"sk-test-{variable.lower()}")
    code = cli.main(["check", "-c", str(path)])
    assert (code, capsys.readouterr().err) == (Exit.OK, "")


def test_the_readme_has_settings() -> None:
    assert fences(README, "yaml")


def test_every_environment_variable_named_is_read() -> None:
    sources = "\n".join(path.read_text("utf-8") for path in (ROOT / "yugong").rglob("*.py"))
    named = {word for word in quoted(README) if re.fullmatch(r"[A-Z]+(_[A-Z]+)+", word)}
    assert {word for word in named if not re.search(rf"\b{word}\b", sources + MAKEFILE)} == {"OPENAI_BASE_URL"}


# --- commands --------------------------------------------------------------------------------------------------------


def commands(parser: argparse.ArgumentParser, words: str = "yugong") -> Iterator[tuple[str, argparse.ArgumentParser]]:
    """Every command that can be given, with the parser of its options."""
    below = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    if not below:
        yield words, parser
    for action in below:
        for name, one in action.choices.items():
            yield from commands(one, f"{words} {name}")


def options(parser: argparse.ArgumentParser) -> set[str]:
    return {word for action in parser._actions for word in action.option_strings if word.startswith("--")}


def test_commands_are_those_of_the_program() -> None:
    known = dict(commands(cli._parser()))
    listed = {
        " ".join(re.findall(r"[a-z]+", cells[0].partition(" [")[0])): cells[0]
        for cells in rows(section(README, "commands"))
    }
    assert sorted(re.sub(r" [A-Z]+$", "", words) for words in listed) == sorted(known)


def test_options_are_those_of_the_program() -> None:
    known = options(cli._parser()).union(*(options(parser) for _, parser in commands(cli._parser())))
    assert set(re.findall(r"(?<![\w-])--[a-z]+", section(README, "commands"))) == known


def test_every_command_named_anywhere_exists() -> None:
    known = [words for words, _ in commands(cli._parser())]
    for text in (*PAPERS.values(), EXAMPLE):
        for words in re.findall(r"(?:`|^ *|# +)(yugong(?: [a-z]+)+)", text, re.MULTILINE):
            assert any(f"{words} ".startswith(f"{one} ") or f"{one} ".startswith(f"{words} ") for one in known), words


def test_signals_are_those_listened_to() -> None:
    assert sorted(name.strip("`") for name, _ in rows(section(README, "signals"))) == sorted(s.name for s in SIGNALS)


def test_make_targets_are_those_of_the_makefile() -> None:
    known = set(re.findall(r"^([a-z-]+):.*## ", MAKEFILE, re.MULTILINE))
    named = {
        word for paper in PAPERS.values() for word in re.findall(r"\bmake ([a-z][a-z-]*)\b", " ".join(quoted(paper)))
    }
    named |= {word for block in fences(README, "sh") for word in re.findall(r"^make ([a-z-]+)", block, re.MULTILINE)}
    assert known <= named | {"help"}
    assert named <= known


# --- what a client sees ----------------------------------------------------------------------------------------------


def refusals() -> set[RefusalKind]:
    """The kinds that some place on the line can give: all that is named but as a key of a table of words."""
    found = set()
    for path in (*(ROOT / "yugong" / "core").rglob("*.py"), *(ROOT / "yugong" / "proxy").rglob("*.py")):
        tree = ast.parse(path.read_text("utf-8"))
        worded = {id(key) for node in ast.walk(tree) if isinstance(node, ast.Dict) for key in node.keys}
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "RefusalKind" and id(node) not in worded:
                found.add(RefusalKind[node.attr])
    return found


def test_refusals_are_those_of_the_program() -> None:
    listed = [(cells[0], cells[1].strip("`")) for cells in rows(section(README, "refusals"))]
    assert listed == sorted((str(kind.status), kind.code) for kind in refusals())


# --- the house -------------------------------------------------------------------------------------------------------


def written_tree() -> dict[str, tuple[str, str]]:
    """Module path → floor as written (of the room) and words, from the indented list in ARCHITECTURE."""
    found, folders, floor = {}, [""], ""
    for line in section(ARCHITECTURE, "floors").splitlines():
        if line.startswith("```") or not line.strip():
            continue
        entry = re.fullmatch(r"( *)([a-z_]+(?:/|\.py)) +(?:(\d|–) +)?(\S.*)", line)
        assert entry, f"not a line of the tree: {line}"
        depth = len(entry[1]) // 2
        folders[depth + 1 :] = []
        path = folders[depth] + entry[2]
        if depth == 1:
            floor = entry[3] or ""
        folders.append(path)
        found[path] = (floor, entry[4])
    return found


def real_tree() -> set[str]:
    """A folder stands for its `__init__.py`."""
    paths = (path.relative_to(ROOT).as_posix() for path in (ROOT / "yugong").rglob("*.py"))
    return {path.removesuffix("__init__.py") for path in paths}


def test_the_floors_are_those_of_the_tree() -> None:
    written = set(written_tree())
    assert written - real_tree() == set(), "in ARCHITECTURE.md, not in the tree"
    assert real_tree() - written == set(), "in the tree, not in ARCHITECTURE.md"


def test_every_room_is_on_its_floor() -> None:
    for path, (floor, words) in written_tree().items():
        room = path.split("/")[1].removesuffix(".py")
        # that a room without a floor must get one is for test_floors to say
        expected = {"": "", EMULATOR: "–"}.get(room, str(FLOORS.get(room, TOP)))
        assert (floor, words != "") == (expected, True), path


def test_every_invariant_is_placed() -> None:
    placed = [cells[0] for cells in rows(section(ARCHITECTURE, "invariants"))]
    assert placed == [f"I{number}" for number in range(1, 15)]


def test_every_file_named_exists() -> None:
    named = {
        word for paper in PAPERS.values() for word in quoted(paper) if re.match(r"(yugong|tests|bench|conf)/\S+$", word)
    }
    named |= {
        word for paper in PAPERS.values() for word in quoted(paper) if re.fullmatch(r"[A-Z]+\.md|[\w.-]+\.lock", word)
    }
    assert named
    missing = {word for word in named if not any(ROOT.glob(re.sub(r"NAME|<name>", "*", word).rstrip("/")))}
    assert missing - {"bench/RESULTS.md", "bench/results.json"} == set()


def test_links_lead_somewhere() -> None:
    for name, paper in PAPERS.items():
        for target in re.findall(r"\]\(([^)#:]+)\)", paper):
            assert (ROOT / target).exists(), f"{name}: {target}"


def test_nothing_is_of_this_machine() -> None:
    for name, text in {**PAPERS, "conf/yugong.yaml": EXAMPLE}.items():
        assert str(ROOT) not in text, name
        for path in re.findall(r"(?<![\w.:/~*}>-])(?:~?/[a-z][\w.-]*)+/?", re.sub(r"<!--.*?-->", "", text)):
            assert path.startswith(PLACES), f"{name}: {path}"


# --- what can be pasted ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", fences(README, "python"))
def test_python_in_the_readme_compiles(text: str) -> None:
    compile(text, "README.md", "exec")


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
@pytest.mark.parametrize("text", fences(README, "sh"))
def test_shell_in_the_readme_parses(text: str) -> None:
    subprocess.run(["bash", "-n"], input=text, text=True, check=True)


@pytest.mark.parametrize("name", ["differences", "performance"])
def test_what_others_fill_in_has_its_place(name: str) -> None:
    assert section(README, name)


if __name__ == "__main__":
    for made_name, make in MADE.items():
        print(f"<!-- {made_name} -->\n{make()}\n<!-- /{made_name} -->\n")
