"""XNLG's question generation: three files of lines that belong together."""

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import zip_longest
from pathlib import Path

from deltalm_ds.data_tools.published.objects import unequal
from deltalm_ds.data_tools.published.published_corpus import Item
from deltalm_ds.data_tools.published.questions import answer_and_passage
from deltalm_ds.lines import numbered_lines


def read(files: Sequence[Path], dropped: Counter[str]) -> Iterator[Item]:
    """XNLG's question generation: lines of passages (e), answers (a) and questions (q)."""
    for lines in zip_longest(*(numbered_lines(path) for path in files)):
        if None in lines:
            raise unequal("lines", {path: sum(1 for _ in numbered_lines(path)) for path in files})
        passage, answer, question = (text for _, text in lines)
        yield answer_and_passage(answer, passage), [question]
