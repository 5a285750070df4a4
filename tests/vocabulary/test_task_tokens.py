"""Task tokens written out in texts, against texts encoded apart and put together by hand."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from spm_models import SENTENCES

from deltalm_ds.vocabulary import Vocabulary

TASKS = ("[S]", "[QG]", "[S]+", "<mask>")  # the longer one wins


@pytest.fixture(scope="session")
def vocabulary(spm_path):
    return Vocabulary.from_spm(spm_path, num_sentinels=2, languages=["en"], tasks=TASKS)


@pytest.fixture(scope="session")
def plain(spm_path):
    return Vocabulary.from_spm(spm_path, num_sentinels=2, languages=["en"])


WORDS = st.sampled_from(["", "The river", "houses", "7.", "☃", "[s]", "__en__"])


@given(st.lists(st.tuples(WORDS, st.lists(st.tuples(st.sampled_from(TASKS), st.sampled_from(["", " ", "  "]), WORDS)))))
def test_each_part_is_encoded_by_itself(vocabulary, plain, texts):
    written, expected = [], []
    for first, others in texts:
        text, ids = first, plain.encode(first).tolist()
        for token, blanks, words in others:
            text += f"{blanks}{token}{blanks}{words}"
            ids += [vocabulary.block_start("tasks") + TASKS.index(token), *plain.encode(words).tolist()]
        written.append(text)
        expected.append(ids)
    for same in (written, [text.encode() for text in written]):
        assert [row.tolist() for row in vocabulary.encode_rows(same)] == expected


def test_the_command_of_a_question_generator(vocabulary, plain):
    answer, passage = "winters 12", SENTENCES[0]
    ids = vocabulary.encode(f"{answer} [S] {passage}").tolist()
    assert ids == [*plain.encode(answer), vocabulary.block_start("tasks"), *plain.encode(passage)]
    assert vocabulary.decode(ids) == f"{answer} {passage}"


def test_text_without_task_tokens_is_what_it_was(vocabulary, plain):
    for options in ({}, {"sample_alpha": 0.2, "seed": 3}):
        found, expected = (v.encode_rows(SENTENCES, **options) for v in (vocabulary, plain))
        assert found.values.tolist() == expected.values.tolist()
        assert found.lengths.tolist() == expected.lengths.tolist()
    assert vocabulary.encode_rows([]).lengths.tolist() == []


def test_drawn_segmentations_have_their_tokens_too(vocabulary):
    text = f"{SENTENCES[0]}[QG]{SENTENCES[1]}"
    token = vocabulary.block_start("tasks") + 1
    rows = vocabulary.encode_batch([text] * 20, sample_alpha=0.1, seed=5)
    assert len({tuple(row.tolist()) for row in rows}) > 5
    assert all((row == token).sum() == 1 and vocabulary.decode(row) == " ".join(SENTENCES[:2]) for row in rows)
    (alone,) = vocabulary.encode_rows([text], sample_alpha=0.1, seed=5, numbers=np.array([3]))
    assert alone.tolist() == rows[3].tolist()
