"""The named blocks of a vocabulary's tokens, in the order of their ids.

The layout is that of XLM-R and fairseq [facts: token ids]: `<s>` 0, `<pad>` 1, `</s>` 2, `<unk>` 3, then the pieces
(SentencePiece id + 1, or the order of a fairseq dict.txt), then the blocks that are ours: sentinels, language tags,
task tokens, and padding rows up to a multiple of 64 [facts: rows of 64].
"""

import re
from collections.abc import Callable, Sequence

from deltalm_ds.errors import InputError
from deltalm_ds.languages import check_code, is_code
from deltalm_ds.token_ids import ROW_MULTIPLE, SPECIAL_TOKENS

Blocks = dict[str, tuple[str, ...]]

BLOCK_NAMES = ("special", "pieces", "sentinels", "languages", "tasks", "padding")
DEFAULT_SENTINELS = 100
_FILLER = re.compile(r"madeupword\d{4,}")  # rows that fairseq adds to its dictionaries, to round up their number
_TASK = re.compile(r"\[\S+\]|<\S+>")


def make_blocks(
    tokens: Sequence[str], num_sentinels: int | None = None, languages: Sequence[str] = (), tasks: Sequence[str] = ()
) -> Blocks:
    """The blocks of tokens that begin at id 4, and of what is added to them.

    Sentinels, language tags and task tokens that `tokens` end with, in this order, are those blocks: so fairseq's
    dict.txt of a model of ours comes back as it was. Task tokens are known there behind the others only, by their
    brackets (`[S]`, `<mask>`) or because they are in `tasks`. Behind them fairseq's filling rows are left out.

    Args:
        tokens: the pieces, or all lines of a dict.txt.
        num_sentinels: how many there are at least; None: 100 where `tokens` have none.
        languages: the codes of those that get a tag, `__xx__`, if they have none yet.
        tasks: tokens that get an id of their own wherever a text has them, if they have none yet.

    Raises:
        InputError: a language is no code, or a task token is empty or has white space.
    """
    if bad := [token for token in tasks if not token or re.search(r"\s", token)]:
        raise InputError(f"{bad[0]!r} cannot be a task token: write it without blanks, as in [S].")
    tags = [tag_of(check_code(language)) for language in languages]
    pieces, found_sentinels, found_tags, found_tasks = _divide(tokens, tasks)
    if num_sentinels is None:
        num_sentinels = len(found_sentinels) or DEFAULT_SENTINELS
    sentinels = [sentinel(index) for index in range(len(found_sentinels), num_sentinels)]
    blocks = {
        "special": SPECIAL_TOKENS,
        "pieces": tuple(pieces),
        "sentinels": (*found_sentinels, *sentinels),
        "languages": (*found_tags, *(tag for tag in tags if tag not in found_tags)),
        "tasks": (*found_tasks, *(task for task in tasks if task not in found_tasks)),
    }
    num_tokens = sum(map(len, blocks.values()))
    return blocks | {"padding": tuple(f"<padding_{index}>" for index in range(-num_tokens % ROW_MULTIPLE))}


def sentinel(index: int) -> str:
    """The name of a sentinel, as in T5."""
    return f"<extra_id_{index}>"


def tag_of(language: str) -> str:
    """The tag of a language."""
    return f"__{language}__"


def language_of(tag: str) -> str:
    """The language of a tag: the other way round than `tag_of`."""
    return tag[2:-2]


def _divide(tokens: Sequence[str], tasks: Sequence[str]) -> tuple[Sequence[str], ...]:
    """The pieces, and the sentinels, language tags and task tokens that stand behind them."""
    end_of_tasks = _start_of_run(tokens, len(tokens), lambda token: _FILLER.fullmatch(token) is not None)
    end_of_tags = _start_of_run(tokens, end_of_tasks, lambda token: _is_task(token) or token in tasks)
    end_of_sentinels = _start_of_run(tokens, end_of_tags, is_tag)
    end_of_pieces = _start_of_run(tokens, end_of_sentinels, _is_sentinel)
    sentinels = tokens[end_of_pieces:end_of_sentinels]
    complete = set(sentinels) == {sentinel(index) for index in range(len(sentinels))}
    if end_of_pieces == end_of_tags or not complete:
        return tokens, (), (), ()
    return (
        tokens[:end_of_pieces],
        sentinels,
        tokens[end_of_sentinels:end_of_tags],
        tokens[end_of_tags:end_of_tasks],
    )


def _start_of_run(tokens: Sequence[str], end: int, belongs: Callable[[str], bool]) -> int:
    """Where the tokens begin that end at `end` and all belong."""
    while end and belongs(tokens[end - 1]):
        end -= 1
    return end


def is_tag(token: str) -> bool:
    """Whether a token is written as the tag of a language, wherever it stands."""
    return tag_of(language_of(token)) == token and is_code(language_of(token))


def _is_sentinel(token: str) -> bool:
    return re.fullmatch(r"<extra_id_\d+>", token) is not None


def _is_task(token: str) -> bool:
    return _TASK.fullmatch(token) is not None and not _is_sentinel(token)
