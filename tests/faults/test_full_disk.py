"""A disk that is full for a while: training goes on, nothing is lost, and saving recovers."""

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from deltalm_ds.runs.checkpoints import checkpoint_directories, read_state
from deltalm_ds.runs.events import read_events
from tests.faults.tiny import Training, differences, write_experiment

STEPS = 90


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 16 MB, mounted."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(disk)]
    if os.getuid() or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("only root can mount a small disk, and not in every container")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


def test_on_a_full_disk_training_goes_on_and_recovers(small_disk: Path, tmp_path: Path) -> None:
    recipe = write_experiment(tmp_path / "experiment", training={"max_steps": STEPS, "save_every": 15})
    undisturbed, run = tmp_path / "undisturbed", small_disk / "run"
    assert Training(recipe, undisturbed, 2).await_end() == 0
    training = Training(recipe, run, 2, log=tmp_path / "log")
    assert training.await_that(lambda: bool(checkpoint_directories(run)))
    filler = small_disk / "filler"
    with contextlib.suppress(OSError), open(filler, "wb") as file:
        while True:
            file.write(bytes(1 << 16))
    assert training.await_that(lambda: "could not be written" in training.messages)
    filler.unlink()
    assert training.await_end() == 0
    assert differences(run, undisturbed, STEPS) == []
    assert "save failed" in [event["kind"] for event in read_events(run)]
    assert read_state(checkpoint_directories(run)[-1]).validation
