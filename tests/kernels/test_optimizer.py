"""Adam in both definitions against the formulas, written with numpy."""

import numpy as np
import pytest
import torch

from deltalm_ds.kernels.optimizer import adam

BETAS, STEPS = (0.9, 0.98), 12


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
