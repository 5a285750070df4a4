"""Word documents, read and written by python-docx: paragraphs of the text, its tables, headers and footers.

Runs of another format than most of their paragraph are spans, as are hyperlinks and tracked insertions. Fields,
pictures and whatever else is no text stay as they are; so do footnotes, which python-docx does not open.
"""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from copy import deepcopy
from io import BytesIO
from typing import Any
from zipfile import BadZipFile

from deltalm_ds.errors import InputError
from deltalm_ds.generation.documents.passages import Document, Passage, PassageBuilder

try:
    import docx
    from docx.opc.exceptions import PackageNotFoundError
    from docx.opc.part import XmlPart
    from docx.oxml import OxmlElement
    from docx.oxml.ns import qn
except ModuleNotFoundError:
    raise InputError("A Word document needs the package python-docx: pip install 'deltalm-ds[documents]'.") from None

_CONTAINERS = {qn(f"w:{name}") for name in ("hyperlink", "ins", "smartTag")}
_DROPPED = {qn(f"w:{name}") for name in ("proofErr", "lastRenderedPageBreak")}  # what Word finds anew
_NO_FORMAT = {qn(f"w:{name}") for name in ("lang", "noProof")}
_TOKEN = re.compile("\0(\\d+)\0")  # a mark, by its number: no XML has this character


def read(data: bytes) -> Document:
    """The passages of a Word document.

    Raises:
        InputError: it is none.
    """
    try:
        return _WordDocument(docx.Document(BytesIO(data)))
    except (PackageNotFoundError, BadZipFile, KeyError, ValueError) as error:
        raise InputError(f"The document cannot be read as a Word document (.docx): {error}.") from None


class _WordDocument:
    """See `Document`."""

    def __init__(self, document: Any) -> None:
        self._document = document
        parts = [part for part in document.part.package.iter_parts() if isinstance(part, XmlPart)]
        self._paragraphs = [_Paragraph(element) for part in parts for element in part.element.iter(qn("w:p"))]
        self.passages = [paragraph.passage for paragraph in self._paragraphs]

    def write(self, translations: Sequence[str]) -> bytes:
        for paragraph, translation in zip(self._paragraphs, translations, strict=True):
            paragraph.write(translation)
        file = BytesIO()
        self._document.save(file)
        return file.getvalue()


class _Paragraph:
    """A `w:p`; marks are numbers of what they stand for: elements, formats, and None for the end of a span."""

    def __init__(self, element: Any) -> None:
        self._element = element
        self._things: list[Any] = []
        self._base = self._usual_format()
        self._format = self._base
        self._field: list[Any] | None = None  # its runs so far
        self._builder = PassageBuilder()
        self._add_all(element)
        self._set_format(self._base)
        self._keep_field()
        self.passage: Passage = self._builder.build()

    def write(self, translation: str) -> None:
        """Put this in place of the paragraph's runs."""
        for child in [child for child in self._element if child.tag != qn("w:pPr")]:
            self._element.remove(child)
        containers, formats = [self._element], [self._base]
        stack: list[list[Any]] = []  # what the end of a span takes an element off
        for number, piece in enumerate(_TOKEN.split(translation)):
            if number % 2 == 0:
                _append_text(containers[-1], piece, formats[-1])
                continue
            thing = self._things[int(piece)]
            if thing is None:
                stack.pop().pop()
            elif isinstance(thing, bytes):  # a format
                formats.append(thing)
                stack.append(formats)
            elif isinstance(thing, list):
                containers[-1].extend([_with_format(deepcopy(element), formats[-1]) for element in thing])
            else:
                container = deepcopy(thing)
                containers[-1].append(container)
                containers.append(container)
                stack.append(containers)

    # --- reading ---

    def _usual_format(self) -> bytes:
        counts: Counter[bytes] = Counter()
        for run in _runs_of(self._element):
            counts[_format_of(run)] += sum(len(text.text or "") for text in run.findall(qn("w:t")))
        return counts.most_common(1)[0][0] if counts else b""

    def _token(self, thing: Any) -> str:
        self._things.append(thing)
        return f"\0{len(self._things) - 1}\0"

    def _set_format(self, wanted: bytes) -> None:
        """End the span of another format, begin one where it is not the paragraph's usual one."""
        if wanted == self._format:
            return
        if self._format != self._base:
            self._builder.close(self._token(None), "format")
        if wanted != self._base:
            self._builder.open(self._token(wanted), "format")
        self._format = wanted

    def _add_all(self, container: Any) -> None:
        for child in container:
            if child.tag == qn("w:r"):
                self._add_run(child)
            elif child.tag in _CONTAINERS:
                self._set_format(self._base)
                shell = deepcopy(child)
                shell[:] = []
                self._builder.open(self._token(shell), "container")
                self._add_all(child)
                self._set_format(self._base)
                self._builder.close(self._token(None), "container")
            elif child.tag not in _DROPPED | {qn("w:pPr")}:
                self._builder.add_kept(_text_of(child), self._token([child]))

    def _add_run(self, run: Any) -> None:
        kinds = [field.get(qn("w:fldCharType")) for field in run.findall(qn("w:fldChar"))]
        if self._field is not None or "begin" in kinds:
            self._field = [*(self._field or []), run]
            if "end" in kinds:
                self._keep_field()
            return
        self._set_format(_format_of(run))
        for child in run:
            if child.tag == qn("w:t"):
                self._builder.add_text(child.text or "")
            elif child.tag not in _DROPPED | {qn("w:rPr")}:
                alone = deepcopy(run)
                alone[:] = [deepcopy(child)]
                is_break = child.tag in (qn("w:br"), qn("w:tab"), qn("w:cr"))
                (self._builder.add_break if is_break else self._builder.add_point)(self._token([alone]))

    def _keep_field(self) -> None:
        """All runs of a field, as one."""
        if self._field:
            text = "".join(text.text or "" for run in self._field for text in run.findall(qn("w:t")))
            self._builder.add_kept(text, self._token(self._field))
        self._field = None


def _runs_of(container: Any) -> Iterator[Any]:
    for child in container:
        if child.tag == qn("w:r"):
            yield child
        elif child.tag in _CONTAINERS:
            yield from _runs_of(child)


def _text_of(element: Any) -> str:
    return "".join(text.text or "" for text in element.iter(qn("w:t")))


def _format_of(run: Any) -> bytes:
    """A run's format as XML, without the language that the text was in."""
    from lxml import etree

    properties = deepcopy(run.find(qn("w:rPr")))
    if properties is None:
        return b""
    for child in [child for child in properties if child.tag in _NO_FORMAT]:
        properties.remove(child)
    return etree.tostring(properties) if len(properties) else b""


def _with_format(element: Any, format: bytes) -> Any:
    """A run that was taken apart has its format again."""
    if element.tag == qn("w:r") and element.find(qn("w:rPr")) is None and format:
        element.insert(0, docx.oxml.parse_xml(format))
    return element


def _append_text(container: Any, text: str, format: bytes) -> None:
    if text:
        run = _with_format(OxmlElement("w:r"), format)
        content = OxmlElement("w:t")
        content.text = text
        content.set(qn("xml:space"), "preserve")
        run.append(content)
        container.append(run)
