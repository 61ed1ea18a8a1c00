"""The listening sockets that settings ask for.

Decides: which open ones stay when settings change. Must not know: who accepts on them.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from yugong.core.settings import Settings
from yugong.store.doors import Door, open_tcp, open_unix

__all__ = ["Opened", "close_unlike", "open_doors"]

#: For clients, and the admin listener's if one is wanted.
Opened = tuple[list[Door], Door | None]


def open_doors(settings: Settings, standing: Iterable[Door | None] = ()) -> Opened:
    """The doors for these settings: those of `standing` that are asked for again, the others new.

    Raises:
        DoorTaken: one cannot be opened; nothing has changed then.
    """
    listen = settings.listen
    known = {door.address: door for door in standing if door is not None}
    fresh: list[Door] = []

    def door(address: str) -> Door:
        if address not in known:
            fresh.append(_open(address))
            known[address] = fresh[-1]
        return known[address]

    try:
        addresses = [listen.address] if listen.address else []
        addresses += [f"unix:{listen.unix}"] if listen.unix else []
        clients = [door(address) for address in addresses]
        admin = door(listen.admin) if listen.admin else None
    except Exception:
        for one in fresh:
            one.close()
        raise
    for one in clients:
        one.sock.listen(listen.backlog)
    return clients, admin


def _open(address: str) -> Door:
    if address.startswith("unix:"):
        return open_unix(Path(address.removeprefix("unix:")))
    host, _, port = address.rpartition(":")
    door = open_tcp(host.strip("[]"), int(port))
    door.address = address
    return door


def close_unlike(those: Opened, these: Opened) -> None:
    """Close those doors that are not among these."""
    kept = [*these[0], these[1]]
    for door in (*those[0], those[1]):
        if door is not None and door not in kept:
            door.close()
