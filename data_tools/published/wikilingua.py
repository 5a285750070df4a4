"""WikiLingua: sections of articles and their summaries, in one language or with English summaries."""

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from deltalm_ds.data_tools.published.objects import is_list, read_objects
from deltalm_ds.data_tools.published.published_corpus import Item
from deltalm_ds.errors import InputError


def read(files: Sequence[Path], dropped: Counter[str]) -> Iterator[Item]:
    """Sections of WikiLingua's articles -> their summaries; with the English file too, -> the English summaries."""
    path, *english = files
    summaries = {
        (record.get("url"), section["section_name"]): section["summary"]
        for file in english
        for position, record in read_objects(file)
        for section in _sections(position, record, ("section_name", "summary"))
    }
    names = ("document", "english_url", "english_section_name") if english else ("document", "summary")
    for position, record in read_objects(path):
        for section in _sections(position, record, names):
            if not english:
                yield section["document"], [section["summary"]]
            elif summary := summaries.get((section["english_url"], section["english_section_name"])):
                yield section["document"], [summary]
            else:
                dropped["no English section"] += 1


def _sections(position: str, record: dict[str, Any], names: Sequence[str]) -> list[dict[str, str]]:
    """The sections of an article, which is an object of lists as Hugging Face's data sets have it."""
    article = record.get("article")
    columns: list[Any] = [article.get(name) for name in names] if isinstance(article, dict) else [None]
    if not all(is_list(column, str) for column in columns) or len(set(map(len, columns))) > 1:
        raise InputError(f"{position}: expected `article` with lists of text of one length: {', '.join(names)}.")
    return [dict(zip(names, section, strict=True)) for section in zip(*columns, strict=True)]
