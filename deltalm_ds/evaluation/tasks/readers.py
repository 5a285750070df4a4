"""Readers of flat files, beside those of `data_tools/published/`."""

from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from deltalm_ds.data_tools.published.objects import is_list, read_objects
from deltalm_ds.data_tools.published.published_corpus import Item
from deltalm_ds.errors import InputError
from deltalm_ds.evaluation.tasks.interface import Read
from deltalm_ds.lines import numbered_lines, read_parallel_lines

ORANGESUM = {"train": "train", "dev": "valid", "test": "test"}  # what its files call the splits


def text_pairs(files: Sequence[Path], dropped: Counter[str]) -> Iterator[Item]:
    """Sources and targets in two files, line by line."""
    source, target = files
    for line, other in zip(*read_parallel_lines(source, target), strict=True):
        yield line, [other]


def lines(files: Sequence[Path], dropped: Counter[str]) -> Iterator[Item]:
    """A text a line, without targets."""
    for path in files:
        for _, line in numbered_lines(path):
            yield line, []


def fields(source: str, target: str | None = None) -> Read:
    """What reads objects (JSONL, Parquet) with a text, and a text or list of texts; without a target texts alone."""
    return partial(_read_fields, source=source, target=target)


def columns(source: int, target: int) -> Read:
    """What reads two columns, counted from 1, of lines with tabs between."""
    return partial(_read_columns, source=source, target=target)


def _read_fields(files: Sequence[Path], dropped: Counter[str], source: str, target: str | None) -> Iterator[Item]:
    for path in files:
        for position, record in read_objects(path):
            text, targets = record.get(source), record.get(target) if target else []
            targets = [targets] if isinstance(targets, str) else targets
            if not isinstance(text, str) or not is_list(targets, str):
                wanted = f"`{source}` and `{target}`" if target else f"`{source}`"
                raise InputError(f"{position}: expected an object with the text {wanted}.")
            yield text, targets


def _read_columns(files: Sequence[Path], dropped: Counter[str], source: int, target: int) -> Iterator[Item]:
    for path in files:
        for number, line in numbered_lines(path):
            cells = line.split("\t")
            if len(cells) < max(source, target):
                raise InputError(
                    f"{path}, line {number}: found {len(cells)} columns, expected at least {max(source, target)} with "
                    "tabs between."
                )
            yield cells[source - 1], [cells[target - 1]]
