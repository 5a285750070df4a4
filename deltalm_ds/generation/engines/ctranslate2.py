"""Running a CTranslate2 export."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import ctranslate2
import numpy as np

from deltalm_ds.errors import DataError, InputError
from deltalm_ds.files import read_json
from deltalm_ds.generation.exports import precision_of, sizes_of
from deltalm_ds.generation.interface import BATCH_TOKENS, EngineOptions, Hypothesis, Ids, SearchOptions
from deltalm_ds.token_ids import EOS_ID, PAD_ID

# CTranslate2's versions count lengths differently: take its sums, which this leaves as they are in float32, and not
# 0, at which it stops a sentence at its first finished hypothesis.
NO_LENGTH_PENALTY = 1e-9
GPU_DTYPES = ("bfloat16", "float16", "float32")  # the first that a GPU computes in is its default


class CTranslate2Engine:
    """A model that `deltalm export --to ctranslate2` wrote, on CPU or GPU.

    CTranslate2 4.8 keeps the same candidates as fairseq's rules and stops a sentence at the same number of
    finished hypotheses. It differs in four things:

    - Its search normalises probabilities *after* excluding what may not come next (`<pad>`, `</s>` below the minimum
      length, repeated n-grams), so its scores are higher where the model would have liked that. Scoring the outputs
      gives the exact ones: `token_scores` of `generate`.
    - It does not force `</s>` at the maximum length: outputs cut there get its log p by scoring them.
    - It normalises by another length: its sums are normalised here as ours are, and ranked anew.
    - Its sums leave a prefix out: hypotheses that have one are scored.

    Raises:
        InputError: a file or the device is missing, or the device cannot compute so. DataError: a file cannot be
            opened.
    """

    def __init__(self, directory: str | Path, options: EngineOptions) -> None:
        directory = Path(directory)
        gpu = options.gpu(ctranslate2.get_cuda_device_count())
        device = "cpu" if gpu is None else "cuda"
        self.batch_tokens = BATCH_TOKENS[device]
        self.vocabulary_size, self.max_positions = sizes_of(directory)
        self._tokens: list[str] = read_json(directory / "shared_vocabulary.json")
        self._config = read_json(directory / "config.json")
        self._id_of_token = {token: token_id for token_id, token in enumerate(self._tokens)}
        try:
            self.translator = ctranslate2.Translator(
                str(directory),
                device,
                device_index=gpu or 0,
                compute_type=_compute_type(directory, gpu, options.dtype),
                intra_threads=options.threads,
            )
        except RuntimeError as error:
            raise DataError(f"{directory} cannot be opened by CTranslate2: {error}.") from None

    def generate(self, sources: Sequence[Ids], options: SearchOptions) -> list[list[Hypothesis]]:
        """See `Engine`; the hypotheses have no token scores."""
        if options.temperature:
            raise InputError(
                "--temperature: CTranslate2 draws from a state of its own, so that outputs would depend on the batch; "
                "sample with the model itself or an export to ONNX."
            )
        found: list[list[Hypothesis]] = [[] for _ in sources]
        of_bounds = defaultdict(list)  # it takes one minimum and one maximum for all
        for index, source in enumerate(sources):
            of_bounds[options.bounds(len(source), self.max_positions)].append(index)
        for (least, most), indices in of_bounds.items():
            some = [sources[index] for index in indices]
            alike = replace(options, min_length=least, max_length=most, min_length_ratio=0.0, max_length_ratio=0.0)
            for index, source, result in zip(indices, some, self.search(some, alike), strict=True):
                found[index] = self._ranked(source, result, alike)
        return found

    def search(self, sources: Sequence[Ids], options: SearchOptions) -> list[Any]:
        """CTranslate2's own results: as many hypotheses as the beam, their scores Σ log p as it sees them."""
        if not sources:
            return []
        return self.translator.translate_batch(
            self._with_eos(sources),
            beam_size=options.beam,
            num_hypotheses=options.beam,
            length_penalty=NO_LENGTH_PENALTY,
            no_repeat_ngram_size=options.no_repeat_ngram_size,
            suppress_sequences=[[self._tokens[token] for token in ids] for ids in ((PAD_ID,), *options.banned)],
            min_decoding_length=options.min_length,
            max_decoding_length=options.limit(self.max_positions),
            target_prefix=[[self._tokens[token] for token in options.prefix]] * len(sources)
            if options.prefix
            else None,
            max_input_length=0,
            return_scores=True,
        )

    def _ranked(self, source: Ids, result: Any, options: SearchOptions) -> list[Hypothesis]:
        """The n best of one sentence by our score."""
        found = []
        for tokens, total in zip(result.hypotheses, result.scores, strict=True):
            ids = tuple(self._id_of_token[token] for token in tokens)
            if options.prefix or len(ids) == options.limit(self.max_positions):
                total = sum(self.score([source], [ids])[0])
            found.append(Hypothesis(ids, total / (len(ids) + 1) ** options.length_penalty))
        return sorted(found, key=lambda hypothesis: -hypothesis.score)[: options.n_best]

    def score(self, sources: Sequence[Ids], targets: Sequence[Ids]) -> list[list[float]]:
        """See `Engine`."""
        if not sources:
            return []
        named_targets = [[self._tokens[token] for token in target] for target in targets]
        results = self.translator.score_batch(
            self._with_eos(sources),
            named_targets,
            max_batch_size=BATCH_TOKENS["cpu"],  # on a GPU too: it keeps the logits of all tokens of a batch
            batch_type="tokens",
            max_input_length=0,
        )
        return [result.log_probs for result in results]

    def attention(self, sources: Sequence[Ids], targets: Sequence[Ids]) -> list[np.ndarray]:
        """See `AttentionEngine`; of searches whose outputs are given as prefixes.

        Raises:
            InputError: the export was made before it could show attention.
        """
        if "alignment_heads" not in self._config:
            raise InputError("This export shows the attention of one head only: export the model again.")
        found = []
        for source, target in zip(sources, targets, strict=True):  # CTranslate2 wants one length for all
            if not len(source):  # it gives nothing for no source: there is `</s>` alone to look at
                found.append(np.ones((len(target) + 1, 1), dtype=np.float32))
                continue
            (result,) = self.translator.translate_batch(
                self._with_eos([source]),
                target_prefix=[[self._tokens[token] for token in target]],
                beam_size=1,
                min_decoding_length=0,
                max_decoding_length=len(target) + 1,
                max_input_length=0,
                return_end_token=True,
                return_attention=True,
            )
            found.append(np.array(result.attention[0], dtype=np.float32))
        return found

    def _with_eos(self, sources: Sequence[Ids]) -> list[list[str]]:
        return [[self._tokens[token] for token in (*source, EOS_ID)] for source in sources]


def open_engine(directory: Path, options: EngineOptions) -> CTranslate2Engine:
    """See `EngineEntry.open`."""
    return CTranslate2Engine(directory, options)


def _compute_type(directory: Path, gpu: int | None, dtype: str | None) -> str:
    """CTranslate2's name of what is computed in: int8 weights stay int8, and the rest is done in `dtype`.

    Without a dtype, on the CPU: that of the export, or what CTranslate2 takes instead where the CPU has not got it.

    Raises:
        InputError: the device does not compute so.
    """
    if gpu is None and dtype is None:
        return "default"
    prefix = "int8_" if precision_of(directory).startswith("int8") else ""
    name = "cpu" if gpu is None else "cuda"
    supported = ctranslate2.get_supported_compute_types(name, gpu or 0)
    if dtype is None:  # a GPU has bfloat16 from sm_80 on, and 16 bits at all from sm_70 on
        return next((prefix + kind for kind in GPU_DTYPES if prefix + kind in supported), "default")
    if prefix + dtype not in supported:
        raise InputError(
            f"--dtype {dtype}: CTranslate2 does not compute in {prefix}{dtype} on this device ({name}), but in "
            f"{', '.join(sorted(supported))}."
        )
    return prefix + dtype
