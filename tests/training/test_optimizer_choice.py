"""Which Adam a DeepSpeed engine gets, and what is said where one cannot run."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import deepspeed.ops.adam
import pytest
import torch
from deepspeed.ops.adam import DeepSpeedCPUAdam, FusedAdam

from deltalm_ds.errors import InputError
from deltalm_ds.recipe.schema import OptimizerSection
from deltalm_ds.training import deepspeed_engine
from deltalm_ds.training.deepspeed_engine import create_moments, make_optimizer
from deltalm_ds.training.parameter_states import MOMENTS

PLAIN = {"stage": 2}
OFFLOADED = {"stage": 2, "offload_optimizer": {"device": "cpu"}}


def made(zero: dict[str, Any], **options: Any) -> torch.optim.Optimizer:
    return make_optimizer(torch.nn.Linear(2, 3), OptimizerSection(**options), zero)


class NativeCode:
    """Stands for what DeepSpeed's Adams compile when they are made; puts down what they call it with."""

    def __init__(self) -> None:
        self.made: list[Any] = []
        self.updates: list[tuple[Any, ...]] = []

    def load(self) -> "NativeCode":
        return self

    def create_adam(self, *settings: Any) -> None:
        self.made.append(settings)

    def destroy_adam(self, number: int) -> None: ...

    def adam_update(self, *arguments: Any) -> None:
        self.updates.append(arguments)

    def multi_tensor_adam(self, *arguments: Any) -> None:
        self.updates.append(arguments)


@pytest.fixture
def native_code(monkeypatch: pytest.MonkeyPatch) -> NativeCode:
    """DeepSpeed's own Adams, all but what they compile."""
    native_code = NativeCode()
    monkeypatch.setattr(deepspeed.ops.adam.cpu_adam, "CPUAdamBuilder", lambda: native_code)
    monkeypatch.setattr(deepspeed.ops.adam.fused_adam, "FusedAdamBuilder", lambda: native_code)
    return native_code


def test_the_default_is_torchs_fused_adam() -> None:
    optimizer = made(PLAIN, betas=(0.8, 0.9), eps=1e-6, weight_decay=0.1)
    assert type(optimizer) is torch.optim.AdamW
    expected = {"lr": 0.0, "betas": (0.8, 0.9), "eps": 1e-6, "weight_decay": 0.1, "fused": True}
    assert expected.items() <= optimizer.defaults.items()
    assert type(made(OFFLOADED)) is torch.optim.AdamW


@pytest.mark.parametrize(
    ("zero", "options", "has_gpu", "expected"),
    [
        (OFFLOADED, {"implementation": "deepspeed"}, True, "DeepSpeedCPUAdam"),
        (PLAIN, {"implementation": "deepspeed"}, False, "DeepSpeedCPUAdam"),
        (PLAIN, {"implementation": "deepspeed"}, True, "FusedAdam"),
    ],
)
def test_deepspeeds_where_the_weights_are(
    monkeypatch: pytest.MonkeyPatch,
    native_code: NativeCode,
    zero: dict[str, Any],
    options: dict[str, Any],
    has_gpu: bool,
    expected: str,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: has_gpu)
    optimizer = made(zero, eps=1e-6, weight_decay=0.1, **options)
    assert type(optimizer).__name__ == expected
    assert optimizer.adam_w_mode  # weight decay beside the moments, as torch's AdamW and fairseq
    (group,) = optimizer.param_groups
    assert {
        "lr": 0.0,
        "betas": (0.9, 0.98),
        "eps": 1e-6,
        "weight_decay": 0.1,
        "bias_correction": True,
    }.items() <= group.items()
    assert [p.shape for p in group["params"]] == [(3, 2), (3,)]


def test_a_missing_compiler_is_said(monkeypatch: pytest.MonkeyPatch, native_code: NativeCode) -> None:
    def fail() -> None:
        raise OSError("g++: not found\nmore")

    monkeypatch.setattr(native_code, "load", fail)
    with pytest.raises(InputError, match=r"^DeepSpeed's DeepSpeedCPUAdam cannot be compiled here: g\+\+: not found\. "):
        made(OFFLOADED, implementation="deepspeed")


def test_apex_is_asked_for_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deepspeed_engine, "apex_adam", lambda parameters, *settings: settings)
    assert made(PLAIN, implementation="apex", eps=1e-6) == ((0.9, 0.98), 1e-6, 0.0)


@pytest.mark.parametrize(
    ("zero", "options", "message"),
    [
        (
            OFFLOADED,
            {"definition": "fairseq", "implementation": "deepspeed"},
            "fairseq goes with optimizer.implementation",
        ),
        (PLAIN, {"definition": "fairseq", "implementation": "apex"}, "fairseq goes with optimizer.implementation"),
    ],
)
def test_what_does_not_go_together_is_refused(zero: dict[str, Any], options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        made(zero, **options)


@pytest.mark.parametrize("make", [torch.optim.AdamW, DeepSpeedCPUAdam, FusedAdam])
def test_a_step_goes_on_from_the_moments_and_the_count_that_are_made(
    make: Callable[..., torch.optim.Optimizer], native_code: NativeCode, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The optimizers' own code reads them: under another name, or of another kind, they would start anew."""
    monkeypatch.setattr(deepspeed_engine, "link_moments", lambda ds_engine: None)  # of a DeepSpeed engine
    weight = torch.nn.Parameter(torch.ones(3))
    optimizer = make([weight], lr=0.0)
    zero = SimpleNamespace(optimizer=optimizer)
    create_moments(SimpleNamespace(optimizer=zero, zero_optimization_stage=lambda: 2), 7)
    state = optimizer.state[weight]
    moments = [state[name] for name in MOMENTS]
    assert all(torch.equal(moment, torch.zeros(3)) for moment in moments)
    weight.grad = torch.ones(3)
    optimizer.step()
    assert int(state["step"]) == 8
    assert state.keys() == {"step", *MOMENTS}
    assert [state[name] for name in MOMENTS] == moments or make is torch.optim.AdamW
