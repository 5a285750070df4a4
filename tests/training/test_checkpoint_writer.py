"""Saving beside training, fault by fault: whatever call of the system fails, what was whole stays whole."""

import builtins
import errno
import os
import shutil
import sys
import threading
import time
from contextlib import ExitStack
from types import SimpleNamespace
from unittest import mock

import pytest
import torch
from torch import distributed

from deltalm_ds.checkpoints.directory import load_model
from deltalm_ds.errors import InputError
from deltalm_ds.model.config import DeltaLMConfig
from deltalm_ds.model.deltalm import DeltaLM
from deltalm_ds.runs.checkpoints import (
    TrainingState,
    checkpoint_directories,
    find_fault,
    newest_whole_checkpoint,
    read_state,
)
from deltalm_ds.runs.events import read_events
from deltalm_ds.training import checkpoint, checkpoint_writer
from deltalm_ds.training.checkpoint_writer import CheckpointWriter
from deltalm_ds.training.parameter_states import keep_states
from deltalm_ds.vocabulary import Vocabulary


@pytest.fixture(autouse=True)
def one_rank():
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch):
    monkeypatch.setattr(checkpoint_writer, "LAST_PAUSES_S", (0.0,))


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory):
    path = tmp_path_factory.mktemp("vocabulary") / "dict.txt"
    path.write_text("".join(f"piece{number} 1\n" for number in range(10)))
    return Vocabulary.from_dict(path, num_sentinels=2, languages=("de", "en"))


class Run:
    """A run in which every weight is the number of the step, and every moment that and a half."""

    def __init__(self, directory, vocabulary, make_recipe, **training):
        self.directory = directory
        sizes = {"hidden_size": 16, "ffn_size": 16, "num_heads": 2, "max_positions": 8}
        self.model = DeltaLM(DeltaLMConfig.preset("tiny", vocabulary_size=vocabulary.num_tokens, **sizes))
        for parameter in self.model.parameters():
            weight, moment = parameter.data.view(-1), parameter.data.new_empty(parameter.numel())
            parameter._hp_mapping = SimpleNamespace(
                lp_fragment_address=SimpleNamespace(numel=parameter.numel()),
                get_hp_fragment=lambda name, weight=weight, moment=moment: moment if name else weight,
            )
        keep_states(self.model, has_average=False)
        ds_engine = SimpleNamespace(module=self.model, device=torch.device("cpu"), fp16_enabled=lambda: False)
        recipe = make_recipe(training={"save_every": 16, "max_steps": 1000, **training})
        self.state = TrainingState()
        self.saves = CheckpointWriter(ds_engine, vocabulary, recipe, directory, self.state)

    def train_to(self, step):
        """Make the updates up to a step."""
        self.state.step = self.state.updates = step
        for parameter in self.model.parameters():
            parameter.data.fill_(step)
            parameter._hp_mapping.get_hp_fragment("exp_avg").fill_(step + 0.5)

    def save(self, step):
        """Train to a step, save there, and wait until that has ended; what went wrong."""
        self.train_to(step)
        self.saves.save(self.state)
        return self.saves.wait(step)

    def newest(self):
        """The step of the newest checkpoint, which is checked to be whole and of that step."""
        newest = newest_whole_checkpoint(self.directory, lambda found: find_fault(found, lambda files: files))
        step = read_state(newest).step
        assert all((weight == step).all() for weight in load_model(newest).parameters())
        moments = checkpoint._open(newest)["optimizer"]
        assert len(moments) == 2 * sum(1 for _ in self.model.parameters())
        assert all((moment == step + 0.5).all() for moment in moments.values())
        return step

    def steps(self):
        return [read_state(found).step for found in checkpoint_directories(self.directory)]


@pytest.fixture
def make(vocabulary, make_recipe):
    return lambda directory, **training: Run(directory, vocabulary, make_recipe, **training)


# --- faults of the system ---

CALLS = ("os.open", "os.fsync", "os.replace", "os.rename", "os.mkdir", "builtins.open", "written")


class Faults:
    """Counts calls of the system that a save makes, and lets one of them fail: by an error, or on a full disk."""

    def __init__(self, call=None, number=None, code=errno.ENOSPC):
        self.counts, self._fails, self._code = dict.fromkeys(CALLS, 0), (call, number), code

    def __enter__(self):
        self._patches = ExitStack()
        for call in CALLS[:-2]:
            self._patches.enter_context(mock.patch(call, self._failing(call, getattr(os, call.split(".")[1]))))
        self._patches.enter_context(mock.patch("builtins.open", self._opening(builtins.open)))
        return self

    def __exit__(self, *error):
        self._patches.close()

    def _is_due(self, call):
        self.counts[call] += 1
        return (call, self.counts[call]) == self._fails

    def _failing(self, call, function):
        def instead(*arguments, **options):
            if self._is_due(call):
                raise OSError(self._code, os.strerror(self._code))
            return function(*arguments, **options)

        return instead

    def _opening(self, function):
        def instead(path, mode="r", *arguments, **options):
            if "w" not in mode or "checkpoints" not in str(path):
                return function(path, mode, *arguments, **options)
            if self._is_due("builtins.open"):
                raise OSError(self._code, os.strerror(self._code))
            full = self._is_due("written")
            return function("/dev/full" if full else path, mode, *arguments, **options)

        return instead


def calls_of_a_save(directory, make):
    """How often a save makes each call: of a second one, after which an older checkpoint is removed."""
    run = make(directory, keep_last=1)
    run.save(16)
    with Faults() as faults:
        assert run.save(32) is None
    run.saves.close()
    return faults.counts


@pytest.mark.skipif(sys.version_info < (3, 11), reason="pathlib of 3.10 has its own references to the system's calls")
def test_whatever_call_fails_the_newest_checkpoint_is_whole_and_a_later_save_succeeds(make, tmp_path, capsys):
    counts = calls_of_a_save(tmp_path / "counted", make)
    assert all(counts[call] for call in CALLS)
    failed = 0
    for call, count in counts.items():
        for number in range(1, count + 1):
            run = make(tmp_path / f"{call}_{number}", keep_last=1)
            assert run.save(16) is None
            code = (errno.ENOSPC, errno.EDQUOT, errno.ESTALE, errno.EACCES, errno.EIO)[number % 5]
            with Faults(call, number, code) as faults:
                fault = run.save(32)
            assert faults.counts[call] >= number
            assert run.newest() in ((16, 32) if fault else (32,))  # also 32, where what failed came after the renaming
            failed += fault is not None
            if fault:
                assert not list((run.directory / "checkpoints").glob(".step_00000032*"))
                assert not run.saves.should_try_again(32)
                assert run.saves.should_try_again(33)  # a sixteenth of save_every later
            assert run.save(33) is None
            assert run.newest() == 33
            assert run.steps() == [33]
    assert failed >= sum(counts.values()) - 8  # some concern what is removed, or come behind the renaming
    assert "could not be written" in capsys.readouterr().err


def test_a_failure_is_told_recorded_and_tried_again_ever_more_seldom(make, tmp_path, capsys):
    run = make(tmp_path)
    run.save(16)
    attempts = []
    with mock.patch.object(checkpoint_writer, "write_share", side_effect=OSError(errno.ESTALE, "Stale file handle")):
        run.save(32)
        for step in range(33, 100):
            run.train_to(step)
            due = step % 16 == 0
            if due or run.saves.should_try_again(step):
                attempts.append(step)
                run.save(step)
    assert attempts == [33, 35, 39, 47, 48, 64, 80, 96]  # 1, 2, 4, 8 steps, then as often as saves are due
    text = capsys.readouterr().err
    assert "step 32: the checkpoint could not be written: OSError: [Errno 116] Stale file handle. It is tried" in text
    events = read_events(tmp_path)
    assert [(event["kind"], event["step"], event["failures"]) for event in events] == [
        ("save failed", step, count) for count, step in enumerate([32, *attempts], start=1)
    ]
    assert run.save(100) is None
    assert not run.saves.should_try_again(1000)
    assert run.newest() == 100


def test_a_run_ends_when_more_steps_would_be_lost_than_allowed(make, tmp_path):
    run = make(tmp_path, max_unsaved_steps=40)
    run.save(16)
    with mock.patch.object(
        checkpoint_writer, "publish", side_effect=PermissionError(errno.EACCES, "Permission denied")
    ):
        for step in (32, 48):
            assert "Permission denied" in run.save(step)
        assert not run.saves.should_try_again(49)
        assert run.saves.should_try_again(56)
        run.train_to(56)
        with pytest.raises(
            InputError, match=r"step_00000056 could not be written.*denied\. 40 steps are lost; the"
        ) as e:
            run.saves.save(run.state)
    assert f"the newest whole checkpoint is {tmp_path}/checkpoints/step_00000016. Make room" in str(e.value)
    assert run.steps() == [16]


def test_a_stop_saves_what_is_not_saved_and_says_what_is_lost(make, tmp_path):
    run = make(tmp_path)
    run.saves.finish(run.state)  # nothing was done yet
    assert run.steps() == []
    run.train_to(3)
    full = OSError(errno.ENOSPC, "No space left on device")
    with mock.patch.object(checkpoint_writer, "write_share", side_effect=full), pytest.raises(InputError) as error:
        run.saves.finish(run.state)
    assert "[Errno 28] No space left on device. 3 steps are lost; there is no earlier checkpoint." in str(error.value)
    errors, write_share = [full], checkpoint_writer.write_share

    def fails_once(*arguments):
        if errors:
            raise errors.pop()
        return write_share(*arguments)

    with mock.patch.object(checkpoint_writer, "write_share", fails_once):
        run.saves.finish(run.state)
    assert run.newest() == 3


# --- what is copied, when, and who waits ---


def test_training_goes_on_while_the_copy_is_written(make, tmp_path):
    """The checkpoint is that of the step at which it was saved; a second copy is made in the same memory."""
    run, may_write = make(tmp_path), threading.Event()
    memory = [tensor.data_ptr() for tensors in run.saves._share.files.values() for tensor in tensors.values()]
    write_share = checkpoint_writer.write_share

    def slowly(*arguments):
        may_write.wait()
        return write_share(*arguments)

    with mock.patch.object(checkpoint_writer, "write_share", slowly):
        run.train_to(16)
        run.saves.save(run.state)
        run.train_to(17)
        assert not run.saves.should_try_again(17)
        assert run.steps() == []
        run.saves.add_validation(TrainingState(16, validation={"loss": 2.0}))
        may_write.set()
        assert run.saves.wait(17) is None
    assert run.newest() == 16
    assert read_state(checkpoint_directories(tmp_path)[-1]).validation == {"loss": 2.0}
    run.save(32)
    assert memory == [tensor.data_ptr() for tensors in run.saves._share.files.values() for tensor in tensors.values()]
    run.saves.add_validation(TrainingState(32, validation={"loss": 1.0}))
    newest = checkpoint_directories(tmp_path)[-1]
    assert read_state(newest).validation == {"loss": 1.0}
    assert find_fault(newest, lambda files: files) is None


def test_a_validation_without_its_checkpoint_is_left_to_the_log(make, tmp_path):
    run = make(tmp_path)
    run.save(16)
    with mock.patch.object(checkpoint_writer, "write_share", side_effect=OSError(errno.EIO, "Input/output error")):
        run.train_to(32)
        run.saves.save(run.state)
        while run.saves._save.thread.is_alive():
            time.sleep(0.001)
        run.saves.add_validation(TrainingState(32, validation={"loss": 1.0}))
        run.saves.wait(33)
    assert [read_state(found).validation for found in checkpoint_directories(tmp_path)] == [{}]


# --- which checkpoints stay ---


def test_kept_are_the_last_the_best_and_those_of_every_so_many_steps(make, tmp_path):
    run = make(tmp_path, keep_last=2, keep_every=64, keep_best={"count": 2, "metric": "nll"})
    nll = {step: abs(step - 90) for step in range(16, 321, 16)}
    for step in nll:
        run.save(step)
        run.saves.add_validation(TrainingState(step, validation={"loss": -step, "nll": nll[step]}))
    by_nll = sorted(nll, key=nll.__getitem__)[:2]
    assert run.steps() == sorted({64, 128, 192, 256, 320, 304, *by_nll})


def test_a_damaged_checkpoint_of_a_later_step_is_not_counted(make, tmp_path):
    """A run went on from an older one: the only whole ones must not go for it."""
    run = make(tmp_path, keep_last=1)
    run.save(16)
    later = tmp_path / "checkpoints" / "step_00000032"
    checkpoint_directories(tmp_path)[0].rename(later)
    os.truncate(later / "state.json", 10)
    run.save(20)
    assert run.newest() == 20
    run.save(32)  # written again
    assert run.newest() == 32
    assert run.steps() == [32]


def test_a_damaged_checkpoint_between_two_saves_does_not_keep_the_others(make, tmp_path, capsys):
    """One that a stop wrote, say: no save comes to its step again."""
    run = make(tmp_path, keep_last=2)
    for step in (16, 20, 32):
        run.save(step)
    damaged = tmp_path / "checkpoints" / "step_00000020"
    assert damaged.is_dir()
    os.truncate(damaged / "state.json", 10)
    for step in (48, 64):
        run.save(step)
    assert [path.name[-2:] for path in checkpoint_directories(tmp_path)] == ["20", "48", "64"]
    assert "stay" not in capsys.readouterr().err


def test_a_start_tidies_what_an_interrupted_one_left(make, tmp_path):
    for name in (".step_00000016.tmp", ".step_00000020.old"):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
        (tmp_path / "checkpoints" / name / "model-00001-of-00001.safetensors").write_text("half of it")
    copied = tmp_path / "checkpoints" / "step_00000016_good"
    copied.mkdir()
    make(tmp_path)
    assert list((tmp_path / "checkpoints").iterdir()) == [copied]


def test_a_removal_that_is_cut_short_leaves_nothing_that_looks_whole(make, tmp_path, capsys):
    run = make(tmp_path, keep_last=1)
    run.save(16)
    rmtree = shutil.rmtree

    def fails(path, **options):
        if path.name.endswith(".old"):
            raise OSError(errno.EIO, "Input/output error")
        rmtree(path, **options)

    with mock.patch("shutil.rmtree", fails):
        assert run.save(32) is None
    assert run.steps() == [32]
    assert f"Old checkpoints of {tmp_path} stay: [Errno 5] Input/output error" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "checkpoints").glob(".*")] == [".step_00000016.old"]
