"""The operations of OpenAI's API, as far as a call must know them before and after it travels.

Sources: openapi.yaml (commit f85dbe22) and openai-python 3.51. What makes objects (files, batches, runs, …) is not
repeatable: doing it twice leaves two. What only makes an answer is, at the price of paying for it twice.
"""

from __future__ import annotations

from yugong.core.dialects.operations import Operation, Table

_ROWS = (
    Operation("POST", "/chat/completions", "chat.completions", model="required", stream="chat", repeatable=True),
    Operation("POST", "/completions", "completions", model="required", stream="completions", repeatable=True),
    # The model may stand in the prompt template: `prompt` instead of `model` is allowed (openapi.yaml).
    Operation("POST", "/responses", "responses", model="required", stream="responses", repeatable=True),
    Operation("POST", "/responses/compact", "responses.compact", model="required", repeatable=True),
    Operation(
        "POST", "/responses/input_tokens", "responses.input_tokens", model="optional", repeatable=True, metered=False
    ),
    Operation("POST", "/decisions", "decisions", model="required", stream="responses", repeatable=True),
    Operation("POST", "/embeddings", "embeddings", model="required", repeatable=True),
    Operation("POST", "/moderations", "moderations", model="optional", repeatable=True),
    Operation("POST", "/images/generations", "images.generations", model="optional", stream="images", repeatable=True),
    Operation("POST", "/images/edits", "images.edits", model="optional", stream="images", repeatable=True),
    Operation("POST", "/images/variations", "images.variations", model="optional", repeatable=True),
    Operation("POST", "/audio/speech", "audio.speech", model="required", stream="speech", repeatable=True),
    Operation(
        "POST",
        "/audio/transcriptions",
        "audio.transcriptions",
        model="required",
        stream="transcriptions",
        repeatable=True,
    ),
    Operation("POST", "/audio/translations", "audio.translations", model="required", repeatable=True),
    Operation("POST", "/vector_stores/{}/search", "vector_stores.search", repeatable=True),
    Operation("POST", "/fine_tuning/alpha/graders/run", "fine_tuning.graders", repeatable=True),
    Operation("POST", "/fine_tuning/alpha/graders/validate", "fine_tuning.graders", repeatable=True),
    Operation("GET", "/models", "models.list", repeatable=True, metered=False),
    Operation("GET", "/models/{}", "models", repeatable=True, metered=False),
    Operation("DELETE", "/models/{}", "models", metered=False),
    Operation("GET", "/realtime", "realtime", repeatable=True),
)

#: First segments of the paths above and below, with the stream rule of what they answer.
_FAMILIES = {
    "agents": "",
    "assistants": "",
    "audio": "",
    "batches": "",
    "chat": "chat",
    "chatkit": "",
    "completions": "completions",
    "containers": "",
    "content_provenance_checks": "",
    "conversations": "",
    "dashboard": "",
    "decisions": "responses",
    "embeddings": "",
    "evals": "",
    "files": "",
    "fine_tuning": "",
    "images": "images",
    "live": "",
    "models": "",
    "moderations": "",
    "organization": "",
    "projects": "",
    "realtime": "",
    "responses": "responses",
    "safety": "",
    "skills": "",
    "threads": "assistants",
    "uploads": "",
    "vaults": "",
    "vector_stores": "",
    "videos": "",
    "webhook_endpoints": "",
    "webhook_event_types": "",
}

TABLE = Table(_ROWS, _FAMILIES)
