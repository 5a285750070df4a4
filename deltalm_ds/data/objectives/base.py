"""What every objective offers: its options and the way from raw token rows to source and target rows.

An objective says which columns it reads, how long the results will be (known from raw lengths alone, so that all
ranks can plan a step without reading tokens), and builds source and target rows, to which collation adds `</s>` and
the language tag. C columns, N rows.
"""

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict

from deltalm_ds.arrays.ragged import RaggedRows
from deltalm_ds.errors import InputError

Lengths = tuple[np.ndarray, np.ndarray]
Rows = tuple[RaggedRows, RaggedRows]


@dataclass(frozen=True)
class Limits:
    """The longest source and target a model is given, in tokens with `</s>` and language tag, and what to do then.

    Attributes:
        overlong: `truncate` keeps the first tokens, `drop` leaves the sequence out; both are counted.
    """

    max_source: int
    max_target: int
    overlong: Literal["truncate", "drop"] = "truncate"

    def __post_init__(self) -> None:
        if min(self.max_source, self.max_target) < 3:
            raise InputError("The maximum source and target lengths must be at least 3 tokens.")
        if self.overlong not in ("truncate", "drop"):
            raise InputError(f"The policy for overlong sequences is 'truncate' or 'drop', not {self.overlong!r}.")


class Objective(BaseModel):
    """An objective with its options; `raw` lengths are [C, N] int64, `keys` [N] uint64, one per sample.

    Attributes:
        num_columns: C, the columns of a corpus that are read: 1 or 2.
        joins_sides: the sides of a pair make one text, so that reading them the other way round gives nothing new.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
    num_columns: ClassVar[int]
    joins_sides: ClassVar[bool] = False

    kind: str

    @property
    def label(self) -> str:
        """The kind, with the options that are not the default: `span_corruption(noise_density=0.3)`."""
        changed = ",".join(f"{name}={value}" for name, value in self.model_dump(exclude_defaults=True).items())
        return f"{self.kind}({changed})" if changed else self.kind

    @property
    def takes_tag(self) -> bool:
        """Whether the target language's tag stands in front of the source."""
        return False

    @abstractmethod
    def fit(self, raw: np.ndarray, limits: Limits, num_sentinels: int) -> np.ndarray:
        """Raw lengths cut down so that the results keep the limits.

        Raises:
            InputError: no row at all can keep them.
        """

    @abstractmethod
    def usable(self, raw: np.ndarray) -> np.ndarray:
        """[N] bool: whether rows of these raw lengths are long enough for the objective."""

    @abstractmethod
    def lengths(self, raw: np.ndarray, keys: np.ndarray) -> Lengths:
        """Lengths [N] of source and target, with `</s>` and language tag, of usable rows."""

    @abstractmethod
    def build(self, columns: list[RaggedRows], keys: np.ndarray, sentinel_ids: np.ndarray) -> Rows:
        """Source and target rows, without `</s>` and language tag, from C columns of raw token rows."""
