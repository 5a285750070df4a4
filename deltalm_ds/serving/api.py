"""Our own API: `POST /v1/translate` and `GET /v1/models`. docs/serving.md tells it to users."""

import json
import time
from collections.abc import AsyncGenerator, Callable
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from deltalm_ds.generation.documents import FORMATS
from deltalm_ds.generation.interface import UNITS
from deltalm_ds.serving.batching import Ticket
from deltalm_ds.serving.bodies import read_body
from deltalm_ds.serving.errors import told
from deltalm_ds.serving.limits import MAX_BEAM, MAX_NAME
from deltalm_ds.serving.models import Model
from deltalm_ds.serving.names import english_name
from deltalm_ds.serving.service import Asked, Service
from deltalm_ds.serving.translation import Sentence, Translation

TEXT_FORMATS = tuple(name for name, entry in FORMATS.items() if entry.is_text)
Width = Annotated[int, Field(ge=1, le=MAX_BEAM)]
Name = Annotated[str, Field(max_length=MAX_NAME)]


class TranslateRequest(BaseModel):
    """What `POST /v1/translate` takes; see `Asked`."""

    model_config = ConfigDict(extra="forbid")

    text: str | None = None
    texts: list[str] | None = None
    target: Name | None = None
    source: Name | None = None
    model: Name | None = None
    format: Literal[TEXT_FORMATS] = "text"  # type: ignore[valid-type]  # names of a table
    n_best: Width = 1
    beam: Width | None = None
    alignments: Literal[UNITS] | None = None  # type: ignore[valid-type]  # names of a table
    stream: bool = False

    @model_validator(mode="after")
    def _one_of_both(self) -> "TranslateRequest":
        if (self.text is None) == (self.texts is None):
            raise ValueError("Send either text or texts")
        return self

    def asked(self) -> Asked:
        """The request as the service takes it."""
        texts = self.texts if self.text is None else [self.text]
        assert texts is not None
        return Asked(texts, self.target, self.source, self.model, self.format, self.n_best, self.beam, self.alignments)


class Api:
    """The handlers. service: what they share with others."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def models(self, request: Request) -> Response:
        """What can be asked for."""
        self._service.keys.check(request)
        limits = self._service.limits
        return JSONResponse(
            {
                "models": [_model(model) for model in self._service.models],
                "formats": list(TEXT_FORMATS),
                "limits": {"characters": limits.characters, "n_best": MAX_BEAM, "beam": limits.beam},
            }
        )

    async def translate(self, request: Request) -> Response:
        """Translations with their sentences and the hypotheses of each; with `stream` as they come."""
        began, service = time.monotonic(), self._service
        service.keys.check(request)
        body = await read_body(request, service.limits.body_bytes, TranslateRequest)
        asked = body.asked()
        service.limits.check_texts(asked.texts)
        if asked.alignments:
            service.limits.check_alignments(asked.texts, asked.num_texts)
        if body.stream:
            return await self._stream(request, asked, began)
        model, found = await service.work.result(request, lambda ticket: service.translate(asked, ticket))
        return JSONResponse(_answer(model, found, asked.num_texts, began))

    async def _stream(self, request: Request, asked: Asked, began: float) -> Response:
        """A line of JSON for each sentence, and at the end the answer; or an error, if only then there is one."""

        def work(ticket: Ticket, tell: Callable[[Any], None]) -> None:
            def heard(number: int, sentence: Sentence) -> None:
                tell({"text": number, "sentence": _sentence(sentence, asked.num_texts)})

            model, found = self._service.translate(asked, ticket, heard)
            tell(_answer(model, found, asked.num_texts, began))

        first, events = await self._service.work.events(request, work)

        async def lines() -> AsyncGenerator[str, None]:
            try:
                yield _line(first)
                async for event in events:
                    yield _line(event)
            except Exception as error:
                yield _line(told(error).as_json())
            finally:
                await events.aclose()

        return StreamingResponse(lines(), media_type="application/x-ndjson")


def _line(event: Any) -> str:
    return json.dumps(event, ensure_ascii=False) + "\n"


def _model(model: Model) -> dict[str, Any]:
    languages = [{"code": code, "name": english_name(code)} for code in model.languages]
    return {
        "name": model.name,
        "engine": model.engine_name,
        "languages": languages,
        "alignments": model.shows_attention,
    }


def _answer(model: Model, found: list[Translation], num: int, began: float) -> dict[str, Any]:
    return {
        "translations": [_translation(translation, num) for translation in found],
        "model": model.name,
        "engine": model.engine_name,
        "seconds": round(time.monotonic() - began, 4),
    }


def _translation(translation: Translation, num: int) -> dict[str, Any]:
    return {
        "text": translation.texts[0],
        "alternatives": translation.texts[1:],
        "sentences": [_sentence(sentence, num) for sentence in translation.sentences],
        "counts": vars(translation.counts),
    }


def _sentence(sentence: Sentence, num: int) -> dict[str, Any]:
    both = list(zip(sentence.texts, sentence.hypotheses, strict=True))[:num]
    hypotheses: list[dict[str, Any]] = [{"text": text, "score": one.score, "is_cut": one.is_cut} for text, one in both]
    for hypothesis, alignment in zip(hypotheses, sentence.alignments, strict=False):
        hypothesis["alignment"] = alignment
    return {"source": sentence.source, "hypotheses": hypotheses}
