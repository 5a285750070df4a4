"""Published corpora: small files in each form with the content expected of them, malformed ones, and the real files."""

import csv
import gzip
import json
import shutil
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sacrebleu.dataset.fake_sgml import FakeSGMLDataset
from sacrebleu.dataset.wmt_xml import WMTXMLDataset
from typer.testing import CliRunner

from deltalm_ds.cli import app
from deltalm_ds.data_tools.convert import convert
from deltalm_ds.data_tools.published.table import PUBLISHED
from deltalm_ds.data_tools.sources import TextSource, read_columns, read_records
from deltalm_ds.errors import InputError
from deltalm_ds.languages import scripts_of

SHARED = Path(__file__).parents[3] / "shared/data"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason=f"{SHARED} (real corpora, in no clone) is not here")

SGM = """<{kind} setid="newstest2031" srclang="en" trglang="de">
<doc sysid="ref" docid="a.1" genre="news" origlang="en">
<hl>
<seg id="1">{0}</seg>
</hl>
<p>
<seg id="2">{1}</seg> <SEG ID=3>{2}</SEG>
</p>
</doc>
</{kind}>
"""
ENGLISH = ("Cats & dogs", "AT&amp;T said: 3 &lt; 4.", " Two  spaces ")
GERMAN = ("Katzen & Hunde", "AT&amp;T sagte: &quot;3 &lt; 4&quot;.", "Zwei Leerzeichen")

WMT_XML = """<?xml version='1.0' encoding='utf-8'?>
<dataset id="newstest2031">
  <doc id="a" origlang="en">
    <src lang="en"><p><seg id="1">Cats &amp; dogs</seg><seg id="2">Bare</seg></p><p><seg id="3">End</seg></p></src>
    <ref lang="de" translator="B"><p><seg id="1">Katzen &amp; Hunde</seg><seg id="3">Ende</seg></p></ref>
    <ref lang="de" translator="A"><p><seg id="1">Katze und Hund</seg><seg id="3">Schluss</seg></p></ref>
    <hyp system="x" lang="de"><p><seg id="1">Nein</seg><seg id="3">?</seg></p></hyp>
  </doc>
  <doc id="suite" origlang="en" testsuite="y"><src lang="en"><p><seg id="1">Out</seg></p></src></doc>
  <doc id="b" origlang="en">
    <src lang="en"><p><seg id="1">Only A</seg></p></src>
    <ref lang="de" translator="A"><p><seg id="1">Nur A</seg></p></ref>
  </doc>
</dataset>
"""

WEBNLG = """<?xml version="1.0" ?>
<benchmark>
  <entries>
    <entry category="Food" eid="Id1" size="2">
      <originaltripleset><otriple>Old_Pie | x | y</otriple></originaltripleset>
      <modifiedtripleset>
        <mtriple>Apple_Pie | country | "New Land"</mtriple>
        <mtriple>Apple_Pie | mainIngredient | Apple, (fruit)</mtriple>
      </modifiedtripleset>
      <lex comment="good" lid="Id1">Apple pie is &lt;made&gt; of apples.</lex>
      <lex comment="good" lid="Id2" lang="">Pie of apples.</lex>
      <lex comment="good" lid="Id3" lang="ru">Пирог из яблок.</lex>
    </entry>
    <entry category="Food" eid="Id2" size="1">
      <modifiedtripleset><mtriple>A | b | C</mtriple></modifiedtripleset>
    </entry>
  </entries>
</benchmark>
"""
PIE = "Apple Pie | country | New Land && Apple Pie | mainIngredient | Apple, (fruit)"

SPANISH = {
    "url": "es.example/1",
    "article": {
        "section_name": ["Uno", "Dos"],
        "document": ["Corta el pan.\nCome.", "Lava todo."],
        "summary": ["Come pan.", "Lava."],
        "english_url": ["en.example/1", "en.example/1"],
        "english_section_name": ["One", "Nine"],
    },
}
ENGLISH_ARTICLE = {
    "url": "en.example/1",
    "article": {"section_name": ["One", "Two"], "document": ["Cut.", "Wash."], "summary": ["Eat bread.", "Clean."]},
}

QUESTION = {"id": "q", "question": "谁来了？", "answers": [{"text": "小猫", "answer_start": 0}, {"text": "猫"}]}
SQUAD = {"version": "1", "data": [{"title": "t", "paragraphs": [{"context": "小猫来了。", "qas": [QUESTION]}]}]}
ASKED = ("小猫 [S] 小猫来了。", "谁来了？")


def write(path, content):
    data = content if isinstance(content, bytes) else content.encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def jsonl(*records):
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)


def pairs_of(format_name, *files):
    """The pairs that a conversion to JSONL gives, and what it counts."""
    out = files[0].parent / "out.jsonl"
    out.unlink(missing_ok=True)
    conversion = convert(format_name, files, [out])
    pairs = list(read_records(TextSource((out,)), 2, Counter()))
    assert len(pairs) == conversion.rows
    return pairs, conversion.items, conversion.dropped


def sgm_files(directory, english=ENGLISH, german=GERMAN):
    return (
        write(directory / "newstest2031-ende-src.en.sgm", SGM.format(*english, kind="srcset")),
        write(directory / "newstest2031-ende-ref.de.sgm", SGM.format(*german, kind="refset")),
    )


# --- what each format becomes ---


def test_sgm_test_sets_become_lines(tmp_path):
    out = [tmp_path / "test.en-de.en", tmp_path / "test.en-de.de"]
    conversion = convert("sgm", sgm_files(tmp_path), out)
    assert (conversion.items, conversion.rows, conversion.dropped) == (3, 3, {})
    assert out[0].read_text() == "Cats & dogs\nAT&T said: 3 < 4.\nTwo spaces\n"
    assert out[1].read_text() == 'Katzen & Hunde\nAT&T sagte: "3 < 4".\nZwei Leerzeichen\n'


text = st.text(st.characters(blacklist_categories=("Cs", "Cc", "Zl", "Zp"), blacklist_characters="<>&")).map(str.strip)


@given(st.lists(text.filter(bool), min_size=1, max_size=5))
def test_sgm_is_read_as_sacrebleu_reads_it(tmp_path_factory, texts):
    directory = tmp_path_factory.mktemp("sgm")
    body = "".join(f'<seg id="{number}">{text}</seg>\n' for number, text in enumerate(texts))
    path = write(directory / "a.sgm", f'<srcset>\n<doc docid="x">\n{body}</doc>\n</srcset>\n')
    FakeSGMLDataset("test")._convert_format(str(path), str(directory / "theirs"))
    convert("sgm", [path, path], [directory / "ours", directory / "again"])
    assert (directory / "ours").read_text() == (directory / "theirs").read_text()


def test_wmt_xml_has_a_column_for_each_translator(tmp_path):
    path = write(tmp_path / "newstest2031.en-de.xml", WMT_XML)
    out = [tmp_path / name for name in ("en", "de.B", "de.A")]
    conversion = convert("wmt-xml", [path], out)
    assert (conversion.items, conversion.rows) == (4, 3)
    assert conversion.dropped == {"testsuite": 1, "empty": 1}
    theirs = WMTXMLDataset._unwrap_wmt21_or_later(str(path))
    for ours, name in zip(out, ("src", "ref:B", "ref:A"), strict=True):
        assert ours.read_text().splitlines() == theirs[name]
    pairs, _, _ = pairs_of("wmt-xml", path)
    assert [target for _, target in pairs] == ["Katzen & Hunde", "Katze und Hund", "Ende", "Schluss", "Nur A"]


def test_references_beyond_the_files_are_counted(tmp_path):
    path = write(tmp_path / "newstest2031.en-de.xml", WMT_XML)
    conversion = convert("wmt-xml", [path], [tmp_path / "en", tmp_path / "de"])
    assert (tmp_path / "de").read_text() == "Katzen & Hunde\nEnde\n"
    assert conversion.dropped == {"testsuite": 1, "empty": 2, "references": 3}


def test_webnlg_has_a_row_for_each_text_of_the_language(tmp_path):
    path = write(tmp_path / "Food.xml.gz", WEBNLG)
    english = [(PIE, "Apple pie is <made> of apples."), (PIE, "Pie of apples.")]
    assert pairs_of("webnlg", path) == (english, 2, {"other language": 1, "empty": 1})
    pairs, _, _ = pairs_of("webnlg-ru", write(tmp_path / "Food.xml", WEBNLG.replace('lang=""', 'lang="en"')))
    assert pairs == [(PIE, "Apple pie is <made> of apples."), (PIE, "Пирог из яблок.")]
    triples = [["Apple_Pie", "country", '"New Land"'], ["Apple_Pie", "mainIngredient", "Apple, (fruit)"]]
    records = write(tmp_path / "food.jsonl", jsonl({"id": 1, "triples": triples, "refs": [t for _, t in english]}))
    assert pairs_of("webnlg", path, records)[0] == 2 * english


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_wikilingua_summarises_in_its_own_language_or_in_english(tmp_path, suffix):
    files = tmp_path / f"spanish{suffix}", tmp_path / f"english{suffix}"
    for path, record in zip(files, (SPANISH, ENGLISH_ARTICLE), strict=True):
        if suffix == ".parquet":
            pq.write_table(pa.Table.from_pylist([record]), path)
        else:
            write(path, jsonl(record))
    own = [("Corta el pan. Come.", "Come pan."), ("Lava todo.", "Lava.")]
    assert pairs_of("wikilingua", files[0]) == (own, 2, {})
    across = [("Corta el pan. Come.", "Eat bread.")]
    assert pairs_of("wikilingua", *files) == (across, 1, {"no English section": 1})


def test_questions_from_every_form_are_the_same(tmp_path):
    nested = write(tmp_path / "dev.json", json.dumps(SQUAD))
    flat = write(tmp_path / "a.jsonl", jsonl({"passage": "小猫来了。", "answer": "小猫", "question": "谁来了？"}))
    hub = {"context": "小猫来了。", "question": "谁来了？", "answers": {"text": ["小猫", "猫"], "answer_start": [0, 1]}}
    pq.write_table(
        pa.Table.from_pylist([hub, {**hub, "answers": {"text": [], "answer_start": []}}]), tmp_path / "a.parquet"
    )
    assert pairs_of("qa", nested, flat, tmp_path / "a.parquet") == ([ASKED] * 3, 3, {"no answer": 1})
    lines = [
        write(tmp_path / f"train.{part}.zh", text)
        for part, text in zip("eaq", ("小猫来了。\nx\n", "小猫\n\n", "谁来了？\ny\n"), strict=True)
    ]
    assert pairs_of("xqg", *lines) == ([ASKED], 2, {"empty": 1})
    write(lines[2], "谁来了？\n")
    with pytest.raises(InputError, match=r"differ in the number of lines: .*has 2, .*train\.q\.zh has 1\."):
        pairs_of("xqg", *lines)


# --- what is refused ---

ENTRY = '<entries><entry eid="Id7"><modifiedtripleset><mtriple>{}</mtriple></modifiedtripleset></entry></entries>'
LAUGHS = '<!DOCTYPE lolz [<!ENTITY a "ha"><!ENTITY b "&a;&a;">]>'


@pytest.mark.parametrize(
    ("format_name", "name", "content", "message"),
    [
        ("webnlg", "a.xml", LAUGHS + ENTRY.format("&b; | b | c"), "line 1: a document type definition"),
        ("webnlg", "a.xml", '<!DOCTYPE x SYSTEM "file:///etc/passwd"><x/>', "line 1: a document type definition"),
        ("webnlg", "a.xml", ENTRY.format("a | b"), "line 1, entry Id7: expected triples"),
        ("webnlg", "a.xml", ENTRY.format("&nbsp; | b | c"), "not well-formed XML.*undefined entity"),
        ("webnlg", "a.xml", "<benchmark><entries></entries></benchmark>", "nothing to convert"),
        ("webnlg", "a.jsonl", '{"triples": [["a", "b"]], "refs": ["c"]}', "line 1: expected triples"),
        ("webnlg", "a.jsonl", '{"triples": [["a", "b", 3]], "refs": ["c"]}', "line 1: expected triples"),
        ("webnlg", "a.jsonl", '{"triples": [], "refs": "c"}', "line 1: expected lists"),
        ("wmt-xml", "a.xml", "<d><doc id='a'/></d>", "line 1, document a: found 0 sources"),
        ("wmt-xml", "a.xml", '<d><doc id="a"><src><seg>x</seg></src></doc></d>', "segment None of <src> has no id"),
        (
            "wmt-xml",
            "a.xml",
            '<d>\n<doc id="a"><src><seg id="1">x</seg><seg id="1">y</seg></src></doc></d>',
            "line 2, document a: the segment 1 of <src> has no id of its own",
        ),
        ("wikilingua", "a.jsonl", '{"article": {"document": ["a", "b"], "summary": ["c"]}}', "line 1: expected `art"),
        ("wikilingua", "a.jsonl", '{"article": [1]}', "line 1: expected `article` with lists"),
        ("wikilingua", "a.jsonl", "[1]", "line 1: expected an object"),
        ("wikilingua", "a.jsonl", '{"article"', "line 1: not valid JSON"),
        ("wikilingua", "a.parquet", "no Parquet", "is damaged, not a Parquet file"),
        ("qa", "a.json", '{"data": [{"paragraphs": [{}]}]}', "not like SQuAD .*'qas'"),
        ("qa", "a.json", '{"data": 3}', "not like SQuAD"),
        ("qa", "a.json", '{"data": [', "not valid JSON"),
        ("qa", "a.jsonl", '{"passage": "a", "question": "b", "answer": 3}', "line 1: expected `passage`"),
        ("qa", "a.jsonl", '{"passage": "\\ud800", "question": "b", "answer": "c"}', "Item 1 has half a surrogate"),
        ("qa", "a.jsonl", b"\xff", "line 1: not valid UTF-8"),
        ("qa", "missing.jsonl", None, "cannot be read: No such file"),
    ],
)
def test_malformed_files_are_named_and_leave_nothing(tmp_path, format_name, name, content, message):
    if content is not None:
        write(tmp_path / name, content)
    with pytest.raises(InputError, match=message) as error:
        convert(format_name, [tmp_path / name], [tmp_path / "out.jsonl"])
    assert len(str(error.value)) < 400
    assert {path.name for path in tmp_path.iterdir()} <= {name}


@pytest.mark.parametrize(
    ("replace", "message"),
    [
        (("</SEG>", ""), "line 7: the segment does not end on its line"),
        (("id=", "no="), "line 4: the segment has no id"),
        (('id="2"', 'id="4"'), r"src.en.sgm, line 7 is segment 2, but .*ref.de.sgm, line 7 is segment 4"),
        (('<seg id="2">AT&amp;T sagte: &quot;3 &lt; 4&quot;.</seg>', ""), "segment 2, but .* is segment 3"),
        (('id="2"', 'id="1"'), r"ref.de.sgm, line 7: the id '1' stands there twice, first at .*ref.de.sgm, line 4\."),
        (("</refset>", ""), "no </srcset> or </refset>"),
        ((" <SEG ID=3>Zwei Leerzeichen</SEG>", ""), r"differ in the number of segments: .*has 3, .*has 2\."),
    ],
)
def test_malformed_sgm(tmp_path, replace, message):
    source, reference = sgm_files(tmp_path)
    write(reference, reference.read_text().replace(*replace))
    with pytest.raises(InputError, match=message):
        convert("sgm", [source, reference], [tmp_path / "a", tmp_path / "b"])
    assert sorted(tmp_path.iterdir()) == sorted([source, reference])


@pytest.mark.parametrize(
    ("format_name", "name", "content"), [("wmt-xml", "a.xml", WMT_XML), ("webnlg", "a.xml", WEBNLG)]
)
def test_a_file_cut_short_anywhere_is_refused(tmp_path, format_name, name, content):
    end = content.rindex("</") + 2
    for size in range(0, end, 7):
        with pytest.raises(InputError):
            convert(format_name, [write(tmp_path / name, content[:size])], [tmp_path / "out.jsonl"])
    assert not (tmp_path / "out.jsonl").exists()


def test_names_of_formats_and_files_are_checked(tmp_path):
    source, reference = sgm_files(tmp_path)
    for format_name, files, out, message in [
        ("smg", [source], ["a.jsonl"], "no published corpus 'smg': perhaps you mean sgm; there are sgm, wmt-xml"),
        ("sgm", [source], ["a.jsonl"], r"sgm takes SOURCE.sgm REFERENCE.sgm .*, not 1 file"),
        ("sgm", [source, reference], ["a.txt"], "a file named .jsonl, or two text files"),
        ("sgm", [source, reference], ["a", "a"], "a file named .jsonl, or two text files"),
        ("sgm", [source, reference], ["a", "b", "b"], "a file named .jsonl, or two text files"),
        ("sgm", [source, reference], [reference.name, "b"], "exists already"),
    ]:
        with pytest.raises(InputError, match=message):
            convert(format_name, files, [tmp_path / name for name in out])
    assert sorted(tmp_path.iterdir()) == sorted([source, reference])


def test_xml_that_was_read_is_not_kept(tmp_path, monkeypatch):
    parents = []

    class Parser(ElementTree.XMLPullParser):
        def read_events(self):
            for event, element in super().read_events():
                if (event, element.tag) == ("end", "entries"):
                    parents.append(element)
                yield event, element

    monkeypatch.setattr(ElementTree, "XMLPullParser", Parser)
    assert len(pairs_of("webnlg", write(tmp_path / "a.xml", WEBNLG))[0]) == 2
    assert [len(parent) for parent in parents] == [0]


def test_the_verb_says_what_it_left_out(tmp_path):
    path = write(tmp_path / "Food.xml", WEBNLG)
    arguments = ["data", "convert", "webnlg", str(path), "--out"]
    result = CliRunner().invoke(app, [*arguments, str(tmp_path / "a.jsonl")])
    assert (result.exit_code, result.stdout) == (0, "2 items, 2 rows; left out: 1 other language, 1 empty\n")
    result = CliRunner().invoke(app, [*arguments, str(tmp_path / "b.jsonl"), "--json"])
    dropped = {"other language": 1, "empty": 1}
    assert json.loads(result.stdout) == {"corpus": "webnlg", "items": 2, "rows": 2, "dropped": dropped}
    help_text = CliRunner().invoke(app, ["data", "convert", "--help"]).stdout
    assert all(name in help_text for name in PUBLISHED)


# --- the real files beside a developer's checkout ---


@needs_shared
@pytest.mark.parametrize(
    ("language", "counts"),
    [  # entries and texts, as the release's READMEs have them
        ("en", {"train": (13_211, 35_426), "dev": (1_667, 4_464), "test": (1_779, 5_150)}),
        ("ru", {"train": (5_573, 14_630), "dev": (790, 2_065), "test": (1_102, 2_780)}),
    ],
)
def test_webnlg_2020_is_complete(tmp_path, language, counts):
    shutil.unpack_archive(SHARED / "webnlg" / f"release_v3.0_{language}_xml.tar.xz", tmp_path)
    for split, expected in counts.items():
        files = sorted((tmp_path / "release_v3.0" / language / split).glob("**/*.xml"))
        format_name = "webnlg" if language == "en" else "webnlg-ru"
        conversion = convert(format_name, files, [tmp_path / f"{split}.jsonl"])
        assert (conversion.items, conversion.rows) == expected
        if language == "en":  # the same texts by another hand's reading of the XML
            convert("webnlg", [SHARED / "webnlg" / f"en.{split}.jsonl.xz"], [tmp_path / f"{split}.again.jsonl"])
            ours, theirs = ((tmp_path / f"{split}{end}").read_text().splitlines() for end in (".jsonl", ".again.jsonl"))
            assert sorted(ours) == sorted(theirs)


@needs_shared
@pytest.mark.parametrize(
    ("name", "questions", "empty"),
    [("drcd_dev", 3_524, 0), ("drcd_test", 3_493, 0), ("cmrc2018_dev", 3_219, 0), ("cmrc2018_trial", 1_002, 2)],
)
def test_chinese_questions_are_complete(tmp_path, name, questions, empty):
    conversion = convert("qa", [SHARED / "zhqa" / f"{name}.jsonl.xz"], [tmp_path / "a.jsonl"])
    assert conversion.items == questions == conversion.rows + empty
    assert conversion.dropped.get("empty", 0) == empty


def num_records(source, num_sides):
    dropped = Counter()
    return sum(len(columns[0]) for columns in read_columns(source, num_sides, dropped)), dict(dropped)


@needs_shared
@pytest.mark.parametrize(
    ("name", "records"),
    [
        ("orangesum_fr_abstract.valid", 1_500),
        ("orangesum_fr_title.test", 1_500),
        ("scitldr_en.train", 1_992),
        ("csl_zh_title.dev", 1_000),
    ],
)
def test_summaries_are_read_as_they_are(name, records):
    path = SHARED / "summarisation" / f"{name}.jsonl.xz"
    assert num_records(TextSource((path,), fields=("text", "summary")), 2) == (records, {})


@needs_shared
def test_l10n10_has_the_pairs_its_table_says():
    with open(SHARED / "l10n10/SIZES.tsv") as file:
        (sizes,) = (row for row in csv.DictReader(file, delimiter="\t") if row["group"] == "train")
    del sizes["group"]
    found = {
        language: num_records(TextSource((SHARED / f"l10n10/train.en-{language}.tsv.xz",), fields=("2", "3")), 2)
        for language in sizes
    }
    assert found == {language: (int(size), {}) for language, size in sizes.items()}


@needs_shared
def test_mono_has_the_lines_its_table_says_in_a_script_that_is_known(tmp_path):
    shutil.unpack_archive(SHARED / "mono/mono.tar.xz", tmp_path)
    with open(SHARED / "mono/LANGUAGES.tsv") as file:
        languages = list(csv.DictReader(file, delimiter="\t"))
    assert len(languages) == 132
    for language in languages:
        source = TextSource((tmp_path / "mono" / f"{language['code']}.txt",))
        assert num_records(source, 1) == (int(language["lines"]), {}), language
        assert language["script"] in scripts_of(language["code"])
