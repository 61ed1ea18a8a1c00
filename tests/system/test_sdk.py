"""The official SDKs of OpenAI (Python, Node) and Anthropic, unchanged but for base URL and key, through Yugong.

One Yugong and one emulator, both in processes of their own, for all of the file. What the SDKs make of answers is
compared with what the emulator is known to say (`expected_text`), so that nothing here depends on a call made direct.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import anthropic
import openai
import pytest

from bench.contenders import CUSTOMER_KEY, Proxy, launch_yugong
from bench.processes import Running, free_port
from yugong.emulator import EmulatorSpec, expected_text, seed_of
from yugong.emulator.media import spoken

ROOT = Path(__file__).resolve().parents[2]
PROMPT = "How high is the mountain?"
MESSAGES: Any = [{"role": "user", "content": PROMPT}]
SEED = seed_of(PROMPT.encode())
TEXT = expected_text(SEED, 16)
CLAUDE = "claude-opus-5-5"
NPM_SECONDS = 40


class Site(NamedTuple):
    """Where the SDKs call."""

    url: str
    key: str

    def __repr__(self) -> str:
        return f"<Site {self.url}>"


def _settings(origin: str) -> dict[str, Any]:
    """One organisation of each dialect: what is uploaded to it is found again."""
    keys = EmulatorSpec.uniform(2, 3).keys()
    settings: dict[str, Any] = {"origins": {}, "orgs": {}}
    for dialect, secrets in zip(("openai", "anthropic"), keys.values(), strict=True):
        settings["origins"][dialect] = {"dialect": dialect, "url": origin, "private": True}
        named = [{"id": f"{dialect}-{i}", "secret": {"value": secret}} for i, secret in enumerate(secrets)]
        settings["orgs"][dialect] = {"origin": dialect, "keys": named}
    return settings


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("sdk")
    port = free_port()
    command = [sys.executable, "-m", "yugong.emulator", "--port", str(port), "--orgs", "2", "--keys", "3"]
    command += ["--rpm", "100000", "--tpm", "100000000", "--journal", ""]
    proxy: Proxy | None = None
    with Running("emulator", command, folder / "emulator.log", cwd=ROOT) as upstream:
        try:
            upstream.wait_ready(port)
            proxy = launch_yugong(folder, _settings(f"http://127.0.0.1:{port}"))
            yield Site(f"http://127.0.0.1:{proxy.port}", CUSTOMER_KEY)
        finally:
            if proxy is not None:
                proxy.stop()


@pytest.fixture
def client(site: Site) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{site.url}/v1", api_key=site.key, max_retries=0, organization="org-mine") as made:
        yield made


@pytest.fixture
async def aclient(site: Site) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=f"{site.url}/v1", api_key=site.key, max_retries=0) as made:
        yield made


@pytest.fixture
def claude(site: Site) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=site.url, api_key=site.key, max_retries=0) as made:
        yield made


# --- OpenAI: answers -------------------------------------------------------------------------------------------------


def test_chat(client: openai.OpenAI) -> None:
    made = client.chat.completions.with_raw_response.create(model="gpt-4o", messages=MESSAGES, n=2)
    assert made.headers["x-request-id"].startswith("req_")
    parsed = made.parse()
    assert parsed.choices[0].message.content == TEXT
    assert parsed.choices[1].message.content == expected_text(f"{SEED}-1", 16)
    assert parsed.usage is not None
    assert (parsed.usage.prompt_tokens, parsed.usage.completion_tokens) == (7, 32)


@pytest.mark.parametrize("asked", [None, {"include_usage": True}, {"include_usage": False}])
def test_chat_stream(client: openai.OpenAI, asked: Any) -> None:
    options = {"stream_options": asked} if asked else {}
    with client.chat.completions.create(model="gpt-4o", messages=MESSAGES, stream=True, **options) as stream:
        chunks = list(stream)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == TEXT
    wants = bool(asked and asked["include_usage"])
    assert [chunk for chunk in chunks if not chunk.choices] == chunks[-1:] * wants
    assert all(("usage" in chunk.model_fields_set) == wants for chunk in chunks)
    if wants:
        assert chunks[-1].usage is not None
        assert chunks[-1].usage.completion_tokens == 16


async def test_chat_async(aclient: openai.AsyncOpenAI) -> None:
    made = await aclient.chat.completions.create(model="gpt-4o", messages=MESSAGES)
    assert made.choices[0].message.content == TEXT
    stream = await aclient.chat.completions.create(model="gpt-4o", messages=MESSAGES, stream=True)
    assert "".join([chunk.choices[0].delta.content or "" async for chunk in stream]) == TEXT
    async with aclient.chat.completions.stream(model="gpt-4o", messages=MESSAGES) as helper:
        final = await helper.get_final_completion()
    assert final.choices[0].message.content == TEXT


def test_completions(client: openai.OpenAI) -> None:
    made = client.completions.create(model="gpt-3.5-turbo-instruct", prompt=PROMPT)
    assert made.choices[0].text == TEXT
    with client.completions.create(model="gpt-3.5-turbo-instruct", prompt=PROMPT, stream=True) as stream:
        chunks = list(stream)
    assert "".join(chunk.choices[0].text for chunk in chunks) == TEXT
    assert not any(chunk.usage for chunk in chunks)


def test_responses(client: openai.OpenAI) -> None:
    made = client.responses.create(model="gpt-5.6", input=PROMPT)
    assert made.output_text == TEXT
    assert client.responses.retrieve(made.id) == made
    with client.responses.stream(model="gpt-5.6", input=PROMPT) as stream:
        events = list(stream)
        assert stream.get_final_response().output_text == TEXT
    assert [event.sequence_number for event in events] == list(range(len(events)))
    client.responses.delete(made.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(made.id)


async def test_responses_async(aclient: openai.AsyncOpenAI) -> None:
    stream = await aclient.responses.create(model="gpt-5.6", input=PROMPT, stream=True)
    kinds = [event.type async for event in stream]
    assert (kinds[0], kinds[-1]) == ("response.created", "response.completed")


def test_embeddings_and_moderations(client: openai.OpenAI) -> None:
    made = client.embeddings.create(model="text-embedding-3-small", input=["a", "b", "a"], dimensions=8)
    vectors = [each.embedding for each in made.data]
    assert vectors[0] == vectors[2] != vectors[1]
    judged = client.moderations.create(input=["peace", "violence"])
    assert [each.flagged for each in judged.results] == [False, True]


def test_images(client: openai.OpenAI) -> None:
    made = client.images.generate(model="gpt-image-1", prompt=PROMPT, n=2)
    assert made.data is not None
    assert len(made.data) == 2 and all(each.b64_json for each in made.data)
    edited = client.images.edit(model="gpt-image-1", image=("a.png", b"\x89PNG", "image/png"), prompt=PROMPT)
    assert edited.data is not None and edited.data[0].b64_json
    with client.images.generate(model="gpt-image-1", prompt=PROMPT, stream=True, partial_images=2) as stream:
        assert [event.type for event in stream][-1] == "image_generation.completed"


def test_speech(client: openai.OpenAI) -> None:
    sound = spoken(SEED, PROMPT)
    with client.audio.speech.with_streaming_response.create(
        model="gpt-4o-mini-tts", input=PROMPT, voice="alloy"
    ) as made:
        assert made.headers["content-type"] == "audio/mpeg"
        assert len(b"".join(made.iter_bytes())) == len(sound)


def test_transcription(client: openai.OpenAI) -> None:
    recording = ("a.mp3", bytes(range(256)) * 200, "audio/mpeg")
    made = client.audio.transcriptions.create(model="gpt-4o-transcribe", file=recording)
    assert made.text
    with client.audio.transcriptions.create(model="gpt-4o-transcribe", file=recording, stream=True) as stream:
        events = list(stream)
    assert events[-1].type == "transcript.text.done"
    assert events[-1].text == made.text


def test_models(client: openai.OpenAI) -> None:
    assert "gpt-4o" in [model.id for model in client.models.list()]
    assert client.models.retrieve("gpt-4o").id == "gpt-4o"


def test_files(client: openai.OpenAI) -> None:
    content = b'{"a":1}\r\n--not-a-boundary\r\n' * 100_000  # 2.7 MB: more than is kept in memory
    kept = client.files.create(file=("some.jsonl", content), purpose="batch")
    assert (kept.bytes, kept.filename) == (len(content), "some.jsonl")
    assert kept.id in [each.id for each in client.files.list(purpose="batch")]
    assert client.files.retrieve(kept.id) == kept
    assert client.files.content(kept.id).content == content
    assert client.files.delete(kept.id).deleted
    with pytest.raises(openai.NotFoundError, match="No such File object"):
        client.files.retrieve(kept.id)


# --- OpenAI: what goes wrong -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "model", "error"),
    [
        ("400", "gpt-4o", openai.BadRequestError),
        ("404_model", "gpt-none", openai.NotFoundError),
        ("409", "gpt-4o", openai.ConflictError),
        ("413", "gpt-4o", openai.APIStatusError),
    ],
)
def test_the_callers_faults_are_raised(client: openai.OpenAI, fault: str, model: str, error: type[Exception]) -> None:
    with pytest.raises(error) as told:
        client.chat.completions.create(model=model, messages=MESSAGES, extra_headers={"x-emulator-fault": fault})
    assert isinstance(told.value, openai.APIStatusError)
    assert told.value.status_code == int(fault[:3])


@pytest.mark.parametrize("fault", ["500", "502", "429_requests:100", "reset_before_head", "truncated_json"])
def test_upstreams_faults_are_kept_from_the_client(client: openai.OpenAI, fault: str) -> None:
    extra = {"x-emulator-fault": f"{fault};times=1", "x-emulator-call": f"sdk-{fault}"}
    made = client.chat.completions.create(model="gpt-4o", messages=MESSAGES, extra_headers=extra)
    assert made.choices[0].message.content == TEXT


def test_an_error_as_first_event_is_kept_from_the_client(client: openai.OpenAI) -> None:
    extra = {"x-emulator-fault": "error_first_event;times=1", "x-emulator-call": "sdk-first-event"}
    with client.chat.completions.create(model="gpt-4o", messages=MESSAGES, stream=True, extra_headers=extra) as stream:
        assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == TEXT


@pytest.mark.parametrize("fault", ["cut_stream:5:close", "cut_stream:5:done", "error_mid_stream:5"])
def test_a_broken_stream_is_raised(client: openai.OpenAI, fault: str) -> None:
    heard: list[str] = []
    extra = {"x-emulator-fault": fault}
    stream = client.chat.completions.create(model="gpt-4o-mini", messages=MESSAGES, stream=True, extra_headers=extra)
    with stream, pytest.raises(openai.APIError):
        heard.extend(chunk.choices[0].delta.content or "" for chunk in stream)
    assert TEXT.startswith("".join(heard)) and any(heard)


def test_a_wrong_key_is_raised(client: openai.OpenAI, claude: anthropic.Anthropic) -> None:
    stranger = client.with_options(api_key="sk-nobodys-0123456789")
    with pytest.raises(openai.AuthenticationError, match="Incorrect API key"):
        stranger.models.list()
    other = claude.with_options(api_key="sk-nobodys-0123456789")
    with pytest.raises(anthropic.AuthenticationError):
        other.messages.create(model=CLAUDE, max_tokens=9, messages=MESSAGES)


def test_a_body_that_is_too_large_is_raised(client: openai.OpenAI) -> None:
    with pytest.raises(openai.APIStatusError) as told:
        client.embeddings.create(model="text-embedding-3-small", input="x" * (33 << 20))
    assert told.value.status_code == 413


def test_a_missing_model_is_raised(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="model"):
        client.chat.completions.create(model=None, messages=MESSAGES)  # type: ignore[call-overload]


# --- Anthropic -------------------------------------------------------------------------------------------------------


def test_messages(claude: anthropic.Anthropic) -> None:
    made = claude.messages.create(model=CLAUDE, max_tokens=100, messages=MESSAGES)
    assert made.content[0].type == "text"
    assert made.content[0].text == TEXT
    assert (made.usage.input_tokens, made.usage.output_tokens, made.stop_reason) == (7, 16, "end_turn")
    with claude.messages.stream(model=CLAUDE, max_tokens=100, messages=MESSAGES) as stream:
        assert "".join(stream.text_stream) == TEXT
        assert stream.get_final_message().usage.output_tokens == 16


def test_counting_and_models(claude: anthropic.Anthropic) -> None:
    assert claude.messages.count_tokens(model=CLAUDE, messages=MESSAGES).input_tokens == 7
    assert CLAUDE in [model.id for model in claude.models.list()]
    assert claude.models.retrieve(CLAUDE).type == "model"


def test_anthropics_faults(claude: anthropic.Anthropic) -> None:
    extra = {"x-emulator-fault": "529;times=1", "x-emulator-call": "sdk-529"}
    made = claude.messages.create(model=CLAUDE, max_tokens=100, messages=MESSAGES, extra_headers=extra)
    assert made.usage.output_tokens == 16
    with pytest.raises(anthropic.BadRequestError) as told:
        claude.messages.create(model=CLAUDE, max_tokens=9, messages=MESSAGES, extra_headers={"x-emulator-fault": "400"})
    assert told.value.type == "invalid_request_error"
    with (
        pytest.raises(anthropic.APIError),
        claude.messages.stream(
            model=CLAUDE, max_tokens=100, messages=MESSAGES, extra_headers={"x-emulator-fault": "cut_stream:5"}
        ) as stream,
    ):
        stream.get_final_message()


# --- Node ------------------------------------------------------------------------------------------------------------

PROGRAM = """
import OpenAI from "openai";
const client = new OpenAI({ baseURL: process.argv[2] + "/v1", apiKey: process.argv[3], maxRetries: 0 });
const messages = JSON.parse(process.argv[4]);
const made = await client.chat.completions.create({ model: "gpt-4o", messages });
let streamed = "", usages = 0;
for await (const chunk of await client.chat.completions.create({ model: "gpt-4o", messages, stream: true })) {
  streamed += chunk.choices[0].delta.content ?? "";
  usages += "usage" in chunk;
}
const stranger = new OpenAI({ baseURL: process.argv[2] + "/v1", apiKey: "sk-nobodys-0123456789", maxRetries: 0 });
const refused = await stranger.models.list().catch((error) => error.constructor.name);
console.log(JSON.stringify({ made: made.choices[0].message.content, streamed, usages, refused }));
"""


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the Node SDK."""
    if not (shutil.which("node") and shutil.which("npm")):
        pytest.skip("node and npm are not installed")
    folder = tmp_path_factory.mktemp("node")
    (folder / "package.json").write_text('{"private": true, "type": "module"}')
    (folder / "chat.js").write_text(PROGRAM)
    command = ["npm", "install", "--no-audit", "--no-fund", "--ignore-scripts", "openai@^6"]
    try:
        subprocess.run(command, cwd=folder, check=True, capture_output=True, timeout=NPM_SECONDS)
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        pytest.skip(f"the Node SDK cannot be installed: {str(error)[:100]}")
    return folder


def test_node(site: Site, node: Path) -> None:
    command = ["node", "chat.js", site.url, site.key, json.dumps(MESSAGES)]
    done = subprocess.run(command, cwd=node, capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {"made": TEXT, "streamed": TEXT, "usages": 0, "refused": "AuthenticationError"}
