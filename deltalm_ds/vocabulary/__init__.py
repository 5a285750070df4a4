"""Text to token ids and back: `Vocabulary`, its blocks of tokens, SentencePiece, and fairseq's dictionaries."""

from deltalm_ds.vocabulary.blocks import BLOCK_NAMES
from deltalm_ds.vocabulary.vocabulary import Vocabulary

__all__ = ["BLOCK_NAMES", "Vocabulary"]
