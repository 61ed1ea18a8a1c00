"""Usage and streams as OpenAI writes them (facts/providers.md §3–4).

One reader for all its usage objects: `prompt_tokens`/`completion_tokens` of chat, `input_tokens`/`output_tokens` of the
rest, with the details under their three spellings.
"""

from __future__ import annotations

from collections.abc import Mapping

from yugong.core.dialects.dialect import Usage
from yugong.core.dialects.taps import Document, StreamRule, count


def read_usage(known: Usage | None, document: Document) -> Usage | None:
    """(hot) Usage of an answer or event: its own `usage`, or that of the `response` in it; else what was known.

    Events repeat it as running totals, so the last one stands.
    """
    usage = document.get("usage")
    if not isinstance(usage, dict):
        response = document.get("response")
        if not isinstance(response, dict):
            return known
        document = response
        usage = document.get("usage")
        if not isinstance(usage, dict):
            return known
    return _usage(usage, document) if usage else known


def _usage(raw: dict[str, object], document: Document) -> Usage:
    get = raw.get
    usage = Usage(
        count(get("prompt_tokens", get("input_tokens"))), count(get("completion_tokens", get("output_tokens")))
    )
    details = get("prompt_tokens_details") or get("input_tokens_details") or get("input_token_details")
    if isinstance(details, dict):
        usage.cached = count(details.get("cached_tokens"))
        usage.cache_write = count(details.get("cache_write_tokens"))
    details = get("completion_tokens_details") or get("output_tokens_details") or get("output_token_details")
    if isinstance(details, dict):
        usage.reasoning = count(details.get("reasoning_tokens"))
    tier = document.get("service_tier")
    if isinstance(tier, str):
        usage.service_tier = tier[:32]
    usage.raw = raw
    return usage


def _rule(name: str, *ends: bytes) -> StreamRule:
    return StreamRule(name, read_usage, frozenset({b"error", *ends}) if ends else None)


#: By the names the table of operations uses.
RULES: Mapping[str, StreamRule] = {
    rule.name: rule
    for rule in (
        _rule(""),
        _rule("chat", b"[DONE]"),
        _rule("completions", b"[DONE]"),
        _rule("responses", b"response.completed", b"response.incomplete", b"response.failed", b"[DONE]"),
        _rule("images", b"image_generation.completed", b"image_edit.completed", b"[DONE]"),
        _rule("speech", b"speech.audio.done", b"[DONE]"),
        _rule("transcriptions", b"transcript.text.done", b"[DONE]"),
        # `event: done` with data `[DONE]`.
        _rule("assistants", b"[DONE]", b"done"),
    )
}
