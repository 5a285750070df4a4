"""The head of a model.bin of CTranslate2: what kind of model it is, its sizes and dtypes."""

import struct
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import BinaryIO

from deltalm_ds.errors import DataError, InputError

DTYPES = {0: ("float32", 4), 1: ("int8", 1), 2: ("int16", 2), 3: ("int32", 4), 4: ("float16", 2), 5: ("bfloat16", 2)}
SEQ2SEQ = "TransformerSpec"
KINDS = {  # by the name of its specification
    "TransformerDecoderSpec": "a decoder alone (a language model)",
    "TransformerEncoderSpec": "an encoder alone",
    "WhisperSpec": "a model of speech (Whisper)",
    "Wav2Vec2Spec": "a model of speech (wav2vec 2.0)",
    "Wav2Vec2BertSpec": "a model of speech (Wav2Vec2-BERT)",
}
ENCODINGS = "position_encodings/encodings"
WEIGHT = "decoder/layer_0/self_attention/linear_0/weight"


@dataclass(frozen=True)
class ModelFile:
    """What the variables of a model say.

    Attributes:
        max_positions: of the shorter side's table of positions; None if there is no such table.
        dtype: that the weights are stored in.
    """

    max_positions: int | None
    dtype: str


def read_model_file(path: Path) -> ModelFile:
    """Read the names, shapes and dtypes of a model.bin.

    Raises:
        InputError: the file is missing, or the model is of another kind. DataError: the file is cut short or none of
            CTranslate2's.
    """
    if not path.is_file():
        raise InputError(f"{path} does not exist.")
    with open(path, "rb") as file:
        try:
            name, variables = _read(file)
        except (struct.error, UnicodeDecodeError, KeyError, EOFError):
            raise DataError(f"{path} is cut short, or no model of CTranslate2: download or convert it again.") from None
    if name != SEQ2SEQ:
        raise InputError(f"{path} is {KINDS.get(name, f'a {name}')}: translation needs an encoder and a decoder.")
    tables = [
        variables[of_side][0] for side in ("encoder", "decoder") if (of_side := f"{side}/{ENCODINGS}") in variables
    ]
    return ModelFile(min((shape[0] for shape in tables), default=None), variables.get(WEIGHT, ((), "float32"))[1])


def _read(file: BinaryIO) -> tuple[str, dict[str, tuple[tuple[int, ...], str]]]:
    """The specification's name, and each variable's shape and dtype."""
    size = file.seek(0, 2)
    file.seek(0)
    _number(file, "I")
    name = _text(file)
    _number(file, "I")
    variables = {}
    for _ in range(_number(file, "I")):
        variable = _text(file)
        shape = tuple(_number(file, "I") for _ in range(_number(file, "B")))
        dtype, num_bytes = DTYPES[_number(file, "B")]
        _number(file, "I")  # bytes that follow, modulo 2**32
        if file.seek(prod(shape) * num_bytes, 1) > size:
            raise EOFError
        variables[variable] = shape, dtype
    for _ in range(_number(file, "I")):
        alias, variable = _text(file), _text(file)
        variables[alias] = variables[variable]
    return name, variables


def _number(file: BinaryIO, kind: str) -> int:
    return struct.unpack(f"<{kind}", file.read(struct.calcsize(f"<{kind}")))[0]


def _text(file: BinaryIO) -> str:
    return file.read(_number(file, "H"))[:-1].decode()
