"""WebNLG 2020: triples of subject, predicate and object -> a text that says them, in English and Russian."""

from functools import partial

from deltalm_ds.data_tools.published import webnlg
from deltalm_ds.evaluation.tasks.interface import Form, Part, Table, Task

DIRECTIONS = {"en": "en-en", "ru": "en-ru"}  # triples are English, whatever the text
TABLE = Table(
    "WebNLG, validation sets, mean of English and Russian",
    tuple(DIRECTIONS.values()),
    ("rouge1", "rouge2", "rougel"),
    {"DeltaLM (published)": (59.2, 39.4, 52.2)},
)


def _parts(pattern: str) -> tuple[Part, ...]:
    """Of every language and split. pattern: of files, with {language} and {split}."""
    return tuple(
        Part(
            split,
            ("en", language),
            (pattern.format(language=language, split=split),),
            partial(webnlg.read, language=language),
        )
        for language in DIRECTIONS
        for split in ("train", "dev", "test")
    )


TASK = Task(
    "webnlg",
    "triples -> text, English and Russian",
    (
        Form("published", "release_v3.0 of WebNLG, XML", _parts("{language}/{split}/**/*.xml"), (TABLE,)),
        Form("sample", "WebNLG 2020 whole, JSONL", _parts("{language}.{split}.jsonl"), (TABLE,)),
    ),
    split="dev",
)
