"""Running a CTranslate2 export, or any sequence-to-sequence model of CTranslate2."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import ctranslate2
import numpy as np

from deltalm_ds.errors import DataError, InputError
from deltalm_ds.generation.exports import format_of, precision_of, sizes_of
from deltalm_ds.generation.foreign.ctranslate2_file import read_model_file
from deltalm_ds.generation.foreign.directories import read_config
from deltalm_ds.generation.foreign.families import OWN, POSITIONS
from deltalm_ds.generation.foreign.vocabularies import family_of_ctranslate2, tokens_of_ctranslate2
from deltalm_ds.generation.interface import BATCH_TOKENS, EngineOptions, Hypothesis, Ids, SearchOptions
from deltalm_ds.token_ids import EOS_ID, PAD_ID, SPECIAL_TOKENS

# CTranslate2's versions count lengths differently: take its sums, which this leaves as they are in float32, and not
# 0, at which it stops a sentence at its first finished hypothesis.
NO_LENGTH_PENALTY = 1e-9
GPU_DTYPES = ("bfloat16", "float16", "float32")  # the first that a GPU computes in is its default


class CTranslate2Engine:
    """A model that `deltalm export --to ctranslate2` wrote, or another of CTranslate2, on CPU or GPU.

    CTranslate2 4.8 keeps the same candidates as fairseq's rules and stops a sentence at the same number of
    finished hypotheses. It differs in four things:

    - Its search normalises probabilities *after* excluding what may not come next (`<pad>`, `</s>` below the minimum
      length, repeated n-grams), so its scores are higher where the model would have liked that. Scoring the outputs
      gives the exact ones: `token_scores` of `generate`.
    - It does not force `</s>` at the maximum length: outputs cut there get its log p by scoring them.
    - It normalises by another length: its sums are normalised here as ours are, and ranked anew.
    - Its sums leave a prefix out: hypotheses that have one are scored. A language that the decoder begins with is a
      prefix for CTranslate2 and not for us: it counts in no score and no length.

    Raises:
        InputError: a file or the device is missing, or the device cannot compute so. DataError: a file cannot be
            opened.
    """

    def __init__(self, directory: str | Path, options: EngineOptions) -> None:
        directory = Path(directory)
        gpu = options.gpu(ctranslate2.get_cuda_device_count())
        device = "cpu" if gpu is None else "cuda"
        self.batch_tokens = BATCH_TOKENS[device]
        self._config, self._is_ours = read_config(directory), format_of(directory) is not None
        self._source_tokens, self._tokens = tokens_of_ctranslate2(directory)
        if self._is_ours:
            self.vocabulary_size, self.max_positions = sizes_of(directory)
            self._family = OWN
        else:
            self._family = family_of_ctranslate2(directory)
            positions = read_model_file(directory / "model.bin").max_positions or POSITIONS
            self.max_positions = positions - (self._family.target == "decoder")
            self.vocabulary_size = len(self._tokens)
        self._id_of_token = {token: token_id for token_id, token in enumerate(self._tokens)}
        self._eos = self._config.get("eos_token") or SPECIAL_TOKENS[EOS_ID]
        self._never = [[self._tokens[PAD_ID]]] if self._is_ours else []
        # a first token that is not ours to count; CTranslate2 gives and counts it unless its decoder starts with it
        self._num_first = int(self._family.target == "decoder")
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
            [self._source(source) for source in sources],
            beam_size=options.beam,
            num_hypotheses=options.beam,
            length_penalty=NO_LENGTH_PENALTY,
            no_repeat_ngram_size=options.no_repeat_ngram_size,
            suppress_sequences=[*self._never, *(self._names(ids) for ids in options.banned)],
            min_decoding_length=options.min_length + self._num_first,
            max_decoding_length=options.limit(self.max_positions) + self._num_first,
            target_prefix=self._begin(sources, options.prefix),
            max_input_length=0,
            return_scores=True,
        )

    def _ranked(self, source: Ids, result: Any, options: SearchOptions) -> list[Hypothesis]:
        """The n best of one sentence by our score."""
        found = []
        for tokens, total in zip(result.hypotheses, result.scores, strict=True):
            ids = tuple(self._id_of_token[token] for token in tokens[self._num_first :])
            if options.prefix or len(ids) == options.limit(self.max_positions):
                total = sum(self.score([source], [ids])[0])
            found.append(Hypothesis(ids, total / (len(ids) + 1) ** options.length_penalty))
        return sorted(found, key=lambda hypothesis: -hypothesis.score)[: options.n_best]

    def score(self, sources: Sequence[Ids], targets: Sequence[Ids]) -> list[list[float]]:
        """See `Engine`."""
        if not sources:
            return []
        begins = self._begin(sources, ()) or [[]] * len(sources)
        results = self.translator.score_batch(
            [self._source(source) for source in sources],
            [[*begin, *self._names(target)] for begin, target in zip(begins, targets, strict=True)],
            max_batch_size=BATCH_TOKENS["cpu"],  # on a GPU too: it keeps the logits of all tokens of a batch
            batch_type="tokens",
            max_input_length=0,
        )
        return [result.log_probs[self._num_first :] for result in results]

    def attention(self, sources: Sequence[Ids], targets: Sequence[Ids]) -> list[np.ndarray]:
        """See `AttentionEngine`; of searches whose outputs are given as prefixes.

        Raises:
            InputError: the export was made before it could show attention.
        """
        if not self._is_ours:
            raise InputError("--alignments: models of CTranslate2 that are not ours do not show it; leave it out.")
        if "alignment_heads" not in self._config:
            raise InputError("This export shows the attention of one head only: export the model again.")
        found = []
        for source, target in zip(sources, targets, strict=True):  # CTranslate2 wants one length for all
            if not len(source):  # it gives nothing for no source: there is `</s>` alone to look at
                found.append(np.ones((len(target) + 1, 1), dtype=np.float32))
                continue
            (result,) = self.translator.translate_batch(
                [self._source(source)],
                target_prefix=[self._names(target)],
                beam_size=1,
                min_decoding_length=0,
                max_decoding_length=len(target) + 1,
                max_input_length=0,
                return_end_token=True,
                return_attention=True,
            )
            found.append(np.array(result.attention[0], dtype=np.float32))
        return found

    def _names(self, ids: Ids) -> list[str]:
        return [self._tokens[token] for token in ids]

    def _source(self, source: Ids) -> list[str]:
        """What the encoder is given, with the end that CTranslate2 does not add itself."""
        _, encoder, behind = self._family.divided(source)
        end = [self._eos] if self._family.adds_end and not self._config.get("add_source_eos") else []
        return [
            *(self._source_tokens[token] for token in encoder),
            *end,
            *(self._source_tokens[token] for token in behind),
        ]

    def _begin(self, sources: Sequence[Ids], prefix: Ids) -> list[list[str]] | None:
        """What outputs begin with, the languages among it; None if that is nothing."""
        if self._family.target == "encoder" and not prefix:
            return None
        return [self._names([*self._family.divided(source).decoder, *prefix]) for source in sources]


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
    is_ours = format_of(directory) is not None
    stored = precision_of(directory) if is_ours else read_model_file(directory / "model.bin").dtype
    prefix = "int8_" if stored.startswith("int8") else ""
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
