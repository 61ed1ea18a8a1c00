"""Header names both sides must agree on: what never travels, what may.

Names are lower-case bytes. Sources: RFC 9110 §7.6.1 (hop-by-hop), OpenAI's documented headers, `facts/threats.md` 3–4,
7, 11–12, 41–43.
"""

from __future__ import annotations

#: RFC 9110 §7.6.1 and the proxies' own. Named by `Connection` or not, these end at each hop.
HOP_BY_HOP = frozenset(
    {
        b"connection",
        b"keep-alive",
        b"proxy-connection",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
        b"http2-settings",
    }
)

#: Where a client may put its key (first match wins; two different ones are refused).
CREDENTIALS = frozenset({b"authorization", b"api-key", b"x-api-key", b"x-goog-api-key"})

#: Client headers that never go upstream, beside hop-by-hop ones, credentials and framing. The org headers belong to
#: the pool key; cookies and forwarding headers are between the client and us; `expect` we have already answered.
NOT_UPSTREAM = frozenset(
    {
        b"host",
        b"content-length",
        b"accept-encoding",
        b"expect",
        b"cookie",
        b"openai-organization",
        b"openai-project",
        b"anthropic-workspace-id",
        b"forwarded",
        b"via",
        b"x-forwarded-for",
        b"x-forwarded-host",
        b"x-forwarded-proto",
        b"x-forwarded-port",
        b"x-forwarded-prefix",
        b"x-real-ip",
        b"cf-connecting-ip",
        b"true-client-ip",
        b"x-yugong-max-wait",
    }
)

#: What an answer may carry to the client. Everything else names organisations, servers or cookies (threat 11), or
#: describes the pool's limits instead of the customer's.
TO_CLIENT = frozenset(
    {
        b"accept-ranges",
        b"age",
        b"allow",
        b"cache-control",
        b"content-disposition",
        b"content-encoding",
        b"content-language",
        b"content-length",
        b"content-range",
        b"content-type",
        b"date",
        b"etag",
        b"expires",
        b"last-modified",
        b"link",
        b"location",
        b"openai-model",
        b"openai-processing-ms",
        b"openai-version",
        b"request-id",
        b"retry-after",
        b"retry-after-ms",
        b"vary",
        b"x-request-id",
        b"x-should-retry",
    }
)
