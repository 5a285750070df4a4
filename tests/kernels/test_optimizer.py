"""Adam in both definitions against the formulas, written with numpy."""

import inspect
import sys
from types import ModuleType

import numpy as np
import pytest
import torch

from deltalm_ds.errors import InputError
from deltalm_ds.kernels import dispatch
from deltalm_ds.kernels.optimizer import adam, apex_adam

BETAS, STEPS = (0.9, 0.98), 300


def formula(definition, start, gradients, rates, eps, weight_decay):
    p, m, v = start.copy(), np.zeros_like(start), np.zeros_like(start)
    for t, (gradient, rate) in enumerate(zip(gradients, rates, strict=True), start=1):
        m = BETAS[0] * m + (1 - BETAS[0]) * gradient
        v = BETAS[1] * v + (1 - BETAS[1]) * gradient**2
        correction_1, correction_2 = 1 - BETAS[0] ** t, 1 - BETAS[1] ** t
        p = p * (1 - rate * weight_decay)
        if definition == "fairseq":
            p = p - rate * np.sqrt(correction_2) / correction_1 * m / (np.sqrt(v) + eps)
        else:
            p = p - rate * (m / correction_1) / (np.sqrt(v / correction_2) + eps)
    return p


def trained(definition, start, gradients, rates, eps, weight_decay):
    parameter = torch.nn.Parameter(torch.from_numpy(start.copy()))
    untouched = torch.nn.Parameter(torch.ones(2, dtype=torch.float64))
    optimizer = adam([parameter, untouched], BETAS, eps, weight_decay, definition)
    for gradient, rate in zip(gradients, rates, strict=True):
        parameter.grad = torch.from_numpy(gradient.copy())
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
    assert torch.equal(untouched.detach(), torch.ones(2, dtype=torch.float64))  # it has no gradient
    assert {"exp_avg", "exp_avg_sq", "step"} <= optimizer.state[parameter].keys()
    return parameter.detach().numpy()


@pytest.fixture
def problem():
    generator = np.random.default_rng(0)
    # gradients as small as a large eps, so that its place in the formula matters
    return generator.normal(size=7), generator.normal(size=(STEPS, 7)) * 1e-3, np.linspace(1e-4, 1e-2, STEPS)


@pytest.mark.parametrize("definition", ["torch", "fairseq"])
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_formula(problem, definition, weight_decay):
    found = trained(definition, *problem, 1e-3, weight_decay)
    np.testing.assert_allclose(found, formula(definition, *problem, 1e-3, weight_decay), rtol=1e-10)


def test_the_definitions_differ_where_eps_counts_and_only_there(problem):
    found = {definition: trained(definition, *problem, 1e-3, 0.0) for definition in ("torch", "fairseq")}
    assert np.abs(found["torch"] - found["fairseq"]).max() > 1e-3
    found = {definition: trained(definition, *problem, 1e-16, 0.0) for definition in ("torch", "fairseq")}
    np.testing.assert_allclose(found["torch"], found["fairseq"], rtol=1e-9)


@pytest.mark.parametrize("definition", ["torch", "fairseq"])
def test_it_goes_on_from_restored_moments_and_count(problem, definition):
    """The place of eps depends on the number of updates, which a resumed run has in the state alone."""
    start, gradients, rates = problem
    whole = trained(definition, start, gradients[:20], rates[:20], 1e-3, 0.1)
    parameter = torch.nn.Parameter(torch.from_numpy(start.copy()))
    optimizer = adam([parameter], BETAS, 1e-3, 0.1, definition)
    for number, (gradient, rate) in enumerate(zip(gradients[:20], rates[:20], strict=True)):
        if number == 9:
            state = optimizer.state[parameter]
            optimizer = adam([parameter], BETAS, 1e-3, 0.1, definition)
            optimizer.state[parameter] = {key: value.clone() for key, value in state.items()}
        optimizer.param_groups[0]["lr"] = rate
        parameter.grad = torch.from_numpy(gradient.copy())
        optimizer.step()
    np.testing.assert_array_equal(parameter.detach().numpy(), whole)


def test_the_count_of_steps_is_read_once(problem, monkeypatch):
    """On a GPU the host waits for it; without it fairseq's formula would still have its own step."""
    reads = []
    read = torch.Tensor.__int__
    monkeypatch.setattr(torch.Tensor, "__int__", lambda x: reads.append(x) or read(x))
    start, gradients, rates = problem
    found = trained("fairseq", start, gradients[:50], rates[:50], 1e-3, 0.1)
    np.testing.assert_allclose(found, formula("fairseq", start, gradients[:50], rates[:50], 1e-3, 0.1), rtol=1e-10)
    assert len(reads) == 1


def test_a_step_without_gradients_is_none(problem):
    """torch does not count it either."""
    start, gradients, rates = problem
    parameter = torch.nn.Parameter(torch.from_numpy(start.copy()))
    optimizer = adam([parameter], BETAS, 1e-3, 0.0, "fairseq")
    for number, (gradient, rate) in enumerate(zip(gradients[:8], rates[:8], strict=True)):
        optimizer.param_groups[0]["lr"] = rate
        if number in (0, 5):
            parameter.grad = None
            optimizer.step()
        parameter.grad = torch.from_numpy(gradient.copy())
        optimizer.step()
    expected = formula("fairseq", start, gradients[:8], rates[:8], 1e-3, 0.0)
    np.testing.assert_allclose(parameter.detach().numpy(), expected, rtol=1e-10)


def test_apex_is_refused_where_it_cannot_run(monkeypatch):
    parameters = [torch.nn.Parameter(torch.ones(2))]
    monkeypatch.setattr(dispatch, "apex_is_installed", lambda: False)
    with pytest.raises(InputError, match="implementation: apex needs NVIDIA's apex"):
        apex_adam(parameters, BETAS, 1e-8, 0.0)
    monkeypatch.setattr(dispatch, "apex_is_installed", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match="for GPUs only"):
        apex_adam(parameters, BETAS, 1e-8, 0.0)


@pytest.mark.skipif(not dispatch.apex_is_installed(), reason="NVIDIA's apex is not installed")
def test_apex_has_what_is_asked_of_it():
    from apex.normalization.fused_layer_norm import fused_layer_norm_affine
    from apex.optimizers import FusedAdam

    settings = {"lr", "betas", "eps", "weight_decay", "adam_w_mode"}
    assert settings <= inspect.signature(FusedAdam).parameters.keys()
    arguments = ["input", "weight", "bias", "normalized_shape", "eps"]
    assert list(inspect.signature(fused_layer_norm_affine).parameters)[:5] == arguments


def test_apex_gets_the_settings(monkeypatch):
    """A stand-in, as neither apex nor a GPU is here."""
    module = ModuleType("apex.optimizers")
    module.FusedAdam = lambda parameters, **settings: (list(parameters), settings)
    monkeypatch.setitem(sys.modules, "apex", ModuleType("apex"))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(dispatch, "apex_is_installed", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    parameters, settings = apex_adam(iter([1, 2]), BETAS, 1e-6, 0.01)
    assert parameters == [1, 2]
    assert settings == {"lr": 0.0, "betas": BETAS, "eps": 1e-6, "weight_decay": 0.01, "adam_w_mode": True}
