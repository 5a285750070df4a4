"""Log-probabilities of given targets."""

from collections.abc import Sequence

from deltalm_ds.errors import InputError
from deltalm_ds.generation.interface import Engine, Ids
from deltalm_ds.generation.translate import batches_by_cost, no_progress
from deltalm_ds.progress import Advance


def score(
    engine: Engine, sources: Sequence[Ids], targets: Sequence[Ids], advance: Advance = no_progress
) -> list[list[float]]:
    """Log p in nats of each target's tokens and of its `</s>`, in order, in batches of similar length.

    Args:
        sources, targets: ids without `</s>`, sources with their language tag.
        advance: told how many more pairs are done.

    Raises:
        InputError: a sequence is too long for the model (cutting it would give the probability of something else).
    """
    check_lengths(engine, sources, targets)
    found: list[list[float]] = [[] for _ in sources]
    costs = [len(source) + len(target) + 2 for source, target in zip(sources, targets, strict=True)]
    for batch in batches_by_cost(costs, engine.batch_tokens):
        scores = engine.score([sources[i] for i in batch], [targets[i] for i in batch])
        for index, token_scores in zip(batch, scores, strict=True):
            found[index] = token_scores
        advance(len(batch))
    return found


def check_lengths(engine: Engine, sources: Sequence[Ids], targets: Sequence[Ids]) -> None:
    """Refuse what the model has no positions for.

    Raises:
        InputError: see `score`.
    """
    limit = engine.max_positions - 1
    for number, pair in enumerate(zip(sources, targets, strict=True), start=1):
        for side, ids in zip(("source", "target"), pair, strict=True):
            if len(ids) > limit:
                raise InputError(f"Line {number}: the {side} has {len(ids)} tokens; the model takes at most {limit}.")
