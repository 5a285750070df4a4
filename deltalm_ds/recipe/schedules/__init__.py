"""Learning rate schedules. One file and one row of the table each."""

from deltalm_ds.recipe.schedules.base import Schedule
from deltalm_ds.recipe.schedules.constant import Constant
from deltalm_ds.recipe.schedules.cosine import Cosine
from deltalm_ds.recipe.schedules.inverse_sqrt import InverseSqrt
from deltalm_ds.recipe.schedules.linear import Linear
from deltalm_ds.recipe.schedules.wsd import WarmupStableDecay

SCHEDULES: dict[str, type[Schedule]] = {
    "inverse_sqrt": InverseSqrt,
    "linear": Linear,
    "cosine": Cosine,
    "constant": Constant,
    "wsd": WarmupStableDecay,
}
"""The schedules by the name a recipe gives them, which is their `kind`."""
