"""The listening sockets that settings ask for.

Decides: which open ones stay when settings change. Must not know: who accepts on them.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from yugong.core.settings import Settings
from yugong.store.doors import Door, DoorTaken, open_tcp, open_unix

__all__ = ["Opened", "close_unlike", "open_doors"]

#: For clients, and the admin listener's if one is wanted.
Opened = tuple[list[Door], Door | None]


def open_doors(settings: Settings, standing: Opened = ([], None)) -> Opened:
    """The doors for these settings: those of `standing` that are asked for again, the others new.

    Raises:
        DoorTaken: one cannot be opened; nothing has changed then.
    """
    listen = settings.listen
    fresh: list[Door] = []

    def door(address: str, known: Iterable[Door | None]) -> Door:
        for one in known:
            if one is not None and one.address == address:
                return one
        try:
            fresh.append(_open(address))
        except DoorTaken as error:
            raise DoorTaken(f"{error}{_own(address, [*standing[0], standing[1]])}") from None
        return fresh[-1]

    try:
        addresses = [listen.address] if listen.address else []
        addresses += [f"unix:{listen.unix}"] if listen.unix else []
        clients = [door(address, standing[0]) for address in addresses]
        admin = door(listen.admin, [standing[1]]) if listen.admin else None
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


def _own(address: str, standing: Iterable[Door | None]) -> str:
    """What to add where it is ourselves who have the port."""
    port = address.rpartition(":")[2]
    mine = [door.bound for door in standing if door is not None and door.bound.rpartition(":")[2] == port]
    return f". We listen there ourselves, as {mine[0]}: to change only its host, stop and start" if mine else ""


def close_unlike(those: Opened, these: Opened) -> None:
    """Close those doors that are not among these."""
    kept = [*these[0], these[1]]
    for door in (*those[0], those[1]):
        if door is not None and door not in kept:
            door.close()
