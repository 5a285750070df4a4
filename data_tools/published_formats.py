"""Published formats that are neither lines nor flat records: WMT's SGML and XML, WebNLG, WikiLingua, questions.

Each format is a function from files to items. Files are read as a stream (SQuAD's JSON excepted), plain or compressed;
XML with a document type definition is refused, as only that can name other files or expand without bounds. Whatever
else is not as expected is an InputError that names file and position; what is left out is counted by reason.
"""

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import zip_longest
from pathlib import Path
from typing import Any, TypeGuard, TypeVar, cast
from xml.etree import ElementTree
from xml.sax.saxutils import unescape

import pyarrow as pa
import pyarrow.parquet as pq

from deltalm_ds.data_tools.sources import PARQUET_ROWS
from deltalm_ds.errors import InputError
from deltalm_ds.files import read_json
from deltalm_ds.lines import line_blocks

SEGMENT = re.compile(r"<seg\b([^>]*)>(.*?)</seg>", re.IGNORECASE)
SEGMENT_START = re.compile(r"<seg\b", re.IGNORECASE)
SEGMENT_ID = re.compile(r'\bid\s*=\s*"?([^"\s]+)', re.IGNORECASE)
SET_END = re.compile(r"</(?:src|ref|tst)set>", re.IGNORECASE)
QUOTES = {"&quot;": '"', "&apos;": "'"}

Element = TypeVar("Element")
Item = tuple[str, Sequence[str]]
"""A source and its targets: several where there are several references; "" for a reference that is missing."""


@dataclass(frozen=True)
class PublishedFormat:
    """A published format: the files it comes in, how many of them, and the function that reads them."""

    files: str
    read: Callable[[Sequence[Path], Counter[str]], Iterator[Item]]
    min_files: int = 1
    max_files: int | None = None


# --- WMT's test sets ---


def _read_sgm(files: Sequence[Path], dropped: Counter[str]) -> Iterator[Item]:
    """A source and a reference set of WMT up to 2020; their segments must have the same numbers in the same order."""
    source_path, reference_path = files
    for source, reference in zip_longest(_segments(source_path), _segments(reference_path)):
        if source is None or reference is None:
            raise InputError(f"{source_path} and {reference_path} differ in the number of segments.")
        if source[1] != reference[1]:
            raise InputError(
                f"{source_path}, line {source[0]} is segment {source[1]}, but {reference_path}, line {reference[0]} "
                f"is segment {reference[1]}: do the files belong together?"
            )
        yield source[2], [reference[2]]


def _segments(path: Path) -> Iterator[tuple[int, str, str]]:
    """Yield line, number, and text of each segment. These files are no XML (`&` stands for itself), only like it."""
    is_complete = False
    for number, line in _numbered_lines(path):
        segments = SEGMENT.findall(line)
        if len(segments) != len(SEGMENT_START.findall(line)):
            raise InputError(f"{path}, line {number}: the segment does not end on its line.")
        for attributes, text in segments:
            identity = SEGMENT_ID.search(attributes)
            if identity is None:
                raise InputError(f"{path}, line {number}: the segment has no id.")
            yield number, identity[1], unescape(text, QUOTES)
        is_complete = is_complete or SET_END.search(line) is not None
    if not is_complete:
        raise InputError(f"{path} is no SGML test set or cut short: it has no </srcset> or </refset>.")


def _read_wmt_xml(files: Sequence[Path], dropped: Counter[str]) -> Iterator[Item]:
    """WMT from 2021 on: source and references in one file. The translators keep their order of first appearance."""
    for path in files:
        translators: dict[str, int] = {}
        for number, document in _elements(path, "doc"):
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


# --- generation tasks ---


def _read_webnlg(files: Sequence[Path], dropped: Counter[str], language: str = "en") -> Iterator[Item]:
    """WebNLG's XML, or JSONL with `triples` and `refs`: triples -> texts in `language`, that of texts without one.

    A source is `subject | predicate | object && …`, with spaces for underscores and literals without quotes.
    """
    for path in files:
        yield from _webnlg_xml(path, dropped, language) if ".xml" in path.suffixes else _webnlg_jsonl(path)


def _webnlg_xml(path: Path, dropped: Counter[str], language: str) -> Iterator[Item]:
    for number, entry in _elements(path, "entry"):
        position = f"{path}, line {number}, entry {entry.get('eid')}"
        triples = [triple.text or "" for triple in entry.findall("modifiedtripleset/mtriple")]
        texts = entry.findall("lex")
        wanted = [text.text or "" for text in texts if (text.get("lang") or language) == language]
        dropped["other language"] += len(texts) - len(wanted)
        yield _linearise(position, [triple.split(" | ") for triple in triples]), wanted


def _webnlg_jsonl(path: Path) -> Iterator[Item]:
    for position, record in _records(path):
        triples, texts = record.get("triples"), record.get("refs")
        if not _is_list(triples, list) or not _is_list(texts, str):
            raise InputError(f"{position}: expected lists `triples` and `refs`.")
        yield _linearise(position, triples), texts


def _linearise(position: str, triples: list[list[str]]) -> str:
    if not triples or not all(len(triple) == 3 and _is_list(triple, str) for triple in triples):
        raise InputError(f"{position}: expected triples of subject, predicate and object, found {triples}.")
    parts = [[part.strip().strip('"').replace("_", " ") for part in triple] for triple in triples]
    return " && ".join(" | ".join(triple) for triple in parts)


def _read_wikilingua(files: Sequence[Path], dropped: Counter[str]) -> Iterator[Item]:
    """Sections of WikiLingua's articles -> their summaries; with the English file too, -> the English summaries."""
    path, *english = files
    summaries = {
        (record.get("url"), section["section_name"]): section["summary"]
        for file in english
        for position, record in _records(file)
        for section in _sections(position, record, ("section_name", "summary"))
    }
    names = ("document", "english_url", "english_section_name") if english else ("document", "summary")
    for position, record in _records(path):
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
    if not all(_is_list(column, str) for column in columns) or len(set(map(len, columns))) > 1:
        raise InputError(f"{position}: expected `article` with lists of text of one length: {', '.join(names)}.")
    return [dict(zip(names, section, strict=True)) for section in zip(*columns, strict=True)]


def _read_qa(files: Sequence[Path], dropped: Counter[str]) -> Iterator[Item]:
    """Reading comprehension turned round: answer and passage -> question. Of several answers the first is taken."""
    for path in files:
        for position, record in _squad_records(path) if path.suffix == ".json" else _records(path):
            passage = record.get("passage", record.get("context"))
            question = record.get("question")
            answers = record.get("answer", record.get("answers"))
            answers = answers.get("text") if isinstance(answers, dict) else answers
            answers = [answers] if isinstance(answers, str) else answers
            if not isinstance(passage, str) or not isinstance(question, str) or not _is_list(answers, str):
                raise InputError(f"{position}: expected `passage` (or `context`), `question` and `answers`.")
            if answers:
                yield _answer_and_passage(answers[0], passage), [question]
            else:
                dropped["no answer"] += 1


def _squad_records(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The questions of a document like SQuAD's, as flat records."""
    try:
        for article_number, article in enumerate(read_json(path)["data"]):
            for paragraph_number, paragraph in enumerate(article["paragraphs"]):
                for number, question in enumerate(paragraph["qas"]):
                    position = f"{path}, data[{article_number}].paragraphs[{paragraph_number}].qas[{number}]"
                    answers = [answer["text"] for answer in question["answers"]]
                    yield position, {**question, "context": paragraph["context"], "answers": answers}
    except (KeyError, TypeError) as error:
        raise InputError(
            f"{path} is not like SQuAD (data, paragraphs, context, qas, question, answers, text): {error!r}."
        ) from None


def _read_xqg(files: Sequence[Path], dropped: Counter[str]) -> Iterator[Item]:
    """XNLG's question generation: lines of passages (e), answers (a) and questions (q)."""
    for lines in zip_longest(*(_numbered_lines(path) for path in files)):
        if None in lines:
            raise InputError(f"{', '.join(map(str, files))} differ in the number of lines.")
        passage, answer, question = (text for _, text in lines)
        yield _answer_and_passage(answer, passage), [question]


def _answer_and_passage(answer: str, passage: str) -> str:
    """The answer goes first, so that truncation never cuts it; "" where one of the two is empty."""
    answer, passage = answer.strip(), passage.strip()
    return f"{answer} [S] {passage}" if answer and passage else ""


# --- reading ---


def _numbered_lines(path: Path) -> Iterator[tuple[int, str]]:
    return enumerate((line for lines in line_blocks(path) for line in lines), start=1)


def _is_list(value: Any, kind: type[Element]) -> TypeGuard[list[Element]]:
    return isinstance(value, list) and all(isinstance(element, kind) for element in value)


def _elements(path: Path, tag: str) -> Iterator[tuple[int, ElementTree.Element]]:
    """Yield the elements with this tag and the line where each ends; no other part of the document is kept.

    Raises:
        InputError: the file is not well-formed XML, or has a document type definition.
    """
    parser: ElementTree.XMLPullParser[Any] = ElementTree.XMLPullParser(("start", "end"))
    parents: list[ElementTree.Element] = []
    try:
        for number, line in _numbered_lines(path):
            if "<!DOCTYPE" in line:
                raise InputError(f"{path}, line {number}: a document type definition, which is not read: remove it.")
            parser.feed(f"{line}\n")
            for event, element in cast(Iterator[tuple[str, ElementTree.Element]], parser.read_events()):
                if event == "start":
                    parents.append(element)
                    continue
                parents.pop()
                if element.tag == tag:
                    yield number, element
                    if parents:
                        parents[-1].remove(element)
        parser.close()
    except ElementTree.ParseError as error:
        raise InputError(f"{path} is not well-formed XML, or cut short: {error}.") from None


def _records(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The position and content of each object of a Parquet or JSONL file."""
    for position, record in _parquet_rows(path) if path.suffix == ".parquet" else _json_lines(path):
        if not isinstance(record, dict):
            raise InputError(f"{position}: expected an object.")
        yield position, record


def _parquet_rows(path: Path) -> Iterator[tuple[str, Any]]:
    try:
        with pq.ParquetFile(path) as file:
            rows = (row for batch in file.iter_batches(PARQUET_ROWS) for row in batch.to_pylist())
            for number, row in enumerate(rows, start=1):
                yield f"{path}, row {number}", row
    except (pa.ArrowException, UnicodeDecodeError, OSError) as error:
        raise InputError(f"{path} cannot be read as Parquet: {error}.") from None


def _json_lines(path: Path) -> Iterator[tuple[str, Any]]:
    for number, line in _numbered_lines(path):
        position = f"{path}, line {number}"
        try:
            yield position, json.loads(line)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{position}: not valid JSON ({error}).") from None


FORMATS = {
    "sgm": PublishedFormat("SOURCE.sgm REFERENCE.sgm (WMT until 2020)", _read_sgm, 2, 2),
    "wmt-xml": PublishedFormat("FILE.xml (WMT from 2021)", _read_wmt_xml),
    "webnlg": PublishedFormat("FILES.xml or .jsonl, English", _read_webnlg),
    "webnlg-ru": PublishedFormat("FILES.xml or .jsonl, Russian", partial(_read_webnlg, language="ru")),
    "wikilingua": PublishedFormat("FILE [ENGLISH_FILE], .parquet or .jsonl", _read_wikilingua, 1, 2),
    "qa": PublishedFormat("FILES.json (like SQuAD), .parquet or .jsonl", _read_qa),
    "xqg": PublishedFormat("PASSAGES ANSWERS QUESTIONS (XNLG's e, a, q)", _read_xqg, 3, 3),
}
