"""The stream as a whole: the same data on any world size, every row once, nothing lost, errors that arrive."""

import threading
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fakes import FakeCorpus, random_corpus, small_vocabulary
from hypothesis import given, settings
from hypothesis import strategies as st

from deltalm_ds.data.collation import Batch
from deltalm_ds.data.manifest import CorpusManifest, Manifest
from deltalm_ds.data.mixture import Component, ComponentGroup, Phase
from deltalm_ds.data.objectives.base import Limits
from deltalm_ds.data.objectives.seq2seq import Seq2Seq
from deltalm_ds.data.objectives.span_corruption import SpanCorruption
from deltalm_ds.data.objectives.translation_span_corruption import TranslationSpanCorruption
from deltalm_ds.data.padding import rounded_up
from deltalm_ds.data.prefetch import prefetch
from deltalm_ds.data.sampling.temperature import TemperatureSampling
from deltalm_ds.data.shards import Corpus, ShardDataset, ragged_batch, write_corpus
from deltalm_ds.data.stream import BatchBuilder, StepBatches, TrainingStream, evaluation_batches
from deltalm_ds.errors import DataError, InputError
from deltalm_ds.token_ids import EOS_ID

VOCABULARY = small_vocabulary()
PAIR, OTHER_PAIR, MONO = random_corpus("en-de", 700), random_corpus("en-fr", 90), random_corpus("de", 300, 25)
EMPTY: Any = FakeCorpus("de", ("de",), {"source": []})


def make_stream(
    seed: int = 1, limits: Limits | None = None, corpora: Sequence[Any] = (PAIR, OTHER_PAIR, MONO), **arguments: Any
) -> TrainingStream:
    pair, other_pair, mono = corpora
    seq2seq = tuple(Component(corpus, Seq2Seq(), reverse) for corpus in (pair, other_pair) for reverse in (False, True))
    pretraining = (
        Component(mono, SpanCorruption()),
        Component(pair, SpanCorruption(), reverse=True),
        Component(pair, TranslationSpanCorruption(sides="one")),
    )
    groups = [ComponentGroup("translate", seq2seq, 2.0), ComponentGroup("pretrain", pretraining, 1.0)]
    arguments = {"micro_batch_tokens": 700, "tokens_per_step": 3000, "num_steps": 300} | arguments
    sampling = TemperatureSampling(temperature_start=1.0, temperature_end=5.0, change_steps=20)
    phases = [Phase(0, tuple(groups), sampling)]
    return TrainingStream(phases, VOCABULARY, limits or Limits(256, 256), seed, **arguments)


def sequences(batches: list[Batch]) -> Counter[tuple]:
    """Every (component, source, labels) of some micro-batches; decoder inputs are checked on the way."""
    found: Counter[tuple] = Counter()
    for batch in batches:
        if batch.weight == 0.0:
            continue
        source_ends, target_ends = batch.source.cu_seqlens.tolist(), batch.target_input.cu_seqlens.tolist()
        for index, component in enumerate(batch.component_index.tolist()):
            source = batch.source.tokens[source_ends[index] : source_ends[index + 1]].tolist()
            labels = batch.labels[target_ends[index] : target_ends[index + 1]].tolist()
            decoder_input = batch.target_input.tokens[target_ends[index] : target_ends[index + 1]].tolist()
            assert decoder_input == [EOS_ID, *labels[:-1]]
            found[component, tuple(source), tuple(labels)] += 1
    return found


def test_the_global_batch_is_the_same_on_any_world_size():
    stream = make_stream()
    for step in (0, 7, 100):
        reference = sequences(stream.micro_batches(step, 0, 1).micro_batches)
        for world_size in (2, 3, 4, 8, 32):
            ranks = [stream.micro_batches(step, rank, world_size) for rank in range(world_size)]
            assert len({len(rank.micro_batches) for rank in ranks}) == 1
            assert sum((sequences(rank.micro_batches) for rank in ranks), Counter()) == reference
            counts = {(rank.num_sequences, rank.num_source_tokens, rank.num_target_tokens) for rank in ranks}
            assert counts == {
                (
                    reference.total(),
                    sum(len(source) for _, source, _ in reference.elements()),
                    sum(len(labels) for _, _, labels in reference.elements()),
                )
            }


@settings(max_examples=25)
@given(
    step=st.integers(0, 10**7),
    world_size=st.sampled_from([1, 2, 3, 4, 8, 32]),
    min_micro_batches=st.integers(1, 9),
    micro_batch_tokens=st.integers(520, 5000),
)
def test_one_global_batch_however_it_is_dealt(
    step: int, world_size: int, min_micro_batches: int, micro_batch_tokens: int
):
    """At any step, world size, accumulation and memory: the same sequences, each once, within the budget."""
    reference = sequences(make_stream(micro_batch_tokens=10**6).micro_batches(step, 0, 1).micro_batches)
    stream = make_stream(micro_batch_tokens=micro_batch_tokens, min_micro_batches=min_micro_batches)
    ranks = [stream.micro_batches(step, rank, world_size).micro_batches for rank in range(world_size)]
    assert len({len(rank) for rank in ranks}) == 1 and len(ranks[0]) >= min_micro_batches
    assert sum((sequences(rank) for rank in ranks), Counter()) == reference
    for batch in (batch for rank in ranks for batch in rank):
        assert len(batch.source.tokens) + len(batch.labels) <= micro_batch_tokens


def test_seeking_is_replaying_at_hundreds_of_steps():
    """A stream that was fed every step before, and one that was just made, give the same global batch."""
    replayed, fresh = make_stream(), make_stream()
    batches = [replayed.global_batch(step) for step in range(300)]
    for step in np.random.default_rng(0).permutation(300).tolist():
        there, here = batches[step], fresh.global_batch(step)
        for name in ("component_index", "positions", "rows", "keys", "raw_lengths", "source_lengths", "target_lengths"):
            assert np.array_equal(getattr(there, name), getattr(here, name))


def test_any_step_can_be_made_at_any_time():
    replayed = make_stream()
    steps = [replayed.micro_batches(step, 1, 2) for step in range(30)]
    for step in (29, 3, 17):
        for there, here in zip(
            steps[step].micro_batches, make_stream().micro_batches(step, 1, 2).micro_batches, strict=True
        ):
            assert there.source.tokens.equal(here.source.tokens) and there.labels.equal(here.labels)


def test_seeds_differ():
    batches = [sequences(make_stream(seed).micro_batches(0, 0, 1).micro_batches) for seed in (1, 2)]
    assert (batches[0] & batches[1]).total() < 0.2 * batches[0].total()


def test_every_row_once_per_pass():
    """The draws of 60 steps, cut into passes over the corpus."""
    stream = make_stream()
    drawn: dict[int, list[tuple[int, int]]] = {}
    for step in range(60):
        batch = stream.global_batch(step)
        for component, position, row in zip(batch.component_index, batch.positions, batch.rows, strict=True):
            drawn.setdefault(int(component), []).append((int(position), int(row)))
    for component, pairs in drawn.items():
        num_rows = stream.components[component].corpus.num_rows
        assert [position for position, _ in pairs] == list(range(len(pairs)))
        rows = [row for _, row in pairs]
        for start in range(0, len(rows), num_rows):
            one_pass = rows[start : start + num_rows]
            assert len(set(one_pass)) == len(one_pass)
    assert max(len(pairs) for pairs in drawn.values()) > 700  # some component came to its second pass


def test_a_row_is_corrupted_anew_in_every_pass():
    component, limits = Component(MONO, SpanCorruption()), Limits(256, 256)
    stream = TrainingStream(
        [Phase(0, (ComponentGroup("all", (component,)),), TemperatureSampling())],
        VOCABULARY,
        limits,
        seed=0,
        micro_batch_tokens=100_000,
        num_steps=1,
        tokens_per_step=601 * component.mean_tokens(limits, len(VOCABULARY.sentinel_ids)),
    )
    batch = stream.global_batch(0)
    assert set(np.bincount(batch.rows[:600])) == {2}
    assert len(set(batch.keys.tolist())) == len(batch.rows)


def test_contents_are_those_of_the_corpus():
    stream = make_stream()
    batch = stream.global_batch(5)
    expected = Counter()
    for component, row in zip(batch.component_index.tolist(), batch.rows.tolist(), strict=True):
        if component < 4:  # the translation components
            corpus, reverse = (PAIR, OTHER_PAIR)[component // 2], bool(component % 2)
            sides = ("target", "source") if reverse else ("source", "target")
            source, target = (corpus.rows[side][row].tolist() for side in sides)
            tag = VOCABULARY.language_id(corpus.languages[0 if reverse else 1])
            expected[component, (tag, *source, 2), (*target, 2)] += 1
    found = sequences(stream.micro_batches(5, 0, 1).micro_batches)
    assert Counter({key: n for key, n in found.items() if key[0] < 4}) == expected


def write_shards(directory: Path, *fakes: Any) -> list[Corpus]:
    """The rows of fake corpora as one data set, in shards of 64 rows."""
    directory.mkdir()
    manifest, corpora = Manifest(VOCABULARY.hash, VOCABULARY.num_tokens), []
    for fake in fakes:
        columns = {
            side: (np.concatenate(rows), np.array([len(row) for row in rows])) for side, rows in fake.rows.items()
        }
        corpus = CorpusManifest(fake.name, fake.kind, fake.languages)
        corpora.append(write_corpus(directory, manifest, corpus, [ragged_batch(columns, np.dtype(np.uint16))], 64))
    replace(manifest, corpora=tuple(corpora)).write(directory)
    return list(ShardDataset.open(directory).corpora.values())


def test_shards_are_read_as_they_were_written(tmp_path):
    """Corpora of one data set, and another one: read together they give what the rows in memory give."""
    (mono,) = write_shards(tmp_path / "mono", MONO)
    read = make_stream(corpora=[*write_shards(tmp_path / "pairs", PAIR, OTHER_PAIR), mono])
    for step in range(5):
        for there, here in zip(
            read.micro_batches(step, 1, 2).micro_batches,
            make_stream().micro_batches(step, 1, 2).micro_batches,
            strict=True,
        ):
            assert there.source.tokens.equal(here.source.tokens) and there.labels.equal(here.labels)
            assert there.component_index.equal(here.component_index)


def test_ids_outside_the_vocabulary_are_refused_and_their_corpus_is_named(tmp_path):
    wrong: Any = FakeCorpus("de", ("de",), {"source": [np.array([9, 9, 1 << 15])] * 20})
    corpora = write_shards(tmp_path / "d", random_corpus("en", 20), wrong)
    builder = BatchBuilder([Component(corpus, SpanCorruption()) for corpus in corpora], VOCABULARY, Limits(64, 64), 500)
    with pytest.raises(DataError, match="corpus 'de' has ids outside the vocabulary"):
        evaluation_batches(builder, 0, 1)


def test_the_token_budget_is_met_on_average():
    stream = make_stream()
    steps = [stream.global_batch(step) for step in range(60)]
    tokens = np.mean([(batch.source_lengths + batch.target_lengths).sum() for batch in steps])
    assert tokens == pytest.approx(3000, rel=0.03)


def test_accumulation_and_memory():
    for world_size in (1, 2):
        step = make_stream(min_micro_batches=7).micro_batches(3, 0, world_size)
        assert len(step.micro_batches) >= 7
        assert all(len(b.source.tokens) + len(b.labels) <= 700 for b in step.micro_batches)


@pytest.mark.parametrize("overlong", ["truncate", "drop"])
def test_overlong_and_too_short_sequences_are_counted(overlong: Any):
    rows = {
        "source": [np.full(n, 9, np.uint16) for n in (3, 50, 3, 0)],
        "target": [np.full(n, 9, np.uint16) for n in (3, 3, 60, 2)],
    }
    corpus: Any = FakeCorpus("en-de", ("en", "de"), rows)
    builder = BatchBuilder([Component(corpus, Seq2Seq())], VOCABULARY, Limits(20, 30, overlong), 100)
    step = evaluation_batches(builder, 0, 1)
    assert step.num_too_short == 1
    lengths = sorted((len(source), len(labels)) for _, source, labels in sequences(step.micro_batches).elements())
    if overlong == "truncate":
        assert (step.num_truncated, step.num_overlong, step.num_sequences) == (2, 0, 3)
        assert lengths == [(5, 4), (5, 30), (20, 4)]
    else:
        assert (step.num_truncated, step.num_overlong, step.num_sequences) == (0, 2, 1)
        assert lengths == [(5, 4)]


@pytest.mark.parametrize("world_size", [1, 3])
def test_evaluation_goes_once_through_every_row(world_size: int):
    components = [
        Component(PAIR, Seq2Seq()),
        Component(OTHER_PAIR, Seq2Seq(), reverse=True),
        Component(MONO, SpanCorruption()),
    ]
    builder = BatchBuilder(components, VOCABULARY, Limits(256, 256), 600)
    ranks = [evaluation_batches(builder, rank, world_size) for rank in range(world_size)]
    found = sum((sequences(rank.micro_batches) for rank in ranks), Counter())
    assert len({len(rank.micro_batches) for rank in ranks}) == 1
    assert found.total() + ranks[0].num_too_short == 700 + 90 + 300
    assert found == sum((sequences(evaluation_batches(builder, rank, 2).micro_batches) for rank in range(2)), Counter())
    translations = Counter(source for component, source, _ in found.elements() if component == 0)
    tag = VOCABULARY.language_id("de")
    assert translations == Counter((tag, *row.tolist(), 2) for row in PAIR.rows["source"])


def test_prefetching_yields_the_same_steps():
    stream = make_stream()
    for step, ahead in enumerate(prefetch(stream, 4, 9, 0, 2), start=4):
        assert sequences(ahead.micro_batches) == sequences(stream.micro_batches(step, 0, 2).micro_batches)
    assert step == 8
    assert list(prefetch(stream, 5, 5, 0, 1)) == []


def test_micro_batches_are_prepared_by_the_thread():
    """Here padded, as training takes them; what is in them stays."""
    stream, threads = make_stream(), set()

    def prepare(batch: Batch) -> Batch:
        threads.add(threading.current_thread().name)
        return batch.padded()

    for step, ahead in enumerate(prefetch(stream, 4, 7, 1, 2, prepare), start=4):
        as_they_are = stream.micro_batches(step, 1, 2)
        assert (ahead.num_sequences, ahead.num_target_tokens) == (
            as_they_are.num_sequences,
            as_they_are.num_target_tokens,
        )
        for padded, batch in zip(ahead.micro_batches, as_they_are.micro_batches, strict=True):
            assert torch.equal(padded.labels[: len(batch.labels)], batch.labels)
            assert padded.shape == rounded_up(batch.shape)
    assert threads == {"prefetch"}


class FaultyStream(TrainingStream):
    """Fails at step 3 and records the steps that were asked for."""

    def __init__(self) -> None:
        self.asked: list[int] = []
        self.step = make_stream().micro_batches(0, 0, 1)

    def micro_batches(self, step: int, rank: int, world_size: int) -> StepBatches:
        self.asked.append(step)
        if step == 3:
            raise InputError("the disk is gone")
        return replace(self.step, num_sequences=step)


def prefetch_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "prefetch"]


def test_an_error_arrives_at_its_step():
    received = []
    with pytest.raises(InputError, match="the disk is gone"):
        for step in prefetch(FaultyStream(), 0, 10, 0, 1):
            received.append(step.num_sequences)
    assert received == [0, 1, 2]
    assert prefetch_threads() == []


def test_stopping_early_ends_the_thread():
    stream = FaultyStream()
    steps = prefetch(stream, 10, 10**9, 0, 1)
    assert next(steps).num_sequences == 10
    assert len(prefetch_threads()) == 1
    steps.close()  # type: ignore[attr-defined]
    assert prefetch_threads() == []
    assert len(stream.asked) <= 5  # one taken, two ready, one or two in hand


@pytest.mark.parametrize(
    ("components", "message"),
    [
        ([Component(MONO, Seq2Seq())], "'de' is monolingual"),
        ([Component(MONO, SpanCorruption(), reverse=True)], "'de' is monolingual"),
        ([Component(PAIR, Seq2Seq()), Component(PAIR, Seq2Seq())], "comes twice"),
        (
            [Component(random_corpus("en-tr", 5), Seq2Seq())],
            r"no tag for the language 'tr'.*objective: \{kind: seq2seq, language_tag: false\}",
        ),
        ([Component(EMPTY, SpanCorruption())], "is empty"),
    ],
)
def test_components_that_do_not_fit_are_refused_before_training(components: list[Component], message: str):
    with pytest.raises(InputError, match=message):
        TrainingStream(
            [Phase(0, (ComponentGroup("all", tuple(components)),), TemperatureSampling())],
            VOCABULARY,
            Limits(64, 64),
            seed=0,
            micro_batch_tokens=500,
            tokens_per_step=500,
            num_steps=1,
        )


def test_without_tags_a_vocabulary_needs_none():
    corpus = random_corpus("en-tr", 5)
    components = [Component(corpus, Seq2Seq(language_tag=False))]
    step = evaluation_batches(BatchBuilder(components, VOCABULARY, Limits(64, 64), 500), 0, 1)
    rows = corpus.rows["source"]
    assert Counter(source for _, source, _ in sequences(step.micro_batches)) == Counter((*row, 2) for row in rows)


def test_missing_sentinels_are_noticed_before_training():
    with pytest.raises(InputError, match="0 sentinels"):
        BatchBuilder([Component(MONO, SpanCorruption())], small_vocabulary(num_sentinels=0), Limits(64, 64), 500)


def test_a_step_without_usable_sequences_is_counted_and_validation_without_any_is_refused():
    long_rows = [np.full(50, 9, np.uint16)] * 20
    corpus: Any = FakeCorpus("en-de", ("en", "de"), {"source": long_rows, "target": long_rows})
    limits = Limits(20, 20, "drop")
    stream = TrainingStream(
        [Phase(0, (ComponentGroup("all", (Component(corpus, Seq2Seq()),)),), TemperatureSampling())],
        VOCABULARY,
        limits,
        seed=0,
        micro_batch_tokens=100,
        tokens_per_step=400,
        num_steps=1,
    )
    step = stream.micro_batches(0, rank=1, world_size=2)
    assert (step.micro_batches, step.num_sequences, step.num_target_tokens) == ([], 0, 0)
    assert step.num_overlong == 10  # of 40 tokens each, as far as the sampler knows
    builder = BatchBuilder([Component(corpus, Seq2Seq())], VOCABULARY, limits, 100)
    with pytest.raises(InputError, match=r"None of the 20 rows of seq2seq:en-de:en-de .* \(20 too long, 0 too short\)"):
        evaluation_batches(builder, 0, 1)
