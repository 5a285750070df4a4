"""The data of the ladder and of the sampler: captions in English, German, French and Czech, the last of them made poor.

Multi30k, German and French in full (29,000 pairs), Czech cut to 2,500. l10n10 with its ten languages would be nearer
to WMT-10, but what a model learns in minutes is to translate captions: after a million tokens of interface text BLEU
was 0.1. Text of one language is there in full for all four, as it is in the world: captions and `mono`, each language
for itself.
"""

import gzip
import tarfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.quality.encoder import WINDOW
from benchmarks.quality.study import SHARED, Study
from deltalm_ds.files import atomic_directory

RICH, POOR = ("de", "fr"), ("cs",)
LANGUAGES = ("en", *RICH, *POOR)
POOR_PAIRS = 2_500
SPLITS = {"train": "train", "dev": "val", "test": "test_2016_flickr"}
LINES = {"train": None, "dev": 200, "test": 400}  # of 29,000, 1,014 and 1,000: scoring must not outlast training
NUM_PIECES = 4_000


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
    # Lines of a language follow one another in windows, as the encoder saw them.
    windows = [f"--mono={language}=mono/{language}.txt" for language in LANGUAGES]
    long = ("--documents", "--window-tokens", WINDOW)
    study.deltalm("mono_shards", "data", "build", "--vocab", "vocabulary", *windows, *long)


def read(split: str, language: str) -> list[str]:
    """The lines of a split of Multi30k, without the spaces at some line ends."""
    with gzip.open(SHARED / "multi30k" / f"{SPLITS[split]}.{language}.gz", "rt", encoding="utf-8") as file:
        return [line.strip() for line in file]


def write_lines(path: Path, lines: Sequence[str]) -> None:
    """A line each."""
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def _write_text(out: Path) -> None:
    with atomic_directory(out) as new:
        for language in (*RICH, *POOR):
            for split, count in LINES.items():
                if split == "train" and language in POOR:
                    count = POOR_PAIRS
                for code in ("en", language):
                    write_lines(new / f"{split}.en-{language}.{code}", read(split, code)[:count])


def _write_mono(out: Path) -> None:
    with atomic_directory(out) as new, tarfile.open(SHARED / "mono" / "mono.tar.xz") as archive:
        for language in LANGUAGES:
            file = archive.extractfile(f"mono/{language}.txt")
            assert file is not None
            write_lines(new / f"{language}.txt", [*read("train", language), *file.read().decode("utf-8").splitlines()])
