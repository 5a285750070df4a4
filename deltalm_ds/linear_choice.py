"""Which library multiplies matrices on this machine's processor: measured once, remembered in the user's cache.

`use_fastest` is for programs that train in one process; `train` agrees on one choice for all its ranks. Where a model
does not change, nothing is chosen (`kernels/linear.py`).
"""

from collections.abc import Iterable
from typing import Any

from torch import nn

from deltalm_ds.errors import os_error_sentence
from deltalm_ds.files import write_json
from deltalm_ds.kernels.linear import (
    AUTO,
    CONTENDERS,
    PRODUCTS,
    SMALL_WEIGHT,
    Layer,
    Rates,
    contenders,
    fastest,
    in_use,
    setting,
    use,
)
from deltalm_ds.kernels.linear_rates import classes, measure
from deltalm_ds.machine import locked_memory, machine, memory_path, read_memory
from deltalm_ds.streams import say

MEMORY = "linear"


def use_fastest(model: nn.Module, products: Iterable[str] = PRODUCTS) -> None:
    """Let the fastest library compute this model's linear layers from now on; nothing to do on a GPU.

    Args:
        model: of its final dtype, and torch of its final number of threads.
        products: those that will be needed.
    """
    use(find_rates(model, products))


def find_rates(model: nn.Module, products: Iterable[str], known: Rates | None = None) -> Rates:
    """The rates of this model's products: those that are known or remembered, the others measured and remembered.

    Nothing on a GPU and where DELTALM_LINEAR forces a library. Nothing, so that PyTorch computes everything, also where
    rates cannot be remembered: they would differ from process to process, and with them the last bits of results.
    """
    layers = _layers(model)
    if setting() != AUTO or not layers:
        return {}
    needed = classes(layers, products)
    rates = dict(known or {})
    if needed.keys() <= rates.keys():
        return {name: rates[name] for name in needed}
    try:
        with locked_memory(MEMORY) as path:
            memory = read_memory(path)
            rates = {**_sound(memory.get(machine())), **rates}
            missing = {name: case for name, case in needed.items() if name not in rates}
            if missing:
                rates |= measure(missing)
                write_json(path, {**memory, machine(): rates})
    except OSError as error:
        say(
            f"what was measured cannot be written ({os_error_sentence(error)[:-1]}): PyTorch computes every product, "
            "even where another one is faster. XDG_CACHE_HOME names another place."
        )
        return {}
    return {name: rates[name] for name in needed}


def record() -> dict[str, Any]:
    """What serves linear layers on this processor: the setting, and each class measured, as plain JSON."""
    rates = in_use() or _remembered()
    products = [{"product": name, "by": fastest(of_class), **of_class} for name, of_class in rates.items()]
    return {"setting": setting(), "machine": machine(), "unit": "GFLOP/s", "products": products}


def rates_of_record(recorded: dict[str, Any]) -> Rates:
    """The rates of a `record`, if it was made on a machine like this one, in as many threads."""
    if recorded.get("machine") != machine():
        return {}
    return _sound(
        {
            row["product"]: {name: rate for name, rate in row.items() if name not in ("product", "by")}
            for row in recorded["products"]
        }
    )


def _layers(model: nn.Module) -> list[Layer]:
    """The linear layers of different shapes, the output layer with the token table among them, largest first."""
    weight = next(model.parameters())
    dtype = weight.dtype
    if weight.device.type != "cpu" or len(contenders(dtype)) == 1:
        return []
    shapes = {(module.out_features, module.in_features) for module in model.modules() if isinstance(module, nn.Linear)}
    shapes |= {(m.num_embeddings, m.embedding_dim) for m in model.modules() if isinstance(m, nn.Embedding)}
    return [Layer(*shape, dtype) for shape in sorted(shapes, reverse=True) if shape[0] * shape[1] >= SMALL_WEIGHT]


def _remembered() -> Rates:
    """What is remembered of this machine, as far as it can be read."""
    try:
        return _sound(read_memory(memory_path(MEMORY)).get(machine()))
    except OSError:
        return {}


def _sound(rates: Any) -> Rates:
    """Those that this version can use; others may have written the file."""
    if not isinstance(rates, dict):
        return {}
    return {name: of_class for name, of_class in rates.items() if _is_sound(of_class)}


def _is_sound(of_class: Any) -> bool:
    is_known = isinstance(of_class, dict) and "torch" in of_class and of_class.keys() <= CONTENDERS.keys()
    return is_known and all(isinstance(rate, int | float) for rate in of_class.values())
