"""`clip_norm: 0` is no clipping, whatever the precision and ZeRO stage."""

import json

import pytest
from jobs import Job

from deltalm_ds.files import read_json
from deltalm_ds.runs.metrics import read_metrics
from deltalm_ds.training.deepspeed_config import CONFIG_DIRECTORY

CONFIGS = ("fp32_zero1", "fp32_zero2", "fp32_zero3", "bf16_zero1", "bf16_zero3", "fp16_zero2")
CLIP_NORMS = (0.0, 1e9, 0.1)


@pytest.fixture(scope="module")
def losses(tmp_path_factory, make_run, run_on_ranks):
    """Losses of six steps by DeepSpeed configuration and norm."""
    directory = tmp_path_factory.mktemp("clipping")
    jobs = {}
    for name in CONFIGS:
        config = read_json(CONFIG_DIRECTORY / f"{name}.json")
        if name.startswith("fp16"):  # no update is to be skipped
            config["fp16"] = {"enabled": True, "initial_scale_power": 8}
        (directory / f"{name}.json").write_text(json.dumps(config))
        for norm in CLIP_NORMS:
            changes = {"max_steps": 6, "save_every": 6, "clip_norm": norm}
            deepspeed = str(directory / f"{name}.json")
            run = make_run(directory / f"{name}_{norm}", deepspeed=deepspeed, validation=None, training=changes)
            jobs[name, norm] = Job(run)
    assert set(run_on_ranks(directory, list(jobs.values()), 1)) == {0}
    return {key: [record["loss"] for record in read_metrics(job.run)] for key, job in jobs.items()}


@pytest.mark.parametrize("name", CONFIGS)
def test_a_norm_of_zero_is_that_of_a_norm_never_reached(name, losses):
    unclipped, never_reached, clipped = (losses[name, norm] for norm in CLIP_NORMS)
    assert len(unclipped) == 6 and unclipped[-1] < unclipped[0]
    assert unclipped == never_reached
    assert unclipped != clipped
