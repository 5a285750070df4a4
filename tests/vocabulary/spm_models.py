"""SentencePiece models to test with."""

import io
import random
from pathlib import Path
from typing import Any

import sentencepiece

WORDS = [start + end for start in ("riv", "hous", "tabl", "wint", "gard", "stor") for end in ("er", "es", "ing", "y")]
RANDOM = random.Random(1)
SENTENCES = [f"The {' '.join(RANDOM.choices(WORDS, k=5))} {number}." for number in range(200)]


def train_spm(path: Path, **options: Any) -> Path:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES),
        model_writer=model,
        minloglevel=2,
        num_threads=1,
        **{"vocab_size": 60, "unk_id": 0, "bos_id": 1, "eos_id": 2, "pad_id": -1, **options},
    )
    path.write_bytes(model.getvalue())
    return path
