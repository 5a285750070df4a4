"""What a client is told when it gets no translation: a status and one JSON object, `{"error": …, "code": …}`."""

from collections.abc import Mapping

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from deltalm_ds.errors import DataError, InputError

CODES = {
    400: "bad_request",
    401: "no_key",
    403: "wrong_key",
    404: "not_found",
    405: "method_not_allowed",
    408: "slow_request",
    413: "too_large",
    415: "media_type",
    429: "busy",
    500: "failed",
    504: "timeout",
}
CLIENT_GONE = 499  # nobody reads that answer; it is counted


class ApiError(Exception):
    """A request that is not answered, and why.

    Args:
        status: of HTTP, one of `CODES`, or `CLIENT_GONE`.
        message: a sentence for people.
        headers: of the answer.
    """

    def __init__(self, status: int, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.headers = status, message, headers

    def as_json(self) -> dict[str, str]:
        """What the client reads."""
        return {"error": self.message, "code": CODES.get(self.status, "failed")}


def told(error: Exception) -> ApiError:
    """What a client is told of an exception; of a fault of ours, or of damaged files, only that there is one."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, HTTPException):
        return ApiError(error.status_code, f"{error.detail}.", error.headers)
    if isinstance(error, InputError) and not isinstance(error, DataError):
        return ApiError(400, str(error))
    return ApiError(500, "The server failed here; its log says why.")


async def answer(request: Request, error: Exception) -> Response:
    """An exception handler for Starlette, which would give one that is not async a thread."""
    found = told(error)
    return JSONResponse(found.as_json(), found.status, found.headers)
