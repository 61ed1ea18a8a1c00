"""The dialects against the official SDKs, over a real socket: what they say raises what it must."""

from collections.abc import AsyncIterator, Callable

import anthropic
import openai
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from yugong.base.errors import Refusal, RefusalKind
from yugong.core.dialects import catalog
from yugong.core.dialects.dialect import Dialect, Intent

BODIES: dict[str, tuple[int, list[tuple[bytes, bytes]], bytes]] = {}


async def answer(request: web.Request) -> web.Response:
    """Whatever the test laid out for this path."""
    await request.read()
    status, headers, body = BODIES[request.path]
    return web.Response(status=status, headers={name.decode(): value.decode() for name, value in headers}, body=body)


@pytest.fixture
async def base() -> AsyncIterator[str]:
    app = web.Application()
    app.router.add_route("*", "/{rest:.*}", answer)
    async with TestServer(app) as server:
        yield f"http://127.0.0.1:{server.port}"
    BODIES.clear()


def openai_client(base: str) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(api_key="k", base_url=f"{base}/v1", max_retries=0)


def anthropic_client(base: str) -> anthropic.AsyncAnthropic:
    return anthropic.AsyncAnthropic(api_key="k", base_url=base, max_retries=0)


async def chat(client: openai.AsyncOpenAI, *, stream: bool = False) -> list[object]:
    made = await client.chat.completions.create(model="m", messages=[{"role": "user", "content": "x"}], stream=stream)  # type: ignore[call-overload]
    return [chunk async for chunk in made] if stream else [made]


@pytest.mark.parametrize(
    ("kind", "error"),
    [
        (RefusalKind.BAD_JSON, openai.BadRequestError),
        (RefusalKind.NO_MODEL, openai.BadRequestError),
        (RefusalKind.INVALID_KEY, openai.AuthenticationError),
        (RefusalKind.FORBIDDEN, openai.PermissionDeniedError),
        (RefusalKind.UNKNOWN_MODEL, openai.NotFoundError),
        (RefusalKind.CONFLICT, openai.ConflictError),
        (RefusalKind.NO_ROOM, openai.RateLimitError),
        (RefusalKind.NO_BALANCE, openai.RateLimitError),
        (RefusalKind.TOO_LARGE, openai.APIStatusError),
        (RefusalKind.INTERNAL, openai.InternalServerError),
        (RefusalKind.NO_UPSTREAM, openai.InternalServerError),
        (RefusalKind.UPSTREAM_TIMEOUT, openai.InternalServerError),
    ],
)
async def test_openai_refusals(base: str, kind: RefusalKind, error: type[openai.APIStatusError]) -> None:
    BODIES["/v1/chat/completions"] = catalog()["openai"].refuse(Refusal(kind, "Because.", param="p"), "yg_1-1")
    async with openai_client(base) as client:
        with pytest.raises(error, match="Because") as caught:
            await chat(client)
    assert type(caught.value) is error
    assert caught.value.param == "p"
    assert caught.value.code == catalog_code(kind)
    assert caught.value.request_id == "yg_1-1"


def catalog_code(kind: RefusalKind) -> str:
    return "rate_limit_exceeded" if kind is RefusalKind.NO_ROOM else kind.code


@pytest.mark.parametrize(
    ("kind", "error"),
    [
        (RefusalKind.BAD_JSON, anthropic.BadRequestError),
        (RefusalKind.INVALID_KEY, anthropic.AuthenticationError),
        (RefusalKind.FORBIDDEN, anthropic.PermissionDeniedError),
        (RefusalKind.UNKNOWN_MODEL, anthropic.NotFoundError),
        (RefusalKind.NO_ROOM, anthropic.RateLimitError),
        (RefusalKind.TOO_LARGE, anthropic.APIStatusError),
        (RefusalKind.INTERNAL, anthropic.InternalServerError),
        (RefusalKind.OVERLOADED, anthropic.APIStatusError),
    ],
)
async def test_anthropic_refusals(base: str, kind: RefusalKind, error: type[anthropic.APIStatusError]) -> None:
    BODIES["/v1/messages"] = catalog()["anthropic"].refuse(Refusal(kind, "Because."), "yg_1-1")
    async with anthropic_client(base) as client:
        with pytest.raises(error, match="Because") as caught:
            await client.messages.create(model="m", max_tokens=1, messages=[{"role": "user", "content": "x"}])
    assert caught.value.request_id == "yg_1-1"


def broken(dialect: Dialect, rule: str, so_far: bytes) -> tuple[int, list[tuple[bytes, bytes]], bytes]:
    intent = Intent("x")
    intent.stream_rule = rule
    end = dialect.stream_error(Refusal(RefusalKind.BAD_UPSTREAM, "Broken off."), intent)
    return 200, [(b"content-type", b"text/event-stream")], so_far + end


CHUNK = (
    b'data: {"id":"c","object":"chat.completion.chunk","created":1,"model":"m","choices":'
    b'[{"index":0,"delta":{"content":"Hi"},"finish_reason":null}]}\n\n'
)
CREATED = b'event: response.output_text.delta\ndata: {"type":"response.output_text.delta","sequence_number":1,"item_id":"i","output_index":0,"content_index":0,"delta":"Hi","logprobs":[]}\n\n'  # noqa: E501


async def chat_stream(client: openai.AsyncOpenAI) -> None:
    await chat(client, stream=True)


async def response_stream(client: openai.AsyncOpenAI) -> None:
    async for _ in await client.responses.create(model="m", input="x", stream=True):
        pass


async def image_stream(client: openai.AsyncOpenAI) -> None:
    async for _ in await client.images.generate(model="gpt-image-1", prompt="x", stream=True):
        pass


async def run_stream(client: openai.AsyncOpenAI) -> None:
    async for _ in await client.beta.threads.runs.create("thread_1", assistant_id="asst_1", stream=True):
        pass


@pytest.mark.parametrize(
    ("path", "rule", "so_far", "call"),
    [
        ("/v1/chat/completions", "chat", CHUNK, chat_stream),
        ("/v1/responses", "responses", CREATED, response_stream),
        ("/v1/images/generations", "images", b"", image_stream),
        ("/v1/threads/thread_1/runs", "assistants", b"", run_stream),
    ],
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
async def test_openai_streams_that_break_raise(
    base: str, path: str, rule: str, so_far: bytes, call: Callable[[openai.AsyncOpenAI], object]
) -> None:
    BODIES[path] = broken(catalog()["openai"], rule, so_far)
    async with openai_client(base) as client:
        with pytest.raises(openai.APIError, match="Broken off"):
            await call(client)  # type: ignore[misc]


async def test_anthropic_streams_that_break_raise(base: str) -> None:
    BODIES["/v1/messages"] = broken(catalog()["anthropic"], "messages", b'event: ping\ndata: {"type":"ping"}\n\n')
    async with anthropic_client(base) as client:
        made = await client.messages.create(
            model="m", max_tokens=1, messages=[{"role": "user", "content": "x"}], stream=True
        )
        with pytest.raises(anthropic.APIError, match="Broken off"):
            async for _ in made:
                pass


async def test_a_stripped_stream_reads_as_one_without_usage(base: str) -> None:
    dialect = catalog()["openai"]
    sent = b'{"model":"m","stream":true}'
    tap = dialect.tap(dialect.read("POST", "/v1/chat/completions", b"", sent), 200, b"text/event-stream")
    upstream = (
        CHUNK.replace(b"}]}", b'}],"usage":null}')
        + b'data: {"id":"c","choices":[],"usage":{"prompt_tokens":3,"completion_tokens":1}}\n\ndata: [DONE]\n\n'
    )
    BODIES["/v1/chat/completions"] = (200, [(b"content-type", b"text/event-stream")], tap.feed(upstream) + tap.finish())
    async with openai_client(base) as client:
        chunks = await chat(client, stream=True)
    assert len(chunks) == 1
    assert "usage" not in chunks[0].model_fields_set  # type: ignore[attr-defined]
    assert repr(tap.usage()) == "<Usage in=3 (cached 0) out=1>"
