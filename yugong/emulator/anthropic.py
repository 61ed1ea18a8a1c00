"""Anthropic's native API: messages, whole and streamed, and token counting (facts: providers §3, §5).

`input_tokens` leaves out what the cache read or wrote; in a stream the usage of `message_delta` is cumulative.
"""

from collections.abc import Iterator
from typing import Any

import orjson

from yugong.emulator import errors
from yugong.emulator.attempt import Answer, Attempt
from yugong.emulator.chat import bill
from yugong.emulator.errors import Trouble
from yugong.emulator.text import count_tokens, expected_text, piece_json
from yugong.emulator.wire import sse

VERSIONS = ("2023-06-01", "2026-10-21")
FINISH = {"stop": "end_turn", "length": "max_tokens"}


def checked(attempt: Attempt) -> Trouble | None:
    """What Anthropic refuses before it looks at limits."""
    version = attempt.request.headers.get("anthropic-version")
    if version is None:
        return errors.bad_request("anthropic-version: header is required")
    if version not in VERSIONS:
        return errors.bad_request(f'anthropic-version: "{version}" is not a valid version')
    if version == "2026-10-21":
        for name in ("temperature", "top_p", "top_k"):
            if attempt.field(name) is not None:
                return errors.bad_request(f"{name}: Extra inputs are not permitted")
    if not isinstance(attempt.field("messages"), list):
        return errors.bad_request("messages: Field required")
    if attempt.path == "/v1/messages" and not isinstance(attempt.field("max_tokens"), int):
        return errors.bad_request("max_tokens: Field required")
    return None


def messages(attempt: Attempt) -> Answer:
    pieces, finish = attempt.pieces()
    billed = bill(attempt, pieces)
    message: dict[str, Any] = {
        "id": attempt.make_id("msg_"),
        "type": "message",
        "role": "assistant",
        "model": attempt.model,
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "usage": usage_of(billed, 1),
    }
    if attempt.streams:
        return Answer.stream(_events(attempt, message, pieces, FINISH[finish]), content_type="text/event-stream")
    text = expected_text(attempt.seed, pieces, attempt.pace.size)
    message["content"] = [{"type": "text", "text": text}]
    return Answer(orjson.dumps(message | {"stop_reason": FINISH[finish], "usage": usage_of(billed, pieces)}))


def usage_of(billed: dict[str, int], output: int) -> dict[str, Any]:
    """The `usage` object; the org's prompt cache counts as read, nothing as written."""
    return {
        "input_tokens": billed["input"] - billed["cached"],
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": billed["cached"],
        "cache_creation": {"ephemeral_5m_input_tokens": 0, "ephemeral_1h_input_tokens": 0},
        "output_tokens": output,
        "service_tier": "standard",
    }


def _events(attempt: Attempt, message: dict[str, Any], pieces: int, stop: str) -> Iterator[bytes]:
    yield sse(orjson.dumps({"type": "message_start", "message": message}), "message_start")
    yield sse(
        b'{"type":"content_block_start","index":0,"content_block":{"type":"text","text":""}}', "content_block_start"
    )
    yield sse(b'{"type": "ping"}', "ping")
    for i in range(pieces):
        text = piece_json(attempt.seed, i, attempt.pace.size)
        yield (
            b"event: content_block_delta\n"
            b'data: {"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":%b}}\n\n' % text
        )
    yield sse(b'{"type":"content_block_stop","index":0}', "content_block_stop")
    assert attempt.usage is not None
    delta = {"stop_reason": stop, "stop_sequence": None}
    usage = usage_of(attempt.usage, pieces)
    del usage["service_tier"], usage["cache_creation"]
    yield sse(orjson.dumps({"type": "message_delta", "delta": delta, "usage": usage}), "message_delta")
    yield sse(b'{"type":"message_stop"}', "message_stop")


def count(attempt: Attempt) -> Answer:
    """POST /v1/messages/count_tokens. Free."""
    attempt.usage = {}
    return Answer(orjson.dumps({"input_tokens": count_tokens(attempt.prompt)}))
