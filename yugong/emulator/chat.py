"""Chat completions and completions, whole and streamed, as OpenAI answers them.

Usage in a stream only when asked for (facts: providers §3): with `include_usage` every chunk carries `"usage":null`
and one more chunk, with empty `choices`, carries the usage before `[DONE]`; without it no chunk says `usage` at all.
Prompt and output are counted as `text` states. With `tool_choice` "required" or a named tool the answer is one call
of it whose argument `text` is the expected text.
"""

from collections.abc import Iterator
from typing import Any

import orjson

from yugong.emulator.attempt import Answer, Attempt
from yugong.emulator.text import count_tokens, expected_text, piece, piece_json

DONE = b"data: [DONE]\n\n"
FINGERPRINT = "fp_emulator0"
TIERS = {None: "default", "auto": "default", "fast": "priority"}  # asked → what the answer says was used


def bill(attempt: Attempt, output: int) -> dict[str, int]:
    """Note what the attempt is billed: input (cached included), of it cached, output."""
    cached = attempt.org.cached_tokens(attempt.prompt) if attempt.org else 0
    attempt.usage = {"input": count_tokens(attempt.prompt), "cached": cached, "output": output}
    return attempt.usage


def usage_of(billed: dict[str, int]) -> dict[str, Any]:
    """The `usage` object of a chat completion."""
    prompt, output = billed["input"], billed["output"]
    return {
        "prompt_tokens": prompt,
        "completion_tokens": output,
        "total_tokens": prompt + output,
        "prompt_tokens_details": {"cached_tokens": billed["cached"], "audio_tokens": 0},
        "completion_tokens_details": {
            "reasoning_tokens": 0,
            "audio_tokens": 0,
            "accepted_prediction_tokens": 0,
            "rejected_prediction_tokens": 0,
        },
    }


def choice_seed(attempt: Attempt, index: int) -> str:
    """The seed of choice `index`: the attempt's own for the first, `SEED-INDEX` for the others."""
    return f"{attempt.seed}-{index}" if index else attempt.seed


def _count(attempt: Attempt) -> int:
    n = attempt.field("n")
    return n if isinstance(n, int) and 1 <= n <= 128 else 1


def _tool(attempt: Attempt) -> str | None:
    """The name of the tool that has to be called, if one has."""
    choice, tools = attempt.field("tool_choice"), attempt.field("tools")
    if not isinstance(tools, list) or not tools or choice in (None, "none", "auto"):
        return None
    named = choice if isinstance(choice, dict) else tools[0]
    name = named.get("function", {}).get("name") if isinstance(named, dict) else None
    return name if isinstance(name, str) else None


def _options(attempt: Attempt) -> tuple[bool, bool]:
    """`include_usage` and `include_obfuscation` of a stream."""
    options = attempt.field("stream_options")
    if not isinstance(options, dict):
        return False, True
    return options.get("include_usage") is True, options.get("include_obfuscation") is not False


def chat(attempt: Attempt) -> Answer:
    pieces, finish = attempt.pieces()
    count = _count(attempt)
    billed = bill(attempt, pieces * count)
    tier = attempt.field("service_tier")
    common = {
        "id": attempt.make_id("chatcmpl-"),
        "object": "chat.completion.chunk" if attempt.streams else "chat.completion",
        "created": attempt.created,
        "model": attempt.model,
        "service_tier": TIERS.get(tier, tier) if isinstance(tier, str | None) else "default",
        "system_fingerprint": FINGERPRINT,
    }
    tool = _tool(attempt)
    if attempt.streams:
        events = _tool_events if tool else _chat_events
        return Answer.stream(_chunks(attempt, common, events(attempt, tool or "", pieces, finish)), DONE)
    choices = [_choice(attempt, i, pieces, "tool_calls" if tool else finish, tool) for i in range(count)]
    return Answer(orjson.dumps({**common, "choices": choices, "usage": usage_of(billed)}))


def _choice(attempt: Attempt, index: int, pieces: int, finish: str, tool: str | None) -> dict[str, Any]:
    text = expected_text(choice_seed(attempt, index), pieces, attempt.pace.size)
    message: dict[str, Any] = {"role": "assistant", "content": text, "refusal": None, "annotations": []}
    if tool:
        arguments = orjson.dumps({"text": text}).decode()
        call = {"id": attempt.make_id("call_"), "type": "function", "function": {"name": tool, "arguments": arguments}}
        message |= {"content": None, "tool_calls": [call]}
    return {"index": index, "message": message, "logprobs": None, "finish_reason": finish}


def _chunks(attempt: Attempt, common: dict[str, Any], deltas: Iterator[tuple[int, bytes, bytes]]) -> Iterator[bytes]:
    """Chunks around deltas: (choice's index, delta as JSON, finish reason as JSON)."""
    include_usage, obfuscate = _options(attempt)
    before = b"data: " + orjson.dumps(common)[:-1] + b',"choices":['
    after = b"]" + (b',"usage":null' if include_usage else b"") + (b',"obfuscation":"aZ3x"' if obfuscate else b"")
    after += b"}\n\n"
    for index, delta, finish in deltas:
        yield b'%b{"index":%d,"delta":%b,"logprobs":null,"finish_reason":%b}%b' % (before, index, delta, finish, after)
    if include_usage:
        usage = orjson.dumps(usage_of(attempt.usage or {}))
        yield before + b'],"usage":' + usage + (b',"obfuscation":""' if obfuscate else b"") + b"}\n\n"


def _chat_events(attempt: Attempt, _: str, pieces: int, finish: str) -> Iterator[tuple[int, bytes, bytes]]:
    size = attempt.pace.size
    for index in range(_count(attempt)):
        seed = choice_seed(attempt, index)
        yield index, b'{"role":"assistant","content":"","refusal":null}', b"null"
        for i in range(pieces):
            yield index, b'{"content":%b}' % piece_json(seed, i, size), b"null"
        yield index, b"{}", orjson.dumps(finish)


def _tool_events(attempt: Attempt, tool: str, pieces: int, _: str) -> Iterator[tuple[int, bytes, bytes]]:
    call = {"index": 0, "id": attempt.make_id("call_"), "type": "function"}
    opening = {
        "role": "assistant",
        "content": None,
        "tool_calls": [call | {"function": {"name": tool, "arguments": ""}}],
    }
    yield 0, orjson.dumps(opening), b"null"
    parts = ['{"text":"', *(piece_json(attempt.seed, i, attempt.pace.size)[1:-1].decode() for i in range(pieces)), '"}']
    for part in parts:
        yield 0, orjson.dumps({"tool_calls": [{"index": 0, "function": {"arguments": part}}]}), b"null"
    yield 0, b"{}", b'"tool_calls"'


def completion(attempt: Attempt) -> Answer:
    """POST /v1/completions, of the older models."""
    pieces, finish = attempt.pieces()
    billed = bill(attempt, pieces)
    common = {
        "id": attempt.make_id("cmpl-"),
        "object": "text_completion",
        "created": attempt.created,
        "model": attempt.model,
        "system_fingerprint": FINGERPRINT,
    }
    if attempt.streams:
        return Answer.stream(_completion_events(attempt, common, pieces, finish), DONE)
    text = expected_text(attempt.seed, pieces, attempt.pace.size)
    choice = {"text": text, "index": 0, "logprobs": None, "finish_reason": finish}
    return Answer(orjson.dumps({**common, "choices": [choice], "usage": usage_of(billed)}))


def _completion_events(attempt: Attempt, common: dict[str, Any], pieces: int, finish: str) -> Iterator[bytes]:
    include_usage, _ = _options(attempt)
    nulls: dict[str, Any] = {"usage": None} if include_usage else {}
    for i in range(pieces):
        text = piece(attempt.seed, i, attempt.pace.size)
        ending = finish if i == pieces - 1 else None
        choice = {"text": text, "index": 0, "logprobs": None, "finish_reason": ending}
        yield b"data: " + orjson.dumps({**common, "choices": [choice], **nulls}) + b"\n\n"
    if include_usage:
        yield b"data: " + orjson.dumps({**common, "choices": [], "usage": usage_of(attempt.usage or {})}) + b"\n\n"
