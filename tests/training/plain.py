"""Training in plain PyTorch, in one process, and how far a run of DeepSpeed's is from it."""

from types import SimpleNamespace

import torch

from deltalm_ds.model.deltalm import DeltaLM
from deltalm_ds.runs.metrics import OF_THE_MOMENT, read_metrics
from deltalm_ds.training.inputs import open_inputs


def records(run, kind="train"):
    """The records of a run without what depends on the machine."""
    return [
        {key: value for key, value in record.items() if key not in OF_THE_MOMENT}
        for record in read_metrics(run)
        if record["kind"] == kind
    ]


def largest_difference(run, expected, key="loss"):
    """Of all steps, relative."""
    found = [record[key] for record in records(run)]
    assert len(found) == len(expected)
    return max(abs(a - b) / abs(b) for a, b in zip(found, expected, strict=True))


def plain_training(recipe, num_steps):
    """AdamW, clipping and schedule written down; one process, the whole batch at once. Returns losses and norms."""
    inputs = open_inputs(recipe)
    torch.manual_seed(recipe.seed)
    model = DeltaLM(inputs.model_config).train()
    parameters = list(model.parameters())
    moments = [(torch.zeros_like(p), torch.zeros_like(p)) for p in parameters]
    (beta_1, beta_2), eps = recipe.optimizer.betas, recipe.optimizer.eps
    losses, norms = [], []
    for step in range(num_steps):
        batches = inputs.stream.micro_batches(step, rank=0, world_size=1)
        model.zero_grad()
        sums = [model(b.source, b.target_input, b.labels, 0.1).loss for b in batches.micro_batches]
        loss = sum(sums) / batches.num_target_tokens
        loss.backward()
        norm = torch.sqrt(sum(p.grad.double().square().sum() for p in parameters)).item()
        clip = min(1.0, recipe.training.clip_norm / (norm + 1e-6))
        peak, warmup = recipe.schedule.peak_lr, recipe.schedule.warmup_steps
        lr = peak * step / warmup if step < warmup else peak * (warmup / step) ** 0.5
        with torch.no_grad():
            for p, (m, v) in zip(parameters, moments, strict=True):
                m.lerp_(clip * p.grad, 1 - beta_1)
                v.lerp_((clip * p.grad) ** 2, 1 - beta_2)
                p.mul_(1 - lr * recipe.optimizer.weight_decay)
                p.sub_(lr * (m / (1 - beta_1 ** (step + 1))) / ((v / (1 - beta_2 ** (step + 1))).sqrt() + eps))
        losses.append(loss.item())
        norms.append(norm)
    return SimpleNamespace(losses=losses, norms=norms)
