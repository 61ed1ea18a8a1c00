"""What Yugong changes in calls that pass through it, and that it changes nothing else (design, I1).

Every case goes twice over bare sockets: direct to an emulator with the pool's own key, and through Yugong with a
customer's to an emulator just like it. A tap before each keeps the bytes upstream saw. Of the request, what was sent is
compared with what upstream saw; of the answer, what came direct with what came through. Each difference makes a mark;
`DIFFERENCES` explains every mark there may be, and the README quotes it:

    python tests/system/test_transparency.py        prints the list as Markdown
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[2]
if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))

from bench.contenders import CUSTOMER_KEY, Proxy, launch_yugong  # noqa: E402
from tests.system import operations  # noqa: E402
from tests.system.cases import ALLOWED, CASES, SCRIPTS, Case, of_operation  # noqa: E402
from tests.system.wiretap import PATIENCE, Client, Message, Tap, read_message, reading  # noqa: E402
from yugong.emulator import Emulator, EmulatorSpec, Limits  # noqa: E402

README = ROOT / "README.md"
OPERATIONS = 288  # of openapi.yaml, commit f85dbe22: methods of its 182 paths
HOPS = "connection keep-alive proxy-connection proxy-authorization te trailer transfer-encoding".split()
BETWEEN = (
    "cookie expect forwarded via x-forwarded-for x-forwarded-host x-forwarded-proto x-forwarded-port "
    "x-forwarded-prefix x-real-ip cf-connecting-ip true-client-ip x-yugong-max-wait"
).split()

OURS = [*HOPS, "content-length", "location", "link"]  # written by each hop for itself, wherever it likes


class Difference(NamedTuple):
    """One row of the list."""

    where: str
    what: str
    why: str
    marks: tuple[str, ...]


def _headers(side: str, change: str, names: list[str] | str) -> tuple[str, ...]:
    return tuple(f"{side} header {name}: {change}" for name in (names.split() if isinstance(names, str) else names))


DIFFERENCES = (
    Difference(
        "request",
        "The key: `Authorization`, `api-key`, `x-api-key`, `x-goog-api-key`, and key parameters in the query, are "
        "taken out; upstream gets the pool's in its own way.",
        "I1: credential",
        (
            *_headers("request", "replaced", "authorization x-api-key"),
            *_headers("request", "dropped", "api-key x-goog-api-key"),
            *_headers("request", "added", "authorization"),
            "request target: key taken out of the query",
        ),
    ),
    Difference(
        "request",
        "`Host` is the origin's, and a path below `/openai/v1` begins with `/v1`.",
        "I1: host",
        (*_headers("request", "replaced", "host"), "request target: /openai taken off"),
    ),
    Difference(
        "request",
        "Hop-by-hop headers end with us: `Connection` and what it lists, `Keep-Alive`, `Proxy-*`, `TE`, `Trailer`, "
        "`Transfer-Encoding`, `Upgrade`. A body comes to upstream with its length, whole; HTTP/1.0 as HTTP/1.1.",
        "I1: hop-by-hop (RFC 9110 §7.6.1)",
        (
            *_headers("request", "dropped", [*HOPS[:-1], "x-private"]),
            "request framing: chunked becomes length",
            "request trailers: dropped",
            "request framing: none becomes length",
            "request version: HTTP/1.0 becomes HTTP/1.1",
        ),
    ),
    Difference(
        "request",
        "What only the hop from client to us is about: `Cookie`, `Expect`, `Forwarded`, `Via`, `X-Forwarded-*`, "
        "`X-Real-IP`, `CF-Connecting-IP`, `True-Client-IP`, `X-Yugong-Max-Wait`.",
        "I1: hop-by-hop",
        _headers("request", "dropped", BETWEEN),
    ),
    Difference(
        "request",
        "`OpenAI-Organization`, `OpenAI-Project` and `anthropic-workspace-id` belong to the pool's key.",
        "I1: org and project headers",
        _headers("request", "dropped", "openai-organization openai-project anthropic-workspace-id"),
    ),
    Difference(
        "request",
        "`Accept-Encoding: identity`: answers come uncompressed.",
        "I1: `Accept-Encoding`",
        _headers("request", "replaced", "accept-encoding"),
    ),
    Difference(
        "request",
        "`stream_options.include_usage` is added to streamed chat and text completions that do not ask for it. What "
        "it brings is taken out of the answer again.",
        "I1: usage",
        ("request body: include_usage added",),
    ),
    Difference(
        "answer",
        "Only these headers reach the client: " + ", ".join(f"`{name}`" for name in ALLOWED) + ". The others name "
        "organisations, servers and cookies, or tell of the pool's limits.",
        "I1: header allow-list",
        ("answer header not on the list: dropped",),
    ),
    Difference(
        "answer",
        "The reason phrase is the standard's, 1xx answers and trailers end with us, the body may be framed otherwise, "
        "and whether a connection is kept is between the client and us.",
        "hop-by-hop; none of it means anything to HTTP (RFC 9110 §7.6, §15)",
        (
            "answer reason: replaced",
            "answer 1xx: dropped",
            "answer trailers: dropped",
            "answer framing: close becomes chunked",
            "answer framing: chunked becomes length",
            "answer connection: kept or closed otherwise",
        ),
    ),
    Difference(
        "answer",
        "`Location` and `Link` that name the origin name us.",
        "I1: host",
        _headers("answer", "replaced", "location link"),
    ),
    Difference(
        "answer",
        "An error that is not the client's doing is tried again elsewhere. When no try is left it comes with "
        "`x-should-retry: false`, and without names of organisations and keys.",
        "retries; the pool's names",
        (*_headers("answer", "added", "x-should-retry"), "answer body: names taken out of an error"),
    ),
    Difference(
        "call",
        "Never sent upstream: calls without a good key, ambiguous paths, malformed HTTP, bodies over the limits, and "
        "JSON that does not parse or repeats a member where it must be read. The refusal is in the dialect's words.",
        "rights first; one meaning to all readers",
        ("call: refused by us",),
    ),
)


def as_markdown() -> str:
    """The list as the README has it."""
    rows = [f"| {each.where} | {each.what} | {each.why} |" for each in DIFFERENCES]
    return "\n".join(["| of the | what differs from going direct | why |", "|---|---|---|", *rows])


# --- comparing -------------------------------------------------------------------------------------------------------


class Passage(NamedTuple):
    """One case, gone both ways."""

    case: Case
    sent: Message  # through Yugong
    seen: Message | None  # by upstream, what Yugong made of it
    direct: Message
    through: Message

    def __repr__(self) -> str:
        return f"<Passage {self.case.name}: {self.direct.start!r} / {self.through.start!r}>"

    def marks(self) -> Iterator[tuple[str, object]]:
        """Every difference, with what shows it."""
        if self.seen is None:
            is_refusal = self.through.start.split()[1][:1] == b"4"
            yield f"call: {'refused by us' if is_refusal else 'not served'}", (self.through, self.through.body)
            return
        yield from _request_marks(self.sent, self.seen)
        yield from _answer_marks(self.direct, self.through)


def _request_marks(sent: Message, seen: Message) -> Iterator[tuple[str, object]]:
    (method, target, version), (seen_method, seen_target, seen_version) = sent.start.split(), seen.start.split()
    if method != seen_method:
        yield "request method: changed", (method, seen_method)
    if target != seen_target:
        yield _target_mark(target, seen_target), (target, seen_target)
    if version != seen_version:
        yield f"request version: {version.decode()} becomes {seen_version.decode()}", ""
    if sent.framing != seen.framing:
        yield f"request framing: {sent.framing} becomes {seen.framing}", ""
    yield from _field_marks("request", sent, seen)
    if sent.body != seen.body:
        yield _body_mark(sent.body, seen.body), (sent.body, seen.body)
    if seen.trailers != sent.trailers:
        yield "request trailers: dropped", (sent.trailers, seen.trailers)


def _target_mark(sent: bytes, seen: bytes) -> str:
    if sent == b"/openai" + seen:
        return "request target: /openai taken off"
    if sent.replace(b"api-key=sk-other&", b"") == seen:
        return "request target: key taken out of the query"
    return "request target: changed"


def _body_mark(sent: bytes, seen: bytes) -> str:
    """An insertion of `include_usage` at one place, or something worse."""
    start = next((i for i, (a, b) in enumerate(zip(sent, seen, strict=False)) if a != b), min(len(sent), len(seen)))
    same = 0
    while same < len(sent) - start and sent[-1 - same] == seen[-1 - same]:
        same += 1
    put_in, document = seen[start : len(seen) - same], json.loads(sent)
    document["stream_options"] = {**(document.get("stream_options") or {}), "include_usage": True}
    is_it = len(put_in) <= 45 and len(sent) - start - same <= 5 and json.loads(seen) == document
    return "request body: include_usage added" if is_it else "request body: changed"


def _field_marks(side: str, before: Message, after: Message) -> Iterator[tuple[str, object]]:
    """Of header fields; those of the framing are looked at by what they say."""
    is_bodiless = "none" in (before.framing, after.framing)
    framing = {"transfer-encoding"} if is_bodiless and side == "answer" else {"transfer-encoding", "content-length"}
    if side == "answer":
        framing |= {"connection", "keep-alive"}
    had, has = before.named(), after.named()
    kept = []
    for name in dict.fromkeys([*had, *has]):
        if name in framing:
            continue
        if name not in has:
            hidden = side == "answer" and name not in [*ALLOWED, "content-length", *HOPS]
            yield f"{side} header {'not on the list' if hidden else name}: dropped", had[name]
        elif name not in had:
            yield f"{side} header {name}: added", has[name]
        elif had[name] != has[name]:
            yield f"{side} header {name}: replaced", (had[name], has[name])
        else:
            kept.append(name)
    kept = [name for name in kept if name not in OURS]
    spelled = [[name for name, _ in each.fields if name.decode("latin-1").lower() in kept] for each in (before, after)]
    if sorted(spelled[0]) != sorted(spelled[1]):
        yield f"{side} header names: spelled otherwise", spelled
    elif spelled[0] != spelled[1]:
        yield f"{side} headers: in another order", spelled


def _answer_marks(direct: Message, through: Message) -> Iterator[tuple[str, object]]:
    (_, status, reason), (version, got_status, got_reason) = direct.start.split(b" ", 2), through.start.split(b" ", 2)
    if version != b"HTTP/1.1":
        yield "answer version: changed", version
    if status != got_status:
        yield "answer status: changed", (direct, through, through.body[:300])
    if reason != got_reason:
        yield "answer reason: replaced", (reason, got_reason)
    if direct.interim != through.interim:
        yield "answer 1xx: dropped", (direct.interim, through.interim)
    if direct.framing != through.framing:
        yield f"answer framing: {direct.framing} becomes {through.framing}", ""
    if direct.closes != through.closes:
        yield "answer connection: kept or closed otherwise", ""
    yield from _field_marks("answer", direct, through)
    if direct.body != through.body:
        is_cleaned = direct.body.replace(b"org-abcdefghijklmnop", b"[redacted]") == through.body
        mark = "names taken out of an error" if is_cleaned else "changed"
        yield f"answer body: {mark}", (_around(direct.body, through.body), _around(through.body, direct.body))
    if direct.trailers != through.trailers:
        yield "answer trailers: dropped", (direct.trailers, through.trailers)


def _around(body: bytes, other: bytes) -> tuple[int, bytes]:
    at = next((i for i, (a, b) in enumerate(zip(body, other, strict=False)) if a != b), 0)
    return len(body), body[max(0, at - 40) : at + 80]


# --- passing ---------------------------------------------------------------------------------------------------------


class Way:
    """One of the two ways to an emulator: where one calls, which keys count there, and the tap at its end."""

    def __init__(self, emulator: Emulator, tap: Tap) -> None:
        self.emulator = emulator
        self.tap = tap
        self.port = tap.port
        self.keys = [org.keys[0] for org in emulator.spec.orgs]
        self.client = Client(tap.port)
        self.ids: dict[str, str] = {}

    def __repr__(self) -> str:
        return f"<Way {self.port} {self.tap}>"

    def goes_through(self, port: int) -> None:
        self.port, self.client = port, Client(port)
        self.keys = [CUSTOMER_KEY] * len(self.keys)

    async def carry(self, case: Case) -> tuple[Message, Message | None, Message]:
        """What was sent, what upstream saw, what came back."""
        key = self.keys[case.is_claude]
        raw = case.request(f"127.0.0.1:{self.port}", key, self.ids)
        before = len(self.tap.requests)
        answer = await self.client.ask(raw, case.method)
        seen = self.tap.requests[before:]
        if case.name == "createFile":
            self.ids["file_id"] = json.loads(answer.body)["id"]
        elif case.name == "createResponse":
            self.ids["response_id"] = json.loads(answer.body)["id"]
        return await _message(raw), seen[-1] if seen else None, answer

    async def recover(self) -> None:
        """Wait until calls are served again: after what was taken for a fault of the only organisation, whether or not
        it was one."""
        probe = Case("probe", "GET", "/v1/models", framing="none")
        async with asyncio.timeout(PATIENCE):
            while (await self.carry(probe))[2].start != b"HTTP/1.1 200 OK":
                await asyncio.sleep(0.1)

    async def close(self) -> None:
        await self.client.close()
        await self.tap.stop()
        await self.emulator.stop()


async def _message(raw: bytes) -> Message:
    stream = asyncio.StreamReader(limit=8 << 20)
    stream.feed_data(raw)
    stream.feed_eof()
    return await read_message(reading(stream, len))


async def _open_way() -> Way:
    limits = Limits(rpm=1_000_000, tpm=1_000_000_000)
    emulator = Emulator(EmulatorSpec.uniform(2, limits=limits, deterministic=True, journal=""))
    await emulator.start()
    tap = Tap(int(emulator.url.rpartition(":")[2]), SCRIPTS)
    await tap.start()
    return Way(emulator, tap)


def _settings(way: Way) -> dict[str, Any]:
    url = f"http://{way.tap.authority}"
    orgs = {}
    for org, dialect in zip(way.emulator.spec.orgs, ("openai", "anthropic"), strict=True):
        orgs[org.name] = {"origin": dialect, "keys": [{"id": f"{dialect}-1", "secret": {"value": org.keys[0]}}]}
    origins = {name: {"dialect": name, "url": url, "private": True} for name in ("openai", "anthropic")}
    return {"origins": origins, "orgs": orgs}


async def _pass_all(folder: Path) -> tuple[list[Passage], str]:
    direct, through = await _open_way(), await _open_way()
    proxy: Proxy | None = None
    try:
        proxy = await asyncio.to_thread(launch_yugong, folder, _settings(through))
        through.goes_through(proxy.port)
        passages = []
        for sample in operations.load():
            passages.append(await _pass(of_operation(sample, direct.ids), direct, through))
        for case in CASES:
            passages.append(await _pass(case, direct, through))
        return passages, f"http://127.0.0.1:{proxy.port}"
    finally:
        await direct.close()
        await through.close()
        if proxy is not None:
            await asyncio.to_thread(proxy.stop)


async def _pass(case: Case, direct: Way, through: Way) -> Passage:
    try:
        _, _, answer = await direct.carry(case)
        sent, seen, got = await through.carry(case)
        if got.start.split()[1][:1] == b"5":
            await through.recover()
    except Exception as error:
        raise AssertionError(f"{case!r}: {error!r}") from error
    return Passage(case, sent, seen, answer, got)


class Passages(NamedTuple):
    """All that passed, and the base URL it passed through."""

    all: list[Passage]
    base: str

    def __repr__(self) -> str:
        return f"<Passages {len(self.all)} through {self.base}>"

    def of(self, name: str) -> Passage:
        (found,) = (each for each in self.all if each.case.name == name)
        return found


@pytest.fixture(scope="module")
def passages(tmp_path_factory: pytest.TempPathFactory) -> Passages:
    with asyncio.Runner() as runner:
        return Passages(*runner.run(_pass_all(tmp_path_factory.mktemp("transparency"))))


# --- the tests -------------------------------------------------------------------------------------------------------


def test_every_operation_is_there() -> None:
    samples = operations.load()
    assert len({(each.method, each.path, "beta=true" in each.query) for each in samples}) == OPERATIONS
    assert {each.kind for each in samples} == {"json", "form", "sdp", "none"}
    assert operations.TABLE.stat().st_size < 300_000


def test_the_differences_are_those_of_the_list(passages: Passages) -> None:
    found: dict[str, list[str]] = {}
    for passage in passages.all:
        for mark, shown in passage.marks():
            found.setdefault(mark, []).append(f"{passage.case!r}: {shown!r:.600}")
    listed = {mark for each in DIFFERENCES for mark in each.marks}
    unlisted = "".join(
        f"\n{mark} ({len(shown)} cases)" + "".join(f"\n    {each}" for each in shown[:4])
        for mark, shown in found.items()
        if mark not in listed
    )
    assert not unlisted, f"differences that are not on the list:{unlisted}"
    assert not listed - set(found), "differences on the list that nothing shows"


def test_every_operation_reaches_upstream(passages: Passages) -> None:
    """Or the comparison would compare refusals."""
    samples = len(operations.load())
    assert not [each for each in passages.all[:samples] if each.seen is None]
    refused = [each.case.name for each in passages.all[:samples] if each.direct.start != b"HTTP/1.1 200 OK"]
    assert refused == ["cancelResponse", "beta_cancelResponse?beta", "beta_deleteResponse?beta"]


def test_links_of_the_origin_point_back_to_us(passages: Passages) -> None:
    answer = passages.of("answer: links").through
    assert answer.first("location") == f"{passages.base}/v1/new?a=%2F".encode()
    assert answer.first("link") == f"<{passages.base}/v1/n>; rel=next, <https://other.example/>; rel=help".encode()
    away = passages.of("answer: away")
    assert away.through.first("location") == b"http://169.254.169.254/latest/"


def test_upstream_never_sees_who_calls(passages: Passages) -> None:
    for passage in passages.all:
        if passage.seen is not None:
            raw = b"".join(name + value for name, value in passage.seen.fields) + passage.seen.start
            assert CUSTOMER_KEY.encode() not in raw, passage
            assert sum(passage.seen.first(name) != b"" for name in ("authorization", "x-api-key")) == 1, passage


def test_a_trailer_is_not_the_next_calls_header(passages: Passages) -> None:
    """aiohttp 3.14.5's C parser puts a request's last trailer before the header fields of the next request on the
    connection: whoever shares it with others (a proxy in front) could have `Authorization` put in."""
    at = next(i for i, each in enumerate(passages.all) if each.case.name == "trailers")
    following = passages.all[at + 1].seen
    assert following is not None
    assert "x-sum" not in following.named()


def test_large_answers_and_streams_are_compared(passages: Passages) -> None:
    """The cases are what their names say."""
    assert len(passages.of("large answer").direct.body) > 1 << 20
    assert len(passages.of("large sound").direct.body) > 5_000_000
    assert passages.of("long stream").direct.body.count(b"\n\n") > 300
    assert passages.of("range").direct.start == b"HTTP/1.1 206 Partial Content"
    assert passages.of("range beyond the end").direct.start.split()[1] == b"416"
    assert passages.of("createSpeech").through.body[:3] == b"ID3"
    for name in ("createChatCompletion streamed", "createResponse streamed", "createTranscription streamed"):
        assert passages.of(name).direct.first("content-type").startswith(b"text/event-stream")


def test_readme_has_the_list() -> None:
    missing = [line for line in as_markdown().splitlines() if line not in README.read_text("utf-8").splitlines()]
    assert not missing, f"paste the output of `python {Path(__file__).relative_to(ROOT)}` into README.md"


def test_the_table_is_of_the_description_as_it_is() -> None:
    description = ROOT.parent / "shared" / "openai" / "openapi.yaml"
    if not description.exists():
        pytest.skip("openapi.yaml is not beside the checkout")
    assert operations.rendered(description) == operations.TABLE.read_text("utf-8")


if __name__ == "__main__":
    print(as_markdown())
