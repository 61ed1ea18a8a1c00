"""A call that becomes a WebSocket: placeholder until the next commit."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from yugong.proxy.exchange import Exchange
    from yugong.proxy.intake import Call, Message


async def serve(exchange: Exchange, call: Call, message: Message) -> None:
    """Relays frames both ways."""
    raise NotImplementedError
