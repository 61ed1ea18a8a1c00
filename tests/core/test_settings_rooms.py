"""Showing, comparing, schema, routes, patterns; and the documented example against the table."""

import json
import math
import re
from fnmatch import translate
from pathlib import Path

import msgspec
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from yugong.core.settings import Loaded, Route, Settings, TimeoutOverrides, Timeouts, kinds, read_settings
from yugong.core.settings.globs import Globs
from yugong.core.settings.problems import Rejected, redacted
from yugong.core.settings.routes import CACHED_MAX, RouteTable
from yugong.core.settings.schema import json_schema, setting_paths
from yugong.core.settings.showing import as_plain, differences, rows

EXAMPLE = Path(__file__).parents[2] / "conf" / "yugong.yaml"
CANARY = "sk-canary-Zm9vYmFyYmF6"


def loaded(text):
    found = read_settings(text, "f.yaml")
    assert isinstance(found, Loaded), list(map(str, found))
    return found


@pytest.fixture(scope="module")
def example():
    return loaded(EXAMPLE.read_text())


# --- the documented example ------------------------------------------------------------------------------------------


def test_the_example_has_every_setting_and_no_other(example):
    schema = json_schema()
    assert sorted(written_paths(yaml.safe_load(EXAMPLE.read_text()), schema, schema)) == sorted(set(setting_paths()))


def test_the_example_shows_the_defaults(example):
    for name in Settings.__struct_fields__:
        if name not in ("routes", "egress", "origins", "orgs", "models", "accounts"):  # free names: nothing by default
            assert getattr(example.settings, name) == getattr(Settings(), name), name
    for made in (*example.settings.origins.values(), *example.settings.orgs.values()):
        for field in msgspec.structs.fields(type(made)):
            if not field.required and field.name not in ("limits", "keys"):
                assert getattr(made, field.name) == field.default, field.name


def test_the_example_explains_every_setting():
    schema = json_schema()
    bare = [
        line
        for number, line in enumerate(EXAMPLE.read_text().splitlines())
        if re.match(r"\s*(- )?[a-z_]+: ", line) and "#" not in line
    ]
    in_routes = {*Timeouts.__struct_fields__}  # explained once, under timeouts
    named = {re.match(r"\s*(?:- )?([a-z_]+):", line)[1] for line in bare} - in_routes
    assert named <= {"data_dir", "dialect", "password", "fast", "secret", *limits()}, named
    assert schema["properties"].keys() == yaml.safe_load(EXAMPLE.read_text()).keys()


def limits():
    return [f"{what}_per_{span}" for what in ("requests", "tokens", "images") for span in ("minute", "day")] + [
        "concurrency"
    ]


def written_paths(value, schema, root, path=""):
    """The dotted paths in a document, free names and list entries as `*`, found by walking the schema beside it."""
    schema = resolved(schema, root, value)
    if isinstance(value, dict) and schema.get("properties") and "maxProperties" not in schema:
        parts = [(child, schema["properties"][name], f"{path}.{name}".strip(".")) for name, child in value.items()]
        return {one for child, inner, at in parts for one in written_paths(child, inner, root, at)}
    item = schema.get("items") if isinstance(value, list) else schema.get("additionalProperties")
    if isinstance(value, dict | list) and isinstance(item, dict) and "$ref" in item:
        entries = value if isinstance(value, list) else value.values()
        return {one for entry in entries for one in written_paths(entry, item, root, f"{path}.*")}
    return {path}


def resolved(schema, root, value):
    if "$ref" in schema:
        return root["$defs"][schema["$ref"].rsplit("/", 1)[1]]
    for choice in schema.get("anyOf", ()):
        if valid(value, choice, root):
            return resolved(choice, root, value)
    return schema


# --- the schema ------------------------------------------------------------------------------------------------------

TYPES = {
    "object": lambda v: isinstance(v, dict),
    "array": lambda v: isinstance(v, list),
    "string": lambda v: isinstance(v, str),
    "boolean": lambda v: isinstance(v, bool),
    "null": lambda v: v is None,
    "integer": lambda v: isinstance(v, int) and not isinstance(v, bool),
    "number": lambda v: isinstance(v, int | float) and not isinstance(v, bool),
}


def valid(value, schema, root):
    """The part of JSON Schema that ours uses."""
    if "$ref" in schema:
        schema = {**root["$defs"][schema["$ref"].rsplit("/", 1)[1]]}
    if "anyOf" in schema and not any(valid(value, one, root) for one in schema["anyOf"]):
        return False
    wanted = schema.get("type", [])
    if wanted and not any(TYPES[one](value) for one in ([wanted] if isinstance(wanted, str) else wanted)):
        return False
    if "enum" in schema and value not in schema["enum"]:
        return False
    if isinstance(value, dict):
        return valid_mapping(value, schema, root)
    if isinstance(value, list):
        return all(valid(one, schema.get("items", {}), root) for one in value)
    if isinstance(value, str):
        return bool(re.search(schema.get("pattern", ""), value)) and len(value) >= schema.get("minLength", 0)
    if isinstance(value, int | float) and not isinstance(value, bool):
        return schema.get("minimum", -math.inf) <= value <= schema.get("maximum", math.inf)
    return True


def valid_mapping(value, schema, root):
    known, others = schema.get("properties", {}), schema.get("additionalProperties", {})
    if len(value) < schema.get("minProperties", 0) or len(value) > schema.get("maxProperties", 1e9):
        return False
    if not set(schema.get("required", ())) <= value.keys():
        return False
    for name, child in value.items():
        if name not in known and (others is False or not valid(name, schema.get("propertyNames", {}), root)):
            return False
        if not valid(child, known.get(name, others), root):
            return False
    return True


def test_the_schema_takes_the_example():
    schema = json_schema()
    assert valid(yaml.safe_load(EXAMPLE.read_text()), schema, schema)
    assert valid({}, schema, schema)


@pytest.mark.parametrize(
    "text",
    [
        "listen: {adress: x}",
        "listen: {workers: -1}",
        "listen: {workers: '1'}",
        "timeouts: {connect: 1 hour}",
        "log: {level: loud}",
        "orgs: {a: {}}",
        "orgs: {a: {origin: b, keys: [{id: k}]}}",
        "orgs: {a: {origin: b, keys: [{id: k, secret: {}}]}}",
        "orgs: {a: {origin: b, keys: [{id: k, secret: {env: A, file: b}}]}}",
        "egress: {a b: {proxy: 'http://x'}}",
        "routes: {}",
        "other: 1",
    ],
)
def test_the_schema_refuses_what_the_program_refuses(text):
    schema = json_schema()
    assert not valid(yaml.safe_load(text), schema, schema)
    assert isinstance(read_settings(text), list)


def test_the_schema_says_all_of_a_setting():
    schema = json.loads(json.dumps(json_schema()))
    connect = schema["$defs"]["Timeouts"]["properties"]["connect"]
    assert connect["default"] == "5s"
    assert connect["x-unit"] == "seconds"
    assert connect["x-range"] == ["10ms", "10m"]
    assert schema["$defs"]["Listen"]["properties"]["address"]["x-restart"] is True
    for name, struct in {"": schema, **schema["$defs"]}.items():
        for field, about in struct["properties"].items():
            assert about["description"], f"{name}.{field}"


# --- showing and comparing -------------------------------------------------------------------------------------------


def test_what_is_shown_reads_back(example):
    found = loaded(yaml.safe_dump(as_plain(example.settings), sort_keys=False)).settings
    assert found == example.settings
    assert loaded(yaml.safe_dump(as_plain(Settings()))).settings == Settings()


def test_rows_say_where_from():
    shown = {row.path: (row.value, row.origin) for row in rows(loaded("listen: {workers: 3}\nlog: {access: null}"))}
    assert shown["listen.workers"] == (3, "f.yaml:1:19")
    assert shown["log.access"] == (None, "f.yaml:2:15")
    assert shown["timeouts.connect"] == ("5s", "default")
    assert shown["orgs"] == ({}, "default")


def test_rows_of_free_names():
    text = f"accounts: {{a.b: {{keys: [{{id: k, value: {CANARY}}}]}}}}"
    shown = {row.path: row for row in rows(loaded(text))}
    assert shown['accounts."a.b".keys.k.value'].value == {"value": "(hidden)"}
    assert shown['accounts."a.b".keys.k.id'].origin == "f.yaml:1:30"
    assert CANARY not in str(shown) + str(as_plain(loaded(text).settings))


def test_differences_name_what_changed():
    old = loaded(
        f"accounts: {{a: {{keys: [{{id: k, value: {CANARY}old}}]}}, b: {{}}}}\nmodels: {{aliases: {{x: y}}}}"
    ).settings
    new = loaded(
        f"accounts: {{a: {{keys: [{{id: k, value: {CANARY}new}}], weight: 2}}}}\n"
        "listen: {backlog: 5}\ntimeouts: {connect: 250ms}"
    ).settings
    found = [str(change) for change in differences(old, new)]
    assert found[:5] == [
        "listen.backlog changed: 2048 → 5 (needs a restart)",
        "timeouts.connect changed: 5s → 250ms",
        "accounts.a.weight changed: 1.0 → 2.0",
        "accounts.a.keys.k.value changed: (hidden)",
        "models.aliases.x removed: y",
    ]
    assert all(line.startswith("accounts.b.") and " removed: " in line for line in found[5:])
    assert CANARY not in "".join(found)
    assert [change.path for change in differences(old, new) if change.needs_restart] == ["listen.backlog"]
    assert differences(new, new) == []


def test_a_reference_is_shown_when_it_changes():
    text = "origins: {o: {dialect: d, url: 'https://a.example'}}\n"
    text += "orgs: {a: {origin: o, keys: [{id: k, secret: {env: A}}]}}"
    old, new = loaded(text).settings, loaded(text.replace("env: A", "env: B")).settings
    assert [str(one) for one in differences(old, new)] == ["orgs.a.keys.k.secret changed: {'env': 'A'} → {'env': 'B'}"]


# --- kinds -----------------------------------------------------------------------------------------------------------


@given(st.integers(0, 10**13))
def test_sizes_read_back(size):
    assert kinds.SIZE.read(kinds.SIZE.write(size), True) == size


@given(st.integers(0, 10**10).map(lambda ms: ms / 1000) | st.floats(0, 10**6).map(lambda s: round(s, 9)))
def test_durations_read_back(seconds):
    assert kinds.DURATION.read(kinds.DURATION.write(seconds), True) == seconds


@given(st.integers(0, 4 * 10**9))
def test_moments_read_back(seconds):
    assert kinds.MOMENT.read(kinds.MOMENT.write(float(seconds)), True) == seconds


EVERY = [one for one in vars(kinds).values() if isinstance(one, kinds.Kind)]


@given(st.sampled_from(EVERY), st.text() | st.from_regex(r"[-+0-9_:.a-zA-Z/\[\]]{0,30}", fullmatch=True), st.booleans())
def test_a_kind_reads_or_rejects(kind, text, is_plain):
    try:
        value = kind.read(text, is_plain)
    except Rejected:
        return
    written = str(kind.write(value))
    assert kind.read(written.lower() if kind is kinds.FLAG else written, not isinstance(value, str)) == value


@pytest.mark.parametrize(
    "text",
    [
        CANARY,
        "x " + CANARY + "y",
        "sk-short",
        "AIzaSyA1234567890abcdefghijk",
        "0123456789abcdef0123456789abcdef",
        "aZ9_-" * 5,
    ],
)
def test_what_looks_like_a_key_is_not_repeated(text):
    assert not re.search(r"[A-Za-z0-9_-]{4,}", redacted(text))


@pytest.mark.parametrize(
    "text", ["relay.extra_answer_headers", "gpt-4o-realtime-preview-2024-12-17", "/var/lib/yugong/secrets/key"]
)
def test_names_are_repeated(text):
    assert redacted(text) == text


# --- patterns and routes ---------------------------------------------------------------------------------------------


@given(st.text("ab*", max_size=8), st.text("ab", max_size=8))
def test_globs_match_as_fnmatch_does(pattern, name):
    assert Globs([pattern]).matches(name) is bool(re.match(translate(pattern), name))


def test_only_the_star_is_special():
    assert Globs(["a?[b]"]).matches("a?[b]")
    assert not Globs(["a?[b]", ""]).matches("axb")
    assert Globs(["x", "*"]).matches("anything")
    assert repr(Globs(["a", "b*"])) == "<Globs a b*>"


def test_a_hostile_name_takes_no_time():
    assert not Globs(["*a" * 100 + "b"]).matches("a" * 100_000)


def test_the_first_route_counts():
    settings = Settings(
        routes=(
            Route(match="POST /v1/images/*", timeouts=TimeoutOverrides(total=1.0)),
            Route(match="* /v1/*", timeouts=TimeoutOverrides(total=2.0, connect=3.0)),
        )
    )
    table = RouteTable(settings)
    for _ in range(2):  # the second time from the cache
        assert table.timeouts("POST", "/v1/images/edits?x=/v1").total == 1.0
        assert table.timeouts("GET", "/v1/images/edits").total == 2.0
        assert table.timeouts("GET", "/v1/x") == Timeouts(total=2.0, connect=3.0)
        assert table.timeouts("GET", "/v2?/v1/") is settings.timeouts
    assert repr(table) == "<RouteTable routes=2>"


def test_the_route_cache_is_bounded():
    table = RouteTable(Settings(routes=(Route(match="* /x*"),)))
    for index in range(CACHED_MAX * 2 + 1):
        table.timeouts("GET", f"/x{index}")
    assert len(table._cache) <= CACHED_MAX
    assert RouteTable(Settings()).timeouts("GET", "/") == Timeouts()
