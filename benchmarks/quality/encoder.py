"""A small multilingual encoder, pre-trained as XLM-R was, by transformers' own Trainer: `deltalm init` starts from it.

A masked language model [Conneau+20] over the pieces of one of our vocabularies: 15 % of the tokens are asked for, of
which eight in ten are masked, one is replaced by a random piece and one left. It is written as Hugging Face's are.
"""

import shutil
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from torch import Tensor

from deltalm_ds.model.config import DeltaLMConfig
from deltalm_ds.processor import native_bfloat16
from deltalm_ds.token_ids import BOS_ID, EOS_ID, SPECIAL_TOKENS
from deltalm_ds.vocabulary import Vocabulary

ASKED_FOR, MASKED, RANDOM = 0.15, 0.8, 0.1
WINDOW = 24  # tokens: of longer ones a small model learns for long nothing but how frequent pieces are
IGNORED = -100  # label of a token that is not asked for


def pretrain(
    texts: Sequence[Path], vocabulary: Path, out: Path, config: DeltaLMConfig, max_steps: int, num_windows: int
) -> None:
    """Train an encoder of the shape of `config`'s on lines of text, and write it to `out`.

    Args:
        texts: files of lines, a language each; they follow one another in windows, as interface text is short.
        vocabulary: of ours; its pieces are the encoder's, behind them `<mask>`.
        out: a new directory, such as `XLMRobertaForMaskedLM.from_pretrained` reads.
        config: whose encoder is made.
        max_steps: updates.
        num_windows: of an update.
    """
    from transformers import Trainer, TrainingArguments, XLMRobertaConfig, XLMRobertaForMaskedLM

    torch.manual_seed(1)
    torch.set_num_threads(1)
    pieces = Vocabulary.load(vocabulary)
    mask = len(pieces.blocks["special"]) + len(pieces.blocks["pieces"])
    model = XLMRobertaForMaskedLM(
        XLMRobertaConfig(
            vocab_size=mask + 1,
            hidden_size=config.hidden_size,
            num_hidden_layers=config.num_encoder_layers,
            num_attention_heads=config.num_heads,
            intermediate_size=config.ffn_size,
            max_position_embeddings=config.max_positions + 2,  # the first position is 2
            type_vocab_size=1,
            layer_norm_eps=config.layer_norm_eps,
            initializer_range=0.05,  # 0.02 is for widths of hundreds
            hidden_dropout_prob=config.dropout,
            attention_probs_dropout_prob=config.attention_dropout,
        )
    )
    with TemporaryDirectory(dir=out.parent) as scratch:
        arguments = TrainingArguments(
            scratch,
            max_steps=max_steps,
            per_device_train_batch_size=num_windows,
            learning_rate=2e-3,
            lr_scheduler_type="linear",
            warmup_steps=max_steps // 10,
            adam_beta2=0.98,
            logging_steps=100,
            save_strategy="no",
            report_to="none",
            use_cpu=True,
            bf16=native_bfloat16(),  # elsewhere it would be slower
            remove_unused_columns=False,
            seed=1,
        )
        windows = torch.cat([_windows(text, pieces) for text in texts])
        Trainer(model, arguments, data_collator=_Masking(mask), train_dataset=windows).train()
        model.save_pretrained(Path(scratch) / "encoder")
        shutil.copy(vocabulary / "spm.model", Path(scratch) / "encoder" / "sentencepiece.bpe.model")
        (Path(scratch) / "encoder").rename(out)


def _windows(text: Path, vocabulary: Vocabulary) -> Tensor:
    """All ids of a text, as rows [windows, WINDOW] with `<s>` and `</s>` at their ends; what fills none is left out."""
    ids = np.concatenate(vocabulary.encode_batch(text.read_text(encoding="utf-8").splitlines()))
    inner = torch.from_numpy(ids[: len(ids) // (WINDOW - 2) * (WINDOW - 2)].astype(np.int64)).view(-1, WINDOW - 2)
    return torch.nn.functional.pad(torch.nn.functional.pad(inner, (1, 0), value=BOS_ID), (0, 1), value=EOS_ID)


class _Masking:
    """Windows to inputs and labels; draws anew each time."""

    def __init__(self, mask: int) -> None:
        self.mask = mask  # an id, behind the pieces
        self.generator = torch.Generator().manual_seed(1)

    def __call__(self, windows: list[Tensor]) -> dict[str, Tensor]:
        ids = torch.stack(windows)
        asked = (self._draw(ids) < ASKED_FOR) & (ids >= len(SPECIAL_TOKENS))
        draws = self._draw(ids)
        random = torch.randint(len(SPECIAL_TOKENS), self.mask, ids.shape, generator=self.generator)
        inputs = ids.where(~asked | (draws >= MASKED + RANDOM), random)
        inputs = inputs.where(~asked | (draws >= MASKED), self.mask)
        return {"input_ids": inputs, "labels": ids.where(asked, IGNORED)}

    def _draw(self, ids: Tensor) -> Tensor:
        return torch.rand(ids.shape, generator=self.generator)
