"""One reader of text files for every verb: what a line is, compressions, and every way for a file to be wrong."""

import bz2
import gzip
import io
import lzma
import os
import random
import sys
import threading
import zipfile
from pathlib import Path

import pytest
import zstandard
from hypothesis import example, given, settings
from hypothesis import strategies as st

from deltalm_ds import lines
from deltalm_ds.errors import InputError
from deltalm_ds.lines import STDIN, line_blocks, numbered_lines, read_lines, read_parallel_lines, text_blocks, text_name

COMPRESS = {
    "": lambda data: data,
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": lambda data: zstandard.ZstdCompressor().compress(data),
}


def write(path, content, compression=""):
    path = path.with_name(path.name + compression)
    path.write_bytes(COMPRESS[compression](content if isinstance(content, bytes) else content.encode()))
    return path


# --- what a line is ---


def has_carriage_returns_alone(text):
    return "\n" not in text and "\r" in text.removesuffix("\r")


@settings(max_examples=200, deadline=None)
@example("a\rb\r")
@example("\ufeffa\r\n\r\nb")
@given(st.text(st.sampled_from("ab \n\r\u2028\u0085é\t")))
def test_lines_end_at_line_feeds_only(tmp_path_factory, text):
    path = tmp_path_factory.mktemp("t") / "f"
    path.write_bytes(text.encode())
    expected = text.removeprefix("\ufeff").split("\n")
    expected = expected[:-1] if expected[-1] == "" else expected
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lines, "BLOCK_BYTES", 3)
        if has_carriage_returns_alone(text):
            with pytest.raises(InputError, match="line 1: lines end with carriage returns alone"):
                read_lines(path)
            return
        assert read_lines(path) == [line.removesuffix("\r") for line in expected]


@pytest.mark.parametrize("compression", [".gz", ".bz2", ".xz", ".zst"])
def test_concatenated_compressed_files_are_read_to_the_end(tmp_path, compression):
    path = tmp_path / f"f{compression}"
    path.write_bytes(b"".join(COMPRESS[compression](part) for part in (b"one\ntw", b"", b"o\nthree\n")))
    assert read_lines(path) == ["one", "two", "three"]


@pytest.mark.parametrize("compression", COMPRESS)
@pytest.mark.parametrize("where", [0, 3])
def test_a_line_over_the_limit_is_refused_and_one_of_just_the_limit_is_read(tmp_path, monkeypatch, compression, where):
    monkeypatch.setattr(lines, "BLOCK_BYTES", 64)
    monkeypatch.setattr(lines, "MAX_TEXT_BYTES", 200)
    texts = ["short"] * 5
    texts[where] = "x" * 200
    assert read_lines(write(tmp_path / "a", "\n".join(texts), compression)) == texts
    texts[where] += "x"
    with pytest.raises(InputError, match=rf"b.*, line {where + 1}: the line is longer than 200 bytes"):
        read_lines(write(tmp_path / "b", "\n".join(texts), compression))


def test_a_line_of_ten_megabytes(tmp_path):
    path = write(tmp_path / "a", b"one\n" + b"x" * 10_000_000 + b"\nthree\n", ".zst")
    with pytest.raises(InputError, match="line 2: the line is longer than 8,388,608 bytes"):
        read_lines(path)


# --- every kind of file ---


@pytest.mark.parametrize("compression", COMPRESS)
@pytest.mark.parametrize("upper", [False, True])
def test_every_compression_gives_the_same_lines(tmp_path, compression, upper):
    path = write(tmp_path / "f.en", "\ufeffone\r\ntwo\n", compression)
    if upper:
        path = path.rename(path.with_name(path.name.upper()))
    assert read_lines(path) == ["one", "two"]
    assert list(numbered_lines(path)) == [(1, "one"), (2, "two")]
    assert text_name(path) == ("F.EN" if upper else "f.en")


def test_a_member_of_an_archive_tells_its_name(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("pairs.tsv", "x\n")
        archive.writestr("README", "x\n")
    assert text_name(Path(f"{tmp_path}/a.zip!p*")) == "pairs.tsv"
    with pytest.raises(InputError, match="2 members fit"):
        text_name(tmp_path / "a.zip")
    with pytest.raises(InputError, match=r"b\.zip cannot be read: No such file"):
        text_name(tmp_path / "b.zip")


def test_standard_input(monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("\ufeffone\r\n\ntwo".encode())))
    assert read_lines("-") == ["one", "", "two"]
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"ok\n\xff\n")))
    with pytest.raises(InputError, match=r"^standard input, line 2: not valid UTF-8"):
        read_lines("-")
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(InputError, match="standard input is closed"):
        read_lines("-")


def test_lines_of_an_open_pipe_are_there_at_once(monkeypatch):
    """Whoever answers line by line must not wait for a block of 128 KiB, or for the end."""
    reading, writing = os.pipe()
    with open(reading, "rb") as pipe, open(writing, "wb", buffering=0) as writer:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(pipe))
        blocks, found = line_blocks(STDIN), []
        for line in (b"one\n", b"two\n"):
            writer.write(line)
            asking = threading.Thread(target=lambda: found.extend(next(blocks)), daemon=True)
            asking.start()
            asking.join(10)
            assert found[-1:] == [line.decode().strip()]
        writer.close()
        assert list(blocks) == []


# --- every way to be wrong ---


@pytest.mark.parametrize("compression", COMPRESS)
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"good\nb\xffad\n", r"line 2: not valid UTF-8 \(byte 0xff at position 2\): convert the file to UTF-8\."),
        (b"good\ngood\nb\0ad", "line 3: contains a NUL byte; is this a text file in UTF-8"),
        (b"cut \xe2\x82", r"line 1: not valid UTF-8 \(byte 0xe2 at position 5\)"),
        ("one\ntwo".encode("utf-16"), r"line 1: not valid UTF-8 \(.*\): this is UTF-16: convert it to UTF-8"),
        ("\ufeffone\ntwo".encode("utf-16-be"), "this is UTF-16"),
    ],
)
@pytest.mark.parametrize("read", [read_lines, lambda path: list(text_blocks(path))], ids=["lines", "blocks"])
@pytest.mark.parametrize("block", [3, 1 << 17])
def test_bad_text_names_file_and_line(tmp_path, monkeypatch, compression, content, message, read, block):
    monkeypatch.setattr(lines, "BLOCK_BYTES", block)
    path = write(tmp_path / "f.en", content, compression)
    if read is not read_lines:  # for which a line may be long: the place in it is not known
        message = message.replace(" at position 2", "").replace(" at position 5", "")
    with pytest.raises(InputError, match=message) as error:
        read(path)
    assert str(error.value).startswith(f"{path}, line ")


@pytest.mark.parametrize("compression", [name for name in COMPRESS if name])
def test_a_compressed_file_under_another_name_says_so(tmp_path, compression):
    path = write(tmp_path / "f.en", random.Random(0).randbytes(5000).hex(), compression).rename(tmp_path / "g.en")
    with pytest.raises(InputError, match=rf"g\.en, line 1: .*its name must end in \{compression}\."):
        read_lines(path)


@pytest.mark.parametrize("compression", [name for name in COMPRESS if name])
@pytest.mark.parametrize("damage", [lambda data: b"", lambda data: data[:-5], lambda data: b"no such format"])
def test_damaged_files_are_named(tmp_path, compression, damage):
    path = write(tmp_path / "f.en", "one\ntwo\n" * 1000, compression)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(InputError, match=rf"f\.en\{compression} (is damaged or cut short|cannot be read)"):
        read_lines(path)


def test_an_encrypted_archive_is_named(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("a.en", "x\n")
    content = bytearray((tmp_path / "a.zip").read_bytes())
    content[6] |= 1  # the flag of encryption, in the member's own header and in the archive's directory
    content[content.index(b"PK\x01\x02") + 8] |= 1
    (tmp_path / "a.zip").write_bytes(content)
    with pytest.raises(InputError, match=r"a\.zip cannot be read: .*encrypted"):
        read_lines(tmp_path / "a.zip")


def test_missing_files_are_named(tmp_path):
    with pytest.raises(InputError, match=r"absent\.txt cannot be read: No such file or directory\.$"):
        read_lines(tmp_path / "absent.txt")


@settings(max_examples=100, deadline=None)
@given(st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\0")), st.integers(1, 7))
def test_text_in_blocks_is_the_text(tmp_path_factory, text, block):
    path = tmp_path_factory.mktemp("t") / "f"
    path.write_bytes(text.encode())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lines, "BLOCK_BYTES", block)
        assert "".join(text_blocks(path)) == text.removeprefix("\ufeff")


def test_files_of_different_length_are_both_named(tmp_path):
    first, second = write(tmp_path / "a.en", "x\n" * 1200), write(tmp_path / "a.de", "x\n")
    with pytest.raises(InputError, match=r"a\.en has 1,200 lines but .*a\.de has 1: the two must agree line by line"):
        read_parallel_lines(first, second)
    write(second, "y\n" * 1200)
    assert read_parallel_lines(first, second) == (["x"] * 1200, ["y"] * 1200)
