"""Builds that were ended, disturbed or damaged: they go on, and leave what an undisturbed one does."""

import contextlib
import errno
import fcntl
import multiprocessing
import os
import signal
import time
from itertools import count
from pathlib import Path

import numpy as np
import psutil
import pytest

from deltalm_ds import files
from deltalm_ds.data.shards import ShardDataset
from deltalm_ds.data_tools.build import BUILDING, SPECIFICATION, build
from deltalm_ds.data_tools.filters import Settings
from deltalm_ds.data_tools.verify import verify
from deltalm_ds.errors import InputError
from deltalm_ds.vocabulary import Vocabulary
from tests.data_tools.building import content_of, mono_spec, start_slow_build


class FullDisk:
    """A file that takes some bytes and then has no more room."""

    def __init__(self, file, room):
        self.file, self.room = file, room

    def __getattr__(self, name):
        return getattr(self.file, name)

    def write(self, data):
        self.room -= len(data)
        if self.room < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return self.file.write(data)


@pytest.mark.parametrize("room", [0, 500, 5_000, 40_000])
def test_full_disk_is_one_sentence_and_the_build_goes_on(vocabulary, specs, tmp_path, monkeypatch, room):
    open_file = open

    @contextlib.contextmanager
    def open_on_full_disk(*arguments, **options):
        with open_file(*arguments, **options) as file:
            yield FullDisk(file, room)

    with monkeypatch.context() as patch:
        patch.setattr(files, "open", open_on_full_disk, raising=False)
        with pytest.raises(InputError, match=r"The disk got full while writing to .*out"):
            build(specs, vocabulary, tmp_path / "out")
    assert not list(tmp_path.rglob("*.tmp"))
    build(specs, vocabulary, tmp_path / "out")
    build(specs, vocabulary, tmp_path / "undisturbed")
    assert content_of(tmp_path / "out") == content_of(tmp_path / "undisturbed")


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(errno.EIO, "broken"), RuntimeError("bug")])
def test_failure_at_every_rename_is_not_disguised_and_the_build_goes_on(
    vocabulary, specs, tmp_path, monkeypatch, error
):
    """Every file appears by a rename; whichever fails, what was there before stays and the rest is made."""
    settings = Settings(rows_per_shard=100, deduplicate=True)
    build(specs, vocabulary, tmp_path / "undisturbed", settings)
    expected = content_of(tmp_path / "undisturbed")
    replace = os.replace
    for call in count(0, 3):
        left = call

        def failing_replace(source, target):
            nonlocal left
            left -= 1
            if left < 0:
                raise error
            replace(source, target)

        out = tmp_path / str(call)
        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", failing_replace)
            try:
                build(specs, vocabulary, out, settings)
            except type(error):
                pass
            else:
                break
        assert not list(tmp_path.rglob("*.tmp")) and not (out / "manifest.json").exists()
        shards = {path: path.stat().st_ino for path in out.glob("*.arrow")}
        build(specs, vocabulary, out, settings)
        assert content_of(out) == expected
        # At most the shard whose result was not yet written is made again.
        assert sum(path.stat().st_ino != inode for path, inode in shards.items()) <= 1
    assert call > 20


def build_until_killed(specs, vocabulary, out, settings, num_calls, before):
    """In a process of its own: kill -9 at a given call of fsync, of which every file that appears makes two."""
    fsync, left = os.fsync, num_calls

    def fsync_or_die(descriptor):
        nonlocal left
        left -= 1
        if not before:
            fsync(descriptor)
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        fsync(descriptor)

    os.fsync = fsync_or_die
    build(specs, vocabulary, out, settings)


@pytest.mark.parametrize("seed", [1, 2])
def test_build_killed_at_any_point_goes_on(vocabulary, specs, tmp_path, seed):
    """kill -9 at random distances, each time going on; then what an undisturbed build gives, and nothing made twice."""
    out, random, settings = tmp_path / "out", np.random.default_rng(seed), Settings(rows_per_shard=20, deduplicate=True)
    num_kills, made = 0, {}
    while not (out / "manifest.json").exists():
        arguments = (specs, vocabulary, out, settings, random.integers(1, 60), bool(random.integers(2)))
        process = multiprocessing.get_context("fork").Process(target=build_until_killed, args=arguments)
        process.start()
        process.join(60)
        assert process.exitcode in (0, -signal.SIGKILL)
        num_kills += process.exitcode != 0
        made_before, made = made, {path.name: path.stat().st_ino for path in out.glob("*.arrow")}
        assert sum(made.get(name) != inode for name, inode in made_before.items()) <= 1
    build(specs, vocabulary, tmp_path / "undisturbed", settings)
    if (out / BUILDING).exists():
        build(specs, vocabulary, out, settings)
    assert content_of(out) == content_of(tmp_path / "undisturbed")
    assert num_kills >= 5


def test_two_builds_at_once_and_workers_of_a_killed_one(workspace, vocabulary, specs, tmp_path):
    out = tmp_path / "out"
    process = start_slow_build(workspace, out, num_processes=2)
    try:
        while not list(out.glob("*.arrow")):
            assert process.poll() is None
            time.sleep(0.01)
        with pytest.raises(InputError, match="Another process is building"):
            build(specs, vocabulary, out, Settings(rows_per_shard=20))
        assert process.poll() is None
        children = psutil.Process(process.pid).children(recursive=True)
    finally:
        process.kill()
        process.wait()
    assert len(children) >= 2 and psutil.wait_procs(children, timeout=20)[1] == []
    with pytest.raises(InputError, match="not built to the end"):
        ShardDataset.open(out)
    build(specs, vocabulary, out, Settings(rows_per_shard=20))
    build(specs, vocabulary, tmp_path / "undisturbed", Settings(rows_per_shard=20))
    assert content_of(out) == content_of(tmp_path / "undisturbed")


@pytest.fixture
def half_built(workspace, vocabulary, specs, tmp_path, monkeypatch):
    """A directory of a build that failed when half of its shards were there."""
    out, replace = tmp_path / "out", os.replace

    def failing_replace(source, target):
        if Path(target).name.startswith("de.source00000.part00001.done"):
            raise RuntimeError("stop")
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", failing_replace)
        with pytest.raises(RuntimeError, match="stop"):
            build(specs, vocabulary, out, Settings(rows_per_shard=50))
    return out


@pytest.mark.parametrize("damage", [Path.unlink, lambda path: path.write_text("{"), lambda path: path.write_text("{}")])
@pytest.mark.parametrize("what", [".building/*.done.json", "*.arrow", ".building/*source00000.json"])
def test_what_is_missing_or_damaged_is_made_again(vocabulary, specs, tmp_path, half_built, damage, what):
    damage(sorted(half_built.glob(what))[1])
    build(specs, vocabulary, half_built, Settings(rows_per_shard=50))
    build(specs, vocabulary, tmp_path / "undisturbed", Settings(rows_per_shard=50))
    assert content_of(half_built) == content_of(tmp_path / "undisturbed")


def test_another_build_is_not_mixed_in(workspace, vocabulary, specs, tmp_path, half_built):
    before = content_of(half_built) | content_of(half_built / BUILDING)
    with pytest.raises(InputError, match=r"what differs: max tokens, seed\. Go on"):
        build(specs, vocabulary, half_built, Settings(rows_per_shard=50, max_tokens=7, seed=1))
    with pytest.raises(InputError, match=r"what differs: the text of de\. Go on"):
        build(specs[:1], vocabulary, half_built, Settings(rows_per_shard=50))
    other = Vocabulary.from_spm(workspace / "spm.model", num_sentinels=5)
    with pytest.raises(InputError, match=r"what differs: the vocabulary\. Go on"):
        build(specs, other, half_built, Settings(rows_per_shard=50))
    os.utime(workspace / "train.en")
    with pytest.raises(InputError, match=r"what differs: the text of en-de\. Go on"):
        build(specs, vocabulary, half_built, Settings(rows_per_shard=50))
    assert content_of(half_built) | content_of(half_built / BUILDING) == before and SPECIFICATION in before


def test_text_that_changes_while_it_is_read(vocabulary, tmp_path, monkeypatch):
    specs = mono_spec(tmp_path, ["a cat"])
    replace = os.replace

    def replace_and_change(source, target):
        replace(source, target)
        (tmp_path / "mono.txt").write_text("a cat and more\n")

    monkeypatch.setattr(os, "replace", replace_and_change)
    with pytest.raises(InputError, match=r"mono.txt changed while it was read"):
        build(specs, vocabulary, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("last_removed", ["lock", SPECIFICATION])
def test_interrupted_at_its_very_end_it_is_not_taken_for_another_build(
    vocabulary, specs, tmp_path, monkeypatch, last_removed
):
    unlink = Path.unlink

    def interrupt(path, missing_ok=False):
        if path.name == last_removed:
            raise KeyboardInterrupt
        unlink(path, missing_ok)

    out = tmp_path / "out"
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Path, "unlink", interrupt)
        build(specs, vocabulary, out)
    before = content_of(out)
    with pytest.raises(InputError, match="what differs: the text of de"):
        build(specs[:1], vocabulary, out)
    build(specs, vocabulary, out)
    assert content_of(out) == before and not (out / BUILDING).exists()


def test_a_file_system_without_locks_will_do(vocabulary, specs, tmp_path, monkeypatch):
    def no_locks(*arguments):
        raise OSError(errno.ENOSYS, "no locks")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    build(specs, vocabulary, tmp_path / "out")
    assert verify(tmp_path / "out").faults == ()
