"""How much memory a rank needs: what ZeRO keeps of weights, gradients and optimizer, and what a micro-batch adds.

Legend: P parameters, N ranks, S source tokens, T target tokens, M model dim, V vocabulary; all sizes in bytes.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from deltalm_ds.kernels.linear_cross_entropy import chunk_tokens
from deltalm_ds.model.config import DeltaLMConfig
from deltalm_ds.model.deltalm import DeltaLM
from deltalm_ds.model.packing import PackedSequences
from deltalm_ds.training.deepspeed_config import NORM_BLOCK, offload_device, precision
from deltalm_ds.training.parameter_groups import WeightCounts

MOMENT_BYTES = 8  # a parameter: Adam's two moments in float32, in every precision
MASTER_BYTES = 4  # a parameter: its float32 master weight, which float32 weights of ZeRO 1 and 2 are themselves
NUMBER_BYTES = 4  # all that a checkpoint holds and an optimizer keeps is float32
GRADIENT_BYTES = 4  # a parameter: the float32 sum of its gradients
HEAP_PIECES = 2  # of float32 weights, on a CPU at ZeRO stage 3: see `exchange_bytes`
LIBRARIES_BYTES = 420 << 20  # resident in a process on a CPU with torch and DeepSpeed, before there is a model
SAMPLE_TOKENS = 64


def model_states(
    ds_config: dict[str, Any], num_parameters: int, num_ranks: int, on_cpu: bool = False, num_frozen: int = 0
) -> dict[str, int]:
    """What a rank holds of the model and its training, at its largest, just before an update.

    As [Rajbhandari+20 §5], with what DeepSpeed 0.19.8 was seen to keep under `hold_numbers_once` (live tensors counted
    on 2 and 4 ranks, stages 1 to 3, float32 and bf16): a float32 master copy, at stage 3 also where the weights are
    float32, gradients summed in float32, beside them at stage 1 those of 16-bit weights (offload and bf16's
    `immediate_grad_update` free them), and a bucket of `reduce_bucket_size` elements, which is allocated whole. Stage 3
    gathers weights as layers need them and may keep `stage3_max_live_parameters` of them.

    Args:
        ds_config: the DeepSpeed configuration, `for_ranks`.
        num_parameters: of the model.
        num_ranks: that share what the stage says.
        on_cpu: where a rank keeps its share of the gradients from step to step, at stage 1 beside all of them.
        num_frozen: of the parameters, those that are not trained: their exact weights alone are kept, in 16 bits by the
            host.

    Returns:
        bytes by what they are for; `offloaded` are in the host's memory, all others where the rank computes.
    """
    zero = ds_config["zero_optimization"]
    stage = zero["stage"]
    weight_bytes = 4 if precision(ds_config) == "fp32" else 2
    offloaded = offload_device(zero) != "none"
    frees_narrow = offloaded or ds_config.get("bf16", {}).get("immediate_grad_update", False)
    full_gradient_bytes = GRADIENT_BYTES + 2 * (weight_bytes == 2 and not frees_narrow)
    shares_masters = weight_bytes == 4 and stage < 3
    keeps_share = shares_masters and on_cpu and not offloaded
    num_trained = num_parameters - num_frozen
    share = -(-num_trained // num_ranks)
    exact_bytes = 4 * num_frozen if weight_bytes == 2 and on_cpu else 0
    if stage == 1:
        gradients = full_gradient_bytes * num_trained + GRADIENT_BYTES * share * keeps_share
    else:  # offloaded ones are summed in the host's memory, those of 16-bit weights at stage 2 where they are made
        gradients = GRADIENT_BYTES * share * (not offloaded or (stage == 2 and weight_bytes == 2))
    gathered = min(num_parameters, int(zero.get("stage3_max_live_parameters", 1e9))) if stage == 3 else 0
    buckets = 2 if stage < 3 and zero.get("overlap_comm") else 1
    communication_bytes = 2 if ds_config.get("communication_data_type", precision(ds_config)) in ("fp16", "bf16") else 4
    return {
        "weights": weight_bytes * (-(-num_parameters // num_ranks) if stage == 3 else num_parameters) + exact_bytes,
        "gathered_weights": weight_bytes * gathered,
        "gradients": gradients,
        "optimizer": 0 if offloaded else (MOMENT_BYTES + MASTER_BYTES * (not shares_masters)) * share,
        "reduce_buckets": buckets * communication_bytes * int(zero.get("reduce_bucket_size", 5e8)),
        "offloaded": _offloaded_bytes(stage, weight_bytes) * share if offloaded else 0,
    }


def _offloaded_bytes(stage: int, weight_bytes: int) -> int:
    """Of each parameter of a rank's share in the host's memory, as DeepSpeed 0.19.8 was seen to keep them."""
    states = MASTER_BYTES + MOMENT_BYTES + GRADIENT_BYTES
    if stage == 3:
        return states + GRADIENT_BYTES  # the sum over micro-batches, and what the optimizer reads
    sums = GRADIENT_BYTES if weight_bytes == 4 else 0
    return states + sums + weight_bytes  # new weights on their way to the device


def exchange_bytes(ds_config: dict[str, Any], num_parameters: int, num_ranks: int, on_cpu: bool) -> tuple[int, int]:
    """What exchanges copy: of gradients that are sent, and of weights that are gathered.

    DeepSpeed 0.19.8 flattens what it sends of a bucket once more (`allreduce_bucket`, `reduce_scatter_coalesced`; its
    optimizer for bf16 at stage 1 has no other bucket). On a CPU gloo copies too: at stages 1 and 2 all weights, when
    they are gathered after an update (`_allgather_base`), at stage 3 gradients. There gathered weights, which come and
    go with each layer, also leave the heap in pieces that other tensors cannot use: twice the weights in float32, as
    was seen on two ranks (benchmarks/RESULTS.md), not derived.

    Args:
        ds_config: the DeepSpeed configuration.
        num_parameters: of the model.
        num_ranks: that share the gradients.
        on_cpu: whether gloo exchanges them.
    """
    zero = ds_config["zero_optimization"]
    if num_ranks == 1:
        return 0, 0
    name = precision(ds_config)
    has_bucket = not (name == "bf16" and zero["stage"] == 1) or offload_device(zero) != "none"
    sent_bytes = 2 if ds_config.get("communication_data_type", name) in ("fp16", "bf16") else 4
    flat = sent_bytes * min(num_parameters, int(zero.get("reduce_bucket_size", 5e8))) * has_bucket
    if zero["stage"] == 3:
        return flat, (flat + HEAP_PIECES * 4 * num_parameters) * on_cpu
    return flat, (4 if name == "fp32" else 2) * num_parameters * on_cpu


def norm_bytes(ds_config: dict[str, Any], num_parameters: int, largest: int, num_ranks: int) -> int:
    """The most that the gradient's norm holds, after the last micro-batch: the float64 copy of a parameter's gradient.

    As DeepSpeed 0.19.8 is written (`get_norm_dtype`), at stages 1 and 2 a block of a gradient at a time; its optimizer
    for bf16 at stage 1 takes the norm in float32.

    Args:
        ds_config: the DeepSpeed configuration.
        num_parameters: of the model.
        largest: elements of its largest parameter.
        num_ranks: that share the gradients.
    """
    zero = ds_config["zero_optimization"]
    if zero["stage"] < 3 and offload_device(zero) == "none":
        largest = 0 if precision(ds_config) == "bf16" and zero["stage"] == 1 else min(largest, NORM_BLOCK)
    of_rank = -(-largest // num_ranks) if zero["stage"] == 3 else min(largest, -(-num_parameters // num_ranks))
    return 8 * of_rank


def checkpoint_bytes(num_parameters: int, num_trained: int, has_average: bool) -> int:
    """Of a checkpoint: weights, and of those that are trained Adam's moments and a running average, if one is kept."""
    return NUMBER_BYTES * (num_parameters + (2 + has_average) * num_trained)


def checkpoint_copy_bytes(weights: WeightCounts, has_average: bool, num_ranks: int) -> int:
    """Host memory of the rank with the largest share of a checkpoint: whole parameters, by `checkpoint.Share`.

    Args:
        weights: of the model, as they are trained.
        has_average: whether a running average is kept.
        num_ranks: that share the checkpoint.
    """
    share = -(-checkpoint_bytes(weights.all, weights.trained, has_average) // num_ranks)
    whole = checkpoint_bytes(weights.largest, weights.largest, has_average)
    return max(share, whole, checkpoint_bytes(weights.largest_frozen, 0, has_average))


@dataclass(frozen=True)
class ActivationCost:
    """What the forward saves for the backward, in bytes a token.

    `block_source` and `block_target` are what one decoder block saves for each source and each target token.
    """

    config: DeltaLMConfig
    weight_bytes: int
    embedding: float
    encoder_layer: float
    block_source: float
    block_target: float

    @classmethod
    def measure(cls, config: DeltaLMConfig, weight_bytes: int) -> "ActivationCost":
        """Run one layer of each kind on a short sample on the CPU and count the tensors that autograd saves.

        The CPU keeps dropout masks in the weights' type where GPUs take a byte, so the numbers are upper bounds.
        """
        layers = {"num_encoder_layers": 1, "num_decoder_blocks": 1}
        sample = {"vocabulary_size": 64, "max_positions": SAMPLE_TOKENS, **layers}
        model = DeltaLM(config.model_copy(update=sample)).to(torch.float32 if weight_bytes == 4 else torch.bfloat16)
        length = SAMPLE_TOKENS
        tokens, twice = _one_sequence(length), _one_sequence(2 * length)
        dtype = model.token_embedding.weight.dtype
        x = torch.zeros(length, config.hidden_size, dtype=dtype, requires_grad=True)
        encoder_states = torch.zeros(2 * length, config.hidden_size, dtype=dtype, requires_grad=True)
        layer, block, embedding = model.encoder.layers[0], model.decoder.blocks[0], model.encoder.embedding
        once = _saved_bytes(block, lambda: block(x, tokens, encoder_states[:length], tokens), encoder_states)
        more_source = _saved_bytes(block, lambda: block(x, tokens, encoder_states, twice), encoder_states) - once
        return cls(
            config,
            weight_bytes,
            _saved_bytes(model, lambda: embedding(model.token_embedding(tokens.tokens), tokens.positions)) / length,
            _saved_bytes(layer, lambda: layer(x, tokens)) / length,
            more_source / length,
            (once - more_source) / length,
        )

    def micro_batch(self, num_source_tokens: int, num_target_tokens: int) -> int:
        """Bytes of a micro-batch's layers; with activation checkpointing their inputs and one layer's inside."""
        config = self.config
        block = num_source_tokens * self.block_source + num_target_tokens * self.block_target
        outside = (num_source_tokens + num_target_tokens) * self.embedding
        inputs = config.hidden_size * self.weight_bytes
        outside += num_source_tokens * inputs  # the encoder's output, which all blocks read
        if not config.activation_checkpointing:
            layers = config.num_encoder_layers * num_source_tokens * self.encoder_layer
            return round(outside + layers + config.num_decoder_blocks * block)
        kept = config.num_encoder_layers * num_source_tokens + config.num_decoder_blocks * num_target_tokens
        return round(outside + kept * inputs + max(num_source_tokens * self.encoder_layer, block))


def loss_bytes(config: DeltaLMConfig, weight_bytes: int, num_target_tokens: int, on_cpu: bool = False) -> int:
    """The most that the fused output projection and loss hold: a chunk of logits and the token embedding's gradient.

    That of 16-bit weights is summed over several chunks in float32, and rounded beside it. A few tokens' logits, which
    a CPU puts into the gradient, are counted all the same: the estimate is the higher one.

    Args:
        config: of the model.
        weight_bytes: of an element of its weights.
        num_target_tokens: of the largest micro-batch.
        on_cpu: whether a CPU computes.
    """
    chunk = chunk_tokens(config.num_embedding_rows, weight_bytes, on_cpu)
    sums = 4 if weight_bytes < 4 and num_target_tokens > chunk else 0
    table = config.num_embedding_rows * config.hidden_size
    return min(num_target_tokens, chunk) * config.vocabulary_size * weight_bytes + table * (weight_bytes + sums)


def _one_sequence(length: int) -> PackedSequences:
    return PackedSequences.from_lengths(torch.zeros(length, dtype=torch.int64), torch.tensor([length]))


def _saved_bytes(module: nn.Module, forward: Callable[[], Tensor], *shared: Tensor) -> int:
    """Bytes of the storages that autograd saves in `forward`, without the module's parameters and `shared`."""
    known = {tensor.untyped_storage().data_ptr() for tensor in (*module.parameters(), *shared)}
    saved: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = forward()  # held until the counting is over: no storage may be used a second time
    del output
    return sum(saved.values())
