"""Before any rank starts: at which address and port all hosts of a job reach its first one, found out by trying."""

import contextlib
import secrets
import socket
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor

import psutil

from deltalm_ds.training.rendezvous import free_port

CONNECT_S = 3.0


class Listener:
    """The first host's end: says a word to whoever connects, so that nobody takes another program for it."""

    def __init__(self, port: int = 0) -> None:
        """OSError if the port is taken; 0: any that is free."""
        self.word = secrets.token_hex(8)
        self._socket = socket.socket()
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._socket.bind(("", port or free_port()))
        self._socket.listen(1024)
        self._socket.setblocking(False)
        self.port: int = self._socket.getsockname()[1]
        self._open_until: dict[socket.socket, float] = {}

    def serve(self) -> None:
        """Answer those that have connected; waits for nobody."""
        with contextlib.suppress(BlockingIOError):
            while True:
                connection, _ = self._socket.accept()
                connection.setblocking(False)
                self._open_until[connection] = time.monotonic() + CONNECT_S
                with contextlib.suppress(OSError):
                    connection.send(self.word.encode())
        for connection, until in list(self._open_until.items()):
            if _has_closed(connection) or time.monotonic() > until:
                del self._open_until[connection]
                connection.close()

    def close(self) -> None:
        """Leave the port to the ranks."""
        for connection in (*self._open_until, self._socket):
            connection.close()


def _has_closed(connection: socket.socket) -> bool:
    """Whether the other end has: it should first, so that the port is free at once."""
    try:
        return not connection.recv(64)
    except OSError as error:
        return not isinstance(error, BlockingIOError)


def own_addresses() -> dict[str, str]:
    """This host's IPv4 addresses, each with its interface; loopback last."""
    is_up = {name: stats.isup for name, stats in psutil.net_if_stats().items()}
    found = [
        (address.address, name)
        for name, addresses in psutil.net_if_addrs().items()
        for address in addresses
        if address.family == socket.AF_INET and is_up.get(name)
    ]
    return dict(sorted(found, key=lambda one: one[0].startswith("127.")))


def reached(addresses: Sequence[str], port: int, word: str) -> dict[str, str]:
    """Of the first host's addresses those at which it answers, each with the address that this host has there."""
    with ThreadPoolExecutor(max(1, len(addresses))) as pool:
        found = zip(addresses, pool.map(lambda address: _reach(address, port, word), addresses), strict=True)
        return {address: own for address, own in found if own}


def _reach(address: str, port: int, word: str) -> str | None:
    until = time.monotonic() + CONNECT_S
    try:
        with socket.create_connection((address, port), timeout=CONNECT_S) as connection:
            said = b""
            while len(said) < len(word) and time.monotonic() < until and (part := connection.recv(64)):
                said += part
            return connection.getsockname()[0] if said == word.encode() else None
    except OSError:
        return None


def common_address(addresses: Iterable[str], reached_by_host: Iterable[Iterable[str]]) -> str | None:
    """The first address at which every host reaches the first one; None if there is none."""
    sets = [set(reached) for reached in reached_by_host]
    return next((address for address in addresses if all(address in one for one in sets)), None)
