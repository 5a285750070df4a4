"""What a recipe's training needs and how long its steps take on machines that are not here, or on this one."""

import math
import os
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import torch

from deltalm_ds.devices import GIB, Device
from deltalm_ds.errors import InputError
from deltalm_ds.model.config import DeltaLMConfig
from deltalm_ds.model.empty import empty_model
from deltalm_ds.recipe.schema import OptimizerSection, Recipe
from deltalm_ds.training.deepspeed_config import deepspeed_config, for_ranks, precision
from deltalm_ds.training.graphs import reason_against_graphs
from deltalm_ds.training.memory import checkpoint_bytes
from deltalm_ds.training.network import Topology
from deltalm_ds.training.parameter_groups import WeightCounts, freeze
from deltalm_ds.training.plan import memory_of_rank
from deltalm_ds.training.planned_batch import PlannedBatch
from deltalm_ds.training.step_time import Gpu, Machine, Step, step_seconds
from deltalm_ds.training.this_machine import this_machine
from deltalm_ds.training.throughput import operations_of, work_of

THIS = "this"  # the name of the machine that the plan is made on
OUTSIDE_BYTES = 1.5 * GIB  # of a GPU that tensors cannot have: the driver's context, kernels' code, NCCL; assumed
PIECES = 0.05  # of the rest, that the allocator's pieces cannot be used for; assumed
FINEST = 64  # tokens between which the largest micro-batch is not looked for
DTYPES = {"fp16": "float16", "bf16": "bfloat16", "fp32": "float32"}
DAY_S, HOUR_S = 86_400.0, 3_600.0


@dataclass(frozen=True)
class Cluster:
    """GPUs of one kind in hosts of as many, and how they are linked."""

    name: str
    device: Device
    topology: Topology

    @property
    def ranks(self) -> int:
        """All GPUs."""
        return self.topology.ranks

    @property
    def on_cpu(self) -> bool:
        """Whether it is this machine's processor."""
        return self.name == THIS

    @property
    def torch_device(self) -> torch.device:
        """The kind of device."""
        return torch.device("cpu" if self.on_cpu else "cuda")

    @property
    def usable_bytes(self) -> float:
        """What tensors may take of a GPU, or a process of this machine's memory."""
        return self.device.memory_bytes if self.on_cpu else (1 - PIECES) * (self.device.memory_bytes - OUTSIDE_BYTES)


def cluster_of(name: str, device: Device, hosts: int, slots: int, network_rate: float | None = None) -> Cluster:
    """So many hosts of a GPU; a host with fewer than eight has its share of the table's network.

    Args:
        name: of the GPU in the table.
        device: the GPU.
        hosts: number of hosts.
        slots: GPUs of each.
        network_rate: bytes a second of a host, one way, where it is not the table's.
    """
    rate = network_rate or device.network_rate * min(1.0, slots / 8)
    return Cluster(name, device, Topology(hosts, slots, device.link_rate, rate))


def this_cluster() -> Cluster:
    """One rank on this machine's processor, of which the rates are measured where they are needed."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    device = Device(THIS, (0, 0), memory, {"float32": 0.0, "bfloat16": 0.0}, 0.0, math.inf, math.inf, 0, 0)
    return Cluster(THIS, device, Topology(1, 1, math.inf, math.inf))


@cache
def _weights(config: DeltaLMConfig, optimizer: OptimizerSection) -> WeightCounts:
    model = empty_model(config)
    freeze(model, optimizer)
    return WeightCounts.of(model)


@dataclass(frozen=True)
class Planner:
    """Plans a recipe's training of a model on clusters."""

    recipe: Recipe
    batch: PlannedBatch

    @property
    def stage(self) -> int:
        """The recipe's ZeRO stage."""
        return int(deepspeed_config(self.recipe)["zero_optimization"]["stage"])

    @property
    def weights(self) -> WeightCounts:
        """Of the model, as the recipe trains them."""
        return _weights(self.batch.config, self.recipe.optimizer)

    def of_config(self, config: DeltaLMConfig) -> "Planner":
        """The same for another model."""
        return replace(self, batch=replace(self.batch, config=config))

    def at_stage(self, stage: int) -> "Planner":
        """The same with the configuration of `ds_configs` of another ZeRO stage; itself if it has this one."""
        name = f"{precision(deepspeed_config(self.recipe))}_zero{stage}"
        return self if stage == self.stage else self._with(name)

    def computable_on(self, cluster: Cluster) -> "Planner":
        """The same in float16 where the GPU has no bfloat16."""
        computes = DTYPES[precision(deepspeed_config(self.recipe))] in cluster.device.operations
        return self if computes else self._with(f"fp16_zero{self.stage}")

    def _with(self, ds_config_name: str) -> "Planner":
        return replace(self, recipe=self.recipe.model_copy(update={"deepspeed": ds_config_name}))

    def check(self, cluster: Cluster) -> None:
        """Say before anything is planned why it cannot be.

        Raises:
            InputError: more ranks than pairs in a step, or a precision that the GPU does not compute in.
        """
        if self.batch.sequences < cluster.ranks:
            raise InputError(
                f"batch.tokens_per_step={self.recipe.batch.tokens_per_step} is {self.batch.sequences:.0f} pairs, fewer "
                f"than {cluster.ranks} ranks: plan fewer hosts or slots, or a larger step."
            )
        name = precision(deepspeed_config(self.recipe))
        if DTYPES[name] not in cluster.device.operations:
            raise InputError(
                f"deepspeed: {self.recipe.deepspeed} computes in {DTYPES[name]}, which {cluster.name} does not: write "
                f"deepspeed={self.recipe.deepspeed.replace(name, 'fp32' if cluster.on_cpu else 'fp16')}."
            )

    def ds_config(self, cluster: Cluster) -> dict[str, Any]:
        """The recipe's DeepSpeed configuration, for the ranks of a cluster."""
        return for_ranks(deepspeed_config(self.recipe), cluster.ranks, cluster.on_cpu)

    def has_graphs(self, cluster: Cluster) -> bool:
        """Whether micro-batches are recorded there."""
        device, capability = cluster.torch_device, cluster.device.capability
        return reason_against_graphs(self.recipe, self.batch.config, device, capability) is None

    def memory(self, cluster: Cluster, micro_batch_tokens: float) -> dict[str, int]:
        """Bytes of a rank by part, with micro-batches of so many tokens; see `plan.memory_of_rank`."""
        shape = self.batch.share(micro_batch_tokens)
        return memory_of_rank(
            self.ds_config(cluster),
            self.batch.config,
            self.weights,
            [(shape.source_tokens, shape.target_tokens)],
            cluster.ranks,
            cluster.torch_device,
            self.has_graphs(cluster),
            self.recipe.training,
            self.recipe.validation,
        )

    def fits(self, cluster: Cluster, micro_batch_tokens: float) -> bool:
        """Whether such micro-batches leave room for what else is on the GPU."""
        return self.memory(cluster, micro_batch_tokens)["total"] <= cluster.usable_bytes

    def largest_micro_batch(self, cluster: Cluster) -> int | None:
        """The most tokens, up to a rank's share of a step, that fit; None if one pair does not."""
        low = self.batch.longest_pair
        high = max(low, math.ceil(self.batch.tokens / cluster.ranks))
        if not self.fits(cluster, low):
            return None
        if self.fits(cluster, high):
            return high
        while high - low > FINEST:
            middle = (low + high) // 2
            low, high = (middle, high) if self.fits(cluster, middle) else (low, middle)
        return low

    def step(self, cluster: Cluster, micro_batch_tokens: int) -> Step:
        """A step in micro-batches of at most so many tokens, all alike."""
        per_rank = self.batch.sequences / cluster.ranks
        pair = self.batch.tokens / self.batch.sequences
        fitting = max(1, math.floor(micro_batch_tokens / pair))
        times = max(math.ceil(per_rank / fitting), self.recipe.batch.min_micro_batches)
        shape = self.batch.share(self.batch.tokens / cluster.ranks / times)
        weights = self.weights
        return Step(self.batch.config, self.ds_config(cluster), weights.trained, weights.tensors, shape, times)

    def time(self, cluster: Cluster, step: Step) -> dict[str, Any]:
        """A step's seconds by part and all that follows from them."""
        parts = step_seconds(step, self._machine(cluster, step.ds_config), cluster.topology)
        seconds = sum(parts.values())
        run = seconds * self.recipe.training.max_steps
        return {
            "seconds_by_part": parts,
            "seconds_per_step": seconds,
            "tokens_per_second": self.batch.tokens / seconds,
            "teraflops_per_gpu": self._operations() / seconds / cluster.ranks / 1e12,
            "days": run / DAY_S,
            "gpu_hours": run * cluster.ranks / HOUR_S,
        }

    def _machine(self, cluster: Cluster, ds_config: dict[str, Any]) -> Machine:
        name = precision(ds_config)
        if cluster.on_cpu:
            return this_machine(torch.bfloat16 if name == "bf16" else torch.float32)
        takes_tf32 = name == "fp32" and self.recipe.training.matmul_precision != "highest"
        dtype = "tf32" if takes_tf32 and "tf32" in cluster.device.operations else DTYPES[name]
        return Gpu(cluster.device, dtype, self.has_graphs(cluster))

    def _operations(self) -> float:
        """Of a step of equal pairs, as the log counts them."""
        pair = (
            np.array([side / self.batch.sequences]) for side in (self.batch.source_tokens, self.batch.target_tokens)
        )
        return float(self.batch.sequences * (work_of(*pair) @ operations_of(self.batch.config)))

    def checkpoint_bytes(self) -> int:
        """Of one checkpoint."""
        has_average = self.recipe.training.average is not None
        return checkpoint_bytes(self.weights.all, self.weights.trained, has_average)
