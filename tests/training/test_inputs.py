"""What of a recipe's data sets a run trains on."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import pytest

from deltalm_ds.data.objectives import OBJECTIVES
from deltalm_ds.recipe.schema import TrainingGroup
from deltalm_ds.training.inputs import _directions


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
    corpus: Any = SimpleNamespace(kind=kind)
    group = TrainingGroup(path=Path("shards"), objective=OBJECTIVES[objective](), directions=directions)
    assert list(_directions(group, corpus)) == reversed_
