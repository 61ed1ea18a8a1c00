"""The command line: results on stdout, all else on stderr, exit codes that stay."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from yugong import __version__
from yugong.cli import INNER, is_compiled, main
from yugong.supervisor.exits import MEANINGS, Exit

GOOD = {
    "origins": {"o": {"dialect": "openai", "url": "https://api.example.com"}},
    "orgs": {"a": {"origin": "o", "keys": [{"id": "k1", "secret": {"env": "KEY_OF_A"}}]}},
}


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No settings but those of the test."""
    for name in list(os.environ):
        if name.startswith(("YUGONG_", "OPENAI_", "XDG_")) or name in ("STATE_DIRECTORY", "CREDENTIALS_DIRECTORY"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)


def settings(tmp_path: Path, content: Any) -> str:
    path = tmp_path / "yugong.yaml"
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    return str(path)


Run = Any


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    def call(*words: str) -> tuple[int, str, str]:
        try:
            code = main(words)
        except SystemExit as end:
            code = int(end.code or 0)
        said = capsys.readouterr()
        return code, said.out, said.err

    return call


def test_version(run: Run) -> None:
    build = "compiled" if is_compiled() else "not compiled"
    assert run("version") == (0, f"yugong {__version__}, {build}\n", "")
    assert run("--version") == (0, f"yugong {__version__}\n", "")
    assert json.loads(run("version", "--json")[1])["version"] == __version__


@pytest.mark.parametrize("words", [(), ("fly",), ("config",), ("run", "--fast"), ("keys", "add"), ("check", "-c")])
def test_a_wrong_command_line_is_two(run: Run, words: tuple[str, ...]) -> None:
    code, out, err = run(*words)
    assert (code, out) == (Exit.USAGE, "")
    assert "yugong: " in err
    assert "usage:" in err


def test_help_lists_commands_and_exit_codes_and_nothing_of_our_own(run: Run) -> None:
    code, out, _ = run("--help")
    assert code == 0
    for command in ("run", "demo", "check", "config", "keys", "version"):
        assert f"\n    {command} " in out
    for exit_code, meaning in MEANINGS.items():
        assert f"  {exit_code.value}  {meaning}" in out
    assert not any(inner in out for inner in INNER)


def test_check_says_that_all_is_well(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = settings(tmp_path, GOOD)
    monkeypatch.setenv("KEY_OF_A", "sk-secret-of-a")
    assert run("check", "-c", path) == (0, f"{path}: all is well\n", "")
    assert json.loads(run("check", "-c", path, "--json")[1]) == {"file": path, "ok": True, "problems": []}
    code, out, _ = run("check")
    assert (code, out) == (0, f"{path}: all is well\n"), "found where we are"


def test_check_says_all_that_is_wrong_with_its_place(run: Run, tmp_path: Path) -> None:
    path = settings(tmp_path, "listen:\n  adress: x\n  workers: many\nretry: {attempts: 99}\n")
    code, out, err = run("check", "-c", path)
    assert (code, out) == (Exit.SETTINGS, "")
    assert [line.rpartition(": ")[0].rpartition(":")[0] for line in err.splitlines()] != []
    assert {int(line.split(":")[1]) for line in err.splitlines()} == {2, 3, 4}
    assert "did you mean `address`?" in err
    said = json.loads(run("check", "-c", path, "--json")[1])
    assert not said["ok"]
    assert [problem["line"] for problem in said["problems"]] == [2, 3, 4]


def test_check_says_what_references_do_not_lead_anywhere(run: Run, tmp_path: Path) -> None:
    wrong = {
        **GOOD,
        "egress": {"e": {"proxy": "http://127.0.0.1:1", "username": {"file": "/nowhere"}, "password": {"env": "PW"}}},
        "accounts": {"acme": {"keys": [{"id": "k", "value": {"credential": "cred"}}]}},
    }
    code, _, err = run("check", "-c", settings(tmp_path, wrong))
    assert code == Exit.SETTINGS
    for where in ("orgs.a.keys.k1", "accounts.acme.keys.k", "egress.e.username", "egress.e.password"):
        assert f"{where}: " in err


def test_a_file_that_is_not_there(run: Run, tmp_path: Path) -> None:
    for command in (("check",), ("config", "show"), ("run",), ("keys", "list")):
        code, out, err = run(*command, "-c", str(tmp_path / "nothing.yaml"))
        assert (code, out) == (Exit.SETTINGS, "")
        assert "cannot be read: No such file or directory" in err


def test_config_show_says_where_each_value_comes_from(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = settings(tmp_path, "retry:\n  attempts: 7\n")
    monkeypatch.setenv("YUGONG_LISTEN__WORKERS", "3")
    _, out, _ = run("config", "show", "--origin", "-c", path)
    lines = out.splitlines()
    assert f"retry.attempts: 7  # {path}:2:13" in lines
    assert "listen.workers: 3  # environment variable YUGONG_LISTEN__WORKERS" in lines or any(
        line.startswith("listen.workers: 3  # ") and "YUGONG_LISTEN__WORKERS" in line for line in lines
    )
    assert any(line.endswith("# default") for line in lines)
    assert "#" not in run("config", "show", "-c", path)[1]
    said = json.loads(run("config", "show", "--json", "--origin", "-c", path)[1])
    assert said["settings"]["retry"]["attempts"] == 7
    assert said["origins"]["retry.attempts"] == f"{path}:2:13"
    assert json.loads(run("config", "show", "--json", "-c", path)[1])["listen"]["workers"] == 3


def test_config_show_shows_no_secret(run: Run, tmp_path: Path) -> None:
    hidden = {**GOOD, "orgs": {"a": {"origin": "o", "keys": [{"id": "k1", "secret": "sk-canary-1234567890"}]}}}
    path = settings(tmp_path, hidden)
    for words in (("config", "show"), ("config", "show", "--json", "--origin"), ("check",)):
        code, out, err = run(*words, "-c", path)
        assert code == 0
        assert "canary" not in out + err


def test_config_schema_is_json_schema(run: Run) -> None:
    said = json.loads(run("config", "schema")[1])
    assert said["$schema"].startswith("https://json-schema.org/")
    assert "listen" in said["properties"]


def test_keys_are_shown_once(run: Run, tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir(mode=0o700)
    path = settings(tmp_path, {"data_dir": str(data)})
    code, key, err = run("keys", "add", "laptop", "-c", path)
    assert code == 0
    assert key.startswith("sk-")
    assert "only time" in err
    made = json.loads(run("keys", "add", "phone", "--account", "acme", "--json", "-c", path)[1])
    assert (made["account"], made["id"]) == ("acme", "phone")
    code, out, _ = run("keys", "list", "-c", path)
    assert out.splitlines() == [f"acme/phone  …{made['key'][-4:]}", f"default/laptop  …{key.strip()[-4:]}"]
    listed = json.loads(run("keys", "list", "--json", "-c", path)[1])
    assert [one["id"] for one in listed] == ["phone", "laptop"]
    assert key.strip() not in out + json.dumps(listed)
    code, out, err = run("keys", "add", "laptop", "-c", path)
    assert (code, out) == (Exit.FAILURE, "")
    assert "has a key 'laptop' already" in err


def test_keys_without_a_data_directory(run: Run, tmp_path: Path) -> None:
    code, out, err = run("keys", "list", "-c", settings(tmp_path, {"data_dir": str(tmp_path / "nothing")}))
    assert (code, out) == (Exit.DATA, "")
    assert "`yugong run` makes it" in err


def test_a_reader_that_has_seen_enough_is_no_error(tmp_path: Path) -> None:
    command = f"{sys.executable} -m yugong config schema | head -c 10"
    root = Path(__file__).resolve().parent.parent
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {command}"],
        capture_output=True,
        cwd=root,
        check=False,
        env={"PATH": os.environ["PATH"], "HOME": str(tmp_path)},
    )
    assert done.returncode == 0
    assert done.stderr == b""
