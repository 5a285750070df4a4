"""The data of the ladder and of the sampler: English with five languages of l10n10, three of them made poor.

French and Czech in full (79,303 and 81,474 pairs), Hindi, Turkish and Gujarati cut to 2,500: the proportions of WMT-10
at their ends. Text of one language is plentiful for all, as it is in the world: `mono`, and both sides of all pairs
each for itself. No line of dev or test is in it.
"""

import lzma
import tarfile
from collections.abc import Iterator
from pathlib import Path

from benchmarks.quality.study import SHARED, Study
from deltalm_ds.files import atomic_directory

RICH, POOR = ("fr", "cs"), ("hi", "tr", "gu")
LANGUAGES = ("en", *RICH, *POOR)
POOR_PAIRS = 2_500
LINES = {"dev": 200, "test": 400}  # of the 500 and 1,000 that there are: scoring must not take longer than training
NUM_PIECES = 6_000


def prepare(study: Study) -> None:
    """`text`, `mono`, `vocabulary`, and the shards `train`, `dev`, `mono_shards` in the study's directory."""
    study.make("text", _write_text)
    study.make("mono", _write_mono)
    texts = [f"--input=mono/{language}.txt" for language in LANGUAGES]
    tags = f"--languages={','.join(LANGUAGES)}"
    study.deltalm("vocabulary", "vocab", "train", *texts, "--size", NUM_PIECES, tags)
    for split in ("train", "dev"):
        pairs = [
            f"--parallel=en-{language}=text/{split}.en-{language}.en,text/{split}.en-{language}.{language}"
            for language in (*RICH, *POOR)
        ]
        study.deltalm(split, "data", "build", "--vocab", "vocabulary", *pairs)
    # Interface text is short, and spans need room: lines of a language follow one another in windows.
    windows = [f"--mono={language}=mono/{language}.txt" for language in LANGUAGES]
    study.deltalm(
        "mono_shards", "data", "build", "--vocab", "vocabulary", *windows, "--documents", "--window-tokens", 64
    )


def training_pairs(language: str) -> Iterator[tuple[str, str]]:
    """All pairs of English with a language, in the fixed random order of the files."""
    with lzma.open(SHARED / "l10n10" / f"train.en-{language}.tsv.xz", "rt", encoding="utf-8") as file:
        for line in file:
            _, english, other = line.rstrip("\n").split("\t")
            yield english, other


def _write_text(out: Path) -> None:
    with atomic_directory(out) as new:
        for language in (*RICH, *POOR):
            pairs = list(training_pairs(language))[: POOR_PAIRS if language in POOR else None]
            for code, side in zip(("en", language), zip(*pairs, strict=True), strict=True):
                _write_lines(new / f"train.en-{language}.{code}", side)
                for split, count in LINES.items():
                    _write_lines(new / f"{split}.en-{language}.{code}", _held_out(split, code)[:count])


def _write_mono(out: Path) -> None:
    with atomic_directory(out) as new:
        sides: dict[str, list[str]] = {language: [] for language in LANGUAGES}
        for language in (*RICH, *POOR):
            for english, other in training_pairs(language):
                sides["en"].append(english)
                sides[language].append(other)
        with tarfile.open(SHARED / "mono" / "mono.tar.xz") as archive:
            for language, lines in sides.items():
                file = archive.extractfile(f"mono/{language}.txt")
                assert file is not None
                lines += file.read().decode("utf-8").splitlines()
                tested = {line for split in LINES for line in _held_out(split, language)}
                _write_lines(new / f"{language}.txt", [line for line in dict.fromkeys(lines) if line not in tested])


def _held_out(split: str, language: str) -> list[str]:
    return (SHARED / "l10n10" / f"{split}.{language}").read_text(encoding="utf-8").splitlines()


def _write_lines(path: Path, lines: "list[str] | tuple[str, ...]") -> None:
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
