"""What arrives can be checked: echo of every other operation, digests of exact bytes, deterministic answers, pace."""

import asyncio
import datetime
import gzip
import hashlib
import ipaddress
import json
import os
import random
import ssl
from pathlib import Path

import aiohttp
import orjson
import pytest
from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from tests.emulator.conftest import BODY, Serve, ask, events_of, hear, request_bytes, unchunked
from yugong.emulator import Emulator, EmulatorSpec, Limits, expected_text, seed_of
from yugong.emulator.routes import EXACT

ODD_BODIES = (b"", b"\x00\xff\r\n", b"{not json", os.urandom(5000))


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "HEAD", "PURGE"])
async def test_any_other_operation_is_echoed(serve: Serve, method: str) -> None:
    emulator = await serve()
    for path in ("/v1/vector_stores/vs_1/files?after=%2F+a&x", "/v1//batches/../%2e%2e/;x", "/anything"):
        for body in ODD_BODIES:
            headers = {"x-Some": "Value", "OpenAI-Beta": "assistants=v2", "OpenAI-Organization": "org-client"}
            heard = await ask(emulator, path, method=method, body=body, headers=headers)
            assert heard.status == 200
            digest = hashlib.sha256(body).hexdigest()
            assert heard.fields["x-emulator-body-sha256"] == digest
            if method == "HEAD":
                assert heard.body == b""
                assert int(heard.fields["content-length"]) > 0
                continue
            said = heard.json
            assert (said["method"], said["target"]) == (method, path)
            assert (said["body_bytes"], said["body_sha256"]) == (len(body), digest)
            assert said["headers"] == [
                ["Content-Type", "application/json"],
                ["x-Some", "Value"],
                ["OpenAI-Beta", "assistants=v2"],
            ]


async def test_chunked_bodies_have_the_digest_of_their_content(serve: Serve) -> None:
    emulator = await serve()
    body = orjson.dumps(BODY)
    chunks = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in (body[:7], body[7:30], body[30:])) + b"0\r\n\r\n"
    request = (
        request_bytes(emulator, headers={"Content-Length": None, "Transfer-Encoding": "chunked"}, body=b"") + chunks
    )
    heard = await hear(emulator, request)
    assert heard.fields["x-emulator-body-sha256"] == hashlib.sha256(body).hexdigest()
    assert heard.json["choices"][0]["message"]["content"].startswith(seed_of(b"How high is the mountain?"))


async def test_coded_bodies_are_read_and_digested_as_they_came(serve: Serve) -> None:
    emulator = await serve()
    packed = gzip.compress(orjson.dumps(BODY))
    heard = await ask(emulator, body=packed, headers={"Content-Encoding": "gzip"})
    assert heard.status == 200
    assert heard.fields["x-emulator-body-sha256"] == hashlib.sha256(packed).hexdigest()


async def test_the_journal_has_target_and_header_names_as_they_came(serve: Serve) -> None:
    emulator = await serve()
    await ask(emulator, "/openai/v1/chat/completions?a=%41", headers={"X-OdD": "1"})
    line = emulator.journal.lines()[0]
    assert line["target"] == "/openai/v1/chat/completions?a=%41"
    assert line["headers"] == ["Host", "Authorization", "Content-Type", "Content-Length", "Connection", "X-OdD"]
    assert (line["status"], line["model"]) == (200, "gpt-4o")
    assert emulator.spec.orgs[0].keys[0] not in str(line)


async def test_a_continue_is_given(serve: Serve) -> None:
    emulator = await serve()
    heard = await hear(emulator, request_bytes(emulator, headers={"Expect": "100-continue"}))
    assert heard.data.startswith(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n")


async def test_old_clients_get_close_framed_streams(serve: Serve) -> None:
    emulator = await serve()
    request = request_bytes(emulator, body=BODY | {"stream": True}).replace(b" HTTP/1.1\r\n", b" HTTP/1.0\r\n", 1)
    heard = await hear(emulator, request)
    assert heard.ending == "fin"
    assert "transfer-encoding" not in heard.fields
    assert heard.body.endswith(b"data: [DONE]\n\n")


async def test_pace(serve: Serve) -> None:
    emulator = await serve()
    loop = asyncio.get_running_loop()
    pace = {"x-emulator-pace": "events=20,interval_ms=5,size=64,delay_ms=50,seed=abc"}
    began = loop.time()
    heard = await ask(emulator, body=BODY | {"stream": True}, headers=pace)
    assert loop.time() - began >= 0.05 + 22 * 0.005
    events = events_of(unchunked(heard.body))
    text = "".join(each["choices"][0]["delta"].get("content", "") for each in events[:-1])
    assert text == expected_text("abc", 20, 64)
    assert len(text.encode()) == 20 * 64
    assert (await ask(emulator, headers={"x-emulator-pace": "hurry=1"})).status == 400


async def test_a_deterministic_emulator_answers_alike(serve: Serve) -> None:
    emulator = await serve(EmulatorSpec.uniform(limits=Limits(rpm=60), deterministic=True))
    first, again = [await ask(emulator) for _ in range(2)]
    assert first.body == again.body
    drop = ("x-ratelimit-remaining-requests", "x-ratelimit-reset-requests")
    fields = [{name: value for name, value in heard.fields.items() if name not in drop} for heard in (first, again)]
    assert fields[0] == fields[1]
    other = await serve()
    assert (await ask(other)).json["id"] != (await ask(other)).json["id"]


async def test_pipelined_requests_are_answered_in_turn(serve: Serve) -> None:
    emulator = await serve()
    one = request_bytes(emulator, "/v1/models/gpt-4o", method="GET", body=b"")
    heard = await hear(emulator, one * 3)
    assert heard.data.count(b"HTTP/1.1 200 OK") == 3


async def test_large_uploads_are_kept_on_disk(serve: Serve) -> None:
    emulator = await serve(EmulatorSpec.uniform(memory_body_bytes=1 << 16))
    content = os.urandom(5 << 20)
    head = (
        b'--b\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n'
        b'--b\r\nContent-Disposition: form-data; name="file"; filename="x"\r\n\r\n'
    )
    form = head + content + b"\r\n--b--\r\n"
    kind = {"Content-Type": "multipart/form-data; boundary=b"}
    heard = await ask(emulator, "/v1/files", body=form, headers=kind)
    assert heard.status == 200
    assert heard.fields["x-emulator-body-sha256"] == hashlib.sha256(form).hexdigest()
    kept = heard.json
    assert kept["bytes"] == len(content)
    folder = Path(emulator._folder)
    assert len(list(folder.iterdir())) == 1
    path = f"/v1/files/{kept['id']}/content"
    assert (await ask(emulator, path, method="GET", body=b"")).body == content
    ranges = {
        "bytes=0-0": content[:1],
        "bytes=-7": content[-7:],
        "bytes=100-": content[100:],
        "bytes=5-99": content[5:100],
    }
    for asked, expected in ranges.items():
        heard = await ask(emulator, path, method="GET", body=b"", headers={"Range": asked})
        assert (heard.status, heard.body) == (206, expected)
        assert heard.fields["content-range"].endswith(f"/{len(content)}")
    heard = await ask(emulator, path, method="GET", body=b"", headers={"Range": f"bytes={len(content)}-"})
    assert (heard.status, heard.fields["content-range"]) == (416, f"bytes */{len(content)}")
    heard = await ask(emulator, path, method="HEAD", body=b"")
    assert (heard.body, int(heard.fields["content-length"])) == (b"", len(content))
    await ask(emulator, path.removesuffix("/content"), method="DELETE", body=b"")
    assert list(folder.iterdir()) == []


def certificate(folder: Path) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1 that signs itself, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "emulator")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    cert_path, key_path = folder / "cert.pem", folder / "key.pem"
    cert_path.write_bytes(made.public_bytes(Encoding.PEM))
    key_path.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return cert_path, key_path


async def test_over_tls(serve: Serve, tmp_path: Path) -> None:
    cert, key = certificate(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    emulator = await serve(ssl_context=context)
    assert emulator.url.startswith("https://")
    trusting = ssl.create_default_context(cafile=str(cert))
    heard = await hear(emulator, request_bytes(emulator), tls=trusting)
    assert heard.json["object"] == "chat.completion"
    heard = await hear(
        emulator, request_bytes(emulator, headers={"x-emulator-fault": "reset_before_head"}), tls=trusting
    )
    assert heard.data == b""
    emulator.listeners[0].set("garbage")
    with pytest.raises(ssl.SSLError):
        await hear(emulator, request_bytes(emulator), tls=trusting)


ODD = (
    None,
    True,
    -1,
    0,
    10**30,
    1e308,
    "",
    "x",
    "愚\x00",
    [],
    [None],
    [[1, 2], "a", {}],
    {},
    {"type": "x"},
    [{"text": 5}],
)
FIELDS = (
    "model messages prompt input instructions system text n stream stream_options stream_format max_tokens tools "
    "max_completion_tokens max_output_tokens tool_choice dimensions encoding_format response_format partial_images "
    "size images previous_response_id store metadata service_tier voice user"
).split()


async def test_odd_fields_are_answered_and_never_break_it(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    """3 000 random documents over every operation with a body: an answer each, none of them a 5xx."""
    emulator = await serve(EmulatorSpec.uniform(pieces=2))
    rng = random.Random(20261120)
    paths = [path for (method, path), route in EXACT.items() if method == "POST" and route.body]
    key = emulator.spec.orgs[0].keys[0]
    headers = {"Authorization": f"Bearer {key}", "anthropic-version": "2023-06-01", "Content-Type": "application/json"}
    async with aiohttp.ClientSession(headers=headers) as client:
        for i in range(3_000):
            document = {name: rng.choice(ODD) for name in rng.sample(FIELDS, rng.randrange(9))}
            document |= {"model": "gpt-4o"} if i % 3 else {}
            body = json.dumps(document)
            async with client.post(emulator.url + paths[i % len(paths)], data=body) as answer:
                await answer.read()
                assert answer.status in (200, 400, 404), body
    assert not caplog.records


@pytest.mark.parametrize("interval", ["0", "0.01"])
async def test_a_slow_reader_holds_the_stream_and_loses_nothing(serve: Serve, interval: str) -> None:
    emulator = await serve()
    pace = {"x-emulator-pace": f"events=400,size=65536,interval_ms={interval},seed=abc", "Connection": "close"}
    port = int(emulator.url.rsplit(":", 1)[1])
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 16)
    writer.write(request_bytes(emulator, body=BODY | {"stream": True}, headers=pace))
    (connection,) = await until_paused(emulator)
    assert connection.transport is not None
    assert connection.transport.get_write_buffer_size() < 1 << 20
    heard = await asyncio.wait_for(reader.read(-1), 20)
    writer.close()
    await writer.wait_closed()
    events = events_of(unchunked(heard.partition(b"\r\n\r\n")[2]))
    text = "".join(each["choices"][0]["delta"].get("content", "") for each in events[:-1])
    assert text == expected_text("abc", 400, 65536)


async def until_paused(emulator: Emulator) -> list[web.RequestHandler]:
    """The connections, once one of them waits for its reader."""
    async with asyncio.timeout(10):
        while True:
            connections = emulator.listeners[0]._server.connections
            if any(connection.writing_paused for connection in connections):
                return connections
            await asyncio.sleep(0.001)


async def test_stopping_cuts_what_is_in_flight(serve: Serve) -> None:
    emulator = await serve()
    pace = {"x-emulator-pace": "events=1000,interval_ms=5"}
    port = int(emulator.url.rsplit(":", 1)[1])
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request_bytes(emulator, body=BODY | {"stream": True}, headers=pace))
    await reader.readuntil(b"\n\n")
    await emulator.stop()
    assert emulator.in_flight == 0
    with pytest.raises((ConnectionResetError, asyncio.IncompleteReadError)):
        await reader.readuntil(b"[DONE]")
    writer.close()
