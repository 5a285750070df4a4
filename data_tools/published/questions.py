"""Reading comprehension turned round: from SQuAD and the like to answer and passage -> question."""

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from deltalm_ds.data_tools.published.objects import Identities, is_list, read_json_document, read_objects
from deltalm_ds.data_tools.published.published_corpus import Item
from deltalm_ds.errors import InputError
from deltalm_ds.lines import text_name


def read(files: Sequence[Path], dropped: Counter[str]) -> Iterator[Item]:
    """Reading comprehension turned round: answer and passage -> question. Of several answers the first is taken."""
    for path in files:
        identities = Identities()
        for position, record in _squad_records(path) if text_name(path).endswith(".json") else read_objects(path):
            identities.add(position, record.get("id"))
            passage = record.get("passage", record.get("context"))
            question = record.get("question")
            answers = record.get("answer", record.get("answers"))
            answers = answers.get("text") if isinstance(answers, dict) else answers
            answers = [answers] if isinstance(answers, str) else answers
            if not isinstance(passage, str) or not isinstance(question, str) or not is_list(answers, str):
                raise InputError(f"{position}: expected `passage` (or `context`), `question` and `answers`.")
            if answers:
                yield answer_and_passage(answers[0], passage), [question]
            else:
                dropped["no answer"] += 1


def _squad_records(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The questions of a document like SQuAD's, as flat records."""
    try:
        for article_number, article in enumerate(read_json_document(path)["data"]):
            for paragraph_number, paragraph in enumerate(article["paragraphs"]):
                for number, question in enumerate(paragraph["qas"]):
                    position = f"{path}, data[{article_number}].paragraphs[{paragraph_number}].qas[{number}]"
                    answers = [answer["text"] for answer in question["answers"]]
                    yield position, {**question, "context": paragraph["context"], "answers": answers}
    except (KeyError, TypeError) as error:
        raise InputError(
            f"{path} is not like SQuAD (data, paragraphs, context, qas, question, answers, text): {error!r}."
        ) from None


def answer_and_passage(answer: str, passage: str) -> str:
    """The answer goes first, so that truncation never cuts it; "" where one of the two is empty."""
    answer, passage = answer.strip(), passage.strip()
    return f"{answer} [S] {passage}" if answer and passage else ""
