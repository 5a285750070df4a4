"""Training of a SentencePiece vocabulary on text, deterministic and balanced over the inputs."""

import io
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import sentencepiece

from deltalm_ds.data_tools.sources import TextSource, find_sources, read_records
from deltalm_ds.errors import InputError
from deltalm_ds.files import atomic_directory
from deltalm_ds.lines import STDIN
from deltalm_ds.progress import progress
from deltalm_ds.vocabulary import Vocabulary

MAX_LINE_BYTES = 1 << 20
"""Far above SentencePiece's default of 4,192, over which it leaves lines out silently."""


def train(
    inputs: Sequence[str | Path],
    out: str | Path,
    size: int,
    model_type: str = "unigram",
    character_coverage: float = 0.9995,
    num_sentinels: int = 100,
    languages: Sequence[str] = (),
    tasks: Sequence[str] = (),
    split_digits: bool = False,
    alpha: float = 0.3,
    max_lines: int = 2_000_000,
) -> Vocabulary:
    """Train a SentencePiece model in XLM-R's layout and write the vocabulary made of it to `out`.

    The inputs are balanced as XLM-R balances languages [Conneau+20 3.1]: one of n texts has a share ∝ n^alpha of the
    texts that SentencePiece sees; they are taken at equal distances, or repeatedly. All text is read twice.

    Args:
        inputs: whatever `find_sources` reads, one text a record; as a rule one a language.
        out: a new directory; it appears only when complete.
        size: SentencePiece's pieces, with its `<unk>`, `<s>`, `</s>`.
        model_type: `unigram` or `bpe`.
        character_coverage: share of the text's characters that get pieces; the rest become `<unk>`.
        num_sentinels, languages, tasks: the blocks of tokens appended (see `Vocabulary`).
        split_digits: every digit is a piece of its own, so that numbers are copied rather than remembered.
        alpha: 1 keeps the inputs' proportions, 0 makes all alike.
        max_lines: how many texts SentencePiece sees at most (it keeps them in memory).

    Raises:
        InputError: an input cannot be read (or is standard input), there is no text, the size does not suit the
            text, or `out` exists.
    """
    if model_type not in ("unigram", "bpe"):
        raise InputError(f"The model type of a vocabulary is unigram or bpe, not {model_type!r}.")
    with atomic_directory(out) as directory:
        sources = [_sources(value) for value in inputs]
        counts = [sum(1 for _ in _texts(of_input)) for of_input in sources]
        if not sum(counts):
            raise InputError(f"There is no text in {', '.join(map(str, inputs))}: a vocabulary needs some.")
        quotas = balanced_quotas(counts, alpha, min(sum(counts), max_lines))
        with progress("lines for the vocabulary", total=sum(quotas)) as advance:

            def sentences() -> Iterator[str]:
                for of_input, count, quota in zip(sources, counts, quotas, strict=True):
                    for text in _take(_texts(of_input), count, quota):
                        advance()
                        yield text

            model = _train_sentencepiece(sentences(), size, model_type, character_coverage, split_digits)
        spm_path = directory / "spm.model"
        spm_path.write_bytes(model)
        vocabulary = Vocabulary.from_spm(spm_path, num_sentinels=num_sentinels, languages=languages, tasks=tasks)
        vocabulary.save(directory)
    return vocabulary


def balanced_quotas(counts: Sequence[int], alpha: float, total: int) -> list[int]:
    """Share out `total` texts in proportion to count^alpha; an input that has any gets at least one."""
    weights = [count**alpha if count else 0.0 for count in counts]
    return [max(1, round(total * weight / sum(weights))) if weight else 0 for weight in weights]


def _take(texts: Iterator[str], count: int, quota: int) -> Iterator[str]:
    """Of `count` texts take `quota` at equal distances, each as often as needed."""
    for index, text in enumerate(texts):
        for _ in range((index + 1) * quota // count - index * quota // count):
            yield text


def _sources(value: str | Path) -> list[TextSource]:
    sources = find_sources(str(value))
    if any(STDIN in source.files for source in sources):
        raise InputError("A vocabulary's text is read twice, which standard input cannot be: name a file.")
    return sources


def _texts(sources: Sequence[TextSource]) -> Iterator[str]:
    return (text for source in sources for (text,) in read_records(source, 1, Counter()))


def _train_sentencepiece(
    sentences: Iterator[str], size: int, model_type: str, character_coverage: float, split_digits: bool
) -> bytes:
    """The trained model; ids 0-2 are `<unk>`, `<s>`, `</s>` and there is no padding, as in XLM-R."""
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=sentences,
            model_writer=model,
            vocab_size=size,
            model_type=model_type,
            character_coverage=character_coverage,
            split_digits=split_digits,
            normalization_rule_name="nmt_nfkc",
            max_sentence_length=MAX_LINE_BYTES,
            unk_id=0,
            bos_id=1,
            eos_id=2,
            pad_id=-1,
            num_threads=1,  # another number of threads sums in another order
            minloglevel=2,
        )
    except RuntimeError as error:
        raise InputError(_explain(str(error), size)) from error
    return model.getvalue()


def _explain(message: str, size: int) -> str:
    """SentencePiece's message as a sentence about what was asked for."""
    if too_high := re.search(r"value <= (\d+)", message):
        return f"The text has too few different pieces for a vocabulary of {size}: at most {too_high[1]} are possible."
    if too_low := re.search(r"required_chars\. \d+ vs (\d+)", message):
        return (
            f"A vocabulary of {size} cannot hold the text's characters: it takes at least {too_low[1]} pieces, "
            "or a lower character coverage."
        )
    return f"SentencePiece could not train a vocabulary of {size}: {message}"
