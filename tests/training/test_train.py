"""Training under DeepSpeed survives damages, faults and ends; test_engine_matrix.py says what it computes.

The trainings run one after the other in one pair of rank processes; what is killed is in tests/faults.
"""

import re
from types import SimpleNamespace
from unittest import mock

import pytest
import torch
from jobs import Job
from plain import records
from safetensors.torch import load_file

from deltalm_ds.checkpoints.directory import load_model, open_weights
from deltalm_ds.errors import DataError
from deltalm_ds.evaluation.translation import evaluate_directions
from deltalm_ds.generation.engines.pytorch import PyTorchEngine
from deltalm_ds.generation.interface import SearchOptions
from deltalm_ds.runs.checkpoints import best_checkpoint, checkpoint_directories, read_state
from deltalm_ds.runs.events import read_events
from deltalm_ds.training import checks
from deltalm_ds.training.inputs import open_inputs

DROPOUT = {"dropout": 0.2, "attention_dropout": 0.1, "activation_dropout": 0.1}


@pytest.fixture(scope="module")
def runs(tmp_path_factory, make_run, run_on_ranks, text_changes):
    """All trainings in processes of this module, by name: their directories and what became of them."""
    directory = tmp_path_factory.mktemp("runs")
    found = SimpleNamespace(directory=directory, outcome={})

    def prepare(name, resumes=None, fault=None, **changes):
        run = make_run(directory / name, **changes)
        return Job(run, resumes and directory / resumes, fault)

    def train(jobs, num_ranks):
        outcomes = run_on_ranks(directory, jobs, num_ranks)
        found.outcome |= {job.run.name: outcome for job, outcome in zip(jobs, outcomes, strict=True)}

    # what the damaged ones go on from
    jobs = [prepare("undisturbed", batch={"min_micro_batches": 1})]
    jobs.append(prepare("full_disk", fault="full disk"))
    jobs.append(prepare("full_disk_once", fault="full disk once"))
    jobs.append(prepare("failed_validation", fault="validation"))
    with mock.patch.object(checks, "MOST_EMPTY_STEPS", 1.0):
        sparse = {"data": {"overlong": "drop", "max_target_tokens": 6}, "batch": {"tokens_per_step": 40}}
        jobs.append(prepare("sparse", **sparse))
    diverging = {"schedule": {"peak_lr": 1e20}, "training": {"max_skipped_updates": 7, "save_every": 2}}
    jobs.append(prepare("diverging", **diverging))
    for damage in ("truncated optimizer", "lost moment", "truncated state", "flipped bit", "newest flipped bit"):
        jobs.append(prepare(damage, "undisturbed", damage, batch={"min_micro_batches": 1}))
    jobs.append(prepare("uninterrupted", **UNINTERRUPTED))
    text = {"deepspeed": "fp32_zero3", "schedule": {"peak_lr": 1e-2}, **text_changes}
    jobs.append(prepare("translated", **text, training={"max_steps": 12, "save_every": 12}))
    jobs.append(prepare("failed_generation", fault="generation", **text, training={"max_steps": 2, "save_every": 2}))
    jobs.append(prepare("patient", **PATIENT))
    jobs.append(prepare("patient_resumed", "patient", **PATIENT))
    jobs.append(Job(jobs[-1].run))  # once more when it has ended
    train(jobs, 2)
    return found


# no weight changes, so that no validation is better than the first
# and at ZeRO 3 no width or size that two ranks share evenly
ODD = {"hidden_size": 33, "num_heads": 3, "ffn_size": 65, "max_positions": 33}
PATIENT = {
    "deepspeed": "fp32_zero3",
    "model": ODD,
    "schedule": {"peak_lr": 1e-30},
    "training": {"save_every": 2, "keep_last": 1, "patience": 3},
}
# twice as long as the others, so that there is time to kill it
UNINTERRUPTED = {"model": DROPOUT, "deepspeed": "fp32_zero2", "training": {"max_steps": 90, "save_every": 15}}


def test_a_full_disk_on_one_rank_leaves_the_earlier_checkpoints(runs):
    message = runs.outcome["full_disk"]
    assert message.startswith("InputError: The checkpoint ")
    assert "step_00000020 could not be written: OSError: [Errno 28] No space left on device" in message
    entries = (runs.directory / "full_disk" / "checkpoints").iterdir()
    assert [entry.name for entry in entries] == ["step_00000010"]


def test_a_disk_that_is_full_for_a_while_costs_nothing(runs):
    """The save is tried again at a step that both ranks agree on; the undisturbed run is the reference."""
    assert runs.outcome["full_disk_once"] == 0
    run, whole = runs.directory / "full_disk_once", runs.directory / "undisturbed"
    assert records(run) == records(whole)
    assert records(run, "validation") == records(whole, "validation")
    failed = [event["step"] for event in read_events(run) if event["kind"] == "save failed"]
    assert failed == [10]
    retried, last = (read_state(found) for found in checkpoint_directories(run))
    assert 10 < retried.step < last.step == 20
    assert (retried.validation, list(last.validation)) == ({}, ["loss", "nll"])


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
    whole = runs.directory / "undisturbed"
    assert records(runs.directory / "newest flipped bit") == records(whole)


def test_a_failed_validation_is_told_and_training_goes_on(runs):
    assert runs.outcome["failed_validation"] == 0
    run = runs.directory / "failed_validation"
    assert [directory.name for directory in checkpoint_directories(run)] == ["step_00000010", "step_00000020"]
    assert records(run, "validation") == []
    events = [(event["step"], event["fault"]) for event in read_events(run) if event["kind"] == "validation failed"]
    assert events == [(step, "[Errno 5] Input/output error: 'dev.arrow'") for step in (10, 20)]


def test_text_is_translated_by_all_ranks_at_zero_3(runs, make_recipe, text_changes):
    """The same translations as by one process that has the whole checkpoint, in other batches."""
    assert runs.outcome["translated"] == 0
    run = runs.directory / "translated"
    inputs = open_inputs(make_recipe(**text_changes))
    engine = PyTorchEngine(load_model(checkpoint_directories(run)[-1]))
    options = SearchOptions(beam=1, max_length=24)
    scores = evaluate_directions(engine, inputs.vocabulary, inputs.tests, options, ("bleu", "chrf"))
    of_chrf = {score.direction: score.scores["chrf"] for score in scores}
    assert sorted(of_chrf) == ["de-en", "en-de"] and 5 < min(of_chrf.values()) < 95
    last = records(run, "validation")[-1]
    assert last["chrf_of"] == of_chrf and last["chrf"] == sum(of_chrf.values()) / 2
    assert last["bleu_of"] == {score.direction: score.scores["bleu"] for score in scores}
    state = read_state(checkpoint_directories(run)[-1])
    assert state.validation["chrf"] == last["chrf"] and state.best.metric == "loss"


def test_a_rank_that_cannot_translate_is_told_by_all(runs):
    assert runs.outcome["failed_generation"] == 0
    events = [event for event in read_events(runs.directory / "failed_generation") if "fault" in event]
    assert [(event["step"], event["fault"]) for event in events] == [(2, "KeyError: 'broken'")]


@pytest.mark.parametrize("name", ["patient", "patient_resumed"])
def test_a_run_without_better_validations_ends(name, runs):
    """Also where it went on from a checkpoint in between, and at once where it has ended."""
    assert runs.outcome[name] == 0
    run = runs.directory / name
    assert [record["step"] for record in records(run, "validation")] == [2, 4, 6, 8]
    states = {path.name: read_state(path) for path in checkpoint_directories(run)}
    assert list(states) == ["step_00000002", "step_00000008"]  # the best and the last
    best = states["step_00000008"].best
    assert (best.metric, best.step, best.later) == ("loss", 2, 3)
    assert best.value == states["step_00000002"].validation["loss"]
    ended = [event for event in read_events(run) if event["kind"] == "ended early"]
    assert len(ended) == (1 if name == "patient" else 2)
    assert re.fullmatch(r"the last 3 validations were no better than step 2's loss \d\.\d{3}", ended[-1]["reason"])


def test_a_run_resumes_exactly_where_ranks_have_uneven_shares(runs):
    last = [checkpoint_directories(runs.directory / name)[-1] for name in ("patient", "patient_resumed")]
    for files in ("model-*.safetensors", "optimizer-*.safetensors"):
        whole, resumed = ({k: t for file in found.glob(files) for k, t in load_file(file).items()} for found in last)
        assert whole.keys() == resumed.keys() and any(tensor.numel() % 2 for tensor in whole.values())
        assert all(torch.equal(tensor, resumed[name]) for name, tensor in whole.items())
        assert all(tensor.any() for name, tensor in whole.items() if name.startswith("exp_avg."))


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
