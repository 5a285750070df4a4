"""One choice of libraries for linear layers in a whole run: on all its ranks, and from start to start."""

import sys
from pathlib import Path
from typing import Any

import torch
from torch import distributed, nn

from deltalm_ds.errors import InputError
from deltalm_ds.files import read_json
from deltalm_ds.kernels.linear import PRODUCTS, Rates, setting, use
from deltalm_ds.linear_choice import find_rates, rates_of_record, record
from deltalm_ds.runs.events import record_event
from deltalm_ds.training.collectives import first_fault, of_all_ranks


def choose_for_all_ranks(model: nn.Module, device: torch.device, run: Path) -> None:
    """Let every rank use what rank 0 chooses for this model; nothing to do on a GPU. A collective.

    On a GPU the weights may lie in the host's memory all the same, so it is asked for the device that computes.

    A run that goes on keeps what it recorded, as other libraries round differently. Where it cannot, because machine,
    number of threads or DELTALM_LINEAR is another one, rank 0 says so, and events.jsonl has it.

    Raises:
        InputError: the ranks do not agree on DELTALM_LINEAR, or it names no library.
    """
    if device.type != "cpu":
        return
    _check_settings()
    before = _recorded(run) if distributed.get_rank() == 0 else {}
    rates: list[Rates] = [{}]
    if distributed.get_rank() == 0:
        rates = [find_rates(model, PRODUCTS, rates_of_record(before))]
    distributed.broadcast_object_list(rates)
    use(rates[0])
    if before and distributed.get_rank() == 0:
        _tell_change(before, run)


def _check_settings() -> None:
    own, fault = None, None
    try:
        own = setting()
    except InputError as error:
        fault = str(error)
    if (first := first_fault(fault)) is not None:
        raise InputError(first)
    settings = of_all_ranks(own)
    if len(set(settings)) > 1:
        raise InputError(f"DELTALM_LINEAR differs between ranks: {', '.join(settings)}. Set it alike on every host.")


def _recorded(run: Path) -> dict[str, Any]:
    """What the last start of this run used; nothing for a new one."""
    path = run / "environment.json"
    return read_json(path).get("linear", {}) if path.exists() else {}


def _tell_change(before: dict[str, Any], run: Path) -> None:
    was, now = _summary(before), _summary(record())
    if was == now:
        return
    print(f"Linear layers were computed by {was}, are computed by {now}: results differ in rounding.", file=sys.stderr)
    record_event(run, "changed", changes={"linear layers": (was, now)})


def _summary(recorded: dict[str, Any]) -> str:
    if recorded["setting"] != "auto":
        return recorded["setting"]
    libraries = [row["by"] for row in recorded["products"]]
    counts = ", ".join(f"{libraries.count(name)} of {name}" for name in sorted(set(libraries)))
    return f"the fastest on {recorded['machine']} ({counts or 'all of torch'})"
