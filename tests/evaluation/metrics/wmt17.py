"""Real outputs of WMT17's systems with their published scores; not in every clone."""

import csv
import lzma
from pathlib import Path

import pytest

EVALREF = Path(__file__).parents[4] / "shared/data/evalref"
ROWS = [0, *(pytest.param(row, marks=pytest.mark.slow) for row in range(1, 5))]  # of published_scores
needs_outputs = pytest.mark.skipif(not EVALREF.exists(), reason=f"{EVALREF} (real system outputs of WMT17) is not here")


def lines_of(name):
    """The outputs of a system, or the references (`ref`)."""
    return lzma.decompress((EVALREF / f"wmt17.en-de.{name}.xz").read_bytes()).decode().removesuffix("\n").split("\n")


def published_scores():
    """Of every system a row: its name and scores."""
    with open(EVALREF / "wmt17.en-de.scores.tsv", encoding="utf-8") as file:
        return list(csv.DictReader(file, delimiter="\t"))
