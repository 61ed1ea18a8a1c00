"""Files: taken in by form, kept per org, listed, told of, given back whole or by range, deleted.

A file is a part of the body it came in: nothing is copied, and a body that was spooled stays on disk, so memory is
flat at any size. Kept for the emulator's life.
"""

import re
from typing import Any, NamedTuple
from urllib.parse import parse_qs

import orjson

from yugong.emulator import errors
from yugong.emulator.attempt import Answer, Attempt
from yugong.emulator.body import Body
from yugong.emulator.errors import Trouble

MAX_FILE = 512 << 20  # OpenAI's own limit of one file


class Kept(NamedTuple):
    """A stored file: what is said of it, and where its bytes are."""

    about: dict[str, Any]
    body: Body
    start: int
    end: int


def upload(attempt: Attempt) -> Answer | Trouble:
    part = attempt.files.get("file")
    if part is None:
        return errors.bad_request("Missing required parameter: 'file'.", "file", "missing_required_parameter")
    size = part.end - part.start
    if size > MAX_FILE:
        return errors.Trouble(413, "invalid_request_error", None, "File exceeds the maximum size of 512 MB.")
    purpose = attempt.texts.get("purpose")
    if not purpose:
        return errors.bad_request("'purpose' is a required property", "purpose")
    about: dict[str, Any] = {
        "id": attempt.make_id("file-"),
        "object": "file",
        "bytes": size,
        "created_at": attempt.created,
        "expires_at": None,
        "filename": part.filename,
        "purpose": purpose,
        "status": "processed",
        "status_details": None,
    }
    assert attempt.org is not None
    attempt.org.files[about["id"]] = Kept(about, attempt.body.keep(), part.start, part.end)
    attempt.usage = {"file_bytes": size}
    return Answer(orjson.dumps(about))


def listing(attempt: Attempt) -> Answer:
    """GET /v1/files with `purpose`, `order`, `limit`, `after`."""
    assert attempt.org is not None
    query = {name: values[0] for name, values in parse_qs(attempt.query).items()}
    found = [kept.about for kept in attempt.org.files.values()]
    if query.get("order", "desc") == "desc":
        found.reverse()
    if "purpose" in query:
        found = [about for about in found if about["purpose"] == query["purpose"]]
    names = [about["id"] for about in found]
    if query.get("after") in names:
        found = found[names.index(query["after"]) + 1 :]
    limit = int(query.get("limit", "10000")) if query.get("limit", "10000").isdigit() else 10_000
    data, more = found[:limit], len(found) > limit
    ends = {"first_id": data[0]["id"] if data else None, "last_id": data[-1]["id"] if data else None}
    return Answer(orjson.dumps({"object": "list", "data": data, "has_more": more, **ends}))


def _find(attempt: Attempt) -> Kept | Trouble:
    name = attempt.path.split("/")[3]
    kept: Kept | None = attempt.org.files.get(name) if attempt.org else None
    return kept or errors.not_found(f"No such File object: {name}")


def about(attempt: Attempt) -> Answer | Trouble:
    kept = _find(attempt)
    return kept if isinstance(kept, Trouble) else Answer(orjson.dumps(kept.about))


def delete(attempt: Attempt) -> Answer | Trouble:
    kept = _find(attempt)
    if isinstance(kept, Trouble):
        return kept
    assert attempt.org is not None
    name = kept.about["id"]
    del attempt.org.files[name]
    kept.body.release()
    return Answer(orjson.dumps({"id": name, "object": "file", "deleted": True}))


_RANGE = re.compile(r"bytes=(\d*)-(\d*)$")


def content(attempt: Attempt) -> Answer | Trouble:
    """GET /v1/files/{id}/content, whole or one range (RFC 9110 §14); a range that cannot be met is a 416."""
    kept = _find(attempt)
    if isinstance(kept, Trouble):
        return kept
    size = kept.end - kept.start
    name = str(kept.about["filename"]).encode("ascii", "replace").decode().replace('"', "_")
    answer = Answer(b"", "application/octet-stream", extra=f'content-disposition: attachment; filename="{name}"\r\n')
    answer.extra += "accept-ranges: bytes\r\n"
    start, end = 0, size
    asked = _RANGE.match(attempt.request.headers.get("range", ""))
    if asked and asked.group(0) != "bytes=-":
        first, last = asked.groups()
        start = int(first) if first else max(0, size - int(last))
        end = min(size, int(last) + 1) if first and last else size
        if start >= end:
            return Answer(b"", "", 416, f"content-range: bytes */{size}\r\n")
        answer.status = 206
        answer.extra += f"content-range: bytes {start}-{end - 1}/{size}\r\n"
    answer.file = (kept.body, kept.start + start, kept.start + end)
    return answer
