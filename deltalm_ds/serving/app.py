"""The application: which handler answers which path, and what every answer has in common."""

import re
import time
from collections.abc import Collection

from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from deltalm_ds.errors import InputError
from deltalm_ds.serving.api import Api
from deltalm_ds.serving.errors import CLIENT_GONE, ApiError, answer
from deltalm_ds.serving.libretranslate import LibreTranslate
from deltalm_ds.serving.metrics import Metrics
from deltalm_ds.serving.page import POLICY, page
from deltalm_ds.serving.service import Service

HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}


def make_app(service: Service, hosts: Collection[str] | None = None) -> ASGIApp:
    """The application of a service.

    Args:
        service: what answers.
        hosts: the names that it answers to, None: to all. By another name a page from elsewhere could reach a server
            that is for this machine only.
    """
    api, libre = Api(service), LibreTranslate(service)

    async def metrics(request: Request) -> Response:
        service.keys.check(request)
        return Response(service.metrics.text(), media_type="text/plain; version=1.0.0")

    routes = [
        Route("/", page),
        Route("/health", _health),
        Route("/metrics", metrics),
        Route("/v1/models", api.models),
        Route("/v1/translate", api.translate, methods=["POST"]),
        Route("/translate", libre.translate, methods=["POST"]),
        Route("/detect", libre.detect, methods=["POST"]),
        Route("/languages", libre.languages),
    ]
    paths = frozenset(route.path for route in routes)
    handlers = dict.fromkeys((ApiError, InputError, HTTPException, Exception), answer)
    app = Starlette(routes=routes, exception_handlers=handlers)
    app.router.redirect_slashes = False
    return _Common(app, service.metrics, paths, hosts)


async def _health(request: Request) -> Response:
    return JSONResponse({"status": "ok"})


class _Common:
    """What holds for every request: the name it is sent to, headers of its answer, counters."""

    def __init__(self, app: ASGIApp, metrics: Metrics, paths: frozenset[str], hosts: Collection[str] | None) -> None:
        self._app, self._metrics, self._paths, self._hosts = app, metrics, paths, hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        began, status = time.monotonic(), CLIENT_GONE

        async def send_more(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], *_ENCODED]
            await send(message)

        try:
            if self._hosts is None or _host(scope) in self._hosts:
                await self._app(scope, receive, send_more)
            else:
                error = ApiError(400, "This server answers to the names of its own machine only.")
                response = await answer(Request(scope), error)
                await response(scope, receive, send_more)
        finally:
            path = scope["path"] if scope["path"] in self._paths else "other"
            self._metrics.request(path, status, time.monotonic() - began)


def _host(scope: Scope) -> str:
    """The name that a request was sent to, without the port."""
    return re.sub(r":\d*$", "", Headers(scope=scope).get("host", "")).lower()


_ENCODED = [(name.encode(), value.encode()) for name, value in HEADERS.items()]
