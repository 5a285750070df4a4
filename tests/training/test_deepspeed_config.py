"""DeepSpeed's files: what their names say, and every contradiction to the recipe in a sentence, all at once."""

import json
import re
from pathlib import Path

import pytest

from deltalm_ds.errors import InputError
from deltalm_ds.recipe.schema import Recipe
from deltalm_ds.training.deepspeed_config import CONFIG_DIRECTORY, deepspeed_config, for_ranks, offload_device
from deltalm_ds.training.deepspeed_config import precision as precision_of

RECIPE = {
    "name": "test",
    "vocabulary": "vocab",
    "model": {"preset": "tiny"},
    "data": {"train": [{"path": "shards"}]},
    "batch": {"tokens_per_step": 4000, "micro_batch_tokens": 1000},
    "schedule": {"peak_lr": 1e-3, "warmup_steps": 10},
    "training": {"max_steps": 100, "save_every": 50},
}


def recipe_with(deepspeed, **training):
    content = {**RECIPE, "deepspeed": str(deepspeed), "training": {**RECIPE["training"], **training}}
    return Recipe.model_validate(content)


def written(tmp_path, change):
    config = json.loads((CONFIG_DIRECTORY / "bf16_zero2.json").read_text())
    change(config)
    path = tmp_path / "deepspeed.json"
    path.write_text(json.dumps(config))
    return path


@pytest.mark.parametrize("file", sorted(CONFIG_DIRECTORY.glob("*.json")), ids=lambda file: file.stem)
def test_every_deepspeed_file_is_what_its_name_says(file):
    config = deepspeed_config(recipe_with(file.stem, clip_norm=0.7))
    precision, stage, _, device = re.fullmatch(r"(\w+)_zero(\d)(_offload_(\w+))?", file.stem).groups()
    assert config["zero_optimization"]["stage"] == int(stage)
    assert offload_device(config["zero_optimization"]) == (device or "none")
    assert precision_of(config) == precision
    assert [p for p in ("bf16", "fp16") if config.get(p, {}).get("enabled")] == [precision] * (precision != "fp32")
    assert config["gradient_clipping"] == 0.7
    assert '"auto"' not in json.dumps(config)


def test_there_is_a_file_for_each_precision_stage_and_offload():
    engines = [f"{precision}_zero{stage}" for precision in ("fp32", "bf16", "fp16") for stage in (1, 2, 3)]
    offloading = [f"{engine}_offload_cpu" for engine in engines]
    assert {file.stem for file in CONFIG_DIRECTORY.glob("*.json")} == {*engines, *offloading}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.update(gradient_clipping=2.0), "gradient_clipping: is 2.0, the recipe says 1.0"),
        (lambda c: c.update(gradient_accumulation_steps=4), "gradient_accumulation_steps: must be 1"),
        (lambda c: c.update(managed_gradient_accumulation=True), "managed_gradient_accumulation: must be false"),
        (lambda c: c["zero_optimization"].update(stage=0), "stage: must be 1, 2 or 3"),
        (lambda c: c.pop("zero_optimization"), "stage: must be 1, 2 or 3"),
        (lambda c: c["zero_optimization"].update(round_robin_gradients=True), "round_robin_gradients: must be false"),
        (lambda c: c.update(fp16={"enabled": True}), "only one of them can be enabled"),
        (lambda c: c.pop("data_types"), 'grad_accum_dtype: must be "fp32" with bf16'),
        (lambda c: c.update(optimizer={}), "optimizer: belongs to the recipe's section optimizer"),
        (lambda c: c.update(train_batch_size=8), "train_batch_size: belongs to the recipe's batch.tokens_per_step"),
        (lambda c: c.update(zero_optimisation={}), "zero_optimisation: is not known here; the nearest is 'zero_opt"),
        (lambda c: c.update(bf16=True), "bf16: must be an object"),
        (lambda c: c["zero_optimization"].update(offload_optimizer="cpu"), "offload_optimizer: must be an object"),
        (lambda c: c["zero_optimization"].update(offload_optimizer={"device": "nvme"}), "must be one of none, cpu (is"),
        (
            lambda c: c["zero_optimization"].update(offload_param={"device": "cpu"}),
            "offloaded weights are not supported",
        ),
        (
            lambda c: c["zero_optimization"].update(overlap_comm="auto"),
            'overlap_comm: must be true or false (is "auto")',
        ),
        (lambda c: c["zero_optimization"].update(reduce_buket_size=1), "the nearest is 'reduce_bucket_size'"),
        (lambda c: c["zero_optimization"].update(mics_shard_size=2), "mics_shard_size: is gone from DeepSpeed"),
        (lambda c: c["zero_optimization"].update(compute_grad_norm=False), "compute_grad_norm: must be true, since"),
        (lambda c: c["bf16"].update(bf16_optimizer_states=True), "bf16_optimizer_states: must be false, since masters"),
        (lambda c: c.update(prescale_gradients=True), "prescale_gradients: must be false"),
        (lambda c: c.update(gradient_allreduce_op="sum"), 'gradient_allreduce_op: must be "mean"'),
        (lambda c: c.update(amp={"enabled": True}), 'amp: is gone from DeepSpeed; write a section "bf16" or "fp16"'),
        (
            lambda c: c.update(elasticity={}),
            "elasticity: is gone from DeepSpeed; a run goes on with any number of ranks",
        ),
        (lambda c: c.update(optimizer={"type": "OneBitAdam"}), "DeepSpeed's 1-bit optimizers are gone"),
        (lambda c: c.update(nebula={}), "nebula: is gone"),
        (lambda c: c.update(compression_training={}), "compression_training: is gone"),
        (lambda c: c.update(curriculum_learning={}), "curriculum_learning: is gone"),
    ],
)
def test_contradictions(change, message, tmp_path):
    with pytest.raises(InputError) as caught:
        deepspeed_config(recipe_with(written(tmp_path, change)))
    assert message in str(caught.value)
    assert "deepspeed.json" in str(caught.value)


@pytest.mark.parametrize(("name", "message"), [("fp32_zero3", "miscounts"), ("fp32_zero1_offload_cpu", "offloaded")])
def test_apexs_adam_does_not_go_with_every_engine(name, message):
    recipe = recipe_with(name)
    optimizer = recipe.optimizer.model_copy(update={"implementation": "apex"})
    with pytest.raises(InputError, match=message):
        deepspeed_config(recipe.model_copy(update={"optimizer": optimizer}))
    assert deepspeed_config(recipe_with("fp32_zero2").model_copy(update={"optimizer": optimizer}))


def test_what_only_observes_is_taken(tmp_path):
    path = written(tmp_path, lambda config: config.update(comms_logger={"enabled": True}, wall_clock_breakdown=True))
    assert deepspeed_config(recipe_with(path))["comms_logger"] == {"enabled": True}


def test_contradictions_come_all_at_once(tmp_path):
    def change(config):
        config.update(gradient_clipping=2.0, scheduler={}, amp={})
        config["zero_optimization"]["stage"] = 4

    with pytest.raises(InputError) as caught:
        deepspeed_config(recipe_with(written(tmp_path, change)))
    assert str(caught.value).count("\n") == 4


def test_the_same_value_as_the_recipes_is_no_contradiction(tmp_path):
    path = written(tmp_path, lambda config: config.update(gradient_clipping=1.0))
    assert deepspeed_config(recipe_with(path))["gradient_clipping"] == 1.0


def test_deepspeed_files_that_are_none(tmp_path):
    with pytest.raises(InputError, match=r"no DeepSpeed configuration 'bf16_zero4'.*nearest is 'bf16_zero"):
        deepspeed_config(recipe_with("bf16_zero4"))
    with pytest.raises(InputError, match="does not exist"):
        deepspeed_config(recipe_with(tmp_path / "none.json"))
    (tmp_path / "list.json").write_text("[]")
    with pytest.raises(InputError, match="must be a JSON object"):
        deepspeed_config(recipe_with(Path(tmp_path / "list.json")))


def test_one_rank_on_a_cpu_takes_float32_gradients_as_they_come():
    config = deepspeed_config(recipe_with("fp32_zero1"))
    alone = for_ranks(config, 1, on_cpu=True)
    assert (alone["zero_optimization"]["stage"], alone["zero_optimization"]["reduce_bucket_size"]) == (2, 1)
    assert config["zero_optimization"]["stage"] == 1  # the recipe's own is not changed
    assert for_ranks(config, 2, on_cpu=True) == for_ranks(config, 1, on_cpu=False) == config
    for name in ("bf16_zero1", "bf16_zero2", "fp16_zero1", "fp32_zero3"):
        config = deepspeed_config(recipe_with(name))
        assert for_ranks(config, 1, on_cpu=True) == config
    config["zero_optimization"] |= {"stage": 2, "offload_optimizer": {"device": "cpu"}}
    assert for_ranks(config, 1, on_cpu=True) == config
