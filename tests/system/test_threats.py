"""The threats that touch the line, one test a row and named by its number: raw sockets against a real product.

Two upstreams stand behind it: the emulator, and a `Hostile` one that records what it got and answers what it is told.
What the rows demand stands in each test's name and assertions.
"""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bench.processes import free_port, rss_bytes, tree

CUSTOMER = "sk-yg-customer-0123456789abcdef"
EXPIRED, DISABLED = "sk-yg-expired-0123456789", "sk-yg-disabled-0123456789"
CANARIES = ("sk-proj-CANARYcanary0123456789ABCDEFabcdef", "plain/canary.0123456789+without-a-prefix")
PATIENCE = 20.0
MIB = 1 << 20
AUTH = f"Authorization: Bearer {CUSTOMER}\r\n".encode()
GET = b"GET /v1/models HTTP/1.1\r\n"
Script = bytes | Callable[[socket.socket], None]


def answer_of(status: int, body: bytes, kind: str = "application/json", more: bytes = b"") -> bytes:
    head = f"HTTP/1.1 {status} X\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n"
    return head.encode() + more + b"\r\n" + body


FINE = answer_of(200, b'{"id": "x", "object": "chat.completion", "choices": []}')


class Hostile:
    """An upstream that answers every request with `script`."""

    def __init__(self) -> None:
        self.script: Script = FINE
        self.seen: list[bytes] = []
        self.closed = threading.Event()
        self._door = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.port = int(self._door.getsockname()[1])
        threading.Thread(target=self._accept, daemon=True).start()

    def __repr__(self) -> str:
        return f"<Hostile :{self.port} seen={len(self.seen)}>"

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                peer = self._door.accept()[0]
                threading.Thread(target=self._serve, args=(peer,), daemon=True).start()

    def _serve(self, peer: socket.socket) -> None:
        data = b""
        with peer, contextlib.suppress(OSError):
            while piece := peer.recv(65_536):
                data += piece
                head, mark, body = data.partition(b"\r\n\r\n")
                length = re.search(rb"(?i)content-length: (\d+)", head)
                if not mark or (length and len(body) < int(length[1])):
                    continue
                self.seen.append(data)
                data = b""
                if callable(self.script):
                    self.script(peer)
                else:
                    peer.sendall(self.script)
        self.closed.set()

    def close(self) -> None:
        self._door.close()


class Site:
    """A running product and what is behind it."""

    def __init__(self, folder: Path, hostile: Hostile, trap: Hostile) -> None:
        self.folder, self.hostile, self.trap = folder, hostile, trap
        self.port, self.admin = free_port(), free_port()
        self.pid = 0

    def say(self, data: bytes, port: int = 0, timeout: float = PATIENCE) -> bytes:
        """All that is answered until the connection closes; a connection left open is a TimeoutError."""
        got = b""
        address = ("127.0.0.1", port or self.port)
        with socket.create_connection(address, timeout=timeout) as peer, contextlib.suppress(ConnectionError):
            peer.sendall(data)
            while piece := peer.recv(MIB):
                got += piece
        return got

    def chat(self, model: str = "gpt-4o", more: bytes = b"", key: str = CUSTOMER, **fields: Any) -> bytes:
        return self.say(post(json.dumps({"model": model, "messages": [], **fields}).encode(), more, key))

    def metrics(self) -> bytes:
        return self.say(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", self.admin)

    def log_with(self, text: str) -> str:
        """The access log, as soon as it has `text`."""
        path = self.folder / "access.log"
        return str(self.eventually(lambda: log if path.exists() and text in (log := path.read_text()) else ""))

    def eventually(self, look: Callable[[], Any]) -> Any:
        until = time.monotonic() + PATIENCE
        while not (found := look()):
            assert time.monotonic() < until
            time.sleep(0.05)
        return found

    def worker(self) -> int:
        return next(pid for pid in tree(self.pid) if b"_worker" in Path(f"/proc/{pid}/cmdline").read_bytes())


def post(body: bytes, more: bytes = b"", key: str = CUSTOMER, path: str = "/v1/chat/completions") -> bytes:
    start = f"POST {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {key}\r\nConnection: close\r\n"
    kind = b"" if b"Content-Type" in more else b"Content-Type: application/json\r\n"
    length = b"" if b"Transfer-Encoding" in more or b"Content-Length" in more else b"Content-Length: %d\r\n" % len(body)
    return start.encode() + kind + length + more + b"\r\n" + body


def status(answer: bytes) -> int:
    assert answer.startswith(b"HTTP/1.1 "), answer[:80]
    return int(answer[9:12])


def _settings(site: Site, emulator: dict[str, Any]) -> dict[str, Any]:
    def origin(url: str) -> dict[str, Any]:
        return {"dialect": "openai", "url": url, "private": True}

    def org(name: str, source: str, secret: str) -> dict[str, Any]:
        keys = [{"id": f"{name}-1", "secret": {"value": secret}}]
        return {"origin": source, "models": [f"{name}*"], "keys": keys}

    hostile = f"127.0.0.1:{site.hostile.port}"
    inner = {"dialect": "openai", "url": f"https://{socket.gethostname()}:{site.hostile.port}"}
    (key,) = emulator["keys"][next(iter(emulator["keys"]))]
    keys = [
        {"id": "web", "value": CUSTOMER},
        {"id": "old", "value": EXPIRED, "expires": "2020-01-01T00:00:00Z"},
        {"id": "off", "value": DISABLED, "disabled": True},
    ]
    return {
        "listen": {"address": f"127.0.0.1:{site.port}", "admin": f"127.0.0.1:{site.admin}", "trusted_proxies": []},
        "data_dir": str(site.folder / "data"),
        "drain": {"lame_duck": 0, "grace": 1},
        "log": {"access": str(site.folder / "access.log"), "level": "debug"},
        "metrics": {"label_values_max": 20},
        "intake": {"header_timeout": "1s", "body_grace": "1s", "write_timeout": "2s", "json_max": "2MiB"},
        "origins": {"emulator": origin(emulator["url"]), "hostile": origin(f"http://{hostile}"), "inner": inner},
        "orgs": {
            "gpt": org("gpt", "emulator", key),
            "evil": org("evil", "hostile", CANARIES[0]),
            "plain": org("plain", "hostile", CANARIES[1]),
            "inner": org("inner", "inner", CANARIES[0]),
        },
        "accounts": {"t": {"keys": keys}},
    }


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("threats")
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("YUGONG_", "OPENAI_"))}
    environ |= {"HOME": str(folder), "TMPDIR": str(folder), "PYTHONWARNINGS": ""}
    made = Site(folder, Hostile(), Hostile())
    started: list[subprocess.Popen[bytes]] = []

    def start(*words: str) -> Any:
        with (folder / f"{words[0]}.err").open("wb") as err:
            command = [sys.executable, "-m", *words]
            one = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=err, cwd=folder, env=environ)
        started.append(one)
        assert one.stdout is not None
        with one.stdout:
            line = one.stdout.readline()
        assert line, (folder / f"{words[0]}.err").read_text()
        return json.loads(line)

    try:
        emulator = start("yugong.emulator", "--orgs", "1", "--journal", "")
        settings = folder / "yugong.yaml"
        settings.touch(mode=0o600)
        settings.write_text(json.dumps(_settings(made, emulator)))
        start("yugong", "run", "--json", "-c", str(settings))
        made.pid = started[-1].pid
        yield made
    finally:
        for one in reversed(started):
            one.terminate()
            one.wait(PATIENCE)
        made.hostile.close()
        made.trap.close()


@pytest.fixture(autouse=True)
def as_before(site: Site) -> None:
    site.hostile.script = FINE
    site.hostile.seen.clear()
    site.hostile.closed.clear()


# --- keys and tenants ------------------------------------------------------------------------------------------------


def test_01_no_field_or_header_names_the_upstream(site: Site) -> None:
    trap = f"http://127.0.0.1:{site.trap.port}"
    more = f"X-Forwarded-Host: 127.0.0.1:{site.trap.port}\r\nX-Target-URL: {trap}\r\n".encode()
    assert status(site.chat("evil", more, base_url=trap, api_base=trap)) == 200
    assert len(site.hostile.seen) == 1
    assert not site.trap.seen


def test_02_a_name_that_resolves_to_ourselves_is_not_dialled(site: Site) -> None:
    assert status(site.chat("inner")) == 502
    assert not site.hostile.seen


def test_03_and_04_redirects_and_cookies_end_here(site: Site) -> None:
    more = f"Location: http://127.0.0.1:{site.trap.port}/x\r\nSet-Cookie: session=stolen\r\n".encode()
    site.hostile.script = answer_of(307, b"", more=more)
    answer = site.chat("evil", b"Cookie: mine=1\r\n")
    assert status(answer) == 307
    assert b"stolen" not in answer
    assert not site.trap.seen
    site.hostile.script = FINE
    site.chat("plain")
    assert not any(b"cookie" in each.lower() for each in site.hostile.seen)


@pytest.mark.parametrize("model", ["evil", "plain"])
@pytest.mark.parametrize("code", [400, 404, 422])
def test_07_an_echoed_key_is_taken_out(site: Site, model: str, code: int) -> None:
    key = CANARIES[model == "plain"].encode()
    bodies = (
        b'{"error": {"message": "bad key %b.", "type": "invalid_request_error"}}' % key,
        b'{"error": {"message": "bad key %b."}}' % key.replace(b"/", rb"\/"),
        b"key " + key,
    )
    for body, kind in zip(bodies, ("application/json", "application/json", "text/plain"), strict=True):
        site.hostile.script = answer_of(code, body, kind, b"x-request-id: " + key + b"\r\n")
        answer = site.chat(model)
        assert status(answer) == code
        assert key not in answer.replace(rb"\/", b"/")
        assert b"redacted" in answer


def test_08_every_wrong_key_gets_one_answer(site: Site) -> None:
    keys = ("sk-wrong-000000000000", EXPIRED, DISABLED, CUSTOMER[:-1], CUSTOMER + "x", CUSTOMER.upper())
    answers = [site.chat(key=key) for key in keys]
    assert {status(each) for each in answers} == {401}
    assert len({each.partition(b"\r\n\r\n")[2] for each in answers}) == 1


def test_11_and_12_organisations_stay_between_us_and_upstream(site: Site) -> None:
    hidden = (
        b"OpenAI-Organization: org-hidden\r\nServer: hidden\r\nX-Internal: hidden\r\nX-Ratelimit-Limit-Requests: 5\r\n"
    )
    site.hostile.script = answer_of(200, b"{}", more=hidden)
    answer = site.chat("evil", b"OpenAI-Organization: org-mine\r\nOpenAI-Project: mine\r\n")
    assert status(answer) == 200
    assert b"hidden" not in answer
    assert b"ratelimit" not in answer.lower()
    assert b"mine" not in site.hostile.seen[0]


# --- heads -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", [b"a/b?c#@d", b"x\r\nHost: y", b"a@b", b"a b", b"a\x00b", b""])
def test_25_a_host_that_is_none(site: Site, host: bytes) -> None:
    assert status(site.say(GET + b"Host: " + host + b"\r\n" + AUTH + b"\r\n")) == 400


@pytest.mark.parametrize("target", [b"GET http://evil.example/v1/models", b"CONNECT evil.example:443", b"OPTIONS *"])
def test_26_a_target_that_is_no_path(site: Site, target: bytes) -> None:
    assert status(site.say(target + b" HTTP/1.1\r\nHost: x\r\n" + AUTH + b"\r\n")) == 400


AMBIGUOUS = [
    "/v1/../x",
    "/v1/%2e%2e/x",
    "/v1//x",
    "/v1/x%00",
    "/v1/a%2f..%2fb",
    "/v1/%252e%252e/x",
    "/v1/a\\b",
    "//x/v1",
]


@pytest.mark.parametrize("path", AMBIGUOUS)
def test_27_a_path_two_readers_read_differently(site: Site, path: str) -> None:
    assert status(site.say(post(b'{"model": "evil"}', path=path))) == 400
    assert not site.hostile.seen


def test_27_the_raw_path_goes_upstream(site: Site) -> None:
    raw = "/v1/chat/completions?x=%41&y=a%2Fb&z=%e9"
    assert status(site.say(post(b'{"model": "evil", "messages": []}', path=raw))) == 200
    assert site.hostile.seen[0].startswith(f"POST {raw} HTTP/1.1\r\n".encode())


def test_33_controls_do_not_reach_the_log(site: Site) -> None:
    agent = b'User-Agent: marked-33 \x9b31m\xc2\x85 "q"\r\n'
    assert status(site.chat('gpt\r\n{"a": 1}\x1b[31m\x9b', agent)) == 200
    log = site.log_with("marked-33")
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", log)
    (line,) = (each for each in log.splitlines() if "marked-33" in each)
    assert json.loads(line)["model"].startswith("gpt\r\n")


def test_35_and_36_made_up_models_make_no_series(site: Site) -> None:
    assert status(site.chat('gpt"} 1\nyugong_fake 7\n#')) == 200
    counts = []
    for _ in range(2):
        for at in range(60):
            assert status(site.chat(f"gpt-{at}-{os.urandom(8).hex()}")) == 200
        found = site.eventually(lambda: m if b'model="other"' in (m := site.metrics()) else b"")
        assert not re.search(rb"^yugong_fake", found, re.MULTILINE)
        counts.append(found.count(b"yugong_tokens_total{"))
    assert counts[0] == counts[1] <= 4 * 21


BODY = b'{"model": "evil", "messages": []}'
CHUNKED = b"%x\r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY)
SMUGGLED = {
    "both": post(b"0\r\n\r\n" + GET, b"Content-Length: 6\r\nTransfer-Encoding: chunked\r\n"),
    "coding": post(CHUNKED, b"Transfer-Encoding: xchunked\r\n"),
    "coding twice": post(CHUNKED, b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n"),
    "blank": post(CHUNKED, b"Transfer-Encoding : chunked\r\n"),
    "two lengths": post(BODY, b"Content-Length: 5\r\nContent-Length: 6\r\n"),
    "list": post(BODY, b"Content-Length: 5, 5\r\n"),
    "sign": post(BODY, b"Content-Length: +%d\r\n" % len(BODY)),
    "bare LF": post(BODY).replace(b"\r\n", b"\n"),
    "obs-fold": post(BODY, b"X-A: a\r\n b\r\n"),
    "two hosts": post(BODY, b"Host: y\r\n"),
    "chunk size": post(b"zz\r\nxx", b"Transfer-Encoding: chunked\r\n"),
    "huge chunk": post(b"f" * 17 + b"\r\nxx", b"Transfer-Encoding: chunked\r\n"),
    "LF chunk": post(CHUNKED.replace(b"\r\n", b"\n"), b"Transfer-Encoding: chunked\r\n"),
}


@pytest.mark.parametrize("name", SMUGGLED)
def test_38_framing_with_two_meanings(site: Site, name: str) -> None:
    answer = site.say(SMUGGLED[name])
    assert status(answer) == 400
    assert answer.count(b"HTTP/1.1 ") == 1
    assert not site.hostile.seen


def test_39_two_authorizations(site: Site) -> None:
    assert status(site.chat("evil", AUTH.replace(b"customer", b"someone"))) == 400
    assert status(site.chat("evil", b"x-api-key: someone-else\r\n")) == 400
    assert not site.hostile.seen


def test_40_chunk_extensions_and_trailers_go_no_further(site: Site) -> None:
    chunked = b"%x;a=b\r\n%b\r\n0\r\nX-Trailer: t\r\n\r\n" % (len(BODY), BODY)
    assert status(site.say(post(chunked, b"Transfer-Encoding: chunked\r\n"))) == 200
    assert site.hostile.seen[0].endswith(b"\r\n\r\n" + BODY)
    assert b"Trailer" not in site.hostile.seen[0]


def test_41_and_42_what_is_between_two_hops(site: Site) -> None:
    assert status(site.say(GET + b"Host: x\r\n" + AUTH + b"Connection: Authorization\r\n\r\n")) == 400
    hops = b"X-Hop: 1\r\nConnection: X-Hop\r\nKeep-Alive: 5\r\nTE: trailers\r\nProxy-Authorization: Basic x\r\n"
    spoofed = b"X-Forwarded-For: 6.6.6.6\r\nX-Real-IP: 6.6.6.6\r\nUser-Agent: marked-42\r\n"
    assert status(site.chat("evil", hops + spoofed)) == 200
    names = {line.partition(b":")[0].lower() for line in site.hostile.seen[0].split(b"\r\n")[1:]}
    assert not names & {b"x-hop", b"keep-alive", b"te", b"proxy-authorization", b"x-forwarded-for", b"x-real-ip"}
    assert "6.6.6.6" not in site.log_with("marked-42")


@pytest.mark.parametrize("byte", [b"\x00", b"\x01", b"\x1b", b"\x7f", b"\r"])
def test_43_controls_in_a_header(site: Site, byte: bytes) -> None:
    assert status(site.chat("evil", b"X-A: a" + byte + b"b\r\n")) == 400
    assert not site.hostile.seen


# --- time and size ---------------------------------------------------------------------------------------------------


def test_44_a_head_that_does_not_end(site: Site) -> None:
    began = time.monotonic()
    assert status(site.say(GET + b"Ho")) == 408
    assert time.monotonic() - began < 5


def test_45_a_body_that_stalls(site: Site) -> None:
    began = time.monotonic()
    assert status(site.say(post(b"{", b"Content-Length: 500\r\n"))) == 408
    assert time.monotonic() - began < 6


def test_46_who_reads_nothing_holds_up_nobody(site: Site) -> None:
    event = b'data: {"choices": [{"delta": {"content": "%b"}}]}\n\n' % (b"a" * 60_000)

    def endless(peer: socket.socket) -> None:
        peer.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n")
        while True:
            peer.sendall(event)

    site.hostile.script = endless
    worker, before = site.worker(), rss_bytes(site.worker())
    with socket.create_connection(("127.0.0.1", site.port)) as peer:
        peer.sendall(post(b'{"model": "evil", "messages": [], "stream": true}'))
        assert site.hostile.closed.wait(PATIENCE)
    assert rss_bytes(worker) - before < 16 * MIB


def test_47_and_48_decoded_and_chunked_bytes_count(site: Site) -> None:
    bomb = gzip.compress(b'{"model": "evil", "x": "' + b"a" * (64 * MIB) + b'"}')
    before = rss_bytes(site.worker())
    assert status(site.say(post(bomb, b"Content-Encoding: gzip\r\n"))) == 413
    chunks = (b"10000\r\n" + b"a" * 65_536 + b"\r\n") * 40
    assert status(site.say(post(chunks, b"Transfer-Encoding: chunked\r\n"))) == 413
    assert rss_bytes(site.worker()) - before < 16 * MIB
    assert not site.hostile.seen


@pytest.mark.parametrize(("code", "answered"), [(200, 200), (400, 400)])
def test_49_a_huge_answer_is_not_collected(site: Site, code: int, answered: int) -> None:
    def huge(peer: socket.socket) -> None:
        peer.sendall(
            b"HTTP/1.1 %d X\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % (code, 99 * MIB)
        )
        for _ in range(99):
            peer.sendall(b" " * MIB)

    site.hostile.script = huge
    before = rss_bytes(site.worker())
    assert status(site.chat("evil")) == answered
    assert rss_bytes(site.worker()) - before < 24 * MIB


def test_50_floods(site: Site) -> None:
    before = rss_bytes(site.worker())
    assert status(site.chat("evil", b"".join(b"X-%d: y\r\n" % at for at in range(300)))) in (400, 431)
    assert status(site.chat("evil", b"X: " + b"y" * 70_000 + b"\r\n")) in (400, 431)
    last = GET + b"Host: x\r\n" + AUTH + b"Connection: close\r\n\r\n"
    many = last.replace(b"Connection: close\r\n", b"") * 200 + last
    assert site.say(many).count(b"HTTP/1.1 200") == 201
    assert rss_bytes(site.worker()) - before < 16 * MIB


def test_51_a_frame_without_end(site: Site) -> None:
    ask = b"GET /v1/realtime?model=gpt-realtime HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    ask += AUTH + b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    answer = site.say(ask + b"\x81\xff" + (1 << 40).to_bytes(8, "big") + b"mask" + b"a" * 1000)
    assert status(answer) == 101
    assert (1009).to_bytes(2, "big") in answer


CRACKED = {
    "depth": b'{"model": "evil", "m": ' + b"[" * 10_000 + b"]" * 10_000 + b"}",
    "infinity": b'{"model": "evil", "m": 1e400}',
    "NaN": b'{"model": "evil", "m": NaN}',
    "repeated": b'{"model": "evil", "model": "gpt-4o"}',
    "repeated, escaped": b'{"model": "evil", "mod\\u0065l": "gpt-4o"}',
    "surrogate": b'{"model": "evil", "m": "\\ud800"}',
    "UTF-8": b'{"model": "evil", "m": "\xff"}',
    "two": b'{"model": "evil"}{}',
}


@pytest.mark.parametrize("name", CRACKED)
def test_52_json_that_parsers_disagree_on(site: Site, name: str) -> None:
    assert status(site.say(post(CRACKED[name]))) == 400
    assert not site.hostile.seen


# --- last: after all of the above ------------------------------------------------------------------------------------


def test_09_and_10_no_key_and_no_traceback_anywhere(site: Site) -> None:
    secrets = [each.encode() for each in (*CANARIES, CUSTOMER)]
    metrics = site.metrics()
    assert metrics.count(b"\nyugong_") > 50
    places = {"metrics": metrics}
    places |= {str(path): path.read_bytes() for path in site.folder.rglob("*") if path.is_file()}
    places.pop(str(site.folder / "yugong.yaml"))
    for pid in tree(site.pid):
        places |= {f"{pid}/{name}": Path(f"/proc/{pid}/{name}").read_bytes() for name in ("cmdline", "environ")}
    assert [where for where, text in places.items() if any(secret in text for secret in secrets)] == []
    assert [where for where, text in places.items() if b"Traceback" in text or b"bug in call" in text] == []
