"""How long a step takes, by a model: products at a rate that depends on their shape, passes over memory at its rate,
the host's calls, and what ranks exchange. What is assumed of a GPU stands here by name; nothing of it was fitted to a
measurement of the whole step, so that such a measurement checks it.

What overlaps: on a GPU the host issues a micro-batch while the one before is computed, so the slower of the two counts,
and with CUDA graphs the host issues little. Exchanges overlap with nothing at stage 1, where all is reduced at the end
of the step; at stage 2 with the backward and at stage 3 with all of the micro-batch, where the DeepSpeed configuration
says `overlap_comm`.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from deltalm_ds.devices import Device
from deltalm_ds.model.config import DeltaLMConfig
from deltalm_ds.training.deepspeed_config import precision
from deltalm_ds.training.network import Topology, all_reduce_seconds, gather_seconds
from deltalm_ds.training.step_work import MicroBatch, Product, bytes_of_passes, bytes_of_update, products

LARGE_PRODUCT = 0.8  # of the peak that a very large product reaches: 0.78 to 0.81 on an H100 (benchmarks/RESULTS.md)
SHORT_SUM = 256  # a sum over so many elements reaches half of that: filling and emptying a tile's pipeline; assumed
TILE = (128, 128)  # of a result that a multiprocessor makes at once
SHORTEST_SPLIT = 1024  # a sum over more is split where there are fewer tiles than multiprocessors
PASS_SHARE = 0.7  # of the memory's rate that passes reach: 0.85 in a copy, less with reductions and random numbers
KERNEL_GAP_S = 2e-6  # between kernels of a CUDA graph
KERNELS_OF_LAYER = 24  # forward and backward of a layer with one FFN; assumed
CALLS_OF_LAYER_S = 1e-3  # of the host, without graphs: 23 ms for 12 layers and 6 blocks (benchmarks/RESULTS.md)
HOOK_S = 1e-4  # of the host for each parameter and micro-batch: DeepSpeed's hooks, which there only call; assumed
BACKWARD_SHARE = 2 / 3  # of a micro-batch, with which exchanges of stage 2 can overlap
ELEMENT_BYTES = {"fp32": 4, "fp16": 2, "bf16": 2}


class Machine(Protocol):
    """What computes: a GPU of the table, or this machine's processor as measured."""

    def product_seconds(self, product: Product) -> float:
        """Of one product."""

    def pass_seconds(self, num_bytes: float) -> float:
        """Of element-wise work and reductions that read and write so much."""

    def update_seconds(self, num_bytes: float) -> float:
        """Of plain passes over weights and gradients."""

    def calling_seconds(self, device_seconds: float, config: DeltaLMConfig, num_tensors: int) -> float:
        """What calling a micro-batch's kernels adds to the `device_seconds` that they take, for so many parameters."""


@dataclass(frozen=True)
class Gpu:
    """A GPU of the table computing in one dtype, `float16`, `bfloat16`, `tf32` or `float32`."""

    device: Device
    dtype: str
    has_graphs: bool

    def product_seconds(self, product: Product) -> float:
        """By tiles and waves of them [NVIDIA, Matrix Multiplication Background §3], or by what is read and written."""
        tiles = product.batch * _up(product.m, TILE[0]) * _up(product.n, TILE[1])
        splits = max(1, min(product.k // SHORTEST_SPLIT, self.device.num_sms // tiles))
        waves = _up(tiles * splits, self.device.num_sms)
        of_sm = 2.0 * TILE[0] * TILE[1] * product.k / splits * waves
        rate = LARGE_PRODUCT * self.device.operations[self.dtype] / self.device.num_sms
        rate *= product.k / splits / (product.k / splits + SHORT_SUM)
        element_bytes = 2 if self.dtype in ("float16", "bfloat16") else 4
        return max(of_sm / rate, product.bytes_moved(element_bytes) / self.device.memory_rate)

    def pass_seconds(self, num_bytes: float) -> float:
        """See `Machine`."""
        return num_bytes / (PASS_SHARE * self.device.memory_rate)

    def update_seconds(self, num_bytes: float) -> float:
        """See `Machine`."""
        return self.pass_seconds(num_bytes)

    def calling_seconds(self, device_seconds: float, config: DeltaLMConfig, num_tensors: int) -> float:
        """See `Machine`: gaps between kernels, and what the host needs longer than they."""
        ffns = 2 if config.decoder == "interleaved" else 1
        layers = config.num_encoder_layers + ffns * config.num_decoder_blocks
        gaps = KERNEL_GAP_S * KERNELS_OF_LAYER * layers
        host = HOOK_S * num_tensors + (0.0 if self.has_graphs else CALLS_OF_LAYER_S * layers)
        return max(gaps, host - device_seconds)


def _up(number: float, multiple: int) -> int:
    return -int(-number // multiple)


class Step(NamedTuple):
    """What a step is: of which model, how it is shared, and what each rank computes."""

    config: DeltaLMConfig
    ds_config: dict[str, Any]
    num_trained: int
    num_tensors: int
    micro_batch: MicroBatch
    num_micro_batches: int


def step_seconds(step: Step, machine: Machine, topology: Topology) -> dict[str, float]:
    """Seconds of a step by part; together they are all of it.

    Args:
        step: what is computed.
        machine: of each rank.
        topology: of the ranks.
    """
    element_bytes = ELEMENT_BYTES[precision(step.ds_config)]
    stage = step.ds_config["zero_optimization"]["stage"]
    counted = products(step.config, step.micro_batch)
    linear = sum(times * machine.product_seconds(p) for p, times in counted.items() if p.kind != "attention")
    attention = sum(times * machine.product_seconds(p) for p, times in counted.items() if p.kind == "attention")
    passes = bytes_of_passes(step.config, step.micro_batch, element_bytes)
    others = {name: machine.pass_seconds(size) for name, size in passes.items()}
    computing = linear + attention + sum(others.values())
    calls = machine.calling_seconds(computing, step.config, step.num_tensors)
    of_update = bytes_of_update(step.num_trained, topology.ranks, stage, element_bytes, step.num_micro_batches)
    times = step.num_micro_batches
    return {
        "linear layers": times * linear,
        "attention": times * attention,
        "passes of layers": times * others["layers"],
        "passes of loss": times * others["loss"],
        "calls": times * calls,
        "gradients and optimizer": machine.update_seconds(of_update),
        "communication": communication_seconds(step, topology, computing + calls),
    }


def communication_seconds(step: Step, topology: Topology, micro_batch_seconds: float) -> float:
    """What exchanges add to a step, after what they overlap with.

    Args:
        step: what is computed.
        topology: of the ranks.
        micro_batch_seconds: that the computing of one takes.
    """
    zero = step.ds_config["zero_optimization"]
    weight_bytes = ELEMENT_BYTES[precision(step.ds_config)]
    sent_bytes = 2 if step.ds_config.get("communication_data_type") in ("fp16", "bf16") else 4
    bucket = int(zero.get("reduce_bucket_size", 5e8))
    num_buckets = max(1, round(step.num_trained / bucket))
    overlaps = bool(zero.get("overlap_comm"))
    reducing = num_buckets * all_reduce_seconds(sent_bytes * step.num_trained / num_buckets, topology)
    gathering = gather_seconds(weight_bytes * step.num_trained, topology)
    if zero["stage"] == 1:
        return reducing + gathering
    if zero["stage"] == 2:
        hidden = BACKWARD_SHARE * micro_batch_seconds if overlaps else 0.0
        return step.num_micro_batches * max(0.0, reducing - hidden) + gathering
    of_layers = step.num_tensors / 16  # gathers in turn: the parameters of a layer together
    per_gather = gather_seconds(weight_bytes * step.num_trained / of_layers, topology)
    scattering = num_buckets * gather_seconds(sent_bytes * step.num_trained / num_buckets, topology)
    exchange = 2 * of_layers * per_gather + scattering
    return step.num_micro_batches * max(0.0, exchange - (micro_batch_seconds if overlaps else 0.0))
