"""Every verb reads lines of text by the same rules: compression, standard input, byte order mark, line ends, NUL."""

import gzip
import json
import os

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from command import deltalm, make_world, must

LINES = ["a b", "", "b a c"]
VARIANTS = {
    "plain": lambda text: text.encode(),
    "mark": lambda text: text.encode("utf-8-sig"),
    "crlf": lambda text: text.replace("\n", "\r\n").encode(),
    "no last end": lambda text: text.removesuffix("\n").encode(),
}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    directory = tmp_path_factory.mktemp("world")
    make_world(directory)
    return directory


@pytest.fixture
def here(world, monkeypatch):
    monkeypatch.chdir(world)
    return world


def write(path, content):
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return str(path)


def translated(*arguments, stdin=b""):
    return must("translate", "model", "--target-lang", "de", "--max-length", "5", *arguments, stdin=stdin)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("name", ["in.txt", "in.txt.gz", "-"])
def test_translate_reads_every_kind_of_text(here, tmp_path, variant, name):
    text = "".join(f"{line}\n" for line in LINES)
    expected = translated(stdin=text.encode())
    assert len(expected.splitlines()) == len(LINES)
    content = VARIANTS[variant](text)
    if name == "-":
        assert translated("--input", "-", stdin=content) == expected
    else:
        assert translated("--input", write(tmp_path / name, content)) == expected


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("name", ["ref.txt", "ref.txt.gz"])
def test_evaluate_and_score_read_every_kind_of_text(here, tmp_path, variant, name):
    text = "the cat sat on the mat\na dog barked at the moon\n"
    hypotheses = write(tmp_path / "hyp.txt", text.encode())
    references = write(tmp_path / name, VARIANTS[variant](text))
    scores = must("evaluate", "--hypotheses", hypotheses, "--reference", references)
    assert " 100.00 " in scores
    assert scores == must("evaluate", "--hypotheses", hypotheses, "--reference", hypotheses)
    score = "score", "model", "--target-lang", "de", "--source"
    assert must(*score, references, "--target", references) == must(*score, hypotheses, "--target", hypotheses)


@pytest.mark.parametrize(
    "arguments",
    [
        ("translate", "model", "--target-lang", "de", "--input", "FILE"),
        ("score", "model", "--target-lang", "de", "--source", "FILE", "--target", "FILE"),
        ("evaluate", "--hypotheses", "FILE", "--reference", "FILE"),
        ("evaluate", "model", "--source", "FILE", "--reference", "FILE", "--target-lang", "de"),
        ("export", "model", "--out", "new", "--check-file", "FILE"),
        ("data", "build", "--vocab", "vocabulary", "--out", "new", "--mono", "de=FILE"),
        ("vocab", "train", "--input", "FILE", "--size", "30", "--out", "new"),
        ("vocab", "import", "--dict", "FILE", "--out", "new"),
        ("data", "convert", "xqg", "FILE", "FILE", "FILE", "--out", "new.jsonl"),
    ],
    ids=lambda arguments: " ".join(arguments[:2]),
)
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a 1\nb\0 1\n", "line 2: contains a NUL byte"),
        (b"a 1\nb 1\nc\xff 1\n", "line 3: not valid UTF-8"),
        (b"a 1\rb 1\r", "line 1: lines end with carriage returns alone"),
    ],
    ids=["nul", "utf8", "cr"],
)
def test_what_is_no_text_is_refused_by_every_verb_with_file_and_line(here, tmp_path, arguments, content, message):
    path = write(tmp_path / "text.gz", content)
    before = sorted(here.rglob("*"))
    outcome = deltalm(*[argument.replace("FILE", path) for argument in arguments])
    assert (outcome.code, outcome.stdout) == (2, "")
    assert f"{path}, {message}" in outcome.messages[-1]
    assert sorted(here.rglob("*")) == before


@pytest.mark.parametrize("verb", ["score", "evaluate"])
def test_files_of_different_length_are_both_named(here, tmp_path, verb):
    short, long = write(tmp_path / "a.txt", b"x\n"), write(tmp_path / "b.txt", b"x\ny\n")
    files = ("--source", short, "--target", long) if verb == "score" else ("--source", short, "--reference", long)
    outcome = deltalm(verb, "model", "--target-lang", "de", *files)
    assert outcome.code == 2
    assert outcome.messages == [f"deltalm: {short} has 1 lines but {long} has 2: the two must agree line by line."]


def test_a_dictionary_with_a_byte_order_mark_keeps_its_first_entry(here, tmp_path):
    directories = []
    for name, content in (("plain", b"a 2\nb 1\n"), ("mark", b"\xef\xbb\xbfa 2\r\nb 1\r\n")):
        directories.append(str(tmp_path / f"v.{name}"))
        must("vocab", "import", "--dict", write(tmp_path / name, content), "--out", directories[-1])
    plain, marked = (json.loads(must("vocab", "inspect", name, "--json"))["hash"] for name in directories)
    assert plain == marked


def test_standard_input_is_not_read_for_both_sides(here):
    for arguments in (
        ("evaluate", "--hypotheses", "-", "--reference", "-"),
        ("score", "model", "--source", "-", "--target", "-"),
    ):
        outcome = deltalm(*arguments, stdin=b"a b\n")
        assert outcome.code == 2
        assert outcome.messages == ["deltalm: Standard input can be read only once: name a file for the other side."]


@pytest.mark.skipif(os.name != "posix" or os.uname().sysname != "Linux", reason="elsewhere names are Unicode")
def test_names_that_are_no_unicode_name_files_all_the_same(here, tmp_path):
    odd = tmp_path / os.fsdecode(b"caf\xe9")
    odd.mkdir()
    (odd / "text.en").write_text("one two three\n")
    pq.write_table(pa.table({"text": ["four five"]}), tmp_path / "table.parquet")
    (tmp_path / "table.parquet").rename(odd / "table.parquet")
    corpora = "--mono", f"en={odd}/text.en", "--mono", f"en={odd}/table.parquet"
    must("data", "build", "--vocab", "vocabulary", "--out", odd / "shards", *corpora)
    assert "faults 0" in must("data", "verify", odd / "shards")
    assert must("translate", "model", "--target-lang", "de", "--input", odd / "text.en")


def test_test_sets_may_be_compressed(here, tmp_path):
    text = "one two three\nfour five six seven\n"
    for name in ("test.en-de.en.gz", "test.en-de.de"):
        write(tmp_path / name, text.encode())
    (tmp_path / "test.en-fr.fr").mkdir()  # no file at all
    summary = json.loads(must("evaluate", "model", "--data", tmp_path, "--json"))
    assert [score["direction"] for score in summary["directions"]] == ["de-en", "en-de"]
