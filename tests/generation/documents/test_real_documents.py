"""Real paragraphs of eight languages as documents of every text format: each word translated once, in its place.

The engine turns words round, so that what every document must become is known to the byte: a sentence that was lost,
left, moved or translated twice is a difference, and so is any change of layout.
"""

import html
import json
import lzma
import re
import textwrap
from itertools import count
from pathlib import Path

import pytest
import sentencex
from echoed import translated

DATA = Path(__file__).parents[4] / "shared/data"
NUM_PARAGRAPHS = 50
LANGUAGES = ("de", "en", "fr", "hi", "ro", "ru", "tr", "zh")
CHINESE = re.compile(r"[\u4e00-\u9fff]")
WORD = re.compile(
    r"[^\W\d_\u4e00-\u9fff](?:[^\W\d_\u4e00-\u9fff]|[\u0300-\u036f\u0900-\u0903\u093a-\u094f\u0962\u0963])*"
)
COPIED = re.compile(r"https?://|www\.|@|[{}%<>]")
INLINE = re.compile(r"[^\W\d_]{5,}")  # words that markup goes around

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not DATA.is_dir(), reason=f"{DATA} (real paragraphs, in no clone) is not here"),
]


def turned(text):
    """Every word with its letters the other way round, other Chinese characters; what is no letter stays."""
    return WORD.sub(lambda found: found[0][::-1], CHINESE.sub(lambda found: chr(ord(found[0]) ^ 1), text))


def paragraphs(language):
    """Real ones of several sentences, without what is copied by rule."""
    name, key = (f"xquad/{language}", "passage")
    if language == "fr":
        name, key = "summarisation/orangesum_fr_title.test", "text"
    with lzma.open(DATA / f"{name}.jsonl.xz", "rt", encoding="utf-8") as file:
        found = dict.fromkeys(" ".join(json.loads(line)[key].split()) for line in file)
    usable = [one for one in found if len(sentences(one, language)) > 1 and not COPIED.search(one)]
    assert len(usable) >= NUM_PARAGRAPHS
    return usable[:NUM_PARAGRAPHS]


def sentences(text, language):
    return [one for one in sentencex.segment(language, text) if one.strip()]


# Documents in parts: (what stays as it is, text).


def as_text(texts, width):
    """Paragraphs, each below a heading of its own; of lines of that width, where there is one."""
    for number, text in enumerate(texts, 1):
        yield f"{number}.\t", ""
        lines = textwrap.wrap(text, width, break_on_hyphens=False, break_long_words=False) if width else [text]
        for line in lines[:-1]:
            yield "", line
            yield "\n", ""
        yield "", lines[-1]
        yield "\n\n", ""


def marked_up(text, before, after):
    """Every fourth word of some letters between marks."""
    end = 0
    for number, found in enumerate(INLINE.finditer(text)):
        if number % 4 == 3:
            yield from [("", text[end : found.start()]), (before, found[0]), (after, "")]
            end = found.end()
    yield "", text[end:]


def as_markdown(texts, _):
    frames = (("- ", "\n"), ("> ", "\n\n"), ("", "\n\n"), ("1. ", "\n\n"), ("## ", "\n\n"))
    for text, number in zip(texts, count()):
        before, after = frames[number % len(frames)]
        yield before, ""
        yield from marked_up(text, "**", "**")
        yield after, ""


def as_html(texts, _):
    yield "<!DOCTYPE html>\n<html><body>\n", ""
    for text in texts:
        yield '<div class="a"><p>', ""
        yield from marked_up(text, '<a href="x">', "</a>")
        yield "</p></div>\n<!-- no text -->\n", ""
    yield "</body></html>\n", ""


def as_subtitles(texts, width):
    """Cues of up to two lines; a sentence goes on in the next one."""
    number = count(1)
    for text in texts:
        lines = textwrap.wrap(text, width or 42, break_on_hyphens=False)
        for start in range(0, len(lines), 2):
            which = next(number)
            yield f"{which}\n00:{which // 60:02}:{which % 60:02},000 --> 00:{which // 60:02}:{which % 60:02},900\n", ""
            for line in lines[start : start + 2]:
                yield "", line
                yield "\n", ""
            yield "\n", ""


# with how the text of each is written
FORMATS = {
    "text": (as_text, str),
    "markdown": (as_markdown, lambda text: re.sub(r"([\\`*_\[\]$~|#])", r"\\\1", text)),
    "html": (as_html, lambda text: html.escape(text, quote=False)),
    "subtitles": (as_subtitles, str),
}


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("format", FORMATS)
def test_every_word_is_translated_once_in_its_place(format, language):
    texts = paragraphs(language)
    layout, written = FORMATS[format]
    for width in (None, 60) if format == "text" else (None,):
        parts = list(layout(texts, width))
        document, expected = ("".join(raw + written(change(text)) for raw, text in parts) for change in (str, turned))
        found, counts = translated(format, document, turned, most=400, source=language, target=language)
        assert found == expected
        assert counts.untranslated == 0
        if format in ("markdown", "html"):
            assert counts.passages == NUM_PARAGRAPHS
            assert counts.sentences == sum(len(sentences(text, language)) for text in texts)
