"""One file to records, or every problem at once."""

import random
import re

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st

from yugong.core import settings as conf
from yugong.core.settings import tree
from yugong.core.settings.problems import PROBLEMS_MAX
from yugong.core.settings.reading import Loaded, read_settings

CANARY = "sk-canary-Zm9vYmFyYmF6cXV4Zm9vYmFy"
ORIGIN = "origins: {openai: {dialect: openai, url: https://api.openai.com}}\n"


def good(text, environ=None):
    found = read_settings(text, "f.yaml", environ)
    assert isinstance(found, Loaded), list(map(str, found))
    return found.settings


def lines(text, environ=None, dialects=()):
    found = read_settings(text, "f.yaml", environ, dialects)
    assert isinstance(found, list)
    return [str(problem) for problem in found]


@pytest.mark.parametrize("text", ["", "\n", "# nothing\n", "---\n", "{}", "null", "\ufeff"])
def test_nothing_is_all_defaults(text):
    assert good(text) == conf.Settings()


def test_a_whole_set_up():
    found = good("""
listen: {address: 127.0.0.1:0, admin: "127.0.0.1:0", workers: 2}
intake: {body_max: 64MiB, header_timeout: 250ms, body_timeout: 90}
egress: {out: {proxy: "http://10.0.0.1:3128", username: {value: me}, password: {env: PW}}}
origins: {emu: {dialect: openai, url: "http://127.0.0.1:9", private: true}}
orgs:
  one:
    origin: emu
    egress: out
    limits: [{models: "gpt-5*", requests_per_minute: 100}, {models: [a, b], concurrency: 0}]
    keys: [{id: k1, secret: sk-one}, {id: k2, secret: {file: /run/k2}}, {id: k3, secret: {credential: k3}}]
accounts: {acme: {keys: [{id: app, value: sk-acme-app, expires: 2027-01-31T00:00:00Z}], limits: {concurrency: 5}}}
models: {aliases: {fast: gpt-5-mini}}
log: {access: null}
""")
    assert (found.intake.body_max, found.intake.header_timeout, found.intake.body_timeout) == (64 * 2**20, 0.25, 90.0)
    assert [str(key.secret) for key in found.orgs["one"].keys] == ["value:(hidden)", "file:/run/k2", "credential:k3"]
    assert found.orgs["one"].keys[0].secret.value.reveal() == b"sk-one"
    assert [limit.models for limit in found.orgs["one"].limits] == [("gpt-5*",), ("a", "b")]
    assert found.accounts["acme"].keys[0].expires == 1801353600.0
    assert found.accounts["acme"].limits.concurrency == 5
    assert found.log.access is None
    assert repr(found.orgs["one"].keys[0].secret) == "SecretRef(value:(hidden))"


def test_everything_wrong_is_told_at_once_with_its_place():
    text = """listen: {adress: 127.0.0.1:8080, workers: 010}
intake:
  body_timeout: 1:30
  json_max: 64kb
  body_max: inf
  body_max: 1GiB
log: {level: inof, access: no}
orgs:
  main: {origin: opnai, keys: [{id: k1, secret: {env: A, file: b}}, {id: k1, secret: x}, {id: k2}]}
  no: {origin: openai}
origins: {openai: {dialect: opena, url: http://user:pw@api.openai.com/v1}}
timeouts:
"""
    expected = """\
1:10: `adress` is not known in `listen` — did you mean `address`?
1:43: listen.workers: `010` is octal in YAML (8) — did you mean 10?
3:17: intake.body_timeout: `1:30` is a number to the base of 60 in YAML — write it with a unit, such as 90s
4:13: intake.json_max: `64kb` is not a size — did you mean 64KiB?
5:13: intake.body_max: `inf` is not a limit — every limit is finite; write the largest value you want
6:3: `body_max` is repeated — it stands in line 5 already
7:14: log.level: `inof` is not known here — did you mean `info`?
7:28: log.access: `no` is not text: YAML takes it for a bool — put it in quotes
9:18: orgs.main.origin: `opnai` is not one of `origins` — did you mean `openai`?
9:49: orgs.main.keys.k1.secret: 2 places for one secret — exactly one of {env: NAME}, {file: PATH}, {credential: NAME}\
 or {value: …}
9:69: orgs.main.keys: the id `k1` is repeated — it stands in line 9 already
9:90: orgs.main.keys.k2: `secret` is missing — where the key is
10:3: `no` as a name, which YAML takes for true or false — put it in quotes
11:41: origins.openai.url: a user or password in a URL — secrets are given by reference: {env: NAME}, {file: PATH}
12:10: timeouts: nothing, where a mapping is due — remove the line, or indent what belongs to it"""
    assert lines(text) == [f"f.yaml:{line}" for line in expected.splitlines()]


BAD = [
    # text, what the one problem says
    ("a: 1", "1:1: `a` is not known at the top"),
    ("Listen: {}", "1:1: `Listen` is not known at the top — did you mean `listen`?"),
    ("listen: 5", "1:9: listen: a single value, where a mapping is due"),
    ("listen: []", "1:9: listen: a list, where a mapping is due"),
    ("- listen", "1:1: the file is not a mapping"),
    ("routes: {}", "1:9: routes: a mapping, where a list is due"),
    ("listen: {trusted_proxies: ~}", "nothing, where a list is due"),
    ("listen: {trusted_proxies: {}}", "a mapping, where a list is due"),
    ("listen: {trusted_proxies: [[]]}", "a list, where a network is due"),
    ("listen: {address: 8080}", "`8080` is only a port — did you mean 127.0.0.1:8080?"),
    ("listen: {address: localhost}", "is not host:port"),
    ("listen: {address: '1.2.3.4:70000'}", "is not host:port"),
    ("listen: {address: '1.2.3:80'}", "`1.2.3` is no address"),
    ("listen: {address: '::1:80'}", "did you mean [::1]:80?"),
    ("listen: {address: '[::1:80'}", "is no address"),
    ("listen: {address: null}", "neither an address nor a socket"),
    ("listen: {admin: 127.0.0.1:8080}", "1:17: listen.admin: the same as listen.address"),
    ("listen: {trusted_proxies: [10.0.0.1/8]}", "did you mean 10.0.0.0/8?"),
    ("listen: {trusted_proxies: [ten]}", "such as 10.0.0.0/8"),
    ("listen: {workers: -1}", "-1 is too small — at least 0"),
    ("listen: {workers: 1.5}", "`1.5` is not a whole number"),
    ("listen: {workers: '2'}", "`2` is not a whole number — remove the quotes"),
    ("listen: {workers: 1_0}", "`1_0` has underscores — did you mean 10?"),
    ("listen: {workers: 0x10}", "`0x10` is not decimal — write it in decimal"),
    ("listen: {workers: 0o10}", "`0o10` is not decimal"),
    ("listen: {workers: 089}", "did you mean 89?"),
    ("listen: {workers: yes}", "`yes` is not a whole number"),
    ("listen: {workers: }", "`` is not a whole number"),
    ("timeouts: {connect: .inf}", "is not a limit"),
    ("timeouts: {connect: 5 s}", "did you mean 5s?"),
    ("timeouts: {connect: 5 minutes}", "did you mean 5m?"),
    ("timeouts: {connect: 5msec}", "did you mean 5ms?"),
    ("timeouts: {connect: 5M}", "did you mean 5m?"),
    ("timeouts: {connect: '5'}", "`5` is not a duration"),
    ("timeouts: {connect: -5s}", "`-5s` is not a duration"),
    ("timeouts: {connect: 1ms}", "timeouts.connect: 1ms is too small — at least 10ms"),
    ("timeouts: {connect: 1h}", "1h is too large — at most 10m"),
    ("timeouts: {connect: 2027-01-01}", "`2027-01-01` is not a duration"),
    ("intake: {body_max: 1GB}", "did you mean 1GiB?"),
    ("intake: {body_max: 1.5MiB}", "`1.5MiB` is not a size"),
    ("intake: {body_max: 1k}", "did you mean 1KiB?"),
    ("intake: {json_max: 1GiB}", "1:20: intake.json_max: larger than body_max"),
    ("intake: {spool_max: 1MiB}", "body_max is larger than spool_max"),
    ("retry: {budget_share: 20%}", "`20%` is not a number"),
    ("retry: {budget_share: '0.5'}", "remove the quotes"),
    ("retry: {budget_share: 1e-1}", "`1e-1` is not a number"),
    ("retry: {budget_share: .nan}", "is not a limit"),
    ("retry: {budget_share: 1.5}", "1.5 is too large — at most 1.0"),
    ("log: {level: 5}", "one of debug, info, warning, error"),
    ("log: {access: 12}", "YAML takes it for a int — put it in quotes"),
    ("log: {access: ''}", "text is empty"),
    ("log: {access: \"a\\nb\"}", "control character"),
    ("data_dir: [a]", "a list, where a path is due"),
    ("routes: [{}]", "routes.0: `match` is missing"),
    ("routes: [{match: /v1}]", "`/v1` is not a route"),
    ("routes: [{match: 'get /v1'}]", "is not a route"),
    ("models: {aliases: {a: b, b: c}}", "`b` is an alias itself"),
    ("models: {aliases: {'a*': b}}", "without *"),
    ("models: {aliases: {a: *b}}", "an alias `*b` without an anchor"),
    ("relay: {extra_answer_headers: [set-cookie]}", "is never passed on"),
    ("relay: {extra_answer_headers: ['a b']}", "is not a header's name"),
    ("egress: {a b: {proxy: 'http://p:1'}}", "egress: `a b` is not a name"),
    ("egress: {a: {proxy: 'https://p:1'}}", "is not a URL with http"),
    ("egress: {a: {proxy: 'http://p:1', password: {env: X}}}", "a password without a username"),
    ("egress: {a: {proxy: 'http://p:99999'}}", "not a URL"),
    ("egress: {1: {proxy: 'http://p:1'}}", "`1` as a name, which YAML takes for a number"),
    ("egress: {[a]: {proxy: 'http://p:1'}}", "a name that is not text"),
    ("egress: {2027-01-01: {proxy: 'http://p:1'}}", "takes for a date"),
    ("accounts: {a: {keys: [{id: k, value: short}]}}", "no client could present"),
    ("accounts: {a: {keys: [{id: k, value: 'with a space'}]}}", "no client could present"),
    ("accounts: {a: {keys: [{id: k, value: 12345678}]}}", "a secret that YAML does not take for text"),
    ("accounts: {a: {keys: [{id: k, value: ''}]}}", "a secret has 1 to 16384 bytes"),
    ("accounts: {a: {keys: [{id: k, value: {}}]}}", "0 places for one secret"),
    ("accounts: {a: {keys: [{id: k, value: {value: [x]}}]}}", "a list, where the secret as text is due"),
    ("accounts: {a: {keys: [{id: k, value: sk-12345678, expires: 2027-01-31}]}}", "it needs a time and a zone"),
    ("accounts: {a: {keys: [{id: k, value: sk-12345678, expires: soon}]}}", "is not a moment"),
    ("accounts: {a: {weight: 0}}", "0.0 is too small"),
    ("origins: {o: {url: 'https://a.example'}}", "`dialect` is missing"),
    ("origins: {o: {dialect: x, url: 'ftp://a.example'}}", "is not a URL"),
    ("origins: {o: {dialect: x, url: 'https://a.example/v1'}}", "a URL with a path"),
    ("origins: {o: {dialect: x, url: 'https://a.example?q'}}", "a URL with a path"),
    ("origins: {o: {dialect: x, url: 'https://ä.example'}}", "xn--"),
    ("origins: {o: {dialect: x, url: 'http://a.example'}}", "without TLS"),
    ("origins: {o: {dialect: x, url: 'https://127.0.0.1'}}", "a loopback or private address"),
    ("origins: {o: {dialect: x, url: 'https://localhost'}}", "a loopback or private address"),
    ("origins: {o: {dialect: x, url: 'https://169.254.169.254'}}", "a loopback or private address"),
    ("origins: {o: {dialect: x, url: 'https://a.example', verify: false}}", "anyone could pose"),
    ("origins: {o: {dialect: x, url: 'https://a.example', private: yes}}", "did you mean true (without quotes)?"),
    ("origins: {o: {dialect: x, url: 'https://a.example', private: 'true'}}", "did you mean true (without quotes)?"),
    ("origins: {o: {dialect: x, url: 'https://a.example', private: maybe}}", "neither true nor false"),
    ("orgs: {a: {origin: b}}", "define it: origins: {b: {dialect"),
    (ORIGIN + "orgs: {a: {origin: openai, egress: x}}", "2:36: orgs.a.egress: `x` is not one of `egress`"),
    (ORIGIN + "orgs: {a: {origin: openai, keys: [a]}}", "a single value, where a mapping is due"),
    (ORIGIN + "orgs: {a: {origin: openai, keys: [{id: 'a/b', secret: {env: X}}]}}", "`a/b` is not a name"),
    # YAML itself
    ("a: [", "not valid YAML"),
    ("listen:\n\tworkers: 1", "indent with spaces"),
    ("listen: {}\nlisten: {}", "2:1: `listen` is repeated — it stands in line 1 already"),
    ("listen: {}\n---\nlog: {}", "a second document"),
    ("listen: !!python/object:os.system {}", "a YAML tag"),
    ("listen: !x {}", "a YAML tag"),
    ("listen: &a {unix: *a}", "inside what it stands for"),
    ("listen: {<<: 5}", "`<<` merges mappings only"),
    ("log: {access: \x07}", "a control character"),
    ("log: {access: \ud800}", "1:15: not valid UTF-8"),
    ("a: b: c", "put the value in quotes"),
    ("[" * 40 + "]" * 40, "nested deeper than 32 levels"),
    ("[" * 32 + "[x, *a, [y]]: 5" + "]" * 32, "nested deeper than 32 levels"),
    ("listen: {*a : 1}", "without an anchor"),
    ("listen: {<<: *a}", "without an anchor"),
    ("origins: {o: {dialect: x, url: 'https://a.example', private: on}}", "did you mean true"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "says"), BAD, ids=[text[:60] for text, _ in BAD])
def test_bad(text, says):
    found = lines(text)
    assert len(found) == 1, found
    assert found[0].startswith("f.yaml:")
    assert says in found[0]


def test_a_dialect_nobody_speaks():
    text = "origins: {o: {dialect: opena, url: https://api.openai.com}}"
    found = lines(text, dialects=("openai", "anthropic"))
    assert found == ["f.yaml:1:24: origins.o.dialect: `opena` is not known — did you mean `openai`?"]
    assert isinstance(read_settings(text, dialects=("opena",)), Loaded)


def test_one_key_in_two_accounts():
    text = "accounts: {a: {keys: [{id: k, value: sk-12345678}]}, b: {keys: [{id: k, value: sk-12345678}]}}"
    (line,) = lines(text)
    assert line.startswith("f.yaml:1:80: accounts.b.keys.k.value: the same key as accounts.a.keys.k.value — ")


def test_a_broken_origin_is_told_once():
    assert len(lines("origins: {o: {dialect: x}}\norgs: {a: {origin: o}}")) == 1


# --- YAML's own means ------------------------------------------------------------------------------------------------


def test_anchors_and_merges():
    found = good(
        ORIGIN
        + """
orgs:
  a: &base {origin: openai, weight: 2, priority: 1}
  b: {<<: *base, weight: 3}
  c: {<<: [{weight: 4}, *base]}
  d: *base
"""
    )
    assert [(org.weight, org.priority) for org in found.orgs.values()] == [(2, 1), (3, 1), (4, 1), (2, 1)]


def test_a_billion_laughs_ends_at_once():
    text = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n"
    for level in range(1, 12):
        text += f"a{level}: &a{level} [" + ", ".join([f"*a{level - 1}"] * 10) + "]\n"
    assert any("aliases that stand for more than" in line for line in lines(text))


def test_merges_do_not_multiply():
    text = "base: &a {" + ", ".join(f"k{i}: 1" for i in range(1000)) + "}\nb: {<<: [" + "*a, " * 2000 + "*a]}\n"
    assert any("aliases that stand for more than" in line for line in lines(text))


def test_no_more_problems_than_help():
    assert len(lines("".join(f"a{i}: 1\n" for i in range(1000)))) == PROBLEMS_MAX
    assert len(lines("".join("a: 1\n" for i in range(1000)))) == PROBLEMS_MAX


def test_too_large(monkeypatch):
    monkeypatch.setattr(tree, "TEXT_MAX", 10)
    assert lines("listen: {} # long") == ["f.yaml:1:1: larger than 10 characters"]


@pytest.mark.parametrize("loader", ["SafeLoader", "CSafeLoader"])
def test_both_parsers_say_the_same(loader, monkeypatch):
    texts = [text for text, _ in BAD if "not valid YAML" not in lines(text)[0] and ": }" not in text]
    expected = [lines(text) for text in texts]
    monkeypatch.setattr(tree, "_LOADER", getattr(yaml, loader))
    assert [lines(text) for text in texts] == expected


# --- properties ------------------------------------------------------------------------------------------------------

words = st.sampled_from(
    "listen intake orgs accounts keys id secret value env file main openai workers body_max 5s 1:30 010 1MiB no "
    "~ true 'x' \"y\" &a *a << !!str !t null 2027-01-01 -1 0.5 inf https://a.example * % @ `".split()
)
marks = st.sampled_from(
    [": ", "\n", "\n  ", "\n    ", "- ", "{", "}", "[", "]", ", ", "# ", "\t", "---\n", "? ", "| \n", "'", '"']
)


def judged(text):
    found = read_settings(text, "f")
    assert isinstance(found, Loaded) or (found and all(str(problem) for problem in found))


@given(st.text())
@example("\x00")
@example("%YAML 9.9\n---\n")
@example("? ? ? a")
def test_any_text_is_judged_fuzz(text):
    judged(text)


@given(st.lists(words | marks, max_size=40).map("".join))
def test_anything_like_yaml_is_judged_fuzz(text):
    judged(text)


trees = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.dates() | words,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(words | st.integers(), inner, max_size=4),
    max_leaves=20,
)


@given(trees)
def test_any_tree_is_judged_fuzz(tree):
    judged(yaml.safe_dump(tree, allow_unicode=True))


EXAMPLE = yaml.safe_load(
    ORIGIN
    + """
listen: {workers: 3, backlog: 10, unix: /run/y}
intake: {body_max: 1MiB, json_max: 1KiB, body_memory: 2KiB}
orgs: {a: {origin: openai, weight: 2, keys: [{id: k, secret: {env: X}}]}, b: {origin: openai, tags: [x, z]}}
accounts: {a: {limits: {concurrency: 1, tokens_per_minute: 2}}, b: {name: B}}
models: {aliases: {a: b, c: d}}
"""
)


def shuffled(node, rng):
    if isinstance(node, dict):
        items = [(name, shuffled(child, rng)) for name, child in node.items()]
        rng.shuffle(items)
        return dict(items)
    return [shuffled(child, rng) for child in node] if isinstance(node, list) else node


@given(st.randoms(use_true_random=False))
def test_order_of_names_does_not_matter(rng):
    assert good(yaml.safe_dump(shuffled(EXAMPLE, rng), sort_keys=False)) == good(yaml.safe_dump(EXAMPLE))


# --- nothing shows a secret ------------------------------------------------------------------------------------------

PLANTED = [
    "orgs: {a: {origin: b, keys: [%s]}}",
    "orgs: {a: {origin: b, keys: [{id: k, secret: [%s]}]}}",
    "orgs: {a: {origin: b, keys: [{id: k, secret: {%s: 1}}]}}",
    "orgs: {a: {origin: b, keys: [{id: k, secret: {vale: %s}}]}}",
    "orgs: {a: {origin: b, keys: [{id: %s!, secret: {env: X}}]}}",
    "orgs: {a: {origin: %s, keys: 5}}",
    "orgs: {a: {origin: b, keys: [{id: k, secret: {value: %s, env: X}}]}}",
    "accounts: {a: {keys: [{id: k, value: %s}]}, b: {keys: [{id: k, value: %s}]}}",
    "accounts: {a: {keys: [{id: k, value: %s, expires: %s}]}}",
    "%s: 5",
    "listen: {workers: %s}",
    "listen: {address: %s, admin: '%s:1'}",
    "timeouts: {connect: %s}",
    "intake: {body_max: %s}",
    "log: {level: %s}",
    "models: {aliases: {%s: a b}}",
    "egress: {a: {proxy: 'http://user:%s@host:1'}}",
    "origins: {a: {dialect: x, url: 'https://%s/v1'}}",
    "origins: {a: {dialect: x, url: '%s'}}",
    "routes: [{match: %s}]",
    "listen: *%s",
    "listen: !%s {}",
    "listen: !%s!x {}",
    "{%s: 1, %s: 2}",
    "a: b: %s",
    "%s\n\t%s: [",
]


@pytest.mark.parametrize("text", PLANTED)
def test_no_problem_shows_a_secret(text):
    for line in lines(text.replace("%s", CANARY)):
        assert CANARY[10:] not in line


@pytest.mark.parametrize(
    "name", ["ORGS__A__KEYS__K__SECRET", "LISTEN__WORKERS", "NOTHING", "ORGS__A__KEYS__K__SECRET__X"]
)
def test_no_problem_with_the_environment_shows_a_secret(name):
    for line in lines("", {f"YUGONG_{name}": CANARY + "\n"}):
        assert CANARY[10:] not in line


def test_settings_do_not_show_secrets():
    found = good("accounts: {a: {keys: [{id: k, value: %s}, {id: l, value: {value: %sx}}]}}".replace("%s", CANARY))
    assert not re.search(CANARY[3:], repr(found) + str(found))


def test_records_show_themselves_in_one_line():
    found = read_settings("accounts: {a: {}}", "f.yaml")
    assert repr(found) == "<Loaded given=3>"
    assert repr(tree.compose("[a]", "f")) == "<Tree root=<Node list at f:1:1 size=2> problems=0>"
    assert str(read_settings("a: 1", "f.yaml")[0].place) == "f.yaml:1:1"


def test_shuffle_really_shuffles():  # so that the property above can fail
    assert list(shuffled(EXAMPLE, random.Random(1))) != list(EXAMPLE)
