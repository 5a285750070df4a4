"""LibreTranslate's API (version 1.9), for its clients: `/translate`, `/detect`, `/languages`; also as forms.

A source of `auto` is found by py3langid. Errors have the `error` of LibreTranslate, and our `code` beside it.
"""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from deltalm_ds.serving.batching import Ticket
from deltalm_ds.serving.bodies import read_body
from deltalm_ds.serving.detection import detect
from deltalm_ds.serving.limits import MAX_BEAM, MAX_NAME
from deltalm_ds.serving.names import english_name
from deltalm_ds.serving.service import Asked, Service

AUTO = "auto"


class _Body(BaseModel):
    model_config = ConfigDict(extra="ignore")  # clients send what later versions know

    q: str | list[str]
    api_key: str | None = None

    @property
    def texts(self) -> list[str]:
        return [self.q] if isinstance(self.q, str) else self.q


class TranslateBody(_Body):
    """What `POST /translate` takes."""

    source: str = Field(max_length=MAX_NAME)
    target: str = Field(max_length=MAX_NAME)
    format: Literal["text", "html"] = "text"
    alternatives: int = Field(0, ge=0, lt=MAX_BEAM)


class DetectBody(_Body):
    """What `POST /detect` takes: one text."""

    @field_validator("q")
    @classmethod
    def _one(cls, value: str | list[str]) -> str | list[str]:
        return value if isinstance(value, str) else "\n".join(value)


class LibreTranslate:
    """The handlers. service: what they share with others."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def translate(self, request: Request) -> Response:
        """A text, or a list of such, in another language."""
        service = self._service
        body = await read_body(request, service.limits.body_bytes, TranslateBody, takes_forms=True)
        service.keys.check(request, body.api_key)
        service.limits.check_texts(body.texts)
        return JSONResponse(await service.work.result(request, lambda ticket: self._translated(body, ticket)))

    async def detect(self, request: Request) -> Response:
        """The languages that a text can be in."""
        service = self._service
        body = await read_body(request, service.limits.body_bytes, DetectBody, takes_forms=True)
        service.keys.check(request, body.api_key)
        found = await service.work.result(request, lambda ticket: self._detected(body.texts[0]))
        return JSONResponse(found)

    async def languages(self, request: Request) -> Response:
        """The languages that can be translated into, by any model."""
        codes = self._codes()
        return JSONResponse([{"code": code, "name": english_name(code), "targets": codes} for code in codes])

    def _translated(self, body: TranslateBody, ticket: Ticket) -> dict[str, Any]:
        source = None if body.source == AUTO else body.source
        asked = Asked(body.texts, body.target, source, format=body.format, num_texts=1 + body.alternatives)
        _, found = self._service.translate(asked, ticket)
        answer: dict[str, list[Any]] = {"translatedText": [translation.texts[0] for translation in found]}
        if body.alternatives:
            answer["alternatives"] = [_different(translation.texts) for translation in found]
        if body.source == AUTO:
            nothing = {"confidence": 0.0, "language": "en"}
            answer["detectedLanguage"] = [next(iter(self._detected(text)), nothing) for text in body.texts]
        return {name: values[0] for name, values in answer.items()} if isinstance(body.q, str) else answer

    def _detected(self, text: str) -> list[dict[str, Any]]:
        found = detect(text, self._codes())
        return [{"confidence": round(100 * share, 1), "language": language} for language, share in found]

    def _codes(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(code for model in self._service.models for code in model.languages))


def _different(texts: list[str]) -> list[str]:
    return list(dict.fromkeys(text for text in texts if text != texts[0]))
