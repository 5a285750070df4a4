"""Models to export: random ones of every kind, one that was trained, and one with text."""

import gzip
import json
from pathlib import Path

import sentencepiece
import torch

from deltalm_ds.checkpoints.initialise import unchanged_initialisation
from deltalm_ds.checkpoints.safetensors_writer import write_safetensors
from deltalm_ds.checkpoints.sources import recognise
from deltalm_ds.files import write_json
from deltalm_ds.model.config import DeltaLMConfig
from deltalm_ds.model.deltalm import DeltaLM
from deltalm_ds.token_ids import EOS_ID
from deltalm_ds.vocabulary import Vocabulary

FIXTURES = Path(__file__).parents[1] / "fixtures"
TEXT = (
    "A dog is running over the green grass, and two children (8 and 10) watch it!",
    "Größe überprüfen: 3,5 km oder 12½ Meilen? Ein Hund läuft im Café.",
    "Собака бежит по зелёной траве. Δύο παιδιά παίζουν.",
    "犬が草の上を走っている。一只狗在草地上跑。개가 잔디 위를 달린다.",
    "कुत्ता घास पर दौड़ रहा है। สุนัขวิ่งบนหญ้า قطة تجلس على الكرسي",
)


def save(model, directory, vocabulary=None):
    """A model directory; without vocabulary it is one for ids only."""
    directory.mkdir(parents=True)
    weights = model.state_dict()
    write_json(directory / "config.json", {"model": model.config.model_dump(), "provenance": {"made_by": "a test"}})
    shapes = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    write_safetensors(directory / "model.safetensors", shapes, weights.__getitem__)
    if vocabulary is not None:
        vocabulary.save(directory)
    return directory


def random_model(seed=0, **changes):
    """Norms and biases are random too."""
    torch.manual_seed(seed)
    sizes = {
        "vocabulary_size": 101,  # 27 padding rows
        "hidden_size": 48,
        "ffn_size": 96,
        "num_heads": 3,
        "num_encoder_layers": 2,
        "num_decoder_blocks": 2,
        "max_positions": 40,
    }
    model = DeltaLM(DeltaLMConfig(**(sizes | changes))).eval()
    for name, parameter in model.named_parameters():
        if "norm" in name or "bias" in name:
            parameter.data += 0.2 * torch.randn_like(parameter)
    return model


def trained_model():
    """The official toy model that was trained, and the sources of the beam search reference."""
    model = unchanged_initialisation(recognise(FIXTURES / "official_base_trained.pt"), num_heads=4).model()
    reference = json.loads(gzip.decompress((FIXTURES / "beam.json.gz").read_bytes()))
    return model, [source[:-1] for source in reference["sources"]]


def text_vocabulary(directory, **training):
    """Of `TEXT`, with tags for en and de."""
    directory.mkdir(parents=True, exist_ok=True)
    options = {"vocab_size": 260, "model_type": "unigram", "normalization_rule_name": "nmt_nfkc", "minloglevel": 2}
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXT * 4),
        model_prefix=str(directory / "spm"),
        hard_vocab_limit=False,
        character_coverage=1.0,
        **(options | training),
    )
    return Vocabulary.from_spm(directory / "spm.model", num_sentinels=2, languages=["en", "de"], tasks=["[S]"])


def text_model(directory, seed=0, eos_logit=3, **changes):
    """A directory with a random model whose outputs end before the maximum length, and its vocabulary."""
    vocabulary = text_vocabulary(directory.parent)
    model = random_model(seed, vocabulary_size=vocabulary.num_tokens, max_positions=64, **changes)
    eos = model.token_embedding.weight.data[EOS_ID]
    model.decoder.blocks[-1].ffn_2.norm.bias.data += eos_logit * eos / eos.norm() ** 2  # so much more at every step
    return save(model, directory, vocabulary)
