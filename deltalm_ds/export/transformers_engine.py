"""A model of Hugging Face transformers as an `Engine`: to check exports and to compare with."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from deltalm_ds.generation.interface import BATCH_TOKENS, Hypothesis, Ids, SearchOptions
from deltalm_ds.token_ids import EOS_ID, PAD_ID

SCORED_TOGETHER = 8  # sentences whose logits over the vocabulary are in memory at a time
IGNORED = -1


class TransformersEngine:
    """An encoder-decoder of transformers with our ids, on the device that its weights are on.

    Its beam search with `early_stopping=True` keeps the same candidates as fairseq's rules, stops a sentence at the
    same number of finished hypotheses and normalises by the same length. It differs in two things:

    - Where more hypotheses end in one step than are still wanted, fairseq takes the first of them and transformers
      may let them replace earlier, worse ones: the best output is the same, the others of an n-best list may not be.
    - `forced_eos_token_id` gives the `</s>` forced at the maximum length log p = 0. Our own model's code forces it as
      fairseq does, with its own log p; stock models are given the same logits processor here.
    """

    def __init__(self, model: Any) -> None:
        self.model = model.eval()
        self.vocabulary_size, self.max_positions = model.config.vocab_size, model.config.max_position_embeddings
        self.batch_tokens = BATCH_TOKENS[model.device.type]
        self.model.generation_config.forced_eos_token_id = None

    @classmethod
    def load(cls, model_class: Any, directory: Path) -> "TransformersEngine":
        """A model of one of transformers' classes, in the precision that it is stored in."""
        from transformers.utils import logging

        logging.disable_progress_bar()  # it would show for a moment, on every export
        return cls(model_class.from_pretrained(directory, dtype="auto"))

    @torch.inference_mode()
    def generate(self, sources: Sequence[Ids], options: SearchOptions) -> list[list[Hypothesis]]:
        """See `Engine`; the scores of greedy search are made afterwards."""
        if not sources:
            return []
        from deltalm_ds.export.hugging_face_files.modeling_deltalm import EndAt

        max_length = options.limit(self.max_positions) + 2  # with the first and the last </s>
        found = self.model.generate(
            **self._batch(sources),
            num_beams=options.beam,
            num_return_sequences=options.n_best,
            early_stopping=options.beam > 1,
            length_penalty=options.length_penalty,
            min_new_tokens=options.min_length,
            max_length=max_length,
            no_repeat_ngram_size=options.no_repeat_ngram_size,
            logits_processor=[EndAt(max_length, EOS_ID)],
            output_scores=options.beam > 1,
            return_dict_in_generate=True,
        )
        outputs = [_without_ends(ids) for ids in found.sequences.tolist()]
        if options.beam == 1:
            totals = [sum(scores) for scores in self.score(sources, outputs)]
            scores = [
                total / (len(ids) + 1) ** options.length_penalty for ids, total in zip(outputs, totals, strict=True)
            ]
        else:
            scores = found.sequences_scores.tolist()
        hypotheses = [Hypothesis(ids, score) for ids, score in zip(outputs, scores, strict=True)]
        return [hypotheses[start : start + options.n_best] for start in range(0, len(outputs), options.n_best)]

    @torch.inference_mode()
    def score(self, sources: Sequence[Ids], targets: Sequence[Ids]) -> list[list[float]]:
        """See `Engine`."""
        found = []
        for start in range(0, len(sources), SCORED_TOGETHER):
            some = slice(start, start + SCORED_TOGETHER)
            inputs = _padded([[EOS_ID, *target] for target in targets[some]], PAD_ID)
            labels = _padded([[*target, EOS_ID] for target in targets[some]], IGNORED)
            device = self.model.device
            logits = self.model(**self._batch(sources[some]), decoder_input_ids=inputs.to(device)).logits
            log_p = logits.float().log_softmax(dim=2).cpu()
            token_log_p = log_p.gather(2, labels.clamp(min=0)[:, :, None])[:, :, 0]
            found += [row[label != IGNORED].tolist() for row, label in zip(token_log_p, labels, strict=True)]
        return found

    def _batch(self, sources: Sequence[Ids]) -> dict[str, Tensor]:
        ids = _padded([[*source, EOS_ID] for source in sources], IGNORED).to(self.model.device)
        mask = ids != IGNORED
        return {"input_ids": ids.masked_fill(~mask, PAD_ID), "attention_mask": mask.long()}


def _without_ends(ids: list[int]) -> tuple[int, ...]:
    """The tokens between the first `</s>` and the next."""
    return tuple(ids[1 : ids.index(EOS_ID, 1)])


def _padded(sequences: Sequence[Sequence[int]], value: int) -> Tensor:
    return pad_sequence([torch.tensor(list(ids)) for ids in sequences], batch_first=True, padding_value=value)
