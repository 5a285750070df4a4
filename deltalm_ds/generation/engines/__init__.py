"""The engines that run a model, one file and one row each. The table itself imports none of them.

A new engine is a module here with `open_engine(directory, options)`, which returns an `Engine`, and a row of `ENGINES`.
"""

from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from deltalm_ds.generation.interface import Engine, EngineOptions


@dataclass(frozen=True)
class EngineEntry:
    """An engine before it is loaded.

    Attributes:
        title: its name for people.
        module: where its `open_engine` is, with all the imports that it needs.
        formats: what it opens: values of `format` in an export's deltalm.json, `MODEL_DIRECTORY`, or formats of
            directories that are not ours (`foreign_format`).
    """

    title: str
    module: str
    formats: tuple[str, ...]

    def open(self, directory: Path, options: EngineOptions) -> Engine:
        """Load the engine and open a directory.

        Raises:
            InputError: a file, a package or a device is missing, or the device cannot compute so. DataError: a file
                is damaged.
        """
        return import_module(self.module).open_engine(directory, options)


MODEL_DIRECTORY = "pytorch"  # the format of a directory without deltalm.json

ENGINES = {
    "pytorch": EngineEntry("PyTorch", f"{__name__}.pytorch", (MODEL_DIRECTORY,)),
    "ctranslate2": EngineEntry("CTranslate2", f"{__name__}.ctranslate2", ("ctranslate2",)),
    "onnx": EngineEntry("ONNX Runtime", f"{__name__}.onnx", ("onnx",)),
    "transformers": EngineEntry("Hugging Face transformers", f"{__name__}.transformers", ("transformers", "bart")),
}
