"""yugong.core.dialects.operations: an operation cannot escape its row by how it is spelled."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from yugong.core.dialects.operations import Operation, Table

TABLE = Table(
    (
        Operation("POST", "/chat", "chat", model="required", stream="chat", repeatable=True),
        Operation("GET", "/models/{}", "models", repeatable=True, metered=False),
        Operation("POST", "/stores/{}/search", "stores.search", repeatable=True),
        Operation("POST", "/stores/{}/{}", "stores.two"),
    ),
    {"chat": "chat", "files": "", "stores": ""},
)


@pytest.mark.parametrize(
    ("method", "path", "label"),
    [
        ("POST", "/v1/chat", "chat"),
        ("POST", "/openai/v1/chat", "chat"),
        ("POST", "/v1/chat/", "chat"),
        ("POST", "/v1/ch%61t", "chat"),
        ("POST", "/v1%2Fchat", "chat"),
        ("GET", "/v1/chat", "chat.other"),
        ("DELETE", "/v1/chat/c1", "chat.other"),
        ("GET", "/v1/models/ft:a:b", "models"),
        ("GET", "/v1/models", "other"),
        ("GET", "/v1/models/a/b", "other"),
        ("POST", "/v1/stores/vs_1/search", "stores.search"),
        ("POST", "/v1/stores/vs_1/files", "stores.two"),
        ("GET", "/v1/stores/vs_1/search", "stores"),
        ("POST", "/v1/files", "files"),
        ("GET", "/v1/files/f1/content", "files"),
        ("POST", "/v1/brand/new", "other"),
        ("POST", "/v1/", "other"),
        ("POST", "/v1", "other"),
        ("POST", "/chat", "other"),
        ("GET", "", "other"),
        ("GET", "/v1/stores/%00/('POST',)", "stores"),
    ],
)
def test_labels(method: str, path: str, label: str) -> None:
    assert TABLE.find(method, path).label == label


def test_reading_is_repeatable_and_free_and_writing_neither() -> None:
    for path in ("/v1/files", "/v1/brand/new"):
        read, written = TABLE.find("GET", path), TABLE.find("POST", path)
        assert (read.is_repeatable, read.is_metered) == (True, False)
        assert (written.is_repeatable, written.is_metered) == (False, True)
        assert not read.is_strict


def test_representations() -> None:
    assert repr(TABLE.find("POST", "/v1/chat")) == "<Operation chat POST /chat>"
    assert repr(TABLE) == "<Table of 2 exact paths, 3 families>"
    assert TABLE.find("POST", "/v1/chat").is_strict


def test_a_row_may_not_invent_words() -> None:
    with pytest.raises(AssertionError):
        Operation("POST", "/x", "x", model="perhaps")


@given(st.sampled_from(["GET", "POST", "PUT"]), st.text(max_size=30))
def test_labels_are_bounded(method: str, path: str) -> None:
    labels = {"chat", "models", "stores.search", "stores.two", "chat.other", "files", "stores", "other"}
    for prefix in ("", "/v1/", "/v1/stores/", "/openai/v1/"):
        assert TABLE.find(method, prefix + path).label in labels
