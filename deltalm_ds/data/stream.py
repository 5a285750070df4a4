"""The training data as a function of the step: which sequences, on which rank, in which micro-batch.

A step's global batch is drawn by the sampler, its rows are found by the permutation, its lengths come from the
shards' offsets; all ranks then deal it alike and read the tokens of their own share only. Nothing here has
state: any step can be made at any time, on any number of ranks, and is the same global batch.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from deltalm_ds.arrays.counter_rng import hash_counters, name_key
from deltalm_ds.arrays.ragged import RaggedRows, groups, stack
from deltalm_ds.data.collation import Batch, collate, frame
from deltalm_ds.data.micro_batches import deal_micro_batches
from deltalm_ds.data.mixture import Component, Phase, components_by_name
from deltalm_ds.data.objectives.base import Limits
from deltalm_ds.data.permutation import permuted_rows
from deltalm_ds.data.sampler import FRACTION_BITS, Mix, Sampler
from deltalm_ds.errors import DataError, InputError
from deltalm_ds.vocabulary import Vocabulary

SHELF_BITS = 48  # of where a row begins


@dataclass(frozen=True)
class GlobalBatch:
    """The N sequences of a step, on all ranks the same; arrays are [N].

    Attributes:
        component_index, positions, rows: int64; the component, its stream position, and the corpus row there.
        keys: uint64, one per sample, for whatever its objective draws.
        begins: [2, N] where each side's row begins in its data set, as its reader says.
        raw_lengths: [2, N] tokens that are read of each side (0 where an objective has one side only).
        source_lengths, target_lengths: int64 tokens of the results, with `</s>`.
        num_truncated, num_overlong, num_too_short: sequences cut to the limits; left out because they exceed
            them (policy `drop`); left out because the objective needs more tokens.
    """

    component_index: np.ndarray
    positions: np.ndarray
    rows: np.ndarray
    keys: np.ndarray
    begins: np.ndarray
    raw_lengths: np.ndarray
    source_lengths: np.ndarray
    target_lengths: np.ndarray
    num_truncated: int = 0
    num_overlong: int = 0
    num_too_short: int = 0


@dataclass(frozen=True)
class StepBatches:
    """One rank's micro-batches of a step; lengths [N] and counts are those of the whole global batch.

    `num_target_tokens` (with `</s>`) is what the sum of token losses is divided by.
    """

    micro_batches: list[Batch]
    source_lengths: np.ndarray
    target_lengths: np.ndarray
    num_sequences: int
    num_source_tokens: int
    num_target_tokens: int
    num_truncated: int
    num_overlong: int
    num_too_short: int


class BatchBuilder:
    """Finds lengths and builds batches of samples of a list of components.

    Raises:
        InputError: a component does not go together with the vocabulary or the limits, or comes twice.
    """

    def __init__(
        self,
        components: Sequence[Component],
        vocabulary: Vocabulary,
        limits: Limits,
        micro_batch_tokens: int,
        min_micro_batches: int = 1,
    ) -> None:
        for component in components:
            component.check(vocabulary, limits)
        self.components = tuple(components)
        self._tags = np.array([component.tag_id(vocabulary) for component in components], dtype=np.int64)
        self._objectives = list(dict.fromkeys(component.objective for component in components))
        self._objective_of_component = np.array(
            [self._objectives.index(component.objective) for component in components]
        )
        # The components of a data set are read together: one look-up for all their rows, not one a component.
        self._readers = list(
            {id(component.corpus.reader): component.corpus.reader for component in components}.values()
        )
        self._reader_of_component = np.array([self._readers.index(component.corpus.reader) for component in components])
        # Sorting rows by these plus where they begin puts what an objective reads from a data set together, as on disk.
        self._shelf_of_component = (
            self._objective_of_component * len(self._readers) + self._reader_of_component
        ) << SHELF_BITS
        self._first_row = np.array([component.corpus.first_row for component in components], dtype=np.int64)
        self._columns = np.full((2, len(components)), -1)  # of the corpus, in the order of the objective; -1 is none
        for number, component in enumerate(components):
            self._columns[: len(component.sides), number] = [
                component.corpus.sides.index(side) for side in component.sides
            ]
        self._vocabulary, self._limits = vocabulary, limits
        self._micro_batch_tokens, self._min_micro_batches = micro_batch_tokens, min_micro_batches

    def select(
        self, component_index: np.ndarray, positions: np.ndarray, rows: np.ndarray, keys: np.ndarray
    ) -> GlobalBatch:
        """Look up lengths, apply the limits, and leave out what cannot be used, which may be all.

        Args:
            component_index: [N] int64, the component of each sample.
            positions: [N] int64, where in its component's endless stream each sample is.
            rows: [N] int64, its row of the component's corpus.
            keys: [N] uint64, what its objective draws from.
        """
        begins, raw_lengths = np.zeros((2, 2, len(rows)), dtype=np.int64)
        for place, columns in enumerate(self._columns):
            (taken,) = np.nonzero(columns[component_index] >= 0)
            for number, members in groups(self._reader_of_component[component_index[taken]]):
                indices = taken[members]
                components = component_index[indices]
                begins[place, indices], raw_lengths[place, indices] = self._readers[number].spans(
                    columns[components], self._first_row[components] + rows[indices]
                )
        lengths = np.zeros((2, len(rows)), dtype=np.int64)
        usable, overlong = np.zeros(len(rows), dtype=bool), np.zeros(len(rows), dtype=bool)
        for number, members in groups(self._objective_of_component[component_index]):
            objective = self._objectives[number]
            raw = raw_lengths[: objective.num_columns, members]
            fitted = objective.fit(raw, self._limits, len(self._vocabulary.sentinel_ids))
            fits = objective.usable(fitted)
            usable[members], overlong[members] = fits, fits & (fitted < raw).any(axis=0)
            raw_lengths[: len(raw), members] = fitted
            # Unusable rows have no lengths; they are computed on a stand-in and left out below.
            lengths[:, members] = objective.lengths(np.where(fits, fitted, 2), keys[members])
        kept = usable & ~overlong if self._limits.overlong == "drop" else usable
        chosen = slice(None) if kept.all() else kept  # mostly all, and then without copies
        return GlobalBatch(
            component_index[chosen],
            positions[chosen],
            rows[chosen],
            keys[chosen],
            begins[:, chosen],
            raw_lengths[:, chosen],
            lengths[0, chosen],
            lengths[1, chosen],
            num_truncated=int((overlong & kept).sum()),
            num_overlong=int((overlong & ~kept).sum()),
            num_too_short=int((~usable).sum()),
        )

    def build(self, batch: GlobalBatch, rank: int, world_size: int) -> StepBatches:
        """Deal the batch to `world_size` ranks and make the micro-batches of `rank`: none of an empty batch."""
        if not len(batch.rows):
            counts = 0, 0, 0, batch.num_truncated, batch.num_overlong, batch.num_too_short
            return StepBatches([], batch.source_lengths, batch.target_lengths, *counts)
        micro_batches = deal_micro_batches(
            batch.source_lengths,
            batch.target_lengths,
            world_size,
            self._micro_batch_tokens,
            self._min_micro_batches,
        )[rank]
        share = np.concatenate(micro_batches)
        components, num_sequences = batch.component_index[share], [len(indices) for indices in micro_batches]
        on_disk = np.argsort(self._shelf_of_component[components] + batch.begins[0, share])
        order = np.empty_like(on_disk)
        order[on_disk] = np.arange(len(order))
        sources, targets = self._read(batch, share[on_disk])
        framed = frame(sources, order, self._tags[components]), frame(targets, order, np.zeros_like(components))
        return StepBatches(
            collate(*framed, components, num_sequences),
            batch.source_lengths,
            batch.target_lengths,
            num_sequences=len(batch.rows),
            num_source_tokens=int(batch.source_lengths.sum()),
            num_target_tokens=int(batch.target_lengths.sum()),
            num_truncated=batch.num_truncated,
            num_overlong=batch.num_overlong,
            num_too_short=batch.num_too_short,
        )

    def _read(self, batch: GlobalBatch, share: np.ndarray) -> tuple[RaggedRows, RaggedRows]:
        """Source and target rows of the samples `share`, which are sorted by objective and data set, not yet framed."""
        sources, targets = [], []
        for number, members in groups(self._objective_of_component[batch.component_index[share]]):
            objective, indices = self._objectives[number], share[members]
            columns = [self._read_column(batch, indices, place) for place in range(objective.num_columns)]
            source, target = objective.build(columns, batch.keys[indices], self._vocabulary.sentinel_ids)
            sources.append(source)
            targets.append(target)
        nothing = [RaggedRows.from_rows([])]  # where there are fewer sequences than micro-batches
        return stack(sources or nothing), stack(targets or nothing)

    def _read_column(self, batch: GlobalBatch, indices: np.ndarray, place: int) -> RaggedRows:
        """The raw rows of samples that are sorted by data set; the column at `place` of what they read."""
        components, parts = batch.component_index[indices], []
        for number, members in groups(self._reader_of_component[components]):
            read = place, indices[members]
            parts.append(self._readers[number].gather(batch.begins[read], batch.raw_lengths[read]))
        column = stack(parts)
        if column.values.max(initial=0) >= self._vocabulary.num_tokens:
            wrong = column.values >= self._vocabulary.num_tokens
            component = self.components[np.repeat(components, column.lengths)[wrong.argmax()]]
            raise DataError(f"The corpus {component.corpus.name!r} has ids outside the vocabulary: verify its shards.")
        return RaggedRows(column.values.astype(np.int32), column.lengths)  # has room for sentinels, whatever the shards


class TrainingStream:
    """The mixture of components that a run trains on.

    Args:
        phases: the components, in groups with weights, and how groups are shared among them; in order.
        vocabulary: gives language tags and sentinels.
        limits: maximum lengths and the policy for longer sequences.
        seed: another seed gives other orders and spans.
        micro_batch_tokens: most source + target tokens in a micro-batch.
        tokens_per_step: expected source + target tokens of a global batch.
        num_steps: of the run; only caps of passes depend on it.
        min_micro_batches: fewest micro-batches per rank and step (gradient accumulation).

    Raises:
        InputError: components, vocabulary, limits and budgets do not go together.
    """

    def __init__(
        self,
        phases: Sequence[Phase],
        vocabulary: Vocabulary,
        limits: Limits,
        seed: int,
        micro_batch_tokens: int,
        tokens_per_step: float,
        num_steps: int,
        min_micro_batches: int = 1,
    ) -> None:
        by_name = components_by_name(phases)
        names, components = list(by_name), list(by_name.values())
        self._builder = BatchBuilder(components, vocabulary, limits, micro_batch_tokens, min_micro_batches)
        self.components = self._builder.components
        component_names = [component.name for component in components]
        # how logs call the components: with the group's name only where the component's is not unique
        self.labels = component_names if len(set(component_names)) == len(components) else names
        self.phases = tuple(phases)
        self._keys = np.array([hash_counters(seed, name_key(name)) for name in names], dtype=np.uint64)
        self._num_rows = np.array([component.corpus.num_rows for component in components])
        self._sampler = Sampler(
            sizes=self._num_rows,
            mixes=[_mix(phase, names) for phase in phases],
            mean_tokens=[component.mean_tokens(limits, len(vocabulary.sentinel_ids)) for component in components],
            keys=self._keys,
            tokens_per_step=tokens_per_step,
            num_steps=num_steps,
        )
        self.capped_at = self._sampler.capped_at

    def sampling_facts(self, step: int) -> dict[str, float]:
        """Numbers about the sampling of a step, by name; where there are several phases, which one it is in, from 1."""
        number = self._sampler.phase(step)
        phase = self.phases[number]
        several = {"phase": number + 1} if len(self.phases) > 1 else {}
        return several | phase.sampling.facts(step - phase.sampling_step)

    def probabilities(self, step: int) -> np.ndarray:
        """[K] float64: each component's share of the sequences of a step."""
        return self._sampler.probabilities(step)

    def sequences_drawn(self, step: int) -> np.ndarray:
        """[K] float64: the expected number of sequences of each component in all steps before `step`."""
        return self._sampler.cumulative(step) / 2.0**FRACTION_BITS

    def global_batch(self, step: int) -> GlobalBatch:
        """The sequences of a step, before they are dealt to ranks."""
        component_index, positions = self._sampler.draw(step)
        component_keys = self._keys[component_index]
        rows = permuted_rows(positions, self._num_rows[component_index], component_keys)
        return self._builder.select(component_index, positions, rows, hash_counters(component_keys, positions))

    def micro_batches(self, step: int, rank: int, world_size: int) -> StepBatches:
        """The share of one rank in a step."""
        return self._builder.build(self.global_batch(step), rank, world_size)


def _mix(phase: Phase, names: list[str]) -> Mix:
    """A phase whose components are numbers."""
    number_of = {name: number for number, name in enumerate(names)}
    groups = [[number_of[name] for name in group.component_names] for group in phase.groups]
    weights = [group.weight for group in phase.groups]
    return Mix(phase.first_step, groups, weights, phase.sampling, phase.sampling_step)


def evaluation_batch(builder: BatchBuilder) -> GlobalBatch:
    """Every row of the builder's components once; objectives draw the same each time.

    Raises:
        InputError: none of them can be used.
    """
    counts = [component.corpus.num_rows for component in builder.components]
    component_index = np.repeat(np.arange(len(counts)), counts)
    rows = np.concatenate([np.arange(count) for count in counts])
    batch = builder.select(component_index, rows, rows, hash_counters(0, component_index, rows))
    if not len(batch.rows):
        names = ", ".join(component.name for component in builder.components)
        raise InputError(
            f"None of the {len(rows):,} rows of {names} can be used ({batch.num_overlong:,} too long, "
            f"{batch.num_too_short:,} too short): check the maximum lengths."
        )
    return batch


def evaluation_batches(builder: BatchBuilder, rank: int, world_size: int) -> StepBatches:
    """The share of rank `rank` in `evaluation_batch`."""
    return builder.build(evaluation_batch(builder), rank, world_size)
