"""BLEU: n-grams of words, case-sensitive, of detokenised text [Post18]."""

from pathlib import Path
from typing import Any

from deltalm_ds.errors import InputError
from deltalm_ds.evaluation.metrics.interface import Metric, References, Scorer, sacrebleu_scorer
from deltalm_ds.evaluation.metrics.words import tokenizer_for

TOKENIZERS = (
    *("none", "zh", "13a", "intl", "char", "ja-mecab", "ko-mecab"),
    *("spm", "flores101", "flores200", "spBLEU-1K"),
)  # sacreBLEU's; a test compares


def scorer(references: References) -> Scorer:
    """Corpus BLEU as sacreBLEU has it, with the tokenizer asked for or that of the language.

    Raises:
        InputError: sacreBLEU has no such tokenizer, or not here.
    """
    tokenizer, note = (references.tokenizer, "") if references.tokenizer else tokenizer_for(references)
    if tokenizer not in TOKENIZERS:
        raise InputError(f"There is no tokenizer {tokenizer!r}: sacreBLEU has {', '.join(TOKENIZERS)}.")
    return sacrebleu_scorer(make_bleu(tokenizer), references, note)


def make_bleu(tokenizer: str) -> Any:
    """sacreBLEU's object for one of `TOKENIZERS`; InputError if what it needs is not here."""
    from sacrebleu.metrics import BLEU
    from sacrebleu.tokenizers.tokenizer_spm import SPM_MODELS

    try:
        return BLEU(tokenize=tokenizer)
    except (ImportError, RuntimeError, OSError, SystemExit) as error:
        if tokenizer not in SPM_MODELS:
            raise InputError(f"sacreBLEU's tokenizer {tokenizer!r} is not installed here: {error}") from None
        url = SPM_MODELS[tokenizer]["url"]
        raise InputError(
            f"sacreBLEU's tokenizer {tokenizer!r} needs the file {_model_path(url)}, which is not there whole and "
            f"could not be downloaded ({error}): fetch {url} where there is a network and put it there."
        ) from None


def _model_path(url: str) -> Path:
    """Where sacreBLEU keeps a tokenizer's model."""
    from sacrebleu.utils import SACREBLEU_DIR

    return Path(SACREBLEU_DIR) / "models" / url.rpartition("/")[2]


METRIC = Metric(
    "bleu",
    "BLEU",
    higher_is_better=True,
    scorer=scorer,
    tokenizers=TOKENIZERS,
    agreement=(88.33333333333225, 0.9663926931178954),
)
