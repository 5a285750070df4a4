"""Training objectives: what a model learns from a row. One file and one row of the table each."""

from deltalm_ds.data.objectives.base import Objective
from deltalm_ds.data.objectives.seq2seq import Seq2Seq
from deltalm_ds.data.objectives.span_corruption import SpanCorruption
from deltalm_ds.data.objectives.translation_span_corruption import TranslationSpanCorruption

OBJECTIVES: dict[str, type[Objective]] = {
    "seq2seq": Seq2Seq,
    "span_corruption": SpanCorruption,
    "translation_span_corruption": TranslationSpanCorruption,
}
"""The objectives by the name a recipe gives them, which is their `kind`."""
