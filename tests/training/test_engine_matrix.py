"""Every file of ds_configs is opened and trained: on any ranks, accumulation, stage and offload as the plain loop."""

import json
from types import SimpleNamespace

import pytest
from deepspeed.accelerator import get_accelerator
from deepspeed.runtime.config import DeepSpeedConfig
from jobs import Job
from plain import largest_difference, plain_training, records

from deltalm_ds.files import read_json
from deltalm_ds.training.deepspeed_config import CONFIG_DIRECTORY, deepspeed_config

NAMES = sorted(file.stem for file in CONFIG_DIRECTORY.glob("*.json"))
FLOAT32 = [name for name in NAMES if name.startswith("fp32")]
SIXTEEN_BITS = [name for name in NAMES if not name.startswith("fp32")]
ACCUMULATED = ("fp32_zero1", "fp32_zero2", "fp32_zero3", "fp32_zero1_offload_cpu", "fp32_zero2_offload_cpu")
ACCUMULATED += ("fp32_zero3_offload_cpu",)
RESUMED = ("fp32_zero3", "bf16_zero1", "bf16_zero2", "bf16_zero3", "fp16_zero2")
RESUMED += ("fp32_zero1_offload_cpu", "bf16_zero2_offload_cpu", "fp32_zero3_offload_cpu", "bf16_zero3_offload_cpu")
TESTED_ALWAYS = ("fp32_zero2_offload_cpu", "bf16_zero2_offload_cpu")  # of those with offload, which are slow
STEPS = 12
TRAINING = {"max_steps": STEPS, "save_every": STEPS // 2}
ALONE = (("fp32_zero1", 3), ("fp32_zero2", 1), ("fp32_zero3", 3), ("fp32_zero2_offload_cpu", 1))


def is_slow(name):
    return "offload" in name and name not in TESTED_ALWAYS


def marked(names, prefix=""):
    """Parameters, the slow ones marked."""
    return [pytest.param(prefix + name, marks=[pytest.mark.slow] * is_slow(name)) for name in names]


@pytest.fixture(scope="module")
def plain(make_recipe):
    return plain_training(make_recipe(training=TRAINING), STEPS)


def as_tested(directory, name):
    """An engine's name; for fp16 a file with a loss scale so small that no update is skipped, to compare losses."""
    if not name.startswith("fp16"):
        return name
    config = read_json(CONFIG_DIRECTORY / f"{name}.json")
    config["fp16"]["initial_scale_power"] = 8
    path = directory / f"{name}.json"
    path.write_text(json.dumps(config))
    return str(path)


@pytest.fixture(scope="module")
def runs(with_slow, tmp_path_factory, make_run, run_on_ranks):
    """All trainings in processes of this module, by name: their directories and what became of them."""
    directory = tmp_path_factory.mktemp("runs")
    found = SimpleNamespace(directory=directory, outcome={})

    def prepare(name, engine, accumulation=1, resumes=None):
        batch = {"min_micro_batches": accumulation}
        run = make_run(directory / name, deepspeed=as_tested(directory, engine), batch=batch, training=TRAINING)
        return Job(run, resumes and directory / resumes)

    def train(jobs, num_ranks):
        outcomes = run_on_ranks(directory, jobs, num_ranks)
        found.outcome |= {job.run.name: outcome for job, outcome in zip(jobs, outcomes, strict=True)}

    train([prepare(f"alone_{name}_{n}", name, n) for name, n in ALONE], 1)
    names, accumulated, resumed = (
        [name for name in of_kind if with_slow or not is_slow(name)] for of_kind in (NAMES, ACCUMULATED, RESUMED)
    )
    jobs = [prepare(name, name) for name in names]
    jobs += [prepare(f"accumulated_{name}", name, 3) for name in accumulated]
    jobs += [prepare(f"resumed_{name}", name, resumes=name) for name in resumed]
    jobs.append(prepare("grown", "fp32_zero3", 1, "alone_fp32_zero2_1"))
    train(jobs, 2)
    return found


@pytest.mark.parametrize(
    "name",
    [f"alone_{name}_{n}" for name, n in ALONE] + marked(FLOAT32) + marked(ACCUMULATED, "accumulated_"),
)
def test_float32_is_the_plain_loop(name, runs, plain):
    assert runs.outcome[name] == 0
    assert plain.losses[-1] < 0.9 * plain.losses[0]  # something is learned
    assert min(plain.norms) > 0.5  # and every update is clipped
    assert largest_difference(runs.directory / name, plain.losses) <= 1e-6
    assert largest_difference(runs.directory / name, plain.norms, "gradient_norm") <= 1e-5


@pytest.mark.parametrize("name", marked(SIXTEEN_BITS))
def test_sixteen_bits_follow_float32(name, runs, plain):
    assert runs.outcome[name] == 0
    assert records(runs.directory / name)[-1]["skipped_updates"] == 0
    # a mean of losses is as near as one rounding: 2**-9 with bfloat16's 8 bits, 2**-11 with float16's 11
    tolerance = 2e-3 if name.startswith("bf16") else 3e-4
    assert 0 < largest_difference(runs.directory / name, plain.losses) <= tolerance


@pytest.mark.parametrize("name", marked(RESUMED))
def test_a_resumed_run_repeats_every_digit(name, runs):
    assert runs.outcome[f"resumed_{name}"] == 0
    whole, resumed = runs.directory / name, runs.directory / f"resumed_{name}"
    for kind, steps in (("train", range(1, STEPS + 1)), ("validation", (STEPS // 2, STEPS))):
        assert records(resumed, kind) == records(whole, kind)
        assert [record["step"] for record in records(resumed, kind)] == list(steps)


def test_a_run_goes_on_with_more_ranks_and_another_stage(runs, plain):
    assert runs.outcome["grown"] == 0
    assert largest_difference(runs.directory / "grown", plain.losses) <= 1e-6


@pytest.mark.parametrize("name", NAMES)
def test_deepspeed_accepts_every_engine_file(name, make_recipe, monkeypatch):
    monkeypatch.setattr(get_accelerator(), "is_fp16_supported", lambda: True)
    monkeypatch.setenv("WORLD_SIZE", "1")
    DeepSpeedConfig(deepspeed_config(make_recipe(deepspeed=name)))
