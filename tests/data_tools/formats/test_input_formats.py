"""What formats of raw text have in common: the table, null and nested fields, headers, and what no text may have."""

import csv
import json
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import typer
from typer.testing import CliRunner

from deltalm_ds.cli import app
from deltalm_ds.data_tools.formats.header import is_header
from deltalm_ds.data_tools.formats.input_format import InputFormat, Wanted
from deltalm_ds.data_tools.formats.table import FORMATS, NO_TEXT_SUFFIXES, format_name
from deltalm_ds.data_tools.sources import TextSource, divide, find_sources, read_columns, read_records
from deltalm_ds.errors import InputError


def write_json_array(path, records):
    path.write_text(json.dumps(records))


def write_jsonl(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def write_parquet(path, records):
    pq.write_table(pa.Table.from_pylist(records), path)


RECORDS = {"f.json": write_json_array, "f.jsonl": write_jsonl, "f.parquet": write_parquet}


def records_of(value, num_sides=2):
    dropped = Counter()
    (source,) = find_sources(value)
    return list(read_records(source, num_sides, dropped)), dict(dropped)


# --- the table ---


def read_paragraphs(wanted: Wanted):
    """A record is two lines, with whatever between quotes: to divide such a file would lose records."""
    lines = wanted.path.read_text().splitlines()
    yield tuple(lines[side::2] for side in range(wanted.num_sides))


def test_a_format_that_is_only_a_row_is_told_by_its_name_and_not_divided(tmp_path, monkeypatch):
    monkeypatch.setitem(FORMATS, "dummy", InputFormat("paragraphs", (".dummy",), read_paragraphs))
    path = tmp_path / "big.dummy"
    path.write_text("one\neins\ntwo\nzwei\n")
    (source,) = find_sources(str(path))
    assert source.resolved_format == "dummy"
    assert divide(source, 1) == [source]
    assert records_of(str(path)) == ([("one", "eins"), ("two", "zwei")], {})
    with pytest.raises(InputError, match=r"or one named .*, \.dummy, or the option of its format"):
        records_of(str(tmp_path / "pairs.en"))
    with pytest.raises(InputError, match=r"or say what is in it with .*--dummy"):
        format_name(Path("pairs.xml"))


def test_every_format_has_an_option_of_its_own():
    build = typer.main.get_command(app).commands["data"].commands["build"]
    flags = Counter(flag for parameter in build.params for flag in parameter.opts)
    assert all(flags[f"--{name}"] == 1 for name in FORMATS)
    assert max(flags.values()) == 1


def test_no_end_of_a_name_tells_two_formats():
    ends = [suffix for input_format in FORMATS.values() for suffix in input_format.suffixes]
    ends += [suffix for suffixes in NO_TEXT_SUFFIXES.values() for suffix in suffixes.split()]
    assert len(set(ends)) == len(ends)
    assert all(end == end.lower() and end.startswith(".") for end in ends)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("train.en", "text"),
        ("train", "text"),
        ("news.2024.txt.gz", "text"),
        ("train.e.zh.lc", "text"),
        ("corpus.pt", "text"),  # Portuguese
        ("corpus.br.bz2", "text"),  # Breton
        ("pairs.tsv.xz", "tsv"),
        ("pairs.CSV.GZ", "csv"),
        ("a.json", "json-array"),
        ("a.jsonl.zst", "jsonl"),
        ("a.parquet", "parquet"),
        ("-", "text"),
    ],
)
def test_the_name_of_a_file_tells_its_format(name, expected):
    assert format_name(Path(name)) == expected


@pytest.mark.parametrize(
    "name", ["a.xml", "a.tmx.gz", "a.XLSX", "a.yaml", "a.tar.gz", "a.tgz", "a.7z", "a.pdf", "a.npy"]
)
def test_names_of_other_files_are_not_taken_for_text(tmp_path, name):
    path = tmp_path / name
    with pytest.raises(InputError, match=r"by its name \(\.\w+\), which is not read: .*--text, --tsv"):
        records_of(str(path), 1)
    path = path.with_suffix(".xml")
    path.write_text("it is text\n")
    (source,) = find_sources(str(path), "text")
    assert list(read_records(source, 1, Counter())) == [("it is text",)]


# --- records ---


@pytest.mark.parametrize("name", RECORDS)
def test_nested_fields_and_null(tmp_path, name):
    pairs = [{"translation": {"en": "Hello", "de": "Hallo"}}, {"translation": {"en": "Yes", "de": None}}]
    RECORDS[name](tmp_path / name, [*pairs, {"translation": None}, {"translation": {"en": "", "de": "Ja"}}])
    expected = [("Hello", "Hallo")], {"empty": 3}
    assert records_of(f"{tmp_path}/{name}:translation.en,translation.de") == expected
    with pytest.raises(InputError) as error:
        records_of(f"{tmp_path}/{name}")
    assert f"as in {name}:translation.en,translation.de" in str(error.value)
    with pytest.raises(InputError) as error:
        records_of(f"{tmp_path}/{name}:translation.en,translation.fr")
    assert "'translation.fr'" in str(error.value)
    assert f"{name}:translation.en,translation.fr" not in str(error.value)  # a hint is no echo


@pytest.mark.parametrize("name", RECORDS)
def test_a_field_whose_name_has_a_dot_or_a_colon(tmp_path, name):
    RECORDS[name](tmp_path / name, [{"a.b": "one", "dc:title": "two", "x,y": "three"}])
    assert records_of(rf"{tmp_path}/{name}:a.b,dc\:title") == ([("one", "two")], {})
    assert records_of(rf"{tmp_path}/{name}:x\,y,a.b") == ([("three", "one")], {})


@pytest.mark.parametrize("name", ["f.json", "f.jsonl"])
@pytest.mark.parametrize(
    ("value", "what"), [(5, "a number"), (True, "true or false"), (["a"], "a list"), ({"en": "x"}, "an object")]
)
def test_what_is_not_text_is_named(tmp_path, name, value, what):
    RECORDS[name](tmp_path / name, [{"source": "ok", "target": "ok"}, {"source": "ok", "target": value}])
    with pytest.raises(InputError, match=rf"line [12](, record 2)?: .*'target' is {what}; text is in source"):
        records_of(f"{tmp_path}/{name}")


@pytest.mark.parametrize("name", ["f.json", "f.jsonl"])
@pytest.mark.parametrize(
    ("record", "message"),
    [
        ('{"text": "a", "text": "b"}', "the key 'text' is there twice"),
        (r'{"text": "Hello \ud800"}', "has half a surrogate pair, which is no character"),
        (r'{"text": "a\u0000b"}', "contains a NUL character"),
        ('{"text": "a"', "not valid JSON"),
        ('["text"]', "object"),
    ],
)
def test_records_that_are_refused(tmp_path, name, record, message):
    good = '{"text": "good"}'
    text = f"[{good},\n{record}]" if name == "f.json" else f"{good}\n{record}\n"
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=rf"{name}, (line|record) 2.*{message}"):
        records_of(f"{tmp_path}/{name}", 1)


@pytest.mark.parametrize("name", RECORDS)
def test_a_whole_surrogate_pair_and_a_line_end_in_a_text(tmp_path, name):
    texts = ["Hello \U0001f600 there", " one\ntwo\r\nthree\rfour\n"]
    RECORDS[name](tmp_path / name, [{"text": text} for text in texts])
    assert records_of(f"{tmp_path}/{name}", 1)[0] == [(texts[0],), ("one two three four",)]
    documents = read_columns(TextSource((tmp_path / name,)), 1, Counter(), documents=True)
    assert [text for (block,) in documents for text in block] == [text.strip() for text in texts]


# --- headers ---


def write_table(path, rows):
    with open(path, "w", newline="") as file:
        if path.suffix == ".csv":
            csv.writer(file).writerows(rows)
        else:
            file.write("".join("\t".join(row) + "\n" for row in rows))


TABLE = [["id", "en", "de"], ["1", "Hello", "Hallo"], ["2", "Yes", "Ja"]]
PAIRS = [("Hello", "Hallo"), ("Yes", "Ja")]


@pytest.mark.parametrize("name", ["f.tsv", "f.csv"])
def test_columns_by_name(tmp_path, name):
    write_table(tmp_path / name, TABLE)
    assert records_of(f"{tmp_path}/{name}:en,de") == (PAIRS, {})
    assert records_of(f"{tmp_path}/{name}:de", 1) == ([("Hallo",), ("Ja",)], {})
    with pytest.raises(InputError, match=r"its first line names no column 'fr'; it has: 'id', 'en', 'de'"):
        records_of(f"{tmp_path}/{name}:en,fr")
    write_table(tmp_path / name, [["en", "en"], *TABLE])
    with pytest.raises(InputError, match=r"names 2 column 'en'"):
        records_of(f"{tmp_path}/{name}:en", 1)
    write_table(tmp_path / name, [])
    with pytest.raises(InputError, match=r"names no column 'en'; it is empty"):
        records_of(f"{tmp_path}/{name}:en", 1)


def test_columns_by_name_of_a_file_in_spans(tmp_path):
    rows = [[str(number), f"en {number}", f"de {number}"] for number in range(50)]
    write_table(tmp_path / "f.tsv", [TABLE[0], *rows])
    (source,) = find_sources(f"{tmp_path}/f.tsv:de,en")
    spans = divide(source, 40)
    assert len(spans) > 10
    found = [record for span in spans for record in read_records(span, 2, Counter())]
    assert found == [(row[2], row[1]) for row in rows]


@pytest.mark.parametrize("name", ["f.tsv", "f.csv"])
def test_a_header_is_left_out_and_counted(tmp_path, name):
    write_table(tmp_path / name, TABLE)
    source = TextSource((tmp_path / name,), fields=("2", "3"))
    dropped = Counter()
    columns = list(read_columns(source, 2, dropped, languages=("en", "de")))
    assert [record for block in columns for record in zip(*block, strict=True)] == PAIRS
    assert dropped == {"header": 1}
    write_table(tmp_path / name, [["source", "target"], *PAIRS])
    assert records_of(f"{tmp_path}/{name}") == (PAIRS, {"header": 1})
    write_table(tmp_path / name, [*PAIRS, ["source", "target"]])
    assert records_of(f"{tmp_path}/{name}") == ([*PAIRS, ("source", "target")], {})  # only the first row may be one


@pytest.mark.parametrize(
    ("texts", "languages", "expected"),
    [
        (("source", "target"), (), True),
        (("Source Text", "target_text"), (), True),
        (("en", "de"), ("en", "de"), True),
        (("en_US", "de-DE"), ("en-US", "de-DE"), True),
        (("text_en",), ("en",), True),
        (("eng_Latn", "deu_Latn"), ("en", "de"), True),
        (("English", "German"), ("en", "de"), True),
        (("Englisch", "Deutsch"), ("en", "de"), True),
        (("en", "zh"), ("en", "zh_Hans"), True),
        (("English", "Chinese (Simplified)"), ("en", "zh_Hans"), False),
        (("English", "Englisch"), ("en", "de"), False),  # a pair of a glossary
        (("en", "de"), ("en", "fr"), False),
        (("Hello", "Hallo"), ("en", "de"), False),
        (("source of the text", "target"), (), False),
        (("1", "2"), (), False),
        (("", ""), (), False),
    ],
)
def test_what_is_a_header(texts, languages, expected):
    assert is_header(texts, languages) is expected


# --- through the command ---


@pytest.mark.parametrize("names", ["de\ten", "German\tEnglish", "deu_Latn\teng_Latn", "text_de\ttext_en"])
def test_a_header_that_names_the_pair_the_other_way_round_is_refused(tmp_path, names):
    run = CliRunner().invoke
    (tmp_path / "text").write_text("a cat sees the dog\nthe dog sees a cat\n" * 3)
    vocabulary = ["vocab", "train", "--input", f"{tmp_path}/text", "--size", "15", "--out", f"{tmp_path}/v"]
    assert run(app, vocabulary).exit_code == 0
    (tmp_path / "f.tsv").write_text(f"{names}\nthe cat\ta dog\n")
    arguments = ["data", "build", "--vocab", f"{tmp_path}/v", "--out", f"{tmp_path}/out", "--json", "--parallel"]
    refused = run(app, [*arguments, f"en-de={tmp_path}/f.tsv"]).exception
    assert isinstance(refused, InputError)
    assert f"f.tsv, line 1: the columns read as en and de are {' and '.join(names.split(chr(9)))} by" in str(refused)
    assert not (tmp_path / "out").exists()
    taken = run(app, [*arguments, f"en-de={tmp_path}/f.tsv:2,1"])
    (corpus,) = json.loads(taken.stdout)["corpora"]
    assert (corpus["rows"], corpus["dropped"]) == (1, {"header": 1})


def test_the_build_counts_headers_and_null(tmp_path):
    run = CliRunner().invoke
    (tmp_path / "text").write_text("a cat sees the dog\nthe dog sees a cat\n" * 3)
    vocabulary = ["vocab", "train", "--input", f"{tmp_path}/text", "--size", "15", "--out", f"{tmp_path}/v"]
    assert run(app, vocabulary).exit_code == 0
    write_table(tmp_path / "f.csv", [["de", "en"], ["the cat", "a dog"]])
    write_json_array(tmp_path / "g.json", [{"translation": {"en": "a cat", "de": None}}])
    write_jsonl(tmp_path / "h:1,2", [{"source": "a dog", "target": "a cat"}])
    arguments = ["data", "build", "--vocab", f"{tmp_path}/v", "--out", f"{tmp_path}/out", "--json"]
    arguments += ["--parallel", f"en-de={tmp_path}/f.csv:2,1"]
    arguments += ["--parallel", f"en-de={tmp_path}/g.json:translation.en,translation.de"]
    arguments += ["--jsonl", rf"en-de={tmp_path}/h\:1\,2:target,source"]
    result = run(app, arguments)
    assert result.exit_code == 0, result.exception
    (corpus,) = json.loads(result.stdout)["corpora"]
    assert (corpus["rows"], corpus["dropped"]) == (2, {"header": 1, "empty": 1})


def test_a_parquet_column_that_is_there_twice_is_named(tmp_path):
    table = pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], names=["text", "text"])
    pq.write_table(table, tmp_path / "f.parquet")
    with pytest.raises(InputError, match=r"f\.parquet has several columns 'text'"):
        records_of(f"{tmp_path}/f.parquet:text", 1)
