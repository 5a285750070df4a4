"""The shapes that micro-batches are padded to: as they come, a little rounded; or few, where each is to come often."""

from typing import NamedTuple

MULTIPLE = 32  # libraries that compile a matrix product for its shape then meet the same shapes again and again
TAIL_LENGTH = 32  # longest sequence of padding: attention over it stays cheap, and any model has so many positions
FEWEST_SEQUENCES = 16  # of a shape on the ladder
RUNGS = 8  # of the ladder in an octave: a side grows by an eighth at most, by a sixteenth on average


class Shape(NamedTuple):
    """What a padded micro-batch measures: tokens of each side, pairs of sequences, and bounds of their lengths."""

    source_tokens: int
    target_tokens: int
    sequences: int
    longest_source: int
    longest_target: int


def rounded_up(shape: Shape, multiple: int = MULTIPLE) -> Shape:
    """Tokens of each side to a multiple of a number, by one more pair of sequences."""
    source, target = (-(-tokens // multiple) * multiple for tokens in shape[:2])
    return _with_tail(shape, source, target, shape.sequences + num_tails(shape, source, target))


def on_ladder(shape: Shape) -> Shape:
    """One of few shapes: tokens a rung of a ladder, sequences and lengths a power of two; empty sequences fill up."""
    source, target = _rung(shape.source_tokens), _rung(shape.target_tokens)
    sequences = max(FEWEST_SEQUENCES, _power_of_two(shape.sequences + num_tails(shape, source, target)))
    padded = _with_tail(shape, source, target, sequences)
    longest = (max(TAIL_LENGTH, _power_of_two(length)) for length in padded[3:])
    return Shape(source, target, sequences, *longest)


def num_tails(shape: Shape, source_tokens: int, target_tokens: int) -> int:
    """Pairs of sequences, at least one, that the tokens of padding are cut into."""
    most = max(source_tokens - shape.source_tokens, target_tokens - shape.target_tokens)
    return max(1, -(-most // TAIL_LENGTH))


def _with_tail(shape: Shape, source: int, target: int, sequences: int) -> Shape:
    tails = (min(TAIL_LENGTH, source - shape.source_tokens), min(TAIL_LENGTH, target - shape.target_tokens))
    return Shape(source, target, sequences, max(shape.longest_source, tails[0]), max(shape.longest_target, tails[1]))


def _rung(tokens: int) -> int:
    """The smallest rung with room: multiples of an eighth of the power of two below."""
    step = max(MULTIPLE, _power_of_two(tokens) // 2 // RUNGS)
    return -(-tokens // step) * step


def _power_of_two(number: int) -> int:
    """The smallest that is not below."""
    return 1 << (number - 1).bit_length()
