"""One rank of a run: from the newest whole checkpoint, or from the start, to the last step or a stop."""

import sys
from collections.abc import Callable
from contextlib import closing, nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import distributed

from deltalm_ds.data.collation import Batch
from deltalm_ds.data.padding import Shape, on_ladder, rounded_up
from deltalm_ds.data.prefetch import prefetch
from deltalm_ds.data.stream import StepBatches
from deltalm_ds.errors import STOPPED_EXIT_CODE, CheckError
from deltalm_ds.kernels.precision import sum_products_in_float32
from deltalm_ds.progress import progress
from deltalm_ds.recipe.loading import load_recipe
from deltalm_ds.recipe.schema import Recipe
from deltalm_ds.runs.checkpoints import TrainingState, read_state
from deltalm_ds.runs.events import record_event
from deltalm_ds.runs.metrics import MetricsLog, read_metrics
from deltalm_ds.training.checkpoint import checkpoint_to_go_on_from, loss_scaler_state, restore
from deltalm_ds.training.checkpoint_writer import CheckpointWriter
from deltalm_ds.training.collectives import StopRequested, StopSignal
from deltalm_ds.training.deepspeed_engine import initialize
from deltalm_ds.training.divergence import Guard
from deltalm_ds.training.graphs import GraphedForward, reason_against_graphs
from deltalm_ds.training.initial_model import starting_model
from deltalm_ds.training.inputs import Inputs, open_inputs
from deltalm_ds.training.linear_choice import choose_for_all_ranks
from deltalm_ds.training.monitors import open_monitors
from deltalm_ds.training.out_of_memory import out_of_memory_told
from deltalm_ds.training.patience import count_validation, reason_to_end
from deltalm_ds.training.prepare import check_prepared
from deltalm_ds.training.profiling import Profiler
from deltalm_ds.training.r_drop import RDropForward
from deltalm_ds.training.records import Rates, Speed, loss_record
from deltalm_ds.training.roll_back import RollBack, roll_back
from deltalm_ds.training.sections import Sections
from deltalm_ds.training.startup import Startup
from deltalm_ds.training.step import LossSums, train_step
from deltalm_ds.training.validation import validate
from deltalm_ds.training.weight_average import update_average


class Trainer:
    """One rank of a run."""

    def __init__(self, run: Path, sections: Sections | None = None, startup: Startup | None = None) -> None:
        self.run, self.sections, self.startup = run, sections or Sections(), startup or Startup()
        self.rank, self.world_size = distributed.get_rank(), distributed.get_world_size()
        self.recipe: Recipe = load_recipe(run / "recipe.yaml")
        torch.set_float32_matmul_precision(self.recipe.training.matmul_precision)
        sum_products_in_float32()
        self.stop = StopSignal()
        checkpoint = checkpoint_to_go_on_from(run)
        self.inputs: Inputs = open_inputs(self.recipe, checkpoint)
        check_prepared(self.inputs, run)
        self.startup.ended("inputs")
        with out_of_memory_told(self.recipe, self.inputs.model_config, self.world_size):
            self.state, self.ds_engine = self._go_on(checkpoint) if checkpoint else self._begin()
        self.startup.ended("restoring" if checkpoint else "DeepSpeed")
        self.to_shape = self._record_micro_batches()
        self.state.inputs = self.inputs.identity
        choose_for_all_ranks(self.ds_engine.module, torch.device(self.ds_engine.device), run)
        self.saves = CheckpointWriter(self.ds_engine, self.inputs.vocabulary, self.recipe, run, self.state)
        self.profiler = Profiler(run, self.recipe.training.profile, self.rank, self.sections)
        dtype = next(self.ds_engine.module.parameters()).dtype
        self.speed = Speed(self.inputs.model_config, dtype, torch.device(self.ds_engine.device), self.sections)
        self._begin_counting()

    def _begin(self) -> tuple[TrainingState, Any]:
        torch.manual_seed(self.recipe.seed)
        model = starting_model(self.inputs.start, self.inputs.model_config)
        self.startup.ended("model")
        return TrainingState(), initialize(model, self.recipe)

    def _go_on(self, checkpoint: Path) -> tuple[TrainingState, Any]:
        torch.manual_seed(self.recipe.seed)
        state = read_state(checkpoint)
        model = starting_model(checkpoint, self.inputs.model_config)
        self.startup.ended("model")
        ds_engine = initialize(model, self.recipe, state.updates)
        self.startup.ended("DeepSpeed")
        restore(ds_engine, checkpoint, state)
        self._say(f"going on from step {state.step} ({checkpoint})")
        return state, ds_engine

    def _begin_counting(self) -> None:
        """What is counted from a checkpoint, or from the start, on."""
        self.sums = LossSums(len(self.inputs.stream.components), self.ds_engine.device)
        self.log = self._open_log() if self.rank == 0 else None
        self.guard = Guard(self.ds_engine, self.inputs, self.recipe, self.run, self.state.losses)
        self.rates, self.note = Rates(), ""
        self.skipped_in_a_row = 0

    def _record_micro_batches(self) -> Callable[[Shape], Shape]:
        """Train by CUDA graphs where that can be done; the shapes that micro-batches are padded to."""
        reason = reason_against_graphs(self.recipe, self.inputs.model_config, self.ds_engine.device)
        if reason is None:
            self.ds_engine.module.forward = GraphedForward(self.ds_engine.module)
            return on_ladder
        if self.recipe.training.r_drop:
            self.ds_engine.module.forward = RDropForward(self.ds_engine.module, self.recipe.training.r_drop)
        if self.ds_engine.device.type == "cuda":
            self._say(f"micro-batches are not recorded as CUDA graphs: {reason}")
        return rounded_up

    def _open_log(self) -> MetricsLog:
        step = self.state.step
        return MetricsLog(self.run, step, open_monitors(self.recipe, self.run, step))

    def train(self) -> int:
        """Run to the last step or to a stop; returns the exit code.

        Raises:
            CheckError: updates are skipped without end.
            InputError: a checkpoint could not be written, or memory ran out.
        """
        while True:
            try:
                return self._train()
            except RollBack as error:
                self._roll_back(error.steps)

    def _roll_back(self, steps: set[int]) -> None:
        """Go on from the newest checkpoint without these steps."""
        at = self.state.step
        with self.sections.section("checkpoint"):
            self.state = roll_back(self.ds_engine, self.run, steps)
            self.saves.go_on_from(self.state)
        if sum(step >= self.state.step for step in self.state.left_out) > self.recipe.training.max_skipped_updates:
            raise self._does_not_train("the steps behind the newest checkpoint had to be left out")
        self._say(f"step {at}: rolled back to step {self.state.step}, to leave out {sorted(steps)}")
        self._begin_counting()

    def _train(self) -> int:
        training, state = self.recipe.training, self.state
        steps = prefetch(self.inputs.stream, state.step, training.max_steps, self.rank, self.world_size, self._prepare)
        log = closing(self.log) if self.log else nullcontext()
        saves = closing(self.saves)
        shown = progress("training", training.max_steps, "steps", start=state.step) if self.rank == 0 else nullcontext()
        with log, saves, closing(steps), shown as advance:
            try:
                self._validate_if_missed()
                self.sections.begin_step(state.step)
                for batches in steps:
                    if self._ends_here():
                        break
                    self.sections.switch("other")
                    self.profiler.before(state.step)
                    self._update(batches)
                    self.profiler.after(state.step - 1)
                    self.startup.first_step_ended(self.run, state.step)
                    saving = self._is_due() or self.saves.should_try_again(state.step)
                    # a record at every checkpoint: a resumed run then logs the same sums as one never interrupted
                    if saving or state.step % training.log_every == 0:
                        self._log_training()
                    if advance:
                        advance(1, self.note)
                    if saving:
                        self._save_and_validate()
                    if state.step < training.max_steps:
                        self._stop_if_asked()
                    self.sections.begin_step(state.step)
                with self.sections.section("checkpoint"):
                    self.saves.finish(state)
            except StopRequested:
                return self._end_early()
        return 0

    def _ends_here(self) -> bool:
        """Whether the run ends before its last step, for what its validations measured; the same on every rank."""
        reason = reason_to_end(self.state, self.recipe.training)
        if reason is not None:
            self._say(f"step {self.state.step}: ends before its last step: {reason}")
            if self.rank == 0:
                with suppress(OSError):  # a full disk; it was said
                    record_event(self.run, "ended early", step=self.state.step, reason=reason)
        return reason is not None

    def _prepare(self, batch: Batch) -> Batch:
        """A micro-batch as the step takes it; called by the thread that makes them."""
        return batch.padded(self.to_shape, pinned=self.ds_engine.device.type == "cuda")

    def _is_due(self) -> bool:
        """Whether there is a checkpoint and a validation at this step."""
        training, step = self.recipe.training, self.state.step
        return step == training.max_steps or step % training.save_every == 0

    def _update(self, batches: StepBatches) -> None:
        """Make the update of a step; without sequences there is none to make."""
        training, state = self.recipe.training, self.state
        if batches.num_target_tokens and state.step not in state.left_out:
            compute = partial(
                train_step,
                self.ds_engine,
                batches.micro_batches,
                batches.num_target_tokens,
                self.recipe.schedule.learning_rate(state.updates, training.max_steps),
                training.label_smoothing,
                (self.recipe.seed, state.step),
                self._stop_if_asked,
                self.sections,
            )
            config = self.inputs.model_config
            with out_of_memory_told(self.recipe, config, self.world_size, batches.micro_batches):
                applied = self.guard.update(compute, state.step, batches.num_target_tokens, self.sums)
            state.updates += applied
            if applied and training.average:
                update_average(self.ds_engine, training.average, state.updates)
            self.skipped_in_a_row = 0 if applied else self.skipped_in_a_row + 1
        state.step, state.validation = state.step + 1, {}
        self.rates.count(batches)
        if self.skipped_in_a_row >= training.max_skipped_updates:
            raise self._does_not_train(f"{self.skipped_in_a_row} updates in a row were skipped")

    def _stop_if_asked(self) -> None:
        """Ranks wait for each other here; what it takes is told apart from their work."""
        with self.sections.section("communication"):
            self.stop.check()

    def _finish_save(self) -> None:
        with self.sections.section("checkpoint"):
            self.saves.wait(self.state.step)

    def _does_not_train(self, what: str) -> CheckError:
        return CheckError(
            f"At step {self.state.step} {what}: their gradients are not finite, or their losses are spikes, so nothing "
            "is learned any more. Lower schedule.peak_lr, or look for damaged data (events.jsonl tells of each); "
            "checkpoints are as they were before."
        )

    def _log_training(self) -> None:
        """Write a record of the steps since the last one; a collective."""
        stream, step = self.inputs.stream, self.state.step
        record = loss_record(self.sums.read(), stream.components, stream.labels)
        probabilities = stream.probabilities(step - 1)
        record |= {
            "learning_rate": max(group["lr"] for group in self.ds_engine.optimizer.param_groups),
            "gradient_norm": float(self.ds_engine.get_global_grad_norm() or 0.0),
            "skipped_updates": step - self.state.updates,
            **stream.sampling_facts(step - 1),
            "probability": {label: round(float(p), 6) for label, p in zip(stream.labels, probabilities, strict=True)},
            **self.speed.read(self.rates),
        }
        if scaler := loss_scaler_state(self.ds_engine):
            record["loss_scale"] = scaler["cur_scale"]
        if self.log:
            self.log.write(step, "train", record)
        self.rates = Rates()
        self.guard.tell_spikes(self._finish_save)
        self.state.losses = self.guard.spikes.losses()
        self.note = f"loss {record['loss']:.3f} {record['tokens_per_second']:,.0f} tokens/s"

    def _save_and_validate(self) -> None:
        """Collectives. What is measured is not a condition of the checkpoint, which comes first."""
        skipped = self.skipped_in_a_row
        if skipped >= self.recipe.training.save_every or (skipped and not self.state.updates):
            raise self._does_not_train("no update was applied since the last checkpoint")
        with self.sections.section("checkpoint"):
            self.saves.save(self.state)
        self.rates = Rates()  # the copy is not training time
        if self._is_due():
            with self.sections.section("validation"):
                self._validate()

    def _validate(self, is_logged: bool = False) -> None:
        """Measure for the log and for the checkpoint of this step; a failure is told, and training goes on."""
        if self.inputs.validation is None:
            return
        found, fault = validate(self.ds_engine, self.inputs, self.recipe, self.stop, self.sections)
        state = self.state
        if fault is not None:
            self._say(f"step {state.step}: validation failed: {fault}")
            if self.rank == 0:
                with suppress(OSError):  # a full disk; it was said
                    record_event(self.run, "validation failed", step=state.step, fault=fault)
        else:
            state.validation = {name: value for name, value in found.items() if isinstance(value, float)}
            count_validation(state, self.recipe.training.keep_best.metric)
            if self.log:
                if not is_logged:
                    self.log.write(state.step, "validation", found | {"seconds": self.sections.take()})
                self.saves.add_validation(state)
            self._say(f"step {state.step}: " + ", ".join(f"{name} {v:.3f}" for name, v in state.validation.items()))
        self.rates = Rates()

    def _validate_if_missed(self) -> None:
        """A run that ended before the validation was in its checkpoint: measure again; the log may have it already."""
        step = self.state.step
        if step and self._is_due() and not self.state.validation:
            logged = [(record["step"], record["kind"]) for record in read_metrics(self.run)] if self.log else []
            self._validate(is_logged=(step, "validation") in logged)

    def _end_early(self) -> int:
        """Save where the run stands, unless that is saved already; the exit code of a stop."""
        if self.rates.steps:  # that were not logged yet
            self._log_training()
        with self.sections.section("checkpoint"):
            self.saves.finish(self.state)
        return STOPPED_EXIT_CODE

    def _say(self, message: str) -> None:
        if self.rank == 0:
            print(f"{self.recipe.name}: {message}", file=sys.stderr, flush=True)
