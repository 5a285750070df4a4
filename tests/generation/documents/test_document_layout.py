"""Under an engine that echoes, a document comes back byte for byte: nothing is lost, moved or written otherwise."""

import json
import lzma
import re
import textwrap
from collections import Counter
from pathlib import Path

import pytest
from echoed import translated
from hypothesis import example, given, settings
from hypothesis import strategies as st

ROOT = Path(__file__).parents[3]
XQUAD = ROOT.parent / "shared/data/xquad"
NUM_PARAGRAPHS = 80
TEXT_FORMATS = ("text", "markdown", "html", "subtitles")
CHARACTERS = st.sampled_from(
    [*"ab é.,!?\n\n \t-*_`[]()<>/&;:#|~$\\\"'1{}%", "。", "中", "文", "ा", "\U0001f600", "\r\n"]
)
MARKDOWN = [
    r"**bold**",
    r"*it*",
    r"[link](http://x.y)",
    r"`code`",
    r"\*",
    r"![a](b)",
    r"[^1]",
    r"$x$",
    r"~~s~~",
    r"> ",
    r"- ",
    r"1. ",
    r"# ",
]
MARKDOWN += ["| a | b |\n|-|-|\n", "```\n", "\n[^1]: note", "---\n", "\n===\n", "  \n"]
HTML = [
    "<b>",
    "</b>",
    "<p>",
    "</p>",
    "<br>",
    "&amp;",
    "&eacute;",
    "&nbsp;",
    "<!-- c -->",
    "<code>c d</code>",
    "</i>",
    "<script>x</script>",
]
HTML += ["AT&T", "a < b", '<i class="notranslate">']
SUBTITLES = ["1\n00:00:01,000 --> 00:00:02,000\n", "WEBVTT\n\n", "00:01.000 --> 00:02.000 a\n", "- who?", "\n\n"]
TEXT = ["one two", "Three. Four", "http://e.com/?a=1", "{name}", "m@x.org", "中文。", "字", " ", "  ", "\t", ".", "\n"]
WORDS = st.sampled_from([*MARKDOWN, *HTML, *SUBTITLES, *TEXT])
DOCUMENTS = st.lists(st.one_of(WORDS, CHARACTERS), max_size=25).map("".join)


@pytest.mark.parametrize("format", TEXT_FORMATS)
@settings(max_examples=200)
@example("\ufeff# One\r\n\r\ntwo  \r\nthree\r\n", 50)
@example("<p>a <b>b</b> c &lt; d & e &eacute;é</p>", 3)
@example("<p>a <![b](c) d <![CDATA[ e > f ]]> <!g> <?h> <!-- i --> <![ j", 50)
@example('**bold**<i class="notranslate">> </i>', 5)
@example("a_b \\_c_ d\\_e", 50)
@given(text=DOCUMENTS, most=st.integers(1, 30))
def test_echo_gives_the_document_back(format, text, most):
    assert translated(format, text, most=most)[0] == text


def paragraphs(language):
    """Passages of XQuAD, the same in each language."""
    with lzma.open(XQUAD / f"{language}.jsonl.xz", "rt", encoding="utf-8") as file:
        return list(dict.fromkeys(json.loads(line)["passage"] for line in file))[:NUM_PARAGRAPHS]


@pytest.mark.skipif(not XQUAD.is_dir(), reason=f"{XQUAD} (real paragraphs, in no clone) is not here")
@pytest.mark.parametrize("language", ["en", "hi", "ro", "zh"])
def test_real_paragraphs_keep_every_sentence_and_byte(language):
    texts = paragraphs(language)
    for width in (None, 72):
        text = "\n\n".join(textwrap.fill(one, width, break_on_hyphens=False) if width else one for one in texts)
        found, counts = translated("text", text, most=500, source=language, target=language)
        assert found == text
        assert len(texts) == NUM_PARAGRAPHS <= counts.passages and counts.sentences > 4 * NUM_PARAGRAPHS
        assert counts.untranslated == counts.divided == 0
        # every letter goes through the engine, but those of addresses; none is lost and none comes twice
        found, _ = translated("text", text, all_letters_alike, most=500, source=language)
        assert Counter(letters(without_urls(found))) == {"ж": len(letters(without_urls(text)))}


def all_letters_alike(text):
    return "".join("ж" if character.isalpha() else character for character in text)


def letters(text):
    return [character for character in text if character.isalpha()]


def without_urls(text):
    return re.sub(r"https?://[^\s)]+|www\.\S+", "", text)


@pytest.mark.parametrize(
    "name", ["README.md", "docs/training.md", "docs/kernels.md", "CONTRIBUTING.md", "docs/recipe.md"]
)
def test_our_own_documents_come_back(name):
    text = (ROOT / name).read_text(encoding="utf-8")
    found, counts = translated("markdown", text)
    assert found == text and counts.sentences > 30
