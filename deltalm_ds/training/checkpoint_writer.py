"""Saving beside training: a step waits for a copy in host memory, a thread of each rank writes it.

The threads agree over a gloo group of their own. One save is under way at a time. One that fails does not end the run:
it is told, and tried again from the state at a later step, until more steps would be lost than the recipe allows.
"""

import os
import shutil
import sys
import threading
import time
from contextlib import suppress
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import deepspeed
import torch
from torch import distributed

from deltalm_ds.checkpoints.provenance import provenance
from deltalm_ds.errors import InputError
from deltalm_ds.files import write_json
from deltalm_ds.recipe.schema import Recipe
from deltalm_ds.runs.attempts import end_if_taken_over, temporary_of_attempt
from deltalm_ds.runs.checkpoints import STATE, TrainingState, checkpoint_directories, checkpoint_name, read_state
from deltalm_ds.runs.events import record_event
from deltalm_ds.training.checkpoint import Share, loss_scaler_state, publish, write_share
from deltalm_ds.training.collectives import collective_timeout, first_fault, of_all_ranks
from deltalm_ds.training.retention import keep_checkpoints, remove_leftovers
from deltalm_ds.vocabulary import Vocabulary

UNSAVED_INTERVALS = 10  # that may be lost, where the recipe does not say how many steps
FIRST_RETRY = 16  # a failed save is tried again after this part of save_every, then twice as much, up to all of it
LAST_PAUSES_S = (1.0, 3.0)  # before a run's last save is tried again
NICENESS = 10  # of the thread, on Linux, where each has its own: a step on all cores comes first


@dataclass
class _Save:
    """A save under way: the state that is saved, the thread, and what went wrong, the same on every rank."""

    state: TrainingState
    thread: threading.Thread
    published: bool = False
    fault: str | None = None
    error: BaseException | None = None  # the ranks could not agree: the run cannot go on


class CheckpointWriter:
    """Writes the checkpoints of a run. Every method but `add_validation` and `close` is a collective.

    Args:
        ds_engine: holds weights and moments.
        vocabulary: written beside them.
        recipe: how often saves are due, how many may be lost, what is kept.
        run: the run directory.
        state: that of the checkpoint that the run goes on from, or of its start.
    """

    def __init__(
        self,
        ds_engine: deepspeed.DeepSpeedEngine,
        vocabulary: Vocabulary,
        recipe: Recipe,
        run: Path,
        state: TrainingState,
    ) -> None:
        self._ds_engine, self._vocabulary, self._recipe, self._run = ds_engine, vocabulary, recipe, run
        self._rank = distributed.get_rank()
        timeout = collective_timeout(recipe.training.limits)
        # one for the training's own thread, one for those that write
        self._ranks, self._writers = (distributed.new_group(backend="gloo", timeout=timeout) for _ in range(2))
        self._share = Share(ds_engine)
        self._save: _Save | None = None
        self._state_lock = threading.Lock()  # of a checkpoint's state.json
        self.go_on_from(state)
        self._events: list[dict[str, object]] = []  # that a full disk has not taken yet
        if self._rank == 0:
            end_if_taken_over(run)
            remove_leftovers(run)

    def go_on_from(self, state: TrainingState) -> None:
        """This state, of the newest checkpoint or of the start, is what is saved so far; no save is under way."""
        self._saved_step, self._saved_updates = state.step, state.updates
        self._failures, self._retry_at = 0, 0

    def save(self, state: TrainingState) -> None:
        """Copy the state at this step, when the save before it has ended, and begin to write it.

        Raises:
            InputError: as many steps are not saved as the recipe allows, and saving fails once more.
        """
        self.wait(state.step)
        self._begin(state)
        if self._failures and self._unsaved_steps(state.step) >= self._most_unsaved_steps:
            self.finish(state)

    def should_try_again(self, step: int) -> bool:
        """Whether a failed save should be followed by one at this step; it takes note of one that has ended.

        A few bytes among the ranks while a save is under way, else nothing.
        """
        if self._save is not None and self._has_ended_everywhere(self._save):
            self.wait(step)
        if self._save is not None or not self._failures:
            return False
        return step >= self._retry_at or self._unsaved_steps(step) >= self._most_unsaved_steps

    def finish(self, state: TrainingState) -> None:
        """Have the state saved, if it is not: the run ends here. A save that fails is tried again a few times.

        Raises:
            InputError: it could not be saved; what is lost, and what the run can go on from.
        """
        self.wait(state.step)
        for pause in (0.0, *LAST_PAUSES_S):
            if not self._failures and self._saved_updates == state.updates:
                return
            time.sleep(pause)
            self._begin(state)
            fault = self.wait(state.step)
        if fault:
            path = self._run / "checkpoints" / checkpoint_name(state.step)
            raise InputError(
                f"The checkpoint {path} could not be written: {fault}. {self._unsaved_steps(state.step)} steps are "
                f"lost; {self._newest()}. Make room, or mend what failed; the same command then goes on from there."
            )

    def add_validation(self, state: TrainingState) -> None:
        """Put what was measured at a step into its checkpoint, published or not yet; rank 0 only.

        Where there is no such checkpoint, as it could not be written, only the log has it.
        """
        with self._state_lock:
            if self._save is not None and not self._save.published:
                self._save.state.validation, self._save.state.best = state.validation, state.best
                return
            checkpoint = self._run / "checkpoints" / checkpoint_name(state.step)
            if not checkpoint.is_dir():
                return
            try:
                end_if_taken_over(self._run)
                measured = replace(read_state(checkpoint), validation=state.validation, best=state.best)
                write_json(checkpoint / STATE, asdict(measured))
            except OSError as error:
                print(f"{checkpoint}: its validation stands in metrics.jsonl only: {error}.", file=sys.stderr)

    def wait(self, step: int) -> str | None:
        """Until no save is under way; what went wrong with the last one.

        Args:
            step: at which the run is; a failed save is tried again some steps later.
        """
        save = self._save
        if save is None:
            return None
        save.thread.join()
        self._save = None
        if save.error is not None:
            raise save.error
        if save.fault is None:
            self._failures, self._saved_step, self._saved_updates = 0, save.state.step, save.state.updates
        else:
            self._failures += 1
            interval = self._recipe.training.save_every
            self._retry_at = step + min(interval, max(1, interval // FIRST_RETRY) << (self._failures - 1))
        if self._rank == 0:
            self._tell(save)
        return save.fault

    def close(self) -> None:
        """Let a save under way end; what became of it is not looked at any more."""
        if self._save is not None:
            self._save.thread.join()

    @property
    def _most_unsaved_steps(self) -> int:
        training = self._recipe.training
        return training.max_unsaved_steps or UNSAVED_INTERVALS * training.save_every

    def _unsaved_steps(self, step: int) -> int:
        return step - self._saved_step

    def _newest(self) -> str:
        """Of the whole checkpoints."""
        existing = checkpoint_directories(self._run)
        return f"the newest whole checkpoint is {existing[-1]}" if existing else "there is no earlier checkpoint"

    def _has_ended_everywhere(self, save: _Save) -> bool:
        flag = torch.tensor(int(not save.thread.is_alive()))
        distributed.all_reduce(flag, distributed.ReduceOp.MIN, group=self._ranks)
        return bool(flag)

    def _tell(self, save: _Save) -> None:
        step = save.state.step
        if save.fault is None:
            message = f"step {step}: saved"
        else:
            message = f"step {step}: the checkpoint could not be written: {save.fault}. It is tried again."
            self._events.append({"step": step, "fault": save.fault, "failures": self._failures})
        print(f"{self._recipe.name}: {message}", file=sys.stderr, flush=True)
        with suppress(OSError):  # that disk may be full
            while self._events:
                record_event(self._run, "save failed", **self._events[0])
                del self._events[0]

    def _begin(self, state: TrainingState) -> None:
        self._share.copy()
        copied = deepcopy(state)
        copied.loss_scaler, copied.files = loss_scaler_state(self._ds_engine), {}
        thread = threading.Thread(target=self._write, name=f"checkpoint of step {state.step}")
        self._save = _Save(copied, thread)
        thread.start()

    # --- what the thread does ---

    def _write(self) -> None:
        save = self._save
        assert save is not None
        try:
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)
            self._share.wait()
            save.fault = self._write_and_publish(save)
        except BaseException as error:
            save.error = error

    def _write_and_publish(self, save: _Save) -> str | None:
        """Write the parts of all ranks; what went wrong on the first rank that met a fault, the same on every rank."""
        path = self._run / "checkpoints" / checkpoint_name(save.state.step)
        temporary = temporary_of_attempt(path)
        files, fault = {}, None
        try:
            if self._rank == 0:
                shutil.rmtree(temporary, ignore_errors=True)
                temporary.mkdir(parents=True)
        except OSError as error:
            fault = _text_of(error)
        if fault := first_fault(fault, self._writers):
            return fault
        try:
            files = write_share(self._share, temporary)
        except Exception as error:  # whatever it is, the other ranks must learn of it
            fault = _text_of(error)
        of_ranks = of_all_ranks(files, self._writers)
        save.state.files = {name: file for written in of_ranks for name, file in written.items()}
        fault = first_fault(fault, self._writers)
        if self._rank == 0:
            fault = fault or self._try_to_publish(temporary, path, save)
            if fault:
                shutil.rmtree(temporary, ignore_errors=True)
            else:
                end_if_taken_over(self._run)
                keep_checkpoints(self._run, self._recipe.training, path)
        return first_fault(fault, self._writers)

    def _try_to_publish(self, temporary: Path, path: Path, save: _Save) -> str | None:
        origin = provenance("deltalm train", recipe=self._recipe.name, run=str(self._run), step=save.state.step)
        try:
            with self._state_lock:
                publish(self._ds_engine.module, self._vocabulary, temporary, path, save.state, origin)
                save.published = True
        except Exception as error:
            return _text_of(error)
        return None


def _text_of(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).removesuffix('.')}"
