"""Small files in the published forms of the tasks, and what `data prepare` makes of them."""

import json
from pathlib import Path
from typing import Any

import sentencepiece

from deltalm_ds.evaluation.tasks.wmt10 import YEARS
from deltalm_ds.vocabulary import Vocabulary

SENTENCES = {
    "en": ["The cat sleeps.", "Two dogs ran home.", "It rains today."],
    "fr": ["Le chat dort.", "Deux chiens sont rentrés.", "Il pleut aujourd'hui."],
    "zh": ["猫在睡觉。", "两只狗跑回家。", "今天下雨。"],
}
ENTRY = """    <entry category="Food" eid="Id{number}" size="1">
      <modifiedtripleset><mtriple>{subject} | likes | Fish_soup</mtriple></modifiedtripleset>
      {texts}
    </entry>
"""


def lines(path: Path, texts: list[str]) -> None:
    """Write a text a line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{text}\n" for text in texts), encoding="utf-8")


def objects(path: Path) -> list[Any]:
    """The values of a JSONL file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def webnlg(directory: Path, subject_of_split: dict[str, str]) -> None:
    """Of every split an entry with two texts, and one with a text."""
    for language, (first, second) in {"en": ("A", "B"), "ru": ("А", "Б")}.items():
        for split, subject in subject_of_split.items():
            texts = (
                f'<lex lid="Id1" lang="{language}">{first} {split}</lex><lex lid="Id2" lang="{language}">{second}</lex>'
            )
            entries = ENTRY.format(number=1, subject=subject, texts=texts)
            entries += ENTRY.format(number=2, subject=f"Other_{split}", texts=f'<lex lang="{language}">{first}</lex>')
            path = directory / language / split / "1triples" / "Food.xml"
            lines(path, ["<benchmark><entries>", entries, "</entries></benchmark>"])


def xqg(directory: Path) -> None:
    """Passages, answers and questions of three splits."""
    for split in ("train", "dev", "test"):
        lines(directory / f"{split}.e.zh.lc", [f"猫 在 睡觉 {split}", "狗 跑 回家"])
        lines(directory / f"{split}.a.zh.lc", ["猫", "狗"])
        lines(directory / f"{split}.q.zh.lc", [f"谁 在 睡觉 {split} ？", "谁 跑 ？"])


def xgiga(directory: Path, languages: tuple[str, ...] = ("fr",)) -> None:
    """Articles and headlines."""
    for language in languages:
        for split in ("train", "dev", "test"):
            lines(directory / f"{split}.x.{language}", [f"{text} {split}" for text in SENTENCES[language]])
            lines(directory / f"{split}.y.{language}", SENTENCES[language])


def wikilingua(directory: Path) -> None:
    """Sections in four languages, summaries in English."""
    for language in ("es", "ru", "vi", "tr"):
        for split in ("train", "val", "test"):
            lines(directory / f"{language}_en" / f"{split}.src", [f"{language} {split} {n}" for n in "ab"])
            lines(directory / f"{language}_en" / f"{split}.tgt", [f"summary {n}" for n in "ab"])


def zero_shot(directory: Path) -> None:
    """XGiga in three languages, and text of two."""
    xgiga(directory, ("en", "fr", "zh"))
    for language in ("fr", "zh"):
        lines(directory / f"mono.{language}.txt", SENTENCES[language])


def wmt10(directory: Path) -> None:
    """Test sets by year, and training and validation text."""
    for language, year in YEARS.items():
        for split in ("train", "dev"):
            lines(directory / f"{split}.en-{language}.en", [f"{split} English {n}" for n in "ab"])
            lines(directory / f"{split}.en-{language}.{language}", [f"{split} {language} {n}" for n in "ab"])
        for source, target in (("en", language), (language, "en")):
            pair = "hien" if language == "hi" else source + target
            name = f"{'newsdiscusstest' if language == 'fr' else 'newstest'}{year}-{pair}"
            for kind, side in (("src", source), ("ref", target)):
                texts = [f'<seg id="{n}">{source}{target} {side} {n}</seg>' for n in (1, 2)]
                lines(directory / "test" / f"{name}-{kind}.{side}.sgm", [f"<{kind}set>", *texts, f"</{kind}set>"])


PUBLISH = {
    "webnlg": lambda directory: webnlg(directory, {"train": "Tom", "dev": "Ann", "test": "Tom"}),
    "xqg": xqg,
    "xgiga": xgiga,
    "wikilingua": wikilingua,
    "zero_shot_summarisation": zero_shot,
    "wmt10": wmt10,
}


def small_vocabulary(directory: Path) -> Path:
    """A vocabulary of single characters, with a tag and a task token that no task has."""
    text = [sentence for texts in SENTENCES.values() for sentence in texts] + [
        "abcdefghijklmnopqrstuvwxyz |&0123456789 АБ"
    ]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(text * 3),
        model_prefix=str(directory / "spm"),
        vocab_size=130,
        model_type="char",
        minloglevel=2,
        hard_vocab_limit=False,
    )
    Vocabulary.from_spm(directory / "spm.model", None, 4, ["xx"], ["[X]"]).save(directory / "vocabulary")
    return directory / "vocabulary"
