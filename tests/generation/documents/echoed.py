"""Documents through engines that answer at once: one echoes, one is asked for anything."""

from collections.abc import Callable, Sequence
from typing import Any

from deltalm_ds.generation.documents import FORMATS
from deltalm_ds.generation.documents.translate import Counts, TranslatedDocument


def echo(text: str) -> str:
    """The text itself."""
    return text


def translated(
    format: str,
    data: str | bytes,
    translate: Callable[[str], str | list[str]] = echo,
    most: int = 200,
    source: str | None = None,
    target: str | None = None,
    **options: Any,
) -> tuple[Any, Counts]:
    """A document, as text where it is that, whose sentences of up to `most` characters a function translates."""

    def candidates(texts: Sequence[str]) -> list[list[str]]:
        assert len(set(texts)) == len(texts) and all(text.strip() for text in texts)
        found = [translate(text) for text in texts]
        return [[one] if isinstance(one, str) else one for one in found]

    raw = data.encode() if isinstance(data, str) else data
    document = TranslatedDocument(
        FORMATS[format].read(raw), candidates, lambda text: len(text) <= most, source, target, **options
    )
    written = document.write()
    return (written.decode() if FORMATS[format].is_text else written), document.counts
