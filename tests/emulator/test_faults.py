"""Every fault does on the wire what its line in the table says: read with bare sockets, byte by byte."""

import asyncio
import ssl
from collections import Counter
from collections.abc import Callable

import orjson
import pytest

from tests.emulator.conftest import BODY, Heard, Serve, ask, events_of, hear, request_bytes, unchunked
from yugong.emulator import Emulator, EmulatorSpec, FaultRule, Limits, seed_of
from yugong.emulator.faults import KINDS, FaultError, FaultPlan, parse_fault
from yugong.emulator.text import piece

STREAM = BODY | {"stream": True}
SEED = seed_of(BODY["messages"][0]["content"].encode())  # type: ignore[index]
ANTHROPIC = {"anthropic-version": "2023-06-01"}
MESSAGES = {"model": "claude-opus-5-5", "max_tokens": 9, "messages": BODY["messages"]}


async def struck(emulator: Emulator, fault: str, body: object = BODY, path: str = "/v1/chat/completions") -> Heard:
    """What a keep-alive connection hears of a fault."""
    extra = ANTHROPIC if path == "/v1/messages" else {}
    return await hear(emulator, request_bytes(emulator, path, body=body, headers={"x-emulator-fault": fault} | extra))


async def told(emulator: Emulator, fault: str, body: object = BODY, path: str = "/v1/chat/completions") -> Heard:
    """The same on a connection that is closed after the answer, for faults that leave it whole."""
    extra = ANTHROPIC if path == "/v1/messages" else {}
    return await ask(emulator, path, body=body, headers={"x-emulator-fault": fault} | extra)


def error_of(heard: Heard) -> tuple[object, object]:
    return heard.json["error"]["type"], heard.json["error"]["code"]


def texts_of(plain: bytes) -> list[str]:
    """The contents of the whole chunks in a stream that may be cut."""
    whole = plain[: plain.rfind(b"\n\n") + 2]
    deltas = [each["choices"][0]["delta"] for each in events_of(whole) if isinstance(each, dict) and "choices" in each]
    return [delta["content"] for delta in deltas if delta.get("content")]


def is_refused(status: int, kind: str | None, code: str | None) -> Callable[[Heard], None]:
    def check(heard: Heard) -> None:
        assert heard.status == status
        assert heard.ending == "silent"  # a proper answer; the connection lives on
        assert error_of(heard) == (kind, code)
        assert int(heard.fields["content-length"]) == len(heard.body)

    return check


def is_html(status: int) -> Callable[[Heard], None]:
    def check(heard: Heard) -> None:
        assert heard.status == status
        assert heard.fields["content-type"].startswith("text/html")
        assert b"<h" in heard.body
        assert int(heard.fields["content-length"]) == len(heard.body)

    return check


def has_no_body(status: int) -> Callable[[Heard], None]:
    def check(heard: Heard) -> None:
        assert (heard.status, heard.body, heard.ending) == (status, b"", "silent")
        if status in (204, 304):
            assert not {"content-length", "transfer-encoding", "content-type"} & set(heard.fields)

    return check


def ends(ending: str, data: bytes | None = b"") -> Callable[[Heard], None]:
    def check(heard: Heard) -> None:
        assert heard.ending == ending
        assert data is None or heard.data == data

    return check


def is_cut_json(heard: Heard) -> None:
    assert heard.ending == "fin"
    assert heard.status == 200
    assert 0 < len(heard.body) < int(heard.fields["content-length"])
    with pytest.raises(orjson.JSONDecodeError):
        orjson.loads(heard.body)


def is_too_long(heard: Heard) -> None:
    assert heard.ending == "fin"
    assert len(heard.body) == int(heard.fields["content-length"]) + 10
    assert orjson.loads(heard.body)["object"] == "chat.completion"


def is_close_framed(heard: Heard) -> None:
    assert heard.ending == "fin"
    assert not {"content-length", "transfer-encoding"} & set(heard.fields)
    assert heard.fields["connection"] == "close"
    assert heard.json["object"] == "chat.completion"


def is_good_then(ending: str) -> Callable[[Heard], None]:
    def check(heard: Heard) -> None:
        assert heard.ending == ending
        assert heard.status == 200
        assert "connection" not in heard.fields
        assert heard.json["object"] == "chat.completion"

    return check


def is_informed(heard: Heard) -> None:
    hints, _, rest = heard.data.partition(b"\r\n\r\n")
    assert hints.startswith(b"HTTP/1.1 103 Early Hints\r\nlink: ")
    assert rest.startswith(b"HTTP/1.1 200 OK\r\n")


def is_redirect(heard: Heard) -> None:
    assert heard.status == 307
    assert heard.fields["location"] == "https://elsewhere.invalid:8443/x"


def is_malformed_chunk(heard: Heard) -> None:
    assert heard.ending == "fin"
    assert heard.status == 200
    with pytest.raises(ValueError, match="invalid literal"):
        unchunked(heard.body)


def is_ended_after(heard: Heard, start: bytes) -> None:
    assert heard.ending == "fin"
    assert heard.data.startswith(start)


def is_head_only(heard: Heard) -> None:
    assert heard.ending == "rst"
    assert heard.status == 200
    assert heard.data.endswith(b"\r\n\r\n")


def has_huge_header(heard: Heard) -> None:
    assert heard.status == 200
    assert len(heard.fields["x-huge"]) == 65_536


UNARY: dict[str, Callable[[Heard], None]] = {
    "400": is_refused(400, "invalid_request_error", None),
    "401": is_refused(401, "invalid_request_error", "invalid_api_key"),
    "402": is_refused(402, "billing_error", "billing_error"),
    "403_country": is_refused(403, "request_forbidden", "unsupported_country_region_territory"),
    "404_model": is_refused(404, "invalid_request_error", "model_not_found"),
    "408": is_refused(408, "request_timeout", None),
    "409": is_refused(409, "conflict_error", None),
    "413": is_refused(413, "invalid_request_error", None),
    "429_requests": is_refused(429, "requests", "rate_limit_exceeded"),
    "429_tokens": is_refused(429, "tokens", "rate_limit_exceeded"),
    "429_too_large": is_refused(429, "tokens", "rate_limit_exceeded"),
    "429_quota": is_refused(429, "insufficient_quota", "insufficient_quota"),
    "429_quota:credit_balance_exhausted": is_refused(429, "insufficient_quota", "credit_balance_exhausted"),
    "429_slow_down": is_refused(429, "rate_limit_error", "slow_down"),
    "500": is_refused(500, "server_error", None),
    "502": is_refused(502, "server_error", None),
    "503": is_refused(503, "service_unavailable_error", "server_is_overloaded"),
    "504": is_refused(504, "server_error", None),
    "520": is_html(520),
    "521": is_html(521),
    "522": is_html(522),
    "523": is_html(523),
    "524": is_html(524),
    "529": is_refused(529, "overloaded_error", None),
    "html_error": is_html(502),
    "html_error:200": is_html(200),
    "empty_200": has_no_body(200),
    "204": has_no_body(204),
    "304": has_no_body(304),
    "redirect:https://elsewhere.invalid:8443/x": is_redirect,
    "reset_before_head": ends("rst"),
    "close_before_head": ends("fin"),
    "reset_mid_head": ends("rst", b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nx-requ"),
    "stuck_head": ends("silent"),
    "garbage": ends("fin", None),
    "malformed": is_malformed_chunk,
    "malformed:status": lambda heard: is_ended_after(heard, b"HTTP/1.1 2OO Okay\r\n"),
    "malformed:header": lambda heard: is_ended_after(heard, b"HTTP/1.1 200 OK\r\nContent-Type application/json\r\n\0"),
    "malformed:both": lambda heard: is_ended_after(heard, b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Enc"),
    "reset_after_head": is_head_only,
    "truncated_json": is_cut_json,
    "wrong_length": is_too_long,
    "close_framed": is_close_framed,
    "close_after": is_good_then("fin"),
    "huge_header": has_huge_header,
    "informational": is_informed,
    "slow_head:50": is_good_then("silent"),
    "slow_body:5": is_good_then("silent"),
}
STREAMED = (
    "error_first_event", "error_mid_stream", "cut_stream", "cut_bytes", "stuck_stream", "slow_stream", "garbage_stream"
)  # fmt: skip


async def test_answers(serve: Serve, subtests: pytest.Subtests) -> None:
    emulator = await serve()
    heard = await asyncio.gather(*(struck(emulator, fault) for fault in UNARY))
    for fault, each in zip(UNARY, heard, strict=True):
        with subtests.test(fault=fault):
            UNARY[fault](each)
    await emulator.idle()
    kinds = Counter(fault.partition(":")[0] for fault in UNARY)
    assert emulator.stats()["faults"] == kinds
    assert Counter(line["fault"] for line in emulator.journal.lines()) == kinds


def test_every_kind_is_tested() -> None:
    tested = {fault.partition(":")[0] for fault in UNARY} | set(STREAMED) | {"connect_refused", "tls_error"}
    assert tested == set(KINDS)


HOWS = {"close": "fin", "rst": "rst", "done": "silent"}


async def test_streams_cut_between_events(serve: Serve, subtests: pytest.Subtests) -> None:
    emulator = await serve()
    cuts = [(at, how) for at in (0, 1, 7) for how in HOWS]
    answers = await asyncio.gather(*(struck(emulator, f"cut_stream:{at}:{how}", STREAM) for at, how in cuts))
    for (at, how), heard in zip(cuts, answers, strict=True):
        with subtests.test(at=at, how=how):
            assert (heard.status, heard.ending) == (200, HOWS[how])
            assert heard.body.endswith(b"0\r\n\r\n") == (how == "done")
            plain = unchunked(heard.body if how == "done" else heard.body + b"0\r\n\r\n")
            assert b"[DONE]" not in plain
            assert plain.count(b"\n\n") == at
            assert texts_of(plain) == [piece(SEED, i) for i in range(max(0, at - 1))]  # the first has no text
    await emulator.idle()
    lines = emulator.journal.lines()
    assert sorted((line["events"], line["usage"]["output"]) for line in lines) == [(at, at) for at, _ in cuts]


async def test_streams_cut_at_a_byte(serve: Serve, subtests: pytest.Subtests) -> None:
    emulator = await serve()
    whole = unchunked((await ask(emulator, body=STREAM)).body)
    cuts = [(at, how) for at in (0, 1, 200, 777) for how in HOWS]
    answers = await asyncio.gather(*(struck(emulator, f"cut_bytes:{at}:{how}", STREAM) for at, how in cuts))
    for (at, how), heard in zip(cuts, answers, strict=True):
        with subtests.test(at=at, how=how):
            assert heard.ending == HOWS[how]
            plain = unchunked(heard.body) if how == "done" else heard.body.partition(b"\r\n")[2]
            assert len(plain) == at
            # ids differ from answer to answer; the text does not
            assert texts_of(plain) == texts_of(whole)[: len(texts_of(plain))]
    await emulator.idle()
    assert sorted(line["bytes"] for line in emulator.journal.lines()[1:]) == [at for at, _ in cuts]


async def test_errors_in_streams(serve: Serve) -> None:
    emulator = await serve()
    first = events_of(unchunked((await told(emulator, "error_first_event", STREAM)).body))
    assert [set(each) for each in first] == [{"error"}]
    assert first[0]["error"]["code"] == "server_error"
    later = events_of(unchunked((await told(emulator, "error_mid_stream:4", STREAM)).body))
    assert len(later) == 5
    assert "error" in later[4]
    flat = await told(emulator, "error_mid_stream:2", {"model": "m", "input": "x", "stream": True}, "/v1/responses")
    event = events_of(unchunked(flat.body))[2]
    assert event["type"] == "error"
    assert (event["code"], event["sequence_number"]) == ("server_error", 2)
    theirs = await told(emulator, "error_first_event", MESSAGES | {"stream": True}, "/v1/messages")
    event = events_of(unchunked(theirs.body))[0]
    assert (event["type"], event["error"]["type"]) == ("error", "overloaded_error")


async def test_stuck_slow_and_garbage_streams(serve: Serve) -> None:
    emulator = await serve()
    heard = await struck(emulator, "stuck_stream:2", STREAM)
    assert heard.ending == "silent"
    assert unchunked(heard.body + b"0\r\n\r\n").count(b"\n\n") == 2
    began = asyncio.get_running_loop().time()
    heard = await struck(emulator, "slow_stream:10", STREAM)
    assert asyncio.get_running_loop().time() - began > 0.18
    assert unchunked(heard.body).endswith(b"data: [DONE]\n\n")
    heard = await struck(emulator, "garbage_stream:2", STREAM)
    assert unchunked(heard.body).endswith(b"\n\n\x00\xff<garbage>{\n\n")


async def test_framing_faults_cut_streams_too(serve: Serve) -> None:
    emulator = await serve()
    heard = await struck(emulator, "truncated_json", STREAM)
    assert heard.ending == "fin"
    assert b"[DONE]" not in heard.body
    heard = await struck(emulator, "close_framed", STREAM)
    assert heard.ending == "fin"
    assert "transfer-encoding" not in heard.fields
    assert heard.body.endswith(b"data: [DONE]\n\n")
    assert (await struck(emulator, "reset_after_head", STREAM)).body == b""


async def test_stream_faults_leave_whole_answers_alone(serve: Serve) -> None:
    emulator = await serve()
    assert (await told(emulator, "cut_stream:1")).json["object"] == "chat.completion"
    assert emulator.stats()["faults"] == {}


async def test_limit_faults_agree_with_the_headers(serve: Serve) -> None:
    emulator = await serve(EmulatorSpec.uniform(limits=Limits(rpm=600, tpm=60_000)))
    heard = await told(emulator, "429_tokens:2500")
    assert "Limit 60000, Used 60000, Requested 2500. Please try again in 2.5s." in heard.json["error"]["message"]
    assert (heard.fields["retry-after"], heard.fields["retry-after-ms"]) == ("3", "2500")
    assert heard.fields["x-ratelimit-remaining-tokens"] == "0"
    assert heard.fields["x-ratelimit-limit-tokens"] == "60000"
    assert heard.fields["x-ratelimit-remaining-requests"] == "600"


async def test_anthropic_shapes(serve: Serve) -> None:
    emulator = await serve()
    for fault, kind in {
        "529": "overloaded_error",
        "402": "billing_error",
        "413": "request_too_large",
        "401": "authentication_error",
        "500": "api_error",
        "429_quota:enforced_spend_limit_reached": "rate_limit_error",
    }.items():
        heard = await told(emulator, fault, MESSAGES, "/v1/messages")
        assert heard.status == int(fault[:3])
        assert heard.json["error"]["type"] == kind
        assert heard.json["request_id"] == heard.fields["request-id"]
    assert heard.json["error"]["details"] == {"error_code": "enforced_spend_limit_reached"}


async def test_times_and_orgs(serve: Serve) -> None:
    emulator = await serve(EmulatorSpec.uniform(2))
    first, second = (org.keys[0] for org in emulator.spec.orgs)
    headers = {"x-emulator-fault": "500;times=2", "x-emulator-call": "one"}
    assert [(await ask(emulator, headers=headers)).status for _ in range(3)] == [500, 500, 200]
    assert (await ask(emulator, headers=headers | {"x-emulator-call": "two"})).status == 500
    headers = {"x-emulator-fault": "500;orgs=org-0"}
    assert [(await ask(emulator, key=key, headers=headers)).status for key in (first, second)] == [500, 200]


async def test_faults_nobody_knows_are_refused(serve: Serve) -> None:
    emulator = await serve()
    for fault in ("sneeze", "500;sometimes", "cut_stream:soon", "connect_refused"):
        heard = await told(emulator, fault, STREAM)
        assert heard.status == 400, fault
        assert heard.json["error"]["message"].startswith("emulator: ")
    with pytest.raises(FaultError):
        FaultPlan([FaultRule("sneeze")])


async def test_standing_trouble_of_an_org(serve: Serve) -> None:
    spec = EmulatorSpec.uniform(2)
    spec.orgs[1].trouble = "429_quota"
    emulator = await serve(spec)
    assert [(await ask(emulator, key=org.keys[0])).status for org in spec.orgs] == [200, 429]


def test_lots_are_drawn_by_share_and_repeat() -> None:
    def draws() -> list[bool]:
        plan = FaultPlan([FaultRule("500", 0.1, seed=7)])
        return [plan.by_lot("a", "m", "/v1/x", False) is not None for _ in range(10_000)]

    assert draws() == draws()
    assert 900 < sum(draws()) < 1100
    rule = FaultRule("cut_stream", orgs=("a",), models=("m",), paths=("/v1/chat",), count=2)
    plan = FaultPlan([rule])
    tries = [
        ("b", "m", True),
        ("a", "n", True),
        ("a", "m", False),
        ("a", "m", True),
        ("a", "m", True),
        ("a", "m", True),
    ]
    found = [plan.by_lot(org, model, "/v1/chat/completions", streams) for org, model, streams in tries]
    assert [fault is not None for fault in found] == [False, False, False, True, True, False]
    assert plan.by_lot("a", "m", "/v1/responses", True) is None


def test_a_redirect_keeps_its_colons() -> None:
    assert parse_fault("redirect:http://a:1/b").params == ("http://a:1/b",)


async def test_a_closed_listener_refuses_and_opens_again(serve: Serve) -> None:
    emulator = await serve()
    listener = emulator.listeners[0]
    listener.set("closed")
    with pytest.raises(ConnectionRefusedError):
        await ask(emulator)
    listener.set("open")
    assert (await ask(emulator)).status == 200
    assert repr(listener).endswith("open accepted=1>")


async def test_odd_listeners(serve: Serve) -> None:
    emulator = await serve()
    second = await emulator.listen()
    second.set("garbage")
    assert (await ask(emulator)).status == 200  # the first is as it was
    listener = emulator.listeners[0]
    listener.set("garbage")
    heard = await hear(emulator, request_bytes(emulator))
    assert heard.data.startswith(b"\x00\x16nonsense")
    listener.set("reset")
    assert (await hear(emulator, request_bytes(emulator))).data == b""
    listener.set("silent")
    assert (await hear(emulator, request_bytes(emulator))) == Heard(b"", "silent")
    with pytest.raises(ValueError, match="unknown mode"):
        listener.set("sulking")


async def test_tls_error_by_lot(serve: Serve) -> None:
    emulator = await serve(EmulatorSpec.uniform(faults=(FaultRule("tls_error", count=1),)))
    context = ssl.create_default_context()
    with pytest.raises(ssl.SSLError):
        await hear(emulator, request_bytes(emulator), tls=context)
    assert (await ask(emulator)).status == 200
    assert emulator.stats()["faults"] == {"tls_error": 1}


async def test_a_client_that_leaves_is_noted(serve: Serve) -> None:
    emulator = await serve()
    pace = {"x-emulator-pace": "events=1000,interval_ms=20"}
    await hear(emulator, request_bytes(emulator, body=STREAM, headers=pace), 0.01)
    await emulator.idle()
    line = emulator.journal.lines()[0]
    assert line["left_early"] is True
    assert line["events"] < 1000
    assert emulator.in_flight == 0
    assert emulator.orgs.all["org-0"].groups[0][1].in_flight == 0
