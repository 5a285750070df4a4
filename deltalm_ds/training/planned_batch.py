"""What a recipe trains on, as far as a plan for other machines can know: by its data where that is here, else by its
limits, and then the plan says so."""

from dataclasses import dataclass

import numpy as np

from deltalm_ds.data.objectives.base import Limits
from deltalm_ds.model.config import DeltaLMConfig
from deltalm_ds.recipe.schema import Recipe
from deltalm_ds.training.inputs import open_inputs
from deltalm_ds.training.step_work import MicroBatch

ASSUMED_VOCABULARY = 250_001  # XLM-R's [facts: sizes]
LOOKED_AT_STEPS = 16
LONG = 1 << 20  # raw tokens, more than any limit


@dataclass(frozen=True)
class PlannedBatch:
    """The mean global batch and its longest pair, the model's shape, and what of them is assumed, in sentences."""

    config: DeltaLMConfig
    sequences: float
    source_tokens: float
    target_tokens: float
    longest_pair: int
    assumed: tuple[str, ...] = ()

    @property
    def tokens(self) -> float:
        """Of both sides."""
        return self.source_tokens + self.target_tokens

    def share(self, tokens: float) -> MicroBatch:
        """A micro-batch of so many tokens, sides and sequences in the proportions of the whole."""
        part = tokens / self.tokens
        sizes = self.source_tokens * part, self.target_tokens * part, self.sequences * part
        return MicroBatch(*(max(1, round(size)) for size in sizes))


def planned_batch(recipe: Recipe) -> PlannedBatch:
    """Look at some steps of a recipe, or assume them where its vocabulary and data are not here.

    Raises:
        InputError, DataError: something that is here does not hold.
    """
    longest = recipe.data.max_source_tokens + recipe.data.max_target_tokens
    paths = [recipe.vocabulary, *(group.path for group in recipe.data.train)]
    if not all(path.exists() for path in paths):
        return _assumed(recipe)
    inputs = open_inputs(recipe)
    steps = np.unique(np.linspace(0, recipe.training.max_steps - 1, LOOKED_AT_STEPS).astype(np.int64)).tolist()
    batches = [inputs.stream.global_batch(step) for step in steps]
    sequences = float(np.mean([len(batch.rows) for batch in batches]))
    source, target = (
        float(np.mean([lengths.sum() for lengths in sides]))
        for sides in ([b.source_lengths for b in batches], [b.target_lengths for b in batches])
    )
    return PlannedBatch(inputs.model_config, sequences, source, target, longest)


def _assumed(recipe: Recipe) -> PlannedBatch:
    """Every sequence as long as the limits let the first group's objective make it."""
    limits = Limits(recipe.data.max_source_tokens, recipe.data.max_target_tokens)
    objective = recipe.data.train[0].objective
    raw = objective.fit(np.full((objective.num_columns, 1), LONG), limits, LONG)
    source, target = (int(lengths[0]) for lengths in objective.lengths(raw, np.zeros(1, dtype=np.uint64)))
    sequences = recipe.batch.tokens_per_step / (source + target)
    assumed = [
        f"the data is not here: every sequence has {source} source and {target} target tokens, the longest that "
        f"{objective.kind} makes within the limits"
    ]
    if recipe.initial_model is not None or not recipe.vocabulary.exists():
        assumed.append(f"the vocabulary is not here: {ASSUMED_VOCABULARY:,} tokens, as XLM-R's")
    shape = recipe.model.changes() if recipe.model is not None else {}
    preset = (recipe.model.preset if recipe.model is not None else None) or "base"
    config = DeltaLMConfig.preset(preset, vocabulary_size=ASSUMED_VOCABULARY, **shape)
    longest = source + target
    return PlannedBatch(config, sequences, sequences * source, sequences * target, longest, tuple(assumed))
