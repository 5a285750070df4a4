"""Opening a model directory or an export with the engine that it is for."""

from pathlib import Path

import torch

from deltalm_ds.checkpoints.directory import load_model
from deltalm_ds.errors import InputError
from deltalm_ds.files import read_json
from deltalm_ds.generation.engines.pytorch import PyTorchEngine
from deltalm_ds.generation.interface import Engine

ENGINES = ("pytorch", "ctranslate2", "onnx")


def load_engine(directory: str | Path, name: str | None = None, threads: int = 0) -> Engine:
    """Open a model directory, or an export, with the one of `ENGINES` that it is for.

    Args:
        name: refuse what is for another engine than this.
        threads: CPU threads of the engine, and of this process where the search runs in it; 0 leaves the defaults.

    Raises:
        InputError: the directory holds no model, or not one for this engine. DataError: its files are damaged.
    """
    if name not in (None, *ENGINES):
        raise InputError(f"There is no engine {name!r}: the engines are {', '.join(ENGINES)}.")
    about = Path(directory) / "deltalm.json"
    wanted = read_json(about)["format"] if about.exists() else "pytorch"
    if name not in (None, wanted):
        raise InputError(
            f"{directory} is for {wanted}, not for {name}: leave --engine out, or make another export of the model "
            "with `deltalm export --to`."
        )
    if wanted == "ctranslate2":
        from deltalm_ds.generation.engines.ctranslate2 import CTranslate2Engine

        return CTranslate2Engine(directory, threads)
    if threads:
        torch.set_num_threads(threads)
    if wanted == "onnx":
        from deltalm_ds.generation.engines.onnx import OnnxEngine

        return OnnxEngine(directory, threads)
    if wanted != "pytorch":
        raise InputError(
            f"{directory} is an export to {wanted}, which no engine here runs; its README.md says what does."
        )
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return PyTorchEngine(load_model(directory).to(device))
