"""What looks wrong in an output, on cases by hand and on real references, which are right."""

import gzip
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deltalm_ds.generation.checks import LONGEST_PERIOD, REPEATED_TOKENS, REPEATS, _longest_run, findings

MULTI30K = Path(__file__).parents[3] / "shared/data/multi30k"


def found(source, output):
    """With a token for each word."""
    words = {word: number for number, word in enumerate(dict.fromkeys(f"{source} {output}".split()))}
    return findings(source, output, *([words[word] for word in side.split()] for side in (source, output)))


def test_what_looks_wrong_is_named():
    assert found("The house is red.", "Das Haus ist rot.") == []
    assert found("a b c d e f g h i j k l m n", "x y") == ["length 14 to 2 tokens"]
    assert found("a b", "x y") == found("a", "x y z w v u t") == []
    assert found("a b c d e f g h", "x na na na na na na y") == ["repeats 6 tokens"]
    assert found("ho ho ho ho ho ho", "ha ha ha ha ha ha") == []
    assert found("It is nice outside today", "It is nice outside today") == ["copied"]
    assert found("Berlin Paris", "Berlin Paris") == []
    assert found("One thing. Another thing. A third.", "Ein Ding und das andere und noch.") == ["sentences 3 to 1"]
    assert found("In 2026 it has 3.5 km.", "Es hat 3,5 km.") == ["numbers missing: 2026"]
    assert found("It has 3.5 km in 2026.", "२०२६ में ३.५ किमी है।") == []
    assert found("12 and 12", "12") == ["numbers missing: 12"]


@given(st.lists(st.integers(0, 2), max_size=14))
def test_repetition_is_that_of_brute_force(ids):
    expected = 0
    for start in range(len(ids)):
        for end in range(start + REPEATED_TOKENS, len(ids) + 1):
            part = ids[start:end]
            for period in range(1, LONGEST_PERIOD + 1):
                is_periodic = all(part[i] == part[i - period] for i in range(period, len(part)))
                if is_periodic and len(part) >= REPEATS * period:
                    expected = max(expected, len(part))
    assert _longest_run(ids) == expected


@pytest.mark.skipif(not MULTI30K.is_dir(), reason=f"{MULTI30K} (real captions, in no clone) is not here")
def test_real_translations_look_right():
    sides = []
    for language in ("en", "de"):
        with gzip.open(MULTI30K / f"test_2016_flickr.{language}.gz", "rt", encoding="utf-8") as file:
            sides.append(file.read().splitlines())
    wrong = [pair for pair in zip(*sides, strict=True) if found(*pair)]
    assert len(wrong) <= 0.02 * len(sides[0])
    shifted = [pair for pair in zip(sides[0], sides[1][1:], strict=False) if found(*pair)]
    assert len(shifted) > len(wrong)
