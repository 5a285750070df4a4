"""What can run a model: PyTorch, or CTranslate2 for an exported one. Both take and give ids without `</s>`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import torch

from deltalm_ds.checkpoints.directory import load_model
from deltalm_ds.errors import InputError
from deltalm_ds.files import read_json
from deltalm_ds.generation.beam_search import EOS_ID, PAD_ID, Hypothesis, SearchOptions, beam_search
from deltalm_ds.kernels.linear_cross_entropy import linear_cross_entropy
from deltalm_ds.model.deltalm import DeltaLM
from deltalm_ds.model.packing import PackedSequences

ENGINES = ("pytorch", "ctranslate2")
Ids = Sequence[int]

# CTranslate2's versions count lengths differently: take its sums, which this leaves as they are in float32, and not
# 0, at which it stops a sentence at its first finished hypothesis.
NO_LENGTH_PENALTY = 1e-9


class Engine(Protocol):
    """Searches and scores batches.

    vocabulary_size: ids are below it. max_positions: longest source and longest target, `</s>` included.
    """

    vocabulary_size: int
    max_positions: int

    def generate(self, sources: Sequence[Ids], options: SearchOptions) -> list[list[Hypothesis]]:
        """Up to n_best hypotheses for each source (language tag included), best first."""
        ...

    def score(self, sources: Sequence[Ids], targets: Sequence[Ids]) -> list[list[float]]:
        """Log p in nats of each target's tokens and of its `</s>`."""
        ...


class PyTorchEngine:
    """Our own model in this process, on the device that its weights are on."""

    def __init__(self, model: DeltaLM) -> None:
        self.model = model
        self.vocabulary_size, self.max_positions = model.config.vocabulary_size, model.config.max_positions

    def generate(self, sources: Sequence[Ids], options: SearchOptions) -> list[list[Hypothesis]]:
        """See `Engine`; beam search by fairseq's rules."""
        self.model.eval()
        return beam_search(self.model, _packed(sources), options)

    @torch.inference_mode()
    def score(self, sources: Sequence[Ids], targets: Sequence[Ids]) -> list[list[float]]:
        """See `Engine`."""
        self.model.eval()
        weight = self.model.token_embedding.weight
        source, labels = _packed(sources).to(weight.device), _packed(targets).to(weight.device)
        shifted = PackedSequences.from_sequences([[EOS_ID, *target] for target in targets]).to(weight.device)
        hidden = self.model.decode(shifted, self.model.encode(source), source)
        token_nll = linear_cross_entropy(hidden, weight, labels.tokens, self.vocabulary_size).token_nll
        return [(-nll).tolist() for nll in token_nll.split(labels.lengths.tolist())]


class CTranslate2Engine:
    """A model that `export_ctranslate2` wrote, on CPU or GPU.

    CTranslate2 4.8 keeps the same candidates as fairseq's rules and stops a sentence at the same number of
    finished hypotheses. It differs in three things:

    - Its search normalises probabilities *after* excluding what may not come next (`<pad>`, `</s>` below the minimum
      length, repeated n-grams), so its scores are higher where the model would have liked that. Scoring the outputs
      gives the exact ones: `token_scores` of `translate`.
    - It does not force `</s>` at the maximum length: outputs cut there get its log p by scoring them.
    - It normalises by another length: its sums are normalised here as ours are, and ranked anew.
    """

    def __init__(self, directory: str | Path, threads: int = 0, device: str = "cpu") -> None:
        import ctranslate2

        about = read_json(Path(directory) / "deltalm.json")
        self.vocabulary_size, self.max_positions = about["vocabulary_size"], about["max_positions"]
        self.translator = ctranslate2.Translator(str(directory), device, intra_threads=threads)
        self._tokens: list[str] = read_json(Path(directory) / "shared_vocabulary.json")
        self._id_of_token = {token: token_id for token_id, token in enumerate(self._tokens)}

    def generate(self, sources: Sequence[Ids], options: SearchOptions) -> list[list[Hypothesis]]:
        """See `Engine`; the hypotheses have no token scores."""
        if not sources:
            return []
        max_length = min(options.max_length, self.max_positions - 1)
        results = self.translator.translate_batch(
            self._with_eos(sources),
            beam_size=options.beam,
            num_hypotheses=options.beam,
            length_penalty=NO_LENGTH_PENALTY,
            no_repeat_ngram_size=options.no_repeat_ngram_size,
            suppress_sequences=[[self._tokens[PAD_ID]]],
            min_decoding_length=options.min_length,
            max_decoding_length=max_length,
            max_input_length=0,
            return_scores=True,
        )
        return [
            self._ranked(source, result, max_length, options) for source, result in zip(sources, results, strict=True)
        ]

    def _ranked(self, source: Ids, result: Any, max_length: int, options: SearchOptions) -> list[Hypothesis]:
        """The n best of one sentence by our score."""
        found = []
        for tokens, total in zip(result.hypotheses, result.scores, strict=True):
            ids = tuple(self._id_of_token[token] for token in tokens)
            if len(ids) == max_length:
                total = sum(self.score([source], [ids])[0])
            found.append(Hypothesis(ids, total / (len(ids) + 1) ** options.length_penalty))
        return sorted(found, key=lambda hypothesis: -hypothesis.score)[: options.n_best]

    def score(self, sources: Sequence[Ids], targets: Sequence[Ids]) -> list[list[float]]:
        """See `Engine`."""
        if not sources:
            return []
        named_targets = [[self._tokens[token] for token in target] for target in targets]
        results = self.translator.score_batch(self._with_eos(sources), named_targets, max_input_length=0)
        return [result.log_probs for result in results]

    def _with_eos(self, sources: Sequence[Ids]) -> list[list[str]]:
        return [[self._tokens[token] for token in (*source, EOS_ID)] for source in sources]


def load_engine(directory: str | Path, name: str | None = None, threads: int = 0) -> Engine:
    """Open a model directory with one of `ENGINES`; None takes the one that the directory is for.

    Args:
        threads: CPU threads of the engine (for PyTorch, of this process); 0 leaves the engine's default.

    Raises:
        InputError: the directory holds no model, or not one for this engine.
    """
    is_export = (Path(directory) / "deltalm.json").exists()
    name = name or ("ctranslate2" if is_export else "pytorch")
    if name not in ENGINES:
        raise InputError(f"There is no engine {name!r}: the engines are {' and '.join(ENGINES)}.")
    if name == "ctranslate2":
        if not is_export:
            raise InputError(f"{directory} is not a CTranslate2 model: make one with `deltalm export {directory}`.")
        return CTranslate2Engine(directory, threads)
    if is_export:
        raise InputError(f"{directory} is a CTranslate2 model: use --engine ctranslate2.")
    if threads:
        torch.set_num_threads(threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return PyTorchEngine(load_model(directory).to(device))


def _packed(sequences: Sequence[Ids]) -> PackedSequences:
    """Ids with `</s>` after each."""
    return PackedSequences.from_sequences([[*sequence, EOS_ID] for sequence in sequences])
