"""What is kept of a step that is not finite: where it began, the rows of the batch, norms by layer. Bounded in number.

`RUN/forensics/step_00001234/` holds summary.json and, of each rank that found something, its micro-batches as
rank_00000.npz. Of micro-batch k there are `k.source`, `k.target`, `k.labels` (tokens), `k.source_ends`, `k.target_ends`
(where sequences begin and end), `k.component`, `k.row` (of each sequence but padding) and `k.token_loss`.
"""

import math
import socket
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, distributed, nn
from torch.utils.hooks import RemovableHandle

from deltalm_ds.data.collation import Batch
from deltalm_ds.data.micro_batches import deal_micro_batches
from deltalm_ds.data.stream import TrainingStream
from deltalm_ds.files import atomic_file, finite, publish_directory, write_json
from deltalm_ds.recipe.schema import Recipe
from deltalm_ds.runs.attempts import end_if_taken_over, temporary_of_attempt
from deltalm_ds.training.collectives import first_fault, of_all_ranks
from deltalm_ds.training.graphs import GraphedForward

FORENSICS = "forensics"  # of a run directory
MOST_BUNDLES = 5  # of a run
MOST_ROWS = 20  # that are named

Losses = list[tuple[Batch, Tensor, Tensor]]


def whereabouts(device: torch.device) -> str:
    """Which rank this is, on which host and device."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "processor"
    return f"rank {distributed.get_rank()} on {socket.gethostname()} ({device}, {name})"


class Search:
    """Looks for the first tensor that is not finite, in order of time, while a model computes in its block.

    Recorded graphs are not used inside: nothing could be seen of them.

    Attributes:
        first: what it is: a weight, the output of a layer, or a gradient; None if all are finite.
        micro_batch: where it was found, from 0.
        largest: the largest magnitude of each layer's output.
        squares: of each parameter's gradient, the sum; of this rank alone, times the loss scale.
        weights: the norm of each weight, at ZeRO stage 3 of this rank's part.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model, self._handles = model, list[RemovableHandle]()
        self.first: str | None = None
        self.micro_batch = -1
        self.largest: dict[str, float] = {}
        self.squares: dict[str, float] = defaultdict(float)
        self.weights: dict[str, float] = {}

    def __enter__(self) -> "Search":
        self._recorded = self._model.__dict__.get("forward")
        if isinstance(self._recorded, GraphedForward):
            del self._model.forward
        for name, parameter in self._model.named_parameters():
            held = getattr(parameter, "ds_tensor", parameter).detach()
            self.weights[name] = _norm(held)
            self._note(f"the weight {name}", held)
            if parameter.requires_grad:
                self._handles.append(parameter.register_hook(self._gradient_hook(name)))
        self._handles.append(self._model.register_forward_pre_hook(self._begin_micro_batch))
        for name, module in self._model.named_modules():
            self._handles.append(module.register_forward_hook(self._output_hook(name)))
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()
        if isinstance(self._recorded, GraphedForward):
            self._model.forward = self._recorded

    def _begin_micro_batch(self, *_: Any) -> None:
        self.micro_batch += 1

    def _output_hook(self, name: str) -> Any:
        def look(module: nn.Module, _inputs: Any, output: Any) -> None:
            what = f"the output of {name} ({type(module).__name__})" if name else "the loss"
            for tensor in output if isinstance(output, tuple | list) else (output,):
                if isinstance(tensor, Tensor) and tensor.is_floating_point() and tensor.numel():
                    largest = tensor.detach().abs().max().item()
                    self.largest[name or "loss"] = max(largest, self.largest.get(name or "loss", 0.0))
                    self._note(what, tensor)

        return look

    def _gradient_hook(self, name: str) -> Any:
        def look(gradient: Tensor) -> None:
            self.squares[name] += _norm(gradient) ** 2
            self._note(f"the gradient of {name}", gradient)

        return look

    def _note(self, what: str, tensor: Tensor) -> None:
        if self.first is None and not bool(tensor.detach().isfinite().all()):
            self.first, self.found_in = what, max(self.micro_batch, 0)


def _norm(tensor: Tensor) -> float:
    return torch.linalg.vector_norm(tensor.detach(), dtype=torch.float32).item()


def keep_bundle(
    run: Path,
    step: int,
    search: Search,
    losses: Losses,
    stream: TrainingStream,
    recipe: Recipe,
    scales: Sequence[tuple[int, float]],
) -> tuple[str, str | None]:
    """What was found first on the first rank that found something, in words, and the bundle, if one was kept.

    A collective. A bundle that cannot be written is told in the words.

    Args:
        run: its directory.
        step: that was computed.
        search: of the second computation.
        losses: of its micro-batches.
        stream: where they came from.
        recipe: of the run.
        scales: (step, loss scale) of the last steps; none but in fp16.
    """
    found = None
    components, rows = _rows_of_rank(step, stream, recipe)
    if search.first is not None:
        here = whereabouts(losses[0][0].labels.device)
        found = _as_found(search, here, _suspects(search, losses, components, rows, stream.labels))
    reports = [report for report in of_all_ranks(found) if report is not None]
    if not reports:
        return "a gradient became infinite only in the sum over ranks and micro-batches", None
    words = f"{reports[0]['first']} is not finite on {reports[0]['where']}, micro-batch {reports[0]['micro_batch']}, "
    words += f"twice; sequences: {', '.join(reports[0]['sequences'])}"
    directory = run / FORENSICS / f"step_{step:08d}"
    may_keep = len(list(directory.parent.glob("step_*"))) < MOST_BUNDLES and not directory.exists()
    if not of_all_ranks(may_keep)[0]:
        return words, None
    temporary = temporary_of_attempt(directory)
    fault = _try_to_keep(temporary, losses, components, rows) if found else None
    fault = first_fault(fault)
    if distributed.get_rank() == 0 and fault is None:
        summary = {"step": step, "words": words, "ranks": reports, "loss_scales": [list(pair) for pair in scales]}
        fault = _try_to_publish(temporary, directory, summary)
    return (f"{words}; no bundle: {fault}", None) if fault else (words, str(directory))


def _as_found(search: Search, where: str, sequences: list[str]) -> dict[str, Any]:
    return {
        "where": where,
        "first": search.first,
        "micro_batch": search.found_in,
        "sequences": sequences,
        "largest_output": search.largest,
        "gradient_norm": {name: math.sqrt(square) for name, square in search.squares.items()},
        "weight_norm": search.weights,
    }


def _rows_of_rank(step: int, stream: TrainingStream, recipe: Recipe) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Of each micro-batch of this rank the components and rows of its sequences; nothing for one that is padding."""
    batch, sizes = stream.global_batch(step), recipe.batch
    world_size, rank = distributed.get_world_size(), distributed.get_rank()
    lengths = batch.source_lengths, batch.target_lengths
    dealt = deal_micro_batches(*lengths, world_size, sizes.micro_batch_tokens, sizes.min_micro_batches)[rank]
    return [batch.component_index[indices] for indices in dealt], [batch.rows[indices] for indices in dealt]


def _suspects(
    search: Search, losses: Losses, components: list[np.ndarray], rows: list[np.ndarray], labels: list[str]
) -> list[str]:
    """`component row n` of the sequences whose own loss is not finite; of all in the micro-batch where none is."""
    batch, token_loss, _ = losses[search.found_in]
    wrong = batch.target_input.sequence_of_token[~token_loss.isfinite()].unique().tolist()
    component, row = components[search.found_in], rows[search.found_in]
    numbers = [number for number in wrong if number < len(row)] or list(range(len(row)))
    names = [f"{labels[component[number]]} row {row[number]}" for number in numbers[:MOST_ROWS]]
    return [*names, f"{len(numbers) - MOST_ROWS} more"] if len(numbers) > MOST_ROWS else names


def _try_to_keep(directory: Path, losses: Losses, components: list[np.ndarray], rows: list[np.ndarray]) -> str | None:
    """Write the micro-batches of this rank; what went wrong, if anything."""
    arrays: dict[str, Any] = {}
    for number, (batch, token_loss, _) in enumerate(losses):
        tensors = {
            "source": batch.source.tokens,
            "source_ends": batch.source.cu_seqlens,
            "target": batch.target_input.tokens,
            "target_ends": batch.target_input.cu_seqlens,
            "labels": batch.labels,
            "token_loss": token_loss.float(),
        }
        arrays |= {f"{number}.{name}": tensor.cpu().numpy() for name, tensor in tensors.items()}
        arrays |= {f"{number}.component": components[number], f"{number}.row": rows[number]}
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with atomic_file(directory / f"rank_{distributed.get_rank():05d}.npz", "wb") as file:
            np.savez(file, **arrays)
    except (OSError, ValueError) as error:
        return str(error)
    return None


def _try_to_publish(temporary: Path, directory: Path, summary: dict[str, Any]) -> str | None:
    try:
        write_json(temporary / "summary.json", finite(summary))
        end_if_taken_over(directory.parent.parent)
        publish_directory(temporary, directory)
    except (OSError, ValueError) as error:
        return str(error)
    return None
