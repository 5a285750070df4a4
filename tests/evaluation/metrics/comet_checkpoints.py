"""Tiny checkpoints of COMET in the published layout, with random weights; and texts to score by them."""

import io
import json
from pathlib import Path

import numpy as np
import sentencepiece
import torch
import yaml

WIDTH, FFN, HEADS, LAYERS, POSITIONS = 16, 32, 4, 3, 40
KIWI_SETTINGS = {"input_segments": ["mt", "src"], "word_level_training": True, "word_layer": 2}
SOURCES = [
    "der alte Mann liest ein Buch im Garten",
    "sieben Kinder schwammen durch unseren Fluss, ja durch unseren Fluss",
    "Wörter, die „niemand“ kennt: 東京 и Москва",
    "ja",
    " ".join(["ein sehr langer Satz, der länger ist als alles, was hineinpasst"] * 3),
]
OUTPUTS = ["the old man reads a book in the garden", "seven children swam through us", "words ②", "", "a very long one"]
REFERENCES = [
    "the old man is reading a book in the garden",
    "seven children were swimming across our river",
    "words that „nobody“ knows: Tokyo and Moscow",
    "yes",
    " ".join(["a very long sentence that is longer than anything that has room"] * 3),
]
# architectures with settings, such that each setting has each of its values somewhere
VARIANTS = {
    "sparsemax": ("regression_metric", {}),
    "softmax": (
        "regression_metric",
        {"layer_transformation": "softmax", "layer_norm": True, "final_activation": "Sigmoid"},
    ),
    "layer": ("regression_metric", {"layer": 2, "pool": "cls", "activations": "Sigmoid"}),
    "kiwi": ("unified_metric", {}),
    "patched": ("unified_metric", {"layer_transformation": "sparsemax_patch"}),
}


def write_checkpoint(directory: Path, identifier: str, seed: int = 0, **settings: object) -> Path:
    """A checkpoint of an architecture, with some settings of its own; weights are drawn by numpy from the seed."""
    (directory / "checkpoints").mkdir(parents=True)
    rows = write_tokenizer(directory / "sentencepiece.bpe.model") + 2
    write_config(directory / "config.json", rows)
    is_regression = identifier == "regression_metric"
    hyper_parameters = {
        "encoder_model": "XLM-RoBERTa",
        "pretrained_model": str(directory),
        "layer" if is_regression else "sent_layer": "mix",
        "layer_transformation": "sparsemax",
        "layer_norm": False,
        "hidden_sizes": [24, 8],
        "activations": "Tanh",
        "final_activation": None,
        "dropout": 0.1,
        "validation_data": [],
        **({"pool": "avg"} if is_regression else KIWI_SETTINGS),
        **settings,
    }
    stated = {"class_identifier": identifier, "layer_transformation": hyper_parameters["layer_transformation"]}
    if stated["layer_transformation"] == "sparsemax_patch":  # so it is published: with the old word in the weights
        hyper_parameters["layer_transformation"] = "sparsemax"
    (directory / "hparams.yaml").write_text(yaml.safe_dump(stated))
    draw = np.random.default_rng(seed).normal
    state = {
        name: torch.tensor(draw(*_distribution(name), shape), dtype=torch.float32)
        for name, shape in shapes(rows, 6 * WIDTH if is_regression else WIDTH).items()
    }
    content = {"state_dict": state, "hyper_parameters": hyper_parameters, "pytorch-lightning_version": "2.0.0"}
    torch.save(content, directory / "checkpoints" / "model.ckpt")
    return directory


def _distribution(name: str) -> tuple[float, float]:
    """Mean and standard deviation of a tensor's numbers: layers count so differently that sparsemax leaves some out."""
    return float(name.endswith(("LayerNorm.weight", "gamma"))), 1.0 if "scalar_parameters" in name else 0.3


def write_tokenizer(path: Path, vocab_size: int = 90) -> int:
    """A SentencePiece model laid out as XLM-R's; how many pieces it has."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(4 * (SOURCES + REFERENCES)),
        model_writer=model,
        vocab_size=vocab_size,
        hard_vocab_limit=False,
        character_coverage=0.98,
        minloglevel=2,
        num_threads=1,
    )
    path.write_bytes(model.getvalue())
    return sentencepiece.SentencePieceProcessor(model_proto=model.getvalue()).get_piece_size()


def write_config(path: Path, rows: int) -> None:
    """What Hugging Face's classes need to know of the encoder."""
    sizes = {
        "vocab_size": rows,
        "hidden_size": WIDTH,
        "intermediate_size": FFN,
        "num_attention_heads": HEADS,
        "num_hidden_layers": LAYERS,
        "max_position_embeddings": POSITIONS + 2,
    }
    fixed = {"model_type": "xlm-roberta", "type_vocab_size": 1, "layer_norm_eps": 1e-5, "pad_token_id": 1}
    path.write_text(json.dumps(sizes | fixed | {"bos_token_id": 0, "eos_token_id": 2}))


def shapes(rows: int, width: int) -> dict[str, tuple[int, ...]]:
    """Of all tensors, by their published names; width: of the estimator's input."""
    encoder: dict[str, tuple[int, ...]] = {
        "embeddings.word_embeddings.weight": (rows, WIDTH),
        "embeddings.position_embeddings.weight": (POSITIONS + 2, WIDTH),
        "embeddings.token_type_embeddings.weight": (1, WIDTH),
        "embeddings.LayerNorm.weight": (WIDTH,),
        "embeddings.LayerNorm.bias": (WIDTH,),
    }
    for layer in range(LAYERS):
        for name, size in (
            *((f"attention.self.{name}", (WIDTH, WIDTH)) for name in ("query", "key", "value")),
            ("attention.output.dense", (WIDTH, WIDTH)),
            ("attention.output.LayerNorm", (WIDTH,)),
            ("intermediate.dense", (FFN, WIDTH)),
            ("output.dense", (WIDTH, FFN)),
            ("output.LayerNorm", (WIDTH,)),
        ):
            encoder[f"encoder.layer.{layer}.{name}.weight"] = size
            encoder[f"encoder.layer.{layer}.{name}.bias"] = size[:1]
    found = {f"encoder.model.{name}": shape for name, shape in encoder.items()}
    found |= {f"layerwise_attention.scalar_parameters.{i}": (1,) for i in range(LAYERS + 1)}
    found |= {"layerwise_attention.gamma": (1,), "hidden2tag.weight": (3, WIDTH), "hidden2tag.bias": (3,)}
    for number, shape in zip((0, 3, 6), ((24, width), (8, 24), (1, 8)), strict=True):
        found[f"estimator.ff.{number}.weight"] = shape
        found[f"estimator.ff.{number}.bias"] = shape[:1]
    return found
