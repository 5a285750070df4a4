"""DeltaLM-style multilingual sequence-to-sequence models under DeepSpeed.

`Translator` is loaded when it is first asked for: importing the package imports nothing else.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from deltalm_ds.generation.translator import Translator

__all__ = ["Translator", "__version__"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name != "Translator":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from deltalm_ds.generation.translator import Translator

    return Translator
