"""Published corpora to what `deltalm data build` and `deltalm evaluate` read."""

import json
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import IO

from deltalm_ds.data_tools.published.table import PUBLISHED
from deltalm_ds.errors import InputError
from deltalm_ds.files import atomic_file


@dataclass(frozen=True)
class Conversion:
    """What was read and written: items of the corpus, rows (lines) of the output, and what is not in it, by reason."""

    corpus: str
    items: int
    rows: int
    dropped: dict[str, int]


def convert(name: str, files: Sequence[Path], out: Sequence[Path]) -> Conversion:
    """Write a corpus as `data build` and `evaluate` read it; the output appears only when it is complete.

    Args:
        name: of the corpus, one of `PUBLISHED`.
        files: as many as the corpus comes in.
        out: one `.jsonl` file, which gets an object with `source` and `target` for every target; or text files of
            which the first gets the sources and the others a reference each, one line an item (a line is empty where
            an item has fewer references; references beyond are counted as dropped).

    Raises:
        InputError: the corpus is unknown, an output exists, or a file is not as the corpus has it.
    """
    published = PUBLISHED.get(name)
    if published is None:
        nearest = get_close_matches(name, PUBLISHED, 1)
        hint = f"perhaps you mean {nearest[0]}; there are" if nearest else "name one of"
        raise InputError(f"There is no published corpus {name!r}: {hint} {', '.join(PUBLISHED)}.")
    if not published.min_files <= len(files) <= (published.max_files or len(files)):
        raise InputError(f"{name} takes {published.files}, not {len(files)} files.")
    is_jsonl = len(out) == 1 and out[0].suffix == ".jsonl"
    if len(set(out)) < max(2, len(out)) and not is_jsonl:
        raise InputError("The output is a file named .jsonl, or two text files as in test.en-de.en,test.en-de.de.")
    for path in out:
        if path.exists():
            raise InputError(f"{path} exists already: name a new file or remove it first.")
    dropped: Counter[str] = Counter()
    num_items = num_rows = 0
    with ExitStack() as stack:
        outputs = [stack.enter_context(atomic_file(path)) for path in out]
        for source, targets in published.read(files, dropped):
            num_items += 1
            rows = _json_rows(source, targets) if is_jsonl else _text_rows(source, targets, len(out) - 1, dropped)
            for row in rows:
                for output, text in zip(outputs, row, strict=True):
                    _write_line(output, text, num_items)
            num_rows += len(rows)
            if not rows:
                dropped["empty"] += 1
        if not num_rows:
            raise InputError(
                f"There is nothing to convert in {', '.join(map(str, files))} ({dict(+dropped)} left out)."
            )
    return Conversion(name, num_items, num_rows, dict(+dropped))


def _json_rows(source: str, targets: Sequence[str]) -> list[Sequence[str]]:
    source = source.strip()
    pairs = [(source, target.strip()) for target in targets if source and target.strip()]
    return [[json.dumps({"source": source, "target": target}, ensure_ascii=False)] for source, target in pairs]


def _text_rows(source: str, targets: Sequence[str], num_references: int, dropped: Counter[str]) -> list[Sequence[str]]:
    line, *references = (" ".join(text.split()) for text in (source, *targets))
    dropped["references"] += sum(map(bool, references[num_references:]))
    references = (references + [""] * num_references)[:num_references]
    return [[line, *references]] if line and any(references) else []


def _write_line(output: IO[str], text: str, item: int) -> None:
    try:
        output.write(f"{text}\n")
    except UnicodeEncodeError:  # an escape such as \ud800 is valid JSON but not valid text
        raise InputError(f"Item {item} has half a surrogate pair, which is no text: {text[:80]!r}.") from None
