"""Readers of raw text: every format, compression, and way for a file to be wrong."""

import bz2
import gzip
import json
import lzma
import zipfile
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from deltalm_ds import lines
from deltalm_ds.data_tools import sources
from deltalm_ds.data_tools.formats import parquet
from deltalm_ds.data_tools.formats import text as text_format
from deltalm_ds.data_tools.sources import TextSource, divide, find_sources, read_columns, read_records
from deltalm_ds.errors import InputError
from deltalm_ds.lines import line_blocks

COMPRESS = {
    "": lambda data: data,
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": lambda data: zstandard.ZstdCompressor().compress(data),
}
PAIRS = [("Hello", "Hallo"), ("«two» words", "zwei Wörter"), ("हिन्दी", "ગુજરાતી")]


def records_of(source, num_sides=1):
    dropped = Counter()
    return list(read_records(source, num_sides, dropped)), dict(dropped)


def all_lines(path):
    return [line for block in line_blocks(path) for line in block]


def write(path, content, compression=""):
    path = path.with_name(path.name + compression)
    path.write_bytes(COMPRESS[compression](content if isinstance(content, bytes) else content.encode()))
    return path


@pytest.mark.parametrize("compression", COMPRESS)
@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
def test_every_format_gives_the_same_records(tmp_path, compression, line_end):
    sides = [
        write(tmp_path / name, line_end.join(pair[side] for pair in PAIRS), compression)
        for side, name in enumerate("ab")
    ]
    tsv = write(tmp_path / "f.tsv", "".join(f"{a}\t{b}{line_end}" for a, b in PAIRS), compression)
    rows = [json.dumps({"n": 1, "source": a, "target": b}) + line_end for a, b in PAIRS]
    jsonl = write(tmp_path / "f.jsonl", "".join(rows), compression)
    columns = {"n": [1] * 3, "source": [pair[0] for pair in PAIRS], "target": [pair[1] for pair in PAIRS]}
    pq.write_table(pa.table(columns), tmp_path / "f.parquet", row_group_size=2)
    for source in (
        TextSource(tuple(sides)),
        TextSource((tsv,)),
        TextSource((jsonl,)),
        TextSource((tmp_path / "f.parquet",)),
    ):
        assert records_of(source, 2) == (PAIRS, {})
    assert records_of(TextSource((sides[0],)))[0] == [(pair[0],) for pair in PAIRS]


def test_empty_records_are_counted_and_white_space_is_stripped(tmp_path):
    source = write(tmp_path / "a", " one \n\n\u3000three\n four\n")
    target = write(tmp_path / "b", "eins\nzwei\n \t \nvier\xa0\n")
    assert records_of(TextSource((source, target)), 2) == ([("one", "eins"), ("four", "vier")], {"empty": 2})
    tsv = write(tmp_path / "c.tsv", "one\teins\n\tzwei\nthree\t\n\n")
    assert records_of(TextSource((tsv,)), 2) == ([("one", "eins")], {"empty": 3})
    jsonl = write(tmp_path / "d.jsonl", '{"text": " one "}\n\n{"text": ""}\n')
    assert records_of(TextSource((jsonl,))) == ([("one",)], {"empty": 2})


def test_columns_and_fields_by_name(tmp_path):
    tsv = write(tmp_path / "c.tsv", "group\tone\teins\nother\ttwo\tzwei\tmore\n")
    assert records_of(TextSource((tsv,), fields=("3", "2")), 2)[0] == [("eins", "one"), ("zwei", "two")]
    jsonl = write(tmp_path / "d.txt", '{"text": "long", "summary": "short"}\n')
    assert records_of(TextSource((jsonl,), "jsonl", ("text", "summary")), 2)[0] == [("long", "short")]


@pytest.mark.parametrize("counts", [(3, 5), (5, 3), (0, 4), (4, 0)])
def test_unequal_parallel_files_name_both_counts(tmp_path, counts):
    paths = [write(tmp_path / f"file{side}", "x\n" * count) for side, count in enumerate(counts)]
    with pytest.raises(InputError, match=rf"file0 has {counts[0]} lines but .*file1 has {counts[1]}:"):
        records_of(TextSource(tuple(paths)), 2)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"good\nb\xffad\n", r"a\.txt, line 2: not valid UTF-8 \(byte 0xff at position 2\)"),
        ("a.txt", "good\n".encode("utf-16"), "line 1: .*UTF-8"),
        ("a.txt", b"good\ngood\nb\0ad", r"a\.txt, line 3: contains a NUL byte"),
        ("a.jsonl", b'{"text": "a\\u0000b"}', "line 1: contains a NUL"),
        ("a.jsonl", b'{"text": "ok"}\n{"text": "\\ud800"}', "line 2: has half a surrogate pair"),
        ("a.jsonl", b'{"text": "ok"}\n{"text', "line 2: not valid JSON"),
        ("a.jsonl", b'{"title": "ok"}', "line 1: expected an object with text in 'text'"),
        ("a.jsonl", b'{"text": 3}', "line 1: expected an object"),
        ("a.jsonl", b'["text"]', "line 1: expected an object"),
        ("a.gz", b"not gzip at all", r"a\.gz cannot be read: Not a gzipped file"),
        ("a.xz", bz2.compress(b"x"), r"a\.xz is damaged"),
        ("a.zst", b"not zstandard", r"a\.zst is damaged"),
    ],
)
def test_bad_text_names_file_and_line(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message):
        records_of(TextSource((tmp_path / name,)))


@pytest.mark.parametrize(
    ("content", "columns", "message"),
    [
        ("a\tb\na\tb\tc\n", None, "line 2: found 3 columns, expected 2"),
        ("a\tb\nab\n", None, "line 2: found 1 columns, expected 2"),
        ("a\tb\tc\na\tb\n", ("1", "3"), "line 2: has no column 3, only 2"),
        ("a\tb\n", ("0", "1"), "columns are numbers from 1"),
        ("a\tb\n", ("1",), "1 columns named where 2 are needed"),
    ],
)
def test_bad_tsv(tmp_path, content, columns, message):
    path = write(tmp_path / "f.tsv", content)
    with pytest.raises(InputError, match=message):
        records_of(TextSource((path,), fields=columns), 2)


@pytest.mark.parametrize("compression", [".gz", ".bz2", ".xz", ".zst"])
@pytest.mark.parametrize("keep", [0, 0.2, 0.6, 0.99])
def test_compressed_file_cut_short_is_an_error(tmp_path, compression, keep):
    path = write(tmp_path / "f", "".join(f"line {index}\n" for index in range(5_000)), compression)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * keep)])
    with pytest.raises(InputError, match="is damaged or cut short"):
        records_of(TextSource((path,)))


@pytest.mark.parametrize(
    ("files", "num_sides", "message"),
    [
        (("missing.txt",), 1, "missing.txt cannot be read: No such file"),
        ((".",), 1, "cannot be read: Is a directory"),
        (("only.txt",), 2, "needs two text files"),
        (("a", "b", "c"), 2, "got 3"),
        (("a", "b"), 1, "got 2"),
    ],
)
def test_wrong_files(files, num_sides, message):
    with pytest.raises(InputError, match=message):
        records_of(TextSource(tuple(map(Path, files))), num_sides)


@pytest.mark.parametrize("blocks", [2, 5, 1 << 20])
def test_parallel_files_with_lines_of_any_length(tmp_path, monkeypatch, blocks):
    monkeypatch.setattr(lines, "BLOCK_BYTES", blocks)
    sides = [[letter * (1 + number * step % 7) for number in range(50)] for letter, step in (("a", 3), ("b", 5))]
    paths = [write(tmp_path / str(side), "\n".join(texts)) for side, texts in enumerate(sides)]
    assert records_of(TextSource(tuple(paths)), 2)[0] == list(zip(*sides, strict=True))


def test_members_of_an_archive(tmp_path):
    with zipfile.ZipFile(tmp_path / "opus.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in (("c.de-en.en", "one\ntwo\n"), ("c.de-en.de", "eins\nzwei\n"), ("README", "x")):
            archive.writestr(name, content)
    (pair,) = find_sources(f"{tmp_path}/opus.zip!*.en,{tmp_path}/opus.zip!c.de-en.de")
    assert records_of(pair, 2)[0] == [("one", "eins"), ("two", "zwei")]
    with pytest.raises(InputError, match=r"opus.zip: 3 members fit; name one.*README"):
        records_of(TextSource((tmp_path / "opus.zip",)))
    with pytest.raises(InputError, match=r"opus.zip!\*\.fr: 0 members fit"):
        records_of(TextSource((Path(f"{tmp_path}/opus.zip!*.fr"),)))
    with zipfile.ZipFile(tmp_path / "one.zip", "w") as archive:
        archive.writestr("pairs.tsv", "one\teins\n")
    assert records_of(TextSource((tmp_path / "one.zip",), "tsv"), 2)[0] == [("one", "eins")]
    data = (tmp_path / "one.zip").read_bytes()
    write(tmp_path / "bad.zip", data.replace(b"eins", b"einz"))
    with pytest.raises(InputError, match=r"bad.zip is damaged"):
        records_of(TextSource((tmp_path / "bad.zip",), "tsv"), 2)


@pytest.mark.parametrize(
    ("column", "fields", "message"),
    [
        (pa.array(["a", None, "b"]), ("text",), None),
        (pa.array(["a", "b", "c"], pa.large_string()), ("text",), None),
        (pa.array([1, 2, 3]), ("text",), "no column of text 'text', only other"),
        (pa.array(["a", "b", "c"]), ("title",), "no column of text 'title', only text, other"),
        (pa.array(["a", "b", "c\0"]), ("text",), r"record 3: contains a NUL"),
        (
            pa.array(["a", "b" * 30, "c"]),
            ("text",),
            r"record 2: the text is longer",
        ),
    ],
)
def test_parquet(tmp_path, monkeypatch, column, fields, message):
    monkeypatch.setattr(sources, "MAX_TEXT_BYTES", 20)
    monkeypatch.setattr(parquet, "ROWS_PER_BLOCK", 2)
    path = tmp_path / "f.parquet"
    pq.write_table(pa.table({"text": column, "other": ["x", "y", "z"]}), path)
    if message:
        with pytest.raises(InputError, match=message):
            records_of(TextSource((path,), fields=fields))
        return
    records, dropped = records_of(TextSource((path,), fields=fields))
    assert [text for (text,) in records] == [text for text in column.to_pylist() if text]
    assert sum(dropped.values()) == column.null_count


@pytest.mark.parametrize("keep", [0, 0.3, 0.95])
def test_parquet_cut_short(tmp_path, keep):
    path = tmp_path / "f.parquet"
    pq.write_table(pa.table({"text": ["some text"] * 1000}), path)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * keep)])
    with pytest.raises(InputError, match="is damaged, not a Parquet file"):
        records_of(TextSource((path,)))


def test_documents_are_separated_by_blank_lines(tmp_path, monkeypatch):
    monkeypatch.setattr(lines, "BLOCK_BYTES", 4)
    text = "\n\none\ntwo\n \t\n\nthree\r\n\r\nfour\n"
    path = write(tmp_path / "a", text)
    dropped = Counter()
    found = [text for (texts,) in read_columns(TextSource((path,)), 1, dropped, documents=True) for text in texts]
    assert (found, dropped) == (["one\ntwo", "three", "four"], {})
    monkeypatch.setattr(text_format, "MAX_TEXT_BYTES", 5)
    with pytest.raises(InputError, match="line 4: the document is longer"):
        list(read_columns(TextSource((path,)), 1, dropped, documents=True))


def test_arguments_that_name_sources(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("b.en", "a.en", "a.de", "b.de", "p.tsv", "q[1].txt"):
        write(tmp_path / name, "x\n")
    write(tmp_path / "list.txt", "a.en,a.de\n\np.tsv:2,3\n")

    def found(value, source_format=None):
        return [(*map(str, source.files), source.fields) for source in find_sources(value, source_format)]

    assert found("*.en") == [("a.en", None), ("b.en", None)]
    assert found("*.en,?.de") == [("a.en", "a.de", None), ("b.en", "b.de", None)]
    assert found("@list.txt") == [("a.en", "a.de", None), ("p.tsv", ("2", "3"))]
    assert found("p.tsv") == found("*.tsv") == [("p.tsv", None)]
    assert found("b.en:text", "jsonl") == [("b.en", ("text",))]
    assert found("q[1].txt") == [("q[1].txt", None)]
    assert found("-") == [("-", None)]
    write(tmp_path / "lists.txt", "a.en\n@lists.txt\n")
    with pytest.raises(InputError, match=r"lists\.txt names another list"):
        found("@lists.txt")
    with pytest.raises(InputError, match=r"No file fits \*\.fr"):
        found("*.fr")
    with pytest.raises(InputError, match=r"fits 2 and 1 files"):
        found("*.en,a.de")


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(st.sampled_from("aé\n\r\ufeff☃"), max_size=40), st.integers(1, 12), st.integers(1, 5))
def test_spans_of_a_file_give_all_its_lines_once(tmp_path, text, span_bytes, block_bytes):
    """Wherever a span or a block ends: within a line, a character, or between two lines."""
    path = tmp_path / "text.txt"
    path.write_bytes(text.encode())
    assume("\n" in text or "\r" not in text.removesuffix("\r"))  # else its line ends are refused
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lines, "BLOCK_BYTES", block_bytes)
        spans = divide(TextSource((path,)), span_bytes)
        found = [record for span in spans for record in read_records(span, 1, Counter())]
    assert found == list(read_records(TextSource((path,)), 1, Counter()))
    assert len(spans) == max(1, -(-len(text.encode()) // span_bytes))


@pytest.mark.parametrize(
    ("name", "line", "message"),
    [
        ("text.txt", b"ab\xff", "line 7: not valid UTF-8"),
        ("pairs.tsv", b"a", "line 7: found 1 columns"),
        ("pairs.jsonl", b"{}", "line 7: expected an object"),
    ],
)
def test_an_error_in_a_span_names_the_line_of_the_file(tmp_path, name, line, message):
    good = {"text.txt": b"good", "pairs.tsv": b"a\tb", "pairs.jsonl": b'{"source": "a", "target": "b"}'}[name]
    path = tmp_path / name
    path.write_bytes(b"\n".join([*[good] * 6, line, good]))
    num_sides = 1 if name == "text.txt" else 2
    with pytest.raises(InputError, match=message):
        for span in divide(TextSource((path,)), 20):
            list(read_records(span, num_sides, Counter()))


@pytest.mark.parametrize("names", [("a.txt", "b.txt"), ("a.txt.gz",), ("a.parquet",), ("a.zip!b",), ("-",)])
def test_what_cannot_be_read_from_any_place_is_not_divided(names):
    source = TextSource(tuple(map(Path, names)))
    assert divide(source, 1) == [source]
