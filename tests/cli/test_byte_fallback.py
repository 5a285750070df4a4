"""A vocabulary with pieces of single bytes can make line breaks: a line in is a line out, whatever the model says."""

import io
import json
from collections import Counter

import pytest
import sentencepiece
import torch
from command import WORDS, must

from deltalm_ds.checkpoints.directory import save_model
from deltalm_ds.model.config import DeltaLMConfig
from deltalm_ds.model.deltalm import DeltaLM
from deltalm_ds.vocabulary import Vocabulary

LINES = [" ".join(WORDS[(number + shift) % 10] for shift in range(1 + number % 5)) for number in range(12)]
BREAKS = ("\n", "\r", "\v", "\f", "\0")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A model of random weights that says line breaks and NUL instead of its most frequent words."""
    directory = tmp_path_factory.mktemp("world")
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(LINES * 5), model_writer=model, vocab_size=300, byte_fallback=True, minloglevel=2,
        unk_id=0, bos_id=1, eos_id=2, pad_id=-1, hard_vocab_limit=False, num_threads=1,
    )  # fmt: skip
    (directory / "spm.model").write_bytes(model.getvalue())
    vocabulary = Vocabulary.from_spm(directory / "spm.model", num_sentinels=0)
    config = DeltaLMConfig.preset("tiny", vocabulary_size=vocabulary.num_tokens, max_positions=40)
    torch.manual_seed(0)
    weights = {name: 4 * w if w.ndim == 2 else w for name, w in DeltaLM(config).state_dict().items()}
    save_model(directory / "plain", config, weights, vocabulary, {})
    (directory / "lines").write_text("".join(f"{line}\n" for line in LINES))
    ids = "\n".join(" ".join(map(str, vocabulary.encode(line))) for line in LINES).encode() + b"\n"
    search = "--ids", "--max-length", 12, "--min-length", 8
    said = must("translate", directory / "plain", *search, stdin=ids).split()
    frequent = [int(token) for token, _ in Counter(said).most_common(len(BREAKS))]
    table = weights["token_embedding.weight"].clone()
    for token, character in zip(frequent, BREAKS, strict=False):
        piece = 4 + vocabulary.blocks["pieces"].index(f"<0x{ord(character):02X}>")
        table[[token, piece]] = table[[piece, token]]
    save_model(directory / "model", config, weights | {"token_embedding.weight": table}, vocabulary, {})
    return directory


SEARCH = "--max-length", 12, "--min-length", 8


def test_a_line_in_is_a_line_out(world):
    text = must("translate", world / "model", "--input", world / "lines", *SEARCH)
    assert len(text.splitlines()) == len(LINES) and "\0" not in text
    outputs = must("translate", world / "model", "--input", world / "lines", *SEARCH, "--json").splitlines()
    vocabulary = Vocabulary.load(world / "model")
    said = {vocabulary.token(token) for line in outputs for token in json.loads(line)["hypotheses"][0]["ids"]}
    assert said & {f"<0x{ord(character):02X}>" for character in BREAKS}, "the model says none: the test tests nothing"


def test_rows_of_several_hypotheses_stay_rows(world):
    rows = must("translate", world / "model", "--input", world / "lines", "--n-best", 3, "--beam", 3, *SEARCH)
    assert [row.split("\t")[0] for row in rows.splitlines()] == [str(n) for n in range(len(LINES)) for _ in range(3)]


def test_what_evaluate_wrote_evaluate_reads(world):
    files = "--source", world / "lines", "--reference", world / "lines", "--target-lang", "en"
    vocabulary = Vocabulary.load(world / "model")
    assert not vocabulary.languages
    summary = json.loads(must("evaluate", world / "model", *files, "--out", world / "out", "--json"))
    given = "--hypotheses", world / "out" / "en.hyp", "--reference", world / "lines", "--target-lang", "en"
    again = json.loads(must("evaluate", *given, "--json"))
    assert again["directions"][0]["scores"] == summary["directions"][0]["scores"]
