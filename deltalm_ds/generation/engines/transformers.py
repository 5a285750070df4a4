"""Running a model of Hugging Face transformers, searched by our own beam search.

Legend: B sentences, K beams, N = B · K rows (the beams of a sentence side by side), V vocabulary, S source, D width,
P the tokens that the decoder begins with.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from deltalm_ds.errors import DataError, InputError
from deltalm_ds.generation.beam_search import beam_search
from deltalm_ds.generation.engines.pytorch import torch_device_and_dtype, unmapped
from deltalm_ds.generation.exports import format_of
from deltalm_ds.generation.foreign.directories import transformers_config
from deltalm_ds.generation.foreign.families import OWN, POSITIONS, Family
from deltalm_ds.generation.interface import BATCH_TOKENS, EngineOptions, Hypothesis, Ids, SearchOptions
from deltalm_ds.generation.sampling import sample
from deltalm_ds.model.packing import PackedSequences, pack_with_eos
from deltalm_ds.token_ids import EOS_ID, PAD_ID

SCORED_TOGETHER = 8  # sentences whose logits over the vocabulary are in memory at a time
IGNORED = -1
ZERO_IF_MISSING = {"final_logits_bias"}


class IdMap:
    """A model's ids and those of the search, in which `</s>` and `<pad>` have the places that they have in ours.

    All other ids are the same on both sides, but for such as had those places.
    """

    def __init__(self, eos_id: int, pad_id: int) -> None:
        others = sorted({EOS_ID, PAD_ID} - {eos_id, pad_id})
        free = sorted({eos_id, pad_id} - {EOS_ID, PAD_ID})
        moved = {eos_id: EOS_ID, pad_id: PAD_ID} | dict(zip(others, free, strict=True))
        self._to_search = {a: b for a, b in moved.items() if a != b}
        self._to_model = {b: a for a, b in self._to_search.items()}

    def to_search(self, ids: Iterable[int]) -> tuple[int, ...]:
        """Ids of the model as the search has them."""
        return tuple(self._to_search.get(token, token) for token in ids)

    def to_model(self, ids: Iterable[int]) -> tuple[int, ...]:
        """The other way round."""
        return tuple(self._to_model.get(token, token) for token in ids)

    def rows_to_model(self, tokens: Tensor) -> Tensor:
        """The same of [N] int64."""
        found = tokens.clone()
        for searched, token in self._to_model.items():
            found[tokens == searched] = token
        return found

    def columns_to_search(self, logits: Tensor) -> Tensor:
        """Logits [N, V] by the ids of the search; in place."""
        if self._to_search:
            logits[:, list(self._to_search.values())] = logits[:, list(self._to_search)]
        return logits


class TransformersCache:
    """What the decoder takes beside the tokens (see `beam_search.StepCache`).

    states: [B, S, D], what the encoder gave. mask: [B, S] int64. begin: [B, P] int64.
    """

    def __init__(self, states: Tensor, mask: Tensor, begin: Tensor, past: Any) -> None:
        self.states, self.mask, self.begin, self.past = states, mask, begin, past
        self.has_begun = False
        self._num_rows = 0  # of a sentence

    def reserve(self, length: int) -> None:
        """Nothing: keys and values grow with every step."""

    def select_rows(self, rows: Tensor) -> None:
        """See `beam_search.StepCache`; rows are those of their sentence, which look at one source."""
        self.past.self_attention_cache.batch_select_indices(rows)

    def select_sentences(self, sentences: Tensor) -> None:
        """See `beam_search.StepCache`."""
        num = self._num_rows
        rows = (sentences[:, None] * num + torch.arange(num, device=sentences.device)).flatten()
        self.past.cross_attention_cache.batch_select_indices(rows)
        self.states, self.mask = self.states[rows], self.mask[rows]

    def widen(self, num_rows: int) -> None:
        """From sentences to their rows, before the first step."""
        self._num_rows = num_rows // len(self.states)
        self.states, self.mask, self.begin = (
            part.repeat_interleave(self._num_rows, dim=0) for part in (self.states, self.mask, self.begin)
        )


class TransformersEngine:
    """An encoder-decoder of transformers that is told languages as its family is, with its own ids.

    The search is that of our own models, so that every option does what it does there; transformers computes. The
    decoder's first tokens, the target's language among them, are given, and count in no score and no length.

    Args:
        model: of transformers, in evaluation mode.
        family: how it is told languages.
    """

    def __init__(self, model: Any, family: Family) -> None:
        config = model.config
        self.model, self._family = model, family
        self._start = [] if family.target == "start" else [_start_token(model)]
        self._eos_id = config.eos_token_id
        self.ids = IdMap(self._eos_id, config.pad_token_id)
        positions = getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None)
        num_first = len(self._start) + (family.target != "encoder")
        self.vocabulary_size = getattr(config, "decoder_vocab_size", None) or config.vocab_size  # Marian has the first
        self.max_positions = (positions or POSITIONS) - (num_first - 1)
        self.batch_tokens = BATCH_TOKENS[model.device.type]

    def generate(self, sources: Sequence[Ids], options: SearchOptions) -> list[list[Hypothesis]]:
        """See `Engine`; beam search by fairseq's rules, or samples."""
        packed = pack_with_eos([self.ids.to_search(source) for source in sources]).to(self.model.device)
        banned = tuple(map(self.ids.to_search, options.banned))
        options = replace(options, prefix=self.ids.to_search(options.prefix), banned=banned)
        with torch.cuda.device_of(packed.tokens):
            found = (sample if options.temperature else beam_search)(self, packed, options)
        return [[replace(one, ids=self.ids.to_model(one.ids)) for one in of_source] for of_source in found]

    @torch.inference_mode()
    def score(self, sources: Sequence[Ids], targets: Sequence[Ids]) -> list[list[float]]:
        """See `Engine`."""
        found = []
        for start in range(0, len(sources), SCORED_TOGETHER):
            some = slice(start, start + SCORED_TOGETHER)
            inputs, begin = self._inputs(sources[some])
            num_first = begin.shape[1]
            wanted = [[*target, self._eos_id] for target in targets[some]]
            given = [[*first, *target] for first, target in zip(begin.tolist(), targets[some], strict=True)]
            given_ids = _padded(given, self.model.config.pad_token_id).to(self.model.device)
            logits = self.model(**inputs, decoder_input_ids=given_ids, use_cache=False).logits[:, num_first - 1 :]
            labels = _padded(wanted, IGNORED)
            log_p = logits.float().log_softmax(dim=2).cpu().gather(2, labels.clamp(min=0)[:, :, None])[:, :, 0]
            found += [row[label != IGNORED].tolist() for row, label in zip(log_p, labels, strict=True)]
        return found

    def start_decoding(self, source: PackedSequences) -> TransformersCache:
        """See `beam_search.StepModel`."""
        from transformers import DynamicCache, EncoderDecoderCache

        whole = source.tokens.cpu().split(source.lengths.tolist())
        inputs, begin = self._inputs([self.ids.to_model(tokens.tolist()[:-1]) for tokens in whole])
        states = self.model.get_encoder()(**inputs).last_hidden_state
        past = EncoderDecoderCache(DynamicCache(), DynamicCache())
        return TransformersCache(states, inputs["attention_mask"], begin.to(states.device), past)

    def decode_step(self, tokens: Tensor, cache: TransformersCache) -> Tensor:
        """See `beam_search.StepModel`; the first step takes what the decoder begins with, whatever the tokens."""
        if cache.has_begun:
            given = self.ids.rows_to_model(tokens)[:, None]
        else:
            cache.widen(len(tokens))
            given, cache.has_begun = cache.begin, True
        logits = self.model(
            encoder_outputs=(cache.states,),
            attention_mask=cache.mask,
            decoder_input_ids=given,
            past_key_values=cache.past,
            use_cache=True,
        ).logits[:, -1]
        return self.ids.columns_to_search(logits)

    def _inputs(self, sources: Sequence[Ids]) -> tuple[dict[str, Tensor], Tensor]:
        """What the encoder is given, padded, and what the decoder begins with [B, P]."""
        divided = [self._family.divided(source) for source in sources]
        ids = _padded([[*one.encoder, self._eos_id, *one.behind] for one in divided], IGNORED).to(self.model.device)
        mask = ids != IGNORED
        begin = torch.tensor([[*self._start, *one.decoder] for one in divided])
        return {
            "input_ids": ids.masked_fill(~mask, self.model.config.pad_token_id),
            "attention_mask": mask.long(),
        }, begin


def open_engine(directory: Path, options: EngineOptions) -> TransformersEngine:
    """See `EngineEntry.open`; the threads are this process's."""
    try:
        from transformers import AutoModelForSeq2SeqLM
        from transformers.utils import logging
    except ModuleNotFoundError:
        raise InputError(f"{directory} needs the package transformers: pip install 'deltalm-ds[export]'.") from None
    family = OWN if format_of(directory) else transformers_config(directory)[1]
    device, dtype = torch_device_and_dtype(options)
    logging.disable_progress_bar()  # it would show for a moment
    try:
        model, info = AutoModelForSeq2SeqLM.from_pretrained(
            directory, dtype=dtype, local_files_only=True, output_loading_info=True
        )
    except Exception as error:  # whatever a model of any class finds wrong with its files
        reason = str(error).strip().split("\n")[0]
        raise DataError(f"{directory} cannot be opened by transformers: {reason}.") from None
    missing = sorted(info["missing_keys"] - ZERO_IF_MISSING)
    if missing:  # transformers would draw them
        raise DataError(f"{directory} lacks {len(missing)} of the model's tensors, such as {missing[0]}.")
    model = unmapped(model.to(device).eval(), options)
    if model.config.eos_token_id is None or model.config.pad_token_id is None:
        raise DataError(f"{directory / 'config.json'} does not say which ids </s> and <pad> have.")
    return TransformersEngine(model, family)


def _start_token(model: Any) -> int:
    """What the decoder starts with.

    Raises:
        DataError: the model does not say it.
    """
    for config in (model.generation_config, model.config):
        if (start := getattr(config, "decoder_start_token_id", None)) is not None:
            return start
    raise DataError("The model's config.json does not say what outputs start with (decoder_start_token_id).")


def _padded(sequences: Sequence[Sequence[int]], value: int) -> Tensor:
    return pad_sequence([torch.tensor(list(ids)) for ids in sequences], batch_first=True, padding_value=value)
