"""The emulator itself: takes a request in, decides who, whether and what, and has it delivered.

The steps of `_serve` are the life of an attempt, in order: body, key, fault, refusal or admission, answer. What each
operation answers stands in `routes`, how it goes wrong in `faults`, how it gets on the wire in `delivery`.

Under `/_emulator/` (loopback peers only) and on a port of its own the emulator is steered and read: see `control`.
"""

import asyncio
import itertools
import logging
import os
import shutil
import ssl
import tempfile
import time
from types import TracebackType
from typing import Any

import orjson
from aiohttp import web

from yugong.emulator import control, errors, realtime
from yugong.emulator.attempt import Answer, Attempt
from yugong.emulator.body import BodyError, form_of, take_body
from yugong.emulator.delivery import ClientLeft, Wire, deliver, strike_head
from yugong.emulator.errors import Trouble
from yugong.emulator.faults import CLOUDFLARE, Fault, FaultError, FaultPlan, parse_fault, trouble_of
from yugong.emulator.journal import Journal
from yugong.emulator.listener import Listener
from yugong.emulator.orgs import Orgs
from yugong.emulator.routes import Route, find_route
from yugong.emulator.spec import EmulatorSpec
from yugong.emulator.text import asked_tokens, count_tokens, prompt_of

log = logging.getLogger(__name__)
CONTROL_PREFIX = "/_emulator/"
MAX_HEAD = 256 << 10  # bytes of one header line or of the request line


class Written(web.StreamResponse):
    """Tells aiohttp that the answer is on the wire already, and whether the connection lives on."""

    def __init__(self, alive: bool) -> None:
        super().__init__()
        self._alive = alive

    @property
    def keep_alive(self) -> bool | None:
        return self._alive

    async def prepare(self, request: web.BaseRequest) -> None:
        return None

    async def write_eof(self, data: bytes = b"") -> None:
        return None


class Emulator:
    """An upstream. `async with Emulator(spec) as emulator:` listens on loopback at `emulator.url`."""

    def __init__(self, spec: EmulatorSpec) -> None:
        self.spec = spec
        self.orgs = Orgs(spec, time.monotonic())
        self.plan = FaultPlan(spec.faults)
        self.troubles = {org.name: parse_fault(org.trouble) for org in spec.orgs if org.trouble}
        self.journal = Journal("")
        self.listeners: list[Listener] = []
        self.control: Listener | None = None
        self.attempts = 0
        self.in_flight = 0
        self.strangers = 0  # attempts without a known key
        self._folder = ""
        self._idle: asyncio.Future[None] | None = None
        self._serials = itertools.count(1)
        self._run = os.urandom(4).hex()
        self._kept, self._closed = Written(True), Written(False)

    def __repr__(self) -> str:
        return f"<Emulator {self.url or 'not started'} orgs={len(self.orgs.all)} attempts={self.attempts}>"

    @property
    def url(self) -> str:
        """The origin of the first listener, without a path (`http://127.0.0.1:49152`); empty before `start`."""
        return self.listeners[0].url if self.listeners else ""

    async def start(self, host: str = "127.0.0.1", port: int = 0, ssl_context: ssl.SSLContext | None = None) -> str:
        """Open the journal, the spool folder, a control port on loopback and the first listener; returns its url.

        Raises OSError when the port is taken or the journal cannot be opened.
        """
        spec = self.spec
        self.journal = Journal(spec.journal, fsync=spec.journal_fsync, max_bytes=spec.journal_max_bytes)
        self._folder = tempfile.mkdtemp(prefix="yugong-emulator-")
        try:
            first = await self.listen(host, port, ssl_context)
            self.control = Listener(self._make_server(control_only=True), FaultPlan(), 1000, None)
            self.control.open("127.0.0.1", 0)
        except BaseException:
            await self.stop()
            raise
        return first.url

    async def listen(
        self, host: str = "127.0.0.1", port: int = 0, ssl_context: ssl.SSLContext | None = None
    ) -> Listener:
        """One more origin in front of the same organisations, with a mode of its own."""
        made = Listener(self._make_server(), self.plan, self.spec.max_connections, ssl_context)
        made.open(host, port)
        self.listeners.append(made)
        return made

    async def stop(self) -> None:
        """Drop every connection, close the journal, remove the spool."""
        for listener in [*self.listeners, *([self.control] if self.control else [])]:
            await listener.close()
        self.listeners.clear()
        self.control = None
        self.journal.close()
        if self._folder:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = ""

    async def __aenter__(self) -> "Emulator":
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def idle(self) -> None:
        """Wait until no attempt is in flight, so that the journal has them all."""
        while self.in_flight:
            if self._idle is None:
                self._idle = asyncio.get_running_loop().create_future()
            await asyncio.shield(self._idle)

    def stats(self) -> dict[str, Any]:
        """Counters since the start, by org and overall."""
        return {
            "attempts": self.attempts,
            "in_flight": self.in_flight,
            "strangers": self.strangers,
            "faults": dict(self.plan.struck),
            "connections": sum(listener.accepted for listener in self.listeners),
            "journal": {"bytes": self.journal.size, "dropped": self.journal.dropped},
            "orgs": self.orgs.stats(),
        }

    def _make_server(self, control_only: bool = False) -> web.Server:
        return web.Server(
            self._handle_control if control_only else self._handle,
            handler_cancellation=True,
            access_log=None,
            auto_decompress=False,  # digests are of the bytes as they came
            max_line_size=MAX_HEAD,
            max_field_size=MAX_HEAD,
            max_headers=1000,
            lingering_time=0,
            keepalive_timeout=3600,
        )

    async def _handle_control(self, request: web.BaseRequest) -> web.StreamResponse:
        return await control.answer(self, request)

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        if request.raw_path.startswith(CONTROL_PREFIX):
            return await control.answer(self, request)
        attempt = Attempt(request, self.spec, f"{self._run}{next(self._serials):016x}")
        self.attempts += 1
        self.in_flight += 1
        response: web.StreamResponse | None = None
        try:
            response = await self._serve(attempt)
        except (asyncio.CancelledError, ClientLeft, ConnectionError):
            attempt.left_early = True
            raise
        except Exception:
            log.exception("emulator: %r", attempt)
            Wire(attempt).transport.abort()
            attempt.keep_alive = False
        finally:
            self.in_flight -= 1
            self._note(attempt)
            if self._idle is not None and not self.in_flight:
                self._idle.set_result(None)
                self._idle = None
        return response or (self._kept if attempt.keep_alive else self._closed)

    def _note(self, attempt: Attempt) -> None:
        """Counters, bill and journal line: once an attempt, whatever became of it."""
        org = attempt.org
        if attempt.group is not None:
            attempt.group.in_flight -= 1
        if attempt.fault is not None:
            self.plan.note(attempt.fault.kind)
        if org is None:
            self.strangers += 1
        else:
            org.attempts += 1
            org.statuses[attempt.status] = org.statuses.get(attempt.status, 0) + 1
            if attempt.usage:
                org.bill(attempt.usage)
        attempt.body.forget()
        self.journal.append(attempt.line())

    async def _serve(self, attempt: Attempt) -> web.StreamResponse | None:
        """One attempt, in a straight line. A response only for WebSockets, which aiohttp carries."""
        request = attempt.request
        if self.spec.deterministic:
            attempt.request_id = "req_deterministic"
        try:
            await self._take_body(attempt)
            route = find_route(request.method, attempt.path)
            attempt.key = key_of(request)
            found = self.orgs.find(attempt.key)
            if found is None:
                await self._refuse(attempt, errors.wrong_key(attempt.key))
                return None
            attempt.org, attempt.key_id = found
            wrong = self._read(attempt, route)
            is_websocket = request.headers.get("upgrade", "").lower() == "websocket"
            if is_websocket:
                attempt.streams = True
                attempt.model = request.query.get("model", "")
            self._pick_fault(attempt)
        except BodyError as error:
            await self._refuse(attempt, Trouble(error.status, "invalid_request_error", None, str(error)))
            return None
        except (FaultError, ValueError) as error:
            await self._refuse(attempt, errors.bad_request(f"emulator: {error}"))
            return None
        if attempt.fault is not None and attempt.fault.stage == "head":
            await strike_head(attempt, attempt.fault)
            return None
        if attempt.fault is not None and attempt.fault.stage == "early":
            await deliver(attempt, self._early(attempt, attempt.fault))
            return None
        if is_websocket:
            return await realtime.serve(attempt)
        refusal = wrong or self._admit(attempt, route)
        answer = refusal or route.handle(attempt)
        if isinstance(answer, Trouble):
            await self._refuse(attempt, answer)
        else:
            await deliver(attempt, answer)
        return None

    async def _take_body(self, attempt: Attempt) -> None:
        request = attempt.request
        if request.headers.get("expect", "").lower() == "100-continue":
            Wire(attempt).write(b"HTTP/1.1 100 Continue\r\n\r\n")
        if request.can_read_body:
            limits = (self.spec.memory_body_bytes, self.spec.max_body_bytes)
            attempt.body = await take_body(request.content, request.content_length, self._folder, limits)

    def _read(self, attempt: Attempt, route: Route) -> Trouble | None:
        """Read pace, document or form, model, prompt. A Trouble if the operation needs what is not there."""
        headers = attempt.request.headers
        pace = headers.get("x-emulator-pace")
        if pace:
            attempt.pace.read(pace)
        if not route.body:
            return None
        kind = headers.get("content-type", "")
        if route.body == "form" and not kind.startswith("multipart/form-data"):
            return errors.bad_request("This operation takes multipart/form-data.")
        if route.body != "json" and kind.startswith("multipart/"):
            attempt.texts, attempt.files = form_of(attempt.body, kind)
            attempt.prompt = attempt.texts.get("prompt", "").encode()
        else:
            try:
                attempt.document = orjson.loads(attempt.body.decoded(headers.get("content-encoding", "")))
            except orjson.JSONDecodeError as error:
                return errors.bad_request(f"We could not parse the JSON body of your request. ({error})")
            if not isinstance(attempt.document, dict):
                return errors.bad_request("The JSON body of a request is an object.")
            attempt.prompt = prompt_of(attempt.document)
        streams = attempt.field("stream")
        attempt.streams = streams in (True, "true", "True", "1") or attempt.field("stream_format") == "sse"
        model = attempt.field("model")
        attempt.model = model if isinstance(model, str) and model else route.model
        return route.check(attempt) if route.check else None

    def _pick_fault(self, attempt: Attempt) -> None:
        """The header's fault, else the org's standing trouble, else the lot; a stream's fault strikes streams only."""
        assert attempt.org is not None
        name = attempt.org.spec.name
        headers = attempt.request.headers
        asked = headers.get("x-emulator-fault")
        fault = None
        if asked:
            call = headers.get("x-emulator-call") or attempt.body.sha256 + attempt.target
            fault = self.plan.from_header(asked, name, call)
        fault = fault or self.troubles.get(name)
        fault = fault or self.plan.by_lot(name, attempt.model, attempt.path, attempt.streams)
        if fault is not None and (fault.stage != "stream" or attempt.streams):
            attempt.fault = fault

    def _admit(self, attempt: Attempt, route: Route) -> Trouble | None:
        """Find the limit group and charge it: one request and max(ceiling, estimate) tokens (facts: providers §2)."""
        if not route.charged:
            return None
        if not attempt.model:
            return errors.bad_request("you must provide a model parameter", "model", "missing_required_parameter")
        assert attempt.org is not None
        group = attempt.org.group_of(attempt.model)
        if group is None:
            return errors.no_model(attempt.model)
        prompt = count_tokens(attempt.prompt)
        asked = asked_tokens(attempt.document)
        tokens = max(asked, prompt)
        amounts = {"requests": 1, "tokens": tokens, "requests_day": 1, "tokens_day": tokens}
        amounts |= {"input_tokens": prompt, "output_tokens": asked}
        if attempt.path.startswith("/v1/images/"):
            count = attempt.field("n")
            amounts["images"] = int(count) if str(count).isdigit() else 1
        attempt.limits = group
        shortage = group.admit(amounts, time.monotonic())
        if shortage is not None:
            attempt.fault = None
            return errors.short_of(shortage, attempt.model, attempt.organization)
        attempt.group = group
        return None

    async def _refuse(self, attempt: Attempt, trouble: Trouble) -> None:
        await deliver(attempt, self._trouble(attempt, trouble))

    def _trouble(self, attempt: Attempt, trouble: Trouble) -> Answer:
        """An error in the attempt's dialect."""
        if attempt.dialect == "anthropic":
            body = errors.anthropic_error(trouble, attempt.request_id)
        else:
            body = errors.openai_error(trouble)
        return Answer(body, status=trouble.status, extra=errors.retry_headers(trouble, attempt.dialect))

    def _early(self, attempt: Attempt, fault: Fault) -> Answer:
        """What an early fault answers with."""
        trouble = self._limit_trouble(attempt, fault)
        if trouble is None:
            trouble = trouble_of(fault, attempt.model, attempt.organization, attempt.key)
        if trouble is not None:
            return self._trouble(attempt, trouble)
        if fault.kind in CLOUDFLARE:
            page = (
                f"<!DOCTYPE html>\n<title>{fault.kind}: {CLOUDFLARE[fault.kind]}</title>\n<h1>Error {fault.kind}</h1>\n"
            )
            return Answer(page.encode(), "text/html; charset=UTF-8", int(fault.kind))
        if fault.kind == "html_error":
            return Answer(errors.HTML_502, "text/html", fault.number(0, 502))
        if fault.kind == "redirect":
            target = fault.word(0, "http://169.254.169.254/latest/")
            return Answer(b"", "text/plain", 307, f"Location: {target}\r\n")
        if fault.kind in ("204", "304"):
            return Answer(b"", "", int(fault.kind))
        return Answer(b"")

    def _limit_trouble(self, attempt: Attempt, fault: Fault) -> Trouble | None:
        """A limit fault in the figures of the org's own bucket, so that headers, text and wait agree."""
        dimension = {"429_requests": "requests", "429_tokens": "tokens"}.get(fault.kind)
        group = attempt.org.group_of(attempt.model) if attempt.org and attempt.model else None
        if dimension is None or group is None:
            return None
        shortage = group.pretend(dimension, fault.number(0, 1000) / 1000, time.monotonic())
        if shortage is None:
            return None
        attempt.limits, attempt.empty = group, dimension
        return errors.short_of(shortage, attempt.model, attempt.organization)


def key_of(request: web.BaseRequest) -> str:
    """The credential a request carries, wherever the dialects allow it; "" if none."""
    headers = request.headers
    given = headers.get("authorization")
    if given and given[:7].lower() == "bearer ":
        return given[7:].strip()
    for name in ("x-api-key", "api-key", "x-goog-api-key"):
        given = headers.get(name)
        if given:
            return given.strip()
    for offered in headers.get("sec-websocket-protocol", "").split(","):
        if offered.strip().startswith("openai-insecure-api-key."):
            return offered.strip().removeprefix("openai-insecure-api-key.")
    return ""
