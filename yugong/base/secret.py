"""A value that must not be seen.

Decides: what a secret may be (bounded bytes) and that nothing shows it by accident: no text form, no copy, no pickle,
no place in a traceback's locals rendering. Must not know: where it came from or who uses it.

`reveal()` is the only way out, so that every place that uses a secret in the clear can be found by one search.
"""

from __future__ import annotations

from hmac import compare_digest
from typing import Any, NoReturn

__all__ = ["SECRET_MAX", "Secret"]

# Larger than any credential in the field (a service account's JSON with a 4096-bit key is below 4 KiB), small enough
# that a wrong path (a log, a disk image) is refused before it is read whole.
SECRET_MAX = 16_384  # bytes


class Secret:
    """Up to `SECRET_MAX` bytes that print as `Secret(...)`.

    Comparing takes the same time wherever the difference is. A secret cannot be hashed, copied, pickled or formatted.

    Raises:
        ValueError: the value is empty or longer than `SECRET_MAX` bytes (the message does not hold it).
    """

    __slots__ = ("__value",)

    def __init__(self, value: bytes | str) -> None:
        raw = value.encode("utf-8", "surrogateescape") if isinstance(value, str) else bytes(value)
        if not 0 < len(raw) <= SECRET_MAX:
            raise ValueError(f"a secret has 1 to {SECRET_MAX} bytes, this has {len(raw)}")
        self.__value = raw

    def reveal(self) -> bytes:
        """The bytes in the clear. Keep them no longer than the use."""
        return self.__value

    def reveal_text(self) -> str:
        """The text in the clear (UTF-8; bytes that are not come back as they went in)."""
        return self.__value.decode("utf-8", "surrogateescape")

    def __len__(self) -> int:
        return len(self.__value)

    def __bool__(self) -> bool:
        return True

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Secret):
            return NotImplemented
        return compare_digest(self.__value, other.__value)

    __hash__ = None  # type: ignore[assignment]  # a hash in a dict or a log would be a handle on the value

    def __repr__(self) -> str:
        return "Secret(...)"

    __str__ = __repr__

    def __format__(self, spec: str) -> NoReturn:
        raise TypeError("a secret is not formatted; reveal() it where it is used")

    def __bytes__(self) -> NoReturn:
        raise TypeError("a secret is not converted; reveal() it where it is used")

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        raise TypeError("a secret is not pickled or copied")

    def __copy__(self) -> NoReturn:
        raise TypeError("a secret is not copied")

    def __deepcopy__(self, memo: Any) -> NoReturn:
        raise TypeError("a secret is not copied")

    def __setattr__(self, name: str, value: object) -> None:
        if name != "_Secret__value" or hasattr(self, name):
            raise AttributeError("a secret does not change")
        object.__setattr__(self, name, value)
