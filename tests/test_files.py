"""A file or directory that is written is complete or absent, whatever goes wrong in between."""

import errno
import fcntl
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from deltalm_ds.errors import InputError
from deltalm_ds.files import (
    atomic_directory,
    atomic_file,
    locked,
    naming_full_disk,
    read_json,
    sha256_of,
    temporary_path,
    write_json,
)


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def fail_with_full_disk(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_file_is_replaced_only_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "x.txt"
    path.write_text("old")
    with atomic_file(path) as file:
        file.write("néw")
        file.flush()
        assert path.read_text() == "old"
    assert path.read_bytes() == "néw".encode()
    assert names(tmp_path) == ["x.txt"]


def test_binary_file(tmp_path: Path) -> None:
    with atomic_file(tmp_path / "x", "wb") as file:
        file.write(b"\x00\xff")
    assert (tmp_path / "x").read_bytes() == b"\x00\xff"


def test_an_error_while_writing_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "x.txt"
    path.write_text("old")
    with pytest.raises(RuntimeError, match="half way"), atomic_file(path) as file:
        file.write("new")
        raise RuntimeError("half way")
    assert path.read_text() == "old"
    assert names(tmp_path) == ["x.txt"]


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_full_disk_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    path = tmp_path / "x.json"
    write_json(path, "old")
    monkeypatch.setattr(os, call, fail_with_full_disk)
    with pytest.raises(OSError, match="No space left"):
        write_json(path, "new")
    assert read_json(path) == "old"
    assert names(tmp_path) == ["x.json"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's /dev/full")
def test_a_full_disk_is_noticed_when_buffers_are_flushed(tmp_path: Path) -> None:
    """Small writes reach the disk only at the end: the error must come then and must not be lost."""
    temporary_path(tmp_path / "x").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left"), atomic_file(tmp_path / "x") as file:
        file.write("a few bytes")
    assert names(tmp_path) == []


def test_directory_appears_complete(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "out"
    with atomic_directory(path) as temporary:
        (temporary / "sub").mkdir()
        (temporary / "sub" / "a").write_text("1")
        assert not path.exists()
    assert (path / "sub" / "a").read_text() == "1"
    assert names(tmp_path / "deep") == ["out"]


def test_an_empty_directory_may_be_there_already(tmp_path: Path) -> None:
    path = tmp_path / "out"
    path.mkdir()
    with atomic_directory(path) as temporary:
        (temporary / "a").touch()
    assert names(path) == ["a"]


@pytest.mark.parametrize("kind", ["file", "directory"])
def test_what_exists_is_not_overwritten(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "out"
    if kind == "directory":
        path.mkdir()
        (path / "precious").touch()
    else:
        path.write_text("precious")
    before = names(tmp_path)
    with pytest.raises(InputError, match="exists already"), atomic_directory(path):
        pytest.fail("the block must not run")
    assert names(tmp_path) == before


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_full_disk_leaves_no_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    monkeypatch.setattr(os, call, fail_with_full_disk)
    with pytest.raises(OSError, match="No space left"), atomic_directory(tmp_path / "out") as temporary:
        (temporary / "a").touch()
    assert names(tmp_path) == []


def test_an_error_leaves_no_directory(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), atomic_directory(tmp_path / "out") as temporary:
        (temporary / "a").touch()
        raise RuntimeError
    assert names(tmp_path) == []


@pytest.mark.parametrize("what", ["atomic_file", "atomic_directory"])
def test_a_killed_writer_leaves_nothing_under_the_name(tmp_path: Path, what: str) -> None:
    code = (
        f"import os, pathlib; from deltalm_ds.files import {what}\n"
        f"with {what}({str(tmp_path / 'out')!r}) as target:\n"
        "    (target / 'a').write_text('half') if isinstance(target, pathlib.Path) else target.write('half')\n"
        "    os.kill(os.getpid(), 9)\n"
    )
    process = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parent.parent, check=False)
    assert process.returncode == -signal.SIGKILL
    assert not (tmp_path / "out").exists()
    assert all(name.startswith(".out.") for name in names(tmp_path))


HOLD = """
import sys
from deltalm_ds.files import locked
with locked(sys.argv[1], "in use"):
    print("holding", flush=True)
    sys.stdin.read()
"""


def test_one_process_holds_a_lock_whose_name_the_others_get(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    command = [sys.executable, "-c", HOLD, str(path)]
    root = Path(__file__).parent.parent
    with subprocess.Popen(command, cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == b"holding\n"
        with pytest.raises(InputError) as refused, locked(path, "The run is in use: wait for it."):
            pytest.fail("the block must not run")
        assert str(refused.value).startswith(f"The run is in use: wait for it. It is held by process {holder.pid} on ")
        holder.kill()  # the system lets go of the lock, whatever the end
    with locked(path, "in use"):
        assert f"process {os.getpid()} on " in path.read_text()
    with locked(path, "in use"):
        pass


def test_a_file_system_without_locks_is_one_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with locked(tmp_path / "lock", "in use"):
        pass
    (warning,) = capsys.readouterr().err.splitlines()
    assert "lock cannot be locked (No locks available): see to it yourself" in warning


def test_an_error_under_a_lock_is_not_taken_for_the_locks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for error in (OSError(errno.EIO, "broken"), BlockingIOError(errno.EAGAIN, "again")):
        with pytest.raises(type(error), match=error.strerror), locked(tmp_path / "lock", "in use"):
            raise error
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_the_error_of_a_full_disk_says_where(tmp_path: Path, number: int) -> None:
    with pytest.raises(OSError, match=r"out") as named, naming_full_disk(tmp_path / "out"):
        raise OSError(number, os.strerror(number))
    assert (named.value.errno, named.value.filename) == (number, str(tmp_path / "out"))
    with pytest.raises(OSError, match=r"inner") as named, naming_full_disk(tmp_path / "out"):
        raise OSError(number, os.strerror(number), "inner")  # whoever is nearer knows better
    message = r"The disk got full while writing to .*out: make room\.$"
    with pytest.raises(InputError, match=message), naming_full_disk(tmp_path / "out", "make room."):
        raise OSError(number, os.strerror(number), "inner")


def test_other_errors_keep_their_kind(tmp_path: Path) -> None:
    with pytest.raises(PermissionError) as error, naming_full_disk(tmp_path / "out", "make room."):
        raise PermissionError(errno.EACCES, "denied")
    assert error.value.filename is None


def test_errors_name_what_is_written_not_its_hidden_name(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError) as error, atomic_file(tmp_path / "file" / "out"):
        pass
    assert error.value.filename == str(tmp_path / "file" / "out")
    with pytest.raises(FileNotFoundError) as error, atomic_directory(tmp_path / "out") as directory:
        (directory / "none" / "inner").touch()
    assert error.value.filename == str(tmp_path / "out" / "none" / "inner")


def test_json_round_trip_is_readable_utf8(tmp_path: Path) -> None:
    value = {"ü": [1, 2.5, None], "nested": {"a": True}}
    write_json(tmp_path / "x.json", value)
    assert read_json(tmp_path / "x.json") == value
    assert "ü" in (tmp_path / "x.json").read_text(encoding="utf-8")


def test_a_value_that_json_cannot_hold_leaves_the_old_file(tmp_path: Path) -> None:
    write_json(tmp_path / "x.json", 1)
    with pytest.raises(TypeError):
        write_json(tmp_path / "x.json", {"a": object()})
    assert read_json(tmp_path / "x.json") == 1


def test_missing_json_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"x\.json does not exist"):
        read_json(tmp_path / "x.json")


@pytest.mark.parametrize("content", [b"", b'{"a": 1', b"\xff\xfe{}"])
def test_broken_json_names_the_file(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(InputError, match=r"x\.json is not valid JSON"):
        read_json(tmp_path / "x.json")


def test_sha256_of_the_standards_examples(tmp_path: Path) -> None:
    """FIPS 180: one block, and a million letters a, which spans reads of 1 MiB when taken twice."""
    path = tmp_path / "x"
    path.write_bytes(b"abc")
    assert sha256_of(path) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    path.write_bytes(b"a" * 1_000_000)
    assert sha256_of(path) == "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0"
