"""How upstream says no: the error bodies of both dialects, word for word where the words are known. Pure.

OpenAI's is `{"error":{"message","type","param","code"}}`, Anthropic's `{"type":"error","error":{"type","message",
"details"?},"request_id"}` (facts: providers §2 and §5). Nothing here knows when to say it.
"""

import math
from typing import Any, NamedTuple

import orjson

from yugong.emulator.buckets import DIMENSIONS, Shortage, go_duration

DOCS = "https://platform.openai.com/docs/guides/error-codes/api-errors"
LIMITS_PAGE = "https://platform.openai.com/account/rate-limits"
KEYS_PAGE = "https://platform.openai.com/account/api-keys"

SERVER_ERROR = (
    "The server had an error while processing your request. Sorry about that! You can retry your request, or contact "
    "us through our help center at help.openai.com if you keep seeing this error."
)
OVERLOADED = "The server is currently overloaded with other requests. Sorry about that! Please try again later."
SLOW_DOWN = (
    "Slow down: the rate of requests grew too fast. Please reduce your request rate to its original level, keep it "
    "consistent for at least 15 minutes, and then gradually increase it."
)
COUNTRY = "Country, region, or territory not supported"
NO_KEY = (
    "You didn't provide an API key. You need to provide your API key in an Authorization header using Bearer auth "
    "(i.e. Authorization: Bearer YOUR_KEY), or as the password field (with blank username) if you're accessing the API "
    "from your browser and are prompted for a username and password. You can obtain an API key from "
    f"{KEYS_PAGE}."
)

# code → message; the type stays insufficient_quota (facts §2: read the code)
QUOTA = {
    "insufficient_quota": "You exceeded your current quota, please check your plan and billing details. For more "
    f"information on this error, read the docs: {DOCS}.",
    "credit_balance_exhausted": "Your credit balance is exhausted. Please add credits to continue using the API.",
    "organization_spend_limit_exceeded": "This request would exceed your organization's spend limit.",
    "project_spend_limit_exceeded": "This request would exceed your project's spend limit.",
    "organization_usage_limit_exceeded": "Your organization has reached its usage limit.",
}

# status → Anthropic's error type
ANTHROPIC_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    409: "invalid_request_error",
    413: "request_too_large",
    429: "rate_limit_error",
    500: "api_error",
    502: "api_error",
    503: "api_error",
    504: "timeout_error",
    529: "overloaded_error",
}


class Trouble(NamedTuple):
    """An answer that is an error, before it is put in a dialect's shape."""

    status: int
    type: str
    code: str | None
    message: str
    param: str | None = None
    wait: float | None = None  # seconds; goes into retry-after
    details: dict[str, Any] | None = None  # Anthropic only


def openai_error(trouble: Trouble) -> bytes:
    return orjson.dumps({"error": openai_fields(trouble)}, option=orjson.OPT_INDENT_2)


def openai_fields(trouble: Trouble) -> dict[str, Any]:
    return {"message": trouble.message, "type": trouble.type, "param": trouble.param, "code": trouble.code}


def anthropic_error(trouble: Trouble, request_id: str) -> bytes:
    return orjson.dumps(anthropic_fields(trouble, request_id))


def anthropic_fields(trouble: Trouble, request_id: str) -> dict[str, Any]:
    error: dict[str, Any] = {"type": ANTHROPIC_TYPES.get(trouble.status, "api_error"), "message": trouble.message}
    if trouble.details:
        error["details"] = trouble.details
    return {"type": "error", "error": error, "request_id": request_id}


def retry_headers(trouble: Trouble, dialect: str) -> str:
    """`retry-after` (whole seconds, at least 1) and, as OpenAI sends, `retry-after-ms`."""
    if trouble.wait is None or math.isinf(trouble.wait):
        return ""
    seconds = max(1, math.ceil(trouble.wait))
    if dialect == "anthropic":
        return f"retry-after: {seconds}\r\n"
    return f"retry-after: {seconds}\r\nretry-after-ms: {max(1, math.ceil(trouble.wait * 1000))}\r\n"


def masked(key: str) -> str:
    """A key as OpenAI echoes it: first eight and last four characters, stars between."""
    if len(key) <= 12:
        return "*" * len(key)
    return f"{key[:8]}{'*' * (len(key) - 12)}{key[-4:]}"


def wrong_key(key: str) -> Trouble:
    if not key:
        return Trouble(401, "invalid_request_error", None, NO_KEY)
    message = f"Incorrect API key provided: {masked(key)}. You can find your API key at {KEYS_PAGE}."
    return Trouble(401, "invalid_request_error", "invalid_api_key", message)


def no_model(model: str) -> Trouble:
    message = f"The model `{model}` does not exist or you do not have access to it."
    return Trouble(404, "invalid_request_error", "model_not_found", message)


def short_of(shortage: Shortage, model: str, organization: str) -> Trouble:
    """The 429 a shortage in the buckets is told with."""
    s = shortage
    if s.dimension == "concurrency":
        return slow_down(s.wait)
    if s.dimension == "images":
        message = (
            f"Rate limit exceeded for images per minute in organization {organization}. "
            f"Limit: {s.limit}/1min. Current: {s.used + s.requested}/1min. Please visit {LIMITS_PAGE} to learn more."
        )
        return Trouble(429, "requests", "rate_limit_exceeded", message, wait=s.wait)
    _, _, kind, words = DIMENSIONS[s.dimension]
    if math.isinf(s.wait):
        message = (
            f"Request too large for {model} in organization {organization} on {words}: Limit {s.limit}, "
            f"Requested {s.requested}. The input or output tokens must be reduced in order to run successfully. "
            f"Visit {LIMITS_PAGE} to learn more."
        )
        return Trouble(429, kind, "rate_limit_exceeded", message)
    message = (
        f"Rate limit reached for {model} in organization {organization} on {words}: Limit {s.limit}, Used {s.used}, "
        f"Requested {s.requested}. Please try again in {go_duration(s.wait)}. Visit {LIMITS_PAGE} to learn more."
    )
    return Trouble(429, kind, "rate_limit_exceeded", message, wait=s.wait)


def slow_down(wait: float | None = 1.0) -> Trouble:
    return Trouble(429, "rate_limit_error", "slow_down", SLOW_DOWN, wait=wait)


def bad_request(message: str, param: str | None = None, code: str | None = None) -> Trouble:
    return Trouble(400, "invalid_request_error", code, message, param)


def not_found(message: str, code: str | None = None) -> Trouble:
    return Trouble(404, "invalid_request_error", code, message)


HTML_502 = (
    b"<html>\r\n<head><title>502 Bad Gateway</title></head>\r\n<body>\r\n<center><h1>502 Bad Gateway</h1></center>\r\n"
    b"<hr><center>cloudflare</center>\r\n</body>\r\n</html>\r\n"
)
