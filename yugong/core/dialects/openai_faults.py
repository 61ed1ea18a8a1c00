"""What OpenAI's errors mean: whom they speak of, whether trying again helps, what they do to whom they name.

One row each, first match wins (facts/providers.md §2; I4). Two rules run through it. What names money, a key or a limit
is held against the org or key that answered and tried elsewhere. What a caller can bring about by what it sends must
never cost a key its health: so a missing scope only moves the call, and an unknown 4xx is the caller's.
"""

from __future__ import annotations

from yugong.base.errors import Fault, Penalty, Scope
from yugong.core.dialects.dialect import Headers
from yugong.core.dialects.faults import Row, judge_by, judge_success, read_error, read_error_object

_5XX = range(500, 600)

TABLE = (
    # Money: the type may stay `insufficient_quota` whatever the code. `billing_hard_limit_reached` comes as a 400.
    Row(
        "no_money",
        Scope.ORG,
        Penalty.PARK,
        codes={
            "insufficient_quota",
            "credit_balance_exhausted",
            "organization_spend_limit_exceeded",
            "project_spend_limit_exceeded",
            "organization_usage_limit_exceeded",
            "billing_hard_limit_reached",
            "billing_not_active",
        },
        types={"insufficient_quota"},
    ),
    Row("no_money", Scope.ORG, Penalty.PARK, statuses={402}),
    Row(
        "no_money", Scope.ORG, Penalty.PARK, statuses={403, 429}, text=r"exceeded your current quota|not active, please"
    ),
    # Limits. A request over a limit can never fit this org but may fit a larger one: nothing is wrong with this.
    Row("request_too_large", Scope.MODEL, Penalty.NONE, statuses={429}, text=r"^request too large"),
    Row("slow_down", Scope.MODEL, Penalty.COOL, codes={"slow_down"}),
    # The edge limits addresses, not keys (one such page must not stop every key behind it).
    Row("edge_limited", Scope.EGRESS, Penalty.COOL, statuses={429}, html=True),
    Row("rate_limited", Scope.MODEL, Penalty.COOL, statuses={429}),
    Row("rate_limited", Scope.MODEL, Penalty.COOL, codes={"rate_limit_exceeded"}),
    # Keys, organisations, countries.
    Row("country", Scope.EGRESS, Penalty.COUNT, codes={"unsupported_country_region_territory"}, retry=False),
    Row("edge_blocked", Scope.EGRESS, Penalty.COUNT, statuses={403}, html=True),
    Row(
        "address_refused",
        Scope.ORG,  # its own list of addresses; other organisations have none
        Penalty.QUARANTINE,
        statuses={401, 403},
        codes={"ip_not_authorized"},
        text=r"\bIP (?:address )?(?:is )?not (?:authorized|allowed)|\bIP (?:address )?allow ?-?list",
    ),
    Row(
        "scope_missing",
        Scope.KEY,  # a restricted key: the caller chose the operation, so no penalty
        Penalty.NONE,
        statuses={401, 403},
        codes={"missing_scope", "insufficient_permissions"},
        text=r"missing scopes?|insufficient permissions",
    ),
    Row(
        "org_refused",
        Scope.ORG,
        Penalty.QUARANTINE,
        statuses={401, 403, 429},
        codes={"account_deactivated", "organization_deactivated", "access_terminated", "organization_suspended"},
        text=r"(?:account|organization|project) (?:has been|is|was) (?:deactivated|suspended|disabled|archived)",
    ),
    Row("model_denied", Scope.MODEL, Penalty.EXCLUDE, codes={"model_not_found"}),
    Row(
        "model_denied",
        Scope.MODEL,
        Penalty.EXCLUDE,
        statuses={403, 404},
        text=r"does not have access to (?:the )?model|must be verified to (?:use|stream)"
        r"|\bmodel .{1,200} does not exist",
    ),
    Row("key_refused", Scope.KEY, Penalty.QUARANTINE, statuses={401}),
    # A lock somebody else holds for a moment (conversations, threads): the call goes home again, so to the same org.
    # Other conflicts are the caller's; its SDK retries a 409 by itself if it likes.
    Row(
        "locked",
        Scope.CALLER,
        Penalty.NONE,
        statuses={409},
        codes={"conversation_locked", "resource_locked", "lock_timeout"},
        text=r"\block|try again|another (?:process|request|operation)|concurrent|being modified",
    ),
    # Capacity and breakage.
    Row("timeout_answer", Scope.ORIGIN, Penalty.COUNT, statuses={408}),
    Row(
        "overloaded",
        Scope.MODEL,
        Penalty.COUNT,
        statuses={0, 200, *_5XX},
        codes={"server_is_overloaded", "engine_overloaded", "overloaded"},
        types={"service_unavailable_error", "overloaded_error"},
        text=r"overloaded|at capacity",
    ),
    Row("overloaded", Scope.MODEL, Penalty.COUNT, statuses={529}),
    Row("edge_error", Scope.ORIGIN, Penalty.COUNT, statuses={*range(520, 528), 530}),
    Row("not_an_answer", Scope.ORIGIN, Penalty.COUNT, statuses={*range(200, 300), *_5XX}, html=True),
    Row("server_error", Scope.ORIGIN, Penalty.COUNT, statuses=_5XX),
    # Errors inside a stream have no status (0): what is not known to be the server's doing is the caller's.
    Row(
        "server_error",
        Scope.ORIGIN,
        Penalty.COUNT,
        statuses={0},
        codes={"server_error", "internal_error", "vector_store_timeout", "timeout", "500", "502", "503", "504"},
        types={"server_error", "api_error", "internal_server_error"},
        text=r"server had an error|internal (?:server )?error|timed? ?out",
    ),
    Row("unnamed_error", Scope.ORIGIN, Penalty.COUNT, statuses={0}, text=r"^$"),
    Row("caller", Scope.CALLER, Penalty.NONE, retry=False),
)

KINDS = frozenset(row.kind for row in TABLE) | {"empty_answer"}


def judge(status: int, headers: Headers, body: bytes) -> Fault | None:
    """The fault in an answer, None if it is to be passed on. Never raises."""
    if status >= 400:
        return judge_by(TABLE, status, headers, read_error(body))
    return judge_success(TABLE, status, headers, body)


def judge_event(document: object) -> Fault:
    """The fault an error event tells of: `{"error":{…}}`, flat `{"type":"error",…}`, or a failed response. An HTTP
    status in it (WebSocket frames carry one) counts as if the answer had it."""
    status = 0
    if isinstance(document, dict):
        told = document.get("status")
        status = told if type(told) is int and 400 <= told < 600 else 0
        response = document.get("response")
        if isinstance(response, dict):
            document = response
        elif document.get("type") == "error" and not isinstance(document.get("error"), dict):
            document = {**document, "type": None}  # the event's type, not the error's
    return judge_by(TABLE, status, (), read_error_object(document))
