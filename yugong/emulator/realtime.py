"""WebSockets: `/v1/realtime`, `/v1/responses`, and an echo on every other path.

Realtime speaks the events a text conversation needs and bills the whole context with each response (facts:
providers §4). On the echo every text and binary frame comes back as it was; the text `close:CODE[:REASON]` closes
with that code. Pings are answered with the same payload. Each response is admitted like any other call.
"""

import asyncio
import time
from typing import Any

import orjson
from aiohttp import WSMsgType, web

from yugong.emulator import errors, responses
from yugong.emulator.attempt import Attempt
from yugong.emulator.errors import Trouble
from yugong.emulator.text import asked_tokens, count_tokens, expected_text, piece, prompt_of

MAX_FRAME = 64 << 20
SUBPROTOCOLS = ("realtime", "openai-beta.realtime-v1", "responses", "echo")


async def serve(attempt: Attempt) -> web.StreamResponse:
    """One WebSocket, from upgrade to close."""
    request = attempt.request
    ws = web.WebSocketResponse(protocols=SUBPROTOCOLS, max_msg_size=MAX_FRAME, compress=False, timeout=2.0)
    ws.headers["x-request-id"] = attempt.request_id
    ws.headers["openai-organization"] = attempt.organization
    if not ws.can_prepare(request).ok:
        attempt.status = 400
        return web.Response(status=400, text="this is no WebSocket handshake")
    await ws.prepare(request)
    attempt.status = 101
    attempt.usage = {}
    session = _SESSIONS.get(attempt.path, Echo)(attempt, ws)
    await session.open()
    async for message in ws:
        if message.type is WSMsgType.TEXT:
            await session.text(message.data)
        elif message.type is WSMsgType.BINARY:
            await session.binary(message.data)
    return ws


class Echo:
    """Frames come back as they were."""

    def __init__(self, attempt: Attempt, ws: web.WebSocketResponse) -> None:
        self.attempt = attempt
        self.ws = ws

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.attempt.path} events={self.attempt.events}>"

    async def open(self) -> None:
        """Speak first, where the protocol does."""

    async def text(self, data: str) -> None:
        if data.startswith("close:"):
            _, code, *reason = data.split(":", 2)
            await self.ws.close(code=int(code), message=(reason[0] if reason else "").encode())
            return
        self._count(len(data))
        await self.ws.send_str(data)

    async def binary(self, data: bytes) -> None:
        self._count(len(data))
        await self.ws.send_bytes(data)

    def _count(self, size: int) -> None:
        self.attempt.sent += size
        self.attempt.events += 1

    async def send(self, document: Any) -> bool:
        """Send a JSON frame. False when the attempt's fault struck instead and no more is to be sent."""
        data = document if isinstance(document, bytes) else orjson.dumps(document)
        if self._is_struck():
            await self._strike()
            return False
        if self.attempt.pace.interval:
            await asyncio.sleep(self.attempt.pace.interval)
        self._count(len(data))
        await self.ws.send_str(data.decode())
        return True

    def _is_struck(self) -> bool:
        fault = self.attempt.fault
        return fault is not None and fault.stage == "stream" and self.attempt.events >= fault.number(0, 3)

    async def _strike(self) -> None:
        fault = self.attempt.fault
        assert fault is not None
        if fault.kind == "stuck_stream":
            await asyncio.get_running_loop().create_future()
        elif fault.kind in ("error_first_event", "error_mid_stream"):
            error = {"type": "error", "status": 500, "error": {"type": "server_error", "message": errors.SERVER_ERROR}}
            await self.ws.send_str(orjson.dumps(error).decode())
            self.attempt.fault = None
        else:
            transport = self.attempt.request.transport
            if transport is not None:
                transport.abort()

    def admit(self, model: str, prompt: bytes, ceiling: int) -> Trouble | None:
        """Charge the org for one response inside the socket."""
        org = self.attempt.org
        assert org is not None
        group = org.group_of(model)
        if group is None:
            return errors.no_model(model)
        input_tokens = count_tokens(prompt)
        tokens = max(ceiling, input_tokens)
        amounts = {"requests": 1, "tokens": tokens, "requests_day": 1, "tokens_day": tokens}
        shortage = group.admit(amounts | {"input_tokens": input_tokens, "output_tokens": ceiling}, time.monotonic())
        if shortage is not None:
            return errors.short_of(shortage, model, org.spec.organization)
        group.in_flight -= 1  # frames of one socket come one after the other: nothing runs beside it
        return None

    def add_usage(self, usage: dict[str, int]) -> None:
        total = self.attempt.usage if self.attempt.usage is not None else {}
        for unit, amount in usage.items():
            total[unit] = total.get(unit, 0) + amount
        self.attempt.usage = total


class ResponsesSocket(Echo):
    """`wss://…/v1/responses`: `response.create` in, the events of a stream out, one frame each."""

    async def text(self, data: str) -> None:
        try:
            document = orjson.loads(data)
        except orjson.JSONDecodeError as error:
            await self._error(errors.bad_request(f"We could not parse the frame. ({error})"))
            return
        if not isinstance(document, dict) or document.get("type") != "response.create":
            await self._error(errors.bad_request("Frames of this socket are `response.create`."))
            return
        attempt, so_far = self.attempt, self.attempt.usage or {}
        attempt.document, attempt.prompt = document, prompt_of(document)
        attempt.pace.seed = ""
        attempt.model = str(document.get("model") or "")
        trouble = self.admit(attempt.model, attempt.prompt, asked_tokens(document)) or responses.checked(attempt)
        if trouble is not None:
            await self._error(trouble)
            return
        attempt.serial = f"{attempt.serial[:24]}{attempt.events:08x}"  # ids differ from response to response
        stream_id = document.get("stream_id")
        for _, event in responses.events(attempt):
            if stream_id is not None:
                event = event[:-1] + b',"stream_id":' + orjson.dumps(stream_id) + b"}"
            if not await self.send(event):
                break
        billed, attempt.usage = attempt.usage or {}, so_far
        self.add_usage(billed)

    async def binary(self, data: bytes) -> None:
        await self._error(errors.bad_request("Frames of this socket are text."))

    async def _error(self, trouble: Trouble) -> None:
        await self.send({"type": "error", "status": trouble.status, "error": errors.openai_fields(trouble)})


class RealtimeSocket(Echo):
    """`wss://…/v1/realtime`: one conversation in text."""

    def __init__(self, attempt: Attempt, ws: web.WebSocketResponse) -> None:
        super().__init__(attempt, ws)
        self.items: list[dict[str, Any]] = []
        self.session: dict[str, Any] = {
            "type": "realtime",
            "object": "realtime.session",
            "id": attempt.make_id("sess_"),
            "model": attempt.model,
            "output_modalities": ["audio"],
            "instructions": "",
            "tools": [],
            "tool_choice": "auto",
            "max_output_tokens": "inf",
        }
        self.numbered = 0

    async def open(self) -> None:
        await self.event("session.created", session=self.session)

    async def event(self, kind: str, **fields: Any) -> bool:
        self.numbered += 1
        return await self.send({"type": kind, "event_id": f"event_{self.attempt.serial}_{self.numbered}", **fields})

    async def text(self, data: str) -> None:
        try:
            document = orjson.loads(data)
        except orjson.JSONDecodeError as error:
            await self._error(f"Could not parse the event. ({error})")
            return
        kind = document.get("type") if isinstance(document, dict) else None
        if kind == "session.update":
            self.session |= document.get("session") or {}
            await self.event("session.updated", session=self.session)
        elif kind == "conversation.item.create":
            await self._add(document.get("item") or {})
        elif kind == "response.create":
            await self._respond(document.get("response") or {})
        elif kind == "input_audio_buffer.commit":
            await self.event("input_audio_buffer.committed", item_id=self._new_id("item_"), previous_item_id=None)
        elif kind == "input_audio_buffer.clear":
            await self.event("input_audio_buffer.cleared")
        elif kind not in ("input_audio_buffer.append", "response.cancel"):
            await self._error(f"Invalid value: '{kind}'.", document if isinstance(document, dict) else {})

    def _new_id(self, prefix: str) -> str:
        return f"{prefix}{self.attempt.serial}_{self.numbered}"

    async def _add(self, item: dict[str, Any]) -> None:
        previous = self.items[-1]["id"] if self.items else None
        item = {"object": "realtime.item", "status": "completed", **item}
        item.setdefault("id", self._new_id("item_"))
        self.items.append(item)
        await self.event("conversation.item.added", previous_item_id=previous, item=item)
        await self.event("conversation.item.done", previous_item_id=previous, item=item)

    async def _respond(self, asked: dict[str, Any]) -> None:
        """One response to the whole conversation."""
        prompt = prompt_of({"instructions": self.session["instructions"], "messages": self.items})
        ceiling = asked.get("max_output_tokens", self.session["max_output_tokens"])
        trouble = self.admit(self.attempt.model, prompt, ceiling if isinstance(ceiling, int) else 0)
        if trouble is not None:
            await self.event("error", error=errors.openai_fields(trouble) | {"event_id": None})
            return
        attempt = self.attempt
        attempt.prompt, attempt.pace.seed = prompt, ""
        pieces = min(attempt.pace.pieces, ceiling) if isinstance(ceiling, int) else attempt.pace.pieces
        response: dict[str, Any] = {
            "object": "realtime.response",
            "id": self._new_id("resp_"),
            "status": "in_progress",
            "output": [],
        }
        response |= {"conversation_id": attempt.make_id("conv_"), "output_modalities": ["text"], "usage": None}
        item: dict[str, Any] = {"object": "realtime.item", "id": self._new_id("item_"), "type": "message"}
        item |= {"role": "assistant", "status": "in_progress", "content": []}
        at = {"response_id": response["id"], "item_id": item["id"], "output_index": 0, "content_index": 0}
        text = expected_text(attempt.seed, pieces, attempt.pace.size)
        await self.event("response.created", response=response)
        await self.event("response.output_item.added", response_id=response["id"], output_index=0, item=item)
        for i in range(pieces):
            delta = piece(attempt.seed, i, attempt.pace.size)
            if not await self.event("response.output_text.delta", **at, delta=delta):
                self.add_usage({"input": count_tokens(prompt), "output": i})
                return
        await self.event("response.output_text.done", **at, text=text)
        item |= {"status": "completed", "content": [{"type": "output_text", "text": text}]}
        self.items.append(item)
        await self.event("response.output_item.done", response_id=response["id"], output_index=0, item=item)
        done = response | {"status": "completed", "output": [item], "usage": _usage(count_tokens(prompt), pieces)}
        self.add_usage({"input": count_tokens(prompt), "output": pieces})
        await self.event("response.done", response=done)
        await self.event("rate_limits.updated", rate_limits=self._limits())

    def _limits(self) -> list[dict[str, Any]]:
        org = self.attempt.org
        group = org.group_of(self.attempt.model) if org else None
        return [
            {
                "name": name,
                "limit": int(bucket.capacity),
                "remaining": max(0, int(bucket.level)),
                "reset_seconds": round(bucket.reset(), 3),
            }
            for name, bucket in (group.buckets if group else ())
            if name in ("requests", "tokens")
        ]

    async def _error(self, message: str, cause: dict[str, Any] | None = None) -> None:
        fields = errors.openai_fields(errors.bad_request(message, "type", "invalid_value"))
        await self.event("error", error=fields | {"event_id": (cause or {}).get("event_id")})

    async def binary(self, data: bytes) -> None:
        await self._error("Events are text frames.")


def _usage(prompt: int, output: int) -> dict[str, Any]:
    return {
        "total_tokens": prompt + output,
        "input_tokens": prompt,
        "output_tokens": output,
        "input_token_details": {
            "text_tokens": prompt,
            "audio_tokens": 0,
            "image_tokens": 0,
            "cached_tokens": 0,
            "cached_tokens_details": {"text_tokens": 0, "audio_tokens": 0, "image_tokens": 0},
        },
        "output_token_details": {"text_tokens": output, "audio_tokens": 0},
    }


_SESSIONS: dict[str, type[Echo]] = {"/v1/realtime": RealtimeSocket, "/v1/responses": ResponsesSocket}
