"""What Anthropic's errors mean. Rows and rules as in OpenAI's table (facts/providers.md §5; anthropic 2.10).

Its 429s name the reason in `error.details.error_code`; a spent balance comes as a 400 with a sentence.
"""

from __future__ import annotations

from yugong.base.errors import Fault, Penalty, Scope
from yugong.core.dialects.dialect import Headers
from yugong.core.dialects.faults import Row, judge_by, judge_success, read_error, read_error_object

_5XX = range(500, 600)

TABLE = (
    Row(
        "no_money",
        Scope.ORG,
        Penalty.PARK,
        codes={"enforced_spend_limit_reached", "contract_spend_limit_reached"},
        types={"billing_error"},
        text=r"credit balance is too low",
    ),
    Row("no_money", Scope.ORG, Penalty.PARK, statuses={402}),
    Row("slow_down", Scope.MODEL, Penalty.COOL, codes={"ramp_limit_exceeded"}),
    Row("edge_limited", Scope.EGRESS, Penalty.COOL, statuses={429}, html=True),
    Row("rate_limited", Scope.MODEL, Penalty.COOL, statuses={429}),
    Row("rate_limited", Scope.MODEL, Penalty.COOL, types={"rate_limit_error"}),
    Row("edge_blocked", Scope.EGRESS, Penalty.COUNT, statuses={403}, html=True),
    # Where a country is not served: `forbidden` "Request not allowed".
    Row("country", Scope.EGRESS, Penalty.COUNT, statuses={403}, types={"forbidden"}, retry=False),
    Row(
        "org_refused",
        Scope.ORG,
        Penalty.QUARANTINE,
        statuses={400, 401, 403},
        text=r"organization has been (?:disabled|suspended)",
    ),
    Row("key_refused", Scope.KEY, Penalty.QUARANTINE, statuses={401}),
    # A restricted key: the caller chose what to ask for, so no penalty.
    Row("scope_missing", Scope.KEY, Penalty.NONE, statuses={403}, types={"permission_error"}),
    Row("model_denied", Scope.MODEL, Penalty.EXCLUDE, statuses={404}, text=r"^model:"),
    Row("timeout_answer", Scope.ORIGIN, Penalty.COUNT, statuses={408, 504}),
    Row("overloaded", Scope.MODEL, Penalty.COUNT, statuses={529}),
    Row("overloaded", Scope.MODEL, Penalty.COUNT, types={"overloaded_error"}),
    Row("edge_error", Scope.ORIGIN, Penalty.COUNT, statuses={*range(520, 528), 530}),
    Row("not_an_answer", Scope.ORIGIN, Penalty.COUNT, statuses={*range(200, 300), *_5XX}, html=True),
    Row("server_error", Scope.ORIGIN, Penalty.COUNT, statuses=_5XX),
    Row("timeout_answer", Scope.ORIGIN, Penalty.COUNT, statuses={0}, types={"timeout_error"}),
    Row("server_error", Scope.ORIGIN, Penalty.COUNT, statuses={0}, types={"api_error"}),
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
    """The fault `{"type":"error","error":{…}}` tells of."""
    return judge_by(TABLE, 0, (), read_error_object(document))
