"""A model without weights."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from deltalm_ds.model.config import DeltaLMConfig
from deltalm_ds.model.deltalm import DeltaLM


class _WithoutNormal(TorchFunctionMode):
    """Random numbers for a tensor without memory load PyTorch's compiler: more than a second, for nothing."""

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        keywords = kwargs or {}
        if function is nn.init.normal_:
            tensor: Tensor = keywords["tensor"]
            return tensor
        return function(*args, **keywords)


def empty_model(config: DeltaLMConfig) -> DeltaLM:
    """A model whose parameters have shapes but no memory."""
    with torch.device("meta"), _WithoutNormal():
        return DeltaLM(config)
