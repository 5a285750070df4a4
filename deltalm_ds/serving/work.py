"""Requests at work: in threads of their own, so many at once, and no longer than somebody waits for them."""

import asyncio
import threading
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

from starlette.requests import Request

from deltalm_ds.serving.batching import Ticket
from deltalm_ds.serving.errors import CLIENT_GONE, ApiError
from deltalm_ds.serving.limits import AT_WORK, RETRY_AFTER_S, Limits

T = TypeVar("T")
_END = object()


class Work:
    """Threads for requests, as each waits for its sentences. Beyond `AT_WORK` they wait, beyond that they are refused.

    Args:
        limits: how many wait, and how long.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._threads = ThreadPoolExecutor(AT_WORK, "requests")
        self._lock, self._num = threading.Lock(), 0

    @property
    def num_requests(self) -> int:
        """At work and waiting."""
        return self._num

    async def result(self, request: Request, work: Callable[[Ticket], T]) -> T:
        """What `work` returns, done in a thread; it is given up when the client goes or the time is over.

        Raises:
            ApiError: there are too many requests, or one of these came to pass.
            Exception: what `work` raises.
        """
        ticket = Ticket()
        done, gone = asyncio.wrap_future(self._start(work, ticket)), asyncio.ensure_future(_gone(request))
        both: set[asyncio.Future[Any]] = {done, gone}
        try:
            await asyncio.wait(both, timeout=self._limits.timeout_s, return_when=asyncio.FIRST_COMPLETED)
            if done.done():
                return done.result()
            raise ApiError(CLIENT_GONE, "The client is gone.") if gone.done() else self._too_late()
        finally:
            ticket.cancel()
            gone.cancel()
            done.cancel()

    async def events(
        self, request: Request, work: Callable[[Ticket, Callable[[Any], None]], None]
    ) -> tuple[Any, AsyncGenerator[Any, None]]:
        """The first thing that `work` tells, and what it tells then, as it does; see `result`.

        Args:
            request: whose client waits.
            work: is given what it tells things with, and tells one at least.
        """
        told = self._told(work)
        first, gone = asyncio.ensure_future(anext(told)), asyncio.ensure_future(_gone(request))
        both: set[asyncio.Future[Any]] = {first, gone}
        try:
            await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
            if not first.done():
                raise ApiError(CLIENT_GONE, "The client is gone.")
            return first.result(), told
        finally:
            first.cancel()
            gone.cancel()

    async def _told(self, work: Callable[[Ticket, Callable[[Any], None]], None]) -> AsyncGenerator[Any, None]:
        """Given up when nobody reads on or the time is over."""
        loop, ticket = asyncio.get_running_loop(), Ticket()
        events: asyncio.Queue[Any] = asyncio.Queue()

        def tell(event: Any) -> None:
            loop.call_soon_threadsafe(events.put_nowait, event)

        future = self._start(lambda ticket: work(ticket, tell), ticket)
        future.add_done_callback(lambda _: tell(_END))
        end = loop.time() + self._limits.timeout_s
        try:
            while (event := await asyncio.wait_for(events.get(), max(0.0, end - loop.time()))) is not _END:
                yield event
            future.result()
        except asyncio.TimeoutError:
            raise self._too_late() from None
        finally:
            ticket.cancel()
            future.cancel()

    def close(self) -> None:
        """No more requests come."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _start(self, work: Callable[[Ticket], T], ticket: Ticket) -> "Future[T]":
        with self._lock:
            if self._num >= AT_WORK + self._limits.waiting:
                headers = {"Retry-After": str(RETRY_AFTER_S)}
                raise ApiError(429, f"{self._num} requests wait already: try again in {RETRY_AFTER_S} s.", headers)
            self._num += 1
        future = self._threads.submit(work, ticket)
        future.add_done_callback(self._leave)
        return future

    def _leave(self, future: "Future[Any]") -> None:
        with self._lock:
            self._num -= 1

    def _too_late(self) -> ApiError:
        return ApiError(504, f"The translation took more than {self._limits.timeout_s:g} seconds.")


async def _gone(request: Request) -> None:
    """Returns when the client has gone; its request has been read."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
