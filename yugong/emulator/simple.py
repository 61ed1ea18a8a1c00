"""The short answers: embeddings, moderations, models, and the echo for every operation that has no room of its own."""

import base64
import hashlib
import struct
from typing import Any

import orjson

from yugong.emulator import errors
from yugong.emulator.attempt import FIXED_TIME, Answer, Attempt
from yugong.emulator.errors import Trouble
from yugong.emulator.text import count_tokens

# Left out of an echo: what a proxy has to change (credential, host, hop-by-hop, organisation, coding) so that two
# echoes are equal exactly if the requests were.
UNECHOED = frozenset(
    "authorization api-key x-api-key x-goog-api-key proxy-authorization cookie host connection keep-alive te trailer "
    "transfer-encoding upgrade content-length accept-encoding openai-organization openai-project expect "
    "anthropic-workspace-id x-forwarded-for x-forwarded-proto x-forwarded-host forwarded via".split()
)


def models(attempt: Attempt) -> Answer:
    if attempt.dialect == "anthropic":
        return _anthropic_models(attempt)
    data = [_model(name) for name in attempt.spec.models if _has(attempt, name)]
    return Answer(orjson.dumps({"object": "list", "data": data}))


def model(attempt: Attempt) -> Answer | Trouble:
    name = attempt.path.removeprefix("/v1/models/")
    if not _has(attempt, name):
        return errors.no_model(name)
    if attempt.dialect == "anthropic":
        return Answer(orjson.dumps(_anthropic_model(name)))
    return Answer(orjson.dumps(_model(name)))


def _has(attempt: Attempt, name: str) -> bool:
    return attempt.org is not None and attempt.org.group_of(name) is not None


def _model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": FIXED_TIME, "owned_by": "system"}


def _anthropic_model(name: str) -> dict[str, Any]:
    return {"type": "model", "id": name, "display_name": name, "created_at": "2026-01-01T00:00:00Z"}


def _anthropic_models(attempt: Attempt) -> Answer:
    names = [name for name in attempt.spec.models if name.startswith("claude") and _has(attempt, name)]
    listed = {"data": [_anthropic_model(name) for name in names], "has_more": False}
    ends = {"first_id": names[0] if names else None, "last_id": names[-1] if names else None}
    return Answer(orjson.dumps(listed | ends))


def embeddings(attempt: Attempt) -> Answer | Trouble:
    """One vector an input: components in [-1, 1) from the SHA-256 of the input and the component's number."""
    given = attempt.field("input")
    if given is None:
        return errors.bad_request("Missing required parameter: 'input'.", "input", "missing_required_parameter")
    several = isinstance(given, list) and given and not isinstance(given[0], int)
    inputs = given if several else [given]
    size = attempt.field("dimensions")
    size = size if isinstance(size, int) and 0 < size <= 3072 else 1536
    data = [_embedding(attempt, i, orjson.dumps(each), size) for i, each in enumerate(inputs)]
    tokens = count_tokens(attempt.prompt)
    attempt.usage = {"input": tokens}
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return Answer(orjson.dumps({"object": "list", "data": data, "model": attempt.model, "usage": usage}))


def _embedding(attempt: Attempt, index: int, given: bytes, size: int) -> dict[str, Any]:
    raw = hashlib.shake_128(given).digest(size * 2)
    vector = [number / 32768 for number in struct.unpack(f"<{size}h", raw)]
    if attempt.field("encoding_format") == "base64":
        coded = base64.b64encode(struct.pack(f"<{size}f", *vector)).decode()
        return {"object": "embedding", "index": index, "embedding": coded}
    return {"object": "embedding", "index": index, "embedding": vector}


CATEGORIES = (
    "harassment harassment/threatening hate hate/threatening illicit illicit/violent self-harm self-harm/intent "
    "self-harm/instructions sexual sexual/minors violence violence/graphic"
).split()


def moderations(attempt: Attempt) -> Answer:
    """Flags what contains the word `violence`, nothing else. Free."""
    given = attempt.field("input")
    inputs = given if isinstance(given, list) else [given]
    results = [_moderated(b"violence" in orjson.dumps(each)) for each in inputs]
    attempt.usage = {}
    return Answer(orjson.dumps({"id": attempt.make_id("modr-"), "model": attempt.model, "results": results}))


def _moderated(flagged: bool) -> dict[str, Any]:
    return {
        "flagged": flagged,
        "categories": {name: flagged and name == "violence" for name in CATEGORIES},
        "category_scores": {name: 0.97 if flagged and name == "violence" else 0.001 for name in CATEGORIES},
        "category_applied_input_types": {name: ["text"] if flagged else [] for name in CATEGORIES},
    }


def echo(attempt: Attempt) -> Answer:
    """What arrived, in JSON: the same request gets the same bytes."""
    headers = [
        [name.decode("latin-1"), value.decode("latin-1")]
        for name, value in attempt.request.raw_headers
        if name.decode("latin-1").lower() not in UNECHOED
    ]
    said = {
        "object": "emulator.echo",
        "method": attempt.request.method,
        "target": attempt.target,
        "headers": headers,
        "body_bytes": attempt.body.size,
        "body_sha256": attempt.body.sha256,
    }
    return Answer(orjson.dumps(said, option=orjson.OPT_INDENT_2))
