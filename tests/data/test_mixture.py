"""Which components a data set gives under an objective."""

from types import SimpleNamespace
from typing import Any, Literal

import pytest

from deltalm_ds.data.mixture import components_of
from deltalm_ds.data.objectives import OBJECTIVES


@pytest.mark.parametrize(
    ("kind", "objective", "directions", "reversed_"),
    [
        ("parallel", "seq2seq", "both", [False, True]),
        ("parallel", "seq2seq", "forward", [False]),
        ("parallel", "seq2seq", "reverse", [True]),
        ("parallel", "translation_span_corruption", "both", [False]),
        ("mono", "span_corruption", "both", [False]),
        ("task", "seq2seq", "both", [False]),  # from articles to headlines, never back
        ("task", "seq2seq", "reverse", [False]),
    ],
)
def test_directions(
    kind: str, objective: str, directions: Literal["both", "forward", "reverse"], reversed_: list[bool]
) -> None:
    dataset: Any = SimpleNamespace(corpora={"a": SimpleNamespace(kind=kind), "b": SimpleNamespace(kind=kind)})
    components = components_of(dataset, OBJECTIVES[objective](), directions)
    assert [component.reverse for component in components] == 2 * reversed_
