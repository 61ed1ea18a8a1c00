"""The official SDKs, unchanged, against the emulator itself."""

import base64
import hashlib
from collections.abc import AsyncIterator

import anthropic
import openai
import pytest

from tests.emulator.conftest import Serve
from yugong.emulator import Emulator, EmulatorSpec, Limits, expected_text, seed_of
from yugong.emulator.media import IMAGE_TOKENS, spoken

PROMPT = "How high is the mountain?"
MESSAGES = [{"role": "user", "content": PROMPT}]
TEXT = expected_text(seed_of(PROMPT.encode()), 16)


@pytest.fixture
async def emulator(serve: Serve) -> Emulator:
    return await serve(EmulatorSpec.uniform(limits=Limits(rpm=10_000, tpm=10_000_000)))


@pytest.fixture
async def client(emulator: Emulator) -> AsyncIterator[openai.AsyncOpenAI]:
    key = emulator.spec.orgs[0].keys[0]
    async with openai.AsyncOpenAI(base_url=f"{emulator.url}/v1", api_key=key, max_retries=0) as made:
        yield made


@pytest.fixture
async def claude(emulator: Emulator) -> AsyncIterator[anthropic.AsyncAnthropic]:
    key = emulator.spec.orgs[0].keys[0]
    async with anthropic.AsyncAnthropic(base_url=emulator.url, api_key=key, max_retries=0) as made:
        yield made


async def test_chat(client: openai.AsyncOpenAI) -> None:
    made = await client.chat.completions.create(model="gpt-4o", messages=MESSAGES, n=2)
    assert made.choices[0].message.content == TEXT
    assert made.choices[1].message.content == expected_text(f"{seed_of(PROMPT.encode())}-1", 16)
    assert made.usage is not None
    assert (made.usage.prompt_tokens, made.usage.completion_tokens, made.usage.total_tokens) == (7, 32, 39)
    cut = await client.chat.completions.create(model="gpt-4o", messages=MESSAGES, max_completion_tokens=3)
    assert cut.choices[0].message.content == expected_text(seed_of(PROMPT.encode()), 3)
    assert cut.choices[0].finish_reason == "length"


@pytest.mark.parametrize("asked", [None, {"include_usage": True}, {"include_obfuscation": False}])
async def test_chat_streams_say_usage_only_when_asked(
    client: openai.AsyncOpenAI, asked: dict[str, bool] | None
) -> None:
    options = {"stream_options": asked} if asked else {}
    stream = await client.chat.completions.create(model="gpt-4o", messages=MESSAGES, stream=True, **options)
    chunks = [chunk async for chunk in stream]
    contents = [chunk for chunk in chunks if chunk.choices]
    assert "".join(chunk.choices[0].delta.content or "" for chunk in contents) == TEXT
    wants = bool(asked and asked.get("include_usage"))
    assert all(("usage" in chunk.model_fields_set) == wants for chunk in chunks)
    assert all(chunk.usage is None for chunk in contents)
    assert len(chunks) - len(contents) == wants
    if wants:
        assert chunks[-1].usage is not None
        assert chunks[-1].usage.completion_tokens == 16


async def test_tools(client: openai.AsyncOpenAI) -> None:
    tools = [{"type": "function", "function": {"name": "climb", "parameters": {}}}]
    asked = {"model": "gpt-4o", "messages": MESSAGES, "tools": tools, "tool_choice": "required"}
    made = await client.chat.completions.create(**asked)
    call = made.choices[0].message.tool_calls[0]
    assert (call.function.name, made.choices[0].finish_reason) == ("climb", "tool_calls")
    stream = await client.chat.completions.create(**asked, stream=True)
    parts = [
        chunk.choices[0].delta.tool_calls[0].function.arguments
        async for chunk in stream
        if chunk.choices[0].delta.tool_calls
    ]
    assert "".join(parts) == call.function.arguments


async def test_completions(client: openai.AsyncOpenAI) -> None:
    made = await client.completions.create(model="gpt-3.5-turbo-instruct", prompt=PROMPT)
    assert made.choices[0].text == TEXT
    stream = await client.completions.create(
        model="gpt-3.5-turbo-instruct", prompt=PROMPT, stream=True, stream_options={"include_usage": True}
    )
    chunks = [chunk async for chunk in stream]
    assert "".join(chunk.choices[0].text for chunk in chunks if chunk.choices) == TEXT
    assert chunks[-1].usage.total_tokens == 7 + 16


async def test_responses(client: openai.AsyncOpenAI) -> None:
    made = await client.responses.create(model="gpt-5.6", input=PROMPT)
    assert made.output_text == TEXT
    assert (made.usage.input_tokens, made.usage.output_tokens) == (7, 16)
    again = await client.responses.retrieve(made.id)
    assert again == made
    items = await client.responses.input_items.list(made.id)
    assert items.data[0].content[0].text == PROMPT
    await client.responses.create(model="gpt-5.6", input="more", previous_response_id=made.id)
    await client.responses.delete(made.id)
    with pytest.raises(openai.NotFoundError):
        await client.responses.retrieve(made.id)
    with pytest.raises(openai.BadRequestError, match="not found"):
        await client.responses.create(model="gpt-5.6", input="more", previous_response_id=made.id)


async def test_response_streams(client: openai.AsyncOpenAI) -> None:
    async with client.responses.stream(model="gpt-5.6", input=PROMPT) as stream:
        events = [event async for event in stream]
        final = await stream.get_final_response()
    assert final.output_text == TEXT
    assert [event.sequence_number for event in events] == list(range(len(events)))
    cut = await client.responses.create(model="gpt-5.6", input=PROMPT, stream=True, max_output_tokens=2)
    kinds = [event.type async for event in cut]
    assert (kinds[0], kinds[-1]) == ("response.created", "response.incomplete")
    unkept = await client.responses.create(model="gpt-5.6", input=PROMPT, store=False)
    with pytest.raises(openai.NotFoundError):
        await client.responses.retrieve(unkept.id)


async def test_embeddings(client: openai.AsyncOpenAI) -> None:
    made = await client.embeddings.create(model="text-embedding-3-small", input=["a", "b", "a"], dimensions=8)
    vectors = [each.embedding for each in made.data]
    assert vectors[0] == vectors[2] != vectors[1]
    assert {len(vector) for vector in vectors} == {8}
    plain = await client.embeddings.create(
        model="text-embedding-3-small", input=["a"], dimensions=8, encoding_format="float"
    )
    assert plain.data[0].embedding == vectors[0]
    assert made.usage.prompt_tokens == 1


async def test_moderations_and_models(client: openai.AsyncOpenAI) -> None:
    made = await client.moderations.create(input=["peace", "violence"])
    assert [each.flagged for each in made.results] == [False, True]
    names = [model.id async for model in client.models.list()]
    assert "gpt-4o" in names
    assert (await client.models.retrieve("gpt-4o")).id == "gpt-4o"


async def test_images(client: openai.AsyncOpenAI) -> None:
    made = await client.images.generate(model="gpt-image-1", prompt=PROMPT, n=2)
    pictures = [base64.b64decode(each.b64_json) for each in made.data]
    assert pictures[0].startswith(b"\x89PNG")
    assert pictures[0] != pictures[1]
    assert made.usage.output_tokens == 2 * IMAGE_TOKENS
    stream = await client.images.generate(model="gpt-image-1", prompt=PROMPT, stream=True, partial_images=2)
    events = [event async for event in stream]
    assert [event.type for event in events] == ["image_generation.partial_image"] * 2 + ["image_generation.completed"]
    assert base64.b64decode(events[-1].b64_json) == pictures[0]
    edited = await client.images.edit(model="gpt-image-1", image=("a.png", pictures[0], "image/png"), prompt=PROMPT)
    assert base64.b64decode(edited.data[0].b64_json) == pictures[0]
    stream = await client.images.edit(model="gpt-image-1", image=[pictures[0], pictures[1]], prompt=PROMPT, stream=True)
    assert [event.type async for event in stream] == ["image_edit.completed"]
    with pytest.raises(openai.BadRequestError):
        await client.images.edit(model="gpt-image-1", image=[], prompt=PROMPT)


async def test_speech(client: openai.AsyncOpenAI) -> None:
    sound = await client.audio.speech.create(model="gpt-4o-mini-tts", voice="alloy", input=PROMPT)
    expected = spoken(seed_of(PROMPT.encode()), PROMPT)
    assert await sound.aread() == expected
    assert sound.response.headers["content-type"] == "audio/mpeg"
    async with client.audio.speech.with_streaming_response.create(
        model="gpt-4o-mini-tts", voice="alloy", input=PROMPT, stream_format="sse"
    ) as answer:
        lines = [line async for line in answer.iter_lines() if line]
    assert '"speech.audio.done"' in lines[-1]
    assert '"usage"' in lines[-1]


async def test_transcriptions(client: openai.AsyncOpenAI) -> None:
    recording = ("a.wav", b"RIFF" + b"x" * 40_000, "audio/wav")
    seed = hashlib.sha256(recording[1]).hexdigest()[:8]
    made = await client.audio.transcriptions.create(model="gpt-4o-transcribe", file=recording)
    assert made.text == expected_text(seed, 16)
    assert made.usage.input_tokens == 30
    whisper = await client.audio.transcriptions.create(model="whisper-1", file=recording)
    assert whisper.usage.seconds == 3
    text = await client.audio.transcriptions.create(model="whisper-1", file=recording, response_format="text")
    assert text == f"{expected_text(seed, 16)}\n"
    verbose = await client.audio.transcriptions.create(
        model="whisper-1", file=recording, response_format="verbose_json"
    )
    assert verbose.duration == 3.0
    stream = await client.audio.transcriptions.create(model="gpt-4o-transcribe", file=recording, stream=True)
    events = [event async for event in stream]
    assert "".join(event.delta for event in events[:-1]) == events[-1].text == made.text
    with pytest.warns(DeprecationWarning, match="deprecated"):
        translated = await client.audio.translations.create(model="whisper-1", file=recording)
    assert translated.text == made.text


async def test_files(client: openai.AsyncOpenAI) -> None:
    content = b'{"a":1}\r\n--not-a-boundary\r\n' * 10
    kept = await client.files.create(file=("some.jsonl", content), purpose="batch")
    assert (kept.bytes, kept.filename, kept.purpose) == (len(content), "some.jsonl", "batch")
    assert [each.id async for each in await client.files.list(purpose="batch")] == [kept.id]
    assert [each.id async for each in await client.files.list(purpose="vision")] == []
    assert await client.files.retrieve(kept.id) == kept
    assert (await client.files.content(kept.id)).content == content
    part = await client.files.content(kept.id, extra_headers={"Range": "bytes=5-8"})
    assert (part.content, part.response.status_code) == (content[5:9], 206)
    assert (await client.files.delete(kept.id)).deleted
    with pytest.raises(openai.NotFoundError, match="No such File object"):
        await client.files.retrieve(kept.id)


async def test_realtime(client: openai.AsyncOpenAI, emulator: Emulator) -> None:
    async with client.realtime.connect(model="gpt-realtime") as connection:
        assert (await connection.recv()).type == "session.created"
        await connection.session.update(session={"type": "realtime", "instructions": "be brief"})
        assert (await connection.recv()).type == "session.updated"
        item = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": PROMPT}]}
        await connection.conversation.item.create(item=item)
        await connection.response.create()
        text, usage = "", None
        async for event in connection:
            if event.type == "response.output_text.delta":
                text += event.delta
            elif event.type == "response.done":
                usage = event.response.usage
                break
        assert text == expected_text(seed_of(f"be brief{PROMPT}".encode()), 16)
        assert (usage.input_tokens, usage.output_tokens) == (9, 16)
    assert emulator.url  # the socket is closed, the emulator is not


async def test_messages(claude: anthropic.AsyncAnthropic) -> None:
    made = await claude.messages.create(model="claude-opus-5-5", max_tokens=100, messages=MESSAGES)
    assert made.content[0].text == TEXT
    assert (made.usage.input_tokens, made.usage.output_tokens, made.stop_reason) == (7, 16, "end_turn")
    async with claude.messages.stream(model="claude-opus-5-5", max_tokens=3, messages=MESSAGES) as stream:
        final = await stream.get_final_message()
    assert final.content[0].text == expected_text(seed_of(PROMPT.encode()), 3)
    assert (final.stop_reason, final.usage.output_tokens) == ("max_tokens", 3)
    counted = await claude.messages.count_tokens(model="claude-opus-5-5", messages=MESSAGES)
    assert counted.input_tokens == 7
    assert "claude-opus-5-5" in [model.id async for model in claude.models.list()]
    assert (await claude.models.retrieve("claude-opus-5-5")).type == "model"


async def test_cached_prompts(claude: anthropic.AsyncAnthropic, client: openai.AsyncOpenAI) -> None:
    long = [{"role": "user", "content": "x" * 5000}]
    first = await client.chat.completions.create(model="gpt-4o", messages=long)
    again = await client.chat.completions.create(model="gpt-4o", messages=long)
    assert first.usage.prompt_tokens_details.cached_tokens == 0
    assert again.usage.prompt_tokens_details.cached_tokens == 1152
    made = await claude.messages.create(model="claude-opus-5-5", max_tokens=1, messages=long)
    assert (made.usage.cache_read_input_tokens, made.usage.input_tokens) == (1152, 98)


async def test_errors_are_raised(client: openai.AsyncOpenAI, claude: anthropic.AsyncAnthropic) -> None:
    async def fail(fault: str, **options: object) -> object:
        extra = {"x-emulator-fault": fault}
        return await client.chat.completions.create(model="gpt-4o", messages=MESSAGES, extra_headers=extra, **options)

    for fault, error in {
        "401": openai.AuthenticationError,
        "403_country": openai.PermissionDeniedError,
        "404_model": openai.NotFoundError,
        "429_tokens": openai.RateLimitError,
        "500": openai.InternalServerError,
        "reset_before_head": openai.APIConnectionError,
    }.items():
        with pytest.raises(error):
            await fail(fault)
    for fault in ("error_first_event", "error_mid_stream", "cut_stream"):
        with pytest.raises(openai.APIError):
            async for _ in await fail(fault, stream=True):
                pass
    extra = {"x-emulator-fault": "529"}
    with pytest.raises(anthropic.APIStatusError) as told:
        await claude.messages.create(model="claude-opus-5-5", max_tokens=1, messages=MESSAGES, extra_headers=extra)
    assert told.value.status_code == 529
