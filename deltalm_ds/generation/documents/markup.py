"""Writing a translation with the markup of what it is a translation of.

Each mark finds its place by what can be checked: what is kept must stand in the translation as often as in the source;
a span goes around its own text's translation, where that occurs in the whole; line breaks and points go to the word
boundary at the same share of the length. Where a mark finds no place, the stretch is divided at its marks, so that each
part is translated by itself and nothing can be lost.
"""

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from typing import NamedTuple

from deltalm_ds.generation.documents.passages import BREAK, CLOSE, KEPT, OPEN, POINT, Mark, Passage, is_cjk

# A line that begins so would be a list, a heading or the like.
_BEGINS_A_BLOCK = re.compile(r"[-+*#>=|:~`]|\d{1,9}[.)]")
_FINAL_MARKS = ".!?:;,。！？，"


class _Edit(NamedTuple):
    """Something to be written at a place of a text, in place of what stands up to `end`; sorts as it is written."""

    start: int
    end: int
    kind_order: int
    number: int
    raw: str


@dataclass(frozen=True, eq=False)
class Stretch:
    """A part of a passage, such as a sentence, with the marks in it by their numbers in the passage."""

    passage: Passage
    start: int
    end: int
    numbers: tuple[int, ...]

    @cached_property
    def text(self) -> str:
        return self.passage.text[self.start : self.end]

    def divided(self, places: Sequence[int]) -> list["Stretch"]:
        """The parts between these places (of the passage's text), in order.

        At a place, marks up to the first that opens a span belong to what ends there, the others to what begins.
        """
        bounds = [self.start, *places, self.end]
        numbers: list[list[int]] = [[] for _ in bounds[1:]]
        part, opened_at = 0, -1
        for number in self.numbers:
            mark = self.passage.marks[number]
            opened_at = mark.start if mark.kind == OPEN else opened_at
            while part + 1 < len(numbers) and (
                mark.start > bounds[part + 1]
                or (mark.start == bounds[part + 1] and (mark.end > mark.start or opened_at == mark.start))
            ):
                part += 1
            numbers[part].append(number)
        return [
            Stretch(self.passage, start, end, tuple(inside))
            for start, end, inside in zip(bounds[:-1], bounds[1:], numbers, strict=True)
        ]

    def same(self) -> str:
        """What the document has here."""
        edits = [
            _Edit(mark.start - self.start, mark.end - self.start, 0, number, mark.raw) for number, mark in self._marks
        ]
        return self._write(self.text, edits)

    @cached_property
    def spans(self) -> dict[int, str]:
        """The text of each span of which a part, and not all, is here, by the number of its opening mark."""
        return {number: self.text[start:end] for number, (start, end) in self._spans.items()}

    @cached_property
    def is_plain(self) -> bool:
        """Whether there is nothing that could fail to find its place."""
        return not self._spans and not self._kept

    def parts(self) -> list["Stretch"]:
        """Parts that are plain, or that are kept: see `is_kept`."""
        ends = [end for span in [*self._spans.values(), *self._kept.values()] for end in span]
        return self.divided(sorted({self.start + end for end in ends} - {self.start, self.end}))

    @property
    def is_kept(self) -> bool:
        """Whether all of this is kept as it is."""
        return (0, len(self.text)) in self._kept.values()

    def written_as(self, translation: str, of_spans: Mapping[int, str]) -> str | None:
        """The translation as the document writes it, with all marks; None where one finds no place.

        Args:
            translation: of this stretch's text.
            of_spans: translations of `spans`.
        """
        places = self._find(translation, of_spans)
        if places is None:
            return None
        moved = [places[number][0] for number in sorted(places)]
        keeps_order = moved == sorted(moved)
        free = _FreePlaces(translation, [places[number] for number in self._kept], self._breaks)
        edits = []
        for number, mark in self._marks:
            start, end = self._place(number, mark, translation, places, free)
            order = 0 if keeps_order else (CLOSE, POINT, BREAK, OPEN, KEPT).index(mark.kind)
            edits.append(_Edit(start, end, order, number, mark.raw))
        return self._write(translation, edits)

    # --- where marks are in this stretch's text ---

    @cached_property
    def _marks(self) -> list[tuple[int, Mark]]:
        return [(number, self.passage.marks[number]) for number in self.numbers]

    @cached_property
    def _kept(self) -> dict[int, tuple[int, int]]:
        return {
            number: (mark.start - self.start, mark.end - self.start)
            for number, mark in self._marks
            if mark.kind == KEPT
        }

    @cached_property
    def _spans(self) -> dict[int, tuple[int, int]]:
        """By the number of the opening mark, which may be before this stretch, as the closing one may be behind it."""
        found = {}
        for number, mark in self._marks:
            if mark.partner is None or mark.kind not in (OPEN, CLOSE):
                continue
            first, last = sorted((number, mark.partner))
            start = max(self.passage.marks[first].start - self.start, 0)
            end = min(self.passage.marks[last].start - self.start, len(self.text))
            if start < end and (start, end) != (0, len(self.text)):
                found[first] = (start, end)
        return found

    @cached_property
    def _breaks(self) -> list[bool]:
        """Of each break that is not at an end: whether what follows it would begin a block if it began a line."""
        return [
            _BEGINS_A_BLOCK.match(self.text, mark.end - self.start) is not None
            for _, mark in self._marks
            if mark.kind == BREAK and not self._is_at_edge(mark)
        ]

    def _is_at_edge(self, mark: Mark) -> bool:
        return mark.start == mark.end and mark.start in (self.start, self.end)

    # --- where they are in a translation ---

    def _find(self, translation: str, of_spans: Mapping[int, str]) -> dict[int, tuple[int, int]] | None:
        """The places of what is kept and of spans, by number; None if one has none, or they overlap otherwise."""
        sources = self._kept | self._spans
        found = {}
        for number, (start, end) in sources.items():
            source = self.text[start:end]
            wanted = source if number in self._kept else of_spans[number]
            place = _occurrence(self.text, start, source, translation, wanted, number in self._kept)
            if place is None:
                return None
            found[number] = place
        for one, other in combinations(sources, 2):
            if _relation(sources[one], sources[other]) != _relation(found[one], found[other]):
                return None
        return found

    def _place(
        self, number: int, mark: Mark, translation: str, places: Mapping[int, tuple[int, int]], free: "_FreePlaces"
    ) -> tuple[int, int]:
        start = mark.start - self.start
        if mark.kind == KEPT:
            return places[number]
        if mark.kind == OPEN and number in places:
            return places[number][0], places[number][0]
        if mark.kind == CLOSE and mark.partner is not None and mark.partner in places:
            return places[mark.partner][1], places[mark.partner][1]
        if self._is_at_edge(mark):
            at_edge = 0 if start == 0 else len(translation)
            return at_edge, at_edge
        target = start * len(translation) / len(self.text)
        if mark.kind == BREAK:
            return free.for_break(target)
        return free.for_point(target, inside_word=_is_word(self.text[start - 1 : start + 1]))

    # --- writing ---

    def _write(self, text: str, edits: list[_Edit]) -> str:
        """The text with the edits done, its other characters written as this stretch writes them."""
        edits.sort()
        covered = [(edit.start, edit.end) for edit in edits if edit.end > edit.start]
        characters = self._characters(text, covered)
        written, end = [], 0
        for edit in edits:
            written += characters[end : edit.start]
            written.append(edit.raw)
            end = edit.end
        return "".join(written + characters[end:])

    def _characters(self, text: str, covered: list[tuple[int, int]]) -> list[str]:
        """How each character is written: where one occurs as often as in the source, as there, else so that it is safe.

        One that would be markup stands bare only where it does so in the source, between the same kinds of characters.
        """
        characters = list(text)
        special = {self.passage.text[offset] for offset in self._written_here} | self.passage.escapes.keys()
        if special.isdisjoint(text):
            return characters
        forms = defaultdict(list)
        for place in _places_of(
            special, self.text, [(m.start - self.start, m.end - self.start) for _, m in self._marks]
        ):
            character = self.text[place]
            raw = self.passage.written.get(self.start + place, character)
            forms[character].append((raw, _neighbours(self.text, place)))
        occurrences = defaultdict(list)
        for place in _places_of(special, text, covered):
            occurrences[text[place]].append(place)
        for character, places in occurrences.items():
            known = forms[character]
            escaped = next(
                (raw for raw, _ in known if raw != character), self.passage.escapes.get(character, character)
            )
            for number, place in enumerate(places):
                raw, neighbours = known[number] if len(known) == len(places) else (escaped, "")
                is_safe = raw != character or neighbours == _neighbours(text, place)
                characters[place] = raw if is_safe else escaped
        return characters

    @cached_property
    def _written_here(self) -> list[int]:
        return [offset for offset in self.passage.written if self.start <= offset < self.end]


class _FreePlaces:
    """Where line breaks and points can stand in a text; each is asked for in order.

    kept: spans to be left alone. breaks: whether what follows each one in the source may begin a block.
    """

    def __init__(self, text: str, kept: Sequence[tuple[int, int]], breaks: Sequence[bool]) -> None:
        self._text, self._kept, self._num_left = text, kept, len(breaks)
        self._may_begin_blocks = any(breaks)

    @cached_property
    def _allowed(self) -> list[int]:
        return [place for place in range(1, len(self._text)) if not any(a < place < b for a, b in self._kept)]

    @cached_property
    def _breaks(self) -> list[tuple[int, int]]:
        """Those that are not taken: a space that a break stands for, or nothing between two Chinese characters."""
        kept_from = {start for start, _ in self._kept}
        spaces = {place for place in self._allowed if self._text[place] == " "} - kept_from
        return [(place, place + (place in spaces)) for place in self._allowed if self._may_break(place, spaces)]

    def for_break(self, target: float) -> tuple[int, int]:
        """The nearest place to the target that leaves places for those that follow; the end if there is none."""
        self._num_left -= 1
        end = (len(self._text), len(self._text))
        usable = self._breaks[: max(1, len(self._breaks) - self._num_left)]
        place = min(usable, key=lambda place: abs(place[0] - target), default=end)
        self._breaks = [other for other in self._breaks if other[0] > place[0]]
        return place

    def for_point(self, target: float, inside_word: bool) -> tuple[int, int]:
        """The nearest boundary of a word, or the nearest character."""
        text = self._text
        places = [place for place in self._allowed if inside_word or not _is_word(text[place - 1 : place + 1])]
        place = min(places, key=lambda place: abs(place - target), default=len(text))
        return place, place

    def _may_break(self, place: int, spaces: set[int]) -> bool:
        if place in spaces:
            return self._may_begin_blocks or not _BEGINS_A_BLOCK.match(self._text, place + 1)
        return is_cjk(self._text[place]) and is_cjk(self._text[place - 1])


def _occurrence(
    source: str, start: int, part: str, translation: str, wanted: str, exactly: bool
) -> tuple[int, int] | None:
    """Where a part of the source is in the translation: the occurrence of `wanted` of the same number, if as many.

    The white space around the part is taken along as far as it is there.
    """
    core = part if exactly else part.strip()
    forms = [(wanted if exactly else wanted.strip(), re.RegexFlag(0))]
    if not exactly:  # alone it may begin with a capital letter, or end as a sentence does
        forms += [(wanted.strip(), re.IGNORECASE), (wanted.strip().rstrip(_FINAL_MARKS), re.IGNORECASE)]
    lead = len(part) - len(part.lstrip())
    before = 0 if exactly else lead
    num_in_source = source.count(core)
    number = source.count(core, 0, start + before + len(core)) - 1
    for form, flags in forms:
        found = [match.span() for match in re.finditer(re.escape(form), translation, flags)] if form else []
        if len(found) == num_in_source > number >= 0:
            first, last = found[number]
            after = 0 if exactly else len(part) - len(part.rstrip())
            while before and first and translation[first - 1].isspace():
                first, before = first - 1, before - 1
            while after and last < len(translation) and translation[last].isspace():
                last, after = last + 1, after - 1
            return first, last
    return None


def _relation(one: tuple[int, int], other: tuple[int, int]) -> str:
    """How two spans lie to each other, which of them comes first apart."""
    if one == other:
        return "equal"
    if one[1] <= other[0] or other[1] <= one[0]:
        return "apart"
    if one[0] <= other[0] and other[1] <= one[1]:
        return "around"
    return "within" if other[0] <= one[0] and one[1] <= other[1] else "across"


def _places_of(characters: set[str], text: str, covered: list[tuple[int, int]]) -> list[int]:
    """Where one of these characters is, outside what is covered."""
    hidden = {place for start, end in covered for place in range(start, end)}
    return [place for place, character in enumerate(text) if character in characters and place not in hidden]


def _neighbours(text: str, place: int) -> str:
    """The kinds of the characters before and behind a place."""
    return "".join(
        "w" if character.isalnum() else " " if character.isspace() else character or "$"
        for character in (text[place - 1 : place] if place else "", text[place + 1 : place + 2])
    )


def _is_word(characters: str) -> bool:
    """Whether two characters are within a word."""
    return len(characters) == 2 and characters.isalnum() and not any(map(is_cjk, characters))
