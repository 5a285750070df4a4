"""Which checkpoints a run has, and which is meant."""

import math

import pytest

from deltalm_ds.errors import DataError, InputError
from deltalm_ds.files import write_json
from deltalm_ds.runs.checkpoints import (
    TrainingState,
    best_checkpoint,
    best_checkpoints,
    checkpoint_directories,
    model_directory,
    newest_checkpoints,
    read_state,
)


def write(run, step, **validation):
    directory = run / "checkpoints" / f"step_{step:08d}"
    directory.mkdir(parents=True)
    write_json(directory / "state.json", {"step": step, "updates": step - 1, "validation": validation})
    return directory


def test_in_order_of_steps_without_unfinished_ones(tmp_path):
    directories = [write(tmp_path, step) for step in (1000, 5, 200)]
    (tmp_path / "checkpoints" / ".step_00002000.tmp").mkdir()
    assert checkpoint_directories(tmp_path) == [directories[1], directories[2], directories[0]]
    assert read_state(directories[0]) == TrainingState(step=1000, updates=999)
    assert checkpoint_directories(tmp_path / "none") == []


def test_best_is_that_of_the_lowest_validation_loss(tmp_path):
    assert best_checkpoint(tmp_path) is None
    write(tmp_path, 1)
    assert best_checkpoint(tmp_path) is None
    write(tmp_path, 2, loss=3.0, bleu=1.0)
    best = write(tmp_path, 3, loss=2.0, bleu=0.5)
    write(tmp_path, 4, loss=2.5, bleu=2.0)
    write(tmp_path, 5)  # stopped by a signal: not validated
    assert best_checkpoint(tmp_path) == best


def test_best_and_newest_checkpoints(tmp_path):
    with pytest.raises(InputError, match="has no checkpoints: is it the directory of a run"):
        newest_checkpoints(tmp_path, 1)
    runs = [
        write(tmp_path, 1),
        write(tmp_path, 2, loss=3.0, bleu=1.0),
        write(tmp_path, 3, loss=2.0, bleu=0.5),
        write(tmp_path, 4, loss=2.5, bleu=math.nan),
        write(tmp_path, 5, loss=2.5, bleu=2.0),
    ]
    assert newest_checkpoints(tmp_path, 2) == runs[3:]
    assert best_checkpoints(tmp_path, 3, "loss", higher_is_better=False) == [runs[2], runs[3], runs[4]]
    assert best_checkpoints(tmp_path, 3, "bleu", higher_is_better=True) == [runs[4], runs[1], runs[2]]
    with pytest.raises(InputError, match="has 5 checkpoints, not 6: give --last 5"):
        newest_checkpoints(tmp_path, 6)
    with pytest.raises(InputError, match=r"3 checkpoints with a validation bleu, not 4: .*; metrics.*: bleu, loss"):
        best_checkpoints(tmp_path, 4, "bleu", higher_is_better=True)
    with pytest.raises(InputError, match="0 checkpoints with a validation chrf, not 1"):
        best_checkpoints(tmp_path, 1, "chrf", higher_is_better=True)


def test_which_way_a_metric_goes_must_be_said(tmp_path):
    """A metric of which that is not known cannot be ranked by the wrong end, silently."""
    checkpoints = [write(tmp_path, step, chrf=float(step), ter=float(step)) for step in range(1, 5)]
    assert best_checkpoints(tmp_path, 2, "chrf", higher_is_better=True) == checkpoints[:1:-1]
    assert best_checkpoints(tmp_path, 2, "ter", higher_is_better=False) == checkpoints[:2]
    with pytest.raises(TypeError):
        best_checkpoints(tmp_path, 2, "chrf")


@pytest.mark.parametrize("content", ["", "[1", '{"stepp": 3}', "[]", '{"validation": 3}'])
def test_a_damaged_state_is_named(content, tmp_path):
    directory = write(tmp_path, 7)
    (directory / "state.json").write_text(content)
    with pytest.raises(DataError, match="step_00000007 is damaged"):
        read_state(directory)


def test_a_run_means_its_newest_checkpoint(tmp_path):
    assert model_directory(tmp_path) == tmp_path
    write(tmp_path, 1)
    newest = write(tmp_path, 2)
    assert model_directory(tmp_path) == newest
    (tmp_path / "fresh" / "checkpoints").mkdir(parents=True)
    with pytest.raises(InputError, match="has no checkpoint yet"):
        model_directory(tmp_path / "fresh")
