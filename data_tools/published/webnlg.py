"""WebNLG: triples of subject, predicate and object, and the texts that say them."""

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from deltalm_ds.data_tools.published.objects import Identities, is_list, read_objects
from deltalm_ds.data_tools.published.published_corpus import Item
from deltalm_ds.data_tools.published.xml_elements import elements
from deltalm_ds.errors import InputError


def read(files: Sequence[Path], dropped: Counter[str], language: str = "en") -> Iterator[Item]:
    """WebNLG's XML, or JSONL with `triples` and `refs`: triples -> texts in `language`, that of texts without one.

    A source is `subject | predicate | object && …`, with spaces for underscores and literals without quotes.
    """
    for path in files:
        yield from _webnlg_xml(path, dropped, language) if ".xml" in path.suffixes else _webnlg_jsonl(path)


def _webnlg_xml(path: Path, dropped: Counter[str], language: str) -> Iterator[Item]:
    identities = Identities()
    for number, entry in elements(path, "entry"):
        position = f"{path}, line {number}, entry {entry.get('eid')}"
        identities.add(position, entry.get("eid"))
        triples = [triple.text or "" for triple in entry.findall("modifiedtripleset/mtriple")]
        texts = entry.findall("lex")
        wanted = [text.text or "" for text in texts if (text.get("lang") or language) == language]
        dropped["other language"] += len(texts) - len(wanted)
        yield _linearise(position, [triple.split(" | ") for triple in triples]), wanted


def _webnlg_jsonl(path: Path) -> Iterator[Item]:
    identities = Identities()
    for position, record in read_objects(path):
        triples, texts = record.get("triples"), record.get("refs")
        if not is_list(triples, list) or not is_list(texts, str):
            raise InputError(f"{position}: expected lists `triples` and `refs`.")
        if "id" in record:  # the release numbers the entries of each number of triples by themselves
            identities.add(position, (record["id"], len(triples)))
        yield _linearise(position, triples), texts


def _linearise(position: str, triples: list[list[str]]) -> str:
    if not triples or not all(len(triple) == 3 and is_list(triple, str) for triple in triples):
        raise InputError(f"{position}: expected triples of subject, predicate and object, found {triples}.")
    parts = [[part.strip().strip('"').replace("_", " ") for part in triple] for triple in triples]
    return " && ".join(" | ".join(triple) for triple in parts)
