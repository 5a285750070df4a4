"""Packed sequences against plain lists."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from deltalm_ds.model.packing import PackedSequences

SEQUENCES = st.lists(st.lists(st.integers(0, 99), max_size=5), max_size=6)


@given(SEQUENCES)
def test_every_token_knows_its_place(sequences):
    packed = PackedSequences.from_sequences(sequences)
    places = [(token, b, i) for b, sequence in enumerate(sequences) for i, token in enumerate(sequence)]
    assert list(
        zip(*(x.tolist() for x in (packed.tokens, packed.sequence_of_token, packed.positions)), strict=True)
    ) == (places)
    assert packed.lengths.tolist() == [len(sequence) for sequence in sequences]
    assert packed.num_sequences == len(sequences)
    assert packed.max_seqlen == max(map(len, sequences), default=0)
    assert (packed.tokens.dtype, packed.cu_seqlens.dtype) == (torch.int64, torch.int32)


def test_to_keeps_everything():
    packed = PackedSequences.from_sequences([[5, 6], [7]])
    moved = packed.to("cpu")
    assert torch.equal(moved.tokens, packed.tokens)
    assert torch.equal(moved.cu_seqlens, packed.cu_seqlens)
    assert moved.max_seqlen == 2
