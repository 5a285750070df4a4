"""WMT-10: English with ten languages, both ways, each tested on the year that the paper names [facts: WMT-10]."""

from collections.abc import Iterator

from deltalm_ds.data_tools.published import sgm
from deltalm_ds.evaluation.tasks.interface import Form, Part, Table, Task
from deltalm_ds.evaluation.tasks.readers import columns, text_pairs
from deltalm_ds.generation.interface import SearchOptions

YEARS = {
    "fr": 2015,
    "cs": 2018,
    "de": 2018,
    "fi": 2018,
    "lv": 2017,
    "et": 2018,
    "ro": 2016,
    "hi": 2014,
    "tr": 2018,
    "gu": 2019,
}
INTO_ENGLISH = tuple(f"{language}-en" for language in YEARS)
OUT_OF_ENGLISH = tuple(f"en-{language}" for language in YEARS)


def _published() -> Iterator[Part]:
    """Test sets as in WMT's archives; training and validation text, which has no one form: two files a pair."""
    for language in YEARS:
        pair = f"en-{language}"
        yield Part(
            "train", ("en", language), (f"train.{pair}.en", f"train.{pair}.{language}"), text_pairs, is_pair=True
        )
        for source, target in (("en", language), (language, "en")):
            yield Part(
                "dev", (source, target), (f"dev.{pair}.{source}", f"dev.{pair}.{target}"), text_pairs, is_pair=True
            )
            yield Part("test", (source, target), _sgm_files(source, target), sgm.read, is_pair=True)


def _sgm_files(source: str, target: str) -> tuple[str, str]:
    year = YEARS[source if target == "en" else target]
    name = "newsdiscusstest" if year == 2015 else "newstest"  # the set of French in 2015
    pair = "hien" if year == 2014 else f"{source}{target}"  # of 2014 both directions have one name
    return f"**/{name}{year}-{pair}-src.{source}.sgm", f"**/{name}{year}-{pair}-ref.{target}.sgm"


def _sample() -> Iterator[Part]:
    """The folder l10n10: dev and test are the same sentences in all languages."""
    for language in YEARS:
        yield Part("train", ("en", language), (f"train.en-{language}.tsv",), columns(2, 3), is_pair=True)
        for source, target in (("en", language), (language, "en")):
            for split in ("dev", "test"):
                yield Part(
                    split, (source, target), (f"{split}.{source}", f"{split}.{target}"), text_pairs, is_pair=True
                )


TASK = Task(
    "wmt10",
    "translation between English and ten languages",
    (
        Form(
            "published",
            "WMT's test sets (sgm), train.en-XX.{en,XX} and dev.en-XX.{en,XX}",
            tuple(_published()),
            (
                Table(
                    "WMT-10, X -> English, BLEU",
                    INTO_ENGLISH,
                    ("bleu",),
                    {"DeltaLM (published)": (29.9,), "multilingual NMT (published)": (27.2,)},
                ),
                Table(
                    "WMT-10, English -> X, BLEU",
                    OUT_OF_ENGLISH,
                    ("bleu",),
                    {"DeltaLM (published)": (23.3,), "multilingual NMT (published)": (22.0,)},
                ),
            ),
        ),
        Form(
            "sample",
            "l10n10: interface text and sentences of Tatoeba",
            tuple(_sample()),
            (
                Table("X -> English, BLEU, sample data (not the paper's)", INTO_ENGLISH, ("bleu",)),
                Table("English -> X, BLEU, sample data (not the paper's)", OUT_OF_ENGLISH, ("bleu",)),
            ),
        ),
    ),
    search=SearchOptions(beam=5, max_length=255),
)
