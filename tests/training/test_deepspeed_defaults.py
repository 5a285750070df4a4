"""DeepSpeed's defaults decide nothing: what it may default is written in every file of ds_configs, or stands here."""

from collections.abc import Iterator
from typing import Any

import pytest
from deepspeed.runtime import config as deepspeed_runtime_config
from deepspeed.runtime.config import DeepSpeedConfig
from deepspeed.runtime.config_utils import DeepSpeedConfigModel
from deepspeed.runtime.precision_config import DeepSpeedBF16Config, DeepSpeedFP16Config
from deepspeed.runtime.zero.config import DeepSpeedZeroConfig
from deepspeed.runtime.zero.offload_config import DeepSpeedZeroOffloadOptimizerConfig

from deltalm_ds.files import read_json
from deltalm_ds.training.deepspeed_config import CONFIG_DIRECTORY

ENGINES = {file.stem: read_json(file) for file in sorted(CONFIG_DIRECTORY.glob("*.json"))}
NOT_WRITTEN = {
    DeepSpeedZeroConfig: {
        "checkpoints are not DeepSpeed's": {
            *("load_from_fp32_weights", "elastic_checkpoint", "pipeline_loading_checkpoint"),
            *("stage3_gather_16bit_weights_on_model_save", "stage3_gather_fp16_weights_on_model_save"),
        },
        "old names": {"cpu_offload", "cpu_offload_param", "cpu_offload_use_pin_memory", "legacy_stage1"},
        "refused": {"offload_param"},
        "for another Adam, or for models of another kind": {
            *("zenflow", "save_muon_momentum_buffer_in_memory", "leaf_module"),
        },
        "changes nothing that is computed": {"log_trace_cache_warnings", "enable_sanity_checks"},
    },
    DeepSpeedZeroOffloadOptimizerConfig: {
        "of disks, or of another Adam": {
            *("nvme_path", "buffer_count", "pipeline_read", "pipeline_write", "fast_init", "cpuadam_cores_perc"),
        },
    },
    DeepSpeedBF16Config: {},
    DeepSpeedFP16Config: {},
}
# of a configuration beside those sections: sections that something else decides here, and what is computed from others
NOT_IN_A_FILE = {
    "made by the step": {
        "train_batch_size",
        "scheduler_name",
        "scheduler_params",
        "optimizer_name",
        "optimizer_params",
    },
    "of DeepSpeed's own optimizers, data and checkpoints": {
        *("optimizer_legacy_fusion", "data_efficiency_enabled", "data_efficiency_config", "dataloader_drop_last"),
        *("checkpoint_tag_validation_enabled", "checkpoint_tag_validation_fail", "load_universal_checkpoint"),
        *("use_node_local_storage", "checkpoint_parallel_write_pipeline", "datastates_config", "checkpoint_config"),
    },
    "of models of another kind": {
        *("seq_parallel_communication_data_type", "use_data_before_expert_parallel_", "hybrid_engine", "pipeline"),
        *("tensor_parallel_config", "expert_parallel_config", "weight_quantization_config", "compile_config"),
        *("activation_checkpointing_config", "autotuning_config", "aio_config"),
    },
    "off unless written": {
        *("torch_autocast_enabled", "torch_autocast_dtype", "torch_autocast_lower_precision_safe_modules"),
    },
    "of DeepSpeed's logs": {
        *("steps_per_print", "dump_state", "wall_clock_breakdown", "memory_breakdown", "flops_profiler_config"),
        *("comms_config", "monitor_config", "timers_config", "log_level"),
    },
    "the model has no buffers, and its type follows the sections bf16 and fp16": {
        *("param_dtype", "buffer_dtype", "keep_in_fp32_modules"),
    },
    "of the process": {"global_rank", "world_size"},
    "by the sections": {"zero_optimization_stage", "zero_enabled"},
}
SECTION_OF = {"zero_config": "zero_optimization", "float16_config": "fp16", "bfloat16_config": "bf16"}


def sections(config: dict[str, Any]) -> Iterator[tuple[type[DeepSpeedConfigModel], dict[str, Any]]]:
    """The sections of a file that DeepSpeed reads by a model."""
    zero = config["zero_optimization"]
    yield DeepSpeedZeroConfig, zero
    if "offload_optimizer" in zero:
        yield DeepSpeedZeroOffloadOptimizerConfig, zero["offload_optimizer"]
    models = {"bf16": DeepSpeedBF16Config, "fp16": DeepSpeedFP16Config}
    yield from ((model, config[name]) for name, model in models.items() if name in config)


def needed(model: type[DeepSpeedConfigModel], config: dict[str, Any]) -> set[str]:
    """The fields that a file must write: those of its stage, and of what it has."""
    fields = {field.alias or name for name, field in model.model_fields.items()}
    written = fields - set().union(*NOT_WRITTEN[model].values())
    if model is DeepSpeedZeroConfig:
        written -= {"offload_optimizer"}  # without it nothing is offloaded
        written -= ONLY_OF_STAGE_3 if config["zero_optimization"]["stage"] < 3 else ONLY_BELOW_STAGE_3
    elif model is DeepSpeedZeroOffloadOptimizerConfig and config["zero_optimization"]["stage"] < 3:
        written -= {"ratio", "super_offload"}
    return written


ONLY_BELOW_STAGE_3 = {
    *("allgather_bucket_size", "allgather_partitions", "use_multi_rank_bucket_allreduce", "parameter_alignment"),
    *("ignore_unused_parameters", "round_robin_gradients"),
}
ONLY_OF_STAGE_3 = {
    *("sub_group_size", "memory_efficient_linear", "override_module_apply", "zero_hpz_partition_size"),
    *("zero_quantized_weights", "zero_quantized_nontrainable_weights", "zero_quantized_gradients"),
    *(field.alias for field in DeepSpeedZeroConfig.model_fields.values() if (field.alias or "").startswith("stage3_")),
}


@pytest.mark.parametrize("name", ENGINES)
def test_every_field_is_written_or_left_out_for_a_reason(name: str) -> None:
    for model, section in sections(ENGINES[name]):
        assert needed(model, ENGINES[name]) - section.keys() == set(), model.__name__
        left_out = set().union(*NOT_WRITTEN[model].values())
        assert left_out & section.keys() == set(), model.__name__


def test_every_reason_is_of_a_field_that_there_is() -> None:
    for model, reasons in NOT_WRITTEN.items():
        fields = {field.alias or name for name, field in model.model_fields.items()}
        assert set().union(*reasons.values()) <= fields, model.__name__
    zero = {field.alias or name for name, field in DeepSpeedZeroConfig.model_fields.items()}
    assert zero >= ONLY_BELOW_STAGE_3 | ONLY_OF_STAGE_3


@pytest.mark.parametrize("name", ["fp32_zero1", "bf16_zero2_offload_cpu"])
def test_what_stands_beside_the_sections_is_written_too(name: str) -> None:
    decided = {"gradient_clipping": 1.0}
    found = vars(DeepSpeedConfig(ENGINES[name] | decided)).keys() - {"_param_dict"}
    elsewhere = set().union(*NOT_IN_A_FILE.values())
    written = {*ENGINES[name], *ENGINES[name]["data_types"], *SECTION_OF}
    assert found - elsewhere == found & written
    assert elsewhere <= found


def test_what_deepspeed_removed_is_refused_here() -> None:
    """By its own lists."""
    from deltalm_ds.training.deepspeed_config import _GONE

    removed = deepspeed_runtime_config._REMOVED_TOP_LEVEL_CONFIG_KEYS.keys()
    of_zero = deepspeed_runtime_config._REMOVED_ZERO_CONFIG_KEYS.keys()
    assert _GONE.keys() == {*removed, *(f"zero_optimization.{key}" for key in of_zero)}
