"""Does an exported model give what the model gives? Log-probabilities and outputs of two engines, compared."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np

from deltalm_ds.errors import CheckError
from deltalm_ds.generation.interface import Engine, Ids, SearchOptions
from deltalm_ds.generation.score import score
from deltalm_ds.generation.translate import generate

NUM_RANDOM_SOURCES = 32
MAX_OUTPUT_LENGTH = 64  # enough to see every kind of step; keeps the check of a model that never ends short

TIE = 1e-4  # nats a token; outputs whose scores differ by less are equally good: rounding chooses
EXACT_MAX_ERROR = 1e-4  # nats; float32 engines differ by about 5e-6 [facts: CTranslate2], a wrong weight by far more
EXACT_SCORE_LOSS = 0.01  # nats a token; on untrained models, beams that tie may go another way, not a worse one
LOSSY_MEAN_ERROR = 0.2  # nats; int8 gives 0.01 to 0.03, a wrong tensor 1 and more
LOSSY_SCORE_LOSS = 0.1  # nats a token by the model itself; int8 gives up to 0.02


@dataclass(frozen=True)
class ParityReport:
    """How far an export is from its model.

    Attributes:
        is_exact: whether it must agree to rounding; else it is lossy.
        num_sentences, num_tokens: what was compared; tokens count `</s>`.
        max_error, mean_error: |difference| of log p of a token, over the model's own greedy outputs, in nats.
        greedy_agreement, beam_agreement: fraction of sentences with the same output, or one that the model itself
            scores within `TIE` of its own.
        score_loss: by how much the model's mean score of the export's outputs is below that of its own, in nats a
            token, the worse of greedy and beam search.
    """

    is_exact: bool
    num_sentences: int
    num_tokens: int
    max_error: float
    mean_error: float
    greedy_agreement: float
    beam_agreement: float
    score_loss: float

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    @property
    def holds(self) -> bool:
        """Whether the export is as near as it must be."""
        if self.is_exact:
            same_outputs = self.greedy_agreement == 1.0 and self.score_loss <= EXACT_SCORE_LOSS
            return self.max_error <= EXACT_MAX_ERROR and same_outputs
        return self.mean_error <= LOSSY_MEAN_ERROR and self.score_loss <= LOSSY_SCORE_LOSS

    def __str__(self) -> str:
        if self.is_exact:
            limits = f"at most {EXACT_MAX_ERROR:g} nats, all greedy outputs, {EXACT_SCORE_LOSS:g} nats a token"
        else:
            limits = f"mean {LOSSY_MEAN_ERROR:g} nats, {LOSSY_SCORE_LOSS:g} nats a token"
        return (
            f"{self.num_sentences} sentences, {self.num_tokens} tokens: log-probability error at most "
            f"{self.max_error:.1e}, mean {self.mean_error:.1e} nats; same output greedy {self.greedy_agreement:.1%}, "
            f"beam 5 {self.beam_agreement:.1%}; outputs worse by {self.score_loss:.4f} nats a token (allowed: {limits})"
        )


def check_parity(model: Engine, export: Engine, sources: Sequence[Ids] | None, is_exact: bool) -> ParityReport:
    """Compare an export with its model.

    Args:
        sources: ids with language tags, without `</s>`; None takes random ones.
        is_exact: float32 must agree to rounding, give every greedy output and equally good ones with beam 5; a
            quantized export must score tokens about equally and give outputs about as good. Agreement of whole
            outputs is no criterion there: it says more about how sure the model is than about the export.

    Raises:
        CheckError: it does not agree; the message has the numbers.
    """
    sources = random_sources(model) if sources is None else sources
    greedy = _compare_outputs(model, export, sources, SearchOptions(beam=1, max_length=MAX_OUTPUT_LENGTH))
    beam = _compare_outputs(model, export, sources, SearchOptions(beam=5, max_length=MAX_OUTPUT_LENGTH))
    expected, actual = (_flat(score(engine, sources, greedy.outputs)) for engine in (model, export))
    errors = np.abs(expected - actual)
    report = ParityReport(
        is_exact=is_exact,
        num_sentences=len(sources),
        num_tokens=len(errors),
        max_error=float(errors.max()),
        mean_error=float(errors.mean()),
        greedy_agreement=greedy.agreement,
        beam_agreement=beam.agreement,
        score_loss=max(greedy.score_loss, beam.score_loss),
    )
    if not report.holds:
        raise CheckError(f"The exported model does not give what the model gives; nothing was written. {report}.")
    return report


def random_sources(model: Engine) -> list[list[int]]:
    """Sentences of 1 to 40 random tokens, the same at every call for a vocabulary."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, min(40, model.max_positions - 1) + 1, NUM_RANDOM_SOURCES)
    return [rng.integers(4, model.vocabulary_size, length).tolist() for length in lengths]


class _Comparison(NamedTuple):
    """outputs: the model's own. agreement, score_loss: see `ParityReport`, for one way of searching."""

    outputs: list[tuple[int, ...]]
    agreement: float
    score_loss: float


def _compare_outputs(model: Engine, export: Engine, sources: Sequence[Ids], options: SearchOptions) -> _Comparison:
    ours, theirs = (
        [hypotheses[0].ids for hypotheses in generate(engine, sources, options)] for engine in (model, export)
    )
    our_scores, their_scores = (
        np.array([np.mean(scores) for scores in score(model, sources, outputs)]) for outputs in (ours, theirs)
    )
    same = np.array([a == b for a, b in zip(ours, theirs, strict=True)])
    agrees = same | (np.abs(our_scores - their_scores) <= TIE)
    return _Comparison(ours, float(agrees.mean()), float((our_scores - their_scores).mean()))


def _flat(token_scores: list[list[float]]) -> np.ndarray:
    return np.concatenate([np.asarray(scores) for scores in token_scores])
