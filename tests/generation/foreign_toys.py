"""Tiny random models of other families, each with a tiny tokenizer of its own class, as transformers saves them."""

import json
from functools import cache
from pathlib import Path

import sentencepiece
import torch

from deltalm_ds.generation.loading import load_engine, load_vocabulary

TEXT = (
    "A dog is running over the green grass, and two children watch it.",
    "Ein Hund läuft über das grüne Gras, und zwei Kinder sehen ihm zu.",
    "The house is old. The river is wide! Who knows where it goes?",
)
LINES = ["A dog is running.", "", "The river is wide, and the house is old.", "Who knows?"]
TEXTS = [line for line in LINES if line]
LONGEST = 12  # tokens of outputs
# Of each family the tokenizer's own codes of English and French, where it takes such, and what the text begins with.
CODES = {
    "nllb": ("eng_Latn", "fra_Latn"),
    "m2m": ("en", "fr"),
    "mbart": ("en_XX", "fr_XX"),
    "mbart50": ("en_XX", "fr_XX"),
}
IN_TEXT = {"marian": ">>fra<<", "t5": "The dog is two: "}
FAMILIES = (*CODES, *IN_TEXT, "bart")
SPECIAL = ("<s>", "<pad>", "</s>", "<unk>")
SIZES = {
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
    "max_position_embeddings": 64,
}


@cache
def sentencepiece_model(directory: Path) -> Path:
    """A model with 90 pieces, `<unk>`, `<s>` and `</s>` first."""
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXT * 4),
        model_prefix=str(directory / "spm"),
        vocab_size=90,
        hard_vocab_limit=False,
        character_coverage=1.0,
        minloglevel=2,
    )
    return directory / "spm.model"


def pieces(model: Path) -> list[tuple[str, float]]:
    """Those of text, with their scores."""
    processor = sentencepiece.SentencePieceProcessor(model_file=str(model))
    return [(processor.id_to_piece(i), processor.get_score(i)) for i in range(3, processor.get_piece_size())]


def model_of(family: str, directory: Path) -> Path:
    """A directory of that family below another."""
    path = directory / family
    tokenizer = TOKENIZERS[family](directory)
    tokenizer.save_pretrained(path)
    model = _model(family, tokenizer)
    model.save_pretrained(path)
    if family == "t5":  # transformers 5 writes no such key, the published models have it
        config = json.loads((path / "config.json").read_text())
        config["task_specific_params"] = {
            "translation_en_to_de": {"prefix": "The house is Ein: "},
            "translation_en_to_fr": {"prefix": "The dog is two: "},
            "summarization": {"prefix": "summarize: "},
        }
        (path / "config.json").write_text(json.dumps(config))
    return path


def languages_of(family):
    """What we are told: the target and the source."""
    return (None if family == "bart" else "fr"), ("en" if family in CODES else None)


def opened(directory):
    """Its vocabulary, and its engine on one thread."""
    return load_vocabulary(directory), load_engine(directory, threads=1)


def ctranslate2_tokens(directory):
    """The tokens of a converted model by their ids."""
    return json.loads((directory / "shared_vocabulary.json").read_text())


def _model(family, tokenizer):
    import transformers

    torch.manual_seed(0)
    size = max(tokenizer.get_vocab().values()) + 1
    common = {"vocab_size": size, "init_std": 0.4, **SIZES}
    if family in ("nllb", "m2m"):
        size = max([size - 1, *getattr(tokenizer, "lang_token_to_id", {}).values()]) + 1
        config = transformers.M2M100Config(**(common | {"vocab_size": size}), decoder_start_token_id=2)
        model = transformers.M2M100ForConditionalGeneration(config)
    elif family in ("mbart", "mbart50"):
        name = type(tokenizer).__name__
        known = {"normalize_before": True, "normalize_embedding": True, "tokenizer_class": name}  # to CTranslate2
        config = transformers.MBartConfig(**common, **known, decoder_start_token_id=2)
        model = transformers.MBartForConditionalGeneration(config)
    elif family == "marian":
        pad = tokenizer.pad_token_id
        ids = {"pad_token_id": pad, "decoder_start_token_id": pad, "eos_token_id": 0, "forced_eos_token_id": 0}
        model = transformers.MarianMTModel(transformers.MarianConfig(**common, **ids))
        model.final_logits_bias.normal_()
        model.final_logits_bias[0, pad] = -1e4  # CTranslate2 has no such token
    elif family == "bart":
        model = transformers.BartForConditionalGeneration(transformers.BartConfig(**common, normalize_before=False))
        model.generation_config.forced_bos_token_id = 0
    else:
        sizes = {"d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 2, "num_heads": 2, "initializer_factor": 3.0}
        model = transformers.T5ForConditionalGeneration(
            transformers.T5Config(vocab_size=size, decoder_start_token_id=0, **sizes)
        )
    return model.eval()


def _nllb(directory):
    from transformers import NllbTokenizer

    found = {name: i for i, name in enumerate((*SPECIAL, *dict.fromkeys("▁" + "".join(TEXT).replace(" ", ""))))}
    merges = []
    for word in ("▁t h", "▁th e", "i s", "▁ A", "▁ t", "n g"):  # a few, in an order in which they can be made
        first, second = word.split()
        merges.append((first, second))
        for part in (first, second, first + second):
            found.setdefault(part, len(found))
    return NllbTokenizer(
        vocab=found, merges=merges, extra_special_tokens=["eng_Latn", "fra_Latn", "deu_Latn", "zho_Hans", "zho_Hant"]
    )


def _m2m(directory):
    from transformers import M2M100Tokenizer
    from transformers.models.m2m_100.tokenization_m2m_100 import FAIRSEQ_LANGUAGE_CODES

    model = sentencepiece_model(directory)
    names = [*SPECIAL, *(piece for piece, _ in pieces(model))]
    (directory / "m2m.json").write_text(json.dumps({name: i for i, name in enumerate(names)}))
    codes = [f"__{code}__" for code in FAIRSEQ_LANGUAGE_CODES["m2m100"]]
    files = str(directory / "m2m.json"), str(model)
    return M2M100Tokenizer(*files, num_madeup_words=0, additional_special_tokens=codes)


def _mbart(directory):
    from transformers import MBartTokenizer
    from transformers.models.mbart.tokenization_mbart import FAIRSEQ_LANGUAGE_CODES

    scored = [(name, 0.0) for name in SPECIAL] + pieces(sentencepiece_model(directory))
    return MBartTokenizer(vocab=[*scored, *((code, 0.0) for code in FAIRSEQ_LANGUAGE_CODES), ("<mask>", 0.0)])


def _mbart50(directory):
    from transformers import MBart50Tokenizer
    from transformers.models.mbart50.tokenization_mbart50 import FAIRSEQ_LANGUAGE_CODES

    scored = [(name, 0.0) for name in SPECIAL] + pieces(sentencepiece_model(directory))
    scored += [*((code, 0.0) for code in FAIRSEQ_LANGUAGE_CODES), ("<mask>", 0.0)]
    return MBart50Tokenizer(vocab=scored, bos_token="<s>")  # which the converter of CTranslate2 wants


def _marian(directory):
    from transformers import MarianTokenizer

    model = sentencepiece_model(directory)
    names = ["</s>", "<unk>", *(piece for piece, _ in pieces(model)), ">>deu<<", ">>fra<<", ">>zh_cn<<", "<pad>"]
    (directory / "marian.json").write_text(json.dumps({name: i for i, name in enumerate(names)}))
    return MarianTokenizer(str(model), str(model), str(directory / "marian.json"))


def _t5(directory):
    from transformers import T5Tokenizer

    scored = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *pieces(sentencepiece_model(directory))]
    return T5Tokenizer(vocab=[*scored, ("<extra_id_0>", 0.0)], extra_ids=1)


def _bart(directory):
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import BartTokenizer

    names = [*SPECIAL, *sorted(ByteLevel.alphabet()), "<mask>"]
    return BartTokenizer(vocab={name: i for i, name in enumerate(names)}, merges=[])


TOKENIZERS = {
    "nllb": _nllb,
    "m2m": _m2m,
    "mbart": _mbart,
    "mbart50": _mbart50,
    "marian": _marian,
    "t5": _t5,
    "bart": _bart,
}
