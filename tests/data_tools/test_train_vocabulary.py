"""Training of vocabularies: layout, determinism, balance, and clear refusals; and the command line."""

import gzip
import json
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from deltalm_ds.cli.vocab import app
from deltalm_ds.data_tools.train_vocabulary import _take, balanced_quotas, train
from deltalm_ds.errors import InputError
from deltalm_ds.vocabulary import Vocabulary

RANDOM = random.Random(1)
STEMS = ("riv", "hous", "tabl", "wint", "gard", "stor")


def make_text(endings: tuple[str, ...], count: int) -> list[str]:
    words = [stem + ending for stem in STEMS for ending in endings]
    return [f"{' '.join(RANDOM.choices(words, k=5))} {number}." for number in range(count)]


ENGLISH, GERMAN = make_text(("er", "es", "ing", "y"), 200), make_text(("ä", "ung", "en", "lich"), 50)


@pytest.fixture
def inputs(tmp_path: Path) -> list[Path]:
    english, german = tmp_path / "text.en", tmp_path / "text.de.gz"
    english.write_text("\n".join(ENGLISH) + "\n\n", encoding="utf-8")
    with gzip.open(german, "wt", encoding="utf-8") as file:
        file.write("\n".join(GERMAN) + "\n")
    return [english, german]


def test_trains_the_layout_of_xlmr_deterministically(inputs: list[Path], tmp_path: Path) -> None:
    vocabulary = train(inputs, tmp_path / "a", 60, languages=("en", "de"), num_sentinels=10)
    assert len(vocabulary.blocks["pieces"]) == 57
    assert vocabulary.language_id("en") == 4 + 57 + 10
    assert vocabulary.decode(vocabulary.encode(GERMAN[0])) == GERMAN[0]
    train(inputs, tmp_path / "b", 60, languages=("en", "de"), num_sentinels=10)
    for name in ("spm.model", "vocabulary.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert Vocabulary.load(tmp_path / "a").hash == vocabulary.hash


def test_digits_can_be_pieces_of_their_own(inputs: list[Path], tmp_path: Path) -> None:
    vocabulary = train(inputs, tmp_path / "v", 45, split_digits=True)
    assert not [p for p in vocabulary.blocks["pieces"] if sum(c.isdigit() for c in p) and len(p.strip("▁")) > 1]


@pytest.mark.parametrize(
    ("size", "options", "message"),
    [
        (5000, {}, r"5000: at most \d+ are possible"),
        (10, {}, r"takes at least \d+ pieces"),
        (60, {"model_type": "word"}, "unigram or bpe"),
    ],
)
def test_impossible_wishes_leave_nothing_behind(
    inputs: list[Path], tmp_path: Path, size: int, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        train(inputs, tmp_path / "out", size, **options)
    assert sorted(tmp_path.iterdir()) == sorted(inputs)


def test_bad_text_is_named(tmp_path: Path) -> None:
    path = tmp_path / "bad.en"
    path.write_text(" \n\n")
    with pytest.raises(InputError, match=r"no text in .*bad\.en"):
        train([path], tmp_path / "out", 50)
    path.write_bytes(b"good\n\xff\n")
    with pytest.raises(InputError, match=r"bad\.en, line 2"):
        train([path], tmp_path / "out", 50)
    with pytest.raises(InputError, match=r"read twice, which standard input cannot be"):
        train(["-"], tmp_path / "out", 50)
    assert list(tmp_path.iterdir()) == [path]


def test_the_form_of_the_text_makes_no_difference(inputs: list[Path], tmp_path: Path) -> None:
    """The same texts as lines, a pattern, a list, a column and a field give the same vocabulary."""
    plain = train(inputs, tmp_path / "plain", 60, num_sentinels=10)
    for number, texts in enumerate((ENGLISH[:70], ENGLISH[70:])):
        (tmp_path / f"part{number}.txt").write_text("\n".join(texts))
    (tmp_path / "list.txt").write_text(f"{tmp_path}/part0.txt\n{tmp_path}/part1.txt\n")
    (tmp_path / "pairs.tsv").write_text("".join(f"{number}\t{text}\n" for number, text in enumerate(ENGLISH)))
    (tmp_path / "pages.jsonl").write_text("".join(json.dumps({"title": text}) + "\n" for text in ENGLISH))
    for number, name in enumerate(("{}/part*.txt", "@{}/list.txt", "{}/pairs.tsv:2", "{}/pages.jsonl:title")):
        same = train([name.format(tmp_path), inputs[1]], tmp_path / str(number), 60, num_sentinels=10)
        assert same.hash == plain.hash, name


def test_quotas_follow_the_power_of_the_counts() -> None:
    assert balanced_quotas([1000, 10, 0], alpha=1.0, total=1010) == [1000, 10, 0]
    assert balanced_quotas([1000, 10, 0], alpha=0.0, total=1010) == [505, 505, 0]
    # 1000^0.3 : 10^0.3 = 3.981 : 1
    assert balanced_quotas([1000, 10], alpha=0.3, total=1010) == [807, 203]


@given(st.integers(1, 200), st.integers(1, 500))
def test_takes_the_quota_evenly(count: int, quota: int) -> None:
    taken = list(_take(map(str, range(count)), count, quota))
    times = [taken.count(str(i)) for i in range(count)]
    assert len(taken) == quota
    assert max(times) - min(times) <= 1


def test_command_line(inputs: list[Path], tmp_path: Path) -> None:
    run = CliRunner().invoke
    english, german = map(str, inputs)
    out, imported = str(tmp_path / "v"), str(tmp_path / "w")
    options = ["--size", "60", "--languages", "en,de", "--out", out]
    result = run(app, ["train", "--input", english, "--input", german, *options])
    assert result.exit_code == 0, result.output
    described = json.loads(run(app, ["inspect", out, "--json"]).stdout)
    assert described["languages"] == ["en", "de"]
    assert described["blocks"]["pieces"] == {"start": 4, "count": 57}
    assert "__en__ __de__" in run(app, ["inspect", out]).stdout
    spm = ["--spm", f"{out}/spm.model", "--languages", "en,de"]
    assert run(app, ["import", *spm, "--out", imported]).exit_code == 0
    assert json.loads(run(app, ["inspect", imported, "--json"]).stdout)["hash"] == described["hash"]
    assert isinstance(run(app, ["import", "--out", str(tmp_path / "x")]).exception, InputError)
