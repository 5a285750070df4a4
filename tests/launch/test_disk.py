"""Whether a directory can be written, as a supervisor looks at it."""

import os
import time

import pytest

from deltalm_ds.launch import disk
from deltalm_ds.launch.disk import DiskWatch, fault_of
from deltalm_ds.runs import silence


def test_a_disk_that_takes_files_has_no_fault_and_keeps_none(tmp_path):
    assert fault_of(tmp_path / ".probe") == ""
    assert not list(tmp_path.iterdir())


def test_why_it_takes_none(tmp_path):
    assert fault_of(tmp_path / "none" / ".probe") == "No such file or directory"
    assert fault_of(tmp_path / ("x" * 300)) == "File name too long"


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="a device of Linux")
def test_a_full_disk(tmp_path):
    (tmp_path / ".probe").symlink_to("/dev/full")
    assert fault_of(tmp_path / ".probe") == "No space left on device"
    assert not list(tmp_path.iterdir())


def test_what_changed_is_told_once(tmp_path, monkeypatch):
    monkeypatch.setattr(disk, "LOOK_S", 0.01)
    watch = DiskWatch(tmp_path)
    watch.start()
    assert await_news(watch) == "No such file or directory"  # there is no folder launch
    assert watch.news() is None
    (tmp_path / "launch").mkdir()
    assert await_news(watch) == ""
    assert watch.news() is None
    watch.end()
    assert not watch.is_alive() and not list((tmp_path / "launch").iterdir())


def await_news(watch, seconds=10.0):
    until = time.monotonic() + seconds
    while (news := watch.news()) is None:
        assert time.monotonic() < until
        time.sleep(0.005)
    return news


def test_a_disk_that_does_not_answer_is_told_while_it_does_not(tmp_path, monkeypatch, capsys):
    """The supervisor itself may wait for it."""
    monkeypatch.setattr(disk, "LOOK_S", 0.01)
    monkeypatch.setattr(silence, "SILENT_S", 0.05)
    (tmp_path / "launch").mkdir()
    watch = DiskWatch(tmp_path)
    os.mkfifo(watch._path)  # whoever writes waits for a reader
    watch.start()
    assert "supervisor: " in await_message(capsys, f"{tmp_path} has not answered for 0 s")
    os.close(os.open(watch._path, os.O_RDONLY | os.O_NONBLOCK))
    await_message(capsys, f"{tmp_path} answers again.")
    watch.end()
    assert not watch.is_alive()


def await_message(capsys, words, seconds=10.0):
    until = time.monotonic() + seconds
    while words not in (told := capsys.readouterr().err):
        assert time.monotonic() < until
        time.sleep(0.005)
    return told
