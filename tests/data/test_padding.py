"""Shapes of padded micro-batches: room for everything, few of them, little waste."""

from hypothesis import given
from hypothesis import strategies as st

from deltalm_ds.data.padding import MULTIPLE, TAIL_LENGTH, Shape, on_ladder, rounded_up

SHAPES = st.builds(
    Shape,
    st.integers(1, 100_000),
    st.integers(1, 100_000),
    st.integers(1, 5000),
    st.integers(1, 512),
    st.integers(1, 512),
)


@given(SHAPES)
def test_there_is_room_for_the_micro_batch_and_its_tail(shape: Shape):
    for padded in (rounded_up(shape), on_ladder(shape)):
        assert all(after >= before for before, after in zip(shape, padded, strict=True))
        pads = padded.source_tokens - shape.source_tokens, padded.target_tokens - shape.target_tokens
        assert padded.sequences - shape.sequences >= max(1, -(-max(pads) // TAIL_LENGTH))
        for pad, longest in zip(pads, padded[3:], strict=True):
            assert longest >= min(pad, TAIL_LENGTH)
        assert not any(tokens % MULTIPLE for tokens in padded[:2])


@given(SHAPES)
def test_the_ladder_wastes_an_eighth_of_a_side_at_most(shape: Shape):
    for before, after in zip(shape[:2], on_ladder(shape)[:2], strict=True):
        assert after - before < max(MULTIPLE, before / 8 + 1)


def test_the_ladder_has_eight_rungs_an_octave():
    rungs = {on_ladder(Shape(tokens, tokens, 1, 1, 1)).source_tokens for tokens in range(1, 8193)}
    assert len([rung for rung in rungs if 4096 < rung <= 8192]) == 8
    assert len([rung for rung in rungs if 256 < rung <= 512]) == 8
    assert len(rungs) == 8 * 6
