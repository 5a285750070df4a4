"""Phases against a walk over all steps in plain Python: what is drawn, whichever way a step is reached."""

from typing import Any

import numpy as np
import pytest
from fakes import random_corpus, small_vocabulary
from hypothesis import given, settings
from hypothesis import strategies as st

from deltalm_ds.data.mixture import Component, ComponentGroup, Phase
from deltalm_ds.data.objectives.base import Limits
from deltalm_ds.data.objectives.seq2seq import Seq2Seq
from deltalm_ds.data.objectives.span_corruption import SpanCorruption
from deltalm_ds.data.sampler import Mix, Sampler
from deltalm_ds.data.sampling.base import Sampling
from deltalm_ds.data.sampling.temperature import TemperatureSampling
from deltalm_ds.data.sampling.unimax import UniMaxSampling
from deltalm_ds.data.stream import TrainingStream
from deltalm_ds.errors import InputError

SIZES, MEAN_TOKENS, TOKENS = [50_000, 9_000, 2_000, 700, 300], [30.0, 50.0, 20.0, 80.0, 25.0], 1500.0
NUM_STEPS = 900


def make_sampler(mixes: list[Mix], num_steps: int = NUM_STEPS) -> Sampler:
    return Sampler(SIZES, mixes, MEAN_TOKENS, range(len(SIZES)), TOKENS, num_steps)


@st.composite
def mixes(draw: st.DrawFn) -> list[Mix]:
    """Up to four phases at random steps, with random groups, and temperatures that rise, fall, stay or go on."""
    later = draw(st.lists(st.integers(1, NUM_STEPS - 1), max_size=3, unique=True))
    found: list[Mix] = []
    for step in [0, *sorted(later)]:
        members = draw(st.lists(st.sampled_from(range(5)), min_size=2, max_size=5, unique=True))
        cut = draw(st.integers(0, len(members) - 1))
        groups = [members[:cut], members[cut:]] if cut else [members]
        sampling, since = found[-1].sampling if found else None, found[-1].sampling_step if found else 0
        if sampling is None or draw(st.booleans()):
            since = step
            sampling = TemperatureSampling(
                temperature_start=draw(st.floats(1, 8)),
                temperature_end=draw(st.floats(1, 8)),
                change_steps=draw(st.integers(0, 700)),
                interval_steps=draw(st.integers(1, 90)),
            )
        weights = [draw(st.floats(0.1, 9.0)) for _ in groups]
        found.append(Mix(step, groups, weights, sampling, since))
    return found


def expected_probabilities(mixes: list[Mix], step: int) -> np.ndarray:
    """The formula at a step, spelled out."""
    mix = [mix for mix in mixes if mix.first_step <= step][-1]
    sampling: Any = mix.sampling
    since = step - mix.sampling_step
    since -= since % sampling.interval_steps
    done = min(since / sampling.change_steps, 1.0) if sampling.change_steps else 1.0
    temperature = (1 - done) * sampling.temperature_start + done * sampling.temperature_end
    result = np.zeros(5)
    for members, weight in zip(mix.groups, mix.weights, strict=True):
        powers = [SIZES[member] ** (1 / temperature) for member in members]
        for member, power in zip(members, powers, strict=True):
            result[member] = weight / sum(mix.weights) * power / sum(powers)
    return result


@settings(max_examples=8)
@given(mixes=mixes(), data=st.data())
def test_the_walk_over_all_steps(mixes: list[Mix], data: st.DataObject):
    """At every step the formula's shares; of every component all positions in order; sought or walked the same."""
    sampler = make_sampler(mixes)
    expected, next_position = np.zeros(5), np.zeros(5, dtype=np.int64)
    looked_at = set(data.draw(st.lists(st.integers(0, NUM_STEPS - 1), min_size=5, max_size=5)))
    looked_at |= {step for mix in mixes for step in (mix.first_step - 1, mix.first_step) if step >= 0}
    for step in range(NUM_STEPS):
        shares = expected_probabilities(mixes, step)
        assert sampler.probabilities(step) == pytest.approx(shares)
        expected += shares * TOKENS / (shares @ MEAN_TOKENS)
        component_index, positions = sampler.draw(step)
        for component in range(5):
            mine = positions[component_index == component]
            assert mine.tolist() == list(range(next_position[component], next_position[component] + len(mine)))
            next_position[component] += len(mine)
        assert np.abs(next_position - expected).max() < 1.001
        if step in looked_at:
            sought = make_sampler(mixes).draw(step)
            assert [there.tolist() for there in sought] == [component_index.tolist(), positions.tolist()]
    together = sampler.probabilities(np.arange(NUM_STEPS).reshape(30, 30))
    assert together.reshape(NUM_STEPS, 5).sum(axis=1) == pytest.approx(1)
    assert together[7, 3].tolist() == sampler.probabilities(7 * 30 + 3).tolist()


@settings(max_examples=15)
@given(mixes=mixes(), data=st.data())
def test_a_phase_that_changes_nothing_is_no_phase(mixes: list[Mix], data: st.DataObject):
    step = data.draw(st.integers(1, NUM_STEPS - 1))
    before = [mix for mix in mixes if mix.first_step < step]
    again = Mix(step, before[-1].groups, before[-1].weights, before[-1].sampling, before[-1].sampling_step)
    after = [mix for mix in mixes if mix.first_step > step]
    if any(mix.first_step == step for mix in mixes):
        return
    whole, divided = make_sampler(mixes), make_sampler([*before, again, *after])
    for step in range(0, NUM_STEPS + 300, 13):
        assert whole.cumulative(step).tolist() == divided.cumulative(step).tolist()


def test_phases_that_do_not_follow_each_other_are_refused():
    constant = TemperatureSampling()
    for steps in ([1], [0, 5, 5], [0, 9, 5], [0, NUM_STEPS]):
        with pytest.raises(InputError, match="not one after the other from 0 on"):
            make_sampler([Mix(step, [[0]], [1.0], constant) for step in steps])


VOCABULARY = small_vocabulary()
PAIR, OTHER_PAIR, MONO = random_corpus("en-de", 700), random_corpus("en-fr", 90), random_corpus("de", 300, 25)


def group(name: str, *corpora: Any, objective: Any = None, weight: float = 1.0) -> ComponentGroup:
    return ComponentGroup(name, tuple(Component(corpus, objective or Seq2Seq()) for corpus in corpora), weight)


def make_stream() -> TrainingStream:
    """Pairs; then one more and a task of one language; then as before, capped."""
    rising = TemperatureSampling(temperature_start=1.0, temperature_end=5.0, change_steps=40)
    capped: Sampling = UniMaxSampling(max_passes=30)
    pretraining = group("1", MONO, objective=SpanCorruption(), weight=0.5)
    phases = [
        Phase(0, (group("0", PAIR),), rising),
        Phase(25, (group("0", PAIR, OTHER_PAIR), pretraining), rising),
        Phase(50, (pretraining, group("0", OTHER_PAIR, PAIR)), capped, 50),
    ]
    return TrainingStream(phases, VOCABULARY, Limits(256, 256), 3, 700, 3000, num_steps=80)


def test_every_row_once_before_any_twice_across_phases():
    stream = make_stream()
    assert [component.name for component in stream.components] == [
        "seq2seq:en-de:en-de", "seq2seq:en-fr:en-fr", "span_corruption:de:de",
    ]  # fmt: skip
    rows: dict[int, list[int]] = {0: [], 1: [], 2: []}
    for step in range(80):
        batch = stream.global_batch(step)
        for component, row in zip(batch.component_index.tolist(), batch.rows.tolist(), strict=True):
            rows[component].append(row)
        if step == 24:
            assert not rows[1] and not rows[2]
    for component, drawn in rows.items():
        num_rows = stream.components[component].corpus.num_rows
        assert len(drawn) > 2 * num_rows
        for start in range(0, len(drawn), num_rows):
            one_pass = drawn[start : start + num_rows]
            assert len(set(one_pass)) == len(one_pass)


@settings(max_examples=15)
@given(step=st.integers(0, 79), world_size=st.sampled_from([1, 2, 3, 8]))
def test_any_world_size_has_the_same_sequences_in_every_phase(step: int, world_size: int):
    stream = make_stream()
    reference = stream.global_batch(step)
    ranks = [make_stream().micro_batches(step, rank, world_size) for rank in range(world_size)]
    dealt = [
        index
        for rank in ranks
        for batch in rank.micro_batches
        if batch.weight
        for index in batch.component_index.tolist()
    ]
    assert sorted(dealt) == sorted(reference.component_index.tolist())
    assert {rank.num_target_tokens for rank in ranks} == {int(reference.target_lengths.sum())}


def test_facts_name_the_phase_and_the_temperature_in_it():
    stream = make_stream()
    assert stream.sampling_facts(0) == {"phase": 1, "temperature": 1.0}
    assert stream.sampling_facts(30) == {"phase": 2, "temperature": pytest.approx(4.0)}  # it goes on rising
    assert stream.sampling_facts(50) == {"phase": 3}


def test_a_component_that_comes_twice_in_a_phase_is_refused():
    twice = Phase(5, (group("0", PAIR), group("0", PAIR)), TemperatureSampling())
    once = Phase(0, (group("0", PAIR),), TemperatureSampling())
    with pytest.raises(InputError, match="The component 0/seq2seq:en-de:en-de comes twice"):
        TrainingStream([once, twice], VOCABULARY, Limits(64, 64), 0, 500, 500, num_steps=9)
