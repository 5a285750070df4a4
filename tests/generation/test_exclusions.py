"""Banned sequences and repeated n-grams against brute force, and in searches."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from deltalm_ds.errors import InputError
from deltalm_ds.generation.engines.pytorch import PyTorchEngine
from deltalm_ds.generation.exclusions import Exclusions
from deltalm_ds.generation.interface import SearchOptions
from deltalm_ds.model.config import DeltaLMConfig
from deltalm_ds.model.deltalm import DeltaLM
from deltalm_ds.token_ids import PAD_ID

token = st.integers(4, 6)


@given(
    rows=st.lists(st.lists(token, min_size=6, max_size=6), min_size=1, max_size=4),
    position=st.integers(0, 6),
    banned=st.lists(st.lists(token, min_size=1, max_size=4).map(tuple), max_size=4).map(tuple),
    size=st.integers(0, 3),
)
def test_what_is_excluded_is_what_would_complete_it(rows, position, banned, size):
    tokens = torch.full((len(rows), 7), PAD_ID)
    tokens[:, :position] = torch.tensor(rows)[:, :position]
    exclusions = Exclusions(SearchOptions(banned=banned, no_repeat_ngram_size=size), tokens.device)
    found = exclusions.next(tokens, torch.tensor([position]))
    for row, excluded in zip(rows, found.tolist(), strict=True):
        so_far = tuple(row[:position])
        expected = set()
        for candidate in range(4, 7):
            longer = (*so_far, candidate)
            ngrams = [longer[i : i + size] for i in range(len(longer) - size + 1)] if size else []
            if any(longer[-len(one) :] == one for one in banned) or (ngrams and ngrams[-1] in ngrams[:-1]):
                expected.add(candidate)
        assert set(excluded) - {PAD_ID} == expected


@pytest.mark.parametrize("options", [{}, {"temperature": 1.0, "n_best": 4}])
def test_no_output_has_what_is_banned(options):
    torch.manual_seed(0)
    engine = PyTorchEngine(DeltaLM(DeltaLMConfig.preset("tiny", vocabulary_size=50, max_positions=20)))
    sources = [[4, 5, 6], [7, 8], [9]]
    usual = engine.generate(sources, SearchOptions(max_length=8, **options))
    banned = {pair for found in usual for one in found for pair in zip(one.ids, one.ids[1:], strict=False)}
    banned |= {(one.ids[0],) for found in usual for one in found}
    for found in engine.generate(sources, SearchOptions(max_length=8, banned=tuple(sorted(banned)), **options)):
        for one in found:
            assert one.ids and not {(one.ids[0],), *zip(one.ids, one.ids[1:], strict=False)} & banned


def test_an_empty_sequence_is_refused():
    with pytest.raises(InputError, match="A banned sequence has no tokens"):
        SearchOptions(banned=((4,), ()))
