"""Out of memory, told so that somebody can act on it: what was computed, what was planned, which setting to change."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from deltalm_ds.data.collation import Batch
from deltalm_ds.errors import InputError
from deltalm_ds.model.config import DeltaLMConfig
from deltalm_ds.recipe.schema import Recipe
from deltalm_ds.training.plan import planned_memory

CURES = (
    "a smaller batch.micro_batch_tokens (the global batch stays the same), shorter data.max_source_tokens and "
    "data.max_target_tokens, model.activation_checkpointing=true, or a DeepSpeed configuration of a higher ZeRO stage"
)
_MESSAGES = ("can't allocate memory", "out of memory", "not enough memory")  # of torch's allocators


@contextmanager
def out_of_memory_told(
    recipe: Recipe, config: DeltaLMConfig, num_ranks: int, micro_batches: Sequence[Batch] = ()
) -> Iterator[None]:
    """Turn an allocation that fails in the block into one message.

    Args:
        recipe: of the run.
        config: of its model.
        num_ranks: that share the work.
        micro_batches: of this rank, that the block computes; none where it makes the model.

    Raises:
        InputError: memory ran out; the same start would meet the same end.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:  # torch.OutOfMemoryError is one
        if not isinstance(error, MemoryError | torch.OutOfMemoryError) and not _is_of_allocator(error):
            raise
        reason = str(error).strip().split("\n")[0] or "no memory"
        doing = _shapes(micro_batches) if micro_batches else "making the model and its optimizer"
        raise InputError(
            f"Out of memory at {doing}: {reason.rstrip('.')}. Planned for a rank: "
            f"{_planned(recipe, config, num_ranks, micro_batches)}. What helps: {CURES}."
        ) from error


def _is_of_allocator(error: RuntimeError) -> bool:
    return any(message in str(error) for message in _MESSAGES)


def _shapes(micro_batches: Sequence[Batch]) -> str:
    """The largest of them."""
    shape = max((batch.shape for batch in micro_batches), key=lambda shape: shape.source_tokens + shape.target_tokens)
    return (
        f"micro-batches of up to {shape.source_tokens:,} source and {shape.target_tokens:,} target tokens in "
        f"{shape.sequences:,} sequences (longest {shape.longest_source:,} and {shape.longest_target:,})"
    )


def _planned(recipe: Recipe, config: DeltaLMConfig, num_ranks: int, micro_batches: Sequence[Batch]) -> str:
    """GiB by part, as `deltalm plan` estimates them."""
    half = recipe.batch.micro_batch_tokens // 2
    sizes = [batch.shape[:2] for batch in micro_batches] or [(half, half)]
    memory = planned_memory(recipe, config, num_ranks, sizes)
    parts = (f"{name} {size / 2**30:.2f}" for name, size in memory.items() if size)
    return f"{', '.join(parts)} GiB"
