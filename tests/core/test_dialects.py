"""yugong.core.dialects: the catalog, and every dialect against its folder of vectors.

A provider's vectors are `tests/vectors/<name>/*.json`; nothing here names one, so a new provider is tested by adding
its folder. `calls.json`, `faults.json`, `events.json`, `limits.json` and `answers.json` are required.
"""

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from yugong.base.errors import Fault, Penalty, Refusal, RefusalKind, Scope
from yugong.core.dialects import LAST, catalog, claim
from yugong.core.dialects.dialect import Dialect, FirstEvent, Headers, Intent, LimitFault, LimitReport, Usage
from yugong.core.sse import split

VECTORS = Path(__file__).parents[1] / "vectors"
DIALECTS = sorted(catalog())


def vectors(name: str) -> list[Any]:
    """Every row of `name`.json of every dialect, as parameters."""
    return [
        pytest.param(catalog()[dialect], row, id=f"{dialect}-{row['name']}")
        for dialect in DIALECTS
        for row in json.loads((VECTORS / dialect / f"{name}.json").read_text())
    ]


def to_bytes(body: object) -> bytes:
    """A body of a vector: text as it is, anything else as JSON."""
    return body.encode() if isinstance(body, str) else json.dumps(body).encode()


def to_headers(headers: dict[str, str]) -> Headers:
    return [(name.encode(), value.encode()) for name, value in headers.items()]


def intent_of(dialect: Dialect, call: dict[str, Any]) -> Intent:
    content_type = call.get("content_type", "application/json").encode()
    return dialect.read(call.get("method", "POST"), call["path"], content_type, to_bytes(call.get("body", "")))


def test_the_catalog_finds_every_provider() -> None:
    assert set(catalog()) >= {"openai", "anthropic"}
    assert list(catalog())[-1] == LAST
    assert {dialect.name for dialect in catalog().values()} == set(catalog())
    assert sorted(path.name for path in VECTORS.iterdir()) == DIALECTS
    assert all(repr(dialect).endswith(" dialect>") for dialect in catalog().values())


def test_two_dialects_of_one_name_are_a_bug(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(catalog()["anthropic"]), "name", "openai")
    with pytest.raises(AssertionError, match="two dialects"):
        catalog.__wrapped__()


def test_the_last_dialect_claims_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    assert claim("BREW", "anything", frozenset()).name == LAST
    monkeypatch.setattr(type(catalog()[LAST]), "claims", lambda *_: False)
    with pytest.raises(AssertionError, match="claims everything"):
        claim("GET", "/", frozenset())


@pytest.mark.parametrize(("dialect", "row"), vectors("calls"))
def test_calls(dialect: Dialect, row: dict[str, Any]) -> None:
    """Claimed by its dialect and read as written; `read` members are those of the intent, or the refusal's repr."""
    header_names = frozenset(name.encode() for name in row.get("headers", []))
    method, path = row.get("method", "POST"), row["path"]
    assert claim(method, path.partition("?")[0], header_names) is dialect
    if "refusal" in row:
        with pytest.raises(Refusal) as caught:
            intent_of(dialect, row)
        assert repr(caught.value) == row["refusal"]
        return
    intent = intent_of(dialect, row)
    assert {name: getattr(intent, name) for name in row["intent"]} == row["intent"]
    body = to_bytes(row.get("body", ""))
    prepared = dialect.prepare(intent, body, row.get("model"))
    if "prepared" in row:
        assert bytes(prepared) == to_bytes(row["prepared"])
    else:
        assert prepared is body


@pytest.mark.parametrize(("dialect", "row"), vectors("faults"))
def test_faults(dialect: Dialect, row: dict[str, Any]) -> None:
    fault = dialect.judge(row["status"], to_headers(row.get("headers", {})), to_bytes(row["body"]))
    assert repr(fault) == row["fault"]
    for name, value in row.get("figures", {}).items():
        assert isinstance(fault, LimitFault)
        assert getattr(fault, name) == value
    if fault is not None:
        shown = json.loads(dialect.refuse_fault(fault, to_bytes(row["body"])))
        assert shown["error"]["message"]
        for secret in ("sk-", "org-", "proj_", "Acme", "@"):
            assert secret not in json.dumps(shown)
            assert secret not in fault.detail


@pytest.mark.parametrize(("dialect", "row"), vectors("events"))
def test_first_events(dialect: Dialect, row: dict[str, Any]) -> None:
    verdict = dialect.first_event(row["event"].encode())
    assert (verdict if isinstance(verdict, str) else repr(verdict)) == row["verdict"]


@pytest.mark.parametrize(("dialect", "row"), vectors("limits"))
def test_limits(dialect: Dialect, row: dict[str, Any]) -> None:
    headers = to_headers(row["headers"])
    assert [repr(report) for report in dialect.limits(headers)] == row["reports"]
    assert any(dialect.has_limits(name) for name, _ in headers) is row.get("has_limits", True)


@pytest.mark.parametrize(("dialect", "row"), vectors("answers"))
@pytest.mark.parametrize("step", [1, 100_000])
def test_answers(dialect: Dialect, row: dict[str, Any], step: int) -> None:
    """Usage, completeness and what the client gets, byte by byte and at once; a stream cut short is never complete."""
    intent = intent_of(dialect, row["call"])
    body = to_bytes(row["body"])
    tap = dialect.tap(intent, row.get("status", 200), row["content_type"].encode())
    given_back = b"".join(tap.feed(body[at : at + step]) for at in range(0, len(body), step)) + tap.finish()
    assert given_back == to_bytes(row.get("client", row["body"]))
    assert repr(tap.usage()) == row["usage"]
    assert tap.is_complete() is row.get("is_complete", True)
    assert tap.has_failed() is row.get("has_failed", False)
    usage = tap.usage()
    for name, value in row.get("figures", {}).items():
        assert getattr(usage, name) == value
    if row.get("has_end", False):
        tap = dialect.tap(intent, 200, row["content_type"].encode())
        for event in split(body)[:-1]:
            tap.feed(event)
            assert not tap.is_complete()


@pytest.mark.parametrize("name", DIALECTS)
def test_no_secret_breaks_out_of_its_header(name: str) -> None:
    dialect = catalog()[name]
    for secret in ("a\r\nX: y", "a\nb", "é", "\0"):
        with pytest.raises(ValueError, match="no header may have"):
            dialect.credentials(secret, None, None, None)
    for header in (None, "authorization", "x-other-key"):
        lines = dialect.credentials("sk-1", header, "org-1", "proj_1").split(b"\r\n")
        assert lines[-1] == b""
        assert sum(b"sk-1" in line for line in lines) == 1
        if header is not None:
            assert lines[0].lower() == header.encode() + (b": bearer sk-1" if header == "authorization" else b": sk-1")


@pytest.mark.parametrize("kind", RefusalKind)
@pytest.mark.parametrize("name", DIALECTS)
def test_refusals_are_errors_in_every_dialect(name: str, kind: RefusalKind) -> None:
    dialect = catalog()[name]
    refusal = Refusal(kind, "Because.", retry_after=1.5)
    status, headers, body = dialect.refuse(refusal, "yg_1-1")
    assert 400 <= status < 600
    assert dict(headers)[b"retry-after"] == b"2"
    assert json.loads(body)["error"]["message"] == "Because."
    intent = Intent("x")
    for rule in ("", "chat", "responses", "assistants", "messages"):
        intent.stream_rule = rule
        event = dialect.stream_error(refusal, intent)
        assert split(event) == [event]
        verdict = dialect.first_event(event)
        assert isinstance(verdict, Fault)


@pytest.mark.parametrize("name", DIALECTS)
@given(
    method=st.sampled_from(["GET", "POST", "DELETE"]),
    path=st.text(max_size=20)
    | st.sampled_from(["chat/completions", "messages", "audio/transcriptions", "models/x?model=y&&"]),
    content_type=st.sampled_from([b"", b"application/json", b"multipart/form-data; boundary=X"])
    | st.binary(max_size=20),
    body=st.binary(max_size=60) | st.text(st.sampled_from('{}[]",:\\u0022model0 '), max_size=40).map(str.encode),
    status=st.integers(100, 599),
)
def test_nothing_raises_but_refusals(
    name: str, method: str, path: str, content_type: bytes, body: bytes, status: int
) -> None:
    dialect = catalog()[name]
    with suppress(Refusal):
        intent = dialect.read(method, "/v1/" + path, content_type, body)
        assert bytes(dialect.prepare(intent, body, intent.model)) == body or intent.adds_usage
        dialect.prepare(intent, body, "other")
    headers = [(b"content-type", content_type), (b"retry-after", body), (b"date", body)]
    fault = dialect.judge(status, headers, body)
    assert fault is None or fault.kind
    assert json.loads(dialect.refuse_fault(fault or Fault("x", Scope.KEY), body)) is not None
    for reset in ("x-ratelimit-reset-tokens", "anthropic-ratelimit-tokens-reset", "x-ratelimit-limit-tokens"):
        dialect.limits([(reset.encode(), body), (b"date", body)])
    dialect.first_event(body)
    dialect.first_event(b"data: " + body + b"\n\n")
    dialect.upstream_path("/v1/" + path)
    dialect.claims(method, path, frozenset([content_type]))


def test_records_say_what_they_are() -> None:
    intent = Intent("chat")
    intent.model, intent.is_stream, intent.max_output = "m", True, 5
    assert repr(intent) == "<Intent chat model=m stream in=0B max_out=5>"
    usage = Usage(3, 4)
    usage.is_estimated = True
    assert repr(usage) == "<Usage in=3 (cached 0) out=4 estimated>"
    assert repr(LimitReport("tokens", 5, 4, 1.5)) == "<LimitReport tokens 4/5 full in 1.5s>"
    fault = LimitFault("x", Scope.MODEL, status=429, penalty=Penalty.COOL, wait=1.0, detail="")
    assert (fault.dimension, fault.limit, fault.used, fault.requested) == (None, None, None, None)
    assert FirstEvent.CONTENT != FirstEvent.WAIT
