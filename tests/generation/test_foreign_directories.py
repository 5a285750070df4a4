"""Directories of transformers and CTranslate2 that are not ours: languages, tokenizers, and what is no model."""

import json
import shutil
import struct

import ctranslate2
import numpy as np
import pytest
import sentencepiece
import torch
from foreign_toys import FAMILIES, LONGEST, TEXTS, ctranslate2_tokens, languages_of, opened
from safetensors.torch import load_file, save_file

from deltalm_ds.errors import DataError, InputError
from deltalm_ds.generation.foreign.ctranslate2_file import read_model_file
from deltalm_ds.generation.interface import SearchOptions
from deltalm_ds.generation.loading import load_engine, load_vocabulary
from deltalm_ds.generation.translate import encoder_for, generate

pytest.importorskip("transformers", reason="the extra export is not installed")


@pytest.mark.parametrize(
    ("family", "target", "source", "message"),
    [
        ("nllb", "fra", None, r"NLLB must be told the language of its sources \(--source-lang\): eng_Latn"),
        ("nllb", None, "en", r"Name the language to translate into \(--target-lang\): eng_Latn"),
        ("nllb", "zh", "en", "'zh' could be each of these: zho_Hans, zho_Hant"),
        ("nllb", "frau_Latn", "en", "no language 'frau_Latn': the nearest is 'fra_Latn'"),
        ("mbart", "xx", "en", "This mBART model has no language 'xx': the nearest is"),
        ("m2m", "fr", "tlh", "This M2M-100 model has no language 'tlh'"),
        ("marian", "it", None, "This Marian model has no language 'it': .* it has deu, fra, zh_CN"),
        ("t5", "it", None, "This T5 model has no language 'it': .* it has de, fr"),
        ("bart", "fr", None, "This BART model has no tokens of languages"),
    ],
)
def test_languages_that_are_not_there(family, target, source, message, directories):
    with pytest.raises(InputError, match=message):
        load_vocabulary(directories[family]).source_tag(target, source)


def test_languages_may_be_spelled_in_any_way(directories):
    for family, codes in {
        "nllb": ("fr", "fra", "fra_Latn"),
        "mbart": ("fr", "fr_XX"),
        "marian": ("zh", "zh-CN"),
    }.items():
        vocabulary = load_vocabulary(directories[family])
        assert len({tuple(vocabulary.source_tag(code, "en")) for code in codes}) == 1


@pytest.mark.parametrize("family", FAMILIES)
def test_special_tokens_in_a_text_are_text(family, directories):
    from transformers import AutoTokenizer

    vocabulary, tokenizer = load_vocabulary(directories[family]), AutoTokenizer.from_pretrained(directories[family])
    written = "a </s> dog <pad> fra_Latn __fr__ fr_XX <s> <extra_id_0> <mask>"
    special = {*tokenizer.all_special_ids} - {tokenizer.unk_token_id}
    for encode in (vocabulary.encode, vocabulary.encode_output):
        assert not special & set(encode(written).tolist())
    assert "dog" in vocabulary.decode(vocabulary.encode_output(written))


def test_ids_without_languages_are_refused(directories, converted):
    for directory in (directories["nllb"], converted["nllb"]):
        for source in ([], [5]):
            with pytest.raises(InputError, match="ids of a source for NLLB begin with those of its languages"):
                load_engine(directory).score([source], [[6]])


@pytest.mark.parametrize("adds_end", [False, True])
def test_a_model_that_is_told_nothing_gets_pieces_alone(adds_end, converted, tmp_path):
    """As OpenNMT trains them; `</s>` comes from CTranslate2, where the model says so."""
    shutil.copytree(converted["marian"], tmp_path / "plain")
    plain = tmp_path / "plain"
    for name in ("tokenizer_config.json", "vocab.json", "target.spm"):
        (plain / name).unlink()
    (plain / "source.spm").rename(plain / "sentencepiece.model")
    (plain / "shared_vocabulary.json").write_text(
        json.dumps([token.strip("<>") for token in ctranslate2_tokens(plain)])
    )
    config = json.loads((plain / "config.json").read_text()) | {"add_source_eos": adds_end}
    config |= {name: config[name].strip("<>") for name in ("unk_token", "eos_token", "decoder_start_token")}
    (plain / "config.json").write_text(json.dumps(config))
    vocabulary, engine = opened(plain)
    assert vocabulary.languages == ()
    options = SearchOptions(beam=2, n_best=2, length_penalty=0, max_length=LONGEST)
    found = generate(engine, [encoder_for(vocabulary, None)(text) for text in TEXTS], options, token_scores=True)
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(plain / "sentencepiece.model"))
    given = [pieces.encode(text, out_type=str) for text in TEXTS]
    expected = ctranslate2.Translator(str(plain)).translate_batch(
        given, beam_size=2, num_hypotheses=2, length_penalty=1e-9, min_decoding_length=1, max_decoding_length=LONGEST
    )
    tokens = ctranslate2_tokens(plain)
    for of_text, wanted in zip(found, expected, strict=True):
        assert sorted([tokens[token] for token in one.ids] for one in of_text) == sorted(wanted.hypotheses)
        assert vocabulary.decode(of_text[0].ids) == pieces.decode([tokens[token] for token in of_text[0].ids])


def test_sentencepiece_models_alone_do(directories, converted, tmp_path):
    """Marian's two, and M2M-100's one."""
    for family in ("marian", "m2m"):
        bare = tmp_path / family
        shutil.copytree(converted[family], bare)
        for name in ("tokenizer_config.json", "vocab.json", "added_tokens.json"):
            (bare / name).unlink(missing_ok=True)
        with_tokenizer, alone = load_vocabulary(converted[family]), load_vocabulary(bare)
        assert alone.languages == with_tokenizer.languages
        for text in TEXTS:
            encoded = [encoder_for(one, *languages_of(family))(text) for one in (with_tokenizer, alone)]
            assert encoded[0] == encoded[1]
            ids = alone.encode_output(text)
            assert alone.decode(ids) == with_tokenizer.decode(ids)
        sources = [encoder_for(alone, *languages_of(family))(TEXTS[0])]
        options = SearchOptions(beam=2, max_length=6)
        pair = [load_engine(directory).generate(sources, options) for directory in (converted[family], bare)]
        assert pair[0] == pair[1]
    (tmp_path / "m2m" / "other.model").write_bytes(b"")
    with pytest.raises(InputError, match=r"has no tokenizer: put those of the original model beside model\.bin"):
        load_vocabulary(tmp_path / "m2m")


def test_other_kinds_of_models_are_named(tmp_path, directories):
    from transformers import BertConfig, BertForMaskedLM, GPT2Config, GPT2LMHeadModel

    sizes = {"vocab_size": 20, "num_hidden_layers": 1}
    GPT2LMHeadModel(GPT2Config(vocab_size=20, n_layer=1, n_embd=16, n_head=2)).save_pretrained(tmp_path / "gpt2")
    bert = BertConfig(**sizes, hidden_size=16, num_attention_heads=2, intermediate_size=16)
    BertForMaskedLM(bert).save_pretrained(tmp_path / "bert")
    for name, message in {
        "gpt2": r"is a decoder alone \(a language model\): GPT2LMHeadModel",
        "bert": "is an encoder alone: BertForMaskedLM",
    }.items():
        for load in (load_engine, load_vocabulary):
            with pytest.raises(InputError, match=message):
                load(tmp_path / name)
    config = json.loads((directories["nllb"] / "config.json").read_text())
    (tmp_path / "gpt2" / "config.json").write_text(
        json.dumps(config | {"model_type": "fsmt", "architectures": ["FSMTForConditionalGeneration"]})
    )
    with pytest.raises(
        InputError, match="is a fsmt: how it is told languages is not known here; models may be m2m_100"
    ):
        load_engine(tmp_path / "gpt2")
    for engine in ("pytorch", "ctranslate2"):
        with pytest.raises(InputError, match=f"is for transformers, not for {engine}"):
            load_engine(directories["nllb"], engine)


def model_bin(path, name, variables=()):
    """A model.bin as CTranslate2 writes it, of variables (name, shape) in float32."""

    def text(value):
        return struct.pack("H", len(value) + 1) + value.encode() + b"\0"

    content = struct.pack("I", 6) + text(name) + struct.pack("II", 7, len(variables))
    for variable, shape in variables:
        size = 4 * int(np.prod(shape))
        content += text(variable) + struct.pack(f"B{len(shape)}I", len(shape), *shape)
        content += struct.pack("<BI", 0, size) + bytes(size)
    path.write_bytes(content + struct.pack("I", 0))
    return path


def test_the_head_of_a_model_of_ctranslate2(tmp_path, converted):
    assert read_model_file(converted["nllb"] / "model.bin").max_positions == 64
    assert read_model_file(converted["t5"] / "model.bin").max_positions is None
    for name, message in {
        "TransformerDecoderSpec": r"is a decoder alone \(a language model\): translation needs",
        "TransformerEncoderSpec": "is an encoder alone",
        "WhisperSpec": "is a model of speech",
        "NewSpec": "is a NewSpec",
    }.items():
        with pytest.raises(InputError, match=message):
            read_model_file(model_bin(tmp_path / "model.bin", name))
    whole = (converted["nllb"] / "model.bin").read_bytes()
    for size in (0, 3, 11, 100, len(whole) // 2, len(whole) - 200):
        (tmp_path / "model.bin").write_bytes(whole[:size])
        with pytest.raises(DataError, match="is cut short, or no model of CTranslate2"):
            read_model_file(tmp_path / "model.bin")


def test_weights_may_be_of_the_older_form(directories, tmp_path):
    """Most of the published models have them so: with tied weights under each of their names."""
    from transformers import AutoModelForSeq2SeqLM

    older = tmp_path / "older"
    shutil.copytree(directories["nllb"], older)
    model = AutoModelForSeq2SeqLM.from_pretrained(directories["nllb"])
    torch.save(model.state_dict(), older / "pytorch_model.bin")
    (older / "model.safetensors").unlink()
    sources = [encoder_for(load_vocabulary(older), *languages_of("nllb"))(text) for text in TEXTS]
    options = SearchOptions(beam=2, max_length=LONGEST)
    found, expected = (generate(load_engine(path), sources, options) for path in (older, directories["nllb"]))
    assert found == expected


def test_downloads_that_are_not_finished(tmp_path, directories, converted):
    def damaged(family, change):
        directory = tmp_path / f"{len(list(tmp_path.iterdir()))}"
        shutil.copytree(directories.get(family) or converted[family[:-4]], directory)
        change(directory)
        return directory

    def pointer(directory):
        text = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n"
        (directory / "model.safetensors").write_text(text)

    def index(directory):
        (directory / "model.safetensors").unlink()
        parts = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
        (directory / "model.safetensors.index.json").write_text(json.dumps(parts))
        (directory / "model-00001-of-00002.safetensors").touch()

    def lacking(directory):
        weights = load_file(directory / "model.safetensors")
        weights.pop("model.decoder.layers.1.fc1.weight")
        save_file(weights, directory / "model.safetensors", {"format": "pt"})

    def incomplete(directory):
        (directory / ".cache/huggingface/download").mkdir(parents=True)
        (directory / ".cache/huggingface/download/x.incomplete").touch()

    for family, change, message in (
        ("nllb", pointer, "model.safetensors is only git-lfs's pointer to the file: run `git lfs pull`"),
        ("nllb", index, "has no model-00002-of-00002.safetensors: the download is not finished"),
        ("nllb", lacking, r"lacks 1 of the model's tensors, such as model\.decoder\.layers\.1\.fc1\.weight"),
        ("nllb", incomplete, r"is an unfinished download \(x.incomplete\)"),
        ("nllb", lambda path: (path / "model.safetensors").unlink(), "has no model.safetensors"),
        (
            "nllb",
            lambda path: (path / "model.safetensors").write_bytes(b"1234567890"),
            "cannot be opened by transformers",
        ),
        ("nllb-ct2", lambda path: (path / "shared_vocabulary.json").unlink(), "has no vocabulary: one of shared_vocab"),
        ("nllb-ct2", lambda path: (path / "model.bin").unlink(), "model.bin does not exist"),
        ("nllb-ct2", incomplete, "is an unfinished download"),
    ):
        with pytest.raises(InputError, match=message):
            load_engine(damaged(family, change))
    for family, change in (
        ("m2m", lambda path: (path / "sentencepiece.bpe.model").unlink()),
        ("mbart", lambda path: (path / "tokenizer.json").write_text("{}")),
    ):
        with pytest.raises(DataError, match=r"The tokenizer in .* cannot be opened"):
            load_vocabulary(damaged(family, change))
