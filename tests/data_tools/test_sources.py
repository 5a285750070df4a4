"""Readers of raw text: every format, compression, and way for a file to be wrong."""

import bz2
import gzip
import json
import lzma
from collections import Counter
from pathlib import Path

import pytest
import zstandard
from hypothesis import example, given, settings
from hypothesis import strategies as st

from deltalm_ds.data_tools import sources
from deltalm_ds.data_tools.sources import Source, read_lines, read_records
from deltalm_ds.errors import InputError

COMPRESS = {
    "": lambda data: data,
    ".gz": gzip.compress,
    ".xz": lzma.compress,
    ".zst": lambda data: zstandard.ZstdCompressor().compress(data),
}
PAIRS = [("Hello", "Hallo"), ("«two» words", "zwei Wörter"), ("हिन्दी", "ગુજરાતી")]


def records_of(source, num_sides=1):
    dropped = Counter()
    return list(read_records(source, num_sides, dropped)), dict(dropped)


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
    for source in (Source(tuple(sides)), Source((tsv,)), Source((jsonl,))):
        assert records_of(source, 2) == (PAIRS, {})
    assert records_of(Source((sides[0],)))[0] == [(pair[0],) for pair in PAIRS]


@settings(max_examples=200, deadline=None)
@example("\ufeffa\r\n\r\nb")
@given(st.text(st.sampled_from("ab \n\r\u2028\u0085é\t")))
def test_lines_end_at_line_feeds_only(tmp_path_factory, text):
    path = tmp_path_factory.mktemp("t") / "f"
    path.write_bytes(text.encode())
    expected = text.removeprefix("\ufeff").split("\n")
    expected = expected[:-1] if expected[-1] == "" else expected
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sources, "BLOCK_BYTES", 3)
        assert list(read_lines(path)) == [line.removesuffix("\r") for line in expected]


def test_empty_records_are_counted_and_white_space_is_stripped(tmp_path):
    source = write(tmp_path / "a", " one \n\n\u3000three\n four\n")
    target = write(tmp_path / "b", "eins\nzwei\n \t \nvier\xa0\n")
    assert records_of(Source((source, target)), 2) == ([("one", "eins"), ("four", "vier")], {"empty": 2})
    tsv = write(tmp_path / "c.tsv", "one\teins\n\tzwei\nthree\t\n\n")
    assert records_of(Source((tsv,)), 2) == ([("one", "eins")], {"empty": 3})
    jsonl = write(tmp_path / "d.jsonl", '{"text": " one "}\n\n{"text": ""}\n')
    assert records_of(Source((jsonl,))) == ([("one",)], {"empty": 2})


def test_columns_and_fields_by_name(tmp_path):
    tsv = write(tmp_path / "c.tsv", "group\tone\teins\nother\ttwo\tzwei\tmore\n")
    assert records_of(Source((tsv,), columns=("3", "2")), 2)[0] == [("eins", "one"), ("zwei", "two")]
    jsonl = write(tmp_path / "d.txt", '{"text": "long", "summary": "short"}\n')
    assert records_of(Source((jsonl,), "jsonl", ("text", "summary")), 2)[0] == [("long", "short")]


@pytest.mark.parametrize("counts", [(3, 5), (5, 3), (0, 4), (4, 0)])
def test_unequal_parallel_files_name_both_counts(tmp_path, counts):
    paths = [write(tmp_path / f"file{side}", "x\n" * count) for side, count in enumerate(counts)]
    with pytest.raises(InputError, match=rf"file0 has {counts[0]} lines but .*file1 has {counts[1]}:"):
        records_of(Source(tuple(paths)), 2)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"good\nb\xffad\n", r"a\.txt, line 2: not valid UTF-8 \(byte 0xff at position 2\)"),
        ("a.txt", "good\n".encode("utf-16"), "line 1: .*UTF-8"),
        ("a.txt", b"good\ngood\nb\0ad", r"a\.txt, line 3: contains a NUL byte"),
        ("a.jsonl", b'{"text": "a\\u0000b"}', "line 1: contains a NUL"),
        ("a.jsonl", b'{"text": "ok"}\n{"text": "\\ud800"}', "line 2: not valid JSON text"),
        ("a.jsonl", b'{"text": "ok"}\n{"text', "line 2: not valid JSON text"),
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
        records_of(Source((tmp_path / name,)))


@pytest.mark.parametrize(
    ("content", "columns", "message"),
    [
        ("a\tb\na\tb\tc\n", None, "line 2: found 3 columns, expected 2"),
        ("a\tb\nab\n", None, "line 2: found 1 columns, expected 2"),
        ("a\tb\tc\na\tb\n", ("1", "3"), "line 2: has no column 3, only 2"),
        ("a\tb\n", ("0", "1"), "columns of a TSV file are numbers from 1"),
        ("a\tb\n", ("1",), "1 columns named where 2 are needed"),
    ],
)
def test_bad_tsv(tmp_path, content, columns, message):
    path = write(tmp_path / "f.tsv", content)
    with pytest.raises(InputError, match=message):
        records_of(Source((path,), columns=columns), 2)


@pytest.mark.parametrize("compression", [".gz", ".xz", ".zst"])
@pytest.mark.parametrize("keep", [0.2, 0.6, 0.99])
def test_compressed_file_cut_short_is_an_error(tmp_path, compression, keep):
    path = write(tmp_path / "f", "".join(f"line {index}\n" for index in range(5_000)), compression)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * keep)])
    with pytest.raises(InputError, match="is damaged or cut short"):
        records_of(Source((path,)))


@pytest.mark.parametrize("compression", [".gz", ".xz", ".zst"])
def test_concatenated_compressed_files_are_read_to_the_end(tmp_path, compression):
    path = tmp_path / f"f{compression}"
    path.write_bytes(b"".join(COMPRESS[compression](part) for part in (b"one\ntw", b"", b"o\nthree\n")))
    assert list(read_lines(path)) == ["one", "two", "three"]


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
        records_of(Source(tuple(map(Path, files))), num_sides)
