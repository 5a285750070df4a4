"""Where markup goes in a translation: around its own words, copied where it must be, never lost."""

import re
from pathlib import Path

import pytest
from echoed import translated

from deltalm_ds.errors import InputError
from deltalm_ds.generation.documents import FORMATS, format_of

WORDS = {"the": "das", "red": "rote", "house": "Haus", "see": "siehe", "here": "hier", "is": "ist", "a": "ein"}


def german(text):
    """Word by word; the whole keeps its order."""
    return " ".join(WORDS.get(word.lower(), word) for word in text.split(" "))


def backwards(text):
    return " ".join(reversed(text.split(" ")))


def test_a_span_goes_around_its_own_translation_wherever_that_is():
    page = '<p>see <a href="u">the house</a> here <b>is</b> red</p>'
    assert translated("html", page, backwards)[0] == '<p>red <b>is</b> here <a href="u">house the</a> see</p>'
    assert translated("markdown", "See **the red house** here.", german)[0] == "siehe **das rote Haus** here."
    nested = "<p>see <i>the <b>red</b> house</i> here</p>"
    assert translated("html", nested, backwards)[0] == "<p>here <i>house <b>red</b> the</i> see</p>"


def test_what_is_capitalised_or_ends_like_a_sentence_alone_is_found():
    def careful(text):
        return {"see the house here": "siehe das Haus hier", "the house": "Das Haus."}.get(text, text)

    assert translated("markdown", "see *the house* here", careful)[0] == "siehe *das Haus* hier"


def test_repeated_words_are_told_apart_by_their_number():
    assert translated("markdown", "the red the **red** house", german)[0] == "das rote das **rote** Haus"


def test_markup_that_finds_no_place_divides_the_sentence():
    def other(text):
        return {"see the house here": "ganz etwas anderes"}.get(text, german(text))

    found, counts = translated("markdown", "see **the house** here", other)
    assert found == "siehe **das Haus** hier"
    assert counts.divided == 1 and "1 translated in pieces" in str(counts)


def test_another_hypothesis_is_taken_where_it_has_what_must_be_kept():
    def answers(text):
        return ["nichts davon", "benutze x.y() oft"] if text == "use x.y() often" else [text]

    found, counts = translated("markdown", "use `x.y()` often", answers)
    assert (found, counts.divided) == ("benutze `x.y()` oft", 0)


def test_code_addresses_and_placeholders_are_copied():
    def loud(text):
        return text.upper()

    text = "Go to https://example.org/a?b=1, write {name} or %s to me@x.org: `code()` runs."
    assert translated("markdown", text, loud)[0] == (
        "GO TO https://example.org/a?b=1, WRITE {name} OR %s TO me@x.org: `code()` RUNS."
    )
    assert translated("text", "It has 1.5 parts.", lambda text: text.replace("1.5", "1,5"))[0] == "It has 1,5 parts."
    keeps = translated("text", "It has 1.5 parts.", lambda text: text.replace("1.5", "1,5"), protected=["number"])[0]
    assert keeps == "It has 1.5 parts."
    with pytest.raises(InputError, match="'urls' to protect: the nearest is 'url'"):
        translated("text", "x", protected=["urls"])


@pytest.mark.parametrize(
    ("format", "text"),
    [("html", "<p>one</p>"), ("subtitles", "WEBVTT\n\n00:01.000 --> 00:02.000\none\n"), ("markdown", "one")],
)
def test_a_translation_cannot_bring_markup_in(format, text):
    attack = "<script>alert('x')</script> *a* [b](javascript:c) & -->"
    found, _ = translated(format, text, lambda _: attack)
    if format == "markdown":
        assert "\\<script" in found and "\\*a\\*" in found and "\\[b\\]" in found
    else:
        assert "<script" not in found and "&lt;script&gt;" in found and "&amp;" in found


def test_a_translation_that_begins_like_a_list_is_no_list():
    assert translated("markdown", "In 2026.", lambda _: "2026. gada")[0] == "2026\\. gada"
    assert translated("markdown", "Minus.", lambda _: "- minus")[0] == "\\- minus"
    wrapped = translated("markdown", "x" * 10 + "\n" + "y" * 10, lambda _: "in - between")[0]
    assert wrapped in ("in -\nbetween",)


def test_line_breaks_stand_at_the_same_share_of_the_text():
    text = "one two three four five six seven\neight nine ten eleven twelve"
    found, _ = translated("markdown", text, lambda text: text.replace("e", "eee"))
    assert [len(line.split()) for line in found.split("\n")] == [7, 5]


def test_sentences_are_joined_as_the_target_language_joins_them():
    def chinese(text):
        return {"One.": "一。", "Two.": "二。", "Three.": "三。"}[text]

    assert translated("text", "One. Two.\nThree.\n", chinese, source="en", target="zh")[0] == "一。二。\n三。\n"
    english = {"一。": "One.", "二。": "Two."}
    assert translated("text", "一。二。\n", english.get, source="zh_Hans", target="en")[0] == "One. Two.\n"
    assert translated("text", "一。二。\n", english.get, target="en")[0] == "One. Two.\n"


def test_wrapped_lines_of_plain_text_are_one_paragraph_and_lists_are_not():
    asked = []

    def remember(text):
        asked.append(text)
        return text

    wrapped = (
        "This line was broken because the next word did not\nfit into it any more. Then more\nof it comes, and so on.\n"
    )
    translated("text", wrapped, remember)
    assert asked[0] == "This line was broken because the next word did not fit into it any more."
    asked.clear()
    translated(
        "text", "- milk and a good deal of other things\n- eggs, though not as many as one would think\nTea\n", remember
    )
    assert asked == ["milk and a good deal of other things", "eggs, though not as many as one would think", "Tea"]


def test_nothing_but_text_is_translated():
    asked = []

    def remember(text):
        asked.append(text)
        return text

    page = "<style>p {}</style><script>let a</script><!-- no --><pre>no</pre><p translate=no>no</p><p>yes &amp; no</p>"
    translated("html", page, remember)
    assert asked == ["yes & no"]
    asked.clear()
    translated("markdown", "---\ntitle: no\n---\n\n```\nno\n```\n\n    no\n\n<div>no</div>\n\n123\n\nyes\n", remember)
    assert asked == ["yes"]
    asked.clear()
    translated("subtitles", "WEBVTT\n\nNOTE no\n\nname\n00:01.000 --> 00:02.000 line:1\nyes\n", remember)
    assert asked == ["yes"]


def test_a_sentence_that_goes_on_in_the_next_cue_is_translated_whole():
    cues = "1\n00:00:01,000 --> 00:00:02,000\nthe red\n\n2\n00:00:02,000 --> 00:00:03,000\nhouse is here.\n\n"
    cues += "3\n00:00:04,000 --> 00:00:05,000\n- See here.\n- The house.\n"
    asked = []

    def remember(text):
        asked.append(text)
        return german(text)

    found, _ = translated("subtitles", cues, remember)
    assert asked == ["the red house is here.", "See here.", "The house."]
    assert "00:00:02,000\ndas rote\n\n2\n" in found and "00:00:03,000\nHaus ist here.\n" in found
    assert re.findall("-->", found) == ["-->"] * 3 and "\n- siehe here.\n- das house.\n" in found


def test_what_the_model_gives_nothing_for_stays_and_is_counted():
    found, counts = translated("text", "One. Two.", lambda text: "" if text == "Two." else "Eins.")
    assert found == "Eins. Two."
    assert counts.untranslated == 1 and "1 left as in the source" in str(counts)


def test_formats_go_by_suffix_or_name(tmp_path):
    assert format_of(tmp_path / "a.MD").title == "Markdown"
    assert format_of(tmp_path / "a.html.gz").title == "HTML"
    assert format_of(tmp_path / "a.html", "text").title == "plain text"
    with pytest.raises(InputError, match=r"suffix \.pdf: name one"):
        format_of(tmp_path / "a.pdf")
    with pytest.raises(InputError, match="'markdwon': the nearest is 'markdown'"):
        format_of(tmp_path / "a", "markdwon")


@pytest.mark.parametrize(
    ("data", "message"),
    [(b"\xff\xfea", "UTF-16"), (b"a\nb\xe4", "line 2: not valid UTF-8"), (b"a\0", "NUL"), (b"a" * (9 << 20), "longer")],
)
def test_what_is_no_text_is_refused(data, message):
    with pytest.raises(InputError, match=message):
        translated("text", data)


def test_the_guide_lists_every_format():
    guide = (Path(__file__).parents[3] / "docs/translate.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \| (.+?) \|", guide, re.MULTILINE)
    assert {name: suffixes.split(", ") for name, suffixes in rows} == {
        name: [suffix for suffix in entry.suffixes if suffix and suffix != ".text"] for name, entry in FORMATS.items()
    }
