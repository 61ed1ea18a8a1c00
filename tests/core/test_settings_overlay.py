"""The environment over the file: the same value in either place is the same setting."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from yugong.core.settings import Loaded, Settings, read_settings

FILE = """
origins: {Emu: {dialect: openai, url: https://api.openai.com}}
orgs:
  Main: &main {origin: Emu, keys: [{id: K1, secret: {env: X}}, {id: k2, secret: {env: Y}}]}
  other: *main
"""


def good(environ, text=FILE):
    found = read_settings(text, "f.yaml", environ)
    assert isinstance(found, Loaded), list(map(str, found))
    return found


def bad(environ, text=FILE):
    found = read_settings(text, "f.yaml", environ)
    assert isinstance(found, list)
    return [str(problem) for problem in found]


SAME = [
    ("YUGONG_INTAKE__BODY_MAX", "64MiB", "intake: {body_max: 64MiB}"),
    ("yugong_intake__Body_Max", "64MiB", "intake: {body_max: 64MiB}"),
    ("YUGONG_TIMEOUTS__CONNECT", "250ms", "timeouts: {connect: 250ms}"),
    ("YUGONG_LISTEN__TRUSTED_PROXIES", "[10.0.0.0/8, 1.0.0.0/8]", "listen: {trusted_proxies: [10.0.0.0/8, 1.0.0.0/8]}"),
    ("YUGONG_LISTEN", "{workers: 3}", "listen: {workers: 3}"),
    ("YUGONG_LOG__ACCESS", "null", "log: {access: null}"),
    ("YUGONG_DATA_DIR", "/srv/y", "data_dir: /srv/y"),
    ("YUGONG_MODELS__ALIASES__FAST", "gpt-5", "models: {aliases: {fast: gpt-5}}"),
    ("YUGONG_ROUTES", "[{match: 'GET /x', timeouts: {total: 5}}]", "routes: [{match: 'GET /x', timeouts: {total: 5}}]"),
    ("YUGONG_EGRESS__OUT__PROXY", "http://p:1", "egress: {out: {proxy: 'http://p:1'}}"),
    ("YUGONG_ACCOUNTS__A__KEYS__W__VALUE", "sk-12345678", "accounts: {a: {keys: [{id: w, value: sk-12345678}]}}"),
    ("YUGONG_ACCOUNTS__A__KEYS__W__VALUE", "012: 345 # {", "accounts: {a: {keys: [{id: w, value: '012: 345 # {'}]}}"),
    ("YUGONG_ACCOUNTS__A__KEYS__W__VALUE_FILE", "/run/w", "accounts: {a: {keys: [{id: w, value: {file: /run/w}}]}}"),
    ("YUGONG_ACCOUNTS__A__KEYS__W__VALUE__ENV", "W", "accounts: {a: {keys: [{id: w, value: {env: W}}]}}"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "value", "text"), SAME)
def test_as_in_the_file(name, value, text):
    by_variable, by_file = read_settings("", "f", {name: value}), read_settings(text, "f")
    if isinstance(by_file, list):  # the same refusal, too
        assert [problem.what for problem in by_variable] == [problem.what for problem in by_file]
    else:
        assert by_variable.settings == by_file.settings != Settings()


scalars = st.sampled_from(
    "1 0 -1 010 1_000 1:30 5s 64KiB 1kb inf yes true 'x' null ~ 1.5 [1] {} *a 2027-01-01 127.0.0.1:1 x".split()
)
fields = st.sampled_from(
    "intake.body_max timeouts.connect listen.workers retry.budget_share log.access log.level data_dir".split()
)


@given(fields, scalars)
def test_as_in_the_file_whatever_the_value(field, value):
    variable = "YUGONG_" + field.replace(".", "__").upper()
    section, _, name = field.rpartition(".")
    text = f"{section}:\n  {name}: {value}\n" if section else f"{name}: {value}\n"
    by_variable, by_file = read_settings("", "f", {variable: value}), read_settings(text, "f")
    if isinstance(by_file, list):
        assert [problem.what for problem in by_variable] == [problem.what for problem in by_file]
    else:
        assert by_variable.settings == by_file.settings


@given(st.text(), st.text())
def test_any_environment_is_judged_fuzz(name, value):
    found = read_settings(FILE, "f", {f"YUGONG_{name}": value})
    assert isinstance(found, Loaded) or found


def test_before_the_file_and_says_so():
    found = good({"YUGONG_LISTEN__WORKERS": "4"}, FILE + "listen: {workers: 2, backlog: 7}")
    assert (found.settings.listen.workers, found.settings.listen.backlog) == (4, 7)
    assert found.origin("listen.workers") == "environment variable YUGONG_LISTEN__WORKERS"
    assert found.origin("listen.backlog") == "f.yaml:6:31"
    assert found.origin("listen.unix") == "default"


def test_names_of_the_file_are_found_in_any_case():
    found = good({"YUGONG_ORGS__MAIN__WEIGHT": "3", "YUGONG_ORGS__MAIN__KEYS__k1__DISABLED": "true"}).settings
    assert found.orgs["Main"].weight == 3
    assert [key.disabled for key in found.orgs["Main"].keys] == [True, False]


def test_an_alias_is_not_dragged_along():
    found = good({"YUGONG_ORGS__MAIN__WEIGHT": "3", "YUGONG_ORGS__MAIN__KEYS__K1__SECRET": "sk-new"}).settings
    assert found.orgs["other"].weight == 1
    assert [str(key.secret) for key in found.orgs["other"].keys] == ["env:X", "env:Y"]
    assert [str(key.secret) for key in found.orgs["Main"].keys] == ["value:(hidden)", "env:Y"]


def test_a_whole_set_up_without_a_file():
    environ = {
        "YUGONG_ORIGINS__OPENAI__DIALECT": "openai",
        "YUGONG_ORIGINS__OPENAI__URL": "https://api.openai.com",
        "YUGONG_ORGS__MAIN__ORIGIN": "openai",
        "YUGONG_ORGS__MAIN__KEYS__A__SECRET_FILE": "/run/secrets/a",
        "YUGONG_ORGS__MAIN__KEYS__B__SECRET__CREDENTIAL": "b",
    }
    keys = good(environ, "").settings.orgs["main"].keys
    assert [(key.id, str(key.secret)) for key in keys] == [("a", "file:/run/secrets/a"), ("b", "credential:b")]


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("INTAKE__BODY_MAXX", "1", "`body_maxx` is not known in `intake` — did you mean `body_max`?"),
        ("INTAK__BODY_MAX", "1", "`intak` is not known at the top — did you mean `intake`?"),
        ("", "1", "`` is not known at the top"),
        ("INTAKE__BODY_MAX__X", "1", "`intake.body_max` has no parts"),
        ("LISTEN__TRUSTED_PROXIES__0", "x", "`listen.trusted_proxies` has no parts"),
        ("INTAKE__BODY_MAX", "1GB", "intake.body_max: `1GB` is not a size — did you mean 1GiB?"),
        ("INTAKE__BODY_MAX", "", "intake.body_max: `` is not a size"),
        ("INTAKE__BODY_MAX", "[", "not valid YAML"),
        ("INTAKE", "5", "intake: a single value, where a mapping is due"),
        ("ORGS__MAIN__KEYS__K1__SECRET", "", "a secret has 1 to 16384 bytes"),
        ("ORGS__MAIN__KEYS__K1__SECRET__WHERE", "x", "`where` is not known in `orgs.Main.keys.k1.secret`"),
        ("ORGS__MAIN__WEIGHT_FILE", "x", "`weight_file` is not known in `orgs.Main`"),
    ],
)
def test_bad_variables_are_named(name, value, says):
    found = bad({f"YUGONG_{name}": value})
    assert any(says in line for line in found)
    assert all(line.startswith(f"environment variable YUGONG_{name}: ") for line in found)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("YUGONG_LISTEN__WORKERS", "yugong_listen__workers"),
        ("YUGONG_ORGS__MAIN__KEYS__K1__SECRET", "YUGONG_ORGS__MAIN__KEYS__K1__SECRET_FILE"),
        ("YUGONG_ORGS__MAIN__KEYS__K1__SECRET__ENV", "YUGONG_ORGS__MAIN__KEYS__K1__SECRET__FILE"),
    ],
)
def test_one_place_one_variable(one, other):
    assert any(f"is set by {min(one, other)} too — remove one of them" in line for line in bad({one: "1", other: "1"}))


def test_a_branch_that_is_no_branch_in_the_file():
    assert bad({"YUGONG_LISTEN__WORKERS": "1", "YUGONG_ORGS__A__KEYS__K__ID": "x"}, "listen: 5\norgs: {a: {keys: 5}}")
    assert bad({"YUGONG_ORGS__A__KEYS__K__ID": "x"}, "orgs: 5")


@pytest.mark.parametrize(
    "name",
    "CONFIG SERVICE_HOST SERVICE_PORT SERVICE_PORT_HTTP PORT PORT_8080_TCP PORT_8080_TCP_ADDR".split(),
)
def test_variables_that_are_not_settings(name):
    assert (
        good({f"YUGONG_{name}": "tcp://10.0.0.1:8080", "PATH": "/bin", "XYUGONG_A": ""}).settings == good({}).settings
    )
