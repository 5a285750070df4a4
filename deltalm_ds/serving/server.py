"""The server: a socket, signals, and connections that do not wait for ever."""

import asyncio
import ipaddress
import os
import resource
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from deltalm_ds.errors import InputError
from deltalm_ds.serving.app import make_app
from deltalm_ds.serving.limits import BODY_S, READ_BYTES
from deltalm_ds.serving.service import Service, say
from deltalm_ds.streams import survive_lost_terminal

LOCAL_NAMES = ("localhost", "127.0.0.1", "[::1]")
CONNECTIONS = 4_000
HEAD_BYTES = 16_384
STOP_S = 5.0  # beside the longest that a request takes


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach that address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def listen(host: str, port: int) -> socket.socket:
    """A socket at that address.

    Raises:
        InputError: there is no such address here, or the port is taken.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(address[:2], family=family, backlog=2_048)
    except socket.gaierror as error:
        reason = error.strerror
    except UnicodeError:
        reason = "no name of a host"
    except OSError as error:
        reason = os.strerror(error.errno or 0)  # Python adds the address to its own
    raise InputError(f"The server cannot listen at {host}, port {port} ({reason}): name others (--host, --port).")


def serve(service: Service, listener: socket.socket, is_local: bool, greeting: str) -> None:
    """Answer until SIGTERM or SIGINT: requests that have come are answered then, and no new ones taken.

    SIGHUP loads models and keys anew. A second SIGTERM or SIGINT waits for nothing.

    Args:
        service: what answers.
        listener: see `listen`; closed at the end.
        is_local: answer only to names of this machine.
        greeting: what is told when signals do all that.
    """
    survive_lost_terminal()
    _allow_connections()
    app = make_app(service, LOCAL_NAMES if is_local else None)
    config = uvicorn.Config(
        app,
        http=LimitedProtocol,
        ws="none",
        lifespan="off",
        log_level="error",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        limit_concurrency=CONNECTIONS,
        h11_max_incomplete_event_size=HEAD_BYTES,
        timeout_graceful_shutdown=int(service.limits.timeout_s + STOP_S),
    )
    try:
        _Server(config, service, greeting).run([listener])
    finally:
        service.close()


class _Server(uvicorn.Server):
    """With our signals: a stop that was asked for is no failure."""

    def __init__(self, config: uvicorn.Config, service: Service, greeting: str) -> None:
        super().__init__(config)
        self._service, self._greeting = service, greeting
        self._reloading: asyncio.Future[None] | None = None

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        actions = {signal.SIGTERM: self._stop, signal.SIGINT: self._stop, signal.SIGHUP: self._reload}
        for number, action in actions.items():
            loop.add_signal_handler(number, action)
        say(self._greeting)
        try:
            yield
        finally:
            for number in actions:
                loop.remove_signal_handler(number)

    def _stop(self) -> None:
        self.force_exit, self.should_exit = self.should_exit, True
        if not self.force_exit:
            say("stopping: requests that have come are answered (once more ends them at once).")

    def _reload(self) -> None:
        if self._reloading is None or self._reloading.done():
            self._reloading = asyncio.get_running_loop().run_in_executor(None, self._service.reload)


class LimitedProtocol(H11Protocol):
    """uvicorn's, which closes connections that take too long to send the head of a request, or to read an answer."""

    _waiting: asyncio.TimerHandle | None = None
    _reading: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        transport.set_write_buffer_limits(0)  # whatever the client does not take at once is watched
        self._wait()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._wait()

    def handle_events(self) -> None:
        try:
            super().handle_events()
        except h11.LocalProtocolError:  # after HEAD uvicorn cannot say what is wrong with the next request
            self.transport.abort()
        if self.transport.is_closing() and self.cycle is not None and not self.cycle.response_complete:
            self.cycle.disconnected = True  # after what it was told it gets no answer to what it asked before
            self.cycle.message_event.set()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch_reader()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._stop_watching()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._stop_waiting()
        self._stop_watching()

    def _watch_reader(self) -> None:
        """Cut the client off if it takes less than `READ_BYTES` in `BODY_S` seconds of what waits for it."""

        def look(before: int = self.transport.get_write_buffer_size()) -> None:
            if before - self.transport.get_write_buffer_size() < READ_BYTES:
                self.transport.abort()
            else:
                self._watch_reader()

        self._reading = self.loop.call_later(BODY_S, look)

    def _stop_watching(self) -> None:
        if self._reading is not None:
            self._reading.cancel()
            self._reading = None

    def _wait(self) -> None:
        """The time begins with the first byte of a head; while a request is at work nothing is waited for."""
        if self.cycle is not None and not self.cycle.response_complete:
            self._stop_waiting()
        elif self._waiting is None and self.timeout_keep_alive_task is None:
            self._waiting = self.loop.call_later(BODY_S, self.timeout_keep_alive_handler)

    def _stop_waiting(self) -> None:
        if self._waiting is not None:
            self._waiting.cancel()
            self._waiting = None


def _allow_connections() -> None:
    """As many files as there may be connections, if the system lets us."""
    now, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = CONNECTIONS + 256 if most == resource.RLIM_INFINITY else min(most, CONNECTIONS + 256)
    if now != resource.RLIM_INFINITY and now < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, most))
