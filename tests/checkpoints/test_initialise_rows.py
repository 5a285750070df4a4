"""Rows of the token table and of positions in a new model: by what they mean, with nothing inherited unseen."""

import json
import re

import pytest
import torch
from foreign import (
    NUM_HEADS,
    NUM_PIECES,
    NUM_POSITIONS,
    NUM_ROWS,
    fairseq_arguments,
    fairseq_xlm_roberta,
    init,
    write_dictionary,
    xlm_roberta,
)

from deltalm_ds.checkpoints.directory import load_model
from deltalm_ds.checkpoints.initialise import own_vocabulary, source_tokens, unchanged_initialisation
from deltalm_ds.checkpoints.sources import recognise
from deltalm_ds.errors import InputError
from deltalm_ds.files import read_json
from deltalm_ds.vocabulary import Vocabulary


def make_vocabulary(directory, num_pieces, **blocks):
    directory.mkdir()
    return Vocabulary.from_dict(write_dictionary(directory, num_pieces), **blocks)


def test_new_tokens_never_inherit_a_row(xlmr, tmp_path):
    """Tags and sentinels where the source has pieces: none takes the row of that number."""
    vocabulary = make_vocabulary(tmp_path / "v", 50, num_sentinels=20, languages=("de", "tr"))
    report = init(xlmr, tmp_path / "out", NUM_HEADS, vocabulary, copies={"__tr__": "piece7"})
    table, theirs = load_model(tmp_path / "out").token_embedding.weight, recognise(xlmr).read("token_embedding.weight")
    assert torch.equal(table[:54], theirs[:54])
    assert torch.equal(table[vocabulary.language_id("tr")], theirs[4 + 7])
    new = [*vocabulary.sentinel_ids, vocabulary.language_id("de")]
    distances = torch.cdist(table[new], theirs)
    assert distances.min() > 0.01
    assert not table[vocabulary.num_tokens :].any()
    rows = report["rows"]
    assert rows["kept"] == 54 and rows["copied"] == ["__tr__"]
    assert rows["new"] == [*(f"<extra_id_{i}>" for i in range(20)), "__de__"]
    assert rows["dropped"] == [*(f"piece{i}" for i in range(50, NUM_PIECES)), "<mask>"]


def test_the_mask_is_a_named_row(xlmr, tmp_path):
    vocabulary = make_vocabulary(tmp_path / "v", NUM_PIECES, num_sentinels=0, tasks=("<mask>",))
    report = init(xlmr, tmp_path / "out", NUM_HEADS, vocabulary)
    assert report["rows"]["kept"] == NUM_ROWS and report["rows"]["dropped"] == []
    table = load_model(tmp_path / "out").token_embedding.weight
    assert torch.equal(table[:NUM_ROWS], recognise(xlmr).read("token_embedding.weight"))


def test_an_own_model_gets_language_tags(xlmr, tmp_path):
    init(xlmr, tmp_path / "first", NUM_HEADS)
    vocabulary = make_vocabulary(tmp_path / "v", NUM_PIECES, num_sentinels=0, languages=("de",))
    report = init(tmp_path / "first", tmp_path / "second", vocabulary=vocabulary)
    assert report["rows"] == {
        "source": 128,
        "kept": 99,
        "copied": [],
        "new": ["__de__"],
        "dropped": [],
        "unnamed_dropped": 0,
    }
    first, second = (load_model(tmp_path / name).state_dict() for name in ("first", "second"))
    for name, weight in second.items():
        rows = 99 if name == "token_embedding.weight" else None
        assert torch.equal(weight[:rows], first[name][:rows]), name
    again = init(tmp_path / "second", tmp_path / "third")
    assert again["rows"]["new"] == [] and Vocabulary.load(tmp_path / "third").hash == vocabulary.hash


def test_the_settings_of_an_own_model_stay(xlmr, tmp_path):
    init(xlmr, tmp_path / "first", NUM_HEADS)
    config = read_json(tmp_path / "first" / "config.json")
    config["model"]["dropout"] = 0.25
    (tmp_path / "first" / "config.json").write_text(json.dumps(config))
    init(tmp_path / "first", tmp_path / "second", layers=("0", "0"))
    assert load_model(tmp_path / "second").config.dropout == 0.25


@pytest.mark.parametrize("num_pieces", [NUM_PIECES - 1, NUM_PIECES + 2, 20])
def test_a_dictionary_that_is_not_the_checkpoints(num_pieces, xlmr, tmp_path):
    """XLM-R's table has a row for each token and the mask, no more and no less."""
    write_dictionary(xlmr, num_pieces)
    names = num_pieces + 4 + (num_pieces + 4 < NUM_ROWS)
    with pytest.raises(InputError, match=f"has 100 embedding rows, its dictionary {names} tokens: wrong dict"):
        init(xlmr, tmp_path / "out", NUM_HEADS)
    assert not (tmp_path / "out").exists()


def padded_by_transformers(directory, multiple):
    """The new rows are random."""
    model = xlm_roberta(2)
    model.resize_token_embeddings(pad_to_multiple_of=multiple)
    model.save_pretrained(directory)
    return len(model.roberta.embeddings.word_embeddings.weight)


def padded_with_zeros(directory, num_rows):
    """As a fairseq file, by a number of rows that is not round."""
    directory.mkdir()
    state = fairseq_xlm_roberta(xlm_roberta(2), fused=True)
    name = "decoder.sentence_encoder.embed_tokens.weight"
    state[name] = torch.cat([state[name], torch.zeros(num_rows, state[name].shape[1])])
    torch.save({"args": fairseq_arguments(encoder_layers=2), "model": state}, directory / "model.pt")
    return len(state[name])


@pytest.mark.parametrize(
    ("pad", "amount", "num_rows"),
    [
        (padded_by_transformers, 8, 104),
        (padded_by_transformers, 64, 128),
        (padded_with_zeros, 1, 101),
        (padded_with_zeros, 300, 400),
    ],
)
def test_padded_rows_are_dropped_and_counted(pad, amount, num_rows, tmp_path):
    assert pad(tmp_path / "xlmr", amount) == num_rows
    write_dictionary(tmp_path / "xlmr")
    report = init(tmp_path / "xlmr", tmp_path / "out")
    assert report["rows"]["unnamed_dropped"] == num_rows - NUM_ROWS
    assert report["rows"]["kept"] == NUM_ROWS - 1 and report["rows"]["dropped"] == ["<mask>"]
    theirs = recognise(tmp_path / "xlmr").read("token_embedding.weight")
    table = load_model(tmp_path / "out").token_embedding.weight
    assert torch.equal(table[: NUM_ROWS - 1], theirs[: NUM_ROWS - 1])
    assert not table[NUM_ROWS - 1 :].any()


@pytest.mark.parametrize(("num_pieces", "num_names"), [(NUM_PIECES - 8, 92), (NUM_PIECES + 6, 105)])
def test_a_padded_table_does_not_hide_a_wrong_dictionary(num_pieces, num_names, tmp_path):
    padded_by_transformers(tmp_path / "xlmr", 8)
    write_dictionary(tmp_path / "xlmr", num_pieces)
    with pytest.raises(InputError, match=f"has 104 embedding rows, its dictionary {num_names} tokens: wrong"):
        init(tmp_path / "xlmr", tmp_path / "out")


def test_without_a_mask(xlmr):
    write_dictionary(xlmr, NUM_PIECES + 1)
    source = recognise(xlmr)
    assert source_tokens(source, own_vocabulary(source))[-1] == f"piece{NUM_PIECES}"


@pytest.mark.parametrize(("wanted", "fit"), [(20, "truncate"), (70, "extend"), (NUM_POSITIONS, None)])
def test_positions(wanted, fit, xlmr, tmp_path):
    init(xlmr, tmp_path / "out", NUM_HEADS, max_positions=wanted, fit=fit)
    model, theirs = load_model(tmp_path / "out"), recognise(xlmr).read("encoder.embedding.positions")
    for positions in (model.encoder.embedding.positions, model.decoder.embedding.positions):
        assert len(positions) == wanted
        assert torch.equal(positions[:NUM_POSITIONS], theirs[:wanted])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_positions": 20}, "The source has 30 positions and 20 are wanted"),
        ({"max_positions": 40, "fit": "truncate"}, "The source has 30 positions and 40 are wanted"),
        ({"num_heads": 4}, "has 2 heads, not 4: leave out --heads"),
        ({"copies": {"__xx__": "piece1"}}, "no token '__xx__' in the new vocabulary"),
        ({"copies": {"piece2": "piece1"}}, "'piece2' keeps its own row"),
    ],
)
def test_options_that_do_not_fit(options, message, xlmr, tmp_path):
    with pytest.raises(InputError, match=re.escape(message)):
        init(xlmr, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("num_heads", "message"),
    [(None, "64 wide, which no official size is: give the number of heads (--heads)"), (5, "does not divide")],
)
def test_heads_that_nothing_states(num_heads, message, fixtures):
    with pytest.raises(InputError, match=re.escape(message)):
        unchanged_initialisation(recognise(fixtures / "official_base.pt"), num_heads)
