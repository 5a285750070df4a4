"""Steps that are not finite, loss spikes and too little memory, made in a step of real trainings on two ranks."""

import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from faults_inside import is_poison
from jobs import Job
from torch import distributed

from deltalm_ds.data.micro_batches import deal_micro_batches
from deltalm_ds.files import read_json
from deltalm_ds.recipe.training_section import SpikesSection
from deltalm_ds.runs.checkpoints import checkpoint_directories, read_state
from deltalm_ds.runs.events import read_events
from deltalm_ds.runs.metrics import OF_THE_MOMENT, read_metrics
from deltalm_ds.training import spikes as spikes_module
from deltalm_ds.training.deepspeed_config import CONFIG_DIRECTORY
from deltalm_ds.training.divergence import Guard
from deltalm_ds.training.forensics import MOST_BUNDLES
from deltalm_ds.training.inputs import open_inputs
from deltalm_ds.training.roll_back import RollBack
from deltalm_ds.training.spikes import Spike, SpikeDetector

ENGINES = ("fp32_zero1", "fp32_zero2", "fp32_zero3", "bf16_zero1", "bf16_zero2", "fp16_zero2")
SLOW = ("fp32_zero2", "bf16_zero1")
GLITCHED = ("fp32_zero1", "bf16_zero2")
ROLLED_BACK = ("fp32_zero3", "bf16_zero2")
POISONED = ("fp32_zero3", "fp16_at_1")
BAD_STEP, STEPS, WINDOW = 13, 16, 8
TRAINING = {"max_steps": STEPS, "save_every": 10, "log_every": 1}


def records(run, without=()):
    return [
        {key: value for key, value in record.items() if key not in OF_THE_MOMENT}
        for record in read_metrics(run)
        if record["step"] not in without
    ]


def events(run, kind):
    return [event for event in read_events(run) if event["kind"] == kind]


@pytest.fixture(scope="module")
def runs(with_slow, tmp_path_factory, make_run, run_on_ranks):
    """All trainings: their directory, and what became of each by name."""
    directory = tmp_path_factory.mktemp("runs")
    jobs = {}
    for scale in (0, 8):
        config = read_json(CONFIG_DIRECTORY / "fp16_zero2.json")
        config["fp16"] = {"enabled": True, "initial_scale_power": scale}
        (directory / f"fp16_{scale}.json").write_text(json.dumps(config))

    def add(name, engine, fault=None, policy="log", resumes=None):
        section = {"policy": policy, "window": WINDOW, "sigmas": 30.0}
        engine = {"fp16_zero2": str(directory / "fp16_8.json"), "fp16_at_1": str(directory / "fp16_0.json")}.get(
            engine, engine
        )
        training = TRAINING | {"spikes": section}
        run = make_run(directory / name, deepspeed=engine, training=training, validation=None)
        jobs[name] = Job(run, resumes and directory / resumes, fault)

    for engine in (engine for engine in ENGINES if with_slow or engine not in SLOW):
        add(f"skip {engine}", engine, f"spike {BAD_STEP}", "skip")
        add(f"without {engine}", engine, f"leave out {BAD_STEP}")
    for engine in GLITCHED:
        add(f"plain {engine}", engine)
        add(f"glitch {engine}", engine, "glitch 6")
    for engine in ROLLED_BACK:
        add(f"back {engine}", engine, f"spike {BAD_STEP}", "roll_back")
    add("log", "fp32_zero1", f"spike {BAD_STEP}")
    for engine in POISONED:
        add(f"poison {engine}", engine, "poison")
    add("resumed skip", "fp32_zero1", f"spike {BAD_STEP - 10}", "skip", "skip fp32_zero1")
    add("resumed back", "fp32_zero3", None, "roll_back", "back fp32_zero3")
    outcome = dict(zip(jobs, run_on_ranks(directory, list(jobs.values()), 2), strict=True))
    add("memory", "fp32_zero1", "memory 2")
    (outcome["memory"],) = run_on_ranks(directory, [jobs["memory"]], 1)
    return SimpleNamespace(directory=directory, outcome=outcome)


# --- spikes ---


@pytest.mark.parametrize(
    "engine", [pytest.param(engine, marks=[pytest.mark.slow] * (engine in SLOW)) for engine in ENGINES]
)
def test_a_spike_that_is_skipped_changes_nothing(engine, runs):
    """To the last digit what a run computes that never saw this step."""
    name = f"skip {engine}"
    assert runs.outcome[name] == runs.outcome[f"without {engine}"] == 0
    found, expected = (records(runs.directory / kind, {BAD_STEP + 1}) for kind in (name, f"without {engine}"))
    assert len(found) == STEPS - 1 and found == expected
    (event,) = events(runs.directory / name, "loss spike")
    assert (event["step"], event["policy"]) == (BAD_STEP, "skip")
    assert events(runs.directory / name, "not finite") == []


def test_a_spike_that_is_logged_changes_nothing_at_all(runs):
    assert [event["step"] for event in events(runs.directory / "log", "loss spike")] == [BAD_STEP]
    skipped, logged = (records(runs.directory / name) for name in ("skip fp32_zero1", "log"))
    assert skipped[:BAD_STEP] == logged[:BAD_STEP]
    assert skipped[-1]["skipped_updates"] == 1 and logged[-1]["skipped_updates"] == 0


def test_a_resumed_run_judges_by_the_same_losses(runs):
    assert runs.outcome["resumed skip"] == 0
    assert records(runs.directory / "resumed skip") == records(runs.directory / "skip fp32_zero1")
    found, expected = (events(runs.directory / name, "loss spike")[0] for name in ("resumed skip", "skip fp32_zero1"))
    assert {**found, "time": 0} == {**expected, "time": 0}
    kept = [
        read_state(checkpoint_directories(runs.directory / name)[-1]).losses for name in runs.outcome if "skip" in name
    ]
    assert kept[-1] == kept[0] and len(kept[0]) == WINDOW
    plain = [record["loss"] for record in records(runs.directory / "plain fp32_zero1")][10 - WINDOW : 10]
    first = read_state(checkpoint_directories(runs.directory / "plain fp32_zero1")[0]).losses
    assert first == pytest.approx(plain, rel=1e-6)


@pytest.mark.parametrize("engine", ROLLED_BACK)
def test_a_run_that_was_rolled_back_is_one_without_the_step(engine, runs):
    name = f"back {engine}"
    assert runs.outcome[name] == 0
    assert records(runs.directory / name) == records(runs.directory / f"without {engine}")
    for checkpoint in checkpoint_directories(runs.directory / name):
        assert read_state(checkpoint).left_out == [BAD_STEP]


def test_a_start_after_a_roll_back_leaves_the_step_out_too(runs):
    assert runs.outcome["resumed back"] == 0
    assert records(runs.directory / "resumed back") == records(runs.directory / "back fp32_zero3")


def judged(losses, **section):
    """By the definition, in numpy: which losses are spikes."""
    section = SpikesSection(**section)
    found = []
    for number, loss in enumerate(losses):
        window = np.sort([one for one in losses[max(0, number - section.window) : number] if math.isfinite(one)])
        if number >= section.window // 2 and len(window) and math.isfinite(loss):
            median = window[(len(window) - 1) // 2]
            deviations = np.sort(np.abs(window - median))
            sigma = max(1.4826 * deviations[(len(deviations) - 1) // 2], 1e-3 * median)
            if (loss - median) / sigma > section.sigmas:
                found.append(number)
    return found


def test_spikes_are_those_of_the_definition_across_a_resume(monkeypatch):
    monkeypatch.setattr(spikes_module.distributed, "all_reduce", lambda tensor: None)
    generator = np.random.default_rng(3)
    losses = 5 - np.arange(200) / 100 + 0.1 * generator.standard_normal(200)
    losses[[30, 90, 91]] += 2
    losses[100] = math.nan
    losses[150:] += 3  # for good: the new measure after a while
    section = SpikesSection(window=16)
    detector, found = SpikeDetector(section, torch.device("cpu")), []
    for number, loss in enumerate(losses):
        if number % 37 == 36:  # a checkpoint, and another process
            found += detector.read()
            detector = SpikeDetector(section, torch.device("cpu"), json.loads(json.dumps(detector.losses())))
        detector.judge(number, torch.tensor(loss * 50), 50)
    found += detector.read()
    assert [spike.step for spike in found] == judged(losses.tolist(), window=16)
    assert {30, 90, 91, 150} <= {spike.step for spike in found} and found[-1].step < 165


# --- not finite ---


@pytest.mark.parametrize("engine", GLITCHED)
def test_what_a_device_miscomputes_is_computed_again(engine, runs):
    """Every digit is that of a run without it, and the rank is suspected."""
    assert runs.outcome[f"glitch {engine}"] == 0
    found, expected = (records(runs.directory / f"{name} {engine}") for name in ("glitch", "plain"))
    assert found == expected
    (event,) = events(runs.directory / f"glitch {engine}", "hardware")
    assert event["step"] == 6
    assert "suspected: rank 1 on " in event["fault"] and "rank 0" not in event["fault"]
    assert not (runs.directory / f"glitch {engine}" / "forensics").exists()


@pytest.fixture(scope="module")
def poisoned(make_recipe):
    """By step and rank the rows that begin with the poison, looked up in the data."""
    inputs = open_inputs(make_recipe())
    stream, found = inputs.stream, {}
    for step in range(STEPS):
        batch = stream.global_batch(step)
        for rank, dealt in enumerate(deal_micro_batches(batch.source_lengths, batch.target_lengths, 2, 400)):
            built = stream.micro_batches(step, rank, 2).micro_batches
            for micro_batch, indices in zip(built, dealt, strict=True):
                begins = micro_batch.source.tokens[micro_batch.source.cu_seqlens[:-1].long() + 1]
                for number in is_poison(begins).nonzero().flatten().tolist():
                    label = stream.labels[batch.component_index[indices[number]]]
                    found.setdefault(step, {}).setdefault(rank, []).append(f"{label} row {batch.rows[indices[number]]}")
    return found


@pytest.mark.parametrize("engine", POISONED)
def test_poisoned_rows_are_named_and_kept_and_their_steps_skipped(engine, runs, poisoned):
    run = runs.directory / f"poison {engine}"
    assert runs.outcome[run.name] == 0
    assert MOST_BUNDLES < len(poisoned) < STEPS
    assert read_state(checkpoint_directories(run)[-1]).updates == STEPS - len(poisoned)
    told = {event["step"]: event for event in events(run, "not finite")}
    assert told and told.keys() <= poisoned.keys() and events(run, "hardware") == []
    for step, event in told.items():
        rank = min(poisoned[step])
        words = f"the output of encoder.layers.1 (EncoderLayer) is not finite on rank {rank} on "
        assert event["fault"].startswith(words)
        assert sorted(event["fault"].partition("sequences: ")[2].split(", ")) == sorted(poisoned[step][rank])
    bundles = sorted((run / "forensics").iterdir())
    assert [str(bundle) for bundle in bundles] == [event["bundle"] for event in told.values() if event["bundle"]]
    assert len(bundles) == MOST_BUNDLES


def test_a_bundle_has_what_is_needed_to_compute_the_step_again(runs, poisoned, make_recipe):
    directory = runs.directory / "poison fp16_at_1" / "forensics"
    bundle = min(directory.iterdir())
    step = int(bundle.name.removeprefix("step_"))
    summary = read_json(bundle / "summary.json")
    assert summary["loss_scales"] == [[number, 1.0] for number in range(step + 1)]
    report = summary["ranks"][0]
    assert {"loss", "encoder.layers.0", "decoder.blocks.0"} <= report["largest_output"].keys()
    assert report["largest_output"]["encoder.layers.1"] is None and report["largest_output"]["encoder.layers.0"] > 0
    assert report["weight_norm"].keys() >= report["gradient_norm"].keys() != set()
    rank = min(poisoned[step])
    assert {path.name for path in bundle.iterdir()} == {
        "summary.json",
        *(f"rank_{rank:05d}.npz" for rank in poisoned[step]),
    }
    inputs = open_inputs(make_recipe())
    (expected,) = inputs.stream.micro_batches(step, rank, 2).micro_batches
    with np.load(bundle / f"rank_{rank:05d}.npz") as arrays:
        num_tokens, num_sequences = len(expected.source.tokens), len(expected.component_index)
        assert np.array_equal(arrays["0.source"][:num_tokens], expected.source.tokens)
        assert np.array_equal(arrays["0.labels"][: len(expected.labels)], expected.labels)
        assert np.array_equal(arrays["0.component"], expected.component_index)
        assert len(arrays["0.row"]) == num_sequences
        wrong = np.isnan(arrays["0.token_loss"])
    numbers = expected.target_input.sequence_of_token[torch.from_numpy(wrong[: len(expected.labels)])]
    begins = expected.source.tokens[expected.source.cu_seqlens[:-1].long() + 1]
    assert numbers.unique().tolist() == is_poison(begins).nonzero().flatten().tolist()


# --- memory ---


def test_too_little_memory_is_told_with_shapes_plan_and_cure(runs):
    message = runs.outcome["memory"]
    assert message.startswith("InputError: Out of memory at micro-batches of up to ")
    assert "source and " in message and "can't allocate memory: you tried to allocate 4503599627370496 bytes" in message
    assert "Planned for a rank: weights 0.00, gradients 0.00, optimizer 0.00" in message
    assert "total 0." in message and "What helps: a smaller batch.micro_batch_tokens" in message


def test_a_roll_back_waits_for_a_save_under_way(tmp_path):
    """A slow disk: the checkpoint to go back to is not there yet when the spike is seen."""

    def finish_save():
        checkpoint = tmp_path / "checkpoints" / "step_00000010"
        checkpoint.mkdir(parents=True)
        (checkpoint / "state.json").touch()

    spike, told = Spike(13, 200.0, 4.0, 50.0), []
    recipe = SimpleNamespace(training=SimpleNamespace(spikes=SpikesSection(policy="roll_back")))
    guard = SimpleNamespace(
        spikes=SimpleNamespace(read=lambda: [spike]),
        _recipe=recipe,
        _run=tmp_path,
        _tell=lambda *event, **_: told.append(event),
    )
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    try:
        Guard.tell_spikes(guard, lambda: None)  # there is nothing to go back to
        assert told == [(13, "loss spike"), (13, "not rolled back")]
        with pytest.raises(RollBack) as raised:
            Guard.tell_spikes(guard, finish_save)
    finally:
        distributed.destroy_process_group()
    assert raised.value.steps == {13}
