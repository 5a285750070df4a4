"""Lines in which addresses, placeholders, tags or numbers are copied, by the rules of documents."""

import re
from collections.abc import Sequence

from deltalm_ds.generation.choosing import Chooser, Output
from deltalm_ds.generation.documents.markup import Stretch
from deltalm_ds.generation.documents.passages import Passage
from deltalm_ds.generation.documents.pieces import has_letters, written_in_pieces
from deltalm_ds.generation.documents.protected import protect


def copying(
    pattern: re.Pattern[str], chooser: Chooser, lines: Sequence[str], outputs: Sequence[Sequence[Output]]
) -> tuple[list[list[Output]], int]:
    """Of each line the outputs that copy what is protected, or one made of pieces; and how many lines were made so.

    An output copies it if it has each part as often as the line; else what is between these parts is translated alone.

    Args:
        pattern: what finds it (`pattern_of`).
        chooser: translates pieces, and scores what is put together from them.
        lines: sources.
        outputs: of each, best first.
    """
    stretches = [_stretch(line, pattern) for line in lines]
    kept = [_copying(stretch, of_line) for stretch, of_line in zip(stretches, outputs, strict=True)]
    numbers = [number for number, of_line in enumerate(kept) if not of_line]
    written, _ = written_in_pieces([stretches[number] for number in numbers], chooser.texts)
    made = chooser.outputs_of([lines[number] for number in numbers], [written[stretches[number]] for number in numbers])
    for number, output in zip(numbers, made, strict=True):
        kept[number] = [output]
    return kept, len(numbers)


def _stretch(line: str, pattern: re.Pattern[str]) -> Stretch:
    passage = protect(Passage(line), pattern)
    return Stretch(passage, 0, len(line), tuple(range(len(passage.marks))))


def _copying(stretch: Stretch, outputs: Sequence[Output]) -> list[Output]:
    if stretch.is_plain:
        return list(outputs)
    if not has_letters(stretch):
        return []
    return [output for output in outputs if stretch.written_as(output.text, {}) is not None]
