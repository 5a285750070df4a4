"""The body of a request, read within limits, as one of pydantic's models."""

import asyncio
from typing import TypeVar
from urllib.parse import parse_qsl

from pydantic import BaseModel, ValidationError
from starlette.requests import ClientDisconnect, Request

from deltalm_ds.errors import nearest
from deltalm_ds.serving.errors import CLIENT_GONE, ApiError
from deltalm_ds.serving.limits import BODY_S

JSON, FORM = "application/json", "application/x-www-form-urlencoded"
Body = TypeVar("Body", bound=BaseModel)


async def read_body(request: Request, most: int, kind: type[Body], takes_forms: bool = False) -> Body:
    """What a client has sent, as JSON or as a form.

    Args:
        request: whose body nobody has read.
        most: bytes.
        kind: what it is read as.
        takes_forms: whether it may be a form, of strings and lists of such; any page can send one without asking.

    Raises:
        ApiError: it is too large, too slow, in another form, or not what is wanted.
    """
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != JSON and not (takes_forms and media_type == FORM):
        raise ApiError(415, f"Send {JSON}; the content type is {media_type[:80]!r}.")
    data = await _read(request, most)
    try:
        if media_type == JSON:
            return kind.model_validate_json(data)
        return kind.model_validate(_fields(data))
    except ValidationError as error:
        raise ApiError(400, _sentence(error, kind)) from None


async def _read(request: Request, most: int) -> bytes:
    try:
        # what is announced is not waited for
        announced = request.headers.get("content-length", "0")
        if announced.isdecimal() and int(announced[:20]) > most:
            raise ApiError(413, f"The request has more than {most} bytes.", {"Connection": "close"})
        return await asyncio.wait_for(_at_most(request, most), BODY_S)
    except asyncio.TimeoutError:
        headers = {"Connection": "close"}
        raise ApiError(408, f"The request did not come within {BODY_S:.0f} seconds.", headers) from None
    except ClientDisconnect:
        raise ApiError(CLIENT_GONE, "The client is gone.") from None


async def _at_most(request: Request, most: int) -> bytes:
    data = bytearray()
    async for part in request.stream():
        data += part
        if len(data) > most:
            raise ApiError(413, f"The request has more than {most} bytes.", {"Connection": "close"})
    return bytes(data)


def _fields(data: bytes) -> dict[str, str | list[str]]:
    """A form; a name that comes several times is a list."""
    fields: dict[str, str | list[str]] = {}
    try:
        pairs = parse_qsl(data.decode(), keep_blank_values=True, errors="strict", max_num_fields=2_000)
    except ValueError as error:  # bad UTF-8 is one, too
        raise ApiError(400, f"The form cannot be read: {error}.") from None
    for name, value in pairs:
        before = fields.get(name)
        fields[name] = value if before is None else [*([before] if isinstance(before, str) else before), value]
    return fields


def _sentence(error: ValidationError, kind: type[BaseModel]) -> str:
    """The first fault, by the name of the field."""
    fault = error.errors(include_url=False, include_input=False)[0]
    field = ".".join(map(str, fault["loc"]))
    if fault["type"] == "extra_forbidden":
        return f"There is no field {field[:80]!r}: the nearest is {nearest(field, kind.model_fields)!r}."
    what = fault["msg"].removeprefix("Value error, ").rstrip(".")
    return f"{field}: {what}." if field else f"{what}."
