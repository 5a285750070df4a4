"""The commands of docs/data.md are run as they stand, those for published corpora on small files in their form."""

import gzip
import json
import lzma
import re
import shlex
import zipfile
from glob import glob
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from deltalm_ds.cli import app
from deltalm_ds.data.manifest import Manifest
from deltalm_ds.data.shards import ShardDataset
from deltalm_ds.data_tools.formats.table import FORMATS
from deltalm_ds.vocabulary import Vocabulary

DOCUMENT = Path(__file__).parents[1] / "docs/data.md"
LANGUAGES = "en,de,fr,cs,gu,es,ru,zh"
TEXT = "the quick brown fox jumps over the lazy dog while seven zebras gaze at a box of jam"


def commands(section):
    """The `deltalm` command lines of a section's first block, as lists of words."""
    block = re.search(rf"^## {section}\n.*?^```\n(.*?)^```", DOCUMENT.read_text(), re.DOTALL | re.MULTILINE)[1]
    lines = block.replace("\\\n", " ").splitlines()
    return [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("deltalm ")]


def expand(word):
    """What a shell does with a pattern; those of `build`, in quotes or after `=`, are its own."""
    return sorted(glob(word)) if "*" in word and "=" not in word else [word]


def run(words):
    words = [name for word in words for name in expand(word)]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, (words, result.output, result.exception)
    return result.stdout


def lines(*texts):
    return "".join(f"{text}\n" for text in texts)


def sgm(kind, *texts):
    segments = "".join(f'<seg id="{number}">{text}</seg>\n' for number, text in enumerate(texts, start=1))
    return f'<{kind} setid="newstest2018" srclang="any">\n<doc docid="a">\n<p>\n{segments}</p>\n</doc>\n</{kind}>\n'


def webnlg(*texts):
    triples = "<modifiedtripleset><mtriple>Red_Fox | eats | Jam</mtriple></modifiedtripleset>"
    lexicalisations = "".join(f'<lex lid="Id1"{language}>{text}</lex>' for language, text in texts)
    return f'<benchmark><entries><entry eid="Id1">{triples}{lexicalisations}</entry></entries></benchmark>'


def article(url, *sections):
    names = ("section_name", "document", "summary", "english_url", "english_section_name")
    columns = zip(*sections, strict=True)
    return {"url": url, "article": {name: list(column) for name, column in zip(names, columns, strict=True)}}


XML_SET = (
    '<dataset id="x"><doc id="a" origlang="en"><src lang="en"><p><seg id="1">a fox</seg></p></src>'
    '<ref lang="de" translator="A"><p><seg id="1">ein Fuchs</seg></p></ref></doc></dataset>'
)
SQUAD = {"data": [{"paragraphs": [{"context": "c d", "qas": [{"question": "q", "answers": [{"text": "d"}]}]}]}]}
FILES = {
    "de.txt.xz": lines("the fox", "the dog", "", "a box of jam"),
    "gu.txt.xz": lines("a fox", ""),
    "en_XX-fr_XX.tsv.xz": lines("the fox\tle box\t1.2", "a dog\tun dog\t1.1"),
    "de_DE-en_XX.tsv.xz": lines("der Fuchs\tthe fox\t1.3"),
    "europarl-v10.de-en.tsv.gz": lines("der Fuchs\tthe fox\tep-00-01", "\t\t", "der Hund\tthe dog\tep-00-01"),
    "commoncrawl.de-en.en": lines("a box", "a dog"),
    "commoncrawl.de-en.de": lines("ein Box", "ein Hund"),
    "czeng20-train.gz": lines("id-s1\t0.9\t1.0\t1.0\tliška\tthe fox", "", "id-s2\t0.9\t1.0\t1.0\tpes\tthe dog"),
    "newstest2018-ende-src.en.sgm": sgm("srcset", "the fox &amp; the dog", "jam"),
    "newstest2018-ende-ref.de.sgm": sgm("refset", "der Fuchs &amp; der Hund", "Jam"),
    "newstest2021.en-de.xml": XML_SET,
    "train.x.fr": lines("the lazy dog jumps", "seven zebras gaze"),
    "train.y.fr": lines("dog jumps", "zebras"),
    "train.e.zh.lc": lines("the fox jumps"),
    "train.a.zh.lc": lines("fox"),
    "train.q.zh.lc": lines("who jumps"),
    "es_en/train.src": lines("the quick fox"),
    "es_en/train.tgt": lines("fox"),
    "spanish.parquet": [
        article("es/1", ("uno", "el fox", "fox", "en/1", "one"), ("dos", "el dog", "dog", "en/1", "no"))
    ],
    "english.parquet": [article("en/1", ("one", "the fox", "a fox", "", ""))],
    "release_v3.0/en/train/1triples/Food.xml": webnlg(("", "The red fox eats jam."), ("", "Jam is eaten.")),
    "release_v3.0/en/test/refs.xml": webnlg(("", "The red fox eats jam."), ("", "Jam is eaten.")),
    "release_v3.0/ru/train/1triples/Food.xml": webnlg((' lang="en"', "A fox."), (' lang="ru"', "fox jam")),
    "cmrc2018_train.json": json.dumps(SQUAD),
    "orangesum.jsonl.xz": json.dumps({"text": "the quick brown fox", "summary": "fox"}) + "\n",
}
ROWS = {  # of each data set by corpus, and lines of each converted file
    "cc100": {"de": 2, "gu": 1},
    "ccaligned": {"en-fr": 2, "en-de": 1},
    "opus": {"en-de": 2},
    "wmt": {"en-de": 4, "en-cs": 2},
    "xgiga": {"xgiga": 2},
    "wikilingua": {"wikilingua": 1},
    "webnlg": {"webnlg_en": 2, "webnlg_ru": 1},
    "tasks": {"questions": 1, "titles": 1},
}
LINES = {
    "test.en-de.en": 2,
    "test.en-de.de": 2,
    "test21.en-de.en": 1,
    "test21.en-de.de": 1,
    "xqg.zh.jsonl": 1,
    "wikilingua.es-en.jsonl": 1,
    "webnlg.en.jsonl": 2,
    "webnlg.ru.jsonl": 1,
    "questions.zh.jsonl": 1,
    "webnlg.triples": 1,
    "webnlg.ref0": 1,
    "webnlg.ref1": 1,
    "webnlg.ref2": 1,
}


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(content), path)
    else:
        compress = {".gz": gzip.compress, ".xz": lzma.compress}.get(path.suffix, bytes)
        path.write_bytes(compress(content.encode()))


@pytest.fixture
def downloads(tmp_path, monkeypatch):
    """A directory with everything that the document's commands name, as the current one."""
    for name, content in FILES.items():
        write(tmp_path / name, content)
    with zipfile.ZipFile(tmp_path / "de-en.txt.zip", "w") as archive:
        for name, content in {"README": "x", "A.de-en.de": "Fuchs\nHund\n", "A.de-en.en": "fox\ndog\n"}.items():
            archive.writestr(name, content)
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "text", lines(*[" ".join(TEXT.split()[start:]) for start in range(10)], "fox Fuchs liška пёс"))
    run(["vocab", "train", "--input", "text", "--size", "42", "--languages", LANGUAGES, "--out", "vocabulary"])
    return tmp_path


def row_of_format(name, input_format):
    """What the table of the document says of a format: to be copied there from the failing test of a new one."""
    ends = " ".join(f"`{suffix}`" for suffix in input_format.suffixes)
    fields = "; ".join(", ".join(f"`{field}`" for field in names) for names in input_format.fields.values())
    fields = (fields or "all columns") if input_format.has_fields else "none"
    divided = "yes" if input_format.divisible else "no"
    return f"| `--{name}` | {ends} | {input_format.description} | {fields} | {divided} |"


def test_the_table_of_formats_is_that_of_the_code():
    section = re.search(r"^## What can be read\n(.*?)^## ", DOCUMENT.read_text(), re.DOTALL | re.MULTILINE)[1]
    assert [line for line in section.splitlines() if line.startswith("| `--")] == [
        row_of_format(name, input_format) for name, input_format in FORMATS.items()
    ]


def test_published_corpora(downloads):
    for words in commands("Published corpora"):
        run(words)
    built = {path.parent.name for path in downloads.glob("*/manifest.json")}
    assert built == set(ROWS)
    for name, rows in ROWS.items():
        corpora = Manifest.read(downloads / name).corpora
        assert {corpus.name: corpus.num_rows for corpus in corpora} == rows, name
    for name, count in LINES.items():
        assert len((downloads / name).read_text().splitlines()) == count, name
    assert (downloads / "test.en-de.en").read_text() == "the fox & the dog\njam\n"
    vocabulary = Vocabulary.load("vocabulary")
    ccaligned = ShardDataset.open(downloads / "ccaligned", vocabulary.hash)
    rows = [ccaligned.corpora["en-de"].tokens(side, np.array([0])).values for side in ("source", "target")]
    assert [vocabulary.decode(row) for row in rows] == ["the fox", "der Fuchs"]


def test_from_raw_files_to_statistics(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    *others, statistics = commands("From raw files to statistics")
    for words in others:
        run(words)
    table = run(statistics)
    assert [corpus.num_rows for corpus in Manifest.read(tmp_path / "shards").corpora] == [2000, 2000]
    assert re.search(r"en-de .* source .* en .* 2,000", table)
    assert (tmp_path / "lengths.html").stat().st_size
