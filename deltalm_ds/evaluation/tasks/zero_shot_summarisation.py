"""Zero-shot summarisation: trained on English headlines, tested on French and Chinese.

Half of the steps go to the pre-training objective in the languages of the test, without sentinels in its target, so
that the decoder does not forget to write them [facts: zero-shot].
"""

from deltalm_ds.evaluation.tasks.interface import ROUGE, Form, Part, Table, Task
from deltalm_ds.evaluation.tasks.readers import fields, lines, text_pairs

FR, ZH = "fr-fr", "zh-zh"

TASK = Task(
    "zero_shot_summarisation",
    "article -> headline, trained in English, tested in French and Chinese",
    (
        Form(
            "published",
            "XNLG's XGiga: files x and y of en, fr, zh; mono.fr.txt and mono.zh.txt are text of your choice",
            (
                *(
                    Part(split, ("en", "en"), (f"{split}.x.en", f"{split}.y.en"), text_pairs)
                    for split in ("train", "dev")
                ),
                *(
                    Part("test", (language, language), (f"test.x.{language}", f"test.y.{language}"), text_pairs)
                    for language in ("fr", "zh")
                ),
                *(Part("mono", (language,), (f"mono.{language}.txt",), lines) for language in ("fr", "zh")),
            ),
            (
                Table("Zero-shot XGiga-Fr", (FR,), ROUGE, {"DeltaLM (published)": (41.42, 22.24, 37.99)}),
                Table("Zero-shot XGiga-Zh", (ZH,), ROUGE, {"DeltaLM (published)": (46.37, 34.34, 43.85)}),
            ),
        ),
        Form(
            "sample",
            "SciTLDR (English) to train, titles of OrangeSum (French) and CSL (Chinese) to test, their texts as mono",
            (
                *(
                    Part(split, ("en", "en"), (f"scitldr_en.{split}.jsonl",), fields("text", "summary"))
                    for split in ("train", "dev")
                ),
                Part("test", ("fr", "fr"), ("orangesum_fr_title.test.jsonl",), fields("text", "summary")),
                Part("test", ("zh", "zh"), ("csl_zh_title.test.jsonl",), fields("text", "summary")),
                Part("mono", ("fr",), ("orangesum_fr_title.train.jsonl",), fields("text")),
                Part("mono", ("zh",), ("csl_zh_title.dev.jsonl",), fields("text")),
            ),
            (
                Table("Zero-shot titles of French news, sample data (not the paper's)", (FR,), ROUGE),
                Table("Zero-shot titles of Chinese papers, sample data (not the paper's)", (ZH,), ROUGE),
            ),
        ),
    ),
)
