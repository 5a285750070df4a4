"""Reading along: every whole line once, whatever the writer does."""

import json
import tempfile
from pathlib import Path
from unittest import mock

from hypothesis import given
from hypothesis import strategies as st

from deltalm_ds.files import atomic_file
from deltalm_ds.runs.appended import AppendedLines


@given(st.lists(st.integers(1, 9), min_size=1, max_size=30))
def test_lines_come_once_however_they_are_cut(sizes):
    entries = [json.dumps({"n": n, "text": "\u00e9\u2028"}, ensure_ascii=False) for n in range(4)]
    content = "".join(f"{entry}\n" for entry in entries).encode()
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "log"
        lines, found, position = AppendedLines(path), [], 0
        assert lines.read() == []  # there is no file yet
        while position < len(content):
            for size in sizes:
                with open(path, "ab") as file:
                    file.write(content[position : position + size])
                position += size
                found += lines.read()
    assert [entry["n"] for entry in found] == [0, 1, 2, 3]


def test_only_what_was_appended_is_read(tmp_path):
    path = tmp_path / "log"
    path.write_text('{"n": 1}\n' * 1000)
    lines = AppendedLines(path)
    assert len(lines.read()) == 1000 and lines.begins_again
    with open(path, "a") as file:
        file.write('{"n": 2}\n{"n"')
    with mock.patch("builtins.open", side_effect=lambda *a: Counting(open_(*a))) as opened:
        assert lines.read() == [{"n": 2}]
    assert opened.call_count == 1 and not lines.begins_again
    assert Counting.bytes_read == len('{"n": 2}\n{"n"')


open_ = open


class Counting:
    """A file that counts what is read of it."""

    bytes_read = 0

    def __init__(self, file):
        self.file = file

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.file.close()

    def fileno(self):
        return self.file.fileno()

    def seek(self, place):
        return self.file.seek(place)

    def read(self):
        content = self.file.read()
        Counting.bytes_read += len(content)
        return content


def test_a_file_that_is_written_anew_begins_again(tmp_path):
    path = tmp_path / "log"
    path.write_text('{"n": 1}\n{"n": 2}\n')
    lines = AppendedLines(path)
    assert len(lines.read()) == 2
    with atomic_file(path) as file:
        file.write('{"n": 1}\n')
    assert lines.read() == [{"n": 1}] and lines.begins_again
    path.write_text("[1]\nnull\n{\n")  # the same file, cut and filled with what is no object
    assert lines.read() == []
