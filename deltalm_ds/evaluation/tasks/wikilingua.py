"""WikiLingua: sections of Spanish, Russian, Vietnamese and Turkish how-to articles -> English summaries."""

from deltalm_ds.evaluation.tasks.interface import ROUGE, Form, Part, Table, Task
from deltalm_ds.evaluation.tasks.readers import ORANGESUM, fields, text_pairs

LANGUAGES = ("es", "ru", "vi", "tr")
GEM = {"train": "train", "dev": "val", "test": "test"}  # what its files call the splits

TASK = Task(
    "wikilingua",
    "section of an article -> its summary in English, from Spanish, Russian, Vietnamese and Turkish",
    (
        Form(
            "published",
            "GEM's WikiLingua: folders es_en, ru_en, vi_en, tr_en with files .src and .tgt",
            tuple(
                Part(
                    split,
                    (language, "en"),
                    tuple(f"{language}_en/{file}.{side}" for side in ("src", "tgt")),
                    text_pairs,
                )
                for language in LANGUAGES
                for split, file in GEM.items()
            ),
            (
                Table(
                    "WikiLingua, validation sets, mean of es, ru, vi, tr -> en",
                    tuple(f"{language}-en" for language in LANGUAGES),
                    ROUGE,
                    {"DeltaLM (published)": (35.3, 13.4, 28.7)},
                ),
            ),
        ),
        Form(
            "sample",
            "abstracts of OrangeSum (French) and SciTLDR (English); the languages of WikiLingua are not in it",
            (
                *(
                    Part(split, ("fr", "fr"), (f"orangesum_fr_abstract.{file}.jsonl",), fields("text", "summary"))
                    for split, file in ORANGESUM.items()
                ),
                *(
                    Part(split, ("en", "en"), (f"scitldr_en.{split}.jsonl",), fields("text", "summary"))
                    for split in ORANGESUM
                ),
            ),
            (
                Table("Summaries of French news, sample data (not the paper's)", ("fr-fr",), ROUGE),
                Table("Summaries of English papers, sample data (not the paper's)", ("en-en",), ROUGE),
            ),
        ),
    ),
    split="dev",
)
