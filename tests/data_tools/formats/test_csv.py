"""CSV: whatever a spreadsheet writes in quotes comes back, from a file that is read whole."""

import csv
from collections import Counter

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deltalm_ds.data_tools.sources import TextSource, divide, read_records
from deltalm_ds.errors import InputError

CELL = st.text(st.sampled_from('ab",\n é')).map(lambda text: f"x{text}y")


def records_of(path, num_sides=2, fields=None):
    return list(read_records(TextSource((path,), fields=fields), num_sides, Counter()))


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(CELL, CELL), max_size=5), st.sampled_from(["\n", "\r\n"]), st.booleans())
def test_what_was_written_is_read(tmp_path, rows, line_end, quote_all):
    path = tmp_path / "f.csv"
    with open(path, "w", encoding="utf-8-sig", newline="") as file:
        quoting = csv.QUOTE_ALL if quote_all else csv.QUOTE_MINIMAL
        csv.writer(file, lineterminator=line_end, quoting=quoting).writerows(rows)
    assert records_of(path) == [tuple(cell.replace("\n", " ") for cell in row) for row in rows]


def test_the_examples_of_rfc_4180(tmp_path):
    path = tmp_path / "f.csv"
    path.write_bytes(b'aaa,bbb\r\n"aaa","b\r\nbb"\r\n"aaa","b""bb"\r\n\r\n')
    assert records_of(path) == [("aaa", "bbb"), ("aaa", "b bb"), ("aaa", 'b"bb')]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('a,b\n"a\nb",c\n"open,c\nd,e\n', "line 4: the quotes of the record that begins here .*unexpected end of data"),
        ('a,b\n"Second" x,c\n', "line 2: the quotes of the record"),
        ('a,b\n"a\nb",c,d\n', "line 2: found 3 columns, expected 2; .*name the ones to read by number, .*f.csv:2,3"),
        ("a;b\n", "line 1: found 1 columns, expected 2; .*such as a semicolon"),
    ],
)
def test_malformed_records_are_named(tmp_path, text, message):
    path = tmp_path / "f.csv"
    path.write_text(text)
    with pytest.raises(InputError, match=rf"f\.csv, {message}"):
        records_of(path)


def test_a_quote_that_never_ends_is_found_within_the_limit(tmp_path, monkeypatch):
    monkeypatch.setattr("deltalm_ds.data_tools.formats.csv.MAX_TEXT_BYTES", 100)
    path = tmp_path / "f.csv"
    path.write_text("a,b\n" + '"open,' + "x,y\n" * 100)
    with pytest.raises(InputError, match=r"f\.csv, line 2: .*field larger than field limit"):
        records_of(path)


def test_a_large_file_is_not_divided(tmp_path):
    """A line end inside quotes is no place to begin."""
    path = tmp_path / "f.csv"
    path.write_text('"a\nb","c\nd"\n' * 100)
    source = TextSource((path,))
    assert divide(source, 10) == [source]
    assert records_of(path) == [("a b", "c d")] * 100
