"""Blocks found in what a dictionary ends with, and blocks added."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deltalm_ds.errors import InputError
from deltalm_ds.token_ids import SPECIAL_TOKENS
from deltalm_ds.vocabulary import Vocabulary
from deltalm_ds.vocabulary.blocks import make_blocks

PIECES = ("▁a", "b", "[x", "__", "__str__", "<extra_id_0>", "c")  # what looks like a tag among pieces is a piece
TAGS = ("__en__", "__pt-BR__", "__zho_Hans__", "__ceb__")


@given(
    st.integers(0, 4),
    st.lists(st.sampled_from(TAGS), unique=True),
    st.lists(st.sampled_from(["[S]", "[QG]", "<mask>"]), unique=True),
    st.integers(0, 3),
)
def test_blocks_come_back_from_the_lines_of_a_dictionary(num_sentinels, tags, tasks, num_fillers):
    """All ids stay, as long as there is a sentinel or tag; without one, task tokens and fillers are pieces."""
    pieces = PIECES[:5] + PIECES[6:]
    sentinels = tuple(f"<extra_id_{index}>" for index in range(num_sentinels))
    fillers = [f"madeupword{index:04}" for index in range(num_fillers)]
    lines = [*pieces, *sentinels, *tags, *tasks, *fillers]
    blocks = make_blocks(lines, num_sentinels=0)
    if sentinels or tags:
        found = pieces, sentinels, tuple(tags), tuple(tasks)
        assert tuple(blocks[name] for name in ("pieces", "sentinels", "languages", "tasks")) == found
    else:
        assert blocks["pieces"] == tuple(lines)
    vocabulary = Vocabulary(blocks)
    kept = lines if not (sentinels or tags) else lines[: len(lines) - num_fillers]
    assert [vocabulary.token(row) for row in range(vocabulary.num_tokens)] == [*SPECIAL_TOKENS, *kept]
    assert vocabulary.size % 64 == 0


def test_what_is_there_already_is_not_added_again():
    lines = [*PIECES[:3], "<extra_id_0>", "<extra_id_1>", "__de__", "__en__", "QG:"]
    blocks = make_blocks(lines, languages=("en", "fr"), tasks=("[S]", "QG:"))
    assert blocks["sentinels"] == ("<extra_id_0>", "<extra_id_1>")
    assert blocks["languages"] == ("__de__", "__en__", "__fr__")
    assert blocks["tasks"] == ("QG:", "[S]")
    assert make_blocks(lines[:-1], num_sentinels=3)["sentinels"][-1] == "<extra_id_2>"
    assert len(make_blocks(PIECES)["sentinels"]) == 100


def test_sentinels_are_known_in_any_order():
    """In T5's dictionaries the numbers descend."""
    vocabulary = Vocabulary(make_blocks(["a", "<extra_id_2>", "<extra_id_1>", "<extra_id_0>"]))
    assert vocabulary.sentinel_ids.tolist() == [7, 6, 5]
    incomplete = make_blocks(["a", "<extra_id_2>", "<extra_id_0>"], num_sentinels=0)
    assert incomplete["pieces"] == ("a", "<extra_id_2>", "<extra_id_0>")


@pytest.mark.parametrize("language", ["en de", "a:b", "../x", "EN", "", "__en__"])
def test_languages_that_are_no_codes_get_no_tag(language):
    with pytest.raises(InputError, match="is not a language code: write a language as in"):
        make_blocks(PIECES, languages=(language,))


@pytest.mark.parametrize("task", ["", " ", "[S ]", "a\tb"])
def test_task_tokens_have_no_blanks(task):
    with pytest.raises(InputError, match="cannot be a task token"):
        make_blocks(PIECES, tasks=(task,))
