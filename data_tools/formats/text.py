"""Plain text: a line is a record; two files that belong together line by line; documents with blank lines between."""

from collections.abc import Iterator
from pathlib import Path

from deltalm_ds.data_tools.formats.input_format import Columns, Wanted
from deltalm_ds.errors import InputError
from deltalm_ds.lines import MAX_TEXT_BYTES, line_blocks, name_of, too_long, unequal_lines


def read(wanted: Wanted) -> Iterator[Columns]:
    """Yield the lines."""
    return ((lines,) for lines in line_blocks(wanted.path, wanted.span))


def read_documents(wanted: Wanted) -> Iterator[Columns]:
    """Yield the documents: lines up to a blank one, joined again."""
    lines_of_document: list[str] = []
    number = size = 0
    for lines in line_blocks(wanted.path):
        documents = []
        for line in lines:
            number += 1
            if line and not line.isspace():
                lines_of_document.append(line)
                size += len(line)
                if size > MAX_TEXT_BYTES:
                    raise InputError(
                        f"{name_of(wanted.path)}, line {number}: {too_long('document')} Blank lines separate "
                        "documents; a file without them has sentences (no --documents)."
                    )
            elif lines_of_document:
                documents.append("\n".join(lines_of_document))
                lines_of_document, size = [], 0
        yield (documents,)
    if lines_of_document:
        yield (["\n".join(lines_of_document)],)


def read_parallel(source_path: Path, target_path: Path) -> Iterator[Columns]:
    """Yield the lines of two files, side by side.

    Raises:
        InputError: they have different numbers of lines.
    """
    sides = line_blocks(source_path), line_blocks(target_path)
    source, target = next(sides[0], []), next(sides[1], [])
    num_lines = 0
    while count := min(len(source), len(target)):
        yield source[:count], target[:count]
        num_lines += count
        source, target = source[count:] or next(sides[0], []), target[count:] or next(sides[1], [])
    if source or target:
        num_source, num_target = (
            num_lines + len(rest) + sum(map(len, side)) for rest, side in zip((source, target), sides, strict=True)
        )
        raise unequal_lines(source_path, num_source, target_path, num_target)
