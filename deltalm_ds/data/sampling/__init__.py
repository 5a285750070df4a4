"""How the sequences of a group are shared among its corpora. One file and one row of the table each."""

from deltalm_ds.data.sampling.base import Sampling
from deltalm_ds.data.sampling.temperature import TemperatureSampling
from deltalm_ds.data.sampling.unimax import UniMaxSampling

SAMPLINGS: dict[str, type[Sampling]] = {
    "temperature": TemperatureSampling,
    "unimax": UniMaxSampling,
}
"""The kinds of sampling by the name a recipe gives them, which is their `kind`."""
