"""fairseq's dict.txt as people have it: against fairseq's own rules, written out here, and line by line."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deltalm_ds.errors import InputError
from deltalm_ds.vocabulary import Vocabulary
from deltalm_ds.vocabulary.fairseq_dict import read_fairseq_dict

PLAIN = ", 1\n▁ 1\ns 1\n"


@pytest.fixture
def read(tmp_path: Path):
    def read_content(content: str | bytes) -> list[str]:
        path = tmp_path / "dict.txt"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return read_fairseq_dict(path)

    return read_content


def fairseq_rows(lines: list[str]) -> tuple[list[str], dict[str, int]]:
    """What fairseq.data.Dictionary.add_from_file makes of lines: the symbol of each row, and the row of each symbol."""
    symbols = ["<s>", "<pad>", "</s>", "<unk>"]
    indices = {symbol: row for row, symbol in enumerate(symbols)}
    for line in lines:
        word, field = line.rstrip().rsplit(" ", 1)
        overwrite = field == "#fairseq:overwrite"
        if overwrite:
            word, field = word.rsplit(" ", 1)
        int(field)
        assert word not in indices or overwrite
        indices[word] = len(symbols)
        symbols.append(word)
    return symbols, indices


WORDS = st.sampled_from(
    ["a", "b", "▁the", "▁", "\u00a0", "\u2028", "\x85", "x\u00a0y", "1", "-1", "<s>", "madeupword0000"]
)


@given(st.lists(WORDS, min_size=1, max_size=12), st.integers(-3, 10**12))
def test_rows_are_those_of_fairseq(tmp_path_factory, words: list[str], count: int) -> None:
    """Every token has the row that fairseq looks up, but the special ones, which keep theirs."""
    seen: set[str] = {"<s>"}
    lines = []
    for word in words:
        lines.append(f"{word} {count}{' #fairseq:overwrite' if word in seen else ''}")
        seen.add(word)
    path = tmp_path_factory.mktemp("dict") / "dict.txt"
    path.write_bytes("".join(f"{line}\n" for line in lines).encode())
    symbols, indices = fairseq_rows(lines)
    found = ["<s>", "<pad>", "</s>", "<unk>", *read_fairseq_dict(path)]
    assert len(found) == len(set(found)) == len(symbols)
    for row, (ours, symbol) in enumerate(zip(found, symbols, strict=True)):
        if symbol != "<s>":
            assert (ours == symbol) == (indices[symbol] == row)
    assert found.index("<s>") == 0


@pytest.mark.parametrize(
    "content",
    [
        PLAIN.replace("\n", "\r\n"),
        "\ufeff" + PLAIN,
        PLAIN + "\n",
        PLAIN + "\n \n\n",
        PLAIN.removesuffix("\n"),
        PLAIN.replace(" 1\n", " 1  \n"),
        PLAIN.replace(" 1", " -7"),
        PLAIN.replace(" 1", ""),
    ],
    ids=["crlf", "bom", "empty line", "empty lines", "no end", "trailing blanks", "negative counts", "no counts"],
)
def test_what_real_files_have_changes_nothing(read, content: str) -> None:
    assert read(content) == [",", "▁", "s"]


def test_white_space_that_is_no_blank_is_a_token(read) -> None:
    assert read("\u00a0 3\n\u2028 2\n\x85 2\nx\u00a0y 1\n") == ["\u00a0", "\u2028", "\x85", "x\u00a0y"]


def test_overwritten_rows_keep_their_place(read) -> None:
    assert read("<s> 0 #fairseq:overwrite\na 1\nb 1\na 2 #fairseq:overwrite\nc 5 #fairseq:overwrite\n") == [
        "<overwritten_4>",
        "<overwritten_5>",
        "b",
        "a",
        "c",
    ]


def test_a_token_that_stands_there_twice_names_both_lines(read, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"dict\.txt, line 4: the token 's' stands there twice: it is in line 3"):
        read(PLAIN + "s 9\n")
    with pytest.raises(InputError, match=r"line 4: the token '</s>' stands there twice: every dictionary has it"):
        read(PLAIN + "</s> 9\n")


@pytest.mark.parametrize("line", ["a b", " 3", "a 3.5", "", "three words here"])
def test_a_malformed_line_is_named(read, line: str) -> None:
    with pytest.raises(InputError, match=r"dict\.txt, line 2: expected 'token count'"):
        read(f"ok 1\n{line}\nok2 1\n")


def test_the_vocab_file_of_a_sentencepiece_model_is_told_apart(read) -> None:
    for content in (",\t-0\n▁\t-1\n", "<unk>\t0\n<s>\t0\n▁the\t-3.4213\n"):
        with pytest.raises(InputError, match=r"line 1: a piece and its score.*vocab import --spm .*dict\.model\)"):
            read(content)


def test_unusable_files_are_one_sentence(read, tmp_path: Path) -> None:
    for content in ("", "\n\n"):
        with pytest.raises(InputError, match="is empty"):
            read(content)
    with pytest.raises(InputError, match=r"line 2: not valid UTF-8"):
        read(b"a 1\n\xff 1\n")
    with pytest.raises(InputError, match="cannot be read"):
        read_fairseq_dict(tmp_path / "absent")


def test_dictionary_alone_is_ids_only(tmp_path: Path) -> None:
    path = tmp_path / "dict.txt"
    path.write_text("a 10\n\u2028 3\n▁x\u00a0y 1\n", encoding="utf-8")  # a line separator is a token, not a line's end
    vocabulary = Vocabulary.from_dict(path, num_sentinels=2, languages=("gu",))
    assert [vocabulary.token(i) for i in range(4, 10)] == [
        "a", "\u2028", "▁x\u00a0y", "<extra_id_0>", "<extra_id_1>", "__gu__",
    ]  # fmt: skip
    assert not vocabulary.has_text
    for use in (lambda: vocabulary.encode("a"), lambda: vocabulary.decode([4])):
        with pytest.raises(InputError, match="ids only"):
            use()
    vocabulary.save(tmp_path / "saved")
    assert not (tmp_path / "saved" / "spm.model").exists()
    assert Vocabulary.load(tmp_path / "saved").hash == vocabulary.hash
