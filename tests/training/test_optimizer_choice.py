"""Which Adam a DeepSpeed engine gets, and what is said where one cannot run."""

from types import SimpleNamespace
from typing import Any

import deepspeed.ops.adam
import pytest
import torch

from deltalm_ds.errors import InputError
from deltalm_ds.recipe.schema import OptimizerSection
from deltalm_ds.training import deepspeed_engine
from deltalm_ds.training.deepspeed_engine import create_moments, make_optimizer

PLAIN = {"stage": 2}
OFFLOADED = {"stage": 2, "offload_optimizer": {"device": "cpu"}}


def made(zero: dict[str, Any], **options: Any) -> torch.optim.Optimizer:
    return make_optimizer(torch.nn.Linear(2, 3), OptimizerSection(**options), zero)


class Recorded:
    """Stands for an optimizer that compiles when it is made."""

    def __init__(self, parameters: Any, **settings: Any) -> None:
        self.shapes, self.settings = [p.shape for p in parameters], settings


class Uncompiled:
    def __init__(self, parameters: Any, **settings: Any) -> None:
        raise RuntimeError("failed to build") from OSError("g++: not found\nmore")


def test_the_default_is_torchs_fused_adam() -> None:
    optimizer = made(PLAIN, betas=(0.8, 0.9), eps=1e-6, weight_decay=0.1)
    assert type(optimizer) is torch.optim.AdamW
    expected = {"lr": 0.0, "betas": (0.8, 0.9), "eps": 1e-6, "weight_decay": 0.1, "fused": True}
    assert expected.items() <= optimizer.defaults.items()
    assert type(made({"stage": 1, "offload_optimizer": {"device": "none"}})) is torch.optim.AdamW


@pytest.mark.parametrize(
    ("zero", "options", "has_gpu", "expected"),
    [
        (OFFLOADED, {}, True, "DeepSpeedCPUAdam"),
        (PLAIN, {"implementation": "deepspeed"}, False, "DeepSpeedCPUAdam"),
        (PLAIN, {"implementation": "deepspeed"}, True, "FusedAdam"),
    ],
)
def test_deepspeeds_where_the_weights_are(
    monkeypatch: pytest.MonkeyPatch, zero: dict[str, Any], options: dict[str, Any], has_gpu: bool, expected: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: has_gpu)
    for name in ("DeepSpeedCPUAdam", "FusedAdam"):
        monkeypatch.setattr(deepspeed.ops.adam, name, type(name, (Recorded,), {}))
    optimizer = made(zero, eps=1e-6, **options)
    assert type(optimizer).__name__ == expected
    assert optimizer.settings == {"lr": 0.0, "betas": (0.9, 0.98), "eps": 1e-6, "weight_decay": 0.0}
    assert optimizer.shapes == [(3, 2), (3,)]


def test_a_missing_compiler_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deepspeed.ops.adam, "DeepSpeedCPUAdam", Uncompiled)
    with pytest.raises(InputError, match=r"^DeepSpeed's Uncompiled cannot be compiled here: g\+\+: not found$"):
        made(OFFLOADED)


def test_apex_is_asked_for_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deepspeed_engine, "apex_adam", lambda parameters, *settings: settings)
    assert made(PLAIN, implementation="apex", eps=1e-6) == ((0.9, 0.98), 1e-6, 0.0)


@pytest.mark.parametrize(
    ("zero", "options", "message"),
    [
        (OFFLOADED, {"implementation": "torch"}, "torch cannot be offloaded"),
        (OFFLOADED, {"implementation": "apex"}, "apex cannot be offloaded"),
        (OFFLOADED, {"definition": "fairseq"}, "fairseq's is for implementation: torch, without offload"),
        (PLAIN, {"definition": "fairseq", "implementation": "apex"}, "fairseq's is for implementation: torch"),
        ({"stage": 3}, {"implementation": "apex"}, "apex miscounts steps with ZeRO stage 3"),
    ],
)
def test_what_does_not_go_together_is_refused(zero: dict[str, Any], options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        made(zero, **options)


@pytest.mark.parametrize("counts_in_tensor", [True, False])
def test_the_count_of_updates_is_of_the_kind_that_the_optimizer_reads(counts_in_tensor: bool) -> None:
    weight = torch.nn.Parameter(torch.ones(3))
    make = torch.optim.AdamW if counts_in_tensor else torch.optim.SGD
    optimizer = make([weight], lr=0.0)
    zero = SimpleNamespace(optimizer=optimizer, _lazy_init_hp_params_optimizer_state=lambda: None)
    create_moments(SimpleNamespace(optimizer=zero, zero_optimization_stage=lambda: 2), 7)
    state = optimizer.state[weight]
    assert torch.equal(state["exp_avg"], torch.zeros(3))
    assert type(state["step"]) is (torch.Tensor if counts_in_tensor else int)
    assert int(state["step"]) == 7
    assert counts_in_tensor or optimizer.param_groups[0]["step"] == 7
