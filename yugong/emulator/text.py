"""The words the emulator answers with, and how it counts. Pure.

Two rules a client can check an answer by:
- the text of an answer is `expected_text(seed, n)`: n pieces, each naming the seed and its own number, so a byte that
  is wrong, doubled or missing shows. The seed comes from the prompt (`seed_of`), not from the raw body: a proxy may
  add `stream_options.include_usage`. The pace header's `seed=` overrides it.
- tokens: a prompt of b UTF-8 bytes is ceil(b / 4) tokens, a piece of an answer is one token.
"""

import hashlib
from typing import Any

import orjson

# What follows a piece's number, in turn: escapes and characters of two, three and four bytes, so that anything that
# cuts between bytes or unescapes wrongly is found out.
_TAILS = (" ", " ", " and ", '\n"', " ", " 愚公\t", " \\ ", " 🙂é ")


def piece(seed: str, i: int, size: int = 0) -> str:
    """The i-th piece of the answer for a seed, padded to `size` UTF-8 bytes (longer ones are left as they are)."""
    tail = _TAILS[i & 7]
    text = f"{seed}.{i}{tail}"
    if size:
        missing = size - len(text.encode())
        if missing > 0:
            text = f"{seed}.{i}{'x' * missing}{tail}"
    return text


def expected_text(seed: str, n: int, size: int = 0) -> str:
    """The whole answer for a seed: pieces 0 … n-1."""
    return "".join([piece(seed, i, size) for i in range(n)])


def piece_json(seed: str, i: int, size: int = 0) -> bytes:
    """A piece as a JSON string, quotes included."""
    return orjson.dumps(piece(seed, i, size))


def count_tokens(text: str | bytes) -> int:
    """ceil(UTF-8 bytes / 4)."""
    return (len(text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text) + 3) >> 2


def seed_of(prompt: bytes) -> str:
    """The seed of an answer: eight hex digits of the SHA-256 of the prompt's text (see `prompt_of`)."""
    return hashlib.sha256(prompt).hexdigest()[:8]


def prompt_of(document: Any) -> bytes:
    """All text a body asks with: messages, prompt, input, instructions, system, text; in that order, UTF-8.

    Any other field (stream options, metadata, tools) leaves it as it is.
    """
    if not isinstance(document, dict):
        return b""
    found: list[str] = []
    for name in ("system", "instructions", "messages", "prompt", "input", "text"):
        if name in document:
            _collect(document[name], found)
    return "".join(found).encode("utf-8", "surrogatepass")


def _collect(value: Any, found: list[str]) -> None:
    """Strings in a text-bearing field. A stack, not recursion: depth is the client's to choose."""
    stack = [value]
    while stack:
        item = stack.pop()
        if isinstance(item, str):
            found.append(item)
        elif isinstance(item, list):
            stack.extend(reversed(item))
        elif isinstance(item, dict):
            for name in ("output", "refusal", "text", "content"):
                if name in item:
                    stack.append(item[name])
        elif isinstance(item, int | float):
            found.append(f"{item} ")  # a prompt of token numbers


def asked_tokens(document: Any) -> int:
    """The answer's ceiling a body names: `max_completion_tokens`, `max_tokens` or `max_output_tokens`; 0 if none."""
    if not isinstance(document, dict):
        return 0
    for name in ("max_completion_tokens", "max_tokens", "max_output_tokens"):
        value = document.get(name)
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            return value
    return 0


def filler(seed: str, size: int) -> bytes:
    """`size` deterministic bytes for pictures and sound; not compressible, cheap to make."""
    block = hashlib.sha256(seed.encode()).digest() * 32
    return (block * (size // len(block) + 1))[:size]
