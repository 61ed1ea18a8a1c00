"""Which operation is answered by what. The table is the whole list; what is not in it is echoed.

`charged` operations draw on the org's buckets and need a model; `body` says how the body is read: `json`, `form`, or
not at all.
"""

from collections.abc import Callable
from typing import NamedTuple

from yugong.emulator import anthropic, chat, files, media, responses, simple
from yugong.emulator.attempt import Answer, Attempt
from yugong.emulator.errors import Trouble


class Route(NamedTuple):
    """One operation."""

    handle: Callable[[Attempt], Answer | Trouble]
    body: str = ""  # "json", "form", "either"
    charged: bool = False
    check: Callable[[Attempt], Trouble | None] | None = None
    model: str = ""  # where the body may leave it out


ECHO = Route(simple.echo)

EXACT: dict[tuple[str, str], Route] = {
    ("POST", "/v1/chat/completions"): Route(chat.chat, "json", True),
    ("POST", "/v1/completions"): Route(chat.completion, "json", True),
    ("POST", "/v1/responses"): Route(responses.create, "json", True, responses.checked),
    ("POST", "/v1/responses/input_tokens"): Route(responses.input_tokens, "json"),
    ("POST", "/v1/embeddings"): Route(simple.embeddings, "json", True),
    ("POST", "/v1/images/generations"): Route(media.image, "json", True, None, "gpt-image-1"),
    ("POST", "/v1/images/edits"): Route(media.image, "either", True, None, "gpt-image-1"),
    ("POST", "/v1/images/variations"): Route(media.image, "form", True, None, "dall-e-2"),
    ("POST", "/v1/audio/speech"): Route(media.speech, "json", True),
    ("POST", "/v1/audio/transcriptions"): Route(media.transcription, "form", True),
    ("POST", "/v1/audio/translations"): Route(media.transcription, "form", True),
    ("POST", "/v1/files"): Route(files.upload, "form"),
    ("GET", "/v1/files"): Route(files.listing),
    ("POST", "/v1/moderations"): Route(simple.moderations, "json", False, None, "omni-moderation-latest"),
    ("GET", "/v1/models"): Route(simple.models),
    ("HEAD", "/v1/models"): Route(simple.models),
    ("POST", "/v1/messages"): Route(anthropic.messages, "json", True, anthropic.checked),
    ("POST", "/v1/messages/count_tokens"): Route(anthropic.count, "json", False, anthropic.checked),
}

# method, path up to and with the slash before an id, what follows the id
BY_ID: dict[tuple[str, str, str], Route] = {
    ("GET", "/v1/models/", ""): Route(simple.model),
    ("GET", "/v1/files/", ""): Route(files.about),
    ("DELETE", "/v1/files/", ""): Route(files.delete),
    ("GET", "/v1/files/", "/content"): Route(files.content),
    ("HEAD", "/v1/files/", "/content"): Route(files.content),
    ("GET", "/v1/responses/", ""): Route(responses.fetch),
    ("DELETE", "/v1/responses/", ""): Route(responses.delete),
    ("POST", "/v1/responses/", "/cancel"): Route(responses.cancel),
    ("GET", "/v1/responses/", "/input_items"): Route(responses.input_items),
}


def find_route(method: str, path: str) -> Route:
    found = EXACT.get((method, path))
    if found is not None:
        return found
    parts = path.split("/", 4)
    if len(parts) < 4 or parts[1] != "v1" or not parts[3]:
        return ECHO
    is_model = parts[2] == "models"  # whose name may have slashes
    rest = f"/{parts[4]}" if len(parts) > 4 and not is_model else ""
    return BY_ID.get((method, f"/v1/{parts[2]}/", rest), ECHO)
