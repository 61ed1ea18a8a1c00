"""The command line.

Decides: commands, options, and that results go to stdout and all else to stderr. Must not know: how anything is done.
Each command imports what it needs, so that a worker is not made of the parser and `version` answers at once.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import orjson

from yugong import __version__
from yugong.supervisor.exits import MEANINGS, Exit, StartError

__all__ = ["is_compiled", "main"]

Command = Callable[[argparse.Namespace], int]


def main(argv: Sequence[str] | None = None, program: list[str] | None = None) -> int:
    """Do what the command line says; the exit code. `program` is how to start ourselves again."""
    words = list(sys.argv[1:] if argv is None else argv)
    if words and words[0] in INNER:
        return INNER[words[0]](words[1:])
    options = _parser().parse_args(words)
    options.program = program
    try:
        return int(options.command(options))
    except StartError as error:
        return _fail(error.code, *str(error).splitlines())
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the reader has seen enough
        return Exit.OK
    except KeyboardInterrupt:
        return 130


def _fail(code: Exit, *lines: str) -> int:
    for line in lines:
        sys.stderr.write(f"yugong: {line}\n")
    return code


def _print(value: Any) -> None:
    sys.stdout.write(orjson.dumps(value, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE, default=str).decode())
    sys.stdout.flush()


# --- the parser ------------------------------------------------------------------------------------------------------


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.print_usage(sys.stderr)
        self.exit(Exit.USAGE, f"yugong: {message}\n")


def _parser() -> argparse.ArgumentParser:
    codes = "\n".join(f"  {code.value}  {meaning}" for code, meaning in MEANINGS.items())
    parser = _Parser(
        "yugong",
        description="A reverse proxy that speaks the OpenAI API, in front of a pool of upstream keys.",
        epilog=f"exit codes:\n{codes}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    def add(name: str, command: Command, text: str, into: Any = commands, *, has_file: bool = True) -> Any:
        made = into.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        made.add_argument("--json", action="store_true", help="for programs to read")
        if has_file:
            made.add_argument("-c", "--config", metavar="FILE", type=Path, help="the settings file")
        made.set_defaults(command=command)
        return made

    add("run", _run, "run the proxy; without any configuration on loopback, before a demo upstream")
    add("demo", _demo, "run the proxy before the demo upstream, and leave nothing behind", has_file=False)
    add("check", _check, "check the settings and all they point to")
    config = commands.add_parser("config", help="show the settings in force, or what can be set")
    configs = config.add_subparsers(metavar="COMMAND", required=True)
    show = add("show", _config_show, "show every setting as it would be in force", configs)
    show.add_argument("--origin", action="store_true", help="and where each comes from")
    add("schema", _config_schema, "show the JSON Schema of the settings file", configs, has_file=False)
    keys = commands.add_parser("keys", help="customer keys")
    key_commands = keys.add_subparsers(metavar="COMMAND", required=True)
    made = add("add", _keys_add, "make a customer key and show it, once", key_commands)
    made.add_argument("name", help="what it is called in logs")
    made.add_argument("--account", default="default", help="whose it is; made if it is not there (default: default)")
    add("list", _keys_list, "list customer keys (never their values)", key_commands)
    add("version", _version, "show the version", has_file=False)
    parser.add_argument("--version", action="version", version=f"yugong {__version__}")
    return parser


# --- settings --------------------------------------------------------------------------------------------------------


def _path(options: argparse.Namespace) -> Path | None:
    from yugong.store.settingsfile import find_settings_file

    return options.config or find_settings_file(os.environ, Path.cwd())


def _load(path: Path | None) -> Any:
    """The settings as read; StartError with every problem."""
    from yugong.core.dialects import catalog
    from yugong.store.settingsfile import SettingsError, load_settings

    try:
        return load_settings(path, os.environ, sorted(catalog()))
    except SettingsError as error:
        raise StartError(Exit.SETTINGS, *map(str, error.problems)) from None


def _check(options: argparse.Namespace) -> int:
    """All problems: the file's own, or else those of what it points to."""
    from yugong.core.dialects import catalog
    from yugong.store.settingsfile import SettingsError, load_settings

    path = _path(options)
    try:
        settings = load_settings(path, os.environ, sorted(catalog())).settings
        problems = [(str(path or "defaults"), 0, 0, what) for what in _unresolved(settings)]
    except SettingsError as error:
        problems = [(p.file, p.line, p.col, f"{p.what} — {p.hint}" if p.hint else p.what) for p in error.problems]
    if options.json:
        rows = [dict(zip(("file", "line", "column", "what"), problem, strict=True)) for problem in problems]
        _print({"file": path, "ok": not problems, "problems": rows})
    for file, line, column, what in [] if options.json else problems:
        sys.stderr.write(f"{file}:{line}:{column}: {what}\n" if line else f"{file}: {what}\n")
    if not problems and not options.json:
        sys.stdout.write(f"{path or 'no settings file; the defaults'}: all is well\n")
    return Exit.SETTINGS if problems else Exit.OK


def _unresolved(settings: Any) -> list[str]:
    """What cannot be had of the secrets the settings point to."""
    from yugong.store.settingsfile import SecretError, resolve_secret

    refs = [(f"orgs.{name}.keys.{key.id}", key.secret) for name, org in settings.orgs.items() for key in org.keys]
    refs += [(f"accounts.{n}.keys.{key.id}", key.value) for n, one in settings.accounts.items() for key in one.keys]
    for name, egress in settings.egress.items():
        refs += [(f"egress.{name}.{part}", getattr(egress, part)) for part in ("username", "password")]
    found = []
    for where, ref in refs:
        try:
            if ref is not None:
                resolve_secret(ref, os.environ, is_token=not where.startswith("egress"))
        except SecretError as error:
            found.append(f"{where}: {error}")
    return found


def _config_show(options: argparse.Namespace) -> int:
    from yugong.core.settings.showing import as_plain, rows

    loaded = _load(_path(options))
    if options.json:
        origins = {row.path: row.origin for row in rows(loaded)}
        _print(
            {"settings": as_plain(loaded.settings), "origins": origins} if options.origin else as_plain(loaded.settings)
        )
        return Exit.OK
    shown = [(row.path, orjson.dumps(row.value, default=str).decode(), row.origin) for row in rows(loaded)]
    for path, value, origin in shown:
        sys.stdout.write(f"{path}: {value}" + (f"  # {origin}" if options.origin else "") + "\n")
    return Exit.OK


def _config_schema(options: argparse.Namespace) -> int:
    from yugong.core.settings.schema import json_schema

    _print(json_schema())
    return Exit.OK


def _version(options: argparse.Namespace) -> int:
    import platform

    if options.json:
        _print({"version": __version__, "python": platform.python_version(), "compiled": is_compiled()})
    else:
        sys.stdout.write(f"yugong {__version__}, {'compiled' if is_compiled() else 'not compiled'}\n")
    return Exit.OK


def is_compiled() -> bool:
    """Whether the hot path runs as C, not as the sources beside it. The build compiles all of it or nothing."""
    from yugong.proxy import exchange

    return not exchange.__file__.endswith(".py")


# --- customer keys ---------------------------------------------------------------------------------------------------


def _accounts(options: argparse.Namespace) -> Any:
    from yugong.store.accounts import AccountFile, AccountsError
    from yugong.store.datadir import choose_data_dir

    directory = choose_data_dir(_load(_path(options)).settings.data_dir, os.environ, Path.cwd())
    if not directory.is_dir():
        raise StartError(Exit.DATA, f"{directory} is not there; `yugong run` makes it")
    try:
        return AccountFile(directory)
    except AccountsError as error:
        raise StartError(Exit.DATA, *error.lines) from None


def _keys_add(options: argparse.Namespace) -> int:
    from yugong.store.accounts import AccountsError

    with _accounts(options) as accounts:
        try:
            accounts.open_account(options.account)
            key = accounts.create_key(options.account, options.name).reveal_text()
        except AccountsError as error:
            raise StartError(Exit.FAILURE, *error.lines) from None
    if options.json:
        _print({"account": options.account, "id": options.name, "key": key})
    else:
        sys.stdout.write(f"{key}\n")
        sys.stderr.write("This is the only time it is shown. A running Yugong takes it within a second.\n")
    return Exit.OK


def _keys_list(options: argparse.Namespace) -> int:
    with _accounts(options) as accounts:
        keys = accounts.keys()
    if options.json:
        shown = [
            {
                "account": key.account,
                "id": key.id,
                "last_four": key.last_four,
                "disabled": key.is_disabled,
                "expires": key.expires,
            }
            for key in keys
        ]
        _print(shown)
        return Exit.OK
    for key in keys:
        state = "  disabled" if key.is_disabled else ""
        sys.stdout.write(f"{key.account}/{key.id}  …{key.last_four}{state}\n")
    return Exit.OK


# --- running ---------------------------------------------------------------------------------------------------------


def _run(options: argparse.Namespace) -> int:
    return _start(options, _path(options), is_demo=False)


def _demo(options: argparse.Namespace) -> int:
    return _start(options, None, is_demo=True)


def _start(options: argparse.Namespace, path: Path | None, *, is_demo: bool) -> int:
    from yugong.supervisor import birth

    order = birth.Order(options.program or birth.program(), path, is_demo=is_demo, is_json=options.json)
    return birth.start(order, os.environ, _greet)


UPSTREAMS = {
    "openai": "https://api.openai.com with the key in OPENAI_API_KEY",
    "demo": "the built-in demo: answers are made up, nothing leaves this machine. Set OPENAI_API_KEY for the real one",
    "nothing": "none: the settings list no orgs, so every call is refused",
    "settings": "as the settings say",
}


def _greet(started: Any) -> None:
    """Say that it runs: for a program one object on stdout, for people a banner on stderr."""
    from yugong.surface.banner import base_url, curl_line, show

    address = started.addresses[0]
    key = started.key.reveal_text() if started.key is not None else None
    if started.is_json:
        said = {
            "base_url": base_url(address),
            "addresses": started.addresses,
            "admin_url": base_url(started.admin, "") if started.admin else None,
            "customer_key": key,
            "upstream": started.plan.upstream,
            "data_dir": started.data_dir,
            "pid": os.getpid(),
        }
        if started.plan.demo is not None:
            said["demo_url"] = started.plan.demo.url
        sys.stdout.write(orjson.dumps(said, default=str, option=orjson.OPT_APPEND_NEWLINE).decode())
        sys.stdout.flush()
        return
    shown_key = f"{key}  (shown only now)" if key else "made before; `yugong keys add NAME` makes another"
    rows = [
        ("Base URL", base_url(address) + (f"  (through {address})" if address.startswith("unix:") else "")),
        ("Customer key", shown_key),
        ("Upstream", UPSTREAMS[started.plan.upstream]),
        ("Settings", str(started.path or "none; every default")),
        ("Data", "for this run only" if started.is_ephemeral else str(started.data_dir)),
    ]
    if started.plan.demo is not None:
        rows.insert(3, ("Demo upstream", started.plan.demo.url))
    if started.admin:
        rows.append(("Health", f"{base_url(started.admin, '/readyz')}, {base_url(started.admin, '/metrics')}"))
    show(sys.stderr, f"Yugong {__version__} is ready.", rows, curl_line(address, key or "YOUR-CUSTOMER-KEY"))


# --- what our own processes are started as ---------------------------------------------------------------------------


def _worker(words: Sequence[str]) -> int:
    from yugong import worker

    return worker.main(int(words[0]))


def _keeper(words: Sequence[str]) -> int:
    from yugong import keeper

    return keeper.main(int(words[0]))


def _emulator(words: Sequence[str]) -> int:
    from yugong.emulator.__main__ import main as emulate
    from yugong.store.handover import die_with_parent

    die_with_parent(os.getppid())
    sys.argv = ["yugong _emulator", *words]
    return emulate()


def _resume(words: Sequence[str]) -> int:
    from yugong.supervisor.birth import resume

    return resume(int(words[0]), os.environ)


def _rehearse(words: Sequence[str]) -> int:
    from yugong.supervisor.birth import rehearse_resume

    rehearse_resume(sys.stdin.buffer.read(), os.environ)
    return Exit.OK


#: Not for people: how the supervisor starts the rest of itself.
INNER: dict[str, Callable[[Sequence[str]], int]] = {
    "_worker": _worker,
    "_keeper": _keeper,
    "_emulator": _emulator,
    "_resume": _resume,
    "_rehearse": _rehearse,
}
