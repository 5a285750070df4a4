"""A table of tensors made short without loss: one line for the same tensor of all layers, and for weight and bias."""

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence

_LAYER = re.compile(r"(?<=\.)\d+(?=\.)")
_KIND = re.compile(r"(weight|bias)$")
_KIND_MARK, _LAYER_MARK = "\0", "\1"


def grouped(origins: Mapping[str, str]) -> dict[str, str]:
    """`a.0.b.weight`, `a.0.b.bias`, `a.1.b.weight`, … -> `a.{0-1}.b.{weight,bias}`; on the right side likewise.

    Numbers stand in the same order on both sides: `{0-2}` from `{0,2,4}` says 0 from 0, 1 from 2, 2 from 4.
    """
    layers: dict[tuple[str, str, str], list[tuple[str, str]]] = defaultdict(list)
    for ours, theirs in origins.items():
        kind = match[0] if (match := _KIND.search(ours)) else ""
        left, left_layer = _template(ours, kind)
        right, right_layer = _template(theirs, kind)
        layers[left, right, kind].append((left_layer, right_layer))
    kinds: dict[tuple[str, str, tuple[tuple[str, str], ...]], list[str]] = defaultdict(list)
    for (left, right, kind), numbers in layers.items():
        kinds[left, right, tuple(numbers)].append(kind)
    table = {}
    for (left, right, pairs), members in kinds.items():
        kind = members[0] if len(members) == 1 else f"{{{','.join(sorted(members, reverse=True))}}}"
        our_layers, their_layers = _ranges([layer for layer, _ in pairs]), _ranges([layer for _, layer in pairs])
        ours = left.replace(_KIND_MARK, kind).replace(_LAYER_MARK, our_layers)
        table[ours] = right.replace(_KIND_MARK, kind).replace(_LAYER_MARK, their_layers)
    return table


def _template(text: str, kind: str) -> tuple[str, str]:
    """A text with marks for its kind and its layer's number, and that number ("" if there is none)."""
    if kind:
        text = re.sub(rf"{kind}(?=$|[\[ ])", _KIND_MARK, text)
    layer = _LAYER.search(text)
    return _LAYER.sub(_LAYER_MARK, text), layer[0] if layer else ""


def _ranges(numbers: Sequence[str]) -> str:
    """3 -> `3`; 0, 1, 2 -> `{0-2}`; others -> `{0,2,4}`."""
    if len(numbers) == 1 or not all(numbers):
        return numbers[0]
    first, last = int(numbers[0]), int(numbers[-1])
    if [int(number) for number in numbers] == list(range(first, last + 1)):
        return f"{{{first}-{last}}}"
    return f"{{{','.join(numbers)}}}"
