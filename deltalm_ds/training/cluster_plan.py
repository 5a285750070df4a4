"""`deltalm plan --gpu`: memory, time, checkpoints and cost of a recipe on a cluster, one by one, compared, or scaled.

Memory and times are compared with measured ones on processors (benchmarks/RESULTS.md), and what a GPU has in common
with them is the same code. Times of a GPU are a model that no measured step has confirmed; the plan says so.
"""

from typing import Any

from deltalm_ds.devices import DEVICES, GIB, find_device
from deltalm_ds.errors import InputError
from deltalm_ds.model.config import PRESETS, DeltaLMConfig
from deltalm_ds.model.empty import empty_model
from deltalm_ds.recipe.schema import Recipe
from deltalm_ds.training.checkpoint_interval import GPU_HOURS_A_FAILURE, saving
from deltalm_ds.training.deepspeed_config import precision
from deltalm_ds.training.planned_batch import planned_batch
from deltalm_ds.training.planner import DAY_S, THIS, Cluster, Planner, cluster_of, this_cluster

STAGES = (1, 2, 3)
COMPARED_HOSTS = (1, 2, 4, 8)
KILO_WATT_HOUR = 3.6e6  # joules
TAKEN_OVER = 0.5  # of a step's time: what communication takes when it has taken over
ACCURACY = {
    "memory": "not measured on a GPU; on processors within 10 % of the measured peak (benchmarks/RESULTS.md)",
    "time": "a model that no GPU has confirmed (docs/planning.md says what to measure)",
}
ACCURACY_HERE = {
    "memory": "within 10 % of the measured peak on two ranks (benchmarks/RESULTS.md)",
    "time": "by rates measured just now; within 15 % of measured steps at four sizes (benchmarks/RESULTS.md)",
}


def find_cluster(gpu: str, hosts: int, slots: int, network_gbit: float | None = None) -> Cluster:
    """A cluster of a GPU of the table, or one rank of this machine.

    Args:
        gpu: its name, or `this`.
        hosts: number of hosts.
        slots: GPUs of each.
        network_gbit: 10⁹ bits a second of a host, one way, where it is not the table's.

    Raises:
        InputError: there is no such GPU, or more than one rank of this machine is asked for.
    """
    if gpu != THIS:
        return cluster_of(*find_device(gpu), hosts, slots, network_gbit * 1e9 / 8 if network_gbit else None)
    if (hosts, slots) != (1, 1):
        raise InputError("--gpu this plans one rank of this machine: leave out --hosts and --slots.")
    return this_cluster()


def make_cluster_plan(
    recipe: Recipe,
    cluster: Cluster,
    gpu_hours_a_failure: float = GPU_HOURS_A_FAILURE,
    price_per_gpu_hour: float | None = None,
) -> dict[str, Any]:
    """All of a recipe on a cluster; JSON-ready.

    Args:
        recipe: of the training; what it names need not be here.
        cluster: that it is planned for.
        gpu_hours_a_failure: mean hours between failures of one GPU.
        price_per_gpu_hour: of a GPU with its share of the host.

    Raises:
        InputError: the recipe cannot be trained there; the message says what could.
    """
    planner = Planner(recipe, planned_batch(recipe))
    planner.check(cluster)
    stages = [_of_stage(planner.at_stage(stage), cluster, stage) for stage in STAGES]
    ds_config = planner.ds_config(cluster)
    own_stage = planner.stage
    if stages[own_stage - 1]["largest_micro_batch_tokens"] is None:
        raise InputError(_what_fits(planner, cluster, stages))
    own = stages[own_stage - 1]
    checkpoint_bytes = planner.checkpoint_bytes()
    saved = saving(checkpoint_bytes, cluster.topology.hosts, cluster.ranks, gpu_hours_a_failure)
    return {
        "recipe": recipe.name,
        "gpu": cluster.name,
        "hosts": cluster.topology.hosts,
        "slots": cluster.topology.slots,
        "ranks": cluster.ranks,
        "usable_bytes_per_rank": cluster.usable_bytes,
        "link_bytes_per_second": None if cluster.on_cpu else cluster.topology.link_rate,
        "network_bytes_per_second_of_host": None if cluster.on_cpu else cluster.topology.network_rate,
        "deepspeed": {"name": recipe.deepspeed, "precision": precision(ds_config), "zero_stage": own_stage},
        "cuda_graphs": planner.has_graphs(cluster),
        "num_parameters": empty_model(planner.batch.config).num_parameters(),
        "pairs_per_step": planner.batch.sequences,
        "source_tokens_per_step": planner.batch.source_tokens,
        "target_tokens_per_step": planner.batch.target_tokens,
        "assumed": list(planner.batch.assumed),
        "accuracy": ACCURACY_HERE if cluster.on_cpu else ACCURACY,
        "stages": stages,
        "memory_bytes_per_rank": own["memory_bytes_per_rank"],
        **{name: own[name] for name in _TIMES},
        "checkpoint_bytes": checkpoint_bytes,
        "saving": {
            "gpu_hours_a_failure": gpu_hours_a_failure,
            "interval_seconds": saved.interval,
            "save_every": max(1, round(saved.interval / own["seconds_per_step"])),
            "copy_seconds": saved.copying,
            "write_seconds": saved.writing,
            "lost_share": saved.lost_share,
        },
        "energy_kwh": own["days"] * DAY_S * cluster.ranks * cluster.device.watts / KILO_WATT_HOUR or None,
        "price": None if price_per_gpu_hour is None else price_per_gpu_hour * own["gpu_hours"],
    }


_TIMES = (
    *("micro_batch_tokens", "micro_batches_per_rank", "largest_micro_batch_tokens", "seconds_by_part"),
    *("seconds_per_step", "tokens_per_second", "teraflops_per_gpu", "days", "gpu_hours"),
)


def _of_stage(planner: Planner, cluster: Cluster, stage: int) -> dict[str, Any]:
    """Memory and time of a ZeRO stage, with the recipe's micro-batches if they fit, else with the largest that do."""
    asked = planner.recipe.batch.micro_batch_tokens
    largest = planner.largest_micro_batch(cluster)
    row: dict[str, Any] = {
        "zero_stage": stage,
        "fits_as_the_recipe_says": largest is not None and planner.fits(cluster, asked),
        "largest_micro_batch_tokens": largest,
    }
    if largest is None:
        return row | {"memory_bytes_per_rank": planner.memory(cluster, planner.batch.longest_pair)}
    used = asked if row["fits_as_the_recipe_says"] else largest
    step = planner.step(cluster, used)
    return row | {
        "micro_batch_tokens": used,
        "micro_batches_per_rank": step.num_micro_batches,
        "memory_bytes_per_rank": planner.memory(cluster, used),
        **planner.time(cluster, step),
    }


def _what_fits(planner: Planner, cluster: Cluster, stages: list[dict[str, Any]]) -> str:
    """A sentence on a model that is too large, and what would not be."""
    recipe, config = planner.recipe, planner.batch.config
    name = precision(planner.ds_config(cluster))
    helps = [
        f"deepspeed={name}_zero{row['zero_stage']}" for row in stages if row["largest_micro_batch_tokens"] is not None
    ]
    checkpointed = planner.of_config(config.model_copy(update={"activation_checkpointing": True}))
    if checkpointed.fits(cluster, planner.batch.longest_pair):
        helps.append("model.activation_checkpointing=true")
    others = [other for other, device in DEVICES.items() if device.memory_bytes > cluster.device.memory_bytes]
    for other in sorted(others, key=lambda other: DEVICES[other].memory_bytes):
        topology = cluster.topology
        larger = cluster_of(other, DEVICES[other], topology.hosts, topology.slots)
        if planner.fits(larger, planner.batch.longest_pair):
            helps.append(f"--gpu {other}")
            break
    needed = planner.memory(cluster, planner.batch.longest_pair)["total"] / GIB
    return (
        f"{recipe.name} with {recipe.deepspeed} does not fit on {cluster.name}: one pair of "
        f"{planner.batch.longest_pair} tokens takes {needed:.1f} GiB of {cluster.usable_bytes / GIB:.1f}; what fits: "
        f"{', or '.join(helps) or 'more ranks, or a smaller model'}."
    )


def compare_clusters(recipe: Recipe, slots: int = 8) -> list[dict[str, Any]]:
    """A recipe with each preset on each GPU and number of hosts, at the fastest ZeRO stage that fits; JSON-ready rows.

    A GPU without bfloat16 is given float16.
    """
    batch = planned_batch(recipe)
    rows = []
    for preset in PRESETS:
        shape = {"vocabulary_size": batch.config.vocabulary_size, "max_positions": batch.config.max_positions}
        planner = Planner(recipe, batch).of_config(DeltaLMConfig.preset(preset, **shape))
        for name, device in DEVICES.items():
            for hosts in COMPARED_HOSTS:
                rows.append({"preset": preset, **_compared(planner, cluster_of(name, device, hosts, slots))})
    return rows


def _compared(planner: Planner, cluster: Cluster) -> dict[str, Any]:
    row = {"gpu": cluster.name, "hosts": cluster.topology.hosts, "ranks": cluster.ranks}
    if planner.batch.sequences < cluster.ranks:
        return row | {"reason": "too few pairs"}
    fitting = [
        _of_stage(at_stage, cluster, stage)
        for stage in STAGES
        for at_stage in [planner.computable_on(cluster).at_stage(stage)]
    ]
    timed = [of_stage for of_stage in fitting if of_stage["largest_micro_batch_tokens"] is not None]
    if not timed:
        return row | {"reason": "nothing fits"}
    best = min(timed, key=lambda of_stage: of_stage["seconds_per_step"])
    return row | {name: best[name] for name in ("zero_stage", *_TIMES) if name != "seconds_by_part"}


def scale_cluster(recipe: Recipe, cluster: Cluster, most_ranks: int) -> list[dict[str, Any]]:
    """Tokens a second of the same global batch on 1, 2, 4, … ranks, hosts filled one after the other; JSON-ready rows.

    Args:
        recipe: of the training.
        cluster: whose GPU, slots and network are taken.
        most_ranks: where the curve ends; it ends before where there would be more ranks than pairs.
    """
    planner = Planner(recipe, planned_batch(recipe))
    rows: list[dict[str, Any]] = []
    ranks = 1
    while ranks <= min(most_ranks, planner.batch.sequences):
        slots = min(ranks, cluster.topology.slots)
        hosts = -(-ranks // slots)
        here = cluster_of(cluster.name, cluster.device, hosts, slots, cluster.topology.network_rate)
        largest = planner.largest_micro_batch(here)
        if largest is not None:
            used = min(largest, planner.recipe.batch.micro_batch_tokens)
            step = planner.step(here, used)
            found = planner.time(here, step)
            sent = found["seconds_by_part"]["communication"] / found["seconds_per_step"]
            row = {"ranks": ranks, "hosts": hosts, "micro_batches_per_rank": step.num_micro_batches}
            row |= {name: found[name] for name in ("seconds_per_step", "tokens_per_second", "days", "gpu_hours")}
            rows.append(row | {"communication_share": sent, "taken_over": sent > TAKEN_OVER})
        ranks *= 2
    if rows:
        first = rows[0]["tokens_per_second"] / rows[0]["ranks"]
        rows = [row | {"efficiency": row["tokens_per_second"] / row["ranks"] / first} for row in rows]
    return rows
