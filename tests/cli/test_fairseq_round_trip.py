"""A model of ours as fairseq's files, and back: the vocabulary with its languages, the weights row by row."""

import json

import pytest
from command import deltalm, make_world, must
from safetensors.torch import load_file

from deltalm_ds.vocabulary import Vocabulary


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    directory = tmp_path_factory.mktemp("world")
    make_world(directory)
    must("export", directory / "model", "--to", "fairseq", "--out", directory / "fairseq")
    return directory


@pytest.mark.parametrize("options", [(), ("--sentinels", 0), ("--languages", "de")])
def test_the_dictionary_comes_back_with_its_blocks(options, world, tmp_path):
    files = "--dict", world / "fairseq" / "dict.txt", "--spm", world / "vocabulary" / "spm.model"
    must("vocab", "import", *files, *options, "--out", tmp_path / "vocabulary")
    assert Vocabulary.load(tmp_path / "vocabulary").hash == Vocabulary.load(world / "vocabulary").hash


def test_tags_before_the_sentinels_are_no_tags_and_it_is_said(tmp_path):
    (tmp_path / "dict.txt").write_text("a 1\n__de__ 1\n__pt-BR__ 1\n<extra_id_0> 1\n")
    outcome = deltalm("vocab", "import", "--dict", tmp_path / "dict.txt", "--out", tmp_path / "vocabulary")
    assert outcome.code == 0 and Vocabulary.load(tmp_path / "vocabulary").languages == ()
    assert "Note: __de__, __pt-BR__ are pieces like any other" in outcome.stderr


def test_the_model_comes_back_with_its_languages(world, tmp_path):
    must("init", "--from", world / "fairseq", "--spm", world / "vocabulary" / "spm.model", "--out", tmp_path / "model")
    weights, expected = (
        load_file(directory / "model.safetensors") for directory in (tmp_path / "model", world / "model")
    )
    assert (weights["token_embedding.weight"] == expected["token_embedding.weight"]).all()
    (tmp_path / "lines").write_text("one two three\nseven\n")
    arguments = "--input", tmp_path / "lines", "--target-lang", "deu_Latn", "--json"
    found, wanted = (must("translate", model, *arguments) for model in (tmp_path / "model", world / "model"))
    assert [json.loads(line) for line in found.splitlines()] == [json.loads(line) for line in wanted.splitlines()]
