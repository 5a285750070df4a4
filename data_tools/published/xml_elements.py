"""XML as a stream of elements.

XML with a document type definition is refused, as only that can name other files or expand without bounds.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast
from xml.etree import ElementTree

from deltalm_ds.errors import InputError
from deltalm_ds.lines import numbered_lines


def elements(path: Path, tag: str) -> Iterator[tuple[int, ElementTree.Element]]:
    """Yield the elements with this tag and the line where each ends; no other part of the document is kept.

    Raises:
        InputError: the file is not well-formed XML, or has a document type definition.
    """
    parser: ElementTree.XMLPullParser[Any] = ElementTree.XMLPullParser(("start", "end"))
    parents: list[ElementTree.Element] = []
    try:
        for number, line in numbered_lines(path):
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
