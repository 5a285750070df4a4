"""What the `deepspeed` launcher starts on every rank: `deepspeed --module deltalm_ds.training.train RUN`.

RUN is a run directory with the resolved recipe.yaml (`deltalm train` makes it). It holds everything a run leaves:
environment.json, metrics.jsonl, tensorboard/, checkpoints/. Started again, a run goes on from its last checkpoint.
"""

import math
import signal
import sys
import time
import warnings
from contextlib import closing, nullcontext
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from deepspeed.utils import safe_set_full_fp32_param
from torch import distributed

from deltalm_ds.checkpoints.directory import load_model
from deltalm_ds.checkpoints.provenance import provenance
from deltalm_ds.data.stream import StepBatches, evaluation_batches, prefetch
from deltalm_ds.environment import environment
from deltalm_ds.errors import STOPPED_EXIT_CODE, InputError
from deltalm_ds.files import write_json
from deltalm_ds.progress import progress
from deltalm_ds.recipe.loading import load_recipe
from deltalm_ds.recipe.schema import Recipe
from deltalm_ds.runs.checkpoints import TrainingState, checkpoint_directories, read_state
from deltalm_ds.runs.metrics import MetricsLog
from deltalm_ds.training.checkpoint import keep_checkpoints, loss_scaler_state, restore, save_checkpoint
from deltalm_ds.training.deepspeed_engine import initialize, start_distributed
from deltalm_ds.training.inputs import Inputs, fresh_or_initial_model, open_inputs
from deltalm_ds.training.step import LossSums, evaluate_loss, train_step
from deltalm_ds.training.validation import validation_scores

STOP_CHECK_STEPS = 10


class Trainer:
    """One rank of a run."""

    def __init__(self, run: Path) -> None:
        self.run = run
        self.recipe: Recipe = load_recipe(run / "recipe.yaml")
        self.rank, self.world_size = distributed.get_rank(), distributed.get_world_size()
        torch.set_float32_matmul_precision(self.recipe.training.matmul_precision)
        self.inputs: Inputs = open_inputs(self.recipe)
        self.state, self.ds_engine = self._start_or_resume()
        self.sums = LossSums(len(self.inputs.stream.components), self.ds_engine.device)
        self.log = MetricsLog(run, self.state.step) if self.rank == 0 else None
        self.rates, self.note = Rates(), ""
        self.stop_requested = False
        for number in (signal.SIGTERM, signal.SIGUSR1):
            signal.signal(number, self._request_stop)

    def _start_or_resume(self) -> tuple[TrainingState, Any]:
        checkpoints = checkpoint_directories(self.run)
        torch.manual_seed(self.recipe.seed)
        if not checkpoints:
            model = fresh_or_initial_model(self.recipe, self.inputs.model_config)
            initial = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
            ds_engine = initialize(model, self.recipe)
            _set_exact_masters(ds_engine, initial)
            return TrainingState(), ds_engine
        state = read_state(checkpoints[-1])
        model = load_model(checkpoints[-1], **self.inputs.model_config.model_dump())
        ds_engine = initialize(model, self.recipe, state.updates)
        restore(ds_engine, checkpoints[-1], state)
        self._say(f"going on from step {state.step} ({checkpoints[-1]})")
        return state, ds_engine

    def train(self) -> int:
        """Run to the last step or to a signal; returns the exit code."""
        training, state = self.recipe.training, self.state
        steps = prefetch(self.inputs.stream, state.step, training.max_steps, self.rank, self.world_size)
        log = closing(self.log) if self.log else nullcontext()
        with log, closing(steps), progress("training", training.max_steps, "steps", start=state.step) as advance:
            for batches in steps:
                self._update(batches)
                saving = state.step % training.save_every == 0 or state.step == training.max_steps
                stopping = (saving or state.step % STOP_CHECK_STEPS == 0) and self._anyone_stopped()
                # a record at every checkpoint: a resumed run then logs the same sums as one never interrupted
                if saving or stopping or state.step % training.log_every == 0:
                    self._log_training()
                if self.rank == 0:
                    advance(1, self.note)
                if saving or stopping:
                    self._validate_and_save(validate=saving)
                if stopping and state.step < training.max_steps:
                    return STOPPED_EXIT_CODE
        return 0

    def _update(self, batches: StepBatches) -> None:
        training, state = self.recipe.training, self.state
        applied = train_step(
            self.ds_engine,
            batches.micro_batches,
            batches.num_target_tokens,
            self.recipe.schedule.learning_rate(state.updates, training.max_steps),
            training.label_smoothing,
            (self.recipe.seed, state.step),
            self.sums,
        )
        state.step += 1
        state.updates += applied
        self.rates.count(batches)

    def _log_training(self) -> None:
        """Write a record of the steps since the last one; a collective."""
        stream, step = self.inputs.stream, self.state.step
        sums = self.sums.read()
        record = loss_record(sums, stream.labels)
        probabilities = stream.probabilities(step - 1)
        record |= {
            "learning_rate": self.ds_engine.optimizer.param_groups[0]["lr"],
            "gradient_norm": finite_or_none(float(self.ds_engine.get_global_grad_norm())),
            "skipped_updates": step - self.state.updates,
            "temperature": float(stream.temperature.at(step - 1)),
            "probability": {label: round(float(p), 6) for label, p in zip(stream.labels, probabilities, strict=True)},
            **self.rates.read(),
        }
        if self.log:
            self.log.write(step, "train", record)
        self.rates = Rates()
        self.note = f"loss {record['loss']:.3f} {record['tokens_per_second']:,.0f} tokens/s"

    def _validate_and_save(self, validate: bool = True) -> None:
        """Measure, save, and remove what is no longer kept. Collectives."""
        self.state.validation = self._validate() if validate else {}
        self.state.loss_scaler = loss_scaler_state(self.ds_engine)
        save_checkpoint(self.ds_engine, self.inputs.vocabulary, self.run, self.state, self._provenance())
        if self.rank == 0:
            keep_checkpoints(self.run, self.recipe.training.keep_last)
        self._say(f"step {self.state.step}: saved; {_summary(self.state.validation)}")
        self.rates = Rates()  # validation is not training time

    def _validate(self) -> dict[str, float]:
        validation, builder = self.recipe.validation, self.inputs.validation
        if validation is None or builder is None:
            return {}
        batches = evaluation_batches(builder, self.rank, self.world_size).micro_batches
        sums = LossSums(len(builder.components), self.ds_engine.device)
        evaluate_loss(self.ds_engine, batches, self.recipe.training.label_smoothing, sums)
        record = loss_record(sums.read(), [component.name for component in builder.components])
        if self.inputs.validation_tests:
            tests = self.inputs.validation_tests
            record |= validation_scores(self.ds_engine, self.inputs.vocabulary, tests, validation)
        if self.log:
            self.log.write(self.state.step, "validation", record)
        return {name: value for name, value in record.items() if isinstance(value, float)}

    def _request_stop(self, _number: int, _frame: FrameType | None) -> None:
        self.stop_requested = True

    def _anyone_stopped(self) -> bool:
        flag = torch.tensor(float(self.stop_requested), device=self.ds_engine.device)
        distributed.all_reduce(flag)
        return bool(flag)

    def _provenance(self) -> dict[str, Any]:
        return provenance("deltalm train", recipe=self.recipe.name, run=str(self.run), step=self.state.step)

    def _say(self, message: str) -> None:
        if self.rank == 0:
            print(f"{self.recipe.name}: {message}", file=sys.stderr, flush=True)


class Rates:
    """Tokens, steps and time since it was made."""

    def __init__(self) -> None:
        self.began, self.tokens, self.steps, self.dropped, self.truncated = time.monotonic(), 0, 0, 0, 0

    def count(self, batches: StepBatches) -> None:
        """Add a global batch."""
        self.steps += 1
        self.tokens += batches.num_source_tokens + batches.num_target_tokens
        self.dropped += batches.num_overlong + batches.num_too_short
        self.truncated += batches.num_truncated

    def read(self) -> dict[str, float]:
        """Rates (source and target tokens together) and counts."""
        seconds = max(time.monotonic() - self.began, 1e-9)
        return {
            "tokens_per_second": self.tokens / seconds,
            "tokens_per_step": self.tokens / self.steps,
            "seconds_per_step": seconds / self.steps,
            "dropped_sequences": self.dropped,
            "truncated_sequences": self.truncated,
        }


def finite_or_none(value: float) -> float | None:
    """JSON has no infinity, which is the gradient norm of a skipped update."""
    return value if math.isfinite(value) else None


def loss_record(sums: torch.Tensor, names: list[str]) -> dict[str, Any]:
    """Losses per target token in nats from sums [3, components]; components without tokens are left out."""
    loss, nll, tokens = sums.sum(dim=1).tolist()
    return {
        "loss": loss / max(tokens, 1.0),
        "nll": nll / max(tokens, 1.0),
        "nll_of": {
            name: component_nll / component_tokens
            for name, component_nll, component_tokens in zip(names, sums[1].tolist(), sums[2].tolist(), strict=True)
            if component_tokens
        },
    }


def _set_exact_masters(ds_engine: Any, weights: dict[str, torch.Tensor]) -> None:
    """16-bit engines round the weights they are given: set the float32 masters to the exact ones [FACTS §8]."""
    if ds_engine.bfloat16_enabled() or ds_engine.fp16_enabled():
        for name, parameter in ds_engine.module.named_parameters():
            safe_set_full_fp32_param(parameter, weights[name])


def _summary(validation: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.3f}" for name, value in validation.items()) or "not validated"


def main(arguments: list[str]) -> int:
    """Entry point of a rank."""
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")  # DeepSpeed's calls
    run = Path(next(argument for argument in arguments if not argument.startswith("--")))
    start_distributed()
    try:
        trainer = Trainer(run)
        if distributed.get_rank() == 0:
            write_json(run / "environment.json", environment())
        return trainer.train()
    except InputError as error:
        rank = distributed.get_rank()  # an error of one rank alone must not be lost
        print(f"deltalm: {error}" if rank == 0 else f"deltalm, rank {rank}: {error}", file=sys.stderr, flush=True)
        return error.exit_code
    finally:
        distributed.destroy_process_group()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
