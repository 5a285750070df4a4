"""A checkpoint of COMET as its authors publish it, with XLM-R's SentencePiece model beside it [facts: COMET]."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from deltalm_ds.checkpoints.source import TABLE, SourceCheckpoint
from deltalm_ds.checkpoints.sources.xlm_roberta_huggingface import XLM_ROBERTA_HUGGINGFACE
from deltalm_ds.checkpoints.tensor_files import open_tensors
from deltalm_ds.errors import DataError, InputError
from deltalm_ds.evaluation.metrics.comet_network import ACTIVATIONS, CometNetwork, Head, sparsemax
from deltalm_ds.files import sha256_of
from deltalm_ds.token_ids import BOS_ID, EOS_ID, SPECIAL_TOKENS
from deltalm_ds.vocabulary import Vocabulary

HPARAMS, WEIGHTS, TOKENIZER = "hparams.yaml", "checkpoints/model.ckpt", "sentencepiece.bpe.model"
ENCODER, MIX, ESTIMATOR = "encoder.model.", "layerwise_attention.", "estimator.ff."  # names of tensors begin so
KIWI_SEGMENTS = ["mt", "src"]
# What settings may be; the first is that of a checkpoint which does not state it.
VALUES: dict[str, tuple[Any, ...]] = {
    "encoder_model": ("XLM-RoBERTa",),
    "pool": ("avg", "cls"),
    "layer_norm": (True, False),
    "activations": tuple(ACTIVATIONS),
    "final_activation": (None, *ACTIVATIONS),
    "layer_transformation": ("softmax", "sparsemax", "sparsemax_patch"),
}


@dataclass(frozen=True, eq=False)
class Kind:
    """One of COMET's architectures.

    Attributes:
        identifier: what its authors call it.
        width: of the estimator's input, in widths of the encoder.
        layer: the setting that says which layers the estimator sees.
        fixed: settings that this architecture does not leave open.
    """

    identifier: str
    width: int
    layer: str
    fixed: dict[str, Any]


REGRESSION = Kind("regression_metric", 6, "layer", {})
UNIFIED = Kind("unified_metric", 1, "sent_layer", {"pool": "cls"})
MODELS = {REGRESSION.identifier: "Unbabel/wmt22-comet-da", UNIFIED.identifier: "Unbabel/wmt22-cometkiwi-da"}


class CometCheckpoint:
    """A checkpoint that was checked, of which nothing was read yet but names, shapes and the tokenizer.

    Args:
        directory: holds `HPARAMS`, `WEIGHTS` and `TOKENIZER`; XLM-R's config.json too where its width does not tell its
            number of heads.
        kind: what it must be.

    Raises:
        InputError: a file is missing, or it is of another kind.
        DataError: a file is damaged, or they do not belong together.
    """

    def __init__(self, directory: Path, kind: Kind) -> None:
        _check_files(directory)
        stated = _stated(directory / HPARAMS)
        _check_kind(directory, kind, stated)
        self.path, self._kind = directory / WEIGHTS, kind
        self._tensors = open_tensors(self.path)
        self._settings = self._read_settings(stated)
        self._encoder = XLM_ROBERTA_HUGGINGFACE.read(directory, self._tensors.part(ENCODER, directory))
        self._estimator = self._read_estimator()
        self._layer_weights = self._read_layer_weights()
        self._vocabulary = _vocabulary(directory / TOKENIZER, self._encoder)
        if self._encoder.sizes.num_heads is None:
            raise InputError(f"{directory} does not say how many heads its encoder has: put its config.json there.")

    @cached_property
    def sha256(self) -> str:
        """Of the file of weights."""
        return sha256_of(self.path)

    @cached_property
    def network(self) -> CometNetwork:
        """The network in float32, on a GPU where there is one."""
        source, layers = self._encoder, self._estimator
        head = Head(
            self._settings["layer_norm"],
            self._settings["pool"],
            self._settings["activations"],
            self._settings["final_activation"],
        )
        sizes = [layers[0][0].shape[1], *(weight.shape[0] for weight, _ in layers)]
        weights = {name: source.read(name) for name in source.origins if name != TABLE}
        for number, pair in enumerate(layers):
            weights |= {f"estimator.{number}.{name}": x for name, x in zip(("weight", "bias"), pair, strict=True)}
        with torch.device("meta"):
            network = CometNetwork(source.sizes.config(num_decoder_blocks=1), source.sizes.num_rows, sizes, head)
        weights |= {"table": source.read(TABLE), "layer_weights": self._layer_weights}
        network.load_state_dict(weights, assign=True)
        return network.to("cuda" if torch.cuda.is_available() else "cpu")

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of each text between `<s>` and `</s>`; what is longer than COMET reads is cut off."""
        most = self._encoder.sizes.max_positions - 4  # it leaves two positions free, beside those two tokens
        return [[BOS_ID, *row[:most].tolist(), EOS_ID] for row in self._vocabulary.encode_rows(texts)]

    def join(self, first: Sequence[Sequence[int]], second: Sequence[Sequence[int]]) -> list[list[int]]:
        """Pairs of what `encode` gave as one sequence each, `<s> a </s> </s> b </s>`, cut to the positions."""
        longest = self._encoder.sizes.max_positions
        return [[*a, EOS_ID, *b[1:]][:longest] for a, b in zip(first, second, strict=True)]

    def _read_settings(self, stated: Mapping[str, Any]) -> dict[str, Any]:
        """What the file of weights says of itself, as its authors' program takes it; else `HPARAMS`."""
        saved = self._tensors.content.get("hyper_parameters")
        settings = dict(saved if isinstance(saved, Mapping) else stated) | self._kind.fixed
        if self._kind is UNIFIED and settings.get("input_segments") != KIWI_SEGMENTS:
            raise InputError(
                f"{self.path} reads {settings.get('input_segments')}: cometkiwi takes a model that reads mt and src "
                f"alone, as {MODELS[UNIFIED.identifier]}."
            )
        if self._kind is UNIFIED:
            settings.setdefault("layer_transformation", "sparsemax")
        if stated.get("layer_transformation") == "sparsemax_patch":  # trained with softmax, whatever it says of itself
            settings["layer_transformation"] = "softmax"
        for name, values in VALUES.items():
            value = settings.setdefault(name, values[0])
            if value not in values:
                known = ", ".join(map(str, values))
                raise InputError(f"{self.path} has {name}={value!r}, which is not supported: known are {known}.")
        return settings

    def _tensor(self, name: str, num_dims: int = 1) -> Tensor:
        if name not in self._tensors or len(self._tensors.shape(name)) != num_dims:
            raise DataError(f"{self.path} lacks the tensor {name}: it is not a complete checkpoint of COMET.")
        return self._tensors[name].float()

    def _read_layer_weights(self) -> Tensor:
        """[L + 1] what each layer counts, the embedding first."""
        num_layers, layer = self._encoder.sizes.num_encoder_layers + 1, self._settings.get(self._kind.layer, "mix")
        if layer == "mix":
            raw = torch.cat([self._tensor(f"{MIX}scalar_parameters.{number}") for number in range(num_layers)])
            is_sparse = self._settings["layer_transformation"] == "sparsemax"
            return self._tensor(f"{MIX}gamma") * (sparsemax(raw) if is_sparse else raw.softmax(0))
        if type(layer) is not int or not 0 <= layer < num_layers:
            raise DataError(f"{self.path} has {self._kind.layer}={layer!r}: mix, or a number below {num_layers}.")
        return torch.nn.functional.one_hot(torch.tensor(layer), num_layers).float()

    def _read_estimator(self) -> list[tuple[Tensor, Tensor]]:
        """Weight and bias of each layer."""
        found = [re.fullmatch(rf"{re.escape(ESTIMATOR)}(\d+)\.weight", name) for name in self._tensors]
        numbers = sorted(int(match[1]) for match in found if match)
        layers = [(self._tensor(f"{ESTIMATOR}{i}.weight", 2), self._tensor(f"{ESTIMATOR}{i}.bias")) for i in numbers]
        width = self._kind.width * self._encoder.sizes.hidden_size
        for weight, bias in layers:
            if weight.shape != (len(bias), width):
                break
            width = len(bias)
        else:
            if layers and width == 1:
                return layers
        raise DataError(f"{self.path} has an estimator that does not fit its encoder: is it complete?")


@cache
def open_checkpoint(directory: str, kind: Kind) -> CometCheckpoint:
    """One for all scorers; see `CometCheckpoint`."""
    return CometCheckpoint(Path(directory), kind)


def _check_files(directory: Path) -> None:
    missing = [name for name in (HPARAMS, WEIGHTS, TOKENIZER) if not (directory / name).is_file()]
    if missing:
        raise InputError(
            f"{directory} lacks {', '.join(missing)}: a checkpoint of COMET has {HPARAMS} and {WEIGHTS}, and beside "
            f"them belongs {TOKENIZER} of FacebookAI/xlm-roberta-large."
        )


def _stated(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise DataError(f"{path} is not valid YAML: {str(error).splitlines()[0]}.") from None
    if not isinstance(content, dict):
        raise DataError(f"{path} has no settings by name: it is not COMET's.")
    return content


def _check_kind(directory: Path, kind: Kind, stated: Mapping[str, Any]) -> None:
    identifier = stated.get("class_identifier")
    if identifier != kind.identifier:
        raise InputError(
            f"{directory / HPARAMS} has class_identifier={identifier!r} where {kind.identifier!r} is needed: comet "
            f"takes a model such as {MODELS[REGRESSION.identifier]}, cometkiwi {MODELS[UNIFIED.identifier]}."
        )


def _vocabulary(path: Path, encoder: SourceCheckpoint) -> Vocabulary:
    vocabulary = Vocabulary.from_spm(path, num_sentinels=0)
    rows = len(SPECIAL_TOKENS) + len(vocabulary.blocks["pieces"]) + 1  # and <mask>
    if rows != encoder.sizes.num_rows:
        raise DataError(
            f"{path} makes a vocabulary of {rows} tokens, the encoder beside it has {encoder.sizes.num_rows}: take the "
            "file of XLM-R."
        )
    return vocabulary
