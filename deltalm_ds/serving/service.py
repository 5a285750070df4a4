"""What the handlers of requests have in common: models, limits, keys, threads, counters."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from deltalm_ds import streams
from deltalm_ds.errors import InputError
from deltalm_ds.generation.interface import SearchOptions
from deltalm_ds.serving.batching import How, Ticket
from deltalm_ds.serving.detection import detect
from deltalm_ds.serving.errors import ApiError
from deltalm_ds.serving.limits import ApiKeys, Limits
from deltalm_ds.serving.metrics import Metrics
from deltalm_ds.serving.models import Model, Models
from deltalm_ds.serving.translation import Heard, Translation, Wish, translate_texts
from deltalm_ds.serving.work import Work

say = partial(streams.say, sender="serve")  # to whoever looks at the server's log


@dataclass(frozen=True)
class Asked:
    """A request for translations, whichever API it came by.

    Attributes:
        texts: to translate.
        target, source, model: None where the client names none; models that must be told the source have it detected.
        format: see `Wish`.
        num_texts: translations of each text.
        beam: None takes the server's; widened to `num_texts`.
        alignments: see `Wish`.
    """

    texts: list[str]
    target: str | None
    source: str | None = None
    model: str | None = None
    format: str = "text"
    num_texts: int = 1
    beam: int | None = None
    alignments: str | None = None


class Service:
    """All that lives as long as the server.

    Args:
        models: see `Models`.
        limits: of requests.
        keys: without which nothing is translated, if there are any.
        runs_on: see `load_engine`.
        cache_size: sentences that each model keeps.

    Raises:
        InputError, DataError: a model cannot be loaded.
    """

    def __init__(
        self, models: Sequence[str], limits: Limits, keys: ApiKeys, runs_on: Mapping[str, Any], cache_size: int
    ) -> None:
        def load(name: str, directory: Path) -> Model:
            return Model(name, directory, runs_on, cache_size, self.metrics)

        self.limits, self.keys, self.metrics = limits, keys, Metrics()
        self.work = Work(limits)
        self.models = Models(models, load)
        self.metrics.gauge("deltalm_requests_at_work", "In threads, or waiting.", lambda: self.work.num_requests)
        self.metrics.gauge("deltalm_waiting_sentences", "Not searched yet.", lambda: sum(map(_waiting, self.models)))

    def translate(
        self, asked: Asked, ticket: Ticket, on_sentence: Heard = lambda number, sentence: None
    ) -> tuple[Model, list[Translation]]:
        """The model that was used, and the translations; blocks. See `translate_texts`.

        Raises:
            ApiError: no model can.
        """
        beam = max(asked.beam or self.limits.beam, asked.num_texts)
        how = How(SearchOptions(beam=beam, n_best=beam), exact=asked.num_texts > 1)
        with self.models.used(asked.model, asked.target) as (model, target):
            if asked.alignments and not model.shows_attention:
                raise ApiError(400, f"{model.name} does not show what its outputs look at: leave alignments out.")
            source = asked.source
            if source is None and model.vocabulary.needs_source_lang:
                source = next((language for language, _ in detect("\n".join(asked.texts), model.languages)), None)
            wish = Wish(target, source, asked.format, asked.num_texts, how, asked.alignments)
            return model, translate_texts(model, asked.texts, wish, ticket, on_sentence)

    def reload(self) -> None:
        """Load all keys and models anew; what cannot be loaded stays as it was."""
        try:
            self.keys.load()
        except InputError as error:
            say(f"the API keys stay as they were: {error}")
        self.models.reload(say)

    def close(self) -> None:
        """No more requests come."""
        self.work.close()
        self.models.close()


def _waiting(model: Model) -> int:
    return model.num_waiting
