"""Training under DeepSpeed: on any ranks, accumulation, stage and precision it is the plain loop; and it survives.

Most trainings run one after the other in one pair of rank processes; what is killed runs under the launcher.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import psutil
import pytest
import torch
from deepspeed.accelerator import get_accelerator
from deepspeed.runtime.config import DeepSpeedConfig
from jobs import Job

from deltalm_ds.checkpoints.directory import open_weights
from deltalm_ds.errors import DataError
from deltalm_ds.files import read_json
from deltalm_ds.model.deltalm import DeltaLM
from deltalm_ds.runs.checkpoints import best_checkpoint, checkpoint_directories, read_state
from deltalm_ds.runs.events import read_events
from deltalm_ds.runs.metrics import OF_THE_MOMENT, read_metrics
from deltalm_ds.training import checks
from deltalm_ds.training.deepspeed_config import CONFIG_DIRECTORY, deepspeed_config
from deltalm_ds.training.inputs import open_inputs

STAGES = (1, 2, 3)
DROPOUT = {"dropout": 0.2, "attention_dropout": 0.1, "activation_dropout": 0.1}


def records(run, kind="train"):
    """The records of a run without what depends on the machine."""
    return [
        {key: value for key, value in record.items() if key not in OF_THE_MOMENT}
        for record in read_metrics(run)
        if record["kind"] == kind
    ]


def largest_difference(run, expected, key="loss"):
    """Of all steps, relative."""
    found = [record[key] for record in records(run)]
    assert len(found) == len(expected)
    return max(abs(a - b) / abs(b) for a, b in zip(found, expected, strict=True))


def plain_training(recipe, num_steps):
    """AdamW, clipping and schedule written down; one process, the whole batch at once. Returns losses and norms."""
    inputs = open_inputs(recipe)
    torch.manual_seed(recipe.seed)
    model = DeltaLM(inputs.model_config).train()
    parameters = list(model.parameters())
    moments = [(torch.zeros_like(p), torch.zeros_like(p)) for p in parameters]
    (beta_1, beta_2), eps = recipe.optimizer.betas, recipe.optimizer.eps
    losses, norms = [], []
    for step in range(num_steps):
        batches = inputs.stream.micro_batches(step, rank=0, world_size=1)
        model.zero_grad()
        sums = [model(b.source, b.target_input, b.labels, 0.1).loss for b in batches.micro_batches]
        loss = sum(sums) / batches.num_target_tokens
        loss.backward()
        norm = torch.sqrt(sum(p.grad.double().square().sum() for p in parameters)).item()
        clip = min(1.0, recipe.training.clip_norm / (norm + 1e-6))
        peak, warmup = recipe.schedule.peak_lr, recipe.schedule.warmup_steps
        lr = peak * step / warmup if step < warmup else peak * (warmup / step) ** 0.5
        with torch.no_grad():
            for p, (m, v) in zip(parameters, moments, strict=True):
                m.lerp_(clip * p.grad, 1 - beta_1)
                v.lerp_((clip * p.grad) ** 2, 1 - beta_2)
                p.mul_(1 - lr * recipe.optimizer.weight_decay)
                p.sub_(lr * (m / (1 - beta_1 ** (step + 1))) / ((v / (1 - beta_2 ** (step + 1))).sqrt() + eps))
        losses.append(loss.item())
        norms.append(norm)
    return SimpleNamespace(losses=losses, norms=norms)


@pytest.fixture(scope="module")
def plain(make_recipe):
    return plain_training(make_recipe(), 20)


def fp16_config(directory, stage):
    """As in ds_configs, with a loss scale so small that no update is skipped and losses can be compared."""
    config = read_json(CONFIG_DIRECTORY / f"fp16_zero{stage}.json")
    config["fp16"] = {"enabled": True, "initial_scale_power": 8}
    path = directory / f"fp16_zero{stage}.json"
    path.write_text(json.dumps(config))
    return str(path)


@pytest.fixture(scope="module")
def runs(tmp_path_factory, make_run, run_on_ranks):
    """All trainings in processes of this module, by name: their directories and what became of them."""
    directory = tmp_path_factory.mktemp("runs")
    found = SimpleNamespace(directory=directory, outcome={})

    def prepare(name, resumes=None, fault=None, **changes):
        run = make_run(directory / name, **changes)
        return Job(run, resumes and directory / resumes, fault)

    def train(jobs, num_ranks):
        outcomes = run_on_ranks(directory, jobs, num_ranks)
        found.outcome |= {job.run.name: outcome for job, outcome in zip(jobs, outcomes, strict=True)}

    def of_precision(ranks, precision, stage, accumulation=1):
        return prepare(
            f"{ranks}_ranks_{precision}_zero{stage}_accumulation{accumulation}",
            deepspeed=fp16_config(directory, stage) if precision == "fp16" else f"{precision}_zero{stage}",
            batch={"min_micro_batches": accumulation},
        )

    train([of_precision(1, "fp32", stage, accumulation) for stage, accumulation in ((1, 4), (2, 1), (3, 4))], 1)
    jobs = [of_precision(2, "fp32", stage, accumulation) for stage in STAGES for accumulation in (1, 4)]
    jobs += [of_precision(2, precision, stage) for precision in ("bf16", "fp16") for stage in STAGES]
    jobs.append(prepare("grown", resumes="1_ranks_fp32_zero2_accumulation1", deepspeed="fp32_zero3"))
    for precision, stage in (("fp32", 3), ("bf16", 1), ("bf16", 2), ("bf16", 3), ("fp16", 2)):
        name = f"{precision}_zero{stage}"
        engine = fp16_config(directory, stage) if precision == "fp16" else name
        batch = {"min_micro_batches": 1}
        jobs.append(prepare(f"resumed_{name}", f"2_ranks_{name}_accumulation1", deepspeed=engine, batch=batch))
    jobs.append(prepare("full_disk", fault="full disk"))
    jobs.append(prepare("failed_validation", fault="validation"))
    with mock.patch.object(checks, "MOST_EMPTY_STEPS", 1.0):
        sparse = {"data": {"overlong": "drop", "max_target_tokens": 6}, "batch": {"tokens_per_step": 40}}
        jobs.append(prepare("sparse", **sparse))
    diverging = {"schedule": {"peak_lr": 1e20}, "training": {"max_skipped_updates": 7, "save_every": 2}}
    jobs.append(prepare("diverging", **diverging))
    for damage in ("truncated optimizer", "lost moment", "truncated state", "flipped bit", "newest flipped bit"):
        jobs.append(prepare(damage, "2_ranks_fp32_zero1_accumulation1", damage, batch={"min_micro_batches": 1}))
    jobs.append(prepare("uninterrupted", **UNINTERRUPTED))
    train(jobs, 2)
    return found


# twice as long as the others, so that there is time to kill it
UNINTERRUPTED = {"model": DROPOUT, "deepspeed": "fp32_zero2", "training": {"max_steps": 90, "save_every": 15}}


@pytest.mark.parametrize(
    "name",
    [f"1_ranks_fp32_zero{stage}_accumulation{n}" for stage, n in ((1, 4), (2, 1), (3, 4))]
    + [f"2_ranks_fp32_zero{stage}_accumulation{n}" for stage in STAGES for n in (1, 4)],
)
def test_float32_is_the_plain_loop(name, runs, plain):
    assert runs.outcome[name] == 0
    assert plain.losses[-1] < 0.9 * plain.losses[0]  # something is learned
    assert min(plain.norms) > 0.5  # and every update is clipped
    assert largest_difference(runs.directory / name, plain.losses) <= 1e-6
    assert largest_difference(runs.directory / name, plain.norms, "gradient_norm") <= 1e-5


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize(("precision", "tolerance"), [("bf16", 2e-3), ("fp16", 3e-4)])
def test_sixteen_bits_follow_float32(precision, stage, tolerance, runs, plain):
    name = f"2_ranks_{precision}_zero{stage}_accumulation1"
    assert runs.outcome[name] == 0
    assert records(runs.directory / name)[-1]["skipped_updates"] == 0
    assert 0 < largest_difference(runs.directory / name, plain.losses) <= tolerance


@pytest.mark.parametrize("name", ["fp32_zero3", "bf16_zero1", "bf16_zero2", "bf16_zero3", "fp16_zero2"])
def test_a_resumed_run_repeats_every_digit(name, runs):
    assert runs.outcome[f"resumed_{name}"] == 0
    whole, resumed = runs.directory / f"2_ranks_{name}_accumulation1", runs.directory / f"resumed_{name}"
    for kind, steps in (("train", range(1, 21)), ("validation", (10, 20))):
        assert records(resumed, kind) == records(whole, kind)
        assert [record["step"] for record in records(resumed, kind)] == list(steps)


def test_a_run_goes_on_with_more_ranks_and_another_stage(runs, plain):
    assert runs.outcome["grown"] == 0
    assert largest_difference(runs.directory / "grown", plain.losses) <= 1e-6


def test_a_full_disk_on_one_rank_leaves_the_earlier_checkpoints(runs):
    message = runs.outcome["full_disk"]
    assert message.startswith("InputError: The checkpoint ")
    assert "step_00000020 could not be written: OSError: [Errno 28] No space left on device" in message
    entries = (runs.directory / "full_disk" / "checkpoints").iterdir()
    assert [entry.name for entry in entries] == ["step_00000010"]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("truncated optimizer", "damaged"),
        ("lost moment", "has no tensor exp_avg.encoder.embedding.positions"),
        ("truncated state", "damaged"),
        ("flipped bit", "was altered since it was written"),
    ],
)
def test_a_damaged_checkpoint_is_named(damage, message, runs):
    outcome = runs.outcome[damage]
    assert outcome.startswith(f"{DataError.__name__}: The checkpoint ")
    assert "step_00000010" in outcome
    assert message in outcome


def test_a_damaged_checkpoint_is_passed_over_for_an_older_whole_one(runs):
    """What looks like a checkpoint beside it is none: a name with more behind, a file, a link."""
    assert runs.outcome["newest flipped bit"] == 0
    whole = runs.directory / "2_ranks_fp32_zero1_accumulation1"
    assert records(runs.directory / "newest flipped bit") == records(whole)


def test_a_failed_validation_is_told_and_training_goes_on(runs):
    assert runs.outcome["failed_validation"] == 0
    run = runs.directory / "failed_validation"
    assert [directory.name for directory in checkpoint_directories(run)] == ["step_00000010", "step_00000020"]
    assert records(run, "validation") == []
    events = [(event["kind"], event["step"], event["fault"]) for event in read_events(run)]
    assert events == [("validation failed", step, "[Errno 5] Input/output error: 'dev.arrow'") for step in (10, 20)]


def test_a_step_without_sequences_is_counted_and_makes_no_update(runs):
    assert runs.outcome["sparse"] == 0
    found = records(runs.directory / "sparse")
    empty = sum(record["steps_without_sequences"] for record in found)
    assert [record["step"] for record in found] == list(range(1, 21))
    assert 0 < empty < 20
    assert read_state(checkpoint_directories(runs.directory / "sparse")[-1]).updates == 20 - empty


def test_training_that_learns_nothing_ends_and_keeps_the_good_checkpoints(runs):
    outcome = runs.outcome["diverging"]
    assert outcome.startswith("CheckError: At step ")
    assert "updates in a row were skipped" in outcome or "no update was applied since the last checkpoint" in outcome
    run = runs.directory / "diverging"
    assert "NaN" not in (run / "metrics.jsonl").read_text()
    for directory in checkpoint_directories(run):
        assert all(torch.isfinite(tensor).all() for tensor in open_weights(directory).values())


def test_the_best_checkpoint_has_the_lowest_validation_loss(runs):
    run = runs.directory / "uninterrupted"
    losses = {directory: read_state(directory).validation["loss"] for directory in checkpoint_directories(run)}
    assert len(losses) == 5  # of six, by keep_last; the last is the best here
    assert best_checkpoint(run) == min(losses, key=losses.__getitem__)
    assert [record["loss"] for record in records(run, "validation")][1:] == list(losses.values())


# --- under the launcher ---


def launch(run, log):
    code = "import sys, pathlib; from deltalm_ds.launch.local import train_on_this_machine as train; "
    code += "sys.exit(train(pathlib.Path(sys.argv[1]), 2))"
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    return subprocess.Popen([sys.executable, "-c", code, str(run)], env=environment, stdout=log, stderr=log)


def wait_for(condition, process, log):
    """Until the condition holds while the process lives; a minute's silence is a failure."""
    for _ in range(6000):
        if condition():
            return
        assert process.poll() is None, Path(log.name).read_text()[-3000:]
        time.sleep(0.01)
    raise AssertionError(Path(log.name).read_text()[-3000:])


def rank_processes(launcher):
    return [
        process
        for process in psutil.Process(launcher.pid).children(recursive=True)
        if "deltalm_ds.training.train" in process.cmdline() and "deepspeed.launcher" not in " ".join(process.cmdline())
    ]


def test_killed_resumed_stopped_and_resumed_it_repeats_every_digit(runs, make_run, tmp_path):
    run = make_run(tmp_path / "run", **UNINTERRUPTED)
    with open(tmp_path / "log", "w") as log:
        launcher = launch(run, log)
        try:
            wait_for(lambda: checkpoint_directories(run), launcher, log)
            ranks = rank_processes(launcher)
            for rank in ranks:
                rank.send_signal(signal.SIGKILL)
            assert len(ranks) == 2
            assert launcher.wait(timeout=60) not in (0, 75)
            killed_at = records(run)[-1]["step"]
            assert 15 <= killed_at < 90

            launcher = launch(run, log)
            wait_for(lambda: len(records(run)) > killed_at, launcher, log)
            ranks = rank_processes(launcher)
            launcher.kill()  # `deltalm train` alone: its ranks notice, save and end
            psutil.wait_procs(ranks, timeout=60)
            assert not any(rank.is_running() for rank in ranks)
            left_at = records(run)[-1]["step"]
            assert checkpoint_directories(run)[-1].name == f"step_{left_at:08d}"

            launcher = launch(run, log)
            wait_for(lambda: len(records(run)) > left_at, launcher, log)
            launcher.send_signal(signal.SIGTERM)
            assert launcher.wait(timeout=60) == 75
            stopped_at = records(run)[-1]["step"]
            assert killed_at < left_at < stopped_at < 90
            assert checkpoint_directories(run)[-1].name == f"step_{stopped_at:08d}"

            launcher = launch(run, log)
            assert launcher.wait(timeout=120) == 0
        finally:
            launcher.kill()
    uninterrupted = runs.directory / "uninterrupted"
    assert runs.outcome["uninterrupted"] == 0
    assert records(run) == records(uninterrupted)
    assert records(run, "validation") == records(uninterrupted, "validation")


# --- the files of ds_configs ---


@pytest.mark.parametrize("file", sorted(CONFIG_DIRECTORY.glob("*.json")), ids=lambda file: file.stem)
def test_deepspeed_accepts_every_engine_file(file, make_recipe, monkeypatch):
    monkeypatch.setattr(get_accelerator(), "is_fp16_supported", lambda: True)
    monkeypatch.setenv("WORLD_SIZE", "1")
    DeepSpeedConfig(deepspeed_config(make_recipe(deepspeed=file.stem)))
