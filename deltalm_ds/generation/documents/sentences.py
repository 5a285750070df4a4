"""Sentences of a passage, by sentencex, and cuts where one is too long for a model."""

import re
import unicodedata
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Sequence

import sentencex
from babel.core import get_global

from deltalm_ds.languages import main_script, read_code

Span = tuple[int, int]  # start and end of a part of a text

# After these a clause ends: where a space follows, or anywhere if it is a mark of Chinese or Japanese.
_CLAUSE_ENDS = re.compile(r"[,;:،؛।…—–)](?=\s)|[，、；：。！？]")
_SPACES = re.compile(r"\s+")
_SCRIPTS_WITHOUT_SPACES = ("Hans", "Hant", "Hani", "Jpan")  # between sentences: Thai and Khmer put one there


def language_of(texts: Sequence[str]) -> str:
    """The usual language of the script that these texts are in, to split them by; English where that is unclear."""
    script = main_script(texts)
    likely = get_global("likely_subtags").get(f"und_{script}", "en")
    return likely.split("_")[0]


def sentence_space(language: str) -> str:
    """What stands between two sentences of a language: nothing in Chinese and Japanese, else a space."""
    return "" if read_code(language).script in _SCRIPTS_WITHOUT_SPACES else " "


def split_sentences(text: str, language: str, whole: Sequence[Span] = ()) -> list[Span]:
    """Where the sentences of a text are, without the white space around them; nothing else is between them.

    Args:
        text: of one paragraph.
        language: a code; sentencex knows the abbreviations and quotation marks of some 300, and treats others alike.
        whole: parts, in order, that no sentence ends in.
    """
    found = sentencex.segment(read_code(language).language, text)
    if "".join(found) != text:  # it never was so; a sentence that is too long is better than one that is lost
        found = [text]
    ends = []
    end = 0
    for sentence in found:
        end += len(sentence)
        ends.append(end)
    return list(_between(text, [end for end in ends[:-1] if not _inside(end, whole)], whole))


def cut(text: str, span: Span, fits: Callable[[str], bool], whole: Sequence[Span] = ()) -> list[Span]:
    """A sentence in parts that fit: cut where a clause ends, else at a space, else between two characters.

    Each cut is near the middle of what is too long, so that no part is a scrap.

    Args:
        span: of the sentence in the text.
        fits: whether a part is short enough.
        whole: parts that are not cut; one may be too long.
    """
    if fits(text[slice(*span)]):
        return [span]
    place = _place_to_cut(text, span, whole)
    if place is None:
        return [span]
    halves = _between(text, [place], whole, span)
    return [part for half in halves for part in cut(text, half, fits, whole)]


def _between(text: str, places: Sequence[int], whole: Sequence[Span], span: Span | None = None) -> Iterator[Span]:
    """The parts of a span (or the text) between these places, without the white space around them."""
    start, end = span or (0, len(text))
    for left, right in zip([start, *places], [*places, end], strict=True):
        part = text[left:right]
        first, last = left + len(part) - len(part.lstrip()), left + len(part.rstrip())
        for begin, stop in _overlapping(whole, left, right):  # the white space of what is kept belongs to it
            first, last = min(first, begin), max(last, stop)
        if first < last:
            yield first, last


def _place_to_cut(text: str, span: Span, whole: Sequence[Span]) -> int | None:
    start, end = span
    middle, quarter = (start + end) // 2, (end - start) // 4
    inner = text[start : end - 1]
    clauses = [start + found.end() for found in _CLAUSE_ENDS.finditer(inner)]
    spaces = [start + found.start() for found in _SPACES.finditer(inner)]
    near = [place for place in clauses if abs(place - middle) <= quarter]
    for places in (near, spaces):
        free = [place for place in places if start < place < end and not _inside(place, whole)]
        if free:
            return min(free, key=lambda place: abs(place - middle))
    hard = [middle, *(place for part in _overlapping(whole, middle, middle + 1) for place in part)]
    while hard[0] > start and (unicodedata.category(text[hard[0]])[0] == "M" or text[hard[0]] == "\u200d"):
        hard[0] -= 1  # a mark stays with its letter
    free = [place for place in hard if start < place < end and not _inside(place, whole)]
    return min(free, key=lambda place: abs(place - middle)) if free else None


def _inside(place: int, whole: Sequence[Span]) -> bool:
    """Whether a place is within one of these parts, which are in order."""
    return any(begin < place < stop for begin, stop in _overlapping(whole, place, place + 1))


def _overlapping(whole: Sequence[Span], start: int, end: int) -> Sequence[Span]:
    """Those of the parts, which are in order, that have something in common with a span."""
    first = bisect_right(whole, start, key=lambda part: part[1])
    return whole[first : bisect_left(whole, end, key=lambda part: part[0])]
