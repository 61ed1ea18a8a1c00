"""The Responses API: made whole or streamed, kept per org, fetched, listed, cancelled, deleted.

A stream is `event: TYPE` with numbered `data` and ends in `response.completed` (or `.incomplete` when the body's
ceiling cut it), without `[DONE]` (facts: providers §3). The WebSocket form sends the same documents as frames.
"""

from collections.abc import Iterator
from typing import Any

import orjson

from yugong.emulator import errors
from yugong.emulator.attempt import Answer, Attempt
from yugong.emulator.chat import TIERS, bill
from yugong.emulator.errors import Trouble
from yugong.emulator.text import count_tokens, expected_text, piece_json
from yugong.emulator.wire import sse


def checked(attempt: Attempt) -> Trouble | None:
    previous = attempt.field("previous_response_id")
    if previous is None:
        return None
    if attempt.org is None or str(previous) not in attempt.org.responses:
        message = f"Previous response with id '{previous}' not found."
        return errors.bad_request(message, "previous_response_id", "previous_response_not_found")
    return None


def create(attempt: Attempt) -> Answer:
    if attempt.streams:
        return Answer.stream(_as_sse(events(attempt)))
    response = finished(attempt, _blank(attempt))
    return Answer(orjson.dumps(response))


def _as_sse(documents: Iterator[tuple[str, bytes]]) -> Iterator[bytes]:
    for kind, document in documents:
        yield sse(document, kind)


def _blank(attempt: Attempt) -> dict[str, Any]:
    """The response object as it begins."""
    tier = attempt.field("service_tier")
    return {
        "id": attempt.make_id("resp_"),
        "object": "response",
        "created_at": attempt.created,
        "status": "in_progress",
        "background": False,
        "error": None,
        "incomplete_details": None,
        "instructions": attempt.field("instructions"),
        "max_output_tokens": attempt.field("max_output_tokens"),
        "model": attempt.model,
        "output": [],
        "parallel_tool_calls": True,
        "previous_response_id": attempt.field("previous_response_id"),
        "reasoning": {"effort": None, "summary": None},
        "service_tier": TIERS.get(tier, tier) if isinstance(tier, str | None) else "default",
        "store": attempt.field("store") is not False,
        "temperature": 1.0,
        "text": {"format": {"type": "text"}},
        "tool_choice": attempt.field("tool_choice", "auto"),
        "tools": attempt.field("tools", []),
        "top_p": 1.0,
        "truncation": "disabled",
        "usage": None,
        "user": attempt.field("user"),
        "metadata": attempt.field("metadata") or {},
    }


def _message(attempt: Attempt, text: str, status: str) -> dict[str, Any]:
    content = [{"type": "output_text", "annotations": [], "logprobs": [], "text": text}]
    return {
        "id": attempt.make_id("msg_"),
        "type": "message",
        "status": status,
        "role": "assistant",
        "content": content if status != "in_progress" else [],
    }


def finished(attempt: Attempt, response: dict[str, Any]) -> dict[str, Any]:
    """The response whole, billed, and kept unless `store` is false."""
    pieces, finish = attempt.pieces()
    billed = bill(attempt, pieces)
    text = expected_text(attempt.seed, pieces, attempt.pace.size)
    whole = response | {
        "status": "completed" if finish == "stop" else "incomplete",
        "incomplete_details": None if finish == "stop" else {"reason": "max_output_tokens"},
        "output": [_message(attempt, text, "completed" if finish == "stop" else "incomplete")],
        "usage": usage_of(billed),
    }
    org = attempt.org
    if whole["store"] and org is not None:
        org.responses[whole["id"]] = {"response": whole, "input": attempt.field("input")}
        if len(org.responses) > attempt.spec.max_stored:
            org.responses.popitem(last=False)
    return whole


def usage_of(billed: dict[str, int]) -> dict[str, Any]:
    return {
        "input_tokens": billed["input"],
        "input_tokens_details": {"cached_tokens": billed["cached"], "cache_write_tokens": 0},
        "output_tokens": billed["output"],
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": billed["input"] + billed["output"],
    }


def events(attempt: Attempt) -> Iterator[tuple[str, bytes]]:
    """All events of a streamed response: type and document."""
    blank = _blank(attempt)
    whole = finished(attempt, blank)
    pieces, _ = attempt.pieces()
    item = whole["output"][0]
    part = item["content"][0]
    at = {"item_id": item["id"], "output_index": 0, "content_index": 0}
    opening: list[tuple[str, dict[str, Any]]] = [
        ("response.created", {"response": blank}),
        ("response.in_progress", {"response": blank}),
        ("response.output_item.added", {"output_index": 0, "item": _message(attempt, "", "in_progress")}),
        ("response.content_part.added", at | {"part": part | {"text": ""}}),
    ]
    closing: list[tuple[str, dict[str, Any]]] = [
        ("response.output_text.done", at | {"text": part["text"], "logprobs": []}),
        ("response.content_part.done", at | {"part": part}),
        ("response.output_item.done", {"output_index": 0, "item": item}),
        (f"response.{whole['status']}", {"response": whole}),
    ]
    number = 0
    for kind, fields in opening:
        yield kind, orjson.dumps({"type": kind, "sequence_number": number, **fields})
        number += 1
    before = orjson.dumps({"type": "response.output_text.delta", **at, "logprobs": []})[:-1]
    for i in range(pieces):
        delta = piece_json(attempt.seed, i, attempt.pace.size)
        yield "response.output_text.delta", b'%b,"sequence_number":%d,"delta":%b}' % (before, number, delta)
        number += 1
    for kind, fields in closing:
        yield kind, orjson.dumps({"type": kind, "sequence_number": number, **fields})
        number += 1


def _stored(attempt: Attempt) -> tuple[str, dict[str, Any] | None]:
    name = attempt.path.split("/")[3]
    return name, attempt.org.responses.get(name) if attempt.org else None


def _missing(name: str) -> Trouble:
    return errors.not_found(f"Response with id '{name}' not found.")


def fetch(attempt: Attempt) -> Answer | Trouble:
    """GET a stored response; with `stream=true` only its last event. Billed to nobody: it was billed when made."""
    name, kept = _stored(attempt)
    if kept is None:
        return _missing(name)
    if "stream=true" in attempt.query:
        kind = f"response.{kept['response']['status']}"
        document = orjson.dumps({"type": kind, "sequence_number": 0, "response": kept["response"]})
        return Answer.stream([sse(document, kind)])
    return Answer(orjson.dumps(kept["response"]))


def delete(attempt: Attempt) -> Answer | Trouble:
    name, kept = _stored(attempt)
    if kept is None or attempt.org is None:
        return _missing(name)
    del attempt.org.responses[name]
    return Answer(orjson.dumps({"id": name, "object": "response", "deleted": True}))


def cancel(attempt: Attempt) -> Answer | Trouble:
    name, kept = _stored(attempt)
    if kept is None:
        return _missing(name)
    return errors.bad_request("Cannot cancel a synchronous response.")


def input_items(attempt: Attempt) -> Answer | Trouble:
    name, kept = _stored(attempt)
    if kept is None:
        return _missing(name)
    given = kept["input"]
    items = given if isinstance(given, list) else [_user_message(name, given)]
    data = [item | {"id": item.get("id", f"msg_{i}_{name}")} for i, item in enumerate(items) if isinstance(item, dict)]
    ends = {"first_id": data[0]["id"] if data else None, "last_id": data[-1]["id"] if data else None}
    return Answer(orjson.dumps({"object": "list", "data": data, "has_more": False, **ends}))


def _user_message(name: str, text: Any) -> dict[str, Any]:
    content = [{"type": "input_text", "text": text or ""}]
    return {"type": "message", "role": "user", "status": "completed", "id": f"msg_0_{name}", "content": content}


def input_tokens(attempt: Attempt) -> Answer:
    """POST /v1/responses/input_tokens: a count, free."""
    attempt.usage = {}
    counted = {"object": "response.input_tokens", "input_tokens": count_tokens(attempt.prompt)}
    return Answer(orjson.dumps(counted))
