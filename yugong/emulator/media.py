"""Pictures and sound: generations, edits, variations; speech, transcriptions, translations.

Contents are deterministic filler behind a true file signature, sized by the pace header's `size` (default 2 000
bytes a picture, 64 bytes a character of speech). A recording of b bytes lasts ceil(b / 16 000) seconds and is ten
tokens a second.
"""

import base64
from collections.abc import Iterator
from typing import Any

import orjson

from yugong.emulator import errors
from yugong.emulator.attempt import Answer, Attempt
from yugong.emulator.chat import bill
from yugong.emulator.errors import Trouble
from yugong.emulator.text import count_tokens, expected_text, filler, piece
from yugong.emulator.wire import sse

PNG = b"\x89PNG\r\n\x1a\n"
MP3 = b"ID3\x04\x00\x00\x00\x00\x00\x00"
IMAGE_BYTES = 2000
IMAGE_TOKENS = 272  # a low-quality square of gpt-image-1
AUDIO_TYPES = {
    "mp3": "audio/mpeg",
    "opus": "audio/opus",
    "aac": "audio/aac",
    "flac": "audio/flac",
    "wav": "audio/wav",
    "pcm": "audio/pcm",
}


def _number(attempt: Attempt, name: str, default: int, most: int) -> int:
    value = attempt.field(name)
    return min(int(value), most) if str(value).isdigit() and int(value) else default


def picture(attempt: Attempt, index: int) -> bytes:
    """The index-th picture of an answer."""
    return PNG + filler(f"{attempt.seed}/{index}", (attempt.pace.size or IMAGE_BYTES) - len(PNG))


def image(attempt: Attempt) -> Answer | Trouble:
    """POST /v1/images/generations, /edits and /variations; JSON or form in, JSON or events out."""
    is_edit = attempt.path != "/v1/images/generations"
    if is_edit and not attempt.files and not attempt.field("images"):
        return errors.bad_request("Missing required parameter: 'image'.", "image", "missing_required_parameter")
    if not is_edit and not attempt.prompt:
        return errors.bad_request("Missing required parameter: 'prompt'.", "prompt", "missing_required_parameter")
    count = _number(attempt, "n", 1, 10)
    billed = bill(attempt, IMAGE_TOKENS * count)
    usage = {
        "input_tokens": billed["input"],
        "input_tokens_details": {"text_tokens": billed["input"], "image_tokens": 0},
        "output_tokens": billed["output"],
        "output_tokens_details": {"text_tokens": 0, "image_tokens": billed["output"]},
        "total_tokens": billed["input"] + billed["output"],
    }
    billed["images"] = count
    shape = {"background": "opaque", "output_format": "png", "quality": "low", "size": "1024x1024"}
    if attempt.streams:
        return Answer.stream(_image_events(attempt, "image_edit" if is_edit else "image_generation", shape, usage))
    as_url = attempt.field("response_format") == "url"
    data = [_image(attempt, i, as_url) for i in range(count)]
    return Answer(orjson.dumps({"created": attempt.created, **shape, "data": data, "usage": usage}))


def _image(attempt: Attempt, index: int, as_url: bool) -> dict[str, Any]:
    if as_url:
        return {"url": f"https://images.invalid/{attempt.make_id('img-')}-{index}.png"}
    return {"b64_json": base64.b64encode(picture(attempt, index)).decode()}


def _image_events(attempt: Attempt, family: str, shape: dict[str, str], usage: dict[str, Any]) -> Iterator[bytes]:
    common = {"created_at": attempt.created, **shape}
    for i in range(_number(attempt, "partial_images", 0, 3)):
        kind = f"{family}.partial_image"
        coded = base64.b64encode(picture(attempt, i + 1)).decode()
        yield sse(orjson.dumps({"type": kind, "partial_image_index": i, "b64_json": coded, **common}), kind)
    kind = f"{family}.completed"
    coded = base64.b64encode(picture(attempt, 0)).decode()
    yield sse(orjson.dumps({"type": kind, "b64_json": coded, **common, "usage": usage}), kind)


def speech(attempt: Attempt) -> Answer | Trouble:
    """POST /v1/audio/speech: sound, or with `stream_format: sse` events of it. Binary sound carries no usage."""
    text = attempt.field("input")
    if not isinstance(text, str) or not text:
        return errors.bad_request("Missing required parameter: 'input'.", "input", "missing_required_parameter")
    sound = spoken(attempt.seed, text, attempt.pace.size)
    if attempt.streams and attempt.model.startswith("tts-1"):
        return errors.bad_request(f"stream_format sse is not supported with {attempt.model}.", "stream_format")
    tokens = len(text)
    attempt.usage = {"characters": tokens, "input": count_tokens(text), "output": tokens}
    if attempt.streams:
        return Answer.stream(_speech_events(attempt, sound, attempt.usage))
    kind = attempt.field("response_format")
    return Answer(sound, AUDIO_TYPES.get(kind if isinstance(kind, str) else "mp3", "audio/mpeg"))


def spoken(seed: str, text: str, size: int = 0) -> bytes:
    """The sound of a text."""
    return MP3 + filler(seed, size or 64 * len(text))


def _speech_events(attempt: Attempt, sound: bytes, billed: dict[str, int]) -> Iterator[bytes]:
    step = max(1, -(-len(sound) // max(1, attempt.pace.pieces)))
    for at in range(0, len(sound), step):
        coded = base64.b64encode(sound[at : at + step]).decode()
        yield sse(orjson.dumps({"type": "speech.audio.delta", "audio": coded}))
    usage = {"input_tokens": billed["input"], "output_tokens": billed["output"]}
    usage["total_tokens"] = usage["input_tokens"] + usage["output_tokens"]
    yield sse(orjson.dumps({"type": "speech.audio.done", "usage": usage}))


def transcription(attempt: Attempt) -> Answer | Trouble:
    """POST /v1/audio/transcriptions and /translations. The seed is the digest of the recording."""
    recording = attempt.files.get("file")
    if recording is None:
        return errors.bad_request("Missing required parameter: 'file'.", "file", "missing_required_parameter")
    if not attempt.pace.seed:
        attempt.pace.seed = attempt.body.digest(recording.start, recording.end)[:8]
    seconds = -(-(recording.end - recording.start) // 16_000)
    pieces = attempt.pace.pieces
    text = expected_text(attempt.seed, pieces, attempt.pace.size)
    is_whisper = attempt.model.startswith("whisper")
    attempt.usage = {"seconds": seconds} if is_whisper else {"input": 10 * seconds, "output": pieces}
    usage = _transcription_usage(attempt.usage)
    if attempt.streams and not is_whisper:
        return Answer.stream(_transcription_events(attempt, text, usage))
    shape = attempt.field("response_format", "json")
    if shape in ("text", "srt", "vtt"):
        return Answer(_captions(shape, text, seconds), "text/plain; charset=utf-8")
    document: dict[str, Any] = {"text": text}
    if shape == "verbose_json":
        word = {"id": 0, "seek": 0, "start": 0.0, "end": float(seconds), "text": text, "tokens": [1, 2, 3]}
        segment = word | {"temperature": 0.0, "avg_logprob": -0.1, "compression_ratio": 1.0, "no_speech_prob": 0.0}
        document |= {"task": "transcribe", "language": "english", "duration": float(seconds), "segments": [segment]}
    if attempt.path.endswith("/transcriptions"):
        document["usage"] = usage
    return Answer(orjson.dumps(document))


def _transcription_usage(billed: dict[str, int]) -> dict[str, Any]:
    if "seconds" in billed:
        return {"type": "duration", "seconds": billed["seconds"]}
    return {
        "type": "tokens",
        "input_tokens": billed["input"],
        "input_token_details": {"text_tokens": 0, "audio_tokens": billed["input"]},
        "output_tokens": billed["output"],
        "total_tokens": billed["input"] + billed["output"],
    }


def _transcription_events(attempt: Attempt, text: str, usage: dict[str, Any]) -> Iterator[bytes]:
    for i in range(attempt.pace.pieces):
        delta = piece(attempt.seed, i, attempt.pace.size)
        yield sse(orjson.dumps({"type": "transcript.text.delta", "delta": delta}))
    yield sse(orjson.dumps({"type": "transcript.text.done", "text": text, "usage": usage}))


def _captions(shape: str, text: str, seconds: int) -> bytes:
    end = f"{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}"
    if shape == "srt":
        return f"1\n00:00:00,000 --> {end},000\n{text}\n\n".encode()
    if shape == "vtt":
        return f"WEBVTT\n\n00:00:00.000 --> {end}.000\n{text}\n\n".encode()
    return f"{text}\n".encode()
