"""WMT's test sets from 2021 on: source and references in one XML file."""

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from xml.etree import ElementTree

from deltalm_ds.data_tools.published.published_corpus import Item
from deltalm_ds.data_tools.published.xml_elements import elements
from deltalm_ds.errors import InputError


def read(files: Sequence[Path], dropped: Counter[str]) -> Iterator[Item]:
    """WMT from 2021 on: source and references in one file. The translators keep their order of first appearance."""
    for path in files:
        translators: dict[str, int] = {}
        for number, document in elements(path, "doc"):
            position = f"{path}, line {number}, document {document.get('id')}"
            sources = [_segment_texts(position, source) for source in document.findall("src")]
            if len(sources) != 1:
                raise InputError(f"{position}: found {len(sources)} sources, expected one.")
            if "testsuite" in document.attrib:
                dropped["testsuite"] += len(sources[0])
                continue
            references: dict[int, dict[str, str]] = {}
            for reference in document.findall("ref"):
                column = translators.setdefault(reference.get("translator", ""), len(translators))
                references[column] = _segment_texts(position, reference)
            for segment, text in sources[0].items():
                yield text, [references.get(column, {}).get(segment, "") for column in translators.values()]


def _segment_texts(position: str, element: ElementTree.Element) -> dict[str, str]:
    texts: dict[str, str] = {}
    for segment in element.iter("seg"):
        identity = segment.get("id")
        if identity is None or identity in texts:
            raise InputError(f"{position}: the segment {identity} of <{element.tag}> has no id of its own.")
        texts[identity] = "".join(segment.itertext())
    return texts
