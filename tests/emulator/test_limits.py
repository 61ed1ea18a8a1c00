"""Limits as a client meets them: headers on success, 429 in OpenAI's words, room again after the wait."""

import asyncio
import re

import pytest

from tests.emulator.conftest import BODY, Serve, ask
from yugong.emulator import EmulatorSpec, GroupSpec, Limits, OrgSpec


async def test_headers_tell_of_the_limits(serve: Serve) -> None:
    emulator = await serve(EmulatorSpec.uniform(limits=Limits(rpm=60, tpm=150_000)))
    heard = await ask(emulator, body=BODY | {"max_tokens": 16})
    assert heard.status == 200
    assert heard.fields["x-ratelimit-limit-requests"] == "60"
    assert heard.fields["x-ratelimit-remaining-requests"] == "59"
    assert heard.fields["x-ratelimit-reset-requests"] == "1s"
    assert heard.fields["x-ratelimit-remaining-tokens"] == "149984"
    for name in (
        "openai-organization",
        "openai-processing-ms",
        "openai-version",
        "x-request-id",
        "cf-ray",
        "set-cookie",
    ):
        assert name in heard.fields


async def test_the_larger_of_ceiling_and_estimate_is_charged(serve: Serve) -> None:
    emulator = await serve(EmulatorSpec.uniform(limits=Limits(tpm=1000)))
    heard = await ask(emulator, body=BODY | {"max_completion_tokens": 400})
    assert heard.fields["x-ratelimit-remaining-tokens"] == "600"
    long = {"model": "gpt-4o", "messages": [{"role": "user", "content": "x" * 2000}], "max_tokens": 1}
    heard = await ask(emulator, body=long)
    assert 100 <= int(heard.fields["x-ratelimit-remaining-tokens"]) <= 110


async def test_requests_run_out_and_come_back(serve: Serve) -> None:
    emulator = await serve(EmulatorSpec.uniform(limits=Limits(rpm=600)))
    org = emulator.orgs.all["org-0"]
    org.groups[0][1].buckets[0][1].level = 1.0
    assert (await ask(emulator)).status == 200
    heard = await ask(emulator)
    assert heard.status == 429
    error = heard.json["error"]
    assert (error["type"], error["code"], error["param"]) == ("requests", "rate_limit_exceeded", None)
    pattern = (
        rf"Rate limit reached for gpt-4o in organization {org.spec.organization} on requests per min \(RPM\): "
        r"Limit 600, Used 600, Requested 1\. Please try again in (\d+)ms\. Visit "
    )
    told = re.match(pattern, error["message"])
    assert told, error["message"]
    assert heard.fields["retry-after"] == "1"
    assert heard.fields["retry-after-ms"] == told[1]
    assert heard.fields["x-ratelimit-remaining-requests"] == "0"
    await asyncio.sleep(int(told[1]) / 1000)  # the refill is what is tested
    assert (await ask(emulator)).status == 200
    stats = emulator.stats()["orgs"]["org-0"]
    assert stats["statuses"] == {"200": 2, "429": 1}
    assert stats["groups"]["default"]["refused"] == {"requests": 1}


TOO_LARGE = (
    r"Request too large for gpt-4o in organization org-\w+ on tokens per min \(TPM\): Limit 100, Requested 1000\. "
)
A_DAY = (
    r"Rate limit reached .* per day \(TPD\): Limit 100, Used 60, Requested 60\. Please try again in 4h4[78]m[\d.]+s\. "
)
REQUESTS_A_DAY = r".* on requests per day \(RPD\): Limit 1, Used 1, Requested 1\. Please try again in 2\dh"


@pytest.mark.parametrize(
    ("limits", "ask_for", "kind", "words", "wait"),
    [
        (Limits(tpm=100), 1000, "tokens", TOO_LARGE, None),  # no wait helps, so none is told
        (Limits(tpd=100), 60, "tokens", A_DAY, 17_280),
        (Limits(rpd=1), 1, "requests", REQUESTS_A_DAY, 86_400),
    ],
)
async def test_the_other_words(
    serve: Serve, limits: Limits, ask_for: int, kind: str, words: str, wait: int | None
) -> None:
    emulator = await serve(EmulatorSpec.uniform(limits=limits))
    body = BODY | {"max_tokens": ask_for}
    first = await ask(emulator, body=body)
    heard = first if first.status == 429 else await ask(emulator, body=body)
    assert heard.status == 429
    assert heard.json["error"]["type"] == kind
    assert re.match(words, heard.json["error"]["message"]), heard.json
    told = heard.fields.get("retry-after")
    assert (told is None) == (wait is None)
    assert told is None or abs(int(told) - (wait or 0)) <= 3


async def test_images_a_minute(serve: Serve) -> None:
    emulator = await serve(EmulatorSpec.uniform(limits=Limits(ipm=5)))
    body = {"model": "gpt-image-1", "prompt": "a mountain", "n": 3}
    assert (await ask(emulator, "/v1/images/generations", body=body)).status == 200
    heard = await ask(emulator, "/v1/images/generations", body=body)
    assert heard.status == 429
    assert "images per minute in organization org-" in heard.json["error"]["message"]
    assert "Limit: 5/1min. Current: 6/1min." in heard.json["error"]["message"]


async def test_orgs_are_apart_and_keys_of_one_share(serve: Serve) -> None:
    emulator = await serve(EmulatorSpec.uniform(2, 2, Limits(rpm=1)))
    (a1, a2), (b1, _) = (org.keys for org in emulator.spec.orgs)
    statuses = [(await ask(emulator, key=key)).status for key in (a1, a2, b1)]
    assert statuses == [200, 429, 200]


async def test_models_an_org_does_not_have(serve: Serve) -> None:
    groups = (GroupSpec("mini", ("*-mini",), Limits(rpm=5)),)
    emulator = await serve(EmulatorSpec(orgs=(OrgSpec("some", ("key",), groups=groups),)))
    heard = await ask(emulator)
    assert heard.status == 404
    assert heard.json["error"]["code"] == "model_not_found"
    assert heard.json["error"]["message"].startswith("The model `gpt-4o` does not exist or you do not have access")
    listed = [each["id"] for each in (await ask(emulator, "/v1/models", method="GET", body=b"")).json["data"]]
    assert listed == [name for name in emulator.spec.models if name.endswith("-mini")]


async def test_wrong_keys(serve: Serve) -> None:
    emulator = await serve()
    heard = await ask(emulator, key="sk-proj-abcdefghijklmnop1234")
    assert heard.status == 401
    assert heard.json["error"]["code"] == "invalid_api_key"
    assert heard.json["error"]["message"].startswith(
        "Incorrect API key provided: sk-proj-****************1234. You can"
    )
    heard = await ask(emulator, headers={"Authorization": None})
    assert heard.status == 401
    assert heard.json["error"]["message"].startswith("You didn't provide an API key.")


async def test_anthropic_says_it_its_own_way(serve: Serve) -> None:
    emulator = await serve(EmulatorSpec.uniform(limits=Limits(rpm=1, itpm=1000, otpm=500)))
    body = {"model": "claude-opus-5-5", "max_tokens": 100, "messages": BODY["messages"]}
    headers = {"anthropic-version": "2023-06-01"}
    heard = await ask(emulator, "/v1/messages", body=body, headers=headers)
    assert heard.status == 200
    assert heard.fields["anthropic-ratelimit-output-tokens-remaining"] == "400"
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", heard.fields["anthropic-ratelimit-requests-reset"])
    assert heard.fields["request-id"].startswith("req_")
    assert "openai-version" not in heard.fields
    heard = await ask(emulator, "/v1/messages", body=body, headers=headers)
    assert heard.status == 429
    assert heard.json["type"] == "error"
    assert heard.json["error"]["type"] == "rate_limit_error"
    assert heard.json["request_id"] == heard.fields["request-id"]
    assert int(heard.fields["retry-after"]) >= 59


@pytest.mark.parametrize(
    ("path", "body", "message"),
    [
        ("/v1/chat/completions", b"{", "We could not parse the JSON body"),
        ("/v1/chat/completions", b"[]", "The JSON body of a request is an object"),
        ("/v1/chat/completions", b"{}", "you must provide a model parameter"),
        ("/v1/messages", b"{}", "anthropic-version: header is required"),
        ("/v1/files", b"{}", "This operation takes multipart/form-data"),
        (
            "/v1/responses",
            b'{"model":"m","previous_response_id":"resp_x"}',
            "Previous response with id 'resp_x' not found",
        ),
    ],
)
async def test_what_a_caller_does_wrong(serve: Serve, path: str, body: bytes, message: str) -> None:
    heard = await ask(await serve(), path, body=body)
    assert heard.status == 400
    assert heard.json["error"]["message"].startswith(message)
