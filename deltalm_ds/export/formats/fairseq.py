"""Back to fairseq: a `finetuned.pt` that Microsoft's code loads strictly, with its dict.txt [facts: checkpoint files].

microsoft/unilm `deltalm/` fixes all sizes by the architecture's name and knows two, `deltalm_base` and
`deltalm_large`. A model of other sizes names an architecture of its own, which is written beside it as a plug-in of
fairseq (`--user-dir`) and takes the sizes from the file.
"""

import argparse
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from deltalm_ds.checkpoints.initialise import unchanged_initialisation
from deltalm_ds.checkpoints.sources import recognise
from deltalm_ds.errors import InputError
from deltalm_ds.export.fairseq_weights import TOKEN_TABLE, fairseq_weights
from deltalm_ds.export.formats import ExportFormat
from deltalm_ds.generation.engines.pytorch import PyTorchEngine
from deltalm_ds.model.config import PRESETS, DeltaLMConfig
from deltalm_ds.model.deltalm import DeltaLM
from deltalm_ds.token_ids import SPECIAL_TOKENS
from deltalm_ds.vocabulary import Vocabulary

DTYPES = {"float32": torch.float32, "float16": torch.float16}
CHECKPOINT = "finetuned.pt"
DICTIONARY = "dict.txt"
PLUG_IN = "deltalm_any"  # an architecture and, for --user-dir, the package that registers it
FAIRSEQ_LAYER_NORM_EPS = 1e-5
STATE_VERSION = 3.0  # of fairseq's encoder and decoder modules

_PLUG_IN_SOURCE = f'''\
"""For fairseq's --user-dir, after `import deltalm`: a model has the sizes that its checkpoint states."""

from fairseq.models import register_model_architecture


@register_model_architecture("deltalm", "{PLUG_IN}")
def {PLUG_IN}(args):
    """Nothing to add to what the checkpoint states."""
'''
EXAMPLE = """\
from argparse import Namespace

import torch

with torch.serialization.safe_globals([Namespace]):
    checkpoint = torch.load("{directory}/finetuned.pt")
print(checkpoint["cfg"]["model"].arch, len(checkpoint["model"]), "tensors")
"""


def write_fairseq(model: DeltaLM, vocabulary: Vocabulary | None, directory: Path, precision: str) -> None:
    """Write `finetuned.pt`, `dict.txt` and, for sizes of no official model, the plug-in into an existing directory.

    Padding rows are left out. What follows the pieces (sentinels, tags) stands in dict.txt too. The two rows in front
    of each position table, which are never read, are zero.

    Args:
        model: one with an interleaved decoder and fairseq's epsilon.
        vocabulary: None writes no dict.txt.
        directory: exists already.
        precision: a key of `DTYPES`.

    Raises:
        InputError: fairseq's code has no such model, or a token cannot stand in a dict.txt.
    """
    config = model.config
    if config.decoder != "interleaved":
        raise InputError(f"fairseq's DeltaLM has interleaved blocks only: this model's decoder is {config.decoder}.")
    if config.layer_norm_eps != FAIRSEQ_LAYER_NORM_EPS:
        raise InputError(f"fairseq's layer_norm_eps is {FAIRSEQ_LAYER_NORM_EPS}, this model's {config.layer_norm_eps}.")
    if vocabulary is not None:
        _write_dictionary(vocabulary, directory / DICTIONARY)
    architecture = _architecture(config)
    if architecture == PLUG_IN:
        (directory / PLUG_IN).mkdir()
        (directory / PLUG_IN / "__init__.py").write_text(_PLUG_IN_SOURCE, encoding="utf-8")
    content = {
        "args": None,
        "cfg": {"_name": None, "model": _model_arguments(config, architecture), "task": _task_arguments(config)},
        "model": _fairseq_state(model, DTYPES[precision]),
        "criterion": None,
        "optimizer_history": [
            {
                "criterion_name": "LabelSmoothedCrossEntropyCriterion",
                "optimizer_name": "FairseqAdam",
                "lr_scheduler_state": {"best": None},
                "num_updates": 0,
            }
        ],
        "task_state": {},
        "extra_state": {"epoch": 1, "train_iterator": {"epoch": 1}, "val_loss": None},
        "last_optimizer_state": None,
    }
    with open(directory / CHECKPOINT, "wb") as file:
        torch.save(content, file)


def open_fairseq(directory: Path) -> PyTorchEngine:
    """The model of a directory that `write_fairseq` wrote, read as any fine-tuned DeltaLM of fairseq is."""
    return PyTorchEngine(unchanged_initialisation(recognise(directory / CHECKPOINT)).model())


def _architecture(config: DeltaLMConfig) -> str:
    """The official name of the model's sizes, or the plug-in's."""
    for name in ("base", "large"):
        official = DeltaLMConfig.preset(name, vocabulary_size=config.vocabulary_size)
        if all(getattr(config, size) == getattr(official, size) for size in PRESETS["large"]):
            return f"deltalm_{name}"
    return PLUG_IN


def _model_arguments(config: DeltaLMConfig, architecture: str) -> argparse.Namespace:
    """fairseq's settings of the model; those left out have no influence on it, or a default that is DeltaLM's."""
    arguments: dict[str, Any] = {
        "_name": architecture,
        "arch": architecture,
        "encoder_layers": config.num_encoder_layers,
        "decoder_layers": config.num_decoder_blocks,
        "max_source_positions": config.max_positions,
        "max_target_positions": config.max_positions,
        "share_all_embeddings": True,
        "share_decoder_input_output_embed": True,
        "no_scale_embedding": True,
        "layernorm_embedding": config.embedding_norm,
        "activation_fn": "gelu",
        "dropout": config.dropout,
        "attention_dropout": config.attention_dropout,
        "activation_dropout": config.activation_dropout,
        "pretrained_deltalm_checkpoint": "",
    }
    for stack in ("encoder", "decoder"):
        arguments |= {
            f"{stack}_embed_dim": config.hidden_size,
            f"{stack}_ffn_embed_dim": config.ffn_size,
            f"{stack}_attention_heads": config.num_heads,
            f"{stack}_learned_pos": True,
            f"{stack}_normalize_before": False,
        }
    return argparse.Namespace(**arguments)


def _task_arguments(config: DeltaLMConfig) -> dict[str, Any]:
    return {
        "_name": "translation",
        "data": "",
        "source_lang": "src",
        "target_lang": "tgt",
        "left_pad_source": True,
        "left_pad_target": False,
        "max_source_positions": config.max_positions,
        "max_target_positions": config.max_positions,
    }


def _fairseq_state(model: DeltaLM, dtype: torch.dtype) -> dict[str, Tensor]:
    """All tensors of fairseq's model; the three names of the token table share its memory."""
    # copies, as torch saves a tensor with all of the memory that it is a part of
    state = {name: tensor.to("cpu", dtype, copy=True) for name, tensor in fairseq_weights(model).items()}
    for copy in ("encoder.embed_tokens.weight", "decoder.output_projection.weight"):
        state[copy] = state[TOKEN_TABLE]
    for stack in ("encoder", "decoder"):
        state[f"{stack}.version"] = torch.tensor([STATE_VERSION])
    return state


def _write_dictionary(vocabulary: Vocabulary, path: Path) -> None:
    """One `token count` a line for every id from 4 on; counts are unknown and 1."""
    tokens = [vocabulary.token(row) for row in range(len(SPECIAL_TOKENS), vocabulary.num_tokens)]
    for token in tokens:
        if set(token) & {"\n", "\r"}:
            raise InputError(f"The token {token!r} cannot stand in a dict.txt: it has a line break.")
    path.write_text("".join(f"{token} 1\n" for token in tokens), encoding="utf-8", newline="\n")


FORMAT = ExportFormat(
    title="fairseq and Microsoft's DeltaLM code",
    library="torch",
    write=write_fairseq,
    open=open_fairseq,
    precisions=tuple(DTYPES),
    example=EXAMPLE,
    ids_example=EXAMPLE,
    note="In fairseq: `--path` with `finetuned.pt`, `--user-dir` as for any DeltaLM, and `dict.txt` for both "
    "languages.",
)
